"""What must not change a number: values under holes, order, batches, chunks, units, other rows.

Bit for bit where the same arithmetic is done; to 1e-10 relative in float64 (1e-4 in float32)
where sums are taken in another order.
"""

from __future__ import annotations

import math

import attrs
import numpy as np
import pytest
import torch

import multivae_core as mv
from multivae_core.noise import RowNoise, Step, TrainingNoise
from multivae_core.priors import ScaledPrior

SHAPES = {"real": (3,), "image": (1, 6, 6), "kind": (4,)}
LIKELIHOODS = {
    "real": {"type": "normal", "scale": "learned"},
    "image": {"type": "normal", "scale": 0.5},
    "kind": {"type": "categorical"},
}
FLOWS = {"hidden": [8], "transforms": 2, "context_dim": 4, "n_mean": 4}
CASES = {
    "jmvae": ("jmvae", {}),
    "jmvae surrogates": (
        "jmvae",
        {"incomplete": "surrogate_poe", "modality_dropout": 0.3, "detach_joint": True},
    ),
    "telbo": ("telbo", {}),
    "telbo joint": (
        "telbo",
        {"subset_encoder": "mask_aware", "predict_both": True, "path_derivative": True},
    ),
    "jnf": ("jnf", {**FLOWS, "hmc_steps": 4, "leapfrog_steps": 2}),
    "jnf resampled": (
        "jnf",
        {**FLOWS, "sampler": "sir", "flow_context": "base", "candidates": 8, "n_samples": 2},
    ),
    "mvae": ("mvae", {}),
    "mvae random subsets": (
        "mvae",
        {"n_subsets": 1, "per_row_subsets": True, "prior_expert": "never"},
    ),
    "mvae weighted": ("mvae", {"fusion": "weighted_product", "term_reduction": "mean"}),
    "mmvae": ("mmvae", {"n_samples": 2}),
    "mmvae dreg": (
        "mmvae",
        {"n_samples": 2, "estimator": "dreg", "bound": "tight", "family": "normal"},
    ),
    "mmvae sources": ("mmvae", {"n_samples": 3, "n_sources": 1}),
    "mmvae_plus": ("mmvae_plus", {"private_dims": 2}),
    "mmvae_plus dreg": (
        "mmvae_plus",
        {
            "n_samples": 2,
            "estimator": "dreg",
            "bound": "tight",
            "family": "normal",
            "private_dims": {"real": 2},
            "learn_prior_w": True,
            "cross_private": "aux",
        },
    ),
    "mmvae_plus factorized": (
        "mmvae_plus",
        {"variant": "factorized", "n_samples": 3, "n_sources": 1, "tie_private_prior": True},
    ),
    "dmvae": ("dmvae", {}),
    "dmvae options": (
        "dmvae",
        {
            "private_dims": {"real": 2},
            "n_sources": 2,
            "term_reduction": "mean",
            "kl_count": "official",
            "prior_expert": "always",
        },
    ),
    "mopoe": ("mopoe", {}),
    "mopoe private": (
        "mopoe",
        {"private_dims": {"real": 2}, "n_components_per_step": 2, "encode_with": "mixture"},
    ),
    "mopoe subsets": ("mopoe", {"n_subsets": 2, "proposal": "product"}),
    "mopoe learned weights": (
        "mopoe",
        {"subset_weights": "learned", "n_components_per_step": 2, "encode_with": "mixture"},
    ),
    "codevae": ("codevae", {}),
    "mwbvae": ("mwbvae", {"private_dims": {"image": 2}}),
    "helvae": ("helvae", {}),
    "helvae mixture": ("helvae", {"fusion": "hellinger_mixture"}),
    "masked_pi": ("masked_pi", {"fusion": {"type": "pooling", "width": 8}}),
    "masked_pi attention": (
        "masked_pi",
        {
            "fusion": {"type": "pooling", "pooling": "attention", "width": 8},
            "mask_sampling": "size",
            "private_dims": {"real": 2},
            "prior_expert": "always",
        },
    ),
    "mvtcae": ("mvtcae", {}),
    "mvtcae defensive": ("mvtcae", {"proposal": "defensive", "prior_expert": "largest"}),
    "mmjsd": ("mmjsd", {"weights": {"real": 2.0}}),
    "mmjsd sampled": (
        "mmjsd",
        {
            "prior_component": "sampled",
            "private_dims": {"real": 2},
            "n_components_per_step": 2,
            "aggregation": "mixture",
        },
    ),
    "gpoe": ("gpoe", {}),
    "gpoe experts": ("gpoe", {"fusion": "mixture"}),
    "gpoe mixture": (
        "gpoe",
        {
            "fusion": "mixture_of_products",
            "private_dims": {"image": 2},
            "likelihood_reduction": "mean",
        },
    ),
}
EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
MAIN_CASES = pytest.mark.parametrize(
    "case", [CASES[name] for name in ("mvae", "mmvae", "mopoe private")]
)
FILLERS = [math.nan, math.inf, -math.inf, 1e30]


