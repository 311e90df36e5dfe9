"""What a person sees while a model trains: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

__all__ = ["Display", "display"]

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)


class Display:
    """Lines, one per epoch, to the log or to standard error.

    Args:
        printed: Whether lines go to standard error rather than to the log.
    """

    def __init__(self, printed: bool = False) -> None:
        self.printed = printed
        self._began = 0.0
        self._rows = 0
        self._total = 0

    def start(self, stage: str, total: int, done: int) -> None:
        """A stage of so many rows begins, or goes on."""
        self._began, self._rows, self._total = time.monotonic(), 0, total - done

    def step(self, rows: int) -> None:
        """So many rows are done."""
        self._rows += rows

    def note(self, label: str, numbers: Mapping[str, float]) -> None:
        """Recent numbers; lines leave them out."""

    def line(self, label: str, numbers: Mapping[str, float]) -> None:
        """An epoch is over."""
        spent = max(1e-9, time.monotonic() - self._began)
        rate = self._rows / spent
        left = max(0, self._total - self._rows) / rate if rate else 0.0
        text = f"{label}  {short(numbers)}  {rate:.0f} rows/s  {clock(left)} left"
        if self.printed:
            print(text, file=sys.stderr, flush=True)
        else:
            logger.info("%s", text)

    def close(self) -> None:
        """A stage is over, or was given up."""


class Bar(Display):
    """A bar with rate, loss and time left."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None

    def start(self, stage: str, total: int, done: int) -> None:
        """See `Display.start`."""
        from tqdm.auto import tqdm

        self._bar = tqdm(
            total=total, initial=done, desc=stage, unit="rows", unit_scale=True, leave=True
        )

    def step(self, rows: int) -> None:
        """See `Display.step`."""
        self._bar.update(rows)

    def note(self, label: str, numbers: Mapping[str, float]) -> None:
        """See `Display.note`."""
        self._bar.set_description_str(label, refresh=False)
        self._bar.set_postfix_str(short(numbers), refresh=False)

    def line(self, label: str, numbers: Mapping[str, float]) -> None:
        """See `Display.line`."""
        self.note(label, numbers)

    def close(self) -> None:
        """See `Display.close`."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Nothing(Display):
    """For the processes beside the main one."""

    def line(self, label: str, numbers: Mapping[str, float]) -> None:
        """See `Display.line`."""


def display(progress: bool | None, main: bool) -> Display:
    """Choose how progress is shown; see `TrainerOptions`."""
    if not main:
        return Nothing()
    if progress is not False and sys.stderr.isatty():
        return Bar()
    return Display(printed=progress is True)


def short(numbers: Mapping[str, float]) -> str:
    """The losses among the numbers."""
    names = {"loss": "loss", "validation/loss": "validation"}
    return "  ".join(f"{text} {numbers[key]:.4g}" for key, text in names.items() if key in numbers)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
