"""Rules of fusion against formulas written apart: matrix inverses, quadrature, closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

import multivae_core as mv
from multivae_core.config import build, structure
from multivae_core.distributions import Mixture, Normal
from multivae_core.errors import ConfigError
from multivae_core.subsets import all_subsets

F64 = torch.float64
M, B, D = 4, 5, 3
GAUSSIAN = {
    "product": {},
    "product with prior": {"type": "product", "prior_expert": True},
    "barycentre": {},
    "dependent_experts": {},
    "negative correlation": {"type": "dependent_experts", "rho": -0.3},
    "hellinger": {},
    "sum": {"type": "pooling", "width": 8},
    "attention": {"type": "pooling", "pooling": "attention", "width": 8, "heads": 2, "blocks": 2},
}
EVERY = {**GAUSSIAN, "hellinger_mixture": {}}
OWN = ["product", "barycentre", "dependent_experts", "negative correlation", "hellinger"]


def rule(name, m=M, d=D, **options):
    options = {"type": name, **EVERY.get(name, {}), **options}
    kind = options.pop("type")
    config = structure(mv.registry.fusions.load_config(kind), options)
    torch.manual_seed(0)
    return build("fusions", config, m, d).double()


def experts(m=M, b=B, d=D, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean, log_variance = torch.randn(2, m, b, d, generator=generator, dtype=F64)
    return Normal(mean, log_variance)


def every_group(prior=False):
    """All subsets, and nothing, in every row: groups (16, B, M) and where the prior joins."""
    groups = torch.cat([all_subsets(M), torch.zeros(1, M).bool()])[:, None].expand(-1, B, -1)
    return groups, torch.full(groups.shape[:2], prior)


def check(fused, q, groups, prior, expected):
    """Compare with a function of means and deviations (m,) and of whether the prior joined."""
    for s, b, d in itertools.product(range(len(groups)), range(B), range(D)):
        members = groups[s, b]
        joins = prior or not members.any()
        mean, variance = expected(
            q.mean[members, b, d].numpy(), (q.log_variance[members, b, d] / 2).exp().numpy(), joins
        )
        assert float(fused.mean[s, b, d]) == pytest.approx(mean, abs=1e-10)
        assert float(fused.variance[s, b, d]) == pytest.approx(variance, rel=1e-10)


def with_prior(mean, deviation, joins):
    return np.append(mean, [0.0] * joins), np.append(deviation, [1.0] * joins)


PRIOR = pytest.mark.parametrize("prior", [False, True])


@PRIOR
def test_barycentre(prior):
    def expected(mean, deviation, joins):
        mean, deviation = with_prior(mean, deviation, joins)
        return mean.mean(), deviation.mean() ** 2

    groups, joins = every_group(prior)
    q = experts()
    check(rule("barycentre").groups(q, groups, joins), q, groups, prior, expected)


def test_barycentre_is_the_minimum():
    # W_2^2 of two Gaussians: squared distance of means and of deviations
    q = experts(b=1, d=1)
    weights = [0.5, 1.0, 2.0, 0.25]
    fused = rule("barycentre", d=1, weights=weights)(q, torch.ones(1, M, dtype=torch.bool))
    mean, deviation = q.mean.numpy().ravel(), np.exp(q.log_variance.numpy().ravel() / 2)

    def cost(m, s):
        return np.dot(weights, (mean - m) ** 2 + (deviation - s) ** 2)

    best = float(fused.mean), float(fused.variance) ** 0.5
    for shift in [(1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3)]:
        assert cost(*best) < cost(best[0] + shift[0], best[1] + shift[1])


@pytest.mark.parametrize("name", ["barycentre", "hellinger", "hellinger_mixture"])
def test_fixed_weights_are_those_of_repeated_experts(name):
    # an expert of weight 2 is two experts
    q = experts(m=3)
    doubled = Normal(q.mean[[0, 0, 1, 2]], q.log_variance[[0, 0, 1, 2]])
    value = torch.randn(4, B, D, dtype=F64)
    for have in ([0, 1, 2], [0, 2], [0], [1]):
        present = torch.zeros(B, 3, dtype=torch.bool)
        present[:, have] = True
        one = rule(name, 3, weights=[2.0, 1.0, 1.0])(q, present)
        two = rule(name, 4)(doubled, present[:, [0, 0, 1, 2]])
        torch.testing.assert_close(one.log_prob(value), two.log_prob(value))


def test_the_prior_has_the_mean_of_fixed_weights():
    q = experts(m=2)
    present, joins = torch.ones(1, B, 2, dtype=torch.bool), torch.ones(1, B, dtype=torch.bool)
    fused = rule("barycentre", 2, weights=[1.0, 5.0]).groups(q, present, joins)
    torch.testing.assert_close(fused.mean[0], (q.mean[0] + 5.0 * q.mean[1]) / 9.0)


@PRIOR
@pytest.mark.parametrize("rho", [-0.3, 0.0, 0.4, 0.9])
def test_dependent_experts_by_the_inverse_covariance(prior, rho):
    def expected(mean, deviation, joins):
        precision, pull = float(joins), 0.0
        if len(mean):
            sigma = rho * np.outer(deviation, deviation)
            np.fill_diagonal(sigma, deviation**2)
            inverse = np.linalg.inv(sigma)
            precision, pull = precision + inverse.sum(), (inverse @ mean).sum()
        return pull / precision, 1.0 / precision

    groups, joins = every_group(prior)
    q = experts()
    fused = rule("dependent_experts", rho=rho).groups(q, groups, joins)
    check(fused, q, groups, prior, expected)


def test_uncorrelated_experts_are_a_product():
    groups, joins = every_group(True)
    one = rule("dependent_experts", rho=0.0).groups(experts(), groups, joins)
    two = rule("product").groups(experts(), groups, joins)
    torch.testing.assert_close(one.mean, two.mean)
    torch.testing.assert_close(one.variance, two.variance)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_nearly_equal_experts_keep_a_positive_precision(dtype):
    mean = torch.randn(M, B, D, dtype=dtype)
    log_variance = (torch.full((M, B, D), -6.0) + 1e-6 * torch.rand(M, B, D)).to(dtype)
    log_variance.requires_grad_()
    fused = (
        rule("dependent_experts", rho=0.999)
        .to(dtype)
        .groups(Normal(mean, log_variance), torch.ones(1, B, M, dtype=torch.bool))
    )
    expected = np.exp(-6.0) * (1 + (M - 1) * 0.999) / M
    torch.testing.assert_close(
        fused.variance, torch.full_like(fused.variance, expected), rtol=1e-2, atol=0
    )
    fused.kl().sum().backward()
    assert bool(log_variance.grad.isfinite().all())


def hellinger_pool(mean, deviation):
    """Density of the pool and its first two moments, by quadrature in one dimension."""

    def density(z):
        return sum(np.sqrt(stats.norm.pdf(z, m, s)) for m, s in zip(mean, deviation, strict=True))

    grid = np.linspace(min(mean - 9 * deviation), max(mean + 9 * deviation), 40001)
    pool = density(grid) ** 2
    mass = integrate.simpson(pool, x=grid)
    first = integrate.simpson(grid * pool, x=grid) / mass
    second = integrate.simpson((grid - first) ** 2 * pool, x=grid) / mass
    return lambda z: density(z) ** 2 / mass, first, second


@PRIOR
def test_hellinger_by_quadrature(prior):
    groups, joins = every_group(prior)
    q = experts(d=1)
    fused = rule("hellinger", d=1).groups(q, groups, joins)
    for s, b in itertools.product(range(len(groups)), range(2)):
        members = groups[s, b]
        mean, deviation = with_prior(
            q.mean[members, b, 0].numpy(),
            (q.log_variance[members, b, 0] / 2).exp().numpy(),
            prior or not members.any(),
        )
        _, first, second = hellinger_pool(mean, deviation)
        assert float(fused.mean[s, b, 0]) == pytest.approx(first, abs=1e-8)
        assert float(fused.variance[s, b, 0]) == pytest.approx(second, rel=1e-8)


def test_hellinger_mixture_by_quadrature():
    q = experts(d=1)
    present = torch.rand(B, M, generator=torch.Generator().manual_seed(3)) < 0.6
    fused = rule("hellinger_mixture", d=1)(q, present)
    assert isinstance(fused, Mixture)
    value = torch.linspace(-2.0, 2.0, 7, dtype=F64)[:, None, None].expand(7, B, 1)
    found = fused.log_prob(value).exp().numpy()
    for b in range(B):
        members = present[b]
        mean, deviation = with_prior(
            q.mean[members, b, 0].numpy(),
            (q.log_variance[members, b, 0] / 2).exp().numpy(),
            not members.any(),
        )
        density, _, _ = hellinger_pool(mean, deviation)
        np.testing.assert_allclose(found[:, b], density(value[:, b, 0].numpy()), rtol=1e-8)


def test_hellinger_is_the_moments_of_the_mixture_in_many_dimensions():
    # the masses of pairs are products over the dimensions
    q, present = experts(d=6), torch.rand(B, M, generator=torch.Generator().manual_seed(3)) < 0.6
    present[0] = True
    one, two = rule("hellinger", d=6)(q, present), rule("hellinger_mixture", d=6)(q, present)
    torch.testing.assert_close(one.mean, two.mean)
    square = two.components.variance + two.components.mean.square()
    second = torch.einsum("bs,sbd->bd", two.weights, square)
    torch.testing.assert_close(one.variance, second - two.mean.square())
    gap = ((q.mean[0] - q.mean[1]) ** 2 / (4 * (q.variance[0] + q.variance[1]))).sum(dim=1)
    ratio = 2 * (q.variance[0] * q.variance[1]).sqrt() / (q.variance[0] + q.variance[1])
    mass = 2.0 * ratio.sqrt().prod(dim=1) * (-gap).exp()
    pairs = list(itertools.combinations_with_replacement(range(M), 2))
    weights = two.weights[0, [pairs.index((0, 1)), pairs.index((0, 0))]]
    assert float(weights[0] / weights[1]) == pytest.approx(float(mass[0]))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_hellinger_of_experts_that_disagree_is_a_mixture_of_experts(dtype):
    mean = torch.tensor([-40.0, 40.0, 100.0], dtype=dtype)[:, None, None].expand(3, 1, 200)
    log_variance = torch.full_like(mean, -4.0).requires_grad_()
    fused = rule("hellinger", 3, 200).to(dtype)(
        Normal(mean, log_variance), torch.ones(1, 3, dtype=torch.bool)
    )
    spread = np.var([-40.0, 40.0, 100.0]) + np.exp(-4.0)
    torch.testing.assert_close(fused.mean, torch.full_like(fused.mean, 100.0 / 3))
    torch.testing.assert_close(fused.variance, torch.full_like(fused.mean, spread))
    fused.kl().sum().backward()
    assert bool(log_variance.grad.isfinite().all())


def test_pairs_of_equal_experts_have_exact_weights_in_float64():
    q = Normal(*torch.zeros(2, 2, 1, D, dtype=F64))
    fused = rule("hellinger_mixture", 2)(q, torch.ones(1, 2, dtype=torch.bool))
    wanted = torch.tensor([0.25, 0.5, 0.25], dtype=F64)
    torch.testing.assert_close(fused.weights[fused.weights > 0], wanted, rtol=1e-14, atol=0.0)


def test_gradients_reach_the_weights_of_the_hellinger_mixture():
    q = experts()
    q.mean.requires_grad_()
    fused = rule("hellinger_mixture")(q, torch.ones(B, M, dtype=torch.bool))
    fused.weights[:, 0].sum().backward()
    assert bool(q.mean.grad.any())
    assert not fused.detach().weights.requires_grad


def numpy_network(network, x):
    for layer in network:
        if isinstance(layer, torch.nn.Linear):
            x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        else:
            x = x / (1 + np.exp(-x))
    return x


def numpy_block(block, x):
    def normalised(y, norm):
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + norm.eps)
        return y * norm.weight.detach().numpy() + norm.bias.detach().numpy()

    width, size = x.shape[1], x.shape[1] // block.heads
    three = numpy_network([block.inward], normalised(x, block.norms[0]))
    query, key, value = three[:, :width], three[:, width : 2 * width], three[:, 2 * width :]
    read = []
    for h in range(block.heads):
        part = slice(h * size, (h + 1) * size)
        score = np.exp(query[:, part] @ key[:, part].T / np.sqrt(size))
        read.append(score / score.sum(1, keepdims=True) @ value[:, part])
    x = x + numpy_network([block.outward], np.concatenate(read, axis=1))
    return x + numpy_network(block.dense, normalised(x, block.norms[1]))


@PRIOR
@pytest.mark.parametrize("name", ["sum", "attention"])
def test_pooling_by_hand(prior, name):
    fusion, q = rule(name), experts()
    groups, joins = every_group(prior)
    fused = fusion.groups(q, groups, joins)
    for s, b in itertools.product(range(len(groups)), range(B)):
        members = groups[s, b]
        mean, log_variance = torch.zeros(D), torch.zeros(D)
        if members.any():
            own = torch.cat([q.mean[members, b], q.log_variance[members, b]], dim=1).numpy()
            if prior:
                own = np.vstack([own, np.zeros(2 * D)])
            own = numpy_network(fusion.chi, own)
            for block in fusion.blocks:
                own = numpy_block(block, own)
            out = numpy_network(fusion.rho, own.sum(axis=0))
            mean, log_variance = out[:D], out[D:]
        np.testing.assert_allclose(fused.mean[s, b].detach(), mean, atol=1e-10)
        np.testing.assert_allclose(fused.log_variance[s, b].detach(), log_variance, atol=1e-10)


def same(one, two, exactly=False):
    tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(one.mean, two.mean, **tolerance)
    value = torch.linspace(-1, 1, D, dtype=F64).expand(2, *one.mean.shape)
    torch.testing.assert_close(one.log_prob(value), two.log_prob(value), **tolerance)


@st.composite
def presences(draw):
    seen = draw(st.lists(st.lists(st.booleans(), min_size=M, max_size=M), min_size=B, max_size=B))
    return torch.tensor(seen), draw(st.permutations(range(M))), draw(st.integers(0, 1000))


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(drawn=presences())
def test_members_alone_count_in_any_order(name, drawn):
    present, order, seed = drawn
    fusion, q = rule(name), experts(seed=seed)
    fused = fusion(q, present)
    same(fused, fusion(Normal(q.mean[order], q.log_variance[order]), present[:, order]))
    empty = ~present.any(dim=1)
    assert not fused.mean[empty].any()
    if isinstance(fused, Normal):
        torch.testing.assert_close(
            fused.log_variance[empty], torch.zeros_like(fused.mean[empty]), rtol=0, atol=1e-15
        )
    # what is no member is any finite number
    away = ~present.T[..., None]
    for number in (1e30, -1e30):
        if number < 0 and name.startswith("product"):
            continue  # an infinite precision
        parts = [torch.where(away, number, x).requires_grad_() for x in (q.mean, q.log_variance)]
        again = fusion(Normal(*parts), present)
        same(fused, again, exactly=True)
        again.log_prob(torch.zeros(1, B, D, dtype=F64)).sum().backward()
        for part in parts:
            assert bool(part.grad.isfinite().all())
            assert not part.grad[away.expand_as(part)].any()


@pytest.mark.parametrize("name", GAUSSIAN)
@PRIOR
def test_groups_of_one_pattern_and_of_subsets(name, prior):
    """One pattern for all rows, a pattern for each, and one group at a time are the same."""
    fusion, q = rule(name), experts()
    groups, joins = every_group(prior)
    many = fusion.groups(q, groups, joins)
    same(many, fusion.groups(q, groups[:, :1], joins[:, :1]))
    for s in (0, 9, 15):
        same(many[s], fusion.groups(q, groups[s : s + 1], joins[s : s + 1])[0])


@pytest.mark.parametrize("name", OWN)
def test_one_expert_alone_is_itself(name):
    q = experts()
    same(rule(name)(q, torch.eye(M, dtype=torch.bool)[[2] * B]), q[2])
    same(rule(name, 1)(q[:1], torch.ones(B, 1, dtype=torch.bool)), q[0])


def test_one_expert_alone_is_the_hellinger_mixture():
    q, value = experts(), torch.randn(3, B, D, dtype=F64)
    fused = rule("hellinger_mixture")(q, torch.eye(M, dtype=torch.bool)[[2] * B])
    torch.testing.assert_close(fused.log_prob(value), q[2].log_prob(value))


@pytest.mark.parametrize("name", GAUSSIAN)
def test_rules_work_inside_a_mixture_over_subsets(name):
    inner = {"type": name, **GAUSSIAN[name]}
    inner |= {"width": 8} if name == "pooling" else {}
    fused = rule("mixture_of_products", inner=inner, prior_expert="never")(
        experts(), torch.ones(B, M, dtype=torch.bool)
    )
    assert fused.weights.shape == (B, 15)
    assert bool(fused.log_prob(torch.zeros(1, B, D, dtype=F64)).isfinite().all())


@pytest.mark.parametrize("name", ["sum", "attention"])
def test_gradients_reach_every_weight_of_a_pool(name):
    fusion = rule(name)
    fused = fusion(experts(), torch.ones(B, M, dtype=torch.bool))
    (fused.mean.square().sum() + fused.log_variance.square().sum()).backward()
    assert all(bool(weight.grad.any()) for weight in fusion.parameters())


def test_code_is_the_consensus_of_dependent_experts():
    assert mv.registry.fusions["code"].name == "dependent_experts"


class TestRefusals:
    @pytest.mark.parametrize("rho", [1.0, -1 / 3, -0.5, 2.0])
    def test_impossible_correlations(self, rho):
        with pytest.raises(ConfigError, match=r"rho: 4 experts .* above -0.3333 and below 1, got"):
            rule("dependent_experts", rho=rho)

    def test_weights(self):
        with pytest.raises(ConfigError, match="weights: must be numbers above 0, got"):
            rule("barycentre", weights=[1.0, 0.0, 1.0, 1.0])
        with pytest.raises(ConfigError, match="weights: there are 4 modalities, got 2 weights"):
            rule("hellinger", weights=[1.0, 2.0])

    def test_heads(self):
        with pytest.raises(ConfigError, match="heads: must divide the width 6, got 4"):
            rule("pooling", pooling="attention", width=6)

    def test_the_hellinger_mixture_has_one_group(self):
        groups, joins = every_group()
        with pytest.raises(ConfigError, match="one posterior per row"):
            rule("hellinger_mixture").groups(experts(), groups, joins)