def batch_of(rows=14, seed=0, holes=True, elements=True, order=tuple(SHAPES)):
    """Rows 0 (everything) and 1 (nothing) are given; values under holes are ordinary numbers."""
    rng = np.random.default_rng(seed)
    values = {
        "real": torch.as_tensor(5.0 + rng.normal(size=(rows, 3)) * [1.0, 20.0, 0.1]),
        "image": torch.as_tensor(rng.normal(size=(rows, 1, 6, 6))),
        "kind": torch.nn.functional.one_hot(torch.as_tensor(rng.integers(0, 4, rows)), 4).double(),
    }
    present = {name: torch.as_tensor(rng.random(rows) < 0.6) for name in SHAPES}
    observed = {"real": torch.as_tensor(rng.random((rows, 3)) < 0.6)}
    observed["real"][:, 0] = True
    observed["image"] = torch.as_tensor(rng.random((rows, 1, 6, 6)) < 0.6)
    observed["image"][:, 0, 0, 0] = True
    for name in SHAPES:
        present[name][0], present[name][1] = True, False
        if not holes:
            present[name][:] = True
    return mv.Batch(
        values={name: values[name] for name in order},
        present=torch.stack([present[name] for name in order], dim=1),
        observed={name: observed[name] for name in order if name in observed} if elements else {},
        index=torch.arange(rows) + 100,
    )


def seen(batch, name):
    mask = batch.column(name).view(-1, *(1 for _ in SHAPES[name])).expand_as(batch.values[name])
    return mask & batch.observed[name] if name in batch.observed else mask


def filled(batch, filler):
    """The batch with a number under every hole."""
    values = {n: torch.where(seen(batch, n), x, filler) for n, x in batch.values.items()}
    return attrs.evolve(batch, values=values)


def dataset(batch):
    return mv.IncompleteDataset(
        batch.values,
        present={name: batch.column(name) for name in batch.names},
        observed=batch.observed,
        allow_empty_rows=True,
    )


def model_of(case, data=None, dtype="float64", order=tuple(SHAPES)):
    name, options = case
    small = {
        "mlp": {"type": "mlp", "hidden": [8]},
        "conv": {"type": "conv", "channels": [4], "hidden": []},
    }
    modalities = {}
    for modality in order:
        network = small["conv" if modality == "image" else "mlp"]
        modalities[modality] = {
            "likelihood": LIKELIHOODS[modality],
            "encoder": network,
            "decoder": network,
        }
    data = dataset(batch_of(40, seed=9)) if data is None else data
    return mv.create_model(
        name, data, latent_dim=3, modalities=modalities, dtype=dtype, seed=1, **options
    )


def step_of(batch, dtype=torch.float64, training=False):
    if training:
        return Step(training=True, noise=TrainingNoise(0, 3, dtype=dtype))
    return Step(noise=RowNoise(0, batch.index, dtype))


def losses(model, batch, step=None):
    """Loss of every row, and the gradient of the objective."""
    model.zero_grad()
    prepared = model.prepare(batch)
    step = step_of(batch, training=True) if step is None else step
    out = model.loss(prepared, step)
    seen = prepared.something
    means = [
        torch.where(seen, term.value, 0.0).sum() / seen.sum().clamp_min(1)
        for term in out.terms.values()
    ]
    sum(means).backward()
    found = {name: term.value.detach() for name, term in out.terms.items()}
    found |= {f"metric {name}": value for name, value in out.metrics.items()}
    if out.bound is not None:
        found["bound"] = out.bound
    return found, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def evaluations(model, batch):
    """Everything that the model says about a batch, row by row: name -> (rows, ...)."""
    found = {f"mean {n}": z for n, z in model.encode(batch).items()}
    found |= {f"draw {n}": z.transpose(0, 1) for n, z in model.encode(batch, 3).items()}
    own = model.impute(batch, n_samples=7, keep_samples=True)
    for name in model.modalities:
        found[f"filled {name}"] = own.filled[name]
        found[f"imputed mean {name}"] = own.mean[name]
        found[f"quantiles {name}"] = own.quantiles[name].transpose(0, 1)
        found[f"samples {name}"] = own.samples[name].transpose(0, 1)
    found |= {f"predicted {n}": x for n, x in model.predict(batch, n_samples=5).items()}
    for verb in ("elbo", "log_likelihood"):
        estimate = getattr(model, verb)(batch, n_samples=11)
        found[verb] = estimate.value
        found[f"{verb} error"] = estimate.standard_error
        found[f"{verb} size"] = estimate.effective_sample_size
    conditional = model.conditional_log_likelihood(batch, ("kind",), ("real",), n_samples=11)
    found["conditional"] = conditional.value
    return found


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
        assert bool(value.isfinite().all()), name


