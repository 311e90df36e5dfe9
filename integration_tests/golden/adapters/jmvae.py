"""Joint encoder with surrogates that are drawn to it (Suzuki et al. 2016)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multivae_core.noise import NoiseSource

from ..adapter import Options, number
from ..case import Entry
from .joint import JointAdapter

__all__ = ["JMVAE"]


class JMVAE(JointAdapter):
    """Joint encoder with surrogates that are drawn to it (Suzuki et al. 2016)."""

    def translate(self, config: Options) -> dict[str, Any]:
        """The warm-up, which is 1/W in the first epoch, is resolved into both weights."""
        warmup = config.take("warmup", 10, number)
        epoch = self.arguments.take("epoch", 1, number)
        self.annealing = min(1.0, epoch / warmup) if warmup else 1.0
        self.beta = config.take("beta", 1.0, number)
        self.alpha = config.take("alpha", 0.1, number)
        return {
            "alpha": self.annealing * self.alpha,
            "beta": self.annealing * self.beta,
            "subset_posterior": "poe",
        }

    def component(self, entry: Entry, noise: NoiseSource, draws: int) -> Tensor | None:
        """The factor; the negative ELBO; the batch's loss, both without the factor."""
        name = entry["name"]
        if name == "beta":
            return torch.tensor([self.annealing], dtype=torch.float64)
        if name == "elbo":
            terms = self.terms(entry, noise, draws, beta=self.beta)
            return terms["reconstruction"] + terms["kl"]
        if name == "loss_no_ponderation":
            whole = self.terms(entry, noise, draws, alpha=self.alpha, beta=self.beta)
            return self.case.rows * torch.stack([*whole.values()]).sum(dim=0)
        return None
