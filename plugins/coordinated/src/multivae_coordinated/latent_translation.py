"""Latent translation: a bridge between the latents of unimodal VAEs.

Stage 1, ``base``: every modality has a VAE of its own,

    L_m = -E log p(x_m | u_m) + beta KL(q(u_m | x_m) || N(0, I))

Stage 2, ``bridge``: the VAEs are frozen. One VAE over their standardised latents, which is told
the modality on both sides, maps them into one space and back (Tian & Engel 2019):

    z ~ q(z | u_m, m),   v_m = g(z, m)
    L = sum_m [ mean_d (u_m - v_m)^2 + beta_prior KL(q(z | u_m, m) || N(0, I)) ]
        + beta_align SWD + beta_class cross-entropy + beta_pair sum_{m < n} |mu_m - mu_n|^2

SWD is the sliced Wasserstein distance between the codes of two modalities; it needs no pairs, and
alone cannot tell which class belongs to which. Modality m is translated into n by decoding
g(z, n).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from multivae_coordinated._bridge import Scaler, mlp, sliced_wasserstein
from multivae_core.config import config, non_negative, positive
from multivae_core.data import Batch
from multivae_core.distributions import Normal
from multivae_core.errors import ConfigError, DataError
from multivae_core.fusion import power_product
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
        beta_class: Weight of a linear classifier of the codes; 0: there is none.
        n_classes: Number of classes; labels below 0 mark rows without one.
        beta_pair: Weight of the squared distance between the codes of one row's modalities, the
            mean over its pairs; 0 is the paper, which has no pairs.
    """

    base_dim: int = attrs.field(default=32, validator=positive)
    bridge_layers: list[int] = attrs.field(factory=lambda: [256, 256, 256, 256])
    beta_prior: float = attrs.field(default=0.01, validator=non_negative)
    beta_align: float = attrs.field(default=1.0, validator=non_negative)
    n_projections: int = attrs.field(default=128, validator=positive)
    beta_class: float = attrs.field(default=0.0, validator=non_negative)
    n_classes: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(positive)
    )
    beta_pair: float = attrs.field(default=0.0, validator=non_negative)

    def __attrs_post_init__(self) -> None:
        if self.beta_class > 0 and self.n_classes is None:
            raise ConfigError("must be given for a classifier; or set beta_class=0", "n_classes")


