"""Configurations: frozen attrs classes, to JSON and back, with the path in every error."""

from __future__ import annotations

import functools
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs
import cattrs
from cattrs.errors import BaseValidationError, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

from multivae_core._registry import registry
from multivae_core.errors import ConfigError, RegistryError

__all__ = [
    "build", "component", "config", "each", "in_range", "non_negative", "one_of", "positive",
    "structure", "unstructure",
]  # fmt: skip

T = TypeVar("T")

config = functools.partial(attrs.frozen, kw_only=True)
"""Class decorator of every configuration: frozen, keyword-only."""


def component(kind: str, default: Any = attrs.NOTHING) -> Any:
    """Declare a field that holds the configuration of a registered component.

    It accepts the component's name, a mapping ``{"type": name, **options}`` or the configuration
    itself.

    Args:
        kind: The registry kind, for example ``"likelihoods"``.
        default: Any of the three forms, or None for a field that may stay empty.
    """
    return attrs.field(
        default=default,
        converter=attrs.Converter(
            lambda value, field: _component(kind, value, field.name, default is None),
            takes_field=True,
        ),
        metadata={"kind": kind},
    )


def _component(kind: str, value: Any, path: str, may_be_none: bool) -> Any:
    if value is None and may_be_none:
        return None
    configured = attrs.has(type(value))
    given = {"type": value} if isinstance(value, str) else value
    if not configured and not (isinstance(given, Mapping) and isinstance(given.get("type"), str)):
        raise ConfigError(
            f"expected a name of {kind}, a mapping with the key 'type', or a configuration;"
            f" got {value!r}",
            path,
        )
    try:
        if configured:
            registry.find_config(kind, type(value))
            return value
        config_class = registry.kind(kind).load_config(given["type"])
    except RegistryError as error:
        raise ConfigError(str(error), path) from error
    if config_class is None:
        raise ConfigError(f"{kind} {given['type']!r} has no options and cannot be set", path)
    return structure(config_class, {k: v for k, v in given.items() if k != "type"}, path)


def build(kind: str, configuration: Any, *args: Any, **kwargs: Any) -> Any:
    """Build the component that a configuration describes: ``Target(configuration, ...)``."""
    spec = registry.find_config(kind, type(configuration))
    return registry.kind(kind).load(spec.qualified_name)(configuration, *args, **kwargs)


@functools.cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, prefer_attrib_converters=True)
    for origins, hook in (
        ((typing.Union, types.UnionType), _alternative),
        ((list, tuple), _list),
        ((dict,), _mapping),
    ):
        converter.register_structure_hook_func(functools.partial(_is, origins), hook)
    converter.register_structure_hook_factory(attrs.has, _configuration)
    for plain in _WORDS:
        converter.register_structure_hook(plain, functools.partial(_plain, plain))
    return converter


_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


def _is(origins: tuple[Any, ...], annotation: Any) -> bool:
    return typing.get_origin(annotation) in origins


def _plain(kind: type, value: Any, _: Any) -> Any:
    if kind in (int, float) and not isinstance(value, bool):  # NumPy's numbers too
        if kind is float and isinstance(value, numbers.Real):
            return float(value)
        if kind is int and isinstance(value, numbers.Integral):
            return int(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"must be {_WORDS[kind]}, got {value!r}")
    return value


def _alternative(value: Any, annotation: Any) -> Any:
    """Read a value of one of several types; the error is that of the only one it can be."""
    choices = [choice for choice in typing.get_args(annotation) if choice is not types.NoneType]
    if value is None and len(choices) < len(typing.get_args(annotation)):
        return None
    if len(choices) == 1 and choices[0] not in _WORDS:
        return structure(choices[0], value)
    for choice in choices:
        try:
            return structure(choice, value)
        except ConfigError:
            continue
    words = [_WORDS.get(choice, getattr(choice, "__name__", "")) for choice in choices]
    if len(choices) < len(typing.get_args(annotation)):
        words.append("None")
    raise ConfigError(f"must be {' or '.join(words)}, got {value!r}")


def _list(value: Any, annotation: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"must be a list, got {value!r}")
    kind = typing.get_args(annotation)[0]
    entries = [structure(kind, entry, str(place)) for place, entry in enumerate(value)]
    return typing.get_origin(annotation)(entries)


