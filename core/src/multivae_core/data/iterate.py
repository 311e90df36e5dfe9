"""Which rows come when: seeded numbers, selections, splits and batches; and fetching batches."""

from __future__ import annotations

import hashlib
import itertools
import math
import multiprocessing
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from multivae_core.data.batch import Batch
from multivae_core.data.checks import to_tensor, whole_number
from multivae_core.errors import DataError

__all__ = [
    "count_batches", "fetch", "permutation", "row_batches", "split_rows", "to_rows", "uniforms",
]  # fmt: skip


def uniforms(shape: tuple[int, ...], *key: Hashable) -> Tensor:
    """Draw float64 numbers from [0, 1) that depend on the shape and the key alone.

    Raw counter output is used, whose stream numpy keeps from release to release, which it does
    not promise for its distributions.
    """
    bits = _raw(torch.Size(shape).numel(), key) >> np.uint64(11)
    return torch.from_numpy(bits * 2.0**-53).view(shape)


def permutation(n: int, *key: Hashable) -> Tensor:
    """Return the numbers 0..n-1 in an order that depends on n and the key alone, ``(n,)``."""
    return torch.from_numpy(np.argsort(_raw(n, key), kind="stable"))


def _raw(count: int, key: tuple[Hashable, ...]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(count)


def to_rows(index: Any, n: int) -> Tensor:
    """Return row numbers ``(R,)``: from a slice, numbers, or a bool mask; None means all."""
    if index is None or isinstance(index, slice):
        return torch.arange(*(index or slice(None)).indices(n))
    x = to_tensor("index", index)
    if x.dtype == torch.bool:
        if tuple(x.shape) != (n,):
            raise DataError(
                f"index: a bool mask has shape {tuple(x.shape)}, expected ({n},), one per row"
                "; pass row numbers, or a mask of that shape"
            )
        return x.nonzero().squeeze(1)
    if x.ndim != 1 or (x.is_floating_point() and x.numel()):
        raise DataError(
            f"index: got {str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}; rows"
            " are selected by a list of whole numbers, a bool mask or a slice"
        )
    rows = x.long()
    outside = rows[(rows < 0) | (rows >= n)]
    if outside.numel():
        raise DataError(
            f"index: row {int(outside[0])} does not exist; this data has rows 0 to {n - 1}"
            ", counted from the front: check where the numbers come from"
        )
    return rows


def split_rows(n: int, parts: tuple[float, ...], seed: int) -> list[Tensor]:
    """Deal n rows to parts (shares or counts) at random, every part in ascending order."""
    whole = all(isinstance(part, int) and not isinstance(part, bool) for part in parts)
    shares = all(isinstance(part, float) and math.isfinite(part) for part in parts)
    if not parts or not (whole or shares) or any(part <= 0 for part in parts):
        raise DataError(
            f"split: parts are {parts}; give positive shares such as (0.7, 0.15) or counts such"
            " as (1000, 200), not both; what is left over is the last part"
        )
    limit, unit, slack = (n, " rows", 0.0) if whole else (1.0, "", 1e-9)
    total = math.fsum(parts)
    if total > limit + slack:
        raise DataError(
            f"split: the parts {parts} sum to {total:g}, more than {limit:g}{unit}; make them"
            " smaller"
        )
    scale = 1 if whole else n
    ends = [min(n, math.floor(end * scale + 0.5)) for end in itertools.accumulate(parts)]
    bounds = [0, *ends, *([n] if total < limit - slack else [])]
    for number, (start, end) in enumerate(itertools.pairwise(bounds), start=1):
        if start == end:
            raise DataError(
                f"split: part {number} of {len(bounds) - 1} would have no rows out of {n}"
                "; give it a larger share or leave it out"
            )
    order = permutation(n, whole_number("split: seed", seed), "split")
    return [order[start:end].sort().values for start, end in itertools.pairwise(bounds)]


def count_batches(n: int, batch_size: int) -> int:
    """Return how many batches n rows make."""
    return -(-n // batch_size)


def row_batches(
    n: int,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    start: int = 0,
) -> Iterator[Tensor]:
    """Cut the rows 0..n-1 into batches.

    The order depends on (n, seed, epoch) alone, not on what was drawn before: an epoch that was
    left after k batches goes on with ``start=k``.

    Returns:
        Iterator of row numbers, ``(B,)`` each; the last one may be smaller.
    """
    batch_size = whole_number("batches: batch_size", batch_size, 1)
    seed = whole_number("batches: seed", seed)
    epoch = whole_number("batches: epoch", epoch, 0)
    start = whole_number("batches: start", start, 0)
    if start > (total := count_batches(n, batch_size)):
        raise DataError(
            f"batches: start is {start}, but an epoch has {total} batches; use 0 to {total}"
        )
    order = permutation(n, seed, "epoch", epoch) if shuffle else torch.arange(n)
    return (order[cut : cut + batch_size] for cut in range(start * batch_size, n, batch_size))


class _Reader(Dataset[Batch]):
    """What a torch loader wants to see: "item" here means a whole batch."""

    def __init__(self, read: Callable[[Tensor], Batch]) -> None:
        self.read = read

    def __getitem__(self, rows: Any) -> Batch:
        return self.read(torch.from_numpy(rows))


def fetch(
    read: Callable[[Tensor], Batch], plan: Iterable[Tensor], workers: int = 0
) -> Iterator[Batch]:
    """Read one batch after the other.

    Args:
        read: Reads the rows ``(B,)`` whole, one selection per modality.
        plan: Row numbers of each batch.
        workers: Processes that read ahead, worth having for memory-mapped files on slow disks;
            0 reads here. They are forked, so the data are neither copied nor pickled.
    """
    if whole_number("batches: workers", workers, 0) == 0:
        return (read(rows) for rows in plan)
    if "fork" not in multiprocessing.get_all_start_methods():
        raise DataError("batches: workers are forked, which this system cannot; use workers=0")
    loader: DataLoader[Batch] = DataLoader(
        _Reader(read),
        batch_size=None,
        sampler=(rows.numpy() for rows in plan),
        num_workers=workers,
        multiprocessing_context="fork",
        # its own generator: otherwise the loader takes a number from torch's global one, and
        # reading data would change what a training step draws
        generator=torch.Generator(),
    )
    return iter(loader)
