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
            name="crmvae",
            target="multivae_coordinated.crmvae:CRMVAE",
            config="multivae_coordinated.crmvae:CRMVAEConfig",
            summary="Product of experts, each of which reconstructs on its own as well.",
            family="coordinated",
            reference="Suzuki & Matsuo 2023",
            capabilities=USUAL_CAPABILITIES,
        ),
        ComponentSpec(
            kind="models",
            name="mcvae",
            target="multivae_coordinated.mcvae:MCVAE",
            config="multivae_coordinated.mcvae:MCVAEConfig",
            summary="Every channel's code explains all channels; sparse variant.",
            family="coordinated",
            reference="Antelmi et al. 2019",
            capabilities=USUAL_CAPABILITIES | {"loss_is_bound", "private_latents"},
        ),
        ComponentSpec(
            kind="models",
            name="dvcca",
            target="multivae_coordinated.dvcca:DVCCA",
            config="multivae_coordinated.dvcca:DVCCAConfig",
            summary="VCCA: a shared latent read from one view or each in turn, private ones.",
            family="coordinated",
            reference="Wang et al. 2016",
            aliases=("vcca",),
            capabilities=USUAL_CAPABILITIES | {"loss_is_bound", "private_latents"},
        ),
        ComponentSpec(
            kind="models",
            name="dccae",
            target="multivae_coordinated.dccae:DCCAE",
            config="multivae_coordinated.dccae:DCCAEConfig",
            summary="Autoencoders whose codes are correlated between modalities.",
            family="coordinated",
            reference="Wang et al. 2015",
            capabilities=frozenset({"encodes_any_subset"}),
        ),
        ComponentSpec(
            kind="models",
            name="latent_translation",
            target="multivae_coordinated.latent_translation:LatentTranslation",
            config="multivae_coordinated.latent_translation:LatentTranslationConfig",
            summary="Unimodal VAEs and a bridge between their latents; needs no pairs.",
            family="coordinated",
            reference="Tian & Engel 2019",
            capabilities=USUAL_CAPABILITIES
            - {"joint_likelihood", "conditional_likelihood", "row_objective"},
        ),
    ]
