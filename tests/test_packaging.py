"""What a user installs: a quick import, and distributions that build and run on their own."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import faiss_dpq

ROOT = Path(__file__).parents[1]

NEW_MODULES = """
import faiss, sys
before = set(sys.modules)
import faiss_dpq
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""

USE = """
import faiss, faiss_dpq, numpy as np
assert "site-packages" in faiss_dpq.__file__, faiss_dpq.__file__
x = np.random.default_rng(0).standard_normal((600, 10), dtype=np.float32)
index = faiss_dpq.IndexDPQ(10, 3, 4)
index.train(x)
index.add(x)
distances, ids = index.search(x[:5], 4)
faiss.write_index(index, "x.faiss")
assert (faiss_dpq.read_index("x.faiss").search(x[:5], 4)[1] == ids).all()
print(ids.shape)
"""


def python(code: str, **kwargs) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, **kwargs).stdout


def test_import_loads_no_third_package():
    # Beyond what `import faiss` has loaded: the package itself, modules of numpy and of the standard
    # library; no torch, matplotlib, scipy or scikit-learn, any of which would take longer than faiss.
    new = set(python(NEW_MODULES).split())
    third_party = {
        name
        for name in new - sys.stdlib_module_names - {"numpy"}
        if not name.startswith(("_cython_", "cython_runtime"))  # made by the compiled module
    }
    assert third_party == {"faiss_dpq"}


def test_shards_load_neither_ray_nor_pyarrow():
    new = set(python(NEW_MODULES.replace("import faiss_dpq", "import faiss_dpq.shards.commands")).split())
    assert "faiss_dpq" in new
    assert not new & {"ray", "pyarrow", "dask", "pyspark", "torch"}


@pytest.mark.parametrize(("missing", "extra"), [("ray", "ray"), ("pyarrow", "parquet")])
def test_what_is_not_installed_is_named_with_its_extra(missing, extra):
    module = {"ray": "shards.ray", "pyarrow": "vectors.parquet"}[missing]
    code = f"import sys; sys.modules[{missing!r}] = None\nimport faiss_dpq.{module}"
    failed = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert failed.returncode
    assert f"{missing} is not installed" in failed.stderr
    assert f"pip install 'faiss-dpq[{extra}]'" in failed.stderr


def test_the_version_is_a_version_and_its_only_source_is_the_package():
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", faiss_dpq.__version__)
    project = (ROOT / "pyproject.toml").read_text()
    assert re.findall(r"^(?:dynamic|version) = .*$", project, re.MULTILINE) == [
        'dynamic = ["version"]',
        'version = { attr = "faiss_dpq.__version__" } # read from the source, without an import',
    ]


@pytest.fixture(scope="session")  # by group, other modules' tests may run in between
def distributions(tmp_path_factory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it, in a hurry; of a copy without git or build leftovers."""
    source = tmp_path_factory.mktemp("source") / "faiss-dpq"
    leftovers = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__")
    shutil.copytree(ROOT, source, ignore=leftovers)
    out = tmp_path_factory.mktemp("dist")
    compiler = out / "cc"
    named = os.environ.get("CC", "gcc")
    compiler.write_text(f'#!/bin/sh\nexec {named} "$@" -O0\n')  # the last of several levels counts
    compiler.chmod(0o755)
    environment = {**os.environ, "CC": str(compiler)}
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, source], check=True, env=environment)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
@pytest.mark.xdist_group("distributions")
def test_sdist_holds_all_sources(distributions):
    with tarfile.open(distributions[0]) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    folders = ("bench", "cython_kernels", "docs", "examples", "faiss_dpq", "integrations", "tests")
    left_out = {".so", ".pyc"}
    sources = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in left_out
    }
    alone = {"ARCHITECTURE.md", "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "constraints.txt", "setup.py"}
    assert sources | alone <= held


@pytest.mark.slow
@pytest.mark.xdist_group("distributions")
def test_wheel_holds_one_package_with_its_extension_and_types(distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        held = [Path(name) for name in wheel.namelist()]
    assert distributions[1].name.startswith(f"faiss_dpq-{faiss_dpq.__version__}-")
    packages = {path.parts[0] for path in held if not path.parts[0].endswith(".dist-info")}
    assert packages == {"faiss_dpq"}
    assert Path("faiss_dpq/py.typed") in held
    assert len([path for path in held if path.match("faiss_dpq/_kernels*.so")]) == 1
    assert not [path for path in held if path.suffix in {".pyx", ".pxi", ".c", ".h"}]
    assert [path for path in held if path.name == "LICENSE"]


@pytest.mark.slow
@pytest.mark.xdist_group("distributions")
def test_wheel_works_in_an_empty_environment_without_a_compiler(distributions, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    bin_dir = tmp_path / "venv" / "bin"
    environment = {**os.environ, "PATH": str(bin_dir), "CC": "/nonexistent", "PYTHONPATH": ""}
    subprocess.run(
        [bin_dir / "python", "-m", "pip", "install", "--quiet", distributions[1]],
        check=True,
        env=environment,
    )
    used = subprocess.run(
        [bin_dir / "python", "-c", USE],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert used.stdout == "(5, 4)\n"
    command = subprocess.run(
        [bin_dir / "faiss-dpq", "demo"],
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.returncode == 1
    assert "pip install 'faiss-dpq[bench]'" in command.stderr
