"""Counts what was compared, and prints the table at the end."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import attrs
import pytest

__all__ = ["Ledger"]


@attrs.define
class Ledger:
    """What became of every entry.

    Args:
        planned: Case -> (entries in the file, kind -> entries of that kind).
        done: Case -> kind of entry -> how many were compared and agreed.
        models: Case -> our name of its model.
        incomplete: Case -> how many of those compared are about data with holes.
        absent: Cases whose model is not installed: name -> (model, entries).
        selective: Whether only some tests were asked for.
    """

    planned: dict[str, tuple[int, Counter[str]]] = attrs.field(factory=dict)
    done: dict[str, Counter[str]] = attrs.field(factory=lambda: defaultdict(Counter))
    models: dict[str, str] = attrs.field(factory=dict)
    incomplete: Counter[str] = attrs.field(factory=Counter)
    absent: dict[str, tuple[str, int]] = attrs.field(factory=dict)
    selective: bool = False

    def missing(self) -> list[str]:
        """Cases of which something was neither compared nor accounted for."""
        found = []
        for name, (total, kinds) in self.planned.items():
            done = self.done[name]["check"]
            counted = done + kinds["component"] + kinds["information"]
            if done != kinds["check"] or counted != total:
                found.append(f"{name}: {counted} of {total} entries")
        return found

    def by_model(self) -> dict[str, dict[str, int]]:
        """What was compared of every model: entries, those about holes, and those that failed."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for name, (_, kinds) in self.planned.items():
            done = self.done[name]
            found[self.models[name]].update(
                compared=done["check"] + done["component"],
                incomplete=self.incomplete[name],
                failed=kinds["check"] + kinds["unknown"] - done["check"],
            )
        return {model: dict(counts) for model, counts in found.items()}

    def table(self) -> list[str]:
        """The report."""
        head = f"{'case':<42}{'entries':>8}{'agree':>7}{'of':>5}{'parts':>7}{'of':>5}{'info':>6}"
        lines, sums = [head], Counter[str]()
        for name, (total, kinds) in sorted(self.planned.items()):
            row = {
                "entries": total,
                "agree": self.done[name]["check"],
                "of": kinds["check"] + kinds["unknown"],
                "parts": self.done[name]["component"],
                "components": kinds["component"],
                "info": kinds["information"],
            }
            sums.update(row)
            lines.append(_line(name, row))
        lines.append(_line(f"{len(self.planned)} cases", sums))
        lines.append(
            "parts: components of a loss, optional; info: the peer's own importance-sampled"
            " estimate, which is no gate."
        )
        lines.append(
            f"entries run = entries in file: {sums['agree'] + sums['components'] + sums['info']}"
            f" = {sums['entries']}"
            f" ({sums['agree']} compared, {sums['components']} components of which"
            f" {sums['parts']} compared, {sums['info']} for information)"
        )
        if self.absent:
            models = sorted({model for model, _ in self.absent.values()})
            count = sum(entries for _, entries in self.absent.values())
            lines.append(
                f"not installed: {len(self.absent)} cases, {count} entries, of the models"
                f" {', '.join(models)}"
            )
            lines += [f"  {name} ({n} entries)" for name, (_, n) in sorted(self.absent.items())]
        return lines


def _line(name: str, row: dict[str, int] | Counter[str]) -> str:
    return (
        f"{name:<42}{row['entries']:>8}{row['agree']:>7}{row['of']:>5}{row['parts']:>7}"
        f"{row['components']:>5}{row['info']:>6}"
    )


_KEY = pytest.StashKey[Ledger]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_KEY] = Ledger()


def pytest_deselected(items: Iterable[pytest.Item]) -> None:
    for item in items:
        item.config.stash[_KEY].selective = True
        return


@pytest.fixture(scope="session")
def ledger(request: pytest.FixtureRequest) -> Ledger:
    return request.config.stash[_KEY]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    book = terminalreporter.config.stash[_KEY]
    if book.planned or book.absent:
        terminalreporter.section("golden numbers")
        for line in book.table():
            terminalreporter.write_line(line)
    if "MULTIVAE_RESULTS" in os.environ and not book.selective:
        results = Path(os.environ["MULTIVAE_RESULTS"]) / "golden.json"
        results.write_text(json.dumps(book.by_model()), encoding="utf-8")
