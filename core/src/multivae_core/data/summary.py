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
    """One modality: share of rows without it, and of elements missing in the other rows."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    missing: float
    holes: float


@attrs.frozen(kw_only=True)
class Summary:
    """What is in a data set; prints as a table.

    ``patterns`` lists which modalities are seen together and in how many rows, most frequent
    first.
    """

    rows: int
    modalities: tuple[ModalitySummary, ...]
    labels: str
    patterns: tuple[tuple[tuple[str, ...], int], ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the table as plain lists, numbers and text, for JSON."""
        return attrs.asdict(self)

    def __str__(self) -> str:
        """Format as aligned text."""
        width = max(8, *(len(m.name) for m in self.modalities))
        lines = [
            f"{self.rows:,} rows, labels: {self.labels}",
            f"{'modality':<{width}}  {'shape':<14}  {'dtype':<8}  missing   holes",
        ]
        lines += [
            f"{m.name:<{width}}  {m.shape!s:<14}  {m.dtype:<8}  {m.missing:>7.1%}  {m.holes:>6.1%}"
            for m in self.modalities
        ]
        lines.append("seen together" if len(self.patterns) > 1 else "seen together (always)")
        lines += [f"{n:>8,}  {' '.join(p) or '(nothing)'}" for p, n in self.patterns[:_SHOWN]]
        if rest := self.patterns[_SHOWN:]:
            lines.append(f"{sum(n for _, n in rest):>8,}  in {len(rest)} other patterns")
        return "\n".join(lines)


def summarise(table: Table) -> Summary:
    """Count what a table holds."""
    names, modalities = table.names, []
    for number, (name, column) in enumerate(table.columns.items()):
        rows, mask = table.present[:, number], table.observed.get(name)
        modalities.append(
            ModalitySummary(
                name=name,
                shape=column.shape,
                dtype=_word(column.tensor.dtype),
                missing=float((~rows).double().mean()),
                holes=0.0 if mask is None else float(1.0 - mask[rows].double().mean()),
            )
        )
    patterns, counts = torch.unique(table.present, dim=0, return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    together = [
        tuple(name for name, seen in zip(names, row, strict=True) if seen)
        for row in patterns[order].tolist()
    ]
    return Summary(
        rows=table.size,
        modalities=tuple(modalities),
        labels=_labels(table.labels),
        patterns=tuple(zip(together, counts[order].tolist(), strict=True)),
    )


def one_line(table: Table) -> str:
    """Describe a table in one line."""
    parts = [f"{n} {c.shape} {_word(c.tensor.dtype)}" for n, c in table.columns.items()]
    if more := parts[_SHOWN:]:
        parts[_SHOWN:] = [f"and {len(more)} more"]
    missing = float((~table.present).double().mean())
    return f"IncompleteDataset({table.size:,} rows; {', '.join(parts)}; {missing:.1%} missing)"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _labels(labels: torch.Tensor | None) -> str:
    if labels is None:
        return "none"
    if labels.ndim > 1:
        return f"{_word(labels.dtype)} of shape {tuple(labels.shape[1:])} per row"
    return f"{_word(labels.dtype)}, {len(torch.unique(labels))} different values"
