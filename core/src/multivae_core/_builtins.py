"""The table of the core's own components, read through the same hook as any plugin's."""

from __future__ import annotations

__all__ = ["multivae_components"]

from multivae_core.plugins import ComponentSpec, hookimpl

_LIKELIHOODS = {
    "bernoulli": ("Bernoulli", "Binary values, from logits."),
    "categorical": ("Categorical", "Categories, one-hot along the last axis."),
    "laplace": ("Laplace", "Real values with heavier tails; fixed, learned or predicted scale."),
    "negative_binomial": ("NegativeBinomial", "Counts that vary more than Poisson counts."),
    "normal": ("Normal", "Real values; fixed, learned or predicted scale."),
    "poisson": ("Poisson", "Counts whose variance is their mean."),
    "squared_error": ("SquaredError", "Squared error, for models that are not probabilistic."),
    "student_t": ("StudentT", "Real values with outliers."),
    "zero_inflated_negative_binomial": (
        "ZeroInflatedNegativeBinomial",
        "Counts with more zeros than a negative binomial has.",
    ),
}
_NETWORKS = {
    "conv": ("Conv", "Convolutions over images (C, H, W) or volumes (C, D, H, W)."),
    "conv1d": ("Conv1d", "Convolutions over sequences (C, L)."),
    "mlp": ("MLP", "Fully connected layers; any shape."),
}
_FUSIONS = {
    "mixture": ("Mixture", "Mixture of the experts that are present."),
    "mixture_of_products": ("MixtureOfProducts", "Mixture of the products of all subsets."),
    "product": ("Product", "Product of the experts that are present, with or without prior."),
    "weighted_product": ("WeightedProduct", "Product with a weight per expert and dimension."),
}


@hookimpl
def multivae_components() -> list[ComponentSpec]:
    """Return the specs of the core's own components."""
    return [*_likelihoods(), *_networks(), *_fusions(), *_priors()]


def _likelihoods() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="likelihoods",
            name=name,
            target=f"multivae_core.likelihoods:{stem}",
            config=f"multivae_core.likelihoods:{stem}Config",
            summary=summary,
        )
        for name, (stem, summary) in _LIKELIHOODS.items()
    ]


def _networks() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind=f"{role.lower()}s",
            name=name,
            target=f"multivae_core.networks:{stem}{role}",
            config=f"multivae_core.networks:{stem}Config",
            summary=summary,
        )
        for role in ("Encoder", "Decoder")
        for name, (stem, summary) in _NETWORKS.items()
    ]


def _fusions() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="fusions",
            name=name,
            target=f"multivae_core.fusion:{stem}Fusion",
            config=f"multivae_core.fusion:{stem}Config",
            summary=summary,
        )
        for name, (stem, summary) in _FUSIONS.items()
    ]


def _priors() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="priors",
            name=name,
            target=f"multivae_core.priors:{target}",
            config=f"multivae_core.priors:{stem}Config",
            summary=summary,
        )
        for name, target, stem, summary in (
            ("standard_normal", "StandardNormal", "StandardNormal", "N(0, I)."),
            ("scaled", "ScaledPrior", "Scaled", "Mean 0 and a scale that can be learned."),
        )
    ]
