"""Coordinated multimodal VAE with unimodal reconstructions (Suzuki & Matsuo 2023)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from multivae_core.noise import NoiseSource

from ..adapter import Adapter, Options, number
from ..case import Entry

__all__ = ["CRMVAE"]


class CRMVAE(Adapter):
    """Coordinated multimodal VAE with unimodal reconstructions (Suzuki & Matsuo 2023)."""

    def translate(self, config: Options) -> dict[str, Any]:
        """The peer halves the reconstructions, and divides by M + 1 in incomplete rows too."""
        return {
            "beta": config.take("beta", 2.5, number),
            "rec_weight": 0.5,
            "missing_norm": "fixed",
        }

    def component(self, entry: Entry, noise: NoiseSource, draws: int) -> Tensor | None:
        """Means over the batch: divergences, and reconstructions from two posteriors."""
        name, batch = entry["name"], self.case.batch(entry["data"], draws)
        parts = {"joint_divergence": "kl"} | {f"kl_{m}": f"kl:{m}" for m in self.case.order}
        weights = dict(self.weights)
        for m in self.case.order:
            for source, metric in (("joint", "joint"), (m, "experts")):
                parts[f"recon_{m}_from_{source}"] = f"reconstruction:{metric}"
                if name == f"recon_{m}_from_{source}":
                    weights = {each: self.weights[each] * (each == m) for each in weights}
        if name not in parts:
            return None
        found = self.output(self.build(entry, weights), batch, noise).metrics[parts[name]]
        sign = -1.0 if name.startswith("recon") else 1.0
        return sign * found.view(draws, -1).mean(dim=1)
