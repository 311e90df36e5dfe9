"""Mixture of experts (Shi et al. 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..adapter import Adapter, Built, Options, flag, number, whole
from ..case import CaseError

__all__ = ["MMVAE"]


class MMVAE(Adapter):
    """Mixture of experts (Shi et al. 2019)."""

    def translate(self, config: Options) -> dict[str, Any]:
        """``beta`` exists and is never read."""
        learned = config.take("learn_prior", True, flag)
        return {**self.mixture(config), "beta": 1.0, "learn_prior": learned}

    def mixture(self, config: Options) -> dict[str, Any]:
        """The options of every model with a mixture of experts and such a bound."""
        samples = config.take("K", 10, lambda v: whole(v) and v > 0)
        families = ("laplace_with_softmax", "normal", "normal_with_softplus")
        family = config.take("prior_and_posterior_dist", families[0], lambda v: v in families)
        estimators = {"iwae_looser": "iwae", "dreg_looser": "dreg"}
        loss = config.take("loss", "dreg_looser", lambda v: v in estimators)
        return {
            "n_samples": self.arguments.take("K", samples, lambda v: whole(v) and v > 0),
            "family": family,
            "bound": "looser",
            "estimator": estimators[loss],
            "beta": config.take("beta", 1.0, number),
        }

    def load(self, built: Built) -> None:
        """Load the raw scale of the prior, learned or not."""
        prior: Any = built.model.shared_prior
        built.networks.load("prior.logvar", prior.raw_scale)
        extra = {name for name in self.case.tensors if name.startswith("prior.")}
        for name in sorted(extra - {"prior.logvar"}):
            if bool(self.case.tensors[name].any()):
                raise CaseError(f"{self.case.name}: our prior has no place for {name}")

    def wide(self, built: Built) -> Tensor:
        """Raw scale of the prior: an expert that is the prior."""
        prior: Any = built.model.shared_prior
        return torch.as_tensor(prior.raw_scale.detach())
