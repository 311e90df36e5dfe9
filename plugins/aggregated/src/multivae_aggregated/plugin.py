"""The table of this family's models; imports no torch."""

from __future__ import annotations

__all__ = ["MULTIVAE_API_LEVEL", "multivae_components"]

from multivae_core.plugins import USUAL_CAPABILITIES, ComponentSpec, hookimpl

MULTIVAE_API_LEVEL = 1


@hookimpl
def multivae_components() -> list[ComponentSpec]:
    """Return the specs of the models."""
    return [
        ComponentSpec(
            kind="models",
            name="mvae",
            target="multivae_aggregated.mvae:MVAE",
            config="multivae_aggregated.mvae:MVAEConfig",
            summary="Product of experts, trained on subsets of the modalities.",
            family="aggregated",
            reference="Wu & Goodman 2018",
            capabilities=USUAL_CAPABILITIES,
        ),
        ComponentSpec(
            kind="models",
            name="mmvae",
            target="multivae_aggregated.mmvae:MMVAE",
            config="multivae_aggregated.mmvae:MMVAEConfig",
            summary="Mixture of experts, trained by an importance-weighted bound.",
            family="aggregated",
            reference="Shi et al. 2019",
            capabilities=USUAL_CAPABILITIES | {"loss_is_bound"},
        ),
        ComponentSpec(
            kind="models",
            name="mopoe",
            target="multivae_aggregated.mopoe:MoPoE",
            config="multivae_aggregated.mopoe:MoPoEConfig",
            summary="Mixture of the products of experts of all subsets.",
            family="aggregated",
            reference="Sutter et al. 2021",
            capabilities=USUAL_CAPABILITIES | {"loss_is_bound", "private_latents"},
        ),
    ]
