"""The state of the global random generators: seeding, saving, putting back."""

from __future__ import annotations

__all__ = ["preserved", "random_state", "restore_random_state", "seed_everything"]

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TORCH, _DEVICE, _NUMPY, _PYTHON = (f"random/{x}" for x in ("torch", "device", "numpy", "python"))


def seed_everything(seed: int, process: int) -> None:
    """Seed torch, numpy and Python; dropout then differs from process to process."""
    # a large odd factor keeps the seeds of different runs and processes apart
    torch.manual_seed((seed + 0x9E3779B1 * process) % 2**63)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of all generators: as tensors, and as what JSON can hold."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, numbers, extra = random.getstate()
    tensors = {
        _TORCH: torch.get_rng_state(),
        _NUMPY: torch.tensor([int(key) for key in keys]),
        _PYTHON: torch.tensor(numbers),
    }
    if device.type == "cuda":
        tensors[_DEVICE] = torch.cuda.get_rng_state(device)
    others = {"numpy": [kind, position, has_gauss, gauss], "python": [version, extra]}
    return tensors, others


def restore_random_state(
    tensors: Mapping[str, Tensor], others: Mapping[str, Any], device: torch.device
) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(tensors[_TORCH])
    if device.type == "cuda" and _DEVICE in tensors:
        torch.cuda.set_rng_state(tensors[_DEVICE], device)
    kind, position, has_gauss, gauss = others["numpy"]
    keys = np.array(tensors[_NUMPY].tolist(), dtype=np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, gauss))
    version, extra = others["python"]
    random.setstate((version, tuple(tensors[_PYTHON].tolist()), extra))


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Leave the generators as they were found: a run's randomness is its own."""
    tensors, others = random_state(device)
    try:
        yield
    finally:
        restore_random_state(tensors, others, device)
