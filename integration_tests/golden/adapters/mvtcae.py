"""Total correlation autoencoder (Hwang et al. 2021)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from multivae_core.noise import NoiseSource

from ..adapter import Adapter, Options, number
from ..case import Entry

__all__ = ["MVTCAE"]


class MVTCAE(Adapter):
    """Total correlation autoencoder (Hwang et al. 2021)."""

    def translate(self, config: Options) -> dict[str, Any]:
        """The peer divides by the number of all modalities in incomplete rows too."""
        return {
            "alpha": config.take("alpha", 0.1, lambda v: number(v) and v <= 1),
            "beta": config.take("beta", 2.5, number),
            "normalise": "total",
        }

    def component(self, entry: Entry, noise: NoiseSource, draws: int) -> Tensor | None:
        """Sums over the batch, not weighted: KL to the prior, KLs to the experts, distances."""
        name, batch = entry["name"], self.case.batch(entry["data"], draws)
        own = name.removeprefix("kld_")
        if name != "joint_divergence" and own not in self.case.order:
            return None
        if name in self.case.order:
            weights = {m: self.weights[m] * (m == name) for m in self.case.order}
            # alpha 0: a factor of 1 before the reconstruction
            output = self.output(self.build(entry, weights, alpha=0.0), batch, noise)
            return output.terms["reconstruction"].value.view(draws, -1).sum(dim=1)
        metrics = self.output(self.build(entry), batch, noise).metrics
        found = metrics["kl"] if own == name else metrics[f"kl:{own}"]
        return found.view(draws, -1).sum(dim=1)
