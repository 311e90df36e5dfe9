"""Random subsets of modalities."""

from __future__ import annotations

import torch
from torch import Tensor

from multivae_core.noise import NoiseSource
from multivae_core.subsets import all_subsets

__all__ = ["draw_available", "draw_some", "draw_subsets", "n_proper"]

# up to so many modalities all subsets are listed: once per step, or once for every row
_ENUMERATED, _ENUMERATED_PER_ROW = 16, 10


def n_proper(count: int) -> int:
    """Number of subsets of 2 to ``count - 1`` modalities."""
    return max(0, (1 << count) - count - 2)


def draw_subsets(
    n: int, count: int, rows: int | None, noise: NoiseSource, *, by_size: bool
) -> Tensor:
    """Draw subsets of 2 to ``count - 1`` modalities.

    Args:
        n: Number of subsets.
        count: Number of modalities M.
        rows: Rows that draw on their own; None: one draw for the batch.
        noise: Source of the random numbers.
        by_size: First a size, uniformly, then a subset of that size; otherwise uniformly over
            the subsets and, up to 16 modalities (10 where rows draw on their own), without
            replacement.

    Returns:
        ``(n, M)`` or ``(n, B, M)`` bool.
    """

    def uniform(name: str, *event: int) -> Tensor:
        if rows is None:
            return noise.batch_uniform(name, (n if name != "which" else 1, 1, *event))
        return noise.uniform(name, (n if name != "which" else 1, rows, *event))

    if not by_size and count <= (_ENUMERATED if rows is None else _ENUMERATED_PER_ROW):
        every = all_subsets(count).to(noise.device)
        sizes = every.sum(dim=1)
        proper = every[(sizes >= 2) & (sizes < count)]
        which = uniform("which", len(proper))[0].argsort(dim=1)[:, :n]
        drawn = proper[which].transpose(0, 1)
    else:
        sizes = torch.arange(2, count, device=noise.device)
        weights = torch.ones(count - 2, dtype=torch.float64)
        if not by_size:
            weights = torch.tensor([_choose(count, size) for size in range(2, count)])
        edges = (weights / weights.sum()).cumsum(0).to(noise.device)
        place = torch.searchsorted(edges, uniform("size").double()).clamp_max(count - 3)
        drawn = _members(sizes[place], uniform("members", count))
    return drawn[:, 0] if rows is None else drawn


def _members(sizes: Tensor, keys: Tensor) -> Tensor:
    """The members with the smallest keys: sizes ``(...)``, keys ``(..., M)`` -> bool."""
    ranks = keys.argsort(dim=-1).argsort(dim=-1)
    return ranks < sizes[..., None]


def draw_some(most: int, present: Tensor, noise: NoiseSource) -> Tensor:
    """Draw at most so many of the modalities of every row, without replacement, ``(B, M)``."""
    keys = torch.where(present, noise.uniform("some", (1, *present.shape))[0], 2.0)
    return _members(torch.full_like(present[:, 0], most, dtype=torch.long), keys) & present


def draw_available(n: int, present: Tensor, noise: NoiseSource, *, by_size: bool) -> Tensor:
    """Draw non-empty subsets of what every row has, with replacement.

    Args:
        n: Number of subsets.
        present: ``(B, M)`` bool.
        noise: Source of the random numbers.
        by_size: First a size, uniformly, then a subset of that size; otherwise uniformly over
            the subsets.

    Returns:
        ``(n, B, M)`` bool; empty for a row that has nothing.
    """
    rows, count = present.shape
    own = present.sum(dim=1)
    if by_size:
        place = noise.uniform("size", (n, rows)).double()
        keys = torch.where(present, noise.uniform("members", (n, rows, count)), 2.0)
        return _members((place * own).floor().long().clamp_max(own - 1) + 1, keys) & present
    # a uniform non-empty subset: fair coins until one falls on heads, in one step by giving the
    # first head its exact place
    coins = noise.uniform("coins", (n, rows, count)) < 0.5
    rank = present.long().cumsum(dim=1) - 1
    weights = torch.where(present, 0.5 ** (rank + 1).double(), 0.0)
    edges = (weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-300)).cumsum(dim=1)
    place = noise.uniform("first", (n, rows)).double()
    first = (place[..., None] >= edges).sum(dim=2).clamp_max(count - 1)
    position = torch.arange(count, device=present.device)
    head = position == first[..., None]
    return (head | (coins & (position > first[..., None]))) & present


def _choose(n: int, k: int) -> float:
    result = 1.0
    for i in range(k):
        result *= (n - i) / (i + 1)
    return result
