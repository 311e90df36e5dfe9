"""From values per row to one number: the objective of the global batch, and what is reported."""

from __future__ import annotations

__all__ = ["Key", "Meter", "Record", "Share", "check_output", "objective", "record", "weight_sums"]

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor

from multivae_core.errors import TrainingError
from multivae_core.losses import LossOutput, Term

_HALF = (torch.float16, torch.bfloat16)


@attrs.frozen(kw_only=True)
class Share:
    """The rows at hand, and how they stand in the global batch.

    A process, or a part of a batch whose gradients are accumulated, has some rows of the batch
    that one optimisation step is about.

    Args:
        mask: ``(B,)`` bool, rows of which something is seen; None: all of them.
        here: How many these are.
        count: How many there are in the global batch.
        part: Rows at hand over rows of the global batch; 0 for a process that got none and
            stands in with a row that must not count.
    """

    mask: Tensor | None
    here: int
    count: int
    part: float = 1.0

    @classmethod
    def whole(cls, something: Tensor, device: torch.device | str = "cpu") -> Share:
        """The share of who has the whole batch; ``something`` ``(B,)`` says which rows count."""
        count = int(something.sum())
        mask = None if count == len(something) else something.to(device)
        return cls(mask=mask, here=count, count=count)

    def pick(self, values: Tensor) -> Tensor:
        """Zeros in rows that do not count, ``(..., B)``."""
        if values.dtype in _HALF:  # a sum over rows would lose most of its digits
            values = values.float()
        # selected, not multiplied: a row of which nothing is seen may hold anything
        return values if self.mask is None else torch.where(self.mask, values, 0.0)

    def weigh(self, term: Term) -> tuple[Tensor, Tensor]:
        """A term with weights of its own: weighted values and weights, both ``(B,)``."""
        assert term.weight is not None
        weight = term.weight.detach().to(torch.promote_types(term.weight.dtype, torch.float32))
        if self.part == 0.0:
            weight = torch.zeros_like(weight)
        return torch.where(weight != 0, weight * term.value, 0.0), weight


def check_output(output: LossOutput, rows: int, player: str) -> None:
    """Refuse a loss whose terms are not one value per row.

    Raises:
        TrainingError: Names player, term and shape.
    """
    if not isinstance(output, LossOutput):
        raise TrainingError(
            f"the loss of player {player!r} gave {type(output).__name__}; it must give"
            " LossOutput objects"
        )
    values = {f"term {name!r}": term.value for name, term in output.terms.items()}
    values |= {
        f"the weight of term {name!r}": term.weight
        for name, term in output.terms.items()
        if term.weight is not None
    }
    values |= {f"metric {name!r}": value for name, value in output.metrics.items()}
    if output.bound is not None:
        values["the bound"] = output.bound
    for what, value in values.items():
        if value.shape != (rows,):
            raise TrainingError(
                f"the loss of player {player!r}: {what} has shape {tuple(value.shape)}; it must"
                f" be ({rows},), one value per row of the batch"
            )


def weight_sums(output: LossOutput, share: Share) -> dict[str, Tensor]:
    """Sums of the weights at hand, of every term that has weights of its own."""
    return {
        name: share.weigh(term)[1].sum()
        for name, term in output.terms.items()
        if term.weight is not None
    }


def objective(
    output: LossOutput, share: Share, denominators: Callable[[], dict[str, Tensor]]
) -> Tensor:
    """What is differentiated: the sum over terms of ``sum(w v) / sum(w)``.

    The numerator is about the rows at hand, the denominator about the global batch, so that
    gradients of shares add up. A surrogate is taken as it is: it is a sum over the rows at hand,
    as the gradients are that it carries on.

    Args:
        output: One piece of a loss.
        share: The rows at hand.
        denominators: Gives the sums of weights over the global batch, of every term that has
            weights of its own; called only where there are such terms.

    Returns:
        A scalar; a term whose weights sum to 0 is 0, with its graph intact.
    """
    parts = []
    plain = [term.value for term in output.terms.values() if term.weight is None]
    if plain:
        parts.append(share.pick(functools.reduce(torch.add, plain)).sum() / max(share.count, 1))
    own = {name: term for name, term in output.terms.items() if term.weight is not None}
    if own:
        sums = denominators()
        for name, term in own.items():
            divisor = torch.where(sums[name] == 0, 1.0, sums[name])
            parts.append(share.weigh(term)[0].sum() / divisor)
    if output.surrogate is not None:
        counts = 1.0 if share.part else 0.0
        parts.append(counts * output.surrogate)
    if not parts:
        raise TrainingError("a piece of a loss has neither terms nor a surrogate")
    return functools.reduce(torch.add, parts)


class Key(NamedTuple):
    """What a recorded number is about: role is bound, term, metric or number."""

    player: str
    piece: int
    role: str
    name: str


