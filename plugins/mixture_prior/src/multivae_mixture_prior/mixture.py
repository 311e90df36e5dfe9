"""Mixtures as priors of the shared latent.

    p(z) = sum_c pi_c p_c(z),   p(c | z) = pi_c p_c(z) / p(z)

A model that asks for KL(q || p) gets it from its samples, log q(z) - log p(z): the
responsibilities p(c | z) are then exact, and the term of the clusters needs one logsumexp (Jiang
et al. 2017 write it as an expectation over p(c | z), which is the same number). With any other
g(c) in the place of p(c | z),

    sum_c g(c) [ log q(z) - log p_c(z) + log g(c) - log pi_c ]

is larger in expectation: an upper bound on KL(q || p), and with it a bound on log p(x).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import config, non_negative, one_of, positive
from multivae_core.distributions import FAMILIES, Distribution, Laplace, Mixture, Normal, expert
from multivae_core.errors import ConfigError, DataError
from multivae_core.noise import NoiseSource
from multivae_core.priors import Prior
from multivae_mixture_prior._kmeans import fit_gaussians, k_means

if TYPE_CHECKING:
    from multivae_core.model_networks import MultimodalNetworks

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
            not depend on the sample give (Falck et al. 2021). ``vade``: the responsibilities at
            the sample with KL(q || p_c) in closed form, as in Jiang et al. 2017.
        temperature: Responsibilities of a divergence are in proportion to p(c | z) to the power
            of 1/T: above 1 they are flatter, so that sharp posteriors still move components that
            they do not belong to. The divergence is then larger, and a bound.
        warm_up: Whether every component is N(0, I), or the standard Laplace, until
            `GaussianMixture.start_from` is called: train, start from embeddings, train on.
            Without that clusters can collapse early.
    """

    n_components: int = attrs.field(default=10, validator=positive)
    family: str = attrs.field(default="normal", validator=one_of(*FAMILIES))
    learn_weights: bool = True
    learn_scales: bool = True
    min_scale: float = attrs.field(default=0.01, validator=non_negative)
    spread: float = attrs.field(default=1.0, validator=non_negative)
    divergence: str = attrs.field(default="sampled", validator=one_of("sampled", "bound", "vade"))
    temperature: float = attrs.field(default=1.0, validator=positive)
    warm_up: bool = False


