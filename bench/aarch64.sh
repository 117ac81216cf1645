#!/usr/bin/env bash
# Builds for AArch64 on x86-64 Linux and runs it under qemu-user:
#
#     bench/aarch64.sh                          tests of kernels and of everyday use
#     bench/aarch64.sh tests/test_io.py -k ...  what pytest is given
#     bench/aarch64.sh count ...                instructions of searches, by bench/instructions.py
#
# Needs Debian's packages g++-aarch64-linux-gnu and qemu-user-static, to count qemu-user too, and Python with pip, Cython and
# this package. Debian's Python for arm64 comes from apt, what the tests import from PyPI; both are only unpacked, below
# build/aarch64, and kept there.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/build/aarch64
exec 3>&1 >&2 # what prepares the run prints elsewhere

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
version=$(basename "$(readlink "$work/root/usr/bin/python3")")
export QEMU_LD_PREFIX=$work/root

# Tests start other Pythons by the name of their own, which has to be a program that the machine runs.
python=$work/root/usr/bin/python-under-qemu
cat >"$python" <<PROGRAM
#!/bin/sh
exec qemu-aarch64-static -0 "$python" "$work/root/usr/bin/$version" "\$@"
PROGRAM
chmod +x "$python"

if [[ ! -d $work/site ]]; then
    platforms=()
    for glibc in 17 24 26 27 28 34; do
        platforms+=(--platform "manylinux_2_${glibc}_aarch64")
    done
    python3 -m pip install --quiet --target "$work/site" --only-binary :all: "${platforms[@]}" \
        --python-version "${version#python}" --implementation cp \
        numpy 'faiss-cpu>=1.15' tqdm pytest hypothesis scikit-learn
fi

rm -rf "$work/run"
mkdir -p "$work/run" "$work/objects"
cp -r bench cython_kernels faiss_dpq pyproject.toml tests "$work/run"
find "$work/run" -name '*.so' -delete
python3 -m cython -3 cython_kernels/_kernels.pyx -o "$work/objects/_kernels.c"
python3 -m cython -3 --cplus cython_kernels/rev_map.pyx -o "$work/objects/_rev_map.cpp"
flags=(-O3 -fPIC -w -DNPY_NO_DEPRECATED_API=NPY_1_7_API_VERSION -Icython_kernels
    -I"$work/root/usr/include/$version" -I"$work/root/usr/include" -I"$work/site/numpy/_core/include")
aarch64-linux-gnu-gcc "${flags[@]}" -std=gnu11 -shared "$work/objects/_kernels.c" cython_kernels/*.c -lm \
    -o "$work/run/faiss_dpq/_kernels.so"
aarch64-linux-gnu-g++ "${flags[@]}" -shared "$work/objects/_rev_map.cpp" -o "$work/run/faiss_dpq/_rev_map.so"

if [[ ${1:-} == count ]]; then
    gcc -O2 -Wall -Wextra -shared -fPIC bench/qemu_count.c -o "$work/count.so"
    PYTHONPATH=$PWD python3 -m bench.instructions build "$work/indexes"
    cd "$work/run"
    # The static qemu has no plugins; in this one, a forked child that starts threads ends with a failed assertion.
    PYTHONPATH=$work/run:$work/site qemu-aarch64 -plugin "$work/count.so,to=$work/counts" "$work/root/usr/bin/$version" \
        -m bench.instructions count "$work/indexes" "$work/counts" >&3
    exit
fi

tests=("$@")
((${#tests[@]})) || tests=(tests/test_{kernels,threads,exactness,single,ordered,many_levels,ties,index_search,ivf_search}.py)
cd "$work/run"
# An example takes 20 to 100 times as long here, so there are fewer of them.
PYTHONPATH=$work/run:$work/site "$python" -m pytest -q -p no:cacheprovider --hypothesis-profile few "${tests[@]}" >&3
