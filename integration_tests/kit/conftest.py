"""Keeps the outcomes of the kit for the table of `nox -s truth`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from multivae_core.testing.report import recorded


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if "MULTIVAE_RESULTS" in os.environ and recorded:
        results = Path(os.environ["MULTIVAE_RESULTS"]) / "kit.json"
        found = {
            case: {check: str(outcome) for check, outcome in outcomes.items()}
            for case, outcomes in recorded.items()
        }
        results.write_text(json.dumps(found), encoding="utf-8")
