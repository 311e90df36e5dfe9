"""What a plugin says about itself, and how installed plugins are found; imports no torch."""

from __future__ import annotations

__all__ = [
    "API_LEVEL",
    "BLOCK_VARIABLE",
    "CAPABILITIES",
    "GROUP",
    "KINDS",
    "OLDEST_API_LEVEL",
    "USUAL_CAPABILITIES",
    "ComponentSpec",
    "Discovery",
    "Hooks",
    "Plugin",
    "discover",
    "hookimpl",
    "hookspec",
    "installed_entry_points",
]

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import attrs
import pluggy

from multivae_core._version import __version__
from multivae_core.errors import ConfigError, RegistryError

API_LEVEL = 1
OLDEST_API_LEVEL = 1
GROUP = "multivae.plugins"
BLOCK_VARIABLE = "MULTIVAE_BLOCK_PLUGINS"

KINDS = (
    "models",
    "encoders",
    "decoders",
    "fusions",
    "priors",
    "likelihoods",
    "samplers",
    "metrics",
    "datasets",
    "callbacks",
)

#: What a model of the usual kind can do: it has a posterior with a density for every subset.
USUAL_CAPABILITIES = frozenset(
    {
        "conditional_likelihood",
        "encodes_any_subset",
        "generate",
        "joint_likelihood",
        "posterior_density",
        "row_objective",
    }
)
#: The closed list from which a spec takes its capabilities.
CAPABILITIES = USUAL_CAPABILITIES | {"loss_is_bound", "private_latents"}

hookspec = pluggy.HookspecMarker("multivae")
hookimpl = pluggy.HookimplMarker("multivae")

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ADDRESS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.<>]*")


def _refuse(field: attrs.Attribute[Any], rule: str, value: object) -> ConfigError:
    return ConfigError(f"{rule}, got {value!r}", path=f"ComponentSpec.{field.name}")


