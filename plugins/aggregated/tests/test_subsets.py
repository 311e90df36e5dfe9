"""Random subsets: what may be drawn, and how often (chi-square tests at p > 1e-4)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from multivae_aggregated._subsets import draw_available, draw_subsets, n_proper
from multivae_core.noise import RowNoise, TrainingNoise

LEVEL = 1e-4


def codes(subsets):
    """A number for every subset, and as many columns as it takes to count them."""
    return (subsets.long() << torch.arange(subsets.shape[-1])).sum(-1)


def test_numbers_of_proper_subsets():
    for count in range(1, 7):
        listed = [s for k in range(2, count) for s in itertools.combinations(range(count), k)]
        assert n_proper(count) == len(listed)


@pytest.mark.parametrize("by_size", [False, True])
@pytest.mark.parametrize("count", [3, 5, 20])
@pytest.mark.parametrize("rows", [None, 9])
def test_shapes_and_sizes(by_size, count, rows):
    drawn = draw_subsets(3, count, rows, TrainingNoise(0, 0), by_size=by_size)
    assert drawn.shape == ((3, count) if rows is None else (3, rows, count))
    assert drawn.dtype == torch.bool
    sizes = drawn.sum(-1)
    assert int(sizes.min()) >= 2
    assert int(sizes.max()) <= count - 1


def test_uniform_draws_are_without_replacement_and_uniform():
    drawn = draw_subsets(4, 4, 8000, RowNoise(0, torch.arange(8000)), by_size=False)
    numbers = codes(drawn)
    assert all(len(set(row)) == 4 for row in numbers.T.tolist())
    for place in range(4):
        seen = np.bincount(numbers[place].numpy(), minlength=16)
        proper = [c for c in range(16) if 2 <= c.bit_count() <= 3]
        assert seen.sum() == seen[proper].sum()
        assert stats.chisquare(seen[proper]).pvalue > LEVEL


def test_all_of_them_at_once():
    drawn = draw_subsets(n_proper(4), 4, None, TrainingNoise(0, 0), by_size=False)
    assert len(set(codes(drawn).tolist())) == n_proper(4)


def test_size_uniform_draws():
    drawn = draw_subsets(1, 5, 12000, RowNoise(0, torch.arange(12000)), by_size=True)[0]
    sizes = np.bincount(drawn.sum(-1).numpy(), minlength=6)
    assert stats.chisquare(sizes[2:5]).pvalue > LEVEL
    numbers = codes(drawn).numpy()
    for size in (2, 3, 4):
        own = [c for c in range(32) if c.bit_count() == size]
        assert stats.chisquare(np.bincount(numbers, minlength=32)[own]).pvalue > LEVEL


def test_uniform_draws_of_many_modalities():
    count = 18
    drawn = draw_subsets(1, count, 8000, RowNoise(0, torch.arange(8000)), by_size=False)[0]
    sizes = np.bincount(drawn.sum(-1).numpy(), minlength=count + 1)
    share = np.array([math.comb(count, k) if 2 <= k < count else 0 for k in range(count + 1)])
    share = share / share.sum() * 8000
    middle = slice(6, 13)
    expected = share[middle] / share[middle].sum() * sizes[middle].sum()
    assert stats.chisquare(sizes[middle], expected).pvalue > LEVEL
    members = drawn.sum(dim=0).numpy()
    assert stats.chisquare(members).pvalue > LEVEL


def test_a_draw_for_the_batch_is_the_same_on_every_process():
    whole = draw_subsets(2, 4, None, TrainingNoise(0, 7), by_size=False)
    part = TrainingNoise(0, 7, total=10, rows=torch.tensor([3, 4]))
    assert torch.equal(draw_subsets(2, 4, None, part, by_size=False), whole)


@settings(max_examples=60, deadline=None)
@given(
    present=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6),
    by_size=st.booleans(),
    seed=st.integers(0, 10**6),
    double=st.booleans(),
)
def test_available_subsets_are_of_what_is_there(present, by_size, seed, double):
    present = torch.tensor(present)
    dtype = torch.float64 if double else torch.float32
    noise = RowNoise(seed, torch.arange(len(present)), dtype)
    drawn = draw_available(7, present, noise, by_size=by_size)
    assert drawn.shape == (7, *present.shape)
    assert not (drawn & ~present).any()
    assert torch.equal(drawn.any(dim=2), present.any(dim=1).expand(7, -1))


@pytest.mark.parametrize("pattern", [(1, 1, 1, 1), (0, 1, 1, 1), (1, 0, 0, 1), (0, 0, 1, 0)])
def test_available_subsets_are_uniform(pattern):
    rows = 8000
    present = torch.tensor(pattern).bool().expand(rows, 4)
    numbers = codes(draw_available(1, present, RowNoise(3, torch.arange(rows)), by_size=False))
    whole = int(codes(present[0]))
    possible = [c for c in range(1, 16) if c & ~whole == 0]
    seen = np.bincount(numbers[0].numpy(), minlength=16)
    assert seen[possible].sum() == rows
    if len(possible) > 1:
        assert stats.chisquare(seen[possible]).pvalue > LEVEL


def test_available_subsets_by_size():
    rows = 8000
    present = torch.tensor([1, 0, 1, 1]).bool().expand(rows, 4)
    drawn = draw_available(1, present, RowNoise(3, torch.arange(rows)), by_size=True)[0]
    sizes = np.bincount(drawn.sum(-1).numpy(), minlength=4)
    assert stats.chisquare(sizes[1:]).pvalue > LEVEL
    numbers = np.bincount(codes(drawn).numpy(), minlength=16)
    assert stats.chisquare(numbers[[1, 4, 8]]).pvalue > LEVEL
    assert stats.chisquare(numbers[[5, 9, 12]]).pvalue > LEVEL


def test_draws_of_a_row_do_not_depend_on_other_rows():
    present = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]]).bool()
    whole = draw_available(5, present, RowNoise(0, torch.arange(3)), by_size=False)
    alone = draw_available(5, present[1:2], RowNoise(0, torch.tensor([1])), by_size=False)
    assert torch.equal(alone[:, 0], whole[:, 1])


def test_rows_that_draw_on_their_own_do_not_list_all_subsets_of_many_modalities(monkeypatch):
    noise, asked = TrainingNoise(0, 0), []
    uniform = noise.uniform

    def counted(name, shape):
        asked.append(math.prod(shape))
        return uniform(name, shape)

    monkeypatch.setattr(noise, "uniform", counted)
    drawn = draw_subsets(2, 16, 128, noise, by_size=False)
    assert drawn.shape == (2, 128, 16)
    assert sum(asked) < 10_000
