"""TELBO against its formulas, and its stages."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import multivae_core as mv
from multivae_core.errors import ConfigError
from multivae_core.noise import RowNoise, Step
from multivae_core.priors import kl_to_prior

F64 = torch.float64


def moments(model, batch, name, b):
    raw = model.encoders[name](batch.values[name][b : b + 1])["shared"][0].detach().numpy()
    return raw[0], np.exp(raw[1])


def kl(mean, variance):
    return 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum()


def log_px(model, batch, name, b, z):
    location = model.decoders[name](torch.as_tensor(z)[None, None]).mean[0, 0].detach().numpy()
    return stats.norm.logpdf(batch.values[name][b].numpy(), location, 0.8).sum()


def grads(model, terms):
    model.zero_grad()
    sum(term.value.sum() for term in terms).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("both", [False, True])
def test_terms_are_the_formulas(make_model, make_batch, training, both):
    lambdas, gammas = {"a": 2.0, "b": 0.5}, {"a": 3.0}
    model = make_model("telbo", lambdas=lambdas, gammas=gammas, beta=1.5, predict_both=both)
    batch, step = make_batch(), training()
    prepared = model.prepare(batch)
    out = model.loss(prepared, step)
    assert list(out.terms) == ["reconstruction", "kl", "elbo:a", "elbo:b", "elbo:c"]
    q = model.joint(prepared)
    eps = step.noise.normal("shared", (1, batch.size, 2))[0]
    z = (q.mean + (0.5 * q.log_variance).exp() * eps).detach().numpy()
    own = step.noise.normal("surrogates", (3, batch.size, 2)).numpy()
    for b in range(batch.size):
        names = [n for n in "abc" if bool(batch.column(n)[b])]
        found = {n: float(t.value[b].detach()) for n, t in out.terms.items()}
        recon = sum(lambdas.get(n, 1.0) * log_px(model, batch, n, b, z[b]) for n in names)
        assert found["reconstruction"] == pytest.approx(-recon)
        for place, n in enumerate("abc"):
            assert float(out.terms[f"elbo:{n}"].weight[b]) == (n in names)
            if n not in names:
                continue
            mean, variance = moments(model, batch, n, b)
            at = mean + np.sqrt(variance) * own[place, b]
            scored = names if both else [n]
            recon = sum(gammas.get(m, 1.0) * log_px(model, batch, m, b, at) for m in scored)
            # not beta: the surrogate is a VAE of its own
            assert found[f"elbo:{n}"] == pytest.approx(kl(mean, variance) - recon)


def test_surrogates_do_not_move_the_decoders(make_model, make_batch, training):
    model, batch = make_model("telbo", schedule="stop_gradient"), make_batch()
    terms = model.loss(model.prepare(batch), training()).terms
    own = grads(model, [t for n, t in terms.items() if n.startswith("elbo:")])
    assert {n.split(".")[0] for n in own} == {"encoders"}
    terms = model.loss(model.prepare(batch), training()).terms
    joint = grads(model, [terms["reconstruction"], terms["kl"]])
    assert {n.split(".")[0] for n in joint} == {"joint_encoder", "decoders"}
    whole = grads(model, model.loss(model.prepare(batch), training()).terms.values())
    for name, gradient in joint.items():
        torch.testing.assert_close(whole[name], gradient)
    assert all(p.requires_grad for p in model.parameters())


def test_rows_with_one_modality_teach_the_surrogates(make_model, make_batch, training):
    model, batch = make_model("telbo"), make_batch(holes=False).restrict({"b"})
    terms = model.loss(model.prepare(batch), training()).terms
    assert float(terms["elbo:b"].weight.sum()) == batch.size
    assert not terms["elbo:a"].weight.any()


def test_path_derivative(make_model, make_batch):
    batch = make_batch(1, holes=False).take(torch.zeros(4000, dtype=torch.long))
    plain, path = make_model("telbo"), make_model("telbo", path_derivative=True)
    step = Step(noise=RowNoise(0, torch.arange(4000), F64))
    one = plain.loss(plain.prepare(batch), step).terms["elbo:a"].value.detach()
    two = path.loss(path.prepare(batch), step).terms["elbo:a"].value.detach()
    error = float((two - one).std()) / math.sqrt(4000)
    assert abs(float((two - one).mean())) < 4.5 * error
    # without the score the gradient of the divergence vanishes where q_m is the prior
    with torch.no_grad():
        path.encoders["a"].head.weight.zero_()
        path.encoders["a"].head.bias.zero_()
    experts = path.surrogates(path.prepare(batch))
    z = experts.sample_once(step.noise, "surrogates")
    kl_to_prior(experts, path.shared_prior, z, path=True).sum().backward()
    assert float(path.encoders["a"].head.bias.grad.abs().max()) < 1e-9


def test_rows_may_weigh_the_same(make_model, make_batch, training):
    batch = make_batch()
    model = make_model("telbo", schedule="stop_gradient", row_normalise=True)
    plain = make_model("telbo", schedule="stop_gradient")
    one = model.loss(model.prepare(batch), training()).terms
    two = plain.loss(plain.prepare(batch), training()).terms
    count = 1 + batch.present.sum(dim=1)
    for name, term in one.items():
        assert term.weight is None
        torch.testing.assert_close(term.value, two[name].value / count)


def test_proposals_of_surrogates_are_wider(make_model, make_batch):
    model, batch = make_model("telbo", proposal_scale=1.5), make_batch()
    prepared = model.prepare(batch)
    q, r = model.posterior(prepared).parts["shared"], model.proposal(prepared).parts["shared"]
    wider = ((r.log_variance - q.log_variance) / 2).exp()[:, 0]
    count = batch.present.sum(dim=1)
    expected = torch.where((count > 0) & (count < 3), 1.5, 1.0).double()
    torch.testing.assert_close(wider, expected)


class Watch:
    """What is awake in each stage, and the weights at its start."""

    def __init__(self):
        self.awake, self.weights = {}, {}

    @mv.hookimpl
    def step_end(self, run, loss):
        name = run.stage.name
        self.awake[name] = {n.split(".")[0] for n, m in run.model.named_modules() if m.training}

    @mv.hookimpl
    def stage_start(self, run):
        self.weights[run.stage.name] = {n: w.clone() for n, w in run.model.state_dict().items()}


def dropping(inputs, outputs):
    return nn.Sequential(
        nn.Linear(inputs, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, outputs)
    )


def test_stages_leave_frozen_parts_alone(make_batch):
    batch = make_batch(60)
    data = mv.IncompleteDataset(
        batch.values, present={n: batch.column(n) for n in "abc"}, allow_empty_rows=True
    )
    model = mv.create_model(
        "telbo", data, latent_dim=2, decoders={"a": dropping(2, 3)}, dtype="float64"
    )
    watch = Watch()
    trainer = mv.Trainer(epochs={"joint": 2, "surrogates": 3}, batch_size=20, callbacks=[watch],
                         progress=False)  # fmt: skip
    history = trainer.fit(model, data)
    assert [e.stage for e in history.epochs] == ["joint"] * 2 + ["surrogates"] * 3
    assert "decoders" in watch.awake["joint"]
    assert "encoders" not in watch.awake["joint"]
    assert watch.awake["surrogates"] == {"encoders"}
    before, middle, after = watch.weights["joint"], watch.weights["surrogates"], model.state_dict()
    for name in after:
        mine = name.startswith("encoders")
        assert torch.equal(before[name], middle[name]) or not mine, name
        assert torch.equal(middle[name], after[name]) or mine, name
    assert any(not torch.equal(middle[n], after[n]) for n in after)


def test_surrogates_learn(make_model, make_batch):
    batch = make_batch(80)
    data = mv.IncompleteDataset(
        batch.values, present={n: batch.column(n) for n in "abc"}, allow_empty_rows=True
    )
    model = make_model("telbo")
    history = mv.Trainer(epochs={"joint": 1, "surrogates": 15}, batch_size=40, lr=1e-2,
                         progress=False).fit(model, data)  # fmt: skip
    losses = [e.numbers["loss"] for e in history.epochs if e.stage == "surrogates"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "one"}, "schedule: must be one of 'two_stage', 'stop_gradient'"),
        ({"lambdas": {"d": 1.0}}, "lambdas.d: unknown modality; there is a, b, c"),
        ({"gammas": {"a": -1.0}}, "gammas.a: must be >= 0"),
        ({"row_normalise": True}, "row_normalise: with two stages there are no terms to bal"),
        ({"proposal_scale": 0.0}, "proposal_scale: must be > 0"),
        ({"decoder_l1": {"d": 1.0}}, "decoder_l1.d: unknown modality"),
        ({"attribute_dropout": 0.2}, "attribute_dropout: there are no attributes to deny"),
    ],
)
def test_refusals(make_model, options, message):
    with pytest.raises(ConfigError, match=message):
        make_model("telbo", **options)


def test_decoders_may_be_sparse(make_model, make_batch, training):
    options = {"schedule": "stop_gradient", "row_normalise": True}
    model, plain = make_model("telbo", decoder_l1={"b": 0.1}, **options), make_model("telbo")
    batch, step = model.prepare(make_batch()), training()
    weights = [p for n, p in model.decoders["b"].network.named_parameters() if "weight" in n]
    assert len(weights) == 2
    found = model.loss(batch, step).terms["decoder_l1"].value
    torch.testing.assert_close(found, 0.1 * sum(w.abs().sum() for w in weights))
    moved = grads(model, [model.loss(batch, step).terms["decoder_l1"]])
    assert all(name.startswith("decoders") and "weight" in name for name in moved)
    # no part of what is reported
    assert "decoder_l1" not in model.loss(batch, Step(noise=step.noise)).terms
    assert "decoder_l1" not in plain.loss(batch, step).terms
    (out,) = model.stages()[0].players[0].loss(batch, step)
    assert "decoder_l1" in out.terms
