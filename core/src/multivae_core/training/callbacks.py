"""Hooks around training: what a callback may implement, and how callbacks are gathered."""

from __future__ import annotations

__all__ = ["TrainingHooks", "gather"]

import inspect
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pluggy
from torch import Tensor

from multivae_core._registry import registry
from multivae_core.config import build, structure
from multivae_core.errors import ConfigError, RegistryError
from multivae_core.plugins import hookspec

if TYPE_CHECKING:
    from multivae_core.training.reports import Epoch
    from multivae_core.training.run import Run


class TrainingHooks:
    """The moments of training; a callback marks methods of these names with ``@mv.hookimpl``.

    A method names the arguments it wants and leaves out the others. ``run`` tells where training
    stands (``run.model``, ``run.history``, ``run.stage``, ``run.position``, ``run.options``) and
    ends the stage with ``run.stop()``. Hooks run on every process. An exception ends training;
    what happened since the last checkpoint is then lost. A callback that draws random numbers
    from torch, numpy or Python's ``random`` is part of an exact resume.
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


_HOOKS = ", ".join(name for name in vars(TrainingHooks) if not name.startswith("_"))


def gather(callbacks: Iterable[Any]) -> pluggy.PluginManager:
    """Register callbacks, in the order in which they are called.

    Args:
        callbacks: Objects; and names, ``{"type": name, **options}`` or configurations of
            registered callbacks.
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
            raise ConfigError(f"{reason}; the hooks are {_HOOKS}", path) from error
        if not manager.get_hookcallers(callback):
            raise ConfigError(
                f"{callback!r} has no hook: mark methods named {_HOOKS} with @mv.hookimpl", path
            )
    return manager


def _object(given: Any, path: str) -> Any:
    if isinstance(given, str | Mapping):
        options = {"type": given} if isinstance(given, str) else dict(given)
        name = str(options.pop("type", ""))
        config = registry.callbacks.load_config(name)
        if config is None:
            return registry.callbacks.load(name)(**options)
        given = structure(config, options, path)
    if attrs.has(type(given)):
        with suppress(RegistryError):  # an object that happens to be of an attrs class
            return build("callbacks", given)
    return given
