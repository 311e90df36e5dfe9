"""JMVAE against its formulas, one row at a time."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import multivae_core as mv
from multivae_core.errors import ConfigError, FileFormatError
from multivae_core.noise import RowNoise, Step

F64 = torch.float64


def total(out):
    return sum(term.value for term in out.terms.values()).detach()


def surrogate(model, batch, name, b):
    raw = model.encoders[name](batch.values[name][b : b + 1])["shared"][0].detach().numpy()
    return raw[0], np.exp(raw[1])


def joint(model, batch, names, b):
    """The joint encoder of one row: learned vectors where nothing is."""
    features, own = [], model.joint_encoder.features
    for place, name in enumerate("abc"):
        own_trunk = own.trunks[name]
        there = name in names
        x = batch.values[name][b : b + 1]
        features.append(own_trunk(x)[0] if there else own.absent[place])
    if own.bits:
        features.append(torch.tensor([float(n in names) for n in "abc"], dtype=F64))
    hidden = model.joint_encoder.trunk(torch.cat(features)[None])
    raw = model.joint_encoder.head(hidden)[0].detach().numpy()
    return raw[:2], np.exp(raw[2:])


def kl(mean, variance, other_mean=0.0, other_variance=1.0):
    ratio = variance / other_variance
    return 0.5 * (ratio - 1 - np.log(ratio) + (mean - other_mean) ** 2 / other_variance).sum()


def log_px(model, batch, name, b, z, weight=1.0):
    location = model.decoders[name](torch.as_tensor(z)[None, None]).mean[0, 0].detach().numpy()
    return weight * stats.norm.logpdf(batch.values[name][b].numpy(), location, 0.8).sum()


def present(batch, b):
    return [name for name in "abc" if bool(batch.column(name)[b])]


@pytest.mark.parametrize(
    ("options", "r1", "r2", "alphas"),
    [
        ({}, 1.0, 1.0, (0.1, 0.1, 0.1)),
        ({"alpha": 2.0, "beta": 1.5, "joint_bits": False}, 1.5, 1.0, (2.0, 2.0, 2.0)),
        ({"alphas": {"b": 3.0}}, 1.0, 1.0, (0.1, 3.0, 0.1)),
        ({"alpha": 1.0, "beta_schedule": 10}, 0.3, 0.3, (1.0, 1.0, 1.0)),
        ({"alpha": 1.0, "beta_schedule": 10, "anneal": "prior"}, 0.3, 1.0, (1.0, 1.0, 1.0)),
    ],
)
def test_terms_are_the_formulas(make_model, make_batch, training, options, r1, r2, alphas):
    weights = {"a": {"weight": 3.0}}
    model, batch = make_model("jmvae", modalities=weights, **options), make_batch()
    step = training(number=3)
    out = model.loss(model.prepare(batch), step)
    eps = step.noise.normal("shared", (1, batch.size, 2))[0].numpy()
    for b in range(batch.size):
        names = present(batch, b)
        if not names:
            continue
        mean, variance = joint(model, batch, names, b)
        z = mean + np.sqrt(variance) * eps[b]
        recon = sum(log_px(model, batch, n, b, z, 3.0 if n == "a" else 1.0) for n in names)
        near = sum(
            alphas["abc".index(n)] * kl(mean, variance, *surrogate(model, batch, n, b))
            for n in names
        )
        found = {name: float(term.value[b].detach()) for name, term in out.terms.items()}
        assert found["reconstruction"] == pytest.approx(-recon)
        assert found["kl"] == pytest.approx(r1 * kl(mean, variance))
        assert found["surrogates"] == pytest.approx(r2 * near)
    assert all(term.weight is None for term in out.terms.values())
    assert not total(out)[1].any()


@pytest.mark.parametrize(
    ("steps", "start", "value"),
    [
        (4 * 3, 0.0, lambda epoch: min(1.0, (epoch - 1) / 4)),
        (3 * 3, 0.25, lambda epoch: min(1.0, epoch / 4)),  # MultiVae
        (3 * 3, 0.0, lambda epoch: min(1.0, (epoch - 1) / 3)),  # the authors
    ],
)
def test_ramps_by_the_epoch(make_model, make_batch, training, steps, start, value):
    # 3 steps per epoch, a warm-up of 4 epochs
    ramp = {"type": "linear", "steps": steps, "start": start, "plateau": 3}
    model, plain = make_model("jmvae", beta_schedule=ramp), make_model("jmvae")
    batch = model.prepare(make_batch())
    for number in range(18):
        step = training(number)
        one, two = (own.loss(batch, step).terms for own in (model, plain))
        for name in ("kl", "surrogates"):
            wanted = value(1 + number // 3) * two[name].value
            torch.testing.assert_close(one[name].value, wanted)


def test_weights_count_in_training_alone(make_model, make_batch, training):
    batch = make_batch()
    noise = training().noise
    one = make_model("jmvae")
    two = make_model("jmvae", modalities={"a": {"weight": 5.0}}, beta=3.0)
    first, second = (total(m.loss(m.prepare(batch), Step(noise=noise))) for m in (one, two))
    torch.testing.assert_close(first, second)


def test_what_is_missing_has_a_learned_vector(make_model, make_batch, training):
    model, batch = make_model("jmvae"), make_batch()
    total_loss = sum(
        t.value.sum() for t in model.loss(model.prepare(batch), training()).terms.values()
    )
    total_loss.backward()
    assert all(bool(e.grad.any()) for e in model.joint_encoder.features.absent)


def test_surrogates_follow_without_disturbing(make_model, make_batch, training):
    def gradient(**options):
        model = make_model("jmvae", **options)
        out = model.loss(model.prepare(make_batch()), training())
        out.terms["surrogates"].value.sum().backward()
        assert bool(model.encoders["a"].head.weight.grad.any())
        return model.joint_encoder.head.weight.grad

    assert bool(gradient().any())
    assert gradient(detach_joint=True) is None


def test_only_complete_rows(make_model, make_batch, training):
    model, batch = make_model("jmvae", incomplete="complete_only"), make_batch()
    prepared, step = model.prepare(batch), training()
    out = model.loss(prepared, step)
    complete = batch.present.all(dim=1)
    assert 0 < int(complete.sum()) < batch.size
    usual = make_model("jmvae").loss(prepared, step)
    for name, term in out.terms.items():
        assert torch.equal(term.weight, complete.double())
        torch.testing.assert_close(term.value[complete], usual.terms[name].value[complete])
    none = model.loss(model.prepare(batch.restrict({"a", "b"})), step)
    sum((t.weight * t.value).sum() for t in none.terms.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert not any(bool(g.any()) for g in gradients)


def test_surrogates_in_place_of_the_joint_encoder(make_model, make_batch, training):
    model = make_model("jmvae", incomplete="surrogate_poe", beta_schedule=10)
    batch = make_batch()
    prepared, complete = model.prepare(batch), batch.present.all(dim=1)
    early = model.loss(prepared, training(number=5))
    assert torch.equal(early.terms["kl"].weight.bool(), complete)
    step = training(number=10)
    out = model.loss(prepared, step)
    assert torch.equal(out.terms["kl"].weight.bool(), batch.something)
    q = model.posterior(prepared).parts["shared"]
    eps = step.noise.normal("shared", (1, batch.size, 2))[0]
    z = (q.mean + (0.5 * q.log_variance).exp() * eps).detach().numpy()
    for b in range(batch.size):
        names = present(batch, b)
        if names:
            recon = sum(log_px(model, batch, n, b, z[b]) for n in names)
            assert float(out.terms["reconstruction"].value[b].detach()) == pytest.approx(-recon)
        if not complete[b]:
            assert not out.terms["surrogates"].value[b].any()
    assert "clamped" in out.metrics


def test_modality_dropout_keeps_something(make_model, make_batch, training):
    model = make_model("jmvae", modality_dropout=0.6)
    batch = model.prepare(make_batch(400, holes=False))
    shown = model.shown(batch, training()).present
    sizes = shown.sum(dim=1)
    assert int(sizes.min()) == 1
    assert 0.3 < float(shown.double().mean()) < 0.6
    assert model.shown(batch, Step(noise=training().noise)) is batch
    holes = model.prepare(make_batch())
    assert not bool((model.shown(holes, training()).present & ~holes.present).any())
    out = model.loss(batch, training())
    every = make_model("jmvae").loss(batch, training())
    assert not torch.equal(out.terms["kl"].value, every.terms["kl"].value)


@pytest.mark.parametrize("rule", ["poe_corrected", "poe", "poe_with_prior"])
def test_posterior_of_subsets(make_model, make_batch, rule):
    model, batch = make_model("jmvae", subset_posterior=rule), make_batch()
    q = model.posterior(model.prepare(batch)).parts["shared"]
    for b in range(batch.size):
        names = present(batch, b)
        if len(names) == 3:
            mean, variance = joint(model, batch, names, b)
        elif not names:
            mean, variance = 0.0, 1.0
        else:
            own = [surrogate(model, batch, n, b) for n in names]
            precision = sum(1 / v for _, v in own)
            pull = sum(m / v for m, v in own)
            if rule == "poe_corrected":
                least = np.max([1 / v for _, v in own], axis=0)
                precision = np.maximum(precision - (len(own) - 1), least)
            elif rule == "poe_with_prior" and len(own) > 1:
                precision = precision + 1
            mean, variance = pull / precision, 1 / precision
        np.testing.assert_allclose(q.mean[b].detach(), mean + np.zeros(2), rtol=1e-9)
        np.testing.assert_allclose(q.variance[b].detach(), variance + np.zeros(2), rtol=1e-9)


def test_the_joint_encoder_may_encode_subsets(make_model, make_batch):
    model, batch = make_model("jmvae", subset_encoder="mask_aware"), make_batch()
    q = model.posterior(model.prepare(batch)).parts["shared"]
    for b in range(batch.size):
        names = present(batch, b)
        mean = joint(model, batch, names, b)[0] if names else np.zeros(2)
        np.testing.assert_allclose(q.mean[b].detach(), mean, rtol=1e-9)


def test_the_loss_is_a_bound(make_model, make_batch):
    model, batch = make_model("jmvae"), make_batch()
    prepared = model.prepare(batch)
    values = torch.stack(
        [
            -total(model.loss(prepared, Step(noise=RowNoise(s, batch.index, F64))))
            for s in range(100)
        ]
    )
    exact = model.log_likelihood(batch, n_samples=5000)
    error = values.std(dim=0) / 10.0 + exact.standard_error
    assert bool((values.mean(dim=0) <= exact.value + 4.5 * error + 1e-9).all())


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(9, 4)

    def forward(self, values):
        return self.layer(torch.cat([values[n] for n in "abc"], dim=1)).tanh()


class OwnMasked(Own):
    supports_mask = True

    def forward(self, values, present):
        return super().forward(values) + present.sum(dim=1, keepdim=True)


class TestOwnJointEncoder:
    def test_it_is_saved_and_passed_again(self, make_model, make_batch, tmp_path):
        model, batch = make_model("jmvae", networks={"joint_encoder": Own()}), make_batch()
        model.save(tmp_path / "m")
        assert "networks={'joint_encoder': network}" in (tmp_path / "m" / "README.md").read_text()
        again = mv.load_model(tmp_path / "m", networks={"joint_encoder": Own()})
        assert torch.equal(again.embed(batch), model.embed(batch))
        with pytest.raises(
            FileFormatError, match="network of role 'joint_encoder' is a network of"
        ):
            mv.load_model(tmp_path / "m")
        with pytest.raises(FileFormatError, match="own network was passed for 'critic'"):
            mv.load_model(tmp_path / "m", networks={"joint_encoder": Own(), "critic": Own()})

    def test_without_a_mask_rows_with_holes_have_the_surrogates(
        self, make_model, make_batch, training
    ):
        model = make_model("jmvae", networks={"joint_encoder": Own()})
        batch = make_batch()
        out = model.loss(model.prepare(batch), training())
        incomplete = ~batch.present.all(dim=1)
        assert not out.terms["surrogates"].value[incomplete].any()
        assert bool(out.terms["reconstruction"].value[incomplete & batch.something].all())

    def test_with_a_mask_it_sees_them(self, make_model, make_batch, training):
        model = make_model("jmvae", networks={"joint_encoder": OwnMasked()})
        batch = make_batch()
        out = model.loss(model.prepare(batch), training())
        assert bool(out.terms["surrogates"].value[batch.something].all())

    def test_own_encoders_are_copied(self, make_model, make_batch):
        batch = make_batch(8, holes=False)
        own = {"a": nn.Linear(3, 4).double()}
        model = mv.create_model(
            "jmvae", mv.IncompleteDataset(batch.values), encoders=own, dtype="float64"
        )
        names = [n for n, p in model.named_parameters() if p.shape == (4, 3)]
        assert len(names) == 2
        assert bool(model.embed(batch).isfinite().all())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"subset_encoder": "mask_aware"}, "subset_encoder: it needs a joint encoder that"),
            ({"modality_dropout": 0.1}, "modality_dropout: must be 0: it needs a joint encoder"),
        ],
    )
    def test_what_needs_a_mask(self, make_model, options, message):
        with pytest.raises(ConfigError, match=message):
            make_model("jmvae", networks={"joint_encoder": Own()}, **options)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"alpha": -1.0}, "alpha: must be >= 0, got -1.0"),
            ({"alphas": {"d": 1.0}}, "alphas.d: unknown modality; there is a, b, c"),
            ({"alphas": {"a": -1.0}}, "alphas.a: must be >= 0"),
            ({"anneal": "both"}, "anneal: must be one of 'all', 'prior'"),
            ({"incomplete": "drop"}, "incomplete: must be one of 'mask_aware'"),
            ({"subset_posterior": "moe"}, "subset_posterior: must be one of 'poe_corrected'"),
            ({"joint_encoder": "conv"}, "joint_encoder: network 'conv' needs"),
            ({"modality_dropout": 1.0}, "modality_dropout: must be between 0.0 and 0.99"),
            (
                {"networks": {"critic": nn.Linear(1, 1)}},
                "networks.critic: the model has no network",
            ),
            (
                {"networks": {"joint_encoder": Own}},
                "networks.joint_encoder: must be a torch.nn.Mod",
            ),
            (
                {"networks": {"joint_encoder": nn.Linear(3, 3)}},
                "networks.joint_encoder: the network fails",
            ),
        ],
    )
    def test_options(self, make_model, options, message):
        with pytest.raises(ConfigError, match=message):
            make_model("jmvae", **options)


def test_other_rows_do_not_matter(make_model, make_batch):
    model, batch = make_model("jmvae"), make_batch()
    changed = attrs.evolve(batch, values={n: x.clone() for n, x in batch.values.items()})
    for n, x in changed.values.items():
        x[~batch.column(n)] = float("nan")
    assert torch.equal(model.embed(batch), model.embed(changed))
