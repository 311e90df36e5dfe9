"""Which subsets of what a row has are inferred from, and with which weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from multivae_core.noise import NoiseSource
from multivae_core.subsets import all_subsets

if TYPE_CHECKING:
    from multivae_hierarchical.mhvae import MHVAEConfig

__all__ = ["draw_subsets"]

_FLOAT_DIGITS = 2.0**-24


def draw_subsets(
    config: MHVAEConfig, present: Tensor, noise: NoiseSource, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Subsets of what every row has.

    Args:
        config: The options ``subsets``, ``n_subsets`` and ``subset_weights``.
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
    equal = config.subset_weights == "equal"
    return _full_and_random(present, config.n_subsets, noise, dtype, equal)


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
    present: Tensor, n: int, noise: NoiseSource, dtype: torch.dtype, equal: bool
) -> tuple[Tensor, Tensor]:
    """All that a row has, and n proper non-empty subsets, drawn uniformly with replacement."""
    own = present.sum(dim=1)
    every = torch.exp2(own.double()) - 1.0
    # float32 has 24 random digits: a second number gives those behind them
    draws = noise.uniform("subset", (2 * n, len(present))).double()
    place = (draws[:n] + draws[n:] * _FLOAT_DIGITS) % 1.0
    code = 1 + (place * (every - 1.0)).long().clamp_min(0)
    rank = present.long().cumsum(dim=1) - 1
    drawn = present & ((code[..., None] >> rank.clamp_min(0)) & 1).bool()
    several = own > 1
    each = 1.0 / (n + 1) if equal else (every - 1.0) / every.clamp_min(1.0) / n
    random = torch.where(several, torch.as_tensor(each).to(present.device), 0.0).to(dtype)
    full = torch.where(own > 0, 1.0 - n * random, 0.0)
    return torch.cat([present[None], drawn]), torch.cat([full[None], random.expand(n, -1)])
