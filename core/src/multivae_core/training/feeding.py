"""Batches for steps: which rows of the global batch are whose, prepared and with their noise."""

from __future__ import annotations

__all__ = ["Feeder", "Local", "Work"]

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from multivae_core.data import Batch, IncompleteDataset
from multivae_core.data.iterate import count_batches, row_batches
from multivae_core.noise import RowNoise, Step, TrainingNoise
from multivae_core.training.objective import Share
from multivae_core.training.options import TrainerOptions

if TYPE_CHECKING:
    from multivae_core.model import MultimodalVAE


@attrs.frozen(eq=False)
class Local:
    """A global batch, and this process's rows of it.

    Args:
        rows: ``(B,)`` row numbers of the global batch.
        start: Where this process's rows begin in it.
        batch: These rows; one row that must not count where there are none.
        empty: Whether there are none.
    """

    rows: Tensor
    start: int
    batch: Batch
    empty: bool


@attrs.frozen(eq=False)
class Work:
    """What a player's loss is called with.

    Args:
        share: How the rows stand in the global batch.
        batch: Prepared rows.
        step: The step, with the noise of these rows.
    """

    share: Share
    batch: Batch
    step: Step


class Feeder:
    """Batches of one data set; every process takes a contiguous share of the same rows.

    Args:
        data: The data set, the same in every process.
        model: What prepares the batches.
        options: Rows of a global batch, seed of order and noise, processes that read ahead.
        accelerator: Knows which of how many processes this one is.
    """

    def __init__(
        self,
        data: IncompleteDataset,
        model: MultimodalVAE,
        options: TrainerOptions,
        accelerator: Any,
    ) -> None:
        self.data = data
        self.model = model
        self.batch_size = options.batch_size
        self.seed = options.seed
        self.workers = options.workers
        self.process = accelerator.process_index
        self.processes = accelerator.num_processes
        something = data.present.any(dim=1)
        self.something = None if bool(something.all()) else something

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return count_batches(len(self.data), self.batch_size)

    def epoch(
        self, epoch: int = 0, start: int = 0, stop: int | None = None, shuffle: bool = True
    ) -> Iterator[Local]:
        """Iterate over some batches of an epoch.

        Args:
            epoch: Number of the epoch, on which the order depends.
            start: First batch.
            stop: The batch before which to stop; None: all.
            shuffle: Mix the rows.
        """
        plan = list(
            row_batches(
                len(self.data),
                self.batch_size,
                shuffle=shuffle,
                seed=self.seed,
                epoch=epoch,
                start=start,
            )
        )[: None if stop is None else stop - start]
        if self.processes == 1:
            for rows, batch in zip(plan, self.data.fetch(plan, self.workers), strict=True):
                yield Local(rows, 0, batch, empty=False)
            return
        bounds = [self._bounds(len(rows)) for rows in plan]
        # who has no row takes part in every exchange with one that does not count
        own = [
            rows[low:high] if high > low else rows[:1]
            for rows, (low, high) in zip(plan, bounds, strict=True)
        ]
        fetched = self.data.fetch(own, self.workers)
        for rows, (low, high), batch in zip(plan, bounds, fetched, strict=True):
            yield Local(rows, low, batch, empty=low == high)

    def work(self, local: Local, number: int, progress: float, parts: int = 1) -> list[Work]:
        """Prepare a training step, in so many parts of about equal size.

        Args:
            local: The rows.
            number: Number of the step in the run.
            progress: Share of the stage that is behind.
            parts: Parts whose gradients are accumulated.
        """
        size, total = local.batch.size, len(local.rows)
        parts = min(parts, size)
        cuts = [size * i // parts for i in range(parts + 1)]
        found = []
        for low, high in zip(cuts, cuts[1:], strict=False):
            batch = local.batch
            if parts > 1:
                batch = batch.take(torch.arange(low, high))
            rows = self._place(local.start + low, high - low, total)
            noise = TrainingNoise(
                self.seed, number, total, rows, self.model.dtype, self.model.device
            )
            step = Step(number=number, progress=progress, training=True, noise=noise)
            share = self.share(local, low, high)
            found.append(Work(share, self.model.prepare(batch), step))
        return found

    def evaluation(self, local: Local, number: int, progress: float) -> Work:
        """Prepare rows for validation: what a row draws then depends on the row alone."""
        batch = self.model.prepare(local.batch)
        noise = RowNoise(self.seed, batch.index, self.model.dtype)
        step = Step(number=number, progress=progress, training=False, noise=noise)
        return Work(self.share(local, 0, local.batch.size), batch, step)

    def share(self, local: Local, low: int, high: int) -> Share:
        """How some of the rows at hand stand in the global batch."""
        total = len(local.rows)
        if local.empty:
            nothing = torch.zeros(high - low, dtype=torch.bool, device=self.model.device)
            count = total
            if self.something is not None:
                count = int(self.something.index_select(0, local.rows).sum())
            return Share(mask=nothing, here=0, count=count, part=0.0)
        part = (high - low) / total
        if self.something is None:
            return Share(mask=None, here=high - low, count=total, part=part)
        something = self.something.index_select(0, local.rows)
        own = something[local.start + low : local.start + high]
        here = int(own.sum())
        mask = None if here == high - low else own.to(self.model.device)
        return Share(mask=mask, here=here, count=int(something.sum()), part=part)

    def _bounds(self, size: int) -> tuple[int, int]:
        return (
            size * self.process // self.processes,
            size * (self.process + 1) // self.processes,
        )

    def _place(self, start: int, size: int, total: int) -> Tensor | None:
        """Positions of rows in the global batch, for their noise; None: all of them."""
        if size == total:
            return None
        # the row that stands in for none may lie behind the last one
        return torch.arange(start, start + size, device=self.model.device).clamp_max(total - 1)