def _mapping(value: Any, annotation: Any) -> dict[str, Any]:
    _require_mapping(value)
    kind = typing.get_args(annotation)[1]
    return {str(key): structure(kind, entry, str(key)) for key, entry in value.items()}


def _configuration(cls: type) -> Callable[[Any, Any], Any]:
    inner: Callable[[Any, Any], Any] = make_dict_structure_fn(
        cls,
        _converter(),
        _cattrs_forbid_extra_keys=True,
        _cattrs_prefer_attrib_converters=True,
    )

    def read(value: Any, annotation: Any) -> Any:
        if isinstance(value, cls):
            return value
        _require_mapping(value)
        return inner(value, annotation)

    return read


def _require_mapping(value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"must be a mapping, got {value!r}")


def structure(cls: type[T], options: Any, path: str = "") -> T:
    """Make a configuration out of a mapping, for example out of JSON.

    Raises:
        ConfigError: An unknown key, a missing one, or a value that is not allowed; the message
            starts with the path of the first of them.
    """
    try:
        return _converter().structure(options, cls)
    except (BaseValidationError, ConfigError, TypeError, ValueError) as error:
        found = _first(error, cls)
        raise (found.under(path) if path else found) from error


def _first(error: BaseException, cls: type) -> ConfigError:
    """The first rule that was broken, with its path."""
    if isinstance(error, ForbiddenExtraKeysError):
        key = sorted(error.extra_fields)[0]
        names = ", ".join(field.alias for field in attrs.fields(error.cl))
        return ConfigError(f"unknown option; there is {names or 'no option'}", key)
    if isinstance(error, ExceptionGroup):
        nested = error.exceptions[0]
        found = _first(nested, cls)
        # The field that cattrs noted on an error; what a class refuses itself has its path.
        notes = (getattr(note, "name", None) for note in getattr(nested, "__notes__", ()))
        place = next((str(name) for name in notes if name is not None), "")
        return found.under(place) if place else found
    if isinstance(error, ConfigError):
        return error
    if isinstance(error, KeyError):
        return ConfigError("this option is required")
    return ConfigError(str(error))


def unstructure(configuration: Any) -> Any:
    """Turn a configuration into what JSON can hold; components become ``{"type": name, ...}``."""
    if attrs.has(type(configuration)):
        return {
            field.alias: _field_value(field, getattr(configuration, field.name))
            for field in attrs.fields(type(configuration))
        }
    if isinstance(configuration, Mapping):
        return {str(key): unstructure(value) for key, value in configuration.items()}
    if isinstance(configuration, tuple | list | frozenset | set):
        return [unstructure(value) for value in configuration]
    return configuration


def _field_value(field: attrs.Attribute[Any], value: Any) -> Any:
    kind = field.metadata.get("kind")
    if kind is None or value is None:
        return unstructure(value)
    spec = registry.find_config(kind, type(value))
    return {"type": spec.qualified_name, **unstructure(value)}


Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def _number(test: Callable[[Any], bool], rule: str) -> Validator:
    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise ConfigError(f"must be a number, got {value!r}", str(field.alias))
        if not test(value):
            raise ConfigError(f"must be {rule}, got {value!r}", str(field.alias))

    return check


positive = _number(lambda value: value > 0, "> 0")
"""Validator: a number above 0."""
non_negative = _number(lambda value: value >= 0, ">= 0")
"""Validator: a number not below 0."""


def in_range(low: float, high: float) -> Validator:
    """Validator: a number between two bounds, which are allowed."""
    return _number(lambda value: low <= value <= high, f"between {low} and {high}")


def each(rule: Validator) -> Validator:
    """Validator: a mapping whose values all keep a rule."""

    def check(instance: Any, field: attrs.Attribute[Any], value: Any) -> None:
        for key, entry in value.items():
            try:
                rule(instance, field, entry)
            except ConfigError as error:
                raise ConfigError(error.message, f"{field.alias}.{key}") from None

    return check


def one_of(*allowed: Any) -> Validator:
    """Validator: one of a few values."""

    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if value not in allowed:
            listed = ", ".join(repr(choice) for choice in allowed)
            raise ConfigError(f"must be one of {listed}; got {value!r}", str(field.alias))

    return check
