"""MoPoE: a mixture of products of experts.

With A what a row has and the mixture over its non-empty subsets C, each with weight pi_C,

    q(z | x_A) = sum_C pi_C q_C(z | x_C),       q_C = product of the experts of C
    L = E_{C ~ pi} E_{z ~ q_C} sum_{m in A} log p(x_m | z, w_m)
        - beta [ sum_C pi_C KL(q_C || p) + beta_style sum_m beta_m KL(q(w_m | x_m) || N(0, I)) ]

The mixture's KL is at most the mean of the components' KLs, so that L is a bound on
log p(x_A) for beta = 1 (Sutter et al. 2021, eq. 7). The pi_C are equal, or the softmax of free
logits over the N_A subsets of A, held together by less lambda (log N_A - H(pi)), their divergence
from equal weights, which leaves L a bound (Mancisidor et al. 2025; there + H(pi), the same but for
a constant).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import attrs
import torch
from torch import Tensor, nn

from multivae_aggregated._subsets import draw_available
from multivae_core.config import component, config, non_negative, one_of, positive
from multivae_core.data import Batch
from multivae_core.distributions import Distribution, Mixture, Normal
from multivae_core.errors import ConfigError
from multivae_core.fusion import gaussian_fusion, subset_mixture
from multivae_core.losses import LossOutput, Term
from multivae_core.noise import Step
from multivae_core.posteriors import FactorisedPosterior, LatentName, Latents
from multivae_core.private_latents import PrivateConfig, PrivateVAE, normal
from multivae_core.subsets import PRIOR_EXPERT, fixed_subsets

__all__ = ["MoPoE", "MoPoEConfig"]

_MOST_SUBSETS = 1023
_OPTIONAL: Any = attrs.validators.optional(positive)


@config
class MoPoEConfig(PrivateConfig):
    """Options of MoPoE beside those of every model.

    Args:
        subsets: The subsets of the mixture, each a list of modalities; None: all non-empty ones,
            or of more than 10 modalities a fixed choice of 1023. A row that has none of them in
            full mixes what it has of each.
        beta_style: Weight of the private divergences; multiplied by beta too.
        prior_expert: In which products N(0, I) is one more expert: ``largest``, the product of
            all that a row has, so that a row with modalities A is treated as complete data on A;
            ``full_set``, the authors' code, which is the same on complete rows; ``always``,
            ``never``.
        fusion: How the experts of a subset are fused; a rule that gives one Gaussian.
        subset_weights: Weights pi of the subsets: ``uniform``, or ``learned``.
        entropy_weight: The factor lambda, in training alone. The authors' code for learned
            weights has 1000, which keeps them close to uniform.
        n_components_per_step: Components per row and step that are decoded, drawn without
            replacement, each with equal chances and weighted by pi, so that values and gradients,
            those of the weights too, are right on average; None: all, so that nothing is left to
            chance.
        n_subsets: Subsets that every row draws per step to stand for all of them, for many
            modalities; None: all subsets.
        subset_sampling: How they are drawn: ``uniform`` over the subsets, or ``size_uniform``,
            first a size, which changes the weights of the mixture.
        encode_with: What a row is encoded with: the ``product`` of all that is seen of it, as
            in the authors' code, or the ``mixture`` over its subsets.
        proposal: What likelihoods are estimated with: the ``mixture`` or the ``product``.
    """

    subsets: list[list[str]] | None = None
    beta_style: float = attrs.field(default=1.0, validator=non_negative)
    prior_expert: str = attrs.field(default="largest", validator=one_of(*PRIOR_EXPERT))
    fusion: Any = component("fusions", default="product")
    subset_weights: str = attrs.field(default="uniform", validator=one_of("uniform", "learned"))
    entropy_weight: float = attrs.field(default=1.0, validator=non_negative)
    n_components_per_step: int | None = attrs.field(default=1, validator=_OPTIONAL)
    n_subsets: int | None = attrs.field(default=None, validator=_OPTIONAL)
    subset_sampling: str = attrs.field(
        default="uniform", validator=one_of("uniform", "size_uniform")
    )
    encode_with: str = attrs.field(default="product", validator=one_of("product", "mixture"))
    proposal: str = attrs.field(default="mixture", validator=one_of("product", "mixture"))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.subset_weights == "learned" and self.n_subsets is not None:
            raise ConfigError(
                "draws subsets that have no weights of their own; leave it out, or set"
                " subset_weights='uniform'",
                "n_subsets",
            )
        if self.subsets is not None:
            _check_subsets(self.subsets, list(self.modalities))
            if self.n_subsets is not None:
                raise ConfigError(
                    "draws from all subsets, and 'subsets' names some; leave one of them out",
                    "n_subsets",
                )


class MoPoE(PrivateVAE):
    """Multimodal VAE with a mixture of products of experts (Sutter et al. 2021)."""

    config: MoPoEConfig
    subsets: Tensor

    def __init__(self, config: MoPoEConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        count = len(self.modalities)
        self.fusion = gaussian_fusion(config.fusion, count, config.latent_dim, "fusion")
        self.register_buffer("subsets", _subset_matrix(config.subsets, self.modalities))
        learned = config.subset_weights == "learned"
        self.subset_logits = nn.Parameter(torch.zeros(len(self.subsets))) if learned else None

    def posterior(self, batch: Batch) -> FactorisedPosterior:
        """What a row is encoded with; see the option ``encode_with``."""
        return self._posterior(batch, self.config.encode_with)

    def proposal(self, batch: Batch) -> FactorisedPosterior:
        """What likelihoods are estimated with; see the option ``proposal``."""
        return self._posterior(batch, self.config.proposal)

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """The negative bound in its terms: reconstruction and weighted divergences."""
        encoded = self.run_encoders(batch)
        mixture = self._mixture(encoded["shared"], batch, step)
        components = cast(Normal, mixture.components)
        chosen, share = self._chosen(mixture.weights, step)
        picked = components.pick(chosen)
        latents: Latents = {"shared": picked.sample_once(step.noise, "shared")}
        private = self.private(encoded)
        latents |= self.draw_private(private, len(chosen), step.noise)

        valid = None if bool((share > 0).all()) else share > 0
        log_px = (share * self.reconstruction(latents, batch, step, valid)).sum(dim=0)
        kl = self._shared_kl(mixture, picked, latents["shared"], share)
        beta = self.beta(step)
        terms = {"reconstruction": Term(-log_px), "kl": Term(beta * kl)}
        terms |= self.private_terms(private, step, self.config.beta_style * beta)
        if self.subset_logits is not None and step.training:
            entropy = self.config.entropy_weight * _lost_entropy(mixture.weights)
            terms["subset_entropy"] = Term(entropy)
        return LossOutput(terms=terms, metrics={"kl": kl.detach()})

    def _posterior(self, batch: Batch, kind: str) -> FactorisedPosterior:
        encoded = self.run_encoders(batch)
        q = self._joint(encoded, batch, kind)
        return self.with_private(self.or_prior(q, batch), encoded)

    def _joint(self, encoded: dict[LatentName, Tensor], batch: Batch, kind: str) -> Distribution:
        if kind == "mixture":
            return self._mixture(encoded["shared"], batch, None)
        everything = torch.ones_like(batch.present[:1])
        experts = normal(encoded["shared"], 2)
        one = subset_mixture(
            self.fusion, experts, batch.patterns, everything, self.config.prior_expert
        )
        return cast(Normal, one.components)[0]

    def _mixture(self, encoded: Tensor, batch: Batch, step: Step | None) -> Mixture:
        subsets = self.subsets
        if step is not None and step.training and self.config.n_subsets is not None:
            by_size = self.config.subset_sampling == "size_uniform"
            subsets = draw_available(
                self.config.n_subsets, batch.present, step.noise, by_size=by_size
            )
        present = batch.patterns if subsets.ndim == 2 else batch.present
        experts, rule = normal(encoded, 2), self.config.prior_expert
        return subset_mixture(self.fusion, experts, present, subsets, rule, self.subset_logits)

    def _chosen(self, weights: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Components to decode, ``(r, B)``, and their weights over the chance to be drawn."""
        keys = step.noise.uniform("component", (1, *weights.shape))[0]
        most = min(self.config.n_components_per_step or len(self.subsets), weights.shape[1])
        found = torch.where(weights > 0, keys, -1.0).topk(most, dim=1)
        usable = found.values >= 0
        count, drawn = (some.sum(dim=1, keepdim=True) for some in (weights > 0, usable))
        share = torch.where(usable, weights.gather(1, found.indices) * count / drawn, 0.0)
        return found.indices.T, share.T

    def _shared_kl(self, mixture: Mixture, picked: Normal, z: Tensor, share: Tensor) -> Tensor:
        """Mean over the components of KL(q_C || p), ``(B,)``; sampled where it has no form."""
        each = self.shared_prior.kl(mixture.components)
        if each is None:
            return (share * self.shared_prior.divergence(picked, z)).sum(dim=0)
        weights = mixture.weights.T
        return torch.where(weights > 0, weights * each, 0.0).sum(dim=0)


