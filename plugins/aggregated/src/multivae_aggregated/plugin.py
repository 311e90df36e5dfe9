"""The table of this family's models; imports no torch."""

from __future__ import annotations

__all__ = ["MULTIVAE_API_LEVEL", "multivae_components"]

from multivae_core.plugins import USUAL_CAPABILITIES, ComponentSpec, hookimpl

MULTIVAE_API_LEVEL = 1

# name, aliases, module, what its class is called before "Fusion", summary, reference
_FUSIONS: list[tuple[str, tuple[str, ...], str, str, str, str]] = [
    (
        "barycentre", (), "closed_form", "Barycentre",
        "Wasserstein-2 barycentre: means of means and of deviations.", "Qiu et al. 2025",
    ),
    (
        "dependent_experts", ("code",), "closed_form", "DependentExperts",
        "Consensus of experts whose errors are correlated.", "Mancisidor et al. 2025",
    ),
    (
        "hellinger", (), "closed_form", "Hellinger",
        "Gaussian with the moments of the Hellinger pool.", "Vo & Valera 2026",
    ),
    (
        "hellinger_mixture", (), "closed_form", "HellingerMixture",
        "The Hellinger pool itself, a mixture over pairs of experts.", "Vo & Valera 2026",
    ),
    (
        "pooling", (), "pooling", "Pooling",
        "Learned permutation-invariant function of the experts.", "Hirt et al. 2024",
    ),
]  # fmt: skip


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
            name="mmvae_plus",
            target="multivae_aggregated.mmvae_plus:MMVAEPlus",
            config="multivae_aggregated.mmvae_plus:MMVAEPlusConfig",
            summary="Mixture of experts with private latents that cannot replace the shared one.",
            family="aggregated",
            reference="Palumbo et al. 2023",
            capabilities=USUAL_CAPABILITIES | {"private_latents"},
        ),
        ComponentSpec(
            kind="models",
            name="dmvae",
            target="multivae_aggregated.dmvae:DMVAE",
            config="multivae_aggregated.dmvae:DMVAEConfig",
            summary="ELBOs of the joint and of every single posterior, with private latents.",
            family="aggregated",
            reference="Lee & Pavlovic 2021",
            capabilities=USUAL_CAPABILITIES | {"private_latents"},
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
        ComponentSpec(
            kind="models",
            name="mvtcae",
            target="multivae_aggregated.mvtcae:MVTCAE",
            config="multivae_aggregated.mvtcae:MVTCAEConfig",
            summary="Product of experts, trained by a bound on the total correlation.",
            family="aggregated",
            reference="Hwang et al. 2021",
            capabilities=USUAL_CAPABILITIES,
        ),
        ComponentSpec(
            kind="models",
            name="mmjsd",
            target="multivae_aggregated.mmjsd:MMJSD",
            config="multivae_aggregated.mmjsd:MMJSDConfig",
            summary="Mixture of experts with a Jensen-Shannon divergence and a dynamic prior.",
            family="aggregated",
            reference="Sutter et al. 2020",
            capabilities=USUAL_CAPABILITIES | {"private_latents"},
        ),
        ComponentSpec(
            kind="models",
            name="gpoe",
            target="multivae_aggregated.gpoe:GPoE",
            config="multivae_aggregated.gpoe:GPoEConfig",
            summary="Weighted product of experts; the ELBO of any rule of fusion.",
            family="aggregated",
            reference="Lawry Aguila et al. 2023",
            capabilities=USUAL_CAPABILITIES | {"loss_is_bound", "private_latents"},
        ),
        ComponentSpec(
            kind="models",
            name="masked_pi",
            target="multivae_aggregated.masked:MaskedVAE",
            config="multivae_aggregated.masked:MaskedVAEConfig",
            summary="Learned permutation-invariant aggregation, trained by a masked bound.",
            family="aggregated",
            reference="Hirt et al. 2024",
            capabilities=USUAL_CAPABILITIES | {"private_latents"},
        ),
        ComponentSpec(
            kind="models",
            name="codevae",
            target="multivae_aggregated.presets:CoDEVAE",
            config="multivae_aggregated.presets:CoDEVAEConfig",
            summary="MoPoE of dependent experts, with learned weights of the subsets.",
            family="aggregated",
            reference="Mancisidor et al. 2025",
            capabilities=USUAL_CAPABILITIES | {"loss_is_bound", "private_latents"},
        ),
        ComponentSpec(
            kind="models",
            name="helvae",
            target="multivae_aggregated.presets:HelVAE",
            config="multivae_aggregated.presets:HelVAEConfig",
            summary="One posterior of all that is seen, pooled by the Hellinger distance.",
            family="aggregated",
            reference="Vo & Valera 2026",
            capabilities=USUAL_CAPABILITIES | {"loss_is_bound", "private_latents"},
        ),
        ComponentSpec(
            kind="models",
            name="mwbvae",
            target="multivae_aggregated.presets:MWBVAE",
            config="multivae_aggregated.presets:MWBVAEConfig",
            summary="Mixture of the Wasserstein barycentres of all subsets.",
            family="aggregated",
            reference="Qiu et al. 2025",
            capabilities=USUAL_CAPABILITIES | {"loss_is_bound", "private_latents"},
        ),
        *(
            ComponentSpec(
                kind="fusions",
                name=name,
                aliases=aliases,
                target=f"multivae_aggregated.fusions.{module}:{stem}Fusion",
                config=f"multivae_aggregated.fusions.{module}:{stem}Config",
                summary=summary,
                reference=reference,
            )
            for name, aliases, module, stem, summary, reference in _FUSIONS
        ),
        ComponentSpec(
            kind="models",
            name="mwae",
            target="multivae_aggregated.mwae:MWAE",
            config="multivae_aggregated.mwae:MWAEConfig",
            summary="Cross autoencoders with codes that follow the prior; no likelihood.",
            family="aggregated",
            reference="Tolstikhin et al. 2018",
            capabilities=frozenset({"encodes_any_subset", "generate"}),
        ),
        ComponentSpec(
            kind="models",
            name="maae",
            target="multivae_aggregated.maae:MAAE",
            config="multivae_aggregated.maae:MAAEConfig",
            summary="Cross autoencoders against a discriminator of codes; no likelihood.",
            family="aggregated",
            reference="Makhzani et al. 2015",
            capabilities=frozenset({"encodes_any_subset", "generate"}),
        ),
    ]
