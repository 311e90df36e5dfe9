"""Likelihoods of counts: Poisson, negative binomial, and the latter with extra zeros."""

from __future__ import annotations

import math
from collections.abc import Hashable

import attrs
import torch
from torch import Tensor

from multivae_core.config import positive
from multivae_core.likelihoods.base import (
    Likelihood,
    LikelihoodHead,
    PositiveParameter,
    below,
    number_or,
)
from multivae_core.likelihoods.checks import require_counts
from multivae_core.noise import NoiseSource
from multivae_core.special import (
    gamma_quantile,
    negative_binomial_quantile,
    poisson_quantile,
    softplus,
    stirling_error,
)

__all__ = [
    "NegativeBinomial",
    "NegativeBinomialConfig",
    "NegativeBinomialLikelihood",
    "Poisson",
    "PoissonConfig",
    "PoissonLikelihood",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedNegativeBinomialConfig",
    "ZeroInflatedNegativeBinomialLikelihood",
]

_LOG_2PI = math.log(2.0 * math.pi)


def _count_constant(x: Tensor, base: Tensor) -> Tensor:
    """Return x log x - x - log x! for counts, with ``base = max(x, 1)``.

    It is small, and depends on the data alone; densities are written relative to it so that
    counts in the thousands keep their digits in float32.
    """
    return torch.where(x > 0, -0.5 * (_LOG_2PI + torch.log(base)) - stirling_error(base), 0.0)


class PoissonLikelihood(Likelihood):
    """Poisson counts.

    Args:
        log_rate: ``(..., *shape)``, log of the mean.
        event_ndim: Number of axes of the modality.
    """

    whole_numbers = True
    __slots__ = ("log_rate",)

    def __init__(self, log_rate: Tensor, event_ndim: int) -> None:
        super().__init__(event_ndim)
        self.log_rate = log_rate

    def _terms(self, x: Tensor) -> Tensor:
        base = x.clamp(min=1.0)
        excess = x * (self.log_rate - torch.log(base)) - (torch.exp(self.log_rate) - x)
        return excess + _count_constant(x, base)

    @property
    def mean(self) -> Tensor:
        """See `Likelihood.mean`."""
        return torch.exp(self.log_rate)

    @property
    def variance(self) -> Tensor:
        """See `Likelihood.variance`."""
        return torch.exp(self.log_rate)

    @property
    def mode(self) -> Tensor:
        """See `Likelihood.mode`."""
        return torch.exp(self.log_rate).floor()

    def sample(self, noise: NoiseSource, name: Hashable) -> Tensor:
        """See `Likelihood.sample`."""
        u = noise.uniform(name, tuple(self.log_rate.shape))
        return poisson_quantile(u, torch.exp(self.log_rate)).to(self.log_rate)

    def quantile(self, p: float) -> Tensor:
        """See `Likelihood.quantile`."""
        return poisson_quantile(p, torch.exp(self.log_rate)).to(self.log_rate)


