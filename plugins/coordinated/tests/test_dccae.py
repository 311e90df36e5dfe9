"""DCCAE: its loss, its canonical variates, and what holes do to both."""

from __future__ import annotations

import math

import attrs
import numpy as np
import pytest
import torch
from scipy import stats

import multivae_core as mv
from multivae_core.correlation import (
    canonical_maps,
    correlation,
    joint_correlation,
    sum_of_correlations,
)
from multivae_core.errors import CapabilityError, ConfigError, TrainingError
from multivae_core.noise import Step

F64 = torch.float64


def codes_of(model, batch):
    return torch.stack([model.encoders[n](batch.values[n])["shared"][:, 0] for n in batch.names])


def related(rows=4000, seed=0):
    """Three embeddings of size 2 with common parts of different strength."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(rows, 2)) * [1.0, 0.4]
    made = [common + rng.normal(size=(rows, 2)) * 0.5 for _ in range(3)]
    return torch.as_tensor(np.stack([x @ rng.normal(size=(2, 2)) + 3.0 for x in made]))


@pytest.mark.parametrize("top", [None, 1])
def test_two_embeddings_have_the_same_correlation_either_way(top):
    u, v, _ = related()
    one, two = correlation(u, v, top), joint_correlation(torch.stack([u, v]), top)
    torch.testing.assert_close(one, two)
    # and it is that of scipy's canonical correlations, found by a generalised eigenvalue
    covariance = np.cov(np.concatenate([u, v], axis=1).T)
    a, b, c = covariance[:2, :2], covariance[2:, 2:], covariance[:2, 2:]
    rho = np.sqrt(np.linalg.eigvals(np.linalg.solve(a, c) @ np.linalg.solve(b, c.T)).real)
    assert float(one) == pytest.approx(max(rho) if top else rho.sum(), abs=0.03)


def test_turning_and_scaling_change_no_correlation():
    codes = related()
    turned = codes @ (100.0 * torch.randn(3, 2, 2, dtype=F64)) + 7.0
    wanted = joint_correlation(100.0 * codes)
    torch.testing.assert_close(joint_correlation(turned), wanted, rtol=1e-3, atol=0)


@pytest.mark.parametrize("rank", [2, 0])
def test_directions_that_are_not_filled_have_gradients(rank):
    seed = torch.Generator().manual_seed(1)
    filled = torch.randn(200, rank, generator=seed) @ torch.randn(rank, 6, generator=seed)
    noisy = filled + 0.3 * torch.randn(200, 6, generator=seed)
    for function in (correlation, lambda u, v: joint_correlation(torch.stack([u, v]))):
        slopes = []
        for dtype in (torch.float32, F64):
            u = filled.to(dtype, copy=True).requires_grad_()
            function(u, noisy.to(dtype)).backward()
            slopes.append(u.grad)
        torch.testing.assert_close(slopes[0].double(), slopes[1], rtol=1e-3, atol=1e-5)
    # against differences, in a direction that changes the rank
    h, way = filled.double(), 1e-5 * torch.randn(200, 6, generator=seed, dtype=F64)
    if rank:
        y, u = noisy.double(), h.clone().requires_grad_()
        correlation(u, y, rank).backward()
        gap = correlation(h + way, y, rank) - correlation(h - way, y, rank)
        assert float((2.0 * way * u.grad).sum()) == pytest.approx(float(gap), rel=1e-3)


def test_variates_agree_and_can_be_brought_back():
    codes = related()
    mean = codes.mean(dim=1, keepdim=True)
    covariance = torch.cov((codes - mean).transpose(0, 1).flatten(1).T)
    maps = canonical_maps(covariance, 3)
    variates = (codes - mean) @ maps
    total = sum(torch.cov(u.T) for u in variates) / 3
    torch.testing.assert_close(total, torch.eye(2, dtype=F64), rtol=0, atol=0.03)
    for m in range(3):
        for n in range(3):
            own = np.corrcoef(variates[m].T, variates[n].T)[:2, 2:]
            assert m == n or own[0, 0] > own[1, 1] > 0.2  # the first is the strongest
    back = variates[1] @ torch.linalg.pinv(maps[1]) + mean[1]
    torch.testing.assert_close(back, codes[1])


@pytest.mark.parametrize("kind", ["joint", "pairwise"])
def test_loss_is_the_formula(make_model, make_batch, training, kind):
    model = make_model("dccae", correlation=kind, beta=3.0)
    batch = make_batch(60)
    terms = model.loss(model.prepare(batch), training()).terms
    codes = codes_of(model, batch)
    for b in range(batch.size):
        total = 0.0
        for m, name in enumerate(batch.names):
            if batch.column(name)[b]:
                at = model.decoders[name](codes[m, b][None, None]).mean[0, 0].detach().numpy()
                total -= stats.norm.logpdf(batch.values[name][b].numpy(), at, 0.8).sum()
        assert float(terms["reconstruction"].value[b].detach()) == pytest.approx(total)
    if kind == "joint":
        whole = batch.present.all(dim=1)
        assert int(whole.sum()) >= 12
        wanted = joint_correlation(codes[:, whole])
    else:
        wanted = 0.0
        for m, n in ((0, 1), (0, 2), (1, 2)):
            both = batch.present[:, m] & batch.present[:, n]
            wanted = wanted + correlation(codes[m, both], codes[n, both])
    torch.testing.assert_close(terms["correlation"].value, -3.0 * wanted)
    terms["correlation"].value.backward()
    assert all(p.grad is not None for p in model.encoders.parameters())


@pytest.mark.parametrize("kind", ["joint", "pairwise"])
def test_few_rows_have_no_correlation(make_model, make_batch, training, kind):
    model, batch = make_model("dccae", correlation=kind), make_batch(7, holes=False)
    with pytest.raises(TrainingError, match="a batch of 7 rows says nothing of a correlation"):
        model.loss(model.prepare(batch), training())
    later = attrs.evolve(training(), number=3)  # the last batch of an epoch, say
    term = model.loss(model.prepare(batch), later).terms["correlation"]
    assert float(term.value.detach()) == 0.0
    term.value.backward()
    alone = make_model("dccae", beta=0.0).loss(model.prepare(batch), training()).terms
    assert list(alone) == ["reconstruction"]


def test_one_modality_is_decoded_as_it_was_encoded(make_model, make_batch, training):
    model, batch = make_model("dccae"), make_batch(60, holes=False)
    model.loss(model.prepare(batch), training())
    assert bool(model.shown.all())
    codes = codes_of(model, batch)
    torch.testing.assert_close(model.mean, codes.mean(dim=1).detach())
    torch.testing.assert_close(
        model.covariance, torch.cov(codes.transpose(0, 1).flatten(1).T).detach()
    )
    made = model.predict(batch.restrict({"b"}), targets=("b",), n_samples=1)["b"]
    torch.testing.assert_close(made, model.decoders["b"](codes[1][None]).mean[0].detach())
    before = model.mean.clone()
    model.loss(model.prepare(make_batch(60, seed=1)), Step(noise=training().noise))
    assert torch.equal(model.mean, before)  # evaluation moves nothing
    model.loss(model.prepare(batch.take(torch.arange(30))), training())
    wanted = torch.lerp(before, codes[:, :30].mean(dim=1).detach(), 0.1)
    torch.testing.assert_close(model.mean, wanted)


def test_what_is_shared_is_found_and_predicted(tmp_path):
    rng = np.random.default_rng(0)
    common = rng.normal(size=(2000, 1))
    views = {
        name: np.concatenate([common, rng.normal(size=(2000, size - 1))], axis=1)
        @ rng.normal(size=(size, size))
        for name, size in {"a": 3, "b": 4}.items()
    }
    train = mv.IncompleteDataset({n: x[:1500] for n, x in views.items()}).hide(0.2, seed=0)
    test = mv.IncompleteDataset({n: x[1500:] for n, x in views.items()})
    linear = {"encoder": {"type": "mlp", "hidden": []}, "decoder": {"type": "mlp", "hidden": []}}
    model = mv.create_model("dccae", train, latent_dim=1, beta=20.0, seed=0,
                            modalities=dict.fromkeys("ab", linear))  # fmt: skip
    mv.Trainer(steps=300, batch_size=500, lr=1e-2, progress=False).fit(model, train)
    for names in ("a", "b", "ab"):
        found = model.embed(test.restrict(set(names)))[:, 0].numpy()
        assert abs(stats.pearsonr(found, common[1500:, 0]).statistic) > 0.95
    a, b = (model.embed(test.restrict({n}))[:, 0].numpy() for n in "ab")
    assert stats.pearsonr(a, b).statistic > 0.9  # of one sign, on one scale
    assert np.std(a) / np.std(b) == pytest.approx(1.0, abs=0.15)
    # what b's decoder makes of a's code is what it makes of b's own
    across, own = (
        model.predict(test.restrict({n}), targets=("b",), n_samples=1)["b"].numpy() for n in "ab"
    )
    assert stats.pearsonr(across.ravel(), own.ravel()).statistic > 0.9
    model.save(tmp_path / "m")
    again = mv.load_model(tmp_path / "m")
    assert torch.equal(again.embed(test), model.embed(test))


def test_pairs_that_are_rare_are_left_out(make_batch):
    batch = make_batch(40, holes=False)
    present = batch.present.clone()
    present[5:, 0] = False
    batch = batch.restrict(present)
    codes = {n: torch.randn(40, 2, dtype=F64) for n in batch.names}
    placed = mv.Batch(values=codes, present=batch.present)
    found = sum_of_correlations(lambda name, rows: rows.values[name], placed)
    torch.testing.assert_close(found, correlation(codes["b"], codes["c"]))


def test_what_it_cannot_do(make_model, make_batch):
    model = make_model("dccae")
    for call in (model.log_likelihood, model.elbo):
        with pytest.raises(CapabilityError, match="its encoders give points"):
            call(make_batch())
    with pytest.raises(CapabilityError, match="its codes follow no prior"):
        model.generate(3)
    assert not math.isnan(float(model.embed(make_batch()).sum()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correlation": "both"}, "correlation: must be one of 'joint', 'pairwise'"),
        ({"top": 3}, "top: must be at most latent_dim=2"),
        ({"prior": "scaled"}, "prior: codes follow no prior"),
    ],
)
def test_refusals(make_model, options, message):
    with pytest.raises(ConfigError, match=message):
        make_model("dccae", **options)


def test_averages_are_taken_in_full_precision_and_by_rows(make_model, make_batch, training):
    model = make_model("dccae", latent_dim=2)
    codes = torch.randn(3, 40, 2, dtype=F64)
    everything = torch.ones(40, 3, dtype=torch.bool)
    model._watch(codes.bfloat16(), everything)
    first = model.covariance.clone()
    stacked = codes.bfloat16().double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(first, torch.cov(stacked.T).to(first))
    few = 5.0 * codes[:, :3]
    model._watch(few, everything[:3])
    moved = torch.cov(few.transpose(0, 1).flatten(1).T).to(first) - first
    # 3 of the 12 rows that a covariance of 6 takes
    torch.testing.assert_close(model.covariance, first + 0.1 * 3 / 12 * moved)


def test_covariances_are_those_of_the_rows_that_have_both(make_model):
    model = make_model("dccae", latent_dim=2)
    codes = torch.randn(3, 60, 2, dtype=F64)
    present = torch.ones(60, 3, dtype=torch.bool)
    present[:20, 0] = present[20:40, 1] = present[40:, 2] = False  # no row has everything
    spoiled = torch.where(present.T[..., None], codes, torch.nan)
    model._watch(spoiled, present)
    first, second = codes[0, 20:], torch.cat([codes[1, :20], codes[1, 40:]])
    torch.testing.assert_close(model.mean[0], first.mean(dim=0).to(model.mean))
    torch.testing.assert_close(model.covariance[2:4, 2:4], torch.cov(second.T).to(model.mean))
    left, right = codes[0, 40:] - first.mean(dim=0), codes[1, 40:] - second.mean(dim=0)
    torch.testing.assert_close(model.covariance[:2, 2:4], (left.T @ right / 19).to(model.mean))
    assert bool(model.maps().isfinite().all())
    assert bool(model.shown.all())