def assert_close(one, two, tolerance=1e-10):
    assert one.keys() == two.keys()
    for name, value in one.items():
        scale = max(1.0, float(value.detach().abs().max()))
        torch.testing.assert_close(
            two[name],
            value,
            rtol=tolerance,
            atol=tolerance * scale,
            msg=lambda m, n=name: f"{n}: {m}",
        )


class TestBitForBit:
    @EVERY_CASE
    @pytest.mark.parametrize("filler", FILLERS)
    def test_values_under_holes(self, case, filler):
        model, batch = model_of(case), batch_of()
        other = filled(batch, filler)
        for one, two in zip(losses(model, batch), losses(model, other), strict=True):
            assert_same(one, two)
        before = {name: value.clone() for name, value in other.values.items()}
        assert_same(evaluations(model, batch), evaluations(model, other))
        for name, value in before.items():  # what the user gave is left alone
            torch.testing.assert_close(other.values[name], value, rtol=0, atol=0, equal_nan=True)

    @MAIN_CASES
    @pytest.mark.parametrize("filler", FILLERS)
    def test_values_under_holes_of_the_data_a_model_is_made_for(self, case, filler):
        batch = batch_of(40)
        one = model_of(case, dataset(batch)).state_dict()
        two = model_of(case, dataset(filled(batch, filler))).state_dict()
        assert_same(
            {k: v for k, v in one.items() if v.is_floating_point()},
            {k: v for k, v in two.items() if v.is_floating_point()},
        )

    @EVERY_CASE
    @pytest.mark.parametrize("element_mask", [False, True])
    def test_a_complete_data_set_is_one_without_holes(self, case, element_mask):
        train = dataset(batch_of(40, seed=9, holes=False, elements=element_mask))
        model = model_of(case, train)
        batch = batch_of(holes=False, elements=False)
        whole = {name: torch.ones_like(x, dtype=torch.bool) for name, x in batch.values.items()}
        complete = mv.IncompleteDataset(batch.values)
        masked = dataset(attrs.evolve(batch, observed=whole))
        rows = torch.arange(14)
        one, two = losses(model, complete.batch(rows)), losses(model, masked.batch(rows))
        assert_same(one[0], two[0])
        assert_same(one[1], two[1])
        first = evaluations(model, complete)
        assert_same(first, evaluations(model, masked))
        assert_same(first, evaluations(model, masked.restrict(set(SHAPES))))
        # a batch made by hand with masks that hide nothing: sums may be taken in another order
        by_hand = attrs.evolve(complete.batch(rows), observed=whole)
        three = losses(model, by_hand)
        assert_same(one[0], three[0])
        assert_close(one[1], three[1], 1e-12)
        assert_same(first, evaluations(model, by_hand))

    @EVERY_CASE
    def test_the_same_seed_twice(self, case):
        one, two, batch = model_of(case), model_of(case), batch_of()
        assert_same(dict(one.named_parameters()), dict(two.named_parameters()))
        torch.manual_seed(5)
        first = losses(one, batch), evaluations(one, batch), one.generate(5)
        torch.manual_seed(6)
        second = losses(two, batch), evaluations(two, batch), two.generate(5)
        assert_same(first[0][0], second[0][0])
        assert_same(first[0][1], second[0][1])
        assert_same(first[1], second[1])
        assert_same(first[2], second[2])

    @EVERY_CASE
    def test_restricted_is_missing(self, case):
        model, batch = model_of(case), batch_of()
        for names in ({"real"}, {"real", "kind"}, {"image"}, set()):
            restricted = batch.restrict(names)
            mask = torch.tensor([name in names for name in batch.names])
            missing = filled(attrs.evolve(batch, present=batch.present & mask), math.nan)
            for one, two in zip(losses(model, restricted), losses(model, missing), strict=True):
                assert_same(one, two)
            assert_same(evaluations(model, restricted), evaluations(model, missing))
            if names:
                without = mv.Batch(
                    values={n: x for n, x in batch.values.items() if n in names},
                    present=batch.present[:, [n in names for n in batch.names]],
                    observed={n: x for n, x in batch.observed.items() if n in names},
                    index=batch.index,
                )
                found = losses(model, without)
                assert_same(found[0], losses(model, restricted)[0])
                own = model.log_likelihood(without, n_samples=11).value
                assert torch.equal(own, model.log_likelihood(restricted, n_samples=11).value)


