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
from typing import Any, NoReturn

import attrs
import torch
from torch import Tensor

from multivae_core.data.chance import uniforms
from multivae_core.data.checks import known_names
from multivae_core.data.storage import Table, chunks
from multivae_core.errors import DataError

__all__ = ["LEVELS", "MECHANISMS", "Holes", "hide", "intercept", "to_rates"]

MECHANISMS = ("mcar", "mar", "mnar")
LEVELS = ("modality", "element")
_TOLERANCE = 1e-3  # of the rate that can be reached when every row keeps a modality


@attrs.frozen(kw_only=True)
class Holes:
    """Which holes to make; see `IncompleteDataset.hide` for the meaning of every field."""

    rates: dict[str, float]
    mechanism: str
    level: str
    seed: int
    depends_on: str | None
    strength: float
    keep_one: bool


def to_rates(rate: Any, names: tuple[str, ...], spared: str | None = None) -> dict[str, float]:
    """Return the rate of every modality to hide; a single number means all but the spared one."""
    if isinstance(rate, Mapping):
        known_names("hide", rate, names)
        if spared in rate:
            _refuse(
                f"modality {spared!r} cannot be hidden and decide what is hidden (MAR)"
                ": leave it out of the rates, or use mechanism='mnar'"
            )
        rates = dict(rate)
    else:
        rates = {name: rate for name in names if name != spared}
    for name, value in rates.items():
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not 0.0 <= value <= 1.0:
            _refuse(
                f"the rate of modality {name!r} is {value!r}; rates are shares from 0 to 1"
                ": write 0.3 for 30 %"
            )
    return {name: float(rates[name]) for name in names if name in rates}


def hide(table: Table, holes: Holes) -> Table:
    """Return the table with fewer entries visible; what is hidden already stays hidden.

    Raises:
        DataError: An option that is unknown, or that the data do not allow.
    """
    _check(table, holes)
    driver = None if holes.mechanism != "mar" else _driver(table, holes.depends_on)
    if holes.level == "element":
        observed = {
            name: table.seen(name) & ~_hidden_elements(table, name, holes, driver)
            for name in holes.rates
        }
        return table.show(table.present, {**table.observed, **observed})
    scores = {name: _row_scores(table, name, holes, driver) for name in holes.rates}
    if holes.keep_one:
        hidden = _hidden_but_one(table, holes, scores)
    else:
        hidden = torch.zeros_like(table.present)
        for name, rate in holes.rates.items():
            column = table.names.index(name)
            there = table.present[:, column]
            chance = _probabilities(scores[name], there, rate)
            hidden[:, column] = _coins((table.size,), holes, name) < chance
    return table.show(table.present & ~hidden, table.observed)


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


def _probabilities(scores: Tensor, there: Tensor, rate: float) -> Tensor:
    """Chance of being hidden, of the scores' shape; calibrated over the entries that are there."""
    if rate in (0.0, 1.0) or not bool(there.any()):
        return torch.full_like(scores, rate)
    if scores.ndim == 0:
        return torch.full_like(scores, rate)
    return torch.sigmoid(scores + intercept(scores[there], rate))


def _hidden_elements(table: Table, name: str, holes: Holes, driver: Tensor | None) -> Tensor:
    shape = (table.size, *table.columns[name].shape)
    coins = _coins(shape, holes, name)
    if holes.mechanism == "mcar":
        return coins < holes.rates[name]
    seen = table.seen(name).expand(shape)
    if driver is not None:
        scores = driver.view(-1, *[1] * (len(shape) - 1)).expand(shape)
    else:
        scores = _standardised(table, name)
    return coins < _probabilities(holes.strength * scores, seen, holes.rates[name])


def _row_scores(table: Table, name: str, holes: Holes, driver: Tensor | None) -> Tensor:
    if holes.mechanism == "mcar":
        return torch.zeros(table.size, dtype=torch.float64)
    if driver is not None:
        return holes.strength * driver
    return holes.strength * _level(table, name)


def _driver(table: Table, depends_on: str | None) -> Tensor:
    """The score ``(N,)`` on which MAR depends."""
    if depends_on is not None and depends_on != "labels":
        return _level(table, depends_on)
    labels = table.labels
    if labels is None or labels.ndim != 1:
        _refuse(
            "mechanism 'mar' depends on labels, one number per row, and this data has none"
            ": pass labels= to the data set, or depends_on= an always observed modality"
        )
    return _unit(labels.double(), torch.ones(table.size, dtype=torch.bool), "labels")


def _level(table: Table, name: str) -> Tensor:
    """How high a row's values of a modality are, ``(N,)``: the mean of its standardised elements.

    Rows without the modality get 0.
    """
    shape = table.columns[name].shape
    mean, spread = table.moments(name)
    level = torch.zeros(table.size, dtype=torch.float64)
    for rows in chunks(table.size, shape):
        x, seen = table.column(name, torch.arange(rows.start, rows.stop))
        z = _scaled(x, seen, mean, spread).flatten(1).sum(dim=1)
        level[rows] = z / seen.flatten(1).sum(dim=1).clamp(min=1)
    there = table.present[:, table.names.index(name)]
    return _unit(level, there, f"modality {name!r}")


