"""Batches: which rows come when, and fetching them whole, in this process or in workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from multivae_core.data.batch import Batch
from multivae_core.data.chance import permutation
from multivae_core.data.checks import whole_number
from multivae_core.errors import DataError

__all__ = ["count_batches", "fetch", "row_batches"]

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]


def count_batches(n: int, batch_size: int, drop_last: bool = False) -> int:
    """Return how many batches n rows make."""
    return n // batch_size if drop_last else -(-n // batch_size)


def row_batches(
    n: int,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    start: int = 0,
    drop_last: bool = False,
) -> Iterator[Tensor]:
    """Cut the rows 0..n-1 into batches.

    The order depends on (n, seed, epoch) alone, not on what was drawn before: an epoch that was
    left after k batches goes on with ``start=k``.

    Args:
        n: Number of rows.
        batch_size: Rows per batch; the last one may be smaller.
        shuffle: Mix the rows; otherwise they come in their order.
        seed: Seed of the order.
        epoch: Which epoch; each has an order of its own.
        start: Batches to leave out at the beginning.
        drop_last: Leave out a last batch that is not full.

    Returns:
        Iterator of row numbers, ``(B,)`` each.

    Raises:
        DataError: A number out of its range.
    """
    batch_size = whole_number("batches: batch_size", batch_size, 1)
    seed = whole_number("batches: seed", seed)
    epoch = whole_number("batches: epoch", epoch, 0)
    start = whole_number("batches: start", start, 0)
    total = count_batches(n, batch_size, drop_last)
    if start > total:
        raise DataError(
            f"batches: start is {start}, but an epoch has {total} batches; use 0 to {total}"
        )
    order = permutation(n, seed, "epoch", epoch) if shuffle else torch.arange(n)
    cuts = range(start * batch_size, min(n, total * batch_size), batch_size)
    return (order[cut : cut + batch_size] for cut in cuts)


def fetch(
    read: Callable[[Tensor], Batch], plan: Iterable[Tensor], workers: int = 0
) -> Iterator[Batch]:
    """Read one batch after the other.

    Args:
        read: Reads the rows ``(B,)`` whole, one selection per modality.
        plan: Row numbers of each batch.
        workers: Processes that read ahead, worth having for memory-mapped files on slow disks;
            0 reads here. They are forked, so the data are neither copied nor pickled, and
            batches come back through shared memory, in order.

    Raises:
        DataError: Workers on a system that cannot fork.
    """
    if whole_number("batches: workers", workers, 0) == 0:
        return (read(rows) for rows in plan)
    if "fork" not in multiprocessing.get_all_start_methods():
        raise DataError(
            "batches: workers need a system that can fork processes, and this one cannot"
            "; use workers=0"
        )
    loader: DataLoader[Batch] = DataLoader(
        _Reader(read),
        batch_size=None,
        sampler=(rows.numpy() for rows in plan),
        num_workers=workers,
        collate_fn=_same,
        multiprocessing_context="fork",
        # its own generator: otherwise the loader takes a number from torch's global one, and
        # reading data would change what a training step draws
        generator=torch.Generator(),
    )
    return iter(loader)


class _Reader(Dataset[Batch]):
    """What a torch loader wants to see: "item" here means a whole batch."""

    def __init__(self, read: Callable[[Tensor], Batch]) -> None:
        self.read = read

    def __getitem__(self, rows: Any) -> Batch:
        return self.read(torch.from_numpy(rows))


def _same(batch: Any) -> Any:
    return batch
