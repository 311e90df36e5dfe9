"""The data set and its batches: masks, types, selections."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from multivae_core.data import Batch, IncompleteDataset
from multivae_core.errors import DataError

FILLERS = (np.nan, np.inf, -np.inf, 1e30, 0.0)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def same(a: Batch, b: Batch) -> None:
    """Everything that a model may see of two batches is equal, bit for bit."""
    assert a.names == b.names
    assert torch.equal(a.present, b.present)
    for number, name in enumerate(a.names):
        x, y = a.values[name], b.values[name]
        rows = a.present[:, number].view(-1, *[1] * (x.ndim - 1))
        seen = rows & a.observed.get(name, torch.ones_like(x, dtype=torch.bool))
        other = rows & b.observed.get(name, torch.ones_like(x, dtype=torch.bool))
        assert torch.equal(seen, other)
        assert torch.equal(torch.where(seen, x, 0), torch.where(seen, y, 0))


@st.composite
def datasets(draw: st.DrawFn) -> IncompleteDataset:
    """Small data sets with holes at both levels and any filler under them."""
    rows = draw(st.integers(1, 6))
    filler = draw(st.sampled_from(FILLERS))
    shapes = {"a": (3,), "b": (2, 2), "c": (1,)}
    masks = {n: draw(hnp.arrays(bool, (rows, *s))) for n, s in shapes.items()}
    values = {n: np.where(m, numbers(*m.shape), filler) for n, m in masks.items()}
    return IncompleteDataset(values, observed=masks, labels=np.arange(rows), allow_empty_rows=True)


def test_complete_data_needs_no_mask() -> None:
    data = IncompleteDataset({"a": numbers(5, 3), "b": numbers(5, 2, 4)}, labels=[0, 1, 2, 1, 0])
    batch = data.batch()
    assert (len(data), data.names) == (5, ("a", "b"))
    assert data.shapes == {"a": (3,), "b": (2, 4)}
    assert batch.present.all()
    assert batch.observed == {}
    assert data.labels is not None
    assert data.labels.dtype == torch.int64
    assert batch.index.tolist() == [0, 1, 2, 3, 4]


def test_one_line_and_summary() -> None:
    a, b = numbers(4, 3), numbers(4, 2)
    a[1], b[2, 0] = np.nan, np.nan
    data = IncompleteDataset({"a": a, "b": b}, labels=[0.5, 1.5, 0.5, 2.0])
    assert repr(data) == "IncompleteDataset(4 rows; a (3,) float64, b (2,) float64; 12.5% missing)"
    summary = data.summary()
    assert summary.patterns == ((("a", "b"), 3), (("b",), 1))
    assert [m.missing for m in summary.modalities] == [0.25, 0.0]
    assert [m.holes for m in summary.modalities] == [0.0, 0.125]
    assert "3 different values" in str(summary)
    assert "25.0%" in str(summary)
    assert summary.as_dict()["rows"] == 4
    assert data.missing_rates() == {"a": 0.25, "b": 0.0}


def test_summary_of_many_modalities_and_patterns_stays_small() -> None:
    values = {f"m{i}": numbers(64, 2) for i in range(12)}
    data = IncompleteDataset(values).hide(0.5, seed=0)
    assert "and 4 more" in repr(data)
    assert "other patterns" in str(data.summary())


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (np.uint8, torch.uint8), (np.int32, torch.int32), (np.bool_, torch.bool),
        (np.float32, torch.float32), (np.float64, torch.float64), (np.float16, torch.float16),
        (np.uint16, torch.int32), (np.uint32, torch.int64), (np.uint64, torch.int64),
        (np.dtype(">f4"), torch.float32), (np.longdouble, torch.float64),
    ],
)  # fmt: skip
def test_types_are_kept(dtype: np.dtype, kept: torch.dtype) -> None:
    x = np.arange(6).reshape(3, 2).astype(dtype)
    present = np.array([True, False, True])
    data = IncompleteDataset(
        {"a": x, "b": numbers(3, 1)}, present=np.stack([present, ~present], 1)
    )
    got = data.batch().values["a"]
    assert got.dtype == kept == data.dtypes["a"]
    assert got.double().tolist() == np.where(present[:, None], x, 0).astype(float).tolist()


def test_array_likes_are_accepted() -> None:
    backwards = numbers(4, 3)[::-1, ::-1]
    locked = numbers(4, 2)
    locked.flags.writeable = False
    gradient = torch.ones(4, 1, requires_grad=True)
    values = {"a": backwards, "b": locked, "c": gradient, "d": [[1], [2], [3], [4]]}
    batch = IncompleteDataset(values).batch([3, 0])
    assert np.array_equal(batch.values["a"].numpy(), backwards[[3, 0]])
    assert not batch.values["c"].requires_grad
    assert batch.values["d"].tolist() == [[4], [1]]


def test_callers_arrays_are_neither_changed_nor_handed_out() -> None:
    x = numbers(4, 3)
    x[1] = np.nan
    before = x.copy()
    data = IncompleteDataset({"a": x, "b": numbers(4, 1)})
    data.batch(slice(None)).values["a"].fill_(7.0)
    assert np.array_equal(x, before, equal_nan=True)
    assert np.array_equal(data.batch([0]).values["a"].numpy(), before[:1])


def test_callers_masks_are_copied() -> None:
    mask = np.ones((3, 2), bool)
    data = IncompleteDataset({"a": numbers(3, 2), "b": numbers(3, 2)}, present=mask)
    mask[:] = False
    assert data.present.all()


def test_nan_is_the_mask_and_is_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    x, y = numbers(4, 3), numbers(4, 2)
    x[0], y[0, 1], y[3, 0] = np.nan, np.nan, np.nan
    with caplog.at_level(logging.INFO, "multivae_core"):
        data = IncompleteDataset({"a": x, "b": y})
        data.batch()
    assert [r.getMessage() for r in caplog.records] == [
        "modality 'a': 3 NaN values in 1 of 4 rows are taken as missing",
        "modality 'b': 2 NaN values in 2 of 4 rows are taken as missing",
    ]
    assert set(data.observed) == {"b"}, "whole rows need no element mask"
    assert data.present.tolist() == [[False, True], [True, True], [True, True], [True, True]]


def test_element_masks_are_kept_only_where_a_row_is_partly_observed() -> None:
    mask = np.ones((3, 2), bool)
    mask[1] = False
    data = IncompleteDataset({"a": numbers(3, 2), "b": numbers(3, 1)}, observed={"a": mask})
    assert data.observed == {}
    assert data.present[:, 0].tolist() == [True, False, True]


def test_present_and_observed_are_both_needed_to_be_seen() -> None:
    mask = np.ones((3, 2), bool)
    mask[1, 0] = False
    data = IncompleteDataset(
        {"a": numbers(3, 2), "b": numbers(3, 1)},
        observed={"a": mask},
        present={"a": np.array([True, True, False]), "b": np.ones(3, bool)},
    )
    assert data.present[:, 0].tolist() == [True, True, False]
    assert data.observed["a"].tolist() == [[True, True], [False, True], [False, False]]


def test_modality_without_an_element_mask_follows_the_nan_rule() -> None:
    y = numbers(3, 2)
    y[0, 0] = np.nan
    data = IncompleteDataset(
        {"a": numbers(3, 2), "b": y}, observed={"a": np.array([[True, False]] * 3)}
    )
    assert data.observed["b"].tolist() == [[False, True], [True, True], [True, True]]


@pytest.mark.parametrize("filler", FILLERS)
def test_whatever_lies_under_a_hole_becomes_zero(filler: float) -> None:
    x, y = numbers(3, 2), numbers(3, 2)
    x[0], y[1, 1] = filler, filler
    data = IncompleteDataset(
        {"a": x, "b": y},
        present={"a": np.array([False, True, True]), "b": np.ones(3, bool)},
        observed={"b": np.array([[True, True], [True, False], [True, True]])},
    )
    batch = data.batch()
    assert batch.values["a"][0].tolist() == [0.0, 0.0]
    assert batch.values["b"][1, 1] == 0.0
    assert all(torch.isfinite(v).all() for v in batch.values.values())


@given(datasets(), st.sets(st.sampled_from("abc")), st.data())
@settings(max_examples=60, deadline=None)
def test_restrict_subset_and_concat_commute(
    data: IncompleteDataset, names: set[str], draw: st.DataObject
) -> None:
    rows = draw.draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=8))
    index = torch.tensor(rows)
    same(data.restrict(names).subset(rows).batch(), data.subset(rows).restrict(names).batch())
    same(data.restrict(names).batch(rows), data.batch(rows).restrict(names))
    same(data.subset(rows).batch(), data.batch(rows))
    same(data.batch().take(index), data.batch(index))
    both = data.concat(data.subset(rows))
    same(both.restrict(names).batch(), data.restrict(names).concat(
        data.subset(rows).restrict(names)).batch())  # fmt: skip
    same(both.subset(slice(len(data), None)).batch(), data.subset(rows).batch())


@given(datasets())
@settings(max_examples=60, deadline=None)
def test_stored_masks_keep_their_promises(data: IncompleteDataset) -> None:
    batch = data.batch()
    for number, name in enumerate(data.names):
        x = batch.values[name]
        assert torch.isfinite(x).all()
        if name in batch.observed:
            mask = batch.observed[name].flatten(1)
            assert torch.equal(mask.any(dim=1), batch.present[:, number])
            assert (mask.any(dim=1) & ~mask.all(dim=1)).any()
            assert (x[~batch.observed[name]] == 0).all()
        else:
            assert (x[~batch.present[:, number]] == 0).all()


@given(datasets(), st.data())
@settings(max_examples=40, deadline=None)
def test_restrict_by_mask_is_never_more_than_what_is_there(
    data: IncompleteDataset, draw: st.DataObject
) -> None:
    mask = torch.from_numpy(draw.draw(hnp.arrays(bool, (len(data), 3))))
    seen = data.restrict(mask)
    assert torch.equal(seen.present, data.present & mask)
    assert len(seen) == len(data)
    same(seen.batch(), data.batch().restrict(mask))


def test_restrict_takes_names_in_many_forms() -> None:
    data = IncompleteDataset({"a": numbers(2, 1), "bc": numbers(2, 1)})
    expected = [[False, True]] * 2
    for visible in ("bc", {"bc"}, ["bc"], ("bc",), {"bc": 1}.keys(), frozenset({"bc"})):
        assert data.restrict(visible).present.tolist() == expected
    assert not data.restrict(set()).present.any()
    assert data.restrict(np.array(expected)).present.tolist() == expected


def test_subset_has_numbers_of_its_own() -> None:
    data = IncompleteDataset({"a": numbers(6, 1)}, labels=np.arange(6))
    part = data.subset([4, 1, 4])
    assert part.batch().index.tolist() == [0, 1, 2]
    assert part.labels is not None
    assert part.labels.tolist() == [4, 1, 4]
    assert len(data.subset(np.arange(6) % 2 == 0)) == 3
    assert data.subset(slice(None, None, -2)).batch().labels.tolist() == [5, 3, 1]
    assert data.batch([]).size == 0


@given(n=st.integers(3, 200), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_split_deals_every_row_once(n: int, seed: int) -> None:
    data = IncompleteDataset({"a": numbers(n, 1)}, labels=np.arange(n))
    first, second = data.split(2 / 3, 1 / 3, seed=seed)
    labels = first.concat(second).batch().labels.tolist()
    assert sorted(labels) == list(range(n))
    assert len(first) == pytest.approx(2 * n / 3, abs=0.5)
    assert first.batch().labels.tolist() == sorted(first.batch().labels.tolist())


def test_split_by_counts_with_a_remainder() -> None:
    data = IncompleteDataset({"a": numbers(100, 1)}, labels=np.arange(100))
    assert [len(part) for part in data.split(60, 30)] == [60, 30, 10]
    assert [len(part) for part in data.split(0.7, 0.15)] == [70, 15, 15]
    assert [len(part) for part in data.split(0.7, 0.2, 0.1)] == [70, 20, 10]
    again = data.split(60, seed=0)[0].batch().labels
    assert torch.equal(again, data.split(60, seed=0)[0].batch().labels)
    assert not torch.equal(again, data.split(60, seed=1)[0].batch().labels)


def test_parts_of_a_split_share_the_values() -> None:
    data = IncompleteDataset({"a": numbers(10, 2)})
    pointers = {
        part._table.columns["a"].tensor.data_ptr()
        for part in (data, *data.split(0.5, seed=0), data.split(0.5)[0].concat(data.split(0.5)[1]))
    }
    assert len(pointers) == 1


def test_concat_of_different_sources_and_orders() -> None:
    x = numbers(2, 2)
    x[0, 1] = np.nan
    one = IncompleteDataset({"a": x, "b": numbers(2, 1)}, labels=[1, 2])
    two = IncompleteDataset(
        {"b": numbers(3, 1, seed=1), "a": numbers(3, 2, seed=2)}, labels=[3] * 3
    )
    both = one.concat(two.subset([2, 0]))
    assert both.labels.tolist() == [1, 2, 3, 3]
    assert np.array_equal(both.batch([2, 3]).values["a"].numpy(), numbers(3, 2, seed=2)[[2, 0]])
    assert both.observed["a"].tolist() == [[True, False], *[[True, True]] * 3]
    assert len(one.concat()) == 2


def test_moments_are_those_of_observed_entries() -> None:
    x = 1e9 + numbers(50, 3)  # a large mean, where a sum of squares would lose all digits
    x[::4, 1], x[:, 2] = np.nan, np.nan
    mean, deviation = IncompleteDataset({"a": x}).moments("a")
    assert mean[:2].tolist() == pytest.approx(np.nanmean(x[:, :2], axis=0).tolist(), rel=1e-15)
    assert deviation[:2].tolist() == pytest.approx(np.nanstd(x[:, :2], axis=0).tolist(), rel=1e-6)
    assert (mean[2], deviation[2]) == (0.0, 0.0)


def test_moments_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = numbers(50, 3)
    x[::4, 1] = np.nan
    data = IncompleteDataset({"a": x})
    whole = data.moments("a")
    monkeypatch.setattr("multivae_core.data.checks._CHUNK", 21)
    for got, expected in zip(data.moments("a"), whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


def test_modality_missing_everywhere_is_legal() -> None:
    data = IncompleteDataset({"a": numbers(3, 2), "b": np.full((3, 2), np.nan)})
    assert data.missing_rates() == {"a": 0.0, "b": 1.0}
    assert (data.batch().values["b"] == 0).all()


def test_empty_rows_on_request() -> None:
    x = numbers(3, 2)
    x[1] = np.nan
    data = IncompleteDataset({"a": x}, allow_empty_rows=True)
    assert data.batch().something.tolist() == [True, False, True]


def test_real_cohort_with_holes_of_both_kinds() -> None:
    default = Path(__file__).resolve().parents[3] / "shared"
    folder = Path(os.environ.get("MULTIVAE_SHARED", default)) / "data" / "cll"
    if not folder.is_dir():
        pytest.skip(
            f"{folder} is not there; set MULTIVAE_SHARED to the folder that holds data/cll"
        )
    data = IncompleteDataset.from_folder(
        folder, modalities=["drugs", "mutations"], id_column="sample"
    )
    assert len(data) == 200
    assert data.shapes == {"drugs": (310,), "mutations": (67,)}
    assert data.missing_rates()["drugs"] == pytest.approx(16 / 200)
    assert set(data.observed) == {"mutations"}
    missing = 1 - data.observed["mutations"].double().mean()
    assert float(missing) == pytest.approx(0.34, abs=0.01)
    assert int((~data.observed["mutations"].all(dim=1)).sum()) == 192
    with pytest.raises(
        DataError, match=r"clinical.csv, line 2, column 'Gender': 'm' is not a num"
    ):
        IncompleteDataset.from_folder(folder, id_column="sample")
