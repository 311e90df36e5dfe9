"""Throughput of whole-batch fetching against a torch loader that goes row by row.

Five modalities of 100 features, batches of 128 shuffled rows, a third of the modalities missing
on both sides. CPU time of one thread, the two alternating in one process, median of the ratios.

Run ``python benchmarks/data.py``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from multivae_core.data import IncompleteDataset

__all__ = ["main", "ratio"]

MODALITIES, FEATURES, BATCH = 5, 100, 128


class Rows(Dataset[dict[str, dict[str, Tensor]]]):
    """The customary way: one item per row, put together by the loader's default."""

    def __init__(self, data: IncompleteDataset) -> None:
        batch = data.batch()
        self.values = batch.values
        self.masks = {name: batch.column(name) for name in batch.names}

    def __len__(self) -> int:
        return len(next(iter(self.masks.values())))

    def __getitem__(self, row: int) -> dict[str, dict[str, Tensor]]:
        return {
            "values": {name: x[row] for name, x in self.values.items()},
            "masks": {name: mask[row] for name, mask in self.masks.items()},
        }


def seconds(run: Callable[[], int]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def timings(rows: int, rounds: int) -> list[tuple[float, float]]:
    """CPU seconds of one epoch, (by rows, by batches), one pair per round."""
    rng = np.random.default_rng(0)
    data = IncompleteDataset(
        {f"m{i}": rng.normal(size=(rows, FEATURES)).astype(np.float32) for i in range(MODALITIES)}
    ).hide(1 / 3, seed=0)
    loader = DataLoader(Rows(data), batch_size=BATCH, shuffle=True)

    def by_rows() -> int:
        return sum(1 for _ in loader)

    def by_batches() -> int:
        return sum(1 for _ in data.batches(BATCH, shuffle=True))

    by_rows(), by_batches()
    return [(seconds(by_rows), seconds(by_batches)) for _ in range(rounds)]


def ratio(rows: int = 4096, rounds: int = 7) -> float:
    """How many times faster batches are fetched whole."""
    return statistics.median(slow / fast for slow, fast in timings(rows, rounds))


def main(rows: int = 4096, rounds: int = 7) -> None:
    """Print both throughputs and their ratio."""
    torch.set_num_threads(1)
    pairs = timings(rows, rounds)
    slow, fast = (statistics.median(side) for side in zip(*pairs, strict=True))
    faster = statistics.median(a / b for a, b in pairs)
    batches = -(-rows // BATCH)
    print(f"loader of rows       {rows / slow:12,.0f} rows/s {1e3 * slow / batches:8.3f} ms/batch")
    print(f"whole-batch fetching {rows / fast:12,.0f} rows/s {1e3 * fast / batches:8.3f} ms/batch")
    print(f"ratio                {faster:12.1f}          (required: 10)")


if __name__ == "__main__":
    main()
