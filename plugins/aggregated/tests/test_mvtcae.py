"""MVTCAE against its formulas, row by row.

The linear-Gaussian acceptance test is in integration_tests/test_oracle.py.
"""

from __future__ import annotations

import math

import attrs
import numpy as np
import pytest
import torch
from scipy import special, stats

import multivae_core as mv
from multivae_core.errors import ConfigError
from multivae_core.noise import Step

F64 = torch.float64


def total(out):
    return sum(term.value for term in out.terms.values())


def present(batch, b):
    return [name for name in sorted(batch.names) if bool(batch.column(name)[b])]


def expert(model, batch, name, b):
    value = batch.values[name][b : b + 1]
    mean, raw = model.encoders[name](value)["shared"][0].detach().numpy()
    return mean, np.exp(raw)


def product(experts):
    precision = sum(1.0 / variance for _, variance in experts)
    return sum(mean / variance for mean, variance in experts) / precision, 1.0 / precision


def kl(q, p):
    (mean, variance), (other, wide) = q, p
    ratio = variance / wide
    return 0.5 * (ratio - 1.0 - np.log(ratio) + (mean - other) ** 2 / wide).sum()


def objective(model, batch, b, eps, beta=1.0, weights=None):
    """L of a row, and its divergences: from the prior, and from every expert."""
    have, alpha = present(batch, b), model.config.alpha
    if not have:
        return 0.0, 0.0, {}
    standard = (np.zeros(len(eps)), np.ones(len(eps)))
    experts = {name: expert(model, batch, name, b) for name in have}
    joins = model.config.prior_expert != "never"
    q = product([*experts.values(), *([standard] if joins else [])])
    z = torch.as_tensor(q[0] + np.sqrt(q[1]) * eps)[None, None]
    log_px = 0.0
    for name in have:
        mean = model.decoders[name](z).mean[0, 0].detach().numpy()
        score = stats.norm.logpdf(batch.values[name][b].numpy(), mean, 0.8).sum()
        log_px += (weights or {}).get(name, 1.0) * score
    n = len(model.modalities) if model.config.normalise == "total" else len(have)
    own = {name: kl(q, each) for name, each in experts.items()}
    divergence = (1 - alpha) * kl(q, standard) + alpha / n * sum(own.values())
    return (n - alpha) / n * log_px - beta * divergence, kl(q, standard), own


@pytest.mark.parametrize("options", [
    {},
    {"alpha": 0.3, "beta": 2.5},
    {"alpha": 1.0, "normalise": "total"},
    {"alpha": 0.0, "prior_expert": "always"},
    {"alpha": 0.9, "normalise": "total", "prior_expert": "largest"},
])  # fmt: skip
def test_the_formula(make_model, make_batch, training, options):
    model, batch, step = make_model("mvtcae", **options), make_batch(), training()
    out = model.loss(model.prepare(batch), step)
    assert list(out.terms) == ["reconstruction", "kl", "kl_experts"]
    eps = step.noise.normal("shared", (1, batch.size, 2))[0].numpy()
    for b in range(batch.size):
        value, divergence, own = objective(model, batch, b, eps[b], options.get("beta", 1.0))
        assert -float(total(out)[b].detach()) == pytest.approx(value, abs=1e-12)
        assert float(out.metrics["kl"][b]) == pytest.approx(divergence, abs=1e-12)
        for name in "abc":
            assert float(out.metrics[f"kl:{name}"][b]) == pytest.approx(own.get(name, 0.0))


def test_weights_and_schedules_count_in_training_alone(make_model, make_batch, training):
    weights = {"a": 3.0, "b": 0.0}
    model = make_model(
        "mvtcae",
        modalities={name: {"weight": w} for name, w in weights.items()},
        beta=4.0,
        beta_schedule=10,
    )
    batch, noise = make_batch(), training().noise
    eps = noise.normal("shared", (1, batch.size, 2))[0].numpy()
    for step, given in (
        (Step(training=True, number=5, noise=noise), {"beta": 2.0, "weights": weights}),
        (Step(number=5, noise=noise), {}),
    ):
        found = -total(model.loss(model.prepare(batch), step)).detach()
        expected = [objective(model, batch, b, eps[b], **given)[0] for b in range(batch.size)]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64))


