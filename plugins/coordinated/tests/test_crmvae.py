"""CRMVAE against its formula, one row at a time, and what it must refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import multivae_core as mv
from multivae_core.errors import CapabilityError, ConfigError
from multivae_core.noise import RowNoise, Step


def expert(model, batch, name, b):
    raw = model.encoders[name](batch.values[name][b : b + 1])["shared"][0].detach().numpy()
    return raw[0], np.exp(raw[1])


def log_px(model, batch, name, b, z):
    location = model.decoders[name](torch.as_tensor(z)[None, None]).mean[0, 0].detach().numpy()
    return stats.norm.logpdf(batch.values[name][b].numpy(), location, 0.8).sum()


def kl(mean, variance, other_mean=0.0, other_variance=1.0):
    ratio, shift = variance / other_variance, (mean - other_mean) ** 2 / other_variance
    return 0.5 * (ratio + shift - 1 - np.log(ratio)).sum()


def expected(model, batch, b, pi, rest, beta=1.0, rho=0.5, cross=False):
    """The loss of one row with every latent at its mean; pi by name, not yet of what is absent."""
    own = [m for m in "abc" if bool(batch.column(m)[b])]
    experts = {m: expert(model, batch, m, b) for m in own}
    precision = sum(1 / v for _, v in experts.values())
    mean = sum(m / v for m, v in experts.values()) / precision
    value = beta * rest * kl(mean, 1 / precision)
    for m in own:
        sources = [experts[s][0] for s in (own if cross else [m])]
        rebuilt = sum(log_px(model, batch, m, b, z) for z in [mean, *sources])
        value -= rho * pi[m] * rebuilt
        value += beta * pi[m] * kl(mean, 1 / precision, *experts[m])
    return value


def total(out):
    return sum(term.value for term in out.terms.values()).detach().numpy()


@pytest.mark.parametrize("cross", [False, True])
def test_loss_is_the_formula_in_every_row(make_model, make_batch, quiet, cross):
    options = {"beta": 2.0, "weights": {"a": 3.0}, "prior_weight": 2.0, "rec_weight": 0.7}
    model = make_model("crmvae", cross_reconstruction=cross, **options)
    batch = make_batch()
    out = total(model.loss(model.prepare(batch), quiet()))
    pi = {"a": 3 / 7, "b": 1 / 7, "c": 1 / 7}
    for b in range(batch.size):
        if bool(batch.something[b]):
            wanted = expected(model, batch, b, pi, 2 / 7, beta=2.0, rho=0.7, cross=cross)
            assert out[b] == pytest.approx(wanted, rel=1e-10)


def test_weights_can_be_scaled_over_what_a_row_has(make_model, make_batch, quiet):
    model = make_model("crmvae", missing_norm="available")
    batch = make_batch()
    out = total(model.loss(model.prepare(batch), quiet()))
    for b in range(batch.size):
        n = int(batch.present[b].sum())
        if n:
            pi = dict.fromkeys("abc", 1 / (n + 1))
            assert out[b] == pytest.approx(expected(model, batch, b, pi, 1 / (n + 1)), rel=1e-10)


def test_a_row_with_one_modality_is_a_vae_that_is_reconstructed_twice(
    make_model, make_batch, quiet
):
    model = make_model("crmvae")
    batch = make_batch(holes=False).restrict({"b"})
    out = model.loss(model.prepare(batch), quiet())
    assert out.terms["kl_experts"].value.abs().max() < 1e-15
    mean, variance = expert(model, batch, "b", 0)
    bound = log_px(model, batch, "b", 0, mean) - kl(mean, variance)
    assert total(out)[0] == pytest.approx(-bound / 4, rel=1e-10)  # pi = 1/4, rho = 1/2, twice


def test_gradients_flow_into_both_arguments_of_the_divergence(make_model, make_batch, quiet):
    # alone, KL(q || q_m) would be made 0 by one argument; both move
    model = make_model("crmvae")
    batch = model.prepare(make_batch(holes=False))
    encoded = model.run_encoders(batch)["shared"].detach().requires_grad_()
    model.run_encoders = lambda _: {"shared": encoded}
    model.loss(batch, quiet()).terms["kl_experts"].value.sum().backward()
    assert (encoded.grad != 0).all()


def test_beta_and_weights_are_for_training_alone(make_model, make_batch):
    batch = make_batch()
    values = []
    for beta in (1.0, 5.0):
        model = make_model("crmvae", beta=beta, modalities={"a": {"weight": beta}})
        values.append(
            total(
                model.loss(
                    model.prepare(batch), Step(noise=RowNoise(0, batch.index, torch.float64))
                )
            )
        )
    np.testing.assert_array_equal(*values)


def test_it_does_not_claim_a_bound(make_model):
    with pytest.raises(CapabilityError, match="CRMVAE has no loss_is_bound"):
        make_model("crmvae").require("loss_is_bound")
    assert "loss_is_bound" not in mv.registry.models["crmvae"].capabilities


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"d": 1.0}}, "weights.d: unknown modality; there is a, b, c"),
        ({"weights": {"a": 0.0}}, "weights.a: must be > 0"),
        ({"missing_norm": "total"}, "missing_norm: must be one of"),
        ({"fusion": "mixture"}, "fusion: must give one Gaussian per subset"),
    ],
)
def test_refusals(make_model, options, message):
    with pytest.raises(ConfigError, match=message):
        make_model("crmvae", **options)
