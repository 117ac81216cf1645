"""What the tests notice: fast paths that are never taken, margins of the bounds that are too small.

    python -m bench.mutations [name ...]

Makes one change at a time, of `MUTATIONS`, in a copy of the tree in a temporary folder, builds the kernels where they
changed, and prints the first test that fails. The exit status tells how many changes no test noticed or could not be
made: then the old text has moved, and the table has to follow it.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PATHS, EXACT = "tests/test_fast_paths.py", "tests/test_exactness.py"
GROWTH, ADDITIONS = "tests/test_ivf_growth.py", "tests/test_single_additions.py"
MANY_LISTS = "tests/test_many_lists.py"
MANY, GUESSES = "tests/test_many_levels.py", "tests/test_guessed_thresholds.py"
STALE, TIES = "tests/test_staleness.py", "tests/test_ties.py"
FILTERS, FILTERED_LISTS = "tests/test_filters.py", "tests/test_filtered_lists.py"
FILTERED = "tests/test_filtered_queries.py"
SHARDS, INPUTS = "tests/test_shards.py", "tests/test_shards_inputs.py"
ORDERED, DELETION = "tests/test_ordered.py", "tests/test_deletion.py"
NEAR = "tests/test_near.py"
NEAR_LISTS = "tests/test_near_lists.py"
ODD, WRITING = "tests/test_odd_queries.py", "tests/test_writing.py"


class Mutation(NamedTuple):
    """`old` stands once in `file`; `tests` are the files of which one has to fail with `new` in its place."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _c(name: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, f"cython_kernels/{file}", old, new, tests)


def _py(name: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, f"faiss_dpq/{file}", old, new, tests)


