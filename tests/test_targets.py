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


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_for(target):
    flags = ["-fsyntax-only", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
    flags += ["-Wno-unused-command-line-argument"]  # zig gives clang its own
    for source in sorted(KERNELS.glob("*.c")):
        command = [sys.executable, "-m", "ziglang", "cc", "-target", target, *flags, source]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{source.name} for {target}:\n{done.stderr}"
