"""Reading of the arrays that are shipped inside this package."""

from __future__ import annotations

__all__ = ["read_arrays"]

from importlib.resources import files

import numpy as np

from multivae_core.errors import DataError


def read_arrays(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of ``data/<name>.npz``; nothing in the file is executed.

    Raises:
        DataError: The file is not part of the installation, or is damaged.
    """
    path = files("multivae_datasets") / "data" / f"{name}.npz"
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(
            f"data/{name}.npz of the package multivae-datasets cannot be read ({error}):"
            " the package must hold its data files; reinstall multivae-datasets"
        ) from error
