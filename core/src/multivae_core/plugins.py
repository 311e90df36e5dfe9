"""What a plugin says about itself, and how installed plugins are found; imports no torch."""

from __future__ import annotations

__all__ = ["API_LEVEL", "CAPABILITIES", "GROUP", "KINDS", "ComponentSpec", "discover", "hookimpl"]

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint
from typing import NamedTuple

import attrs
import pluggy

from multivae_core._version import __version__
from multivae_core.errors import ConfigError, RegistryError

API_LEVEL = OLDEST_API_LEVEL = 1
GROUP = "multivae.plugins"
BLOCK_VARIABLE = "MULTIVAE_BLOCK_PLUGINS"

KINDS = (
    "models", "encoders", "decoders", "fusions", "priors", "likelihoods", "samplers", "metrics",
    "datasets", "callbacks",
)  # fmt: skip
#: What a model of the usual kind can do: it has a posterior with a density for every subset.
USUAL_CAPABILITIES = frozenset({
    "conditional_likelihood", "encodes_any_subset", "generate", "joint_likelihood",
    "posterior_density", "row_objective",
})  # fmt: skip
#: The closed list from which a spec takes its capabilities.
CAPABILITIES = USUAL_CAPABILITIES | {"loss_is_bound", "private_latents"}

hookspec = pluggy.HookspecMarker("multivae")
hookimpl = pluggy.HookimplMarker("multivae")

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ADDRESS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.<>]*")


def _several(names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):  # its letters would pass for names
        raise ConfigError(f"must be a tuple of texts, got {names!r}", path="ComponentSpec")
    return tuple(names)


def _set(names: Iterable[str]) -> frozenset[str]:
    return frozenset(_several(names))


@attrs.frozen(kw_only=True)
class ComponentSpec:
    """One line of a plugin's table: what a component is called and where it lives.

    Addresses are strings, so that a table can be read without importing what it lists.

    Args:
        kind: One of `KINDS`.
        name: What users type; lower-case letters, digits and ``_``; so are `aliases`.
        target: Address ``"package.module:Name"`` of the class, or of the function that loads
            a data set.
        config: Address of the configuration class, or ``""`` where there is none.
        summary: One line for listings; `family` and `reference` (author, year) are for these too.
        capabilities: What a model can do, from `CAPABILITIES`.
        plugin: The distribution it came from; the registry fills it in.

    Raises:
        ConfigError: A field breaks its rule.
    """

    kind: str
    name: str
    target: str
    config: str = ""
    summary: str = ""
    family: str = ""
    reference: str = ""
    aliases: tuple[str, ...] = attrs.field(default=(), converter=_several)
    capabilities: frozenset[str] = attrs.field(default=frozenset(), converter=_set)
    plugin: str = ""

    def __attrs_post_init__(self) -> None:
        plain = (_NAME, "must be lower-case letters, digits and '_'")
        address = (_ADDRESS, "must read 'package.module:Name'")
        kinds = (re.compile("|".join(KINDS)), f"must be one of {', '.join(KINDS)}")
        for field, values, (pattern, rule) in (
            ("kind", [self.kind], kinds),
            ("name", [self.name], plain),
            ("target", [self.target], address),
            ("config", [self.config or self.target], address),
            ("aliases", self.aliases, plain),
        ):
            for value in values:
                if not isinstance(value, str) or not pattern.fullmatch(value):
                    raise ConfigError(f"{rule}, got {value!r}", f"ComponentSpec.{field}")
        if unknown := sorted(self.capabilities - CAPABILITIES):
            rule = f"must be taken from {', '.join(sorted(CAPABILITIES))}"
            raise ConfigError(f"{rule}, got {unknown!r}", "ComponentSpec.capabilities")

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
    """A distribution, by its normalised name (``multivae-aggregated``), and what it offers."""

    name: str
    version: str = ""
    entry_point: str = ""
    specs: tuple[ComponentSpec, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


class Discovery(NamedTuple):
    """The plugins that can be used, and those that cannot, each with the reason."""

    plugins: tuple[Plugin, ...]
    failures: tuple[tuple[Plugin, BaseException], ...]


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
    """
    manager = pluggy.PluginManager("multivae")
    manager.add_hookspecs(Hooks)
    good: list[Plugin] = []
    bad: list[tuple[Plugin, BaseException]] = []
    for name, module in (builtins or {}).items():
        plugin = Plugin(name=name, version=__version__)
        good.append(_with_specs(manager, name, plugin, module))
    blocked = {name.strip() for name in os.environ.get(BLOCK_VARIABLE, "").split(",")}
    for entry in sorted(candidates, key=lambda e: (_distribution(e), e.name, e.value)):
        version = entry.dist.version if entry.dist is not None else ""
        plugin = Plugin(name=_distribution(entry), version=version, entry_point=entry.name)
        if blocked & {plugin.name, entry.name}:
            continue
        try:
            # The distribution is part of the key: entry points of one name do not collide.
            key = f"{plugin.name}:{entry.name}"
            good.append(_with_specs(manager, key, plugin, _checked(entry.load())))
        except (Exception, SystemExit) as error:
            bad.append((plugin, error))
    return Discovery(tuple(good), tuple(bad))


def _distribution(entry: EntryPoint) -> str:
    name = entry.dist.name if entry.dist is not None else entry.value.partition(".")[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def _checked(module: object) -> object:
    """Return the plugin's module if it was written for an API that this core speaks."""
    level = getattr(module, "MULTIVAE_API_LEVEL", None)
    spoken = f"this core speaks levels {OLDEST_API_LEVEL} to {API_LEVEL}"
    spoken += f" (multivae-core {__version__})"
    if not isinstance(level, int):
        rule = f"its module must state MULTIVAE_API_LEVEL as an integer, got {level!r}"
        raise RegistryError(f"{rule}; {spoken}")
    if not OLDEST_API_LEVEL <= level <= API_LEVEL:
        who = "multivae-core" if level > API_LEVEL else "the plugin"
        raise RegistryError(f"it was written for API level {level}, {spoken}: upgrade {who}")
    return module


def _with_specs(manager: pluggy.PluginManager, key: str, plugin: Plugin, module: object) -> Plugin:
    """Register one plugin and read its table, leaving no trace of it if that fails."""
    try:
        manager.register(module, key)
        manager.check_pending()
        others = [other for other in manager.get_plugins() if other is not module]
        results = manager.subset_hook_caller("multivae_components", others)()
        if not results:
            raise RegistryError(
                "its module must have a function multivae_components, marked @hookimpl, "
                "that returns a list of ComponentSpec"
            )
        return attrs.evolve(plugin, specs=_attributed(results[0], plugin.name))
    except BaseException:
        # pluggy before 1.7 keeps the valid hooks of a plugin whose validation failed.
        if manager.has_plugin(key):
            manager.unregister(name=key)
        raise


def _attributed(table: object, distribution: str) -> tuple[ComponentSpec, ...]:
    """Return the rows of a plugin's table, checked and marked with their distribution."""
    specs = []
    for spec in table if isinstance(table, Iterable) else [table]:
        if not isinstance(spec, ComponentSpec):
            raise RegistryError(f"multivae_components must return ComponentSpecs, got {spec!r}")
        specs.append(attrs.evolve(spec, plugin=distribution))
    rows = Counter((spec.kind, name) for spec in specs for name in (spec.name, *spec.aliases))
    if twice := [f"{kind} {name!r}" for (kind, name), count in rows.items() if count > 1]:
        raise RegistryError(f"its table lists {', '.join(twice)} more than once")
    return tuple(specs)
