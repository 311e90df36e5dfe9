"""What the default networks share: activations, rules for options, dense layers, the mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from multivae_core.errors import ConfigError

__all__ = [
    "ACTIVATIONS",
    "check_odd",
    "check_probability",
    "check_sizes",
    "check_some_sizes",
    "check_whole",
    "dense_layers",
    "input_with_mask",
    "to_tuple",
]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def to_tuple(value: Any) -> Any:
    """Converter: a list, as JSON has it, becomes a tuple; the validator sees everything else."""
    return tuple(value) if isinstance(value, list) else value


def check_sizes(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    """Validator: a tuple of whole numbers above 0."""
    whole = isinstance(value, tuple) and all(type(size) is int for size in value)
    if not whole or any(size < 1 for size in value):
        raise ConfigError(f"must be a tuple of whole numbers >= 1, got {value!r}", field.name)


def check_some_sizes(instance: Any, field: attrs.Attribute[Any], value: Any) -> None:
    """Validator: a tuple of at least one whole number above 0."""
    check_sizes(instance, field, value)
    if not value:
        raise ConfigError("must have at least one entry, got ()", field.name)


def check_probability(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    """Validator: a number from 0 up, below 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"must be a number >= 0 and < 1, got {value!r}", field.name)


def check_odd(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    """Validator: an odd whole number above 2."""
    if type(value) is not int or value < 3 or value % 2 == 0:
        raise ConfigError(f"must be an odd whole number >= 3, got {value!r}", field.name)


def check_whole(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    """Validator: a whole number above 0."""
    if type(value) is not int or value < 1:
        raise ConfigError(f"must be a whole number >= 1, got {value!r}", field.name)


def input_with_mask(x: Tensor, observed: Tensor | None, with_mask: bool) -> Tensor:
    """Append the element mask along the first axis of the modality, if the network takes it.

    Args:
        x: ``(R, C, ...)``.
        observed: ``(R, C, ...)`` bool; None: everything.
        with_mask: Whether the network takes the mask.

    Returns:
        ``(R, 2C, ...)``, or ``x`` itself.
    """
    if not with_mask:
        return x
    mask = torch.ones_like(x) if observed is None else observed.to(x.dtype)
    return torch.cat((x, mask), dim=1)


def dense_layers(
    inputs: int, hidden: tuple[int, ...], activation: str, dropout: float, normalise: bool
) -> list[nn.Module]:
    """Linear layers, each with its normalisation, activation and dropout."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers.append(nn.Linear(inputs, size))
        if normalise:
            layers.append(nn.LayerNorm(size))
        layers.append(ACTIVATIONS[activation]())
        if dropout:
            layers.append(nn.Dropout(dropout))
        inputs = size
    return layers
