"""Prints model x {golden, oracle, kit, incomplete} out of what the sessions left.

``python tools/truth_table.py FOLDER`` with golden.json and kit.json; fails if a cell is not green.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

__all__ = ["main"]

ORACLE = ("likelihood", "conditional", "flagged", "bounds", "loss_bound")
"""Checks against linear-Gaussian truth."""
INCOMPLETE = ("holes", "whole", "others", "subsets", "gradients", "training", "likelihood")
"""Checks that hide something."""


def main(folder: Path) -> int:
    """Print the table; return 1 if a check failed."""
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    kit = json.loads((folder / "kit.json").read_text(encoding="utf-8"))
    failed = False
    print(f"{'model':<28}{'golden':>16}{'oracle':>14}{'kit':>14}{'incomplete':>22}")
    for case, outcomes in sorted(kit.items()):
        model = case.split()[0]
        counts = golden.get(model)
        numbers = "no numbers" if counts is None else _numbers(counts)
        holes = "" if counts is None or not counts["incomplete"] else f"{counts['incomplete']} + "
        cells = [
            "" if case != model else numbers,
            _verdict(outcomes, ORACLE),
            _verdict(outcomes, tuple(outcomes)),
            ("" if case != model else holes) + _verdict(outcomes, INCOMPLETE),
        ]
        failed |= any("FAILED" in cell for cell in cells)
        print(f"{case:<28}{cells[0]:>16}{cells[1]:>14}{cells[2]:>14}{cells[3]:>22}")
    reasons = Counter(
        (case.split()[0], text)
        for case, outcomes in sorted(kit.items())
        for text in outcomes.values()
        if text.startswith("n/a") and "no other device" not in text
    )
    for model, text in sorted(reasons):
        print(f"{model}: {text}")
    print("golden: numbers of other implementations that agree; incomplete: those of them about")
    print("data with holes + checks. n/a: the model does not claim it, or there is no device.")
    return int(failed)


def _numbers(counts: dict[str, int]) -> str:
    return f"{counts['failed']} FAILED" if counts["failed"] else f"{counts['compared']} ok"


def _verdict(outcomes: dict[str, str], checks: tuple[str, ...]) -> str:
    found = Counter(outcomes[check].split(":")[0] for check in checks if check in outcomes)
    if found["FAILED"]:
        return f"{found['FAILED']} FAILED"
    parts = [f"{found[verdict]} {verdict}" for verdict in ("ok", "n/a") if found[verdict]]
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
