"""Likelihoods of real numbers: normal, Laplace, Student's t, and the squared error."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Hashable
from statistics import NormalDist
from typing import ClassVar

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from multivae_core.config import config, positive
from multivae_core.errors import CapabilityError
from multivae_core.likelihoods.base import (
    Likelihood,
    LikelihoodHead,
    PositiveParameter,
    number_above,
)
from multivae_core.noise import NoiseSource
from multivae_core.special import stirling_error, student_t_quantile

__all__ = [
    "Laplace", "LaplaceConfig", "LaplaceLikelihood", "Normal", "NormalConfig",
    "NormalLikelihood", "SquaredError", "SquaredErrorConfig", "SquaredErrorLikelihood",
    "StudentT", "StudentTConfig", "StudentTLikelihood",
]  # fmt: skip

_MIN_DF = 2.1  # what learned degrees of freedom stay above: the variance exists


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

    # log p = _factor * (distance / scale^_power) + _constant - log scale
    _factor: ClassVar[float]
    _constant: ClassVar[float]
    _power: ClassVar[int]

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

    def _distance(self, x: Tensor) -> Tensor:
        """The distance to the location, to the power of the density; or give `_terms`."""
        raise NotImplementedError

    @abstractmethod
    def _standard(self, p: float) -> Tensor | float:
        """The quantile for location 0 and scale 1."""

    @abstractmethod
    def _draw(self, noise: NoiseSource, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """A draw for location 0 and scale 1."""

    def _variance(self) -> Tensor | float:
        """The variance for scale 1."""
        return 1.0

    def _terms(self, x: Tensor) -> Tensor:
        distance = self._distance(x)
        if isinstance(self.log_scale, Tensor):
            scaled = distance * (-self._power * self.log_scale).exp()
            return torch.add(-self.log_scale, scaled, alpha=self._factor)
        return distance if self.scale == 1.0 else distance / self.scale**self._power

    def _finish(self, total: Tensor, count: Tensor) -> Tensor:
        if isinstance(self.log_scale, Tensor):
            return total + count * self._constant
        return total * self._factor + count * (self._constant - self.log_scale)

    @property
    def mean(self) -> Tensor:
        return self.location

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.location) + self._variance() * self.scale * self.scale

    def sample(self, noise: NoiseSource, name: Hashable) -> Tensor:
        return self.location + self.scale * self._draw(noise, name, tuple(self.location.shape))

    def quantile(self, p: float | Tensor) -> Tensor:
        return self.location + self.scale * self._standard(float(p))

    def affine(self, shift: Tensor | float, scale: Tensor | float) -> Likelihood:
        moved = copy.copy(self)
        moved.location = shift + scale * self.location
        moved.scale = self.scale * scale
        log = scale.log() if isinstance(scale, Tensor) else math.log(scale)
        moved.log_scale = self.log_scale + log
        return moved


class NormalLikelihood(LocationScale):
    """N(location, scale^2)."""

    __slots__ = ()
    _factor = -0.5
    _constant = -0.5 * math.log(2.0 * math.pi)
    _power = 2

    def _distance(self, x: Tensor) -> Tensor:
        # one pass each way, where a difference and its square would make two or three
        location, x = torch.broadcast_tensors(self.location, x)
        return functional.mse_loss(location, x, reduction="none")

    def _standard(self, p: float) -> float:
        return NormalDist().inv_cdf(p)

    def _draw(self, noise: NoiseSource, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        return noise.normal(name, shape)


class LaplaceLikelihood(LocationScale):
    """The Laplace density exp(-|x - location| / scale) / (2 scale)."""

    __slots__ = ()
    _factor = -1.0
    _constant = -math.log(2.0)
    _power = 1

    def _distance(self, x: Tensor) -> Tensor:
        return (x - self.location).abs()

    def _variance(self) -> float:
        return 2.0

    def _standard(self, p: float) -> float:
        return math.log(2.0 * p) if p < 0.5 else -math.log(2.0 * (1.0 - p))

    def _draw(self, noise: NoiseSource, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        return noise.laplace(name, shape)


class StudentTLikelihood(LocationScale):
    """Student's t with location and scale.

    Args:
        location: ``(..., *shape)``; also given as the mean where df <= 1 has none.
        log_scale: Log of the scale, broadcasts to ``(..., *shape)``.
        df: Degrees of freedom, broadcasts to ``(..., *shape)``.
        event_ndim: Number of axes of the modality.
    """

    __slots__ = ("df",)

    def __init__(self, location: Tensor, log_scale: Tensor, df: Tensor, event_ndim: int) -> None:
        super().__init__(location, log_scale.exp(), log_scale, event_ndim)
        self.df = df

    def _terms(self, x: Tensor) -> Tensor:
        half = 0.5 * self.df
        # log Gamma(half + 1/2) - log Gamma(half) - log(pi df)/2, its large parts combined by hand
        rest = stirling_error(half + 0.5) - stirling_error(half)
        constant = half * torch.log1p(0.5 / half) - 0.5 * (1.0 + math.log(2.0 * math.pi)) + rest
        y = (x - self.location) / self.scale
        return (constant - self.log_scale) - (half + 0.5) * torch.log1p(y.square() / self.df)

    def _finish(self, total: Tensor, count: Tensor) -> Tensor:
        return total

    def _variance(self) -> Tensor:
        return torch.where(self.df > 2.0, self.df / (self.df - 2.0), torch.inf)

    def _standard(self, p: float) -> Tensor:
        return student_t_quantile(p, self.df).to(self.location)

    def _draw(self, noise: NoiseSource, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        # Two uniforms per element, radius and angle (Bailey 1994, "Polar generation of random
        # variates with the t-distribution"); the quantile would need a search per element.
        log_u = torch.log(noise.uniform((name, "radius"), shape).double())
        df = self.df.double()
        radius = torch.sqrt(df * torch.expm1(-2.0 / df * log_u))
        angle = 2.0 * math.pi * (noise.uniform((name, "angle"), shape).double() - 0.5)
        return (radius * torch.sin(angle)).to(self.location.dtype)


class SquaredErrorLikelihood(LocationScale):
    """-(x - mean)^2, in squared units; for models without likelihoods. A draw is the mean itself.

    Args:
        mean: ``(..., *shape)``.
        event_ndim: Number of axes of the modality.
    """

    __slots__ = ()
    is_density = False

    def __init__(self, mean: Tensor, event_ndim: int) -> None:
        super().__init__(mean, 1.0, 0.0, event_ndim)

    def _terms(self, x: Tensor) -> Tensor:
        return -(x - self.location).square()

    def _finish(self, total: Tensor, count: Tensor) -> Tensor:
        return total

    def _draw(self, noise: NoiseSource, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros_like(self.location)

    def _variance(self) -> float:
        raise CapabilityError(_NO_SPREAD.format("variance"))

    def _standard(self, p: float) -> float:
        raise CapabilityError(_NO_SPREAD.format("quantile"))


_NO_SPREAD = (
    "likelihood 'squared_error' is not a distribution and has no {}; choose likelihood='normal'"
)


@config
class NormalConfig:
    """Options of the normal likelihood.

    Args:
        scale: Standard deviation on the model's scale: a number, ``"learned"`` (one parameter per
            feature, the same for all rows) or ``"predicted"`` (by the decoder, per row).
        initial_scale: Where a learned or predicted scale starts.
        min_scale: What a learned or predicted scale stays above.
    """

    scale: float | str = attrs.field(
        default=1.0, validator=number_above(0, "learned", "predicted")
    )
    initial_scale: float = attrs.field(default=1.0, validator=positive)
    min_scale: float = attrs.field(default=1e-3, validator=number_above(0, below="initial_scale"))


@config
class LaplaceConfig(NormalConfig):
    """Options of `NormalConfig`; a Laplace with scale b has the standard deviation b sqrt 2."""


@config
class StudentTConfig(NormalConfig):
    """Options of Student's t: those of `NormalConfig`, and the degrees of freedom.

    Its standard deviation is sqrt(df / (df - 2)) times the scale.

    Args:
        df: Degrees of freedom: a number, or ``"learned"`` (per feature, above 2.1).
        initial_df: Where learned degrees of freedom start, above 2.1.
    """

    df: float | str = attrs.field(default=4.0, validator=number_above(0, "learned"))
    initial_df: float = attrs.field(default=8.0, validator=number_above(_MIN_DF))


@config
class SquaredErrorConfig:
    """The squared error has no options."""


class LocationScaleHead(LikelihoodHead):
    """Location, and the raw log scale where it is predicted, out of the decoder."""

    real_valued = True

    def __init__(self, config: NormalConfig, shape: tuple[int, ...]) -> None:
        super().__init__(config, shape)
        self.scale = PositiveParameter(
            config.scale, config.initial_scale, config.min_scale, self.shape
        )
        self.n_params = 2 if self.scale.predicted else 1

    def forward(self, params: Tensor) -> Likelihood:
        location, *raw = self.split(params)
        fixed = self.scale.fixed
        if fixed is not None:
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


class StudentT(LocationScaleHead):
    """Student's t; the decoder emits the location, and the raw log scale if predicted."""

    name = "student_t"

    def __init__(self, config: StudentTConfig, shape: tuple[int, ...]) -> None:
        super().__init__(config, shape)
        self.df = PositiveParameter(config.df, config.initial_df, _MIN_DF, self.shape)

    def forward(self, params: Tensor) -> Likelihood:
        location, *raw = self.split(params)
        log_scale = self.scale(location, *raw)
        return StudentTLikelihood(location, log_scale, self.df(location).exp(), self.event_ndim)


class SquaredError(LikelihoodHead):
    """Squared error; the decoder emits the reconstruction."""

    name = "squared_error"
    result = SquaredErrorLikelihood
    real_valued = True
