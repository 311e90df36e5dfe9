from __future__ import annotations

import numpy as np
import torch

from multivae_core import testing
from multivae_datasets.linear_gaussian import LinearGaussian, load, toy


def test_load_is_the_toy_with_holes():
    data = load(200, seed=1, hidden=0.3)
    batch = data.batch(torch.arange(200))
    assert batch.names == ("a", "b", "c")
    # 600 places, rate 0.3: 5 standard errors.
    assert abs(1 - batch.present.double().mean().item() - 0.3) < 5 * np.sqrt(0.21 / 600)
    assert batch.labels is None
    again = load(200, seed=1, hidden=0.3).batch(torch.arange(200))
    assert torch.equal(again.present, batch.present)
    assert all(torch.equal(again.values[n], x) for n, x in batch.values.items())


def test_the_toy_is_the_models_likelihoods_are_checked_against():
    assert LinearGaussian is testing.LinearGaussian
    np.testing.assert_array_equal(
        toy().log_likelihood(load(5, seed=2)), toy().log_likelihood(toy().sample(5, seed=2))
    )
