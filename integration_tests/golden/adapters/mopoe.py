"""Mixture of products of experts (Sutter et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from multivae_core.noise import NoiseSource

from ..adapter import Adapter, Options, mapping, number
from ..case import CaseError, Entry

__all__ = ["MoPoE"]


class MoPoE(Adapter):
    """Mixture of products of experts (Sutter et al. 2021)."""

    # the peer rounds the mixture weights of incomplete rows to float32
    array_tolerance: ClassVar[Mapping[str, float]] = {"complete": 1e-8, "incomplete": 1e-6}

    def translate(self, config: Options) -> dict[str, Any]:
        """The peer's subsets are a list or a mapping; repeated and empty ones do not count."""
        private = self.case.private_dims
        stated = config.take("modalities_specific_dim", private, mapping)
        if stated != private:
            raise CaseError(f"{self.case.name}: modalities_specific_dim is not {private}")
        config.same("use_modality_specific_spaces", bool(private))
        subsets = config.take("subsets", None, lambda v: isinstance(v, list | dict))
        if subsets is not None:
            listed = subsets.values() if isinstance(subsets, dict) else subsets
            distinct = dict.fromkeys(tuple(sorted(each)) for each in listed if each)
            subsets = [list(each) for each in distinct]
        self.components = 2 ** len(self.case.order) - 1 if subsets is None else len(subsets)
        return {
            "beta": config.take("beta", 1.0, number),
            "beta_style": config.take("beta_style", 1.0, number),
            "private_dims": private,
            "subsets": subsets,
        }

    def options_for(self, entry: Entry) -> dict[str, Any]:
        """Where the prior is an expert, what encodes, and how many components are decoded."""
        everything = set(entry.fields.get("subset", ())) == set(self.case.order)
        chosen: dict[str, Any] = {}
        if entry.quantity not in ("loss", "component") or entry["data"] == "incomplete":
            chosen["prior_expert"] = "full_set"
        if entry.quantity in ("encode_mean", "encode_mean_private", "reconstruction"):
            chosen["encode_with"] = "mixture" if everything else "product"
        if entry.quantity == "joint_nll":
            chosen |= {"proposal": "product", "prior_expert": "always"}
        if entry.mode != "monte_carlo":
            chosen["n_components_per_step"] = self.components
        return chosen

    def component(self, entry: Entry, noise: NoiseSource, draws: int) -> Tensor | None:
        """Weighted reconstruction of one modality, and the mean of the components' KLs."""
        batch, name = self.case.batch(entry["data"], draws), entry["name"]
        if name == "joint_divergence":
            output = self.output(self.build(entry), batch, noise)
            return output.metrics["kl"].view(draws, -1).mean(dim=1)
        own = name.removeprefix("recon_")
        if own == name or own not in self.case.order:
            return None
        weights = {each: self.weights[each] * (each == own) for each in self.case.order}
        output = self.output(self.build(entry, weights), batch, noise)
        return output.terms["reconstruction"].value.view(draws, -1).mean(dim=1)
