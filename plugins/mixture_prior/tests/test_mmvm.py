"""MMVM: its regulariser, its rule for incomplete data, and what it can do without a joint."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

import multivae_core as mv
from multivae_core.distributions import Normal
from multivae_core.errors import CapabilityError, ConfigError, DataError
from multivae_core.noise import Step

F64 = torch.float64


def total(out):
    return sum(term.value for term in out.terms.values())


def posteriors(model, batch):
    """Mean and log-variance of every modality, by its encoder alone."""
    found = {}
    for name in model.modalities:
        encoded = model.encoders[name](torch.where(batch.seen(name), batch.values[name], 0.0))
        mean, log_variance = encoded["shared"].detach().unbind(dim=1)
        found[name] = Normal(mean, log_variance)
    return found


def regulariser(model, batch, z, b, alpha):
    """R of one row, by its formula; z: modality -> ``(B, D)``."""
    q = posteriors(model, batch)
    here = [name for name in model.modalities if bool(batch.column(name)[b])]
    result = 0.0
    for m in here:
        own = q[m][b]
        law = [stats.norm(q[j].mean[b], q[j].variance[b].sqrt()) for j in here]
        result += alpha * float(own.kl())
        if model.config.prior_kl == "pairwise":
            result += (1 - alpha) / len(here) * sum(float(own.kl(q[j][b])) for j in here)
        else:
            point = z[m][b].numpy()
            mixed = special.logsumexp([each.logpdf(point).sum() for each in law])
            log_h = mixed - math.log(len(here))
            result += (1 - alpha) * (law[here.index(m)].logpdf(point).sum() - log_h)
    return result


def reconstruction(model, batch, z, b):
    found = 0.0
    for name in model.modalities:
        if bool(batch.column(name)[b]):
            mean = model.decoders[name](z[name][b][None, None]).mean[0, 0].detach()
            found += stats.norm.logpdf(batch.values[name][b], mean, 0.8).sum()
    return found


@pytest.mark.parametrize("prior_kl", ["pairwise", "mixture"])
@pytest.mark.parametrize("missing_norm", ["available", "total"])
def test_the_loss_is_its_formula(make_model, make_batch, training, prior_kl, missing_norm):
    options = {"prior_kl": prior_kl, "missing_norm": missing_norm}
    model = make_model("mmvm", alpha=0.3, beta=1.7, **options)
    batch, step = make_batch(7), training()
    found = total(model.loss(model.prepare(batch), step)).detach()
    q = posteriors(model, batch)
    z = {name: q[name].sample(1, step.noise, f"own:{name}")[0] for name in q}
    for b in range(7):
        count = int(batch.present[b].sum())
        alpha = max(0.3, 0.5) if count == 1 else 0.3
        factor = 3 / count if missing_norm == "total" and count else 1.0
        value = 1.7 * regulariser(model, batch, z, b, alpha) - reconstruction(model, batch, z, b)
        assert float(found[b]) == pytest.approx(factor * value, rel=1e-9, abs=1e-9)


def divergences(model, batch, number=0):
    step = Step(training=True, number=number, noise=mv.noise.TrainingNoise(0, number, dtype=F64))
    return model.loss(model.prepare(batch), step).metrics


def test_equal_posteriors_leave_the_part_of_the_prior_alone(make_model, make_batch):
    for kind in ("pairwise", "mixture"):
        model = make_model("mmvm", sizes={"a": 3, "b": 3}, prior_kl=kind)
        model.encoders["b"].load_state_dict(model.encoders["a"].state_dict())
        batch = make_batch(6, {"a": 3, "b": 3}, holes=False)
        batch.values["b"] = batch.values["a"].clone()
        found = divergences(model, batch)
        assert float(found["kl:mixture"].abs().max()) < 1e-12
        assert float(found["kl:prior"].min()) > 0.0


def test_alpha_1_is_a_vae_for_every_modality(make_model, make_batch, training):
    sizes = {"a": 3, "b": 2, "c": 4}
    model, batch = make_model("mmvm", alpha=1.0), make_batch(9)
    together = model.loss(model.prepare(batch), training())
    apart = torch.zeros(9, dtype=F64)
    for name in sizes:
        alone = make_model("mmvm", sizes={name: sizes[name]}, alpha=1.0)
        alone.encoders[name].load_state_dict(model.encoders[name].state_dict())
        alone.decoders[name].load_state_dict(model.decoders[name].state_dict())
        own = mv.Batch(values={name: batch.values[name]}, present=batch.column(name)[:, None])
        apart = apart + total(alone.loss(alone.prepare(own), training()))
    torch.testing.assert_close(total(together), apart)


def test_the_mixture_is_below_the_pairs_and_below_its_limit(make_model, make_batch):
    for scale in (1.0, 30.0):
        models = [make_model("mmvm", prior_kl=kind, n_samples=500)
                  for kind in ("pairwise", "mixture")]  # fmt: skip
        batch = make_batch(8)
        for model in models:
            with torch.no_grad():
                for encoder in model.encoders.each:
                    encoder.head.weight.mul_(scale)
        pairs, mixed = (divergences(model, batch)["kl:mixture"] for model in models)
        count = batch.present.sum(dim=1).clamp_min(1)
        assert bool((mixed <= pairs + 0.2).all())
        assert bool((mixed <= count * count.log() + 1e-9).all())
        if scale > 1:  # far apart: one is at its limit, the other is not
            assert float(pairs.max()) > 10 * float(mixed.max())


def test_the_order_of_the_modalities_does_not_matter(make_model, make_batch, quiet):
    sizes = {"a": 3, "b": 3}
    model, batch = make_model("mmvm", sizes=sizes), make_batch(8, sizes)
    other = make_model("mmvm", sizes=sizes)
    for part in ("encoders", "decoders"):
        for one, two in (("a", "b"), ("b", "a")):
            getattr(other, part)[one].load_state_dict(getattr(model, part)[two].state_dict())
    swapped = mv.Batch(
        values={"a": batch.values["b"], "b": batch.values["a"]}, present=batch.present.flip(1)
    )
    first, second = (m.loss(m.prepare(x), quiet()) for m, x in ((model, batch), (other, swapped)))
    torch.testing.assert_close(total(first), total(second))


@pytest.mark.parametrize(
    ("shape", "middle"),
    [
        ("linear", 0.55),
        ("cosine", 0.55),
        ("exp", 0.1 + 0.9 * (math.exp(-2.5) - math.exp(-5)) / (1 - math.exp(-5))),
    ],
)
def test_alpha_goes_by_steps(make_model, make_batch, training, shape, middle):
    model = make_model("mmvm", alpha=0.1, alpha_steps=10, alpha_shape=shape)
    batch = make_batch(5, holes=False)
    for number, expected in ((0, 1.0), (5, middle), (10, 0.1), (99, 0.1)):
        out = model.loss(model.prepare(batch), training(number))
        prior, others = out.metrics["kl:prior"], out.metrics["kl:mixture"]
        torch.testing.assert_close(
            out.terms["kl"].value.detach(), expected * prior + (1 - expected) * others
        )
    quiet = Step(training=False, number=0, noise=training().noise)
    out = model.loss(model.prepare(batch), quiet)
    value = 0.1 * out.metrics["kl:prior"] + 0.9 * out.metrics["kl:mixture"]
    torch.testing.assert_close(out.terms["kl"].value.detach(), value)


def test_a_row_of_one_modality_keeps_a_regulariser(make_model, make_batch, training):
    batch = make_batch(6, holes=False).restrict(("a",))
    for floor, share in ((0.5, 0.5), (0.0, 0.0)):
        model = make_model("mmvm", alpha_alone=floor)
        out = model.loss(model.prepare(batch), training())
        torch.testing.assert_close(out.terms["kl"].value.detach(), share * out.metrics["kl:prior"])
        assert bool((out.metrics["alone"] == 1).all())


def test_a_missing_modality_is_one_that_is_not_there(make_model, make_batch, training):
    model, batch = make_model("mmvm"), make_batch(8, holes=False)
    for given in (("a", "b"), ("c",)):
        hidden = batch.restrict(given)
        values = {n: torch.where(hidden.seen(n), v, math.nan) for n, v in hidden.values.items()}
        hidden = mv.Batch(values=values, present=hidden.present)
        without = mv.Batch(
            values={n: batch.values[n] for n in given},
            present=torch.ones(8, len(given), dtype=torch.bool),
        )
        first = total(model.loss(model.prepare(hidden), training()))
        assert torch.equal(first, total(model.loss(model.prepare(without), training())))


@pytest.mark.parametrize("encode_with", ["mixture", "product"])
def test_what_is_seen_has_its_own_latent_and_the_rest_one_together(
    make_model, make_batch, encode_with
):
    model, batch = make_model("mmvm", encode_with=encode_with), make_batch(9)
    q = posteriors(model, batch)
    mean, drawn = model.encode(batch), model.encode(batch, n_samples=400)
    for b in range(9):
        here = [name for name in model.modalities if bool(batch.column(name)[b])]
        means = torch.stack([q[n].mean[b] for n in here] or [torch.zeros(2, dtype=F64)])
        weights = torch.ones_like(means)
        if encode_with == "product" and here:
            weights = torch.stack([1 / q[n].variance[b] for n in here])
        expected = (weights * means).sum(dim=0) / weights.sum(dim=0)
        torch.testing.assert_close(mean["shared"][b], expected)
        for name in model.modalities:
            if name in here:
                torch.testing.assert_close(mean[f"own:{name}"][b], q[name].mean[b])
                own = drawn[f"own:{name}"][:, b]
                torch.testing.assert_close(
                    own.std(dim=0), q[name].variance[b].sqrt(), rtol=0.2, atol=0
                )
            else:
                assert torch.equal(drawn[f"own:{name}"][:, b], drawn["shared"][:, b])


def test_predictions_decode_own_latents(make_model, make_batch):
    model, batch = make_model("mmvm"), make_batch(5, holes=False).restrict(("a", "b"))
    code = model.encode(batch)
    decoded = model.decode(code)
    own = model.decode(dict.fromkeys(code, code["own:a"]))
    torch.testing.assert_close(decoded["a"].mean, own["a"].mean)
    cross = model.decode(dict.fromkeys(code, code["shared"]))
    torch.testing.assert_close(decoded["c"].mean, cross["c"].mean)
    assert model.impute(batch, n_samples=5).filled["c"].isfinite().all()


def test_generation_needs_a_prior_that_was_trained(make_model):
    with pytest.raises(CapabilityError, match="with alpha=0 no prior was trained; train with"):
        make_model("mmvm").generate(3)
    rows = make_model("mmvm", alpha=0.1, prior={"type": "gmm", "n_components": 2}).generate(3)
    assert all(value.isfinite().all() for value in rows.values())


def test_there_is_no_joint_likelihood(make_model, make_batch):
    model, batch = make_model("mmvm", alpha=1.0), make_batch()
    for verb in (model.log_likelihood, model.elbo):
        with pytest.raises(CapabilityError, match="made of the posteriors of the row at hand"):
            verb(batch)
    with pytest.raises(CapabilityError, match="see `predictive_log_likelihood`"):
        model.conditional_log_likelihood(batch, ("a",), ("b",))


def test_the_predictive_likelihood_is_an_integral(make_model, make_batch):
    sizes = {"a": 3, "b": 2}
    model = make_model("mmvm", sizes=sizes, latent_dim=1)
    batch = make_batch(5, sizes, holes=False)
    grid = torch.linspace(-12, 12, 4001, dtype=F64)[:, None, None]
    q = posteriors(model, batch)["a"]
    mean = model.decoders["b"](grid).mean[:, 0].detach().numpy()
    found = model.predictive_log_likelihood(batch, ("a",), ("b",), n_samples=4000)
    for b in range(5):
        density = stats.norm.pdf(grid[:, 0, 0], float(q.mean[b]), float(q.variance[b].sqrt()))
        log_p = stats.norm.logpdf(batch.values["b"][b].numpy(), mean, 0.8).sum(axis=-1)
        exact = math.log(np.sum(density * np.exp(log_p)) * 24 / 4000)
        assert abs(float(found.value[b]) - exact) < 4 * float(found.standard_error[b]) + 1e-4


@pytest.mark.parametrize(
    ("given", "targets"), [(("a",), ("a",)), (("a",), ()), (("x",), ("a",)), (("a",), ("x",))]
)
def test_a_wrong_split_is_refused(make_model, make_batch, given, targets):
    with pytest.raises(DataError, match="predictive_log_likelihood"):
        make_model("mmvm").predictive_log_likelihood(make_batch(), given, targets)
    with pytest.raises(DataError, match="n_samples must be at least 1"):
        make_model("mmvm").predictive_log_likelihood(make_batch(), ("a",), ("b",), n_samples=0)


def test_log_variances_are_limited(make_model, make_batch):
    model, batch = make_model("mmvm", log_variance_limit=2.0), make_batch(4, holes=False)
    with torch.no_grad():
        model.encoders["a"].head.bias.fill_(-50.0)
    views = model.posterior(model.prepare(batch)).views
    assert torch.equal(views["a"].log_variance, torch.full((4, 2), -2.0, dtype=F64))


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("alpha", 1.5, "between 0.0 and 1.0"),
        ("prior_kl", "jsd", "one of 'pairwise', 'mixture'"),
        ("encode_with", "mean", "one of 'mixture', 'product'"),
        ("alpha_steps", -1, ">= 0"),
    ],
)
def test_options_are_checked(make_model, option, value, text):
    with pytest.raises(ConfigError, match=text):
        make_model("mmvm", **{option: value})
