"""What every likelihood offers: densities over observed elements, moments, draws, quantiles."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

from multivae_core.errors import ConfigError, DataError
from multivae_core.noise import NoiseSource

__all__ = [
    "Likelihood", "LikelihoodHead", "PositiveParameter", "Rule", "number_above",
]  # fmt: skip


class Likelihood(ABC):
    """Distribution of one modality given the latents: a light object, without argument checks.

    Leading axes, ``(R,)`` or ``(n, B)``, are batch axes; the last ``event_ndim`` axes are those of
    the modality. Densities are in nats and include every normalising constant. A subclass gives
    `_terms`, and may keep constants that all elements share for `_finish`.

    Args:
        event_ndim: Number of axes of the modality.
    """

    __slots__ = ("event_ndim",)

    is_density: ClassVar[bool] = True
    whole_numbers: ClassVar[bool] = False
    _class_axes: ClassVar[int] = 0

    def __init__(self, event_ndim: int) -> None:
        self.event_ndim = event_ndim

    def element_log_prob(self, x: Tensor) -> Tensor:
        """Return log p of every element, nats.

        Args:
            x: ``(..., *shape)``, broadcast over the leading axes.

        Returns:
            ``(..., *shape)``; a categorical has no class axis left.
        """
        terms = self._terms(x)
        return self._finish(terms, terms.new_ones(()))

    def log_prob(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Return log p of the observed elements, nats per row.

        What lies in ``x`` under a hole, NaN included, changes neither value nor gradient.

        Args:
            x: ``(..., *shape)``, broadcast over the leading axes.
            observed: ``(..., *shape)`` bool, True where observed; None: everywhere.

        Returns:
            ``(...)``, the sum over observed elements.
        """
        ndim = self.event_ndim - self._class_axes
        if observed is None:
            terms = self._terms(x)
            size = math.prod(terms.shape[terms.ndim - ndim :])
            return self._finish(_sum(terms, ndim), terms.new_full((), size))
        # selected on the way in as well: the gradient of a masked NaN is 0 * NaN
        terms = self._terms(torch.where(observed, x, 0.0))
        seen = observed.all(-1) if self._class_axes else observed
        terms = torch.where(seen, terms, 0.0)
        return self._finish(_sum(terms, ndim), _sum(seen.to(terms.dtype), ndim))

    @abstractmethod
    def _terms(self, x: Tensor) -> Tensor:
        """Return log p of every element up to what `_finish` adds."""

    def _finish(self, total: Tensor, count: Tensor) -> Tensor:
        """Turn the sum of ``count`` terms into log p."""
        return total

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """The mean, ``(..., *shape)``."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """The variance of every element, ``(..., *shape)``."""

    def sample(self, noise: NoiseSource, name: Hashable) -> Tensor:
        """Draw ``(..., *shape)``: a row's draw depends on that row's uniforms only.

        Args:
            noise: Source of random numbers; the leading axes must be ``(n, B)``.
            name: Name of the draw.
        """
        return self.quantile(noise.uniform(name, tuple(self.mean.shape)))

    @abstractmethod
    def quantile(self, p: float | Tensor) -> Tensor:
        """Return the p-quantile of every element, ``(..., *shape)``, for 0 < p < 1.

        For whole numbers it is the smallest value whose distribution function reaches p, which
        may be a tensor ``(..., *shape)`` there.
        """

    def typical(self, mean: Tensor, samples: Tensor) -> Tensor:
        """Return one value per element that stands for many draws of a mixture of these.

        Args:
            mean: Mean of the mixture, ``(..., *shape)``.
            samples: Draws from it, ``(n, ..., *shape)``.

        Returns:
            The mean of a real-valued modality, the median draw of whole numbers, the one-hot
            most probable class of a categorical.
        """
        if self._class_axes:
            best = mean.argmax(dim=-1, keepdim=True)
            return torch.zeros_like(mean).scatter(-1, best, 1.0)
        return samples.median(dim=0).values if self.whole_numbers else mean

    def affine(self, shift: Tensor | float, scale: Tensor | float) -> Likelihood:
        """Return the likelihood of ``shift + scale * x``; only real-valued ones change.

        Args:
            shift: Broadcast against ``shape``.
            scale: Broadcast against ``shape``, above 0.
        """
        return self


@attrs.frozen
class Rule:
    """What measurements must be, how that reads after the name of a likelihood, what helps."""

    broken: Callable[[Tensor], Tensor]  # where (R, *shape) values break it, of the same shape
    text: str
    remedy: str
    class_axis: bool = False  # whether the last axis is judged as a whole


class LikelihoodHead(nn.Module):
    """Turns what a decoder emits into a `Likelihood`, and owns the parameters shared by all rows.

    A subclass names itself, says by which rule it judges data, and builds the likelihood.

    Args:
        config: Options.
        shape: Shape of the modality.
    """

    name: ClassVar[str]  # of the registry, for messages
    result: ClassVar[Callable[..., Likelihood]]
    n_params: int = 1
    rule: ClassVar[Rule | None] = None  # None: real numbers, whose scale may be changed
    real_valued: ClassVar[bool] = False
    counts: ClassVar[bool] = False

    def __init__(self, config: object, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.event_ndim = len(self.shape)

    def forward(self, params: Tensor) -> Likelihood:
        """Build the likelihood.

        Args:
            params: ``(..., n_params, *shape)``, what the decoder emits.
        """
        return self.result(*self.split(params), self.event_ndim)

    def split(self, params: Tensor) -> tuple[Tensor, ...]:
        """Return the ``n_params`` tensors ``(..., *shape)`` of what a decoder emits."""
        axis = -(self.event_ndim + 1)
        # a view goes backward for free, where unbinding one parameter would copy
        return (params.squeeze(axis),) if self.n_params == 1 else params.unbind(axis)

    def check(
        self,
        values: Tensor,
        observed: Tensor | None = None,
        name: str = "",
        rows: Tensor | None = None,
    ) -> None:
        """Refuse data that this likelihood cannot describe; what is not observed is not read.

        Args:
            values: ``(R, *shape)``, the rows that have the modality.
            observed: ``(R, *shape)`` bool, True where observed; None: everywhere.
            name: Name of the modality, for the message.
            rows: ``(R,)`` numbers of these rows in the data set, for the message.

        Raises:
            DataError: The first value that does not fit, with the remedy.
        """
        if self.rule is None:
            self._require_floats(values, name)
            return
        wrong = self.rule.broken(values)
        if observed is not None:
            wrong = wrong & (observed.all(-1, True) if self.rule.class_axis else observed)
        if not bool(wrong.any()):
            return
        first = int(wrong.flatten().int().argmax())
        row = first // wrong[0].numel()
        raise DataError(
            f"modality {name!r}, row {row if rows is None else int(rows[row])}: likelihood"
            f" {self.name!r} {self.rule.text}, got {values.flatten()[first].item()};"
            f" {self.rule.remedy}"
        )

    def _require_floats(self, values: Tensor, name: str) -> None:
        if values.is_floating_point():
            return
        remedy = (
            "choose likelihood='bernoulli', or call .float() on the data"
            if values.dtype == torch.bool
            else "call .float() on the data if they are measurements, or choose"
            " likelihood='poisson' or 'negative_binomial' (counts) or 'categorical' (one-hot)"
        )
        raise DataError(
            f"modality {name!r}: likelihood {self.name!r} is for real numbers, the data are"
            f" {str(values.dtype).removeprefix('torch.')}; {remedy}"
        )


class PositiveParameter(nn.Module):
    """A positive parameter of a likelihood: fixed, learned per feature, or predicted per row.

    Learned and predicted ones are ``exp(raw) + minimum``, computed in logs: smooth, above the
    minimum whatever the network says, and with a gradient everywhere.

    Args:
        value: A number, ``"learned"`` or ``"predicted"``.
        initial: Where a learned one starts; also what a predicted one is where the decoder says 0.
        minimum: What a learned or predicted one stays above.
        shape: Shape of the modality.
    """

    def __init__(
        self, value: float | str, initial: float, minimum: float, shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.fixed = None if isinstance(value, str) else float(value)
        self.predicted = value == "predicted"
        self.start = math.log(initial - minimum)
        self.log_minimum = math.log(minimum)
        learned = nn.Parameter(torch.full(shape, self.start)) if value == "learned" else None
        self.raw: nn.Parameter | None = learned

    def forward(self, like: Tensor, predicted: Tensor | None = None) -> Tensor:
        """Return the logarithm of the parameter, broadcastable to ``(..., *shape)``.

        Args:
            like: Gives type and device of a fixed one.
            predicted: ``(..., *shape)``, what the decoder emits for a predicted one.
        """
        if self.fixed is not None:
            return like.new_full((), math.log(self.fixed))
        raw = self.raw if predicted is None else predicted + self.start
        if raw is None:
            raise TypeError("a predicted parameter needs what the decoder emits for it")
        return torch.logaddexp(raw, like.new_full((), self.log_minimum))


def number_above(
    limit: float, *words: str, below: str = ""
) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """Validator: a number above a limit and below another field, or one of a few words."""

    def check(instance: Any, field: attrs.Attribute[Any], value: Any) -> None:
        top = getattr(instance, below) if below else math.inf
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if (number and limit < value < top) or (isinstance(value, str) and value in words):
            return
        rule = f"must be {'' if number or not words else 'a number '}> {limit:g}"
        rule += f" and < {below} = {top!r}" if below else ""
        rule += "" if number else "".join(f" or {word!r}" for word in words)
        raise ConfigError(f"{rule}, got {value!r}", field.name)

    return check


def _sum(terms: Tensor, ndim: int) -> Tensor:
    """Sum over the last ``ndim`` axes; over none when ``ndim`` is 0."""
    return terms.sum(tuple(range(-ndim, 0))) if ndim else terms
