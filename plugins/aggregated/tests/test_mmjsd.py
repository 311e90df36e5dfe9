"""mmJSD against its formulas, row by row.

The linear-Gaussian acceptance test is in integration_tests/test_oracle.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats

import multivae_core as mv
from multivae_core.errors import ConfigError
from multivae_core.noise import RowNoise, Step, TrainingNoise

F64 = torch.float64
STANDARD = (np.zeros(2), np.ones(2))
UNEVEN = {"weights": {"a": 3.0, "c": 0.5}, "prior_weight": 2.0}


def total(out):
    return sum(term.value for term in out.terms.values())


def present(batch, b):
    return [name for name in sorted(batch.names) if bool(batch.column(name)[b])]


def expert(model, batch, name, b):
    value = batch.values[name][b : b + 1]
    mean, raw = model.encoders[name](value)["shared"][0].detach().numpy()
    return mean, np.exp(raw)


def kl(q, p):
    (mean, variance), (other, wide) = q, p
    ratio = variance / wide
    return 0.5 * (ratio - 1.0 - np.log(ratio) + (mean - other) ** 2 / wide).sum()


def weighted(experts, pi):
    """Geometric mean of (mean, variance) pairs with weights in any unit."""
    pi = np.array(pi) / sum(pi)
    precision = sum(p / variance for p, (_, variance) in zip(pi, experts, strict=True))
    pull = sum(p * mean / variance for p, (mean, variance) in zip(pi, experts, strict=True))
    return pull / precision, 1.0 / precision


def experts_of(model, batch, b, prior):
    """Experts of a row and their weights, which sum to 1; N(0, I) is the last."""
    have, given = present(batch, b), model.config.weights
    experts = [expert(model, batch, name, b) for name in have]
    pi = [given.get(name, 1.0) for name in have]
    if prior:
        experts, pi = [*experts, STANDARD], [*pi, model.config.prior_weight]
    return experts, [each / sum(pi) for each in pi]


def divergence(model, batch, b):
    experts, pi = experts_of(model, batch, b, model.config.prior_component != "none")
    f = weighted(experts, pi)
    return sum(p * kl(q, f) for p, q in zip(pi, experts, strict=True))


def log_px(model, batch, b, z, private=None, weights=None):
    value = 0.0
    for name in present(batch, b):
        own = [] if private is None or name not in private else private[name]
        latent = torch.as_tensor(np.concatenate([z, own]))[None, None]
        mean = model.decoders[name](latent).mean[0, 0].detach().numpy()
        score = stats.norm.logpdf(batch.values[name][b].numpy(), mean, 0.8).sum()
        value += (weights or {}).get(name, 1.0) * score
    return value


def quiet_parts(model, batch, b, **options):
    """Log-likelihood and divergence of a row with every expert decoded at its location."""
    if not present(batch, b):
        return 0.0, 0.0
    experts, pi = experts_of(model, batch, b, model.config.prior_component == "sampled")
    values = [log_px(model, batch, b, mean, **options) for mean, _ in experts]
    return np.dot(pi, values), divergence(model, batch, b)


COMPONENTS = ["jsd_only", "sampled", "none"]


@pytest.mark.parametrize("prior", COMPONENTS)
@pytest.mark.parametrize("options", [{}, UNEVEN])
def test_all_components_give_the_formula(make_model, make_batch, quiet, prior, options):
    model = make_model(
        "mmjsd",
        prior_component=prior,
        n_components_per_step=None,
        beta=2.0,
        beta_content=0.7,
        **options,
    )
    batch = make_batch()
    out = model.loss(model.prepare(batch), quiet())
    assert list(out.terms) == ["reconstruction", "jsd"]
    expected = torch.tensor([quiet_parts(model, batch, b) for b in range(12)], dtype=F64)
    torch.testing.assert_close(-out.terms["reconstruction"].value.detach(), expected[:, 0])
    torch.testing.assert_close(out.terms["jsd"].value.detach(), 2.0 * 0.7 * expected[:, 1])
    torch.testing.assert_close(out.metrics["jsd"], expected[:, 1])


@pytest.mark.parametrize("draws", [1, 2, 5])
@pytest.mark.parametrize("prior", ["jsd_only", "sampled"])
def test_drawn_components_are_right_on_average(make_model, make_batch, quiet, draws, prior):
    model = make_model("mmjsd", n_components_per_step=draws, prior_component=prior, **UNEVEN)
    one = make_batch()
    for b in (0, 2, 3, 4):
        batch = one.take(torch.full((3000,), b))
        out = model.loss(model.prepare(batch), quiet())
        found = -out.terms["reconstruction"].value.detach()
        error = float(found.std()) / math.sqrt(3000)
        expected = quiet_parts(model, one, b)[0]
        assert abs(float(found.mean()) - expected) < 4.5 * error + 1e-9
        if draws == 5:
            assert error < 1e-12


def test_private_latents(make_model, make_batch, training):
    model = make_model(
        "mmjsd",
        private_dims={"a": 1, "c": 2},
        n_components_per_step=None,
        prior_component="none",
        beta=2.0,
        beta_style=0.5,
        style_betas={"c": 3.0},
    )
    batch, step = make_batch(), training()
    prepared = model.prepare(batch)
    out, encoded = model.loss(prepared, step), model.run_encoders(prepared)
    noise = {
        name: step.noise.normal(("private", name), (3, 12, size))
        for name, size in (("a", 1), ("c", 2))
    }
    shared = step.noise.normal("shared", (3, 12, 2)).numpy()
    for b in range(batch.size):
        have, value, style = present(batch, b), 0.0, 0.0
        for m, name in enumerate("abc"):
            if name not in have:
                continue
            mean, variance = expert(model, batch, name, b)
            private = {}
            for own in ("a", "c"):
                location, raw = encoded["private", own][b].detach().numpy()
                private[own] = location + np.exp(raw / 2) * noise[own][m, b].numpy()
            z = mean + np.sqrt(variance) * shared[m, b]
            value += log_px(model, batch, b, z, private) / len(have)
        for own, weight in (("a", 1.0), ("c", 3.0)):
            location, raw = encoded["private", own][b].detach().numpy()
            divergence = kl((location, np.exp(raw)), (0.0, np.ones_like(raw)))
            style += weight * divergence if own in have else 0.0
        assert -float(out.terms["reconstruction"].value[b].detach()) == pytest.approx(value)
        found = float(out.terms["kl_private"].value[b].detach())
        assert found == pytest.approx(2.0 * 0.5 * style, abs=1e-12)


def test_weights_and_schedules_count_in_training_alone(make_model, make_batch, quiet):
    weights = {"a": 3.0, "b": 0.0}
    model = make_model(
        "mmjsd",
        modalities={name: {"weight": w} for name, w in weights.items()},
        beta=4.0,
        beta_schedule=10,
        beta_content=3.0,
        n_components_per_step=None,
    )
    batch, noise = make_batch(), quiet().noise
    for step, beta, given in (
        (Step(training=True, number=5, noise=noise), 6.0, {"weights": weights}),
        (Step(number=5, noise=noise), 1.0, {}),
    ):
        found = -total(model.loss(model.prepare(batch), step)).detach()
        parts = [quiet_parts(model, batch, b, **given) for b in range(12)]
        expected = [value - beta * jsd for value, jsd in parts]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64))


def set_experts(model, mean, log_variance):
    with torch.no_grad():
        for name in model.modalities:
            head = model.encoders[name].head
            head.weight.zero_()
            head.bias.copy_(torch.tensor([mean, mean, log_variance, log_variance]))


class TestAcceptance:
    @pytest.mark.parametrize("prior", COMPONENTS)
    def test_experts_that_are_the_prior_have_no_divergence(
        self, make_model, make_batch, quiet, prior
    ):
        model = make_model("mmjsd", prior_component=prior)
        set_experts(model, 0.0, 0.0)
        out = model.loss(model.prepare(make_batch()), quiet())
        assert out.metrics["jsd"].abs().max() < 1e-12

    def test_equal_experts_with_a_light_prior_are_the_geometric_mean(self, make_model, make_batch):
        model = make_model("mmjsd", prior_weight=1e-9)
        set_experts(model, 0.4, -0.6)
        f = model.posterior(model.prepare(make_batch(4, holes=False))).parts["shared"]
        torch.testing.assert_close(f.mean, torch.full_like(f.mean, 0.4))
        torch.testing.assert_close(f.log_variance, torch.full_like(f.mean, -0.6))

    def test_the_geometric_mean_minimises_the_reverse_divergences(self, make_model, make_batch):
        model, batch = make_model("mmjsd", **UNEVEN), make_batch(3, holes=False)
        f = model.posterior(model.prepare(batch)).parts["shared"]
        experts, pi = experts_of(model, batch, 0, True)

        def objective(forward):
            def value(x):
                g = (x[:2], np.exp(x[2:]))
                pairs = [(g, q) if forward else (q, g) for q in experts]
                return sum(p * kl(*pair) for p, pair in zip(pi, pairs, strict=True))

            return optimize.minimize(value, np.zeros(4), tol=1e-12).x

        found = torch.cat([f.mean[0], f.log_variance[0]]).detach().numpy()
        np.testing.assert_allclose(found, objective(forward=True), atol=1e-4)
        assert np.abs(found - objective(forward=False)).max() > 1e-2

    @pytest.mark.parametrize("prior", COMPONENTS)
    def test_no_row_is_decoded_from_noise(self, make_model, make_batch, prior):
        # experts at 9 with a deviation of 0.1: what is drawn near 0 is the prior's
        model, batch = make_model("mmjsd", prior_component=prior), make_batch(40)
        set_experts(model, 9.0, -4.6)
        seen, far = batch.something, []
        record = lambda _, inputs: far.append(inputs[0][..., 0] < 5.0)  # noqa: E731
        hooks = [model.decoders[name].register_forward_pre_hook(record) for name in "abc"]
        for number in range(50):
            noise = TrainingNoise(0, number, dtype=F64)
            model.loss(model.prepare(batch), Step(training=True, noise=noise))
        for hook in hooks:
            hook.remove()
        share = torch.cat([each.flatten() for each in far]).double().mean()
        n = batch.present[seen].sum(dim=1).double()
        expected = float((n / (n + 1)).sum() / n.sum()) if prior == "sampled" else 0.0
        assert float(share) == pytest.approx(expected, abs=0.03 if expected else 0.0)

    def test_weights_sum_to_one_over_what_is_there(self, make_model, make_batch):
        model, batch = make_model("mmjsd", **UNEVEN), make_batch()
        own = model._weights(batch.present)
        torch.testing.assert_close(own.sum(dim=1), torch.ones(12, dtype=F64))
        assert not own[batch.something][~batch.present[batch.something]].any()
        assert own[0].tolist() == pytest.approx([3 / 4.5, 1 / 4.5, 0.5 / 4.5])

    @pytest.mark.parametrize("options", [{}, UNEVEN, {"prior_component": "sampled"}])
    def test_likelihoods_have_the_prior_of_the_model(self, make_model, make_batch, options):
        sizes = {"a": 1, "c": 2}
        model = make_model("mmjsd", sizes=sizes, latent_dim=1, **options)
        batch = make_batch(6, sizes)
        estimate = model.log_likelihood(batch, n_samples=5000)
        grid = np.linspace(-10, 10, 4001)
        for b in range(6):
            joint = stats.norm.logpdf(grid)
            for name in present(batch, b):
                mean = model.decoders[name](torch.as_tensor(grid).view(1, -1, 1)).mean[0]
                value = batch.values[name][b].numpy()
                joint += stats.norm.logpdf(value, mean.detach().numpy(), 0.8).sum(-1)
            exact = special.logsumexp(joint) + math.log(grid[1] - grid[0])
            error = abs(float(estimate.value[b]) - exact)
            assert error <= 4.5 * float(estimate.standard_error[b]) + 1e-6
        assert float(estimate.standard_error.max()) < 0.1


class TestPosterior:
    @pytest.mark.parametrize("aggregation", ["geometric", "poe"])
    @pytest.mark.parametrize("prior", COMPONENTS)
    def test_aggregation(self, make_model, make_batch, aggregation, prior):
        model = make_model("mmjsd", aggregation=aggregation, prior_component=prior, **UNEVEN)
        batch = make_batch()
        own = model.posterior(model.prepare(batch)).parts["shared"]
        for b in range(batch.size):
            have = present(batch, b)
            joins = prior != "none" and aggregation == "geometric" and len(have) > 1
            experts, pi = experts_of(model, batch, b, joins) if have else ([STANDARD], [1.0])
            if aggregation == "poe" and have:
                # a product is the geometric mean to the power of n
                mean, variance = weighted(experts, [1.0] * len(have))
                expected = mean, variance / len(have)
            else:
                expected = weighted(experts, pi)
            np.testing.assert_allclose(own.mean[b].detach(), expected[0], atol=1e-12)
            np.testing.assert_allclose(own.variance[b].detach(), expected[1])

    @pytest.mark.parametrize("which", ["posterior", "proposal"])
    @pytest.mark.parametrize("prior", COMPONENTS)
    def test_mixture(self, make_model, make_batch, which, prior):
        model = make_model("mmjsd", aggregation="mixture", prior_component=prior, **UNEVEN)
        batch = make_batch()
        own = getattr(model, which)(model.prepare(batch))
        z = torch.randn(3, 12, 2, dtype=F64)
        found = own.log_prob({"shared": z}).detach().numpy()
        for b in range(12):
            joins = not present(batch, b) or (which == "proposal" and prior == "sampled")
            experts, pi = experts_of(model, batch, b, joins)
            each = [stats.norm.logpdf(z[:, b], m, np.sqrt(v)).sum(-1) for m, v in experts]
            expected = special.logsumexp(each, axis=0, b=np.array(pi)[:, None])
            np.testing.assert_allclose(found[:, b], expected)

    @pytest.mark.parametrize("aggregation", ["geometric", "poe", "mixture"])
    @pytest.mark.parametrize("prior", COMPONENTS)
    def test_rows_with_nothing_have_the_prior_and_no_loss(
        self, make_model, make_batch, training, aggregation, prior
    ):
        model = make_model("mmjsd", aggregation=aggregation, prior_component=prior)
        batch = model.prepare(make_batch())
        z = {"shared": torch.randn(4, 12, 2, dtype=F64)}
        expected = model.prior(batch).log_prob(z)[:, 1]
        for own in (model.posterior(batch), model.proposal(batch)):
            torch.testing.assert_close(own.log_prob(z)[:, 1], expected)
        loss = total(model.loss(batch, training()))
        loss.sum().backward()
        assert float(loss[1].detach()) == pytest.approx(0.0, abs=1e-12)
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())

    def test_complete_rows_do_not_depend_on_holes_elsewhere(self, make_model, make_batch):
        # with everything present one pattern serves all rows
        model, batch = make_model("mmjsd"), make_batch(holes=False)
        mask = torch.ones(12, 3, dtype=torch.bool)
        mask[5, 1] = False
        step, found = Step(noise=RowNoise(0, batch.index, F64)), []
        for each in (batch, batch.restrict(mask)):
            prepared = model.prepare(each)
            out = torch.stack([total(model.loss(prepared, step)), model.embed(each)[:, 0]])
            found.append(out.detach()[:, [b for b in range(12) if b != 5]])
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_the_loss_is_no_bound(make_model):
    assert "loss_is_bound" in make_model("mmjsd").lacks
    assert "loss_is_bound" not in mv.registry.models["mmjsd"].capabilities


@pytest.mark.parametrize(("options", "message"), [
    ({"prior": "scaled"}, "prior: must be 'standard_normal', which is one of the experts"),
    ({"weights": {"d": 1.0}}, "weights.d: unknown modality; there is a, b, c"),
    ({"weights": {"a": 0.0}}, "weights.a: must be > 0, got 0.0"),
    ({"prior_weight": 0}, "prior_weight: must be > 0, got 0"),
    ({"prior_component": "all"}, "prior_component: must be one of 'jsd_only', 'sampled'"),
    ({"beta_content": -1}, "beta_content: must be >= 0, got -1"),
    ({"n_components_per_step": 0}, "n_components_per_step: must be > 0, got 0"),
    ({"aggregation": "mean"}, "aggregation: must be one of 'geometric', 'poe', 'mixture'"),
    ({"private_dims": {"d": 1}}, "private_dims.d: unknown modality; there is a, b, c"),
])  # fmt: skip
def test_refusals(make_model, options, message):
    with pytest.raises(ConfigError, match=message):
        make_model("mmjsd", **options)
