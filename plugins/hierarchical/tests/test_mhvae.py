"""MHVAE against its formulas, one row and one subset at a time, and its options.

The linear-Gaussian acceptance test is in integration_tests.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import multivae_core as mv
from multivae_core.errors import CapabilityError, ConfigError
from multivae_core.noise import RowNoise, ScriptedNoise, Step, ZeroNoise
from multivae_hierarchical._subsets import draw_subsets

F64 = torch.float64
NAMES = ("a", "b", "c")
SMALL = {"channels": [6, 5], "latent_channels": [4, 3]}
IMAGES = {"a": (1, 9, 8), "b": (2, 9, 8)}
VOLUMES = {"a": (1, 6, 5, 4), "b": (2, 6, 5, 4)}
MIXED = {"a": (1, 9, 8), "b": (2, 7, 10), "c": (5,)}


def present(batch, b):
    return [name for name in NAMES if bool(batch.column(name)[b])]


def power_set(names):
    return [s for k in range(1, len(names) + 1) for s in itertools.combinations(names, k)]


def halves(raw):
    return raw[0].chunk(2)


def product(prior, experts, power=1.0):
    """Precision-weighted, or with sums of inverse deviations."""
    precision = [(-power * v).exp() for _, v in (prior, *experts)]
    mean = sum(t * m for t, (m, _) in zip(precision, (prior, *experts), strict=True))
    return mean / sum(precision), -sum(precision).log() / power


def levels_by_hand(model, batch, b, subset, power=1.0):
    """Posterior and prior of every level at zero noise, from the networks alone."""
    h = model.hierarchy
    features = {}
    for name in subset:
        steps = [model.encoders[name](batch.values[name][b : b + 1])]
        for block in h.bottom_up[name]:
            steps.append(block(steps[-1]))
        features[name] = steps
    top = torch.zeros(model.config.latent_dim, dtype=F64)
    p, found = (top, top), []
    experts = [halves(h.top[name](features[name][-1])) for name in subset]
    for level in range(model.config.n_levels, 0, -1):
        if level < model.config.n_levels:
            coming = h.top_down[level - 1](found[-1][0][0][None])
            p = halves(h.prior[level - 1](coming))
            experts = [
                halves(h.posterior[level - 1][n](torch.cat([coming, features[n][level - 1]], 1)))
                for n in subset
            ]
        found.append((product(p, experts, power), p))
    return found[::-1]


def kl(q, p):
    (m, v), (mp, vp) = q, p
    return 0.5 * ((v - vp).exp() + (m - mp) ** 2 / vp.exp() - 1 - v + vp).sum()


def elbo_by_hand(model, batch, b, subset, betas=None, power=1.0):
    levels = levels_by_hand(model, batch, b, subset, power)
    z1 = levels[0][0][0][None, None]
    rec = sum(
        model.decoders[n](z1).log_prob(batch.values[n][b : b + 1])[0, 0] for n in present(batch, b)
    )
    betas = betas or [1.0] * len(levels)
    return rec - sum(w * kl(q, p) for w, (q, p) in zip(betas, levels, strict=True))


def total(out):
    return sum(term.value for term in out.terms.values())


def loss_with(model, batch, step):
    with torch.no_grad():
        return model.loss(model.prepare(batch), step)


def quiet_loss(model, batch, quiet):
    with torch.no_grad():
        return model.loss(model.prepare(batch), quiet())


class TestFormula:
    @pytest.mark.parametrize("share", ["all", "levels", "none"])
    @pytest.mark.parametrize("levels", [1, 2, 3])
    def test_mean_over_the_subsets_of_what_a_row_has(
        self, make_model, make_batch, quiet, share, levels
    ):
        own = {"channels": [6, 5], "latent_channels": [4, 3][: levels - 1]}
        model = make_model("mhvae", n_levels=levels, share=share, beta=2.0, **own)
        batch = make_batch()
        out = quiet_loss(model, batch, quiet)
        assert list(out.terms) == ["reconstruction", *(f"kl_z{n + 1}" for n in range(levels))]
        for b in range(batch.size):
            subsets = power_set(present(batch, b))
            each = [elbo_by_hand(model, batch, b, s, [2.0] * levels) for s in subsets]
            expected = sum(each) / len(each) if each else torch.zeros((), dtype=F64)
            torch.testing.assert_close(-total(out)[b], expected)

    def test_one_level_is_the_flat_model(self, make_model, make_batch, quiet):
        # products with N(0, I), the mean over all subsets: MoPoE with the prior in every product
        model, batch = make_model("mhvae", n_levels=1, channels=[6]), make_batch()
        posterior = model.posterior(model.prepare(batch))
        for b in range(batch.size):
            experts = [
                halves(model.hierarchy.top[n](model.encoders[n](batch.values[n][b : b + 1])))
                for n in present(batch, b)
            ]
            precision = 1 + sum((-v).exp() for _, v in experts)
            mean = sum(m * (-v).exp() for m, v in experts) / precision
            found = posterior.mean()["z1"][0, b]
            expected = torch.as_tensor(mean, dtype=F64).expand_as(found)
            torch.testing.assert_close(found, expected)

    def test_scale_product_of_published_weights(self, make_model, make_batch, quiet):
        model, batch = make_model("mhvae", poe="scale", **SMALL), make_batch()
        mean = model.posterior(model.prepare(batch)).mean()
        b = 0
        levels = levels_by_hand(model, batch, b, present(batch, b), power=0.5)
        torch.testing.assert_close(mean["z1"][0, b], levels[0][0][0])

    @pytest.mark.parametrize(("poe", "expected"), [("precision", 1 / 3), ("scale", 0.2)])
    def test_deviations_of_a_product(self, make_model, poe, expected):
        # deviations 1, .5, .5: the sheet's own example
        model = make_model("mhvae", {"a": 3, "b": 3}, n_levels=1, poe=poe)
        with torch.no_grad():
            for layer in model.hierarchy.top.modules():
                if isinstance(layer, nn.Linear):
                    layer.weight.zero_()
                    layer.bias.copy_(torch.full_like(layer.bias, 2 * math.log(0.5)))
        batch = model.prepare(model.blank(4).restrict(set()))
        seen = mv.Batch(values=batch.values, present=torch.ones(4, 2, dtype=torch.bool))
        noise = ScriptedNoise(ZeroNoise(F64), {"z1": torch.ones((), dtype=F64)})
        posterior = model.posterior(seen)
        shift = posterior.draw(1, noise).latents["z1"] - posterior.mean()["z1"]
        torch.testing.assert_close(shift, torch.full_like(shift, expected))

    def test_nothing_seen_is_the_prior_exactly(self, make_model, make_batch, training):
        model, batch = make_model("mhvae", clamp=5.0, **SMALL), make_batch()
        blank = model.prepare(batch.restrict(set()))
        posterior = model.posterior(blank)
        draw = posterior.draw(5, training().noise)
        assert torch.equal(draw.log_q, draw.log_p)
        prior = model.prior(blank).sample(5, batch.size, training().noise)
        for name, value in draw.latents.items():
            assert torch.equal(value, prior[name])
        torch.testing.assert_close(model.prior(blank).log_prob(draw.latents), draw.log_p)

    def test_an_expert_without_precision_is_no_expert(self, make_model, make_batch):
        model = make_model("mhvae", share="none", **SMALL)
        with torch.no_grad():
            silent = [model.hierarchy.top["b"], *(p["b"] for p in model.hierarchy.posterior)]
            for head in silent:
                layer = [m for m in head.modules() if isinstance(m, nn.Linear)][-1]
                layer.bias[len(layer.bias) // 2 :] = 800.0
        batch = make_batch(holes=False)
        one = model.encode(batch.restrict({"a", "c"}))
        two = model.encode(batch)
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-12)

    def test_densities_of_a_sweep(self, make_model, make_batch, training):
        model, batch = make_model("mhvae", **SMALL), make_batch()
        prepared = model.prepare(batch)
        posterior = model.posterior(prepared)
        draw = posterior.draw(3, training().noise)
        torch.testing.assert_close(posterior.log_prob(draw.latents), draw.log_q)
        torch.testing.assert_close(model.prior(prepared).log_prob(draw.latents), draw.log_p)

    def test_divergences_agree_with_samples(self, make_model, make_batch):
        # 4 standard errors of 1,500 draws, every level and row
        analytic, sampled = (
            make_model("mhvae", kl=kind, subsets="full_and_singletons", **SMALL)
            for kind in ("analytic", "mc")
        )
        batch = analytic.prepare(make_batch(6))
        values = {kind: [] for kind in ("analytic", "mc")}
        tiled = batch.take(torch.arange(6).repeat(1500))
        step = Step(noise=RowNoise(0, torch.arange(9000), F64))
        with torch.no_grad():
            for kind, model in (("analytic", analytic), ("mc", sampled)):
                terms = model.loss(tiled, step).terms
                values[kind] = {n: t.value.view(1500, 6) for n, t in terms.items()}
        for name in ("kl_z1", "kl_z2", "kl_z3"):
            gap = values["mc"][name] - values["analytic"][name]
            error = gap.std(dim=0) / 1500**0.5
            assert (gap.mean(dim=0).abs() <= 4 * error + 1e-12).all()
            assert gap.abs().max() > 0.01


class TestShapes:
    @pytest.mark.parametrize(("shapes", "options", "expected"), [
        (IMAGES, {}, {"z1": (3, 5, 4), "z2": (2,)}),
        (IMAGES, {"top": "map", "first_stride": 1}, {"z1": (3, 9, 8), "z2": (2, 5, 4)}),
        (VOLUMES, {"top": "map", "normalisation": "layer"}, {"z1": (3, 3, 3, 2),
                                                             "z2": (2, 2, 2, 1)}),
        (VOLUMES, {}, {"z1": (3, 3, 3, 2), "z2": (2,)}),
        (MIXED, {}, {"z1": (3,), "z2": (2,)}),
        (MIXED, {"network": "conv2d"}, {"z1": (3, 5, 5), "z2": (2,)}),
    ])  # fmt: skip
    def test_builders(self, make_maps, training, shapes, options, expected):
        data, model = make_maps(shapes, n_levels=2, latent_channels=[3], **options)
        assert model.latent_shapes == expected
        out = model.loss(model.prepare(data.batch()), training())
        total(out).sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
        for name, shape in expected.items():
            assert tuple(model.encode(data)[name].shape) == (10, *shape)
            assert tuple(model.encode(data, 3)[name].shape) == (3, 10, *shape)
        z = model.encode(data)
        for name, likelihood in model.decode(z).items():
            assert tuple(likelihood.mean.shape) == (1, 10, *shapes[name])
        assert model.generate(3)["a"].shape == (3, *shapes["a"])
        assert model.embed(data).shape == (10, math.prod(expected["z1"]))
        assert model.log_likelihood(data, n_samples=2).value.isfinite().all()
        filled = model.impute(data, n_samples=2).filled
        assert all(value.isfinite().all() for value in filled.values())

    def test_a_deep_narrow_grid_ends_at_one_cell(self, make_maps, training):
        data, model = make_maps(IMAGES, n_levels=6, top="map", normalisation="layer")
        assert model.latent_shapes["z6"] == (2, 1, 1)
        assert total(model.loss(model.prepare(data.batch()), training())).isfinite().all()

    def test_empty_batches(self, make_maps, training):
        data, model = make_maps(IMAGES, n_levels=2)
        blank = model.prepare(data.batch().restrict(set()))
        out = model.loss(blank, training())
        assert not total(out).any()
        total(out).sum().backward()
        none = model.prepare(data.batch().take(torch.arange(0)))
        assert model.loss(none, training()).terms["kl_z1"].value.shape == (0,)
        assert model.posterior(none).draw(2, training().noise).latents["z1"].shape[:2] == (2, 0)

    def test_decode_names_a_wrong_shape(self, make_maps):
        data, model = make_maps(IMAGES, n_levels=2)
        z = model.encode(data)
        with pytest.raises(mv.errors.DataError, match=r"'z1'.*\(2, 5, 4\)"):
            model.decode(z | {"z1": z["z1"][:, :, :2]})


class TestSubsets:
    @pytest.mark.parametrize("kind", ["uniform", "all_patterns"])
    def test_every_subset(self, make_model, kind):
        config = make_model("mhvae", subset_weights=kind).config
        have = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0]]).bool()
        subsets, weights = draw_subsets(config, have, ZeroNoise(F64), F64)
        torch.testing.assert_close(weights.sum(0), torch.tensor([1.0, 1, 1, 0], dtype=F64))
        expected = []
        for row in have.tolist():
            counts = {}
            for code in itertools.product([False, True], repeat=3):
                cut = tuple(c and h for c, h in zip(code, row, strict=True))
                if kind == "all_patterns" and any(code):
                    counts[cut] = counts.get(cut, 0) + 1 / 7
                elif kind == "uniform" and code == cut and any(code):
                    counts[cut] = 1 / (2 ** sum(row) - 1)
            expected.append(counts if any(row) else {})
        for b, counts in enumerate(expected):
            found = {
                tuple(s[0].tolist()): float(w[b])
                for s, w in zip(subsets, weights, strict=True)
                if w[b] > 0
            }
            assert found == pytest.approx(counts)

    def test_full_and_singletons_count_a_lone_modality_once(self, make_model):
        config = make_model("mhvae", subsets="full_and_singletons").config
        have = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0]]).bool()
        subsets, weights = draw_subsets(config, have, ZeroNoise(F64), F64)
        assert [[s.int().tolist() for s, w in zip(subsets[:, b], weights[:, b], strict=True) if w]
                for b in range(4)] == [
            [[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]],
            [[1, 1, 0], [1, 0, 0], [0, 1, 0]],
            [[0, 1, 0]],
            [],
        ]  # fmt: skip
        torch.testing.assert_close(weights.sum(0), torch.tensor([1.0, 1, 1, 0], dtype=F64))

    @pytest.mark.parametrize("weights_of", ["uniform", "equal"])
    def test_random_subsets_meet_the_mean_over_all(self, make_model, training, weights_of):
        model = make_model("mhvae", subsets="random", n_subsets=2, subset_weights=weights_of)
        rows = 30_000
        have = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0]]).bool().repeat(rows, 1)
        subsets, weights = draw_subsets(model.config, have, training().noise, F64)
        assert bool((subsets & ~have).any()) is False
        assert bool(subsets.any(dim=2)[weights > 0].all())
        code = (subsets * torch.tensor([1, 2, 4])).sum(2)
        for kind, own in enumerate([7, 5, 2]):
            share = torch.zeros(8, dtype=F64).index_add(
                0, code[:, kind::3].flatten(), weights[:, kind::3].flatten()
            ) / rows  # fmt: skip
            count = 2 ** bin(own).count("1") - 1
            full = 1 / count if weights_of == "uniform" or count == 1 else 1 / 3
            rest = (1 - full) / max(count - 1, 1)
            proper = [c for c in range(1, 8) if c & own == c]
            expected = [(full if c == own else rest) if c in proper else 0.0 for c in range(8)]
            np.testing.assert_allclose(share, expected, atol=4 * 0.5 / rows**0.5)

    def test_fewer_subsets_than_all_estimate_the_same_loss(self, make_model, make_batch, quiet):
        exact = make_model("mhvae", **SMALL)
        drawn = make_model("mhvae", subsets="random", **SMALL)
        batch = exact.prepare(make_batch(4))
        with torch.no_grad():
            expected = total(exact.loss(batch, quiet()))
            found = torch.stack([total(drawn.loss(batch, quiet(i))) for i in range(100)])
        error = found.std(dim=0) / 10
        assert ((found.mean(dim=0) - expected).abs() <= 4 * error + 1e-9).all()

    def test_one_modality_alone_beside_subsets_of_the_others(self, make_model, training):
        options = {"subsets": "random", "subset_weights": "equal", "alone": ["a"]}
        config = make_model("mhvae", **options).config
        rows = 9_000
        kinds = [[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]]
        have = torch.tensor(kinds).bool().repeat(rows, 1)
        subsets, weights = draw_subsets(config, have, training().noise, F64)
        torch.testing.assert_close(weights.sum(0), have.any(dim=1).double())
        code = (subsets * torch.tensor([1, 2, 4])).sum(2)
        expected = [
            {7: 1 / 3, 1: 1 / 3, 2: 1 / 9, 4: 1 / 9, 6: 1 / 9},
            {3: 1 / 3, 1: 1 / 3, 2: 1 / 3},
            {6: 1 / 2, 2: 1 / 4, 4: 1 / 4},
            {1: 1.0},
            {2: 1.0},
            {},
        ]
        for kind, wanted in enumerate(expected):
            share = torch.zeros(8, dtype=F64).index_add(
                0, code[:, kind::6].flatten(), weights[:, kind::6].flatten()
            ) / rows  # fmt: skip
            for c in range(8):
                assert abs(float(share[c]) - wanted.get(c, 0.0)) < 4 * 0.25 / rows**0.5


class TestOptions:
    def test_weights_of_levels(self, make_model, make_batch, quiet):
        model = make_model("mhvae", level_betas=[0.0, 2.0, 0.5], beta=3.0, **SMALL)
        plain = make_model("mhvae", **SMALL)
        batch = make_batch()
        one, two = quiet_loss(model, batch, quiet), quiet_loss(plain, batch, quiet)
        for level, weight in enumerate([0.0, 6.0, 1.5], start=1):
            torch.testing.assert_close(
                one.terms[f"kl_z{level}"].value, weight * two.terms[f"kl_z{level}"].value
            )

    def test_outside_training_there_are_no_weights(self, make_model, make_batch):
        loud = make_model(
            "mhvae", level_betas=[0.0, 2.0, 0.5], beta=3.0, free_bits=9.0,
            normalise="mean_modality", **SMALL,
        )  # fmt: skip
        plain, batch = make_model("mhvae", **SMALL), make_batch()
        step = Step(noise=RowNoise(0, batch.index, F64))
        one, two = (total(m.loss(m.prepare(batch), step)) for m in (loud, plain))
        assert torch.equal(one, two)

    def test_free_bits(self, make_model, make_batch, quiet):
        model = make_model("mhvae", {"a": 3}, free_bits=0.7, n_levels=2, channels=[6])
        plain = make_model("mhvae", {"a": 3}, n_levels=2, channels=[6])
        batch = make_batch(8, {"a": 3}, holes=False)
        one, two = quiet_loss(model, batch, quiet), quiet_loss(plain, batch, quiet)
        for name in ("kl_z1", "kl_z2"):
            torch.testing.assert_close(one.terms[name].value, two.terms[name].value.clamp_min(0.7))
            assert torch.equal(one.metrics[f"full_{name}"], two.terms[name].value)

    def test_mean_modality(self, make_model, make_batch, quiet):
        model = make_model("mhvae", normalise="mean_modality", **SMALL)
        plain, batch = make_model("mhvae", **SMALL), make_batch()
        ratio = 3.0 / batch.present.sum(dim=1).clamp_min(1)
        one, two = (
            quiet_loss(m, batch, quiet).terms["reconstruction"].value for m in (model, plain)
        )
        torch.testing.assert_close(one, ratio * two)

    def test_clamp(self, make_model, make_batch):
        model = make_model("mhvae", clamp=0.1, **SMALL)
        free = make_model("mhvae", **SMALL)
        batch = make_batch(holes=False).restrict({"a"})
        assert model.encode(batch)["z3"].abs().max() < 0.1 < free.encode(batch)["z3"].abs().max()

    def test_temperatures(self, make_model, make_batch, training):
        batch = make_batch()
        cool = make_model("mhvae", temperature=[0.5, 1.0, 1.0], encode_temperature=0.3, **SMALL)
        plain = make_model("mhvae", **SMALL)
        prepared, noise = plain.prepare(batch), training().noise
        one, two = (m.prior(prepared).sample(4, 12, noise) for m in (cool, plain))
        assert torch.equal(one["z3"], two["z3"])
        assert torch.equal(one["z2"], two["z2"])
        flat = plain.hierarchy.come_down(1, two["z2"].flatten(0, 1))[1].mean.view_as(one["z1"])
        torch.testing.assert_close(one["z1"] - flat, 0.5 * (two["z1"] - flat))
        one, two = (m.posterior(prepared).draw(4, noise) for m in (cool, plain))
        mean = plain.posterior(prepared).mean()["z3"]
        torch.testing.assert_close(one.latents["z3"] - mean, 0.3 * (two.latents["z3"] - mean))
        assert torch.equal(cool.proposal(prepared).draw(4, noise).log_q, two.log_q)
        own = cool.log_likelihood(batch, n_samples=5).value
        assert torch.equal(own, plain.log_likelihood(batch, n_samples=5).value)

    def test_weights_of_likelihoods(self, make_model, make_batch, quiet):
        heavy = {name: {"weight": 3.0} for name in NAMES}
        one, two = (
            quiet_loss(make_model("mhvae", modalities=m, **SMALL), make_batch(), quiet)
            for m in (heavy, None)
        )
        torch.testing.assert_close(
            one.terms["reconstruction"].value, 3.0 * two.terms["reconstruction"].value
        )

    def test_chunks_of_a_draw(self, make_model, make_batch, training, monkeypatch):
        model, batch = make_model("mhvae", **SMALL), make_batch()
        posterior = model.posterior(model.prepare(batch))
        with torch.no_grad():
            whole = posterior.draw(7, training().noise)
            monkeypatch.setattr("multivae_hierarchical._levels._SWEPT_ROWS", 24)
            parts = posterior.draw(7, training().noise)
        torch.testing.assert_close(parts.log_q, whole.log_q)
        torch.testing.assert_close(parts.log_p, whole.log_p)
        torch.testing.assert_close(parts.latents["z1"], whole.latents["z1"])

    def test_a_temperature_of_zero_is_the_mean_of_a_level(self, make_model, make_batch, training):
        batch = make_batch()
        model = make_model("mhvae", encode_temperature=[1.0, 0.0, 1.0], **SMALL)
        plain = make_model("mhvae", **SMALL)
        prepared, noise = model.prepare(batch), training().noise
        draw, warm = (m.posterior(prepared).draw(4, noise) for m in (model, plain))
        assert draw.log_q is None
        assert torch.equal(draw.latents["z3"], warm.latents["z3"])
        assert not torch.equal(draw.latents["z2"], warm.latents["z2"])
        still = ScriptedNoise(noise, {"z2": torch.zeros((), dtype=F64)})
        wanted = plain.posterior(prepared).draw(4, still).latents
        for name, value in draw.latents.items():
            assert torch.equal(value, wanted[name])
        own = model.log_likelihood(batch, n_samples=5).value
        assert torch.equal(own, plain.log_likelihood(batch, n_samples=5).value)
        with pytest.raises(CapabilityError, match="encode_temperature 0"):
            model.require("posterior_density")
        cold = make_model("mhvae", temperature=0.0, **SMALL).generate(5)["a"]
        assert torch.equal(cold, cold[:1].expand(5, -1))

    def test_huber_reconstructions_have_a_likelihood(self, make_model, make_batch):
        own = {"likelihood": {"type": "huber", "scale": 0.5, "threshold": 0.5}}
        model = make_model("mhvae", modalities=dict.fromkeys(NAMES, own), **SMALL)
        assert model.lacks == {}
        assert model.log_likelihood(make_batch(), n_samples=3).value.isfinite().all()


def heads_of(model):
    h = model.hierarchy
    parts = [*h.prior, *(p.one for p in h.posterior), h.top.one]
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    return [[m for m in part.modules() if isinstance(m, kinds)][-1] for part in parts]


class TestBlocks:
    @pytest.mark.parametrize("shapes", [{"a": (3,), "b": (2,)}, IMAGES, VOLUMES])
    def test_weights_of_heads_are_normalised(self, make_maps, tmp_path, shapes):
        data, model = make_maps(shapes, weight_norm=True)
        plain = make_maps(shapes)[1]
        count = sum("parametrizations" in n for n, _ in model.named_parameters())
        assert count == 2 * len(heads_of(model))
        before = model.embed(data)
        with torch.no_grad():
            for head in heads_of(model):
                head.parametrizations.weight.original1.mul_(3.0)
            torch.testing.assert_close(model.embed(data), before)
            for head in heads_of(model):
                head.parametrizations.weight.original0.mul_(3.0)
        assert not torch.allclose(model.embed(data), before)
        assert not any("parametrizations" in n for n, _ in plain.named_parameters())
        mv.Trainer(epochs=1, batch_size=5, progress=False).fit(model, data)
        model.save(tmp_path / "m")
        assert torch.equal(mv.load_model(tmp_path / "m").embed(data), model.embed(data))

    @pytest.mark.parametrize("shapes", [IMAGES, VOLUMES])
    def test_instance_norm_is_over_the_cells_of_a_channel(self, make_maps, training, shapes):
        data, model = make_maps(shapes, n_levels=2, normalisation="instance", channels=[3])
        norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
        convolutions = (nn.Conv2d, nn.Conv3d)
        assert len(norms) > 5
        assert all(m.num_groups == m.num_channels for m in norms)
        found = []
        for norm in norms:
            norm.register_forward_hook(lambda _, __, out: found.append(out.flatten(2).mean(dim=2)))
        batch = model.prepare(data.batch())
        model.encode(data)
        for mean in found:
            torch.testing.assert_close(mean, torch.zeros_like(mean))
        whole = total(model.loss(batch, Step(noise=RowNoise(0, batch.index, F64))))
        part = batch.take(torch.tensor([2, 7]))
        alone = total(model.loss(part, Step(noise=RowNoise(0, part.index, F64))))
        torch.testing.assert_close(alone, whole[[2, 7]])
        assert any(isinstance(m, convolutions) for m in model.modules())

    def test_instance_norm_needs_two_cells(self, make_maps):
        with pytest.raises(ConfigError, match=r"deepest grid \(1, 1\) has one cell alone"):
            make_maps(IMAGES, n_levels=5, top="map", normalisation="instance")

    def test_grids_of_other_sizes_meet_on_one(self, make_maps):
        data, model = make_maps(MIXED, n_levels=2, network="conv2d")
        batch = model.prepare(data.batch())
        shapes = {n: model.encode_one(n, batch)[0].shape[1:] for n in MIXED}
        assert set(shapes.values()) == {(4, 5, 5)}
        assert model.shape_table == (
            "level  features F          latents Z\n"
            "1      (4, 5, 5)           (2, 5, 5)\n"
            "2      -                   (2,)"
        )

    def test_a_network_for_another_grid_is_refused_with_the_table(self, make_maps):
        own = {"a": nn.Conv2d(1, 4, 3, 1, 1)}
        with pytest.raises(ConfigError, match=r"it gave \(2, 4, 9, 8\)\nlevel .*\n1 +\(4, 5, 4\)"):
            make_maps(IMAGES, n_levels=2, encoders=own)


class TestRecomputed:
    CASES = [
        ({"a": (3,), "b": (2,), "c": (4,)}, {"share": "none"}),
        (MIXED, {"network": "conv2d", "subsets": "random", "normalisation": "layer"}),
        (IMAGES, {"n_levels": 2, "top": "map", "adversarial": 0.1, "kl": "mc"}),
    ]

    @pytest.mark.parametrize(("shapes", "options"), CASES)
    def test_same_bits(self, make_maps, training, shapes, options):
        found = []
        for recompute in (False, True):
            torch.manual_seed(0)
            data, model = make_maps(shapes, recompute=recompute, **options)
            loss = total(model.loss(model.prepare(data.batch()), training()))
            loss.sum().backward()
            gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            mv.Trainer(epochs=1, batch_size=5, seed=0, progress=False).fit(model, data)
            found.append((loss, gradients, model.state_dict()))
        (a, grads, weights), (b, others, after) = found
        assert torch.equal(a, b)
        assert grads.keys() == others.keys()
        assert all(torch.equal(grads[n], others[n]) for n in grads)
        assert all(torch.equal(weights[n], after[n]) for n in weights)

    def test_what_is_kept_for_the_gradient(self, make_maps, training):
        kept = []
        for recompute in (False, True):
            data, model = make_maps(
                {"a": (1, 32, 32), "b": (1, 32, 32)}, recompute=recompute, channels=[16]
            )
            batch, sizes = model.prepare(data.batch()), {}

            def pack(tensor, sizes=sizes):
                storage = tensor.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = total(model.loss(batch, training()))
            kept.append(sum(sizes.values()))
            loss.sum().backward()
        assert kept[1] < 0.4 * kept[0]


class TestHoles:
    @pytest.mark.parametrize("options", [SMALL, {"subsets": "random", "share": "none"}])
    def test_what_lies_under_holes(self, make_model, make_batch, training, options):
        model, batch = make_model("mhvae", **options), make_batch()
        found = []
        for filler in (0.0, float("nan")):
            model.zero_grad()
            values = {
                n: torch.where(batch.column(n)[:, None], x, filler)
                for n, x in batch.values.items()
            }
            own = mv.Batch(values=values, present=batch.present)
            loss = total(model.loss(model.prepare(own), training()))
            loss.sum().backward()
            found.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
        for one, two in zip(*found, strict=True):
            assert torch.equal(one, two)
            assert bool(one.isfinite().all())

    def test_a_subset_is_what_is_left_of_it(self, make_model, make_batch, quiet):
        # one row with a and b is trained as a complete row of a model of a and b
        model, batch = make_model("mhvae", **SMALL), make_batch(holes=False)
        restricted = quiet_loss(model, batch.restrict({"a", "b"}), quiet)
        expected = [
            sum(elbo_by_hand(model, batch.restrict({"a", "b"}), b, s)
                for s in power_set(["a", "b"])) / 3
            for b in range(3)
        ]  # fmt: skip
        torch.testing.assert_close(-total(restricted)[:3], torch.stack(expected))

    def test_all_patterns_decode_the_prior_for_what_is_not_there(
        self, make_model, make_batch, quiet
    ):
        model = make_model("mhvae", subset_weights="all_patterns", **SMALL)
        batch = make_batch()
        out = total(quiet_loss(model, batch, quiet))
        for b in range(4):
            have = present(batch, b)
            times = 2 ** (3 - len(have))
            each = [times * elbo_by_hand(model, batch, b, s) for s in power_set(have)]
            each += [(times - 1) * elbo_by_hand(model, batch, b, [])] if have else []
            expected = sum(each, torch.zeros((), dtype=F64)) / 7
            torch.testing.assert_close(-out[b], expected)


class TestNetworks:
    def test_own_networks_by_role(self, make_model, make_batch, tmp_path):
        own = {
            "top_down": nn.ModuleList([nn.Linear(2, 6)]),
            "top": nn.Linear(6, 4),
            "prior": nn.ModuleList([nn.Linear(6, 10)]),
            "posterior": nn.ModuleList([nn.Linear(12, 10)]),
        }
        options = {"n_levels": 2, "channels": [6], "latent_channels": [5]}
        model = make_model("mhvae", networks=own, **options)
        assert model.hierarchy.top.one is own["top"]
        assert model.latent_shapes == {"z1": (5,), "z2": (2,)}
        model.save(tmp_path / "m")
        fresh = {role: type(n)([type(x)(x.in_features, x.out_features) for x in n])
                 if isinstance(n, nn.ModuleList) else nn.Linear(6, 4)
                 for role, n in own.items()}  # fmt: skip
        again = mv.load_model(tmp_path / "m", networks=fresh)
        batch = make_batch()
        assert torch.equal(again.embed(batch), model.embed(batch))

    def test_own_encoders_and_decoders_of_maps(self, make_maps):
        encoder = nn.Conv2d(1, 7, 3, 2, 1)
        decoder = nn.Sequential(nn.Upsample((9, 8)), nn.Conv2d(3, 1, 1))
        data, model = make_maps(
            IMAGES, n_levels=2, channels=[7], latent_channels=[3],
            encoders={"a": encoder}, decoders={"a": decoder}, scale=0.5,
        )  # fmt: skip
        assert model.encoders["a"].network is encoder
        assert model.predict(data, n_samples=2)["a"].shape == (10, 1, 9, 8)

    @pytest.mark.parametrize(("own", "message"), [
        ({"top_down": nn.ModuleList([nn.Linear(2, 3)])}, "top_down.*rows, 2.*rows, 6"),
        ({"prior": nn.ModuleList([])}, "networks.prior.*nothing at 0"),
        ({"top": nn.ModuleDict({"a": nn.Linear(6, 4)})}, "top"),
        ({"critic": nn.Linear(2, 2)}, "networks.critic"),
    ])  # fmt: skip
    def test_networks_that_do_not_fit(self, make_model, own, message):
        with pytest.raises(ConfigError, match=message):
            make_model("mhvae", networks=own, n_levels=2, channels=[6])

    def test_one_module_for_several_modalities_is_refused(self, make_model):
        head = nn.Linear(6, 4)
        own = {"top": nn.ModuleDict(dict.fromkeys(NAMES, head))}
        with pytest.raises(ConfigError, match="several modalities; copy it"):
            make_model("mhvae", networks=own, share="none", n_levels=2, channels=[6])

    def test_default_networks_are_nobodys_twice(self, make_model):
        model = make_model("mhvae", share="none", **SMALL)
        heads = [model.hierarchy.top[name] for name in NAMES]
        assert len({*map(id, heads)}) == 3


class TestRefusals:
    @pytest.mark.parametrize(("options", "message"), [
        ({"n_levels": 0}, "n_levels"),
        ({"channels": []}, "channels: must have at least one entry"),
        ({"channels": [4, 0]}, "channels.*> 0"),
        ({"latent_channels": [4]}, "latent_channels: must have 2 entries, got 1"),
        ({"level_betas": [1.0]}, "level_betas: must have 3 entries, got 1"),
        ({"temperature": [1.0, 1.0]}, "temperature: must have 3 entries, got 2"),
        ({"temperature": -1.0}, "temperature.*>= 0"),
        ({"normalisation": "instance"}, "over its cells, and a vector has one cell"),
        ({"clamp": -1.0}, "clamp"),
        ({"subset_weights": "all_patterns", "subsets": "random"}, "needs subsets='all'"),
        ({"alone": ["a"]}, "alone: needs subsets='random'"),
        ({"alone": ["d"], "subsets": "random", "subset_weights": "equal"}, "alone.d: unknown"),
        ({"adversarial_missing": True}, "adversarial_missing: there are no critics"),
        ({"network": "conv2d"}, "no modality has 2 axes"),
        ({"poe": "sum"}, "poe"),
    ])  # fmt: skip
    def test_options(self, make_model, options, message):
        with pytest.raises(ConfigError, match=message):
            make_model("mhvae", **options)

    def test_one_vector_over_maps(self, make_maps):
        with pytest.raises(ConfigError, match="single level over maps"):
            make_maps(IMAGES, n_levels=1)
        make_maps(IMAGES, n_levels=1, top="map")

    def test_too_many_subsets(self, make_model):
        many = {f"m{i}": 2 for i in range(11)}
        with pytest.raises(ConfigError, match="2047 subsets of 11 modalities; choose 'random'"):
            make_model("mhvae", many)
        make_model("mhvae", many, subsets="random", channels=[4])

    def test_losses_without_a_density_have_no_likelihood(self, make_model, make_batch):
        model = make_model("mhvae", modalities={"a": {"likelihood": "squared_error"}}, **SMALL)
        for verb in ("log_likelihood", "elbo"):
            with pytest.raises(CapabilityError, match="of 'a' is no density"):
                getattr(model, verb)(make_batch(), n_samples=2)
        assert make_model("mhvae", **SMALL).lacks == {}


class TestCritics:
    def test_the_models_part(self, make_model, make_batch, quiet):
        options = {"subsets": "full_and_singletons", **SMALL}
        model = make_model("mhvae", adversarial=0.1, adversarial_start=5, **options)
        plain, batch = make_model("mhvae", **options), make_batch()
        missing = model.load_state_dict(plain.state_dict(), strict=False).missing_keys
        assert missing
        assert all(name.startswith("critics") for name in missing)
        early, late = (loss_with(model, batch, quiet(n)) for n in (4, 5))
        assert "adversarial" not in early.terms
        for b in range(batch.size):
            have, expected = present(batch, b), 0.0
            for subset in [(name,) for name in have]:
                with torch.no_grad():
                    z1 = levels_by_hand(model, batch, b, subset)[0][0][0][None, None]
                    for n in have:
                        fake = model.decoders[n](z1).mean[0]
                        size = batch.values[n].shape[1]
                        expected += 0.1 * size * float((model.critics[n](fake) - 1) ** 2)
            found = float(late.terms["adversarial"].value[b])
            assert found == pytest.approx(expected / max(len(have), 1), rel=1e-9)

    def test_what_a_row_lacks_is_judged_beside_measurements_of_others(
        self, make_model, make_batch, quiet
    ):
        options = {"subsets": "full_and_singletons", "adversarial": 0.1, **SMALL}
        model = make_model("mhvae", adversarial_missing=True, **options)
        with pytest.raises(CapabilityError, match="row_objective: adversarial_missing"):
            model.require("row_objective")
        plain, batch = make_model("mhvae", **options), make_batch()
        out = loss_with(model, batch, quiet()).terms["adversarial"].value
        with torch.no_grad():
            (judged,) = model.stages()[0].players[1].loss(model.prepare(batch), quiet())
            real = {
                n: (model.critics[n](batch.values[n][batch.column(n)]) - 1) ** 2 for n in NAMES
            }
            for b in range(batch.size):
                have, fooled, told = present(batch, b), 0.0, 0.0
                for subset in [(name,) for name in have]:
                    z1 = levels_by_hand(model, batch, b, subset)[0][0][0][None, None]
                    for n in NAMES:
                        score = model.critics[n](model.decoders[n](z1).mean[0])
                        size = batch.values[n].shape[1]
                        fooled += 0.1 * size * float((score - 1) ** 2) / len(have)
                        told += 0.5 * float(score**2) / len(have)
                for n in NAMES if have else ():
                    own = (model.critics[n](batch.values[n][b : b + 1]) - 1) ** 2
                    told += 0.5 * float(own if n in have else real[n].mean())
                assert float(out[b]) == pytest.approx(fooled, rel=1e-9)
                assert float(judged.terms["critic"].value[b]) == pytest.approx(told, rel=1e-9)
        # rows that lack nothing are as they were
        without = loss_with(plain, batch, quiet()).terms["adversarial"].value
        whole = batch.present.all(dim=1)
        assert torch.equal(out[whole], without[whole])
        assert (out[~whole & batch.something] > without[~whole & batch.something]).all()

    def test_without_any_measurement_a_critic_learns_nothing(self, make_model, make_batch, quiet):
        model = make_model("mhvae", adversarial=0.1, adversarial_missing=True, **SMALL)
        batch = model.prepare(make_batch().restrict({"a", "b"}))
        (out,) = model.stages()[0].players[1].loss(batch, quiet())
        total(out).sum().backward()
        assert not any(
            p.grad is not None and p.grad.any() for p in model.critics["c"].parameters()
        )
        assert any(p.grad.any() for p in model.critics["a"].parameters())

    def test_evaluation_knows_no_critics(self, make_model, make_batch):
        model, batch = make_model("mhvae", adversarial=0.1, **SMALL), make_batch()
        step = Step(noise=RowNoise(0, batch.index, F64))
        assert "adversarial" not in model.loss(model.prepare(batch), step).terms

    def test_each_player_moves_its_own(self, make_model, make_batch, training):
        model, batch = make_model("mhvae", adversarial=0.1, **SMALL), make_batch()
        first, second = model.stages()[0].players
        prepared = model.prepare(batch)
        (out,) = second.loss(prepared, training())
        assert not out.terms["critic"].value[~batch.something].any()
        total(out).sum().backward()
        own = {id(p) for p in model.critics.parameters()}
        reached = {id(p) for p in model.parameters() if p.grad is not None and p.grad.any()}
        assert reached
        assert reached <= own
        moved = {id(p) for module in first.parameters for p in module.parameters()}
        assert moved | own == {id(p) for p in model.parameters()}
        assert not moved & own

    def test_trains(self, make_maps):
        options = {"subsets": "random", "adversarial_missing": True}
        data, model = make_maps(IMAGES, n_levels=2, adversarial=0.05, **options)
        before = {n: p.clone() for n, p in model.named_parameters()}
        history = mv.Trainer(epochs=2, batch_size=5, seed=0, progress=False).fit(model, data)
        assert any(name.startswith("critics/") for name in history.epochs[-1].numbers)
        for role in ("critics", "hierarchy", "decoders"):
            assert any(
                not torch.equal(p, before[n])
                for n, p in model.named_parameters()
                if n.startswith(role)
            )


def test_loss_falls_and_a_folder_brings_the_model_back(make_maps, tmp_path):
    data, model = make_maps(IMAGES, n_levels=2, channels=[4])
    history = mv.Trainer(epochs=6, batch_size=5, seed=0, progress=False).fit(model, data)
    losses = [epoch.numbers["loss"] for epoch in history.epochs]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "m")
    again = mv.load_model(tmp_path / "m")
    assert torch.equal(again.embed(data), model.embed(data))
