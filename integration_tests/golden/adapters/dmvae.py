"""Joint and single posteriors with private latents (Lee & Pavlovic 2021)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from multivae_core.noise import NoiseSource

from ..adapter import Adapter, Options, mapping, number
from ..case import CaseError, Entry

__all__ = ["DMVAE"]


class DMVAE(Adapter):
    """Joint and single posteriors with private latents (Lee & Pavlovic 2021)."""

    def translate(self, config: Options) -> dict[str, Any]:
        """Every bound counts once, and the private weights are not multiplied by beta."""
        private = self.case.private_dims
        stated = config.take("modalities_specific_dim", private, mapping)
        if stated != private:
            raise CaseError(f"{self.case.name}: modalities_specific_dim is not {private}")
        betas = config.take(
            "modalities_specific_betas",
            {},
            lambda v: mapping(v) and set(v) <= set(private) and all(map(number, v.values())),
        )
        return {
            "beta": config.take("beta", 1.0, number),
            "private_dims": private,
            "style_betas": {name: float(beta) for name, beta in betas.items()},
        }

    def options_for(self, entry: Entry) -> dict[str, Any]:
        """Of one modality, the golden encodes the product with the prior."""
        return {} if entry.quantity in ("loss", "gradient_norms", "component") else ALWAYS

    def component(self, entry: Entry, noise: NoiseSource, draws: int) -> Tensor | None:
        """The negative bound of one source, mean over the rows."""
        output = self.output(self.build(entry), self.case.batch(entry["data"], draws), noise)
        name = entry["name"]
        term = output.terms.get("elbo" if name == "joint" else f"elbo:{name}")
        return None if term is None else term.value.view(draws, -1).mean(dim=1)


ALWAYS = {"prior_expert": "always"}