class TestAcceptance:
    def test_one_modality_and_alpha_0_is_a_beta_vae(self, make_model, make_batch, training):
        model = make_model("mvtcae", sizes={"a": 3}, alpha=0.0, beta=3.0)
        batch, step = make_batch(5, {"a": 3}, holes=False), training()
        prepared = model.prepare(batch)
        out = model.loss(prepared, step)
        location, raw = model.run_encoders(prepared)["shared"][0].unbind(dim=1)
        z = location + (0.5 * raw).exp() * step.noise.normal("shared", (1, 5, 2))
        log_px = model.decoders["a"](z).log_prob(batch.values["a"])[0]
        divergence = 0.5 * (location**2 + raw.exp() - 1 - raw).sum(dim=1)
        torch.testing.assert_close(total(out), -(log_px - 3.0 * divergence))

    def test_a_lone_modality_keeps_its_regularisation(self, make_model, make_batch, training):
        options = {"alpha": 0.8, "beta": 2.5}
        model, free = (make_model("mvtcae", **{**options, "alpha": a}) for a in (0.8, 0.0))
        total_rule = make_model("mvtcae", **options, normalise="total")
        batch, step = make_batch(6, holes=False).restrict({"b"}), training()
        prepared = model.prepare(batch)
        out, beta_vae = model.loss(prepared, step), free.loss(prepared, step)
        torch.testing.assert_close(total(out), 0.2 * total(beta_vae))
        assert not out.metrics["kl:b"].abs().gt(1e-12).any()
        # with n = M the reconstruction weighs (3 - 0.8) / 3 beside the same divergence
        other = total_rule.loss(prepared, step)
        torch.testing.assert_close(other.terms["kl"].value, out.terms["kl"].value)
        expected = (3 - 0.8) / 3 * beta_vae.terms["reconstruction"].value
        torch.testing.assert_close(other.terms["reconstruction"].value, expected)

    def test_identical_experts(self, make_model, make_batch, training):
        model, batch = make_model("mvtcae"), make_batch(4, holes=False)
        with torch.no_grad():
            for name in "abc":
                model.encoders[name].head.weight.zero_()
                model.encoders[name].head.bias.copy_(torch.tensor([0.3, -0.2, 0.5, -0.7]))
        prepared = model.prepare(batch)
        q = model.posterior(prepared).parts["shared"]
        torch.testing.assert_close(q.variance[0], torch.tensor([0.5, -0.7], dtype=F64).exp() / 3)
        metrics = model.loss(prepared, training()).metrics
        expected = 0.5 * 2 * (math.log(3) + 1 / 3 - 1)
        assert metrics["kl:a"].tolist() == pytest.approx([expected] * 4)

    def test_alpha_1_leaves_the_prior_alone(self, make_model, make_batch, training):
        for alpha, learned in ((1.0, False), (0.9, True)):
            model = make_model("mvtcae", alpha=alpha, prior="scaled")
            out = model.loss(model.prepare(make_batch()), training())
            out.terms["kl"].value.sum().backward()
            parameters = [p.grad for p in model.parameters() if p.grad is not None]
            assert any(bool(gradient.any()) for gradient in parameters) is learned

    @pytest.mark.parametrize("proposal", ["product", "defensive"])
    def test_likelihoods_agree_with_quadrature(self, make_model, make_batch, proposal):
        sizes = {"a": 1, "b": 2}
        model = make_model("mvtcae", sizes=sizes, latent_dim=1, proposal=proposal)
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

    def test_the_defensive_proposal_survives_narrow_products(self, make_model, make_batch):
        sizes = []
        for proposal in ("product", "defensive"):
            model = make_model("mvtcae", proposal=proposal)
            with torch.no_grad():
                for name in "abc":
                    model.encoders[name].head.bias[2:] -= 5.0
            estimate = model.log_likelihood(make_batch(20), n_samples=2000)
            sizes.append(float(estimate.effective_sample_size.min()))
        assert sizes[0] < 40.0 < sizes[1]
        parts = model.proposal(model.prepare(make_batch(20))).parts["shared"]
        assert parts.weights[7].tolist() == pytest.approx([0.9, 0.1])


def test_gradients_flow_into_both_arguments(make_model, make_batch, training):
    model, batch = make_model("mvtcae", alpha=1.0), make_batch(5, holes=False)

    def value():
        return model.loss(model.prepare(batch), training()).terms["kl_experts"].value.sum()

    value().backward()
    bias = model.encoders["a"].head.bias
    for place in range(4):
        found, at = float(bias.grad[place]), []
        for shift in (1e-5, -2e-5):
            with torch.no_grad():
                bias[place] += shift
            at.append(float(value().detach()))
        with torch.no_grad():
            bias[place] += 1e-5
        assert found == pytest.approx((at[0] - at[1]) / 2e-5, rel=1e-5)


def test_what_lies_under_holes_has_no_influence(make_model, make_batch, training):
    model, batch = make_model("mvtcae"), make_batch()
    values = {
        name: torch.where(batch.column(name)[:, None], value, math.nan)
        for name, value in batch.values.items()
    }
    hidden = attrs.evolve(batch, values=values)
    found = []
    for each in (batch, hidden):
        model.zero_grad()
        out = total(model.loss(model.prepare(each), training()))
        out.sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        found.append((out.detach(), gradients, model.encode(each)["shared"]))
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)
    # nothing is seen of row 1: the prior, and no loss
    assert not found[0][0][1]
    q = model.posterior(model.prepare(batch)).parts["shared"]
    assert not torch.cat([q.mean[1], q.log_variance[1]]).any()


def test_another_fusion(make_model, make_batch, training):
    model = make_model("mvtcae", fusion="weighted_product")
    total(model.loss(model.prepare(make_batch()), training())).sum().backward()
    assert bool(model.fusion.raw_weights.grad.any())


def test_the_loss_is_no_bound(make_model):
    assert "loss_is_bound" in make_model("mvtcae").lacks
    assert "loss_is_bound" not in mv.registry.models["mvtcae"].capabilities


@pytest.mark.parametrize(("options", "message"), [
    ({"alpha": 1.5}, "alpha: must be between 0.0 and 1.0, got 1.5"),
    ({"alpha": -0.1}, "alpha: must be between 0.0 and 1.0, got -0.1"),
    ({"normalise": "rows"}, "normalise: must be one of 'available', 'total'"),
    ({"prior_expert": "sometimes"}, "prior_expert: must be one of 'always', 'never'"),
    ({"proposal": "mixture"}, "proposal: must be one of 'product', 'defensive'"),
    ({"fusion": "mixture"}, "fusion: must give one Gaussian per subset"),
])  # fmt: skip
def test_refusals(make_model, options, message):
    with pytest.raises(ConfigError, match=message):
        make_model("mvtcae", **options)
