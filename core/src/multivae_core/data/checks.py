"""Checks of what a user hands over as data: each refusal names the thing, the rule, the remedy."""

from __future__ import annotations

import difflib
import logging
import operator
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multivae_core.data.storage import Ids, Table, chunks
from multivae_core.errors import DataError

__all__ = [
    "check_names",
    "common_length",
    "known_names",
    "modality_masks",
    "observed_masks",
    "present_masks",
    "refuse_empty_rows",
    "same_kind",
    "to_ids",
    "to_labels",
    "to_mask",
    "to_tensor",
    "to_values",
    "whole_number",
]

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
# torch has hardly any operations for these
_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


def check_names(names: Iterable[Any]) -> tuple[str, ...]:
    """Return the names of modalities, checked.

    Raises:
        DataError: No names, or a name with other characters than letters, digits, _ and -.
    """
    found = tuple(names)
    if not found:
        raise DataError("no modalities: a data set needs at least one; pass {'name': array, ...}")
    for name in found:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise DataError(
                f"modality name {name!r}: names consist of letters, digits, '_' and '-'"
                f"; rename it, for example to {re.sub('[^A-Za-z0-9_-]+', '_', str(name)) or 'x'!r}"
            )
    return found


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


_ENCODE = (
    "turn categories into one-hot columns or codes, and write missing values as NaN of a float"
    " array"
)


def to_tensor(what: str, array: Any, remedy: str = _ENCODE) -> Tensor:
    """Return an array or array-like as a tensor on the CPU, without a copy where possible.

    Args:
        what: What the array is, for messages.
        array: Tensor, array or nested lists.
        remedy: What to do if it does not hold numbers.
    """
    if isinstance(array, Tensor):
        if array.layout != torch.strided:
            raise DataError(f"{what}: sparse tensors are not supported; pass x.to_dense()")
        return _usual_type(what, array.detach().cpu())
    if isinstance(array, np.ma.MaskedArray):
        raise DataError(
            f"{what}: the mask of a numpy masked array would be lost"
            "; pass x.filled(numpy.nan), or x.data with observed=~x.mask"
        )
    try:
        found = np.asarray(array)
    except (ValueError, TypeError) as err:
        raise DataError(
            f"{what}: not an array ({err}); every row needs the same shape, so pad or resample"
            " the rows, or split the modality"
        ) from err
    if found.dtype.kind not in "biuf":
        raise DataError(
            f"{what}: dtype {found.dtype} is not numeric (bool, integers and floats are); {remedy}"
        )
    mapped = isinstance(array, np.memmap)
    return _usual_type(what, _from_numpy(found, mapped))


def _from_numpy(array: np.ndarray[Any, Any], mapped: bool) -> Tensor:
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if not mapped or any(stride < 0 for stride in array.strides):
        array = np.asarray(array, order="C")
    with warnings.catch_warnings():
        # read-only memory is right here: values are only ever copied out of it
        warnings.filterwarnings("ignore", message=".*not writable.*", category=UserWarning)
        return torch.from_numpy(array)


def _usual_type(what: str, x: Tensor) -> Tensor:
    if x.dtype in _WIDER:
        if x.dtype == torch.uint64 and bool((x.view(torch.int64) < 0).any()):
            raise DataError(f"{what}: values above 2**63 - 1 do not fit; pass x.astype(float)")
        return x.to(_WIDER[x.dtype])
    if x.dtype not in _FLOATS | _INTEGERS | {torch.bool}:
        raise DataError(
            f"{what}: dtype {x.dtype} is not supported (bool, integers and real floats are)"
            "; pass real and imaginary parts as two features, or cast with x.float()"
        )
    return x


def to_values(name: str, array: Any) -> Tensor:
    """Return the values of a modality as a tensor ``(N, *shape)``."""
    x = to_tensor(f"modality {name!r}", array)
    if x.ndim < 2:
        raise DataError(
            f"modality {name!r} has shape {tuple(x.shape)}: rows need at least one feature axis"
            ", (N, features); for one value per row pass x.reshape(-1, 1)"
        )
    if x.shape[0] == 0:
        raise DataError(
            f"modality {name!r} has zero rows, shape {tuple(x.shape)}: empty data cannot be"
            " used; check how it was selected or loaded"
        )
    if x[0].numel() == 0:
        raise DataError(
            f"modality {name!r} has rows without a value, shape {tuple(x.shape)}: every axis"
            " needs a length of at least 1; leave the modality out"
        )
    return x


