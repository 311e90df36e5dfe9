"""Columns and masks of a checked data set: reading rows, selecting rows, changing what is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from multivae_core.data import checks
from multivae_core.data.batch import Batch
from multivae_core.errors import DataError

__all__ = ["Column", "Ids", "Table"]

Ids = np.ndarray[tuple[int], np.dtype[Any]]
"""Identifiers of rows, ``(N,)``: numbers or text."""


@attrs.frozen(eq=False)
class Column:
    """The values of one modality ``(R, *shape)``, in memory or mapped; never written to.

    ``rows`` ``(N,)`` tells where in the tensor each row lies; None means in order. A row without
    the modality may point anywhere.
    """

    tensor: Tensor
    rows: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row's value."""
        return tuple(self.tensor.shape[1:])

    def places(self, rows: Tensor) -> Tensor:
        """Return where in the tensor these rows lie."""
        return rows if self.rows is None else self.rows.index_select(0, rows)


@attrs.frozen(kw_only=True, eq=False)
class Table:
    """Everything a data set consists of, after all checks; it is never changed in place.

    ``observed`` holds ``(N, *shape)`` masks only of modalities that some row has in part.
    """

    columns: dict[str, Column]
    present: Tensor
    observed: dict[str, Tensor]
    labels: Tensor | None = None
    ids: Ids | None = None

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        observed: Mapping[str, Tensor],
        labels: Any,
        places: Mapping[str, Tensor],
        ids: Ids | None = None,
    ) -> Table:
        """Check values against masks, and bring modalities to common rows.

        Of a modality, ``places`` gives the row of the tensor for each of the N rows, -1 where it
        has none; without an entry, the tensor is in order.
        """
        columns, there, partly = {}, [], {}
        for name, x in tensors.items():
            rows, seen = checks.modality_masks(name, x, present.get(name), observed.get(name))
            place = places.get(name)
            if place is not None:
                has, place = place >= 0, place.clamp(min=0)
                rows, seen = has & rows[place], None if seen is None else seen[place]
            columns[name] = Column(x, place)
            there.append(rows)
            if seen is not None:
                partly[name] = seen
        labels = checks.to_labels(labels, len(there[0]))
        table = cls(
            columns=columns, present=torch.stack(there, 1), observed={}, labels=labels, ids=ids
        )
        return table.show(table.present, partly)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities, in the order of the columns of ``present``."""
        return tuple(self.columns)

    @property
    def size(self) -> int:
        """The number of rows N."""
        return int(self.present.shape[0])

    def refuse_empty_rows(self) -> None:
        """Refuse rows of which nothing is observed."""
        empty = (~self.present.any(dim=1)).nonzero().flatten().tolist()
        if empty:
            name = "" if self.ids is None else f" (id {self.ids[empty[0]]!s})"
            raise DataError(
                f"row {empty[0]}{name} has nothing observed in any modality"
                f" ({checks.counted(len(empty), 'such row')}): a row needs something to learn"
                " from; drop these rows, or pass allow_empty_rows=True"
            )

    def read(self, rows: Tensor) -> Batch:
        """Copy these rows ``(B,)`` into a batch, with zeros under every hole."""
        present = self.present.index_select(0, rows)
        observed = {name: mask.index_select(0, rows) for name, mask in self.observed.items()}
        missing = ~present
        lacking = missing.any(dim=0).tolist()
        values = {}
        for number, (name, column) in enumerate(self.columns.items()):
            x = column.tensor.index_select(0, column.places(rows))
            # overwritten, not multiplied by 0: whatever lies under a hole (NaN, inf) is gone
            if name in observed:
                x.masked_fill_(~observed[name], 0)
            elif lacking[number]:
                x.index_fill_(0, missing[:, number].nonzero().squeeze(1), 0)
            values[name] = x
        labels = None if self.labels is None else self.labels.index_select(0, rows)
        return Batch(values=values, present=present, observed=observed, labels=labels, index=rows)

    def seen(self, name: str) -> Tensor:
        """What is observed of a modality, ``(N, *shape)``, not always in memory of its own."""
        column = self.present[:, self.names.index(name)]
        shape = self.columns[name].shape
        whole = column.view(-1, *[1] * len(shape)).expand(self.size, *shape)
        return self.observed.get(name, whole)

    def piece(self, name: str, rows: slice) -> tuple[Tensor, Tensor]:
        """Copy rows of one modality, float64 with zeros under holes; and what of it is seen."""
        column, seen = self.columns[name], self.seen(name)[rows]
        x = column.tensor[rows] if column.rows is None else column.tensor[column.rows[rows]]
        return torch.where(seen, x.double(), 0.0), seen

    def moments(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every feature over its observed entries.

        Chunks are merged by the update of Chan, Golub & LeVeque 1983, which loses no digits
        when the mean is large.
        """
        shape = self.columns[name].shape
        count, mean, square = torch.zeros((3, *shape), dtype=torch.float64)
        for rows in checks.chunks(self.size, shape):
            x, seen = self.piece(name, rows)
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
        """Return the same rows with other masks, brought to the form that a table promises."""
        present = present.clone()
        partly = {}
        for name, mask in observed.items():
            rows = present[:, self.names.index(name)]
            flat = mask.flatten(1)
            rows &= flat.any(dim=1)
            if bool((rows & ~flat.all(dim=1)).any()):
                partly[name] = mask & rows.view(-1, *[1] * (mask.ndim - 1))
        return attrs.evolve(self, present=present, observed=partly)

    def take(self, rows: Tensor) -> Table:
        """Return the table of these rows ``(R,)``; values are shared, masks are copied."""
        taken = Table(
            columns={n: Column(c.tensor, c.places(rows)) for n, c in self.columns.items()},
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
        for number, other in enumerate(tables[1:], start=1):
            _same_kind(first, other, f"concat: data set {number}")
        observed = {
            name: torch.cat([t.seen(name) for t in tables])
            for name in first.names
            if any(name in t.observed for t in tables)
        }
        order = [[t.names.index(name) for name in first.names] for t in tables]
        labels = [t.labels for t in tables if t.labels is not None]
        ids = [t.ids for t in tables if t.ids is not None]
        return Table(
            columns={n: _joined([t.columns[n] for t in tables]) for n in first.names},
            present=torch.cat([t.present[:, o] for t, o in zip(tables, order, strict=True)]),
            observed=observed,
            labels=torch.cat(labels) if labels else None,
            ids=np.concatenate(ids) if ids else None,
        )


def _joined(columns: list[Column]) -> Column:
    first = columns[0].tensor
    places = [torch.arange(len(c.tensor)) if c.rows is None else c.rows for c in columns]
    if all(column.tensor is first for column in columns):  # parts of one split: nothing is copied
        return Column(first, torch.cat(places))
    return Column(torch.cat([c.tensor[p] for c, p in zip(columns, places, strict=True)]))


def _same_kind(first: Table, other: Table, who: str) -> None:
    """Make sure that the rows of two tables can stand in one."""
    checks.known_names(who, other.names, first.names)
    for name, column in first.columns.items():
        if name not in other.columns:
            raise DataError(
                f"{who} has no modality {name!r}; all need the same modalities: add it with"
                " NaN, which means missing"
            )
        own, its = (f"{c.tensor.dtype} of shape {c.shape}" for c in (column, other.columns[name]))
        if own != its:
            raise DataError(
                f"{who}, modality {name!r}: {its} does not go with {own}; cast or reshape it first"
            )
    pairs = ("labels", first.labels, other.labels), ("ids", first.ids, other.ids)
    for what, mine, theirs in pairs:
        if (mine is None) != (theirs is None):
            raise DataError(f"concat: {what} in some of the data sets only; give all or none")
        if mine is not None and theirs is not None and mine.shape[1:] != theirs.shape[1:]:
            raise DataError(f"{who}: {what} of another shape per row; reshape them first")
