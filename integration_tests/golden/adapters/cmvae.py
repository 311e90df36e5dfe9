"""Mixture of experts with private latents and clusters (Palumbo et al. 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..adapter import Built, Options, flag, whole
from ..case import CaseError
from .mmvae import MMVAE

__all__ = ["CMVAE"]


class CMVAE(MMVAE):
    """Mixture of experts with private latents and clusters (Palumbo et al. 2024)."""

    def translate(self, config: Options) -> dict[str, Any]:
        """Only the auxiliary priors may be learned; clusters have the scale of a raw 0."""
        case, places = self.case, {"joint_prior": "prior", "single_prior": "aux"}
        sizes = set(case.private_dims.values())
        if len(sizes) != 1:
            raise CaseError(f"{case.name}: private latents of sizes {sorted(sizes)}, not of one")
        stated = config.take("modalities_specific_dim", min(sizes), whole)
        if stated != min(sizes):
            raise CaseError(f"{case.name}: modalities_specific_dim contradicts the case")
        place = config.take("reconstruction_option", "joint_prior", lambda v: v in places)
        return {
            **self.mixture(config),
            "private_dims": case.private_dims,
            "n_clusters": config.take("number_of_clusters", 10, lambda v: whole(v) and v > 0),
            "learn_aux": config.take("learn_modality_prior", True, flag),
            "cross_private": places[place],
        }

    def load(self, built: Built) -> None:
        """Load the clusters and the raw scales of the auxiliary priors, learned or not."""
        model: Any = built.model
        built.networks.load("prior.cluster_logits", model.shared_prior.logits)
        built.networks.load("prior.cluster_means", model.shared_prior.means)
        for name in self.case.order:
            auxiliary = model.auxiliary_prior(name)
            built.networks.load(f"prior.private_r.{name}.logvar", auxiliary.raw_scale)
        extra = {name for name in self.case.tensors if name.startswith("prior.")}
        if extra - {*built.networks.places}:
            raise CaseError(f"{self.case.name}: our priors have no place for {sorted(extra)}")

    def wide(self, built: Built) -> Tensor:
        """Log-variance of an expert as wide as all clusters together."""
        prior: Any = built.model.shared_prior
        weights, means = prior.parts()[1].detach(), prior.means.detach()
        return torch.log1p(weights @ means.square())