class TestOrder:
    @EVERY_CASE
    def test_of_rows(self, case):
        model, batch = model_of(case), batch_of()
        order = torch.randperm(batch.size, generator=torch.Generator().manual_seed(0))
        moved = batch.take(order)
        one, two = evaluations(model, batch), evaluations(model, moved)
        assert_close({name: x[order] for name, x in one.items()}, two)
        if not case[1].get("n_subsets"):  # those of MVAE belong to the batch
            (values, gradients), (other, others) = (
                losses(model, b, step_of(b)) for b in (batch, moved)
            )
            assert_close({name: x[order] for name, x in values.items()}, other)
            assert_close(gradients, others)

    @EVERY_CASE
    def test_of_modalities(self, case):
        back = tuple(reversed(SHAPES))
        one = model_of(case, dataset(batch_of(40, seed=9)))
        two = model_of(case, dataset(batch_of(40, seed=9, order=back)), order=back)
        assert one.modalities == two.modalities
        assert_same(dict(one.named_parameters()), dict(two.named_parameters()))
        batch, other = batch_of(), batch_of(order=back)
        for first, second in zip(losses(one, batch), losses(two, other), strict=True):
            assert_same(first, second)
        assert_same(evaluations(one, batch), evaluations(two, other))
        assert_same(evaluations(one, batch), evaluations(one, other))


class TestBatches:
    @EVERY_CASE
    def test_splits(self, case):
        model, batch = model_of(case), batch_of()
        parts = [batch.take(torch.tensor(r)) for r in ([0], [1, 2, 3, 4], list(range(5, 14)))]
        pieces = [evaluations(model, part) for part in parts]
        whole = evaluations(model, batch)
        assert_close(whole, {n: torch.cat([piece[n] for piece in pieces]) for n in whole})
        values, gradients = losses(model, batch, step_of(batch))
        split = [losses(model, part, step_of(part)) for part in parts]
        assert_close(values, {n: torch.cat([piece[0][n] for piece in split]) for n in values})
        counts = [int(part.something.sum()) for part in parts]
        total = {
            name: sum(
                count * piece[1][name]
                for count, piece in zip(counts, split, strict=True)
                if name in piece[1]
            )
            / sum(counts)
            for name in gradients
        }
        assert_close(gradients, total)

    @EVERY_CASE
    def test_parts_of_the_global_batch(self, case):
        # two processes with half of the rows each draw what one with all of them draws
        model, batch = model_of(case), batch_of()
        values, _ = losses(model, batch, step_of(batch, training=True))
        for rows in (torch.arange(0, 7), torch.arange(7, 14)):
            noise = TrainingNoise(0, 3, total=14, rows=rows, dtype=torch.float64)
            part, _ = losses(model, batch.take(rows), Step(training=True, noise=noise))
            assert_close({name: x[rows] for name, x in values.items()}, part)

    @EVERY_CASE
    @pytest.mark.parametrize("latent_rows", [1, 13, 10**6])
    def test_chunks(self, case, latent_rows):
        model, batch = model_of(case), batch_of()
        for verb in ("elbo", "log_likelihood"):
            one = getattr(model, verb)(batch, n_samples=11)
            two = getattr(model, verb)(batch, n_samples=11, latent_rows=latent_rows)
            assert_close(attrs_of(one), attrs_of(two), 1e-8)
            assert_close({"value": one.value}, {"value": two.value})

    @EVERY_CASE
    def test_holes_of_other_rows(self, case):
        model, batch = model_of(case), batch_of()
        mine = torch.tensor([0, 3, 4])
        mask = torch.zeros_like(batch.present)
        for other in (torch.zeros_like(mask), torch.tensor([True, False, False]).expand(14, 3)):
            mask = other.clone()
            mask[mine] = True
            changed = filled(batch.restrict(mask), math.nan)
            one, two = evaluations(model, batch), evaluations(model, changed)
            assert_close(
                {n: x[mine] for n, x in one.items()}, {n: x[mine] for n, x in two.items()}
            )

    @MAIN_CASES
    def test_float32(self, case):
        model, batch = model_of(case, dtype="float32"), batch_of()
        order = torch.arange(13, -1, -1)
        one, two = evaluations(model, batch), evaluations(model, batch.take(order))
        for what in ("log_likelihood", "elbo", "conditional", "mean shared", "predicted real"):
            assert_close({what: one[what][order]}, {what: two[what]}, 1e-4)
        wide = model_of(case)
        wide.load_state_dict(model.state_dict())
        for what in ("log_likelihood", "elbo", "mean shared"):
            exact = {what: evaluations(wide, batch)[what]}
            assert_close(exact, {what: one[what].double()}, 1e-4)


