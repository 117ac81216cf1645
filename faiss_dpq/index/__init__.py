"""FAISS's face: indexes of this package under FAISS's names."""

from .flat import IndexDPQ, SearchParametersDPQ
from .ivf import IndexIVFDPQ
from .list_parameters import SearchParametersIVFDPQ

__all__ = ["IndexDPQ", "IndexIVFDPQ", "SearchParametersDPQ", "SearchParametersIVFDPQ"]
