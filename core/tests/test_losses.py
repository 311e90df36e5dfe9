"""Importance-weighted bounds and their gradient estimators on a toy in one dimension.

The toy: z ~ N(0, 1), x = 1.5 seen with deviation 0.5, and two Gaussian experts. Every row has
its own copy of the experts, so that the rows' gradients give the error of their mean. Claims of
no bias allow |z| < 4.5 (fails 7 times in a million); claims of bias ask for |z| > 8.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from multivae_core.distributions import Mixture, Normal
from multivae_core.losses import doubly_reparameterised, log_mean_exp, scale_gradient
from multivae_core.noise import RowNoise

F64 = torch.float64
ROWS = 60_000
MEANS, DEVIATIONS = (0.3, 1.9), (0.8, 0.3)


def log_joint(z):
    return -0.5 * z**2 - 0.5 * ((1.5 - z) / 0.5) ** 2 - math.log(2 * math.pi * 0.5)


def log_normal(z, mean, deviation):
    return -0.5 * ((z - mean) / deviation) ** 2 - math.log(deviation * math.sqrt(2 * math.pi))


def looser_bound(first_mean, k, count):
    """The looser bound of k = 1 or 2 samples per expert by Gauss-Hermite quadrature."""
    node, weight = np.polynomial.hermite_e.hermegauss(100)
    weight = weight / weight.sum()
    means = (first_mean, *MEANS[1:])[:count]

    def log_w(z):
        each = [log_normal(z, m, s) for m, s in zip(means, DEVIATIONS, strict=False)]
        return log_joint(z) - np.logaddexp.reduce(each, axis=0) + math.log(count)

    total = 0.0
    for mean, deviation in zip(means, DEVIATIONS, strict=False):
        own = log_w(mean + deviation * node)
        if k == 1:
            total += weight @ own
        else:
            pair = np.logaddexp(own[:, None], own[None]) - math.log(2)
            total += weight @ pair @ weight
    return total / count


def true_gradient(k, count):
    step = 1e-4
    low, high = (looser_bound(MEANS[0] + sign * step, k, count) for sign in (-1, 1))
    return (high - low) / (2 * step)


def gradients(estimator, k, count, seed=0):
    """Gradient of every row's estimate with respect to its first expert's mean."""
    shape = (count, ROWS, 1)
    mean = torch.tensor(MEANS[:count], dtype=F64).view(-1, 1, 1).expand(shape).clone()
    mean.requires_grad_()
    log_variance = 2 * torch.tensor(DEVIATIONS[:count], dtype=F64).log().view(-1, 1, 1)
    experts = Normal(mean, log_variance.expand(shape))
    noise = RowNoise(seed, torch.arange(ROWS), F64)
    z = torch.cat([experts[s].sample(k, noise, ("z", str(s))) for s in range(count)])
    cell = []
    if estimator == "dreg":
        z = scale_gradient(z, cell)
    scored = experts if estimator == "iwae" else experts.detach()
    weights = torch.full((ROWS, count), 1 / count, dtype=F64)
    log_w = log_joint(z)[..., 0] - Mixture(scored, weights).log_prob(z)
    log_w = log_w.unflatten(0, (count, k))
    value = log_mean_exp(log_w, dim=1)
    if estimator == "dreg":
        value, normalised = doubly_reparameterised(log_w, dim=1)
        cell.append(normalised.reshape(-1, ROWS, 1))
    value.mean(dim=0).sum().backward()
    return mean.grad[0, :, 0]


def z_score(rows, truth):
    return float((rows.mean() - truth) / (rows.std() / math.sqrt(len(rows))))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("k", [1, 2])
def test_plain_gradient_is_that_of_the_expected_bound(k, count):
    assert abs(z_score(gradients("iwae", k, count), true_gradient(k, count))) < 4.5


@pytest.mark.parametrize("count", [1, 2])
def test_dreg_is_exact_for_one_sample(count):
    assert abs(z_score(gradients("dreg", 1, count), true_gradient(1, count))) < 4.5


def test_dreg_is_unbiased_for_one_expert_and_has_less_variance():
    plain, dreg = gradients("iwae", 2, 1), gradients("dreg", 2, 1)
    assert abs(z_score(dreg, true_gradient(2, 1))) < 4.5
    assert float(dreg.var()) < 0.5 * float(plain.var())
    plain, dreg = gradients("iwae", 5, 1, seed=1), gradients("dreg", 5, 1, seed=2)
    error = math.sqrt(float(plain.var() + dreg.var()) / ROWS)
    assert abs(float(plain.mean() - dreg.mean())) < 4.5 * error


def test_dreg_is_biased_for_a_mixture_and_several_samples():
    # samples come from one expert, the score that is dropped belongs to the mixture
    plain, dreg = gradients("iwae", 10, 2, seed=1), gradients("dreg", 10, 2, seed=2)
    error = math.sqrt(float(plain.var() + dreg.var()) / ROWS)
    assert abs(float(plain.mean() - dreg.mean())) > 8.0 * error


def test_log_mean_exp_agrees_with_a_plain_mean_and_keeps_its_range():
    values = torch.randn(5, 3, dtype=F64)
    torch.testing.assert_close(log_mean_exp(values), values.exp().mean(dim=0).log())
    torch.testing.assert_close(log_mean_exp(values, dim=1), values.exp().mean(dim=1).log())
    far = torch.tensor([-2000.0, -2001.0], dtype=F64)
    torch.testing.assert_close(log_mean_exp(far), log_mean_exp(far + 2000.0) - 2000.0)


class TestScaleGradient:
    def test_values_pass_and_gradients_are_scaled(self):
        x = torch.randn(3, 4, 2, dtype=F64, requires_grad=True)
        weights = torch.rand(3, 4, 1, dtype=F64)
        cell = []
        y = scale_gradient(x, cell)
        assert torch.equal(y, x)
        cell.append(weights)
        (gradient,) = torch.autograd.grad((y**2).sum() + y.sum(), x)
        torch.testing.assert_close(gradient, (2 * x + 1) * weights)

    def test_forward_alone_needs_no_weights(self):
        with torch.no_grad():
            assert torch.equal(scale_gradient(torch.ones(2), []), torch.ones(2))


def test_unusable_samples_get_no_weight_and_no_gradient():
    log_w = torch.randn(4, 3, dtype=F64, requires_grad=True)
    usable = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]]).bool()
    value, weights = doubly_reparameterised(log_w, 0, usable)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(3, dtype=F64))
    assert not weights[~usable].any()
    value.sum().backward()
    torch.testing.assert_close(log_w.grad, weights)
