"""Multilayer perceptrons: encoder and decoder trunks for data of any shape."""

from __future__ import annotations

import math

import attrs
from torch import Tensor, nn

from multivae_core.config import one_of
from multivae_core.networks.blocks import (
    ACTIVATIONS,
    check_probability,
    check_sizes,
    dense_layers,
    input_with_mask,
    to_tuple,
)

__all__ = ["MLPConfig", "MLPDecoder", "MLPEncoder"]


@attrs.frozen(kw_only=True)
class MLPConfig:
    """Options of a multilayer perceptron.

    Args:
        hidden: Sizes of the hidden layers, in the order of the computation; () is a linear map.
        activation: Name of the activation.
        dropout: Share of hidden units that are dropped in training. It draws from torch's own
            generator: with it, a run on several processes is not that on one.
        normalisation: None, or ``"layer"`` for layer normalisation.
    """

    hidden: tuple[int, ...] = attrs.field(
        default=(256,), converter=to_tuple, validator=check_sizes
    )
    activation: str = attrs.field(default="relu", validator=one_of(*ACTIVATIONS))
    dropout: float = attrs.field(default=0.0, validator=check_probability)
    normalisation: str | None = attrs.field(default=None, validator=one_of(None, "layer"))


class MLPEncoder(nn.Module):
    """Features of a modality of any shape.

    Args:
        config: Options.
        shape: Shape of the modality.
        with_mask: Whether the element mask is a further input.
    """

    def __init__(self, config: MLPConfig, shape: tuple[int, ...], with_mask: bool = False) -> None:
        super().__init__()
        self.with_mask = with_mask
        inputs = math.prod(shape)
        self.inputs = inputs
        self.out_features = config.hidden[-1] if config.hidden else inputs * (1 + with_mask)
        self.layers = nn.Sequential(*_hidden(config, inputs * (1 + with_mask)))

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Compute features.

        Args:
            x: ``(R, *shape)``, zeros under holes.
            observed: ``(R, *shape)`` bool, True where observed; None: everywhere.

        Returns:
            ``(R, out_features)``.
        """
        rows = x.shape[0]
        mask = None if observed is None else observed.reshape(rows, self.inputs)
        flat = input_with_mask(x.reshape(rows, self.inputs), mask, self.with_mask)
        features: Tensor = self.layers(flat)
        return features


class MLPDecoder(nn.Module):
    """Parameters of a modality of any shape out of latents.

    Args:
        config: Options.
        in_features: Size of the latents.
        shape: Shape of what comes out.
    """

    def __init__(self, config: MLPConfig, in_features: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        last = config.hidden[-1] if config.hidden else in_features
        self.layers = nn.Sequential(
            *_hidden(config, in_features), nn.Linear(last, math.prod(self.shape))
        )

    def forward(self, z: Tensor) -> Tensor:
        """Decode ``(R, in_features)`` to ``(R, *shape)``."""
        out: Tensor = self.layers(z)
        return out.view(z.shape[0], *self.shape)


def _hidden(config: MLPConfig, inputs: int) -> list[nn.Module]:
    return dense_layers(
        inputs, config.hidden, config.activation, config.dropout, config.normalisation == "layer"
    )
