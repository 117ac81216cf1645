"""Vectors to codes and back. Whoever reads this folder learns progressive quantization; it knows nothing of indexes.

- quantizer.py: `ProgressiveQuantizer`, whose docstring states the algorithm. Start here.
- codebooks.py: the codebooks, and what follows from them alone: centre, norms, tables between codewords.
- encoder.py: the beam search that finds codes.
- tables.py: the tables by which queries are compared with codes, and how far rounding can put the result off.
- threads.py: the thread pool of the whole package.
"""

from .codebooks import MAX_CROSS_TABLE_BYTES, Codes, Floats, centre_of, cross_table_bytes, is_far
from .encoder import MAX_BEAM_SIZE, default_beam_size
from .quantizer import ProgressiveQuantizer

__all__ = [
    "MAX_BEAM_SIZE",
    "MAX_CROSS_TABLE_BYTES",
    "Codes",
    "Floats",
    "ProgressiveQuantizer",
    "centre_of",
    "cross_table_bytes",
    "default_beam_size",
    "is_far",
]
