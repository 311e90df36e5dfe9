"""What every model and every modality can be told."""

from __future__ import annotations

from typing import Any

import attrs

from multivae_core.config import component, config, non_negative, positive
from multivae_core.errors import ConfigError
from multivae_core.schedules import Cyclical, Linear, schedule

__all__ = ["ModalityConfig", "ModelConfig"]


def _lengths(_: Any, field: attrs.Attribute[Any], value: tuple[int, ...]) -> None:
    """Validator: the lengths of one axis or more."""
    if not value or any(length < 1 for length in value):
        raise ConfigError(f"must be one or more lengths above 0, got {value!r}", field.name)


@config
class ModalityConfig:
    """One modality of a model.

    Args:
        shape: Shape of one measurement.
        likelihood: Distribution of the measurement given the latents.
        encoder: Trunk of the encoder, which sees log(1 + x) of counts; None: a network of the
            user's own, which sees the values as they are.
        decoder: Trunk of the decoder; None: a network of the user's own.
        standardise: Whether the model sees the values shifted and scaled, see `Transform`.
        element_mask: Whether the encoder is told which elements were observed.
        weight: Weight of this modality's log-likelihood in training; estimates never use it.
    """

    shape: tuple[int, ...] = attrs.field(validator=_lengths)
    likelihood: Any = component("likelihoods", default="normal")
    encoder: Any = component("encoders", default=None)
    decoder: Any = component("decoders", default=None)
    standardise: bool = False
    element_mask: bool = False
    weight: float = attrs.field(default=1.0, validator=non_negative)


@config
class ModelConfig:
    """What every model can be told.

    Args:
        modalities: Name -> configuration of the modality.
        latent_dim: Size D of the shared latent.
        beta: Weight of the divergences in training.
        beta_schedule: Factor on beta over the steps of training: None, a number of steps for a
            linear ramp, or a mapping such as ``{"type": "cyclical", "steps": 1000}``.
        prior: Prior of the shared latent.
    """

    modalities: dict[str, ModalityConfig]
    latent_dim: int = attrs.field(default=16, validator=positive)
    beta: float = attrs.field(default=1.0, validator=non_negative)
    beta_schedule: Linear | Cyclical | None = schedule()
    prior: Any = component("priors", default="standard_normal")
