"""Decorators that register components of this process, as in a notebook; imports no torch."""

from __future__ import annotations

__all__ = ["register", "register_model"]

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from multivae_core._registry import address_of, registry
from multivae_core.plugins import USUAL_CAPABILITIES, ComponentSpec

_T = TypeVar("_T", bound=Callable[..., Any])


def register(
    kind: str,
    *,
    name: str,
    config: type[Any] | None = None,
    summary: str = "",
    family: str = "",
    reference: str = "",
    aliases: Iterable[str] = (),
    capabilities: Iterable[str] = (),
) -> Callable[[_T], _T]:
    """Return a decorator that registers a class of this process (see `Registry.register`).

    Args:
        kind: ``"models"``, ``"encoders"``, ``"fusions"``, ... (see `KINDS`).
        name: What it is called.
        config: Its configuration class.
        summary: One line for listings; the first line of the docstring by default.
        family: What related components have in common.
        reference: Author and year.
        aliases: Further names.
        capabilities: What a model can do.

    Example:
        >>> import multivae_core as mv
        >>> @mv.register("fusions", name="first_come")
        ... class FirstCome:
        ...     "Take the first expert that is present."
        >>> mv.registry.fusions["first_come"].qualified_name
        'local/first_come'
        >>> mv.registry.unregister("local/first_come")
    """

    def decorate(target: _T) -> _T:
        lines = (target.__doc__ or "").strip().splitlines() or [""]
        spec = ComponentSpec(
            kind=kind,
            name=name,
            target=address_of(target),
            summary=summary or lines[0],
            family=family,
            reference=reference,
            aliases=aliases,
            capabilities=capabilities,
        )
        registry.register(spec, target, config)
        return target

    return decorate


def register_model(
    *,
    name: str,
    config: type[Any] | None = None,
    capabilities: Iterable[str] = USUAL_CAPABILITIES,
    **description: Any,
) -> Callable[[_T], _T]:
    """Return a decorator that registers a model class of this process, as in a notebook.

    Args:
        name: What the model is called in ``create_model``.
        config: Its configuration class.
        capabilities: What it can do; by default what a model with a posterior density for
            every subset can.
        description: `summary`, `family`, `reference` and `aliases`, as in `register`.
    """
    return register("models", name=name, config=config, capabilities=capabilities, **description)
