"""The race's table: one line per workload and side, and a verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["render", "short", "verdict"]

Result = Mapping[str, Any]
"""One cell: side -> its figures, or why the peer refused."""


def render(found: Mapping[str, Sequence[Result]]) -> str:
    """Return the table as text: means over the seeds, with their spread.

    Args:
        found: Name of a workload -> one result per seed.
    """
    lines = [
        "log p: held-out joint log-likelihood, nats per row, mean over seeds +- standard"
        " deviation over seeds",
        "(s.e.: of the mean over the rows). accuracy with 1, 2, ... visible modalities, in %."
        " CPU s: training.",
        "",
        f"{'':<28}{'log p(x)':>22}{'(s.e.)':>8}   {'accuracy':<34}{'CPU s':>14}",
    ]
    for name, results in found.items():
        lines.append(f"{name}, {len(results)} seeds")
        for side, label in (("ours", "ours"), ("peer", "multivae")):
            lines.append(f"  {label:<26}{_line([result[side] for result in results])}")
        lines.append(f"  {'verdict':<26}{verdict(results)}")
    return "\n".join(lines)


def short(result: Result) -> str:
    """Return a cell in a few words."""
    parts = []
    for side in ("ours", "peer"):
        own = result[side]
        if "refused" in own:
            parts.append(f"{side}: refused")
            continue
        value = own["log_likelihood"]["value"]
        parts.append(f"{side}: log p {value:.1f}, {own['cpu_seconds']:.1f} s")
    return "; ".join(parts)


def verdict(results: Sequence[Result]) -> str:
    """Say where ours is worse by more than the spread of the seeds, and how much faster it is.

    Compared are the likelihood and the mean of the accuracies. The spread is that of a difference
    of two runs: the root of both sides' variances over the seeds, with the Monte-Carlo error of
    the likelihoods added.
    """
    if "refused" in results[0]["peer"]:
        return f"ours alone: the peer refuses ({results[0]['peer']['refused']})"
    ratio = statistics.fmean(
        result["peer"]["cpu_seconds"] / result["ours"]["cpu_seconds"] for result in results
    )
    speed = f"{ratio:.1f} times as fast" if ratio >= 1 else f"SLOWER, {ratio:.2f} times as fast"
    if len(results) < 2:
        return f"{speed}; quality: one seed has no spread"
    worse: list[str] = []
    better: list[str] = []
    for name, pairs in _qualities(results).items():
        ahead = statistics.fmean(mine - other for mine, other, _ in pairs)
        noise = statistics.fmean(error for *_, error in pairs)
        sides = list(zip(*((mine, other) for mine, other, _ in pairs), strict=True))
        spread = math.hypot(*(statistics.stdev(side) for side in sides), noise)
        if abs(ahead) > spread:
            (better if ahead > 0 else worse).append(f"{name} by {abs(ahead):.3g}")
    quality = "as good"
    if better:
        quality = f"better in {', '.join(better)}"
    if worse:
        quality = f"WORSE in {', '.join(worse)}" + (f"; {quality}" if better else "")
    return f"{speed}; {quality}"


def _qualities(results: Sequence[Result]) -> dict[str, list[tuple[float, float, float]]]:
    """Quality -> for every seed ours, theirs, and the Monte-Carlo error of the difference."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for result in results:
        mine, other = result["ours"], result["peer"]
        fits = mine["log_likelihood"], other["log_likelihood"]
        noise = math.hypot(*(fit["monte_carlo_se"] for fit in fits))
        found.setdefault("log p", []).append((fits[0]["value"], fits[1]["value"], noise))
        shares = [100 * statistics.fmean(each["accuracy"].values()) for each in (mine, other)]
        found.setdefault("mean accuracy", []).append((shares[0], shares[1], 0.0))
    return found


def _line(sides: Sequence[Result]) -> str:
    if "refused" in sides[0]:
        return "refused"
    fits = [side["log_likelihood"] for side in sides]
    errors = statistics.fmean(fit["se"] for fit in fits)
    sizes = sides[0]["accuracy"]
    shares = " ".join(
        f"{100 * statistics.fmean(side['accuracy'][size] for side in sides):4.1f}"
        for size in sizes
    )
    value, seconds = (
        _spread([fit["value"] for fit in fits]),
        _spread([side["cpu_seconds"] for side in sides]),
    )
    return f"{value:>22}{f'({errors:.1f})':>8}   {shares:<34}{seconds:>14}"


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} +- {statistics.stdev(values):.1f}" if len(values) > 1 else mean
