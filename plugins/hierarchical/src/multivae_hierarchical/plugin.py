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
            name="mhvae",
            target="multivae_hierarchical.mhvae:MHVAE",
            config="multivae_hierarchical.mhvae:MHVAEConfig",
            summary="Levels of latents, vectors or maps; experts meet the prior at every level.",
            family="hierarchical",
            reference="Dorent et al. 2023, 2025",
            capabilities=USUAL_CAPABILITIES | {"loss_is_bound"},
        ),
        ComponentSpec(
            kind="models",
            name="nexus",
            target="multivae_hierarchical.nexus:Nexus",
            config="multivae_hierarchical.nexus:NexusConfig",
            summary="One latent per modality, and a shared one above that predicts them.",
            family="hierarchical",
            reference="Vasco et al. 2022",
            capabilities=USUAL_CAPABILITIES | {"private_latents"},
        ),
    ]
