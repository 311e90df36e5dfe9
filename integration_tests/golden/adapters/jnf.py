"""Joint encoder with normalising flows as surrogates (Senellart et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import multivae_core as mv
from multivae_core.noise import NoiseSource

from ..adapter import Built, Options, number
from ..case import CaseError, Entry
from .joint import JointAdapter

__all__ = ["JNF"]


class AffineFlow(nn.Module):
    """The golden's flow: z @ matrix.T + bias."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(size, size, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        log_det = torch.linalg.slogdet(self.matrix).logabsdet
        return z @ self.matrix.T + self.bias, log_det.expand(z.shape[:2])

    def inverse(self, base: Tensor, context: Tensor) -> Tensor:
        return torch.linalg.solve(self.matrix, (base - self.bias)[..., None])[..., 0]


class JNF(JointAdapter):
    """Joint encoder with normalising flows as surrogates (Senellart et al. 2023)."""

    def translate(self, config: Options) -> dict[str, Any]:
        """The stage goes by the epoch."""
        warmup = config.take("warmup", 10, number)
        self.stage = 1 if self.arguments.take("epoch", 1, number) <= warmup else 2
        beta = config.take("beta", 1.0, number)
        return {"beta": beta, "flow_context": "base", "point": "base"}

    def load(self, built: Built) -> None:
        """Put the golden's flows in the place of ours."""
        model: Any = built.model
        for name in self.case.order:
            spec = dict(self.case.content["networks"][f"flows.{name}"])
            if spec.pop("kind") != "affine_flow" or set(spec) != {"matrix", "bias"}:
                raise CaseError(f"{self.case.name}: flow of {name!r} is not known")
            flow = AffineFlow(self.case.latent_dim)
            for part, tensor in spec.items():
                built.networks.load(tensor, getattr(flow, part))
            model.flows.each[model.modalities.index(name)] = flow
        super().load(built)

    def objective(self, output: mv.LossOutput, batch: mv.Batch, draws: int) -> Tensor:
        """The terms of the stage."""
        terms = {n: t for n, t in output.terms.items() if (n == "flows") == (self.stage == 2)}
        return super().objective(mv.LossOutput(terms=terms), batch, draws)

    def component(self, entry: Entry, noise: NoiseSource, draws: int) -> Tensor | None:
        """Weighted divergence, summed over the batch; reconstruction; the flows' part."""
        terms, name = self.terms(entry, noise, draws), entry["name"]
        if name == "kld_prior":
            return self.case.rows * terms["kl"]
        if name == "ljm":
            return terms["flows"] * (self.stage == 2)
        return terms["reconstruction"] if name == "recon_loss" else None
