"""Mixtures as priors of the shared latent.

    p(z) = sum_c pi_c p_c(z),   p(c | z) = pi_c p_c(z) / p(z)

A model that asks for KL(q || p) gets it from its samples, log q(z) - log p(z): the
responsibilities p(c | z) are then exact, and the term of the clusters needs one logsumexp (Jiang
et al. 2017 write it as an expectation over p(c | z), which is the same number).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import config, non_negative, one_of, positive
from multivae_core.distributions import FAMILIES, Distribution, Laplace, Mixture, Normal, expert
from multivae_core.errors import DataError
from multivae_core.noise import NoiseSource
from multivae_core.priors import Prior
from multivae_mixture_prior._kmeans import k_means

__all__ = ["GaussianMixture", "GaussianMixtureConfig", "MixturePrior"]


class MixturePrior(Prior):
    """A mixture of Gaussians or Laplaces that are the same in every row."""

    @abstractmethod
    def parts(self) -> tuple[Normal | Laplace, Tensor]:
        """The components over ``(C, D)``, and their weights ``(C,)``, which sum to 1."""

    def log_prob(self, value: Tensor) -> Tensor:
        """See `Prior.log_prob`."""
        parts, weights = self.parts()
        density = Mixture(parts[:, None], weights[None])
        return density.log_prob(value.reshape(-1, 1, self.latent_dim)).view(value.shape[:-1])

    def sample(self, n: int, rows: int, noise: NoiseSource, name: Hashable) -> Tensor:
        """See `Prior.sample`; the draws are independent, and weights get no gradient."""
        parts, weights = self.parts()
        edges = weights.detach().cumsum(dim=0)
        where = noise.uniform((name, "component"), (n, rows)).to(edges).contiguous()
        # rounding of the last edge must not lead past the last component that has a weight
        last = int(weights.detach().nonzero().amax())
        chosen = torch.searchsorted(edges, where, right=True).clamp_max(last)
        return parts[chosen].sample_once(noise, name)

    def mean(self) -> Tensor:
        """See `Prior.mean`."""
        parts, weights = self.parts()
        return weights @ parts.mean


@config
class GaussianMixtureConfig:
    """A mixture with components of its own.

    Args:
        n_components: Number C of components.
        family: Gaussian or Laplace, and the map from raw scales to scales. A scale that is not
            learned is that of a raw scale of 0: 1, but log 2 under ``normal_with_softplus``.
        learn_weights: Whether the weights are learned; if not, they are equal.
        learn_scales: Whether the scales are learned.
        min_scale: Added to learned Laplace scales, and its square to learned variances, so that
            no component shrinks to a point.
        spread: The means start uniformly between minus this and this.
        divergence: What a model gets that asks for KL(q || p). ``sampled``: nothing in closed
            form, so that it is estimated from samples. ``bound``: the upper bound -log sum_c
            pi_c exp(-KL(q || p_c)), free of noise; it is what the best responsibilities that do
            not depend on the sample give (Falck et al. 2021).
    """

    n_components: int = attrs.field(default=10, validator=positive)
    family: str = attrs.field(default="normal", validator=one_of(*FAMILIES))
    learn_weights: bool = True
    learn_scales: bool = True
    min_scale: float = attrs.field(default=0.01, validator=non_negative)
    spread: float = attrs.field(default=1.0, validator=non_negative)
    divergence: str = attrs.field(default="sampled", validator=one_of("sampled", "bound"))


class GaussianMixture(MixturePrior):
    """A mixture with learned means; components that are not `active` have no weight."""

    active: Tensor

    def __init__(self, config: GaussianMixtureConfig, latent_dim: int) -> None:
        super().__init__(config, latent_dim)
        count, spread = config.n_components, config.spread
        self.logits = nn.Parameter(torch.zeros(count), requires_grad=config.learn_weights)
        self.means = nn.Parameter(torch.empty(count, latent_dim).uniform_(-spread, spread))
        self.raw_scales = nn.Parameter(
            torch.zeros(count, latent_dim), requires_grad=config.learn_scales
        )
        self.register_buffer("active", torch.ones(count, dtype=torch.bool))

    def parts(self) -> tuple[Normal | Laplace, Tensor]:
        """See `MixturePrior.parts`."""
        return self.components(), self.log_weights().exp()

    def components(self) -> Normal | Laplace:
        """All components, active or not, over ``(C, D)``."""
        own = expert(self.means, self.raw_scales, self.config.family)
        least = self.config.min_scale
        if not self.config.learn_scales or least == 0.0:
            return own
        if isinstance(own, Laplace):
            return Laplace(own.mean, own.scale + least)
        floor = torch.full_like(own.log_variance, 2.0 * math.log(least))
        return Normal(own.mean, torch.logaddexp(own.log_variance, floor))

    def log_weights(self) -> Tensor:
        """Log-weights log pi, ``(C,)``; -inf for components that are not active."""
        return self.logits.masked_fill(~self.active, -math.inf).log_softmax(dim=0)

    def component_log_prob(self, value: Tensor) -> Tensor:
        """Log-density log p_c(z) of every component, ``(..., D)`` -> ``(..., C)``."""
        return self.components().log_prob(value[..., None, :])

    def responsibilities(self, value: Tensor) -> Tensor:
        """p(c | z), ``(..., D)`` -> ``(..., C)``; 0 for components that are not active."""
        return (self.log_weights() + self.component_log_prob(value)).softmax(dim=-1)

    def kl(self, posterior: Distribution) -> Tensor | None:
        """See the option ``divergence``; None for other families than the mixture's own."""
        if self.config.divergence == "sampled":
            return None
        own = self.components()
        if isinstance(posterior, Normal) and isinstance(own, Normal):
            q = Normal(posterior.mean[..., None, :], posterior.log_variance[..., None, :])
            each = q.kl(own)
        elif isinstance(posterior, Laplace) and isinstance(own, Laplace):
            each = Laplace(posterior.mean[..., None, :], posterior.scale[..., None, :]).kl(own)
        else:
            return None
        return -(self.log_weights() - each).logsumexp(dim=-1)

    def set_active(self, components: Tensor) -> None:
        """Give weight to some components alone, ``(C,)`` bool; the others keep their parameters.

        Raises:
            DataError: None would be left.
        """
        if not bool(components.any()):
            raise DataError("a mixture needs at least one active component; leave one")
        self.active.copy_(components)

    @contextmanager
    def only(self, component: int) -> Iterator[None]:
        """The mixture is one of its active components alone, for a while.

        Raises:
            DataError: There is no such component, or it is not active.
        """
        usable = self.active.nonzero().flatten().tolist()
        if component not in usable:
            raise DataError(
                f"component {component!r} is not among the active ones; choose one of {usable}"
            )
        before = self.active.clone()
        self.active.fill_(False)
        self.active[component] = True
        try:
            yield
        finally:
            self.active.copy_(before)

    @torch.no_grad()
    def start_from(self, values: Tensor, seed: int = 0) -> None:
        """Put the means at the centres that k-means finds, and learned weights at their shares.

        For a start after some epochs of training: means that were drawn at random lie far from
        the latents when D is large, and a few of them take all.

        Args:
            values: Latents, ``(N, D)``, such as `MultimodalVAE.embed` returns.
            seed: Of the start of k-means.

        Raises:
            DataError: Fewer rows than components, or not ``(N, D)``.
        """
        count = self.config.n_components
        if values.ndim != 2 or values.shape[1] != self.latent_dim or len(values) < count:
            raise DataError(
                f"start_from: latents must be (N, {self.latent_dim}) with N >= {count}, got"
                f" {tuple(values.shape)}; pass model.embed(data) of more rows"
            )
        centres, shares = k_means(values, count, seed)
        self.means.copy_(centres)
        if self.config.learn_weights:
            self.logits.copy_(shares.log())
        self.active.fill_(True)
