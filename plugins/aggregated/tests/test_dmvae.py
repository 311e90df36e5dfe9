"""DMVAE against its formulas, one row and source at a time.

Likelihoods against the linear-Gaussian truth are in integration_tests/test_oracle.py.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from multivae_core.errors import ConfigError
from multivae_core.noise import ScriptedNoise, Step

F64 = torch.float64
DIMS = {"a": 1, "b": 3}


def total(out):
    return sum(term.value for term in out.terms.values())


def gaussian_kl(mean, variance):
    return 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum()


def brackets(model, batch, step, b, beta=1.0, style=None, weights=None):
    """ELBO of every source of one row, the joint one first."""
    names, size = model.modalities, model.config.latent_dim
    eps = step.noise.normal("shared", (len(names) + 1, batch.size, size))[:, b].numpy()
    here = [name for name in names if bool(batch.column(name)[b])]
    precision, pull, sources, private = np.ones(size), np.zeros(size), {}, {}
    kl_private = 0.0
    for name in here:
        encoded = model.encoders[name](batch.values[name][b : b + 1])
        mean, raw = encoded["shared"][0].detach().numpy()
        sources[names.index(name) + 1] = mean, np.exp(raw)
        precision = precision + np.exp(-raw)
        pull = pull + mean * np.exp(-raw)
        if name in DIMS:
            mean, raw = encoded["private", name][0].detach().numpy()
            noise = step.noise.normal(("private", name), (1, batch.size, DIMS[name]))[0, b]
            private[name] = mean + np.exp(raw / 2) * noise.numpy()
            kl_private += (style or {}).get(name, 1.0) * gaussian_kl(mean, np.exp(raw))
    sources[0] = pull / precision, 1 / precision
    found = {}
    for c, (mean, variance) in sources.items():
        z = mean + np.sqrt(variance) * eps[c]
        value = -beta * gaussian_kl(mean, variance) - kl_private
        for name in here:
            latent = torch.as_tensor(np.concatenate([z, private.get(name, [])]))
            decoded = model.decoders[name](latent[None, None]).mean[0, 0].detach().numpy()
            score = stats.norm.logpdf(batch.values[name][b], decoded, 0.8).sum()
            value += (weights or {}).get(name, 1.0) * score
        found[c] = value
    return found


def check(model, batch, step, own=None, gamma=(1.0, 1.0, 1.0, 1.0), mean=False):
    """Every term of every row is its bracket; ``own`` gives a row's options of `brackets`."""
    out = model.loss(model.prepare(batch), step)
    found = torch.stack([term.value for term in out.terms.values()])
    assert list(out.terms) == ["elbo", *(f"elbo:{name}" for name in model.modalities)]
    expected = torch.zeros(4, batch.size, dtype=F64)
    for b in range(batch.size):
        if bool(batch.something[b]):
            each = brackets(model, batch, step, b, **(own(b) if own else {}))
            scale = sum(gamma[c] for c in each) if mean else 1.0
            for c, value in each.items():
                expected[c, b] = -gamma[c] * value / scale
    torch.testing.assert_close(found.detach(), expected)


@pytest.fixture
def dmvae(make_model):
    def make(**options):
        return make_model("dmvae", **{"private_dims": DIMS} | options)

    return make


def test_the_loss_is_the_formulas(dmvae, make_batch, training):
    check(dmvae(), make_batch(), training())


def test_weights_and_betas_change_training_alone(dmvae, make_batch, training):
    weights, style = {"a": 3.0, "b": 0.5}, {"a": 0.0, "b": 2.0}
    own = {name: {"weight": weight} for name, weight in weights.items()}
    model = dmvae(modalities=own, beta=4.0, style_betas=style)
    batch, step = make_batch(), training()
    options = {"beta": 4.0, "style": style, "weights": weights}
    check(model, batch, step, lambda b: options)
    check(model, batch, Step(noise=step.noise))


@pytest.mark.parametrize("mean", [False, True])
def test_sources_have_weights(dmvae, make_batch, training, mean):
    model = dmvae(
        joint_weight=0.5, source_weights={"b": 0.0, "c": 3.0},
        term_reduction="mean" if mean else "sum",
    )  # fmt: skip
    check(model, make_batch(), training(), gamma=(0.5, 1.0, 0.0, 3.0), mean=mean)


