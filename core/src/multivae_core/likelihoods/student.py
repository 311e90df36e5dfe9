"""Student's t: real numbers with outliers."""

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
    above,
    below,
    number_or,
)
from multivae_core.likelihoods.checks import require_real
from multivae_core.noise import NoiseSource
from multivae_core.special import stirling_error, student_t_quantile

__all__ = ["StudentT", "StudentTConfig", "StudentTLikelihood"]

_LOG_2PI = math.log(2.0 * math.pi)
_MIN_DF = 2.1  # what learned degrees of freedom stay above: the variance exists


class StudentTLikelihood(Likelihood):
    """Student's t with location and scale.

    Args:
        location: ``(..., *shape)``; also given as the mean where df <= 1 has none.
        log_scale: Log of the scale, broadcasts to ``(..., *shape)``.
        df: Degrees of freedom, broadcasts to ``(..., *shape)``.
        event_ndim: Number of axes of the modality.
    """

    __slots__ = ("df", "location", "log_scale")

    def __init__(self, location: Tensor, log_scale: Tensor, df: Tensor, event_ndim: int) -> None:
        super().__init__(event_ndim)
        self.location = location
        self.log_scale = log_scale
        self.df = df

    def _terms(self, x: Tensor) -> Tensor:
        half = 0.5 * self.df
        # log Gamma(half + 1/2) - log Gamma(half) - log(pi df)/2, its large parts combined by hand
        rest = stirling_error(half + 0.5) - stirling_error(half)
        constant = half * torch.log1p(0.5 / half) - 0.5 * (1.0 + _LOG_2PI) + rest
        y = (x - self.location) * torch.exp(-self.log_scale)
        tail = (half + 0.5) * torch.log1p(y.square() / self.df)
        return (constant - self.log_scale) - tail

    @property
    def mean(self) -> Tensor:
        """See `Likelihood.mean`."""
        return self.location

    @property
    def mode(self) -> Tensor:
        """See `Likelihood.mode`."""
        return self.location

    @property
    def variance(self) -> Tensor:
        """See `Likelihood.variance`; infinite where df <= 2."""
        ratio = torch.where(self.df > 2.0, self.df / (self.df - 2.0), torch.inf)
        return torch.zeros_like(self.location) + ratio * torch.exp(2.0 * self.log_scale)

    def sample(self, noise: NoiseSource, name: Hashable) -> Tensor:
        """See `Likelihood.sample`.

        Two uniforms per element, radius and angle (Bailey 1994, "Polar generation of random
        variates with the t-distribution"); the quantile would need a search per element.
        """
        shape = tuple(self.location.shape)
        log_u = torch.log(noise.uniform((name, "radius"), shape).double())
        df = self.df.double()
        radius = torch.sqrt(df * torch.expm1(-2.0 / df * log_u))
        angle = 2.0 * math.pi * (noise.uniform((name, "angle"), shape).double() - 0.5)
        standard = (radius * torch.sin(angle)).to(self.location.dtype)
        return self.location + torch.exp(self.log_scale) * standard

    def quantile(self, p: float) -> Tensor:
        """See `Likelihood.quantile`."""
        standard = student_t_quantile(p, self.df).to(self.location)
        return self.location + torch.exp(self.log_scale) * standard

    def affine(self, shift: Tensor | float, scale: Tensor | float) -> Likelihood:
        """See `Likelihood.affine`."""
        log = scale.log() if isinstance(scale, Tensor) else math.log(scale)
        location = shift + scale * self.location
        return StudentTLikelihood(location, self.log_scale + log, self.df, self.event_ndim)


@attrs.frozen(kw_only=True)
class StudentTConfig:
    """Options of Student's t.

    Args:
        df: Degrees of freedom: a number, or ``"learned"`` (per feature, above 2.1).
        scale: Scale on the model's scale (standard deviation sqrt(df / (df - 2)) times it): a
            number, ``"learned"`` (one parameter per feature) or ``"predicted"`` (by the decoder).
        initial_df: Where learned degrees of freedom start, above 2.1.
        initial_scale: Where a learned or predicted scale starts.
        min_scale: What a learned or predicted scale stays above.
    """

    df: float | str = attrs.field(default=4.0, validator=number_or("learned"))
    scale: float | str = attrs.field(default=1.0, validator=number_or("learned", "predicted"))
    initial_df: float = attrs.field(default=8.0, validator=above(_MIN_DF))
    initial_scale: float = attrs.field(default=1.0, validator=positive)
    min_scale: float = attrs.field(default=1e-3, validator=below("initial_scale"))


class StudentT(LikelihoodHead):
    """Student's t; the decoder emits the location, and the raw log scale if predicted.

    Args:
        config: Options.
        shape: Shape of the modality.
    """

    name = "student_t"
    real_valued = True
    rule = staticmethod(require_real)

    def __init__(self, config: StudentTConfig, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.scale = PositiveParameter(
            config.scale, config.initial_scale, config.min_scale, self.shape
        )
        self.df = PositiveParameter(config.df, config.initial_df, _MIN_DF, self.shape)
        self.n_params = 2 if self.scale.predicted else 1

    def forward(self, params: Tensor) -> StudentTLikelihood:
        """See `LikelihoodHead.forward`: location, then the raw log scale if it is predicted."""
        location, *raw = self.split(params)
        log_scale = self.scale(location, *raw)
        log_df = self.df(location)
        return StudentTLikelihood(location, log_scale, log_df.exp(), self.event_ndim)
