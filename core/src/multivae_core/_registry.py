"""The registry: every component of every installed plugin by name; imports no torch."""

from __future__ import annotations

__all__ = ["ComponentImportError", "Kind", "Registry", "address_of", "registry"]

import difflib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint
from operator import attrgetter
from threading import RLock
from typing import Any

import attrs

from multivae_core import _builtins
from multivae_core.errors import (
    NameConflictError,
    PluginWarning,
    RegistryError,
    UnknownComponentError,
)
from multivae_core.plugins import (
    BLOCK_VARIABLE,
    KINDS,
    ComponentSpec,
    Plugin,
    discover,
    installed_entry_points,
)

_LOCAL = "local"

# Where the project itself keeps components of a kind. No component is named here: the core
# stays as it is when a family gains one.
_HOMES = {
    "models": "the project's own models are installed by `pip install multivae-<model>`",
    "priors": "the project's own are in multivae-mixture-prior and multivae-samplers",
    "samplers": "the project's own are in multivae-samplers",
    "metrics": "the project's own are in multivae-metrics",
    "datasets": "the project's own are in multivae-datasets",
}


class ComponentImportError(RegistryError, ImportError):
    """A component that is listed, but whose code cannot be imported."""


class Kind:
    """The components of one kind: a read-only view of the registry by name.

    A name may be bare (``"mopoe"``), an alias, or qualified by the distribution that offers
    the component (``"multivae-aggregated/mopoe"``). Nothing is imported before `load`.

    Args:
        owner: The registry.
        kind: One of `multivae_core.plugins.KINDS`.
    """

    def __init__(self, owner: Registry, kind: str) -> None:
        self._owner = owner
        self.kind = kind

    def specs(self) -> tuple[ComponentSpec, ...]:
        """Return the specs of everything of this kind, sorted by name."""
        specs = (spec for spec in self._owner.specs() if spec.kind == self.kind)
        return tuple(sorted(specs, key=attrgetter("name", "plugin")))

    def names(self) -> tuple[str, ...]:
        """Return every name that works: bare, or qualified where several plugins share it."""
        specs = self.specs()
        bare = [spec.name for spec in specs]
        return tuple(
            spec.name if bare.count(spec.name) == 1 else spec.qualified_name for spec in specs
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.specs())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and len(self._matches(name)) == 1

    def __getitem__(self, name: str) -> ComponentSpec:
        """Return the spec of a component.

        Raises:
            UnknownComponentError: No plugin offers the name.
            NameConflictError: Several do; the message gives the qualified names.
        """
        matches = self._matches(name)
        if not matches:
            raise UnknownComponentError(self._unknown(name))
        if len(matches) > 1:
            offers = " and ".join(sorted(repr(spec.qualified_name) for spec in matches))
            raise NameConflictError(
                f"{self.kind[:-1]} {name!r} is offered more than once: write {offers} "
                f"in full, or uninstall or block ({BLOCK_VARIABLE}) one of the plugins"
            )
        return matches[0]

    def load(self, name: str) -> Any:
        """Return the class (of a data set: the function) behind a name, importing it.

        Raises:
            ComponentImportError: The plugin lists it, but it cannot be imported.
        """
        spec = self[name]
        return self._owner.resolve(spec, spec.target)

    def load_config(self, name: str) -> type[Any] | None:
        """Return the configuration class of a component, or None where it has none."""
        spec = self[name]
        if not spec.config:
            return None
        config: type[Any] = self._owner.resolve(spec, spec.config)
        return config

    def __repr__(self) -> str:
        return f"<{self.kind}: {', '.join(self.names()) or 'none'}>"

    def _matches(self, name: str) -> list[ComponentSpec]:
        plugin, slash, bare = str(name).rpartition("/")
        specs = [s for s in self.specs() if not slash or s.plugin == plugin]
        # A name outranks an alias, whatever order the plugins come in.
        exact = [spec for spec in specs if spec.name == bare]
        return exact or [spec for spec in specs if bare in spec.aliases]

    def _unknown(self, name: object) -> str:
        known = self.names()
        plugin, slash, _ = str(name).rpartition("/")
        one, many = self.kind[:-1], self.kind
        parts = [f"no installed plugin offers the {one} {name!r}."]
        aliases = [alias for spec in self.specs() for alias in spec.aliases]
        if near := difflib.get_close_matches(str(name).lower(), [*known, *aliases], n=3):
            parts.append(f"Did you mean {' or '.join(map(repr, near))}?")
        parts.append(f"Installed {many}: {', '.join(known) or 'none'}.")
        if slash and plugin not in self._owner.plugins:
            parts.append(f"Install the distribution {plugin!r}, which the name asks for.")
        elif not near:
            home = f" ({_HOMES[many]})" if many in _HOMES else ""
            parts.append(f"Install the plugin that provides it{home}.")
        if failed := ", ".join(sorted(self._owner.failures)):
            parts.append(f"Plugins that could not be used: {failed} (see registry.failures).")
        return " ".join(parts)