def test_the_official_count_is_one_divergence_per_target(dmvae, make_batch, training):
    model, batch, step = dmvae(kl_count="official", beta=0.7), make_batch(), training()
    check(model, batch, step, lambda b: {"beta": 0.7 * int(batch.present[b].sum())})
    check(model, batch, Step(noise=step.noise))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_every_choice_of_sources_once_is_the_whole(dmvae, make_batch, quiet, n, reduction):
    batch = make_batch()
    model, whole = (dmvae(n_sources=k, term_reduction=reduction) for k in (n, None))
    prepared, values = model.prepare(batch), []
    for order in itertools.permutations((0.1, 0.3, 0.5, 0.9)):
        noise = ScriptedNoise(quiet().noise, {"sources": torch.tensor(order)})
        out = model.loss(prepared, Step(training=True, noise=noise))
        values.append(torch.stack([term.value for term in out.terms.values()]))
        assert int((values[-1] != 0).sum(dim=0).max()) == n
    expected = whole.loss(prepared, quiet())
    expected = torch.stack([term.value for term in expected.terms.values()])
    torch.testing.assert_close(torch.stack(values).mean(dim=0), expected)


def test_more_sources_than_there_are_are_all(dmvae, make_batch, training):
    batch, step = make_batch(), training()
    check(dmvae(n_sources=9), batch, step)


class TestAcceptance:
    def test_one_modality_has_two_elbos(self, make_model, make_batch, training):
        sizes = {"a": 3}
        model = make_model("dmvae", sizes=sizes, private_dims={"a": 1})
        batch, step = make_batch(5, sizes, holes=False), training()
        found = total(model.loss(model.prepare(batch), step)).detach()
        for b in range(5):
            each = brackets(model, batch, step, b)
            assert len(each) == 2
            assert float(found[b]) == pytest.approx(-sum(each.values()))
            assert each[0] != pytest.approx(each[1])  # with the prior expert, and without

    def test_the_joint_source_alone_is_mopoe_with_the_full_set(
        self, dmvae, make_model, make_batch, quiet
    ):
        model = dmvae(joint_weight=1.0, source_weights=dict.fromkeys("abc", 0.0))
        other = make_model("mopoe", private_dims=DIMS, subsets=[["a", "b", "c"]])
        other.load_state_dict(model.state_dict(), strict=False)
        batch = model.prepare(make_batch(holes=False))
        torch.testing.assert_close(
            total(model.loss(batch, quiet())), total(other.loss(batch, quiet()))
        )

    def test_likelihoods_of_rows_add_up_for_any_chunk(self, dmvae, make_batch):
        model, batch = dmvae(), make_batch(6)
        whole = model.log_likelihood(batch, n_samples=30).value
        chunked = model.log_likelihood(batch, n_samples=30, latent_rows=7).value
        torch.testing.assert_close(chunked, whole, rtol=1e-10, atol=0)
        for b in range(6):
            own = model.log_likelihood(batch.take(torch.tensor([b])), n_samples=30).value
            torch.testing.assert_close(own, whole[b : b + 1], rtol=1e-10, atol=0)

    def test_what_is_not_seen_is_not_encoded(self, dmvae, make_batch):
        model, batch = dmvae(), make_batch(holes=False).restrict({"a", "c"})
        before = model.predict(batch, n_samples=4)
        with torch.no_grad():
            for parameter in model.encoders["b"].parameters():
                parameter.fill_(torch.nan)
        after = model.predict(batch, n_samples=4)
        assert all(torch.equal(after[name], before[name]) for name in "abc")
        q = model.posterior(model.prepare(batch)).parts["private", "b"]
        assert not q.mean.any()
        assert not q.log_variance.any()

    def test_the_mean_of_the_rows_is_the_loss_of_the_batch(self, dmvae, make_batch, quiet):
        model, batch = dmvae(), make_batch(holes=False)
        whole = total(model.loss(model.prepare(batch), quiet()))
        each = [
            total(model.loss(model.prepare(batch.take(torch.tensor([b]))), quiet()))
            for b in range(batch.size)
        ]
        torch.testing.assert_close(torch.cat(each), whole)


