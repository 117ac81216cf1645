"""The README's Python examples run, in order, as a reader would type them."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = list(re.finditer(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE))
    assert len(blocks) >= 4
    session: dict[str, object] = {}
    for block in blocks:
        # Blank lines in front, so that a traceback shows the README's own line numbers.
        line = README.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], "README.md", "exec"), session)
