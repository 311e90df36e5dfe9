"""PolyMNIST: one digit class in five pictures, each with a photograph of its own behind it."""

from __future__ import annotations

__all__ = ["BACKGROUNDS", "SPLITS", "load"]

from typing import Literal, get_args

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from multivae_core.data import IncompleteDataset
from multivae_core.errors import DataError
from multivae_datasets._files import read_arrays

BACKGROUNDS = ("astronaut", "chelsea", "coffee", "hubble", "rocket")
"""The photograph behind each modality, ``m0`` first."""

Split = Literal["train", "test"]
SPLITS: dict[Split, range] = {"train": range(8000), "test": range(8000, 10000)}
"""Rows of the 10,000 digits that each split draws from."""

_SIDE = 28
_INK = 25  # a pixel of a digit that is brighter (of 255) inverts the photograph under it


def load(
    split: Split = "train",
    n: int | None = None,
    *,
    size: Literal[28, 14] = 28,
    modalities: int = 5,
    seed: int = 0,
) -> IncompleteDataset:
    """Return pictures ``m0``, ``m1``, ... of shape (3, size, size) in 0..1, with their digits.

    The published recipe: the pictures of a row show different handwritten digits of one class;
    modality m takes a random 28 x 28 piece of photograph m, in which the pixels of the digit are
    inverted. All that the modalities of a row share is the class. Here every digit of the split
    appears once per modality before any appears again, and rows are in random order.

    The digits are the first 10,000 of MNIST's training set, rows 0..7999 for ``train`` and
    8000..9999 for ``test``; no digit is in both. The photographs are in both, cut elsewhere.
    They are not those of the publication, so its numbers are not to be expected to the digit.

    All 8,000 rows of five 28 x 28 modalities take 376 MB; ``size=14`` a quarter of that.

    References:
        Sutter, Daunhawer, Vogt 2021, *Generalized multimodal ELBO*, section 5.2. Digits: MNIST
        (LeCun, Cortes, Burges), CC BY-SA 3.0. Photographs as shipped with scikit-image:
        astronaut and hubble (NASA) and rocket (SpaceX), public domain; chelsea (S. van der Walt)
        and coffee (R. Michetti), CC0.

    Args:
        split: ``train`` or ``test``.
        n: Number of rows; by default one for each digit of the split (8,000 or 2,000).
        size: Side of the pictures; 14 is the mean over 2 x 2 pixels of the 28.
        modalities: 1 to 5.
        seed: Rows depend on this and the split; modality m does not depend on ``modalities``.

    Raises:
        DataError: An argument outside of what is listed here.

    Example:
        >>> data = load("test", n=10, size=14, modalities=2)
        >>> data.shapes
        {'m0': (3, 14, 14), 'm1': (3, 14, 14)}
    """
    _check(split, n, size, modalities)
    rows = SPLITS[split]
    digits = read_arrays("mnist10k")
    photos = read_arrays("backgrounds")
    images, classes = digits["images"][rows], digits["labels"][rows].astype(np.int64)
    stream = [seed, list(SPLITS).index(split)]
    drawn = _draw(classes, len(rows) if n is None else n, np.random.default_rng([*stream, 0]))
    values = {
        f"m{m}": _pictures(
            images[drawn[:, m]],
            photos[BACKGROUNDS[m]],
            np.random.default_rng([*stream, 1, m]),
            size,
        )
        for m in range(modalities)
    }
    return IncompleteDataset(values, labels=classes[drawn[:, 0]])


def _draw(classes: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return numbers of digits ``(n, 5)``: five different digits of one class in every row.

    A class is put in random order once; modality m reads that order from its own starting point,
    so no two modalities of a row can meet.
    """
    passes = []
    for _ in range(-(-n // len(classes))):
        table = np.empty((len(classes), len(BACKGROUNDS)), dtype=np.int64)
        for label in range(10):
            (members,) = np.nonzero(classes == label)
            order = rng.permutation(members)
            starts = rng.choice(len(order), size=len(BACKGROUNDS), replace=False)
            turns = (np.arange(len(order))[:, None] + starts) % len(order)
            table[members] = order[turns]
        passes.append(rng.permutation(table))
    return np.concatenate(passes)[:n]


def _pictures(
    digits: NDArray[np.uint8], photo: NDArray[np.uint8], rng: np.random.Generator, size: int
) -> NDArray[np.float32]:
    """Return ``(n, 3, size, size)``: digits ``(n, 28, 28)`` as inverted pixels of a photograph."""
    pieces = sliding_window_view(photo, (_SIDE, _SIDE), axis=(0, 1))  # (y, x, 3, 28, 28)
    y = rng.integers(pieces.shape[0], size=len(digits))
    x = rng.integers(pieces.shape[1], size=len(digits))
    piece = pieces[y, x]
    inked = np.where((digits > _INK)[:, None], 255 - piece, piece).astype(np.float32)
    inked /= np.float32(255)
    if size == _SIDE:
        return inked
    pooled: NDArray[np.float32] = inked.reshape(-1, 3, size, 2, size, 2).mean(axis=(3, 5))
    return pooled


def _check(split: str, n: int | None, size: int, modalities: int) -> None:
    limit = len(BACKGROUNDS)
    rules = [
        ("split", split, split in get_args(Split), "'train' or 'test'"),
        ("n", n, n is None or n >= 1, "at least 1 row, or None for one row per digit"),
        ("size", size, size in (_SIDE, _SIDE // 2), "28 or 14 pixels"),
        ("modalities", modalities, modalities in range(1, limit + 1), f"1 to {limit}"),
    ]
    for name, value, holds, rule in rules:
        if not holds:
            raise DataError(f"polymnist: {name} must be {rule}, got {value!r}: change `{name}`")
