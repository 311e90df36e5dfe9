"""From values per row to one number: the objective of the global batch, and what is reported."""

from __future__ import annotations

__all__ = [
    "Key", "Meter", "Report", "Share", "check_output", "means", "objective", "report",
    "weight_sums",
]  # fmt: skip

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor

from multivae_core.errors import TrainingError
from multivae_core.losses import LossOutput, Term

_HALF = (torch.float16, torch.bfloat16)


@attrs.frozen
class Share:
    """The rows at hand, and how they stand in the global batch.

    Args:
        mask: ``(B,)`` bool, rows of which something is seen; None: all of them.
        here: How many these are.
        count: How many there are in the global batch.
        stand_in: A process that got no row has one that must not count.
    """

    mask: Tensor | None
    here: int
    count: int
    stand_in: bool = False

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
        if self.stand_in:
            weight = torch.zeros_like(weight)
        return torch.where(weight != 0, weight * term.value, 0.0), weight


def check_output(output: LossOutput, rows: int, player: str) -> None:
    """Refuse a loss whose terms are not one value per row."""
    if not isinstance(output, LossOutput):
        raise TrainingError(
            f"the loss of player {player!r} gave {type(output).__name__}; it must give"
            " LossOutput objects"
        )
    values = {"the bound": output.bound}
    for name, term in output.terms.items():
        if term.weight is not None and term.value.shape == term.weight.shape == ():
            continue  # a value of the rows at hand together
        values |= {f"term {name!r}": term.value, f"the weight of term {name!r}": term.weight}
    values |= {f"metric {name!r}": value for name, value in output.metrics.items()}
    for what, value in values.items():
        if value is not None and value.shape != (rows,):
            raise TrainingError(
                f"the loss of player {player!r}: {what} has shape {tuple(value.shape)}; it must"
                f" be ({rows},), one value per row of the batch (a term that is no sum over rows:"
                " a scalar, with a scalar as its weight)"
            )


def weight_sums(output: LossOutput, share: Share) -> dict[str, Tensor]:
    """Sums of the weights at hand, of every term that has weights of its own."""
    own = {name: term for name, term in output.terms.items() if term.weight is not None}
    return {name: share.weigh(term)[1].sum() for name, term in own.items()}


