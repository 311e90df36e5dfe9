"""Encoder and decoder trunks: multilayer perceptrons, and convolutions in 1, 2 or 3 dimensions."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import config, in_range, one_of
from multivae_core.errors import ConfigError

__all__ = [
    "Conv1dConfig", "Conv1dDecoder", "Conv1dEncoder", "ConvConfig", "ConvDecoder",
    "ConvEncoder", "MLPConfig", "MLPDecoder", "MLPEncoder", "default_network",
]  # fmt: skip

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}
_CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Callable[..., nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


def _to_sizes(value: Any) -> Any:
    """Converter: a sequence of whole numbers, NumPy's too; the rule sees everything else."""
    try:
        return tuple(map(operator.index, value))
    except TypeError:
        return tuple(value) if isinstance(value, list) else value


def _sizes(default: tuple[int, ...], at_least: int = 0) -> Any:
    """A field of whole numbers above 0."""

    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        whole = isinstance(value, tuple) and all(type(size) is int for size in value)
        if not whole or any(size < 1 for size in value):
            raise ConfigError(f"must be a tuple of whole numbers >= 1, got {value!r}", field.name)
        if len(value) < at_least:
            raise ConfigError("must have at least one entry, got ()", field.name)

    return attrs.field(default=default, converter=_to_sizes, validator=check)


def _whole(default: int, least: int = 1, odd: bool = False) -> Any:
    """A field with a whole number."""

    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if type(value) is not int or value < least or (odd and value % 2 == 0):
            rule = f"must be {'an odd' if odd else 'a'} whole number >= {least}"
            raise ConfigError(f"{rule}, got {value!r}", field.name)

    return attrs.field(default=default, validator=check)


@config
class MLPConfig:
    """Options of a multilayer perceptron, over modalities of any shape.

    Args:
        hidden: Sizes of the hidden layers, in the order of the computation; () is a linear map.
        activation: Name of the activation.
        dropout: Share of hidden units that are dropped in training. It draws from torch's own
            generator: with it, a run on several processes is not that on one.
        normalisation: None, or ``"layer"`` for layer normalisation.
    """

    hidden: tuple[int, ...] = _sizes((256,))
    activation: str = attrs.field(default="relu", validator=one_of(*_ACTIVATIONS))
    dropout: float = attrs.field(default=0.0, validator=in_range(0.0, 0.99))
    normalisation: str | None = attrs.field(default=None, validator=one_of(None, "layer"))


@config
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

    channels: tuple[int, ...] = _sizes((32, 64, 128), at_least=1)
    hidden: tuple[int, ...] = _sizes((256,))
    kernel_size: int = _whole(3, least=3, odd=True)
    max_cells: int = _whole(64)
    activation: str = attrs.field(default="relu", validator=one_of(*_ACTIVATIONS))
    normalisation: str | None = attrs.field(default=None, validator=one_of(None, "layer"))


