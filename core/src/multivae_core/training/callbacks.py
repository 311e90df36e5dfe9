"""Hooks around training: what a callback may implement, and how callbacks are gathered."""

from __future__ import annotations

__all__ = ["TrainingHooks", "gather"]

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pluggy
from torch import Tensor

from multivae_core._registry import registry
from multivae_core.config import build, structure
from multivae_core.errors import ConfigError
from multivae_core.plugins import hookspec

if TYPE_CHECKING:
    from multivae_core.training.history import Epoch
    from multivae_core.training.run import Run


class TrainingHooks:
    """The moments of training; a callback marks methods of these names with ``@mv.hookimpl``.

    A method names the arguments it wants and leaves out the others. ``run`` tells where training
    stands (``run.model``, ``run.history``, ``run.stage``, ``run.progress``, ``run.options``) and
    ends the stage with ``run.stop()``. Hooks run on every process. An exception ends training;
    what happened since the last checkpoint is then lost. A callback that draws random numbers
    from torch, numpy or Python's ``random`` is part of an exact resume.

    Example:
        >>> from multivae_core import hookimpl
        >>> class Printer:
        ...     @hookimpl
        ...     def epoch_end(self, row):
        ...         print(row.epoch, row.numbers["loss"])
    """

    @hookspec
    def train_start(self, run: Run) -> None:
        """Before the first step of this call of ``fit``."""

    @hookspec
    def stage_start(self, run: Run) -> None:
        """When a stage begins or is taken up again."""

    @hookspec
    def epoch_start(self, run: Run) -> None:
        """When an epoch begins or is taken up again."""

    @hookspec
    def step_end(self, run: Run, loss: Tensor) -> None:
        """After an optimisation step; ``loss`` is the objective of the last player, detached."""

    @hookspec
    def epoch_end(self, run: Run, row: Epoch) -> None:
        """After an epoch and its validation, before its checkpoint."""

    @hookspec
    def checkpoint_saved(self, run: Run, path: Path) -> None:
        """After a checkpoint was written."""

    @hookspec
    def stage_end(self, run: Run) -> None:
        """After the last epoch of a stage, before the best weights are put back."""

    @hookspec
    def train_end(self, run: Run) -> None:
        """After the last stage, with the weights that the run ends with."""


def gather(callbacks: Iterable[Any]) -> pluggy.PluginManager:
    """Register callbacks, in the order in which they are called.

    Args:
        callbacks: Objects, names of registered callbacks, ``{"type": name, **options}``, or
            configurations of registered callbacks.

    Raises:
        ConfigError: Something that is no callback; a hook that does not exist.
    """
    manager = pluggy.PluginManager("multivae")
    manager.add_hookspecs(TrainingHooks)
    # pluggy calls the plugin that was registered last first
    for number, given in reversed(list(enumerate(callbacks))):
        path = f"callbacks.{number}"
        callback = _object(given, path)
        if inspect.isclass(callback):
            raise ConfigError(f"{callback.__name__} is a class; give an object of it", path)
        try:
            manager.register(callback)
            manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{reason}; the hooks are {', '.join(_HOOKS)}", path) from error
        if not manager.get_hookcallers(callback):
            raise ConfigError(
                f"{callback!r} has no hook: mark methods named {', '.join(_HOOKS)} with"
                " @mv.hookimpl",
                path,
            )
    return manager


_HOOKS = tuple(name for name in vars(TrainingHooks) if not name.startswith("_"))


def _object(given: Any, path: str) -> Any:
    if isinstance(given, str):
        given = {"type": given}
    if isinstance(given, Mapping):
        options = dict(given)
        name = options.pop("type", None)
        if not isinstance(name, str):
            raise ConfigError("a mapping needs the key 'type'", path)
        config_class = registry.callbacks.load_config(name)
        if config_class is None:
            if options:
                raise ConfigError(f"callback {name!r} has no options", path)
            return registry.callbacks.load(name)()
        return build("callbacks", structure(config_class, options, path))
    if attrs.has(type(given)) and _is_config(type(given)):
        return build("callbacks", given)
    return given


def _is_config(kind: type) -> bool:
    """Whether a class is the configuration of a registered callback, found without importing."""
    address = f"{kind.__module__}:{kind.__qualname__}"
    return any(spec.config == address for spec in registry.callbacks.specs())
