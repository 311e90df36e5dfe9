"""Attributes as a product of experts: the product itself, random masking, and training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import multivae_core as mv
from multivae_core.errors import ConfigError
from multivae_core.noise import Step

F64 = torch.float64


def attributes(holes=True, rows=9, seed=0):
    """Rows of three numbers, and of four attributes of three classes each."""
    rng = np.random.default_rng(seed)
    labels = np.eye(3)[rng.integers(0, 3, (rows, 4))]
    if holes:
        labels[rng.random((rows, 4)) < 0.4] = np.nan
    return mv.IncompleteDataset({"a": rng.normal(size=(rows, 3)), "y": labels})


def make(name="telbo", **options):
    own = {"encoder": {"type": "attribute_poe", "hidden": [5]}, "likelihood": "categorical"}
    return mv.create_model(name, attributes(holes=False), latent_dim=2, dtype="float64",
                           modalities={"y": own}, seed=0, **options)  # fmt: skip


def prepared(model, data):
    return model.prepare(next(iter(data.batches(len(data)))))


@pytest.mark.parametrize("name", ["telbo", "jmvae"])
def test_experts_are_multiplied_with_the_prior(name):
    model = make(name)
    batch = prepared(model, attributes())
    trunk, head = model.encoders["y"].trunk, model.encoders["y"].head
    q = model.surrogates(batch)[1]
    some = False
    for b in range(batch.size):
        if not batch.column("y")[b]:
            continue
        precision, pull = torch.ones(2, dtype=F64), torch.zeros(2, dtype=F64)
        for k in range(4):
            if bool(batch.observed["y"][b, k].all()):
                hidden = batch.values["y"][b, k] @ trunk.layers[0].weight[k]
                hidden = (hidden + trunk.layers[0].bias[k]).relu()
                mean, log_variance = (hidden @ head.weight[k] + head.bias[k]).view(2, 2)
                precision = precision + (-log_variance).exp()
                pull = pull + (-log_variance).exp() * mean
                some = True
        torch.testing.assert_close(q.log_variance[b], -precision.log())
        torch.testing.assert_close(q.mean[b], pull / precision)
    assert some


def test_every_attribute_makes_it_narrower():
    model, labels = make(), np.eye(3)[np.zeros((5, 4), int)]
    for row in range(5):
        labels[row, row:] = np.nan
    data = mv.IncompleteDataset({"a": np.zeros((5, 3)), "y": labels}, allow_empty_rows=True)
    batch = prepared(model, data.restrict({"y"}))
    log_variance = model.surrogates(batch)[1].log_variance
    assert not log_variance[0].any()  # nothing given: N(0, I)
    assert bool((log_variance[1:] < log_variance[:-1]).all())


def test_counts_are_seen_as_logarithms_and_no_precision_is_too_large():
    data = mv.IncompleteDataset({"a": np.zeros((3, 3)), "y": np.full((3, 2), 10**6)})
    own = {"encoder": {"type": "attribute_poe", "hidden": [5]}, "likelihood": "poisson"}
    model = mv.create_model("jmvae", data, latent_dim=2, modalities={"y": own}, seed=0)
    batch, encoder = prepared(model, data), model.encoders["y"]
    seen = []
    encoder.trunk.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model.surrogates(batch)
    torch.testing.assert_close(seen[0], torch.full((3, 2, 1), 10.0**6).log1p())
    with torch.no_grad():
        encoder.head.bias.fill_(-200.0)  # precisions of e^200, beyond float32
    q = encoder(batch.values["y"])["shared"]
    assert bool(q.isfinite().all())
    q.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in encoder.parameters())


def test_attributes_are_withheld_in_training_alone(training):
    model = make(attribute_dropout=0.5)
    batch = prepared(model, attributes(rows=400))
    seen = []
    model.encoders["y"].register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    model.surrogates(batch, training())
    model.surrogates(batch, Step(noise=training().noise))
    whole = [mask.all(dim=2).double().mean() for mask in seen]
    assert 0.4 < float(whole[0] / whole[1]) < 0.6
    rows = batch.rows("y")
    own = batch.observed["y"] if rows is None else batch.observed["y"][rows]
    assert torch.equal(seen[1], own)
    assert not bool((seen[0] & ~own).any())
    # an attribute goes as a whole, and some rows keep everything
    assert torch.equal(seen[0].any(dim=2) & own.all(dim=2), seen[0].all(dim=2))
    # the target stays as it was
    terms = make(attribute_dropout=1.0).loss(batch, training()).terms
    plain = make().loss(batch, training()).terms
    torch.testing.assert_close(terms["reconstruction"].value, plain["reconstruction"].value)
    assert not torch.equal(terms["elbo:y"].value, plain["elbo:y"].value)
    assert torch.equal(terms["elbo:a"].value, plain["elbo:a"].value)


def test_it_trains_saves_and_answers_open_questions(tmp_path):
    model, data = make(attribute_dropout=0.3), attributes(rows=60)
    mv.Trainer(epochs=2, batch_size=30, progress=False).fit(model, data)
    model.save(tmp_path / "m")
    again = mv.load_model(tmp_path / "m")
    assert torch.equal(again.embed(data), model.embed(data))
    made = model.predict(data.restrict({"y"}), targets=("a",), n_samples=4)["a"]
    assert bool(made.isfinite().all())


def test_elsewhere_it_is_a_sum_of_features():
    model = make("cvae", main="a")
    data = attributes()
    assert bool(model.embed(data).isfinite().all())
    trunk = model.encoders["y"].trunk
    batch = prepared(model, data)
    values, observed = batch.values["y"], batch.observed["y"]
    each, given = trunk.each(values), observed.all(dim=2)
    wanted = torch.stack([each[b][given[b]].sum(dim=0) for b in range(batch.size)])
    torch.testing.assert_close(trunk(values, observed), wanted)


def test_it_needs_a_layer():
    with pytest.raises(ConfigError, match="hidden"):
        mv.create_model("telbo", attributes(), modalities={
            "y": {"encoder": {"type": "attribute_poe", "hidden": []}}})  # fmt: skip