class GaussianMixture(MixturePrior):
    """A mixture with learned means; components that are not `active` have no weight."""

    active: Tensor
    started: Tensor

    def __init__(self, config: GaussianMixtureConfig, latent_dim: int) -> None:
        super().__init__(config, latent_dim)
        count, spread = config.n_components, config.spread
        self.logits = nn.Parameter(torch.zeros(count), requires_grad=config.learn_weights)
        self.means = nn.Parameter(torch.empty(count, latent_dim).uniform_(-spread, spread))
        self.raw_scales = nn.Parameter(
            torch.zeros(count, latent_dim), requires_grad=config.learn_scales
        )
        self.register_buffer("active", torch.ones(count, dtype=torch.bool))
        self.register_buffer("started", torch.tensor(not config.warm_up))

    def bind(self, model: MultimodalNetworks) -> None:
        """Refuse options without effect.

        Raises:
            ConfigError: The loss takes log p(z) itself, and ``divergence`` or ``temperature``
                is given.
        """
        own = self.config.divergence, self.config.temperature
        if model.takes_prior_density and own != ("sampled", 1.0):
            rule = "this model's loss has log p(z) itself; leave divergence and temperature out"
            raise ConfigError(rule, "prior")

    def parts(self) -> tuple[Normal | Laplace, Tensor]:
        """See `MixturePrior.parts`."""
        return self.components(), self.log_weights().exp()

    def components(self) -> Normal | Laplace:
        """All components, active or not, over ``(C, D)``."""
        own = expert(self.means, self.raw_scales, self.config.family)
        least = self.config.min_scale
        if self.config.warm_up and not bool(self.started):
            zero = 0.0 * (self.means + self.raw_scales)  # their gradients are 0, and there
            return Laplace(zero, zero + 1.0) if isinstance(own, Laplace) else Normal(zero, zero)
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
        if self.config.divergence != "bound" or (each := self._each_kl(posterior)) is None:
            return None
        return self._expected(each, self.log_weights() - each)

    def divergence(self, posterior: Distribution, value: Tensor) -> Tensor:
        """See `Prior.divergence`, and the options ``divergence`` and ``temperature``."""
        kind = self.config.divergence, self.config.temperature == 1.0
        if kind[0] == "bound" or kind == ("sampled", True):
            return super().divergence(posterior, value)
        log_p = self.component_log_prob(value)
        each = self._each_kl(posterior) if kind[0] == "vade" else None
        if each is None:
            each = posterior.log_prob(value)[..., None] - log_p
        return self._expected(each, self.log_weights() + log_p)

    def _each_kl(self, posterior: Distribution) -> Tensor | None:
        """KL(q || p_c) of every component, ``(*batch, C)``; None for other families."""
        own = self.components()
        if isinstance(posterior, Normal) and isinstance(own, Normal):
            q = Normal(posterior.mean[..., None, :], posterior.log_variance[..., None, :])
            return q.kl(own)
        if isinstance(posterior, Laplace) and isinstance(own, Laplace):
            return Laplace(posterior.mean[..., None, :], posterior.scale[..., None, :]).kl(own)
        return None

    def _expected(self, each: Tensor, score: Tensor) -> Tensor:
        """The divergence, from what each component costs and log-responsibilities, tempered."""
        log_g = (score / self.config.temperature).log_softmax(dim=-1)
        # what is not active has g = 0, and log g - log pi is not a number there
        cost = torch.where(self.active, each + log_g - self.log_weights(), 0.0)
        total: Tensor = (log_g.exp() * cost).sum(dim=-1)
        return total

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
    def start_from(self, values: Tensor, seed: int = 0, em_rounds: int = 0) -> None:
        """Put the means at the centres that k-means finds, and learned weights at their shares.

        It ends a ``warm_up``. Means that were drawn at random lie far from the latents when D is
        large, and a few of them take all.

        Args:
            values: Latents, ``(N, D)``, such as `MultimodalVAE.embed` returns.
            seed: Of the start of k-means.
            em_rounds: Rounds of expectation maximisation from there, for scales too; Gaussians.

        Raises:
            DataError: Fewer rows than components, not ``(N, D)``, or not finite; ``em_rounds``
                that are no count, or for another family.
        """
        own, count = self.config, self.config.n_components
        if values.ndim != 2 or values.shape[1] != self.latent_dim or len(values) < count:
            raise DataError(
                f"start_from: latents must be (N, {self.latent_dim}) with N >= {count}, got"
                f" {tuple(values.shape)}; pass model.embed(data) of more rows"
            )
        if not bool(values.isfinite().all()):
            raise DataError("start_from: a latent is not finite; leave such rows out")
        if not isinstance(em_rounds, int) or em_rounds < 0:
            raise DataError(f"start_from: em_rounds must be 0, 1, 2, ...; got {em_rounds!r}")
        if em_rounds and own.family != "normal":
            raise DataError(f"start_from: em_rounds needs family='normal', not {own.family!r}")
        centres, shares = k_means(values, count, seed)
        if em_rounds:
            fixed = None if own.learn_scales else cast(Normal, self.components()).variance
            centres, variances, shares = fit_gaussians(
                values, centres, shares, em_rounds, own.min_scale, fixed
            )
            if own.learn_scales:
                self.raw_scales.copy_((variances - own.min_scale**2).clamp_min(1e-12).log())
        self.means.copy_(centres)
        if own.learn_weights:
            self.logits.copy_(shares.log())
        self.active.fill_(True)
        self.started.fill_(True)
