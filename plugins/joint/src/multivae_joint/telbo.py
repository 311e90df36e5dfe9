"""TELBO: a joint encoder, and one surrogate per modality with an ELBO of its own.

With A what a row has,

    J   = - E_{q(z | x_A)} sum_{m in A} lambda_m log p(x_m | z) + beta KL(q(z | x_A) || p)
    U_m = - E_{q_m(z | x_m)} gamma_m log p(x_m | z) + KL(q_m(z | x_m) || p)

(Vedantam et al. 2018, eq. 5 and 6). J trains the joint encoder and the decoders; every U_m trains
its surrogate alone, against decoders that stay as they are, and is a mean over the rows that have
m: rows with a single modality teach the surrogates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from multivae_core.config import config, each, non_negative, one_of, positive
from multivae_core.data import Batch
from multivae_core.distributions import Normal
from multivae_core.errors import ConfigError
from multivae_core.losses import LossOutput, Term
from multivae_core.noise import Step
from multivae_core.posteriors import FactorisedPosterior
from multivae_core.priors import kl_to_prior
from multivae_core.private_latents import check_names
from multivae_core.stages import Player, Stage
from multivae_joint._surrogate import SurrogateConfig, SurrogateVAE, frozen

__all__ = ["TELBO", "TELBOConfig"]


@config
class TELBOConfig(SurrogateConfig):
    """Options of TELBO beside those of every model with surrogates.

    Args:
        schedule: ``two_stage``: first J (stage ``joint``), then the sum of all U_m (stage
            ``surrogates``), with the joint encoder and the decoders frozen. ``stop_gradient``:
            everything at once, as in the authors' code; J has the same gradients.
        lambdas: Weights of the log-likelihoods in J; modalities left out have their own weight.
        gammas: Weights of the log-likelihoods in U_m; likewise.
        predict_both: Whether U_m also has the log-likelihoods of what else a row has.
        path_derivative: Whether the score is left out of the gradient of U_m (Roeder et al.
            2017), which has less variance where q_m is close to the posterior.
        row_normalise: Whether, with ``stop_gradient``, the terms of a row are divided by how
            many it has, as in the authors' code: every row then weighs the same.
        proposal_scale: Factor on the surrogates' standard deviation in importance sampling. They
            are usually narrower than the posterior; watch the effective sample size.
        decoder_l1: Modality -> weight of the sum of absolute weights, biases left out, of its
            decoder in J: sparse dependences of labels on latents. The authors' code has 5e-6 for
            the label decoder; it is part of the loss in training alone.
    """

    schedule: str = attrs.field(
        default="two_stage", validator=one_of("two_stage", "stop_gradient")
    )
    lambdas: dict[str, float] = attrs.field(factory=dict, validator=each(non_negative))
    gammas: dict[str, float] = attrs.field(factory=dict, validator=each(non_negative))
    predict_both: bool = False
    path_derivative: bool = False
    row_normalise: bool = False
    proposal_scale: float = attrs.field(default=1.2, validator=positive)
    decoder_l1: dict[str, float] = attrs.field(factory=dict, validator=each(non_negative))

    def __attrs_post_init__(self) -> None:
        check_names(self, "lambdas")
        check_names(self, "gammas")
        check_names(self, "decoder_l1")
        if self.row_normalise and self.schedule == "two_stage":
            raise ConfigError(
                "with two stages there are no terms to balance; choose schedule='stop_gradient'",
                "row_normalise",
            )


class TELBO(SurrogateVAE):
    """Triple ELBO (Vedantam, Fischer, Huang & Murphy 2018)."""

    config: TELBOConfig

    @property
    def takes_prior_density(self) -> bool:
        """See the option ``path_derivative``."""
        return self.config.path_derivative

    def proposal(self, batch: Batch) -> FactorisedPosterior:
        """The posterior, wider where surrogates give it."""
        if self.config.subset_encoder == "mask_aware":
            return self.posterior(batch)
        q = self.encoded(batch)
        widened = batch.something & ~batch.present.all(dim=1)
        wider = 2.0 * math.log(self.config.proposal_scale)
        log_variance = torch.where(widened[:, None], q.log_variance + wider, q.log_variance)
        widened_q = self.or_prior(Normal(q.mean, log_variance), batch)
        return FactorisedPosterior({"shared": widened_q})

    def stages(self) -> tuple[Stage, ...]:
        """The joint VAE, then its surrogates; or everything at once."""
        if self.config.schedule == "stop_gradient":
            return super().stages()
        joint = Player(
            name="joint",
            parameters=(self.joint_encoder, self.decoders, self.shared_prior),
            loss=self._joint_pieces,
        )
        surrogates = Player(
            name="surrogates", parameters=(self.encoders,), loss=self._surrogate_pieces
        )
        return (
            Stage(name="joint", players=(joint,)),
            Stage(name="surrogates", players=(surrogates,), start_from="best"),
        )

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """J and, with decoders that get no gradients, every U_m."""
        terms = self._joint_terms(batch, step) | self._surrogate_terms(batch, step)
        if not self.config.row_normalise:
            return LossOutput(terms=terms)
        share = 1.0 / (1 + batch.present.sum(dim=1)).to(self.dtype)
        return LossOutput(
            terms={
                name: Term(term.value * share, None if name.startswith("elbo:") else term.weight)
                if term.value.ndim
                else term
                for name, term in terms.items()
            }
        )

    def _joint_pieces(self, batch: Batch, step: Step) -> Iterator[LossOutput]:
        yield LossOutput(terms=self._joint_terms(batch, step))

    def _surrogate_pieces(self, batch: Batch, step: Step) -> Iterator[LossOutput]:
        yield LossOutput(terms=self._surrogate_terms(batch, step))

    def _joint_terms(self, batch: Batch, step: Step) -> dict[str, Term]:
        counted = self.trainable(batch)
        q = self.joint(self.shown(batch, step), counted)
        weights = self.likelihood_weights(step, self.config.lambdas)
        terms = self.elbo_terms(q, batch, step, weights, counted)
        return terms | self._penalty() if step.training and self.config.decoder_l1 else terms

    def _penalty(self) -> dict[str, Term]:
        """``decoder_l1`` as a term; it is the same whatever the rows."""
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        for name, weight in self.config.decoder_l1.items():
            for parameter in self.decoders[name].network.parameters():
                if parameter.ndim > 1:
                    total = total + weight * parameter.abs().sum()
        return {"decoder_l1": Term(total, torch.ones_like(total))}

    def _surrogate_terms(self, batch: Batch, step: Step) -> dict[str, Term]:
        experts = self.surrogates(batch, step)
        z = experts.sample_once(step.noise, "surrogates")
        weights = self.likelihood_weights(step, self.config.gammas)
        with frozen(self.decoders, self.shared_prior):
            kl = kl_to_prior(experts, self.shared_prior, z, self.config.path_derivative)
            terms = {}
            for m, name in enumerate(self.modalities):
                log_px = self._log_likelihood(name, z[m : m + 1], batch, weights)
                there = batch.column(name)
                value = torch.where(there, kl[m] - log_px, 0.0)
                terms[f"elbo:{name}"] = Term(value, there.to(z.dtype))
        return terms

    def _log_likelihood(
        self, name: str, z: Tensor, batch: Batch, weights: dict[str, float]
    ) -> Tensor:
        """What U_m reconstructs of every row, weighted, ``(B,)`` nats."""
        if not self.config.predict_both:
            return weights[name] * self.score(name, {"shared": z}, batch)[0]
        together = batch.restrict(batch.present & batch.column(name)[:, None])
        return self.weighted_sum(z, together, weights)[0]
