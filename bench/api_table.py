"""docs/api.md: what becomes of every public method of FAISS's PQ and residual-quantizer indexes.

    python -m bench.api_table

Rows come from the installed faiss. A row names the tests that make the call on an index of ours: those whose source
does, found by reading tests/, or those of `TESTED`. A method without a test must have a reason in `DOES_NOT_APPLY`.
"""

import ast
import re
from pathlib import Path

import faiss

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "api.md"

OURS = {"IndexPQ": "IndexDPQ", "IndexResidualQuantizer": "IndexDPQ", "IndexIVFPQ": "IndexIVFDPQ"}

#: Files of the tests of each class.
FILES = {
    "IndexDPQ": (
        "test_faiss_calls",
        "test_index",
        "test_index_search",
        "test_index_changes",
        "test_io",
        "test_operations",
    ),
    "IndexIVFDPQ": (
        "test_ivf",
        "test_ivf_search",
        "test_ivf_training",
        "test_ivf_changes",
        "test_ivf_files",
        "test_ivf_calls",
    ),
}
_MOST_TESTS = 2  # named in a row

_REFUSALS = re.compile("refuse|fail|error")  # in the names of tests that show what does not work

#: Tests of calls that are made in a way that reading the source does not show.
TESTED = {
    ("IndexDPQ", "search"): [
        "test_index_search.py::test_search_is_exact",
        "test_index_search.py::test_selectors_restrict_the_search",
    ],
    ("IndexDPQ", "train_c"): ["test_faiss_calls.py::test_training_through_pointers_is_noticed"],
    ("IndexDPQ", "train_ex"): ["test_faiss_calls.py::test_training_through_pointers_is_noticed"],
    ("IndexDPQ", "train_with_queries"): ["test_faiss_calls.py::test_training_through_pointers_is_noticed"],
    ("IndexIVFDPQ", "train_c"): ["test_ivf_calls.py::test_training_through_pointers_is_noticed"],
    ("IndexIVFDPQ", "train_ex"): ["test_ivf_calls.py::test_training_through_pointers_is_noticed"],
    ("IndexIVFDPQ", "train_with_queries"): ["test_ivf_calls.py::test_training_through_pointers_is_noticed"],
    ("IndexDPQ", "get_distance_computer"): ["test_faiss_calls.py::test_get_distance_computer"],
    ("IndexDPQ", "get_FlatCodesDistanceComputer"): ["test_faiss_calls.py::test_get_distance_computer"],
}

_WITHOUT_IDS = (
    "the vectors have no ids but their numbers, as in FAISS's own class, which refuses, too "
    "(tested by tests/test_faiss_calls.py::test_what_index_pq_does_not_do_either): wrap it in an IndexIDMap2"
)
_POLYSEMOUS = "Hamming distances of product codes near the true ones are what polysemous training makes; additive codes"
_HANDLER = "it takes a C++ ResultHandler, a class that faiss does not export to Python"
_NO_PRECOMPUTED = "one table per query serves all lists: x̂ = c + Σ c_l needs nothing precomputed per list"
_ENCODE_VECTORS = "IndexIVFResidualQuantizer has no such call; use encode_vectors and decode_vectors, or sa_encode"

DOES_NOT_APPLY = {
    ("IndexDPQ", "add_with_ids"): _WITHOUT_IDS,
    ("IndexDPQ", "add_with_ids_c"): _WITHOUT_IDS,
    ("IndexDPQ", "add_with_ids_ex"): _WITHOUT_IDS,
    ("IndexDPQ", "search_subset"): (
        "FAISS's own class refuses it, too "
        "(tested by tests/test_faiss_calls.py::test_what_index_pq_does_not_do_either): use an IDSelector"
    ),
    ("IndexDPQ", "search1"): _HANDLER,
    ("IndexDPQ", "hamming_distance_histogram"): _POLYSEMOUS + " have none",
    ("IndexDPQ", "hamming_distance_table"): _POLYSEMOUS + " have none",
    ("IndexDPQ", "search_core_polysemous"): _POLYSEMOUS + " have none",
    ("IndexIVFDPQ", "search1"): _HANDLER,
    ("IndexIVFDPQ", "search_subset"): "FAISS's IndexIVFPQ refuses it, too; use an IDSelector",
    ("IndexIVFDPQ", "precompute_table"): _NO_PRECOMPUTED,
    ("IndexIVFDPQ", "encode"): _ENCODE_VECTORS,
    ("IndexIVFDPQ", "encode_multiple"): _ENCODE_VECTORS,
    ("IndexIVFDPQ", "decode_multiple"): _ENCODE_VECTORS,
    ("IndexIVFDPQ", "add_core_o"): (
        "it also returns the residuals left by IndexIVFPQ's encoder, for its refinements; "
        "compute_residual gives those of stored vectors"
    ),
    ("IndexIVFDPQ", "find_duplicates"): "IndexIVFResidualQuantizer has no such call: group equal rows of the codes",
}

