"""Levels of latents; experts meet the prior at every level (Dorent et al. 2023)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from multivae_core.noise import NoiseSource

from ..adapter import Adapter, Built, Options, number, whole
from ..case import CaseError, Entry, Networks

__all__ = ["MHVAE"]


class MHVAE(Adapter):
    """Levels of latents; experts meet the prior at every level (Dorent et al. 2023)."""

    known_extra: ClassVar[frozenset[str]] = frozenset({"feat", "z_dims", "shared_posterior"})
    encoded = "z1"

    def translate(self, config: Options) -> dict[str, Any]:
        """The heads of the top level are the modalities' own, whether the others are or not."""
        extra, levels = self.case.content["extra"], config.take("n_latent", 3, whole)
        if len(extra["z_dims"]) != levels or extra["z_dims"][-1] != self.case.latent_dim:
            raise CaseError(f"{self.case.name}: z_dims do not fit {levels} levels")
        self.levels = levels
        return {
            "n_levels": levels,
            "network": "mlp",
            "channels": [extra["feat"]],
            "latent_channels": extra["z_dims"][:-1],
            "share": "levels" if extra["shared_posterior"] else "none",
            "beta": config.take("beta", 1.0, number),
        }

    def options_for(self, entry: Entry) -> dict[str, Any]:
        """The golden counts every subset of all modalities in incomplete rows."""
        incomplete = entry.fields.get("data") == "incomplete"
        return {"subset_weights": "all_patterns"} if incomplete else {}

    def further(self, networks: Networks) -> dict[str, Any]:
        """Everything between encoders and decoders."""
        names, lower = self.case.order, range(self.levels - 1)
        network = networks.network

        def climb(name: str) -> nn.Module:
            return nn.ModuleList(network(f"bottom_up.{name}.{i}") for i in lower[:-1])

        def posterior(i: int) -> nn.Module:
            if self.case.content["extra"]["shared_posterior"]:
                return network(f"posterior.{i}")
            return nn.ModuleDict({m: network(f"posterior.{m}.{i}") for m in names})

        own = {
            "bottom_up": nn.ModuleDict({m: climb(m) for m in names}),
            "top": nn.ModuleDict({m: network(f"bottom_up.{m}.{lower[-1]}") for m in names}),
            "top_down": nn.ModuleList(network(f"top_down.{i}") for i in lower),
            "prior": nn.ModuleList(network(f"prior.{i}") for i in lower),
            "posterior": nn.ModuleList(posterior(i) for i in lower),
        }
        return {"networks": own}

    def load_encoders(self, built: Built) -> None:
        """The golden's head of features is our last layer."""
        for name in self.case.order:
            encoder: Any = built.model.encoders[name]
            last = encoder.last
            built.networks.load_layer(f"encoders.{name}", "feature", last, slice(None))

    def component(self, entry: Entry, noise: NoiseSource, draws: int) -> Tensor | None:
        """Divergence of one level given all that a row has, summed over the rows."""
        level = entry["name"].removeprefix("kl_")
        if not level.isdecimal():
            return None
        output = self.output(self.build(entry), self.case.batch(entry["data"], draws), noise)
        return output.metrics[f"full_kl_z{level}"].view(draws, -1).sum(dim=1)
