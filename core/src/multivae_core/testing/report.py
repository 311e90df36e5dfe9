"""What came out of the checks of a model: outcomes, the table, and the errors behind them."""

from __future__ import annotations

__all__ = [
    "Broken", "ConformanceError", "NotApplicable", "Outcome", "Report", "dump", "recorded",
    "reports", "table", "take",
]  # fmt: skip

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from multivae_core.errors import MultivaeError


class ConformanceError(MultivaeError, AssertionError):
    """A model breaks rules that every model keeps; one sentence for each."""


class Broken(ConformanceError):
    """Raised by a check: one sentence that says which rule was broken, and by how much."""


class NotApplicable(Exception):  # noqa: N818 - no error: the model says that it cannot do this
    """Raised by a check that the capabilities of a model exclude; says why."""


@attrs.frozen
class Outcome:
    """What one check found.

    Args:
        check: Name of the check.
        verdict: ``n/a`` where the model does not claim what is checked: never a pass.
        reason: Why it failed, or why it was not made.
        seconds: How long it took.
    """

    check: str
    verdict: Literal["ok", "n/a", "FAILED"]
    reason: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.verdict}: {self.reason}" if self.reason else self.verdict


@attrs.frozen
class Report:
    """All outcomes of one model, in the order of the checks."""

    model: str
    outcomes: tuple[Outcome, ...]

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """What failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.verdict == "FAILED")

    @property
    def seconds(self) -> float:
        """How long all checks took."""
        return sum(outcome.seconds for outcome in self.outcomes)

    def __str__(self) -> str:
        return "\n".join(table([self]))


recorded: dict[str, dict[str, Outcome]] = {}
"""Outcomes for the table at the end of a pytest session: model -> check -> outcome."""


def dump() -> dict[str, list[dict[str, Any]]]:
    """Return what was recorded as plain values, to be sent to another process."""
    return {
        model: [attrs.asdict(outcome) for outcome in outcomes.values()]
        for model, outcomes in recorded.items()
    }


def take(sent: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Record what another process has sent."""
    for model, outcomes in sent.items():
        own = recorded.setdefault(model, {})
        own.update({each["check"]: Outcome(**each) for each in outcomes})


def reports() -> list[Report]:
    """Return what was recorded, models by name and checks in the order of the kit."""
    from multivae_core.testing.kit import names

    return [
        Report(model, tuple(found[check] for check in names() if check in found))
        for model, found in sorted(recorded.items())
    ]


def table(reports: Sequence[Report]) -> list[str]:
    """Return model x check as lines; below it what failed or is n/a, each with its reason."""
    checks = list(dict.fromkeys(o.check for report in reports for o in report.outcomes))
    width = max([len(report.model) for report in reports] + [5]) + 1
    heights = max(map(len, checks), default=0)
    lines = [
        " " * width + "".join(f"{name.rjust(heights)[row]:>4}" for name in checks)
        for row in range(heights)
    ]
    for report in reports:
        cells = {outcome.check: outcome for outcome in report.outcomes}
        marks = (_mark(cells.get(name)) for name in checks)
        lines.append(
            f"{report.model:<{width}}" + "".join(f"{m:>4}" for m in marks)
            + f"{report.seconds:>7.1f} s"
        )  # fmt: skip
    return [*lines, *_failures(reports), *_not_applicable(reports)]


def _mark(outcome: Outcome | None) -> str:
    return {"ok": "ok", "n/a": "n/a", "FAILED": "XX"}[outcome.verdict] if outcome else "-"


def _failures(reports: Sequence[Report]) -> list[str]:
    return [f"{r.model}: {o.check}: {o}" for r in reports for o in r.failures]


def _not_applicable(reports: Sequence[Report]) -> list[str]:
    """Every reason once, with the checks and the models that it is about."""
    checks: dict[tuple[str, str], list[str]] = {}
    for report in reports:
        for outcome in report.outcomes:
            if outcome.verdict == "n/a":
                checks.setdefault((outcome.reason, report.model), []).append(outcome.check)
    models: dict[tuple[str, str], list[str]] = {}
    for (reason, model), names in checks.items():
        models.setdefault((", ".join(names), reason), []).append(model)
    lines = []
    for (which, reason), found in models.items():
        every = 1 < len(found) == len(reports)
        whose = "all models" if every else ", ".join(found)
        lines.append(f"{whose}: {which}: n/a: {reason}")
    return lines
