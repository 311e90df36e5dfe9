"""Real values, categories, counts and binary values in one model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import multivae_core as mv
from multivae_core.errors import DataError
from multivae_core.noise import Step, TrainingNoise

LIKELIHOODS = {
    "lab": {"type": "normal", "scale": "learned"},
    "blood": {"type": "student_t", "scale": "learned"},
    "group": {"type": "categorical"},
    "visits": {"type": "poisson"},
    "genes": {"type": "negative_binomial"},
    "flags": {"type": "bernoulli"},
}
MODELS = pytest.mark.parametrize("name", ["mvae", "mmvae", "mopoe"])


def table(rows=120, seed=0):
    """Rows of two kinds of people, with holes of both levels."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, rows)
    rates = np.where(kind[:, None] == 1, 9.0, 1.0)
    values = {
        "lab": 100 + 30 * kind[:, None] + 5 * rng.normal(size=(rows, 3)),
        "blood": kind[:, None] * [1e-3, 2e-3] + 1e-4 * rng.standard_t(3, (rows, 2)),
        "group": np.eye(3)[np.where(rng.random(rows) < 0.8, kind, 2)],
        "visits": rng.poisson(rates, (rows, 2)),
        "genes": rng.negative_binomial(2, 2 / (2 + 20 * rates), (rows, 4)),
        "flags": rng.random((rows, 2)) < 0.2 + 0.6 * kind[:, None],
    }
    present = {name: rng.random(rows) < 0.7 for name in values}
    present["lab"] |= ~np.any(list(present.values()), axis=0)
    observed = {"genes": rng.random((rows, 4)) < 0.8}
    observed["genes"][:, 0] = True
    return mv.IncompleteDataset(values, present=present, observed=observed), kind


def model_of(name, data):
    small = {"type": "mlp", "hidden": [16]}
    own = {
        n: {"likelihood": x, "encoder": small, "decoder": small} for n, x in LIKELIHOODS.items()
    }
    return mv.create_model(name, data, latent_dim=3, modalities=own, seed=0)


def train(model, data, steps=60):
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    batch = model.prepare(data.batch(torch.arange(len(data))))
    values = []
    for number in range(steps):
        optimiser.zero_grad()
        step = Step(training=True, number=number, noise=TrainingNoise(0, number))
        out = model.loss(batch, step)
        loss = sum(term.value[batch.something].mean() for term in out.terms.values())
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    return values


@MODELS
def test_a_model_learns_imputes_and_scores_every_kind(name):
    data, kind = table()
    model = model_of(name, data)
    assert [n for n in model.modalities if model.config.modalities[n].standardise] == [
        "blood",
        "lab",
    ]
    before = model.log_likelihood(data, n_samples=50)
    values = train(model, data)
    assert all(math.isfinite(value) for value in values)
    assert values[-1] < 0.8 * values[0]
    after = model.log_likelihood(data, n_samples=50)
    assert bool(after.value.isfinite().all())
    assert after.mean > before.mean + 1.0
    own = model.impute(data, n_samples=40, keep_samples=True)
    for counts in ("visits", "genes"):
        for what in (own.filled[counts], own.samples[counts], own.quantiles[counts]):
            assert torch.equal(what, what.round())
            assert float(what.min()) >= 0.0
    for what in (own.filled["group"], own.samples["group"]):
        assert bool((what.sum(-1) == 1).all())
        assert bool(((what == 0) | (what == 1)).all())
    torch.testing.assert_close(own.mean["group"].sum(-1), torch.ones(120))
    for what in (own.filled["flags"], own.samples["flags"]):
        assert bool(((what == 0) | (what == 1)).all())
    for each in (own.filled, own.mean, own.quantiles, own.samples):
        assert all(bool(value.isfinite().all()) for value in each.values())
    # what was measured is kept, also integers and truth values
    batch = data.batch(torch.arange(120))
    for modality in data.names:
        mask = batch.column(modality)[:, None].expand_as(batch.values[modality])
        mask = mask & batch.observed.get(modality, mask)
        kept, truth = own.filled[modality][mask], batch.values[modality][mask]
        assert torch.equal(kept, truth.to(kept.dtype)), modality
    # what is imputed tells the two kinds of people apart, on the scale of the data
    hidden = ~batch.column("lab")
    guess = own.filled["lab"][hidden].mean(dim=1) > 115
    assert float((guess == torch.as_tensor(kind)[hidden].bool()).double().mean()) > 0.7
    assert 80 < float(own.mean["lab"].mean()) < 150
    assert float(own.mean["blood"].abs().max()) < 0.02


@MODELS
def test_every_subset_of_kinds_can_be_given(name):
    data, _ = table(40)
    model = model_of(name, data)
    for given in ({"group"}, {"visits", "flags"}, {"genes"}, set()):
        value = model.conditional_log_likelihood(
            data, given, set(data.names) - given, n_samples=20
        ).value
        assert bool(value.isfinite().all())
        predicted = model.predict(data.restrict(given), n_samples=5)
        assert all(bool(x.isfinite().all()) for x in predicted.values())
    rows = model.generate(30, output="sample")
    assert torch.equal(rows["genes"], rows["genes"].round())
    assert bool((rows["group"].sum(-1) == 1).all())


@pytest.mark.parametrize(
    ("modality", "change", "message"),
    [
        ("visits", lambda x: x - 3, "'visits'.*row"),
        ("genes", lambda x: x + 0.5, "'genes'.*row"),
        ("group", lambda x: 2 * x, "'group'.*row"),
        ("flags", lambda x: 5.0 * x - 1, "'flags'.*row"),
    ],
)
def test_values_that_do_not_fit_their_likelihood_are_refused(modality, change, message):
    data, _ = table(40)
    batch = data.batch(torch.arange(40))
    values = {n: x.double() for n, x in batch.values.items()}
    values[modality] = change(values[modality])
    present = {n: batch.column(n) for n in batch.names}
    wrong = mv.IncompleteDataset(values, present=present, observed=dict(batch.observed))
    with pytest.raises(DataError, match=message):
        model_of("mopoe", wrong)
