"""Weighted product of experts (Lawry Aguila et al. 2023)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from multivae_core.noise import NoiseSource

from ..adapter import Adapter, Built, Options, number
from ..case import CaseError, Entry

__all__ = ["GPoE"]


class GPoE(Adapter):
    """Weighted product of experts (Lawry Aguila et al. 2023)."""

    peer: ClassVar[str] = "multiviewae "

    def translate(self, config: Options) -> dict[str, Any]:
        """The peer's weights do not sum to 1, and it takes the mean over the modalities."""
        fusion = {"type": "weighted_product", "weighting": "fixed", "renormalise": False}
        return {
            "beta": config.take("beta", 1.0, number),
            "fusion": fusion,
            "likelihood_reduction": "mean",
        }

    def load(self, built: Built) -> None:
        """Load the weights of the experts, which the case has in its own order."""
        super().load(built)
        weights, fusion = self.case.tensors["poe_weight"], built.model.get_submodule("fusion")
        if float(weights.min()) <= 0 or float(weights.max()) > 1:
            raise CaseError(f"{self.case.name}: weights that the peer would clamp")
        with torch.no_grad():
            for name, own in zip(self.case.order, weights, strict=True):
                fusion.raw_weights[built.model.modalities.index(name)] = own

    def component(self, entry: Entry, noise: NoiseSource, draws: int) -> Tensor | None:
        """Means over the batch: the KL, and the log-likelihood over the modalities."""
        output = self.output(self.build(entry), self.case.batch(entry["data"], draws), noise)
        parts = {"kl": output.metrics["kl"], "ll": -output.terms["reconstruction"].value}
        part = parts.get(entry["name"])
        return None if part is None else part.view(draws, -1).mean(dim=1)
