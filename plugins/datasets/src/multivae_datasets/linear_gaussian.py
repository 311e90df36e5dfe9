"""A linear-Gaussian toy whose posteriors and likelihoods are known in closed form."""

from __future__ import annotations

__all__ = ["Affine", "Draw", "GaussianMixture", "LinearGaussian", "load", "toy"]

from multivae_core.data import IncompleteDataset
from multivae_core.testing.linear_gaussian import Affine, Draw, GaussianMixture, LinearGaussian


def toy(seed: int = 0) -> LinearGaussian:
    """Return the model behind the data set ``linear_gaussian``.

    Three modalities of 4, 5 and 6 features that see the three coordinates of z unequally well.
    """
    signal = {"a": (3.0, 0.5, 1.0), "b": (1.0, 3.0, 0.5), "c": (0.5, 1.0, 3.0)}
    return LinearGaussian.orthogonal({"a": 4, "b": 5, "c": 6}, 3, signal=signal, seed=seed)


def load(n: int = 1000, *, seed: int = 0, hidden: float = 0.0) -> IncompleteDataset:
    """Return rows of `toy`, whose exact likelihoods are ``toy().log_likelihood(data)``.

    Args:
        n: Number of rows.
        seed: Of rows and holes; the model is always the same.
        hidden: Share of the modalities that are hidden, completely at random.
    """
    return toy().sample(n, seed, hidden=hidden)