def _subset_matrix(subsets: Sequence[Sequence[str]] | None, modalities: Sequence[str]) -> Tensor:
    """The subsets of the mixture, ``(S, M)`` bool."""
    if subsets is None:
        return fixed_subsets(len(modalities), _MOST_SUBSETS)
    members = sorted([name in subset for name in modalities] for subset in subsets)
    return torch.tensor(members, dtype=torch.bool)


def _lost_entropy(weights: Tensor) -> Tensor:
    """KL of weights ``(B, S)`` from equal ones over what is not 0, nats ``(B,)``."""
    usable = weights > 0
    terms = torch.where(usable, weights, 1.0).log() * weights
    return usable.sum(dim=1).to(weights.dtype).log() + terms.sum(dim=1)


def _check_subsets(subsets: list[list[str]], modalities: list[str]) -> None:
    unknown = sorted({name for subset in subsets for name in subset} - set(modalities))
    if unknown:
        raise ConfigError(
            f"unknown modality {unknown[0]!r}; there is {', '.join(modalities)}", "subsets"
        )
    if not subsets or any(not subset for subset in subsets):
        raise ConfigError("must be a list of non-empty lists of modalities, or None", "subsets")
    if len({frozenset(subset) for subset in subsets}) < len(subsets):
        raise ConfigError("the same subset is listed twice; list each once", "subsets")
