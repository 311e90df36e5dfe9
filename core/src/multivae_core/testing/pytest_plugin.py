"""The pytest plugin: prints the table model x check at the end of a session; imports no torch."""

from __future__ import annotations

__all__ = ["pytest_sessionfinish", "pytest_terminal_summary", "pytest_testnodedown"]

import sys
from typing import Any

import pytest

_KEY = "multivae_conformance"


def pytest_sessionfinish(session: Any) -> None:
    """Send outcomes from a worker of pytest-xdist to the process that prints the table."""
    report = sys.modules.get("multivae_core.testing.report")
    output = getattr(session.config, "workeroutput", None)
    if report is not None and output is not None:
        output[_KEY] = report.dump()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the outcomes of a worker of pytest-xdist."""
    if sent := getattr(node, "workeroutput", {}).get(_KEY):
        from multivae_core.testing import report

        report.take(sent)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table, if the kit was used."""
    report = sys.modules.get("multivae_core.testing.report")
    if report is None or not report.recorded:
        return
    terminalreporter.section("conformance: model x check")
    for line in report.table(report.reports()):
        terminalreporter.write_line(line)
