"""Likelihoods of categories: Bernoulli and categorical, from logits."""

from __future__ import annotations

from collections.abc import Hashable

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from multivae_core.errors import ConfigError
from multivae_core.likelihoods.base import Likelihood, LikelihoodHead
from multivae_core.likelihoods.checks import require_one_hot, require_unit_interval
from multivae_core.noise import NoiseSource
from multivae_core.special import softplus

__all__ = [
    "Bernoulli",
    "BernoulliConfig",
    "BernoulliLikelihood",
    "Categorical",
    "CategoricalConfig",
    "CategoricalLikelihood",
]


class BernoulliLikelihood(Likelihood):
    """Zeros and ones; a value in between is a soft target (its cross-entropy, no density).

    Args:
        logits: ``(..., *shape)``, log p / (1 - p).
        event_ndim: Number of axes of the modality.
    """

    whole_numbers = True
    __slots__ = ("logits",)

    def __init__(self, logits: Tensor, event_ndim: int) -> None:
        super().__init__(event_ndim)
        self.logits = logits

    def _terms(self, x: Tensor) -> Tensor:
        return x * self.logits - softplus(self.logits)

    @property
    def mean(self) -> Tensor:
        """The probability of a one, ``(..., *shape)``."""
        return torch.sigmoid(self.logits)

    @property
    def variance(self) -> Tensor:
        """See `Likelihood.variance`."""
        return torch.sigmoid(self.logits) * torch.sigmoid(-self.logits)

    @property
    def mode(self) -> Tensor:
        """See `Likelihood.mode`."""
        return (self.logits > 0).to(self.logits.dtype)

    def sample(self, noise: NoiseSource, name: Hashable) -> Tensor:
        """See `Likelihood.sample`."""
        u = noise.uniform(name, tuple(self.logits.shape))
        return (u > torch.sigmoid(-self.logits)).to(self.logits.dtype)

    def quantile(self, p: float) -> Tensor:
        """See `Likelihood.quantile`."""
        return (torch.sigmoid(-self.logits) < p).to(self.logits.dtype)


class CategoricalLikelihood(Likelihood):
    """One of several classes, one-hot along the last axis of the modality.

    Args:
        logits: ``(..., *shape)``, up to a constant per last axis.
        event_ndim: Number of axes of the modality.
    """

    whole_numbers = True
    __slots__ = ("logits",)
    _class_axes = 1

    def __init__(self, logits: Tensor, event_ndim: int) -> None:
        super().__init__(event_ndim)
        self.logits = logits

    def _terms(self, x: Tensor) -> Tensor:
        return (x * torch.log_softmax(self.logits, -1)).sum(-1)

    @property
    def mean(self) -> Tensor:
        """The probabilities, ``(..., *shape)``."""
        return torch.softmax(self.logits, -1)

    @property
    def variance(self) -> Tensor:
        """The variance of every indicator, ``(..., *shape)``."""
        probabilities = self.mean
        return probabilities * (1.0 - probabilities)

    @property
    def mode(self) -> Tensor:
        """See `Likelihood.mode`."""
        return self._one_hot(self.logits.argmax(-1))

    def sample(self, noise: NoiseSource, name: Hashable) -> Tensor:
        """See `Likelihood.sample`; one uniform per class axis."""
        # the last edge is left out: it is 1, and its rounding must not create a further class
        edges = torch.softmax(self.logits, -1).cumsum(-1)[..., :-1]
        u = noise.uniform(name, tuple(self.logits.shape[:-1]))
        return self._one_hot((u.unsqueeze(-1) > edges).sum(-1))

    def quantile(self, p: float) -> Tensor:
        """Return the p-quantile of every indicator: 1 where the class has more than 1 - p."""
        return (1.0 - self.mean < p).to(self.logits.dtype)

    def _one_hot(self, index: Tensor) -> Tensor:
        return functional.one_hot(index, self.logits.shape[-1]).to(self.logits.dtype)


@attrs.frozen(kw_only=True)
class BernoulliConfig:
    """The Bernoulli likelihood has no options."""


@attrs.frozen(kw_only=True)
class CategoricalConfig:
    """The categorical likelihood has no options."""


class Bernoulli(LikelihoodHead):
    """Bernoulli likelihood; the decoder emits logits.

    Args:
        config: No options.
        shape: Shape of the modality.
    """

    name = "bernoulli"
    rule = staticmethod(require_unit_interval)

    def __init__(self, config: BernoulliConfig, shape: tuple[int, ...]) -> None:
        super().__init__(shape)

    def forward(self, params: Tensor) -> BernoulliLikelihood:
        """See `LikelihoodHead.forward`."""
        return BernoulliLikelihood(self.split(params)[0], self.event_ndim)


class Categorical(LikelihoodHead):
    """Categorical likelihood; the decoder emits logits, classes along the last axis.

    Args:
        config: No options.
        shape: Shape of the modality, ``(..., classes)``.

    Raises:
        ConfigError: The modality has no axis for the classes.
    """

    name = "categorical"
    rule = staticmethod(require_one_hot)

    def __init__(self, config: CategoricalConfig, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        if not self.shape or self.shape[-1] < 2:
            raise ConfigError(
                "likelihood 'categorical' needs at least 2 classes along the last axis, got shape"
                f" {self.shape}; encode categories with torch.nn.functional.one_hot"
            )

    def forward(self, params: Tensor) -> CategoricalLikelihood:
        """See `LikelihoodHead.forward`."""
        return CategoricalLikelihood(self.split(params)[0], self.event_ndim)
