"""Whether data fit a likelihood: one function per rule, each error with its remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from multivae_core.errors import DataError

__all__ = ["require_counts", "require_one_hot", "require_real", "require_unit_interval"]

_BLOCK = 1 << 22  # elements that are looked at in one go: bounds memory, not accuracy


def require_real(
    values: Tensor, observed: Tensor | None, likelihood: str, name: str, rows: Tensor | None
) -> None:
    """Refuse whole numbers and booleans for a real-valued likelihood."""
    if values.is_floating_point():
        return
    remedy = (
        "choose likelihood='bernoulli', or call .float() on the data"
        if values.dtype == torch.bool
        else "call .float() on the data if they are measurements, or choose likelihood='poisson'"
        " or 'negative_binomial' (counts) or 'categorical' (one-hot)"
    )
    kind = str(values.dtype).removeprefix("torch.")
    raise DataError(
        f"modality {name!r}: likelihood {likelihood!r} is for real numbers, the data are {kind};"
        f" {remedy}"
    )


def require_counts(
    values: Tensor, observed: Tensor | None, likelihood: str, name: str, rows: Tensor | None
) -> None:
    """Refuse anything but whole numbers from 0 up."""

    def bad(block: Tensor) -> Tensor:
        whole = block == block.floor() if block.is_floating_point() else True
        return ~((block >= 0) & whole & (block < torch.inf))

    _refuse(
        bad,
        values,
        observed,
        rows,
        f"modality {name!r}",
        f"likelihood {likelihood!r} is for counts (0, 1, 2, ...)",
        "give the raw counts, or choose likelihood='normal' for transformed or real-valued data",
    )


def require_unit_interval(
    values: Tensor, observed: Tensor | None, likelihood: str, name: str, rows: Tensor | None
) -> None:
    """Refuse values outside [0, 1]."""
    _refuse(
        lambda block: ~((block >= 0) & (block <= 1)),
        values,
        observed,
        rows,
        f"modality {name!r}",
        f"likelihood {likelihood!r} is for values between 0 and 1",
        "divide by the largest value (255 for bytes), or choose likelihood='normal'",
    )


def require_one_hot(
    values: Tensor, observed: Tensor | None, likelihood: str, name: str, rows: Tensor | None
) -> None:
    """Refuse anything but a single 1 among zeros along the last axis."""

    def bad(block: Tensor) -> Tensor:
        ones = (block == 1).sum(-1, keepdim=True) == 1
        return ~(ones & ((block == 0) | (block == 1)).all(-1, keepdim=True)).expand_as(block)

    whole = None if observed is None else observed.all(-1, keepdim=True).expand_as(values)
    _refuse(
        bad,
        values,
        whole,
        rows,
        f"modality {name!r}",
        f"likelihood {likelihood!r} needs one-hot values (a single 1) along the last axis",
        "encode categories with torch.nn.functional.one_hot",
    )


def _blocks(
    values: Tensor, observed: Tensor | None
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    length = max(1, _BLOCK // max(1, values[:1].numel()))
    for start in range(0, values.shape[0], length):
        stop = start + length
        yield start, values[start:stop], None if observed is None else observed[start:stop]


def _refuse(
    bad: Callable[[Tensor], Tensor],
    values: Tensor,
    observed: Tensor | None,
    rows: Tensor | None,
    thing: str,
    rule: str,
    remedy: str,
) -> None:
    """Raise for the first observed element for which ``bad`` holds."""
    for start, block, mask in _blocks(values, observed):
        wrong = bad(block) if mask is None else bad(block) & mask
        wrong = wrong.reshape(block.shape[0], -1)
        in_row = wrong.any(1)
        if not bool(in_row.any()):
            continue
        row = int(in_row.int().argmax())
        element = int(wrong[row].int().argmax())
        value = block[row].reshape(-1)[element].item()
        number = start + row if rows is None else int(rows[start + row])
        raise DataError(f"{thing}, row {number}: {rule}, got {value}; {remedy}")