def objective(
    output: LossOutput, share: Share, denominators: Callable[[], Mapping[str, Tensor]]
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
    if len(plain) < len(output.terms):
        for name, total in denominators().items():
            divisor = torch.where(total == 0, 1.0, total)
            parts.append(share.weigh(output.terms[name])[0].sum() / divisor)
    if output.surrogate is not None:
        parts.append(0.0 * output.surrogate if share.stand_in else output.surrogate)
    if not parts:
        raise TrainingError("a piece of a loss has neither terms nor a surrogate")
    return functools.reduce(torch.add, parts)


class Key(NamedTuple):
    """What a reported number is about: role is bound, term, metric, weight or number."""

    player: str
    piece: int
    role: str
    name: str


class Report(NamedTuple):
    """Sums over rows, and what they are divided by.

    Args:
        keys: What they are about, T of them.
        sums: ``(T,)``; a sum of weights is the denominator of the term of its name.
        here: Denominator of all others: the number of rows that count.
        rows: ``(T', B)`` values per row of the first keys.
    """

    keys: tuple[Key, ...]
    sums: Tensor
    here: float
    rows: Tensor

    def culprit(self, index: Tensor) -> str | None:
        """Say which reported number is not finite, and in which rows of the data set."""
        for key, values in zip(self.keys, self.rows, strict=False):
            wrong = (~torch.isfinite(values)).nonzero().flatten().tolist()
            if wrong and key.role != "metric":
                name = "the bound" if key.role == "bound" else f"term {key.name!r}"
                return (
                    f"{name} (player {key.player!r}; {float(values[wrong[0]])} in {len(wrong)} of"
                    f" {len(values)} rows, such as row {int(index[wrong[0]])})"
                )
        return None


def report(output: LossOutput, share: Share, player: str, piece: int) -> Report:
    """Reduce what a piece of a loss reports, in a handful of operations and without waiting."""
    bound = {} if output.bound is None else {Key(player, piece, "bound", ""): output.bound}
    terms = {Key(player, piece, "term", n): term.value for n, term in output.terms.items()}
    watched = {Key(player, piece, "metric", n): value for n, value in output.metrics.items()}
    found = bound | terms | watched
    if not found:
        return Report((), torch.zeros(0), 0.0, torch.zeros(0))
    keys = list(found)
    values = torch.broadcast_tensors(*map(torch.atleast_1d, found.values()))
    rows = torch.stack(values).detach()
    sums = share.pick(rows).sum(dim=1)
    for name, term in output.terms.items():
        if term.weight is not None:
            value, weight = share.weigh(term)
            sums[keys.index(Key(player, piece, "term", name))] = value.detach().sum()
            keys.append(Key(player, piece, "weight", name))
            sums = torch.cat([sums, weight.sum().to(sums).view(1)])
    return Report(tuple(keys), sums, float(share.here), rows)


class Meter:
    """Means of everything reported, pooled over steps: sums of numerators over denominators.

    Sums run on the device, in double precision where it has that; looking at them changes none.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[Key, ...], Tensor] = {}
        self._here: dict[tuple[Key, ...], float] = {}

    def add(self, entry: Report) -> None:
        """Take in a report."""
        if entry.keys in self._sums:
            self._sums[entry.keys] += entry.sums
            self._here[entry.keys] += entry.here
        elif entry.keys:
            kind = torch.float32 if entry.sums.device.type == "mps" else torch.float64
            self._sums[entry.keys] = entry.sums.to(kind, copy=True)
            self._here[entry.keys] = entry.here

    def totals(self, reduce: Callable[[Tensor], Tensor]) -> dict[Key, tuple[float, float]]:
        """Numerators and denominators so far; ``reduce`` sums a tensor over processes."""
        if not self._sums:
            return {}
        flat = torch.cat([*self._sums.values()])
        counts = torch.tensor([*self._here.values()]).to(flat)
        numbers = reduce(torch.cat([counts, flat])).tolist()
        found: dict[Key, tuple[float, float]] = {}
        place = len(counts)
        for keys, here in zip(self._sums, numbers[:place], strict=True):
            own = dict(zip(keys, numbers[place:], strict=False))
            place += len(keys)
            for key, value in own.items():
                below = own.get(key._replace(role="weight"), here)
                before = found.get(key, (0.0, 0.0))
                found[key] = before[0] + value, before[1] + below
        return found

    def state(self) -> tuple[list[list[Any]], Tensor]:
        """The sums of this process, ``(numbers,)``, and what they are about, for JSON."""
        groups = [[here, *map(list, keys)] for keys, here in self._here.items()]
        return groups, torch.cat(
            [torch.zeros(0).double(), *(s.cpu() for s in self._sums.values())]
        )

    @classmethod
    def of_state(cls, groups: Iterable[list[Any]], sums: Tensor, device: torch.device) -> Meter:
        """The inverse of `state`."""
        meter = cls()
        for here, *names in groups:
            keys = tuple(Key(*name) for name in names)
            meter._sums[keys], sums = sums[: len(keys)].to(device), sums[len(keys) :]
            meter._here[keys] = here
        return meter


def means(totals: Mapping[Key, tuple[float, float]], players: Sequence[str]) -> dict[str, float]:
    """The means by name, see `Epoch`; the first player gives the loss."""
    found: dict[str, float] = {}
    for player in players:
        named = _named({k: a / b if b else 0.0 for k, (a, b) in totals.items()
                        if k.player == player})  # fmt: skip
        found |= {f"{player}/{n}" if players[1:] else n: value for n, value in named.items()}
        if player == players[0] and "loss" in named:
            found["loss"] = named["loss"]
    return found


def _named(values: Mapping[Key, float]) -> dict[str, float]:
    """Add up the pieces of one player; the loss is its bounds, or its terms where it has none."""
    bounded = {key.piece for key in values if key.role == "bound"}
    terms = {key.name for key in values if key.role == "term"}
    found: dict[str, float] = {}
    for key, mean in values.items():
        if key.role == "bound" or (key.role == "term" and key.piece not in bounded):
            found["loss"] = found.get("loss", 0.0) + mean
        if key.role in ("term", "metric", "number"):
            name = key.name
            if name == "loss" or (key.role == "metric" and name in terms):
                name = f"{key.role}/{name}"
            found[name] = found.get(name, 0.0) + mean
    return {"loss": found.pop("loss"), **found} if "loss" in found else found
