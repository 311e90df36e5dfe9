"""Holes made for experiments: MCAR, MAR and MNAR, of whole modalities or of single elements.

Every entry that is seen is hidden by an independent coin. Its probability is the asked rate
(MCAR: completely at random), or ``sigmoid(a + strength * u)`` with a score u of mean 0 and
standard deviation 1: of the labels or of another, always observed modality (MAR: at random given
what stays visible), or of the very values that are hidden (MNAR: not at random). The intercept a
is found by bisection, so that the expected share of hidden entries is the asked rate (mechanisms
as named by Rubin 1976).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from multivae_core.data.checks import chunks, known_names, whole_number
from multivae_core.data.iterate import uniforms
from multivae_core.data.storage import Table
from multivae_core.errors import DataError

__all__ = ["LEVELS", "MECHANISMS", "hide", "intercept"]

MECHANISMS = ("mcar", "mar", "mnar")
LEVELS = ("modality", "element")


def hide(
    table: Table,
    rate: Any,
    seed: int,
    mechanism: str,
    level: str,
    depends_on: str | None,
    strength: float,
    keep_one: bool,
) -> Table:
    """Return the table with fewer entries visible; see `IncompleteDataset.hide`."""
    _check(table, mechanism, level, depends_on, strength, keep_one)
    whole_number("hide: seed", seed)
    driver = _driver(table, depends_on) if mechanism == "mar" else None
    present, observed = table.present.clone(), dict(table.observed)
    for name, share in _rates(rate, table.names, depends_on).items():
        column = table.present[:, table.names.index(name)]
        seen = column if level == "modality" else table.seen(name)
        chance: Tensor | float = share
        if mechanism != "mcar":
            score = _score(table, name, level) if driver is None else driver
            score = score.view(-1, *[1] * (seen.ndim - score.ndim), *score.shape[1:])
            chance = _chances(strength * score.expand(seen.shape), seen, share)
        left = seen & (uniforms(tuple(seen.shape), int(seed), "hide", level, name) >= chance)
        if level == "modality":
            present[:, table.names.index(name)] = left
        else:
            observed[name] = left
    if keep_one:
        lot = torch.stack([uniforms((table.size,), int(seed), "keep", n) for n in table.names], 1)
        lot = torch.where(table.present, lot, -1.0)
        best = table.present & (lot == lot.amax(dim=1, keepdim=True))
        present |= best & ~present.any(dim=1, keepdim=True)
    return table.show(present, observed)


def intercept(scores: Tensor, rate: float) -> float:
    """Find a with ``mean(sigmoid(a + scores)) == rate`` by bisection, for 0 < rate < 1."""
    reach = float(scores.abs().max()) + 2.0 * abs(math.log(rate) - math.log1p(-rate)) + 1.0
    low, high = -reach, reach
    for _ in range(52):
        middle = 0.5 * (low + high)
        if float(torch.sigmoid(scores + middle).mean()) < rate:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def _chances(scores: Tensor, seen: Tensor, rate: float) -> Tensor | float:
    """Chance of being hidden, of the scores' shape; calibrated over the entries that are seen."""
    if rate in (0.0, 1.0) or not bool(seen.any()):
        return rate
    return torch.sigmoid(scores + intercept(scores[seen], rate))


def _rates(rate: Any, names: tuple[str, ...], spared: str | None) -> dict[str, float]:
    """Return the rate of every modality to hide; a single number means all but the spared one."""
    rates = rate if isinstance(rate, Mapping) else {n: rate for n in names if n != spared}
    known_names("hide", rates, names)
    if spared in rates:
        raise DataError(
            f"hide: modality {spared!r} cannot be hidden and decide what is hidden (MAR)"
            ": leave it out of the rates, or use mechanism='mnar'"
        )
    for name, value in rates.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, numbers.Real)
            or not 0.0 <= float(value) <= 1.0
        ):
            raise DataError(
                f"hide: the rate of modality {name!r} is {value!r}; rates are shares from 0 to 1"
                ": write 0.3 for 30 %"
            )
    return {name: float(value) for name, value in rates.items()}


def _driver(table: Table, depends_on: str | None) -> Tensor:
    """The score ``(N,)`` on which MAR depends."""
    if depends_on not in (None, "labels"):
        return _score(table, str(depends_on), "modality")
    if table.labels is None or table.labels.ndim != 1:
        raise DataError(
            "hide: mechanism 'mar' depends on labels, one number per row, and this data has none"
            ": pass labels= to the data set, or depends_on= an always observed modality"
        )
    return _unit(table.labels.double(), torch.ones(table.size, dtype=torch.bool), "labels")


def _score(table: Table, name: str, level: str) -> Tensor:
    """How high values are: standardised elements, or per row the mean of these; 0 in holes."""
    mean, spread = table.moments(name)
    scores = []
    for rows in chunks(table.size, table.columns[name].shape):
        x, seen = table.piece(name, rows)
        z = torch.where(seen & (spread > 0), (x - mean) / spread, 0.0)
        if level == "modality":
            z = z.flatten(1).sum(dim=1) / seen.flatten(1).sum(dim=1).clamp(min=1)
        scores.append(z)
    column = table.present[:, table.names.index(name)]
    seen = column if level == "modality" else table.seen(name)
    return _unit(torch.cat(scores), seen, f"modality {name!r}")


def _unit(score: Tensor, seen: Tensor, what: str) -> Tensor:
    known = score[seen]
    if known.numel() == 0:  # missing everywhere: there is nothing to hide
        return torch.zeros_like(score)
    spread = known.std(correction=0)
    if float(spread) <= 1e-12 * float(known.abs().max()):
        raise DataError(
            f"hide: {what} has the same value in every row, so nothing can depend on it"
            ": use mechanism='mcar'"
        )
    return torch.where(seen, (score - known.mean()) / spread, 0.0)


def _check(
    table: Table,
    mechanism: str,
    level: str,
    depends_on: str | None,
    strength: float,
    keep_one: bool,
) -> None:
    driver = depends_on if mechanism == "mar" and depends_on not in (None, "labels") else None
    if driver is not None:
        known_names("hide, depends_on", [driver], table.names)
    finite = isinstance(strength, numbers.Real) and math.isfinite(strength)
    rules = (
        (mechanism not in MECHANISMS,
         f"unknown mechanism {mechanism!r}: use one of {', '.join(MECHANISMS)}"),
        (level not in LEVELS, f"unknown level {level!r}: use one of {', '.join(LEVELS)}"),
        (not finite,
         f"strength is {strength!r}; it is a change of log-odds per standard deviation: use a"
         " finite number such as 1.0"),
        (keep_one and level == "element",
         "keep_one is about whole modalities: use level='modality', or leave it out (rows with"
         " nothing left weigh 0 in every loss)"),
        (mechanism != "mar" and depends_on is not None,
         f"depends_on={depends_on!r} has no meaning for mechanism {mechanism!r}: use"
         " mechanism='mar', or leave it out"),
        (driver is not None and not bool(table.seen(driver).all()),
         f"depends_on={depends_on!r} has holes of its own, and MAR depends on what is always"
         " seen: name a modality without holes, or 'labels'"),
    )  # fmt: skip
    for broken, message in rules:
        if broken:
            raise DataError(f"hide: {message}")
