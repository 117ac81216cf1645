"""The losses of DPQ, with the numbers of their equations, and that of PQN."""

import torch
from torch import Tensor
from torch.nn import functional

from .qblock import Quantized


def as_multi_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Labels as a boolean matrix: (n,) class numbers or (n, c) multi-hot -> (n, c), bool."""
    if labels.ndim == 1:
        return functional.one_hot(labels.long(), num_classes).bool()
    return labels > 0


def shared_labels(labels: Tensor) -> Tensor:
    """Which images share a label: (n,) class numbers or (n, c) multi-hot -> (n, n), bool."""
    if labels.ndim == 1:
        return labels[:, None] == labels
    multi_hot = (labels > 0).float()
    return multi_hot @ multi_hot.T > 0


def prefix_loss(x: Tensor, values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Error of every prefix of the values (Eq. 9-10 for soft ones, Eq. 18-19 for hard ones).

        sum_l w_l mean_x ||x - sum_{i<=l} q_i||^2

    Parameters
    ----------
    x : tensor, shape (n, d)
    values : tensor, shape (M, n, d)
        q_1 ... q_M.
    weights : tensor, shape (M,), optional
        w_l; 1 each by default.
    """
    errors = (x - values.cumsum(0)).square().sum(2).mean(1)
    return errors.sum() if weights is None else errors @ weights


def soft_loss(x: Tensor, quantized: Quantized, weights: Tensor | None = None) -> Tensor:
    """Error of the soft-quantized values at every prefix length (Eq. 9-10)."""
    return prefix_loss(x, quantized.soft, weights)


def hard_loss(x: Tensor, quantized: Quantized, weights: Tensor | None = None) -> Tensor:
    """Error of the codewords at every prefix length (Eq. 18-19)."""
    return prefix_loss(x, quantized.hard, weights)


def match_loss(quantized: Quantized, weights: Tensor | None = None) -> Tensor:
    """Soft and hard value of every level shall agree (Eq. 20): sum_l w_l mean ||q_l - q_l^H||^2."""
    errors = (quantized.soft - quantized.hard).square().sum(2).mean(1)
    return errors.sum() if weights is None else errors @ weights


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """L_C: softmax cross-entropy (Eq. 2-3), or sigmoid cross-entropy where images have several labels (Eq. 4-5).

    Parameters
    ----------
    logits : tensor, shape (n, c)
    labels : tensor, shape (n,) of class numbers, or (n, c), multi-hot
        The shape decides which of the two it is. The sigmoid terms of an image are summed over the labels.
    """
    if labels.ndim == 1:
        return functional.cross_entropy(logits, labels)
    terms = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return terms.sum(1).mean()


def adaptive_margin_loss(v: Tensor, labels: Tensor, embeddings: Tensor) -> Tensor:
    """L_S: an image lies nearer to its labels' embeddings than to others', by a margin (Eq. 6-7).

        mean_n sum_{i in Y_n} sum_{j not in Y_n} max(0, delta_ij - cos(v_n, z_i) + cos(v_n, z_j)),
        delta_ij = 1 - cos(z_i, z_j)

    The indices are those of DVSQ (Cao et al., CVPR 2017), which the paper follows: the margin is that between labels.

    Parameters
    ----------
    v : tensor, shape (n, d)
        Semantic vectors of the images.
    labels : tensor, shape (n,) of class numbers, or (n, c), multi-hot
    embeddings : tensor, shape (c, d)
        z, the word embeddings of the labels.
    """
    z = functional.normalize(embeddings, dim=1)
    scores = functional.normalize(v, dim=1) @ z.T
    has_label = as_multi_hot(labels, len(z))
    images, own = has_label.nonzero(as_tuple=True)
    margins = 1 - z[own] @ z.T
    hinge = (margins - scores[images, own][:, None] + scores[images]).clamp_min(0)
    return hinge.masked_fill(has_label[images], 0).sum() / len(v)


def asymmetric_triplet_loss(raw: Tensor, quantized: Tensor, labels: Tensor, scale: float = 1.0) -> Tensor:
    """PQN's loss: similarities of a query's kind of vector, raw, with those of the database's, quantized.

        mean over the batch's triplets (anchor, positive, negative) of
        sigmoid(scale (<r_anchor, s_negative> - <r_anchor, s_positive>))

    Parameters
    ----------
    raw, quantized : tensors, shape (n, d)
    labels : tensor, shape (n,) of class numbers, or (n, c), multi-hot
        Images that share a label are positives of each other; an image is not its own.
    scale : float
        1 in the paper.

    Returns
    -------
    loss : tensor, scalar
        Zero if the batch has no triplet.
    """
    similar = shared_labels(labels)
    itself = torch.eye(len(raw), dtype=torch.bool, device=raw.device)
    anchors, positives = (similar & ~itself).nonzero(as_tuple=True)
    products = scale * raw @ quantized.T
    terms = (products[anchors] - products[anchors, positives][:, None]).sigmoid()
    negatives = ~similar[anchors]
    return (terms * negatives).sum() / negatives.sum().clamp_min(1)
