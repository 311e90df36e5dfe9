"""Noise sources: distributions, independence, and what a number may depend on.

Kolmogorov-Smirnov, chi-square and correlation tests refuse at p < 1e-4 each, with fixed seeds:
a correct generator would fail one of about 60 such checks for 6 seeds in 1,000.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from multivae_core.noise import (
    GeneratorNoise,
    RowNoise,
    ScriptedNoise,
    TrainingNoise,
    ZeroNoise,
    _open_uniform,
    _unit,
)

LEVEL = 1e-4
ROWS = torch.arange(200)


def sources(dtype=torch.float32, rows=200):
    return {
        "row": RowNoise(3, torch.arange(rows), dtype),
        "training": TrainingNoise(3, 5, dtype=dtype),
        "generator": GeneratorNoise(torch.Generator().manual_seed(4), dtype),
    }


EVERY = pytest.mark.parametrize("which", ["row", "training", "generator"])


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "law"), [("uniform", "uniform"), ("normal", "norm"), ("laplace", "laplace")]
)
def test_draws_follow_their_law(which, dtype, kind, law):
    draw = getattr(sources(dtype)[which], kind)("z", (50, 200, 3))
    assert draw.shape == (50, 200, 3)
    assert draw.dtype == dtype
    assert stats.kstest(draw.double().flatten().numpy(), law).pvalue > LEVEL
    # the tails: a Kolmogorov-Smirnov test looks at the middle
    tail = stats.kstest(stats.norm.cdf(draw.double().flatten().numpy()[:2000]), "uniform").pvalue
    assert kind != "normal" or tail > LEVEL


@EVERY
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_draws_are_independent_along_every_axis(which, axis):
    draw = sources(torch.float64)[which].normal("z", (40, 200, 4)).numpy()
    one = np.take(draw, range(draw.shape[axis] - 1), axis).ravel()
    two = np.take(draw, range(1, draw.shape[axis]), axis).ravel()
    for f in (lambda x: x, np.abs, np.square):
        assert stats.pearsonr(f(one), f(two)).pvalue > LEVEL


def test_row_numbers_are_independent_over_names_and_seeds():
    def draw(seed, name):
        return RowNoise(seed, ROWS, torch.float64).normal(name, (20, 200, 4)).flatten().numpy()

    first = draw(0, "shared")
    for seed, name in [(1, "shared"), (2, "shared"), (0, "shared2"), (0, ("shared", "a"))]:
        assert stats.pearsonr(first, draw(seed, name)).pvalue > LEVEL


def test_training_numbers_are_independent_over_steps_names_and_seeds():
    def draw(seed, number, name):
        return TrainingNoise(seed, number).normal(name, (20, 200, 4)).flatten().numpy()

    first = draw(0, 0, "z")
    for case in [(1, 0, "z"), (0, 1, "z"), (0, 0, "y"), (0, 2, "z")]:
        assert stats.pearsonr(first, draw(*case)).pvalue > LEVEL


def test_low_bits_of_rows_and_elements_do_not_show():
    # counters differ in a few low bits alone; every output bit must still be fair
    draw = RowNoise(0, torch.arange(4096), torch.float64).uniform("z", (1, 4096, 8))
    bits = (draw.flatten() * 2**40).long()
    for bit in range(40):
        ones = int(((bits >> bit) & 1).sum())
        assert stats.binomtest(ones, len(bits)).pvalue > LEVEL


@pytest.mark.parametrize("kind", ["uniform", "normal", "laplace"])
def test_a_rows_numbers_depend_on_nothing_but_the_row(kind):
    index = torch.tensor([7, 3, 100, 3])
    many = getattr(RowNoise(1, torch.arange(200)), kind)("z", (6, 200, 5))
    few = getattr(RowNoise(1, index), kind)("z", (6, 4, 5))
    assert torch.equal(few, many[:, index])
    more = getattr(RowNoise(1, index), kind)("z", (9, 4, 5))
    assert torch.equal(more[:6], few)
    wide = getattr(RowNoise(1, index), kind)("z", (6, 4, 8))
    assert torch.equal(wide[..., :5], few)


def test_names_of_every_kind_differ():
    noise = RowNoise(0, ROWS)
    names = ["a", ("a",), ("a", "b"), "('a', 'b')", ("private", "a"), "b"]
    draws = torch.stack([noise.uniform(name, (1, 200)) for name in names]).squeeze(1)
    assert len(torch.unique(draws, dim=0)) == len(names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_bits_stay_inside_the_open_interval(dtype):
    bits = torch.tensor([0, -1, 1, 2**63 - 1, -(2**63), -(2**11), -(2**12)])
    unit = _unit(bits, dtype)
    assert bool(((unit > 0) & (unit < 1)).all())
    assert bool(torch.special.ndtri(unit.double()).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, "largest"])
def test_extreme_draws_of_torch_become_finite_everywhere(monkeypatch, dtype, value):
    # torch.rand of float32 gives an exact 0 about once in 16 million numbers
    top = torch.nextafter(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))
    extreme = torch.full((3, 4), 0.0 if value == 0.0 else float(top), dtype=dtype)
    monkeypatch.setattr(torch, "rand", lambda *a, **k: extreme)
    noise = TrainingNoise(0, 0, dtype=dtype)
    uniform = noise.uniform("z", (3, 4))
    assert bool(((uniform > 0) & (uniform < 1)).all())
    assert bool(noise.laplace("z", (3, 4)).isfinite().all())
    # no further out than what the neighbouring numbers of the generator give
    assert float(noise.laplace("z", (3, 4)).abs().max()) < 40.0


def test_open_uniform_is_reproducible():
    def draw():
        generator = torch.Generator().manual_seed(1)
        return _open_uniform((5,), generator, torch.float32, torch.device("cpu"))

    assert torch.equal(draw(), draw())


@pytest.mark.parametrize("kind", ["uniform", "normal", "laplace"])
def test_processes_take_their_rows_of_the_global_draw(kind):
    whole = getattr(TrainingNoise(1, 2), kind)("z", (3, 10, 4))
    for rows in (torch.tensor([0, 2, 4, 6, 8]), torch.tensor([9, 1]), torch.arange(10)):
        own = TrainingNoise(1, 2, total=10, rows=rows)
        assert torch.equal(getattr(own, kind)("z", (3, len(rows), 4)), whole[:, rows])


def test_processes_agree_on_choices_and_batch_numbers():
    p = torch.rand(10, 3).softmax(dim=1)
    rows = torch.tensor([8, 1, 5])
    whole, own = TrainingNoise(1, 2), TrainingNoise(1, 2, total=10, rows=rows)
    assert torch.equal(own.choice("c", p[rows], 4), whole.choice("c", p, 4)[:, rows])
    assert torch.equal(own.batch_uniform("b", (2, 5)), whole.batch_uniform("b", (2, 5)))


def test_the_order_of_calls_changes_nothing_in_training():
    noise = TrainingNoise(0, 3)
    first = noise.normal("a", (2, 5, 3))
    noise.uniform("b", (1, 5))
    assert torch.equal(noise.normal("a", (2, 5, 3)), first)


def test_batch_numbers_of_rows_do_not_depend_on_rows():
    one = RowNoise(0, torch.arange(5)).batch_uniform("b", (2, 50))
    two = RowNoise(0, torch.tensor([9])).batch_uniform("b", (2, 50))
    assert torch.equal(one, two)
    many = RowNoise(0, ROWS).batch_uniform("b", (5000,)).double().numpy()
    assert stats.kstest(many, "uniform").pvalue > LEVEL


def test_random_states_outside_are_left_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    TrainingNoise(0, 0).normal("z", (2, 3, 4))
    RowNoise(0, ROWS).choice("c", torch.full((200, 2), 0.5), 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_zero_noise_is_the_location_of_everything():
    noise = ZeroNoise(torch.float64)
    assert not noise.normal("z", (2, 3)).any()
    assert not noise.laplace("z", (2, 3)).any()
    assert bool((noise.uniform("z", (2, 3)) == 0.5).all())
    assert bool((noise.batch_uniform("z", (2, 3)) == 0.5).all())
    assert noise.normal("z", (1,)).dtype == torch.float64


def test_scripted_draws_replace_their_name_alone():
    base = RowNoise(0, torch.arange(3))
    noise = ScriptedNoise(base, {"z": torch.tensor(2.0), "c": torch.tensor([[1, 0, 1]])})
    assert bool((noise.normal("z", (2, 3, 4)) == 2.0).all())
    assert bool((noise.laplace("z", (2, 3)) == 2.0).all())
    assert torch.equal(noise.normal("y", (2, 3)), base.normal("y", (2, 3)))
    assert noise.choice("c", torch.full((3, 2), 0.5), 2).tolist() == [[1, 0, 1]] * 2
    p = torch.full((3, 2), 0.5)
    assert torch.equal(noise.choice("d", p, 2), base.choice("d", p, 2))


@EVERY
def test_one_draw_chooses_components_by_their_probability(which):
    p = torch.tensor([0.1, 0.0, 0.25, 0.65])
    noise = sources(rows=20000)[which]
    chosen = noise.choice("c", p.expand(20000, 4), 1)
    seen = np.bincount(chosen.flatten().numpy(), minlength=4)
    assert seen[1] == 0
    keep = [0, 2, 3]
    assert stats.chisquare(seen[keep], 20000 * p.numpy()[keep]).pvalue > LEVEL


def test_counts_are_right_in_expectation():
    p = torch.tensor([0.37, 0.03, 0.6], dtype=torch.float64)
    chosen = RowNoise(0, torch.arange(20000), torch.float64).choice("c", p.expand(20000, 3), 7)
    counts = torch.nn.functional.one_hot(chosen, 3).sum(dim=0).double()
    error = counts.std(dim=0) / 20000**0.5
    assert bool(((counts.mean(dim=0) - 7 * p).abs() < 4.5 * error).all())


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any),
    n=st.integers(1, 30),
    seed=st.integers(-(2**40), 2**40),
    double=st.booleans(),
)
def test_every_component_gets_its_share_and_absent_ones_nothing(weights, n, seed, double):
    dtype = torch.float64 if double else torch.float32
    p = torch.tensor(weights, dtype=dtype)
    p = p / p.sum()
    chosen = RowNoise(seed, torch.arange(16), dtype).choice("c", p.expand(16, -1), n)
    assert chosen.shape == (n, 16)
    counts = torch.nn.functional.one_hot(chosen, len(weights)).sum(dim=0)
    exact = n * np.array(weights) / sum(weights)
    assert not counts[:, np.array(weights) == 0].any()
    assert bool((counts.numpy() >= np.floor(exact - 1e-6)).all())
    assert bool((counts.numpy() <= np.ceil(exact + 1e-6)).all())


def test_rounding_never_leads_past_the_last_component():
    # 10 x float32(0.1) adds up to less or more than 1
    for count in (3, 7, 10, 49):
        p = torch.full((1, count + 1), 1.0 / count)
        p[0, -1] = 0.0
        top = torch.nextafter(torch.ones(()), torch.zeros(()))
        noise = ScriptedNoise(ZeroNoise(), {})
        noise.uniform = lambda name, shape, top=top: top.expand(shape)
        assert int(noise.choice("c", p, 1000).max()) == count - 1
