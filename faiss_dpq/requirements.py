"""Says, on import, what is wrong with the FAISS that is installed; docs/installation.md tells what to do.

Any distribution will do whose module `faiss` is new enough: faiss-cpu, faiss-gpu, conda's or one's own build. So the
module is looked at, and not the metadata of faiss-cpu.
"""

import re
from pathlib import Path

LEAST_FAISS = (1, 15, 0)


def distributions_of(package: Path) -> list[str]:
    """Names and versions of the distributions that have put their files into the folder `package`."""
    line = f"{package.name}/__init__.py,"
    records = sorted(package.parent.glob("*faiss*.dist-info/RECORD"))
    return [
        record.parent.name.removesuffix(".dist-info").replace("_", "-")
        for record in records
        if any(written.startswith(line) for written in record.read_text(errors="replace").splitlines())
    ]


def check_faiss() -> None:
    """Import FAISS.

    Raises
    ------
    ImportError
        If there is none, if it cannot be imported or is too old, or if two distributions are installed over each other.
    """
    least = ".".join(map(str, LEAST_FAISS))
    needed = f"faiss_dpq needs FAISS {least} or newer"
    try:
        import faiss
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        raise ImportError(
            f"{needed}, and no module faiss is installed: pip install 'faiss-cpu>={least}', "
            "or another distribution of FAISS (docs/installation.md)"
        ) from error
    except ImportError as error:
        raise ImportError(f"{needed}; the one that is installed cannot be imported: {error}") from error
    if faiss.__file__ is None:
        raise ImportError(f"{needed}, and {next(iter(faiss.__path__))} is a folder without FAISS in it")
    package = Path(faiss.__file__).parent
    found = distributions_of(package)
    if len(found) > 1:
        raise ImportError(
            f"{' and '.join(found)} are installed over each other in {package}: uninstall all of them and install one "
            "again, then faiss-dpq with pip's --no-deps unless that one is faiss-cpu (docs/installation.md)"
        )
    if tuple(map(int, re.findall(r"\d+", faiss.__version__)[:3])) < LEAST_FAISS:
        raise ImportError(f"{needed}, and {' '.join(found) or 'faiss'} in {package} is {faiss.__version__}")


check_faiss()
