"""How far measured recall may be from the truth: intervals, and what is to be expected of more vectors."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_Z = 1.959964  # of the normal distribution: 95 % lie within
_RESAMPLED = 1000

Hits = npt.NDArray[np.bool_]


class Share(NamedTuple):
    """A share of queries, and the interval around it that holds the true one 95 times in 100."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


def share(hits: Hits) -> Share:
    """The share of hits, shape (nq,), with Wilson's binomial interval."""
    n, p = len(hits), float(hits.mean())
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * np.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return Share(p, max(0.0, float(middle - half)), min(1.0, float(middle + half)))


def difference(first: Hits, second: Hits) -> Share:
    """By how much the share of the first hits is above that of the second, of the same queries."""
    by_query = first.astype(np.float64) - second
    half = float(_Z * by_query.std() / np.sqrt(len(by_query)))
    value = float(by_query.mean())
    return Share(value, value - half, value + half)


def expected(hits: Hits, counts: npt.NDArray[np.int64], n: int) -> Share:
    """The share to be expected among n vectors, from those among fewer.

    The log-odds of recall fall about evenly with the logarithm of the number of vectors. The line through what was
    measured is continued from the last measurement; the interval is that of queries drawn anew (bootstrap), for the
    line's slope as well. It does not know by how much the line itself may be wrong.

    Parameters
    ----------
    hits : array, shape (len(counts), nq)
        Of the same queries among ever more vectors.
    counts : array, ascending
        Numbers of vectors.
    n : int
        If it is not above the last of the counts, the measured share is the answer.
    """
    if n <= counts[-1]:
        return share(hits[-1])
    nq = hits.shape[1]
    drawn = np.random.default_rng(0).integers(nq, size=(_RESAMPLED, nq))
    resampled = np.stack([of_count[drawn].mean(axis=1) for of_count in hits], axis=1)
    values = _continued(resampled, counts, n, nq)
    low, high = np.quantile(values, [0.025, 0.975])
    value = float(_continued(hits.mean(axis=1)[None], counts, n, nq)[0])
    widest = share(hits[-1])  # where all or none are hits, no draw differs from another
    return Share(value, min(float(low), widest.low), max(float(high), value))


def _continued(
    shares: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], n: int, nq: int
) -> npt.NDArray[np.float64]:
    """Shares among n vectors from those among `counts` of them: (draws, counts) to (draws,)."""
    odds = (shares * nq + 0.5) / (nq - shares * nq + 0.5)
    log_odds, x = np.log(odds), np.log(counts)
    centred = x - x.mean()
    slopes = np.minimum(0.0, log_odds @ centred / (centred @ centred))
    return 1 / (1 + np.exp(-(log_odds[:, -1] + slopes * (np.log(n) - x[-1]))))
