"""Training vectors out of more than memory holds."""

import numpy as np

from ..codec import Floats
from .sources import Sources, open_sources


def sample_sources(sources: Sources, n: int, seed: int = 0, *, column: str | None = None) -> Floats:
    """Rows drawn evenly from sources: one from each of n equal stretches of all rows.

    Parameters
    ----------
    sources : str, path, array, or a sequence of them
        As `plan_parts` takes them.
    n : int
        How many; all rows if there are fewer.
    seed : int
        The same seed draws the same rows.
    column : str, optional
        Of parquet files, the column with the vectors.

    Returns
    -------
    x : array, shape (n, d), float32
        In the order of the sources.

    Raises
    ------
    ValueError
        If n < 1, a source is not of vectors, or a row that was drawn holds NaN or infinity.
    """
    if n < 1:
        raise ValueError(f"sample_sources: n is {n}, expected at least 1")
    opened = open_sources(sources, column)
    total = sum(source.n for source in opened)
    n = min(n, total)
    bounds = np.array([total * i // n for i in range(n + 1)]) if n else np.zeros(1, np.int64)
    within = np.random.default_rng(seed).random(n) * np.diff(bounds)
    drawn = bounds[:-1] + within.astype(np.int64)
    samples, first = [], 0
    for source in opened:
        rows = drawn[(drawn >= first) & (drawn < first + source.n)] - first
        samples.append(source.rows(rows))
        first += source.n
    return np.concatenate(samples)
