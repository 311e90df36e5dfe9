"""Likelihoods of categories and counts: Bernoulli, categorical, Poisson, negative binomial."""

from __future__ import annotations

import math
from collections.abc import Hashable

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from multivae_core.config import config, positive
from multivae_core.errors import ConfigError
from multivae_core.likelihoods.base import (
    Likelihood,
    LikelihoodHead,
    PositiveParameter,
    Rule,
    number_above,
)
from multivae_core.noise import NoiseSource
from multivae_core.special import (
    gamma_quantile,
    negative_binomial_quantile,
    poisson_quantile,
    softplus,
    stirling_error,
)

__all__ = [
    "Bernoulli", "BernoulliConfig", "BernoulliLikelihood", "Categorical", "CategoricalConfig",
    "CategoricalLikelihood", "NegativeBinomial", "NegativeBinomialConfig",
    "NegativeBinomialLikelihood", "Poisson", "PoissonConfig", "PoissonLikelihood",
    "ZeroInflatedNegativeBinomial", "ZeroInflatedNegativeBinomialConfig",
    "ZeroInflatedNegativeBinomialLikelihood",
]  # fmt: skip

_LOG_2PI = math.log(2.0 * math.pi)


class _Categories(Likelihood):
    """What is given by logits.

    Args:
        logits: ``(..., *shape)``; of a categorical up to a constant per last axis.
        event_ndim: Number of axes of the modality.
    """

    whole_numbers = True
    __slots__ = ("logits",)

    def __init__(self, logits: Tensor, event_ndim: int) -> None:
        super().__init__(event_ndim)
        self.logits = logits

    @property
    def variance(self) -> Tensor:
        return self.mean * (1.0 - self.mean)


class BernoulliLikelihood(_Categories):
    """Zeros and ones; a value in between is a soft target (its cross-entropy, no density)."""

    __slots__ = ()

    def _terms(self, x: Tensor) -> Tensor:
        return x * self.logits - softplus(self.logits)

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self.logits)

    @property
    def variance(self) -> Tensor:
        return torch.sigmoid(self.logits) * torch.sigmoid(-self.logits)

    @property
    def mode(self) -> Tensor:
        """The more probable of 0 and 1, ``(..., *shape)``."""
        return (self.logits > 0).to(self.logits.dtype)

    def quantile(self, p: float | Tensor) -> Tensor:
        return (torch.sigmoid(-self.logits) < p).to(self.logits.dtype)


class CategoricalLikelihood(_Categories):
    """One of several classes, one-hot along the last axis of the modality."""

    __slots__ = ()
    _class_axes = 1

    def _terms(self, x: Tensor) -> Tensor:
        return (x * torch.log_softmax(self.logits, -1)).sum(-1)

    @property
    def mean(self) -> Tensor:
        return torch.softmax(self.logits, -1)

    @property
    def mode(self) -> Tensor:
        """The most probable class, one-hot, ``(..., *shape)``."""
        return self._one_hot(self.logits.argmax(-1))

    def sample(self, noise: NoiseSource, name: Hashable) -> Tensor:
        # the last edge is left out: it is 1, and its rounding must not create a further class
        edges = self.mean.cumsum(-1)[..., :-1]
        u = noise.uniform(name, tuple(self.logits.shape[:-1]))
        return self._one_hot((u.unsqueeze(-1) > edges).sum(-1))

    def quantile(self, p: float | Tensor) -> Tensor:
        """Return the p-quantile of every indicator: 1 where the class has more than 1 - p."""
        return (1.0 - self.mean < p).to(self.logits.dtype)

    def _one_hot(self, index: Tensor) -> Tensor:
        return functional.one_hot(index, self.logits.shape[-1]).to(self.logits.dtype)


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
        return torch.exp(self.log_rate)

    @property
    def variance(self) -> Tensor:
        return self.mean

    def quantile(self, p: float | Tensor) -> Tensor:
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
        total, base, growth = x + size, x.clamp(min=1.0), torch.log1p(x / size)
        excess = x * (self.log_mean - torch.log(base)) - total * (
            softplus(self.log_mean + self.log_dispersion) - growth
        )
        rest = stirling_error(total) - stirling_error(size) - 0.5 * growth
        return excess + (rest + _count_constant(x, base))

    @property
    def mean(self) -> Tensor:
        return torch.exp(self.log_mean)

    @property
    def variance(self) -> Tensor:
        return torch.exp(self.log_mean) * (1.0 + torch.exp(self.log_mean + self.log_dispersion))

    def sample(self, noise: NoiseSource, name: Hashable) -> Tensor:
        # A Poisson draw whose rate is a gamma draw, each by its own quantile: ten times as fast
        # as the search for the quantile of large or dispersed counts.
        shape = tuple(self.log_mean.shape)
        log_size = -self.log_dispersion.double()
        log_gamma = gamma_quantile(noise.uniform((name, "rate"), shape), torch.exp(log_size))
        rate = torch.exp(log_gamma - log_size + self.log_mean.double())
        return poisson_quantile(noise.uniform((name, "count"), shape), rate).to(self.log_mean)

    def quantile(self, p: float | Tensor) -> Tensor:
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
        log_p = self.counts._terms(x)
        inflated = torch.where(x == 0, torch.logaddexp(self.zero_logits, log_p), log_p)
        return inflated - softplus(self.zero_logits)

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(-self.zero_logits) * self.counts.mean

    @property
    def variance(self) -> Tensor:
        counted, mean = torch.sigmoid(-self.zero_logits), self.counts.mean
        return counted * (self.counts.variance + torch.sigmoid(self.zero_logits) * mean * mean)

    def sample(self, noise: NoiseSource, name: Hashable) -> Tensor:
        count = self.counts.sample(noise, name)
        u = noise.uniform((name, "zero"), tuple(count.shape))
        return torch.where(u < torch.sigmoid(self.zero_logits), 0.0, count)

    def quantile(self, p: float | Tensor) -> Tensor:
        # of the counts at (p - pi) / (1 - pi)
        rest = 1.0 - (1.0 - p) * (1.0 + torch.exp(self.zero_logits.detach().double()))
        return torch.where(rest > 0, self.counts.quantile(rest.clamp(min=0.0)), 0.0)


