"""The kernels' C compiles, without warnings, for every system that has wheels."""

import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parent.parent / "cython_kernels"
TARGETS = [
    "x86_64-linux-gnu.2.28",
    "aarch64-linux-gnu.2.28",
    "x86_64-linux-musl",
    "aarch64-linux-musl",
    "x86_64-macos",
    "aarch64-macos",
    "x86_64-windows-gnu",
]

pytest.importorskip("ziglang")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_for(target, tmp_path):
    flags = ["-O0", "-fno-sanitize=undefined", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
    for source in sorted(KERNELS.glob("*.c")):
        command = [sys.executable, "-m", "ziglang", "cc", "-target", target, *flags, "-c", source]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, f"{source.name} for {target}:\n{done.stderr}"