@pytest.mark.parametrize("rule", ["joint_only", "always"])
def test_encoding_of_one_and_of_several(dmvae, make_batch, rule):
    model, batch = dmvae(prior_expert=rule), make_batch()
    q = model.posterior(model.prepare(batch)).parts["shared"]
    assert {0, 1, 2} <= set(batch.present.sum(dim=1).tolist())
    for b in range(batch.size):
        here = [name for name in "abc" if bool(batch.column(name)[b])]
        heads = [model.encoders[n](batch.values[n][b : b + 1])["shared"][0] for n in here]
        prior = len(here) != 1 or rule == "always"
        precision = sum(((-h[1]).exp() for h in heads), start=torch.tensor(float(prior)))
        pull = sum((h[0] * (-h[1]).exp() for h in heads), start=torch.tensor(0.0))
        expected = (pull / precision).to(F64).expand(2)
        torch.testing.assert_close(q.mean[b], expected)
        torch.testing.assert_close(q.variance[b], (1 / precision).to(F64).expand(2))


def test_the_rule_of_the_joint_source_can_be_another(dmvae, make_batch, training):
    weighted = {"type": "weighted_product", "weighting": "fixed", "renormalise": False}
    model, plain = dmvae(fusion=weighted), dmvae()
    with torch.no_grad():
        model.fusion.raw_weights.fill_(0.25)
    batch = model.prepare(make_batch(holes=False))
    own, other = (m.loss(batch, training()).terms for m in (model, plain))
    assert not torch.allclose(own["elbo"].value, other["elbo"].value)
    assert all(torch.equal(own[n].value, other[n].value) for n in own if n != "elbo")
    with torch.no_grad():
        model.fusion.raw_weights.fill_(1.0)
    own = model.loss(batch, training()).terms
    torch.testing.assert_close(own["elbo"].value, other["elbo"].value)


def test_rows_with_nothing_cost_nothing(dmvae, make_batch, training):
    for options in ({}, {"term_reduction": "mean", "n_sources": 2, "kl_count": "official"}):
        model, batch = dmvae(**options), make_batch()
        out = model.loss(model.prepare(batch), training())
        assert not total(out)[~batch.something].any()
        total(out).sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_a_modality_may_be_called_shared(make_model, make_batch, training):
    sizes = {"shared": 3, "a": 2}
    model, batch = make_model("dmvae", sizes=sizes), make_batch(6, sizes)
    assert model.config.private_dims == {"shared": 4, "a": 4}
    total(model.loss(model.prepare(batch), training())).mean().backward()
    assert set(model.encode(batch)) == {"shared", ("private", "shared"), ("private", "a")}
    assert bool(model.log_likelihood(batch, n_samples=5).value.isfinite().all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"private_dims": {"d": 1}}, "private_dims.d: unknown modality; there is a, b, c"),
        ({"style_betas": {"c": 1.0}}, "style_betas.c: the modality has no private latent"),
        ({"source_weights": {"d": 1.0}}, "source_weights.d: unknown modality; there is a, b, c"),
        ({"source_weights": {"a": -1.0}}, "source_weights.a: must be >= 0, got -1.0"),
        (
            {"joint_weight": 0.0, "source_weights": dict.fromkeys("abc", 0.0)},
            "source_weights: must be above 0 for some source",
        ),
        ({"joint_weight": -1.0}, "joint_weight: must be >= 0, got -1.0"),
        ({"kl_count": "twice"}, "kl_count: must be one of 'per_source', 'official'"),
        ({"prior_expert": "never"}, "prior_expert: must be one of 'joint_only', 'always'"),
        ({"n_sources": 0}, "n_sources: must be > 0, got 0"),
        ({"fusion": "mixture"}, "fusion: must give one Gaussian per subset"),
    ],
)
def test_refusals(dmvae, options, message):
    with pytest.raises(ConfigError, match=message):
        dmvae(**options)
