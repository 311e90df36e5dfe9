"""The scale on which a model sees a modality."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multivae_core.likelihoods import Likelihood

__all__ = ["Transform"]


class Transform(nn.Module):
    """Affine map between the scale of the data and the scale of the model.

    Vectors have a shift and a scale for every feature, images and volumes for every channel.
    Model values are ``(x - shift) / scale``; both start as the identity.

    Args:
        shape: Shape of one measurement.
    """

    shift: Tensor
    scale: Tensor
    rest: Tensor  # of the shift, which a type with few digits cannot hold

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        own = shape if len(shape) < 2 else (shape[0], *(1 for _ in shape[1:]))
        self.shape = shape
        self.register_buffer("shift", torch.zeros(own))
        self.register_buffer("scale", torch.ones(own))
        self.register_buffer("rest", torch.zeros(own))

    def fit(
        self,
        mean: Tensor,
        spread: Tensor,
        count: Tensor,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        """Take on shift and scale of the data; the scale is 1 where they are constant.

        A channel's moments are put together from those of its elements.

        Args:
            mean: Mean of every element over its observed entries, ``shape``, float64.
            spread: Standard deviation (divisor n) of the same, ``shape``, float64.
            count: Number of the same, ``shape``.
            dtype: Type of the data; what varies by its rounding alone counts as constant.
        """
        axes = tuple(range(1, mean.ndim))
        total = _sum(count.double(), axes).clamp_min(1)
        centre = _sum(count * mean, axes) / total
        square = spread.square() + (mean - centre).square()
        scale = (_sum(count * square, axes) / total).sqrt()
        # rounding leaves a constant feature with a tiny spread instead of none
        smallest = max(torch.finfo(dtype).eps, 1e-12) * centre.abs()
        smallest = smallest.clamp_min(torch.finfo(self.scale.dtype).tiny)
        with torch.no_grad():
            self.shift.copy_(centre)
            self.rest.copy_(centre - self.shift)
            self.scale.copy_(torch.where(scale <= smallest, 1.0, scale))

    def forward(self, values: Tensor) -> Tensor:
        """To the scale and type of the model, ``(..., *shape)``, in the wider of the two types."""
        own = self.shift.dtype
        if torch.promote_types(values.dtype, own) == own:
            return (values - self.shift) / self.scale
        shift = self.shift.to(values.dtype) + self.rest
        return ((values - shift) / self.scale).to(own)

    def to_data(self, likelihood: Likelihood) -> Likelihood:
        """The likelihood of the values on the scale of the data."""
        return likelihood.affine(self.shift, self.scale)

    def log_scale(self, observed: Tensor) -> Tensor:
        """Sum of the logarithms of the scale over what is observed, ``(B, *shape)`` -> ``(B,)``.

        A density on the scale of the data is the model's minus this, in nats.
        """
        logs = torch.where(observed, self.scale.log().expand(self.shape), 0.0)
        return logs.flatten(1).sum(dim=1)


def _sum(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    return values.sum(dim=axes, keepdim=True) if axes else values