@config
class BernoulliConfig:
    """The Bernoulli likelihood has no options."""


@config
class CategoricalConfig:
    """The categorical likelihood has no options."""


@config
class PoissonConfig:
    """The Poisson likelihood has no options."""


@config
class NegativeBinomialConfig:
    """Options of the negative binomial likelihood: variance = mean + dispersion * mean^2.

    Args:
        dispersion: A number, ``"learned"`` (one parameter per feature, the same for all rows) or
            ``"predicted"`` (by the decoder, per row).
        initial_dispersion: Where a learned or predicted dispersion starts.
        min_dispersion: What a learned or predicted dispersion stays above.
    """

    dispersion: float | str = attrs.field(
        default="learned", validator=number_above(0, "learned", "predicted")
    )
    initial_dispersion: float = attrs.field(default=1.0, validator=positive)
    min_dispersion: float = attrs.field(
        default=1e-6, validator=number_above(0, below="initial_dispersion")
    )


@config
class ZeroInflatedNegativeBinomialConfig(NegativeBinomialConfig):
    """Options of `NegativeBinomialConfig`; the extra zeros are always predicted."""


class Bernoulli(LikelihoodHead):
    """Bernoulli likelihood; the decoder emits logits."""

    name = "bernoulli"
    result = BernoulliLikelihood
    rule = Rule(
        lambda x: ~((x >= 0) & (x <= 1)),
        "is for values between 0 and 1",
        "divide by the largest value (255 for bytes), or choose likelihood='normal'",
    )


class Categorical(LikelihoodHead):
    """Categorical likelihood; the decoder emits logits, classes along the last axis.

    Raises:
        ConfigError: The modality has no axis for the classes.
    """

    name = "categorical"
    result = CategoricalLikelihood
    rule = Rule(
        # a single 1, and all the rest 0
        lambda x: ((x == 1).sum(-1, True) != 1) | ((x != 0).sum(-1, True) != 1).expand_as(x),
        "needs one-hot values (a single 1) along the last axis",
        "encode categories with torch.nn.functional.one_hot",
        class_axis=True,
    )

    def __init__(self, config: object, shape: tuple[int, ...]) -> None:
        super().__init__(config, shape)
        if not self.shape or self.shape[-1] < 2:
            raise ConfigError(
                "likelihood 'categorical' needs at least 2 classes along the last axis, got shape"
                f" {self.shape}; encode categories with torch.nn.functional.one_hot"
            )


class Poisson(LikelihoodHead):
    """Poisson likelihood; the decoder emits the log rate."""

    name = "poisson"
    result = PoissonLikelihood
    counts = True
    rule = Rule(
        lambda x: ~((x >= 0) & (x == x.trunc()) & (x < torch.inf)),
        "is for counts (0, 1, 2, ...)",
        "give the raw counts, or choose likelihood='normal' for transformed or real-valued data",
    )


class NegativeBinomial(Poisson):
    """Negative binomial; the decoder emits the log mean, [raw log dispersion, if predicted]."""

    name = "negative_binomial"

    def __init__(self, config: NegativeBinomialConfig, shape: tuple[int, ...]) -> None:
        super().__init__(config, shape)
        self.dispersion = PositiveParameter(
            config.dispersion, config.initial_dispersion, config.min_dispersion, self.shape
        )
        self.n_params = 2 if self.dispersion.predicted else 1

    def forward(self, params: Tensor) -> Likelihood:
        log_mean, *raw = self.split(params)
        return NegativeBinomialLikelihood(
            log_mean, self.dispersion(log_mean, *raw), self.event_ndim
        )


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """Zero-inflated one; the decoder emits log mean, zero logits, [raw log dispersion]."""

    name = "zero_inflated_negative_binomial"

    def __init__(self, config: NegativeBinomialConfig, shape: tuple[int, ...]) -> None:
        super().__init__(config, shape)
        self.n_params += 1

    def forward(self, params: Tensor) -> Likelihood:
        log_mean, zero_logits, *raw = self.split(params)
        counts = NegativeBinomialLikelihood(
            log_mean, self.dispersion(log_mean, *raw), self.event_ndim
        )
        return ZeroInflatedNegativeBinomialLikelihood(counts, zero_logits, self.event_ndim)
