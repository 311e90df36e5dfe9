"""CVAE: one modality given others, any of which may be missing.

With y the main modality, c the conditions and a which of them are there,

    L = - E_{q(z | y, c, a)} log p(y | z, c, a) + beta KL(q(z | y, c, a) || p(z | c, a))

a bound on - log p(y | c, a) (Kingma & Welling 2013; Sohn, Lee & Yan 2015, eq. 4). Encoder, prior
and decoder see the same embedding of the conditions, which has a learned vector in place of what
is missing. A row without y has nothing to teach and weighs 0. Hybrid training (Sohn et al. 2015,
eq. 6) mixes in -log p(y | z, c) with z out of the prior, as in generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import component, config, in_range, non_negative, one_of, positive
from multivae_core.data import Batch
from multivae_core.distributions import Normal
from multivae_core.errors import ConfigError
from multivae_core.likelihoods import Likelihood
from multivae_core.losses import LossOutput, Term
from multivae_core.model import MultimodalVAE
from multivae_core.model_config import ModelConfig
from multivae_core.networks.heads import ModalityDecoder
from multivae_core.noise import Step
from multivae_core.posteriors import FactorisedPosterior, LatentPrior, Latents
from multivae_core.priors import StandardNormalConfig
from multivae_core.private_latents import normal
from multivae_joint._conditional import ConditionalPrior, LearnedPrior, free_kl, withheld
from multivae_joint._encoder import (
    Features,
    GaussianEncoder,
    MaskedFeatures,
    OwnFeatures,
    Stacked,
    build_trunk,
)

__all__ = ["CVAE", "CVAEConfig"]

_MLP = {"type": "mlp", "hidden": [512, 512]}


@config
class CVAEConfig(ModelConfig):
    """Options of CVAE beside those of every model.

    Args:
        main: The modality y that is modelled.
        conditions: The modalities c that are conditioned on; None: all others.
        encoder_inputs: What the encoder sees beside y; None: the conditions. With further
            modalities the bound still holds. They are used where they are there.
        conditional_prior: ``standard``, N(0, I), or ``learned``, a network of the conditions;
            with missing conditions the second is better, for it can widen.
        joint_encoder: Trunk of the encoder.
        prior_network: Trunk of the learned prior.
        condition_bits: Whether the networks are told which conditions are there.
        hybrid: Weight of the CVAE's loss; the rest is that of a draw out of the prior.
        cond_dropout: In training every condition is withheld with this probability, from all
            networks alike; then rare patterns, and no condition at all, are trained too.
        free_bits: Nats per dimension below which the divergence does not push in training, against
            a posterior that collapses (Kingma et al. 2016); or ramp beta, ``beta_schedule``.
        log_variance_limit: Bound of log-variances, up and down; None: 10 for the learned prior.
    """

    main: str
    conditions: tuple[str, ...] | None = None
    encoder_inputs: tuple[str, ...] | None = None
    conditional_prior: str = attrs.field(
        default="standard", validator=one_of("standard", "learned")
    )
    joint_encoder: Any = component("encoders", default=_MLP)
    prior_network: Any = component("encoders", default={"type": "mlp", "hidden": [256]})
    condition_bits: bool = True
    hybrid: float = attrs.field(default=1.0, validator=in_range(0.0, 1.0))
    cond_dropout: float = attrs.field(default=0.0, validator=in_range(0.0, 1.0))
    free_bits: float = attrs.field(default=0.0, validator=non_negative)
    log_variance_limit: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(positive)
    )

    def __attrs_post_init__(self) -> None:
        known = ", ".join(self.modalities)
        if self.main not in self.modalities:
            raise ConfigError(f"unknown modality {self.main!r}; there is {known}", "main")
        for option in ("conditions", "encoder_inputs"):
            for name in getattr(self, option) or ():
                if name not in self.modalities:
                    raise ConfigError(f"unknown modality {name!r}; there is {known}", option)
                if name == self.main:
                    raise ConfigError(f"{name!r} is the main modality; leave it out", option)
        if not isinstance(self.prior, StandardNormalConfig):
            raise ConfigError(
                "must be 'standard_normal'; for a prior that depends on the conditions choose"
                " conditional_prior='learned'",
                "prior",
            )
        if not self.condition_names:
            raise ConfigError("there are none; add a modality to the data", "conditions")
        if missing := sorted(set(self.condition_names) - set(self.input_names)):
            raise ConfigError(
                f"must have all conditions; add {missing[0]!r}, or leave the option out",
                "encoder_inputs",
            )

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The conditions, sorted."""
        others = self.modalities if self.conditions is None else self.conditions
        return tuple(sorted(set(others) - {self.main}))

    @property
    def input_names(self) -> tuple[str, ...]:
        """What the encoder sees beside the main modality, sorted."""
        own = self.encoder_inputs
        return self.condition_names if own is None else tuple(sorted(set(own)))