class NegativeBinomialLikelihood(Likelihood):
    """Negative binomial counts: variance = mean + dispersion * mean^2.

    Args:
        log_mean: ``(..., *shape)``, log of the mean.
        log_dispersion: Log of the dispersion, broadcasts to ``(..., *shape)``; 1 / dispersion is
            the size r ("inverse dispersion") of other texts. Towards 0 it becomes a Poisson.
        event_ndim: Number of axes of the modality.
    """

    whole_numbers = True
    __slots__ = ("log_dispersion", "log_mean")

    def __init__(self, log_mean: Tensor, log_dispersion: Tensor, event_ndim: int) -> None:
        super().__init__(event_ndim)
        self.log_mean = log_mean
        self.log_dispersion = log_dispersion

    def _terms(self, x: Tensor) -> Tensor:
        # Gamma functions are split into their Stirling parts, which are combined by hand, and
        # small rests: neither large counts nor a tiny dispersion cost digits
        size = torch.exp(-self.log_dispersion)
        total = x + size
        base = x.clamp(min=1.0)
        growth = torch.log1p(x / size)
        excess = x * (self.log_mean - torch.log(base)) - total * (
            softplus(self.log_mean + self.log_dispersion) - growth
        )
        rest = stirling_error(total) - stirling_error(size) - 0.5 * growth
        return excess + (rest + _count_constant(x, base))

    def zero_log_prob(self) -> Tensor:
        """Return log p(0), ``(..., *shape)``."""
        return -torch.exp(-self.log_dispersion) * softplus(self.log_mean + self.log_dispersion)

    @property
    def mean(self) -> Tensor:
        """See `Likelihood.mean`."""
        return torch.exp(self.log_mean)

    @property
    def variance(self) -> Tensor:
        """See `Likelihood.variance`."""
        return torch.exp(self.log_mean) * (1.0 + torch.exp(self.log_mean + self.log_dispersion))

    @property
    def mode(self) -> Tensor:
        """See `Likelihood.mode`."""
        return (torch.exp(self.log_mean) * (1.0 - self.log_dispersion.exp())).clamp(min=0).floor()

    def sample(self, noise: NoiseSource, name: Hashable) -> Tensor:
        """See `Likelihood.sample`.

        A Poisson draw whose rate is a gamma draw, each by its own quantile: two uniforms per
        element, and faster than the search for the quantile of large or dispersed counts.
        """
        shape = tuple(self.log_mean.shape)
        u = noise.uniform((name, "rate"), shape)
        log_size = -self.log_dispersion.double()
        log_rate = gamma_quantile(u, torch.exp(log_size)) - log_size + self.log_mean.double()
        count = poisson_quantile(noise.uniform((name, "count"), shape), torch.exp(log_rate))
        return count.to(self.log_mean)

    def quantile(self, p: float) -> Tensor:
        """See `Likelihood.quantile`."""
        return negative_binomial_quantile(p, self.log_mean, -self.log_dispersion).to(self.log_mean)


class ZeroInflatedNegativeBinomialLikelihood(Likelihood):
    """A negative binomial count, or with some probability a zero for another reason.

    Args:
        counts: The negative binomial.
        zero_logits: ``(..., *shape)``, logits of the extra zero.
        event_ndim: Number of axes of the modality.
    """

    whole_numbers = True
    __slots__ = ("counts", "zero_logits")

    def __init__(
        self, counts: NegativeBinomialLikelihood, zero_logits: Tensor, event_ndim: int
    ) -> None:
        super().__init__(event_ndim)
        self.counts = counts
        self.zero_logits = zero_logits

    def _terms(self, x: Tensor) -> Tensor:
        counted = self.counts._terms(x) - softplus(self.zero_logits)
        return torch.where(x == 0, self._zero_log_prob(), counted)

    def _zero_log_prob(self) -> Tensor:
        """Return log p(0) = log(pi + (1 - pi) NB(0))."""
        inside = torch.logaddexp(self.zero_logits, self.counts.zero_log_prob())
        return inside - softplus(self.zero_logits)

    @property
    def mean(self) -> Tensor:
        """See `Likelihood.mean`."""
        return torch.sigmoid(-self.zero_logits) * self.counts.mean

    @property
    def variance(self) -> Tensor:
        """See `Likelihood.variance`."""
        counted, mean = torch.sigmoid(-self.zero_logits), self.counts.mean
        return counted * (self.counts.variance + torch.sigmoid(self.zero_logits) * mean * mean)

    @property
    def mode(self) -> Tensor:
        """See `Likelihood.mode`."""
        other = self.counts.mode
        return torch.where(self._terms(other) > self._zero_log_prob(), other, 0.0)

    def sample(self, noise: NoiseSource, name: Hashable) -> Tensor:
        """See `Likelihood.sample`; three uniforms per element."""
        count = self.counts.sample(noise, name)
        u = noise.uniform((name, "zero"), tuple(count.shape))
        return torch.where(u < torch.sigmoid(self.zero_logits), 0.0, count)

    def quantile(self, p: float) -> Tensor:
        """See `Likelihood.quantile`."""
        logits = self.zero_logits.detach().double()
        rest = 1.0 - (1.0 - p) * (1.0 + torch.exp(logits))  # (p - pi) / (1 - pi)
        inner = rest.clamp(min=0.0)
        count = negative_binomial_quantile(
            inner, self.counts.log_mean, -self.counts.log_dispersion
        )
        return torch.where(rest > 0, count, 0.0).to(self.counts.log_mean)


