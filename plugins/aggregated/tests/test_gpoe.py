"""gPoE against its formulas, row by row, with Gaussian rules of fusion and with mixtures.

The linear-Gaussian acceptance test is in integration_tests/test_oracle.py, a third party's rule
in integration_tests/test_third_party_fusion.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

import multivae_core as mv
from multivae_core.config import config
from multivae_core.distributions import Laplace, Mixture
from multivae_core.errors import ConfigError
from multivae_core.fusion import Fusion
from multivae_core.noise import RowNoise, Step

F64 = torch.float64
STANDARD = (np.zeros(2), np.ones(2))


def total(out):
    return sum(term.value for term in out.terms.values())


def present(batch, b):
    return [name for name in sorted(batch.names) if bool(batch.column(name)[b])]


def expert(model, batch, name, b):
    value = batch.values[name][b : b + 1]
    mean, raw = model.encoders[name](value)["shared"][0].detach().numpy()
    return mean, np.exp(raw)


def product(experts, weights):
    pairs = list(zip(weights, experts, strict=True))
    precision = sum(w / variance for w, (_, variance) in pairs)
    return sum(w * mean / variance for w, (mean, variance) in pairs) / precision, 1.0 / precision


def kl(mean, variance):
    return 0.5 * (mean**2 + variance - 1.0 - np.log(variance)).sum()


def log_px(model, batch, b, z, private=None, weights=None):
    value = 0.0
    for name in present(batch, b):
        own = [] if private is None or name not in private else private[name]
        latent = torch.as_tensor(np.concatenate([z, own]))[None, None]
        mean = model.decoders[name](latent).mean[0, 0].detach().numpy()
        score = stats.norm.logpdf(batch.values[name][b].numpy(), mean, 0.8).sum()
        value += (weights or {}).get(name, 1.0) * score
    return value


def posterior(model, batch, b):
    """The weighted product of a row, by its softmax over what is there."""
    have, logits = present(batch, b), model.fusion.raw_weights.detach().numpy()
    if not have:
        return STANDARD
    own = np.exp(logits[["abc".index(name) for name in have]])
    experts = [expert(model, batch, name, b) for name in have]
    return product(experts, own / own.sum(axis=0))


def shake(model, seed=0):
    with torch.no_grad():
        model.fusion.raw_weights.normal_(generator=torch.Generator().manual_seed(seed))
    return model


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_formula(make_model, make_batch, training, reduction):
    model = shake(make_model("gpoe", likelihood_reduction=reduction, beta=2.0))
    batch, step = make_batch(), training()
    out = model.loss(model.prepare(batch), step)
    assert list(out.terms) == ["reconstruction", "kl"]
    eps = step.noise.normal("shared", (1, 12, 2))[0].numpy()
    for b in range(12):
        mean, variance = posterior(model, batch, b)
        share = 1.0 / max(len(present(batch, b)), 1) if reduction == "mean" else 1.0
        value = share * log_px(model, batch, b, mean + np.sqrt(variance) * eps[b])
        assert -float(out.terms["reconstruction"].value[b].detach()) == pytest.approx(value)
        divergence = kl(mean, variance)
        assert float(out.terms["kl"].value[b].detach()) == pytest.approx(
            2.0 * divergence, abs=1e-12
        )


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_private_latents(make_model, make_batch, training, reduction):
    model = make_model(
        "gpoe",
        private_dims={"a": 1, "c": 2},
        style_betas={"c": 3.0},
        likelihood_reduction=reduction,
        beta=2.0,
    )
    batch, step = make_batch(), training()
    prepared = model.prepare(batch)
    out, encoded = model.loss(prepared, step), model.run_encoders(prepared)
    eps = step.noise.normal("shared", (1, 12, 2))[0].numpy()
    for b in range(12):
        have, private, style = present(batch, b), {}, 0.0
        share = 1.0 / max(len(have), 1) if reduction == "mean" else 1.0
        for name, size, weight in (("a", 1, 1.0), ("c", 2, 3.0)):
            location, raw = encoded["private", name][b].detach().numpy()
            noise = step.noise.normal(("private", name), (1, 12, size))[0, b].numpy()
            private[name] = location + np.exp(raw / 2) * noise
            style += weight * kl(location, np.exp(raw))
        mean, variance = posterior(model, batch, b)
        value = share * log_px(model, batch, b, mean + np.sqrt(variance) * eps[b], private)
        assert -float(out.terms["reconstruction"].value[b].detach()) == pytest.approx(value)
        found = float(out.terms["kl_private"].value[b].detach())
        assert found == pytest.approx(2.0 * share * style, abs=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_weights_and_schedules_count_in_training_alone(
    make_model, make_batch, training, reduction
):
    weights = {"a": 3.0, "b": 0.0}
    model = make_model(
        "gpoe",
        modalities={name: {"weight": w} for name, w in weights.items()},
        beta=4.0,
        beta_schedule=10,
        likelihood_reduction=reduction,
    )
    batch, noise = make_batch(), training().noise
    eps = noise.normal("shared", (1, 12, 2))[0].numpy()
    for step, beta, given in (
        (Step(training=True, number=5, noise=noise), 2.0, {"weights": weights}),
        (Step(number=5, noise=noise), 1.0, {}),
    ):
        found, expected = -total(model.loss(model.prepare(batch), step)).detach(), []
        for b in range(12):
            mean, variance = posterior(model, batch, b)
            mean_rule = reduction == "mean" and step.training
            share = 1.0 / max(len(present(batch, b)), 1) if mean_rule else 1.0
            value = log_px(model, batch, b, mean + np.sqrt(variance) * eps[b], **given)
            expected.append(share * value - beta * kl(mean, variance))
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64))


class TestAcceptance:
    def test_weights_of_1_and_the_prior_are_the_product_of_mvae(self, make_model, make_batch):
        rule = {"type": "weighted_product", "weighting": "fixed", "renormalise": False}
        model = make_model("gpoe", fusion=rule, prior_expert="always")
        plain = make_model("gpoe", fusion="product", prior_expert="always")
        mvae = make_model("mvae", subsampling=False)
        with torch.no_grad():
            model.fusion.raw_weights.fill_(1.0)
        batch = make_batch()
        expected = mvae.posterior(mvae.prepare(batch)).parts["shared"]
        for each in (model, plain):
            q = each.posterior(each.prepare(batch)).parts["shared"]
            torch.testing.assert_close(q.mean, expected.mean)
            torch.testing.assert_close(q.log_variance, expected.log_variance)

    def test_identical_experts_are_the_posterior(self, make_model, make_batch):
        model, batch = make_model("gpoe"), make_batch()
        with torch.no_grad():
            for name in "abc":
                model.encoders[name].head.weight.zero_()
                model.encoders[name].head.bias.copy_(torch.tensor([0.3, -0.2, 0.5, -0.7]))
        q = model.posterior(model.prepare(batch)).parts["shared"]
        seen = batch.something
        torch.testing.assert_close(
            q.log_variance[seen],
            torch.tensor([[0.5, -0.7]], dtype=F64).expand(int(seen.sum()), 2),
        )

    def test_a_lone_modality_is_its_expert(self, make_model, make_batch):
        model, batch = shake(make_model("gpoe")), make_batch(5, holes=False).restrict({"b"})
        q = model.posterior(model.prepare(batch)).parts["shared"]
        for b in range(5):
            mean, variance = expert(model, batch, "b", b)
            np.testing.assert_allclose(q.mean[b].detach(), mean)
            np.testing.assert_allclose(q.variance[b].detach(), variance)

    def test_training_moves_weights_that_sum_to_one(self, make_model, make_batch, training):
        model, batch = make_model("gpoe"), make_batch()
        before = model.fusion.raw_weights.detach().clone()
        optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
        values = []
        for number in range(20):
            optimiser.zero_grad()
            loss = total(model.loss(model.prepare(batch), training(number))).mean()
            loss.backward()
            optimiser.step()
            values.append(float(loss.detach()))
        weights = model.fusion.weights().detach()
        torch.testing.assert_close(weights.sum(dim=0), torch.ones(2, dtype=F64))
        assert bool((weights > 0).all())
        assert not torch.equal(before, model.fusion.raw_weights.detach())
        assert np.mean(values[-5:]) < np.mean(values[:5])


@config
class LearnedMixtureConfig:
    """No options."""


class LearnedMixture(Fusion):
    """A mixture of the experts whose weights are learned."""

    gaussian = False

    def __init__(self, config, n_experts, latent_dim):
        super().__init__(config, n_experts, latent_dim)
        self.raw_weights = torch.nn.Parameter(torch.tensor([0.5, -0.3, 0.2, 0.1])[: n_experts + 1])

    def fuse(self, experts, members):
        count = experts.mean.shape[0]
        raw = torch.where(members[0], self.raw_weights[:count], -math.inf)
        return Mixture(experts, raw.softmax(dim=1))


@pytest.fixture
def learned_mixture():
    mv.register("fusions", name="learned_mixture", config=LearnedMixtureConfig)(LearnedMixture)
    yield
    mv.registry.unregister("local/learned_mixture")


def components(model, batch, b, kind):
    """(weight, mean, variance) of every component of a row, in the order of the draws."""
    have = present(batch, b)
    if kind == "mixture_of_products":
        listed = [[n for i, n in enumerate("abc") if code >> i & 1] for code in range(1, 8)]
        usable = [set(subset) <= set(have) for subset in listed]
        found = []
        for subset, use in zip(listed, usable, strict=True):
            experts = [expert(model, batch, name, b) for name in subset if name in have]
            if set(subset) == set(have):
                experts.append(STANDARD)
            q = product(experts, [1.0] * len(experts)) if use else STANDARD
            found.append((use / sum(usable), *q))
        return found
    raw = np.array([0.5, -0.3, 0.2]) if kind == "learned_mixture" else np.zeros(3)
    weights = np.array([np.exp(raw[i]) * (name in have) for i, name in enumerate("abc")])
    experts = [expert(model, batch, n, b) if n in have else STANDARD for n in "abc"]
    return [(w, *q) for w, q in zip(weights / weights.sum(), experts, strict=True)]


class TestMixtures:
    @pytest.mark.parametrize("kind", ["mixture", "mixture_of_products", "learned_mixture"])
    def test_the_formula(self, make_model, make_batch, training, learned_mixture, kind):
        model, batch, step = make_model("gpoe", fusion=kind, beta=2.0), make_batch(), training()
        out = model.loss(model.prepare(batch), step)
        for b in range(12):
            if not present(batch, b):
                continue
            parts = components(model, batch, b, kind)
            eps = step.noise.normal("shared", (len(out_components(model, batch)), 12, 2)).numpy()
            value, divergence = 0.0, 0.0
            for s, (weight, mean, variance) in enumerate(parts):
                if weight:
                    z = mean + np.sqrt(variance) * eps[s, b]
                    each = [stats.norm.logpdf(z, m, np.sqrt(v)).sum() for _, m, v in parts]
                    log_q = special.logsumexp(each, b=[w for w, _, _ in parts])
                    value += weight * log_px(model, batch, b, z)
                    divergence += weight * (log_q - stats.norm.logpdf(z).sum())
            assert -float(out.terms["reconstruction"].value[b].detach()) == pytest.approx(value)
            assert float(out.metrics["kl"][b]) == pytest.approx(divergence)
            assert float(out.terms["kl"].value[b].detach()) == pytest.approx(2.0 * divergence)

    def test_gradients_reach_the_weights(self, make_model, make_batch, training, learned_mixture):
        model, batch = make_model("gpoe", fusion="learned_mixture"), make_batch()
        raw = model.fusion.raw_weights

        def value():
            return total(model.loss(model.prepare(batch), training()))[batch.something].sum()

        value().backward()
        for place in range(3):
            at = []
            for shift in (1e-5, -2e-5):
                with torch.no_grad():
                    raw[place] += shift
                at.append(float(value().detach()))
            with torch.no_grad():
                raw[place] += 1e-5
            assert float(raw.grad[place]) == pytest.approx((at[0] - at[1]) / 2e-5, rel=1e-5)

    def test_only_what_is_there_is_decoded(self, make_model, make_batch, training):
        model, batch = make_model("gpoe", fusion="mixture"), make_batch()
        rows = []
        hook = model.decoders["a"].register_forward_pre_hook(
            lambda _, inputs: rows.append(math.prod(inputs[0].shape[:-1]))
        )
        model.loss(model.prepare(batch), training())
        hook.remove()
        has = batch.column("a")
        assert sum(rows) == int(batch.present[has].sum())

    def test_a_mixture_of_experts_has_the_bound_of_mmvae(self, make_model, make_batch, quiet):
        # with one sample of every expert
        model = make_model("gpoe", fusion="mixture")
        mmvae = make_model("mmvae", n_samples=1, family="normal", prior="standard_normal")
        mmvae.load_state_dict(model.state_dict())
        batch = make_batch()
        found = [total(m.loss(m.prepare(batch), quiet())) for m in (model, mmvae)]
        torch.testing.assert_close(*found)

    def test_a_rule_that_gives_something_else(self, make_model, make_batch, monkeypatch):
        def fuse(self, experts, members):
            return Laplace(experts.mean[:1], experts.mean[:1].exp())

        model, batch = make_model("gpoe", fusion="mixture"), make_batch()
        monkeypatch.setattr(type(model.fusion), "fuse", fuse)
        with pytest.raises(ConfigError, match="fusion: must give Gaussians or a mixture of Gaus"):
            model.loss(model.prepare(batch), Step(noise=RowNoise(0, batch.index, F64)))


def out_components(model, batch):
    return model.posterior(model.prepare(batch)).parts["shared"].components.mean


RULES = [
    "weighted_product",
    "product",
    "mixture",
    "mixture_of_products",
    {"type": "weighted_product", "weigh_prior": True, "per_dim": False},
    {"type": "weighted_product", "weighting": "clamp"},
]


@pytest.mark.parametrize("fusion", RULES, ids=str)
@pytest.mark.parametrize("prior", ["never", "always", "largest"])
def test_rows_with_nothing_have_the_prior_and_no_loss(
    make_model, make_batch, training, fusion, prior
):
    model = make_model("gpoe", fusion=fusion, prior_expert=prior, private_dims={"a": 1})
    batch = model.prepare(make_batch())
    z = {
        "shared": torch.randn(4, 12, 2, dtype=F64),
        ("private", "a"): torch.randn(4, 12, 1, dtype=F64),
    }
    expected = model.prior(batch).log_prob(z)[:, 1]
    torch.testing.assert_close(model.posterior(batch).log_prob(z)[:, 1], expected)
    loss = total(model.loss(batch, training()))
    loss.sum().backward()
    assert float(loss[1].detach()) == pytest.approx(0.0, abs=1e-12)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("options", [
    {},
    {"fusion": "mixture_of_products"},
    {"private_dims": {"b": 1}, "likelihood_reduction": "mean", "prior_expert": "always"},
    {"fusion": "mixture", "prior": {"type": "scaled", "family": "laplace_with_softmax"}},
])  # fmt: skip
def test_the_loss_is_a_bound(make_model, make_batch, options):
    model, batch = make_model("gpoe", **options), make_batch(10)
    prepared, values = model.prepare(batch), []
    for seed in range(150):
        out = model.loss(prepared, Step(noise=RowNoise(seed, batch.index, F64)))
        values.append(-total(out).detach())
    values = torch.stack(values)
    exact = model.log_likelihood(batch, n_samples=5000)
    error = (values.var(dim=0) / 150 + exact.standard_error**2).sqrt()
    assert bool((values.mean(dim=0) <= exact.value + 4.5 * error + 1e-9).all())
    elbo = model.elbo(batch, n_samples=500)
    if not options.get("private_dims"):
        gap = (elbo.value - values.mean(dim=0)).abs()
        assert bool((gap <= 4.5 * (error**2 + elbo.standard_error**2).sqrt() + 1e-9).all())


@pytest.mark.parametrize(("options", "message"), [
    ({"likelihood_reduction": "max"}, "likelihood_reduction: must be one of 'sum', 'mean'"),
    ({"prior_expert": "some"}, "prior_expert: must be one of 'always', 'never'"),
    ({"fusion": "no_such_rule"}, "fusion"),
    ({"fusion": {"type": "weighted_product", "weighting": "sum"}}, "fusion.weighting: must be"),
    ({"private_dims": {"d": 1}}, "private_dims.d: unknown modality; there is a, b, c"),
])  # fmt: skip
def test_refusals(make_model, options, message):
    with pytest.raises(mv.MultivaeError, match=message):
        make_model("gpoe", **options)
