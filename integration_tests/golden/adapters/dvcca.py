"""Variational canonical correlation analysis (Wang et al. 2016)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from multivae_core.noise import NoiseSource

from ..adapter import Adapter, Options, flag, number
from ..case import CaseError, Entry

__all__ = ["DVCCA"]


class DVCCA(Adapter):
    """Variational canonical correlation analysis (Wang et al. 2016)."""

    peer: ClassVar[str] = "multiviewae "

    def translate(self, config: Options) -> dict[str, Any]:
        """The first modality is the reference; the peer is never sparse with threshold 0."""
        if config.take("sparse", False, flag):
            raise CaseError(f"{self.case.name}: sparse models have no golden numbers")
        return {
            "beta": config.take("beta", 1.0, number),
            "reference": self.case.order[0],
            "private_dims": self.case.private_dims,
        }

    def component(self, entry: Entry, noise: NoiseSource, draws: int) -> Tensor | None:
        """Means over the batch: weighted divergences of all latents, and the log-likelihood."""
        output = self.output(self.build(entry), self.case.batch(entry["data"], draws), noise)
        divergence = sum(t.value for name, t in output.terms.items() if name.startswith("kl"))
        parts = {
            "kl": divergence,
            "ll": -output.terms["reconstruction"].value,
        }
        part = parts.get(entry["name"])
        return None if part is None else part.view(draws, -1).mean(dim=1)
