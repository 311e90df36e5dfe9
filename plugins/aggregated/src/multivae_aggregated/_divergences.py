"""How far codes are from draws of the prior: by a kernel, or by a critic of either kind.

With k the sum of inverse multiquadratic kernels C / (C + |a - b|^2), the squared maximum mean
discrepancy of n codes z and n draws p of the prior is estimated without bias by

    sum_{i != j} [k(z_i, z_j) + k(p_i, p_j)] / (n (n - 1)) - 2 sum_{i, j} k(z_i, p_j) / n^2

A critic gives every point a score s, high for draws of the prior. What it minimises, and what the
encoders do in their turn, are means of

    gan:   softplus(-s(p)) + softplus(s(z))      softplus(-s(z))
    wgan:  -s(p) + s(z)                          -s(z)

(Goodfellow et al. 2014, the non-saturating form; Arjovsky et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

__all__ = ["believed", "doubted", "gradient_penalty", "mmd", "per_point"]


def mmd(codes: Tensor, draws: Tensor, scales: Sequence[float]) -> Tensor:
    """Squared maximum mean discrepancy, a scalar; unbiased, so that it may be below 0.

    Args:
        codes: ``(n, D)``, n at least 2.
        draws: ``(n, D)`` of the prior.
        scales: Widths of the kernels; C is a scale times 2 D, the mean squared distance between
            draws of N(0, I).
    """
    n, size = codes.shape
    both = torch.cat([codes, draws])
    squared = torch.cdist(both, both).square()
    kernel = torch.zeros_like(squared)
    for scale in scales:
        width = 2.0 * size * scale
        kernel = kernel + width / (width + squared)
    # a point's kernel with itself tells nothing
    own = kernel.fill_diagonal_(0.0)
    within = own[:n, :n].sum() + own[n:, n:].sum()
    return within / (n * (n - 1)) - 2.0 * own[:n, n:].mean()


def believed(kind: str, scores: Tensor) -> Tensor:
    """What is minimised to give points high scores: ``softplus(-s)`` or, for wgan, ``-s``."""
    return -scores if kind == "wgan" else softplus(-scores)


def doubted(kind: str, scores: Tensor) -> Tensor:
    """What is minimised to give points low scores: ``softplus(s)`` or, for wgan, ``s``."""
    return scores if kind == "wgan" else softplus(scores)


def gradient_penalty(critic: nn.Module, points: Tensor) -> Tensor:
    """(|gradient of the score| - 1)^2 at every point, ``(R, D)`` -> ``(R,)``.

    Source: Gulrajani et al. 2017, eq. 3; the points lie between draws and codes.
    """
    with torch.enable_grad():
        points = points.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
        norms: Tensor = torch.linalg.vector_norm(gradient, dim=1)
        return (norms - 1.0).square()


def per_point(points: Tensor, valid: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """What a function gives for every valid point, and 0 for all others.

    Args:
        points: ``(G, B, D)``.
        valid: ``(G, B)`` bool.
        function: ``(R, D)`` -> ``(R,)``.

    Returns:
        ``(G, B)``.
    """
    rows = valid.flatten().nonzero().squeeze(1)
    found = function(points.flatten(0, 1).index_select(0, rows))
    return found.new_zeros(valid.numel()).index_copy(0, rows, found).view(valid.shape)
