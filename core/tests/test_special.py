"""The special functions against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from multivae_core import special

stats = pytest.importorskip("scipy.stats")
scipy_special = pytest.importorskip("scipy.special")

positive = st.floats(-3, 5).map(lambda exponent: 10.0**exponent)
probability = st.floats(1e-9, 1 - 1e-9)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@settings(max_examples=200, deadline=None)
@given(a=positive, b=positive, x=st.floats(0, 1, allow_subnormal=False))
def test_betainc_agrees_with_scipy(a: float, b: float, x: float) -> None:
    ours = special.betainc(double(a), double(b), double(x)).item()
    # where b is 1e5, x itself carries a relative error of 1e-16 into an exponent of size b
    assert ours == pytest.approx(scipy_special.betainc(a, b, x), rel=1e-8, abs=1e-12)


def test_betainc_at_the_ends_and_with_a_known_complement() -> None:
    a, b = double(2.0, 0.5), double(3.0, 4.0)
    assert special.betainc(a, b, double(0.0, 0.0)).tolist() == [0.0, 0.0]
    assert special.betainc(a, b, double(1.0, 1.0)).tolist() == [1.0, 1.0]
    near_one = special.betainc(double(0.5), double(2.0), double(1.0), double(1e-20)).item()
    assert near_one == 1.0
    small = special.betainc(double(2.0), double(0.5), double(1.0), double(1e-20)).item()
    assert 1.0 - small == pytest.approx(scipy_special.betainc(0.5, 2.0, 1e-20), rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(p=st.floats(1e-12, 1 - 1e-12), df=st.floats(-1, 6).map(lambda e: 10.0**e))
def test_student_t_quantile_agrees_with_scipy(p: float, df: float) -> None:
    ours = special.student_t_quantile(p, double(df)).item()
    theirs = stats.t.ppf(p, df)
    if np.isfinite(theirs):
        assert ours == pytest.approx(theirs, rel=1e-7, abs=1e-9)


def test_student_t_quantile_is_symmetric_and_zero_in_the_middle() -> None:
    df = double(0.7, 2.0, 30.0)
    assert special.student_t_quantile(0.5, df).tolist() == [0.0, 0.0, 0.0]
    upper, lower = special.student_t_quantile(0.75, df), special.student_t_quantile(0.25, df)
    torch.testing.assert_close(upper, -lower, rtol=0, atol=0)


@settings(max_examples=100, deadline=None)
@given(p=st.floats(1e-10, 1 - 1e-10), shape=st.floats(-4, 6).map(lambda e: 10.0**e))
def test_gamma_quantile_agrees_with_scipy(p: float, shape: float) -> None:
    ours = special.gamma_quantile(double(p), double(shape)).item()
    assert np.isfinite(ours)
    theirs = stats.gamma.ppf(p, shape)
    if theirs > 1e-250:
        assert np.exp(ours) == pytest.approx(theirs, rel=1e-8)
    else:  # P(a, x) = x^a / Gamma(a + 1) for so small an x
        exact = (np.log(p) + scipy_special.gammaln(shape + 1.0)) / shape
        assert ours == pytest.approx(exact, rel=1e-9)


@settings(max_examples=150, deadline=None)
@given(p=probability, rate=st.floats(-6, 7).map(lambda e: 10.0**e))
@example(p=0.999999999, rate=1e7)
def test_poisson_quantile_is_the_smallest_count(p: float, rate: float) -> None:
    k = special.poisson_quantile(p, double(rate))
    assert special.poisson_cdf(k, double(rate)).item() >= p
    assert special.poisson_cdf(k - 1, double(rate)).item() < p
    # In the tail of a large rate many counts share a probability to 1e-11, which is as well as
    # the incomplete gamma function is known there; so probabilities are compared, not counts.
    slack = 1e-10
    assert stats.poisson.cdf(k.item(), rate) >= p - slack
    assert stats.poisson.cdf(k.item() - 1, rate) < p + slack


@settings(max_examples=60, deadline=None)
@given(
    p=probability,
    mean=st.floats(-4, 5).map(lambda e: 10.0**e),
    size=st.floats(-2, 6).map(lambda e: 10.0**e),
)
def test_negative_binomial_quantile_is_the_smallest_count(
    p: float, mean: float, size: float
) -> None:
    log_mean, log_size = double(mean).log(), double(size).log()
    k = special.negative_binomial_quantile(p, log_mean, log_size)
    assert special.negative_binomial_cdf(k, log_mean, log_size).item() >= p
    assert special.negative_binomial_cdf(k - 1, log_mean, log_size).item() < p
    # a probability within rounding of a step may fall on either side of it
    theirs = stats.nbinom.cdf([k.item() - 1, k.item()], size, size / (size + mean))
    assert theirs[0] - 1e-9 <= p <= theirs[1] + 1e-9


def test_quantiles_of_many_elements_equal_those_of_one() -> None:
    rate = torch.logspace(-3, 4, 200_001, dtype=torch.float64)
    p = torch.linspace(1e-6, 1 - 1e-6, 200_001, dtype=torch.float64).flip(0)
    whole = special.poisson_quantile(p, rate)
    picked = torch.arange(0, 200_001, 20_011)
    single = torch.stack([special.poisson_quantile(p[i], rate[i]) for i in picked])
    torch.testing.assert_close(whole[picked], single, rtol=0, atol=0)
    expected = stats.poisson.ppf(p[picked].numpy(), rate[picked].numpy())
    np.testing.assert_array_equal(whole[picked].numpy(), expected)


def test_quantiles_end_at_probability_one_and_on_empty_input() -> None:
    assert torch.isfinite(special.poisson_quantile(1.0, double(3.0))).all()
    assert torch.isfinite(special.negative_binomial_quantile(1.0, double(1.0), double(-2.0))).all()
    assert special.poisson_quantile(0.5, torch.empty(0, 3)).shape == (0, 3)
    assert special.poisson_quantile(0.5, double(0.0)).item() == 0.0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_stirling_error_is_exact_on_both_branches(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.logspace(-4, 8, 500, dtype=torch.float64)
    exact = (
        scipy_special.gammaln(x.numpy())
        - ((x - 0.5) * x.log() - x + 0.5 * np.log(2 * np.pi)).numpy()
    )
    series = (1 / (12 * x) - 1 / (360 * x**3) + 1 / (1260 * x**5)).numpy()
    exact = np.where(x.numpy() > 100, series, exact)  # the difference itself cancels there
    ours = special.stirling_error(x.to(dtype)).double().numpy()
    np.testing.assert_allclose(ours, exact, rtol=tolerance, atol=5 * tolerance)


def test_stirling_error_has_the_right_gradient() -> None:
    x = torch.tensor([1e-3, 0.4, 1.0, 7.0, 15.9, 16.1, 60.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(special.stirling_error, x.requires_grad_(), eps=1e-7)


def test_softplus_is_exact_in_float64() -> None:
    x = double(-50.0, -1.0, 0.0, 25.0, 39.9, 40.1, 800.0)
    np.testing.assert_allclose(special.softplus(x), np.logaddexp(0, x.numpy()), rtol=1e-15)
