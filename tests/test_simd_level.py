"""The instruction set is chosen by what the processor has, whatever compiler has built the kernels."""

import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from faiss_dpq import _kernels

KERNELS = Path(__file__).parent.parent / "cython_kernels"
FLAGS = {
    "avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512vbmi", "avx512_vbmi2"},
    "avx2": {"avx", "avx2", "fma", "bmi1", "popcnt"},
    "neon": {"asimd"},
    "generic": set(),
}
PROGRAM = """
#include "kernels.h"
#include <stdio.h>
const dpq_kernels dpq_kernels_generic, dpq_kernels_avx2, dpq_kernels_avx512, dpq_kernels_neon;
int main(void) { puts(dpq_best_simd_level()); }
"""


def compilers():
    yield from ([name] for name in ("gcc", "clang") if shutil.which(name))
    if find_spec("ziglang"):
        yield [sys.executable, "-m", "ziglang", "cc"]


def levels_of_linux():
    text = Path("/proc/cpuinfo").read_text()
    flags = next(line for line in text.splitlines() if line.startswith(("flags", "Features"))).split(":")[1].split()
    levels = ["generic", "neon"] if platform.machine() == "aarch64" else ["generic", "avx2", "avx512"]
    return [level for level in levels if FLAGS[level] <= set(flags)]


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="not Linux")
def test_the_levels_are_those_that_linux_tells():
    assert _kernels.available_simd_levels() == levels_of_linux()


@pytest.mark.skipif(not list(compilers()), reason="no C compiler")
def test_every_compiler_builds_the_same_choice(tmp_path):
    (tmp_path / "level.c").write_text(PROGRAM)
    sources = [tmp_path / "level.c", KERNELS / "simd_level.c"]
    for compiler in compilers():
        command = [*compiler, "-O2", "-std=gnu11", f"-I{KERNELS}", *sources, "-o", tmp_path / "level"]
        subprocess.run(command, check=True)
        found = subprocess.run([tmp_path / "level"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        assert found == _kernels.available_simd_levels()[-1], compiler
