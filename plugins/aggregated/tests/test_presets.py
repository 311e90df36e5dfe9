"""Presets against their papers' formulas, and as what they are: other defaults of a base."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import special, stats

import multivae_core as mv

F64 = torch.float64
SPELLED_OUT = {
    "codevae": (
        "mopoe",
        {
            "fusion": "dependent_experts",
            "subset_weights": "learned",
            "prior_expert": "never",
            "n_components_per_step": None,
        },
    ),
    "helvae": ("gpoe", {"fusion": "hellinger"}),
    "mwbvae": ("mopoe", {"fusion": "barycentre", "prior_expert": "never"}),
}
EVERY = ["codevae", "helvae", "mwbvae", "masked_pi"]


def total(out):
    return sum(term.value for term in out.terms.values())


def have(batch, b):
    return [n for n in "abc" if bool(batch.column(n)[b])]


def read(model, batch, b, names):
    """Means and deviations of the experts of a row, ``(m, D)`` each."""
    raw = [model.encoders[n](batch.values[n][b : b + 1])["shared"][0].detach() for n in names]
    return (np.array([x[i].numpy() for x in raw]) for i in (0, 1))


def elbo(model, batch, b, mean, variance, beta):
    score = -beta * 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum()
    for name in have(batch, b):
        x = model.decoders[name](torch.as_tensor(mean)[None, None]).mean[0, 0].detach().numpy()
        score += stats.norm.logpdf(batch.values[name][b].numpy(), x, 0.8).sum()
    return score


def subsets(names):
    return [s for k in range(1, len(names) + 1) for s in itertools.combinations(names, k)]


def test_codevae(make_model, make_batch, quiet):
    rho, beta = 0.6, 2.5
    model = make_model("codevae", fusion={"type": "code", "rho": rho}, beta=beta)
    with torch.no_grad():
        model.subset_logits.copy_(torch.linspace(-1, 1, 7))
    logits = {
        tuple(n for n, member in zip("abc", row, strict=True) if member): float(value)
        for row, value in zip(model.subsets.tolist(), model.subset_logits.detach(), strict=True)
    }
    batch = make_batch()
    found = -total(model.loss(model.prepare(batch), quiet())).detach()
    for b in range(batch.size):
        names = have(batch, b)
        if not names:
            continue
        values = []
        for s in subsets(names):
            mu, raw = read(model, batch, b, s)
            mean, variance = np.empty(2), np.empty(2)
            for d in range(2):
                deviation = np.exp(raw[:, d] / 2)
                sigma = rho * np.outer(deviation, deviation)
                np.fill_diagonal(sigma, deviation**2)
                inverse = np.linalg.inv(sigma)
                variance[d] = 1 / inverse.sum()
                mean[d] = variance[d] * (inverse @ mu[:, d]).sum()
            values.append(elbo(model, batch, b, mean, variance, beta))
        pi = special.softmax([logits[s] for s in subsets(names)])
        expected = pi @ values + stats.entropy(pi) - np.log(len(pi))
        assert float(found[b]) == pytest.approx(expected)


def test_mwbvae(make_model, make_batch, quiet):
    model = make_model("mwbvae", beta=2.5, n_components_per_step=None)
    batch = make_batch()
    found = -total(model.loss(model.prepare(batch), quiet())).detach()
    for b in range(batch.size):
        values = []
        for s in subsets(have(batch, b)):
            mu, raw = read(model, batch, b, s)
            variance = np.exp(raw / 2).mean(axis=0) ** 2
            values.append(elbo(model, batch, b, mu.mean(axis=0), variance, 2.5))
        assert float(found[b]) == pytest.approx(np.mean(values) if values else 0.0)


def test_helvae(make_model, make_batch, quiet):
    # the moments of the sum over all ordered pairs, as the paper has it
    model, batch = make_model("helvae", beta=2.5), make_batch()
    found = -total(model.loss(model.prepare(batch), quiet())).detach()
    for b in range(batch.size):
        names = have(batch, b)
        if not names:
            continue
        mu, raw = read(model, batch, b, names)
        v, mass, first, second = np.exp(raw), 0.0, 0.0, 0.0
        for i, j in itertools.product(range(len(names)), repeat=2):
            both = v[i] + v[j]
            mean, variance = (mu[i] * v[j] + mu[j] * v[i]) / both, 2 * v[i] * v[j] / both
            s = np.prod(
                np.sqrt(2 * np.sqrt(v[i] * v[j]) / both)
                * np.exp(-((mu[i] - mu[j]) ** 2) / (4 * both))
            )
            mass, first, second = mass + s, first + s * mean, second + s * (mean**2 + variance)
        mean = first / mass
        expected = elbo(model, batch, b, mean, second / mass - mean**2, 2.5)
        assert float(found[b]) == pytest.approx(expected)


@pytest.mark.parametrize("name", SPELLED_OUT)
def test_a_preset_is_its_base_with_other_defaults(make_model, make_batch, training, name):
    base, options = SPELLED_OUT[name]
    extra = {"private_dims": {"a": 1}, "beta": 3.0, "style_betas": {"a": 0.5}}
    one, two = make_model(name, **extra), make_model(base, **options, **extra)
    assert isinstance(one, type(two))
    assert isinstance(one.config, type(two.config))
    for (key, value), (other, own) in zip(
        one.state_dict().items(), two.state_dict().items(), strict=True
    ):
        assert key == other
        assert torch.equal(value, own)
    batch = make_batch()
    first, second = (total(m.loss(m.prepare(batch), training())) for m in (one, two))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", EVERY)
def test_saved_and_loaded_by_its_own_name(make_model, make_batch, tmp_path, name):
    model, batch = make_model(name, latent_dim=4), make_batch()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.1
    model.save(tmp_path / "model")
    again = mv.load_model(tmp_path / "model")
    assert type(again) is type(model)
    assert f'"multivae-aggregated/{name}"' in (tmp_path / "model" / "config.json").read_text()
    one, two = (m.log_likelihood(batch, n_samples=9).value for m in (model, again))
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("fusion", ["barycentre", "dependent_experts", "hellinger", "pooling"])
def test_every_rule_in_every_preset(make_model, make_batch, training, name, fusion):
    model, batch = make_model(name, fusion=fusion), make_batch()
    total(model.loss(model.prepare(batch), training())).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert bool(model.log_likelihood(batch, n_samples=5).value.isfinite().all())
