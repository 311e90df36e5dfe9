"""Nexus: a latent per modality at the bottom, and a shared one on top that predicts them.

    p(x, z, u) = p(u) prod_m N(z_m; f_m(u), s_m^2 I) p(x_m | z_m)
    q(z_m | x_m), and q(u | z_S) = q(u | h) with h = mean over m in S of the messages e_m(z_m)

    bottom = sum_{m in A} [ -w_m log p(x_m | z_m) + beta_m KL(q(z_m | x_m) || N(0, I)) ]
    top    = sum_{m in A} -gamma_m log N(sg z_m; f_m(u), s_m^2 I) + beta_u KL(q(u | h) || p(u))

with A what a row has, sg a stopped gradient, at the messages too: the top never shapes the bottom
(Vasco et al. 2022). In training S is a random part of A in some rows, otherwise A: forced
perceptual dropout. The sum of both is no bound: the bottom level is trained against N(0, I), which
is not what the model above says about z_m. Likelihoods are those of p(x, z, u).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import config, each, in_range, non_negative
from multivae_core.data import Batch
from multivae_core.distributions import Normal
from multivae_core.likelihoods import Likelihood
from multivae_core.losses import LossOutput, Term
from multivae_core.model import MultimodalVAE
from multivae_core.noise import Step
from multivae_core.posteriors import LatentName, Latents
from multivae_core.priors import kl_to_prior
from multivae_core.private_latents import check_names
from multivae_core.schedules import Cyclical, Linear, schedule
from multivae_core.stages import Player, Stage
from multivae_hierarchical._options import choice, share_of_rows
from multivae_hierarchical._predictions import NexusPosterior, NexusPrior
from multivae_hierarchical._subsets import drop_some
from multivae_hierarchical._top import ROLES, TopConfig, TopLevel

__all__ = ["Nexus", "NexusConfig"]


@config
class NexusConfig(TopConfig):
    """Options of Nexus beside those of every model and those of its top level.

    ``latent_dim`` is the size of the top latent, ``beta`` and ``beta_schedule`` are about both
    levels, and ``modalities.<name>.weight`` is the weight w_m, which counts whatever else is set.

    Args:
        dropout_rate: Share of rows with several modalities that pass on the messages of a random
            part of them, its size and then its members uniform; in training alone. Rows with
            missing modalities take part.
        bottom_betas: Weight in training of single modalities' divergences.
        top_beta: Weight in training of the top divergence.
        top_schedule: Ramp of the top divergence; None: that of ``beta_schedule``.
        gammas: Weight in training of the prediction of single modalities' latents.
        pretrain: Modalities whose bottom level is trained first (stage ``pretrain``), by its own
            terms, and then frozen, as the authors do with sound; the others and the top follow
            (stage ``train``). Ramps count the steps of both stages.
        normalise: Bottom level and predictions in training: ``available_sum``: sums over what a
            row has, so that the top divergence weighs more in rows with little;
            ``mean_modality``: these times M over the number of modalities that a row has.
        decode_path: What modalities that are seen are decoded from: ``bottom``, their own
            latent, or ``top``, the prediction of it; others always from the prediction.
        sample_bottom: Whether a prediction is drawn from N(f_m(u), s_m^2 I) where it is decoded;
            otherwise it is f_m(u), as in the authors' code.
    """

    dropout_rate: float = attrs.field(default=0.2, validator=in_range(0.0, 1.0))
    bottom_betas: dict[str, float] = attrs.field(factory=dict, validator=each(non_negative))
    top_beta: float = attrs.field(default=1.0, validator=non_negative)
    top_schedule: Linear | Cyclical | None = schedule()
    gammas: dict[str, float] = attrs.field(factory=dict, validator=each(non_negative))
    pretrain: list[str] = attrs.field(factory=list)
    normalise: str = choice("available_sum", "mean_modality")
    decode_path: str = choice("bottom", "top")
    sample_bottom: bool = False

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        for option in ("bottom_betas", "gammas", "pretrain"):
            check_names(self, option)


class Nexus(MultimodalVAE):
    """Hierarchy of a latent per modality and a shared one (Vasco et al. 2022)."""

    config: NexusConfig
    roles = ROLES

    def __init__(
        self, config: NexusConfig, networks: Mapping[str, nn.Module] | None = None, **own: Any
    ) -> None:
        super().__init__(config, networks=networks, **own)
        self.top = TopLevel(config, self.dims, networks or {})
        if config.adapt_top_scale:
            reason = "adapt_top_scale takes a deviation from the rows of a batch"
            self.lacks = {**self.lacks, "row_objective": reason}

    @property
    def dims(self) -> dict[str, int]:
        """Size of every modality's latent."""
        own = self.config.modality_dims
        return {name: own.get(name, self.config.latent_dim) for name in self.modalities}

    @property
    def latent_sizes(self) -> dict[LatentName, int]:
        """``"shared"``, the top latent, and ``("bottom", name)`` for every modality."""
        bottom: dict[LatentName, int] = {("bottom", m): size for m, size in self.dims.items()}
        return {"shared": self.config.latent_dim, **bottom}

    def encoder_latents(self, name: str) -> dict[LatentName, int]:
        """The modality's own latent."""
        return {("bottom", name): self.dims[name]}

    def decoder_size(self, name: str) -> int:
        """Size of the modality's own latent."""
        return self.dims[name]

    def decode_one(
        self, name: str, latents: Latents, batch: Batch, rows: Tensor | None = None
    ) -> Likelihood:
        """See `MultimodalNetworks.decode_one`."""
        likelihood: Likelihood = self.decoders[name](latents["bottom", name])
        return likelihood

    def posterior(self, batch: Batch) -> NexusPosterior:
        """Both levels, with predictions for what a row does not have; see ``decode_path``."""
        own = self.config
        return self._posterior(batch, own.sample_bottom, own.decode_path == "top")

    def proposal(self, batch: Batch) -> NexusPosterior:
        """Both levels under the hierarchical model, whatever is decoded."""
        return self._posterior(batch, True, False)

    def prior(self, batch: Batch) -> NexusPrior:
        """The top latent, and the modalities' given it."""
        return NexusPrior(self.top, self.shared_prior, self.config.sample_bottom)

    def stages(self) -> tuple[Stage, ...]:
        """Everything at once; or the bottom levels of ``pretrain``, and then the rest."""
        first, rest = self._pretrained(True), self._pretrained(False)
        if not first:
            return super().stages()

        def bottom(batch: Batch, step: Step) -> Iterator[LossOutput]:
            shown = batch.restrict(set(first))
            q = self._bottom(shown)
            yield self._bottom_terms(q, _sampled(q, step), shown, step, first)

        def both(batch: Batch, step: Step) -> Iterator[LossOutput]:
            yield self._both(batch, step, rest)

        def coders(names: tuple[str, ...]) -> tuple[nn.Module, ...]:
            return tuple(part[name] for part in (self.encoders, self.decoders) for name in names)

        own = Player(name="bottom", parameters=coders(first), loss=bottom)
        others = (*coders(rest), self.top, self.shared_prior)
        return (
            Stage(name="pretrain", players=(own,)),
            Stage(
                name="train",
                players=(Player(name="model", parameters=others, loss=both),),
                start_from="best",
            ),
        )

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """Bottom and top in their terms."""
        return self._both(batch, step, self.modalities)

    def _both(self, batch: Batch, step: Step, trained: tuple[str, ...]) -> LossOutput:
        """The bottom terms of modalities that are trained, and the top of all."""
        bottom = self._bottom(batch)
        z = _sampled(bottom, step)
        below = LossOutput(terms={})
        if trained:
            below = self._bottom_terms(bottom, z, batch, step, trained)
        cut = {name: value.detach() for name, value in z.items()}
        heard = self._heard(batch.present, step) if step.training else batch.present
        q = self.top.posterior(cut, batch, heard)
        u = q.sample_once(step.noise, "shared")
        missed = self.top.missed(cut, u, batch, step.training)
        top_kl = torch.where(batch.something, kl_to_prior(q, self.shared_prior, u)[0], 0.0)
        gammas = self.config.gammas if step.training else {}
        share = share_of_rows(self.config, batch, step, top_kl)
        terms = {
            **{name: Term(share * term.value) for name, term in below.terms.items()},
            "top": Term(share * self._weighted(missed, gammas)),
            "kl_top": Term(self._top_beta(step) * top_kl),
        }
        metrics = {"top_kl": top_kl.detach(), **below.metrics}
        metrics |= {f"prediction_{name}": value.detach() for name, value in missed.items()}
        return LossOutput(terms=terms, metrics=metrics)

    def _bottom_terms(
        self,
        bottom: Mapping[str, Normal],
        z: Mapping[str, Tensor],
        batch: Batch,
        step: Step,
        trained: tuple[str, ...],
    ) -> LossOutput:
        """The terms of the VAEs of single modalities."""
        latents: Latents = {("bottom", name): value for name, value in z.items()}
        scores = {m: self.weighted_score(m, latents, batch, step)[0] for m in trained}
        kls = {name: bottom[name].kl() for name in trained}
        betas = self.config.bottom_betas if step.training else {}
        # before the top is trained, rows without any of these have nothing to teach
        rows, log_px = batch.something.to(self.dtype), self._weighted(scores, {})
        kl = self.beta(step) * self._weighted(kls, betas)
        terms = {"reconstruction": Term(-log_px, rows), "kl_bottom": Term(kl, rows)}
        metrics = {f"bottom_kl_{name}": kl.detach() for name, kl in kls.items()}
        return LossOutput(terms=terms, metrics=metrics)

    def _pretrained(self, wanted: bool) -> tuple[str, ...]:
        return tuple(m for m in self.modalities if (m in self.config.pretrain) == wanted)

    def _bottom(self, batch: Batch) -> dict[str, Normal]:
        """Posterior of every modality's latent; N(0, I) in rows without it."""
        encoded = self.run_encoders(batch)
        parts = {name: encoded["bottom", name] for name in self.modalities}
        return {name: Normal(part[:, 0], part[:, 1]) for name, part in parts.items()}

    def _posterior(self, batch: Batch, sampled: bool, from_top: bool) -> NexusPosterior:
        return NexusPosterior(
            self.top, self.shared_prior, self._bottom(batch), batch, sampled, from_top
        )

    def _heard(self, present: Tensor, step: Step) -> Tensor:
        """Whose messages are passed on, ``(B, M)``."""
        rate, noise = self.config.dropout_rate, step.noise
        return drop_some(present, rate, noise) if rate else present

    def _weighted(self, values: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        parts = [weights.get(name, 1.0) * value for name, value in values.items()]
        return torch.stack(parts).sum(dim=0)

    def _top_beta(self, step: Step) -> float:
        if not step.training:
            return 1.0
        ramp = self.config.top_schedule or self.config.beta_schedule
        return self.config.beta * self.config.top_beta * (1.0 if ramp is None else ramp(step))


def _sampled(bottom: Mapping[str, Normal], step: Step) -> dict[str, Tensor]:
    return {name: q.sample(1, step.noise, ("bottom", name)) for name, q in bottom.items()}
