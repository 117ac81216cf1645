"""The programs and the notebook in examples/ run as they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {
    "langchain_store.py": "langchain_community",
    "huggingface_datasets.py": "datasets",
    "txtai_embeddings.py": "txtai",
}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("program", sorted({path.name for path in EXAMPLES.glob("*.py")} - {"words.py"}))
def test_programs_run(program, tmp_path):
    pytest.importorskip(NEEDS[program])
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3  # the nearest texts


@pytest.mark.parametrize("notebook", sorted(path.name for path in EXAMPLES.glob("*.ipynb")))
def test_notebooks_run(notebook, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    cells = nbformat.read(EXAMPLES / notebook, as_version=4)
    nbclient.NotebookClient(cells, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    printed = [output for cell in cells.cells if cell.cell_type == "code" for output in cell.outputs]
    assert printed and all(output.output_type != "error" for output in printed)
    nbformat.validate(cells)