def _standardised(table: Table, name: str) -> Tensor:
    mean, spread = table.moments(name)
    if not bool((spread > 0).any()):
        _refuse_constant(f"modality {name!r}")
    x, seen = table.column(name, torch.arange(table.size))
    return _scaled(x, seen, mean, spread)


def _scaled(x: Tensor, seen: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    varies = spread > 0
    z = (x.double() - mean) / torch.where(varies, spread, 1.0)
    return torch.where(seen & varies, z, 0.0)


def _unit(score: Tensor, there: Tensor, what: str) -> Tensor:
    known = score[there]
    if known.numel() == 0:  # missing everywhere: there is nothing to hide
        return torch.zeros_like(score)
    spread = known.std(correction=0)
    if float(spread) <= 1e-12 * float(known.abs().max()):
        _refuse_constant(what)
    return torch.where(there, (score - known.mean()) / spread, 0.0)


def _hidden_but_one(table: Table, holes: Holes, scores: Mapping[str, Tensor]) -> Tensor:
    """Hide modalities so that every row that shows one still does, at the asked rates.

    A row that would lose all gets one back, each with the same chance. The intercepts are raised
    to make up for these, one modality at a time until all rates are met.
    """
    there = table.present
    columns = {name: table.names.index(name) for name in holes.rates}
    chances = torch.zeros(there.shape, dtype=torch.float64)
    for name, column in columns.items():
        chances[:, column] = _probabilities(scores[name], there[:, column], holes.rates[name])
    for _ in range(40):
        before = chances.clone()
        for name, column in columns.items():
            chances[:, column] = _compensated(
                scores[name], there, chances, column, holes.rates[name]
            )
        if float((chances - before).abs().max()) < 1e-9:
            break
    for name, column in columns.items():
        reached = _kept_rate(chances, there, column, chances[:, column])
        if abs(reached - holes.rates[name]) > _TOLERANCE:
            _refuse(
                f"modality {name!r} cannot be hidden at rate {holes.rates[name]:g} when every"
                f" row keeps one modality (at most {reached:.3f} is possible here): lower"
                " the rates, or pass keep_one=False"
            )
    coins = [_coins((table.size,), holes, name) for name in table.names]
    hidden = there & (torch.stack(coins, dim=1) < chances)
    kept = [uniforms((table.size,), holes.seed, "keep", name) for name in table.names]
    lot = torch.where(there, torch.stack(kept, dim=1), -1.0)
    lost = ~(there & ~hidden).any(dim=1)
    back = lost[:, None] & (lot == lot.amax(dim=1, keepdim=True))
    return hidden & ~back


def _compensated(
    scores: Tensor, there: Tensor, chances: Tensor, column: int, rate: float
) -> Tensor:
    if rate == 0.0 or not bool(there[:, column].any()):
        return torch.zeros_like(scores)
    low, high = -50.0 - float(scores.abs().max()), 50.0 + float(scores.abs().max())
    for _ in range(44):
        middle = 0.5 * (low + high)
        if _kept_rate(chances, there, column, torch.sigmoid(scores + middle)) < rate:
            low = middle
        else:
            high = middle
    return torch.sigmoid(scores + 0.5 * (low + high))


def _kept_rate(chances: Tensor, there: Tensor, column: int, own: Tensor) -> float:
    """Expected share of a modality that is hidden, after one was given back to empty rows."""
    others = torch.where(there, chances, 1.0)
    others[:, column] = 1.0
    back = own * others.prod(dim=1) / there.sum(dim=1).clamp(min=1)
    return float((own - back)[there[:, column]].mean()) if bool(there[:, column].any()) else 0.0


def _coins(shape: tuple[int, ...], holes: Holes, name: str) -> Tensor:
    return uniforms(shape, holes.seed, "hide", holes.level, name)


def _check(table: Table, holes: Holes) -> None:
    if holes.mechanism not in MECHANISMS:
        _refuse(f"unknown mechanism {holes.mechanism!r}: use one of {', '.join(MECHANISMS)}")
    if holes.level not in LEVELS:
        _refuse(f"unknown level {holes.level!r}: use one of {', '.join(LEVELS)}")
    if not isinstance(holes.strength, numbers.Real) or not math.isfinite(holes.strength):
        _refuse(
            f"strength is {holes.strength!r}; it is a change of log-odds per standard"
            " deviation: use a finite number such as 1.0"
        )
    if holes.keep_one and holes.level == "element":
        _refuse(
            "keep_one is about whole modalities: use level='modality', or leave it out"
            " (rows with nothing left weigh 0 in every loss)"
        )
    if holes.mechanism != "mar" and holes.depends_on is not None:
        _refuse(
            f"depends_on={holes.depends_on!r} has no meaning for mechanism"
            f" {holes.mechanism!r}: use mechanism='mar', or leave it out"
        )
    if holes.mechanism == "mar" and holes.depends_on != "labels":
        name = str(holes.depends_on)
        known_names("hide, depends_on", [name], table.names)
        if not table.whole[table.names.index(name)]:
            _refuse(
                f"depends_on={name!r} has holes of its own, and MAR depends on what is"
                " always seen: name a modality without holes, or 'labels'"
            )


def _refuse_constant(what: str) -> NoReturn:
    _refuse(
        f"{what} has the same value in every row, so nothing can depend on it"
        ": use mechanism='mcar'"
    )


def _refuse(message: str) -> NoReturn:
    raise DataError(f"hide: {message}")
