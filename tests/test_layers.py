"""A package imports only packages below it: import-linter, by the contracts in pyproject.toml."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {path.parent.name for path in (ROOT / "faiss_dpq").glob("*/__init__.py")}


def lint(folder: Path) -> subprocess.CompletedProcess:
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True, no_logo=True))"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True)


def test_the_contracts_are_kept():
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("codec/threads.py", "from ..training import progress"),
        ("search/flat.py", "from ..training import stats"),
        ("training/stats.py", "from ..search import flat"),
        ("training/registry.py", "import faiss_dpq.nn.unlabelled"),
        ("index/flat.py", "def f():\n    from ..lab import demo"),
        ("lab/demo.py", "from ..nn import runs"),
        ("codec/codebooks.py", "from . import tables"),
        ("another.py", "import faiss"),
        ("index/flat.py", "def f():\n    from .. import shards"),
        ("shards/plan.py", "from ..lab import datasets"),
        ("lab/demo.py", "from ..shards import plan"),
        ("vectors/rows.py", "from . import sources"),
        ("vectors/ids.py", "from .. import index"),
        ("index/flat.py", "from .. import vectors"),
        ("shards/build.py", "def f():\n    import ray"),
    ],
)
def test_an_import_upwards_or_in_a_circle_breaks_them(module, statement, tmp_path):
    for name in ("pyproject.toml", "faiss_dpq"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    with (tmp_path / "faiss_dpq" / module).open("a") as file:
        file.write(f"\n{statement}\n")
    assert lint(tmp_path).returncode == 1


@pytest.mark.parametrize("package", ["codec", "training", "search", "index"])
def test_the_root_gives_lower_packages_nothing_but_the_kernels(package):
    """What import-linter cannot tell from an import of the compiled module."""
    for path in (ROOT / "faiss_dpq" / package).rglob("*.py"):
        depth = len(path.relative_to(ROOT / "faiss_dpq").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not [name.name for name in node.names if name.name == "faiss_dpq"], path
            elif isinstance(node, ast.ImportFrom) and (node.module == "faiss_dpq" or node.level == depth):
                names = {name.name for name in node.names} if node.module in (None, "faiss_dpq") else set()
                assert names <= {"_kernels"} | PACKAGES, path