class Registry:
    """Everything that can be used by name.

    Plugins are looked for when something is first asked of the registry, not on import.
    A plugin that cannot be used is reported once, as a `PluginWarning`, and kept in
    `failures`; the others are not affected.

    Args:
        find: Gives the entry points to look at.
        builtins: Modules of the host itself, by the name of their distribution.

    Example:
        >>> from multivae_core import registry
        >>> registry.likelihoods["normal"].plugin
        'multivae-core'
    """

    def __init__(
        self,
        find: Callable[[], Iterable[EntryPoint]] = installed_entry_points,
        builtins: Mapping[str, object] | None = None,
    ) -> None:
        self.models = Kind(self, "models")
        self.encoders = Kind(self, "encoders")
        self.decoders = Kind(self, "decoders")
        self.fusions = Kind(self, "fusions")
        self.priors = Kind(self, "priors")
        self.likelihoods = Kind(self, "likelihoods")
        self.samplers = Kind(self, "samplers")
        self.metrics = Kind(self, "metrics")
        self.datasets = Kind(self, "datasets")
        self.callbacks = Kind(self, "callbacks")
        self._find = find
        self._builtins = {"multivae-core": _builtins} if builtins is None else builtins
        self._plugins: tuple[Plugin, ...] | None = None
        self._failures: dict[str, BaseException] = {}
        self._local: dict[tuple[str, str], ComponentSpec] = {}
        self._objects: dict[str, Any] = {}
        self._lock = RLock()
        self._looking = False

    @property
    def plugins(self) -> dict[str, Plugin]:
        """The plugins in use, by distribution."""
        # With two entry points in one distribution the later one's specs join the first's.
        plugins: dict[str, Plugin] = {}
        for plugin in self._discovered():
            first = plugins.get(plugin.name)
            specs = (first.specs if first else ()) + plugin.specs
            plugins[plugin.name] = attrs.evolve(plugin, specs=specs)
        return plugins

    @property
    def failures(self) -> dict[str, BaseException]:
        """The plugins that could not be used, by distribution, each with the reason."""
        self._discovered()
        return dict(self._failures)

    def specs(self) -> tuple[ComponentSpec, ...]:
        """Return everything there is, of every kind."""
        found = (spec for plugin in self._discovered() for spec in plugin.specs)
        return (*found, *self._local.values())

    def kind(self, kind: str) -> Kind:
        """Return the view of one kind: ``registry.kind("models")`` is ``registry.models``.

        Raises:
            UnknownComponentError: There is no such kind.
        """
        if kind not in KINDS:
            raise UnknownComponentError(f"no kind {kind!r}; the kinds are {', '.join(KINDS)}")
        view: Kind = getattr(self, kind)
        return view

    def register(
        self, spec: ComponentSpec, target: Callable[..., Any], config: type[Any] | None = None
    ) -> ComponentSpec:
        """Add a component of this process, for notebooks and tests, under the plugin "local".

        Registering the same kind and name again replaces it, as when a cell is run twice.

        Args:
            spec: Its description; `target` and `config` are taken from the arguments.
            target: The class, or the function that loads a data set.
            config: The configuration class, if it has one.

        Returns:
            The spec as the registry knows it.
        """
        spec = attrs.evolve(
            spec,
            plugin=_LOCAL,
            target=address_of(target),
            config=address_of(config) if config is not None else "",
        )
        self._local[spec.kind, spec.name] = spec
        self._objects[spec.target] = target
        if config is not None:
            self._objects[spec.config] = config
        return spec

    def unregister(self, name: str) -> None:
        """Forget a plugin, by distribution or entry point, or one component by qualified name.

        Raises:
            UnknownComponentError: There is neither.
        """
        plugins = self._discovered()
        keep = tuple(p for p in plugins if name not in {p.name, p.entry_point})
        local = {} if name == _LOCAL else dict(self._local)
        if "/" in name:
            keep = tuple(attrs.evolve(p, specs=_without(p.specs, name)) for p in plugins)
            local = {key: s for key, s in local.items() if s.qualified_name != name}
        if keep == plugins and local == self._local:
            have = ", ".join(sorted({p.name for p in plugins}))
            raise UnknownComponentError(f"nothing to unregister is called {name!r}: have {have}")
        self._plugins, self._local = keep, local

    def find_config(self, kind: str, config: type[Any]) -> ComponentSpec:
        """Return the component of a kind that a configuration class belongs to.

        Raises:
            UnknownComponentError: No component of the kind has this configuration class.
            NameConflictError: Several have.
        """
        found = [s for s in self.kind(kind).specs() if self._same(s.config, config)]
        # A plugin may borrow a class; the component that lives beside it comes first.
        home = [s for s in found if _package(s.target) == _package(s.config)]
        match home or found:
            case [spec]:
                return spec
            case []:
                raise UnknownComponentError(
                    f"{address_of(config)} is the configuration of no registered {kind[:-1]}: "
                    f"register the class it configures (mv.register), or install its plugin"
                )
            case several:
                offers = " and ".join(repr(s.qualified_name) for s in several)
                raise NameConflictError(
                    f"{address_of(config)} is the configuration of {offers}: give each "
                    f"{kind[:-1]} a configuration class of its own"
                )

    def resolve(self, spec: ComponentSpec, address: str) -> Any:
        """Return what an address of a spec stands for, importing it.

        Raises:
            ComponentImportError: It cannot be imported.
        """
        if spec.plugin == _LOCAL:
            return self._objects[address]
        module, _, path = address.partition(":")
        try:
            return attrgetter(path)(import_module(module))
        except (Exception, SystemExit) as error:
            plugin = self.plugins.get(spec.plugin, spec.plugin)
            raise ComponentImportError(
                f"{spec.kind[:-1]} {spec.name!r} of {plugin} is listed, but {address!r} cannot "
                f"be imported ({type(error).__name__}: {error}): install what it needs, or "
                f"ask the authors of {spec.plugin}"
            ) from error

    def _same(self, listed: str, config: type[Any]) -> bool:
        """Tell whether a listed address stands for a class, importing nothing new."""
        if listed in self._objects:
            return self._objects[listed] is config
        if listed == address_of(config):
            return True
        # A package may list a class where it is exported, not where it is defined.
        module, _, path = listed.partition(":")
        if path != config.__qualname__ or module not in sys.modules:
            return False
        return getattr(sys.modules[module], path, None) is config

    def _discovered(self) -> tuple[Plugin, ...]:
        with self._lock:
            if self._plugins is not None:
                return self._plugins
            if self._looking:
                raise RegistryError("a plugin may not ask the registry while it is listed")
            self._looking = True
            try:
                found = discover(self._find(), self._builtins)
            finally:
                self._looking = False
            self._plugins = found.plugins
            counts = [plugin.name for plugin, _ in found.failures]
            for plugin, error in found.failures:
                several = counts.count(plugin.name) > 1
                key = f"{plugin.name}:{plugin.entry_point}" if several else plugin.name
                self._failures[key] = error
        # Only now, so that warnings turned into errors leave a complete registry behind.
        for plugin, error in found.failures:
            _report(plugin, error)
        return self._plugins


def address_of(thing: Any) -> str:
    """Return the address ``"package.module:Name"`` under which a spec lists a class."""
    return f"{thing.__module__}:{thing.__qualname__}"


def _package(address: str) -> str:
    return address.partition(":")[0].partition(".")[0]


def _without(specs: tuple[ComponentSpec, ...], name: str) -> tuple[ComponentSpec, ...]:
    return tuple(spec for spec in specs if spec.qualified_name != name)


def _report(plugin: Plugin, error: BaseException) -> None:
    """Warn about a plugin at the line of the user's that first needed the registry."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"plugin {plugin} (entry point {plugin.entry_point!r}) could not be used: "
        f"{type(error).__name__}: {error}; the others are not affected. Repair or uninstall "
        f"it, or set {BLOCK_VARIABLE}={plugin.entry_point}",
        PluginWarning,
        stacklevel=level,
    )


def _ours(module: str) -> bool:
    # Code that attrs generates belongs to no module.
    return module.partition(".")[0] in {"", "multivae_core", "attr", "cattrs"}


registry = Registry()
