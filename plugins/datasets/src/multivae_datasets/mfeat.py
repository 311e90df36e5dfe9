"""UCI Multiple Features: 2,000 handwritten digits seen by six sets of features."""

from __future__ import annotations

__all__ = ["PICTURE_SHAPE", "VIEWS", "load"]

from collections.abc import Iterable

import numpy as np

from multivae_core.data import IncompleteDataset
from multivae_core.errors import DataError
from multivae_datasets._files import read_arrays

VIEWS = ("fac", "fou", "kar", "mor", "pix", "zer")
PICTURE_SHAPE = (16, 15)
"""Rows and columns of the picture that a row of ``pix`` is."""


def load(views: Iterable[str] | None = None) -> IncompleteDataset:
    """Return the six views of 2,000 digits, complete and in the order of the file.

    ======  ========  ==============================================  =====================
    view    features  what was measured                               range
    ======  ========  ==============================================  =====================
    fac     216       profile correlations                            integers, 0 to 1,353
    fou     76        Fourier coefficients of the character's shape   0 to 1
    kar     64        Karhunen-Loeve coefficients                     -18 to 20
    mor     6         morphological features                          0 to 17,572
    pix     240       pixel averages in 2 x 3 windows (16 x 15)       integers, 0 to 6
    zer     47        Zernike moments                                 0 to 778
    ======  ========  ==============================================  =====================

    All values are float32; those of ``fac`` and ``pix`` are whole numbers. Scales differ by orders
    of magnitude: keep the standardisation that models apply by default. Labels are the digits
    0..9, as int64.

    Warning:
        Rows are in class order, 200 a digit. ``IncompleteDataset.split`` shuffles; cutting the
        rows by hand does not. Six rows repeat the ``pix`` view of an earlier row.

    References:
        van Breukelen, Duin, Tax, den Hartog 1998, *Handwritten digit recognition by combined
        classifiers*. Data by R. Duin, UCI Machine Learning Repository, "Multiple Features",
        https://doi.org/10.24432/C5HC70, licence CC BY 4.0; types of the columns changed, values
        not.

    Args:
        views: Names of the views to keep; all six by default.

    Raises:
        DataError: A view that does not exist, or none at all.

    Example:
        >>> data = load(views=["mor", "pix"])
        >>> len(data), data.names
        (2000, ('mor', 'pix'))
    """
    chosen = VIEWS if views is None else (views,) if isinstance(views, str) else tuple(views)
    unknown = [view for view in chosen if view not in VIEWS]
    if unknown or not chosen:
        raise DataError(
            f"mfeat: {f'unknown view {unknown[0]!r}' if unknown else 'no view asked for'};"
            f" the views are {', '.join(VIEWS)}: name some of these, or leave `views` out for all"
        )
    arrays = read_arrays("mfeat")
    return IncompleteDataset(
        {view: arrays[view].astype(np.float32) for view in VIEWS if view in chosen},
        labels=arrays["labels"].astype(np.int64),
    )
