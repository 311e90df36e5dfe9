"""Pieces of a bridge between latents: their scale, a network, and a distance without pairs."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from multivae_core.noise import NoiseSource

__all__ = ["Scaler", "mlp", "sliced_wasserstein"]


def sliced_wasserstein(
    z: Tensor, present: Tensor, n_projections: int, noise: NoiseSource
) -> tuple[Tensor, Tensor]:
    """Mean distance between the codes of two modalities, along random directions.

    Along a direction both sides are sorted and the mean absolute difference is taken (Tian &
    Engel 2019). The codes need not belong to the same rows; where one modality has more rows than
    the other, its first ones count.

    Args:
        z: Codes, ``(M, B, D)``.
        present: ``(B, M)`` bool.
        n_projections: Number of directions.
        noise: Gives the directions, the same for all rows.

    Returns:
        The mean over pairs of modalities, weighted by rows, and the number of rows.
    """
    uniform = noise.batch_uniform("directions", (n_projections, 1, z.shape[2]))[:, 0]
    directions = torch.special.ndtri(uniform.double()).to(z.dtype)
    directions = directions / directions.norm(dim=1, keepdim=True)
    total, rows = z.new_zeros(()), 0
    for pair in itertools.combinations(range(len(z)), 2):
        own = [z[m].index_select(0, present[:, m].nonzero()[:, 0]) for m in pair]
        count = min(map(len, own))
        if count > 0:
            first, second = ((codes[:count] @ directions.T).sort(dim=0).values for codes in own)
            total, rows = total + count * (first - second).abs().mean(), rows + count
    return total / max(rows, 1), total.new_tensor(float(rows))


class Scaler(nn.Module):
    """Mean and standard deviation of every modality's latents, over all that was watched.

    Args:
        count: Number of modalities M.
        size: Size L of their latents.
    """

    rows: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(count))
        self.register_buffer("mean", torch.zeros(count, size))
        self.register_buffer("variance", torch.ones(count, size))

    def watch(self, base: Tensor, present: Tensor) -> None:
        """Take the rows of a step into account, ``(M, B, L)`` and ``(B, M)``."""
        members = present.T[..., None]
        rows = members.sum(dim=(1, 2)).to(base.dtype)
        share = torch.where(rows > 0, rows / (self.rows + rows).clamp_min(1.0), 0.0)[:, None]
        counted = rows.clamp_min(1.0)[:, None]
        mean = torch.where(members, base, 0.0).sum(dim=1) / counted
        spread = torch.where(members, (base - mean[:, None]).square(), 0.0).sum(dim=1) / counted
        shift = mean - self.mean
        self.variance += share * (spread - self.variance + (1.0 - share) * shift.square())
        self.mean += share * shift
        self.rows += rows

    def apply_to(self, value: Tensor, place: int) -> Tensor:
        """Bring one modality's latents to mean 0 and deviation 1."""
        return (value - self.mean[place]) / self._deviation(place)

    def undo(self, value: Tensor, place: int) -> Tensor:
        """Bring them back."""
        return value * self._deviation(place) + self.mean[place]

    def _deviation(self, place: int) -> Tensor:
        return self.variance[place].clamp_min(1e-6).sqrt()


def mlp(inputs: int, hidden: list[int], outputs: int) -> nn.Sequential:
    """Fully connected layers with rectifiers between them."""
    sizes = [inputs, *hidden]
    layers = [part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))
