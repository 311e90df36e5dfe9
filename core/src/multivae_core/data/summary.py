"""A small table that tells what is in a data set and what is missing."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from multivae_core.data.storage import Table

__all__ = ["ModalitySummary", "Summary", "one_line", "summarise"]

_SHOWN = 8  # patterns, or modalities of the one-line form


@attrs.frozen(kw_only=True)
class ModalitySummary:
    """One line of the table.

    Args:
        name: The modality.
        shape: Shape of one row's value.
        dtype: Name of the type.
        missing: Share of rows without the modality.
        holes: Share of elements that are missing inside rows that have the modality.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    missing: float
    holes: float


@attrs.frozen(kw_only=True)
class Summary:
    """What is in a data set; prints as a table.

    Args:
        rows: Number of rows.
        modalities: One entry per modality.
        labels: What the labels are, or "none".
        patterns: Which modalities are seen together and in how many rows, most frequent first.
    """

    rows: int
    modalities: tuple[ModalitySummary, ...]
    labels: str
    patterns: tuple[tuple[tuple[str, ...], int], ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the table as plain lists, numbers and text, for JSON."""
        plain: dict[str, Any] = attrs.asdict(self)
        return plain

    def __str__(self) -> str:
        """Format as aligned text."""
        cells = [("modality", "shape", "dtype", "missing", "holes")]
        cells += [
            (m.name, str(m.shape), m.dtype, f"{m.missing:.1%}", f"{m.holes:.1%}")
            for m in self.modalities
        ]
        width = [max(len(row[i]) for row in cells) for i in range(5)]
        lines = [f"{self.rows:,} rows, labels: {self.labels}"]
        lines += [
            f"{a:<{width[0]}}  {b:<{width[1]}}  {c:<{width[2]}}  {d:>{width[3]}}  {e:>{width[4]}}"
            for a, b, c, d, e in cells
        ]
        lines.append("seen together" if len(self.patterns) > 1 else "seen together (always)")
        lines += [
            f"{count:>8,}  {' '.join(names) or '(nothing)'}"
            for names, count in self.patterns[:_SHOWN]
        ]
        rest = self.patterns[_SHOWN:]
        if rest:
            lines.append(f"{sum(count for _, count in rest):>8,}  in {len(rest)} other patterns")
        return "\n".join(lines)


def summarise(table: Table) -> Summary:
    """Count what a table holds."""
    missing = (~table.present).double().mean(dim=0).tolist()
    modalities = tuple(
        ModalitySummary(
            name=name,
            shape=column.shape,
            dtype=str(column.tensor.dtype).removeprefix("torch."),
            missing=missing[number],
            holes=_holes(table, name, number),
        )
        for number, (name, column) in enumerate(table.columns.items())
    )
    patterns, counts = torch.unique(table.present, dim=0, return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    named = tuple(
        (tuple(n for n, seen in zip(table.names, row, strict=True) if seen), count)
        for row, count in zip(patterns[order].tolist(), counts[order].tolist(), strict=True)
    )
    return Summary(rows=table.size, modalities=modalities, labels=_labels(table), patterns=named)


def one_line(table: Table) -> str:
    """Describe a table in one line."""
    parts = [
        f"{name} {column.shape} {str(column.tensor.dtype).removeprefix('torch.')}"
        for name, column in list(table.columns.items())[:_SHOWN]
    ]
    if len(table.columns) > _SHOWN:
        parts.append(f"and {len(table.columns) - _SHOWN} more")
    missing = float((~table.present).double().mean())
    return f"IncompleteDataset({table.size:,} rows; {', '.join(parts)}; {missing:.1%} missing)"


def _holes(table: Table, name: str, number: int) -> float:
    if name not in table.observed:
        return 0.0
    rows = table.present[:, number]
    return float(1.0 - table.observed[name][rows].double().mean())


def _labels(table: Table) -> str:
    labels = table.labels
    if labels is None:
        return "none"
    kind = str(labels.dtype).removeprefix("torch.")
    if labels.ndim > 1:
        return f"{kind} of shape {tuple(labels.shape[1:])} per row"
    return f"{kind}, {len(torch.unique(labels))} different values"
