"""What MCVAE and VCCA share: bounds whose latent is read from one modality at a time.

With A what a row has, sources R, and weights mu that sum to 1 over the sources that it has,

    L = sum_{m in A and R} mu_m [ beta KL(q_m(z | x_m) || p)
          - sum_{n in A} ( E log p(x_n | z, w_n) - beta beta_n KL(q(w_n | x_n) || N(0, I)) ) ]

where z ~ q_m. For beta = 1 every bracket is a negative bound on log p(x_A).

Sparse variant: one dropout parameter per dimension, log alpha, shared by all sources, ties the
variance to the mean, q_m(z_d) = N(mu_d, alpha_d mu_d^2), under the improper prior p(z_d)
proportional to 1/|z_d|; its divergence depends on alpha alone (Molchanov et al. 2017, eq. 14).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from multivae_coordinated._source_parts import Silent, SourceMixture, dropout_entropy
from multivae_core.config import config, in_range, one_of, positive
from multivae_core.data import Batch
from multivae_core.distributions import Distribution, Normal
from multivae_core.errors import ConfigError
from multivae_core.losses import LossOutput, Term
from multivae_core.networks.heads import ModalityEncoder
from multivae_core.noise import Step
from multivae_core.posteriors import FactorisedPosterior, LatentName, Latents
from multivae_core.priors import OrPrior, StandardNormal, kl_to_prior
from multivae_core.private_latents import PrivateConfig, PrivateVAE, normal

__all__ = ["SourcesConfig", "SourcesVAE"]

_LEAST_MEAN = 1e-8
_NOTHING = -60.0  # log-variance of a dimension that was dropped


@config
class SourcesConfig(PrivateConfig):
    """Options of a model that reads its latent from one modality at a time.

    Args:
        encode_with: What several sources are encoded with: the ``mixture`` of their posteriors,
            whose point is their geometric mean; or that ``geometric`` mean itself. With the first
            `predict` is the mean of what the sources decode, the rule of MCVAE's authors. Each
            is trained to be the posterior of all: a product would count the evidence once more.
        n_sources: Sources that every row draws per step, without replacement, for many
            modalities; an unbiased estimate. None: all.
        sparse: Whether the prior is the log-uniform one that drops dimensions. It is improper:
            there are no likelihoods and nothing can be generated without a condition.
        threshold: Dimensions whose dropout probability alpha / (1 + alpha) reaches this are 0 in
            what is encoded; None: none are.
        private_dropout: In training, a private code of a row is replaced by a draw of its prior
            with this probability: decoders must do without what private codes could tell about
            what is shared. Its divergence counts whole, so that the bound holds.
        path_derivative: Whether the score is left out of the gradient of the divergence (Roeder
            et al. 2017), which has less variance where q_m is close to the posterior.
    """

    encode_with: str = attrs.field(default="mixture", validator=one_of("mixture", "geometric"))
    n_sources: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(positive)
    )
    sparse: bool = False
    threshold: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(in_range(0.0, 1.0))
    )
    private_dropout: float = attrs.field(default=0.0, validator=in_range(0.0, 1.0))
    path_derivative: bool = False

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.sparse and self.private_dims:
            raise ConfigError("has no private latents; leave private_dims out", "sparse")
        if self.sparse and self.path_derivative:
            raise ConfigError("does not sample its divergence; leave it out", "path_derivative")
        if self.threshold is not None and not self.sparse:
            raise ConfigError(
                "drops dimensions of the sparse variant; set sparse=True", "threshold"
            )
        if self.private_dropout and not self.private_dims:
            raise ConfigError("there are no private latents; set private_dims", "private_dropout")


class SourcesVAE(PrivateVAE):
    """A VAE whose shared latent is read from one modality at a time."""

    config: Any
    places: Tensor

    def __init__(self, config: Any, **networks: Any) -> None:
        super().__init__(config, **networks)
        places = [self.modalities.index(name) for name in self.sources]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        if config.sparse:
            self.log_alpha = nn.Parameter(0.01 * torch.randn(config.latent_dim))
            improper = "the sparse variant has an improper prior, log-uniform in every dimension"
            self.lacks: Mapping[str, str] = {
                **self.lacks,
                "joint_likelihood": improper,
                "conditional_likelihood": improper,
                "generate": improper + "; generate from a distribution fitted to embeddings",
                "loss_is_bound": improper,
            }

    @property
    def sources(self) -> tuple[str, ...]:
        """The modalities that the shared latent is read from, in the model's order."""
        return self.modalities

    @abstractmethod
    def mu(self, batch: Batch) -> Tensor:
        """Weights of the sources, ``(B, R)``; rows sum to 1, or are 0 without any source."""

    def encoder_latents(self, name: str) -> dict[LatentName, int]:
        """What is no source tells nothing about the shared latent."""
        latents = super().encoder_latents(name)
        return {
            key: size for key, size in latents.items() if key != "shared" or name in self.sources
        }

    def build_encoder(self, name: str, custom: Mapping[str, nn.Module]) -> nn.Module:
        """An encoder for what the modality tells about latents; none where it tells nothing."""
        latents = self.encoder_latents(name)
        if latents:
            trunk, counts = self.encoder_trunk(name, custom)
            return ModalityEncoder(trunk, latents, counts=counts, scale=not self.config.sparse)
        if name in custom:
            raise ConfigError(
                "the modality is no source and has no private latent; leave its encoder out",
                f"encoders.{name}",
            )
        return Silent()

    @property
    def takes_prior_density(self) -> bool:
        """See the option ``path_derivative``."""
        wanted: bool = self.config.path_derivative
        return wanted

    def posterior(self, batch: Batch) -> FactorisedPosterior:
        """The sources that are present, see ``encode_with``; the prior where none is."""
        encoded = self.run_encoders(batch)
        mixture = self._mixture(self._kept(self._experts(encoded)), batch)
        q = mixture if self.config.encode_with == "mixture" else mixture.pool
        return self.with_private(self._or_prior(q, batch), encoded)

    def proposal(self, batch: Batch) -> FactorisedPosterior:
        """The mixture of the sources that are present."""
        encoded = self.run_encoders(batch)
        mixture = self._mixture(self._experts(encoded), batch)
        return self.with_private(self._or_prior(mixture, batch), encoded)

    def dropout_probabilities(self) -> Tensor:
        """Probability that the sparse variant drops a dimension, ``(D,)``."""
        return self.log_alpha.detach().sigmoid()

    def bound(self, batch: Batch, step: Step, scale: Tensor | None = None) -> LossOutput:
        """The weighted bounds of the sources.

        Args:
            batch: What is seen.
            step: Where training stands.
            scale: Factor on the log-likelihoods, ``(B,)``; None: 1.
        """
        encoded = self.run_encoders(batch)
        mu = self._drawn(self.mu(batch), step).T
        experts, private = self._experts(encoded), self.private(encoded)
        z = experts.sample_once(step.noise, "shared")
        latents: Latents = {"shared": z}
        for name, own in self.draw_private(private, 1, step.noise).items():
            latents[name] = self._withheld(name, own, step).expand(len(z), -1, -1)
        valid = None if bool((mu > 0).all()) else mu > 0
        log_px = (mu * self.reconstruction(latents, batch, step, valid)).sum(dim=0)
        each = -dropout_entropy(self.log_alpha) if self.config.sparse else None
        if each is None:
            each = kl_to_prior(experts, self.shared_prior, z, self.config.path_derivative)
        kl, beta = torch.where(mu > 0, mu * each, 0.0).sum(dim=0), self.beta(step)
        counts = (mu > 0).any(dim=0).to(self.dtype)
        terms = {
            "reconstruction": Term(-(log_px if scale is None else scale * log_px), counts),
            "kl": Term(beta * kl, counts),
        }
        own_terms = self.private_terms(private, step, beta)
        terms |= {name: Term(term.value, counts) for name, term in own_terms.items()}
        return LossOutput(terms=terms, metrics={"kl": kl.detach()})

    def relative(self, weights: Mapping[str, float], batch: Batch) -> Tensor:
        """Weights of the sources that are present, scaled to sum to 1, ``(B, R)``.

        Args:
            weights: Modality -> weight in any unit; those left out have 1.
            batch: What is seen.
        """
        given = [weights.get(name, 1.0) for name in self.sources]
        present = batch.present.index_select(1, self.places)
        own = torch.where(present, torch.tensor(given, dtype=self.dtype, device=self.device), 0.0)
        total = own.sum(dim=1, keepdim=True)
        return own / torch.where(total > 0, total, 1.0)

    def _experts(self, encoded: Mapping[LatentName, Tensor]) -> Normal:
        """Posterior of the shared latent given every source alone, ``(R, B, D)``."""
        if not self.config.sparse:
            return normal(encoded["shared"], 2)
        mean = encoded["shared"][:, :, 0]
        return Normal(mean, self.log_alpha + 2.0 * (mean.abs() + _LEAST_MEAN).log())

    def _kept(self, experts: Normal) -> Normal:
        """The experts with the dimensions that are dropped at 0."""
        if self.config.threshold is None:
            return experts
        kept = self.dropout_probabilities() < self.config.threshold
        mean = torch.where(kept, experts.mean, 0.0)
        return Normal(mean, torch.where(kept, experts.log_variance, _NOTHING))

    def _or_prior(self, q: Distribution, batch: Batch) -> Distribution:
        """The posterior, out of one that is N(0, I) in rows without any source."""
        seen = (self.mu(batch) > 0).any(dim=1)
        if isinstance(self.shared_prior, StandardNormal) or bool(seen.all()):
            return q
        return OrPrior(q, self.shared_prior, seen)

    def _mixture(self, experts: Normal, batch: Batch) -> SourceMixture:
        """The mixture of what is present; N(0, I) in rows without any source."""
        mu = self.mu(batch)
        nothing = (mu == 0).all(dim=1, keepdim=True)
        if bool(nothing.any()):
            zero = torch.zeros_like(experts.mean)
            log_variance = torch.where(nothing, zero, experts.log_variance)
            experts = Normal(torch.where(nothing, zero, experts.mean), log_variance)
            mu = torch.where(nothing, 1.0 / mu.shape[1], mu)
        return SourceMixture(experts, mu)

    def _withheld(self, name: LatentName, own: Tensor, step: Step) -> Tensor:
        """Private codes ``(1, B, P)``, some replaced by draws of N(0, I)."""
        rate = self.config.private_dropout
        if not step.training or rate == 0.0:
            return own
        kept = step.noise.uniform(("keep", name), own.shape[:2]) >= rate
        return torch.where(kept[..., None], own, step.noise.normal(("prior", name), own.shape))

    def _drawn(self, mu: Tensor, step: Step) -> Tensor:
        """Weights of the sources that a step draws, ``(B, R)``."""
        most = self.config.n_sources
        if not step.training or most is None or most >= mu.shape[1]:
            return mu
        keys = step.noise.uniform("sources", (1, *mu.shape))[0]
        order = torch.where(mu > 0, keys, 2.0).argsort(dim=1).argsort(dim=1)
        available = (mu > 0).sum(dim=1, keepdim=True)
        share = available / available.clamp_max(most).clamp_min(1)
        return torch.where(order < most, mu * share, 0.0)
