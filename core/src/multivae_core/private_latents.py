"""Private latents beside the shared one: their options, their posteriors and their divergence.

Modality m with a private latent has ``q(w_m | x_m)`` and the prior N(0, I); its decoder sees
``[z, w_m]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from multivae_core.config import config, each, non_negative, positive, structure
from multivae_core.distributions import Distribution, Normal
from multivae_core.errors import ConfigError
from multivae_core.losses import Term
from multivae_core.model import MultimodalVAE
from multivae_core.model_config import ModelConfig
from multivae_core.noise import NoiseSource, Step
from multivae_core.posteriors import FactorisedPosterior, LatentName, Latents

__all__ = ["PrivateConfig", "PrivateVAE", "check_names", "normal", "private_sizes"]


def private_sizes(default: Any) -> Any:
    """Declare the field ``private_dims`` of a model with private latents.

    It holds the size of every modality's private latent; modalities left out have none. A plain
    number is the size for all of them.
    """
    read = attrs.Converter(_sizes, takes_self=True, takes_field=True)
    return attrs.field(default=default, converter=read, validator=each(positive))


def _sizes(value: Any, options: Any, field: attrs.Attribute[Any]) -> dict[str, int]:
    if isinstance(value, Mapping):
        return structure(dict[str, int], value, field.name)
    try:
        size = structure(int, value)
    except ConfigError as error:
        message = f"must be an integer or a mapping of modalities to integers, got {value!r}"
        raise ConfigError(message, field.name) from error
    return dict.fromkeys(options.modalities, size)


@config
class PrivateConfig(ModelConfig):
    """Options of a model with private latents.

    Args:
        private_dims: Size of every modality's private latent; modalities left out have none. A
            number is the size for all.
        style_betas: Weight in training of single modalities' private divergences.
    """

    private_dims: dict[str, int] = private_sizes(attrs.Factory(dict))
    style_betas: dict[str, float] = attrs.field(factory=dict, validator=each(non_negative))

    def __attrs_post_init__(self) -> None:
        check_names(self, "private_dims")
        check_names(self, "style_betas")
        for name in self.style_betas:
            if name not in self.private_dims:
                raise ConfigError(
                    "the modality has no private latent; give it a size in private_dims",
                    f"style_betas.{name}",
                )


class PrivateVAE(MultimodalVAE):
    """What models with Gaussian private latents share."""

    config: PrivateConfig

    def private_dims(self) -> dict[str, int]:
        """Size of every modality's private latent."""
        return self.config.private_dims

    def private(self, encoded: dict[LatentName, Tensor]) -> dict[LatentName, Normal]:
        """Posterior of every private latent, over ``(B, P)``.

        The zeros that `run_encoders` leaves in rows without the modality are N(0, I): the prior.
        """
        return {name: normal(part, 1) for name, part in encoded.items() if name != "shared"}

    def with_private(
        self, shared: Distribution, encoded: dict[LatentName, Tensor]
    ) -> FactorisedPosterior:
        """The posterior of the shared latent beside those of the private ones."""
        parts: dict[LatentName, Distribution] = {"shared": shared}
        return FactorisedPosterior(parts | self.private(encoded))

    def draw_private(
        self, private: dict[LatentName, Normal], n: int, noise: NoiseSource
    ) -> Latents:
        """Draw every private latent, ``(n, B, P)``."""
        return {name: part.sample(n, noise, name) for name, part in private.items()}

    def private_terms(
        self, private: dict[LatentName, Normal], step: Step, weight: float | Tensor = 1.0
    ) -> dict[str, Term]:
        """The weighted private divergences as one term; none without private latents.

        Args:
            private: What `private` returns.
            step: Outside training every weight is 1.
            weight: Weight in training, beside those of ``style_betas``; or one per row ``(B,)``.
        """
        if not private:
            return {}
        betas: dict[LatentName, float | Tensor] = dict.fromkeys(private, 1.0)
        if step.training:
            betas |= {("private", m): own for m, own in self.config.style_betas.items()}
            betas = {name: weight * own for name, own in betas.items()}
        weighted = [betas[name] * part.kl() for name, part in private.items()]
        return {"kl_private": Term(torch.stack(weighted).sum(dim=0))}


def check_names(options: ModelConfig, option: str) -> None:
    """Refuse an option by modality that names one which the model does not have."""
    for name in getattr(options, option):
        if name not in options.modalities:
            known = ", ".join(options.modalities)
            raise ConfigError(f"unknown modality; there is {known}", f"{option}.{name}")


def normal(encoded: Tensor, axis: int) -> Normal:
    """The Gaussian whose mean and log-variance lie along one axis of length 2."""
    location, log_variance = encoded.unbind(dim=axis)
    return Normal(location, log_variance)
