"""Random numbers of the data layer: Philox counters keyed by what they are for."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

import numpy as np
import torch
from torch import Tensor

__all__ = ["permutation", "uniforms"]


def uniforms(shape: tuple[int, ...], *key: Hashable) -> Tensor:
    """Draw float64 numbers from [0, 1) that depend on the shape and the key alone.

    Raw counter output is used, whose stream numpy keeps from release to release, which it does
    not promise for its distributions.

    Args:
        shape: Shape of the result.
        *key: A seed and the names of what the numbers are for.
    """
    bits = _raw(int(np.prod(shape, dtype=np.int64)), key) >> np.uint64(11)
    return torch.from_numpy(bits * 2.0**-53).view(shape)


def permutation(n: int, *key: Hashable) -> Tensor:
    """Return the numbers 0..n-1 in an order that depends on n and the key alone, ``(n,)``."""
    return torch.from_numpy(np.argsort(_raw(n, key), kind="stable"))


def _raw(count: int, key: tuple[Hashable, ...]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(count)
