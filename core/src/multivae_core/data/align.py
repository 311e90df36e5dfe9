"""Aligning tables by the identifiers of their rows: a row that a table lacks is a hole."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from multivae_core.data.checks import to_ids, to_labels
from multivae_core.data.storage import Column, Table
from multivae_core.errors import DataError

__all__ = ["Labels", "Source", "align"]

logger = logging.getLogger(__name__)


@attrs.frozen(kw_only=True, eq=False)
class Source:
    """One modality as it was read, checked by itself.

    Args:
        name: The modality.
        values: ``(R, *shape)``.
        present: ``(R,)`` bool.
        observed: ``(R, *shape)`` bool, or None when every present row is whole.
        ids: Identifiers of the R rows, or None.
    """

    name: str
    values: Tensor
    present: Tensor
    observed: Tensor | None
    ids: Sequence[Any] | None


@attrs.frozen(kw_only=True, eq=False)
class Labels:
    """Labels as they were read: an array ``(R, ...)`` and the identifiers of its rows, or None."""

    values: Any
    ids: Sequence[Any] | None


def align(sources: Sequence[Source], labels: Labels | None) -> Table:
    """Bring modalities to common rows, in the order in which identifiers first appear.

    Without identifiers, row i is the same subject everywhere.

    Raises:
        DataError: Identifiers that are missing, repeated or of different kinds; unequal lengths
            without identifiers; a row without a label.
    """
    named = [source for source in sources if source.ids is not None]
    if not named:
        return _by_position(sources, labels)
    for source in sources:
        if source.ids is None:
            raise DataError(
                f"modality {source.name!r} has no row identifiers and {named[0].name!r} has"
                "; rows are aligned by identifiers in all tables or in none: add them"
            )
    places = {
        source.name: _places(f"modality {source.name!r}", source.ids or ()) for source in sources
    }
    _same_kind(places)
    order = list(dict.fromkeys(key for place in places.values() for key in place))
    shared = sum(all(key in place for place in places.values()) for key in order)
    logger.info(
        "aligned %d rows by id, %d of them in all %d tables", len(order), shared, len(places)
    )
    rows = {
        name: torch.tensor([place.get(key, -1) for key in order]) for name, place in places.items()
    }
    chosen = None if labels is None else _labels_by_id(labels, order)
    return _assemble(sources, rows, len(order), chosen, order)


def _by_position(sources: Sequence[Source], labels: Labels | None) -> Table:
    first = sources[0]
    for source in sources:
        if len(source.values) != len(first.values):
            raise DataError(
                f"modality {source.name!r} has {len(source.values)} rows and {first.name!r} has"
                f" {len(first.values)}; without row identifiers row i is the same subject"
                " everywhere: add identifiers, or NaN rows for what is missing"
            )
    if labels is not None and labels.ids is not None:
        raise DataError(
            "the labels have row identifiers and the modalities have none: add them there, or"
            " leave them out here"
        )
    n = len(first.values)
    return _assemble(sources, {}, n, None if labels is None else labels.values, None)


def _assemble(
    sources: Sequence[Source],
    rows: dict[str, Tensor],
    n: int,
    labels: Any,
    order: list[Any] | None,
) -> Table:
    columns, present, observed = {}, [], {}
    for source in sources:
        place = rows.get(source.name)
        if place is None or torch.equal(place, torch.arange(len(source.values))):
            columns[source.name] = Column(source.values)
            there, seen = source.present, source.observed
        else:
            has, place = place >= 0, place.clamp(min=0)
            columns[source.name] = Column(source.values, place)
            there = has & source.present[place]
            seen = None if source.observed is None else source.observed[place]
        present.append(there)
        if seen is not None:
            observed[source.name] = seen
    table = Table(
        columns=columns,
        present=torch.stack(present, dim=1),
        observed={},
        labels=to_labels(labels, n),
        ids=to_ids(order, n),
    )
    return table.show(table.present, observed)


def _places(what: str, ids: Sequence[Any]) -> dict[Any, int]:
    """Identifier -> row number, after refusing missing and repeated ones."""
    place: dict[Any, int] = {}
    for row, key in enumerate(ids):
        if key is None or key == "" or key != key:
            raise DataError(f"{what}, row {row}: no identifier; every row needs one: fill it in")
        if key in place:
            raise DataError(
                f"{what}: identifier {key!r} stands in rows {place[key]} and {row}; rows are"
                " aligned by it, so it may stand once: drop or merge the repeated rows"
            )
        place[key] = row
    return place


def _same_kind(places: dict[str, dict[Any, int]]) -> None:
    kinds = {
        name: {"text" if isinstance(key, str) else type(key).__name__ for key in place}
        for name, place in places.items()
    }
    (first, kind), *others = kinds.items()
    for name, other in others:
        if other != kind:
            raise DataError(
                f"identifiers of {name!r} are {'/'.join(sorted(other))} and those of {first!r}"
                f" {'/'.join(sorted(kind))}, so no row would match; convert them to one type,"
                " for example by table.index.astype(str)"
            )


def _labels_by_id(labels: Labels, order: list[Any]) -> Any:
    if labels.ids is None:
        raise DataError(
            "the labels have no row identifiers, and rows are aligned by identifiers: pass"
            " a Series indexed by them, or a CSV file with the id column"
        )
    place = _places("labels", labels.ids)
    for key in order:
        if key not in place:
            raise DataError(
                f"labels: no label for row {key!r}; every row needs one: add it, drop the row,"
                " or give 'unknown' a code of its own"
            )
    return np.asarray(labels.values)[[place[key] for key in order]]
