"""Fusion rules against explicit loops over experts, one row and one subset at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multivae_core.config import build, component, config, structure
from multivae_core.distributions import Mixture, Normal
from multivae_core.errors import ConfigError
from multivae_core.fusion import (
    MixtureConfig,
    MixtureOfProductsConfig,
    ProductConfig,
    WeightedProductConfig,
    build_fusion,
    power_product,
    subset_mixture,
    with_prior_expert,
)
from multivae_core.subsets import all_subsets, fixed_subsets, groups_of, prior_joins

F64 = torch.float64
M, B, D = 4, 7, 3


@config
class Holder:
    fusion: Any = component("fusions", default="product")


def experts(m=M, b=B, d=D, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean, log_variance = torch.randn(2, m, b, d, generator=generator, dtype=F64)
    return Normal(mean, log_variance)


def masks(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.5


def product(m=M, d=D):
    return build("fusions", ProductConfig(), m, d)


def by_loop(q, members, prior, weights=None):
    """Mean and variance of one product, expert by expert; members and prior of one group."""
    precision = torch.zeros(q.mean.shape[-1], dtype=F64) + float(prior)
    pull = torch.zeros(q.mean.shape[-1], dtype=F64)
    for m, member in enumerate(members):
        if member:
            own = (1.0 if weights is None else weights[m]) / q.log_variance[m].exp()
            precision = precision + own
            pull = pull + own * q.mean[m]
    return pull / precision, 1.0 / precision


def assert_is(fused, at, expected):
    mean, variance = expected
    torch.testing.assert_close(fused.mean[at], mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fused.log_variance[at].exp(), variance, rtol=1e-12, atol=1e-12)


def row(q, b):
    return Normal(q.mean[:, b], q.log_variance[:, b])


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("with_prior", [None, False, True, "random"])
def test_products_agree_with_a_loop_over_experts(per_row, with_prior):
    q, present = experts(), masks(B, M, seed=1)
    subsets = masks(6, B, M, seed=2) if per_row else masks(6, M, seed=2)
    prior = None
    if with_prior is not None:
        prior = masks(6, B, seed=3) if with_prior == "random" else torch.full((6, B), with_prior)
    fused = product().groups(q, groups_of(subsets, present), prior)
    for s in range(6):
        for b in range(B):
            members = (subsets[s, b] if per_row else subsets[s]) & present[b]
            joins = not members.any() or (prior is not None and bool(prior[s, b]))
            assert_is(fused, (s, b), by_loop(row(q, b), members, joins))


@settings(max_examples=60, deadline=None)
@given(
    present=st.lists(st.lists(st.booleans(), min_size=M, max_size=M), min_size=1, max_size=5),
    seed=st.integers(0, 10),
)
def test_products_of_any_pattern(present, seed):
    present = torch.tensor(present)
    q = experts(b=len(present), seed=seed)
    fused = product()(q, present)
    assert fused.mean.shape == (len(present), D)
    for b in range(len(present)):
        assert_is(fused, b, by_loop(row(q, b), present[b], not present[b].any()))


@settings(max_examples=40, deadline=None)
@given(pattern=st.lists(st.booleans(), min_size=M, max_size=M), order=st.permutations(range(M)))
def test_order_of_modalities_changes_nothing(pattern, order):
    q, present = experts(b=1), torch.tensor([pattern])
    other = Normal(q.mean[order], q.log_variance[order])
    one, two = product()(q, present), product()(other, present[:, order])
    torch.testing.assert_close(one.mean, two.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.log_variance, two.log_variance, rtol=1e-12, atol=1e-12)
    value = torch.randn(3, 1, D, dtype=F64)
    rule = MixtureOfProductsConfig()
    first = build("fusions", rule, M, D)(q, present).log_prob(value)
    second = build("fusions", rule, M, D)(other, present[:, order]).log_prob(value)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", ["product", "weighted_product", "mixture", "mixture_of_products"])
def test_rows_with_nothing_get_the_prior_and_change_no_other_row(rule):
    chosen = structure(Holder, {"fusion": rule}).fusion
    fusion = build("fusions", chosen, M, D).double()
    q, present = experts(), masks(B, M, seed=1)
    present[:, 0] = True
    with_empty = present.clone()
    with_empty[3] = False
    value = torch.randn(2, B, D, dtype=F64)
    full, holed = fusion(q, present).log_prob(value), fusion(q, with_empty).log_prob(value)
    keep = [0, 1, 2, 4, 5, 6]
    torch.testing.assert_close(full[:, keep], holed[:, keep], rtol=1e-13, atol=1e-13)
    prior = Normal(torch.zeros(D, dtype=F64), torch.zeros(D, dtype=F64)).log_prob(value[:, 3])
    torch.testing.assert_close(holed[:, 3], prior, rtol=1e-12, atol=1e-12)


def test_absent_experts_have_no_influence_and_no_gradient():
    q, present = experts(), masks(B, M, seed=1)
    q.mean.requires_grad_()
    q.log_variance.requires_grad_()
    fused = product().groups(q, groups_of(all_subsets(M), present))
    (fused.mean.sum() + fused.log_variance.sum()).backward()
    for gradient in (q.mean.grad, q.log_variance.grad):
        assert bool(gradient.isfinite().all())
        assert not gradient[~present.T].any()
        assert bool((gradient[present.T] != 0).all())
    wild = Normal(torch.where(present.T[..., None], q.mean, 1e12), q.log_variance.detach().clone())
    again = product().groups(wild, groups_of(all_subsets(M), present))
    assert torch.equal(again.mean, fused.mean)


def test_prior_rules():
    subsets = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]]).bool()
    present = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    groups = groups_of(subsets, present)
    largest = [[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]]
    assert prior_joins("largest", groups, present).long().tolist() == largest
    full = [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert prior_joins("full_set", groups, present).long().tolist() == full
    assert bool(prior_joins("always", groups, present).all())
    assert not prior_joins("never", groups, present).any()


def test_powers_that_sum_to_one_give_the_geometric_mean():
    q = with_prior_expert(experts())
    generator = torch.Generator().manual_seed(3)
    powers = torch.rand(2, B, M + 1, generator=generator, dtype=F64)
    powers = powers / powers.sum(dim=2, keepdim=True)
    fused, z = power_product(q, powers), torch.randn(2, 1, 1, D, generator=generator, dtype=F64)
    # up to a constant of every row: the difference between two places
    found = torch.stack([Normal(fused.mean, fused.log_variance).log_prob(each) for each in z])
    each = torch.stack([q.log_prob(place) for place in z])  # (2, E, B)
    expected = torch.einsum("sbe,neb->nsb", powers, each)
    torch.testing.assert_close(found[1] - found[0], expected[1] - expected[0])


class TestWeightedProduct:
    def fusion(self, **options):
        fusion = build("fusions", WeightedProductConfig(**options), M, D).double()
        with torch.no_grad():
            fusion.raw_weights.uniform_(-1.0, 2.0, generator=torch.Generator().manual_seed(0))
        return fusion

    @pytest.mark.parametrize("weighting", ["softmax", "clamp", "fixed"])
    @pytest.mark.parametrize("renormalise", [False, True])
    @pytest.mark.parametrize("prior", [None, True])
    def test_against_a_loop(self, weighting, renormalise, prior):
        fusion = self.fusion(weighting=weighting, renormalise=renormalise)
        with torch.no_grad():
            fusion.raw_weights.abs_()
        q, present = experts(), masks(B, M, seed=1)
        present[2] = False
        joins = None if prior is None else torch.ones(1, B, dtype=torch.bool)
        fused = fusion.groups(q, present[None], joins)
        own = fusion.weights().detach()
        for b in range(B):
            members = present[b]
            share = 1.0
            if renormalise and members.any():
                # the prior expert, where it joins, keeps its precision of 1
                share = own.sum(dim=0) / own[members].sum(dim=0)
            expected = by_loop(row(q, b), members, prior or not members.any(), own * share)
            assert_is(fused, (0, b), expected)

    def test_softmax_weights_sum_to_one_and_a_lone_expert_is_itself(self):
        fusion = self.fusion()
        torch.testing.assert_close(fusion.weights().sum(dim=0), torch.ones(D, dtype=F64))
        q = experts()
        present = torch.zeros(B, M, dtype=torch.bool)
        present[:, 2] = True
        fused = fusion(q, present)
        torch.testing.assert_close(fused.mean, q.mean[2])
        torch.testing.assert_close(fused.log_variance, q.log_variance[2])

    def test_identical_experts_with_equal_weights_give_that_expert(self):
        fusion = build("fusions", WeightedProductConfig(), M, D).double()
        q = experts(m=1)
        same = Normal(q.mean.expand(M, B, D), q.log_variance.expand(M, B, D))
        present = masks(B, M, seed=1)
        present[:, 1] = True
        fused = fusion(same, present)
        torch.testing.assert_close(fused.mean, q.mean[0])
        torch.testing.assert_close(fused.log_variance, q.log_variance[0])

    def test_weights_that_learning_drives_to_nothing_leave_a_finite_product(self):
        fusion = build("fusions", WeightedProductConfig(weighting="clamp"), M, D).double()
        with torch.no_grad():
            fusion.raw_weights.fill_(-1.0)
        q, present = experts(), masks(B, M, seed=1)
        present[0] = torch.tensor([True, False, False, False])
        present[1] = False
        q.mean.requires_grad_()
        fused = fusion(q, present)
        (fused.mean.sum() + fused.log_variance.sum()).backward()
        assert bool(fused.mean.isfinite().all())
        assert bool(q.mean.grad.isfinite().all())
        assert bool(fusion.raw_weights.grad.isfinite().all())
        torch.testing.assert_close(fused.mean[0], q.mean[0, 0].detach(), check_dtype=False)

    @pytest.mark.parametrize("start", [-0.3, 1.3])
    def test_weights_that_left_their_range_feel_what_leads_back(self, start):
        fusion = build("fusions", WeightedProductConfig(weighting="clamp"), M, D)
        with torch.no_grad():
            fusion.raw_weights.fill_(start)
        back = -1.0 if start < 0 else 1.0
        for sign, expected in ((back, back), (-back, 0.0)):
            fusion.raw_weights.grad = None
            (sign * fusion.weights()).sum().backward()
            assert bool((fusion.raw_weights.grad == expected).all())

    @pytest.mark.parametrize("weigh_prior", [False, True])
    def test_one_weight_per_expert(self, weigh_prior):
        fusion = self.fusion(per_dim=False, weigh_prior=weigh_prior)
        wide = self.fusion(weigh_prior=weigh_prior)
        assert fusion.raw_weights.shape == (M, 1)
        with torch.no_grad():
            wide.raw_weights.copy_(fusion.raw_weights.expand(M, D))
        q, present = experts(), masks(B, M, seed=1)
        one, two = fusion(q, present, "always"), wide(q, present, "always")
        torch.testing.assert_close(one.mean, two.mean)
        torch.testing.assert_close(one.log_variance, two.log_variance)

    def test_the_prior_is_an_expert_with_a_logit_of_0(self):
        fusion, q, present = self.fusion(weigh_prior=True), experts(), masks(B, M, seed=1)
        present[2] = False
        joins = torch.tensor([b % 2 == 0 for b in range(B)])[None]
        fused = fusion.groups(q, present[None], joins)
        logits = fusion.raw_weights.detach()
        for b in range(B):
            members = torch.cat([present[b], joins[0, b : b + 1] | ~present[b].any()])
            raw = torch.cat([logits, torch.zeros(1, D, dtype=F64)]).exp()
            own = raw / raw[members].sum(dim=0)
            precision = torch.cat([(-q.log_variance[:, b]).exp(), torch.ones(1, D, dtype=F64)])
            mean = torch.cat([q.mean[:, b], torch.zeros(1, D, dtype=F64)])
            total = (own * precision)[members].sum(dim=0)
            pull = (own * precision * mean)[members].sum(dim=0)
            torch.testing.assert_close(fused.mean[0, b].detach(), pull / total)
            torch.testing.assert_close(fused.log_variance[0, b].detach(), -total.log())

    @pytest.mark.parametrize("options", [{"weighting": "fixed"}, {"renormalise": False}])
    def test_a_weighted_prior_needs_weights_that_sum_to_one(self, options):
        with pytest.raises(ConfigError, match="weigh_prior: needs weights that sum to 1 over"):
            WeightedProductConfig(weigh_prior=True, **options)

    def test_gradients_reach_learned_weights_alone(self):
        for weighting, learned in (("softmax", True), ("clamp", True), ("fixed", False)):
            fusion = build("fusions", WeightedProductConfig(weighting=weighting), M, D).double()
            assert fusion.raw_weights.requires_grad is learned
            if learned:
                fusion(experts(), masks(B, M)).mean.sum().backward()
                assert bool(fusion.raw_weights.grad.any())


@pytest.mark.parametrize("prior", [None, False, True])
def test_a_product_with_prior_has_it_once(prior):
    groups = groups_of(torch.cat([all_subsets(M), torch.zeros(1, M).bool()]), masks(B, M, seed=1))
    joins = None if prior is None else torch.full(groups.shape[:2], prior)
    one = build("fusions", ProductConfig(prior_expert=True), M, D).groups(experts(), groups, joins)
    two = product().groups(experts(), groups, torch.ones(groups.shape[:2], dtype=torch.bool))
    assert torch.equal(one.mean, two.mean)
    assert torch.equal(one.log_variance, two.log_variance)


def test_a_mixture_has_as_many_components_whatever_rows_have():
    q, present = experts(), torch.ones(B, M, dtype=torch.bool)
    empty = present.clone()
    empty[3] = False
    one, two = (build("fusions", MixtureConfig(), M, D)(q, seen) for seen in (present, empty))
    assert one.weights.shape == two.weights.shape == (B, M + 1)
    assert torch.equal(one.weights[:3], two.weights[:3])


def test_mixture_weights_are_uniform_over_what_is_present():
    q, present = experts(), masks(B, M, seed=1)
    fused = build("fusions", MixtureConfig(), M, D)(q, present)
    assert isinstance(fused, Mixture)
    for b in range(B):
        seen = int(present[b].sum())
        if seen:
            expected = present[b].double() / seen
            torch.testing.assert_close(fused.weights[b, :M], expected)
    torch.testing.assert_close(fused.weights.sum(dim=1), torch.ones(B, dtype=F64))


@pytest.mark.parametrize("rule", ["largest", "never", "always", "full_set"])
def test_mixture_of_products_against_a_loop(rule):
    q, present = experts(), masks(B, M, seed=1)
    present[0] = True
    fused = build("fusions", MixtureOfProductsConfig(prior_expert=rule), M, D)(q, present)
    value = torch.randn(4, B, D, dtype=F64)
    density = fused.log_prob(value)
    for b in range(B):
        subsets = [s for s in all_subsets(M) if not (s & ~present[b]).any()]
        each = []
        for s in subsets:
            joins = {
                "largest": torch.equal(s, present[b]),
                "never": False,
                "always": True,
                "full_set": bool(s.all()),
            }[rule]
            mean, variance = by_loop(row(q, b), s, joins)
            each.append(Normal(mean, variance.log()).log_prob(value[:, b]))
        if subsets:
            expected = torch.stack(each).logsumexp(0) - math.log(len(subsets))
            torch.testing.assert_close(density[:, b], expected, rtol=1e-12, atol=1e-12)


def test_rows_without_any_subset_in_full_mix_what_they_have_of_each():
    q = experts(m=3, b=2)
    subsets = torch.tensor([[1, 1, 0], [0, 1, 1]]).bool()
    present = torch.tensor([[1, 0, 0], [0, 1, 0]]).bool()
    fused = subset_mixture(product(3), q, present, subsets, "never")
    assert fused.weights.tolist() == [[1.0, 0.0], [0.5, 0.5]]
    torch.testing.assert_close(fused.components.mean[0, 0], q.mean[0, 0])
    torch.testing.assert_close(fused.components.mean[:, 1], q.mean[1, 1].expand(2, D))


class TestSubsets:
    def test_all_of_them_once_with_the_full_one_last(self):
        every = all_subsets(5)
        assert len({tuple(s) for s in every.tolist()}) == 31
        assert bool(every.any(dim=1).all())
        assert bool(every[-1].all())

    @pytest.mark.parametrize(("n", "most"), [(3, 7), (12, 100), (40, 255), (8, 20), (20, 5)])
    def test_fixed_choice(self, n, most):
        subsets = fixed_subsets(n, most)
        assert torch.equal(subsets, fixed_subsets(n, most))
        assert len(subsets) <= max(most, n + 1)
        assert bool(subsets.any(dim=1).all())
        rows = {tuple(s) for s in subsets.tolist()}
        assert len(rows) == len(subsets), "a subset that is listed twice would count twice"
        assert (True,) * n in rows
        for m in range(n):
            assert tuple(k == m for k in range(n)) in rows

    def test_all_when_they_fit(self):
        assert torch.equal(fixed_subsets(4, 15), all_subsets(4))

    def test_random_states_outside_are_left_alone(self):
        before = torch.random.get_rng_state()
        fixed_subsets(20, 100)
        assert torch.equal(torch.random.get_rng_state(), before)


def test_many_modalities():
    q, present = experts(m=40), masks(B, 40, seed=5)
    fused = build("fusions", MixtureOfProductsConfig(), 40, D)(q, present)
    torch.testing.assert_close(fused.weights.sum(dim=1), torch.ones(B, dtype=F64))
    usable = fused.weights > 0
    for b in range(B):
        for s in usable[b].nonzero().flatten().tolist():
            subset = fixed_subsets(40, 255)[s]
            assert not (subset & ~present[b]).any()


class TestRefusals:
    def test_a_mixture_cannot_fuse_subsets(self):
        fusion = build("fusions", MixtureConfig(), M, D)
        with pytest.raises(ConfigError, match="one posterior per row.*'product'"):
            fusion.groups(experts(), groups_of(all_subsets(M), masks(B, M)))

    def test_a_mixture_cannot_be_the_inner_rule(self):
        with pytest.raises(ConfigError, match="inner: must give one Gaussian per subset"):
            build("fusions", MixtureOfProductsConfig(inner="mixture"), M, D)

    def test_what_a_rule_refuses_is_told_under_the_option_that_asked_for_it(self):
        options = MixtureOfProductsConfig(inner="mixture")
        with pytest.raises(ConfigError, match=r"^fusion\.inner: must give one Gaussian"):
            build_fusion(options, M, D, "fusion")

    def test_unknown_rules_are_named(self):
        with pytest.raises(ConfigError, match="weighting: must be one of 'softmax', 'clamp'"):
            WeightedProductConfig(weighting="sum")
        with pytest.raises(ConfigError, match="prior_expert: must be one of 'always'"):
            MixtureOfProductsConfig(prior_expert="sometimes")


@pytest.mark.parametrize("rule", ["product", "weighted_product"])
@pytest.mark.parametrize("prior", [None, True, False])
def test_one_pattern_for_all_rows_is_the_same_as_a_pattern_for_each(rule, prior):
    fusion = build("fusions", structure(Holder, {"fusion": rule}).fusion, M, D).double()
    q, subsets = experts(), torch.cat([all_subsets(M), torch.zeros(1, M).bool()])
    joins = None if prior is None else torch.full((16, 1), prior)
    one = fusion.groups(q, subsets[:, None], joins)
    wide = None if joins is None else joins.expand(16, B)
    many = fusion.groups(q, subsets[:, None].expand(16, B, M), wide)
    assert one.mean.shape == (16, B, D)
    torch.testing.assert_close(one.mean, many.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.log_variance, many.log_variance, rtol=1e-12, atol=1e-12)
