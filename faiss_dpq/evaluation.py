"""`faiss_dpq.lab.evaluation` under its public name."""

from .lab.evaluation import *  # noqa: F403
