"""Which subsets of what a row has are inferred from, and with which weights; dropout of some."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from multivae_core.noise import NoiseSource
from multivae_core.subsets import all_subsets

if TYPE_CHECKING:
    from multivae_hierarchical.mhvae import MHVAEConfig

__all__ = ["draw_subsets", "drop_some"]

_FLOAT_DIGITS = 2.0**-24


def draw_subsets(
    config: MHVAEConfig, present: Tensor, noise: NoiseSource, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Subsets of what every row has.

    Args:
        config: The options ``subsets``, ``n_subsets``, ``subset_weights`` and ``alone``.
        present: ``(B, M)`` bool.
        noise: Source of the random numbers.
        dtype: Type of the weights.

    Returns:
        Subsets, ``(S, B, M)`` or ``(S, 1, M)`` bool, and their weights ``(S, B)``, which sum to
        1 where something is present and are 0 elsewhere, as they are where a row does not have
        a subset in full.
    """
    if config.subsets == "all":
        return _every(present, dtype, config.subset_weights == "all_patterns")
    if config.subsets == "full_and_singletons":
        return _full_and_singletons(present, dtype)
    alone = [name in config.alone for name in sorted(config.modalities)]
    equal = config.subset_weights == "equal"
    return _full_and_random(present, alone, config.n_subsets, noise, dtype, equal)


def drop_some(present: Tensor, rate: float, noise: NoiseSource) -> Tensor:
    """Forced perceptual dropout: a random part of what a row has, in some rows.

    Args:
        present: ``(B, M)`` bool.
        rate: Share of the rows with several modalities.
        noise: Source of the random numbers.

    Returns:
        ``(B, M)`` bool, not empty where ``present`` is not.
    """
    rows, count = present.shape
    own = present.sum(dim=1)
    chance, size = noise.uniform("dropout", (2, rows))
    dropped = 1 + (size * (own - 1)).long().clamp_min(0)
    dropped = torch.where((chance < rate) & (own > 1), torch.minimum(dropped, own - 1), 0)
    keys = torch.where(present, noise.uniform("dropped", (1, rows, count))[0], 2.0)
    return present & (keys.argsort(dim=1).argsort(dim=1) >= dropped[:, None])


def _every(present: Tensor, dtype: torch.dtype, patterns: bool) -> tuple[Tensor, Tensor]:
    """All non-empty subsets; or, weighted, all subsets cut to what a row has."""
    count = present.shape[1]
    subsets = all_subsets(count).to(present.device)
    own = present.sum(dim=1)
    if patterns:
        subsets = torch.cat([torch.zeros_like(subsets[:1]), subsets])
    subsets = subsets[:, None]
    usable = ~(subsets & ~present).any(dim=2) & (own > 0)
    if not patterns:
        return subsets, usable.to(dtype) / (torch.exp2(own.to(dtype)) - 1.0).clamp_min(1.0)
    times = torch.exp2((count - own).to(dtype)) - (~subsets.any(dim=2)).to(dtype)
    return subsets, torch.where(usable, times, 0.0) / (2.0**count - 1.0)


def _full_and_singletons(present: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """All that a row has, and each of its modalities alone, with equal weights."""
    single = torch.eye(present.shape[1], dtype=torch.bool, device=present.device)[:, None]
    own = present.sum(dim=1)
    # of a row with one modality the full set is the single one: it counts once
    usable = torch.cat([(own > 0)[None], present.T & (own > 1)])
    weights = usable.to(dtype) / usable.sum(dim=0).clamp_min(1)
    return torch.cat([present[None], single & present]), weights


def _full_and_random(
    present: Tensor,
    alone: list[bool],
    n: int,
    noise: NoiseSource,
    dtype: torch.dtype,
    equal: bool,
) -> tuple[Tensor, Tensor]:
    """All that a row has, and n proper non-empty subsets, drawn uniformly with replacement.

    Some modalities stand alone in every step; subsets are drawn from the others then.
    """
    single = torch.eye(len(alone), dtype=torch.bool, device=present.device)[alone][:, None]
    others = present & ~single.any(dim=0)
    every = torch.exp2(others.sum(dim=1).double()) - 1.0
    # all of the others are a part of the row only if it has more than them
    proper = every - (others == present).all(dim=1).double()
    # float32 has 24 random digits: a second number gives those behind them
    draws = noise.uniform("subset", (2 * n, len(present))).double()
    place = (draws[:n] + draws[n:] * _FLOAT_DIGITS) % 1.0
    code = 1 + (place * proper).long().clamp_min(0)
    rank = others.long().cumsum(dim=1) - 1
    drawn = others & ((code[..., None] >> rank.clamp_min(0)) & 1).bool()
    several = present.sum(dim=1) > 1
    apart = (single & present).any(dim=2) & several
    usable = several & (proper > 0.0)
    each = proper / every.clamp_min(1.0) / n
    if equal:
        each = 1.0 / (1 + n * usable + apart.sum(dim=0)).double()
    random = torch.where(usable, each, 0.0).to(dtype)
    lone = torch.where(apart, each, 0.0).to(dtype)
    full = torch.where(present.any(dim=1), 1.0 - n * random - lone.sum(dim=0), 0.0)
    return torch.cat([present[None], single & present, drawn]), torch.cat(
        [full[None], lone, random.expand(n, -1)]
    )