def attrs_of(estimate):
    return {
        name: value
        for name, value in attrs.asdict(estimate).items()
        if isinstance(value, torch.Tensor)
    }


@EVERY_CASE
@pytest.mark.parametrize("factor", [1000.0, 0.04])
def test_a_change_of_units_changes_units_alone(case, factor):
    def scaled(batch):
        return attrs.evolve(batch, values={**batch.values, "real": factor * batch.values["real"]})

    batch, train = batch_of(), batch_of(40, seed=9)
    one, two = model_of(case, dataset(train)), model_of(case, dataset(scaled(train)))
    assert_close(dict(one.named_parameters()), dict(two.named_parameters()))
    for first, second in zip(losses(one, batch), losses(two, scaled(batch)), strict=True):
        assert_close(first, second, 1e-9)
    before, after = evaluations(one, batch), evaluations(two, scaled(batch))
    observed = seen(batch, "real").sum(dim=1).double()
    for name in before:
        expected, tolerance = before[name], 1e-9
        if name.endswith(" real"):
            expected = factor * expected
        elif name in ("elbo", "log_likelihood", "conditional"):
            expected = expected - observed * math.log(factor)
        assert_close({name: expected}, {name: after[name]}, tolerance)


@EVERY_CASE
def test_rows_with_nothing_weigh_nothing(case):
    model, batch = model_of(case), batch_of()
    keep = batch.something.nonzero().squeeze(1)
    assert 0 < len(keep) < batch.size
    values, gradients = losses(model, batch, step_of(batch))
    part = batch.take(keep)
    own, others = losses(model, part, step_of(part))
    assert_close({name: x[keep] for name, x in values.items()}, own)
    assert_close(gradients, others)
    empty = ~batch.something
    for verb in ("elbo", "log_likelihood"):
        estimate = getattr(model, verb)(batch, n_samples=11)
        assert not estimate.value[empty].any()
        assert not estimate.standard_error[empty].abs().gt(1e-7).any()


@EVERY_CASE
def test_rows_with_nothing_have_the_prior(case):
    model, batch = model_of(case), batch_of()
    with torch.no_grad():
        scaled = [own for own in model.modules() if isinstance(own, ScaledPrior)]
        for number, own in enumerate(scaled):
            own.raw_scale.copy_(torch.linspace(0.5, -0.3, len(own.raw_scale)) * (number + 1))
    if "posterior_density" in model.lacks:
        pytest.skip(model.lacks["posterior_density"])
    prepared = model.prepare(batch)
    latents = model.prior(prepared).sample(6, batch.size, RowNoise(8, batch.index, model.dtype))
    with torch.no_grad():
        q = model.posterior(prepared).log_prob(latents)[:, 1]
        p = model.prior(prepared).log_prob(latents)[:, 1]
    assert_close({"density": p}, {"density": q})
    assert not any(bool(z[1].any()) for z in model.encode(batch).values())


@EVERY_CASE
@pytest.mark.parametrize("names", [{"real"}, {"image", "kind"}])
def test_gradients_reach_the_networks_of_what_is_present(case, names):
    model, batch = model_of(case), batch_of(holes=False).restrict(names)
    _, gradients = losses(model, batch)
    for name in model.modalities:
        place = model.modalities.index(name)
        for role in ("encoders", "decoders"):
            own = [g for n, g in gradients.items() if n.startswith(f"{role}.each.{place}.")]
            reached = any(bool(g.any()) for g in own)
            assert reached is (name in names), (role, name)


@EVERY_CASE
def test_gradients_of_a_row_reach_what_it_has_whatever_others_have(case):
    # one row with everything, the others with nothing but "kind"
    model, batch = model_of(case), batch_of(holes=False)
    mask = torch.zeros(14, 3, dtype=torch.bool)
    mask[:, 2] = True
    mask[4] = True
    _, gradients = losses(model, batch.restrict(mask))
    kept = {name for name, gradient in gradients.items() if bool(gradient.any())}
    needed = {n for n in gradients if n.startswith(("encoders", "decoders"))}
    drawn = case[1].get("n_sources") or (case[0] == "mopoe" and case[1].get("n_subsets"))
    if not drawn:
        assert {n for n in needed if n.endswith("bias")} <= kept | {
            n for n in needed if "likelihood" in n
        }
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
