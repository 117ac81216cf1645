#!/usr/bin/env bash
# Builds the kernels for AArch64 on x86-64 Linux and runs tests under qemu-user: bench/aarch64.sh [TEST...]
#
# Needs Debian's packages gcc-aarch64-linux-gnu and qemu-user-static, and Python with pip and Cython. Debian's Python for
# arm64 comes from apt, what the tests import from PyPI; both are only unpacked, below build/aarch64, and kept there.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/build/aarch64
tests=("$@")
((${#tests[@]})) || tests=(tests/test_{kernels,threads,exactness,single,ordered,many_levels,ties,index_search,ivf_search}.py)

# apt from the system's sources, with lists, status and downloads of its own, so that the system's stay as they are
if [[ ! -e $work/root/usr/bin/python3 ]]; then
    apt=$work/apt
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$work/root"
    : >"$apt/status"
    options=(-o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::State::Lists="$apt/lists"
        -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache")
    apt-get "${options[@]}" -q update
    apt-get "${options[@]}" -q install --download-only --yes --no-install-recommends python3 libpython3-dev libstdc++6
    for package in "$apt"/cache/archives/*.deb; do
        dpkg -x "$package" "$work/root"
    done
fi
python=$(basename "$(readlink "$work/root/usr/bin/python3")")
export QEMU_LD_PREFIX=$work/root

if [[ ! -d $work/site ]]; then
    platforms=()
    for glibc in 17 24 26 27 28 34; do
        platforms+=(--platform "manylinux_2_${glibc}_aarch64")
    done
    python3 -m pip install --quiet --target "$work/site" --only-binary :all: "${platforms[@]}" \
        --python-version "${python#python}" --implementation cp \
        numpy 'faiss-cpu>=1.15' tqdm pytest hypothesis scikit-learn
fi

rm -rf "$work/run"
mkdir -p "$work/run" "$work/objects"
cp -r faiss_dpq tests pyproject.toml cython_kernels "$work/run"
find "$work/run" -name '*.so' -delete
python3 -m cython -3 cython_kernels/_kernels.pyx -o "$work/objects/_kernels.c"
flags=(-O3 -std=gnu11 -fPIC -DNPY_NO_DEPRECATED_API=NPY_1_7_API_VERSION -Icython_kernels
    -I"$work/root/usr/include/$python" -I"$work/root/usr/include" -I"$work/site/numpy/_core/include")
objects=()
for source in "$work/objects/_kernels.c" cython_kernels/*.c; do
    objects+=("$work/objects/$(basename "$source").o")
    aarch64-linux-gnu-gcc "${flags[@]}" -c "$source" -o "${objects[-1]}"
done
aarch64-linux-gnu-gcc -shared "${objects[@]}" -lm -o "$work/run/faiss_dpq/_kernels.so"

cd "$work/run"
# What is left out starts another Python, which the kernel here cannot run.
PYTHONPATH=$work/run:$work/site qemu-aarch64-static "$work/root/usr/bin/$python" -m pytest -q -p no:cacheprovider \
    --deselect tests/test_single.py::test_an_interpreter_ends_while_threads_search "${tests[@]}"
