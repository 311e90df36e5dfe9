"""What models with a mixture of experts and an importance-weighted bound share.

    q(z | x_A) = 1/n sum_{m in A} q_m(z | x_m)                      n = |A|, what a row has
    w(z)       = prod_{j in A} p(x_j | z) (p(z) / q(z | x_A))^beta

with draws from every expert in turn, reduced to a bound as `importance` has it. The prior p(z) is
any registered one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from multivae_core.config import component, config, one_of, positive
from multivae_core.data.batch import Batch
from multivae_core.distributions import FAMILIES, Distribution, Laplace, Normal, expert
from multivae_core.errors import ConfigError
from multivae_core.importance import (
    BOUNDS,
    ESTIMATORS,
    draw_sources,
    source_share,
    standard_draws,
    stratified_bound,
    uniform_mixture,
)
from multivae_core.losses import LossOutput, Term, scale_gradient
from multivae_core.model import MultimodalVAE
from multivae_core.model_config import ModelConfig
from multivae_core.noise import Step
from multivae_core.posteriors import FactorisedPosterior, LatentName, Latents
from multivae_core.priors import OrPrior

__all__ = ["MixtureVAE", "MixtureVAEConfig", "Samples", "matching_prior"]

_PIECE_ROWS = 4000


def matching_prior(learn: str) -> Any:
    """Declare the field ``prior``: by default of mean 0 and of the experts' family.

    Args:
        learn: Name of the option that says whether its scale is learned.
    """

    def default(options: Any) -> dict[str, Any]:
        # a family that there is not is refused by its own option, which is checked later
        family = options.family if options.family in FAMILIES else FAMILIES[0]
        return {"type": "scaled", "family": family, "learn": getattr(options, learn)}

    return component("priors", default=attrs.Factory(default, takes_self=True))


@config
class MixtureVAEConfig(ModelConfig):
    """Options of a model with a mixture of experts.

    Args:
        n_samples: Samples K per expert.
        family: Experts: ``normal``, ``normal_with_softplus`` or ``laplace_with_softmax``, whose
            scales sum to D and can only be redistributed.
        bound: ``looser``, the mean over the experts outside the logarithm, or ``tight``, inside.
        estimator: ``iwae``: the plain gradient. ``dreg``: lower variance (Tucker et al. 2019);
            for a mixture with K > 1 or the tight bound it is biased, because the score that it
            drops belongs to the mixture and the samples to one expert. ``stl``: without the
            score (Roeder et al. 2017), biased for K > 1 and for the tight bound.
        n_sources: Experts that are drawn from per row and step, without replacement; None: all.
            An unbiased estimate of the looser bound for many modalities.
    """

    n_samples: int = attrs.field(default=10, validator=positive)
    family: str = attrs.field(default="laplace_with_softmax", validator=one_of(*FAMILIES))
    bound: str = attrs.field(default="looser", validator=one_of(*BOUNDS))
    estimator: str = attrs.field(default="iwae", validator=one_of(*ESTIMATORS))
    n_sources: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(positive)
    )

    def __attrs_post_init__(self) -> None:
        if self.n_sources is not None and self.bound == "tight":
            raise ConfigError(
                "drawing sources is unbiased for the looser bound alone; leave it out, or set"
                " bound='looser'",
                "n_sources",
            )


class Samples:
    """The draws of a step, or of one source of it, and the gradients that go back to them.

    Args:
        sources: What `draw_sources` returns, ``(R, B)``.
        share: What `source_share` returns, ``(B,)``.
        stratified: Name -> draws of location 0 and scale 1 for every source, ``(R, K, B, D)``.
        own: Name -> such draws for one source alone, ``(K, B, D)``.
        only: Position of the one source; None: all.
    """

    def __init__(
        self,
        sources: Tensor,
        share: Tensor,
        stratified: dict[LatentName, Tensor],
        own: dict[LatentName, Tensor],
        only: int | None = None,
    ) -> None:
        self.sources, self.share, self.only = sources, share, only
        self.stratified, self.own = stratified, own
        self._cells: list[tuple[int | None, list[Tensor]]] = []

    def part(self, number: int) -> Samples:
        """The draws of one source."""
        chosen = slice(number, number + 1)
        stratified = {name: drawn[chosen] for name, drawn in self.stratified.items()}
        return Samples(self.sources[chosen], self.share, stratified, self.own, number)

    def damped(self, value: Tensor, source: int | None = None) -> Tensor:
        """Pass samples on; their gradient is multiplied by their importance weights.

        Args:
            value: ``(R * K, B, D)``, or ``(K, B, D)`` where they belong to one source.
            source: Number of that modality.
        """
        self._cells.append((source, []))
        return scale_gradient(value, self._cells[-1][1])

    def weigh(self, weights: Tensor) -> None:
        """Tell the importance weights, ``(R, K, B)``, before the backward pass."""
        for source, cell in self._cells:
            own = weights.flatten(0, 1)
            if source is not None:
                own = torch.where((self.sources == source)[:, None], weights, 0.0).sum(dim=0)
            cell.append(own[..., None])


class MixtureVAE(MultimodalVAE):
    """A multimodal VAE with a mixture of experts and an importance-weighted bound."""

    config: MixtureVAEConfig

    @property
    def takes_prior_density(self) -> bool:
        """It is part of every importance weight."""
        return True

    def posterior(self, batch: Batch) -> FactorisedPosterior:
        """The uniform mixture of the experts of what is present."""
        return FactorisedPosterior({"shared": self.mixture(self.run_encoders(batch), batch)})

    def mixture(self, encoded: Mapping[LatentName, Tensor], batch: Batch) -> Distribution:
        """The posterior of the shared latent: the prior in rows of which nothing is seen."""
        q = uniform_mixture(self.experts(encoded["shared"]), batch.present)
        if bool(batch.something.all()):
            return q
        return OrPrior(q, self.shared_prior, batch.something)

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """The negative bound as one term."""
        return self._negative_bound(
            self.run_encoders(batch), self.samples(batch, step), batch, step
        )

    def loss_pieces(self, batch: Batch, step: Step) -> Iterator[LossOutput]:
        """The looser bound, source by source, where the decoders' work outgrows the cache.

        Every piece goes backward as far as the experts' parameters; their gradients go through
        the encoders once, at the end.
        """
        count = len(self.modalities)
        count = min(count, self.config.n_sources or count)
        rows = count * self.config.n_samples * batch.size
        if self.config.bound == "tight" or rows <= _PIECE_ROWS or not torch.is_grad_enabled():
            yield self.loss(batch, step)
            return
        samples, encoded = self.samples(batch, step), self.run_encoders(batch)
        cut = {name: part.detach().requires_grad_() for name, part in encoded.items()}
        for number in range(count):
            yield self._negative_bound(cut, samples.part(number), batch, step)
        back = [
            (encoded[name] * part.grad).sum()
            for name, part in cut.items()
            if part.grad is not None
        ]
        if back:
            yield LossOutput(terms={}, surrogate=torch.stack(back).sum())

    def samples(self, batch: Batch, step: Step) -> Samples:
        """The draws of a step."""
        sources = draw_sources(batch.present, self.config.n_sources, step.noise)
        share = source_share(sources, self.dtype)
        shared = self.standard("shared", len(sources), self.config.latent_dim, batch, step)
        return Samples(sources, share, {"shared": shared}, {})

    def standard(
        self, name: LatentName, count: int, size: int, batch: Batch, step: Step
    ) -> Tensor:
        """Draws of location 0 and scale 1 of the experts' family, ``(count, K, B, size)``."""
        k = self.config.n_samples
        shape = (count * k, batch.size, size)
        drawn = standard_draws(self.config.family, name, shape, step.noise)
        return drawn.view(count, k, batch.size, size)

    def private_samples(
        self, encoded: Mapping[LatentName, Tensor], samples: Samples, batch: Batch
    ) -> tuple[Latents, Tensor | None]:
        """What a subclass with further latents adds to the samples and to the weights.

        Args:
            encoded: What `run_encoders` returns.
            samples: Draws of location 0 and scale 1.
            batch: What is seen.

        Returns:
            Latent -> ``(R * K, B, D)``, and their log p - log q, ``(R, K, B)``; None: there are
            none.
        """
        return {}, None

    def experts(self, encoded: Tensor) -> Normal | Laplace:
        """Experts out of locations and raw scales, ``(..., 2, D)``."""
        location, raw = encoded.unbind(dim=-2)
        return expert(location, raw, self.config.family)

    def scored(self, experts: Normal | Laplace) -> Normal | Laplace:
        """The experts as densities of a log-weight."""
        return experts if self.config.estimator == "iwae" else experts.detach()

    def _negative_bound(
        self, encoded: Mapping[LatentName, Tensor], samples: Samples, batch: Batch, step: Step
    ) -> LossOutput:
        log_w = self._log_weights(encoded, samples, batch, step)
        log_w = log_w.unflatten(0, (len(samples.sources), self.config.n_samples))
        bound = stratified_bound(
            log_w, samples.sources, samples.share, self.config.bound, self.config.estimator
        )
        if bound.weights is not None:
            samples.weigh(bound.weights)
        return LossOutput(terms={"bound": Term(-bound.value)}, bound=-bound.reported)

    def _log_weights(
        self, encoded: Mapping[LatentName, Tensor], samples: Samples, batch: Batch, step: Step
    ) -> Tensor:
        """Log importance weights, ``(R * K, B)``."""
        experts = self.experts(encoded["shared"])
        z = self._drawn_from(experts, samples)[:, None].place(samples.stratified["shared"])
        z = samples.damped(z.flatten(0, 1)) if self.config.estimator == "dreg" else z.flatten(0, 1)
        log_qz = uniform_mixture(self.scored(experts), batch.present).log_prob(z)
        log_ratio = self.shared_prior.log_prob(z) - log_qz
        private, more = self.private_samples(encoded, samples, batch)
        if more is not None:
            log_ratio = log_ratio + more.flatten(0, 1)
        valid = (samples.sources >= 0).repeat_interleave(self.config.n_samples, dim=0)
        log_px = self.reconstruction(
            {"shared": z, **private}, batch, step, None if bool(valid.all()) else valid
        )
        return log_px + self.beta(step) * log_ratio

    def _drawn_from(self, experts: Normal | Laplace, samples: Samples) -> Normal | Laplace:
        """The expert of every source, ``(R, B, D)``."""
        if self.config.n_sources is not None:
            return experts.pick(samples.sources.clamp_min(0))
        return experts if samples.only is None else experts[samples.only : samples.only + 1]
