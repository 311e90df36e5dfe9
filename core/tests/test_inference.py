"""What a model is for: imputations, predictions, generations, embeddings, on the data's scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import multivae_core as mv
from multivae_core.config import structure
from multivae_core.distributions import Normal
from multivae_core.errors import CapabilityError, DataError
from multivae_core.inference import _quantiles
from multivae_core.posteriors import FactorisedPosterior

F64 = torch.float64


class Toy(mv.MultimodalVAE):
    """Product of experts; a private latent of size 1 for the modality b."""

    def private_dims(self):
        return {"b": 1}

    def posterior(self, batch):
        encoded = self.run_encoders(batch)
        shared = encoded["shared"]
        precision = torch.where(batch.present.T[..., None], (-shared[:, :, 1]).exp(), 0.0)
        total = 1.0 + precision.sum(dim=0)
        mean = (precision * shared[:, :, 0]).sum(dim=0) / total
        own = encoded["private", "b"]
        return FactorisedPosterior(
            {
                "shared": Normal(mean, -total.log()),
                ("private", "b"): Normal(own[:, 0], own[:, 1]),
            }
        )

    def loss(self, batch, step):
        raise NotImplementedError


SIZES = {"a": 3, "b": 2, "counts": 4, "kind": 3, "flags": 2}
LIKELIHOODS = {
    "a": {"type": "normal", "scale": 0.5},
    "b": {"type": "laplace", "scale": 0.3},
    "counts": "poisson",
    "kind": "categorical",
    "flags": "bernoulli",
}


def toy(dtype=F64, cls=Toy, seed=0):
    config = structure(
        mv.ModelConfig,
        {
            "modalities": {
                name: {
                    "shape": [size],
                    "likelihood": LIKELIHOODS[name],
                    "standardise": name in "ab",
                }
                for name, size in SIZES.items()
            },
            "latent_dim": 2,
        },
    )
    torch.manual_seed(seed)
    model = cls(
        config,
        encoders={name: nn.Linear(size, 6) for name, size in SIZES.items()},
        decoders={
            name: nn.Sequential(nn.Linear(2 + (name == "b"), 6), nn.Tanh(), nn.Linear(6, size))
            for name, size in SIZES.items()
        },
    )
    model.to(dtype)
    model.transforms["a"].shift.fill_(50.0)
    model.transforms["a"].scale.copy_(torch.tensor([1.0, 10.0, 0.1]))
    model.transforms["b"].shift.fill_(-3.0)
    model.transforms["b"].scale.fill_(7.0)
    return model


def values(rows, seed=0):
    rng = np.random.default_rng(seed)
    kind = torch.nn.functional.one_hot(torch.as_tensor(rng.integers(0, 3, rows)), 3)
    return {
        "a": torch.as_tensor(50 + rng.normal(size=(rows, 3)) * [1.0, 10.0, 0.1]),
        "b": torch.as_tensor(-3 + 7 * rng.normal(size=(rows, 2))),
        "counts": torch.as_tensor(rng.poisson(2.0, (rows, 4))).double(),
        "kind": kind.double(),
        "flags": torch.as_tensor(rng.integers(0, 2, (rows, 2))).double(),
    }


def data(rows=20, seed=0):
    rng = np.random.default_rng(seed + 100)
    present = torch.as_tensor(rng.random((rows, 5)) < 0.6)
    present[0], present[1] = True, False
    mask = torch.as_tensor(rng.random((rows, 3)) < 0.6)
    mask[:, 0] = True
    return mv.Batch(values=values(rows, seed), present=present, observed={"a": mask})


def seen(batch, name):
    mask = batch.column(name)[:, None].expand_as(batch.values[name])
    return mask & batch.observed[name] if name in batch.observed else mask


class TestImpute:
    def test_observed_entries_are_kept_to_the_last_bit(self):
        batch = data()
        for dtype in (torch.float32, F64):
            filled = toy(dtype).impute(batch, n_samples=20).filled
            for name in SIZES:
                mask = seen(batch, name)
                assert torch.equal(filled[name][mask], batch.values[name][mask])
                assert bool(filled[name].isfinite().all())

    def test_samples_keep_what_was_observed_and_vary_elsewhere(self):
        batch = data()
        own = toy().impute(batch, n_samples=20, keep_samples=True)
        for name in SIZES:
            mask = seen(batch, name)
            samples = own.samples[name]
            assert samples.shape == (20, *batch.values[name].shape)
            assert torch.equal(samples[:, mask], batch.values[name][mask].expand(20, -1))
        assert float(own.samples["a"].std(dim=0)[~seen(batch, "a")].min()) > 0.0
        assert toy().impute(batch, n_samples=20).samples is None
        some, every = toy().impute(batch, ("b",), n_samples=20), toy().impute(batch, n_samples=20)
        assert set(some.mean) == {"b"}
        assert torch.equal(some.quantiles["b"], every.quantiles["b"])

    def test_values_are_on_the_scale_of_the_data(self):
        own = toy().impute(data(200), n_samples=100)
        mean = own.mean["a"].mean(dim=0)
        assert float((mean - 50.0).abs().max()) < 20.0
        spread = own.quantiles["a"][2] - own.quantiles["a"][0]
        assert float((spread[:, 1] / spread[:, 0]).median()) == pytest.approx(10.0, rel=0.3)
        assert float((own.mean["b"] + 3.0).abs().mean()) < 14.0

    def test_every_kind_of_value_is_of_its_kind(self):
        batch = data()
        own = toy().impute(batch, n_samples=31, keep_samples=True)
        for what in (own.filled["counts"], own.samples["counts"], own.quantiles["counts"]):
            assert torch.equal(what, what.round())
            assert float(what.min()) >= 0.0
        for what in (own.filled["kind"], own.samples["kind"]):
            assert bool(((what == 0) | (what == 1)).all())
            assert bool((what.sum(-1) == 1).all())
        torch.testing.assert_close(own.mean["kind"].sum(-1), torch.ones(20, dtype=F64))
        for what in (own.filled["flags"], own.samples["flags"], own.quantiles["flags"]):
            assert bool(((what == 0) | (what == 1)).all())
        assert bool(((own.mean["flags"] > 0) & (own.mean["flags"] < 1)).all())

    def test_quantiles_are_those_of_the_predictive_distribution(self):
        # 4,000 draws of one row: the distribution function at a quantile of level p is p within
        # 4.5 sqrt(p (1 - p) / 4000)
        model, batch = toy(), data(3).restrict(set())
        levels = (0.05, 0.3, 0.5, 0.95)
        own = model.impute(batch, n_samples=4000, quantiles=levels)
        fresh = model.impute(batch, n_samples=4000, seed=1, keep_samples=True).samples
        for name in ("a", "b"):
            for p, quantile in zip(levels, own.quantiles[name], strict=True):
                below = (fresh[name] < quantile).double().mean(dim=0)
                assert float((below - p).abs().max()) < 4.5 * math.sqrt(2 * p * (1 - p) / 4000)

    def test_everything_about_a_row_with_nothing_comes_from_the_prior(self):
        model, batch = toy(), data()
        own = model.impute(batch, n_samples=50, keep_samples=True)
        other = model.impute(batch.restrict(set()), n_samples=50, keep_samples=True)
        for name in SIZES:  # row 1 has nothing
            assert torch.equal(own.samples[name][:, 1], other.samples[name][:, 1])

    def test_seeds(self):
        one, two, three = (toy().impute(data(), n_samples=9, seed=s).mean["a"] for s in (0, 0, 1))
        assert torch.equal(one, two)
        assert not torch.equal(one, three)

    def test_rows_do_not_depend_on_the_batch(self):
        model, batch = toy(), data(30)
        whole = model.impute(batch, n_samples=150)
        rows = torch.tensor([29, 3, 8])
        part = model.impute(batch.take(rows), n_samples=150)
        for name in SIZES:
            torch.testing.assert_close(
                part.quantiles[name], whole.quantiles[name][:, rows], rtol=1e-10, atol=1e-12
            )

    def test_a_modality_that_the_data_do_not_have(self):
        full = data()
        less = mv.Batch(values={"a": full.values["a"]}, present=full.present[:, :1])
        own = toy().impute(less, n_samples=5)
        assert own.filled["b"].shape == (20, 2)
        assert bool(own.filled["b"].isfinite().all())

    def test_other_types_of_data(self):
        full = data(6)
        own = {
            **full.values,
            "counts": full.values["counts"].long(),
            "flags": full.values["flags"] > 0,
        }
        mixed = mv.Batch(values=own, present=full.present, observed=full.observed)
        one, two = (toy().impute(batch, n_samples=9).filled for batch in (full, mixed))
        for name in SIZES:
            torch.testing.assert_close(one[name], two[name].double())

    @pytest.mark.parametrize("levels", [(0.0,), (1.0,), (0.5, 1.5), (-0.1,)])
    def test_refused_levels(self, levels):
        with pytest.raises(DataError, match="quantile levels must be between 0 and 1, got"):
            toy().impute(data(), quantiles=levels)

    def test_refused_numbers(self):
        with pytest.raises(DataError, match="n_samples must be at least 1, got 0"):
            toy().impute(data(), n_samples=0)


class TestQuantiles:
    def test_ranks(self):
        samples = torch.arange(1.0, 20.0)[torch.randperm(19)][:, None]  # 19 draws: 1 .. 19
        found = _quantiles(samples, (0.05, 0.5, 0.95), whole=False)
        assert found.flatten().tolist() == pytest.approx([1.0, 10.0, 19.0])
        assert _quantiles(samples, (0.125,), whole=False).item() == pytest.approx(2.5)
        assert _quantiles(samples, (0.125,), whole=True).item() == 2.0
        assert _quantiles(samples, (0.875,), whole=True).item() == 18.0

    def test_levels_beyond_the_draws_are_the_outermost(self):
        samples = torch.tensor([[3.0], [1.0], [2.0]])
        assert _quantiles(samples, (0.01, 0.99), whole=False).flatten().tolist() == [1.0, 3.0]

    @settings(max_examples=30, deadline=None)
    @given(n=st.integers(1, 60), p=st.floats(0.01, 0.99))
    def test_a_new_draw_falls_below_with_probability_p(self, n, p):
        # uniform draws: the expected value of the k-th of n is k / (n + 1)
        if not 1 <= p * (n + 1) <= n:
            return
        draws = torch.rand(n, 20_000, generator=torch.Generator().manual_seed(n), dtype=F64)
        mean = _quantiles(draws, (p,), whole=False).mean()
        assert abs(float(mean) - p) < 5.0 * 0.5 / math.sqrt((n + 2) * 20_000)


class TestEncode:
    def test_shapes_and_means(self):
        model, batch = toy(), data(600)
        means = model.encode(batch)
        assert {n: tuple(z.shape) for n, z in means.items()} == {
            "shared": (600, 2),
            ("private", "b"): (600, 1),
        }
        draws = model.encode(batch, n_samples=40)
        assert draws["shared"].shape == (40, 600, 2)
        whole = model.posterior(model.prepare(batch)).mean()
        torch.testing.assert_close(means["shared"], whole["shared"][0])
        gap = (draws["shared"].mean(dim=0) - means["shared"]).mean(dim=0)
        assert float(gap.abs().max()) < 4.5 / math.sqrt(40 * 600)

    def test_conditioning_is_restriction(self):
        model, batch = toy(), data()
        part = model.encode(batch.restrict({"a"}))["shared"]
        alone = mv.Batch(
            values={"a": batch.values["a"]},
            present=batch.column("a")[:, None],
            observed=batch.observed,
        )
        assert torch.equal(model.encode(alone)["shared"], part)

    def test_private_latents_of_missing_modalities_follow_the_prior(self):
        model, batch = toy(), data()
        own = model.posterior(model.prepare(batch.restrict({"a"}))).parts["private", "b"]
        assert not own.mean.any()
        assert not own.log_variance.any()

    def test_embeddings(self):
        model, batch = toy(), data()
        means = model.encode(batch)
        assert torch.equal(model.embed(batch), means["shared"])
        both = model.embed(batch, ("shared", ("private", "b")))
        assert torch.equal(both, torch.cat([means["shared"], means["private", "b"]], dim=1))
        assert torch.equal(model.embed(batch, "shared"), means["shared"])
        with pytest.raises(DataError, match="Toy has no latent 'w'; it has 'shared', .'private'"):
            model.embed(batch, ("w",))


class TestDecode:
    def test_of_one_point_and_of_many_samples(self):
        model, batch = toy(), data()
        latents = model.encode(batch, n_samples=3)
        many = model.decode(latents)
        one = model.decode({name: z[1] for name, z in latents.items()})
        for name, size in SIZES.items():
            assert many[name].mean.shape == (3, 20, size)
            torch.testing.assert_close(one[name].mean[0], many[name].mean[1])

    def test_likelihoods_are_on_the_scale_of_the_data(self):
        model = toy()
        z = {"shared": torch.zeros(1, 2), ("private", "b"): torch.zeros(1, 1)}
        raw = model.decode_one("a", model.encode(data(2), n_samples=1), model.blank(2))
        own = model.decode(z)["a"]
        scale = torch.tensor([1.0, 10.0, 0.1], dtype=F64)
        torch.testing.assert_close(own.variance.sqrt()[0, 0], 0.5 * scale)
        assert raw.variance.sqrt().unique().tolist() == [0.5]

    def test_refusals(self):
        model = toy()
        with pytest.raises(DataError, match="decode: no latents were given; pass what encode"):
            model.decode({})
        with pytest.raises(DataError, match=r"decode: .*\('private', 'b'\)"):
            model.decode({"shared": torch.zeros(3, 2)})
        with pytest.raises(DataError, match=r"decode: 'shared' has size 5.* 2"):
            model.decode({"shared": torch.zeros(3, 5), ("private", "b"): torch.zeros(3, 1)})


class TestGenerate:
    def test_deterministic_by_seed_and_the_same_for_any_number(self):
        model = toy()
        one, two, other = model.generate(700), model.generate(700), model.generate(700, seed=1)
        few = model.generate(30)
        for name, size in SIZES.items():
            assert one[name].shape == (700, size)
            assert torch.equal(one[name], two[name])
            assert not torch.equal(one[name], other[name])
            torch.testing.assert_close(few[name], one[name][:30], rtol=1e-10, atol=1e-12)
        assert len(torch.unique(one["a"], dim=0)) == 700

    def test_draws_and_means(self):
        model = toy()
        mean, draw = model.generate(4000), model.generate(4000, output="sample")
        assert torch.equal(draw["counts"], draw["counts"].round())
        assert bool((draw["kind"].sum(-1) == 1).all())
        gap = (draw["a"] - mean["a"]) / (0.5 * torch.tensor([1.0, 10.0, 0.1], dtype=F64))
        assert float(gap.mean().abs()) < 4.5 / math.sqrt(12_000)
        assert float(gap.std()) == pytest.approx(1.0, abs=0.04)

    def test_refusals(self):
        with pytest.raises(DataError, match="generate: the number of rows must be at least 1"):
            toy().generate(0)
        with pytest.raises(DataError, match="output must be 'mean' or 'sample', got 'mode'"):
            toy().generate(3, output="mode")

        class Without(Toy):
            lacks = {"generate": "it needs a condition"}

        with pytest.raises(CapabilityError, match="Without has no generate: it needs a condition"):
            toy(cls=Without).generate(3)


class TestPredict:
    def test_means_of_the_posterior_predictive(self):
        model, batch = toy(), data()
        own = model.predict(batch, n_samples=30)
        latents = model.encode(batch, n_samples=30)
        for name, likelihood in model.decode(latents).items():
            torch.testing.assert_close(own[name], likelihood.mean.mean(dim=0))
        imputed = model.impute(batch, n_samples=30)
        torch.testing.assert_close(own["a"], imputed.mean["a"])

    def test_targets(self):
        model, batch = toy(), data()
        assert list(model.predict(batch, ("b", "a"), 3)) == ["b", "a"]
        assert list(model.predict(batch, "b", 3)) == ["b"]
        with pytest.raises(DataError, match="predict: unknown modality 'c'; the model has a, b"):
            model.predict(batch, ("c",))
        with pytest.raises(DataError, match="n_samples must be at least 1, got -1"):
            model.predict(batch, n_samples=-1)

    def test_a_change_of_units_changes_units_alone(self):
        model, batch = toy(), data()
        before = model.predict(batch, n_samples=9)
        model.transforms["a"].shift.mul_(4.0)
        model.transforms["a"].scale.mul_(4.0)
        scaled = mv.Batch(
            values={**batch.values, "a": 4.0 * batch.values["a"]},
            present=batch.present,
            observed=batch.observed,
        )
        after = model.predict(scaled, n_samples=9)
        torch.testing.assert_close(after["a"], 4.0 * before["a"], rtol=1e-12, atol=0)
        torch.testing.assert_close(after["b"], before["b"], rtol=1e-12, atol=0)
