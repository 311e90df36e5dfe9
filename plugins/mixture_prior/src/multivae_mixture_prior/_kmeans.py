"""k-means, to start the means of a mixture from."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["k_means"]

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
