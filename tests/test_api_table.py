"""docs/api.md says of every public method of FAISS's classes what becomes of it, and names tests that are there."""

import re

import faiss
import pytest

from bench import api_table

DOCUMENT = api_table.DOCUMENT.read_text()
ROWS = re.findall(r"^\| `(\w+)` \| (.*) \|$", DOCUMENT, re.MULTILINE)
made_here = pytest.mark.skipif(
    f"from faiss {faiss.__version__}." not in DOCUMENT, reason="another release of faiss has other methods"
)


@made_here
def test_the_table_is_of_this_faiss_and_these_tests():
    assert api_table.document() == DOCUMENT, "run: python -m bench.api_table"


@made_here
@pytest.mark.parametrize("theirs", api_table.OURS)
def test_every_method_has_a_row(theirs):
    section = DOCUMENT.split(f"## faiss.{theirs} ")[1].split("\n## ")[0]
    methods = {name for name in dir(getattr(faiss, theirs)) if not name.startswith("_")}
    methods = {name for name in methods if callable(getattr(getattr(faiss, theirs), name))}
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == methods


def test_every_row_has_a_test_or_a_reason():
    assert len(ROWS) > 100
    for method, verdict in ROWS:
        assert re.match(r"works \(tested by `tests/.+\)$|does not apply because \w.{20}", verdict), method


def test_every_test_named_is_there_and_makes_the_call():
    """Or reaches the method by its name, as tests of several methods do."""
    for method, verdict in ROWS:
        for path, name in re.findall(r"tests/(\w+\.py)::(\w+)", verdict):
            source = (api_table.ROOT / "tests" / path).read_text()
            test = re.search(
                rf"((?:^@.*\n(?:^[ \])].*\n)*)*)^def {name}\(.*\n((?:^[ )].*\n|^\n)*)", source, re.MULTILINE
            )
            assert test, f"no {path}::{name}"
            assert re.search(rf"\b{method}\b", test[0]), f"{path}::{name} does not mention {method}"
