"""Priors and posteriors over several latents."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from multivae_core.config import build
from multivae_core.distributions import Laplace, Mixture, Normal
from multivae_core.noise import RowNoise
from multivae_core.posteriors import FactorisedPosterior, JointPrior
from multivae_core.priors import (
    ScaledConfig,
    StandardNormalConfig,
    kl_to_prior,
    standard_log_prob,
)

F64 = torch.float64
FAMILIES = ("normal", "normal_with_softplus", "laplace_with_softmax")


def scaled(family="normal", learn=True, dim=3):
    prior = build("priors", ScaledConfig(family=family, learn=learn), dim).double()
    with torch.no_grad():
        prior.raw_scale.copy_(torch.tensor([0.5, -1.0, 0.2][:dim], dtype=F64))
    return prior


def test_standard_normal():
    prior = build("priors", StandardNormalConfig(), 3)
    value = torch.randn(4, 5, 3, dtype=F64)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(value).sum(-1)
    torch.testing.assert_close(prior.log_prob(value), expected)
    torch.testing.assert_close(standard_log_prob(value), expected)
    draw = prior.sample(50, 60, RowNoise(0, torch.arange(60), F64), "z")
    assert draw.shape == (50, 60, 3)
    assert stats.kstest(draw.flatten().numpy(), "norm").pvalue > 1e-4
    q = Normal(value[0], value[1])
    torch.testing.assert_close(prior.kl(q), q.kl())
    assert prior.kl(Laplace(value[0], value[1].exp())) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_scaled_priors_draw_from_their_density(family):
    prior = scaled(family)
    draw = prior.sample(60, 200, RowNoise(0, torch.arange(200), F64), "z").detach()
    own = prior.distribution()
    for d in range(3):
        if family.startswith("laplace"):
            law = stats.laplace(scale=float(own.scale[d].detach()))
        else:
            law = stats.norm(scale=float(own.variance[d].detach().sqrt()))
        assert stats.kstest(draw[..., d].flatten().numpy(), law.cdf).pvalue > 1e-4
        one = torch.zeros(1, 1, 3, dtype=F64)
        one[..., d] = 0.7
        gap = (prior.log_prob(one) - prior.log_prob(torch.zeros_like(one))).detach()
        assert float(gap) == pytest.approx(law.logpdf(0.7) - law.logpdf(0.0))


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_divergences_agree_with_estimates(family):
    prior = scaled(family)
    generator = torch.Generator().manual_seed(0)
    mean, raw = torch.randn(2, 4, 3, generator=generator, dtype=F64)
    q = Laplace(mean, raw.exp()) if family.startswith("laplace") else Normal(mean, raw)
    z, log_q = q.draw(20_000, RowNoise(0, torch.arange(4), F64), "z")
    gap = (log_q - prior.log_prob(z)).detach()
    error = gap.std(dim=0) / math.sqrt(len(gap))
    assert bool(((gap.mean(dim=0) - prior.kl(q)).abs() < 4.5 * error).all())
    torch.testing.assert_close(kl_to_prior(q, prior, z), prior.kl(q))


def test_divergences_without_a_closed_form_are_estimated_with_the_samples():
    prior = scaled("laplace_with_softmax")
    q = Normal(torch.zeros(4, 3, dtype=F64), torch.zeros(4, 3, dtype=F64))
    z = torch.randn(4, 3, dtype=F64)
    assert prior.kl(q) is None
    expected = q.log_prob(z) - prior.log_prob(z)
    torch.testing.assert_close(kl_to_prior(q, prior, z), expected)


def test_learning_the_scale_is_an_option():
    assert scaled(learn=True).raw_scale.requires_grad
    assert not scaled(learn=False).raw_scale.requires_grad
    prior = scaled()
    prior.log_prob(torch.ones(2, 3, dtype=F64)).sum().backward()
    assert bool((prior.raw_scale.grad != 0).all())


class TestSeveralLatents:
    sizes = {"shared": 3, ("private", "a"): 2, ("private", "b"): 1}

    def parts(self):
        generator = torch.Generator().manual_seed(1)
        both = torch.randn(2, 2, 5, 3, generator=generator, dtype=F64)
        return {
            "shared": Mixture(Normal(*both), torch.full((5, 2), 0.5, dtype=F64)),
            ("private", "a"): Normal(both[0, 0, :, :2], both[1, 0, :, :2]),
            ("private", "b"): Normal(both[0, 1, :, :1], both[1, 1, :, :1]),
        }

    def test_log_densities_add_up(self):
        posterior = FactorisedPosterior(self.parts())
        draw = posterior.draw(4, RowNoise(0, torch.arange(5), F64))
        assert {name: tuple(z.shape) for name, z in draw.latents.items()} == {
            name: (4, 5, size) for name, size in self.sizes.items()
        }
        # four draws over two equal components: proportions are as stated
        torch.testing.assert_close(draw.log_q, posterior.log_prob(draw.latents))
        expected = sum(part.log_prob(draw.latents[n]) for n, part in self.parts().items())
        torch.testing.assert_close(draw.log_q, expected)
        assert draw.log_p is None

    def test_means(self):
        mean = FactorisedPosterior(self.parts()).mean()
        assert mean["shared"].shape == (1, 5, 3)
        expected = self.parts()["shared"].components.mean.mean(dim=0)
        torch.testing.assert_close(mean["shared"][0], expected)

    def test_latents_are_drawn_independently(self):
        part = Normal(torch.zeros(2000, 1, dtype=F64), torch.zeros(2000, 1, dtype=F64))
        names = ["shared", ("private", "a"), ("private", "b")]
        posterior = FactorisedPosterior(dict.fromkeys(names, part))
        draw = posterior.draw(5, RowNoise(0, torch.arange(2000), F64)).latents
        for one, two in ((0, 1), (0, 2), (1, 2)):
            x, y = (draw[names[k]].flatten().numpy() for k in (one, two))
            assert stats.pearsonr(x, y).pvalue > 1e-4

    def test_prior_of_all(self):
        prior = JointPrior(scaled(), self.sizes)
        latents = prior.sample(4, 5, RowNoise(0, torch.arange(5), F64))
        assert {n: tuple(z.shape) for n, z in latents.items()} == {
            name: (4, 5, size) for name, size in self.sizes.items()
        }
        expected = scaled().log_prob(latents["shared"])
        for name in [("private", "a"), ("private", "b")]:
            expected = expected + standard_log_prob(latents[name])
        torch.testing.assert_close(prior.log_prob(latents), expected)
