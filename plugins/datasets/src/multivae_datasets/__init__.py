"""Ready-to-use multimodal data sets: one module each, imported when first used."""

from __future__ import annotations

__all__ = ["linear_gaussian", "mfeat", "mnist", "polymnist"]

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multivae_datasets import linear_gaussian, mfeat, mnist, polymnist


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
