"""Data of several modalities with holes as one float64 table and its mask."""

from __future__ import annotations

__all__ = ["Data", "as_table"]

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from multivae_core.data import Batch, IncompleteDataset
from multivae_core.errors import DataError

Data: TypeAlias = IncompleteDataset | Batch | Mapping[str, NDArray[np.floating]]
Arrays = dict[str, NDArray[np.float64]]
Masks = dict[str, NDArray[np.bool_]]


def as_table(
    data: Data, sizes: Mapping[str, int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return values and mask, each ``(N, F)``, with the modalities in the order of ``sizes``.

    Args:
        data: Of modalities ``(N, d_m)``; in plain arrays NaN is a hole. A modality that is not
            there is missing in every row.
        sizes: Modality name -> d_m.

    Raises:
        DataError: No modality, an unknown one, or one of another shape.
    """
    values, observed = _from_arrays(data) if isinstance(data, Mapping) else _from_batch(data)
    unknown = sorted(set(values) - set(sizes))
    if unknown or not values:
        problem = f"unknown modality {unknown[0]!r}" if unknown else "no modality"
        raise DataError(f"{problem}: the model has {', '.join(sizes)}; give some of these")
    rows = len(next(iter(values.values())))
    for name, x in values.items():
        if x.shape != (rows, sizes[name]):
            raise DataError(
                f"modality {name!r}: must have shape {(rows, sizes[name])} like the model and the"
                f" other modalities, got {x.shape}; give rows of this model"
            )
    table = [values[n] if n in values else np.zeros((rows, d)) for n, d in sizes.items()]
    mask = [observed[n] if n in values else np.zeros((rows, d), bool) for n, d in sizes.items()]
    return np.concatenate(table, axis=1), np.concatenate(mask, axis=1)


def _from_arrays(data: Mapping[str, NDArray[np.floating]]) -> tuple[Arrays, Masks]:
    values = {name: np.asarray(x, dtype=np.float64) for name, x in data.items()}
    return values, {name: ~np.isnan(x) for name, x in values.items()}


def _from_batch(data: IncompleteDataset | Batch) -> tuple[Arrays, Masks]:
    batch = data if isinstance(data, Batch) else data.batch()
    values = {
        name: x.detach().cpu().numpy().astype(np.float64) for name, x in batch.values.items()
    }
    observed = {name: batch.seen(name).cpu().numpy() for name in values}
    return values, observed
