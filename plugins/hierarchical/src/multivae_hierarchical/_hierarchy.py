"""The levels between encoders and decoders: the way up, the way down, and draws along it.

Distributions of a level are over flat vectors; networks and users see maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from multivae_core.distributions import Normal
from multivae_core.networks.heads import PerModality
from multivae_core.noise import NoiseSource
from multivae_core.posteriors import Draw, LatentPrior, Latents, Posterior
from multivae_core.priors import Prior
from multivae_hierarchical._blocks import Shape

__all__ = [
    "AncestralPrior", "Evidence", "HierarchicalPosterior", "Hierarchy", "Level", "Shared",
    "names_of",
]  # fmt: skip

_SWEPT_ROWS = 4096


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
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        roles: Mapping[str, Any],
        clamp: float | None = None,
        power: float = 1.0,
    ) -> None:
        super().__init__()
        self.shapes = tuple(shapes)
        self.clamp, self.power = clamp, power
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
            coming, prior = self.come_down(level, levels[-1].value)
            experts = self._experts(level, coming, evidence, picks)
            posterior = self._product(prior, experts, picks)
            levels.append(Level(posterior, prior, choose(level, posterior)))
        return levels[::-1]

    def come_down(self, level: int, above: Tensor) -> tuple[Tensor, Normal]:
        """What comes down to a level, and its prior, given the flat values above, ``(K, D)``."""
        coming: Tensor = self.top_down[level - 1](above.view(-1, *self.shapes[level]))
        return coming, self._normal(self.prior[level - 1](coming))

    def size(self, level: int) -> int:
        """Numbers in the latent of a level."""
        return torch.Size(self.shapes[level - 1]).numel()

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


def names_of(levels: int) -> tuple[str, ...]:
    """Names of the latents, the finest first: ``z1`` to ``zL``."""
    return tuple(f"z{level}" for level in range(1, levels + 1))


class HierarchicalPosterior(Posterior):
    """All levels, given one subset of modalities per row.

    Args:
        hierarchy: The networks.
        top_prior: Prior of the top level.
        evidence: Modality -> what it says.
        members: The subsets, ``(B, M)``.
        temperatures: Factor on the deviation of every level, the finest first.
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        top_prior: Prior,
        evidence: Mapping[str, Evidence],
        members: Tensor,
        temperatures: Sequence[float],
    ) -> None:
        self.hierarchy = hierarchy
        self.top_prior = top_prior
        self.evidence = evidence
        self.members = members
        self.temperatures = temperatures

    def draw(self, n: int, noise: NoiseSource) -> Draw:
        """See `Posterior.draw`; the sweep that draws fills in both densities."""
        rows = len(self.members)
        standard = {
            name: noise.normal(name, (n, rows, self.hierarchy.size(level)))
            for level, name in enumerate(names_of(len(self.temperatures)), start=1)
        }
        pieces = max(1, _SWEPT_ROWS // max(rows, 1)) if not torch.is_grad_enabled() else n
        draws = [
            self._draw({name: each[start : start + pieces] for name, each in standard.items()})
            for start in range(0, n, pieces)
        ]
        if len(draws) == 1:
            return draws[0]
        return Draw(
            latents={name: torch.cat([d.latents[name] for d in draws]) for name in standard},
            log_q=torch.cat([d.log_q for d in draws if d.log_q is not None]),
            log_p=torch.cat([d.log_p for d in draws if d.log_p is not None]),
        )

    def mean(self) -> Latents:
        """See `Posterior.mean`: every level given the means of those above."""
        return self._latents(self._sweep(1, lambda _, q: q.mean), 1)

    def log_prob(self, latents: Latents) -> Tensor:
        """Log-density of all levels together in nats, ``(n, B)``."""
        names = names_of(len(self.temperatures))
        n = len(latents[names[0]])
        levels = self._sweep(
            n, lambda level, q: latents[names[level - 1]].flatten(0, 1).flatten(1)
        )
        return self._densities(levels, n)[0]

    def _draw(self, standard: Latents) -> Draw:
        names = names_of(len(self.temperatures))
        n = len(standard[names[0]])

        def choose(level: int, q: Normal) -> Tensor:
            return self._tempered(level, q).place(standard[names[level - 1]].flatten(0, 1))

        levels = self._sweep(n, choose)
        log_q, log_p = self._densities(levels, n)
        return Draw(latents=self._latents(levels, n), log_q=log_q, log_p=log_p)

    def _sweep(self, n: int, choose: Choice) -> list[Level]:
        rows = torch.arange(len(self.members), device=self.members.device)
        members = self.members.repeat(n, 1)
        return self.hierarchy.sweep(self.evidence, rows.repeat(n), members, choose)

    def _tempered(self, level: int, q: Normal) -> Normal:
        factor = self.temperatures[level - 1]
        if factor == 1.0:
            return q
        return Normal(q.mean, q.log_variance + 2.0 * math.log(factor))

    def _densities(self, levels: Sequence[Level], n: int) -> tuple[Tensor, Tensor]:
        """Log-density of every pair under posterior and prior, ``(n, B)`` each."""
        log_q = log_p = levels[0].value.new_zeros(())
        for number, level in enumerate(levels, start=1):
            prior = self.top_prior if level.prior is None else level.prior
            log_q = log_q + self._tempered(number, level.posterior).log_prob(level.value)
            log_p = log_p + prior.log_prob(level.value)
        return log_q.view(n, -1), log_p.view(n, -1)

    def _latents(self, levels: Sequence[Level], n: int) -> Latents:
        return {
            name: level.value.view(n, -1, *shape)
            for name, level, shape in zip(
                names_of(len(levels)), levels, self.hierarchy.shapes, strict=True
            )
        }


class AncestralPrior(LatentPrior):
    """The prior over all levels: from the top down.

    Args:
        hierarchy: The networks.
        top_prior: Prior of the top level.
        temperatures: Factor on the deviation of what `sample` draws, the finest level first;
            densities are those of the prior itself.
    """

    def __init__(
        self, hierarchy: Hierarchy, top_prior: Prior, temperatures: Sequence[float]
    ) -> None:
        self.hierarchy = hierarchy
        self.top_prior = top_prior
        self.temperatures = temperatures

    def sample(self, n: int, rows: int, noise: NoiseSource) -> Latents:
        """See `LatentPrior.sample`."""
        names = names_of(len(self.temperatures))
        value = self.temperatures[-1] * self.top_prior.sample(n, rows, noise, names[-1])
        found = {names[-1]: value}
        for level in range(len(names) - 1, 0, -1):
            _, prior = self.hierarchy.come_down(level, value.flatten(0, 1))
            standard = noise.normal(names[level - 1], (n, rows, self.hierarchy.size(level)))
            value = prior.place(self.temperatures[level - 1] * standard.flatten(0, 1))
            value = value.view(n, rows, self.hierarchy.size(level))
            found[names[level - 1]] = value
        return {
            name: found[name].view(n, rows, *shape)
            for name, shape in zip(names, self.hierarchy.shapes, strict=True)
        }

    def log_prob(self, latents: Latents) -> Tensor:
        """See `LatentPrior.log_prob`."""
        names = names_of(len(self.temperatures))
        flat = [latents[name].flatten(0, 1).flatten(1) for name in names]
        total = self.top_prior.log_prob(flat[-1])
        for level in range(1, len(names)):
            total = total + self.hierarchy.come_down(level, flat[level])[1].log_prob(
                flat[level - 1]
            )
        return total.view(len(latents[names[0]]), -1)
