"""Convolutional networks: encoder and decoder trunks for images and volumes."""

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

__all__ = ["MIN_SIDE", "ConvConfig", "ConvDecoder", "ConvEncoder"]

MIN_SIDE = 4


@attrs.frozen(kw_only=True)
class ConvConfig:
    """Options of a convolutional network over images (C, H, W) or volumes (C, D, H, W).

    Every level halves the sides; the decoder gives the exact sides back, odd ones too.

    Args:
        channels: Widths of the levels, the finest first.
        hidden: Sizes of the dense layers between the coarsest level and the features.
        kernel_size: Side of the kernels, odd; on the way up they are one longer.
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
    kernel_size: int = attrs.field(default=3, validator=check_odd)
    max_cells: int = attrs.field(default=64, validator=check_whole)
    activation: str = attrs.field(default="relu", validator=one_of(*ACTIVATIONS))
    normalisation: str | None = attrs.field(default=None, validator=one_of(None, "layer"))


class ConvEncoder(nn.Module):
    """Features of an image or a volume.

    Args:
        config: Options.
        shape: (C, H, W) or (C, D, H, W), sides of at least 4.
        with_mask: Whether the element mask is a further input, as further channels.

    Raises:
        ConfigError: Another shape.
    """

    def __init__(
        self, config: ConvConfig, shape: tuple[int, ...], with_mask: bool = False
    ) -> None:
        super().__init__()
        channels, *sides = _checked(shape)
        self.with_mask = with_mask
        self.memory_format = _memory_format(shape)
        self.body = Halving(config, channels * (1 + with_mask), tuple(sides))
        self.out_features = self.body.out_features

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Compute features.

        Args:
            x: ``(R, C, *sides)``, zeros under holes.
            observed: ``(R, C, *sides)`` bool, True where observed; None: everywhere.

        Returns:
            ``(R, out_features)``.
        """
        whole = input_with_mask(x, observed, self.with_mask)
        features: Tensor = self.body(whole.contiguous(memory_format=self.memory_format))
        return features


class ConvDecoder(nn.Module):
    """Parameters of an image or a volume out of latents.

    Args:
        config: Options, those of the encoder: the layers run backwards.
        in_features: Size of the latents.
        shape: (C, H, W) or (C, D, H, W), sides of at least 4.

    Raises:
        ConfigError: Another shape.
    """

    def __init__(self, config: ConvConfig, in_features: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, *sides = _checked(shape)
        self.memory_format = _memory_format(shape)
        self.body = Doubling(config, in_features, channels, tuple(sides))

    def forward(self, z: Tensor) -> Tensor:
        """Decode ``(R, in_features)`` to ``(R, C, *sides)``."""
        out: Tensor = self.body(z, self.memory_format)
        # densities run over it and the data together: one layout for both
        return out.contiguous()


def _memory_format(shape: tuple[int, ...]) -> torch.memory_format:
    """Channels last for images, where it is faster; weights keep their usual layout."""
    return torch.channels_last if len(shape) == 3 else torch.contiguous_format


def _checked(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) not in (3, 4) or min(shape[1:]) < MIN_SIDE:
        raise ConfigError(
            "network 'conv' needs (C, H, W) or (C, D, H, W) with sides of at least"
            f" {MIN_SIDE}, got shape {tuple(shape)}; choose 'mlp', which takes any shape"
        )
    return tuple(shape)
