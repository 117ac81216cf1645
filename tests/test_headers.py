"""Every header of the kernels compiles alone, without warnings, for every instruction set of the compilers here."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).parent.parent / "cython_kernels"
HEADERS = sorted(path.name for path in KERNELS.glob("*.h"))
COMPILERS = [name for name in ("gcc", "clang", "aarch64-linux-gnu-gcc") if shutil.which(name)]
INSTRUCTION_SETS = {"x86_64": ("generic", "avx2", "avx512"), "aarch64": ("generic", "neon")}

pytestmark = pytest.mark.skipif(not COMPILERS, reason="no C compiler")


def instruction_sets(compiler):
    target = subprocess.run([compiler, "-dumpmachine"], capture_output=True, text=True, check=True).stdout
    return INSTRUCTION_SETS.get(target.split("-")[0], ("generic",))


CASES = [(compiler, name) for compiler in COMPILERS for name in instruction_sets(compiler)]


@pytest.mark.parametrize("header", HEADERS)
def test_header_compiles_alone(header):
    # A simd_<set>.h belongs to one instruction set; all others are written for any of them.
    own = re.fullmatch(r"simd_(.*)\.h", header)
    for compiler, name in CASES:
        if own and own[1] not in ("generic", name):
            continue
        # Functions that a header defines for those who include it are not used here.
        flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", f"-I{KERNELS}"]
        source = f'#define DPQ_SIMD "simd_{name}.h"\n#include "{header}"\n#ifdef DPQ_SIMD_END\nDPQ_SIMD_END\n#endif\n'
        command = [compiler, "-fsyntax-only", *flags, "-x", "c", "-"]
        done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{header} with {compiler} for {name}:\n{done.stderr}"