class CVAE(MultimodalVAE):
    """Conditional VAE (Kingma & Welling 2013; Sohn, Lee & Yan 2015)."""

    config: CVAEConfig
    lacks: Mapping[str, str] = {
        "joint_likelihood": "it models one modality given others, which have no density; ask for"
        " conditional_log_likelihood",
        "generate": "the conditions have no density to draw from; ask for impute or predict",
    }
    roles: ClassVar[Mapping[str, str]] = {
        "condition": "{condition: (rows, *shape)} to (rows, features), for all networks",
        "joint_encoder": "{modality: (rows, *shape)} to (rows, features), main modality included",
        "prior_network": "(rows, features of the conditions) to (rows, features)",
    }

    def __init__(self, config: CVAEConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        own, size = self.own_networks.get("prior_network"), self.condition.out_features
        self.encoder = self._gaussian_encoder()
        self.learned_prior: LearnedPrior | None = None
        if config.conditional_prior == "learned":
            if own is None:
                own = build_trunk(config.prior_network, size, "prior_network")
            self.learned_prior = LearnedPrior(own, size, config)
        elif own is not None:
            raise ConfigError("needs conditional_prior='learned'", "networks.prior_network")

    @property
    def decoded(self) -> tuple[str, ...]:
        """The main modality."""
        return (self.config.main,)

    def build_encoder(self, name: str, custom: Mapping[str, nn.Module]) -> nn.Module:
        """Features of a modality; nothing where a network of the user's own reads it."""
        condition = name in self.config.condition_names
        reads = condition or name == self.config.main or name in self.config.input_names
        role = "condition" if condition else "joint_encoder"
        if not reads or role in self.own_networks:
            return nn.Identity()
        return Features(*self.encoder_trunk(name, custom))

    def build_decoder(self, name: str, custom: Mapping[str, nn.Module]) -> ModalityDecoder:
        """The decoder of the main modality, which reads the conditions too."""
        names, own = self.config.condition_names, self.own_networks.get("condition")
        self.condition: MaskedFeatures | OwnFeatures
        if own is None:
            self.condition = self._features(names, self.config.condition_bits)
        else:
            self.condition = OwnFeatures(own, self.config.modalities, names, "condition")
        return super().build_decoder(name, custom)

    def decoder_size(self, name: str) -> int:
        """Size of the latent and of the conditions' features together."""
        return super().decoder_size(name) + self.condition.out_features

    def decode_one(
        self, name: str, latents: Latents, batch: Batch, rows: Tensor | None = None
    ) -> Likelihood:
        """The likelihood of the main modality."""
        shown = self.condition(batch if rows is None else batch.take(rows))
        z = latents["shared"]
        seen = torch.cat([z, shown.expand(len(z), *shown.shape)], dim=-1)
        return cast(Likelihood, self.decoders[name](seen))

    def prior(self, batch: Batch) -> LatentPrior:
        """p(z | c)."""
        return ConditionalPrior(self._prior(batch))

    def posterior(self, batch: Batch) -> FactorisedPosterior:
        """q(z | y, c) where y is there, otherwise p(z | c)."""
        return FactorisedPosterior({"shared": self._posterior(batch, self._prior(batch))})

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """The negative bound in its two terms, over the rows with y."""
        rate = self.config.cond_dropout
        if step.training and rate > 0.0:
            batch = withheld(batch, self.config.condition_names, rate, step.noise)
        name, share = self.config.main, self.config.hybrid if step.training else 1.0
        prior = self._prior(batch)
        q = self._posterior(batch, prior)
        z = q.sample(1, step.noise, "shared")
        log_px = share * self.weighted_score(name, {"shared": z}, batch, step)[0]
        if share < 1.0:
            drawn: Latents = {"shared": prior.sample(1, step.noise, "prior")}
            log_px = log_px + (1.0 - share) * self.weighted_score(name, drawn, batch, step)[0]
        kl = free_kl(q, prior, self.config.free_bits if step.training else 0.0)
        weight = batch.column(name).to(self.dtype)
        terms = {
            "reconstruction": Term(-log_px, weight),
            "kl": Term(share * self.beta(step) * kl, weight),
        }
        return LossOutput(terms=terms, metrics={"kl": kl.detach()})

    def _prior(self, batch: Batch) -> Normal:
        """p(z | c), ``(B, D)``."""
        if self.learned_prior is not None:
            return cast(Normal, self.learned_prior(self.condition(batch)))
        nothing = batch.values[self.config.main].new_zeros(batch.size, self.config.latent_dim)
        return Normal(nothing, nothing)

    def _posterior(self, batch: Batch, prior: Normal) -> Normal:
        rows = batch.rows(self.config.main)
        if rows is None:
            return normal(self.encoder(batch), 1)
        q = normal(self.encoder(batch.take(rows)), 1)
        return Normal(
            prior.mean.index_copy(0, rows, q.mean),
            prior.log_variance.index_copy(0, rows, q.log_variance),
        )

    def _gaussian_encoder(self) -> GaussianEncoder:
        main, inputs = self.config.main, self.config.input_names
        own = self.own_networks.get("joint_encoder")
        sizes = self.config.latent_dim, self.config.log_variance_limit
        if own is not None:
            seen = OwnFeatures(own, self.config.modalities, (main, *inputs), "joint_encoder")
            return GaussianEncoder(seen, None, *sizes)
        further = [name for name in inputs if name not in self.config.condition_names]
        parts = [self._features([main], False)]
        parts += [self._features(further, self.config.condition_bits)] if further else []
        features = Stacked([*parts, self.condition])
        trunk = build_trunk(self.config.joint_encoder, features.out_features, "joint_encoder")
        return GaussianEncoder(features, trunk, *sizes)

    def _features(self, names: Sequence[str], bits: bool) -> MaskedFeatures:
        return MaskedFeatures({n: cast(Features, self.encoders[n]) for n in names}, bits)