def _known_kind(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value not in KINDS:
        raise _refuse(field, f"must be one of {', '.join(KINDS)}", value)


def _plain_name(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise _refuse(field, "must be lower-case letters, digits and '_'", value)


def _plain_names(_: object, field: attrs.Attribute[Any], value: Iterable[object]) -> None:
    for name in value:
        _plain_name(None, field, name)


def _address(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not _ADDRESS.fullmatch(value):
        raise _refuse(field, "must read 'package.module:Name'", value)


def _address_or_empty(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value != "":
        _address(None, field, value)


def _known_capabilities(_: object, field: attrs.Attribute[Any], value: frozenset[str]) -> None:
    if unknown := sorted(value - CAPABILITIES):
        rule = f"must be taken from {', '.join(sorted(CAPABILITIES))}"
        raise _refuse(field, rule, unknown)


def _several(names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):  # its letters would pass for names
        raise ConfigError(f"must be a tuple of texts, got {names!r}", path="ComponentSpec")
    return tuple(names)


def _set_of(names: Iterable[str]) -> frozenset[str]:
    return frozenset(_several(names))


@attrs.frozen(kw_only=True)
class ComponentSpec:
    """One line of a plugin's table: what a component is called and where it lives.

    Addresses are strings, so that a table can be read without importing what it lists.

    Args:
        kind: One of `KINDS`.
        name: What users type; lower-case letters, digits and ``_``.
        target: Address ``"package.module:Name"`` of the class, or of the function that loads
            a data set.
        config: Address of the configuration class, or ``""`` where there is none.
        summary: One line for listings.
        family: What related components have in common, for listings.
        reference: Author and year of the paper.
        aliases: Further names.
        capabilities: What a model can do, from `CAPABILITIES`.
        plugin: The distribution the spec came from. The registry fills it in, whatever
            the plugin wrote.

    Raises:
        ConfigError: A field breaks its rule.
    """

    kind: str = attrs.field(validator=_known_kind)
    name: str = attrs.field(validator=_plain_name)
    target: str = attrs.field(validator=_address)
    config: str = attrs.field(default="", validator=_address_or_empty)
    summary: str = ""
    family: str = ""
    reference: str = ""
    aliases: tuple[str, ...] = attrs.field(default=(), converter=_several, validator=_plain_names)
    capabilities: frozenset[str] = attrs.field(
        default=frozenset(), converter=_set_of, validator=_known_capabilities
    )
    plugin: str = ""

    @property
    def qualified_name(self) -> str:
        """The name that is never ambiguous and that files store: ``"<plugin>/<name>"``."""
        return f"{self.plugin}/{self.name}"


class Hooks:
    """The hooks a plugin may implement."""

    @hookspec
    def multivae_components(self) -> Iterable[ComponentSpec]:  # type: ignore[empty-body]
        """Return the specs of everything the plugin offers, of every kind."""


@attrs.frozen(kw_only=True)
class Plugin:
    """A distribution that offers components.

    Args:
        name: Distribution name, normalised as package indexes do (``multivae-aggregated``).
        version: Its version.
        entry_point: The name of its entry point in `GROUP`.
        specs: What it offers, attributed to it.
    """

    name: str
    version: str = ""
    entry_point: str = ""
    specs: tuple[ComponentSpec, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


@attrs.frozen(kw_only=True)
class Discovery:
    """What a look at the installed plugins found.

    Args:
        plugins: Those that can be used.
        failures: Those that cannot, each with the reason.
    """

    plugins: tuple[Plugin, ...]
    failures: tuple[tuple[Plugin, BaseException], ...]


def installed_entry_points() -> list[EntryPoint]:
    """Return the entry points of `GROUP` in this environment, in no particular order."""
    return list(entry_points(group=GROUP))


def discover(
    candidates: Iterable[EntryPoint], builtins: Mapping[str, object] | None = None
) -> Discovery:
    """Load every plugin by itself, so that a bad one takes nothing else down.

    Plugins named in the environment variable ``MULTIVAE_BLOCK_PLUGINS`` (entry points or
    distributions, separated by commas) are not even imported.

    Args:
        candidates: Entry points; each leads to a module, or an object, with
            ``MULTIVAE_API_LEVEL`` and the hook ``multivae_components``.
        builtins: Modules of the host itself, by the name of their distribution.

    Returns:
        The plugins sorted by name, and the failures.
    """
    manager = pluggy.PluginManager("multivae")
    manager.add_hookspecs(Hooks)
    good: list[Plugin] = []
    bad: list[tuple[Plugin, BaseException]] = []
    for name, module in (builtins or {}).items():
        specs = _components(manager, name, name, module)
        good.append(Plugin(name=name, version=__version__, specs=specs))
    blocked = {name.strip() for name in os.environ.get(BLOCK_VARIABLE, "").split(",")}
    for entry in sorted(candidates, key=lambda e: (_distribution(e), e.name, e.value)):
        name = _distribution(entry)
        version = entry.dist.version if entry.dist is not None else ""
        plugin = Plugin(name=name, version=version, entry_point=entry.name)
        if blocked & {name, entry.name}:
            continue
        try:
            # The distribution is part of the key: entry points of one name do not collide.
            key = f"{name}:{entry.name}"
            specs = _components(manager, key, name, _checked(entry.load()))
            good.append(attrs.evolve(plugin, specs=specs))
        except (Exception, SystemExit) as error:
            bad.append((plugin, error))
    return Discovery(plugins=tuple(good), failures=tuple(bad))


def _distribution(entry: EntryPoint) -> str:
    name = entry.dist.name if entry.dist is not None else entry.value.partition(".")[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def _checked(module: object) -> object:
    """Return the plugin's module if it was written for an API that this core speaks."""
    level = getattr(module, "MULTIVAE_API_LEVEL", None)
    spoken = f"{OLDEST_API_LEVEL} to {API_LEVEL} (multivae-core {__version__})"
    if not isinstance(level, int):
        raise RegistryError(
            f"its module must state MULTIVAE_API_LEVEL as an integer, got {level!r}; "
            f"this core speaks levels {spoken}"
        )
    if not OLDEST_API_LEVEL <= level <= API_LEVEL:
        who = "multivae-core" if level > API_LEVEL else "the plugin"
        raise RegistryError(
            f"it was written for API level {level}, this core speaks levels {spoken}: "
            f"upgrade {who}"
        )
    return module


def _components(
    manager: pluggy.PluginManager, key: str, distribution: str, module: object
) -> tuple[ComponentSpec, ...]:
    """Register one plugin and return its specs, leaving no trace of it if that fails."""
    try:
        manager.register(module, key)
        manager.check_pending()
        others = [plugin for plugin in manager.get_plugins() if plugin is not module]
        results = manager.subset_hook_caller("multivae_components", others)()
        if not results:
            raise RegistryError(
                "its module must have a function multivae_components, marked @hookimpl, "
                "that returns a list of ComponentSpec"
            )
        return _attributed(results[0], distribution)
    except BaseException:
        # pluggy before 1.7 keeps the valid hooks of a plugin whose validation failed.
        if manager.has_plugin(key):
            manager.unregister(name=key)
        raise


def _attributed(table: object, distribution: str) -> tuple[ComponentSpec, ...]:
    """Return the rows of a plugin's table, checked and marked with their distribution."""
    if not isinstance(table, Iterable):
        raise RegistryError(f"multivae_components must return ComponentSpecs, got {table!r}")
    specs = []
    for spec in table:
        if not isinstance(spec, ComponentSpec):
            raise RegistryError(f"multivae_components must return ComponentSpecs, got {spec!r}")
        specs.append(attrs.evolve(spec, plugin=distribution))
    rows = Counter((spec.kind, name) for spec in specs for name in (spec.name, *spec.aliases))
    if twice := [f"{kind} {name!r}" for (kind, name), count in rows.items() if count > 1]:
        raise RegistryError(f"its table lists {', '.join(twice)} more than once")
    return tuple(specs)
