"""`import faiss_dpq` takes any distribution of FAISS that is new enough, and says what is wrong with others."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from faiss_dpq import requirements

ROOT = Path(__file__).parents[1]


@pytest.fixture
def imported(tmp_path):
    """A function that runs Python code where `faiss` is a module of this version, put there by these distributions."""

    def run(code, version="1.15.1", distributions=(), module=None):
        package = tmp_path / "faiss"
        package.mkdir()
        (package / "__init__.py").write_text(module or f"__version__ = {version!r}")
        for name in distributions:
            info = tmp_path / f"{name}.dist-info"
            info.mkdir()
            (info / "RECORD").write_text("faiss/__init__.py,sha256=x,20\nfaiss/loader.py,sha256=y,30\n")
        (tmp_path / "faiss_dpq-0.1.0.dist-info").mkdir()
        (tmp_path / "faiss_dpq-0.1.0.dist-info" / "RECORD").write_text("faiss_dpq/__init__.py,sha256=z,40\n")
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
        return subprocess.run([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)

    return run


def test_no_faiss():
    code = "import sys; sys.modules['faiss'] = None; import faiss_dpq"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert done.returncode and "ImportError: faiss_dpq needs FAISS 1.15.0 or newer, and no module faiss" in done.stderr
    assert "pip install 'faiss-cpu>=1.15.0'" in done.stderr


@pytest.mark.parametrize("version", ["1.14.9", "1.7.4.post2", "0.9"])
def test_faiss_that_is_too_old(imported, version):
    done = imported("import faiss_dpq", version, ["faiss_gpu-0"])
    assert done.returncode and "or newer, and faiss-gpu-0 in " in done.stderr
    assert f"is {version}" in done.stderr


def test_two_distributions_over_each_other(imported):
    done = imported("import faiss_dpq", distributions=["faiss_cpu-1.15.1", "faiss_gpu_cu12-1.14.1"])
    assert (
        done.returncode and "ImportError: faiss-cpu-1.15.1 and faiss-gpu-cu12-1.14.1 are installed over" in done.stderr
    )


def test_faiss_that_cannot_be_imported(imported):
    done = imported("import faiss_dpq", module="raise ImportError('libopenblas.so.0: no such file')")
    assert done.returncode and "cannot be imported: libopenblas.so.0" in done.stderr
    assert "No module" not in done.stderr


def test_a_folder_of_the_name_is_not_faiss(tmp_path):
    (tmp_path / "faiss").mkdir()
    code = f"import runpy, sys; sys.path = [{str(tmp_path)!r}, *(path for path in sys.path if 'site-' not in path)]\n"
    code += f"runpy.run_path({requirements.__file__!r})"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode and f"{tmp_path / 'faiss'} is a folder without FAISS in it" in done.stderr


@pytest.mark.parametrize("distributions", [[], ["faiss_gpu-1.15.0"], ["faiss-1.15.0"]])
@pytest.mark.parametrize("version", ["1.15.0", "1.16.0rc1", "2.0"])
def test_any_distribution_that_is_new_enough(imported, version, distributions):
    done = imported(f"import runpy; runpy.run_path({requirements.__file__!r})", version, distributions)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_least_version_is_that_of_the_package():
    least = re.search(r'"faiss-cpu>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert tuple(map(int, least.split("."))) == requirements.LEAST_FAISS
