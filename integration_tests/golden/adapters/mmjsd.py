"""Mixture of experts with a Jensen-Shannon divergence (Sutter et al. 2020)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

import multivae_core as mv
from multivae_core.noise import ZeroNoise
from multivae_core.private_latents import normal

from ..adapter import Adapter, Options, number
from ..case import CaseError, Entry

__all__ = ["MMJSD"]


class MMJSD(Adapter):
    """Mixture of experts with a Jensen-Shannon divergence (Sutter et al. 2020)."""

    peer: ClassVar[str] = "multiviewae "

    def translate(self, config: Options) -> dict[str, Any]:
        """The peer's alpha weighs the divergence, its beta the private ones."""
        if self.case.private_dims:
            raise CaseError(f"{self.case.name}: private latents of this peer are not known")
        config.take("beta", 1.0, lambda v: v == 1)
        return {"beta_content": config.take("alpha", 1.0, number)}

    def options_for(self, entry: Entry) -> dict[str, Any]:
        """Without noise every expert is decoded."""
        return {"n_components_per_step": None if entry.mode == "zero_noise" else 1}

    def array(self, entry: Entry) -> Tensor:
        """KLs to the dynamic prior, and distances at the mean of every expert; N(0, I) is last."""
        if entry.quantity not in ("jsd_terms", "reconstruction_by_component"):
            return super().array(entry)
        model: Any = self.build(entry).model
        batch = model.prepare(self.case.batch(entry["data"]))
        experts = normal(model.run_encoders(batch)["shared"], 2)
        everywhere = torch.ones_like(batch.patterns[:, 0])
        dynamic, experts, _ = model._geometric(experts, batch, everywhere)
        order = [*map(model.modalities.index, self.case.order), len(model.modalities)]
        if entry.quantity == "jsd_terms":
            return torch.as_tensor(experts.kl(dynamic)[order].mean(dim=1))
        step = mv.Step(training=True, noise=ZeroNoise(torch.float64))
        log_px = model.reconstruction({"shared": experts.mean[order]}, batch, step)
        return torch.as_tensor(-log_px.mean(dim=1))
