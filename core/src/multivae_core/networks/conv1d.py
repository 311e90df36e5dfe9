"""One-dimensional convolutional networks: encoder and decoder trunks for sequences."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import one_of
from multivae_core.errors import ConfigError
from multivae_core.networks.blocks import (
    ACTIVATIONS,
    check_odd,
    check_sizes,
    check_some_sizes,
    check_whole,
    input_with_mask,
    to_tuple,
)
from multivae_core.networks.pyramid import Doubling, Halving

__all__ = ["MIN_LENGTH", "Conv1dConfig", "Conv1dDecoder", "Conv1dEncoder"]

MIN_LENGTH = 8


@attrs.frozen(kw_only=True)
class Conv1dConfig:
    """Options of a convolutional network over sequences (C, L).

    Every level halves the length; the decoder gives the exact length back, an odd one too.

    Args:
        channels: Widths of the levels, the finest first.
        hidden: Sizes of the dense layers between the coarsest level and the features.
        kernel_size: Length of the kernels, odd; on the way up they are one longer.
        max_cells: Halving goes on at the last width until no more than so many cells are left.
        activation: Name of the activation.
        normalisation: None, or ``"layer"``: groups of channels within a row.
    """

    channels: tuple[int, ...] = attrs.field(
        default=(32, 64, 128), converter=to_tuple, validator=check_some_sizes
    )
    hidden: tuple[int, ...] = attrs.field(
        default=(256,), converter=to_tuple, validator=check_sizes
    )
    kernel_size: int = attrs.field(default=5, validator=check_odd)
    max_cells: int = attrs.field(default=32, validator=check_whole)
    activation: str = attrs.field(default="relu", validator=one_of(*ACTIVATIONS))
    normalisation: str | None = attrs.field(default=None, validator=one_of(None, "layer"))


class Conv1dEncoder(nn.Module):
    """Features of a sequence.

    Args:
        config: Options.
        shape: (C, L), a length of at least 8.
        with_mask: Whether the element mask is a further input, as further channels.

    Raises:
        ConfigError: Another shape.
    """

    def __init__(
        self, config: Conv1dConfig, shape: tuple[int, ...], with_mask: bool = False
    ) -> None:
        super().__init__()
        channels, length = _checked(shape)
        self.with_mask = with_mask
        self.body = Halving(config, channels * (1 + with_mask), (length,))
        self.out_features = self.body.out_features

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Compute features.

        Args:
            x: ``(R, C, L)``, zeros under holes.
            observed: ``(R, C, L)`` bool, True where observed; None: everywhere.

        Returns:
            ``(R, out_features)``.
        """
        features: Tensor = self.body(input_with_mask(x, observed, self.with_mask))
        return features


class Conv1dDecoder(nn.Module):
    """Parameters of a sequence out of latents.

    Args:
        config: Options, those of the encoder: the layers run backwards.
        in_features: Size of the latents.
        shape: (C, L), a length of at least 8.

    Raises:
        ConfigError: Another shape.
    """

    def __init__(self, config: Conv1dConfig, in_features: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, length = _checked(shape)
        self.body = Doubling(config, in_features, channels, (length,))

    def forward(self, z: Tensor) -> Tensor:
        """Decode ``(R, in_features)`` to ``(R, C, L)``."""
        out: Tensor = self.body(z, torch.contiguous_format)
        return out


def _checked(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2 or shape[1] < MIN_LENGTH:
        raise ConfigError(
            f"network 'conv1d' needs (C, L) with a length of at least {MIN_LENGTH}, got shape"
            f" {tuple(shape)}; choose 'mlp', which takes any shape"
        )
    return shape[0], shape[1]
