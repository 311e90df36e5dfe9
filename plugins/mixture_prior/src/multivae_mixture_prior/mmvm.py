"""MMVM: unimodal VAEs in one space, each with the mixture of all posteriors as its prior.

With A what a row has, n = |A|, and the data-dependent prior of every z_m, m in A,

    h(z | x_A) = 1/n sum_{j in A} q_j(z | x_j)
    L = sum_{m in A} E_{q_m} log p(x_m | z_m) - beta R
    R = sum_{m in A} [ alpha KL(q_m || p) + (1 - alpha) KL(q_m || h) ]           "mixture"
    R = sum_{m in A} [ alpha KL(q_m || p) + (1 - alpha)/n sum_{j in A} KL(q_m || q_j) ]  "pairwise"

(Sutter et al. 2024). sum_m KL(q_m || h) is n times the Jensen-Shannon divergence of the
posteriors, n log n at most. The authors' code, and so our default, has the second form: an upper
bound by convexity, in closed form, which grows with the squared distance of the means and pulls
harder. A modality that is missing is decoded from a draw of h. h is made of data: with alpha = 0
there is no prior to generate from, and no joint likelihood for any alpha.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from multivae_core import estimation
from multivae_core.config import config, in_range, non_negative, one_of, positive
from multivae_core.data import Batch, IncompleteDataset
from multivae_core.distributions import Distribution, Normal
from multivae_core.errors import DataError
from multivae_core.fusion import power_product
from multivae_core.importance import uniform_mixture
from multivae_core.likelihoods import Likelihood
from multivae_core.losses import LossOutput, Term
from multivae_core.model import MultimodalVAE
from multivae_core.model_config import ModelConfig
from multivae_core.noise import RowNoise, Step
from multivae_core.posteriors import LatentName, LatentPrior, Latents
from multivae_core.priors import OrPrior, kl_to_prior
from multivae_mixture_prior._alpha import SHAPES, annealed
from multivae_mixture_prior._views import ViewPosterior, ViewPrior, own

__all__ = ["MMVM", "MMVMConfig"]


@config
class MMVMConfig(ModelConfig):
    """Options of MMVM beside those of every model.

    Args:
        prior_kl: Divergence from the mixture of the posteriors: ``pairwise``, its upper bound in
            closed form, or ``mixture``, from samples.
        n_samples: Samples of every z_m in a step.
        alpha: Share of the prior p in the regulariser, from ``alpha_steps`` on and outside
            training. 0: MMVM; 1: independent VAEs, a control; 1 / (M + 1): p is one component.
        init_alpha: Its value at the first step, where there are steps.
        alpha_steps: Optimisation steps from ``init_alpha`` to ``alpha``.
        alpha_shape: ``linear``, ``cosine`` or ``exp``.
        alpha_alone: The least share in rows of one modality. With 0 and alpha = 0 nothing
            regularises such a row: its posterior shrinks to a point and can leave the space
            that the others share.
        missing_norm: ``available``: a row's loss is the sum over what it has. ``total``: times
            M / n, so that every row that has something weighs as much as a complete one.
        encode_with: What stands for all that is seen: the ``mixture`` h of the posteriors, whose
            mean is the mean of their means, or their ``product``.
        log_variance_limit: Log-variances are kept between minus this and this: pairwise
            divergences explode where posteriors are sharp and far apart, and with alpha = 0
            nothing else sets the scale of the latents.
    """

    prior_kl: str = attrs.field(default="pairwise", validator=one_of("pairwise", "mixture"))
    n_samples: int = attrs.field(default=1, validator=positive)
    alpha: float = attrs.field(default=0.0, validator=in_range(0.0, 1.0))
    init_alpha: float = attrs.field(default=1.0, validator=in_range(0.0, 1.0))
    alpha_steps: int = attrs.field(default=0, validator=non_negative)
    alpha_shape: str = attrs.field(default="linear", validator=one_of(*SHAPES))
    alpha_alone: float = attrs.field(default=0.5, validator=in_range(0.0, 1.0))
    missing_norm: str = attrs.field(default="available", validator=one_of("available", "total"))
    encode_with: str = attrs.field(default="mixture", validator=one_of("mixture", "product"))
    log_variance_limit: float = attrs.field(default=10.0, validator=positive)


class MMVM(MultimodalVAE):
    """Unimodal VAEs with the mixture of their posteriors as prior (Sutter et al. 2024)."""

    config: MMVMConfig

    lacks: Mapping[str, str] = {
        "joint_likelihood": "its prior is made of the posteriors of the row at hand",
        "conditional_likelihood": "it has no joint likelihood; see `predictive_log_likelihood`",
        "loss_is_bound": "its prior is made of the posteriors of the row at hand",
    }

    def __init__(self, config: MMVMConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        if config.alpha == 0.0:
            reason = (
                "with alpha=0 no prior was trained; train with alpha above 0, or encode data and"
                " decode draws of a density that is fitted to their latents"
            )
            self.lacks = {**self.lacks, "generate": reason}

    @property
    def latent_sizes(self) -> dict[LatentName, int]:
        """One latent for all that is seen, and one of every modality."""
        size = self.config.latent_dim
        return dict.fromkeys(["shared", *map(own, self.modalities)], size)

    def posterior(self, batch: Batch) -> ViewPosterior:
        """Own posteriors of what is seen; the mixture or product of these for the rest."""
        experts = self._experts(batch)
        views = {name: experts[m] for m, name in enumerate(self.modalities)}
        seen = {name: batch.column(name) for name in self.modalities}
        return ViewPosterior(self._together(experts, batch), views, seen)

    def prior(self, batch: Batch) -> LatentPrior:
        """One draw of p for all modalities; what generates if alpha is above 0."""
        return ViewPrior(self.shared_prior, self.modalities)

    def decode_one(
        self, name: str, latents: Latents, batch: Batch, rows: Tensor | None = None
    ) -> Likelihood:
        """Decode the modality's own latent; the shared one where that is all that is given."""
        likelihood: Likelihood = self.decoders[name](latents.get(own(name), latents["shared"]))
        return likelihood

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """Reconstructions of every modality from its own latent, and the regulariser."""
        experts = self._experts(batch)
        drawn, scores = [], []
        for m, name in enumerate(self.modalities):
            drawn.append(experts[m].sample(self.config.n_samples, step.noise, own(name)))
            scores.append(self.weighted_score(name, {"shared": drawn[m]}, batch, step))
        score = torch.stack(scores).mean(dim=1).sum(dim=0)
        z = torch.stack(drawn, dim=1)
        to_prior, to_others = self._divergences(experts, z, batch)
        alpha, alone = self._alpha(batch, step)
        kl = alpha * to_prior + (1.0 - alpha) * to_others
        factor = self._factor(batch)
        return LossOutput(
            terms={
                "reconstruction": Term(-factor * score),
                "kl": Term(self.beta(step) * factor * kl),
            },
            metrics={
                "kl:prior": to_prior.detach(),
                "kl:mixture": to_others.detach(),
                "alone": alone.to(self.dtype),
            },
        )

    def predictive_log_likelihood(
        self,
        data: IncompleteDataset | Batch,
        given: tuple[str, ...],
        targets: tuple[str, ...],
        n_samples: int = 1000,
        seed: int = 0,
    ) -> estimation.Estimate:
        """Estimate log E_{z ~ q(z | x_given)} p(x_targets | z), nats per row.

        It scores what the model predicts; it is no conditional of a joint distribution, and
        values for different ``given`` need not agree with each other. Where a row has nothing
        of ``given``, z is drawn from p.

        Args:
            data: N rows; of targets and given, what is observed in a row counts.
            given: Modalities that are encoded.
            targets: Modalities that are scored, none of which is given.
            n_samples: Samples of z per row.
            seed: Seed of the samples.

        Raises:
            DataError: A modality that is unknown, or both given and a target; no samples.
        """
        _check_split(self.modalities, given, targets)
        if n_samples < 1:
            raise DataError(f"n_samples must be at least 1, got {n_samples}")
        parts: list[Tensor] = []
        rows, seen = max(1, estimation.LATENT_ROWS // n_samples), data.restrict({*given, *targets})
        with estimation.evaluating(self):
            for batch in estimation.batches_of(self, seen, rows):
                noise = RowNoise(seed, batch.index, self.dtype)
                shared = self.posterior(batch.restrict(set(given))).draw(n_samples, noise)
                z: Latents = {"shared": shared.latents["shared"]}
                scores = [self.score(name, z, batch) for name in sorted(targets)]
                to_data = estimation.log_scale(self, batch.restrict(set(targets)))
                parts.append(torch.stack(scores).sum(dim=0) - to_data)
        return estimation.summarised(parts, n_samples)

    def _experts(self, batch: Batch) -> Normal:
        """Posterior of every modality, ``(M, B, D)``."""
        mean, log_variance = self.run_encoders(batch)["shared"].unbind(dim=2)
        limit = self.config.log_variance_limit
        return Normal(mean, log_variance.clamp(-limit, limit))

    def _together(self, experts: Normal, batch: Batch) -> Distribution:
        """What all that is seen says together; the prior where nothing is."""
        if self.config.encode_with == "mixture":
            q: Distribution = uniform_mixture(experts, batch.present)
        else:
            usable = batch.present | ~batch.something[:, None]
            q = power_product(experts, usable[None])[0]
        if bool(batch.something.all()):
            return q
        return OrPrior(q, self.shared_prior, batch.something)

    def _divergences(self, experts: Normal, z: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums over what is seen: from the prior, and from each other, each ``(B,)``."""
        present = batch.present.T
        to_prior = torch.stack([kl_to_prior(experts, self.shared_prior, drawn) for drawn in z])
        to_prior = to_prior.mean(dim=0)
        if self.config.prior_kl == "pairwise":
            pairs = experts[:, None].kl(experts)
            others = torch.where(present, pairs, 0.0).sum(dim=1)
            others = others / batch.present.sum(dim=1).clamp_min(1)
        else:
            h = uniform_mixture(experts, batch.present)
            each = [experts.log_prob(drawn) - h.log_prob(drawn) for drawn in z]
            others = torch.stack(each).mean(dim=0)
        to_prior = torch.where(present, to_prior, 0.0).sum(dim=0)
        return to_prior, torch.where(present, others, 0.0).sum(dim=0)

    def _alpha(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor]:
        """Share of the prior, ``(B,)``, and which rows have one modality alone."""
        given = self.config
        alpha = annealed(given.init_alpha, given.alpha, given.alpha_steps, given.alpha_shape, step)
        alone = batch.present.sum(dim=1) == 1
        usual = torch.full((batch.size,), alpha, dtype=self.dtype, device=self.device)
        return torch.where(alone, usual.clamp_min(given.alpha_alone), usual), alone

    def _factor(self, batch: Batch) -> Tensor:
        """What a row's loss is multiplied by, ``(B,)``."""
        seen = batch.present.sum(dim=1).to(self.dtype)
        if self.config.missing_norm == "available":
            return torch.ones_like(seen)
        return len(self.modalities) / seen.clamp_min(1.0)


def _check_split(
    modalities: tuple[str, ...], given: tuple[str, ...], targets: tuple[str, ...]
) -> None:
    wrong = [name for name in (*given, *targets) if name not in modalities]
    wrong += sorted({*given} & {*targets})
    if wrong or not targets:
        what = f"{wrong[0]!r} is unknown, or given and a target" if wrong else "no targets"
        raise DataError(
            f"predictive_log_likelihood: {what}; name some of {', '.join(modalities)} as targets,"
            " and others as given"
        )
