"""Building modules: of a given type, out of a seed, or without memory for their parameters."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

__all__ = ["seeded", "without_memory"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@contextmanager
def seeded(dtype: torch.dtype, seed: int = 0) -> Iterator[None]:
    """Build modules of a type on the CPU, out of a seed; leave no trace in torch's state."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=()), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def without_memory(
    dtype: torch.dtype, make: Callable[..., ModuleT], *args: object, **kwargs: object
) -> ModuleT:
    """Build a module whose parameters are on the meta device, its buffers as they should be.

    Parameters are moved as they are registered, so that initialising them costs nothing, while
    buffers and other tensors, stored or not, are computed as in any module. Parameters of
    modules that are among the arguments stay what they are. A constructor that computes with
    its own weights gets them: the module is then built in memory.

    Args:
        dtype: Floating type of what is built.
        make: The class.
        args: Its arguments.
        kwargs: Its arguments.
    """
    with seeded(dtype):
        try:
            with _parameters_on_meta():
                module = make(*args, **kwargs)
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):
                raise
        else:
            if not _stranded(module):
                return module
        return make(*args, **kwargs)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    thread = threading.get_ident()
    moved: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def move(_: nn.Module, __: str, value: nn.Parameter | None) -> nn.Parameter | None:
        if value is None or value.is_meta or threading.get_ident() != thread:
            return None
        if id(value) not in moved:  # one parameter under two names stays one
            empty = nn.Parameter(value.to("meta"), requires_grad=value.requires_grad)
            moved[id(value)] = (value, empty)
        return moved[id(value)][1]

    handle = register_module_parameter_registration_hook(move)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def _stranded(module: nn.Module) -> bool:
    """Whether a buffer that no file holds was computed from parameters without memory."""
    stored = module.state_dict(keep_vars=True)
    return any(value.is_meta for name, value in module.named_buffers() if name not in stored)
