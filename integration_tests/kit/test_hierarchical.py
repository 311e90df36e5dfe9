"""What the truths of the hierarchical models say beside what the kit asks of every model."""

from __future__ import annotations

import numpy as np
import pytest

from .hierarchical import DOWN, mhvae, nexus


def test_true_experts_give_mhvae_the_exact_value_with_few_samples():
    oracle = mhvae(1.0)
    truth, model = oracle.truth, oracle.model
    data = truth.sample(40, seed=5)
    estimate = model.log_likelihood(data, n_samples=3)
    np.testing.assert_allclose(estimate.value, truth.log_likelihood(data), rtol=1e-9)
    assert estimate.standard_error.max() < 1e-6
    exact = truth.posterior(data).mean
    np.testing.assert_allclose(model.embed(data), exact, atol=1e-9)
    z2 = model.embed(data, "z2")
    # z2 | z1 ~ N(A z1, 1 - A^2)
    np.testing.assert_allclose(z2, DOWN * exact, atol=1e-9)


@pytest.mark.parametrize("make", [mhvae, nexus])
def test_generated_rows_have_the_true_moments(make):
    oracle = make()
    truth, model = oracle.truth, oracle.model
    n = 20_000
    for name, values in model.generate(n, seed=3, output="sample").items():
        own = truth.private.get(name, np.zeros((len(truth.offsets[name]), 0)))
        loadings = np.concatenate([truth.loadings[name], own], axis=1)
        cov = loadings @ loadings.T + np.diag(truth.noise[name] ** 2)
        deviation = np.sqrt(np.diag(cov))
        error = np.abs(values.mean(dim=0).numpy() - truth.offsets[name]) / deviation
        assert error.max() < 5 / np.sqrt(n)
        found = np.cov(values.numpy().T) / np.outer(deviation, deviation)
        assert np.abs(found - cov / np.outer(deviation, deviation)).max() < 5 * np.sqrt(2 / n)
