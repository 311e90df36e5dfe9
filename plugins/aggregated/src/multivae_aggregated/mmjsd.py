"""mmJSD: a mixture of experts held together by a Jensen-Shannon divergence with a dynamic prior.

With A what a row has, q_0 = N(0, I) as one more expert, and weights pi_k > 0 that are scaled to
sum to 1 over A and 0, or over A alone for the mixture,

    q(z | x_A) = sum_{m in A} pi_m q_m(z | x_m)                      the mixture that is decoded
    f(z | x_A) = q_0(z)^pi_0 prod_{m in A} q_m(z | x_m)^pi_m / Z     the geometric mean
    JSD = sum_{k in A and 0} pi_k KL(q_k || f)
    L = E_q sum_{m in A} log p(x_m | z, w_m)
        - beta [ beta_content JSD + beta_style sum_{m in A} beta_m KL(q(w_m | x_m) || N(0, I)) ]

(Sutter et al. 2020). L bounds a likelihood whose prior is f, which depends on the data; it is no
bound on log p(x_A), for which the prior is N(0, I) in everything that is estimated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import attrs
import torch
from torch import Tensor

from multivae_core.config import config, each, non_negative, one_of, positive
from multivae_core.data import Batch
from multivae_core.distributions import Distribution, Mixture, Normal
from multivae_core.errors import ConfigError
from multivae_core.fusion import ProductConfig, ProductFusion, power_product, with_prior_expert
from multivae_core.losses import LossOutput, Term
from multivae_core.noise import Step
from multivae_core.posteriors import FactorisedPosterior, Latents
from multivae_core.priors import StandardNormal
from multivae_core.private_latents import PrivateConfig, PrivateVAE, check_names, normal

__all__ = ["MMJSD", "MMJSDConfig"]

_OPTIONAL: Any = attrs.validators.optional(positive)


@config
class MMJSDConfig(PrivateConfig):
    """Options of mmJSD beside those of every model.

    Args:
        weights: Weights pi of single modalities, in any unit; those left out have 1.
        prior_weight: Weight of N(0, I) beside them.
        prior_component: Where N(0, I) is an expert: ``jsd_only``, in the divergence, as in the
            authors' first code; ``sampled``, in the mixture too, as in their later code, where
            that share of the rows is decoded from noise that knows nothing of them; ``none``.
        beta_content: Weight of the Jensen-Shannon divergence; multiplied by beta too.
        beta_style: Weight of the private divergences; multiplied by beta too.
        n_components_per_step: Draws per row and step of the expert that is decoded; None, or as
            many as there are: each is decoded, so that nothing is left to chance.
        aggregation: What several modalities are encoded with: the ``geometric`` mean f, their
            product without the prior (``poe``), or their ``mixture``; one alone has its expert.
    """

    weights: dict[str, float] = attrs.field(factory=dict, validator=each(positive))
    prior_weight: float = attrs.field(default=1.0, validator=positive)
    prior_component: str = attrs.field(
        default="jsd_only", validator=one_of("jsd_only", "sampled", "none")
    )
    beta_content: float = attrs.field(default=1.0, validator=non_negative)
    beta_style: float = attrs.field(default=1.0, validator=non_negative)
    n_components_per_step: int | None = attrs.field(default=1, validator=_OPTIONAL)
    aggregation: str = attrs.field(
        default="geometric", validator=one_of("geometric", "poe", "mixture")
    )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        check_names(self, "weights")


class MMJSD(PrivateVAE):
    """Multimodal VAE with a Jensen-Shannon divergence (Sutter et al. 2020)."""

    lacks: Mapping[str, str] = {
        "loss_is_bound": "its dynamic prior depends on the data that it is a prior of"
    }

    config: MMJSDConfig

    def __init__(self, config: MMJSDConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        if not isinstance(self.shared_prior, StandardNormal):
            raise ConfigError(
                "must be 'standard_normal', which is one of the experts of the divergence",
                "prior",
            )
        self.product = ProductFusion(ProductConfig(), len(self.modalities), config.latent_dim)

    def posterior(self, batch: Batch) -> FactorisedPosterior:
        """What a row is encoded with; see the option ``aggregation``."""
        encoded = self.run_encoders(batch)
        return self.with_private(self._aggregated(normal(encoded["shared"], 2), batch), encoded)

    def proposal(self, batch: Batch) -> FactorisedPosterior:
        """The mixture that is decoded in training."""
        encoded = self.run_encoders(batch)
        return self.with_private(self._mixture(normal(encoded["shared"], 2), batch), encoded)

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """Reconstruction, Jensen-Shannon divergence and private divergences."""
        encoded = self.run_encoders(batch)
        experts, private = normal(encoded["shared"], 2), self.private(encoded)
        components, share = self._drawn(self._mixture(experts, batch), step)
        latents: Latents = {"shared": components.sample_once(step.noise, "shared")}
        latents |= self.draw_private(private, len(share), step.noise)

        valid = None if bool((share > 0).all()) else share > 0
        log_px = (share * self.reconstruction(latents, batch, step, valid)).sum(dim=0)
        jsd, beta = self._divergence(experts, batch), self.beta(step)
        content = self.config.beta_content if step.training else 1.0
        terms = {"reconstruction": Term(-log_px), "jsd": Term(beta * content * jsd)}
        terms |= self.private_terms(private, step, self.config.beta_style * beta)
        return LossOutput(terms=terms, metrics={"jsd": jsd.detach()})

    def _aggregated(self, experts: Normal, batch: Batch) -> Distribution:
        if self.config.aggregation == "mixture":
            return Mixture(experts, self._weights(batch.present))
        if self.config.aggregation == "poe":
            return cast(Distribution, self.product(experts, batch.patterns))
        # the prior has no say where a single modality is encoded
        return self._geometric(experts, batch, batch.patterns.sum(dim=1) != 1)[0]

    def _divergence(self, experts: Normal, batch: Batch) -> Tensor:
        """The Jensen-Shannon divergence of every row, ``(B,)`` nats."""
        everywhere = torch.ones_like(batch.patterns[:, 0])
        dynamic, experts, weights = self._geometric(experts, batch, everywhere)
        weights = weights.T
        return torch.where(weights > 0, weights * experts.kl(dynamic), 0.0).sum(dim=0)

    def _geometric(
        self, experts: Normal, batch: Batch, prior: Tensor
    ) -> tuple[Normal, Normal, Tensor]:
        """The geometric mean, of which experts, and their weights ``(B, E)`` or ``(1, E)``.

        Args:
            experts: ``(M, B, D)``.
            batch: What is seen.
            prior: ``(B,)`` or ``(1,)`` bool, where N(0, I) takes part, if it does at all.
        """
        members = batch.patterns
        if self.config.prior_component != "none":
            experts = with_prior_expert(experts)
            members = torch.cat([members, prior[:, None]], dim=1)
        weights = self._weights(members)
        return power_product(experts, weights[None])[0], experts, weights

    def _mixture(self, experts: Normal, batch: Batch) -> Mixture:
        members = batch.present
        if self.config.prior_component == "sampled":
            experts = with_prior_expert(experts)
            members = torch.cat([members, torch.ones_like(members[:, :1])], dim=1)
        return Mixture(experts, self._weights(members))

    def _weights(self, members: Tensor) -> Tensor:
        """Weights pi over the members of every row, which sum to 1.

        Args:
            members: ``(B, M)`` bool, or ``(B, M + 1)`` with the prior. Where there is none all
                take part: experts of what is missing are N(0, I).
        """
        given = [self.config.weights.get(name, 1.0) for name in self.modalities]
        given = [*given, self.config.prior_weight][: members.shape[1]]
        pi = torch.tensor(given, dtype=self.dtype, device=self.device)
        own = torch.where(members | ~members.any(dim=1, keepdim=True), pi, 0.0)
        return own / own.sum(dim=1, keepdim=True)

    def _drawn(self, mixture: Mixture, step: Step) -> tuple[Normal, Tensor]:
        """Components to decode, ``(r, B, D)``, and their shares ``(r, B)``, which sum to 1."""
        components, weights = cast(Normal, mixture.components), mixture.weights
        draws = self.config.n_components_per_step
        if draws is None or draws >= weights.shape[1]:
            return components, weights.T
        chosen = step.noise.choice("component", weights, draws)
        return components.pick(chosen), torch.full_like(chosen, 1.0 / draws, dtype=self.dtype)
