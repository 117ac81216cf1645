"""The codebooks of least progressive loss for given codes, all at once.

The loss is (Eq. 10 with hard codes, Eq. 19)

    sum_x sum_l w_l ||x - sum_{i<=l} c_i(k_i(x))||^2.

For given codes its minimum is one linear least-squares problem in the M K codewords. Let W_l = sum_{l' >= l} w_l'.
Block (i, j) of the normal matrix is W_max(i, j) times the counts of codeword pairs, and block i of the right-hand side
is W_i times the sums of the vectors that use each codeword.
"""

import numpy as np
import numpy.typing as npt

from .. import _kernels
from ..codec import Codes, Floats

Doubles = npt.NDArray[np.float64]

_DENSE_UNKNOWNS = 8192  # M K up to which the normal matrix is formed: 512 MiB, and 10 s of two cores to solve
_GRADIENT_STEPS = 20  # of the conjugate gradients, for more unknowns


def solve(x: Floats, codes: Codes, last: Floats, w: Doubles, ridge: float) -> Floats:
    """Codebooks, shape (M, K, d), for given codes, shape (n, M), of vectors.

    `ridge` pulls every codeword towards its value in the `last` codebooks, as strongly as so many training vectors.
    """
    M, K, d = last.shape
    suffix = np.cumsum(w[::-1])[::-1]
    target = np.zeros((M, K, d))
    _kernels.codeword_sums(x, codes, target)
    target *= suffix[:, None, None]
    pull = ridge * suffix[:, None, None]  # in units of one training vector's weight at its level
    if M * K > _DENSE_UNKNOWNS:
        return _conjugate_gradients(codes, last.astype(np.float64), target, w, pull)
    blocks = np.empty((M, K, M, K))
    for i in range(M):
        for j in range(i + 1):
            pairs = codes[:, i].astype(np.int64) * K + codes[:, j]
            counts = np.bincount(pairs, minlength=K * K).reshape(K, K)
            blocks[i, :, j] = suffix[i] * counts
            blocks[j, :, i] = suffix[i] * counts.T
    normal = blocks.reshape(M * K, M * K)
    normal[np.diag_indices(M * K)] += np.broadcast_to(pull[..., 0], (M, K)).ravel()
    target += pull * last
    return np.linalg.solve(normal, target.reshape(M * K, d)).reshape(M, K, d).astype(np.float32)


def _conjugate_gradients(codes: Codes, codebooks: Doubles, target: Doubles, w: Doubles, pull: Doubles) -> Floats:
    """The same solution, approached from the last codebooks without forming the normal matrix."""

    def times_normal(v: Doubles) -> Doubles:
        out = pull * v
        _kernels.prefix_gram(v, codes, w, out)
        return out

    # The unknown is the change of the codebooks, which `pull` keeps near 0.
    change = np.zeros_like(codebooks)
    residual = target - (times_normal(codebooks) - pull * codebooks)
    direction = residual.copy()
    norm = float((residual**2).sum())
    for _ in range(_GRADIENT_STEPS):
        product = times_normal(direction)
        curvature = float((direction * product).sum())
        if curvature <= 0:
            break
        change += norm / curvature * direction
        residual -= norm / curvature * product
        last_norm, norm = norm, float((residual**2).sum())
        direction = residual + norm / last_norm * direction
    return (codebooks + change).astype(np.float32)
