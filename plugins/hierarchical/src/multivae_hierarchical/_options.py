"""Fields of configurations, and an option, that both models of this family have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from torch import Tensor

from multivae_core.config import one_of
from multivae_core.data import Batch
from multivae_core.errors import ConfigError
from multivae_core.noise import Step

__all__ = ["check_lengths", "choice", "numbers", "share_of_rows"]


def choice(*allowed: Any) -> Any:
    """A field that takes one of a few values, the first by default."""
    return attrs.field(default=allowed[0], validator=one_of(*allowed))


def numbers(rule: Any, default: float | None = None) -> Any:
    """A field with a number, or a list of numbers, that keep a rule; or None, by default."""

    def check(instance: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if value is None and default is None:
            return
        for number in value if isinstance(value, list) else [value]:
            rule(instance, field, number)

    return attrs.field(default=default, validator=check)


def check_lengths(config: Any, lengths: Mapping[str, int]) -> None:
    """Refuse lists of another length: option -> entries it must have."""
    for option, wanted in lengths.items():
        given = getattr(config, option)
        if isinstance(given, list) and len(given) != wanted:
            raise ConfigError(f"must have {wanted} entries, got {len(given)}", option)


def share_of_rows(config: Any, batch: Batch, step: Step, like: Tensor) -> Tensor | float:
    """Factor on sums over the modalities of a row: the option ``normalise``.

    Args:
        config: Has that option.
        batch: Says what every row has.
        step: Outside training the factor is 1.
        like: Gives the type.

    Returns:
        1, or M over the number of modalities that a row has, ``(B,)``.
    """
    if not step.training or config.normalise == "available_sum":
        return 1.0
    return len(batch.names) / batch.present.sum(dim=1).clamp_min(1).to(like.dtype)
