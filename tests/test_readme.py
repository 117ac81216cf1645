"""The Python examples of README and docs run, in order, as a reader would type them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "document", ["README.md", "docs/migrating.md", "docs/scaling.md", "docs/large.md", "docs/filters.md"]
)
def test_python_blocks_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / document).read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert blocks
    session: dict[str, object] = {}
    for block in blocks:
        # Blank lines in front, so that a traceback shows the document's own line numbers.
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], document, "exec"), session)
