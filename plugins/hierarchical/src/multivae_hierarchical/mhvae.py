"""MHVAE: a hierarchy of latents, inferred level by level from any subset of the modalities.

    p(x, z)          = p(z_L) prod_{l<L} p(z_l | z_(l+1)) prod_m p(x_m | z_1)
    q(z_l | x_S, .)  propto  p(z_l | z_(l+1)) prod_{m in S} q_m(z_l | x_m, z_(l+1)),   l = L .. 1
    ELBO_S = E_q(z | x_S) [ sum_{m in A} log p(x_m | z_1) ]
             - beta sum_l beta_l E KL(q(z_l | x_S, z_(l+1)) || p(z_l | z_(l+1)))
    L      = mean over the non-empty subsets S of A, what a row has, of ELBO_S

Levels may be vectors, images or volumes. Every ELBO_S is a bound on log p(x_A) for beta = 1. With
S empty the posterior is the prior: generation and missing data are one path (Dorent et al. 2023,
2025). Not the MHVAE of Vasco et al. 2020, which is an ancestor of Nexus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import config, non_negative, positive
from multivae_core.data import Batch
from multivae_core.errors import ConfigError
from multivae_core.losses import LossOutput, Term
from multivae_core.noise import Step
from multivae_core.posteriors import Latents
from multivae_core.priors import kl_to_prior
from multivae_core.private_latents import check_names
from multivae_core.stages import Stage
from multivae_hierarchical._critics import build_critics, fooled, judged, with_critics
from multivae_hierarchical._hierarchy import Level
from multivae_hierarchical._levelled import LevelledVAE, LevelsConfig
from multivae_hierarchical._levels import AncestralPrior, HierarchicalPosterior
from multivae_hierarchical._options import check_lengths, choice, numbers, share_of_rows
from multivae_hierarchical._subsets import draw_subsets

__all__ = ["MHVAE", "MHVAEConfig"]

_MOST_MODALITIES = 10


@config
class MHVAEConfig(LevelsConfig):
    """Options of MHVAE beside those of every model and those of the networks.

    ``latent_dim`` is the size of the top level, or its channels where it is a map; ``prior`` is
    the prior there. The expert that it is multiplied with is N(0, I) whatever the prior is.

    Args:
        subsets: ``all``; ``full_and_singletons``: all that a row has and each of its modalities
            alone (Dorent et al. 2023); ``random``: all that it has and ``n_subsets`` others.
        n_subsets: Random subsets per row and step.
        subset_weights: ``uniform``: the mean over the subsets; random ones are weighted so that
            the mean over all of them is met in expectation. ``equal``: those drawn weigh alike
            (Dorent et al. 2025, heavier on the full set). ``all_patterns``: every subset of all
            M modalities, cut to what a row has: rows with few of them spend much of their
            weight on decoding the prior, so this is for comparison only.
        alone: Modalities from each of which alone a row that has others too is inferred in every
            step, beside ``random`` subsets of those others; as ultrasound is in Dorent et al.
            2025. With ``equal`` weights only.
        kl: ``analytic``, or ``mc``: log q - log p at the sample, as in the authors' code.
        level_betas: Weight of every level's divergence in training, the finest first; None: 1.
        free_bits: Nats per level below which its divergence is not pushed any further down.
        normalise: Reconstruction in training: ``available_sum``: the sum over what a row has;
            ``mean_modality``: that times M over the number of modalities it has.
        temperature: Factor on the deviation of what `generate` draws, or one per level, the
            finest first; 0.7 in the authors' code; 0 takes the mean. Likelihoods are those of 1.
        encode_temperature: Likewise of samples of the posterior.
        adversarial: Weight of critics that tell reconstructions from measurements, see
            `_critics`; the loss is no bound with it. 0: there are none.
        adversarial_start: Steps before which the critics are trained, and the model ignores them.
        adversarial_missing: Whether critics also judge what is decoded for a modality that a row
            lacks, beside measurements of the other rows at hand. The authors' later code keeps a
            pool of measurements for this, which saved models would contain.
        critic_lr: Learning rate of the critics.
    """

    subsets: str = choice("all", "full_and_singletons", "random")
    n_subsets: int = attrs.field(default=1, validator=positive)
    subset_weights: str = choice("uniform", "equal", "all_patterns")
    alone: list[str] = attrs.field(factory=list)
    kl: str = choice("analytic", "mc")
    level_betas: list[float] | None = numbers(non_negative)
    free_bits: float = attrs.field(default=0.0, validator=non_negative)
    normalise: str = choice("available_sum", "mean_modality")
    temperature: float | list[float] = numbers(non_negative, 1.0)
    encode_temperature: float | list[float] = numbers(non_negative, 1.0)
    adversarial: float = attrs.field(default=0.0, validator=non_negative)
    adversarial_start: int = attrs.field(default=0, validator=non_negative)
    adversarial_missing: bool = False
    critic_lr: float = attrs.field(default=2e-4, validator=positive)

    def __attrs_post_init__(self) -> None:
        per_level = dict.fromkeys(
            ("level_betas", "temperature", "encode_temperature"), self.n_levels
        )
        super().__attrs_post_init__()
        check_lengths(self, per_level)
        if self.subset_weights == "all_patterns" and self.subsets != "all":
            raise ConfigError("needs subsets='all'", "subset_weights")
        if self.alone and (self.subsets, self.subset_weights) != ("random", "equal"):
            raise ConfigError("needs subsets='random' and subset_weights='equal'", "alone")
        check_names(self, "alone")
        if self.adversarial_missing and not self.adversarial:
            raise ConfigError("there are no critics; set adversarial", "adversarial_missing")
        if self.subsets == "all" and len(self.modalities) > _MOST_MODALITIES:
            raise ConfigError(
                f"'all' are {2 ** len(self.modalities) - 1} subsets of {len(self.modalities)}"
                " modalities; choose 'random'",
                "subsets",
            )


class MHVAE(LevelledVAE):
    """Multimodal hierarchical variational autoencoder (Dorent et al. 2023, 2025)."""

    config: MHVAEConfig

    def __init__(
        self, config: MHVAEConfig, networks: Mapping[str, nn.Module] | None = None, **own: Any
    ) -> None:
        super().__init__(config, networks=networks, **own)
        if config.adversarial:
            self.critics = build_critics(self)
        if 0.0 in self._levels(config.encode_temperature):
            reason = "with encode_temperature 0 a level is its mean; likelihoods are those of 1"
            self.lacks = {**self.lacks, "posterior_density": reason}
        if config.adversarial_missing:
            reason = "adversarial_missing takes measurements from the rows of a batch"
            self.lacks = {**self.lacks, "row_objective": reason}

    def posterior(self, batch: Batch) -> HierarchicalPosterior:
        """All levels given everything that a row shows."""
        temperatures = self._levels(self.config.encode_temperature)
        return self._posterior(batch, temperatures)

    def proposal(self, batch: Batch) -> HierarchicalPosterior:
        """The posterior at its own temperature."""
        return self._posterior(batch, self._levels(1.0))

    def prior(self, batch: Batch) -> AncestralPrior:
        """The levels from the top down."""
        temperatures = self._levels(self.config.temperature)
        return AncestralPrior(self.hierarchy, self.shared_prior, temperatures)

    def stages(self) -> tuple[Stage, ...]:
        """One stage, with the critics as a second player where there are any."""
        return with_critics(self) if self.config.adversarial else super().stages()

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """The negative bound in its terms: reconstruction, and the divergence of every level."""
        subsets, weights = draw_subsets(self.config, batch.present, step.noise, self.dtype)
        valid = weights > 0
        levels, latents, spread = self.passes(batch, subsets, valid, step)
        whole = bool(valid.all())
        log_px = self.reconstruction(latents, batch, step, None if whole else valid)
        log_px = (weights * log_px).sum(dim=0)
        log_px = log_px * share_of_rows(self.config, batch, step, log_px)
        terms, metrics = {"reconstruction": Term(-log_px)}, {}
        full = (subsets == batch.present).all(dim=2) & valid
        for name, level, beta in zip(self.latent_shapes, levels, self._betas(step), strict=True):
            kl = spread(self._divergence(level))
            metrics[f"full_kl_{name}"] = torch.where(full, kl, 0.0).sum(dim=0).detach()
            if step.training and self.config.free_bits:
                kl = kl.clamp_min(self.config.free_bits)
            terms[f"kl_{name}"] = Term(beta * (weights * kl).sum(dim=0))
        start = self.config.adversarial_start
        if self.config.adversarial and step.training and step.number >= start:
            passes = judged(subsets, valid, batch)
            terms["adversarial"] = Term(fooled(self, latents, passes, batch))
        return LossOutput(terms=terms, metrics=metrics)

    def _posterior(self, batch: Batch, temperatures: list[float]) -> HierarchicalPosterior:
        return HierarchicalPosterior(
            self.hierarchy, self.shared_prior, self.evidence(batch), batch.present, temperatures
        )

    def passes(
        self, batch: Batch, subsets: Tensor, valid: Tensor, step: Step
    ) -> tuple[list[Level], Latents, Callable[[Tensor], Tensor]]:
        """One draw of all levels for every pair of a subset and a row that has it.

        Returns:
            The levels of the K pairs, the finest latent ``(S, B, *event)``, and what spreads
            values of the pairs ``(K, ...)`` to ``(S, B, ...)``, zeros elsewhere.
        """
        pairs = valid.flatten().nonzero().squeeze(1)
        members = subsets.expand(*valid.shape, -1).flatten(0, 1).index_select(0, pairs)
        # drawn for all pairs, so that holes in one row change no other row
        standard = [
            step.noise.normal(name, (*valid.shape, self.hierarchy.size(level))).flatten(0, 1)
            for level, name in enumerate(self.latent_shapes, start=1)
        ]
        levels = self.hierarchy.sweep(
            self.evidence(batch),
            pairs % batch.size,
            members,
            lambda level, q: q.place(standard[level - 1].index_select(0, pairs)),
        )

        def spread(value: Tensor) -> Tensor:
            if len(pairs) < valid.numel():
                empty = value.new_zeros(valid.numel(), *value.shape[1:])
                value = empty.index_copy(0, pairs, value)
            return value.view(*valid.shape, *value.shape[1:])

        finest = spread(levels[0].value)
        return (levels, {"z1": finest.view(*valid.shape, *self.hierarchy.shapes[0])}, spread)

    def _divergence(self, level: Level) -> Tensor:
        """KL(q || p) of one level in nats, ``(K,)``."""
        prior = self.shared_prior if level.prior is None else level.prior
        if self.config.kl == "mc":
            return level.posterior.log_prob(level.value) - prior.log_prob(level.value)
        if level.prior is None:
            return kl_to_prior(level.posterior, self.shared_prior, level.value)
        return level.posterior.kl(level.prior)

    def _betas(self, step: Step) -> list[float]:
        given = self.config.level_betas if step.training else None
        return [self.beta(step) * own for own in given or self._levels(1.0)]

    def _levels(self, given: float | list[float]) -> list[float]:
        return given if isinstance(given, list) else [given] * self.config.n_levels
