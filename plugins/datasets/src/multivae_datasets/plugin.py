"""The table of the data sets; imports no torch."""

from __future__ import annotations

__all__ = ["MULTIVAE_API_LEVEL", "multivae_components"]

from multivae_core.plugins import ComponentSpec, hookimpl

MULTIVAE_API_LEVEL = 1


@hookimpl
def multivae_components() -> list[ComponentSpec]:
    """Return the specs of the data sets; each target is a function that loads one."""
    return [
        ComponentSpec(
            kind="datasets",
            name="mfeat",
            target="multivae_datasets.mfeat:load",
            summary="2,000 handwritten digits, each in six views of real features.",
            reference="van Breukelen et al. 1998",
        ),
        ComponentSpec(
            kind="datasets",
            name="mnist",
            target="multivae_datasets.mnist:load",
            summary="10,000 handwritten digits, grey or binary, with their classes.",
            reference="LeCun et al. 1998",
        ),
        ComponentSpec(
            kind="datasets",
            name="polymnist",
            target="multivae_datasets.polymnist:load",
            summary="Digits of one class before five photo backgrounds, one per modality.",
            reference="Sutter et al. 2021",
        ),
        ComponentSpec(
            kind="datasets",
            name="linear_gaussian",
            target="multivae_datasets.linear_gaussian:load",
            summary="A linear-Gaussian toy whose likelihoods are known exactly.",
        ),
    ]
