"""What is registered as a table for readers; imports no torch by itself."""

from __future__ import annotations

__all__ = ["options_of", "table"]

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import attrs

from multivae_core.plugins import CAPABILITIES, ComponentSpec

_HEADS = ("name", "family", "reference", "can", "options")
_NARROWEST = 40  # of the options
_GAP = "  "

Options = Mapping[str, str]


def options_of(config: type[Any] | None) -> dict[str, str]:
    """Return the options of a configuration class with their defaults, as users write them.

    Args:
        config: The class; None has no options.

    Returns:
        Name -> default; ``""`` for an option that must be given, ``...`` for a default that
        depends on other options.
    """
    if config is None or not attrs.has(config):
        return {}
    return {str(field.alias): _default(field) for field in attrs.fields(config)}


def table(components: Sequence[tuple[str, ComponentSpec, Options]], width: int) -> str:
    """Lay out components and their options; a column that would be empty is left out.

    Args:
        components: Rows in their order, each with the name to show.
        width: Characters per line; what the first columns leave is for the options.
    """
    if not components:
        return "none installed"
    common = _common([options for _, _, options in components])
    rows = [_HEADS]
    for name, spec, options in components:
        own = (item for item in options.items() if item not in common.items())
        rows.append((name, spec.family, spec.reference, _marks(spec), _listed(own)))
    filled = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in filled]
    widths[-1] = max(_NARROWEST, width - sum(widths[:-1]) - len(_GAP) * (len(widths) - 1))
    lines = []
    for row in zip(*filled, strict=True):
        cells = [_wrapped(text, size) for text, size in zip(row, widths, strict=True)]
        lines += [_line(parts, widths) for parts in zip_longest(*cells, fillvalue="")]
    lines.insert(1, _line(["-" * each for each in widths], widths))
    if common:
        lines += ["", *_wrapped(f"all have: {_listed(common.items())}", width)]
    if any(spec.capabilities for _, spec, _ in components):
        legend = ", ".join(f"{n} {name}" for n, name in enumerate(sorted(CAPABILITIES), start=1))
        lines += ["", *_wrapped(f"can: {legend}", width)]
    return "\n".join(lines)


def _common(all_options: Sequence[Options]) -> dict[str, str]:
    """The options that all have, each with its most frequent default."""
    if len(all_options) < 2:
        return {}
    names = [name for name in all_options[0] if all(name in each for each in all_options)]
    return {
        name: Counter(each[name] for each in all_options).most_common(1)[0][0] for name in names
    }


def _marks(spec: ComponentSpec) -> str:
    """The number of every capability, a dot for what is lacking."""
    names = sorted(CAPABILITIES)
    marks = (str(n) if c in spec.capabilities else "." for n, c in enumerate(names, start=1))
    return "".join(marks) if spec.capabilities else ""


def _listed(options: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name}={default}" if default else name for name, default in options)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 1), break_on_hyphens=False) or [""]


def _line(parts: Sequence[str], widths: Sequence[int]) -> str:
    padded = (f"{part:<{width}}" for part, width in zip(parts, widths, strict=True))
    return _GAP.join(padded).rstrip()


def _default(field: attrs.Attribute[Any]) -> str:
    default: Any = field.default
    if default is attrs.NOTHING:
        return ""
    if hasattr(default, "factory"):  # attrs.Factory
        if default.takes_self:
            return "..."
        default = default.factory()
    if isinstance(default, dict) and "type" in default:
        default = default["type"]
    return repr(default)
