"""What a reproduction is made of."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

__all__ = ["Figure", "Reproduction", "Scale", "above_zero", "standard_error"]


@attrs.frozen(kw_only=True)
class Scale:
    """How much is run.

    Args:
        smoke: Seconds instead of minutes: enough to see that everything runs, not what it finds.
        folder: Where pictures and what is kept between runs go.
    """

    smoke: bool
    folder: Path

    def pick(self, full: int, smoke: int) -> int:
        """Return a number of rows, epochs or samples."""
        return smoke if self.smoke else full


@attrs.frozen(kw_only=True)
class Figure:
    """One line of the table.

    Args:
        what: What was measured, its unit, and on what.
        paper: What was published; ``not printed`` where there is only a plot, or nothing.
        ours: What we found, with its standard error in brackets.
        holds: Whether the claim holds at our scale; None: our scale forbids a verdict, or what
            was found lies within two standard errors of none.
    """

    what: str
    paper: str
    ours: str
    holds: bool | None = None


@attrs.frozen(kw_only=True, eq=False)
class Reproduction:
    """A published result, and how it is sought at a scale of minutes.

    Args:
        name: What ``--only`` looks for.
        reference: Authors, year, and where in the paper.
        paper_setting: Data, networks and training of the paper.
        our_setting: Ours.
        run: Gives the figures.
    """

    name: str
    reference: str
    paper_setting: str
    our_setting: str
    run: Callable[[Scale], list[Figure]]


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean; 0 of a single value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def above_zero(gains: Sequence[float]) -> bool | None:
    """Return the verdict on the claim that the mean of what was gained is above 0.

    None where it is within two standard errors of 0, or where there is a single value.
    """
    mean, error = statistics.fmean(gains), standard_error(gains)
    return None if len(gains) < 2 or abs(mean) < 2.0 * error else mean > 0.0
