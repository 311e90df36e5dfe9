"""MoPoE against its formulas, one row and one subset at a time.

The linear-Gaussian acceptance test is in integration_tests/test_oracle.py.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from multivae_core.errors import ConfigError
from multivae_core.noise import RowNoise, ScriptedNoise, Step, TrainingNoise

F64 = torch.float64


def total(out):
    return sum(term.value for term in out.terms.values())


def present(batch, b):
    return [name for name in sorted(batch.names) if bool(batch.column(name)[b])]


def power_set(names):
    return [s for k in range(1, len(names) + 1) for s in itertools.combinations(names, k)]


def product(model, batch, b, members, prior):
    precision, pull = np.zeros(model.config.latent_dim) + float(prior), 0.0
    for name in members:
        value = batch.values[name][b : b + 1]
        mean, raw = model.encoders[name](value)["shared"][0].detach().numpy()
        precision, pull = precision + np.exp(-raw), pull + mean * np.exp(-raw)
    return pull / precision, 1.0 / precision


def joins(rule, subset, have, everything):
    return {
        "always": True,
        "never": False,
        "largest": set(subset) == set(have),
        "full_set": set(subset) == set(everything),
    }[rule]


def components(model, batch, b, subsets=None):
    """Mean and variance of every component of a row, by subset."""
    have, rule = present(batch, b), model.config.prior_expert
    usable = power_set(have)
    if subsets is not None:
        usable = [s for s in map(tuple, subsets) if set(s) <= set(have)]
        usable = usable or [s for s in (tuple(n for n in x if n in have) for x in subsets) if s]
    return [
        (s, *product(model, batch, b, s, joins(rule, s, have, model.modalities))) for s in usable
    ]


def kl(mean, variance):
    return 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum()


def reconstruction(model, batch, b, z, private=None, weights=None):
    value = 0.0
    for name in present(batch, b):
        own = [] if private is None or name not in private else private[name]
        latent = torch.as_tensor(np.concatenate([z, own]))[None, None]
        mean = model.decoders[name](latent).mean[0, 0].detach().numpy()
        score = stats.norm.logpdf(batch.values[name][b].numpy(), mean, 0.8).sum()
        value += (weights or {}).get(name, 1.0) * score
    return value


def quiet_bound(model, batch, b, beta=1.0, subsets=None, **options):
    """The bound of a row with every component decoded at its location."""
    parts = components(model, batch, b, subsets)
    if not parts:
        return 0.0
    rec = np.mean([reconstruction(model, batch, b, mean, **options) for _, mean, _ in parts])
    return rec - beta * np.mean([kl(mean, variance) for _, mean, variance in parts])


RULES = ["largest", "full_set", "always", "never"]
SUBSETS = [["a"], ["a", "b"], ["b", "c"]]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("subsets", [None, SUBSETS])
def test_all_components_give_the_formula(make_model, make_batch, quiet, rule, subsets):
    model = make_model(
        "mopoe", prior_expert=rule, n_components_per_step=9, subsets=subsets, beta=2.0
    )
    batch = make_batch()
    out = model.loss(model.prepare(batch), quiet())
    assert list(out.terms) == ["reconstruction", "kl"]
    expected = [quiet_bound(model, batch, b, 2.0, subsets) for b in range(batch.size)]
    torch.testing.assert_close(-total(out).detach(), torch.tensor(expected, dtype=F64))


@pytest.mark.parametrize("component", range(3))
def test_one_drawn_component_gives_the_formula(make_model, make_batch, training, component):
    # subsets in the model's order: bc, ab, a; the largest key is chosen
    model = make_model("mopoe", subsets=SUBSETS)
    assert model.subsets.tolist() == [
        [False, True, True],
        [True, False, False],
        [True, True, False],
    ]
    batch = make_batch(4, holes=False)
    keys = torch.eye(3, dtype=F64)[component] * 0.5 + 0.25
    noise = ScriptedNoise(training().noise, {"component": keys})
    out = model.loss(model.prepare(batch), Step(training=True, noise=noise))
    eps = noise.normal("shared", (1, 4, 2))[0].numpy()
    order = [("b", "c"), ("a",), ("a", "b")]
    for b in range(4):
        parts = {s: (mean, variance) for s, mean, variance in components(model, batch, b, SUBSETS)}
        mean, variance = parts[order[component]]
        z = mean + np.sqrt(variance) * eps[b]
        rec = -float(out.terms["reconstruction"].value[b].detach())
        assert rec == pytest.approx(reconstruction(model, batch, b, z))
        expected = np.mean([kl(*part) for part in parts.values()])
        assert float(out.terms["kl"].value[b].detach()) == pytest.approx(expected)


def test_private_latents(make_model, make_batch, training):
    model = make_model(
        "mopoe",
        private_dims={"a": 1, "c": 2},
        n_components_per_step=1,
        subsets=[["a"], ["b"], ["c"], ["a", "b", "c"]],
        beta=2.0,
        beta_style=0.5,
        style_betas={"c": 3.0},
    )
    batch, step = make_batch(), training()
    prepared = model.prepare(batch)
    out = model.loss(prepared, step)
    assert list(out.terms) == ["reconstruction", "kl", "kl_private"]
    encoded = model.run_encoders(prepared)
    style = {}
    for name, size in (("a", 1), ("c", 2)):
        raw = encoded["private", name].detach().numpy()
        assert raw.shape == (batch.size, 2, size)
        style[name] = np.array([kl(mean, np.exp(log_variance)) for mean, log_variance in raw])
        assert not style[name][~batch.column(name).numpy()].any()
    expected = 2.0 * 0.5 * (style["a"] + 3.0 * style["c"])
    torch.testing.assert_close(out.terms["kl_private"].value.detach(), torch.as_tensor(expected))
    other = make_model(
        "mopoe",
        private_dims={"a": 1, "c": 2},
        subsets=model.config.subsets,
        beta=2.0,
        beta_style=0.0,
    )
    torch.testing.assert_close(other.loss(prepared, step).terms["kl"].value, out.terms["kl"].value)
    assert torch.equal(out.metrics["kl"] * 2.0, out.terms["kl"].value.detach())
    evaluated = model.loss(prepared, Step(noise=step.noise))
    torch.testing.assert_close(
        evaluated.terms["kl_private"].value.detach(), torch.as_tensor(style["a"] + style["c"])
    )
    torch.testing.assert_close(evaluated.terms["kl"].value * 2.0, out.terms["kl"].value)


def test_reconstruction_with_private_latents(make_model, make_batch, training):
    model = make_model("mopoe", private_dims={"a": 1}, subsets=[["a", "b", "c"]])
    batch, step = make_batch(4, holes=False), training()
    prepared = model.prepare(batch)
    out = model.loss(prepared, step)
    encoded = model.run_encoders(prepared)["private", "a"].detach().numpy()
    shared = step.noise.normal("shared", (1, 4, 2))[0].numpy()
    own = step.noise.normal(("private", "a"), (1, 4, 1))[0].numpy()
    for b in range(4):
        ((_, mean, variance),) = components(model, batch, b, [["a", "b", "c"]])
        w = encoded[b, 0] + np.exp(encoded[b, 1] / 2) * own[b]
        z = mean + np.sqrt(variance) * shared[b]
        expected = reconstruction(model, batch, b, z, {"a": w})
        assert -float(out.terms["reconstruction"].value[b].detach()) == pytest.approx(expected)


def test_weights_and_schedules_count_in_training_alone(make_model, make_batch, quiet):
    weights = {"a": 3.0, "b": 0.0}
    model = make_model(
        "mopoe",
        modalities={n: {"weight": w} for n, w in weights.items()},
        beta=4.0,
        beta_schedule=10,
        n_components_per_step=7,
    )
    batch = make_batch()
    rows = range(batch.size)
    out = model.loss(model.prepare(batch), Step(training=True, number=5, noise=quiet().noise))
    expected = [quiet_bound(model, batch, b, 2.0, weights=weights) for b in rows]
    torch.testing.assert_close(-total(out).detach(), torch.tensor(expected, dtype=F64))
    out = model.loss(model.prepare(batch), Step(number=5, noise=quiet().noise))
    expected = [quiet_bound(model, batch, b) for b in rows]
    torch.testing.assert_close(-total(out).detach(), torch.tensor(expected, dtype=F64))


class TestSampling:
    @pytest.mark.parametrize("r", [1, 3])
    def test_drawn_components_are_right_on_average(self, make_model, make_batch, quiet, r):
        model = make_model("mopoe", n_components_per_step=r)
        one = make_batch()
        for b in (0, 3, 4):
            if not present(one, b):
                continue
            batch = one.take(torch.full((3000,), b))
            found = -total(model.loss(model.prepare(batch), quiet())).detach()
            error = float(found.std()) / math.sqrt(3000)
            assert abs(float(found.mean()) - quiet_bound(model, one, b)) < 4.5 * error + 1e-9

    def test_components_are_drawn_without_replacement(self, make_model, make_batch, training):
        model, batch = make_model("mopoe", n_components_per_step=3), make_batch()
        prepared = model.prepare(batch)
        mixture = model._mixture(model.run_encoders(prepared)["shared"], prepared, training())
        chosen, share = model._chosen(mixture.weights, training())
        torch.testing.assert_close(share.sum(dim=0), torch.ones(batch.size, dtype=F64))
        for b in range(batch.size):
            used = chosen[share[:, b] > 0, b].tolist()
            assert len(set(used)) == len(used)
            assert bool((mixture.weights[b, used] > 0).all())

    def test_more_components_than_there_are_leave_nothing_to_chance(
        self, make_model, make_batch, quiet
    ):
        model, batch = make_model("mopoe", n_components_per_step=7), make_batch()
        values = [total(model.loss(model.prepare(batch), quiet(s))) for s in (0, 1)]
        torch.testing.assert_close(values[0], values[1])

    @pytest.mark.parametrize("sampling", ["uniform", "size_uniform"])
    def test_drawn_subsets_are_right_on_average(self, make_model, make_batch, quiet, sampling):
        model = make_model("mopoe", n_subsets=2, subset_sampling=sampling)
        one = make_batch()
        batch = one.take(torch.zeros(4000, dtype=torch.long))
        found = -total(model.loss(model.prepare(batch), quiet())).detach()
        parts = components(model, one, 0)
        values = {
            s: reconstruction(model, one, 0, mean) - kl(mean, variance)
            for s, mean, variance in parts
        }
        if sampling == "uniform":
            expected = np.mean(list(values.values()))
        else:
            expected = np.mean(
                [np.mean([v for s, v in values.items() if len(s) == k]) for k in (1, 2, 3)]
            )
        error = float(found.std()) / math.sqrt(4000)
        assert abs(float(found.mean()) - expected) < 4.5 * error

    def test_evaluation_uses_every_subset(self, make_model, make_batch, quiet):
        batch = make_batch()
        one = make_model("mopoe", n_subsets=1, n_components_per_step=7)
        two = make_model("mopoe", n_components_per_step=7)
        prepared = one.prepare(batch)
        step = Step(noise=quiet().noise)
        torch.testing.assert_close(
            total(one.loss(prepared, step)), total(two.loss(prepared, step))
        )
        assert torch.equal(
            one.log_likelihood(batch, n_samples=20).value,
            two.log_likelihood(batch, n_samples=20).value,
        )

    def test_many_modalities(self, make_model, make_batch, training):
        sizes = {f"m{i:02}": 1 for i in range(14)}
        model = make_model("mopoe", sizes=sizes, n_subsets=5)
        assert len(model.subsets) <= 1023
        batch = make_batch(6, sizes)
        total(model.loss(model.prepare(batch), training())).sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
        product = make_model("mopoe", sizes=sizes, n_subsets=5, proposal="product")
        one = model.log_likelihood(batch, n_samples=2000)
        two = product.log_likelihood(batch, n_samples=2000)
        error = (one.standard_error**2 + two.standard_error**2).sqrt()
        assert bool(((one.value - two.value).abs() < 4.5 * error + 1e-9).all())


class TestAcceptance:
    def test_single_subsets_are_a_mixture_of_experts(self, make_model, make_batch, quiet):
        singles = [["a"], ["b"], ["c"]]
        model = make_model("mopoe", subsets=singles, prior_expert="never", n_components_per_step=3)
        batch = make_batch()
        found = -total(model.loss(model.prepare(batch), quiet())).detach()
        for b in range(batch.size):
            parts = []
            for name in present(batch, b):
                value = batch.values[name][b : b + 1]
                mean, raw = model.encoders[name](value)["shared"][0].detach().numpy()
                parts.append(reconstruction(model, batch, b, mean) - kl(mean, np.exp(raw)))
            assert float(found[b]) == pytest.approx(np.mean(parts) if parts else 0.0)

    def test_the_full_subset_alone_is_mvae_without_subsampling(
        self, make_model, make_batch, training
    ):
        mopoe = make_model("mopoe", subsets=[["a", "b", "c"]])
        mvae = make_model("mvae", subsampling=False)
        for name, parameter in mvae.named_parameters():
            assert torch.equal(parameter, mopoe.get_parameter(name))
        batch, step = make_batch(), training()
        one = total(mopoe.loss(mopoe.prepare(batch), step))
        two = total(mvae.loss(mvae.prepare(batch), step))
        torch.testing.assert_close(one, two)

    def test_components_are_explicit_products(self, make_model, make_batch, training):
        model, batch = make_model("mopoe"), make_batch()
        prepared = model.prepare(batch)
        mixture = model._mixture(model.run_encoders(prepared)["shared"], prepared, None)
        for b in range(batch.size):
            usable = mixture.weights[b] > 0
            parts = components(model, batch, b)
            if not parts:
                continue
            assert int(usable.sum()) == len(parts)
            found = torch.cat(
                [mixture.components.mean[:, b], mixture.components.variance[:, b]], dim=1
            )[usable].detach()
            expected = torch.tensor(np.array([np.concatenate([m, v]) for _, m, v in parts]))
            torch.testing.assert_close(
                found[found[:, 0].argsort()], expected[expected[:, 0].argsort()]
            )

    @pytest.mark.parametrize("rule", RULES)
    def test_a_lone_modality_is_a_beta_vae(self, make_model, make_batch, training, rule):
        model = make_model("mopoe", prior_expert=rule, beta=3.0)
        batch, step = make_batch(5, holes=False).restrict({"b"}), training()
        found = -total(model.loss(model.prepare(batch), step)).detach()
        eps = step.noise.normal("shared", (1, 5, 2))[0].numpy()
        for b in range(5):
            mean, variance = product(model, batch, b, ["b"], rule in ("largest", "always"))
            z = mean + np.sqrt(variance) * eps[b]
            expected = reconstruction(model, batch, b, z) - 3.0 * kl(mean, variance)
            assert float(found[b]) == pytest.approx(expected)

    def test_components_are_uniform_whatever_the_row_and_the_batch(self, make_model, make_batch):
        # 5 rows and 13 rows: a split of the batch would give components unequal shares
        model = make_model("mopoe")
        for rows in (5, 13):
            batch = model.prepare(make_batch(rows))
            weights = model._mixture(model.run_encoders(batch)["shared"], batch, None).weights
            counts = np.zeros((rows, 7))
            for number in range(1500):
                step = Step(training=True, noise=TrainingNoise(0, number, dtype=F64))
                chosen, _ = model._chosen(weights, step)
                counts[np.arange(rows), chosen[0].numpy()] += 1
            for b in range(rows):
                usable = weights[b].detach().numpy() > 0
                assert not counts[b, ~usable].any()
                assert usable.sum() == 1 or stats.chisquare(counts[b, usable]).pvalue > 1e-4

    @pytest.mark.parametrize("options", [{}, {"proposal": "product"}, {"subsets": [["a"], ["b"]]}])
    def test_likelihoods_agree_with_quadrature(self, make_model, make_batch, options):
        sizes = {"a": 1, "b": 2}
        model = make_model("mopoe", sizes=sizes, latent_dim=1, **options)
        with torch.no_grad():
            for place, name in enumerate("ab"):
                head = model.encoders[name].head
                head.weight.mul_(0.2)
                head.bias.copy_(torch.tensor([(-1.5, 1.5)[place], 0.5]))
        batch = make_batch(6, sizes)
        estimate = model.log_likelihood(batch, n_samples=5000)
        grid = np.linspace(-10, 10, 4001)
        for b in range(6):
            joint = stats.norm.logpdf(grid)
            for name in present(batch, b):
                z = torch.as_tensor(grid).view(1, -1, 1)
                mean = model.decoders[name](z).mean[0].detach().numpy()
                joint += stats.norm.logpdf(batch.values[name][b].numpy(), mean, 0.8).sum(-1)
            exact = special.logsumexp(joint) + math.log(grid[1] - grid[0])
            error = abs(float(estimate.value[b]) - exact)
            assert error <= 4.5 * float(estimate.standard_error[b]) + 1e-6
        assert float(estimate.standard_error.max()) < 0.1

    def test_names_with_underscores(self, make_model, make_batch, training):
        sizes = {"a": 2, "a_b": 2, "b": 2, "b_a": 1}
        model = make_model("mopoe", sizes=sizes, n_components_per_step=15)
        assert len(model.subsets) == 15
        batch = make_batch(5, sizes)
        total(model.loss(model.prepare(batch), training())).sum().backward()
        chosen = make_model("mopoe", sizes=sizes, subsets=[["a", "b"], ["a_b"]])
        assert chosen.subsets.sum(dim=1).tolist() == [1, 2]


class TestPosterior:
    def test_product_of_all_that_is_seen(self, make_model, make_batch):
        model, batch = make_model("mopoe"), make_batch()
        own = model.posterior(model.prepare(batch)).parts["shared"]
        for b in range(batch.size):
            if have := present(batch, b):
                mean, variance = product(model, batch, b, have, True)
                torch.testing.assert_close(own.mean[b].detach(), torch.as_tensor(mean))
                torch.testing.assert_close(own.variance[b].detach(), torch.as_tensor(variance))

    @pytest.mark.parametrize("which", ["encode_with", "proposal"])
    def test_mixture_over_subsets(self, make_model, make_batch, which):
        model, batch = make_model("mopoe", **{which: "mixture"}), make_batch()
        prepared = model.prepare(batch)
        own = model.posterior(prepared) if which == "encode_with" else model.proposal(prepared)
        z = torch.randn(3, batch.size, 2, dtype=F64)
        found = own.log_prob({"shared": z}).detach().numpy()
        for b in range(batch.size):
            parts = components(model, batch, b)
            if parts:
                each = [stats.norm.logpdf(z[:, b], m, np.sqrt(v)).sum(-1) for _, m, v in parts]
                expected = special.logsumexp(each, axis=0) - math.log(len(parts))
                np.testing.assert_allclose(found[:, b], expected)

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("kind", ["product", "mixture"])
    @pytest.mark.parametrize("subsets", [None, SUBSETS])
    def test_rows_with_nothing_have_the_prior_and_no_loss(
        self, make_model, make_batch, training, rule, kind, subsets
    ):
        model = make_model(
            "mopoe", prior_expert=rule, encode_with=kind, subsets=subsets, private_dims={"a": 1}
        )
        batch = model.prepare(make_batch())
        own = model.posterior(batch)
        z = {
            "shared": torch.randn(4, 12, 2, dtype=F64),
            ("private", "a"): torch.randn(4, 12, 1, dtype=F64),
        }
        expected = model.prior(batch).log_prob(z)[:, 1]
        torch.testing.assert_close(own.log_prob(z)[:, 1], expected)
        loss = total(model.loss(batch, training()))
        assert float(loss[1].detach()) == pytest.approx(0.0, abs=1e-12)

    def test_complete_rows_do_not_depend_on_holes_elsewhere(self, make_model, make_batch):
        # with everything present one pattern serves all rows
        model, batch = make_model("mopoe", encode_with="mixture"), make_batch(holes=False)
        mask = torch.ones(12, 3, dtype=torch.bool)
        mask[5, 1] = False
        z = {"shared": torch.randn(4, 12, 2, dtype=F64)}
        one = model.posterior(model.prepare(batch)).log_prob(z)
        two = model.posterior(model.prepare(batch.restrict(mask))).log_prob(z)
        keep = [b for b in range(12) if b != 5]
        torch.testing.assert_close(one[:, keep], two[:, keep], rtol=1e-12, atol=1e-12)


def test_a_learned_prior(make_model, make_batch, training):
    for family in ("normal", "laplace_with_softmax"):
        model = make_model("mopoe", prior={"type": "scaled", "family": family})
        total(model.loss(model.prepare(make_batch()), training())).sum().backward()
        assert bool(model.shared_prior.raw_scale.grad.any())


def test_the_loss_is_a_bound(make_model, make_batch):
    model, batch = make_model("mopoe", n_components_per_step=7), make_batch(10)
    prepared = model.prepare(batch)
    values = torch.stack(
        [
            -total(model.loss(prepared, Step(noise=RowNoise(s, batch.index, F64)))).detach()
            for s in range(150)
        ]
    )
    exact = model.log_likelihood(batch, n_samples=5000).value
    error = values.std(dim=0) / math.sqrt(150)
    assert bool((values.mean(dim=0) - 4.5 * error <= exact + 0.01).all())


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"subsets": []}, "subsets: must be a list of non-empty lists of modalities"),
            ({"subsets": [["a"], []]}, "subsets: must be a list of non-empty lists"),
            ({"subsets": [["a"], ["d"]]}, "subsets: unknown modality 'd'; there is a, b, c"),
            ({"subsets": [["a", "b"], ["b", "a"]]}, "subsets: the same subset is listed twice"),
            ({"subsets": [["a", "a"], ["a"]]}, "subsets: the same subset is listed twice"),
            ({"subsets": ["a", "b"]}, "subsets.0: must be a list, got 'a'"),
            ({"subsets": "abc"}, "subsets: must be a list, got 'abc'"),
            ({"private_dims": {"d": 1}}, "private_dims.d: unknown modality; there is a, b, c"),
            ({"private_dims": {"a": 0}}, "private_dims.a: must be > 0, got 0"),
            ({"private_dims": {"a": 1.5}}, "private_dims.a: must be an integer, got 1.5"),
            ({"private_dims": "2"}, "private_dims: must be an integer or a mapping of m.*got '2'"),
            ({"style_betas": {"d": 1.0}}, "style_betas.d: unknown modality; there is a, b, c"),
            (
                {"style_betas": {"a": -1.0}, "private_dims": {"a": 1}},
                "style_betas.a: must be >= 0, got -1.0",
            ),
            (
                {"style_betas": {"a": 1.0}},
                "style_betas.a: the modality has no private latent; give it a size in private_d",
            ),
            ({"beta_style": -1}, "beta_style: must be >= 0, got -1"),
            ({"n_components_per_step": 0}, "n_components_per_step: must be > 0, got 0"),
            ({"n_subsets": 0}, "n_subsets: must be > 0, got 0"),
            ({"subset_sampling": "size"}, "subset_sampling: must be one of 'uniform', 'size_"),
            ({"prior_expert": "some"}, "prior_expert: must be one of 'always', 'never'"),
            ({"encode_with": "mean"}, "encode_with: must be one of 'product', 'mixture'"),
            ({"proposal": "prior"}, "proposal: must be one of 'product', 'mixture'"),
            ({"fusion": "mixture_of_products"}, "fusion: must give one Gaussian per subset"),
            (
                {"subsets": [["a"]], "n_subsets": 2},
                "n_subsets: draws from all subsets, and 'subsets' names some; leave one of them",
            ),
        ],
    )
    def test_options(self, make_model, options, message):
        with pytest.raises(ConfigError, match=message):
            make_model("mopoe", **options)


class TestLearnedWeights:
    LOGITS = (0.3, -1.0, 0.8, 0.1, 2.0, -0.4, 0.6)

    def model(self, make_model, **options):
        model = make_model("mopoe", subset_weights="learned", **options)
        with torch.no_grad():
            model.subset_logits.copy_(torch.tensor(self.LOGITS[: len(model.subsets)]))
        return model

    def weights(self, model, batch, b):
        """Weight of every subset of a row, in the order of `components`."""
        logits = {
            tuple(n for n, member in zip("abc", subset, strict=True) if member): float(logit)
            for subset, logit in zip(
                model.subsets.tolist(), model.subset_logits.detach(), strict=True
            )
        }
        return special.softmax([logits[s] for s in power_set(present(batch, b))])

    def bound(self, model, batch, b, beta=1.0):
        if not present(batch, b):
            return 0.0
        values = [
            reconstruction(model, batch, b, mean) - beta * kl(mean, variance)
            for _, mean, variance in components(model, batch, b)
        ]
        return np.dot(self.weights(model, batch, b), values)

    def test_all_components_give_the_formula(self, make_model, make_batch, quiet):
        options = {"n_components_per_step": None, "entropy_weight": 3.0, "beta": 2.0}
        model, batch = self.model(make_model, **options), make_batch()
        out = model.loss(model.prepare(batch), quiet())
        assert list(out.terms) == ["reconstruction", "kl", "subset_entropy"]
        values = {name: term.value.detach() for name, term in out.terms.items()}
        for b in range(batch.size):
            pi = self.weights(model, batch, b) if present(batch, b) else np.ones(1)
            lost = np.log(len(pi)) - stats.entropy(pi)
            if present(batch, b):
                assert float(values["subset_entropy"][b]) == pytest.approx(3.0 * lost)
            found = -float(values["reconstruction"][b] + values["kl"][b])
            assert found == pytest.approx(self.bound(model, batch, b, 2.0))

    def test_outside_training_it_is_the_bound(self, make_model, make_batch, quiet):
        model, batch = self.model(make_model, n_components_per_step=None, beta=2.0), make_batch()
        out = model.loss(model.prepare(batch), Step(noise=quiet().noise))
        assert list(out.terms) == ["reconstruction", "kl"]
        expected = [self.bound(model, batch, b) for b in range(batch.size)]
        torch.testing.assert_close(-total(out).detach(), torch.tensor(expected, dtype=F64))

    @pytest.mark.parametrize("r", [1, 3])
    def test_drawn_components_are_right_on_average(self, make_model, make_batch, quiet, r):
        """So are the gradients of the logits."""
        drawn, whole = (
            self.model(make_model, n_components_per_step=n, entropy_weight=0.0) for n in (r, None)
        )
        batch = make_batch().take(torch.zeros(1000, dtype=torch.long))
        exact = total(whole.loss(whole.prepare(batch), quiet())).mean()
        exact.backward()
        values, gradients = [], []
        for number in range(12):
            drawn.zero_grad()
            value = total(drawn.loss(drawn.prepare(batch), quiet(number))).mean()
            value.backward()
            values.append(value.detach())
            gradients.append(drawn.subset_logits.grad.clone())
        for found, expected in (
            (torch.stack(values)[:, None], exact.detach()[None]),
            (torch.stack(gradients), whole.subset_logits.grad),
        ):
            error = found.std(dim=0) / math.sqrt(12)
            assert bool(((found.mean(dim=0) - expected).abs() < 5 * error + 1e-9).all())

    def test_posterior_and_proposal_have_the_weights(self, make_model, make_batch):
        model, batch = self.model(make_model, encode_with="mixture"), make_batch()
        prepared = model.prepare(batch)
        for posterior in (model.posterior(prepared), model.proposal(prepared)):
            mixture = posterior.parts["shared"]
            for b in range(batch.size):
                if present(batch, b):
                    found = mixture.weights[b][mixture.weights[b] > 0].detach()
                    expected = sorted(self.weights(model, batch, b))
                    assert sorted(found.tolist()) == pytest.approx(expected)

    def test_equal_logits_are_uniform_weights(self, make_model, make_batch, training):
        one = make_model("mopoe", subset_weights="learned")
        two, batch = make_model("mopoe"), make_batch()
        out = one.loss(one.prepare(batch), training())
        other = two.loss(two.prepare(batch), training())
        torch.testing.assert_close(total(out), total(other))
        entropy = out.terms["subset_entropy"].value
        torch.testing.assert_close(entropy, torch.zeros_like(entropy))

    def test_weights_move_towards_the_better_subsets(self, make_model, make_batch, quiet):
        # the derivative by a logit is its weight times what its subset is better than the mean
        model = self.model(make_model, n_components_per_step=None, entropy_weight=0.0)
        batch = make_batch(1, holes=False)
        total(model.loss(model.prepare(batch), quiet())).sum().backward()
        values = np.array(
            [
                reconstruction(model, batch, 0, mean) - kl(mean, variance)
                for _, mean, variance in components(model, batch, 0)
            ]
        )
        pi = self.weights(model, batch, 0)
        expected = pi * (values - pi @ values)
        np.testing.assert_allclose(sorted(-model.subset_logits.grad.numpy()), sorted(expected))

    def test_drawn_subsets_have_no_weights(self, make_model):
        with pytest.raises(ConfigError, match="n_subsets: draws subsets that have no weights"):
            make_model("mopoe", subset_weights="learned", n_subsets=2)
