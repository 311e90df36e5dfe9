"""Beliefs about all levels of a hierarchy: its posterior, and its prior from the top down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from multivae_core.distributions import Normal
from multivae_core.noise import NoiseSource
from multivae_core.posteriors import Draw, LatentPrior, Latents, Posterior
from multivae_core.priors import Prior
from multivae_hierarchical._hierarchy import Choice, Evidence, Hierarchy, Level

__all__ = ["AncestralPrior", "HierarchicalPosterior", "names_of"]

_SWEPT_ROWS = 4096


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
        temperatures: Factor on the deviation of every level, the finest first; with a 0, the mean
            of a level, draws have no density.
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
        latents: Latents = {name: torch.cat([d.latents[name] for d in draws]) for name in standard}
        if draws[0].log_q is None:
            return Draw(latents=latents)
        return Draw(
            latents=latents,
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
        if 0.0 in self.temperatures:
            return Draw(latents=self._latents(levels, n))
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
        shift = 2.0 * math.log(factor) if factor else -math.inf
        return Normal(q.mean, q.log_variance + shift)

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
