"""A VAE between the latents of other VAEs, on a common scale."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from multivae_core.distributions import Normal
from multivae_core.fusion import power_product

__all__ = ["Bridge", "Layers", "Scaler"]


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


class Layers(nn.Module):
    """Fully connected layers with rectifiers between them.

    Args:
        inputs: Size of what comes in.
        hidden: Sizes of the hidden layers.
        outputs: Size of what comes out.
        residual: Whether every hidden layer adds what came into it, through a linear map where
            the sizes differ.
        gated: Whether what comes out is a mix of that and of a linear map of what came in, with
            shares that the layers give as well.
    """

    def __init__(
        self,
        inputs: int,
        hidden: list[int],
        outputs: int,
        residual: bool = False,
        gated: bool = False,
    ) -> None:
        super().__init__()
        sizes = [inputs, *hidden]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(sizes))
        self.head = nn.Linear(sizes[-1], outputs * (1 + gated))
        self.skip = nn.Linear(inputs, outputs) if gated else None
        self.around: nn.ModuleList | None = None
        if residual:
            self.around = nn.ModuleList(
                nn.Identity() if one == two else nn.Linear(one, two)
                for one, two in itertools.pairwise(sizes)
            )

    def forward(self, value: Tensor) -> Tensor:
        """Map ``(..., I)`` to ``(..., O)``."""
        hidden = value
        for number, layer in enumerate(self.layers):
            moved = layer(hidden).relu()
            hidden = moved if self.around is None else self.around[number](hidden) + moved
        out: Tensor = self.head(hidden)
        if self.skip is None:
            return out
        own, gate = out.chunk(2, dim=-1)
        return torch.lerp(self.skip(value), own, gate.sigmoid())


class Bridge(nn.Module):
    """One VAE for the latents of all modalities, which is told whose they are on both sides.

    Args:
        options: The model's: base_dim, latent_dim, bridge_layers, residual, gated, use_domain,
            pairing.
        count: Number of modalities M.
    """

    def __init__(self, options: Any, count: int) -> None:
        super().__init__()
        self.options, self.count = options, count
        size, code, hidden = options.base_dim, options.latent_dim, options.bridge_layers
        told, kind = count * options.use_domain, (options.residual, options.gated)
        self.scaler = Scaler(count, size)
        self.encoder = Layers(size + told, hidden, 2 * code, *kind)
        self.decoder = Layers(code + told, hidden, size, *kind)

    def scaled(self, base: Tensor) -> Tensor:
        """Every modality's latents with mean 0 and deviation 1, ``(M, B, L)``."""
        return torch.stack([self.scaler.apply_to(own, m) for m, own in enumerate(base)])

    def codes(self, scaled: Tensor) -> Normal:
        """Posterior of the code given every modality's latent, ``(M, B, L)`` -> ``(M, B, D)``."""
        told = [self._told(own, m) for m, own in enumerate(scaled)]
        mean, log_variance = self.encoder(torch.stack(told)).chunk(2, dim=-1)
        return Normal(mean, log_variance)

    def together(self, codes: Normal, present: Tensor) -> Normal:
        """The product of the codes of what is present, or its geometric mean; see ``pairing``.

        In rows of which nothing is seen it is the geometric mean of all codes.
        """
        nothing = ~present.any(dim=1, keepdim=True)
        members = (present | nothing).to(codes.mean.dtype)
        shares = members / members.sum(dim=1, keepdim=True)
        if self.options.pairing == "poe":
            shares = torch.where(nothing, shares, members)
        return power_product(codes, shares[None])[0]

    def back(self, z: Tensor, place: int) -> Tensor:
        """One modality's latent out of codes, with mean 0 and deviation 1."""
        latent: Tensor = self.decoder(self._told(z, place))
        return latent

    def latent(self, z: Tensor, place: int) -> Tensor:
        """One modality's latent out of codes, as its VAE has it."""
        return self.scaler.undo(self.back(z, place), place)

    def _told(self, value: Tensor, place: int) -> Tensor:
        """A value and, one-hot, the modality that it belongs to; see ``use_domain``."""
        if not self.options.use_domain:
            return value
        label = value.new_zeros(self.count)
        label[place] = 1.0
        return torch.cat([value, label.expand(*value.shape[:-1], -1)], dim=-1)
