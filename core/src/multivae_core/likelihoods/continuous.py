"""Likelihoods of real numbers: normal, Laplace, and the squared error that is no density."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable
from statistics import NormalDist
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from multivae_core.config import positive
from multivae_core.errors import CapabilityError
from multivae_core.likelihoods.base import (
    Likelihood,
    LikelihoodHead,
    PositiveParameter,
    below,
    number_or,
)
from multivae_core.likelihoods.checks import require_real
from multivae_core.noise import NoiseSource

__all__ = [
    "Laplace",
    "LaplaceConfig",
    "LaplaceLikelihood",
    "LocationScale",
    "Normal",
    "NormalConfig",
    "NormalLikelihood",
    "SquaredError",
    "SquaredErrorConfig",
    "SquaredErrorLikelihood",
]


class LocationScale(Likelihood):
    """A density in (x - location) / scale.

    A scale that is one number for all elements costs nothing per element: its logarithm and the
    constants are added once per row.

    Args:
        location: ``(..., *shape)``.
        scale: A number, or a tensor that broadcasts to ``(..., *shape)``.
        log_scale: Its logarithm.
        event_ndim: Number of axes of the modality.
    """

    __slots__ = ("location", "log_scale", "scale")

    _factor: ClassVar[float]  # log p = _factor * _kernel(y) + _constant - log scale
    _constant: ClassVar[float]

    def __init__(
        self,
        location: Tensor,
        scale: Tensor | float,
        log_scale: Tensor | float,
        event_ndim: int,
    ) -> None:
        super().__init__(event_ndim)
        self.location = location
        self.scale = scale
        self.log_scale = log_scale

    @abstractmethod
    def _kernel(self, y: Tensor) -> Tensor:
        """The part of -log p that depends on the standardised value."""

    def _terms(self, x: Tensor) -> Tensor:
        y = x - self.location
        if isinstance(self.log_scale, Tensor):
            return torch.add(-self.log_scale, self._kernel(y / self.scale), alpha=self._factor)
        return self._kernel(y if self.scale == 1.0 else y / self.scale)

    def _finish(self, total: Tensor, count: Tensor) -> Tensor:
        if isinstance(self.log_scale, Tensor):
            return total + count * self._constant
        return total * self._factor + count * (self._constant - self.log_scale)

    @property
    def mean(self) -> Tensor:
        """See `Likelihood.mean`."""
        return self.location

    @property
    def mode(self) -> Tensor:
        """See `Likelihood.mode`."""
        return self.location

    def affine(self, shift: Tensor | float, scale: Tensor | float) -> Likelihood:
        """See `Likelihood.affine`."""
        return type(self)(*self._affine(shift, scale), self.event_ndim)

    def _affine(
        self, shift: Tensor | float, scale: Tensor | float
    ) -> tuple[Tensor, Tensor | float, Tensor | float]:
        log = scale.log() if isinstance(scale, Tensor) else math.log(scale)
        return shift + scale * self.location, self.scale * scale, self.log_scale + log


class NormalLikelihood(LocationScale):
    """N(location, scale^2)."""

    __slots__ = ()
    _factor = -0.5
    _constant = -0.5 * math.log(2.0 * math.pi)

    def _kernel(self, y: Tensor) -> Tensor:
        return y.square()

    @property
    def variance(self) -> Tensor:
        """See `Likelihood.variance`."""
        return torch.zeros_like(self.location) + self.scale * self.scale

    def sample(self, noise: NoiseSource, name: Hashable) -> Tensor:
        """See `Likelihood.sample`."""
        return self.location + self.scale * noise.normal(name, tuple(self.location.shape))

    def quantile(self, p: float) -> Tensor:
        """See `Likelihood.quantile`."""
        return self.location + self.scale * NormalDist().inv_cdf(p)


class LaplaceLikelihood(LocationScale):
    """The Laplace density exp(-|x - location| / scale) / (2 scale)."""

    __slots__ = ()
    _factor = -1.0
    _constant = -math.log(2.0)

    def _kernel(self, y: Tensor) -> Tensor:
        return y.abs()

    @property
    def variance(self) -> Tensor:
        """See `Likelihood.variance`."""
        return torch.zeros_like(self.location) + 2.0 * self.scale * self.scale

    def sample(self, noise: NoiseSource, name: Hashable) -> Tensor:
        """See `Likelihood.sample`."""
        return self.location + self.scale * noise.laplace(name, tuple(self.location.shape))

    def quantile(self, p: float) -> Tensor:
        """See `Likelihood.quantile`."""
        standard = math.log(2.0 * p) if p < 0.5 else -math.log(2.0 * (1.0 - p))
        return self.location + self.scale * standard


class SquaredErrorLikelihood(Likelihood):
    """-(x - mean)^2, for models without likelihoods; a draw is the mean itself.

    Args:
        mean: ``(..., *shape)``.
        event_ndim: Number of axes of the modality.
    """

    __slots__ = ("_mean",)
    is_density = False

    def __init__(self, mean: Tensor, event_ndim: int) -> None:
        super().__init__(event_ndim)
        self._mean = mean

    def _terms(self, x: Tensor) -> Tensor:
        return -(x - self._mean).square()

    @property
    def mean(self) -> Tensor:
        """See `Likelihood.mean`."""
        return self._mean

    @property
    def mode(self) -> Tensor:
        """See `Likelihood.mode`."""
        return self._mean

    @property
    def variance(self) -> Tensor:
        """There is none."""
        raise CapabilityError(_NO_SPREAD.format("variance"))

    def sample(self, noise: NoiseSource, name: Hashable) -> Tensor:
        """Return the mean: a squared error has no spread."""
        return self._mean

    def quantile(self, p: float) -> Tensor:
        """There is none."""
        raise CapabilityError(_NO_SPREAD.format("quantile"))

    def affine(self, shift: Tensor | float, scale: Tensor | float) -> Likelihood:
        """See `Likelihood.affine`; the error is then in squared units of the data."""
        return SquaredErrorLikelihood(shift + scale * self._mean, self.event_ndim)


_NO_SPREAD = (
    "likelihood 'squared_error' is not a distribution and has no {}; choose likelihood='normal'"
)


@attrs.frozen(kw_only=True)
class NormalConfig:
    """Options of the normal likelihood.

    Args:
        scale: Standard deviation on the model's scale: a number, ``"learned"`` (one parameter per
            feature, the same for all rows) or ``"predicted"`` (by the decoder, per row).
        initial_scale: Where a learned or predicted scale starts.
        min_scale: What a learned or predicted scale stays above.
    """

    scale: float | str = attrs.field(default=1.0, validator=number_or("learned", "predicted"))
    initial_scale: float = attrs.field(default=1.0, validator=positive)
    min_scale: float = attrs.field(default=1e-3, validator=below("initial_scale"))


@attrs.frozen(kw_only=True)
class LaplaceConfig:
    """Options of the Laplace likelihood.

    Args:
        scale: Scale b on the model's scale (standard deviation b sqrt 2): a number, ``"learned"``
            (one parameter per feature) or ``"predicted"`` (by the decoder, per row).
        initial_scale: Where a learned or predicted scale starts.
        min_scale: What a learned or predicted scale stays above.
    """

    scale: float | str = attrs.field(default=1.0, validator=number_or("learned", "predicted"))
    initial_scale: float = attrs.field(default=1.0, validator=positive)
    min_scale: float = attrs.field(default=1e-3, validator=below("initial_scale"))


@attrs.frozen(kw_only=True)
class SquaredErrorConfig:
    """The squared error has no options."""


class LocationScaleHead(LikelihoodHead):
    """Location, and scale where it is predicted, out of the decoder.

    Args:
        config: Options.
        shape: Shape of the modality.
    """

    real_valued = True
    rule = staticmethod(require_real)
    result: ClassVar[type[LocationScale]]

    def __init__(self, config: NormalConfig | LaplaceConfig, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.scale = PositiveParameter(
            config.scale, config.initial_scale, config.min_scale, self.shape
        )
        self.n_params = 2 if self.scale.predicted else 1

    def forward(self, params: Tensor) -> LocationScale:
        """See `LikelihoodHead.forward`: location, then the raw log scale if it is predicted."""
        location, *raw = self.split(params)
        if self.scale.fixed is not None:
            fixed = self.scale.fixed
            return self.result(location, fixed, math.log(fixed), self.event_ndim)
        log_scale = self.scale(location, *raw)
        return self.result(location, log_scale.exp(), log_scale, self.event_ndim)


class Normal(LocationScaleHead):
    """Normal likelihood; the decoder emits the location, and the raw log scale if predicted."""

    name = "normal"
    result = NormalLikelihood


class Laplace(LocationScaleHead):
    """Laplace likelihood; the decoder emits the location, and the raw log scale if predicted."""

    name = "laplace"
    result = LaplaceLikelihood


class SquaredError(LikelihoodHead):
    """Squared error; the decoder emits the reconstruction.

    Args:
        config: No options.
        shape: Shape of the modality.
    """

    name = "squared_error"
    real_valued = True
    rule = staticmethod(require_real)

    def __init__(self, config: SquaredErrorConfig, shape: tuple[int, ...]) -> None:
        super().__init__(shape)

    def forward(self, params: Tensor) -> SquaredErrorLikelihood:
        """See `LikelihoodHead.forward`."""
        return SquaredErrorLikelihood(self.split(params)[0], self.event_ndim)
