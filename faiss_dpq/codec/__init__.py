"""Vectors to codes and back. Whoever reads this folder learns progressive quantization; it knows nothing of indexes.

- quantizer.py: `ProgressiveQuantizer`, whose docstring states the algorithm. Start here.
- levels.py: levels of codewords: norms, tables between them.
- layout.py: the subspaces that levels of long codes lie in; compact.py: codewords of such levels without the zeros.
- codebooks.py: the codebooks of a quantizer, and what follows from them alone.
- encoder.py: the beam search that finds codes.
- tables.py: the tables by which queries are compared with codes, and how far rounding can put the result off.
- threads.py: the thread pool of the whole package.
"""

from .codebooks import centre_of, is_far
from .encoder import MAX_BEAM_SIZE, default_beam_size
from .layout import Layout
from .levels import MAX_CROSS_TABLE_BYTES, Codes, Floats, cross_table_bytes
from .quantizer import ProgressiveQuantizer

__all__ = [
    "MAX_BEAM_SIZE",
    "MAX_CROSS_TABLE_BYTES",
    "Codes",
    "Floats",
    "Layout",
    "ProgressiveQuantizer",
    "centre_of",
    "cross_table_bytes",
    "default_beam_size",
    "is_far",
]
