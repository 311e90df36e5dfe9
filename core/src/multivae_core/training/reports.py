"""What a run tells: the history, one row of numbers per epoch, and its display meanwhile."""

from __future__ import annotations

__all__ = ["VALIDATION", "Display", "Epoch", "History"]

import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

logger = logging.getLogger(__name__)

VALIDATION = "validation/loss"


@attrs.frozen
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
    """All epochs of a run, oldest first, those before an interruption included."""

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
        rows = [row for row in self.epochs if row.stage == self.epochs[-1].stage]
        measured = [row for row in rows if VALIDATION in row.numbers]
        key = VALIDATION if measured else "loss"
        return min(measured or rows, key=lambda row: row.numbers.get(key, math.inf), default=None)

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
        """The best epoch and about ten others."""
        if not self.epochs:
            return "History(no epochs)"
        shown = {round(i * (len(self) - 1) / 9) for i in range(10)}
        lines = [f"{'stage':<10} {'epoch':>6} {'step':>8} {'loss':>13} {'validation':>13}"]
        for i, row in enumerate(self.epochs):
            if i in shown or row is self.best:
                pair = [row.numbers.get(key, math.nan) for key in ("loss", VALIDATION)]
                mark = "  <- best" if row is self.best else ""
                values = " ".join(f"{value:>13.6g}" for value in pair)
                lines.append(f"{row.stage:<10} {row.epoch:>6} {row.step:>8} {values}{mark}")
        return "\n".join(lines)


class Display:
    """A bar per stage on a terminal; elsewhere a line per epoch, printed or logged.

    Args:
        progress: See `TrainerOptions`.
        main: Whether this is the main process; the others show nothing.
    """

    def __init__(self, progress: bool | None, main: bool) -> None:
        self.main = main
        self.printed = progress is True
        self.wants_bar = main and progress is not False and sys.stderr.isatty()
        self._bar: Any = None

    def start(self, stage: str, total: int, done: int) -> None:
        """A stage of so many rows begins, or goes on."""
        self._began, self._rows, self._total = time.monotonic(), 0, total - done
        if self.wants_bar:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, initial=done, desc=stage, unit="rows", unit_scale=True)

    def step(self, rows: int) -> None:
        """So many rows are done."""
        self._rows += rows
        if self._bar is not None:
            self._bar.update(rows)

    def note(self, label: str, numbers: Mapping[str, float]) -> None:
        """Recent numbers; lines leave them out."""
        if self._bar is not None:
            self._bar.set_description_str(label, refresh=False)
            self._bar.set_postfix_str(_short(numbers), refresh=False)

    def line(self, label: str, numbers: Mapping[str, float]) -> None:
        """An epoch is over."""
        self.note(label, numbers)
        if self._bar is not None or not self.main:
            return
        rate = self._rows / max(1e-9, time.monotonic() - self._began)
        left = round(max(0, self._total - self._rows) / rate) if rate else 0
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        text = f"{label}  {_short(numbers)}  {rate:.0f} rows/s  {clock} left"
        if self.printed:
            print(text, file=sys.stderr, flush=True)
        else:
            logger.info("%s", text)

    def close(self) -> None:
        """A stage is over, or was given up."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _short(numbers: Mapping[str, float]) -> str:
    names = {"loss": "loss", VALIDATION: "validation"}
    return "  ".join(f"{text} {numbers[key]:.4g}" for key, text in names.items() if key in numbers)
