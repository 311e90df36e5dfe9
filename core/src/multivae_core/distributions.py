"""Posteriors over one latent: light objects with closed-form arithmetic, everything in nats."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from multivae_core.noise import NoiseSource

__all__ = ["FAMILIES", "Distribution", "Laplace", "Mixture", "Normal", "either", "expert"]

FAMILIES = ("normal", "normal_with_softplus", "laplace_with_softmax")
"""How a raw head becomes the scale of an expert, see `expert`."""

_LOG_2PI = math.log(2.0 * math.pi)
_SCALE_FLOOR = 1e-6


class Distribution(ABC):
    """A distribution over one latent of shape ``event`` for every row of a batch."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """``(*batch, *event)``."""

    @abstractmethod
    def draw(self, n: int, noise: NoiseSource, name: Hashable) -> tuple[Tensor, Tensor]:
        """Draw with gradients.

        Args:
            n: Samples per row.
            noise: Source of the random numbers.
            name: Name of the draw.

        Returns:
            Samples ``(n, B, *event)`` and the log-density that importance weights must use for
            them, ``(n, B)`` in nats.
        """

    @abstractmethod
    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats, summed over the event: ``(n, B, *event)`` -> ``(n, B)``."""

    @abstractmethod
    def detach(self) -> Distribution:
        """The same distribution with its parameters cut from the graph."""


class Normal(Distribution):
    """Gaussian with a diagonal covariance.

    Args:
        mean: ``(*batch, *event)``.
        log_variance: The same shape.
        event_ndim: How many last axes belong to one latent.
    """

    __slots__ = ("_log_variance", "_mean", "_natural", "event_ndim")

    def __init__(self, mean: Tensor, log_variance: Tensor, event_ndim: int = 1) -> None:
        self._mean: Tensor | None = mean
        self._log_variance: Tensor | None = log_variance
        self._natural: tuple[Tensor, Tensor] | None = None
        self.event_ndim = event_ndim

    @classmethod
    def natural(cls, precision: Tensor, pull: Tensor) -> Normal:
        """Make a Gaussian of precision and precision times mean, each ``(*batch, D)``.

        Mean and variance are found when they are asked for: a fusion makes many Gaussians of
        which most are needed for their divergence alone.
        """
        made = cls(precision, precision)
        made._mean, made._log_variance, made._natural = None, None, (precision, pull)
        return made

    @property
    def mean(self) -> Tensor:
        """See `Distribution.mean`."""
        if self._mean is None:
            precision, pull = cast(tuple[Tensor, Tensor], self._natural)
            self._mean = pull / precision
        return self._mean

    @property
    def log_variance(self) -> Tensor:
        """``(*batch, *event)``."""
        if self._log_variance is None:
            self._log_variance = -cast(tuple[Tensor, Tensor], self._natural)[0].log()
        return self._log_variance

    @property
    def variance(self) -> Tensor:
        """``(*batch, *event)``."""
        return self.log_variance.exp() if self._natural is None else 1.0 / self._natural[0]

    def draw(self, n: int, noise: NoiseSource, name: Hashable) -> tuple[Tensor, Tensor]:
        """See `Distribution.draw`."""
        value = self.sample(n, noise, name)
        return value, self.log_prob(value)

    def sample(self, n: int, noise: NoiseSource, name: Hashable) -> Tensor:
        """Draw with gradients, ``(B, *event)`` -> ``(n, B, *event)``."""
        return self.place(noise.normal(name, (n, *self.mean.shape)))

    def sample_once(self, noise: NoiseSource, name: Hashable) -> Tensor:
        """Draw once from each of n Gaussians per row, ``(n, B, *event)``, with gradients."""
        return self.place(noise.normal(name, tuple(self.mean.shape)))

    def place(self, standard: Tensor) -> Tensor:
        """Shift and scale draws of N(0, 1), which broadcast against the mean."""
        return self.mean + (0.5 * self.log_variance).exp() * standard

    def log_prob(self, value: Tensor) -> Tensor:
        """See `Distribution.log_prob`."""
        squared = (value - self.mean).square() * (-self.log_variance).exp()
        constant = self._summed(self.log_variance + _LOG_2PI)
        return -0.5 * (self._summed(squared) + constant)

    def kl(self, other: Normal | None = None) -> Tensor:
        """KL(self || other) in nats, ``(*batch)``; without another, the prior N(0, I)."""
        if other is None and self._natural is not None:
            return cast(Tensor, _NaturalKL.apply(*self._natural))  # type: ignore[no-untyped-call]
        if other is None:
            terms = self.mean.square() + (self.variance - self.log_variance)
            return 0.5 * (self._summed(terms) - math.prod(terms.shape[-self.event_ndim :]))
        ratio = self.log_variance - other.log_variance
        shift = (self.mean - other.mean).square() * (-other.log_variance).exp()
        return self._summed(0.5 * (ratio.exp() + shift - 1.0 - ratio))

    def detach(self) -> Normal:
        """See `Distribution.detach`."""
        return self._each(Tensor.detach)

    def __getitem__(self, item: Any) -> Normal:
        """Select along the first axis of the batch."""
        return self._each(lambda parameter: parameter[item])

    def pick(self, chosen: Tensor) -> Normal:
        """Take one component of every row: ``(S, B, D)`` at ``(n, B)`` -> ``(n, B, D)``."""
        return self._each(lambda parameter: _picked(parameter, chosen))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Normal:
        """Do the same to both parameters, whichever they are."""
        if self._natural is not None:
            return Normal.natural(change(self._natural[0]), change(self._natural[1]))
        return Normal(change(self.mean), change(self.log_variance), self.event_ndim)

    def _summed(self, elements: Tensor) -> Tensor:
        return elements.sum(dim=tuple(range(-self.event_ndim, 0)))