@config
class Conv1dConfig(ConvConfig):
    """Options of a convolutional network over sequences (C, L): those of `ConvConfig`.

    Args:
        kernel_size: Length of the kernels.
        max_cells: Length of the coarsest level, at most.
    """

    kernel_size: int = _whole(5, least=3, odd=True)
    max_cells: int = _whole(32)


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
        inputs = math.prod(shape) * (1 + with_mask)
        self.out_features = config.hidden[-1] if config.hidden else inputs
        self.layers = _dense(config, inputs, config.hidden, config.dropout)

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Compute features ``(R, F)``.

        Args:
            x: ``(R, *shape)``, zeros under holes.
            observed: ``(R, *shape)`` bool, True where observed; None: everywhere.
        """
        # an empty batch leaves no size to guess, and a number has no axis to flatten
        whole = _with_mask(x[:, None], observed, self.with_mask).flatten(1)
        features: Tensor = self.layers(whole)
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
        self.layers = _dense(config, in_features, config.hidden, config.dropout)
        self.layers.append(nn.Linear(last, math.prod(self.shape)))

    def forward(self, z: Tensor) -> Tensor:
        """Decode ``(R, in_features)`` to ``(R, *shape)``."""
        out: Tensor = self.layers(z)
        return out.view(z.shape[0], *self.shape)


class _Pyramid(nn.Module):
    """What the way down and the way up share: the shapes they take, and the levels.

    Args:
        config: Options.
        shape: Shape of the modality.

    Raises:
        ConfigError: A shape that this network does not take.
    """

    name: ClassVar[str] = "conv"
    axes: ClassVar[tuple[int, ...]] = (3, 4)
    min_side: ClassVar[int] = 4
    rule: ClassVar[str] = "(C, H, W) or (C, D, H, W) with sides of at least 4"

    def __init__(self, config: ConvConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        if not self.takes(shape):
            raise ConfigError(
                f"network {self.name!r} needs {self.rule}, got shape {tuple(shape)};"
                " choose 'mlp', which takes any shape"
            )
        # faster for images; weights keep their usual layout
        self.memory_format = torch.channels_last if len(shape) == 3 else torch.contiguous_format
        self.levels = [tuple(shape[1:])]
        self.widths: list[int] = []
        channels = config.channels
        while len(self.widths) < len(channels) or math.prod(self.levels[-1]) > config.max_cells:
            self.levels.append(tuple((side + 1) // 2 for side in self.levels[-1]))
            self.widths.append(channels[min(len(self.widths), len(channels) - 1)])
        self.coarsest = (self.widths[-1], *self.levels[-1])

    @classmethod
    def takes(cls, shape: tuple[int, ...]) -> bool:
        """Whether a modality of this shape can be halved."""
        return len(shape) in cls.axes and min(shape[1:]) >= cls.min_side


class ConvEncoder(_Pyramid):
    """Features of an image or a volume: convolutions of stride 2, then dense layers.

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
        super().__init__(config, shape)
        self.with_mask = with_mask
        flat = math.prod(self.coarsest)
        self.out_features = config.hidden[-1] if config.hidden else flat
        self.convolutions = nn.Sequential()
        inputs, kernel = shape[0] * (1 + with_mask), config.kernel_size
        convolution = _CONVOLUTIONS[len(shape) - 1]
        for width in self.widths:  # a side n becomes (n + 1) // 2: any size will do
            layer = convolution(inputs, width, kernel, stride=2, padding=kernel // 2)
            self.convolutions.extend([layer, *_after(config, width)])
            inputs = width
        self.dense = _dense(config, flat, config.hidden)

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Compute features ``(R, F)``; see `MLPEncoder.forward`."""
        whole = _with_mask(x, observed, self.with_mask)
        maps = self.convolutions(whole.contiguous(memory_format=self.memory_format))
        features: Tensor = self.dense(maps.flatten(1))
        return features


class ConvDecoder(_Pyramid):
    """Parameters of an image or a volume: dense layers, then transposed convolutions.

    Their kernel is one longer than that of the way down: it is then a multiple of the stride,
    and no checkerboard appears (Odena, Dumoulin & Olah 2016).

    Args:
        config: Options, those of the encoder: the layers run backwards.
        in_features: Size of the latents.
        shape: (C, H, W) or (C, D, H, W), sides of at least 4.

    Raises:
        ConfigError: Another shape.
    """

    def __init__(self, config: ConvConfig, in_features: int, shape: tuple[int, ...]) -> None:
        super().__init__(config, shape)
        sizes = (*reversed(config.hidden), math.prod(self.coarsest))
        self.dense = _dense(config, in_features, sizes)
        self.convolutions = nn.Sequential()
        kernel, transposed = config.kernel_size, _TRANSPOSED[len(shape) - 1]
        for depth in reversed(range(len(self.widths))):
            width = self.widths[depth - 1] if depth else shape[0]
            odd = tuple(side % 2 for side in self.levels[depth])  # gives the sides back exactly
            padding = tuple(kernel // 2 + rest for rest in odd)
            layer = transposed(
                self.widths[depth], width, kernel + 1, 2, padding=padding, output_padding=odd
            )
            self.convolutions.extend([layer, *(_after(config, width) if depth else ())])

    def forward(self, z: Tensor) -> Tensor:
        """Decode ``(R, in_features)`` to ``(R, C, *sides)``."""
        coarse = self.dense(z).view(z.shape[0], *self.coarsest)
        out: Tensor = self.convolutions(coarse.contiguous(memory_format=self.memory_format))
        # densities run over it and the data together: one layout for both
        return out.contiguous()


class _Sequences(_Pyramid):
    name = "conv1d"
    axes = (2,)
    min_side = 8
    rule = "(C, L) with a length of at least 8"


class Conv1dEncoder(_Sequences, ConvEncoder):
    """Features of a sequence (C, L) of a length of at least 8; see `ConvEncoder`."""


class Conv1dDecoder(_Sequences, ConvDecoder):
    """Parameters of a sequence (C, L) of a length of at least 8; see `ConvDecoder`."""


def default_network(shape: tuple[int, ...], class_axis: bool = False) -> str:
    """Name the network that suits a shape, as encoder and as decoder.

    Args:
        shape: Shape of the modality.
        class_axis: Whether the last axis holds classes (one-hot data): neighbours on it mean
            nothing, and convolutions would assume that they do.
    """
    fitting = (kind.name for kind in (ConvEncoder, Conv1dEncoder) if kind.takes(shape))
    return "mlp" if class_axis else next(fitting, "mlp")


def _with_mask(x: Tensor, observed: Tensor | None, with_mask: bool) -> Tensor:
    """Append the element mask along the second axis, if the network takes it."""
    if not with_mask:
        return x
    mask = torch.ones_like(x) if observed is None else observed.to(x.dtype).view_as(x)
    return torch.cat((x, mask), dim=1)


def _dense(
    config: MLPConfig | ConvConfig, inputs: int, sizes: tuple[int, ...], dropout: float = 0.0
) -> nn.Sequential:
    """Linear layers, each with its normalisation, activation and dropout."""
    layers = nn.Sequential()
    for size in sizes:
        layers.append(nn.Linear(inputs, size))
        if config.normalisation == "layer":
            layers.append(nn.LayerNorm(size))
        layers.append(_ACTIVATIONS[config.activation]())
        if dropout:
            layers.append(nn.Dropout(dropout))
        inputs = size
    return layers


def _after(config: ConvConfig, width: int) -> list[nn.Module]:
    """What follows a convolution; group normalisation never mixes rows."""
    activation = _ACTIVATIONS[config.activation]()
    if config.normalisation is None:
        return [activation]
    # at least two channels per group: a group of one cell has nothing to be compared with
    return [nn.GroupNorm(math.gcd(8, max(1, width // 2)), width), activation]
