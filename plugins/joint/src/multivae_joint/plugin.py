"""The table of this family's models, of its fusion and its encoder; imports no torch."""

from __future__ import annotations

__all__ = ["MULTIVAE_API_LEVEL", "multivae_components"]

from multivae_core.plugins import USUAL_CAPABILITIES, ComponentSpec, hookimpl

MULTIVAE_API_LEVEL = 1


@hookimpl
def multivae_components() -> list[ComponentSpec]:
    """Return the specs of the models, the fusion and the encoder."""
    return [
        ComponentSpec(
            kind="models",
            name="jmvae",
            target="multivae_joint.jmvae:JMVAE",
            config="multivae_joint.jmvae:JMVAEConfig",
            summary="Joint encoder, and one surrogate per modality that is drawn to it.",
            family="joint",
            reference="Suzuki et al. 2016",
            capabilities=USUAL_CAPABILITIES | {"loss_is_bound"},
        ),
        ComponentSpec(
            kind="models",
            name="telbo",
            target="multivae_joint.telbo:TELBO",
            config="multivae_joint.telbo:TELBOConfig",
            summary="Joint encoder, and one surrogate per modality with an ELBO of its own.",
            family="joint",
            reference="Vedantam et al. 2018",
            capabilities=USUAL_CAPABILITIES,
        ),
        ComponentSpec(
            kind="models",
            name="jnf",
            target="multivae_joint.jnf:JNF",
            config="multivae_joint.jnf:JNFConfig",
            summary="Joint encoder, and one normalising flow per modality as its surrogate.",
            family="joint",
            reference="Senellart et al. 2023",
            capabilities=USUAL_CAPABILITIES - {"posterior_density"},
        ),
        ComponentSpec(
            kind="models",
            name="cvae",
            target="multivae_joint.cvae:CVAE",
            config="multivae_joint.cvae:CVAEConfig",
            summary="One modality given the others, any of which may be missing.",
            family="joint",
            reference="Sohn et al. 2015",
            capabilities=USUAL_CAPABILITIES - {"joint_likelihood", "generate"},
        ),
        ComponentSpec(
            kind="encoders",
            name="attribute_poe",
            target="multivae_joint.attributes:AttributePoEEncoder",
            config="multivae_joint.attributes:AttributePoEConfig",
            summary="One expert per attribute, any of which may be left open.",
            reference="Vedantam et al. 2018",
        ),
        ComponentSpec(
            kind="fusions",
            name="corrected_product",
            target="multivae_joint.corrected:CorrectedProduct",
            config="multivae_joint.corrected:CorrectedProductConfig",
            summary="Product of posteriors in which the prior counts once.",
            reference="Wu & Goodman 2018",
        ),
    ]
