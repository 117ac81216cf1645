"""Vectors to codes and back: one can learn progressive quantization from this folder alone. No index is in it."""

from .quantizer import (
    MAX_CROSS_TABLE_BYTES,
    Codes,
    Floats,
    ProgressiveQuantizer,
    cross_table_bytes,
    default_beam_size,
)

__all__ = [
    "MAX_CROSS_TABLE_BYTES",
    "Codes",
    "Floats",
    "ProgressiveQuantizer",
    "cross_table_bytes",
    "default_beam_size",
]
