"""Checks of what a user hands over as data: each refusal names the thing, the rule, the remedy."""

from __future__ import annotations

import difflib
import logging
import operator
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multivae_core.errors import DataError

__all__ = [
    "check_names", "chunks", "common_length", "counted", "known_names", "modality_masks",
    "still_visible", "to_labels", "to_mask", "to_masks", "to_tensor", "to_values", "whole_number",
]  # fmt: skip

logger = logging.getLogger(__name__)

_CHUNK = 1 << 22  # elements per chunk: 32 MB in float64
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool}
# torch has hardly any operations for these
_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
_ENCODE = "turn categories into one-hot columns or codes, write missing values as NaN of floats"


def chunks(n: int, shape: tuple[int, ...]) -> Iterator[slice]:
    """Cut n rows into pieces that take little memory."""
    step = max(1, _CHUNK // max(1, torch.Size(shape).numel()))
    return (slice(start, min(n, start + step)) for start in range(0, n, step))


def check_names(what: str, values: Any) -> tuple[str, ...]:
    """Return the modalities of a mapping, after making sure that it is one with legal names."""
    if not isinstance(values, Mapping):
        raise DataError(
            f"{what} is a {type(values).__name__}; modalities have names"
            ": pass a mapping {'name': array, ...}"
        )
    if not values:
        raise DataError("no modalities: a data set needs at least one; pass {'name': array, ...}")
    for name in values:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise DataError(
                f"modality name {name!r}: names consist of letters, digits, '_' and '-'"
                f"; rename it, for example to {re.sub('[^A-Za-z0-9_-]+', '_', str(name)) or 'x'!r}"
            )
    return tuple(values)


def known_names(what: str, names: Iterable[Any], known: Collection[str]) -> list[str]:
    """Return the names as a list, after making sure that all are known."""
    found = list(names)
    for name in found:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "use names out of these"
            raise DataError(
                f"{what}: unknown modality {name!r}; this data has {', '.join(known)}: {hint}"
            )
    return found


def whole_number(what: str, value: Any, least: int | None = None) -> int:
    """Return an integer of any type as a Python one."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or (least is not None and number < least):
        rule = "" if least is None else f" from {least} up"
        raise DataError(f"{what} is {value!r}; use a whole number{rule}")
    return number


def to_tensor(what: str, array: Any, remedy: str = _ENCODE) -> Tensor:
    """Return an array or array-like as a tensor on the CPU, without a copy where possible."""
    if isinstance(array, Tensor) and array.layout != torch.strided:
        raise DataError(f"{what}: sparse tensors are not supported; pass x.to_dense()")
    if isinstance(array, np.ma.MaskedArray):
        raise DataError(
            f"{what}: the mask of a numpy masked array would be lost"
            "; pass x.filled(numpy.nan), or x.data with observed=~x.mask"
        )
    x = array.detach().cpu() if isinstance(array, Tensor) else _from_numpy(what, array, remedy)
    if x.dtype in _WIDER:
        if x.dtype == torch.uint64 and bool((x.view(torch.int64) < 0).any()):
            raise DataError(f"{what}: values above 2**63 - 1 do not fit; pass x.astype(float)")
        return x.to(_WIDER[x.dtype])
    if x.dtype not in _FLOATS | _INTEGERS:
        raise DataError(
            f"{what}: dtype {x.dtype} is not supported (bool, integers and real floats are)"
            "; pass real and imaginary parts as two features, or cast with x.float()"
        )
    return x


def _from_numpy(what: str, given: Any, remedy: str) -> Tensor:
    try:
        array = np.asarray(given)
    except (ValueError, TypeError) as err:
        raise DataError(
            f"{what}: not an array ({err}); every row needs the same shape, so pad or resample"
            " the rows, or split the modality"
        ) from err
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{what}: dtype {array.dtype} is not numeric (bool, integers and floats are); {remedy}"
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if not isinstance(given, np.memmap) or any(stride < 0 for stride in array.strides):
        array = np.asarray(array, order="C")
    with warnings.catch_warnings():
        # read-only memory is right here: values are only ever copied out of it
        warnings.filterwarnings("ignore", message=".*not writable.*", category=UserWarning)
        return torch.from_numpy(array)


def to_values(name: str, array: Any) -> Tensor:
    """Return the values of a modality as a tensor ``(N, *shape)``."""
    x = to_tensor(f"modality {name!r}", array)
    rules = (
        (x.ndim < 2, "has", ": rows need at least one feature axis, (N, features); for one value"
         " per row pass x.reshape(-1, 1)"),
        (x.shape[:1] == (0,), "has zero rows,", ": empty data cannot be used; check how it was"
         " selected or loaded"),
        (x.numel() == 0, "has rows without a value,", ": every axis needs a length of at least"
         " 1; leave the modality out"),
    )  # fmt: skip
    for broken, what, remedy in rules:
        if broken:
            where = f"{what} shape {tuple(x.shape)}"
            raise DataError(f"modality {name!r} {where}{remedy}")
    return x


def common_length(tensors: Mapping[str, Tensor]) -> int:
    """Return the number of rows, the same in every modality."""
    (first, reference), *others = tensors.items()
    for name, x in others:
        if len(x) != len(reference):
            raise DataError(
                f"modality {name!r} has {len(x)} rows and {first!r} has {len(reference)}: row i"
                " is the same subject in all of them; give a row that lacks a modality NaN"
                " there, or align tables with identifiers (from_dataframes, from_folder)"
            )
    return len(reference)


def to_mask(what: str, mask: Any, shape: tuple[int, ...]) -> Tensor:
    """Return a bool mask of this shape as a tensor of its own."""
    x = mask if isinstance(mask, Tensor) else to_tensor(what, mask)
    if x.dtype != torch.bool:
        raise DataError(
            f"{what} has dtype {str(x.dtype).removeprefix('torch.')}: masks are bool, True where"
            " seen; convert it, for example by mask == 1"
        )
    if tuple(x.shape) != shape:
        remedy = "pass a mask of that shape"
        if tuple(x.shape) == (*shape, 1):
            remedy = "pass mask[:, 0]"
        elif what.startswith("observed") and tuple(x.shape) in {shape[:1], (*shape[:1], 1)}:
            remedy = "a mask of whole rows goes to present=, one bool per row"
        raise DataError(f"{what} has shape {tuple(x.shape)}, expected {shape}: {remedy}")
    return x.detach().clone()


def still_visible(visible: Any, names: tuple[str, ...], present: Tensor) -> Tensor:
    """Return what remains of ``present`` ``(N, M)`` if only these names, or this mask, is seen."""
    if not isinstance(visible, Tensor | np.ndarray):
        listed = [visible] if isinstance(visible, str) else list(visible)
        if all(isinstance(name, str) for name in listed):
            chosen = known_names("restrict", listed, names)
            return present & torch.tensor([n in chosen for n in names], device=present.device)
        visible = listed
    mask = to_mask("restrict: the mask", visible, tuple(present.shape))
    return present & mask.to(present.device)


def to_masks(
    what: str, masks: Any, shapes: Mapping[str, tuple[int, ...]], every: bool = False
) -> dict[str, Tensor]:
    """Return masks of these shapes by modality, of each one if ``every``; empty if none given."""
    if masks is None:
        return {}
    if not isinstance(masks, Mapping):
        raise DataError(
            f"{what} is a {type(masks).__name__}; modalities differ in shape, so it is a mapping"
            ": pass {'name': mask, ...}"
        )
    known_names(what, masks, tuple(shapes))
    if lacking := [name for name in shapes if every and name not in masks]:
        raise DataError(
            f"{what}: no mask for modality {lacking[0]!r}; a mapping has one for every modality: "
            f"add {lacking[0]!r}: numpy.ones({shapes[lacking[0]][0]}, bool) if it is always there"
        )
    return {n: to_mask(f"{what}[{n!r}]", mask, shapes[n]).cpu() for n, mask in masks.items()}


def modality_masks(
    name: str, x: Tensor, present: Tensor | None, observed: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Find out what of a modality ``(N, *shape)`` is seen; without a mask, NaN is the mask.

    Returns:
        ``present`` ``(N,)``, and ``observed`` ``(N, *shape)`` or None when no row is partly seen.
    """
    seen = observed
    if present is not None:
        rows = present.view(-1, *[1] * (x.ndim - 1))
        seen = rows if observed is None else observed & rows
    nan, inf = _count_bad(x, seen)
    if bool(inf.any()) or (seen is not None and bool(nan.any())):
        _refuse_bad(name, nan, inf, seen is not None)
    if present is not None and observed is None:
        return present, None
    if seen is None:
        if bool(nan.any()):
            numbers = int(nan.sum()), int((nan > 0).sum()), len(x)
            text = "modality %r: %d NaN values in %d of %d rows are taken as missing"
            logger.info(text, name, *numbers)
        if bool(((nan == 0) | (nan == x[0].numel())).all()):
            return nan == 0, None
        seen = ~torch.isnan(x)
    return seen.flatten(1).any(dim=1), seen


def _count_bad(x: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Count NaN and inf of each row where they are said to be seen, two ``(N,)``."""
    nan, inf = torch.zeros((2, len(x)), dtype=torch.int64)
    for rows in chunks(len(x), tuple(x.shape[1:])) if x.dtype in _FLOATS else ():
        bad = ~torch.isfinite(x[rows])
        if seen is not None:
            bad &= seen[rows]
        if bool(bad.any()):
            nan[rows] = (torch.isnan(x[rows]) & bad).flatten(1).sum(dim=1)
            inf[rows] = bad.flatten(1).sum(dim=1) - nan[rows]
    return nan, inf


def counted(number: int, thing: str) -> str:
    """Return a number with its noun, ``"2 rows"``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _refuse_bad(name: str, nan: Tensor, inf: Tensor, marked: bool) -> None:
    bad = nan + inf
    row = int(bad.nonzero()[0])
    count = f"{counted(int(bad.sum()), 'such value')}, in {counted(int((bad > 0).sum()), 'row')}"
    kind = "inf" if bool(inf[row]) else "NaN"
    rule = (
        f"inf is neither a value nor a hole ({count}); replace it by NaN if it means missing, or"
    )
    rule += " clip it"
    if marked:
        rule = (
            f"{kind} where the mask says observed ({count}); mark it as missing in observed=, or"
        )
        rule += " pass no mask for this data, so that NaN itself marks what is missing"
    raise DataError(f"modality {name!r}, row {row}: {rule}")


def to_labels(labels: Any, rows: int) -> Tensor | None:
    """Return labels ``(N, ...)``: integers and bool as int64, floats in their type."""
    if labels is None:
        return None
    x = to_tensor("labels", labels, "pass numpy.unique(labels, return_inverse=True)[1]")
    if x.ndim == 0 or len(x) != rows:
        raise DataError(
            f"labels: {counted(len(x) if x.ndim else 1, 'label')} for {rows} rows; one per row"
            " is needed: check that both were selected alike"
        )
    bad = (~torch.isfinite(x)).reshape(rows, -1).any(dim=1)
    if bool(bad.any()):
        raise DataError(
            f"labels: NaN or inf in row {int(bad.nonzero()[0])}"
            f" ({counted(int(bad.sum()), 'such row')}); every row needs a label: drop these rows"
            " or give 'unknown' a code of its own, for example numpy.nan_to_num(labels, nan=-1)"
        )
    return x.clone() if x.dtype in _FLOATS else x.to(torch.int64, copy=True)