@attrs.frozen(kw_only=True)
class PoissonConfig:
    """The Poisson likelihood has no options."""


@attrs.frozen(kw_only=True)
class NegativeBinomialConfig:
    """Options of the negative binomial likelihood: variance = mean + dispersion * mean^2.

    Args:
        dispersion: A number, ``"learned"`` (one parameter per feature, the same for all rows) or
            ``"predicted"`` (by the decoder, per row).
        initial_dispersion: Where a learned or predicted dispersion starts.
        min_dispersion: What a learned or predicted dispersion stays above.
    """

    dispersion: float | str = attrs.field(
        default="learned", validator=number_or("learned", "predicted")
    )
    initial_dispersion: float = attrs.field(default=1.0, validator=positive)
    min_dispersion: float = attrs.field(default=1e-6, validator=below("initial_dispersion"))


@attrs.frozen(kw_only=True)
class ZeroInflatedNegativeBinomialConfig:
    """Options of the zero-inflated negative binomial; the extra zeros are always predicted.

    Args:
        dispersion: A number, ``"learned"`` (one parameter per feature, the same for all rows) or
            ``"predicted"`` (by the decoder, per row).
        initial_dispersion: Where a learned or predicted dispersion starts.
        min_dispersion: What a learned or predicted dispersion stays above.
    """

    dispersion: float | str = attrs.field(
        default="learned", validator=number_or("learned", "predicted")
    )
    initial_dispersion: float = attrs.field(default=1.0, validator=positive)
    min_dispersion: float = attrs.field(default=1e-6, validator=below("initial_dispersion"))


class Poisson(LikelihoodHead):
    """Poisson likelihood; the decoder emits the log rate.

    Args:
        config: No options.
        shape: Shape of the modality.
    """

    name = "poisson"
    rule = staticmethod(require_counts)

    def __init__(self, config: PoissonConfig, shape: tuple[int, ...]) -> None:
        super().__init__(shape)

    def forward(self, params: Tensor) -> PoissonLikelihood:
        """See `LikelihoodHead.forward`."""
        return PoissonLikelihood(self.split(params)[0], self.event_ndim)


class NegativeBinomial(LikelihoodHead):
    """Negative binomial; the decoder emits the log mean, and the raw log dispersion if predicted.

    Args:
        config: Options.
        shape: Shape of the modality.
    """

    name = "negative_binomial"
    rule = staticmethod(require_counts)

    def __init__(self, config: NegativeBinomialConfig, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.dispersion = PositiveParameter(
            config.dispersion, config.initial_dispersion, config.min_dispersion, self.shape
        )
        self.n_params = 2 if self.dispersion.predicted else 1

    def forward(self, params: Tensor) -> NegativeBinomialLikelihood:
        """See `LikelihoodHead.forward`."""
        log_mean, *raw = self.split(params)
        return NegativeBinomialLikelihood(
            log_mean, self.dispersion(log_mean, *raw), self.event_ndim
        )


class ZeroInflatedNegativeBinomial(LikelihoodHead):
    """Zero-inflated one; the decoder emits log mean, zero logits, [raw log dispersion].

    Args:
        config: Options.
        shape: Shape of the modality.
    """

    name = "zero_inflated_negative_binomial"
    rule = staticmethod(require_counts)

    def __init__(self, config: ZeroInflatedNegativeBinomialConfig, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.dispersion = PositiveParameter(
            config.dispersion, config.initial_dispersion, config.min_dispersion, self.shape
        )
        self.n_params = 3 if self.dispersion.predicted else 2

    def forward(self, params: Tensor) -> ZeroInflatedNegativeBinomialLikelihood:
        """See `LikelihoodHead.forward`."""
        log_mean, zero_logits, *raw = self.split(params)
        counts = NegativeBinomialLikelihood(
            log_mean, self.dispersion(log_mean, *raw), self.event_ndim
        )
        return ZeroInflatedNegativeBinomialLikelihood(counts, zero_logits, self.event_ndim)
