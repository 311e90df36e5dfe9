"""The record of a run: one row of numbers per epoch."""

from __future__ import annotations

__all__ = ["Epoch", "History"]

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

VALIDATION = "validation/loss"
_SHOWN = 12


@attrs.frozen(kw_only=True)
class Epoch:
    """One epoch.

    Args:
        stage: Name of the stage.
        epoch: Number of the epoch in its stage, from 1.
        step: Optimisation steps of the run so far.
        numbers: Name -> value: ``"loss"`` (what the model reports, in nats per row), every term
            and metric of the loss, ``"gradient_norm"``, ``"lr"``, and ``"validation/..."``.
            Where several players move, names begin with the player's, and ``"loss"`` is the
            first player's.
        seconds: How long it took; not part of comparisons.
    """

    stage: str
    epoch: int
    step: int
    numbers: dict[str, float]
    seconds: float = attrs.field(default=math.nan, eq=False)


@attrs.define
class History:
    """All epochs of a run, those before an interruption included.

    Args:
        epochs: The rows, oldest first.
    """

    epochs: list[Epoch] = attrs.field(factory=list)

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[Epoch]:
        return iter(self.epochs)

    def __getitem__(self, name: str) -> list[float]:
        """One number over all epochs; NaN in epochs that do not have it."""
        if not any(name in row.numbers for row in self.epochs):
            known = ", ".join(sorted({key for row in self.epochs for key in row.numbers}))
            raise KeyError(f"no number {name!r} in this history; it has {known or 'no epochs'}")
        return [row.numbers.get(name, math.nan) for row in self.epochs]

    @property
    def best(self) -> Epoch | None:
        """The epoch of the last stage with the lowest validation loss.

        Without validation the one with the lowest training loss; None when there is no epoch.
        """
        if not self.epochs:
            return None
        rows = [row for row in self.epochs if row.stage == self.epochs[-1].stage]
        measured = [row for row in rows if VALIDATION in row.numbers]
        key = VALIDATION if measured else "loss"
        return min(measured or rows, key=lambda row: row.numbers.get(key, math.inf))

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the history as JSON, and write it to a file if a path is given."""
        text = json.dumps({"epochs": self.to_rows()}, indent=1)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def to_rows(self) -> list[dict[str, Any]]:
        """The epochs as plain mappings."""
        return [attrs.asdict(row) for row in self.epochs]

    @classmethod
    def from_rows(cls, rows: list[Mapping[str, Any]]) -> History:
        """The inverse of `to_rows`."""
        return cls([Epoch(**row) for row in rows])

    def __repr__(self) -> str:
        if not self.epochs:
            return "History(no epochs)"
        shown = [key for key in ("loss", VALIDATION, "gradient_norm", "lr")
                 if any(key in row.numbers for row in self.epochs)]
        best = self.best
        lines = [f"{'stage':<10} {'epoch':>6} {'step':>8} "
                 + " ".join(f"{key.replace('validation/', 'valid '):>13}" for key in shown)]
        for row in self._excerpt():
            if row is None:
                lines.append("...")
                continue
            values = " ".join(
                f"{row.numbers[key]:>13.6g}" if key in row.numbers else f"{'':>13}"
                for key in shown
            )
            mark = "  <- best" if row is best else ""
            lines.append(f"{row.stage:<10} {row.epoch:>6} {row.step:>8} {values}{mark}")
        return "\n".join(lines)

    def _excerpt(self) -> list[Epoch | None]:
        """The first and the last rows and the best one; None where rows were left out."""
        n = len(self.epochs)
        ends = {*range(_SHOWN // 2), *range(n - _SHOWN // 2, n)}
        chosen = [i for i, row in enumerate(self.epochs) if i in ends or row is self.best]
        rows: list[Epoch | None] = []
        for before, i in zip([-1, *chosen], chosen, strict=False):
            if i != before + 1:
                rows.append(None)
            rows.append(self.epochs[i])
        return rows