class LatentTranslation(MultimodalVAE):
    """Unimodal VAEs and a bridge between their latents (Tian & Engel 2019)."""

    lacks: Mapping[str, str] = {
        "joint_likelihood": "it is put together from VAEs that were trained apart",
        "conditional_likelihood": "it is put together from VAEs that were trained apart",
        "loss_is_bound": "its bridge minimises distances between latents",
    }

    config: LatentTranslationConfig

    def __init__(self, config: LatentTranslationConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        count, size, hidden = len(self.modalities), config.base_dim, config.bridge_layers
        self.scaler = Scaler(count, size)
        self.bridge_encoder = mlp(size + count, hidden, 2 * config.latent_dim)
        self.bridge_decoder = mlp(config.latent_dim + count, hidden, size)
        if config.beta_class > 0:
            self.classifier = nn.Linear(config.latent_dim, int(config.n_classes or 0))
        if config.beta_align > 0:
            reason = "the sliced Wasserstein distance is taken between batches"
            self.lacks = {**self.lacks, "row_objective": reason}

    def encoder_latents(self, name: str) -> dict[LatentName, int]:
        """Every encoder gives the latent of its own VAE."""
        return {("base", name): self.config.base_dim}

    def decoder_size(self, name: str) -> int:
        """Every decoder reads the latent of its own VAE."""
        return int(self.config.base_dim)

    def posterior(self, batch: Batch) -> FactorisedPosterior:
        """The geometric mean of the codes of what is present; the prior where nothing is."""
        codes = self._codes(self._base(batch).mean)
        members = batch.present | ~batch.something[:, None]
        nothing = ~batch.something[:, None]
        zero = torch.zeros_like(codes.mean)
        codes = Normal(
            torch.where(nothing, zero, codes.mean), torch.where(nothing, zero, codes.log_variance)
        )
        shares = members.to(self.dtype) / members.sum(dim=1, keepdim=True)
        pool = power_product(codes, shares[None])[0]
        return FactorisedPosterior({"shared": self.or_prior(pool, batch)})

    def decode_one(
        self, name: str, latents: Latents, batch: Batch, rows: Tensor | None = None
    ) -> Likelihood:
        """Translate a code into one modality's latent, and decode that."""
        place = self.modalities.index(name)
        told = self._told(latents["shared"], place)
        likelihood: Likelihood = self.decoders[name](
            self.scaler.undo(self.bridge_decoder(told), place)
        )
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
                self.scaler.watch(base, batch.present)
        codes = self._codes(base)
        z = codes.sample_once(step.noise, "shared")
        terms, prior = {}, self.config.beta_prior if step.training else 1.0
        for m, name in enumerate(self.modalities):
            back = self.bridge_decoder(self._told(z[m], m))
            error = (self.scaler.apply_to(base[m], m) - back).square().mean(dim=1)
            own = batch.present[:, m].to(self.dtype)
            terms[f"bridge:{name}"] = Term(error + prior * codes[m].kl(), own)
        return LossOutput(terms=terms | self._alignments(codes, z, batch, step))

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

    def _codes(self, base: Tensor) -> Normal:
        """Posterior of the code given every modality's latent, ``(M, B, L)`` -> ``(M, B, D)``."""
        told = [self._told(self.scaler.apply_to(own, m), m) for m, own in enumerate(base)]
        mean, log_variance = self.bridge_encoder(torch.stack(told)).chunk(2, dim=-1)
        return Normal(mean, log_variance)

    def _told(self, value: Tensor, place: int) -> Tensor:
        """A value and, one-hot, the modality that it belongs to."""
        label = value.new_zeros(len(self.modalities))
        label[place] = 1.0
        return torch.cat([value, label.expand(*value.shape[:-1], -1)], dim=-1)

    def _alignments(self, codes: Normal, z: Tensor, batch: Batch, step: Step) -> dict[str, Term]:
        """What ties the codes of different modalities together; what weighs 0 is left out."""
        options, terms = self.config, {}
        if options.beta_align > 0:
            distance, rows = sliced_wasserstein(
                z, batch.present, options.n_projections, step.noise
            )
            terms["align"] = Term(options.beta_align * distance, rows)
        if options.beta_class > 0:
            terms["class"] = self._classes(z, batch)
        if options.beta_pair > 0:
            terms["pair"] = self._pairs(codes, batch)
        return terms

    def _classes(self, z: Tensor, batch: Batch) -> Term:
        """Cross-entropy of the classes given every code, mean over what a labelled row has."""
        if batch.labels is None:
            raise DataError("beta_class needs labels; give the data set labels, or set it to 0")
        known = batch.labels >= 0
        classes = int(self.config.n_classes or 0)
        if bool((batch.labels >= classes).any()):
            highest = int(batch.labels.max())
            raise DataError(f"a label is {highest}, n_classes is {classes}; raise n_classes")
        scores = self.classifier(z).log_softmax(dim=2)
        wanted = batch.labels.long().clamp_min(0).expand(len(z), -1)
        each = -scores.gather(2, wanted[..., None])[..., 0]
        own = batch.present.T
        value = torch.where(own, each, 0.0).sum(dim=0) / own.sum(dim=0).clamp_min(1)
        return Term(self.config.beta_class * value, (known & batch.something).to(value.dtype))

    def _pairs(self, codes: Normal, batch: Batch) -> Term:
        """Squared distance between the codes of a row's modalities, mean over its pairs."""
        pairs = torch.combinations(torch.arange(len(codes.mean), device=self.device))
        first, second = pairs.T
        apart = (codes.mean[first] - codes.mean[second]).square().sum(dim=2)
        both = batch.present.T[first] & batch.present.T[second]
        count = both.sum(dim=0)
        value = torch.where(both, apart, 0.0).sum(dim=0) / count.clamp_min(1)
        return Term(self.config.beta_pair * value, (count > 0).to(value.dtype))
