"""Batches: order, resuming inside an epoch, workers, throughput."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multivae_core.data import IncompleteDataset
from multivae_core.data.iterate import count_batches, fetch, row_batches


def holed(rows: int = 50) -> IncompleteDataset:
    x = np.random.default_rng(0).normal(size=(rows, 3))
    x[::7, 1], x[3] = np.nan, np.nan
    return IncompleteDataset({"a": x, "b": x[:, ::-1] + 1}, labels=np.arange(rows),
                             allow_empty_rows=True)  # fmt: skip


@given(
    n=st.integers(1, 60),
    size=st.integers(1, 20),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_a_plan_covers_rows_and_can_be_resumed(
    n: int, size: int, epoch: int, shuffle: bool, data: st.DataObject
) -> None:
    options = {"shuffle": shuffle, "seed": 1, "epoch": epoch}
    plan = list(row_batches(n, size, **options))
    total = count_batches(n, size)
    assert len(plan) == total
    rows = torch.cat(plan).tolist()
    assert len(rows) == n
    assert len(set(rows)) == len(rows)
    assert all(len(batch) == size for batch in plan[:-1])
    if not shuffle:
        assert rows == list(range(len(rows)))
    start = data.draw(st.integers(0, total))
    rest = list(row_batches(n, size, start=start, **options))
    assert [r.tolist() for r in rest] == [r.tolist() for r in plan[start:]]


def test_every_epoch_and_seed_has_an_order_of_its_own() -> None:
    orders = {
        tuple(torch.cat(list(row_batches(40, 8, shuffle=True, seed=s, epoch=e))).tolist())
        for s in range(3)
        for e in range(3)
    }
    assert len(orders) == 9


def test_shuffling_is_uniform() -> None:
    # chi-square of 8 positions x 8 rows over 2000 epochs, 49 degrees of freedom: above 100 with
    # probability 3e-5
    counts = torch.zeros(8, 8)
    for epoch in range(2000):
        (order,) = row_batches(8, 8, shuffle=True, epoch=epoch)
        counts[torch.arange(8), order] += 1
    assert float(((counts - 250).square() / 250).sum()) < 100


def test_batches_are_the_rows_with_their_numbers() -> None:
    data = holed()
    whole = data.batch()
    for batch in data.batches(8, shuffle=True, seed=3):
        assert batch.labels.tolist() == batch.index.tolist()
        assert torch.equal(batch.present, whole.present[batch.index])
        for name in data.names:
            assert torch.equal(batch.values[name], whole.values[name][batch.index])
            assert torch.equal(batch.observed[name], whole.observed[name][batch.index])


def test_iterating_leaves_global_random_states_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(holed().batches(8, shuffle=True))
    list(holed().batches(8, shuffle=True, workers=1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_bring_the_same_batches(workers: int, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    x[::5] = np.nan
    np.save(tmp_path / "a.npy", x)
    np.save(tmp_path / "b.npy", np.arange(60).reshape(30, 2))
    data = IncompleteDataset.from_folder(tmp_path)
    here = list(data.batches(8, shuffle=True))
    there = list(data.batches(8, shuffle=True, workers=workers))
    assert [b.size for b in there] == [8, 8, 8, 6]
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.present, other.present)
        assert all(torch.equal(one.values[n], other.values[n]) for n in data.names)


def test_a_process_may_fetch_its_part_of_every_batch() -> None:
    data = holed()
    plans = [list(row_batches(len(data), 16, shuffle=True, seed=2)) for _ in range(2)]
    shares = [
        list(data.fetch(rows.tensor_split(2)[rank] for rows in plan))
        for rank, plan in enumerate(plans)
    ]
    for whole, *parts in zip(data.batches(16, shuffle=True, seed=2), *shares, strict=True):
        assert torch.equal(whole.index, torch.cat([p.index for p in parts]))


def test_batches_are_read_when_they_are_asked_for() -> None:
    read = []
    data = holed()

    def reader(rows: torch.Tensor):
        read.append(len(rows))
        return data.batch(rows)

    batches = fetch(reader, row_batches(50, 20))
    assert read == []
    next(batches)
    assert read == [20]


def test_whole_batch_fetching_is_faster_than_a_loader_of_rows() -> None:
    """The benchmark prints the ratio (above 10); here only that nothing went badly wrong."""
    import importlib.util

    path = Path(__file__).resolve().parents[2] / "benchmarks" / "data.py"
    if not path.is_file():
        pytest.skip(f"{path} is only there in a checkout of the repository")
    spec = importlib.util.spec_from_file_location("multivae_bench_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.ratio(rows=512, rounds=2) > 4
