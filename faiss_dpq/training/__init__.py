"""Codebooks from vectors."""

from .codebooks import EFFORTS, Effort, TrainStats, check_arguments, ranking_shrinkage, train_codebooks

__all__ = ["EFFORTS", "Effort", "TrainStats", "check_arguments", "ranking_shrinkage", "train_codebooks"]
