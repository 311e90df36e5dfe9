"""Autoencoders without noise that decode every modality from every code.

With z_m = e_m(x_m), A what a row has and n its size,

    L = 1/n^2 sum_{m, k in A} -log p(x_k | z_m)                     reconstruction
        + lambda_div mean_m Div(codes z_m, prior)                   divergence
        + alignment 1/n^2 sum_{m, k in A} |z_m - z_k|^2

Div compares samples, the codes of all rows that have modality m with draws of the prior; the mean
is over the modalities that the batch has. There is no density of z given x: no bound, and no
likelihood. A critic's score is no measure, since the critic moves too: outside training Div is
always the kernel's, so that validation losses can be compared. On several processes scores are
averaged over all rows, as on one; the kernel compares the rows of each process, and the mean over
processes counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from attrs.validators import deep_iterable, optional
from torch import Tensor, nn

from multivae_aggregated._divergences import (
    believed,
    doubted,
    gradient_penalty,
    mmd,
    per_point,
)
from multivae_aggregated._subsets import draw_some
from multivae_core.config import build, component, config, each, non_negative, positive
from multivae_core.data import Batch
from multivae_core.errors import ConfigError
from multivae_core.losses import LossOutput, Term
from multivae_core.model import MultimodalVAE
from multivae_core.model_config import ModelConfig
from multivae_core.networks.heads import ModalityEncoder
from multivae_core.noise import Step
from multivae_core.posteriors import PointPosterior
from multivae_core.stages import Player, Stage

__all__ = ["CrossAutoencoder", "CrossConfig"]

_NO_DENSITY = (
    "its encoders give points, so that there is no density of latents given data; compare"
    " reconstructions, or choose a model with a likelihood, such as 'mopoe'"
)


@config
class CrossConfig(ModelConfig):
    """Options of a cross autoencoder beside those of every model.

    Args:
        divergence: How codes are compared with the prior; the models say which there are.
        lambda_div: Weight of the divergence, in validation too; times beta in training. None: 10,
            or 1 for ``gan``, ``gan-gp`` and ``wgan-gp``, where encoders and critic swing with 10.
        kernel_scales: Widths of the kernels of ``mmd``, in units of the mean squared distance
            between draws of N(0, I).
        alignment: Weight of the squared distances between a row's codes; 0: none.
        source: The modality that a row is encoded with where the row has it; otherwise, or with
            None, the code is the mean over what is seen, whose spread is below the prior's.
        n_sources: Codes per row that are decoded in a training step, drawn without replacement;
            None: all. An unbiased estimate for many modalities.
        critic: Network that scores latents; any that can be a decoder of one number. Its
            dropout does not touch the score itself.
        n_critic: Steps of the critic for one of the autoencoder, which moves in one of so many
            steps of training; 5 is usual for wgan.
        critic_optimiser: Options of the critic's optimiser that differ from the trainer's, for
            example ``{"lr": 1e-4}``.
        penalty: Weight of the gradient penalty, for divergences that end in ``-gp``; these need
            second derivatives, which compiled networks do not have.
    """

    divergence: str
    lambda_div: float | None = attrs.field(default=None, validator=optional(non_negative))
    kernel_scales: list[float] = attrs.field(
        factory=lambda: [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0], validator=deep_iterable(positive)
    )
    alignment: float = attrs.field(default=0.0, validator=non_negative)
    source: str | None = None
    n_sources: int | None = attrs.field(default=None, validator=optional(positive))
    critic: Any = component("decoders", default={"type": "mlp", "hidden": [64, 64]})
    n_critic: int = attrs.field(default=1, validator=positive)
    critic_optimiser: dict[str, float] = attrs.field(factory=dict, validator=each(non_negative))
    penalty: float = attrs.field(default=10.0, validator=positive)

    def __attrs_post_init__(self) -> None:
        if self.source is not None and self.source not in self.modalities:
            known = ", ".join(self.modalities)
            raise ConfigError(f"unknown modality {self.source!r}; there is {known}", "source")
        if not self.kernel_scales:
            raise ConfigError("must have at least one entry, got []", "kernel_scales")


class CrossAutoencoder(MultimodalVAE):
    """What mWAE and mAAE share: codes, reconstruction, both divergences and both players."""

    config: CrossConfig
    critic: Any
    lacks: Mapping[str, str] = {
        "joint_likelihood": _NO_DENSITY,
        "conditional_likelihood": _NO_DENSITY,
        "posterior_density": _NO_DENSITY,
        "loss_is_bound": "its divergence is not that of a variational bound",
        "row_objective": "its divergence compares all codes of a batch with the prior",
    }

    def __init__(self, config: CrossConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        if any(p.requires_grad for p in self.shared_prior.parameters()):
            raise ConfigError(
                "the codes are moved to the prior, which must not be learned: use"
                " 'standard_normal', or set learn=False",
                "prior",
            )
        usual = 10.0 if config.divergence in ("mmd", "wgan") else 1.0
        self.lambda_div = usual if config.lambda_div is None else config.lambda_div
        self.kind = config.divergence.removesuffix("-gp")
        self.critic = None if config.divergence == "mmd" else self._build_critic()

    def build_encoder(self, name: str, custom: Mapping[str, nn.Module]) -> ModalityEncoder:
        """An encoder that gives a location and no scale."""
        trunk, counts = self.encoder_trunk(name, custom)
        return ModalityEncoder(trunk, self.encoder_latents(name), counts=counts, scale=False)

    def posterior(self, batch: Batch) -> PointPosterior:
        """The code of what is seen, see the option ``source``; the prior where nothing is."""
        codes = self.codes(batch)
        # codes of what is not there are 0
        code = codes.sum(dim=0) / batch.present.sum(dim=1, keepdim=True).clamp_min(1)
        if self.config.source is not None:
            own = codes[self.modalities.index(self.config.source)]
            code = torch.where(batch.column(self.config.source)[:, None], own, code)
        return PointPosterior({"shared": code}, batch.something, self.prior(batch))

    def codes(self, batch: Batch) -> Tensor:
        """Code of every modality, ``(M, B, D)``; zeros in rows without it."""
        return self.run_encoders(batch)["shared"][:, :, 0]

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """The autoencoder's objective: reconstruction, divergence, alignment."""
        codes = self.codes(batch)
        terms = {"reconstruction": Term(self._reconstruction(codes, batch, step))}
        if self.config.alignment:
            terms["alignment"] = Term(self.config.alignment * self._spread(codes, batch))
        weight = self.beta(step) * self.lambda_div
        if self.critic is None or not step.training:
            return LossOutput(terms=terms | self._by_kernel(codes, batch, step, weight))
        seen = batch.present.T
        values = weight * believed(self.kind, self._scores(codes, seen))
        return LossOutput(terms=terms | self._per_modality("divergence", values, seen))

    def critic_loss(self, batch: Batch, step: Step) -> Iterator[LossOutput]:
        """The critic's objective: draws of the prior against the mean over modalities."""
        with torch.no_grad():
            codes = self.codes(batch)
        seen = batch.present.T
        real = self.shared_prior.sample(1, batch.size, step.noise, "real").detach()
        # one call of the critic for draws and codes
        everyone = torch.cat([torch.ones_like(seen[:1]), seen])
        scores = self._scores(torch.cat([real, codes]), everyone)
        terms = {"real": Term(believed(self.kind, scores[0]))}
        terms |= self._per_modality("fake", doubted(self.kind, scores[1:]), seen)
        if self.config.divergence.endswith("-gp"):
            share = step.noise.uniform("share", tuple(seen.shape))[..., None]
            terms |= self._penalty(torch.lerp(codes, real, share), seen)
        return iter((LossOutput(terms=terms),))

    def stages(self) -> tuple[Stage, ...]:
        """One stage, with a critic of two players."""
        if self.critic is None:
            return super().stages()
        fit = Player(
            name="autoencoder",
            parameters=(self.encoders, self.decoders),
            loss=self.loss_pieces,
            every=self.config.n_critic,
        )
        critic = Player(
            name="critic",
            parameters=(self.critic,),
            loss=self.critic_loss,
            optimiser=dict(self.config.critic_optimiser),
            after_move=self.clip_critic,
        )
        return (Stage(name="train", players=(fit, critic)),)

    def clip_critic(self) -> None:
        """Called after every move of the critic; nothing by default."""

    def _build_critic(self) -> nn.Module:
        try:
            critic: nn.Module = build("decoders", self.config.critic, self.config.latent_dim, (1,))
        except ConfigError as error:
            raise error.under("critic") from error
        return critic

    def _reconstruction(self, codes: Tensor, batch: Batch, step: Step) -> Tensor:
        most, sources = self.config.n_sources, batch.present
        if most is not None and step.training:
            sources = draw_some(most, batch.present, step.noise)
        valid = None if bool(sources.all()) else sources.T
        scores = self.reconstruction({"shared": codes}, batch, step, valid)
        pairs = sources.sum(dim=1) * batch.present.sum(dim=1)
        return -scores.sum(dim=0) / pairs.clamp_min(1)

    def _spread(self, codes: Tensor, batch: Batch) -> Tensor:
        """Mean squared distance over a row's pairs of codes: twice that to their mean."""
        counts = batch.present.sum(dim=1).clamp_min(1)
        away = (codes - codes.sum(dim=0) / counts[:, None]).square().sum(dim=2)
        return 2.0 * torch.where(batch.present.T, away, 0.0).sum(dim=0) / counts

    def _by_kernel(
        self, codes: Tensor, batch: Batch, step: Step, weight: float
    ) -> dict[str, Term]:
        """One term per modality that two rows or more have; together the mean over them."""
        draws = self.shared_prior.sample(len(codes), batch.size, step.noise, "real")
        values, counts, scales = [], [], self.config.kernel_scales
        for m, name in enumerate(self.modalities):
            rows, both = batch.rows(name), torch.stack([codes[m], draws[m]])
            own, prior = both if rows is None else both.index_select(1, rows)
            enough = len(own) > 1
            values.append(mmd(own, prior, scales) if enough else codes.new_zeros(()))
            counts.append(float(enough * len(own)))
        share = weight / max(1, sum(count > 0 for count in counts))
        return {
            f"divergence:{name}": Term(share * value, value.new_tensor(count))
            for name, value, count in zip(self.modalities, values, counts, strict=True)
        }

    def _scores(self, points: Tensor, valid: Tensor) -> Tensor:
        return per_point(points, valid, lambda found: self.critic(found)[:, 0])

    def _penalty(self, points: Tensor, seen: Tensor) -> dict[str, Term]:
        values = per_point(points, seen, lambda found: gradient_penalty(self.critic, found))
        return self._per_modality("penalty", self.config.penalty * values, seen)

    def _per_modality(self, what: str, values: Tensor, seen: Tensor) -> dict[str, Term]:
        """One term per modality, over the rows that have it; together the mean over them."""
        share = values / seen.any(dim=1).sum().clamp_min(1)
        weights = seen.to(values.dtype)
        return {
            f"{what}:{name}": Term(share[m], weights[m]) for m, name in enumerate(self.modalities)
        }
