"""Build of the Cython extensions; everything else is in pyproject.toml."""

from glob import glob

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup

# No -march: each kernels_<set>.c selects its own instruction set, and _kernels.pyx chooses
# among them at run time, so that one wheel serves every CPU.
kernels = Extension(
    "faiss_dpq._kernels",
    sources=["cython_kernels/_kernels.pyx", *sorted(glob("cython_kernels/*.c"))],
    depends=sorted(glob("cython_kernels/*.h") + glob("cython_kernels/*.pxi")),
    include_dirs=["cython_kernels", np.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
    extra_compile_args=["-O3", "-std=gnu11"],
)
# The only C++. Without a compiler of C++ all works, but a removal from an IndexIDMap2 takes FAISS's time.
rev_map = Extension("faiss_dpq._rev_map", sources=["cython_kernels/rev_map.pyx"], language="c++", optional=True)

# The generated C stays out of cython_kernels, where the glob above would compile it twice.
setup(ext_modules=cythonize([kernels, rev_map], language_level=3, build_dir="build/cython"))