MUTATIONS = [
    # Fast paths.
    _c("lists without bytes", "scan_lists_impl.h", "|| lookups_know(", "|| 0 * lookups_know(", PATHS),
    _c("lists never together", "scan_lists_together_impl.h", "nq >= LISTS_LEAST_GROUP", "nq > SIZE_MAX", PATHS),
    _py("no short way for few probes", "search/lists.py", "if keys.size > _FEW_PROBES or", "if True or", PATHS),
    _c("threads of one query", "threads.c", "if (n_threads <= 1 ||", "if (1 ||", PATHS),
    _py("threads of many queries", "codec/threads.py", "n_threads = min(len(arguments),", "n_threads = min(1,", PATHS),
    _c("no guessed limit", "encode_impl.h", "    guess->known = 1;", "    guess->known = 0;", PATHS),
    _c("batch without sample", "scan_batch_impl.h", "if (g->buckets < rank)", "if (1)", PATHS),
    _c("single without sample", "single_few_impl.h", "dpq_topk_end(&search->top) == rank", "0", PATHS),
    _c("no guessed thresholds", "scan_sample.h", "return dpq_min(k, dpq_rank", "return k + 0 * (dpq_rank", GUESSES),
    _c(
        "batches not done again",
        "scan_batch_impl.h",
        "if (rank < k && batch_has_missed",
        "if (0 && batch_has_missed",
        GUESSES,
    ),
    _c("no early chunks", "scan_batch_impl.h", "if (rank < k && batch_has_early", "if (0 && batch_has_early", GUESSES),
    _c("one query not done again", "scan_single_impl.h", "if (rank < k && search", "if (0 && search", GUESSES),
    _c("batch without bytes", "scan_batch_impl.h", "g->bytes ? 0 : 0xff", "0xff", PATHS),
    _c("few are not put together", "scan_single_impl.h", "allowed * SINGLE_GATHERED >= n", "1", FILTERS),
    _c("few are not listed", "scan.pxi", "if listed is not None:", "if False:", FILTERED),
    _c("many are not read in place", "scan.pxi", "and SPARSE * estimated >= db.n", "and False", FILTERED),
    _c("bitmaps of lists are masked", "lists_masks.pxi", "return self.size and", "return False and", FILTERED_LISTS),
    _c("few are not copied", "scan.pxi", "elif self.copies is None and", "elif False and", FILTERS),
    _c(
        "few of a list are not scored alone",
        "scan_lists_impl.h",
        "is_sparse = lists",
        "is_sparse = 0 && lists",
        FILTERED_LISTS,
    ),
    _py(
        "masks are made anew",
        "search/masks.py",
        "is not None and kept.is_of(",
        "is not None and 0 and kept.is_of(",
        FILTERS,
    ),
    _py("bitmaps are not compared", "search/masks.py", "same_objects and all(", "same_objects or all(", FILTERS),
    _c("lists never grow", "lists_growth.pxi", "if not self.allowed:", "if True:", GROWTH),
    _c("never added directly", "addition.pxi", "if self.busy or", "if True or", ADDITIONS),
    _c(
        "single without bytes",
        "scan_single_impl.h",
        "search->bytes = taking_part >=",
        "search->bytes = 0 && taking_part >=",
        PATHS,
    ),
    _c("lists of many levels by bytes", "lists_query_impl.h", "return lists->levels >", "return 0 *", MANY_LISTS),
    _c("no rows of blocks", "scan_lists_together_impl.h", "if ((uint32_t)__builtin_popcountll", "if (0 *", MANY_LISTS),
    _c(
        "limit of lists of many", "scan_lists_many_impl.h", "q, chunk->offset));", "q, chunk->offset) - 1);", MANY_LISTS
    ),
    _c("limit of rows of many", "lists_rows_impl.h", "[lane].offset));", "[lane].offset) - 1);", MANY_LISTS),
    _c("many levels in float", "many_bound.h", "return db->wide;", "return 0;", MANY),
    _c("no look-ups of many", "many_lookups_impl.h", "return many_is_known(db) &&", "return 0 &&", MANY),
    _py("all terms anew", "search/derived.py", "range(len(before), len(packed)", "range(0, len(packed)", MANY),
    _c("never direct", "scan.pxi", "if scan is None or this", "if True or this", PATHS),
    _py("never in order", "search/derived.py", "if not self.lacks_order(view):", "if True:", ORDERED),
    # Removals and replacements.
    _py("none is removed by itself", "index/removal.py", "return n * _FEW < ntotal", "return False", DELETION),
    _py("masks outlive moves", "index/flat.py", "self._direct = self._masks = None", "pass", DELETION),
    _py(
        "ids of lists stay",
        "index/list_changes.py",
        "numbers_moved[moved], holes[moved]",
        "numbers_moved[moved], fillers[moved]",
        DELETION,
    ),
    # What is refused, and what is not.
    _py("mapped files are written to", "index/base.py", "if mapped is not None:", "if False:", "tests/test_mapped.py"),
    _py(
        "keys of no vector",
        "index/reconstruction.py",
        "if places is not None:",
        "if False:",
        "tests/test_reconstruction.py",
    ),
    _py("infinite queries", "index/finite.py", "I[none] = -1", "pass", ODD),
    _py("links are replaced", "index/writing.py", "target = os.path.realpath(path)", "target = path", WRITING),
    _py(
        "outliers are learned",
        "training/outliers.py",
        "if not 0 < far.sum()",
        "if True or not 0 < far.sum()",
        "tests/test_outliers.py",
    ),
    # Shards.
    _py("centres by FAISS's product", "index/ivf.py", "if known.nearest is not None:", "if False:", SHARDS),
    _py("lists that tie", "shards/merge.py", "if not isinstance(leaf, IndexIVFDPQ):", "if True:", SHARDS),
    _py("ids out of order", "shards/assembly.py", "if shard.ascending:", "if True:", SHARDS),
    _py("sources that changed", "shards/parts.py", "    if changed:\n", "    if False:\n", INPUTS),
    _py("codes that are damaged", "shards/records.py", "if contents and", "if False and", INPUTS),
    _py(
        "a sample at random places",
        "vectors/sampling.py",
        "drawn = bounds[:-1] + ",
        "drawn = 0 * bounds[:-1] + ",
        SHARDS,
    ),
    # Staleness.
    _c("no sample of codes", "memory.pxi", "if self.digest_of(rows) != self.digest:", "if False:", STALE),
    _c("no last turn in samples", "memory.pxi", "max(self.turn, 1) - 1", "0", STALE),
    _c("no sample of lists", "lists.pxi", "and self.digests[number, 0] == digests[0]", "", STALE),
    _c(
        "no sample of lists that grow", "lists.pxi", "return self.digests[number, 0] == before[0] and", "return", GROWTH
    ),
    _c("grid of lists that grow", "lists_derived.h", "|| low < db->term_min ||", "||", GROWTH),
    _c(
        "radius of lists that grow",
        "lists_growth.pxi",
        "max(radius, self.radius[number])",
        "self.radius[number]",
        GROWTH,
    ),
    _py("no version", "index/base.py", "self._version += 1", "pass", STALE),
    # Margins.
    _c("sum_error", "scan_bound.h", "double sum_error = 1.01 *", "double sum_error = 0 *", EXACT),
    _c("entry_error", "scan_bound.h", "double entry_error = u *", "double entry_error = 0 *", EXACT),
    _c("floors", "scan_bound.h", "- (rows - 1) -", "- (rows - 1) / 2 -", EXACT),
    _c("bytes of many levels", "scan_bound.h", "MOST_LEVELS 128u", "MOST_LEVELS 1024u", EXACT),
    _c("sums within", "scan_bound.h", "sum += fabs((double)threshold) / (1 << 22)", "sum += 0", EXACT, TIES),
    _c(
        "sum_error of lists", "lists_query_impl.h", "return 1.01 * lists->levels *", "return 0 * lists->levels *", EXACT
    ),
    _c("entry error of lists", "scan_lists_impl.h", "double error = (8 *", "double error = 0 * (8 *", EXACT),
    _c("floors of lists", "scan_lists_impl.h", "- (lists->levels + 2) -", "- (lists->levels + 2) / 2 -", EXACT),
    _c("sum error of many", "many_bound.h", "return base - 1.02 *", "return base - 0 *", MANY),
    _c(
        "floors of many",
        "query_tables_impl.h",
        "dpq_f32_sub(dpq_f32_load(entries), least), scale)",
        "dpq_f32_sub(dpq_f32_load(entries), least), dpq_f32_mul(scale, dpq_f32_all(1.05f)))",
        MANY,
    ),
    _c("slope of many", "many_bound.h", "scale * 65536 * (1 - 0x1p-20)", "scale * 65536 * 1.5", MANY),
    _py("table_errors", "codec/tables.py", "unit = 1.2 *", "unit = 0 *", EXACT),
    _py("near ones not again", "search/near.py", "SHARE = 2.0**-12", "SHARE = 0.0 ", NEAR),
    _py("near ones in lists not again", "search/near.py", "LIST_SHARE = 2.0**-10", "LIST_SHARE = 0.0 ", NEAR_LISTS),
    _c("few queries' near ones in lists", "lists.pxi", "if self.share and", "if False and", NEAR_LISTS),
    _py("float32 sums of centres", "search/lists_near.py", ".astype(np.float64)", "", NEAR_LISTS),
    _py("no margin of near ones", "search/near.py", "2.0**-24 * roundings", "0.0 * roundings", NEAR),
    _c(
        "one query's near ones",
        "scan.pxi",
        "if self.share and distances[0]",
        "if False and distances[0]",
        NEAR,
    ),
    _py("errors of lists", "search/lists.py", "quantizer.table_errors(norms, levels) if", "0 * norms if", EXACT),
    _py("radius", "search/derived.py", "self._radius(new))", "self._radius(new) / 2)", EXACT),
    _py("radius of lists", "search/lists.py", "is None else radius", "is None else radius / 2", EXACT),
]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """The command's output, with the folder's own package in front of any other."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "passive"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def first_failure(mutation: Mutation, folder: Path) -> str | None:
    """The first test that fails with the mutation made in `folder`; None if all pass.

    Raises LookupError if the old text does not stand there once, RuntimeError if it does not build or no test runs.
    """
    file = folder / mutation.file
    before = file.read_text() if file.exists() else ""
    if before.count(mutation.old) != 1:
        raise LookupError(f"{mutation.file} holds {mutation.old!r} {before.count(mutation.old)} times, expected once")
    file.write_text(before.replace(mutation.old, mutation.new))
    try:
        if mutation.file.startswith("cython_kernels/"):
            build(folder)
        tests = run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutation.tests], folder)
    finally:
        file.write_text(before)
    if tests.returncode == 0:
        return None
    failed = re.search(r"^FAILED (.+?)( - |$)", tests.stdout, re.MULTILINE)
    if failed is None:
        raise RuntimeError(f"the tests did not run:\n{tests.stdout[-2000:]}{tests.stderr[-2000:]}")
    return failed[1]


def build(folder: Path) -> None:
    """Build the kernels in place."""
    built = run([sys.executable, "setup.py", "build_ext", "--inplace"], folder)
    if built.returncode:
        raise RuntimeError(f"the kernels do not build:\n{built.stderr[-2000:]}")


def main() -> int:
    """Make the mutations asked for; return how many went unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help="of mutations; all by default")
    names = parser.parse_args().names
    unknown = set(names) - {mutation.name for mutation in MUTATIONS}
    if unknown:
        parser.error(f"no mutation is called {', '.join(sorted(unknown))}")
    missed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "tree"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv*", "*.so", "build", "dist", "docs"))
        build(folder)
        stale = False  # whether the kernels are those of the mutation before
        for mutation in MUTATIONS:
            if names and mutation.name not in names:
                continue
            in_kernels = mutation.file.startswith("cython_kernels/")
            if stale and not in_kernels:
                build(folder)
            stale = in_kernels
            try:
                caught = first_failure(mutation, folder)
            except (LookupError, RuntimeError) as error:
                caught, verdict = None, f"NOT MADE: {error}"
            else:
                verdict = caught or "NOT NOTICED by any test"
            missed += caught is None
            print(f"{mutation.name:28}  {verdict}", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