class Laplace(Distribution):
    """Laplace with independent elements.

    Args:
        mean: ``(*batch, D)``.
        scale: The same shape; a Laplace scale, not a standard deviation.
    """

    __slots__ = ("_mean", "scale")

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        self._mean = mean
        self.scale = scale

    @property
    def mean(self) -> Tensor:
        """See `Distribution.mean`."""
        return self._mean

    def draw(self, n: int, noise: NoiseSource, name: Hashable) -> tuple[Tensor, Tensor]:
        """See `Distribution.draw`."""
        value = self.sample(n, noise, name)
        return value, self.log_prob(value)

    def sample(self, n: int, noise: NoiseSource, name: Hashable) -> Tensor:
        """Draw with gradients, ``(B, D)`` -> ``(n, B, D)``."""
        return self.place(noise.laplace(name, (n, *self.mean.shape)))

    def sample_once(self, noise: NoiseSource, name: Hashable) -> Tensor:
        """Draw once from each of n Laplaces per row, ``(n, B, D)``, with gradients."""
        return self.place(noise.laplace(name, tuple(self.mean.shape)))

    def place(self, standard: Tensor) -> Tensor:
        """Shift and scale draws of the Laplace of scale 1, which broadcast against the mean."""
        return self.mean + self.scale * standard

    def log_prob(self, value: Tensor) -> Tensor:
        """See `Distribution.log_prob`."""
        deviation = ((value - self.mean).abs() * self.scale.reciprocal()).sum(dim=-1)
        return -(deviation + (2.0 * self.scale).log().sum(dim=-1))

    def kl(self, other: Laplace) -> Tensor:
        """KL(self || other) in nats, ``(*batch)``."""
        shift = (self.mean - other.mean).abs()
        ratio = self.scale / other.scale
        tail = ratio * (-shift / self.scale).exp()
        return (shift / other.scale + tail - ratio.log() - 1.0).sum(dim=-1)

    def detach(self) -> Laplace:
        """See `Distribution.detach`."""
        return Laplace(self.mean.detach(), self.scale.detach())

    def __getitem__(self, item: Any) -> Laplace:
        """Select along the first axis of the batch."""
        return Laplace(self.mean[item], self.scale[item])

    def pick(self, chosen: Tensor) -> Laplace:
        """Take one component of every row: ``(S, B, D)`` at ``(n, B)`` -> ``(n, B, D)``."""
        return Laplace(_picked(self.mean, chosen), _picked(self.scale, chosen))


class Mixture(Distribution):
    """A mixture whose components are available or not in every row.

    Args:
        components: Gaussians or Laplaces with a first axis of components: ``(S, B, D)``.
        weights: ``(B, S)``, rows sum to 1, exactly 0 where a component is not available.
    """

    __slots__ = ("components", "weights")

    def __init__(self, components: Normal | Laplace, weights: Tensor) -> None:
        self.components = components
        self.weights = weights

    @property
    def mean(self) -> Tensor:
        """Weighted mean of the components' means, ``(B, D)``."""
        return torch.einsum("bs,sbd->bd", self.weights, self.components.mean)

    def draw(self, n: int, noise: NoiseSource, name: Hashable) -> tuple[Tensor, Tensor]:
        """Allot the draws to the components and score with the realised proportions.

        Scoring with what was really allotted (the balance heuristic of Veach & Guibas 1995)
        makes importance weights unbiased for any number of draws.
        """
        chosen = noise.choice((name, "component"), self.weights, n)
        value = self.components.pick(chosen).sample_once(noise, name)
        ticks = torch.ones_like(chosen, dtype=self.weights.dtype)
        counts = torch.zeros_like(self.weights).scatter_add(1, chosen.T, ticks.T)
        return value, self._log_density(value, counts / n)

    def log_prob(self, value: Tensor) -> Tensor:
        """See `Distribution.log_prob`."""
        return self._log_density(value, self.weights)

    def detach(self) -> Mixture:
        """See `Distribution.detach`."""
        return Mixture(self.components.detach(), self.weights.detach())

    def _log_density(self, value: Tensor, weights: Tensor) -> Tensor:
        parts = self.components
        if isinstance(parts, Normal):
            each = _normal_densities(value, parts)
        else:
            each = parts.log_prob(value[:, None]).permute(0, 2, 1)
        # a plain -inf would give NaN gradients where a component is not available
        usable = weights > 0
        log_weights = torch.where(usable, weights, 1.0).log()
        return torch.where(usable, each + log_weights, -math.inf).logsumexp(dim=-1)


