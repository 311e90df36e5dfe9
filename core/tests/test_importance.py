"""Bounds out of stratified log-weights, and what shares rows between two distributions."""

from __future__ import annotations

import math

import pytest
import torch

from multivae_core.distributions import Laplace, Normal, either
from multivae_core.importance import (
    draw_sources,
    source_share,
    stratified_bound,
    uniform_mixture,
)
from multivae_core.noise import RowNoise
from multivae_core.posteriors import JointPrior
from multivae_core.priors import OrPrior, ScaledConfig, ScaledPrior

F64 = torch.float64
PRESENT = torch.tensor(
    [[True, True, True], [False, True, True], [False] * 3, [True, False, False]]
)


def noise(rows=4):
    return RowNoise(3, torch.arange(rows), F64)


def log_weights(r, k):
    torch.manual_seed(0)
    return torch.randn(r, k, 4, dtype=F64, requires_grad=True)


@pytest.mark.parametrize("estimator", ["iwae", "dreg"])
@pytest.mark.parametrize("bound", ["looser", "tight"])
def test_a_bound_is_its_formula(bound, estimator):
    log_w = log_weights(3, 5)
    sources = draw_sources(PRESENT, None, noise())
    found = stratified_bound(log_w, sources, source_share(sources, F64), bound, estimator)
    for b in range(4):
        own = log_w[PRESENT[b], :, b].detach()
        expected = 0.0
        if len(own) and bound == "tight":
            expected = float(own.logsumexp((0, 1))) - math.log(own.numel())
        elif len(own):
            expected = float((own.logsumexp(1) - math.log(5)).mean())
        assert float(found.reported[b]) == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(found.value.sum(), log_w)
    outside = ~PRESENT.T[:, None].expand_as(gradient)
    assert not gradient[outside].any()
    seen = PRESENT.any(dim=1)
    torch.testing.assert_close(gradient.sum(dim=(0, 1)), seen.double())
    assert (found.weights is None) is (estimator == "iwae")
    if found.weights is not None:
        total = found.weights.sum(dim=1 if bound == "looser" else (0, 1))
        torch.testing.assert_close(total, torch.ones_like(total))


def test_sources_are_drawn_without_replacement_from_what_is_there():
    everyone = draw_sources(PRESENT, None, noise())
    assert everyone.T.tolist() == [[0, 1, 2], [-1, 1, 2], [-1, -1, -1], [0, -1, -1]]
    assert torch.equal(draw_sources(PRESENT, 3, noise()), everyone)
    drawn = draw_sources(PRESENT, 2, noise())
    assert source_share(drawn, F64).tolist() == [0.5, 0.5, 1.0, 1.0]
    for b in range(4):
        own = [m for m in drawn[:, b].tolist() if m >= 0]
        assert len({*own}) == len(own) == min(2, int(PRESENT[b].sum()))
        assert all(bool(PRESENT[b, m]) for m in own)


@pytest.mark.parametrize("family", [Normal, Laplace])
def test_a_row_has_one_of_two_distributions(family):
    one, other = (family(torch.full((4, 2), c), torch.full((4, 2), c)) for c in (1.0, 2.0))
    both = either(PRESENT[:, :1], one, other)
    assert both.mean[:, 0].tolist() == [1.0, 2.0, 2.0, 1.0]
    value = torch.zeros(1, 4, 2)
    expected = torch.where(PRESENT[:, 0], one.log_prob(value), other.log_prob(value))
    torch.testing.assert_close(both.log_prob(value), expected)


def prior(family, size=2):
    made = ScaledPrior(ScaledConfig(family=family), size).double()
    with torch.no_grad():
        made.raw_scale.copy_(torch.linspace(-1.0, 0.5, size))
    return made


@pytest.mark.parametrize("family", ["normal", "laplace_with_softmax"])
def test_the_prior_takes_the_rows_of_which_nothing_is_seen(family):
    p, seen = prior(family), PRESENT.any(dim=1)
    experts = Normal(torch.ones(3, 4, 2, dtype=F64), torch.zeros(3, 4, 2, dtype=F64))
    q = uniform_mixture(experts, PRESENT)
    both = OrPrior(q, p, seen)
    value, log_q = both.draw(6, noise(), "z")
    torch.testing.assert_close(value[:, ~seen], p.sample(6, 4, noise(), "z")[:, ~seen])
    drawn, density = q.draw(6, noise(), "z")
    torch.testing.assert_close(value[:, seen], drawn[:, seen])
    torch.testing.assert_close(log_q[:, seen], density[:, seen])
    torch.testing.assert_close(log_q[:, ~seen], p.log_prob(value)[:, ~seen])
    torch.testing.assert_close(both.log_prob(value)[:, ~seen], p.log_prob(value)[:, ~seen])
    assert both.mean.tolist() == [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]


def test_every_latent_may_have_a_prior_of_its_own():
    shared, own = prior("normal"), prior("laplace_with_softmax", 3)
    name, plain = ("private", "a"), ("private", "b")
    joint = JointPrior(shared, {"shared": 2, name: 3, plain: 1}, {name: own})
    latents = joint.sample(5, 4, noise())
    torch.testing.assert_close(latents[name], own.sample(5, 4, noise(), name))
    expected = shared.log_prob(latents["shared"]) + own.log_prob(latents[name])
    expected = expected + torch.distributions.Normal(0.0, 1.0).log_prob(latents[plain]).sum(-1)
    torch.testing.assert_close(joint.log_prob(latents), expected)
