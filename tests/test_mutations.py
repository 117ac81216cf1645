"""Mutations are tried by hand (`python -m bench.mutations`): what they change has to stand in the code."""

from pathlib import Path

import pytest

from bench.mutations import MUTATIONS, ROOT


@pytest.mark.parametrize("mutation", [pytest.param(mutation, id=mutation.name) for mutation in MUTATIONS])
def test_what_a_mutation_changes_stands_there_once(mutation):
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
    assert mutation.new != mutation.old
    for test in mutation.tests:
        assert Path(ROOT / test.split("::")[0]).exists()
