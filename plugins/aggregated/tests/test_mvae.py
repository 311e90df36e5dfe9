"""MVAE against its formulas, one row and one subset at a time.

The linear-Gaussian acceptance test is in integration_tests/test_oracle.py.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

import multivae_core as mv
from multivae_core.errors import ConfigError
from multivae_core.noise import RowNoise, ScriptedNoise, Step, TrainingNoise

F64 = torch.float64


def total(out):
    return sum(term.value for term in out.terms.values())


def expert(model, batch, name, b):
    """Mean and precision of one expert of one row, by numpy."""
    raw = model.encoders[name](batch.values[name][b : b + 1])["shared"][0].detach().numpy()
    return raw[0], np.exp(-raw[1])


def product(model, batch, b, members, prior=True):
    precision, pull = float(prior), 0.0
    for name in members:
        mean, own = expert(model, batch, name, b)
        precision, pull = precision + own, pull + own * mean
    return pull / precision, 1.0 / precision


def elbo(model, batch, b, members, eps, beta=1.0, prior=True, weights=None):
    """ELBO of one row and one subset by the formula."""
    mean, variance = product(model, batch, b, members, prior)
    z = mean + np.sqrt(variance) * eps
    total = 0.0
    for name in members:
        location = model.decoders[name](torch.as_tensor(z)[None, None]).mean[0, 0].detach().numpy()
        x = batch.values[name][b].numpy()
        total += (weights or {}).get(name, 1.0) * stats.norm.logpdf(x, location, 0.8).sum()
    kl = 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum()
    return total - beta * kl


def present(batch, b, subset="abc"):
    return [name for name in subset if bool(batch.column(name)[b])]


def expected_terms(model, batch, subsets, noise, **options):
    """The terms of the loss, subset by subset, for subsets that every row shares."""
    eps = noise.normal("shared", (len(subsets), batch.size, 2)).numpy()
    values = np.zeros((len(subsets), batch.size))
    for b in range(batch.size):
        met = []
        for s, subset in enumerate(subsets):
            members = present(batch, b, subset)
            if members and (members not in met or options.get("count")):
                values[s, b] = elbo(
                    model,
                    batch,
                    b,
                    members,
                    eps[s, b],
                    **{k: v for k, v in options.items() if k != "count"},
                )
                met.append(members)
    return values


SUBSETS = ["abc", "a", "b", "c"]


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({}, {}),
        ({"duplicate_terms": "count"}, {"count": True}),
        ({"prior_expert": "never"}, {"prior": False}),
        ({"beta": 2.5}, {"beta": 2.5}),
        ({"beta": 2.5, "beta_schedule": 10}, {"beta": 0.75}),
    ],
)
def test_terms_are_the_formulas(make_model, make_batch, training, options, reference):
    model, batch = make_model("mvae", **options), make_batch()
    step = training(number=3)
    out = model.loss(model.prepare(batch), step)
    assert list(out.terms) == ["elbo", "elbo:a", "elbo:b", "elbo:c"]
    expected = expected_terms(model, batch, SUBSETS, step.noise, **reference)
    for term, value in zip(out.terms.values(), expected, strict=True):
        torch.testing.assert_close(-term.value.detach(), torch.as_tensor(value))
        assert term.weight is None


def test_without_subsampling_there_is_one_bound(make_model, make_batch, training):
    model, batch = make_model("mvae", subsampling=False), make_batch()
    step = training()
    out = model.loss(model.prepare(batch), step)
    assert list(out.terms) == ["elbo"]
    expected = expected_terms(model, batch, ["abc"], step.noise)[0]
    torch.testing.assert_close(-out.terms["elbo"].value.detach(), torch.as_tensor(expected))


def test_weights_of_modalities_count_in_training_alone(make_model, make_batch, training):
    weights = {"a": 3.0, "b": 0.0}
    model = make_model("mvae", modalities={n: {"weight": w} for n, w in weights.items()}, beta=4.0)
    batch, step = make_batch(), training()
    out = model.loss(model.prepare(batch), step)
    expected = expected_terms(model, batch, SUBSETS, step.noise, weights=weights, beta=4.0)
    torch.testing.assert_close(-total(out).detach(), torch.as_tensor(expected.sum(axis=0)))
    out = model.loss(model.prepare(batch), Step(noise=step.noise))
    expected = expected_terms(model, batch, SUBSETS, step.noise)
    torch.testing.assert_close(-total(out).detach(), torch.as_tensor(expected.sum(axis=0)))


def test_mean_of_terms(make_model, make_batch, training):
    batch, step = make_batch(), training()
    sums = make_model("mvae").loss(make_model("mvae").prepare(batch), step)
    model = make_model("mvae", term_reduction="mean")
    means = model.loss(model.prepare(batch), step)
    # a row with n > 1 modalities has n + 1 terms, one with one has one
    n = batch.present.sum(dim=1)
    terms = torch.where(n > 1, n + 1, 1)
    torch.testing.assert_close(total(means), total(sums) / terms)


@pytest.mark.parametrize("sampling", ["uniform", "size_uniform"])
@pytest.mark.parametrize("per_row", [False, True])
def test_random_subsets_are_terms_too(make_model, make_batch, training, sampling, per_row):
    model = make_model(
        "mvae",
        n_subsets=2,
        subset_sampling=sampling,
        per_row_subsets=per_row,
        duplicate_terms="count",
    )
    batch, step = make_batch(), training()
    prepared = model.prepare(batch)
    out = model.loss(prepared, step)
    assert list(out.terms)[4:] == ["elbo:random 0", "elbo:random 1"]
    subsets, _ = model._subsets(prepared, step)
    assert subsets.ndim == (3 if per_row else 2)
    eps = step.noise.normal("shared", (6, batch.size, 2)).numpy()
    for number in (0, 1):
        value = -out.terms[f"elbo:random {number}"].value.detach()
        for b in range(batch.size):
            chosen = subsets[4 + number, b] if per_row else subsets[4 + number]
            members = present(batch, b, [n for n, c in zip("abc", chosen, strict=True) if c])
            want = elbo(model, batch, b, members, eps[4 + number, b]) if members else 0.0
            assert float(value[b]) == pytest.approx(want)


@pytest.mark.parametrize("sampling", ["uniform", "size_uniform"])
def test_random_terms_are_right_on_average(make_model, make_batch, quiet, sampling):
    # 4 modalities; with latents at their locations the only chance is in the subset. z < 4.5
    sizes = {"a": 2, "b": 2, "c": 2, "d": 1}
    model = make_model(
        "mvae",
        sizes=sizes,
        n_subsets=2,
        subset_sampling=sampling,
        per_row_subsets=True,
        subsampling=False,
    )
    one = make_batch(1, sizes, holes=False)
    many = one.take(torch.zeros(3000, dtype=torch.long))
    out = model.loss(model.prepare(many), quiet())
    found = -(out.terms["elbo:random 0"].value + out.terms["elbo:random 1"].value).detach()
    by_size = {
        k: [elbo(model, one, 0, s, 0.0) for s in itertools.combinations("abcd", k)] for k in (2, 3)
    }
    if sampling == "uniform":
        mean = np.mean(by_size[2] + by_size[3])
        error = float(found.std()) / math.sqrt(3000)
        assert abs(float(found.mean()) - 2 * mean) < 4.5 * error
    else:
        # drawn with replacement: a subset drawn twice counts once
        first = -out.terms["elbo:random 0"].value.detach()
        mean = 0.5 * np.mean(by_size[2]) + 0.5 * np.mean(by_size[3])
        assert abs(float(first.mean()) - mean) < 4.5 * float(first.std()) / math.sqrt(3000)


def test_all_random_subsets_leave_nothing_to_chance(make_model, make_batch, quiet):
    model = make_model("mvae", n_subsets=3)
    batch = make_batch(holes=False)
    one = total(model.loss(model.prepare(batch), quiet(0)))
    two = total(model.loss(model.prepare(batch), quiet(1)))
    torch.testing.assert_close(one, two)


class TestAcceptance:
    def test_one_modality_is_a_vae_with_the_prior_as_an_expert(
        self, make_model, make_batch, training
    ):
        sizes = {"a": 3}
        model, batch = make_model("mvae", sizes=sizes), make_batch(6, sizes, holes=False)
        step = training()
        out = model.loss(model.prepare(batch), step)
        eps = step.noise.normal("shared", (2, 6, 2)).numpy()
        for b in range(6):
            raw = model.encoders["a"](batch.values["a"][b : b + 1])["shared"][0].detach()
            q = torch.distributions.Normal(raw[0], (raw[1] / 2).exp())
            precision = 1 + 1 / q.variance
            r = torch.distributions.Normal(q.mean / q.variance / precision, precision.rsqrt())
            z = r.mean + r.stddev * torch.as_tensor(eps[0, b])
            px = model.decoders["a"](z[None, None]).log_prob(batch.values["a"][b])
            p = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
            kl = torch.distributions.kl_divergence(r, p).sum()
            assert float(total(out)[b].detach()) == pytest.approx(float((kl - px).detach()))

    def test_a_lone_modalitys_joint_term_is_its_own_term(self, make_model, make_batch, quiet):
        model, batch = make_model("mvae", duplicate_terms="count"), make_batch()
        lone = batch.restrict({"b"})
        out = model.loss(model.prepare(lone), quiet()).terms
        torch.testing.assert_close(out["elbo"].value, out["elbo:b"].value)
        once = make_model("mvae")
        out = once.loss(once.prepare(lone), quiet()).terms
        assert bool(out["elbo"].value[lone.something].all())
        assert not out["elbo:b"].value.any()

    def test_posterior_is_an_explicit_product(self, make_model, make_batch):
        model, batch = make_model("mvae"), make_batch()
        own = model.posterior(model.prepare(batch)).parts["shared"]
        for b in range(batch.size):
            mean, variance = product(model, batch, b, present(batch, b))
            torch.testing.assert_close(
                own.mean[b].detach(), torch.as_tensor(mean) * torch.ones(2, dtype=F64)
            )
            torch.testing.assert_close(
                own.variance[b].detach(), torch.as_tensor(variance) * torch.ones(2, dtype=F64)
            )

    def test_beta_is_continuous(self, make_model, training):
        model = make_model("mvae", beta=2.0, beta_schedule=40)
        values = [model.beta(training(number=k)) for k in range(60)]
        assert values[0] == 0.0
        assert values[40:] == [2.0] * 20
        assert max(abs(b - a) for a, b in zip(values, values[1:], strict=False)) <= 2 / 40 + 1e-12

    def test_gradients_of_a_rare_modality_scale_with_its_availability(
        self, make_model, make_batch, quiet
    ):
        # the same row 20 times; its modality a is seen in all, half, or a tenth of them
        model = make_model("mvae")
        one = make_batch(1, holes=False)
        norms = []
        for rows in (20, 10, 2):
            batch = one.take(torch.zeros(20, dtype=torch.long))
            mask = torch.ones(20, 3, dtype=torch.bool)
            mask[rows:, 0] = False
            model.zero_grad()
            loss = model.loss(model.prepare(batch.restrict(mask)), quiet())
            loss.terms["elbo:a"].value.mean().backward()
            grad = torch.cat([p.grad.flatten() for p in model.encoders["a"].parameters()])
            norms.append(float(grad.norm()))
        assert norms[1] / norms[0] == pytest.approx(0.5)
        assert norms[2] / norms[0] == pytest.approx(0.1)


@pytest.mark.parametrize("rule", ["always", "never", "largest", "full_set"])
def test_rows_with_nothing_have_the_prior_and_no_loss(make_model, make_batch, training, rule):
    model, batch = make_model("mvae", prior_expert=rule), make_batch()
    own = model.posterior(model.prepare(batch)).parts["shared"]
    assert not own.mean[1].any()
    assert not own.log_variance[1].any()
    assert not total(model.loss(model.prepare(batch), training()))[1].any()


def test_a_weighted_product_may_fuse(make_model, make_batch, training):
    model = make_model("mvae", fusion="weighted_product", prior_expert="never")
    batch = model.prepare(make_batch())
    total(model.loss(batch, training())).sum().backward()
    assert bool(model.fusion.raw_weights.grad.any())
    lone = make_batch(holes=False).restrict({"b"})
    own = model.posterior(model.prepare(lone)).parts["shared"]
    raw = model.run_encoders(model.prepare(lone))["shared"][1]
    torch.testing.assert_close(own.mean, raw[:, 0])
    torch.testing.assert_close(own.log_variance, raw[:, 1])


def test_a_learned_prior(make_model, make_batch, training):
    model = make_model("mvae", prior={"type": "scaled"})
    batch = model.prepare(make_batch())
    total(model.loss(batch, training())).sum().backward()
    assert bool(model.shared_prior.raw_scale.grad.any())


def test_the_loss_is_a_bound_where_there_is_one_term(make_model, make_batch):
    model, batch = make_model("mvae", subsampling=False), make_batch(holes=False)
    prepared = model.prepare(batch)
    values = torch.stack(
        [
            -total(model.loss(prepared, Step(noise=RowNoise(s, batch.index, F64)))).detach()
            for s in range(200)
        ]
    )
    exact = model.log_likelihood(batch, n_samples=5000)
    error = values.std(dim=0) / math.sqrt(200)
    assert bool((values.mean(dim=0) - 4.5 * error <= exact.value + 0.01).all())
    bound = model.elbo(batch, n_samples=5000)
    gap = (values.mean(dim=0) - bound.value).abs()
    assert bool((gap < 4.5 * (error**2 + bound.standard_error**2).sqrt()).all())


def test_metrics_are_detached(make_model, make_batch, training):
    model = make_model("mvae")
    out = model.loss(model.prepare(make_batch()), training())
    assert set(out.metrics) == {"kl", "reconstruction"}
    assert not any(value.requires_grad for value in out.metrics.values())


def test_processes_share_the_draw_of_subsets(make_model, make_batch):
    model = make_model("mvae", n_subsets=1)
    batch = model.prepare(make_batch())
    whole = model._subsets(batch, Step(training=True, noise=TrainingNoise(0, 0)))[0]
    rows = torch.tensor([4, 5])
    part = Step(training=True, noise=TrainingNoise(0, 0, total=12, rows=rows))
    assert torch.equal(model._subsets(batch.take(rows), part)[0], whole)


def test_subsets_can_be_written_down(make_model, make_batch, quiet):
    model = make_model("mvae", n_subsets=1)
    batch = model.prepare(make_batch())
    keys = torch.tensor([0.9, 0.1, 0.5])  # the proper subsets of three are ab, ac, bc
    noise = ScriptedNoise(quiet().noise, {"which": keys})
    subsets, _ = model._subsets(batch, Step(training=True, noise=noise))
    assert subsets[-1].tolist() == [True, False, True]


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n_subsets": -1}, "n_subsets: must be >= 0, got -1"),
            ({"n_subsets": 4}, "n_subsets: 3 modalities have 3 subsets of 2 to 2 modalities, got"),
            ({"n_subsets": 1.5}, "n_subsets: must be an integer, got 1.5"),
            ({"subset_sampling": "random"}, "subset_sampling: must be one of 'uniform', 'size_"),
            ({"duplicate_terms": "twice"}, "duplicate_terms: must be one of 'once', 'count'"),
            ({"term_reduction": "max"}, "term_reduction: must be one of 'sum', 'mean'"),
            ({"prior_expert": "maybe"}, "prior_expert: must be one of 'always', 'never'"),
            ({"fusion": "mixture"}, "fusion: must give one Gaussian per subset.*'product'"),
            ({"fusion": "produkt"}, "fusion: .*'produkt'.*product"),
            ({"beta": -1.0}, "beta: must be >= 0, got -1.0"),
            ({"latent_dim": 0}, "latent_dim: must be > 0, got 0"),
            ({"k": 1}, "k: unknown option; there is modalities, latent_dim"),
        ],
    )
    def test_options(self, make_model, options, message):
        with pytest.raises(ConfigError, match=message):
            make_model("mvae", **options)

    @pytest.mark.parametrize("sampling", ["uniform", "size_uniform"])
    def test_two_modalities_have_no_subset_in_between(self, make_model, sampling):
        with pytest.raises(ConfigError, match="n_subsets: 2 modalities have 0 subsets of 2 to 1"):
            make_model("mvae", sizes={"a": 2, "b": 2}, n_subsets=1, subset_sampling=sampling)

    def test_more_draws_than_subsets_are_fine_with_replacement(
        self, make_model, make_batch, training
    ):
        model = make_model("mvae", n_subsets=5, subset_sampling="size_uniform")
        assert len(model.loss(model.prepare(make_batch()), training()).terms) == 9


def test_listing_needs_no_model():
    assert mv.registry.models["mvae"].name == "mvae"
