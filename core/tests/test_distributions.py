"""Posteriors against torch.distributions, plain loops, quadrature and Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import distributions as reference

from multivae_core.distributions import FAMILIES, Laplace, Mixture, Normal, expert
from multivae_core.noise import RowNoise

F64 = torch.float64


def draws(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def normal(*shape, seed=0, dtype=F64):
    return Normal(draws(*shape, seed=seed, dtype=dtype), draws(*shape, seed=seed + 1, dtype=dtype))


def laplace(*shape, seed=0, dtype=F64):
    return Laplace(
        draws(*shape, seed=seed, dtype=dtype), draws(*shape, seed=seed + 1, dtype=dtype).exp()
    )


def torch_version(own):
    if isinstance(own, Normal):
        return reference.Normal(own.mean, own.variance.sqrt())
    return reference.Laplace(own.mean, own.scale)


@pytest.mark.parametrize("make", [normal, laplace])
def test_densities_and_divergences_agree_with_torch(make):
    one, two = make(5, 3), make(5, 3, seed=7)
    value = draws(4, 5, 3, seed=3)
    expected = torch_version(one).log_prob(value).sum(-1)
    torch.testing.assert_close(one.log_prob(value), expected, rtol=1e-12, atol=1e-12)
    expected = reference.kl_divergence(torch_version(one), torch_version(two)).sum(-1)
    torch.testing.assert_close(one.kl(two), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.kl(one), torch.zeros(5, dtype=F64), atol=1e-12, rtol=0)


def test_kl_to_the_standard_normal():
    q = normal(5, 3)
    standard = Normal(torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64))
    torch.testing.assert_close(q.kl(), q.kl(standard), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("make", [normal, laplace])
def test_kl_agrees_with_monte_carlo_and_draws_with_their_density(make):
    # |z| < 4.5 for 4 rows: a correct form fails once in 37,000
    q, p = make(4, 2), make(4, 2, seed=9)
    value, log_q = q.draw(50_000, RowNoise(0, torch.arange(4), F64), "z")
    torch.testing.assert_close(log_q, q.log_prob(value), rtol=0, atol=0)
    gap = log_q - p.log_prob(value)
    error = gap.std(dim=0) / math.sqrt(len(gap))
    assert bool(((gap.mean(dim=0) - q.kl(p)).abs() < 4.5 * error).all())


def test_densities_over_maps_sum_over_every_axis_of_the_event():
    q = Normal(draws(2, 3, 4, 4), draws(2, 3, 4, 4, seed=1), event_ndim=3)
    value = draws(5, 2, 3, 4, 4, seed=2)
    expected = torch_version(q).log_prob(value).sum((-1, -2, -3))
    torch.testing.assert_close(q.log_prob(value), expected)
    assert q.kl().shape == (2,)
    assert q[0].event_ndim == 3
    assert q.detach().event_ndim == 3


@pytest.mark.parametrize("make", [normal, laplace])
def test_samples_carry_gradients_into_their_parameters(make):
    q = make(4, 2)
    for tensor in (q.mean, q.log_variance if isinstance(q, Normal) else q.scale):
        tensor.requires_grad_()
    value, _ = q.draw(3, RowNoise(0, torch.arange(4), F64), "z")
    value.square().sum().backward()
    assert bool((q.mean.grad != 0).all())
    detached = q.detach()
    assert not detached.log_prob(value.detach()).requires_grad


def mixture(make, count=4, rows=6, dim=3, dtype=F64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    usable = torch.rand(rows, count, generator=generator) < 0.6
    usable[:, 0] |= ~usable.any(dim=1)
    weights = usable * torch.rand(rows, count, generator=generator, dtype=F64)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return Mixture(make(count, rows, dim, dtype=dtype), weights.to(dtype))


def by_loop(q, value):
    """Log-density of a mixture, one row, value and component at a time."""
    result = np.empty(value.shape[:2])
    for n in range(value.shape[0]):
        for b in range(value.shape[1]):
            total = -np.inf
            for s in range(q.weights.shape[1]):
                if q.weights[b, s] > 0:
                    each = q.components[s].log_prob(value[n : n + 1])[0, b]
                    total = np.logaddexp(total, float(q.weights[b, s].log() + each))
            result[n, b] = total
    return torch.as_tensor(result)


@pytest.mark.parametrize("make", [normal, laplace])
def test_mixture_density_agrees_with_a_plain_loop(make):
    q = mixture(make)
    value = draws(5, 6, 3, seed=4) * 3
    torch.testing.assert_close(q.log_prob(value), by_loop(q, value), rtol=1e-12, atol=1e-12)
    expected = sum(q.weights[:, s, None] * q.components.mean[s] for s in range(4))
    torch.testing.assert_close(q.mean, expected)


def test_matrix_form_is_accurate_in_float32():
    # 64 dimensions, experts 2 prior deviations apart and as sharp as training makes them,
    # deviations from 0.37 down to 0.03; the same rounded numbers in float64 are the reference
    mean = (2.0 * draws(3, 8, 64)).float()
    log_variance = (-2.0 - 5.0 * torch.rand(3, 8, 64, dtype=F64)).float()
    weights = torch.full((8, 3), 1 / 3)
    exact = Mixture(Normal(mean.double(), log_variance.double()), weights.double())
    value = exact.draw(9, RowNoise(0, torch.arange(8), F64), "z")[0].float()
    found = Mixture(Normal(mean, log_variance), weights).log_prob(value).double()
    assert float((found - exact.log_prob(value.double())).abs().max()) < 0.01


@pytest.mark.parametrize("make", [normal, laplace])
def test_absent_components_get_no_gradient_and_make_no_nan(make):
    q = mixture(make)
    part = q.components
    tensors = [part.mean, part.log_variance if isinstance(part, Normal) else part.scale]
    for tensor in tensors:
        tensor.requires_grad_()
    value, log_q = q.draw(7, RowNoise(0, torch.arange(6), F64), "z")
    (value.sum() + log_q.sum() + q.log_prob(value).sum()).backward()
    for tensor in tensors:
        assert bool(tensor.grad.isfinite().all())
        assert not tensor.grad[~(q.weights > 0).T].any()


@pytest.mark.parametrize("make", [normal, laplace])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_draws_estimate_an_integral_without_bias(make, n):
    # mean over draws of f / q, scored with the realised proportions, against quadrature; 40,000
    # rows share the experts; |z| < 4.5 fails a correct rule 7 times in a million
    rows = 40_000
    base = make(3, 1, 1, seed=5)
    part = (
        Normal(base.mean, base.log_variance) if make is normal else Laplace(base.mean, base.scale)
    )
    wide = [
        t.expand(3, rows, 1)
        for t in (part.mean, part.log_variance if make is normal else part.scale)
    ]
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=F64).expand(rows, 3)
    q = Mixture(type(part)(*wide), weights)
    value, log_q = q.draw(n, RowNoise(1, torch.arange(rows), F64), "z")
    exact = 0.0
    for s in range(3):
        law = torch_version(part[s])
        exact += (
            float(weights[0, s])
            * integrate.quad(
                lambda x, law=law: (
                    math.tanh(x) ** 2 * math.exp(float(law.log_prob(torch.tensor(x, dtype=F64))))
                ),
                -60,
                60,
                limit=400,
                points=[float(part.mean[s])],
            )[0]
        )
    density = q.log_prob(value)
    estimate = (value[..., 0].tanh() ** 2 * (density - log_q).exp()).mean(dim=0)
    error = estimate.std() / math.sqrt(rows)
    assert abs(float(estimate.mean()) - exact) < 4.5 * float(error)


def test_realised_proportions_are_what_draws_are_scored_with():
    # far apart experts: the density at a draw of expert s is its realised share times its own
    mean = torch.tensor([-1e3, 0.0, 1e3], dtype=F64).view(3, 1, 1).expand(3, 50, 1)
    q = Mixture(Normal(mean, torch.zeros_like(mean)), torch.full((50, 3), 1 / 3, dtype=F64))
    value, log_q = q.draw(4, RowNoise(0, torch.arange(50), F64), "z")
    component = ((value[..., 0] + 1500) // 1000).long()
    counts = torch.nn.functional.one_hot(component, 3).sum(dim=0)
    assert sorted({tuple(sorted(row)) for row in counts.tolist()}) == [(1, 1, 2)]
    own = q.components.pick(component).log_prob(value[None])[0]
    share = counts.gather(1, component.T).T / 4
    torch.testing.assert_close(log_q, own + share.log())


def test_single_draws_follow_the_mixture():
    rows = 20_000
    part = normal(3, 1, 1, seed=5)
    q = Mixture(
        Normal(part.mean.expand(3, rows, 1), part.log_variance.expand(3, rows, 1)),
        torch.tensor([0.5, 0.2, 0.3], dtype=F64).expand(rows, 3),
    )
    value, _ = q.draw(1, RowNoise(1, torch.arange(rows), F64), "z")

    def cdf(x):
        scale = part.variance.sqrt()
        return sum(
            w * stats.norm.cdf(x, float(part.mean[s]), float(scale[s]))
            for s, w in enumerate((0.5, 0.2, 0.3))
        )

    assert stats.kstest(value.flatten().numpy(), cdf).pvalue > 1e-4


@pytest.mark.parametrize("make", [normal, laplace])
def test_pick_takes_one_component_per_row(make):
    q = make(4, 6, 3)
    chosen = torch.tensor([[0, 1, 2, 3, 0, 1], [3, 3, 3, 0, 0, 0]])
    picked = q.pick(chosen)
    for n in range(2):
        for b in range(6):
            assert torch.equal(picked.mean[n, b], q.mean[chosen[n, b], b])


def test_scale_maps():
    location, raw = draws(5, 4), draws(5, 4, seed=1)
    scale = expert(location, raw, "laplace_with_softmax").scale
    torch.testing.assert_close(scale.sum(-1), torch.full((5,), 4 * (1 + 1e-6), dtype=F64))
    softplus = expert(location, raw, "normal_with_softplus").variance.sqrt()
    torch.testing.assert_close(softplus, torch.nn.functional.softplus(raw) + 1e-6)
    torch.testing.assert_close(expert(location, raw, "normal").variance.sqrt(), (raw / 2).exp())
    for family in FAMILIES:
        assert torch.equal(expert(location, raw, family).mean, location)
        extreme = expert(location, torch.full_like(raw, -200.0), family)
        assert bool(extreme.log_prob(location).isfinite().all())


class TestNaturalParameters:
    def both(self, dtype=F64):
        plain = normal(4, 5, 3, dtype=dtype)
        precision = (-plain.log_variance).exp()
        return plain, Normal.natural(precision, precision * plain.mean)

    def test_they_are_the_same_gaussian(self):
        plain, own = self.both()
        value = draws(5, 3, seed=3)
        noise = RowNoise(0, torch.arange(5), F64)
        for f in (
            lambda q: q.mean,
            lambda q: q.log_variance,
            lambda q: q.variance,
            lambda q: q.kl(),
            lambda q: q.kl(normal(5, 3, seed=8)),
            lambda q: q.log_prob(value),
            lambda q: q[2].mean,
            lambda q: q.pick(torch.tensor([[0, 1, 2, 3, 0]])).log_variance,
            lambda q: q.detach().kl(),
            lambda q: q.sample_once(noise, "z"),
        ):
            torch.testing.assert_close(f(own), f(plain), rtol=1e-12, atol=1e-12)

    def test_the_written_out_gradient_of_the_divergence(self):
        _, own = self.both()
        precision = own.variance.reciprocal().requires_grad_()
        pull = (own.mean / own.variance).requires_grad_()
        assert torch.autograd.gradcheck(lambda p, h: Normal.natural(p, h).kl(), (precision, pull))

    def test_divergences_in_float32(self):
        exact, short = self.both()[1].kl(), self.both(torch.float32)[1].kl()
        torch.testing.assert_close(short.double(), exact, rtol=1e-5, atol=1e-5)
        # a posterior that is the prior, in many dimensions
        ones = torch.ones(2, 512)
        assert float(Normal.natural(ones, 0 * ones).kl().abs().max()) < 1e-4
