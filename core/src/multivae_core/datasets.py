"""`load_dataset`: a data set by name; imports no torch before a data set does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from multivae_core._registry import registry
from multivae_core.config import structure
from multivae_core.errors import ConfigError

if TYPE_CHECKING:
    from multivae_core.data import IncompleteDataset

__all__ = ["load_dataset"]


def load_dataset(name: str, **options: Any) -> IncompleteDataset:
    """Load a registered data set, for example ``load_dataset("mfeat")``.

    Args:
        name: Its name; ``multivae_core.registry.datasets.names()`` lists what is installed.
        options: Options of the data set.

    Raises:
        UnknownComponentError: No installed plugin has it.
        ConfigError: An option that the data set does not have.
    """
    load: Callable[..., IncompleteDataset] = registry.datasets.load(name)
    config_class = registry.datasets.load_config(name)
    if config_class is not None:
        return load(structure(config_class, options, f"datasets.{name}"))
    known = inspect.signature(load).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for option in options:
        if option not in known and not takes_any:
            listed = ", ".join(known) or "none"
            raise ConfigError(f"unknown option; there is {listed}", f"datasets.{name}.{option}")
    return load(**options)
