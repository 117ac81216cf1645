"""Which indexes are read-only, because their codes are a file's memory (IO_FLAG_MMAP, IO_FLAG_MMAP_IFC)."""

import faiss

from .structure import parts


def mapped_part(index: faiss.Index) -> str | None:
    """The part of an index that is mapped from a file, as one writes it in Python; None if there is no such part.

    FAISS ends the process where such memory is to be changed.
    """
    if not getattr(getattr(index, "codes", None), "is_owned", True):
        return "codes"
    if isinstance(index, faiss.IndexFlatCodes):
        return None  # without a look for indexes within: this is asked at every change
    if isinstance(index, faiss.IndexIVF) and _has_mapped_lists(index):
        return "invlists"
    for name, part in parts(index):
        found = mapped_part(part)
        if found is not None:
            return f"{name}.{found}"
    return None


def _has_mapped_lists(index: faiss.IndexIVF) -> bool:
    if index.invlists is None:  # the file was read without its lists (IO_FLAG_SKIP_IVF_DATA)
        return False
    address = int(index.invlists.this)
    if getattr(index, "_owned_lists", None) == address:
        return False
    invlists = faiss.downcast_InvertedLists(index.invlists)
    if isinstance(invlists, faiss.OnDiskInvertedLists):
        return bool(invlists.read_only)
    if isinstance(invlists, faiss.ArrayInvertedLists):
        codes = invlists.codes
        if any(not getattr(codes.at(number), "is_owned", True) for number in range(codes.size())):
            return True
        if hasattr(index, "_owned_lists"):  # to look at every list at every call would take long
            index._owned_lists = address
    return False