@attrs.frozen(eq=False)
class Record:
    """Numerators of means, as one tensor, and their denominators.

    Args:
        keys: What they are about, T of them.
        values: ``(T + W,)``: T numerators, then the sums of weights of W terms.
        divisors: For every key the position of its sum of weights in ``values``; None: ``here``.
        here: Denominator of all others: the number of rows that count.
        rows: ``(T, B)`` values per row, kept to find out which row is not finite; or None.
        index: ``(B,)`` numbers of the rows in the data set; or None.
    """

    keys: tuple[Key, ...]
    values: Tensor
    divisors: tuple[int | None, ...]
    here: float
    rows: Tensor | None = None
    index: Tensor | None = None


def record(
    output: LossOutput, share: Share, player: str, piece: int, index: Tensor | None = None
) -> Record:
    """Reduce what a piece of a loss reports, in a handful of operations and without waiting."""
    keys: list[Key] = []
    rows: list[Tensor] = []
    weights: list[Tensor] = []
    if output.bound is not None:
        keys.append(Key(player, piece, "bound", ""))
        rows.append(output.bound)
    for name, term in output.terms.items():
        keys.append(Key(player, piece, "term", name))
        rows.append(term.value)
    for name, value in output.metrics.items():
        keys.append(Key(player, piece, "metric", name))
        rows.append(value)
    if not rows:
        return Record((), torch.zeros(0), (), 0.0)
    stacked = torch.stack(rows).detach()
    sums = share.pick(stacked).sum(dim=1)
    divisors: list[int | None] = [None] * len(keys)
    for name, term in output.terms.items():
        if term.weight is not None:
            place = keys.index(Key(player, piece, "term", name))
            value, weight = share.weigh(term)
            sums[place] = value.detach().sum()
            divisors[place] = len(keys) + len(weights)
            weights.append(weight.sum().to(sums))
    if weights:
        sums = torch.cat([sums, torch.stack(weights)])
    return Record(tuple(keys), sums, tuple(divisors), float(share.here), stacked, index)


class Meter:
    """Means of everything reported, pooled over steps: sum of numerators over denominators.

    Records stay tensors until they are looked at, all in one transfer; then they are added one
    by one, so that how often one looks changes no digit.
    """

    def __init__(self) -> None:
        self.totals: dict[Key, list[float]] = {}
        self._waiting: list[Record] = []

    def add(self, entry: Record) -> None:
        """Note a record."""
        if entry.keys:
            self._waiting.append(entry)

    def flush(self, reduce: Callable[[Tensor], Tensor] | None = None) -> Meter:
        """Take in what is waiting.

        Args:
            reduce: Sums a tensor over processes; None: there is one process.

        Returns:
            What was waiting, as a meter of its own.
        """
        news = Meter()
        if self._waiting:
            flat = torch.cat([entry.values for entry in self._waiting]).double()
            here = torch.tensor([entry.here for entry in self._waiting], dtype=torch.float64)
            if reduce is not None:
                both = reduce(torch.cat([flat, here.to(flat.device)]))
                flat, here = both[: len(flat)], both[len(flat) :]
            numbers, counts = flat.tolist(), here.tolist()
            for entry, count in zip(self._waiting, counts, strict=True):
                part, numbers = numbers[: len(entry.values)], numbers[len(entry.values) :]
                self._take(entry, part, count)
                news._take(entry, part, count)
        self._waiting = []
        return news

    def _take(self, entry: Record, numbers: list[float], count: float) -> None:
        for key, value, place in zip(entry.keys, numbers, entry.divisors, strict=False):
            total = self.totals.setdefault(key, [0.0, 0.0])
            total[0] += value
            total[1] += count if place is None else numbers[place]

    def waiting(self) -> list[Record]:
        """The records that nobody has looked at."""
        return self._waiting

    def numbers(self, players: Iterable[str]) -> dict[str, float]:
        """The means by name; see `Epoch` for the names."""
        names = list(players)
        found: dict[str, float] = {}
        for player in names:
            prefix = f"{player}/" if len(names) > 1 else ""
            own = self._of(player)
            found |= {prefix + name: value for name, value in own.items()}
            if player == names[0] and "loss" in own:
                found["loss"] = own["loss"]
        return found

    def _of(self, player: str) -> dict[str, float]:
        means = {
            key: total[0] / total[1] if total[1] else 0.0
            for key, total in self.totals.items()
            if key.player == player
        }
        bounded = {key.piece for key in means if key.role == "bound"}
        terms = {key.name for key in means if key.role == "term"}
        found: dict[str, float] = {}
        for key, mean in means.items():
            is_loss = key.role == "bound" or (key.role == "term" and key.piece not in bounded)
            if is_loss:
                found["loss"] = found.get("loss", 0.0) + mean
            if key.role != "bound":
                name = key.name
                if name == "loss" or (key.role == "metric" and name in terms):
                    name = f"{key.role}/{name}"
                found[name] = found.get(name, 0.0) + mean
        return {"loss": found.pop("loss", math.nan), **found} if terms or bounded else found

    def state(self) -> list[list[Any]]:
        """The totals as JSON can hold them; nothing may be waiting."""
        return [[*key, *total] for key, total in self.totals.items()]

    @classmethod
    def of_state(cls, state: Iterable[list[Any]]) -> Meter:
        """The inverse of `state`."""
        meter = cls()
        for player, piece, role, name, numerator, denominator in state:
            meter.totals[Key(player, piece, role, name)] = [numerator, denominator]
        return meter
