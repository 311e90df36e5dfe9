"""Batches: restriction is the same as missing, rows keep their place and their numbers."""

from __future__ import annotations

import attrs
import pytest
import torch

from multivae_core.data import Batch
from multivae_core.errors import DataError


def batch(rows=6):
    generator = torch.Generator().manual_seed(0)
    values = {n: torch.randn(rows, d, generator=generator) for n, d in (("b", 2), ("a", 3))}
    present = torch.rand(rows, 2, generator=generator) < 0.7
    present[0] = True
    observed = {"a": torch.rand(rows, 3, generator=generator) < 0.8}
    return Batch(
        values=values,
        present=present,
        observed=observed,
        labels=torch.arange(rows),
        index=torch.arange(rows) + 10,
    )


def test_names_follow_the_order_of_the_values():
    own = batch()
    assert own.names == ("b", "a")
    assert own.size == 6
    assert torch.equal(own.column("a"), own.present[:, 1])
    assert torch.equal(own.something, own.present.any(dim=1))


def test_index_counts_rows_by_default():
    own = Batch(values={"a": torch.zeros(3, 1)}, present=torch.ones(3, 1, dtype=torch.bool))
    assert own.index.tolist() == [0, 1, 2]


def test_rows_are_none_when_every_row_has_the_modality():
    own = Batch(
        values={"a": torch.zeros(3, 1), "b": torch.zeros(3, 1)},
        present=torch.tensor([[1, 1], [1, 0], [1, 1]]).bool(),
    )
    assert own.rows("a") is None
    assert own.rows("b").tolist() == [0, 2]
    assert own.rows("b") is own.rows("b")
    # what was found for one batch must not be handed on to those made of it
    assert own.restrict({"a"}).rows("b").tolist() == []
    assert own.take(torch.tensor([0, 2])).rows("b") is None


@pytest.mark.parametrize("visible", [{"a"}, ["a"], ("a",), "a", (n for n in ["a"])])
def test_restrict_by_names(visible):
    own = batch()
    seen = own.restrict(visible)
    assert not seen.column("b").any()
    assert torch.equal(seen.column("a"), own.column("a"))
    assert torch.equal(seen.index, own.index)
    assert seen.size == own.size


def test_restrict_by_mask_shows_nothing_that_was_missing():
    own = batch()
    mask = torch.rand(6, 2) < 0.5
    assert torch.equal(own.restrict(mask).present, own.present & mask)
    assert torch.equal(own.restrict(torch.ones(6, 2).bool()).present, own.present)


def test_what_is_seen_is_present_and_observed():
    own = batch().restrict(torch.tensor([[True, True], [True, False]] * 3))
    assert torch.equal(own.seen("a"), own.observed["a"] & own.column("a")[:, None])
    assert torch.equal(own.seen("b"), own.column("b")[:, None].expand(6, 2))


def test_restricting_twice_is_restricting_to_both():
    own = batch()
    assert not own.restrict({"a"}).restrict({"b"}).present.any()
    assert torch.equal(own.restrict(set()).present, torch.zeros(6, 2).bool())


@pytest.mark.parametrize(
    ("visible", "message"),
    [
        ({"c"}, "restrict: unknown modality 'c'; this data has b, a: use names"),
        (
            torch.ones(6, 2),
            "restrict: the mask has dtype float32: masks are bool, True where seen",
        ),
        (
            torch.ones(6, 1).bool(),
            r"restrict: the mask has shape \(6, 1\), expected \(6, 2\): pass a mask",
        ),
        (torch.ones(2).bool(), r"restrict: the mask has shape \(2,\), expected \(6, 2\)"),
    ],
)
def test_refusals(visible, message):
    with pytest.raises(DataError, match=message):
        batch().restrict(visible)


def test_take_keeps_everything_of_a_row_together():
    own = batch()
    rows = torch.tensor([4, 0, 4])
    taken = own.take(rows)
    for name in own.names:
        assert torch.equal(taken.values[name], own.values[name][rows])
    assert torch.equal(taken.observed["a"], own.observed["a"][rows])
    assert taken.labels.tolist() == [4, 0, 4]
    assert taken.index.tolist() == [14, 10, 14]
    assert torch.equal(taken.present, own.present[rows])


def test_moving_keeps_everything():
    own = batch()
    moved = own.to("cpu")
    assert torch.equal(moved.present, own.present)
    assert attrs.evolve(own, labels=None).to("cpu").labels is None


def test_batches_are_frozen():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        batch().present = None


def test_one_pattern_stands_for_complete_rows():
    own = batch()
    assert torch.equal(own.patterns, own.present)
    whole = attrs.evolve(own, present=torch.ones(6, 2).bool())
    assert whole.patterns.tolist() == [[True, True]]
    assert torch.equal(whole.restrict({"a"}).patterns, whole.restrict({"a"}).present)
    assert whole.take(torch.tensor([], dtype=torch.long)).patterns.shape == (0, 2)


def test_what_may_be_seen_of_a_modality():
    own = batch()
    assert torch.equal(own.seen("b"), own.column("b")[:, None].expand(6, 2))
    assert torch.equal(own.seen("a"), own.column("a")[:, None] & own.observed["a"])


def test_other_values_in_another_order():
    own = batch()
    assert own.rows("a") is not None
    values = {"a": torch.zeros(6, 3), "c": torch.zeros(6, 1), "b": torch.zeros(6, 2)}
    other = own.with_values(values, {})
    assert other.names == ("a", "c", "b")
    for name in "ab":
        assert torch.equal(other.column(name), own.column(name))
        assert torch.equal(other.rows(name), own.rows(name))
    assert not other.column("c").any()
    assert torch.equal(other.index, own.index)
    same = own.with_values({n: 0 * x for n, x in own.values.items()}, {})
    assert torch.equal(same.present, own.present)
    assert same.rows("b") is own.rows("b")
