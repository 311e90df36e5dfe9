"""Likelihoods p(x | z): a head turns what a decoder emits into a light object with densities."""

from __future__ import annotations

from multivae_core.likelihoods.base import Likelihood, LikelihoodHead
from multivae_core.likelihoods.continuous import (
    Laplace,
    LaplaceConfig,
    LaplaceLikelihood,
    Normal,
    NormalConfig,
    NormalLikelihood,
    SquaredError,
    SquaredErrorConfig,
    SquaredErrorLikelihood,
    StudentT,
    StudentTConfig,
    StudentTLikelihood,
)
from multivae_core.likelihoods.discrete import (
    Bernoulli,
    BernoulliConfig,
    BernoulliLikelihood,
    Categorical,
    CategoricalConfig,
    CategoricalLikelihood,
    NegativeBinomial,
    NegativeBinomialConfig,
    NegativeBinomialLikelihood,
    Poisson,
    PoissonConfig,
    PoissonLikelihood,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedNegativeBinomialConfig,
    ZeroInflatedNegativeBinomialLikelihood,
)
from multivae_core.likelihoods.huber import Huber, HuberConfig, HuberLikelihood

__all__ = [
    "Bernoulli", "BernoulliConfig", "BernoulliLikelihood", "Categorical", "CategoricalConfig",
    "CategoricalLikelihood", "Huber", "HuberConfig", "HuberLikelihood", "Laplace", "LaplaceConfig",
    "LaplaceLikelihood", "Likelihood", "LikelihoodHead", "NegativeBinomial",
    "NegativeBinomialConfig", "NegativeBinomialLikelihood", "Normal", "NormalConfig",
    "NormalLikelihood", "Poisson", "PoissonConfig", "PoissonLikelihood", "SquaredError",
    "SquaredErrorConfig", "SquaredErrorLikelihood", "StudentT", "StudentTConfig",
    "StudentTLikelihood", "ZeroInflatedNegativeBinomial", "ZeroInflatedNegativeBinomialConfig",
    "ZeroInflatedNegativeBinomialLikelihood",
]  # fmt: skip