class _NaturalKL(torch.autograd.Function):
    """KL to N(0, I) out of natural parameters, with its gradient written out.

    With v = 1 / precision and m = v pull, the divergence is the sum over the latent of
    (m^2 + v - 1 - log v) / 2; half a dozen passes over all subsets, rows and dimensions fewer
    than automatic differentiation makes.
    """

    @staticmethod
    def forward(ctx: Any, precision: Tensor, pull: Tensor) -> Tensor:
        variance = precision.reciprocal()
        mean = pull * variance
        ctx.save_for_backward(mean, variance)
        terms = torch.addcmul(variance, mean, mean).add_(precision.log())
        return 0.5 * (terms.sum(dim=-1) - precision.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = ctx.saved_tensors
        outer = gradient[..., None] * variance
        inner = torch.addcmul(0.5 * variance, mean, mean).sub_(0.5)
        return inner.mul_(outer).neg_(), outer.mul_(mean)


def _picked(parameters: Tensor, chosen: Tensor) -> Tensor:
    return parameters.gather(0, chosen[..., None].expand(*chosen.shape, parameters.shape[-1]))


def _normal_densities(value: Tensor, parts: Normal) -> Tensor:
    """Log-density of every value under every component, by one matrix product per row.

    The exponent is quadratic in the value, so ``(n, B, D)`` values against ``(S, B, D)``
    components need no array with all four axes. Centring on the mean of the components keeps
    the cancellation between the quadratic and the linear part small.

    Returns:
        ``(n, B, S)``.
    """
    centre = parts.mean.mean(dim=0).detach()
    mean, moved = parts.mean - centre, value - centre
    precision = (-parts.log_variance).exp()
    pull = precision * mean
    constant = (mean * pull + parts.log_variance + _LOG_2PI).sum(dim=-1)
    features = torch.cat([moved.square(), moved], dim=-1).transpose(0, 1)
    loadings = torch.cat([-0.5 * precision, pull], dim=-1).permute(1, 2, 0)
    return torch.baddbmm(-0.5 * constant.T[:, None], features, loadings).transpose(0, 1)


def either(condition: Tensor, one: Normal | Laplace, other: Normal | Laplace) -> Normal | Laplace:
    """One distribution where a condition holds, and another elsewhere.

    Args:
        condition: Bool, broadcast to the parameters.
        one: Its family is that of the result.
        other: Where it is of another family, ``one`` is kept everywhere.
    """
    if isinstance(one, Normal) and isinstance(other, Normal):
        mean = torch.where(condition, one.mean, other.mean)
        return Normal(mean, torch.where(condition, one.log_variance, other.log_variance))
    if isinstance(one, Laplace) and isinstance(other, Laplace):
        mean = torch.where(condition, one.mean, other.mean)
        return Laplace(mean, torch.where(condition, one.scale, other.scale))
    return one


def expert(location: Tensor, raw: Tensor, family: str) -> Normal | Laplace:
    """Make an expert out of the two outputs of an encoder's head.

    Args:
        location: ``(..., D)``.
        raw: ``(..., D)``; ``normal``: log-variance; ``normal_with_softplus``: the standard
            deviation is its softplus; ``laplace_with_softmax``: the scales are its softmax times
            D, so that they sum to D and can only be redistributed (Shi et al. 2019, code).
        family: One of `FAMILIES`.
    """
    if family == "normal":
        return Normal(location, raw)
    if family == "normal_with_softplus":
        return Normal(location, 2.0 * (functional.softplus(raw) + _SCALE_FLOOR).log())
    return Laplace(location, raw.softmax(dim=-1) * raw.shape[-1] + _SCALE_FLOOR)
