"""Multi-channel VAE (Antelmi et al. 2019)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

import multivae_core as mv
from multivae_core.noise import NoiseSource

from ..adapter import Adapter, Options, number
from ..case import Entry

__all__ = ["MCVAE"]


class MCVAE(Adapter):
    """Multi-channel VAE (Antelmi et al. 2019)."""

    peer: ClassVar[str] = "multiviewae "

    def translate(self, config: Options) -> dict[str, Any]:
        """The peer divides the likelihoods by M^2 and the divergences by nothing."""
        self.count = len(self.case.order)
        return {"beta": self.count**2 * config.take("beta", 1.0, number)}

    def losses(self, output: mv.LossOutput, batch: mv.Batch, draws: int) -> Tensor:
        """Ours is the mean over channels of what the peer divides by M^2."""
        return super().losses(output, batch, draws) / self.count

    def component(self, entry: Entry, noise: NoiseSource, draws: int) -> Tensor | None:
        """The peer's sum of divergences, and its mean over M^2 of the likelihoods."""
        output = self.output(self.build(entry), self.case.batch(entry["data"], draws), noise)
        parts = {
            "kl": self.count * output.metrics["kl"],
            "ll": -output.terms["reconstruction"].value / self.count,
        }
        part = parts.get(entry["name"])
        return None if part is None else part.view(draws, -1).mean(dim=1)
