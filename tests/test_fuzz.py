"""Thousands of damaged files: every one is refused by a RuntimeError, or is an index that works within its memory.

They are read in processes of their own with little memory, where a crash, an abort or a huge allocation shows.
"""

import sys

import pytest

from bench import fuzz

COUNT = 20_000 // len(fuzz.WAYS) + 1
LEAST_REFUSED = {"sealed": 0.95, "bytes": 0.95}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc to limit its memory")
@pytest.mark.parametrize("way", fuzz.WAYS)
def test_damaged_files_are_refused_or_whole(way):
    refused, death = fuzz.run_apart(0, COUNT, ["--way", way], fuzz.environment())
    assert not death, death
    assert refused > LEAST_REFUSED.get(way, 0.5) * COUNT
