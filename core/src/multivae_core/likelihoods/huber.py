"""The Huber likelihood: a normal density in the middle with the tails of a Laplace density."""

from __future__ import annotations

import math
from collections.abc import Hashable

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from multivae_core.config import config, positive
from multivae_core.likelihoods.base import Likelihood
from multivae_core.likelihoods.continuous import LocationScale, LocationScaleHead, NormalConfig
from multivae_core.noise import NoiseSource

__all__ = ["Huber", "HuberConfig", "HuberLikelihood"]


class HuberLikelihood(LocationScale):
    """exp(-h(r)) / (Z scale), with r = (x - location) / scale and threshold t.

    h(r) = r^2 / 2 up to |r| = t and t |r| - t^2 / 2 beyond (Huber 1964), so that
    Z = sqrt(2 pi) erf(t / sqrt 2) + 2 exp(-t^2 / 2) / t.

    Args:
        location: ``(..., *shape)``.
        log_scale: Log of the scale, broadcasts to ``(..., *shape)``.
        threshold: Distance in scales from which on the tails are exponential.
        event_ndim: Number of axes of the modality.
    """

    __slots__ = ("middle", "tail", "threshold")

    def __init__(
        self, location: Tensor, log_scale: Tensor, threshold: float, event_ndim: int
    ) -> None:
        super().__init__(location, log_scale.exp(), log_scale, event_ndim)
        self.threshold = threshold
        # the mass of the middle and of both tails, before they are normalised
        self.middle = math.sqrt(2.0 * math.pi) * math.erf(threshold / math.sqrt(2.0))
        self.tail = 2.0 * math.exp(-0.5 * threshold**2) / threshold

    def _terms(self, x: Tensor) -> Tensor:
        y = (x - self.location) / self.scale
        loss = functional.huber_loss(
            y, y.new_zeros(()).expand_as(y), reduction="none", delta=self.threshold
        )
        return -(loss + self.log_scale)

    def _finish(self, total: Tensor, count: Tensor) -> Tensor:
        return total - count * math.log(self.middle + self.tail)

    def _variance(self) -> float:
        t = self.threshold
        squares = self.middle + self.tail * (2.0 + 2.0 / t**2)
        return squares / (self.middle + self.tail)

    def _standard(self, p: float) -> float:
        return float(self._quantile(torch.tensor(p, dtype=torch.float64)))

    def _draw(self, noise: NoiseSource, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        return self._quantile(noise.uniform(name, shape).double()).to(self.location.dtype)

    def _quantile(self, p: Tensor) -> Tensor:
        """The quantile for location 0 and scale 1, by the mass on the nearer side."""
        t, mass = self.threshold, self.middle + self.tail
        near = torch.minimum(p, 1.0 - p) * mass
        outer = 0.5 * t - torch.log(near * t) / t
        half = 0.5 + (near - 0.5 * mass) / math.sqrt(2.0 * math.pi)
        inner = -torch.special.ndtri(half.clamp_min(0.0))
        distance = torch.where(near < 0.5 * self.tail, outer, inner)
        return (p - 0.5).sign() * distance


@config
class HuberConfig(NormalConfig):
    """Options of the Huber likelihood: those of `NormalConfig`, and where its tails begin.

    The smooth L1 loss with the constant b is, up to constants, this with the scale and the
    threshold both at the square root of b: without options it is torch's own.

    Args:
        threshold: Distance from the location, in scales, beyond which the tails are exponential.
    """

    threshold: float = attrs.field(default=1.0, validator=positive)


class Huber(LocationScaleHead):
    """Huber likelihood; the decoder emits the location, and the raw log scale if predicted."""

    name = "huber"

    def __init__(self, config: HuberConfig, shape: tuple[int, ...]) -> None:
        super().__init__(config, shape)
        self.threshold = config.threshold

    def forward(self, params: Tensor) -> Likelihood:
        """See `LikelihoodHead.forward`."""
        location, *raw = self.split(params)
        log_scale = self.scale(location, *raw)
        return HuberLikelihood(location, log_scale, self.threshold, self.event_ndim)