_HEAD = """# FAISS's methods

Every public method of `faiss.IndexPQ`, `faiss.IndexResidualQuantizer` and `faiss.IndexIVFPQ`, and what becomes of it in
the class that takes its place. Methods in `_c` and `_ex` take pointers; they are FAISS's C++ itself, which gives the
same results without the fast path. What a method does otherwise than FAISS's is in [migrating](migrating.md).
`SearchParametersIVF.max_lists_num` is for FAISS's fast-scan lists, and ignored here as by faiss.IndexIVFPQ. Written by
`python -m bench.api_table` from faiss {version}.
"""


def public_methods(cls: type) -> list[str]:
    """Names of what can be called on an object of a class."""
    return [name for name in dir(cls) if not name.startswith("_") and callable(getattr(cls, name))]


def calls_of_tests(path: Path) -> dict[str, set[str]]:
    """Names of the methods that each test function of a file calls, itself or in its decorators."""
    calls: dict[str, set[str]] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            called = (call.func for call in ast.walk(node) if isinstance(call, ast.Call))
            calls[node.name] = {function.attr for function in called if isinstance(function, ast.Attribute)}
    return calls


def tests_of(ours: str) -> dict[str, set[str]]:
    """For every test of a class of ours, as file::name, the names of the methods that it calls."""
    found = {}
    for stem in FILES[ours]:
        path = ROOT / "tests" / f"{stem}.py"
        if path.exists():
            found.update({f"{path.name}::{test}": calls for test, calls in calls_of_tests(path).items()})
    return found


def tests_that_call(method: str, ours: str, tests: dict[str, set[str]]) -> list[str]:
    """The tests of a method: first those named after it, then those that call the fewest other methods."""
    if (ours, method) in TESTED:
        return TESTED[ours, method]
    callers = [test for test, calls in tests.items() if method in calls and not _REFUSALS.search(test)]
    return sorted(callers, key=lambda test: (method not in test, len(tests[test]), test))[:_MOST_TESTS]


def row(method: str, ours: str, tests: dict[str, set[str]]) -> str:
    """One line of the table; without a verdict, if there is neither a reason nor a test."""
    if (ours, method) in DOES_NOT_APPLY:
        verdict = f"does not apply because {DOES_NOT_APPLY[ours, method]}"
    else:
        named = ", ".join(f"`tests/{test}`" for test in tests_that_call(method, ours, tests))
        verdict = f"works (tested by {named})" if named else ""
    return f"| `{method}` | {verdict} |"


def table(theirs: str) -> str:
    """The section of one of FAISS's classes."""
    ours = OURS[theirs]
    tests = tests_of(ours)
    rows = [row(method, ours, tests) for method in public_methods(getattr(faiss, theirs))]
    return "\n".join([f"## faiss.{theirs} → faiss_dpq.{ours}", "", "| method | |", "| --- | --- |", *rows, ""])


def document() -> str:
    """All of docs/api.md."""
    return "\n".join([_HEAD.format(version=faiss.__version__), *map(table, OURS)])


def main() -> None:
    """Write docs/api.md, and complain about methods with neither a test nor a reason."""
    text = document()
    DOCUMENT.write_text(text)
    missing = [line for line in text.splitlines() if line.endswith("|  |")]
    if missing:
        raise SystemExit("Neither a test nor a reason:\n" + "\n".join(missing))


if __name__ == "__main__":
    main()
