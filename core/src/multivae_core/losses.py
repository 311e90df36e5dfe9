"""Pieces of objectives: importance-weighted bounds and their gradient estimators, in nats."""

from __future__ import annotations

import math
from typing import Any

import attrs
import torch
from torch import Tensor

__all__ = ["LossOutput", "Term", "doubly_reparameterised", "log_mean_exp", "scale_gradient"]


@attrs.frozen
class Term:
    """One term of an objective.

    A value that is not a sum over rows (a divergence between samples, a correlation) is a scalar
    with a scalar weight, for example the number of rows that it was computed from. Several
    processes compute one each, of the rows at hand, and these are averaged by their weights.

    Args:
        value: ``(B,)``, nats per row, to be minimised; or a scalar.
        weight: ``(B,)`` weight of every row; None: 1 for the rows of which something is seen.
            The term's part of the objective is ``sum(weight * value) / sum(weight)`` over the
            global batch, and 0 where no row counts. A scalar's weight is a scalar.
    """

    value: Tensor
    weight: Tensor | None = None


@attrs.frozen(kw_only=True)
class LossOutput:
    """What a model's loss returns; the objective is the sum over its terms.

    Args:
        terms: Name -> term. With one term for the whole bound, or one for each of its parts.
        bound: ``(B,)`` nats per row, to be minimised: what is reported where the differentiated
            value is a surrogate; None: the terms are their own report.
        metrics: Detached ``(B,)`` values to watch, for example the parts of a bound.
        surrogate: A scalar whose gradient belongs to the objective and whose value does not.
    """

    terms: dict[str, Term]
    bound: Tensor | None = None
    metrics: dict[str, Tensor] = attrs.field(factory=dict)
    surrogate: Tensor | None = None


def log_mean_exp(values: Tensor, dim: int = 0) -> Tensor:
    """Logarithm of the mean of exponentials along one axis."""
    if values.shape[dim] == 1:
        return values.squeeze(dim)
    return values.logsumexp(dim=dim) - math.log(values.shape[dim])


def doubly_reparameterised(
    log_w: Tensor, dim: int = 0, usable: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The surrogate of Tucker et al. 2019 (eq. 8) and its normalised weights.

    The densities of q inside ``log_w`` must be computed with detached parameters, and the
    gradient into the samples must be scaled once more by the weights, see `scale_gradient`.

    Args:
        log_w: Log importance weights with an axis of samples, all finite.
        dim: That axis.
        usable: Bool, the samples that count; None: all.

    Returns:
        The sum over samples of detached normalised weights times ``log_w``, and the weights.
    """
    counted = log_w if usable is None else torch.where(usable, log_w, -math.inf)
    weights = counted.detach().softmax(dim=dim)
    return (weights * log_w).sum(dim=dim), weights


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, cell: list[Tensor]) -> Tensor:
        ctx.cell = cell
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.cell
        return gradient * weights, None


def scale_gradient(value: Tensor, cell: list[Tensor]) -> Tensor:
    """Pass a value on; its gradient is multiplied by what the cell holds at backward time.

    Args:
        value: Any tensor, for example samples ``(K, B, D)`` that feed decoders and densities.
        cell: An empty list that is given its one tensor, broadcastable to ``value``, before the
            backward pass: importance weights are known only after the decoders have run.
    """
    return _ScaleGradient.apply(value, cell)  # type: ignore[no-any-return,no-untyped-call]
