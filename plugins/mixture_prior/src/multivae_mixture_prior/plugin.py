"""The table of this family's priors and models; imports no torch."""

from __future__ import annotations

__all__ = ["MULTIVAE_API_LEVEL", "multivae_components"]

from multivae_core.plugins import USUAL_CAPABILITIES, ComponentSpec, hookimpl

MULTIVAE_API_LEVEL = 1


@hookimpl
def multivae_components() -> list[ComponentSpec]:
    """Return the specs of priors and models."""
    return [
        ComponentSpec(
            kind="priors",
            name="gmm",
            target="multivae_mixture_prior.mixture:GaussianMixture",
            config="multivae_mixture_prior.mixture:GaussianMixtureConfig",
            summary="Mixture of Gaussians or Laplaces; components can be pruned.",
            reference="Jiang et al. 2017",
        ),
        ComponentSpec(
            kind="priors",
            name="vamp",
            target="multivae_mixture_prior.vamp:VampPrior",
            config="multivae_mixture_prior.vamp:VampPriorConfig",
            summary="Mixture of the model's posteriors of learned pseudo-inputs.",
            reference="Tomczak & Welling 2018",
        ),
        ComponentSpec(
            kind="priors",
            name="flow",
            target="multivae_mixture_prior.flow:FlowPrior",
            config="multivae_mixture_prior.flow:FlowPriorConfig",
            summary="Normalising flow; needs zuko.",
            reference="Chen et al. 2017",
        ),
        ComponentSpec(
            kind="models",
            name="cmvae",
            target="multivae_mixture_prior.cmvae:CMVAE",
            config="multivae_mixture_prior.cmvae:CMVAEConfig",
            summary="MMVAE+ with a mixture of clusters as the prior of what is shared.",
            family="mixture_prior",
            reference="Palumbo et al. 2024",
            capabilities=USUAL_CAPABILITIES | {"private_latents"},
        ),
        ComponentSpec(
            kind="models",
            name="mmvm",
            target="multivae_mixture_prior.mmvm:MMVM",
            config="multivae_mixture_prior.mmvm:MMVMConfig",
            summary="Unimodal VAEs; the prior of each is the mixture of all posteriors.",
            family="mixture_prior",
            reference="Sutter et al. 2024",
            capabilities=USUAL_CAPABILITIES - {"joint_likelihood", "conditional_likelihood"},
        ),
    ]
