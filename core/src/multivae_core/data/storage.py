"""Columns and masks of a checked data set: reading rows, selecting rows, changing what is seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from multivae_core.data.batch import Batch

__all__ = ["Column", "Ids", "Table", "chunks"]

Ids = np.ndarray[tuple[int], np.dtype[Any]]
"""Identifiers of rows, ``(N,)``: numbers or text."""

_CHUNK = 1 << 22  # elements per chunk: 32 MB in float64


@attrs.frozen(eq=False)
class Column:
    """The values of one modality, where they lie, and which of them belongs to which row.

    Args:
        tensor: ``(R, *shape)``, in memory or mapped from a file; never written to.
        rows: ``(N,)`` numbers of the tensor's rows, or None when row i is the tensor's row i.
            A row without the modality may point anywhere.
    """

    tensor: Tensor
    rows: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row's value."""
        return tuple(self.tensor.shape[1:])

    def fetch(self, rows: Tensor) -> Tensor:
        """Copy these rows ``(B,)``, holes and what lies under them included."""
        if self.rows is not None:
            rows = self.rows.index_select(0, rows)
        return self.tensor.index_select(0, rows)

    def take(self, rows: Tensor) -> Column:
        """Return a column of these rows that shares the values."""
        return Column(self.tensor, rows if self.rows is None else self.rows[rows])


@attrs.frozen(kw_only=True, eq=False)
class Table:
    """Everything a data set consists of, after all checks; it is never changed in place.

    Args:
        columns: Modality name -> its values.
        present: ``(N, M)`` bool.
        observed: Modality name -> ``(N, *shape)`` bool, only where some row is partly observed.
        labels: ``(N, ...)`` or None.
        ids: ``(N,)`` or None.
    """

    columns: dict[str, Column]
    present: Tensor
    observed: dict[str, Tensor]
    labels: Tensor | None = None
    ids: Ids | None = None
    whole: tuple[bool, ...] = attrs.field(init=False)

    @whole.default
    def _find_whole(self) -> tuple[bool, ...]:
        everywhere: list[bool] = self.present.all(dim=0).tolist()
        return tuple(
            full and name not in self.observed
            for name, full in zip(self.columns, everywhere, strict=True)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities, in the order of the columns of ``present``."""
        return tuple(self.columns)

    @property
    def size(self) -> int:
        """The number of rows N."""
        return int(self.present.shape[0])

    def read(self, rows: Tensor) -> Batch:
        """Copy these rows ``(B,)`` into a batch, with zeros under every hole."""
        present = self.present.index_select(0, rows)
        observed = {name: mask.index_select(0, rows) for name, mask in self.observed.items()}
        values = {}
        missing = ~present
        for number, (name, column) in enumerate(self.columns.items()):
            x = column.fetch(rows)
            # overwritten, not multiplied by 0: whatever lies under a hole (NaN, inf) is gone
            if name in observed:
                x = torch.where(observed[name], x, x.new_zeros(()))
            elif not self.whole[number]:
                x.index_fill_(0, missing[:, number].nonzero().squeeze(1), 0)
            values[name] = x
        labels = None if self.labels is None else self.labels.index_select(0, rows)
        return Batch(values=values, present=present, observed=observed, labels=labels, index=rows)

    def column(self, name: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Copy these rows of one modality.

        Returns:
            Values and what of them is observed, both ``(B, *shape)``; zeros under every hole.
        """
        x = self.columns[name].fetch(rows)
        seen = self.seen(name).index_select(0, rows).expand(x.shape)
        return torch.where(seen, x, x.new_zeros(())), seen

    def seen(self, name: str) -> Tensor:
        """What is observed of a modality, ``(N, *shape)`` or ``(N, 1, ...)`` for whole rows."""
        if name in self.observed:
            return self.observed[name]
        axes = len(self.columns[name].shape)
        return self.present[:, self.names.index(name)].view(-1, *[1] * axes)

    def moments(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every feature over its observed entries.

        Chunks are merged by the update of Chan, Golub & LeVeque 1983, which loses no digits
        when the mean is large.

        Returns:
            Two float64 tensors of the modality's shape; both 0 where nothing is observed.
        """
        shape = self.columns[name].shape
        count, mean, square = torch.zeros((3, *shape), dtype=torch.float64)
        for rows in chunks(self.size, shape):
            x, seen = self.column(name, torch.arange(rows.start, rows.stop))
            x = x.double()
            new = seen.sum(dim=0).double()
            centre = x.sum(dim=0) / new.clamp(min=1)
            spread = torch.where(seen, x - centre, 0.0).square().sum(dim=0)
            total = (count + new).clamp(min=1)
            step = centre - mean
            mean = mean + step * new / total
            square = square + spread + step.square() * count * new / total
            count = count + new
        return mean, (square / count.clamp(min=1)).sqrt()

    def show(self, present: Tensor, observed: Mapping[str, Tensor]) -> Table:
        """Return the same rows with other masks, brought to the form that a table promises.

        Args:
            present: ``(N, M)`` bool, what is seen at most.
            observed: ``(N, *shape)`` bool, for any of the modalities.
        """
        present = present.clone()
        partly = {}
        for name, mask in observed.items():
            column = self.names.index(name)
            rows = present[:, column]
            flat = mask.flatten(1)
            present[:, column] = rows & flat.any(dim=1)
            if bool((present[:, column] & ~flat.all(dim=1)).any()):
                partly[name] = mask & rows.view(-1, *[1] * (mask.ndim - 1))
        return attrs.evolve(self, present=present, observed=partly)

    def take(self, rows: Tensor) -> Table:
        """Return the table of these rows ``(R,)``; values are shared, masks are copied."""
        taken = attrs.evolve(
            self,
            columns={name: column.take(rows) for name, column in self.columns.items()},
            present=self.present[rows],
            observed={},
            labels=None if self.labels is None else self.labels[rows],
            ids=None if self.ids is None else self.ids[rows.numpy()],
        )
        return taken.show(taken.present, {n: m[rows] for n, m in self.observed.items()})

    @staticmethod
    def join(tables: Sequence[Table]) -> Table:
        """Return the rows of several tables of the same modalities, one after the other."""
        first = tables[0]
        observed = {
            name: torch.cat(
                [t.seen(name).expand(t.size, *first.columns[name].shape) for t in tables]
            )
            for name in first.names
            if any(name in t.observed for t in tables)
        }
        columns = {n: _joined([t.columns[n] for t in tables]) for n in first.names}
        order = [[t.names.index(name) for name in first.names] for t in tables]
        present = torch.cat([t.present[:, o] for t, o in zip(tables, order, strict=True)])
        labels = [t.labels for t in tables if t.labels is not None]
        ids = [t.ids for t in tables if t.ids is not None]
        return Table(
            columns=columns,
            present=present,
            observed=observed,
            labels=torch.cat(labels) if labels else None,
            ids=np.concatenate(ids) if ids else None,
        )


def _joined(columns: list[Column]) -> Column:
    first = columns[0].tensor
    if all(column.tensor is first for column in columns):  # parts of one split: nothing is copied
        everything = torch.arange(len(first))
        return Column(
            first, torch.cat([everything if c.rows is None else c.rows for c in columns])
        )
    return Column(torch.cat([c.tensor if c.rows is None else c.tensor[c.rows] for c in columns]))


def chunks(n: int, shape: tuple[int, ...]) -> Iterator[slice]:
    """Cut n rows into pieces of a size that fits a cache-friendly amount of memory."""
    step = max(1, _CHUNK // max(1, int(np.prod(shape, dtype=np.int64))))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))
