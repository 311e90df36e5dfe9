"""Which rows and which modalities a caller means: row numbers, splits, visible modalities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor

from multivae_core.data.chance import permutation, uniforms
from multivae_core.data.checks import known_names, to_mask, to_tensor, whole_number
from multivae_core.errors import DataError

__all__ = ["split_rows", "to_rows", "visible_mask"]


def to_rows(index: Any, n: int) -> Tensor:
    """Return row numbers ``(R,)``: from a slice, numbers, or a bool mask; None means all."""
    if index is None:
        return torch.arange(n)
    if isinstance(index, slice):
        return torch.arange(*index.indices(n))
    x = to_tensor("index", index)
    if x.dtype == torch.bool:
        if tuple(x.shape) != (n,):
            raise DataError(
                f"index: a bool mask has shape {tuple(x.shape)}, expected ({n},), one per row"
                "; pass row numbers, or a mask of that shape"
            )
        return x.nonzero().squeeze(1)
    if x.ndim != 1 or (x.is_floating_point() and x.numel()):
        raise DataError(
            f"index: got {str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}; rows"
            " are selected by a list of whole numbers, a bool mask or a slice"
        )
    rows = x.long()
    outside = (rows < 0) | (rows >= n)
    if bool(outside.any()):
        raise DataError(
            f"index: row {int(rows[outside][0])} does not exist; this data has rows 0 to {n - 1}"
            ", counted from the front: check where the numbers come from"
        )
    return rows


def visible_mask(visible: Any, names: tuple[str, ...], rows: int) -> Tensor:
    """Return ``(N, M)`` bool for names of modalities or a mask."""
    chosen = {visible} if isinstance(visible, str) else visible
    listed = isinstance(chosen, list | tuple) and all(isinstance(n, str) for n in chosen)
    if listed or isinstance(chosen, Set | Mapping):
        found = known_names("restrict", chosen, names)
        return torch.tensor([name in found for name in names]).expand(rows, len(names))
    return to_mask("restrict: the mask", visible, (rows, len(names)))


def split_rows(
    n: int, parts: tuple[float, ...], seed: int, stratify: str | None, labels: Tensor | None
) -> list[Tensor]:
    """Deal rows to parts at random, every part in ascending order.

    Args:
        n: Number of rows.
        parts: Shares or counts; what they leave over is one more part.
        seed: Seed of the choice.
        stratify: ``"labels"`` to keep the shares of every label, or None.
        labels: ``(N,)`` or None.
    """
    if stratify not in (None, "labels"):
        raise DataError(f"split: stratify is {stratify!r}; use 'labels' or None")
    if stratify and (labels is None or labels.ndim != 1):
        raise DataError(
            "split: stratify='labels' needs one label per row, and this data has none; pass"
            " labels= to the data set, or leave stratify out"
        )
    bounds = _bounds(parts, n)
    seed = whole_number("split: seed", seed)
    order = permutation(n, seed, "split")
    if stratify and labels is not None:
        order = _dealt_evenly(order, labels, seed)
    return [order[a:b].sort().values for a, b in itertools.pairwise(bounds)]


def _dealt_evenly(order: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Order rows so that any stretch of them has every label in about its share.

    Row number r out of the k rows of a label is put at position (r + u) / k.
    """
    _, code, counts = torch.unique(labels[order], return_inverse=True, return_counts=True)
    grouped = code.argsort(stable=True)
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(order)) - first[code[grouped]]
    offset = uniforms((len(counts),), seed, "stratify")[code[grouped]]
    position = (rank + offset) / counts[code[grouped]]
    return order[grouped[position.argsort(stable=True)]]


def _bounds(parts: tuple[float, ...], n: int) -> list[int]:
    """Where each part begins and ends, the remainder included."""
    whole = all(isinstance(part, int) and not isinstance(part, bool) for part in parts)
    shares = all(isinstance(part, float) and math.isfinite(part) for part in parts)
    if not parts or not (whole or shares) or any(part <= 0 for part in parts):
        raise DataError(
            f"split: parts are {parts}; give positive shares such as (0.7, 0.15) or counts such"
            " as (1000, 200), not both; what is left over is the last part"
        )
    total = math.fsum(parts)
    limit = n if whole else 1.0
    if total > limit + (0 if whole else 1e-9):
        raise DataError(
            f"split: the parts {parts} sum to {total:g}, more than {limit:g}"
            f"{' rows' if whole else ''}; make them smaller"
        )
    ends = itertools.accumulate(parts)
    bounds = [0, *(int(end) if whole else min(n, math.floor(end * n + 0.5)) for end in ends)]
    if total < limit - (0 if whole else 1e-9):
        bounds.append(n)
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        if start == end:
            raise DataError(
                f"split: part {number + 1} of {len(bounds) - 1} would have no rows out of {n}"
                "; give it a larger share or leave it out"
            )
    return bounds
