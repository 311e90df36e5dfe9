"""CVAE against its formulas, and against the exact conditional of a linear-Gaussian truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import multivae_core as mv
from multivae_core.errors import CapabilityError, ConfigError
from multivae_core.noise import Step

F64 = torch.float64


def features(model, batch, names, b):
    own, parts = model.condition, []
    for place, name in enumerate(own.trunks):
        x = batch.values[name][b : b + 1]
        parts.append(own.trunks[name](x)[0] if name in names else own.absent[place])
    bits = torch.tensor([float(n in names) for n in own.trunks], dtype=F64)
    return torch.cat([*parts, bits])


@pytest.mark.parametrize("prior", ["standard", "learned"])
def test_terms_are_the_formulas(make_model, make_batch, training, prior):
    model = make_model("cvae", main="a", conditional_prior=prior, beta=2.0, hybrid=0.7)
    if prior == "learned":
        with torch.no_grad():
            model.learned_prior.head.weight.normal_(std=0.3)
    batch, step = make_batch(), training()
    prepared = model.prepare(batch)
    out = model.loss(prepared, step)
    eps = step.noise.normal("shared", (1, batch.size, 2))[0]
    other = step.noise.normal("prior", (1, batch.size, 2))[0]
    assert torch.equal(out.terms["kl"].weight, batch.column("a").double())
    for b in range(batch.size):
        if not batch.column("a")[b]:
            continue
        c = features(model, batch, [n for n in "bc" if bool(batch.column(n)[b])], b)
        y = model.encoder.features.parts[0].trunks["a"](batch.values["a"][b : b + 1])[0]
        raw = model.encoder.head(model.encoder.trunk(torch.cat([y, c])[None]))[0]
        mean, log_variance = raw.view(2, 2).detach()
        p_mean, p_log = torch.zeros(2, 2, dtype=F64)
        if prior == "learned":
            p_mean, p_log = (
                model.learned_prior.head(model.learned_prior.trunk(c[None]))[0].view(2, 2).detach()
            )

        def score(z, c=c, b=b):
            located = model.decoders["a"](torch.cat([z, c])[None, None]).mean[0, 0].detach()
            return stats.norm.logpdf(batch.values["a"][b].numpy(), located.numpy(), 0.8).sum()

        recon = 0.7 * score(mean + (log_variance / 2).exp() * eps[b])
        recon += 0.3 * score(p_mean + (p_log / 2).exp() * other[b])
        q = torch.distributions.Normal(mean, (log_variance / 2).exp())
        p = torch.distributions.Normal(p_mean, (p_log / 2).exp())
        kl = float(torch.distributions.kl_divergence(q, p).sum())
        assert float(out.terms["reconstruction"].value[b].detach()) == pytest.approx(-recon)
        assert float(out.terms["kl"].value[b].detach()) == pytest.approx(1.4 * kl)


def test_a_learned_prior_begins_as_the_standard_one(make_model, make_batch):
    model = make_model("cvae", main="a", conditional_prior="learned")
    prior = model._prior(model.prepare(make_batch()))
    assert not prior.mean.any()
    assert not prior.log_variance.any()


def test_conditions_are_withheld_from_all_networks_alike(make_model, make_batch, training):
    model = make_model("cvae", main="a", cond_dropout=0.5)
    batch, seen = model.prepare(make_batch(300, holes=False)), []
    for part in (model.encoder, model.condition):
        part.register_forward_pre_hook(lambda _, given: seen.append(given[0].present))
    model.loss(batch, training())
    shown = seen[0]
    assert len(seen) > 2
    assert all(torch.equal(shown, other) for other in seen if len(other) == len(shown))
    assert bool(shown[:, 0].all())
    assert 0.4 < float(shown[:, 1:].double().mean()) < 0.6
    assert not bool(shown[:, 1:].any(dim=1).all())  # nothing at all, too
    seen.clear()
    model.loss(batch, Step(noise=training().noise))
    assert all(bool(other.all()) for other in seen)


def test_some_divergence_is_free(make_model, make_batch, training):
    # the prior is N(0, 1) in two dimensions, the posterior N(m, 1): m^2 / 2 nats in each
    model, batch = make_model("cvae", main="a", free_bits=0.3, beta=2.0), make_batch(holes=False)
    with torch.no_grad():
        model.encoder.head.weight.zero_()
        model.encoder.head.bias.copy_(torch.tensor([0.2, 1.0, 0.0, 0.0]))
    out = model.loss(model.prepare(batch), training())
    torch.testing.assert_close(out.terms["kl"].value, torch.full((12,), 2 * 0.8, dtype=F64))
    out.terms["kl"].value.sum().backward()
    pull = model.encoder.head.bias.grad
    assert float(pull[0]) == 0.0
    assert float(pull[1]) == pytest.approx(12 * 2 * 1.0)
    plain = model.loss(model.prepare(batch), Step(noise=training().noise))
    assert float(plain.terms["kl"].value[0].detach()) == pytest.approx(0.02 + 0.5)


def test_log_variances_are_limited(make_model, make_batch):
    model = make_model("cvae", main="a", conditional_prior="learned", log_variance_limit=2.0)
    with torch.no_grad():
        model.encoder.head.bias[2:] = torch.tensor([-50.0, 50.0])
        model.learned_prior.head.bias[2:] = torch.tensor([50.0, -50.0])
    batch = model.prepare(make_batch(holes=False))
    q, p = model.posterior(batch).parts["shared"], model._prior(batch)
    assert q.log_variance[0].tolist() == [-2.0, 2.0]
    assert p.log_variance[0].tolist() == [2.0, -2.0]
    assert bool((q.kl(p) < 100).all())


def test_posterior_is_the_prior_without_the_main_modality(make_model, make_batch):
    model = make_model("cvae", main="a", conditional_prior="learned")
    with torch.no_grad():
        model.learned_prior.head.weight.normal_()
    batch = model.prepare(make_batch())
    q, p = model.posterior(batch).parts["shared"], model._prior(batch)
    without = ~batch.column("a")
    assert torch.equal(q.mean[without], p.mean[without])
    assert not torch.isclose(q.mean[~without], p.mean[~without]).any()


def linear_truth():
    rng = np.random.default_rng(3)
    w = {"a": rng.normal(size=3), "b": rng.normal(size=2), "c": rng.normal(size=4)}
    return w, 0.8**2


def exact(w, v, x, given):
    """log p(a | given) for x_m = w_m z + noise of variance v, z ~ N(0, 1)."""

    def joint(names):
        loading = np.concatenate([w[n] for n in names])
        values = np.concatenate([x[n].numpy() for n in names], axis=1)
        covariance = np.outer(loading, loading) + v * np.eye(len(loading))
        return stats.multivariate_normal.logpdf(values, cov=covariance)

    return joint(["a", *given]) - joint(given)


def test_conditional_likelihood_is_exact_within_its_error(make_batch):
    w, v = linear_truth()
    z = np.random.default_rng(0).normal(size=(200, 1))
    noise = np.random.default_rng(1)
    x = {
        n: torch.as_tensor(z * w[n] + noise.normal(size=(200, len(w[n]))) * v**0.5) for n in "abc"
    }
    linear, own = {"type": "mlp", "hidden": []}, {"type": "normal", "scale": v**0.5}
    part = {"encoder": linear, "decoder": linear, "likelihood": own, "standardise": False}
    model = mv.create_model(
        "cvae", mv.IncompleteDataset(x), main="a", latent_dim=1, dtype="float64",
        modalities=dict.fromkeys("abc", part), joint_encoder=linear, prior_network=linear,
        conditional_prior="learned",
    )  # fmt: skip
    precision = {n: w[n] @ w[n] / v for n in "abc"}
    prior, posterior = 1 + precision["b"] + precision["c"], 1 + sum(precision.values())
    with torch.no_grad():
        layers = (
            model.encoder.head,
            model.learned_prior.head,
            model.decoders["a"].network.layers[0],
        )
        for layer in layers:
            layer.weight.zero_()
            layer.bias.zero_()
        pulls = {n: torch.as_tensor(w[n] / v) for n in "abc"}
        model.learned_prior.head.weight[0, :6] = torch.cat([pulls["b"], pulls["c"]]) / prior
        model.learned_prior.head.bias[1] = -np.log(prior)
        model.encoder.head.weight[0, :9] = torch.cat([pulls[n] for n in "abc"]) / posterior
        model.encoder.head.bias[1] = np.log(1.2**2 / posterior)  # a wider proposal
        layers[2].weight[:, 0] = torch.as_tensor(w["a"])
    data = mv.IncompleteDataset(x)
    found = model.conditional_log_likelihood(data, ["b", "c"], ["a"], n_samples=1000)
    error = (found.value - torch.as_tensor(exact(w, v, x, ["b", "c"]))).abs()
    assert bool((error <= 4 * found.standard_error + 1e-9).all())
    assert float(found.effective_sample_size.min()) > 500
    predicted = model.predict(data.restrict({"b", "c"}), n_samples=2000)["a"]
    mean = sum(x[n] @ pulls[n] for n in "bc") / prior
    spread = np.abs(w["a"]) * prior**-0.5
    off = (predicted - mean[:, None] * torch.as_tensor(w["a"])).abs()
    assert bool((off <= 5 * torch.as_tensor(spread) / 2000**0.5).all())


class TestWhatItCannotDo:
    def test_verbs_say_why(self, make_model, make_batch):
        model, batch = make_model("cvae", main="a", conditions=["b"]), make_batch()
        with pytest.raises(CapabilityError, match="no generate: the conditions have no dens"):
            model.generate(3)
        for verb in (model.log_likelihood, model.elbo):
            with pytest.raises(
                CapabilityError, match="no joint_likelihood: it models one modality"
            ):
                verb(batch)
        with pytest.raises(CapabilityError, match="impute: CVAE conditions on 'b' and does not"):
            model.impute(batch, targets=("b",))
        with pytest.raises(CapabilityError, match="'b' cannot be a target"):
            model.conditional_log_likelihood(batch, (), ("b",))
        with pytest.raises(CapabilityError, match="'a' cannot be given"):
            model.conditional_log_likelihood(batch, ("a",), ("c",))

    def test_and_the_others_are_about_the_main_modality(self, make_model, make_batch):
        model, batch = make_model("cvae", main="a"), make_batch()
        assert set(model.impute(batch, n_samples=3).filled) == {"a"}
        assert set(model.predict(batch, n_samples=3)) == {"a"}
        z = model.encode(batch)
        assert set(model.decode(z, batch)) == {"a"}
        for given in ((), ("b",), ("b", "c")):
            found = model.conditional_log_likelihood(batch, given, ("a",), n_samples=5).value
            assert bool(found.isfinite().all())
            assert not found[~batch.column("a")].any()


def test_the_encoder_may_see_more(make_model, make_batch, training):
    model = make_model("cvae", main="a", conditions=["b"], encoder_inputs=["b", "c"])
    batch = make_batch(holes=False)
    one, two = model.encode(batch)["shared"], model.encode(batch.restrict({"a", "b"}))["shared"]
    assert not torch.isclose(one, two).any()
    given = [model.encode(batch.restrict(s))["shared"] for s in ({"b"}, {"b", "c"})]
    torch.testing.assert_close(*given)
    model.loss(model.prepare(batch), training()).terms["reconstruction"].value.sum().backward()
    assert all(p.grad is not None for p in model.encoders.parameters())


class Joined(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.names = names
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, values):
        return self.scale * torch.cat([values[n] for n in self.names], dim=1)


def test_own_networks_are_passed_again(make_model, make_batch, tmp_path):
    def own():
        return {
            "condition": Joined("bc"),
            "joint_encoder": Joined("abc"),
            "prior_network": nn.Linear(6, 3),
        }

    model = make_model("cvae", main="a", conditional_prior="learned", networks=own())
    assert not list(model.encoders.parameters())
    batch = make_batch()
    model.save(tmp_path / "m")
    again = mv.load_model(tmp_path / "m", networks=own())
    assert torch.equal(again.embed(batch), model.embed(batch))
    assert torch.equal(again.predict(batch)["a"], model.predict(batch)["a"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "main"),
        ({"main": "d"}, "main: unknown modality 'd'; there is a, b, c"),
        ({"main": "a", "conditions": ["a"]}, "conditions: 'a' is the main modality"),
        ({"main": "a", "conditions": ["d"]}, "conditions: unknown modality 'd'"),
        (
            {"main": "a", "encoder_inputs": ["b"]},
            "encoder_inputs: must have all conditions; add 'c'",
        ),
        ({"main": "a", "prior": "scaled"}, "prior: must be 'standard_normal'"),
        ({"main": "a", "free_bits": -1.0}, "free_bits: must be >= 0"),
        ({"main": "a", "log_variance_limit": 0.0}, "log_variance_limit: must be > 0"),
        ({"main": "a", "hybrid": 1.5}, "hybrid: must be between 0.0 and 1.0"),
    ],
)
def test_refusals(make_model, options, message):
    with pytest.raises(ConfigError, match=message):
        make_model("cvae", **options)


def test_one_modality_has_no_conditions(make_model):
    with pytest.raises(ConfigError, match="conditions: there are none"):
        make_model("cvae", sizes={"a": 3}, main="a")


def test_a_network_for_a_prior_that_is_not_learned(make_model):
    own = {"prior_network": torch.nn.Identity()}
    with pytest.raises(ConfigError, match="prior_network: needs conditional_prior='learned'"):
        make_model("cvae", main="a", networks=own)
