"""What stands within an index of any class: the indexes that FAISS's C++ object points to."""

from collections.abc import Iterator

import faiss

_FIELDS = ("index", "base_index", "refine_index", "quantizer", "storage", "index_ivf")


def parts(index: faiss.Index) -> Iterator[tuple[str, faiss.Index]]:
    """The name of the field, and the index there as its own class, for every index within this one."""
    for name in _FIELDS:
        part = getattr(index, name, None)
        if isinstance(part, faiss.Index):
            yield name, faiss.downcast_index(part) if type(part) is faiss.Index else part
    if isinstance(index, faiss.IndexShards | faiss.IndexReplicas):
        for i in range(index.count()):
            part = index.at(i)
            yield f"at({i})", faiss.downcast_index(part) if type(part) is faiss.Index else part
