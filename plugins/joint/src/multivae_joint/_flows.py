"""Normalising flows as posteriors of single modalities, and mixtures of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import zuko
from torch import Tensor, nn

from multivae_core.distributions import Normal
from multivae_core.noise import NoiseSource
from multivae_core.priors import standard_log_prob

__all__ = ["FLOWS", "FlowExperts", "LatentFlow"]

FLOWS = ("maf", "nsf", "iaf", "realnvp")
"""Masked autoregressive, neural spline, inverse autoregressive, and affine coupling flows."""


class LatentFlow(nn.Module):
    """An invertible map between a latent and a base variable, which may depend on a context.

    Args:
        kind: One of `FLOWS`.
        latent_dim: Size D of the latent.
        context: Size C of the context; 0: there is none.
        transforms: Number of transforms.
        hidden: Sizes of the hidden layers of each.
        passes: Passes of the slow direction of an autoregressive transform; None: D.
    """

    def __init__(
        self,
        kind: str,
        latent_dim: int,
        context: int,
        transforms: int,
        hidden: tuple[int, ...],
        passes: int | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"transforms": transforms, "hidden_features": hidden}
        if kind == "realnvp":
            flow = zuko.flows.RealNVP(latent_dim, context, **options)
        else:
            family = zuko.flows.NSF if kind == "nsf" else zuko.flows.MAF
            flow = family(latent_dim, context, passes=passes, **options)
        transform = flow.transform
        self.transform = transform.inv if kind == "iaf" else transform
        self.conditional = context > 0

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Latents to the base: ``(n, R, D)`` -> ``(n, R, D)`` and log |det| ``(n, R)``.

        Args:
            z: Latents.
            context: ``(R, C)``; not read where the flow has none.
        """
        base, log_det = self._at(context).call_and_ladj(z)
        return base, log_det

    def inverse(self, base: Tensor, context: Tensor) -> Tensor:
        """The base to latents, ``(n, R, D)``."""
        z: Tensor = self._at(context).inv(base)
        return z

    def _at(self, context: Tensor) -> Any:
        return self.transform(context if self.conditional else None)


class FlowExperts:
    """The flow posteriors q_m(z | x_m) of every modality and row; their encoders have run.

    Args:
        flows: Modality -> flow, in the order of the modalities.
        encoded: ``(M, B, 2, *)``: mean and log-variance of the base, or the context.
        conditional: Which of the two: the base is then N(0, I).
    """

    def __init__(self, flows: Mapping[str, nn.Module], encoded: Tensor, conditional: bool) -> None:
        self.flows: list[Any] = [*flows.values()]
        self.encoded = encoded
        self.conditional = conditional

    def take(self, rows: Tensor) -> FlowExperts:
        """The experts of some rows, ``(R,)``."""
        return self._with(self.encoded.index_select(1, rows))

    def detach(self) -> FlowExperts:
        """The same experts with what their encoders gave cut from the graph."""
        return self._with(self.encoded.detach())

    def log_prob(self, m: int, z: Tensor, rows: Tensor) -> Tensor:
        """Log-density of one expert in nats, ``(n, R, D)`` -> ``(n, R)``.

        Args:
            m: Number of the modality.
            z: Latents.
            rows: ``(R,)`` rows that they belong to.
        """
        own = self.encoded[m].index_select(0, rows)
        base, log_det = self.flows[m](z, own.flatten(1))
        normal = Normal(own[:, 0], own[:, 1])
        density = standard_log_prob(base) if self.conditional else normal.log_prob(base)
        return density + torch.as_tensor(log_det)

    def place(self, m: int, standard: Tensor, rows: Tensor) -> Tensor:
        """Turn draws of N(0, I) into draws of one expert, ``(n, R, D)``; see `log_prob`."""
        own = self.encoded[m].index_select(0, rows)
        base = standard if self.conditional else Normal(own[:, 0], own[:, 1]).place(standard)
        z: Tensor = self.flows[m].inverse(base, own.flatten(1))
        return z

    def log_probs(self, z: Tensor, members: Tensor) -> Tensor:
        """Log-density of every member in nats, ``(n, B, M)``; 0 for all others.

        Args:
            z: Latents ``(n, B, D)``.
            members: ``(B, M)`` bool.
        """
        parts = []
        for m in range(len(self.flows)):
            rows = members[:, m].nonzero().squeeze(1)
            # a sum over no rows, to keep the graph where no row has the modality
            whole = z.new_zeros(z.shape[:2]) + self.encoded[m, :0].sum()
            if len(rows):
                own = self.log_prob(m, z.index_select(1, rows), rows)
                whole = whole.index_copy(1, rows, own)
            parts.append(whole)
        return torch.stack(parts, dim=2)

    def draw(self, chosen: Tensor, standard: Tensor) -> Tensor:
        """Draw from the chosen experts.

        Args:
            chosen: ``(n, B)`` numbers of modalities; -1: the draw is left as it is.
            standard: ``(n, B, D)`` draws of N(0, I).
        """
        flat = standard.flatten(0, 1)
        for m in range(len(self.flows)):
            places = (chosen.flatten() == m).nonzero().squeeze(1)
            if len(places):
                drawn = self.place(m, flat.index_select(0, places)[None], places % chosen.shape[1])
                flat = flat.index_copy(0, places, drawn[0])
        return flat.view_as(standard)

    def mixture(
        self, members: Tensor, n: int, noise: NoiseSource, name: str, size: int
    ) -> tuple[Tensor, Tensor]:
        """Draw from the uniform mixture of the members, allotted evenly.

        Args:
            members: ``(B, M)`` bool; rows without any get draws of N(0, I).
            n: Draws per row.
            noise: Source of the random numbers.
            name: Name of the draw.
            size: Size D of the latent.

        Returns:
            Latents ``(n, B, D)`` and the numbers of the experts that they are from, ``(n, B)``.
        """
        some = members.any(dim=1)
        shares = torch.where(some[:, None], members, True).to(self.encoded.dtype)
        shares = shares / shares.sum(dim=1, keepdim=True)
        chosen = torch.where(some, noise.choice((name, "component"), shares, n), -1)
        standard = noise.normal(name, (n, len(members), size))
        return self.draw(chosen, standard), chosen

    def _with(self, encoded: Tensor) -> FlowExperts:
        other = object.__new__(FlowExperts)
        other.flows, other.encoded, other.conditional = self.flows, encoded, self.conditional
        return other


def mixture_log_prob(each: Tensor, shares: Tensor) -> Tensor:
    """Log-density of a mixture, out of those of its parts.

    Args:
        each: ``(n, B, M)``.
        shares: ``(B, M)`` or ``(n, B, M)``, 0 where a part does not take part.

    Returns:
        ``(n, B)`` nats; 0 where nothing takes part.
    """
    log_shares = torch.where(shares > 0, shares, 1.0).log()
    parts = torch.where(shares > 0, each + log_shares, -math.inf)
    some = (shares > 0).any(dim=-1)
    return torch.where(some, parts.logsumexp(dim=-1), 0.0)
