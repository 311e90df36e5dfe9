"""MNIST: a handwritten digit and its class."""

from __future__ import annotations

__all__ = ["load"]

from numbers import Integral
from typing import get_args

import numpy as np

from multivae_core.data import IncompleteDataset
from multivae_core.errors import DataError
from multivae_datasets._files import read_arrays
from multivae_datasets.polymnist import SPLITS, Split

_CLASSES = 10


def load(
    split: Split = "train", n: int | None = None, *, binarise: bool = False, seed: int = 0
) -> IncompleteDataset:
    """Return pictures ``image`` (1, 28, 28) and their classes ``label`` (10,), in file order.

    ``image`` is the intensity, float32 in 0..1. With ``binarise`` it is bool: every pixel was
    drawn once with its intensity as the probability, and what is drawn for a row does not depend
    on ``n``. ``label`` is one-hot and of type uint8, so that a model has to be told how it is
    distributed: ``modalities={"label": {"likelihood": "categorical"}}``. Labels of the data set
    are the digits 0..9, as int64.

    The digits are the first 10,000 of MNIST's training set, rows 0..7999 for ``train`` and
    8000..9999 for ``test``; the official test set is not part of them.

    References:
        MNIST (LeCun, Cortes, Burges), CC BY-SA 3.0. Binarisation: Salakhutdinov, Murray 2008,
        *On the quantitative analysis of deep belief networks*; theirs is another draw.

    Args:
        split: ``train`` or ``test``.
        n: Number of rows, the first of the split; None: all 8,000 or 2,000.
        binarise: Whether pixels are drawn.
        seed: Of the drawn pixels, which depend on this and the split; nothing else is random.

    Raises:
        DataError: An argument outside of what is listed here.

    Example:
        >>> data = load("test", n=10)
        >>> data.shapes
        {'image': (1, 28, 28), 'label': (10,)}
    """
    if split not in get_args(Split):
        raise DataError(f"mnist: split must be 'train' or 'test', got {split!r}: change `split`")
    rows = SPLITS[split]
    if n is not None and not (isinstance(n, Integral) and 1 <= n <= len(rows)):
        raise DataError(
            f"mnist: n must be 1 to {len(rows)}, the rows of {split!r}, or None for all of them,"
            f" got {n!r}: change `n`"
        )
    if not isinstance(seed, Integral) or seed < 0:
        raise DataError(f"mnist: seed must be 0, 1, 2, ...; got {seed!r}: change `seed`")
    digits = read_arrays("mnist10k")
    chosen = slice(rows.start, rows.stop if n is None else rows.start + n)
    grey = digits["images"][chosen, None].astype(np.float32) / np.float32(255)
    classes = digits["labels"][chosen].astype(np.int64)
    label = np.eye(_CLASSES, dtype=np.uint8)[classes]
    if not binarise:
        return IncompleteDataset({"image": grey, "label": label}, labels=classes)
    rng = np.random.default_rng([seed, list(SPLITS).index(split)])
    inked = rng.random(grey.shape, dtype=np.float32) < grey
    return IncompleteDataset({"image": inked, "label": label}, labels=classes)
