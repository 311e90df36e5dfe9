"""Rows to clusters, and how many clusters are needed (Palumbo et al. 2024).

The functions take a table of log p_c(z_m), ``(n, M, N, C)``: n samples, modalities, rows and
components.
"""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

from multivae_mixture_prior.mixture import GaussianMixture

__all__ = ["NORMALISERS", "POOLS", "Pruning", "pooled", "select"]

POOLS = ("mean_prob", "vote")
"""How the modalities of a row are put together, see `CMVAE.clusters`."""

NORMALISERS = ("initial", "active")
"""What entropies are divided by, see `CMVAE.prune`."""


@attrs.frozen(kw_only=True)
class Pruning:
    """What a selection of clusters found.

    Args:
        kept: The clusters that were kept.
        criterion: Number of clusters -> H of the set of that size.
    """

    kept: tuple[int, ...]
    criterion: dict[int, float]


def pooled(table: Tensor, present: Tensor, log_weights: Tensor, pool: str) -> Tensor:
    """Assign rows to clusters, ``(N, C)``, see `CMVAE.clusters`.

    Args:
        table: ``(n, M, N, C)``.
        present: ``(N, M)`` bool.
        log_weights: ``(C,)``, -inf for clusters without a weight.
        pool: One of `POOLS`.
    """
    each = (table + log_weights).softmax(dim=-1).mean(dim=0)
    if pool == "vote":  # of equally probable clusters the first
        each = torch.nn.functional.one_hot(each.argmax(dim=-1), each.shape[-1]).to(table.dtype)
    return torch.where(
        present.any(dim=1, keepdim=True), _over_seen(each, present), log_weights.exp()
    )


def select(
    table: Tensor,
    present: Tensor,
    prior: GaussianMixture,
    pool: str,
    normaliser: str,
    beta: float,
) -> Pruning:
    """Take away the cluster with the least mass, again and again; find the set of least H.

    Args:
        table: ``(n, M, N, C)``.
        present: ``(N, M)`` bool.
        prior: Its active components are the first set.
        pool: One of `POOLS`.
        normaliser: One of `NORMALISERS`.
        beta: Weight of the entropy.
    """
    seen = present.any(dim=1)
    table, present = table[:, :, seen], present[seen]
    active, scores, best = prior.active.clone(), {}, (math.inf, prior.active.clone())
    while (count := int(active.sum())) > 1:
        log_weights = prior.logits.masked_fill(~active, -math.inf).log_softmax(dim=0)
        joint = table + log_weights
        log_p, given = joint.logsumexp(dim=-1), joint.softmax(dim=-1)
        base = len(active) if normaliser == "initial" else count
        entropy = torch.special.entr(given).sum(dim=-1) / math.log(base)
        each = beta * entropy - log_p / prior.latent_dim
        scores[count] = float(_over_seen(each.mean(dim=0)[..., None], present).mean())
        if scores[count] < best[0]:
            best = (scores[count], active.clone())
        mass = torch.where(active, _mass(table, present, log_weights, pool), math.inf)
        active[mass.argmin()] = False
    return Pruning(kept=tuple(best[1].nonzero().flatten().tolist()), criterion=scores)


def _mass(table: Tensor, present: Tensor, log_weights: Tensor, pool: str) -> Tensor:
    """Sum over the rows of a cluster of their largest mean probability, ``(C,)``."""
    label = pooled(table, present, log_weights, pool).argmax(dim=1)
    sure = pooled(table, present, log_weights, "mean_prob").amax(dim=1)
    return sure.new_zeros(table.shape[-1]).index_add(0, label, sure)


def _over_seen(each: Tensor, present: Tensor) -> Tensor:
    """Mean over what is seen, ``(M, N, C)`` -> ``(N, C)``."""
    total = torch.where(present.T[..., None], each, 0.0).sum(dim=0)
    return total / present.sum(dim=1, keepdim=True).clamp_min(1)
