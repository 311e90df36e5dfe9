"""k-means and expectation maximisation, to start a mixture from."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fit_gaussians", "k_means"]

_ROUNDS = 100


def k_means(values: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Find centres by Lloyd's algorithm from a k-means++ start (Arthur & Vassilvitskii 2007).

    Args:
        values: ``(N, D)`` with at least as many rows as centres.
        count: Number C of centres.
        seed: Of the start.

    Returns:
        Centres ``(C, D)``, and their shares of the rows ``(C,)``, each row counted and one more
        for every centre, so that none is 0.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = values.detach().double().cpu()
    centres = rows[torch.randint(len(rows), (1,), generator=generator)]
    while len(centres) < count:
        gap = torch.cdist(rows, centres).amin(dim=1).square()
        if not bool(gap.any()):  # every row lies on a centre: any row will do
            gap = torch.ones_like(gap)
        centres = torch.cat([centres, rows[torch.multinomial(gap, 1, generator=generator)]])
    for _ in range(_ROUNDS):
        own = torch.cdist(rows, centres).argmin(dim=1)
        sizes = own.bincount(minlength=count)
        sums = torch.zeros_like(centres).index_add(0, own, rows)
        moved = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    shares = (sizes + 1.0) / (len(rows) + count)
    return centres.to(values), shares.to(values)


def fit_gaussians(
    values: Tensor,
    centres: Tensor,
    shares: Tensor,
    rounds: int,
    least: float,
    variances: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a mixture of diagonal Gaussians by expectation maximisation (Dempster et al. 1977).

    Args:
        values: ``(N, D)``.
        centres: Means to begin with, ``(C, D)``.
        shares: Weights to begin with, ``(C,)``.
        rounds: Rounds.
        least: Least standard deviation.
        variances: Variances that stay, ``(C, D)``; None: they are fitted.

    Returns:
        Means ``(C, D)``, variances ``(C, D)`` and weights ``(C,)``; as in `k_means` there is one
        more row for every centre, so that no weight is 0.
    """
    rows, means, weights = values.double(), centres.double(), shares.double()
    within = torch.cdist(rows, means).amin(dim=1).square().mean() / rows.shape[1]
    spread = within.expand_as(means) if variances is None else variances.double()
    for _ in range(rounds):
        spread = spread.clamp_min(max(least**2, 1e-12))
        gap = (rows[:, None] - means).square() / spread
        given = (weights.log() - 0.5 * (gap + spread.log()).sum(dim=2)).softmax(dim=1)
        count = given.sum(dim=0)
        sums = given.T @ rows
        means = torch.where(count[:, None] > 0, sums / count.clamp_min(1e-300)[:, None], means)
        weights = (count + 1.0) / (len(rows) + len(means))
        if variances is None:
            squares = (rows[:, None] - means).square() * given[..., None]
            # one row of the variance at hand beside its own, so that a lone row leaves some
            spread = (squares.sum(dim=0) + within) / (count[:, None] + 1.0)
    return means.to(values), spread.clamp_min(least**2).to(values), weights.to(values)
