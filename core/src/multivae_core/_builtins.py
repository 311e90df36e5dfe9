"""The table of the core's own components, read through the same hook as any plugin's."""

from __future__ import annotations

__all__ = ["multivae_components"]

from multivae_core.plugins import ComponentSpec, hookimpl

# kind, name, module, class, what its configuration is called before "Config", summary
_TABLE = """
likelihoods|bernoulli|likelihoods|Bernoulli|Bernoulli|Binary values, from logits.
likelihoods|categorical|likelihoods|Categorical|Categorical|Categories, one-hot on the last axis.
likelihoods|huber|likelihoods|Huber|Huber|Real values; the smooth L1 loss with its constant.
likelihoods|laplace|likelihoods|Laplace|Laplace|Real values with heavier tails than normal ones.
likelihoods|negative_binomial|likelihoods|NegativeBinomial|NegativeBinomial|Overdispersed counts.
likelihoods|normal|likelihoods|Normal|Normal|Real values; fixed, learned or predicted scale.
likelihoods|poisson|likelihoods|Poisson|Poisson|Counts whose variance is their mean.
likelihoods|squared_error|likelihoods|SquaredError|SquaredError|For models without a likelihood.
likelihoods|student_t|likelihoods|StudentT|StudentT|Real values with outliers.
likelihoods|zero_inflated_negative_binomial|likelihoods|ZeroInflatedNegativeBinomial|\
ZeroInflatedNegativeBinomial|Counts with more zeros than a negative binomial has.
encoders|conv|networks|ConvEncoder|Conv|Convolutions over images (C, H, W) or volumes.
encoders|conv1d|networks|Conv1dEncoder|Conv1d|Convolutions over sequences (C, L).
encoders|mlp|networks|MLPEncoder|MLP|Fully connected layers; any shape.
decoders|conv|networks|ConvDecoder|Conv|Convolutions to images (C, H, W) or volumes.
decoders|conv1d|networks|Conv1dDecoder|Conv1d|Convolutions to sequences (C, L).
decoders|mlp|networks|MLPDecoder|MLP|Fully connected layers; any shape.
fusions|mixture|fusion|MixtureFusion|Mixture|Mixture of the experts that are present.
fusions|mixture_of_products|fusion|MixtureOfProductsFusion|MixtureOfProducts|\
Mixture of the products of all subsets.
fusions|product|fusion|ProductFusion|Product|Product of the experts, with or without prior.
fusions|weighted_product|fusion|WeightedProductFusion|WeightedProduct|\
Product with a weight per expert and dimension.
priors|standard_normal|priors|StandardNormal|StandardNormal|N(0, I).
priors|scaled|priors|ScaledPrior|Scaled|Mean 0 and a scale that can be learned.
"""


@hookimpl
def multivae_components() -> list[ComponentSpec]:
    """Return the specs of the core's own components."""
    rows = (line.split("|") for line in _TABLE.strip().splitlines())
    return [
        ComponentSpec(
            kind=kind,
            name=name,
            target=f"multivae_core.{module}:{target}",
            config=f"multivae_core.{module}:{stem}Config",
            summary=summary,
        )
        for kind, name, module, target, stem, summary in rows
    ]
