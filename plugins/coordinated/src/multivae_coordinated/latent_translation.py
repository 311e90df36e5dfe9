"""Latent translation: a bridge between the latents of unimodal VAEs.

Stage 1, ``base``: every modality has a VAE of its own,

    L_m = -E log p(x_m | u_m) + beta KL(q(u_m | x_m) || N(0, I))

Stage 2, ``bridge``: the VAEs are frozen. One VAE over their standardised latents, which is told
the modality on both sides, maps them into one space and back (Tian & Engel 2019):

    z ~ q(z | u_m, m),   v_m = g(z, m)
    L = sum_m [ mean_d (u_m - v_m)^2 + beta_prior KL(q(z | u_m, m) || N(0, I)) ]
        + beta_align SWD + beta_class cross-entropy + beta_pair sum_{m < n} |mu_m - mu_n|^2

Where rows have several modalities, a variant uses that: with z ~ prod_m q(z | u_m, m) / Z, and
across, with z_m ~ q(z | u_m, m),

    + beta_product mean_{m,d} (u_m - g(z, m))^2 + beta_cross mean_{m != n,d} (u_n - g(z_m, n))^2

SWD is the sliced Wasserstein distance between the codes of two modalities; it needs no pairs, and
alone cannot tell which class belongs to which. Modality m is translated into n by decoding
g(z, n).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from multivae_coordinated._alignment import (
    class_term,
    cross_term,
    pair_term,
    product_term,
    sliced_wasserstein,
)
from multivae_coordinated._bridge import Bridge, Layers
from multivae_core.config import config, non_negative, one_of, positive
from multivae_core.data import Batch
from multivae_core.distributions import Normal
from multivae_core.errors import ConfigError
from multivae_core.likelihoods import Likelihood
from multivae_core.losses import LossOutput, Term
from multivae_core.model import MultimodalVAE
from multivae_core.model_config import ModelConfig
from multivae_core.noise import Step
from multivae_core.posteriors import FactorisedPosterior, LatentName, Latents
from multivae_core.private_latents import normal
from multivae_core.stages import Player, Stage

__all__ = ["LatentTranslation", "LatentTranslationConfig"]


@config
class LatentTranslationConfig(ModelConfig):
    """Options of latent translation beside those of every model; ``latent_dim`` is the bridge's.

    Args:
        base_dim: Size of the latent of every unimodal VAE.
        bridge_layers: Hidden layers of the bridge, on both sides.
        beta_prior: Weight of the bridge's divergence from N(0, I).
        beta_align: Weight of the sliced Wasserstein distance; 0: it is not computed.
        n_projections: Directions of the distance.
        align_to: What a modality's codes are held against: those of every other one (``pairs``),
            or of all together (``pooled``), which costs less with more than four modalities.
        beta_class: Weight of a classifier of the codes; 0: there is none.
        n_classes: Number of classes; labels below 0 mark rows without one, for training with few.
        class_layers: Hidden layers of the classifier; none: it is linear.
        beta_pair: Weight of the squared distance between the codes of one row's modalities, the
            mean over its pairs; 0 is the paper, which has no pairs.
        pairing: What pairs are used for beside that: ``none``; or ``poe``, which encodes several
            modalities by the product of their codes, not the geometric mean, and trains it.
        beta_product: Weight, with ``poe``, of squared errors out of that product.
        beta_cross: Weight, with ``poe``, of squared errors across.
        residual: Whether the hidden layers of the bridge add what comes into them.
        gated: Whether what the bridge gives is mixed with a linear map of what it is given.
        use_domain: Whether the bridge is told the modality.
    """

    base_dim: int = attrs.field(default=32, validator=positive)
    bridge_layers: list[int] = attrs.field(
        factory=lambda: [256, 256, 256, 256],
        validator=attrs.validators.deep_iterable(positive),
    )
    beta_prior: float = attrs.field(default=0.01, validator=non_negative)
    beta_align: float = attrs.field(default=1.0, validator=non_negative)
    n_projections: int = attrs.field(default=128, validator=positive)
    beta_class: float = attrs.field(default=0.0, validator=non_negative)
    n_classes: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(positive)
    )
    beta_pair: float = attrs.field(default=0.0, validator=non_negative)
    align_to: str = attrs.field(default="pairs", validator=one_of("pairs", "pooled"))
    class_layers: list[int] = attrs.field(
        factory=list, validator=attrs.validators.deep_iterable(positive)
    )
    pairing: str = attrs.field(default="none", validator=one_of("none", "poe"))
    beta_product: float = attrs.field(default=1.0, validator=non_negative)
    beta_cross: float = attrs.field(default=1.0, validator=non_negative)
    residual: bool = False
    gated: bool = False
    use_domain: bool = True

    def __attrs_post_init__(self) -> None:
        if self.beta_class > 0 and self.n_classes is None:
            raise ConfigError("must be given for a classifier; or set beta_class=0", "n_classes")
        if self.class_layers and not self.beta_class:
            raise ConfigError("there is no classifier; set beta_class", "class_layers")


class LatentTranslation(MultimodalVAE):
    """Unimodal VAEs and a bridge between their latents (Tian & Engel 2019)."""

    lacks: Mapping[str, str] = {
        "joint_likelihood": "it is put together from VAEs that were trained apart",
        "conditional_likelihood": "it is put together from VAEs that were trained apart",
        "loss_is_bound": "its bridge minimises distances between latents",
        "row_objective": "latents are scaled, and their distributions aligned, batch by batch",
    }

    config: LatentTranslationConfig

    def __init__(self, config: LatentTranslationConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        self.bridge = Bridge(config, len(self.modalities))
        if config.beta_class > 0:
            sizes = config.class_layers, int(config.n_classes or 0)
            self.classifier = Layers(config.latent_dim, *sizes)

    def encoder_latents(self, name: str) -> dict[LatentName, int]:
        """Every encoder gives the latent of its own VAE."""
        return {("base", name): self.config.base_dim}

    def decoder_size(self, name: str) -> int:
        """Every decoder reads the latent of its own VAE."""
        return int(self.config.base_dim)

    def posterior(self, batch: Batch) -> FactorisedPosterior:
        """What the codes of what is present say together; the prior where nothing is."""
        codes = self.bridge.codes(self.bridge.scaled(self._base(batch).mean))
        nothing = ~batch.something[:, None]
        zero = torch.zeros_like(codes.mean)
        codes = Normal(
            torch.where(nothing, zero, codes.mean), torch.where(nothing, zero, codes.log_variance)
        )
        together = self.bridge.together(codes, batch.present)
        return FactorisedPosterior({"shared": self.or_prior(together, batch)})

    def decode_one(
        self, name: str, latents: Latents, batch: Batch, rows: Tensor | None = None
    ) -> Likelihood:
        """Translate a code into one modality's latent, and decode that."""
        place = self.modalities.index(name)
        own = self.bridge.latent(latents["shared"], place)
        likelihood: Likelihood = self.decoders[name](own)
        return likelihood

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """The terms of both stages, which share no parameters that move."""
        base, bridge = self.base_loss(batch, step), self.bridge_loss(batch, step)
        return LossOutput(terms=base.terms | bridge.terms)

    def base_loss(self, batch: Batch, step: Step) -> LossOutput:
        """Negative bounds of the unimodal VAEs, each a mean over the rows that have it."""
        base = self._base(batch)
        drawn = base.sample_once(step.noise, "base")
        terms = {}
        for m, name in enumerate(self.modalities):
            score = self._unimodal(name, drawn[m : m + 1], batch, step)
            value = self.beta(step) * base[m].kl() - score
            terms[f"base:{name}"] = Term(value, batch.present[:, m].to(self.dtype))
        return LossOutput(terms=terms)

    def bridge_loss(self, batch: Batch, step: Step) -> LossOutput:
        """Squared errors, divergences and alignments of the bridge."""
        with torch.no_grad():
            base = self._base(batch).sample_once(step.noise, "base")
            if step.training:
                self.bridge.scaler.watch(base, batch.present)
        scaled = self.bridge.scaled(base)
        codes = self.bridge.codes(scaled)
        z = codes.sample_once(step.noise, "shared")
        terms, prior = {}, self.config.beta_prior if step.training else 1.0
        for m, name in enumerate(self.modalities):
            error = (scaled[m] - self.bridge.back(z[m], m)).square().mean(dim=1)
            own = batch.present[:, m].to(self.dtype)
            terms[f"bridge:{name}"] = Term(error + prior * codes[m].kl(), own)
        return LossOutput(terms=terms | self._alignments(codes, z, scaled, batch, step))

    def stages(self) -> tuple[Stage, ...]:
        """First the unimodal VAEs, then the bridge between them."""
        base = (self.encoders, self.decoders)
        bridge = tuple(
            part for name, part in self.named_children() if name not in ("encoders", "decoders")
        )
        return (
            Stage(
                name="base",
                players=(Player(name="vaes", parameters=base, loss=self._base_pieces),),
            ),
            Stage(
                name="bridge",
                players=(Player(name="bridge", parameters=bridge, loss=self._bridge_pieces),),
            ),
        )

    def _base_pieces(self, batch: Batch, step: Step) -> Iterator[LossOutput]:
        yield self.base_loss(batch, step)

    def _bridge_pieces(self, batch: Batch, step: Step) -> Iterator[LossOutput]:
        yield self.bridge_loss(batch, step)

    def _base(self, batch: Batch) -> Normal:
        """Posterior of every unimodal VAE, ``(M, B, L)``."""
        encoded = self.run_encoders(batch)
        return normal(torch.stack([encoded["base", name] for name in self.modalities]), 2)

    def _unimodal(self, name: str, drawn: Tensor, batch: Batch, step: Step) -> Tensor:
        """Weighted log-likelihood under a modality's own VAE, ``(B,)``, 0 where it is missing."""
        rows, values, observed = batch.rows(name), batch.values[name], batch.observed.get(name)
        if rows is not None:
            drawn, values = drawn.index_select(1, rows), values.index_select(0, rows)
            observed = None if observed is None else observed.index_select(0, rows)
        score: Tensor = self.decoders[name](drawn).log_prob(values, observed)[0]
        score = self.likelihood_weight(name, step) * score
        return score if rows is None else score.new_zeros(batch.size).index_copy(0, rows, score)

    def _alignments(
        self, codes: Normal, z: Tensor, scaled: Tensor, batch: Batch, step: Step
    ) -> dict[str, Term]:
        """What ties the codes of different modalities together; what weighs 0 is left out."""
        own, present, found = self.config, batch.present, {}
        if own.beta_align > 0:
            pooled = own.align_to == "pooled"
            far = sliced_wasserstein(z, present, own.n_projections, step.noise, pooled)
            found["align"] = own.beta_align, Term(*far)
        if own.beta_class > 0:
            found["class"] = own.beta_class, class_term(self.classifier(z), batch.labels, present)
        if own.beta_pair > 0:
            found["pair"] = own.beta_pair, pair_term(codes, present)
        if own.pairing == "poe" and own.beta_product > 0:
            both = self.bridge.together(codes, present).sample(1, step.noise, "product")[0]
            term = product_term(self.bridge.back, both, scaled, present)
            found["product"] = own.beta_product, term
        if own.pairing == "poe" and own.beta_cross > 0:
            found["cross"] = own.beta_cross, cross_term(self.bridge.back, z, scaled, present)
        return {name: Term(beta * term.value, term.weight) for name, (beta, term) in found.items()}
