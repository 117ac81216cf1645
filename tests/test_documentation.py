"""README and docs: Python examples run, in order, as a reader would type them; numbers are those of outputs; links lead
somewhere."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest

from bench import check_numbers, figures
from faiss_dpq import shards

ROOT = figures.ROOT
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = [page.relative_to(ROOT).as_posix() for page in figures.pages()]
WITH_EXAMPLES = [page for page in PAGES if BLOCK.search((ROOT / page).read_text())]


def test_the_pages_for_beginners_have_examples():
    assert {"README.md", "docs/start.md", "docs/migrating.md", "docs/prefixes.md", "docs/files.md"} <= {*WITH_EXAMPLES}


@pytest.mark.parametrize("document", WITH_EXAMPLES)
def test_python_blocks_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if document == "docs/deep.md":
        pytest.importorskip("torch")
    text = (ROOT / document).read_text()
    session: dict[str, object] = clusters(monkeypatch) if document == "docs/scaling.md" else {}
    for block in BLOCK.finditer(text):
        # Blank lines in front, so that a traceback shows the document's own line numbers.
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], document, "exec"), session)


def clusters(monkeypatch):
    """Stand-ins for Ray, Dask and Spark, which work in this process; tests/test_shards_ray.py is about Ray itself."""

    class Client:
        def __init__(self, address):
            pass

        def get_executor(self):
            return ThreadPoolExecutor(2)

    def module(name, **contents):
        stand_in = ModuleType(name)
        vars(stand_in).update(contents)
        monkeypatch.setitem(sys.modules, name, stand_in)

    module("dask")
    module("dask.distributed", Client=Client)
    module(
        "faiss_dpq.shards.ray",
        RayExecutor=lambda address, num_cpus: ThreadPoolExecutor(2),
        RayIndex=lambda folder, num_replicas, address, num_cpus: nullcontext(Searched(folder)),
    )
    parallelize = SimpleNamespace(parallelize=lambda parts, n: Parallel(parts))
    return {"spark": SimpleNamespace(sparkContext=parallelize)}


class Parallel(list):
    """What Spark's `parallelize` gives."""

    def map(self, function):
        return SimpleNamespace(collect=lambda: [function(part) for part in self])


class Searched:
    """What RayIndex is to a reader: parameters come third."""

    def __init__(self, folder):
        self.index = shards.read_shards(folder)

    def search(self, x, k, params):
        return self.index.search(x, k, params=params)


# ---- numbers -------------------------------------------------------------------------------------------------------


def test_pages_say_what_outputs_say():
    assert list(check_numbers.problems()) == []


@pytest.fixture
def output(tmp_path, monkeypatch):
    """One output, of the commands of "encode"."""
    command = figures.as_typed(figures.FIGURES["encode"])[0]
    head = f"command: {command}\ndate: 2026-01-31\nmachine: an abacus\nversions: FAISS 1.15.1\ntook: 1 min"
    table = "| index | empty | R@1 | QPS |\n| --- | --- | --- | --- |\n| ours |  | 0.4567 | 22,117 |"
    (tmp_path / "encode.txt").write_text(f"{head}\n\n# Heading\nA line.\n{table}\n")
    monkeypatch.setattr(figures, "OUTPUTS", tmp_path)
    return tmp_path / "encode.txt"


def test_commands_are_those_of_python_of_this_package_and_of_the_system(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert figures._output_of("A=1 echo one 'two three'") == "one two three\n"
    assert figures._output_of("python -c 'print(2)'") == "2\n"
    assert figures._output_of("faiss-dpq --version").startswith("faiss-dpq ")


PLACE = "<!-- figures: encode without QPS -->\nold\n<!-- end of figures -->\n"


def test_a_place_gets_the_tables_of_an_output(output):
    page = figures.filled("Before.\n" + PLACE + "After.\n")
    assert "A line.\n\n| index | R@1 |\n| --- | --: |\n| ours | 0.4567 |\n" in page
    assert "old" not in page and "Heading" not in page and "an abacus" in page
    assert figures.filled(page) == page
    assert figures.filled(page + PLACE).count("an abacus") == 1


@pytest.mark.parametrize(
    "what, message",
    [("nothing", "names no output"), ("encode table 2", "has 1 tables"), ("encode without MSE", "no column 'MSE'")],
)
def test_places_of_what_is_not_there(output, what, message):
    with pytest.raises(ValueError, match=message):
        figures.fragment(what)


@pytest.mark.parametrize(
    "prose",
    [
        "It finds 0.457, or 0.46, where 22,117 queries a second are searched.",
        "With `prefix_weight` of `0.05` and Python 3.10, 8 levels of 8 bits, 1,000,000 × 128, Eq. 30, 2 to 4 bytes.",
        "<!-- stated: the paper --> 0.831 <!-- end of stated -->",
    ],
)
def test_numbers_that_are_printed_or_are_no_measurements(output, prose):
    assert list(check_numbers._problems_of_page("page", figures.filled(PLACE) + prose)) == []


@pytest.mark.parametrize(
    "prose, number",
    [
        ("R@1 is 0.458.", "0.458"),
        ("| a | b |\n| --- | --- |\n| ours | .831 |", ".831"),
        ("22,118 queries a second", "22,118"),
        ("it takes 17 seconds", "17"),
        ("at 45 times the speed", "45"),
        ("17× as fast", "17"),
        ("| index | QPS |\n| --- | --- |\n| ours | 22,118 |", "22,118"),
        ("3 % more", "3"),
    ],
)
def test_numbers_that_nothing_printed(output, prose, number):
    text = figures.filled(PLACE)
    line = text.count("\n") + 1 + prose[: prose.index(number)].count("\n")
    (problem,) = check_numbers._problems_of_page("page", text + prose)
    assert problem.startswith(f"page:{line}: {number} is in none")


def test_pages_and_outputs_that_are_not_up_to_date(output):
    (problem,) = check_numbers._problems_of_page("page", PLACE)
    assert "run: python -m bench.figures fill" in problem
    output.write_text(output.read_text().replace("bench.encode", "bench.encode --M 16"))
    (problem,) = check_numbers._problems_of_output("encode", figures.FIGURES["encode"])
    assert "of other commands" in problem


# ---- links ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", [*PAGES, "ARCHITECTURE.md", "CHANGELOG.md"])
def test_links_lead_somewhere(document):
    text = re.sub(r"^```.*?^```", "", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not re.match("https?://", target):
            assert ((ROOT / document).parent / target).exists(), target
