"""Build of the Cython extensions; everything else is in pyproject.toml."""

import os
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

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
# The only C++. Without it all works, but removals from an IndexIDMap2 take FAISS's time. Not on Windows, where FAISS's
# C++ library is Microsoft's, and the compiler here has another.
rev_map = Extension("faiss_dpq._rev_map", sources=["cython_kernels/rev_map.pyx"], language="c++", optional=True)
cpp = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++").split()[0]
extensions = [kernels, rev_map] if sys.platform != "win32" and shutil.which(cpp) else [kernels]
if rev_map not in extensions and sys.platform != "win32":
    print(f"there is no {cpp}: built without faiss_dpq._rev_map", file=sys.stderr)


class SideBySide(build_ext):
    """Compiles the sources of an extension on all cores: setuptools does that for whole extensions only."""

    def build_extensions(self):
        compile_in_turn = self.compiler.compile

        def compile_side_by_side(sources, **options):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: compile_in_turn([source], **options), sources)
                return [path for one in objects for path in one]

        self.compiler.compile = compile_side_by_side
        super().build_extensions()


# Windows: its own compiler knows neither vector extensions nor GNU's attributes, and GCC does not align the stack for
# AVX there (its bug 54412). Clang does both, and ziglang on PyPI has it with all that it needs. Python's headers leave
# it to other compilers than Microsoft's to say that pointers have 64 bits.
options = {}
if sys.platform == "win32":
    os.environ.setdefault("CC", "python -m ziglang cc -target x86_64-windows-gnu")
    kernels.define_macros.append(("MS_WIN64", ""))
    options = {"build_ext": {"compiler": "mingw32"}}

# The generated C stays out of cython_kernels, where the glob above would compile it twice.
modules = cythonize(extensions, language_level=3, build_dir="build/cython")
setup(ext_modules=modules, options=options, cmdclass={"build_ext": SideBySide})
