"""The levels between encoders and decoders: the way up, and the way down.

Distributions of a level are over flat vectors; networks and users see maps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from multivae_core.distributions import Normal
from multivae_core.networks.heads import PerModality
from multivae_hierarchical._modules import Shape

__all__ = ["Choice", "Evidence", "Hierarchy", "Level", "Shared", "recomputed"]

T = TypeVar("T")


@attrs.frozen
class Evidence:
    """What one modality says, on the rows that have it.

    Args:
        features: F_1 to F_(L-1), each ``(R, *shape)``.
        top: Expert on Z_L, over ``(R, D)``.
        place: Where a row of the batch is among them, ``(B,)``; None: where it is in the batch.
    """

    features: tuple[Tensor, ...]
    top: Normal
    place: Tensor | None


@attrs.frozen
class Level:
    """One level of a sweep over K pairs of a row and a subset.

    Args:
        posterior: Given the subset and the levels above, over ``(K, D)``.
        prior: Given the levels above; None at the top.
        value: ``(K, D)``.
    """

    posterior: Normal
    prior: Normal | None
    value: Tensor


Choice = Callable[[int, Normal], Tensor]
"""Number of a level, counted from 1, and its posterior -> values ``(K, D)``."""


def recomputed(wanted: bool, function: Callable[..., T], *args: Any) -> T:
    """Call a function; if wanted, without keeping what only its gradients need.

    That is computed anew on the way back, to the same bits: noise comes in as an argument.
    """
    if not wanted or not torch.is_grad_enabled():
        return function(*args)
    result: T = checkpoint(function, *args, use_reentrant=False)
    return result


class Shared(nn.Module):
    """One module in the place of one per modality."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.one = module

    def __getitem__(self, name: str) -> nn.Module:
        return self.one


