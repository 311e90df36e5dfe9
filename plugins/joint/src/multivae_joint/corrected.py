"""The product of posteriors in which the prior counts once.

Every expert that approximates p(z | x_m) contains the prior; their product contains it |S| times.
With N(0, I) divided out of all but one (Wu & Goodman 2018, eq. 3),

    q_S(z) = prod_{m in S} q_m(z | x_m) / p(z)^(|S| - 1) / Z
    precision  T = sum_S t_m - (|S| - 1),      mean = sum_S t_m u_m / T

which is p(z | x_S) where every expert is p(z | x_m). Experts that are wider than the prior could
make T negative: it is at least the largest t_m of the subset.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multivae_core.config import config
from multivae_core.distributions import Normal
from multivae_core.fusion import Fusion, member_sums

__all__ = ["CorrectedProduct", "CorrectedProductConfig"]


@config
class CorrectedProductConfig:
    """Product of posteriors in which the prior counts once; it has no options."""


class CorrectedProduct(Fusion):
    """Product of experts with the prior divided out; see the module."""

    def fuse(self, experts: Normal, members: Tensor) -> Normal:
        """See `Fusion.fuse`."""
        total, pull, least = self._parts(experts, members)
        return Normal.natural(torch.maximum(total, least), pull)

    def clamped(self, experts: Normal, members: Tensor) -> Tensor:
        """Share of the dimensions whose precision was raised to its bound, ``(S, B)``.

        Args:
            experts: ``(M, B, D)``.
            members: ``(S, B, M)`` bool, or ``(S, 1, M)``.
        """
        total, _, least = self._parts(experts.detach(), members)
        # a subset of one has exactly its bound, up to rounding
        several = (members.sum(dim=2) > 1)[..., None]
        return (several & (total < least)).to(total.dtype).mean(dim=2)

    def _parts(self, experts: Normal, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Precision, precision times mean, and the least precision, ``(S, B, D)`` each."""
        precision = (-experts.log_variance).exp()
        total, pull = member_sums([precision, precision * experts.mean], members)
        further = (members.sum(dim=2) - 1).clamp_min(0)[..., None]
        each = torch.where(members.movedim(2, 0)[..., None], precision[:, None], 0.0)
        return total - further, pull, each.amax(dim=0)
