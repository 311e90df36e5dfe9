"""The toy against scipy, brute-force linear algebra, quadrature and Monte Carlo."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal

from multivae_core.errors import ConfigError, DataError
from multivae_core.testing import LinearGaussian

FEATURES = {"a": 4, "b": 5, "c": 6}
SUBSETS = [s for k in (1, 2, 3) for s in itertools.combinations(FEATURES, k)]
MODELS = {
    "plain": {},
    "private": {"private_dim": 2},
    "mixture": {"components": 3},
    "private mixture": {"private_dim": 1, "components": 2},
}


def toy():
    return LinearGaussian.orthogonal(FEATURES, 3, signal={"a": 3.0, "b": 1.0, "c": 0.5})


def build(name, **options):
    noise = {"a": 0.5, "b": np.linspace(0.2, 1.0, 5), "c": 0.8}
    signal = {"a": 2.0, "b": 0.7, "c": 1.3}
    given = {"signal": signal, "noise": noise, "seed": 1} | MODELS[name] | options
    return LinearGaussian.orthogonal(FEATURES, 2, **given)


def dense(model):
    """Mean and covariance of (z, x) for each component, by brute force."""
    x_size = sum(FEATURES.values())
    noise = np.concatenate([model.noise[n] for n in FEATURES])
    loadings = np.concatenate([model.loadings[n] for n in FEATURES])
    offsets = np.concatenate([model.offsets[n] for n in FEATURES])
    own = np.zeros((x_size, x_size))
    start = 0
    for name, size in FEATURES.items():
        part = slice(start, start + size)
        if name in model.private:
            own[part, part] = model.private[name] @ model.private[name].T
        start += size
    joint = []
    for mean, scale in zip(model.means, model.scales, strict=True):
        prior = np.diag(scale**2)
        cross = loadings @ prior
        within = cross @ loadings.T + own + np.diag(noise**2)
        covariance = np.block([[prior, cross.T], [cross, within]])
        joint.append((np.concatenate([mean, loadings @ mean + offsets]), covariance))
    return joint


def table(values):
    return np.concatenate([values[n] for n in FEATURES], axis=1)


def brute(model, x, observed):
    """log p(x_observed), mean and covariance of p(z | x_observed), of one row."""
    d = model.latent_dim
    keep = d + np.flatnonzero(observed)
    logs, means, covariances = [], [], []
    for weight, (mean, covariance) in zip(model.weights, dense(model), strict=True):
        gain = covariance[:d, keep] @ np.linalg.inv(covariance[np.ix_(keep, keep)])
        means.append(mean[:d] + gain @ (x[observed] - mean[keep]))
        covariances.append(covariance[:d, :d] - gain @ covariance[keep, :d])
        law = multivariate_normal(mean[keep], covariance[np.ix_(keep, keep)])
        logs.append(np.log(weight) + law.logpdf(x[observed]))
    share = softmax(logs)
    mean = share @ np.array(means)
    second = sum(
        s * (c + np.outer(m, m)) for s, m, c in zip(share, means, covariances, strict=True)
    )
    return logsumexp(logs), mean, second - np.outer(mean, mean)


def holes(values, rng, level):
    """Arrays with NaN in the holes; every row keeps something."""
    rows = len(values["a"])
    if level == "modality":
        keep = rng.random((rows, 3)) < 0.6
        keep[np.arange(rows), rng.integers(3, size=rows)] = True
        masks = {n: np.repeat(keep[:, [i]], d, 1) for i, (n, d) in enumerate(FEATURES.items())}
    else:
        masks = {n: rng.random((rows, d)) < 0.6 for n, d in FEATURES.items()}
        masks["c"][:, 0] = True
    return {n: np.where(masks[n], x, np.nan) for n, x in values.items()}


@pytest.mark.parametrize("level", ["modality", "element"])
@pytest.mark.parametrize("name", MODELS)
def test_likelihood_and_posterior_equal_brute_force_for_any_holes(name, level):
    model = build(name)
    data = holes(model.draw(40, seed=2).values, np.random.default_rng(3), level)
    posterior = model.posterior(data)
    likelihood = model.log_likelihood(data)
    x = table(data)
    for row in range(40):
        exact = brute(model, x[row], ~np.isnan(x[row]))
        assert likelihood[row] == pytest.approx(exact[0], abs=1e-9)
        np.testing.assert_allclose(posterior.mean[row], exact[1], atol=1e-10)
        np.testing.assert_allclose(posterior.covariance[row], exact[2], atol=1e-10)
    np.testing.assert_array_equal(posterior.variance[0], np.diag(posterior.covariance[0]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3))
def test_any_model_agrees_with_scipy(seed, scale):
    # Loadings that are not orthogonal, any scale of the noise.
    rng = np.random.default_rng(seed)
    model = LinearGaussian(
        loadings={n: rng.normal(size=(d, 3)) for n, d in FEATURES.items()},
        offsets={n: rng.normal(size=d) for n, d in FEATURES.items()},
        noise={n: scale * rng.uniform(0.5, 2, size=d) for n, d in FEATURES.items()},
    )
    values = model.draw(3, seed=seed % 1000).values
    mean, covariance = dense(model)[0]
    law = multivariate_normal(mean[3:], covariance[3:, 3:], allow_singular=True)
    np.testing.assert_allclose(model.log_likelihood(values), law.logpdf(table(values)), rtol=1e-6)


@pytest.mark.parametrize("given_names", [("a",), ("b", "c"), ()])
@pytest.mark.parametrize("name", MODELS)
def test_conditional_is_joint_less_marginal(name, given_names):
    model = build(name)
    data = holes(model.draw(30, seed=4).values, np.random.default_rng(5), "modality")
    targets = [n for n in FEATURES if n not in given_names]
    result = model.conditional_log_likelihood(data, given_names, targets)
    x = table(data)
    seen = np.concatenate([np.full(d, n in given_names) for n, d in FEATURES.items()])
    for row in range(30):
        observed = ~np.isnan(x[row])
        joint = brute(model, x[row], observed)[0]
        marginal = brute(model, x[row], observed & seen)[0] if (observed & seen).any() else 0.0
        assert result[row] == pytest.approx(joint - marginal, abs=1e-9)


def test_chain_rule_over_modalities():
    model = build("private mixture")
    values = model.draw(10, seed=0).values
    chain = (
        model.log_likelihood({"b": values["b"]})
        + model.conditional_log_likelihood(values, ["b"], ["c"])
        + model.conditional_log_likelihood(values, ["b", "c"], ["a"])
    )
    np.testing.assert_allclose(chain, model.log_likelihood(values), atol=1e-10)


@pytest.mark.parametrize("name", ["plain", "private"])
def test_orthogonal_posteriors_are_diagonal_for_every_subset(name):
    model = build(name)
    values = model.draw(5, seed=0).values
    gain = {"a": 2.0, "b": 0.7, "c": 1.3}
    for subset in SUBSETS:
        posterior = model.posterior({n: values[n] for n in subset})
        variance = 1 / (1 + sum(gain[n] for n in subset))
        want = np.broadcast_to(variance * np.eye(2), (5, 2, 2))
        np.testing.assert_allclose(posterior.covariance, want, atol=1e-12)


def test_element_holes_make_a_full_covariance():
    model = build("plain")
    values = model.draw(1, seed=0).values
    values["a"][:, 0] = np.nan
    assert abs(model.posterior({"a": values["a"]}).covariance[0, 0, 1]) > 1e-3


def product(experts, values, prior):
    """Mean and variance of a product of experts, with N(0, I) among them or not."""
    parts = [expert(values[n]) for n, expert in experts.items()]
    precision = prior + sum(1 / v for _, v in parts)
    return sum(m / v for m, v in parts) / precision, 1 / precision


@pytest.mark.parametrize("name", ["plain", "private"])
@pytest.mark.parametrize("subset", SUBSETS)
def test_experts_are_exact_for_the_rule_they_are_made_for(name, subset):
    model = build(name)
    values = model.draw(6, seed=0).values
    exact = model.posterior({n: values[n] for n in subset})
    likelihood = {n: model.expert(n, "likelihood") for n in subset}
    share = {n: model.expert(n, "share") for n in subset}
    mean, variance = product(likelihood, values, prior=1.0)
    np.testing.assert_allclose(mean, exact.mean, atol=1e-12)
    np.testing.assert_allclose(variance, exact.variance, atol=1e-12)
    mean, variance = product(share, values, prior=0.0)
    assert np.allclose(variance, exact.variance) == (len(subset) == 3)
    assert np.allclose(mean, exact.mean) == (len(subset) == 3)
    if len(subset) == 1:
        mean, variance = model.expert(subset[0])(values[subset[0]])
        np.testing.assert_allclose(mean, exact.mean, atol=1e-12)
        np.testing.assert_allclose(variance, exact.variance, atol=1e-12)


def test_private_experts_are_the_posteriors_of_private_latents():
    model = build("private mixture")
    values = model.draw(6, seed=0).values
    for name in FEATURES:
        latent = ("private", name)
        alone = model.posterior({name: values[name]}, latent)
        mean, variance = model.expert(name, "posterior", latent)(values[name])
        np.testing.assert_allclose(mean, alone.mean, atol=1e-12)
        np.testing.assert_allclose(variance, alone.variance, atol=1e-12)
        # What other modalities show says nothing about it: orthogonal loadings.
        np.testing.assert_allclose(model.posterior(values, latent).mean, alone.mean, atol=1e-12)


def test_widened_experts_keep_their_mean():
    expert = toy().expert("a")
    x = toy().draw(3, seed=0).values["a"]
    np.testing.assert_array_equal(expert.widened(1.2)(x)[0], expert(x)[0])
    np.testing.assert_allclose(expert.widened(1.2)(x)[1], 1.44 * expert(x)[1])


def test_likelihood_agrees_with_monte_carlo_over_the_prior():
    # log mean p(x | z) over 200,000 draws of the prior. Eight rows, 5 standard errors each: a
    # right answer fails once in 200,000 runs, and the seed is fixed.
    model = build("mixture", signal=0.5)
    values = model.draw(8, seed=1).values
    z = model.draw(200_000, seed=2).latents["shared"]
    log_p = np.zeros((200_000, 8))
    for n, x in values.items():
        apart = (x - model.offsets[n]) / model.noise[n]
        center = z @ (model.loadings[n] / model.noise[n][:, None]).T
        squares = (apart**2).sum(1) + (center**2).sum(1)[:, None] - 2 * center @ apart.T
        log_p -= squares / 2 + np.log(model.noise[n] * np.sqrt(2 * np.pi)).sum()
    top = log_p.max(axis=0)
    weight = np.exp(log_p - top)
    estimate = np.log(weight.mean(axis=0)) + top
    error = weight.std(axis=0) / weight.mean(axis=0) / np.sqrt(200_000)
    assert (np.abs(estimate - model.log_likelihood(values)) < 5 * error).all()
    assert error.max() < 0.05


@pytest.mark.parametrize("name", MODELS)
def test_posterior_is_calibrated_on_its_own_draws(name):
    # Squared Mahalanobis distance of the true z has mean D under one Gaussian; for mixtures the
    # residuals have the posterior's covariance on average. 20,000 rows: 5 standard errors.
    model = build(name)
    drawn = model.draw(20_000, seed=7)
    posterior = model.posterior(drawn.values)
    residual = drawn.latents["shared"] - posterior.mean
    for statistic in (residual, residual**2 - posterior.variance):
        error = statistic.std(axis=0) / np.sqrt(len(statistic))
        assert (np.abs(statistic.mean(axis=0)) < 5 * error).all()


def test_draws_have_the_moments_of_the_model():
    # 50,000 rows, 15 features: 5 standard errors each, one failure in 100,000 runs.
    model = build("private")
    values = table(model.draw(50_000, seed=0).values)
    mean, covariance = dense(model)[0]
    error = np.sqrt(np.diag(covariance)[2:] / len(values))
    assert (np.abs(values.mean(axis=0) - mean[2:]) < 5 * error).all()
    np.testing.assert_allclose(np.cov(values.T), covariance[2:, 2:], atol=0.05)


def test_data_set_batch_and_arrays_give_the_same_numbers():
    data = toy().sample(50, seed=0, hidden=0.4)
    batch = data.batch(torch.arange(50))
    arrays = {
        n: np.where(batch.column(n).numpy()[:, None], x.numpy(), np.nan)
        for n, x in batch.values.items()
    }
    assert not batch.present.all()
    want = toy().log_likelihood(arrays)
    np.testing.assert_array_equal(toy().log_likelihood(data), want)
    np.testing.assert_array_equal(toy().log_likelihood(batch), want)
    seen = {n: x for n, x in arrays.items() if n != "b"}
    np.testing.assert_array_equal(
        toy().log_likelihood(batch.restrict({"a", "c"})), toy().log_likelihood(seen)
    )


def test_rows_that_show_nothing_have_the_prior_and_likelihood_one():
    model = build("mixture")
    empty = {"a": np.full((2, 4), np.nan)}
    np.testing.assert_allclose(model.log_likelihood(empty), 0, atol=1e-12)
    np.testing.assert_allclose(model.posterior(empty).mean, [model.means.mean(axis=0)] * 2)


def test_values_under_holes_change_nothing():
    data = toy().sample(20, seed=0, hidden=0.5).batch(torch.arange(20))
    before = toy().log_likelihood(data)
    for name, x in data.values.items():
        x[~data.column(name)] = float("inf")
    np.testing.assert_array_equal(toy().log_likelihood(data), before)


def test_a_mixture_labels_its_rows_by_component():
    data = build("mixture").sample(100, seed=0)
    assert set(data.batch(torch.arange(100)).labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": {"a": [0.0, 1.0]}}, r"noise\.a: must be > 0"),
        ({"noise": {"a": [1.0]}}, r"noise\.a: must have shape \(2,\), got \(1,\)"),
        ({"offsets": {}}, r"loadings\.a: must have offsets and noise"),
        ({"weights": [0.5, 0.6]}, "weights: must sum to 1"),
        ({"means": [[0.0, 0.0]]}, r"means: must have shape \(1, 1\)"),
        ({"scales": [[-1.0]]}, "scales: must be > 0"),
        ({"private": {"b": [[1.0]]}}, r"private\.b: must be \(d_m, P_m\)"),
        ({"loadings": {}}, "loadings: must name at least one modality"),
        ({"loadings": {"a": [1.0, 1.0]}}, r"loadings\.a: must have shape"),
    ],
)
def test_models_that_do_not_fit_together_are_refused(change, message):
    options = {"loadings": {"a": [[1.0], [1.0]]}, "offsets": {"a": [0, 0]}, "noise": {"a": [1, 1]}}
    with pytest.raises(ConfigError, match=message):
        LinearGaussian(**{**options, **change})


def test_too_few_features_are_refused():
    with pytest.raises(ConfigError, match=r"features\.a: must be >= 3.*got 2"):
        LinearGaussian.orthogonal({"a": 2}, 3)


def test_experts_that_do_not_exist_are_refused():
    crooked = LinearGaussian(
        loadings={"a": [[1.0, 1.0], [0.0, 1.0]]}, offsets={"a": [0, 0]}, noise={"a": [1, 1]}
    )
    with pytest.raises(ConfigError, match=r"loadings\.a: must have orthogonal columns"):
        crooked.expert("a")
    with pytest.raises(ConfigError, match="rule: must be 'likelihood' under a mixture prior"):
        build("mixture").expert("a")
    with pytest.raises(ConfigError, match=r"loadings\.a: must load on every coordinate"):
        build("plain", signal={"a": (1.0, 0.0), "b": 1.0, "c": 1.0}).expert("a", "likelihood")
    with pytest.raises(ConfigError, match="latent: must be 'shared' or"):
        build("plain").posterior(build("plain").draw(1, seed=0).values, ("private", "a"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"z": np.zeros((1, 4))}, "unknown modality 'z': the model has a, b, c"),
        ({}, "no modality: the model has a, b, c"),
        ({"a": np.zeros((1, 5))}, r"modality 'a': must have shape \(1, 4\).*got \(1, 5\)"),
        ({"a": np.zeros((2, 4)), "b": np.zeros((1, 5))}, r"modality 'b'.*\(2, 5\).*got \(1, 5\)"),
    ],
)
def test_foreign_data_are_refused(data, message):
    with pytest.raises(DataError, match=message):
        toy().log_likelihood(data)


@pytest.mark.parametrize(("seen", "targets"), [(["a"], ["a", "b"]), (["a"], ["z"])])
def test_conditional_refuses_overlap_and_unknown_names(seen, targets):
    data = toy().draw(1, seed=0).values
    with pytest.raises(DataError, match="conditional_log_likelihood: '[az]' must be one of"):
        toy().conditional_log_likelihood(data, seen, targets)
