"""Likelihoods against scipy: densities, moments, quantiles, draws; masks, units, float32, data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multivae_core import config as configs
from multivae_core import likelihoods as lik
from multivae_core.errors import CapabilityError, ConfigError, DataError
from multivae_core.noise import GeneratorNoise, RowNoise, ZeroNoise

stats = pytest.importorskip("scipy.stats")
integrate = pytest.importorskip("scipy.integrate")
optimize = pytest.importorskip("scipy.optimize")

# name -> (head, configuration with everything predicted that can be)
HEADS = {
    "normal": (lik.Normal, lik.NormalConfig(scale="predicted")),
    "laplace": (lik.Laplace, lik.LaplaceConfig(scale="predicted")),
    "student_t": (lik.StudentT, lik.StudentTConfig(scale="predicted", df="learned")),
    "huber": (lik.Huber, lik.HuberConfig(scale="predicted", threshold=0.8)),
    "bernoulli": (lik.Bernoulli, lik.BernoulliConfig()),
    "categorical": (lik.Categorical, lik.CategoricalConfig()),
    "poisson": (lik.Poisson, lik.PoissonConfig()),
    "negative_binomial": (
        lik.NegativeBinomial,
        lik.NegativeBinomialConfig(dispersion="predicted"),
    ),
    "zero_inflated_negative_binomial": (
        lik.ZeroInflatedNegativeBinomial,
        lik.ZeroInflatedNegativeBinomialConfig(dispersion="predicted"),
    ),
    "squared_error": (lik.SquaredError, lik.SquaredErrorConfig()),
}
FIXED = {
    "normal": lik.NormalConfig(scale=0.7),
    "laplace": lik.LaplaceConfig(scale=0.7),
    "student_t": lik.StudentTConfig(scale=0.7),
    "huber": lik.HuberConfig(scale=0.7),
    "negative_binomial": lik.NegativeBinomialConfig(dispersion=0.4),
    "zero_inflated_negative_binomial": lik.ZeroInflatedNegativeBinomialConfig(dispersion=0.4),
}
LEARNED = {
    "normal": lik.NormalConfig(scale="learned"),
    "laplace": lik.LaplaceConfig(scale="learned"),
    "student_t": lik.StudentTConfig(scale="learned", df="learned"),
    "huber": lik.HuberConfig(scale="learned", threshold=2.0),
    "negative_binomial": lik.NegativeBinomialConfig(),
    "zero_inflated_negative_binomial": lik.ZeroInflatedNegativeBinomialConfig(),
}
VARIANTS = [
    *((name, config) for name, (_, config) in HEADS.items()),
    *FIXED.items(),
    *LEARNED.items(),
]
REAL = ("normal", "laplace", "student_t", "huber", "squared_error")
COUNTS = ("poisson", "negative_binomial", "zero_inflated_negative_binomial")


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def head_of(name, shape, config=None):
    target, default = HEADS[name]
    return target(config or default, shape).double()


def data_for(name, shape):
    values = torch.randn(shape, dtype=torch.float64)
    if name == "bernoulli":
        return (values > 0).double()
    if name == "categorical":
        return torch.nn.functional.one_hot(values.argmax(-1), shape[-1]).double()
    return values if name in REAL else (3 * values.abs()).floor()


def zero_inflated(pi, base):
    """The zero-inflated distribution as scipy would have it."""

    class Distribution:
        logpmf = staticmethod(lambda x: np.log(pi * (np.asarray(x) == 0) + (1 - pi) * base.pmf(x)))
        pmf = staticmethod(lambda x: pi * (np.asarray(x) == 0) + (1 - pi) * base.pmf(x))
        cdf = staticmethod(lambda x: (pi + (1 - pi) * base.cdf(x)) * (np.asarray(x) >= 0))
        ppf = staticmethod(lambda p: base.ppf(max(0.0, (p - pi) / (1 - pi))) if p > pi else 0.0)
        mean = staticmethod(lambda: (1 - pi) * base.mean())
        var = staticmethod(
            lambda: (1 - pi) * (base.var() + base.mean() ** 2) - ((1 - pi) * base.mean()) ** 2
        )

    return Distribution


def huber(threshold, location, scale):
    """The Huber distribution as scipy would have it, every number by integration."""

    def log_shape(r):
        r = np.abs(r)
        return -np.where(r <= threshold, r**2 / 2, threshold * r - threshold**2 / 2)

    def shape(r):
        return np.exp(log_shape(r))

    def integral(low, high, power=0):
        ends = sorted({low, high, *(t for t in (-threshold, threshold) if low < t < high)})
        pieces = zip(ends, ends[1:], strict=False)
        return sum(
            integrate.quad(lambda r: r**power * shape(r), *each, epsabs=0, epsrel=1e-11)[0]
            for each in pieces
        )

    mass = integral(-np.inf, np.inf)

    def cdf(x):  # good to a millionth: for draws
        grid = np.linspace(-60, 60, 240_001)
        below = integrate.cumulative_trapezoid(shape(grid), grid, initial=0) / mass
        return np.interp((np.asarray(x) - location) / scale, grid, below)

    class Distribution:
        logpdf = staticmethod(lambda x: log_shape((x - location) / scale) - math.log(mass * scale))
        mean = staticmethod(lambda: location)
        var = staticmethod(lambda: scale**2 * integral(-np.inf, np.inf, 2) / mass)
        ppf = staticmethod(
            lambda p: location + scale * optimize.brentq(
                lambda r: integral(-np.inf, r) / mass - p, -200, 200, xtol=1e-12
            )
        )  # fmt: skip

    Distribution.cdf = staticmethod(cdf)
    return Distribution


def twins(a, b, c):
    """Pairs (ours, scipy's) made from three numbers, for shape ()."""
    scale, alpha = math.exp(b), math.exp(b)
    size = 1 / alpha
    mean = math.exp(a)
    negative = stats.nbinom(size, size / (size + mean))
    ours_negative = lik.NegativeBinomialLikelihood(double(a), double(b), 0)
    pi = 1 / (1 + math.exp(-c))
    df = 1 + math.exp(c)
    return {
        "normal": (lik.NormalLikelihood(double(a), scale, b, 0), stats.norm(a, scale)),
        "normal_tensor": (
            lik.NormalLikelihood(double(a), double(scale), double(b), 0),
            stats.norm(a, scale),
        ),
        "laplace": (lik.LaplaceLikelihood(double(a), scale, b, 0), stats.laplace(a, scale)),
        "laplace_tensor": (
            lik.LaplaceLikelihood(double(a), double(scale), double(b), 0),
            stats.laplace(a, scale),
        ),
        "student_t": (
            lik.StudentTLikelihood(double(a), double(b), double(df), 0),
            stats.t(df, a, scale),
        ),
        "huber": (
            lik.HuberLikelihood(double(a), double(b), math.exp(0.5 * c), 0),
            huber(math.exp(0.5 * c), a, scale),
        ),
        "bernoulli": (
            lik.BernoulliLikelihood(double(a), 0),
            stats.bernoulli(1 / (1 + math.exp(-a))),
        ),
        "poisson": (lik.PoissonLikelihood(double(a), 0), stats.poisson(mean)),
        "negative_binomial": (ours_negative, negative),
        "zero_inflated_negative_binomial": (
            lik.ZeroInflatedNegativeBinomialLikelihood(ours_negative, double(c), 0),
            zero_inflated(pi, negative),
        ),
    }


TWINS = tuple(twins(0.0, 0.0, 0.0))
number = st.floats(-3, 3)


@pytest.mark.parametrize("name", TWINS)
@settings(max_examples=40, deadline=None)
@given(a=number, b=number, c=number, x=st.floats(-30, 30), p=st.floats(1e-6, 1 - 1e-6))
def test_density_moments_and_quantiles_agree_with_scipy(name, a, b, c, x, p):
    ours, theirs = twins(a, b, c)[name]
    is_real = name.removesuffix("_tensor") in REAL
    value = x if is_real else float(int(abs(x)) % 2 if name == "bernoulli" else int(abs(x)))
    expected = theirs.logpdf(value) if is_real else theirs.logpmf(value)
    assert ours.log_prob(double(value)).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert ours.element_log_prob(double(value)).item() == ours.log_prob(double(value)).item()
    assert ours.mean.item() == pytest.approx(theirs.mean(), rel=1e-9, abs=1e-12)
    assert ours.variance.item() == pytest.approx(theirs.var(), rel=1e-9)
    quantile = ours.quantile(p).item()
    if is_real:
        assert quantile == pytest.approx(theirs.ppf(p), rel=1e-7, abs=1e-9)
    else:  # a probability within rounding of a step may fall on either side of it
        assert theirs.cdf(quantile - 1) - 1e-9 <= p <= theirs.cdf(quantile) + 1e-9


def test_categorical_against_its_definition():
    logits = torch.randn(2, 5, 3, 4, dtype=torch.float64)  # n = 2, B = 5, shape (3, 4)
    ours = lik.CategoricalLikelihood(logits, 2)
    x = data_for("categorical", (5, 3, 4))
    probabilities = np.exp(logits.numpy())
    probabilities /= probabilities.sum(-1, keepdims=True)
    expected = (x.numpy() * np.log(probabilities)).sum(-1)
    np.testing.assert_allclose(ours.element_log_prob(x), expected, rtol=1e-12)
    np.testing.assert_allclose(ours.log_prob(x), expected.sum(-1), rtol=1e-12)
    np.testing.assert_allclose(ours.mean, probabilities, rtol=1e-12)
    np.testing.assert_allclose(ours.variance, probabilities * (1 - probabilities), rtol=1e-12)
    assert torch.equal(ours.mode.argmax(-1), logits.argmax(-1))
    assert torch.equal(ours.mode.sum(-1), torch.ones(2, 5, 3, dtype=torch.float64))
    np.testing.assert_array_equal(ours.quantile(0.4), probabilities > 0.6)
    mask = torch.rand(5, 3, 4) > 0.2
    whole = mask.all(-1).numpy()
    np.testing.assert_allclose(
        ours.log_prob(x, mask), np.where(whole, expected, 0).sum(-1), rtol=1e-12
    )


# Draws. Seeds are fixed; with another seed each check below would fail wrongly once in 10,000.
DRAWS = 4000
ALPHA = 1e-4


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("abc", [(0.3, -0.5, 0.2), (2.5, 0.8, -1.0), (1.0, -4.0, 1.0)])
def test_draws_follow_the_distribution(name, abc):
    ours, theirs = twins(*abc)[name]
    head, parameters = spread(ours, DRAWS)
    noise = GeneratorNoise(torch.Generator().manual_seed(7), torch.float64)
    draws = head(*parameters).sample(noise, "x").flatten().numpy()
    assert draws.shape == (DRAWS,)
    if name.removesuffix("_tensor") in REAL:
        assert stats.kstest(draws, theirs.cdf).pvalue > ALPHA
        return
    edges = sorted({float(theirs.ppf(q)) for q in np.linspace(0.05, 0.95, 19)})
    upper = theirs.cdf(np.array(edges))
    share = np.diff(np.concatenate(([0.0], upper, [1.0])))
    counts = np.bincount(np.searchsorted(edges, draws), minlength=len(share))
    keep = share * DRAWS > 5
    counts = np.append(counts[keep], counts[~keep].sum())
    share = np.append(share[keep], share[~keep].sum())
    if share[-1] * DRAWS < 1e-6:
        assert counts[-1] == 0
        counts, share = counts[:-1], share[:-1]
    assert stats.chisquare(counts, share * DRAWS).pvalue > ALPHA


def spread(ours, draws):
    """The class of a likelihood, and its parameters for ``(draws, 1)`` equal elements."""

    def wide(value):
        return value.expand(draws, 1) if isinstance(value, torch.Tensor) else value

    if isinstance(ours, lik.ZeroInflatedNegativeBinomialLikelihood):
        counts = lik.NegativeBinomialLikelihood(
            wide(ours.counts.log_mean), ours.counts.log_dispersion, 0
        )
        return type(ours), (counts, wide(ours.zero_logits), 0)
    names = {
        lik.NormalLikelihood: ("location", "scale", "log_scale"),
        lik.LaplaceLikelihood: ("location", "scale", "log_scale"),
        lik.StudentTLikelihood: ("location", "log_scale", "df"),
        lik.HuberLikelihood: ("location", "log_scale", "threshold"),
        lik.BernoulliLikelihood: ("logits",),
        lik.PoissonLikelihood: ("log_rate",),
        lik.NegativeBinomialLikelihood: ("log_mean", "log_dispersion"),
    }[type(ours)]
    return type(ours), (*(wide(getattr(ours, name)) for name in names), 0)


def test_categorical_draws_follow_the_probabilities():
    logits = torch.tensor([0.0, 1.0, -1.0, -torch.inf, 0.5], dtype=torch.float64)
    ours = lik.CategoricalLikelihood(logits.expand(DRAWS, 1, 5), 1)
    noise = GeneratorNoise(torch.Generator().manual_seed(3), torch.float64)
    draws = ours.sample(noise, "x")
    assert torch.equal(draws.sum(-1), torch.ones(DRAWS, 1, dtype=torch.float64))
    counts = draws.sum((0, 1)).numpy()
    assert counts[3] == 0
    kept = [0, 1, 2, 4]
    expected = DRAWS * torch.softmax(logits, 0).numpy()[kept]
    assert stats.chisquare(counts[kept], expected).pvalue > ALPHA


@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_a_draw_depends_on_its_own_row_only(name, config):
    torch.manual_seed(0)
    shape = (2, 3)
    head = head_of(name, shape, config)
    params = torch.randn(4, 6, head.n_params, *shape, dtype=torch.float64)
    index = torch.tensor([5, 0, 11, 7, 3, 2])
    whole = head(params).sample(RowNoise(1, index, torch.float64), "x")
    pick = torch.tensor([4, 1])
    part = head(params[:, pick]).sample(RowNoise(1, index[pick], torch.float64), "x")
    torch.testing.assert_close(part, whole[:, pick], rtol=1e-12, atol=0)
    assert whole.shape == (4, 6, *shape)
    head.check(whole.flatten(0, 1), name="x")  # what is drawn is legal data


def test_without_chance_a_real_valued_draw_is_the_location():
    for name in REAL:
        head = head_of(name, (3,))
        params = torch.randn(1, 2, head.n_params, 3, dtype=torch.float64)
        likelihood = head(params)
        drawn = likelihood.sample(ZeroNoise(torch.float64), "x")
        torch.testing.assert_close(drawn, likelihood.mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_shapes_and_sums_for_every_number_of_axes(name, config, shape):
    if name == "categorical" and not shape:
        pytest.skip("needs a class axis")
    torch.manual_seed(0)
    head = head_of(name, shape, config)
    x = data_for(name, (5, *shape))
    params = torch.randn(3, 5, head.n_params, *shape, dtype=torch.float64)
    likelihood = head(params)
    kept = shape[:-1] if name == "categorical" else shape
    elements = likelihood.element_log_prob(x)
    assert elements.shape == (3, 5, *kept)
    torch.testing.assert_close(likelihood.log_prob(x), elements.reshape(3, 5, -1).sum(-1))
    assert likelihood.mean.shape == (3, 5, *shape)
    assert likelihood.event_ndim == len(shape)
    # one batch axis: a single sample of gathered rows
    single = head(params[1])
    torch.testing.assert_close(single.log_prob(x), likelihood.log_prob(x)[1])
    if name != "squared_error":
        assert likelihood.is_density
        assert likelihood.variance.shape == likelihood.quantile(0.3).shape == (3, 5, *shape)
    assert head(params[:, :0]).log_prob(x[:0]).shape == (3, 0)


@pytest.mark.parametrize("filler", [math.nan, math.inf, -1e30])
@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_what_lies_under_a_hole_changes_nothing(name, config, filler):
    torch.manual_seed(1)
    shape = (2, 4)
    head = head_of(name, shape, config)
    x = data_for(name, (6, *shape))
    observed = torch.rand(6, *shape) > 0.4
    if name == "categorical":
        observed = (torch.rand(6, 2, 1) > 0.4).expand(6, *shape)
    observed = observed.clone()
    observed[0] = False  # a row with nothing
    params = torch.randn(3, 6, head.n_params, *shape, dtype=torch.float64)

    def run(values):
        given_ = params.clone().requires_grad_()
        value = head(given_).log_prob(values, observed)
        inputs = [given_, *head.parameters()]
        return value, torch.autograd.grad(value.sum(), inputs)

    clean = run(torch.where(observed, x, 0.0))
    dirty = run(torch.where(observed, x, filler))
    assert torch.equal(clean[0], dirty[0])
    assert all(torch.equal(a, b) for a, b in zip(clean[1], dirty[1], strict=True))
    assert torch.equal(clean[0][:, 0], torch.zeros(3, dtype=torch.float64))
    # and it is the sum over what is observed
    elements = head(params).element_log_prob(x)
    seen = observed.all(-1) if name == "categorical" else observed
    expected = torch.where(seen, elements, 0.0).reshape(3, 6, -1).sum(-1)
    torch.testing.assert_close(clean[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_a_full_mask_is_no_mask_bit_for_bit(name, config, dtype):
    torch.manual_seed(2)
    head = head_of(name, (3, 7), config).to(dtype)
    x = data_for(name, (6, 3, 7)).to(dtype)
    params = torch.randn(2, 6, head.n_params, 3, 7, dtype=dtype)
    likelihood = head(params)
    value = likelihood.log_prob(x)
    assert value.dtype == dtype
    assert torch.equal(value, likelihood.log_prob(x, torch.ones_like(x, dtype=torch.bool)))


EXTREME = {
    "normal": (lik.NormalConfig(scale="predicted"), [-1e6, 0.0, 1e6]),
    "laplace": (lik.LaplaceConfig(scale="predicted"), [-1e6, 0.0, 1e6]),
    "student_t": (lik.StudentTConfig(scale="predicted"), [-1e6, 0.0, 1e6]),
    "huber": (lik.HuberConfig(scale="predicted"), [-1e6, 0.0, 1e6]),
    "bernoulli": (lik.BernoulliConfig(), [0.0, 1.0]),
    "poisson": (lik.PoissonConfig(), [0.0, 1.0, 1e3, 1e6]),
    "negative_binomial": (
        lik.NegativeBinomialConfig(dispersion="predicted"),
        [0.0, 1.0, 1e3, 1e6],
    ),
    "zero_inflated_negative_binomial": (
        lik.ZeroInflatedNegativeBinomialConfig(dispersion="predicted"),
        [0.0, 1.0, 1e3, 1e6],
    ),
}


@pytest.mark.parametrize("name", EXTREME)
def test_float32_stays_finite_and_right_at_extremes(name):
    config, values = EXTREME[name]
    head = HEADS[name][0](config, ())
    axis = torch.tensor([-60.0, -14.0, -2.0, 0.0, 3.0, 9.0, 14.0, 30.0])
    params = torch.cartesian_prod(*[axis] * head.n_params).reshape(-1, 1, head.n_params)
    x = torch.tensor(values)
    given_ = params.clone().requires_grad_()
    single = head(given_).log_prob(x)
    single.sum().backward()
    assert torch.isfinite(single).all()
    assert torch.isfinite(given_.grad).all()
    exact = head.double()(params.double()).log_prob(x.double())
    # float32 keeps 7 digits of each of the terms; the largest is of the size of the count times
    # its logarithm, which is what an error of half a digit in the log rate would do as well
    size = 1.0 + exact.abs() + x.double() * (name in COUNTS)
    assert ((single - exact).abs() / size).max() < 2e-5


def test_counts_in_the_thousands_keep_their_digits_in_float32():
    x = torch.arange(9_000.0, 11_000.0, 50.0)
    log_mean = torch.tensor(10_000.0).log().expand_as(x)
    for log_dispersion in (-20.0, -13.0, -7.0, 0.0):
        ours = lik.NegativeBinomialLikelihood(log_mean, torch.tensor(log_dispersion), 0)
        exact = lik.NegativeBinomialLikelihood(log_mean.double(), double(log_dispersion), 0)
        # lgamma(x) itself is 8e4 here: taken in float32 it would cost 8e-3
        error = (ours.log_prob(x) - exact.log_prob(x.double())).abs().max()
        assert error < 2e-2
    poisson = lik.PoissonLikelihood(log_mean, 0).log_prob(x).double()
    limit = lik.NegativeBinomialLikelihood(log_mean, torch.tensor(-30.0), 0).log_prob(x)
    np.testing.assert_allclose(poisson, stats.poisson.logpmf(x, 10_000), atol=2e-2)
    np.testing.assert_allclose(limit, poisson, atol=2e-2)


@settings(max_examples=12, deadline=None)
@given(c=st.floats(1e-3, 1e3), shift=st.floats(-5, 5), as_tensor=st.booleans())
def test_a_change_of_units_shifts_the_density_by_its_logarithm(c, shift, as_tensor):
    torch.manual_seed(3)
    shape = (2, 3)
    x = torch.randn(4, *shape, dtype=torch.float64)
    observed = torch.rand(4, *shape) > 0.3
    factor = torch.full(shape, c, dtype=torch.float64) if as_tensor else c
    for name, config in VARIANTS:
        if name not in REAL:
            continue
        head = head_of(name, shape, config)
        before = head(torch.randn(2, 4, head.n_params, *shape, dtype=torch.float64))
        after = before.affine(shift, factor)
        y = shift + c * x
        torch.testing.assert_close(after.mean, shift + c * before.mean)
        if name == "squared_error":
            torch.testing.assert_close(after.log_prob(y), c * c * before.log_prob(x))
            continue
        expected = before.log_prob(x, observed) - observed.double().sum((1, 2)) * math.log(c)
        torch.testing.assert_close(after.log_prob(y, observed), expected, rtol=1e-9, atol=1e-8)
        torch.testing.assert_close(after.variance, c * c * before.variance)
        torch.testing.assert_close(after.quantile(0.1), shift + c * before.quantile(0.1))
        noise = GeneratorNoise(torch.Generator().manual_seed(0), torch.float64)
        drawn = before.sample(noise, "x")
        noise.generator.manual_seed(0)
        torch.testing.assert_close(after.sample(noise, "x"), shift + c * drawn)


def test_other_likelihoods_have_no_units():
    for name in set(HEADS) - set(REAL):
        head = head_of(name, (3,))
        likelihood = head(torch.zeros(1, 2, head.n_params, 3, dtype=torch.float64))
        assert not head.real_valued
        assert likelihood.affine(1.0, 2.0) is likelihood


@pytest.mark.parametrize("name", ["normal", "laplace", "student_t", "huber"])
def test_a_learned_scale_starts_where_it_should_and_learns(name):
    target, _ = HEADS[name]
    config = type(LEARNED[name])(scale="learned", initial_scale=0.5)
    head = target(config, (3,))
    assert head.n_params == 1
    likelihood = head(torch.zeros(2, 1, 3))
    torch.testing.assert_close(torch.exp(likelihood.log_scale), torch.full((3,), 0.5))
    likelihood.log_prob(torch.full((2, 3), 9.0)).sum().backward()
    assert (head.scale.raw.grad > 0).all()


@pytest.mark.parametrize("name", ["normal", "laplace", "student_t", "huber"])
def test_a_predicted_scale_starts_at_its_initial_value_and_has_a_floor(name):
    target, _ = HEADS[name]
    config = type(LEARNED[name])(scale="predicted", initial_scale=2.0, min_scale=0.1)
    head = target(config, ())
    assert head.n_params == 2
    params = torch.tensor([[0.0, 0.0], [0.0, -100.0]])
    torch.testing.assert_close(head(params).log_scale.exp(), torch.tensor([2.0, 0.1]))


def test_dispersion_fixed_learned_and_predicted():
    for dispersion, n_params in ((0.3, 1), ("learned", 1), ("predicted", 2)):
        config = lik.NegativeBinomialConfig(dispersion=dispersion, initial_dispersion=0.3)
        head = lik.NegativeBinomial(config, (4,)).double()
        assert head.n_params == n_params
        likelihood = head(torch.zeros(2, n_params, 4, dtype=torch.float64))
        torch.testing.assert_close(
            likelihood.variance, torch.full((2, 4), 1.3, dtype=torch.float64), rtol=1e-6, atol=0
        )
        inflated = lik.ZeroInflatedNegativeBinomialConfig(dispersion=dispersion)
        assert lik.ZeroInflatedNegativeBinomial(inflated, (4,)).n_params == n_params + 1


@pytest.mark.parametrize("b", [0.25, 1.0, 3.0])
def test_huber_is_the_smooth_l1_loss_up_to_a_constant(b):
    x = torch.linspace(-5, 5, 41, dtype=torch.float64)
    head = lik.Huber(lik.HuberConfig(scale=b**0.5, threshold=b**0.5), ())
    location = torch.zeros(41, dtype=torch.float64, requires_grad=True)
    found = -head(location[:, None]).log_prob(x)
    loss = torch.nn.functional.smooth_l1_loss(location, x, beta=b, reduction="none")
    shift = found - loss
    torch.testing.assert_close(shift, shift[:1].expand(41))
    gradients = [torch.autograd.grad(each.sum(), location)[0] for each in (found, loss)]
    torch.testing.assert_close(*gradients)


def test_learned_degrees_of_freedom_stay_above_two():
    head = lik.StudentT(lik.StudentTConfig(df="learned", initial_df=5.0), (2,)).double()
    assert head(torch.zeros(1, 1, 2).double()).df.tolist() == pytest.approx([5.0, 5.0])
    with torch.no_grad():
        head.df.raw.fill_(-50.0)
    assert torch.isfinite(head(torch.zeros(1, 1, 2).double()).variance).all()


@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_heads_are_built_on_the_meta_device_and_filled(name, config):
    head = head_of(name, (2, 3), config)
    with torch.device("meta"):
        hollow = HEADS[name][0](config, (2, 3))
    hollow.load_state_dict(head.state_dict(), assign=True)
    params = torch.randn(1, 4, head.n_params, 2, 3, dtype=torch.float64)
    x = data_for(name, (4, 2, 3))
    assert torch.equal(hollow(params).log_prob(x), head(params).log_prob(x))


@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_options_survive_json(name, config):
    again = configs.structure(type(config), configs.unstructure(config))
    assert again == config


def test_squared_error_is_no_density():
    likelihood = head_of("squared_error", (2,))(torch.ones(1, 3, 1, 2).double())
    assert not likelihood.is_density
    assert likelihood.log_prob(torch.zeros(3, 2)).tolist() == [[-2.0] * 3]
    for ask in (lambda: likelihood.variance, lambda: likelihood.quantile(0.5)):
        with pytest.raises(CapabilityError, match="choose likelihood='normal'"):
            ask()


LEGAL = [
    ("normal", torch.randn(4, 2)),
    ("normal", torch.randn(4, 2).double()),
    ("bernoulli", torch.tensor([[0, 1], [1, 1]], dtype=torch.uint8)),
    ("bernoulli", torch.tensor([[True, False]])),
    ("bernoulli", torch.tensor([[0.2, 1.0]])),
    ("categorical", torch.eye(3, dtype=torch.int64)),
    ("categorical", torch.eye(3, dtype=torch.bool)),
    ("poisson", torch.tensor([[0.0, 7.0]])),
    ("negative_binomial", torch.tensor([[0, 7]])),
    ("zero_inflated_negative_binomial", torch.tensor([[0, 7]], dtype=torch.uint8)),
]


@pytest.mark.parametrize(("name", "values"), LEGAL)
def test_legal_data_pass(name, values):
    head_of(name, tuple(values.shape[1:])).check(values, None, "x")


ILLEGAL = [
    ("normal", torch.arange(4).reshape(2, 2), r"'x'.*'normal' is for real.*int64.*\.float\(\)"),
    ("student_t", torch.ones(2, 2, dtype=torch.bool), "likelihood='bernoulli'"),
    ("squared_error", torch.ones(2, 2, dtype=torch.uint8), "uint8"),
    ("bernoulli", torch.tensor([[0.0, 1.0], [2.0, 0.0]]), r"row 1: .*between 0 and 1, got 2\.0"),
    ("bernoulli", torch.tensor([[0, 255]], dtype=torch.uint8), "got 255; divide by the largest"),
    ("categorical", torch.tensor([[0, 1], [1, 1]]), "row 1: .*one-hot.*one_hot"),
    ("categorical", torch.tensor([[0.0, 0.0]]), "row 0: "),
    ("categorical", torch.tensor([[0.5, 0.5]]), "row 0: "),
    ("poisson", torch.tensor([[1.0, 2.5]]), r"row 0: .*'poisson' is for counts.*got 2\.5"),
    ("poisson", torch.tensor([[1, -2]]), "got -2; give the raw counts"),
    ("negative_binomial", torch.tensor([[math.inf]]), "got inf"),
    ("zero_inflated_negative_binomial", torch.tensor([[math.nan]]), "got nan"),
]


@pytest.mark.parametrize(("name", "values", "message"), ILLEGAL)
def test_data_that_do_not_fit_are_refused_with_the_remedy(name, values, message):
    head = head_of(name, tuple(values.shape[1:]))
    with pytest.raises(DataError, match=message):
        head.check(values, None, "x")


@pytest.mark.parametrize(("name", "values", "message"), ILLEGAL[3:])
def test_only_observed_elements_are_judged(name, values, message):
    head = head_of(name, tuple(values.shape[1:]))
    head.check(values, torch.zeros_like(values, dtype=torch.bool), "x")


def test_messages_give_the_row_of_the_data_set():
    head = head_of("poisson", (1,))
    with pytest.raises(DataError, match="modality 'rna', row 40: "):
        head.check(torch.tensor([[1], [-1]]), name="rna", rows=torch.tensor([31, 40]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lik.NormalConfig(scale=-1.0), r"scale: must be > 0, got -1\.0"),
        (lambda: lik.NormalConfig(scale=math.nan), "scale: must be > 0"),
        (
            lambda: lik.NormalConfig(scale="learnt"),
            "scale: must be a number > 0 or 'learned' or 'predicted', got 'learnt'",
        ),
        (lambda: lik.LaplaceConfig(scale=True), "scale: must be a number > 0"),
        (
            lambda: lik.NormalConfig(min_scale=2.0),
            r"min_scale: must be > 0 and < initial_scale = 1\.0",
        ),
        (lambda: lik.StudentTConfig(df=0), "df: must be > 0, got 0"),
        (lambda: lik.StudentTConfig(df="predicted"), "df: must be a number > 0 or 'learned'"),
        (lambda: lik.StudentTConfig(initial_df=2), "initial_df: must be > 2.1, got 2"),
        (lambda: lik.HuberConfig(threshold=0.0), r"threshold: must be > 0, got 0\.0"),
        (lambda: lik.NegativeBinomialConfig(dispersion=0.0), "dispersion: must be > 0, got 0.0"),
        (lambda: head_of("categorical", ()), "at least 2 classes"),
        (lambda: head_of("categorical", (3, 1)), r"got shape \(3, 1\)"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
