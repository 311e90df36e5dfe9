"""The pytest plugin: prints the table model x check at the end of a session; imports no torch."""

from __future__ import annotations

__all__ = ["pytest_terminal_summary"]

import sys
from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table, if the kit was used."""
    report = sys.modules.get("multivae_core.testing.report")
    if report is None or not report.recorded:
        return
    reports = [
        report.Report(model, tuple(outcomes.values()))
        for model, outcomes in report.recorded.items()
    ]
    terminalreporter.section("conformance: model x check")
    for line in report.table(reports):
        terminalreporter.write_line(line)