class Hierarchy(nn.Module):
    """Networks by role, and the sweep from the top level to the finest.

    Args:
        shapes: Of the latents, the finest first.
        roles: ``bottom_up``: modality -> list over levels; ``top``: modality -> head;
            ``top_down``, ``prior``: lists over levels; ``posterior``: list over levels of
            modality -> head.
        clamp: Means and log-variances stay within plus and minus this; None: anywhere.
        power: Of a precision in the product of experts: 1, or 0.5 for a sum of inverse scales.
        recompute: Whether what happens within a level is computed anew on the way back.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        roles: Mapping[str, Any],
        clamp: float | None = None,
        power: float = 1.0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.shapes = tuple(shapes)
        self.clamp, self.power, self.recompute = clamp, power, recompute
        self.bottom_up: PerModality[nn.ModuleList] = roles["bottom_up"]
        self.top: PerModality[nn.Module] | Shared = roles["top"]
        self.top_down: nn.ModuleList = roles["top_down"]
        self.prior: nn.ModuleList = roles["prior"]
        self.posterior: nn.ModuleList = roles["posterior"]

    def climb(self, name: str, features: Tensor, place: Tensor | None) -> Evidence:
        """Run the way up of one modality from its first features."""
        levels = [features]
        for block in self.bottom_up[name]:
            levels.append(block(levels[-1]))
        return Evidence(tuple(levels), self._normal(self.top[name](levels[-1])), place)

    def sweep(
        self, evidence: Mapping[str, Evidence], rows: Tensor, members: Tensor, choose: Choice
    ) -> list[Level]:
        """Infer level after level, the prior being an expert in every product.

        Args:
            evidence: Modality -> what it says.
            rows: Numbers of rows of the batch, ``(K,)``.
            members: The subset that each of them is inferred from, ``(K, M)``.
            choose: Gives the values of a level.

        Returns:
            The levels, the finest first.
        """
        picks = {
            name: _Pick.of(evidence[name].place, rows, members[:, column])
            for column, name in enumerate(evidence)
        }
        any_top = next(iter(evidence.values())).top.mean
        nothing = any_top.new_zeros(len(rows), any_top.shape[1])
        standard = Normal(nothing, nothing)
        experts = {name: pick.normal(evidence[name].top) for name, pick in picks.items()}
        posterior = self._product(standard, experts, picks)
        levels = [Level(posterior, None, choose(len(self.shapes), posterior))]
        for level in range(len(self.shapes) - 1, 0, -1):
            posterior, prior = recomputed(
                self.recompute, self._infer, level, levels[-1].value, evidence, picks
            )
            levels.append(Level(posterior, prior, choose(level, posterior)))
        return levels[::-1]

    def come_down(self, level: int, above: Tensor) -> tuple[Tensor, Normal]:
        """What comes down to a level, and its prior, given the flat values above, ``(K, D)``."""
        coming: Tensor = self.top_down[level - 1](above.view(-1, *self.shapes[level]))
        return coming, self._normal(self.prior[level - 1](coming))

    def size(self, level: int) -> int:
        """Numbers in the latent of a level."""
        return torch.Size(self.shapes[level - 1]).numel()

    def _infer(
        self,
        level: int,
        above: Tensor,
        evidence: Mapping[str, Evidence],
        picks: Mapping[str, _Pick],
    ) -> tuple[Normal, Normal]:
        """Posterior and prior of a level, given the values above."""
        coming, prior = self.come_down(level, above)
        return self._product(prior, self._experts(level, coming, evidence, picks), picks), prior

    def _experts(
        self,
        level: int,
        coming: Tensor,
        evidence: Mapping[str, Evidence],
        picks: Mapping[str, _Pick],
    ) -> dict[str, Normal]:
        heads = self.posterior[level - 1]
        inputs = {
            name: torch.cat(
                [pick.pair(coming), pick.row(evidence[name].features[level - 1])], dim=1
            )
            for name, pick in picks.items()
        }
        if isinstance(heads, Shared):
            raw = heads.one(torch.cat([*inputs.values()])).split([*map(len, inputs.values())])
        else:
            raw = [heads[name](value) for name, value in inputs.items()]  # type: ignore[index]
        return {name: self._normal(each) for name, each in zip(inputs, raw, strict=True)}

    def _product(
        self, prior: Normal, experts: Mapping[str, Normal], picks: Mapping[str, _Pick]
    ) -> Normal:
        """Multiply the prior by the experts, relative to it: without any it is the prior itself.

        With t_m = precision of expert m over that of the prior,
        mean = mu_p + sum t_m (mu_m - mu_p) / (1 + sum t_m), variance = v_p / (1 + sum t_m).
        """
        total = pull = torch.zeros_like(prior.mean)
        for name, expert in experts.items():
            pick = picks[name]
            own = pick.pair_normal(prior)
            ratio = (self.power * (own.log_variance - expert.log_variance)).exp()
            total = pick.add(total, ratio)
            pull = pick.add(pull, ratio * (expert.mean - own.mean))
        mean = prior.mean + pull / (1.0 + total)
        return Normal(mean, prior.log_variance - total.log1p() / self.power)

    def _normal(self, raw: Tensor) -> Normal:
        if self.clamp is not None:
            raw = self.clamp * (raw / self.clamp).tanh()
        mean, log_variance = raw.flatten(1).chunk(2, dim=1)
        return Normal(mean, log_variance)


@attrs.frozen
class _Pick:
    """The pairs whose subset has a modality, ``(K',)``, and their rows; None: all in order."""

    pairs: Tensor | None
    rows: Tensor | None

    @classmethod
    def of(cls, place: Tensor | None, rows: Tensor, member: Tensor) -> _Pick:
        pairs = None if bool(member.all()) else member.nonzero().squeeze(1)
        wanted = rows if pairs is None else rows.index_select(0, pairs)
        return cls(pairs, wanted if place is None else place.index_select(0, wanted))

    def pair(self, value: Tensor) -> Tensor:
        return value if self.pairs is None else value.index_select(0, self.pairs)

    def row(self, value: Tensor) -> Tensor:
        return value if self.rows is None else value.index_select(0, self.rows)

    def add(self, total: Tensor, value: Tensor) -> Tensor:
        return total + value if self.pairs is None else total.index_add(0, self.pairs, value)

    def normal(self, expert: Normal) -> Normal:
        return Normal(self.row(expert.mean), self.row(expert.log_variance))

    def pair_normal(self, prior: Normal) -> Normal:
        return Normal(self.pair(prior.mean), self.pair(prior.log_variance))