def common_length(tensors: Mapping[str, Tensor]) -> int:
    """Return the number of rows, the same in every modality."""
    (first, reference), *others = tensors.items()
    for name, x in others:
        if len(x) != len(reference):
            raise DataError(
                f"modality {name!r} has {len(x)} rows and {first!r} has {len(reference)}: row i"
                " is the same subject in all of them; give a row that lacks a modality NaN"
                " there, or align tables with IncompleteDataset.from_dataframes"
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
        elif x.shape[:1] == shape[:1] and x.numel() == shape[0]:
            remedy = "a mask of whole rows goes to present=, one bool per row"
        raise DataError(f"{what} has shape {tuple(x.shape)}, expected {shape}: {remedy}")
    return x.detach().cpu().clone()


def present_masks(present: Any, names: tuple[str, ...], rows: int) -> dict[str, Tensor]:
    """Return ``present`` as a mapping of columns ``(N,)``; empty when it was not given."""
    if present is None:
        return {}
    if not isinstance(present, Mapping):
        mask = to_mask("present", present, (rows, len(names)))
        return dict(zip(names, mask.unbind(dim=1), strict=True))
    known_names("present", present, names)
    for name in names:
        if name not in present:
            raise DataError(
                f"present: no mask for modality {name!r}; a mapping has one for every modality"
                f": add {name!r}: numpy.ones({rows}, bool) if it is always there"
            )
    return {name: to_mask(f"present[{name!r}]", present[name], (rows,)) for name in names}


def observed_masks(observed: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``observed`` as a mapping of masks of the values' shapes; empty when not given."""
    if observed is None:
        return {}
    if not isinstance(observed, Mapping):
        raise DataError(
            f"observed is a {type(observed).__name__}; modalities differ in shape, so it is a"
            " mapping: pass {'name': mask, ...}"
        )
    known_names("observed", observed, tuple(tensors))
    return {
        name: to_mask(f"observed[{name!r}]", mask, tuple(tensors[name].shape))
        for name, mask in observed.items()
    }


def modality_masks(
    name: str, x: Tensor, present: Tensor | None, observed: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Find out what of a modality is seen; without a mask, NaN is the mask.

    Args:
        name: The modality.
        x: ``(N, *shape)``.
        present: ``(N,)`` bool or None.
        observed: ``(N, *shape)`` bool or None.

    Returns:
        ``present`` ``(N,)`` and ``observed`` ``(N, *shape)``, the latter None when no row is
        partly observed.

    Raises:
        DataError: NaN or inf where a mask says observed; inf without a mask.
    """
    seen = observed
    if observed is not None and present is not None:
        seen = observed & present.view(-1, *[1] * (x.ndim - 1))
    elif present is not None:
        seen = present.view(-1, *[1] * (x.ndim - 1))
    nan, inf = _count_bad(x, seen)
    marked = seen is not None
    if bool(inf.any()) or (marked and bool(nan.any())):
        _refuse_bad(name, nan, inf, marked)
    if marked and observed is None:
        return present if present is not None else torch.ones(len(x), dtype=torch.bool), None
    if not marked and bool(nan.any()):
        logger.info(
            "modality %r: %d NaN values in %d of %d rows are taken as missing",
            name,
            int(nan.sum()),
            int((nan > 0).sum()),
            len(x),
        )
        size = x[0].numel()
        if bool(((nan == 0) | (nan == size)).all()):
            return nan == 0, None
        seen = ~torch.isnan(x)
    if seen is None:
        return torch.ones(len(x), dtype=torch.bool), None
    return seen.flatten(1).any(dim=1), seen


def _count_bad(x: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Count NaN and inf of each row where they are said to be seen, two ``(N,)``."""
    nan, inf = torch.zeros((2, len(x)), dtype=torch.int64)
    if x.dtype not in _FLOATS:
        return nan, inf
    for rows in chunks(len(x), tuple(x.shape[1:])):
        bad = ~torch.isfinite(x[rows])
        if seen is not None:
            bad &= seen[rows]
        if bool(bad.any()):
            not_number = torch.isnan(x[rows]) & bad
            nan[rows] = not_number.flatten(1).sum(dim=1)
            inf[rows] = bad.flatten(1).sum(dim=1) - nan[rows]
    return nan, inf


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _refuse_bad(name: str, nan: Tensor, inf: Tensor, marked: bool) -> None:
    bad = nan + inf
    row = int(bad.nonzero()[0])
    kind = "inf" if bool(inf[row]) else "NaN"
    count = f"{_counted(int(bad.sum()), 'such value')}, in {_counted(int((bad > 0).sum()), 'row')}"
    if marked:
        raise DataError(
            f"modality {name!r}, row {row}: {kind} where the mask says observed ({count})"
            "; mark it as missing in observed=, or pass no mask for this data, so that NaN"
            " itself marks what is missing"
        )
    raise DataError(
        f"modality {name!r}, row {row}: inf is neither a value nor a hole ({count})"
        "; replace it by NaN if it means missing, or clip it"
    )


def refuse_empty_rows(present: Tensor, ids: Ids | None = None) -> None:
    """Refuse rows of which nothing is observed."""
    empty = ~present.any(dim=1)
    if bool(empty.any()):
        row = int(empty.nonzero()[0])
        who = f"row {row}" if ids is None else f"row {row} (id {ids[row]!s})"
        raise DataError(
            f"{who} has nothing observed in any modality"
            f" ({_counted(int(empty.sum()), 'such row')}): a row needs something to learn from"
            "; drop these rows, or pass allow_empty_rows=True"
        )


def to_labels(labels: Any, rows: int) -> Tensor | None:
    """Return labels ``(N, ...)``: integers and bool as int64, floats in their type."""
    if labels is None:
        return None
    x = to_tensor("labels", labels, "pass numpy.unique(labels, return_inverse=True)[1]")
    if x.ndim == 0 or len(x) != rows:
        raise DataError(
            f"labels: {_counted(len(x) if x.ndim else 1, 'label')} for {rows} rows; one per row"
            " is needed: check that both were selected alike"
        )
    if x.dtype in _FLOATS:
        bad = (~torch.isfinite(x.flatten(1) if x.ndim > 1 else x[:, None])).any(dim=1)
        if bool(bad.any()):
            raise DataError(
                f"labels: NaN or inf in row {int(bad.nonzero()[0])}"
                f" ({_counted(int(bad.sum()), 'such row')}); every row needs a label: drop these"
                " rows or give 'unknown' a code of its own, for example"
                " numpy.nan_to_num(labels, nan=-1)"
            )
        return x.clone()
    return x.to(torch.int64, copy=True)


def to_ids(ids: Any, rows: int) -> Ids | None:
    """Return identifiers ``(N,)`` as an array of numbers or text."""
    if ids is None:
        return None
    found = np.asarray(ids)
    if found.dtype.kind not in "iuUS":
        found = found.astype(str)
    if found.shape != (rows,):
        raise DataError(f"ids: shape {found.shape}, expected ({rows},): one identifier per row")
    return found


def same_kind(first: Table, other: Table, number: int) -> None:
    """Make sure that the rows of two tables can stand in one."""
    who = f"concat: data set {number}"
    known_names(who, other.names, first.names)
    for name, column in first.columns.items():
        if name not in other.columns:
            raise DataError(
                f"{who} has no modality {name!r}; all need the same modalities: add it with"
                " NaN, which means missing"
            )
        theirs = other.columns[name]
        if theirs.shape != column.shape or theirs.tensor.dtype != column.tensor.dtype:
            raise DataError(
                f"{who}, modality {name!r}: {theirs.tensor.dtype} of shape {theirs.shape} does"
                f" not go with {column.tensor.dtype} of shape {column.shape}; cast or reshape"
                " it first"
            )
    for what, mine, its in [("labels", first.labels, other.labels), ("ids", first.ids, other.ids)]:
        if (mine is None) != (its is None):
            raise DataError(f"concat: {what} in some of the data sets only; give all or none")
    if (
        first.labels is not None
        and other.labels is not None
        and (first.labels.shape[1:] != other.labels.shape[1:])
    ):
        raise DataError(f"{who}: labels of another shape per row; reshape them first")
