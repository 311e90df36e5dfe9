"""Mixture of experts with private latents (Palumbo et al. 2023)."""

from __future__ import annotations

from typing import Any

from ..adapter import Built, Options, flag, whole
from ..case import CaseError
from .mmvae import MMVAE

__all__ = ["MMVAEPlus"]


class MMVAEPlus(MMVAE):
    """Mixture of experts with private latents (Palumbo et al. 2023)."""

    def translate(self, config: Options) -> dict[str, Any]:
        """One private block of the prior serves all modalities: ours is tied."""
        case, places = self.case, {"joint_prior": "prior", "single_prior": "aux"}
        sizes = set(case.private_dims.values())
        if len(sizes) != 1:
            raise CaseError(f"{case.name}: private latents of sizes {sorted(sizes)}, not of one")
        stated = config.take("modalities_specific_dim", min(sizes), whole)
        if stated != min(sizes):
            raise CaseError(f"{case.name}: modalities_specific_dim contradicts the case")
        learned = config.take("learn_shared_prior", False, flag)
        place = config.take("reconstruction_option", "joint_prior", lambda v: v in places)
        return {
            **self.mixture(config),
            "private_dims": case.private_dims,
            "learn_prior_z": learned,
            "learn_prior_w": learned,
            "tie_private_prior": True,
            "learn_aux": config.take("learn_modality_prior", True, flag),
            "cross_private": places[place],
        }

    def load(self, built: Built) -> None:
        """Load the raw scales of all priors, learned or not."""
        model: Any = built.model
        size = self.case.latent_dim
        shared, private = model.shared_prior.raw_scale, model.private_priors[0].raw_scale
        built.networks.load("prior.shared.logvar", shared, slice(0, size))
        built.networks.load("prior.shared.logvar", private, slice(size, None))
        for name in self.case.order:
            auxiliary = model.auxiliary_prior(name)
            built.networks.load(f"prior.private_r.{name}.logvar", auxiliary.raw_scale)
        extra = {name for name in self.case.tensors if name.startswith("prior.")}
        if extra - {*built.networks.places}:
            raise CaseError(f"{self.case.name}: our priors have no place for {sorted(extra)}")
