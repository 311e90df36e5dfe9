"""Importance-weighted bounds of a mixture that draws from each of its experts in turn.

With n sources in a row, K draws of each and their importance weights w_rk,

    looser = 1/n sum_r log 1/K sum_k w_rk  <=  tight = log 1/(nK) sum_r sum_k w_rk

(Shi et al. 2019, section 3.2). The functions know nothing of a model: they take log-weights.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

import attrs
import torch
from torch import Tensor

from multivae_core.distributions import Laplace, Mixture, Normal
from multivae_core.fusion import mixture_weights
from multivae_core.losses import doubly_reparameterised, log_mean_exp
from multivae_core.noise import NoiseSource

__all__ = [
    "BOUNDS",
    "ESTIMATORS",
    "StratifiedBound",
    "draw_sources",
    "source_share",
    "standard_draws",
    "stratified_bound",
    "uniform_mixture",
]

BOUNDS = ("looser", "tight")
"""Where the mean over the sources is taken, see the module."""

ESTIMATORS = ("iwae", "dreg", "stl")
"""How a bound is differentiated, see `stratified_bound`."""


def draw_sources(present: Tensor, n: int | None, noise: NoiseSource) -> Tensor:
    """Choose the experts that every row draws from.

    Args:
        present: ``(B, M)`` bool.
        n: How many, without replacement; None: all that are there.
        noise: Source of the random numbers.

    Returns:
        Their numbers, ``(R, B)``; -1: none. With all of them, row r holds r or -1.
    """
    everyone = torch.arange(present.shape[1], device=present.device)
    if n is None or n >= len(everyone):
        return torch.where(present, everyone, -1).T
    keys = noise.uniform("sources", (1, *present.shape))[0]
    order = torch.where(present, keys, 2.0).argsort(dim=1)[:, :n]
    return torch.where(present.gather(1, order), order, -1).T


def source_share(sources: Tensor, dtype: torch.dtype) -> Tensor:
    """One over the number of sources of every row, ``(R, B)`` -> ``(B,)``."""
    return 1.0 / (sources >= 0).sum(dim=0).clamp_min(1).to(dtype)


def standard_draws(
    family: str, name: Hashable, shape: tuple[int, ...], noise: NoiseSource
) -> Tensor:
    """Draws of location 0 and scale 1 of a family of experts; ``shape`` is ``(n, B, D)``."""
    draw = noise.laplace if family == "laplace_with_softmax" else noise.normal
    return draw(name, shape)


def uniform_mixture(experts: Normal | Laplace, present: Tensor) -> Mixture:
    """Mixture of the experts that are there, or of all where none is.

    Args:
        experts: ``(M, B, D)``.
        present: ``(B, M)`` bool.
    """
    return Mixture(experts, mixture_weights(present, experts.mean.dtype))


@attrs.frozen(kw_only=True)
class StratifiedBound:
    """A bound, or some sources' part of it; 0 in rows without any source.

    Args:
        value: What is differentiated, ``(B,)`` nats: the bound or its surrogate.
        reported: The bound itself, detached.
        weights: Normalised importance weights for `losses.scale_gradient`, ``(R, K, B)``; None
            where the gradient into the samples is the plain one.
    """

    value: Tensor
    reported: Tensor
    weights: Tensor | None


def stratified_bound(
    log_w: Tensor, sources: Tensor, share: Tensor, bound: str, estimator: str
) -> StratifiedBound:
    """Reduce the log importance weights of stratified draws to a bound.

    Args:
        log_w: ``(R, K, B)``, all finite, also where there is no source.
        sources: What `draw_sources` returns, ``(R, B)``, or some of its rows for a part of the
            looser bound.
        share: What `source_share` returns for all sources, ``(B,)``.
        bound: One of `BOUNDS`.
        estimator: ``iwae``: the plain gradient. ``stl``: likewise, of log-weights whose
            densities q have detached parameters (Roeder et al. 2017). ``dreg``: those, and a
            surrogate that needs the gradient into the samples scaled by ``weights`` (Tucker et
            al. 2019); for a mixture with K > 1 or the tight bound both are biased, because the
            score that they drop belongs to the mixture and the samples to one expert.
    """
    usable = sources >= 0
    seen, each = usable.any(dim=0), usable[:, None]
    weights = None
    if bound == "tight":
        # a row without any source counts in full, to keep its softmax and gradient finite
        counts = (each | ~seen).expand_as(log_w).flatten(0, 1)
        flat = log_w.flatten(0, 1)
        reported = torch.where(counts, flat, -math.inf).logsumexp(dim=0)
        value = reported = reported + (share / log_w.shape[1]).log()
        if estimator == "dreg":
            value, weights = doubly_reparameterised(flat, 0, counts)
    else:
        per_source = log_mean_exp(log_w, dim=1)
        value = reported = (torch.where(usable, per_source, 0.0) * share).sum(dim=0)
        if estimator == "dreg":
            per_source, weights = doubly_reparameterised(log_w, 1)
            value = (torch.where(usable, per_source, 0.0) * share).sum(dim=0)
    return StratifiedBound(
        value=torch.where(seen, value, 0.0),
        reported=torch.where(seen, reported, 0.0).detach(),
        weights=None if weights is None else weights.view_as(log_w),
    )
