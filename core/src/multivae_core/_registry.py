"""The registry: every component of every installed plugin by name; imports no torch."""

from __future__ import annotations

__all__ = ["ComponentImportError", "Kind", "Registry", "register", "register_model", "registry"]

import difflib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from threading import RLock
from typing import Any, TypeVar

import attrs

from multivae_core import _builtins
from multivae_core._listing import options_of, table
from multivae_core.errors import (
    NameConflictError,
    PluginWarning,
    RegistryError,
    UnknownComponentError,
)
from multivae_core.plugins import (
    BLOCK_VARIABLE,
    GROUP,
    KINDS,
    USUAL_CAPABILITIES,
    ComponentSpec,
    Plugin,
    discover,
)

_T = TypeVar("_T", bound=Callable[..., Any])
_LOCAL = "local"

# Where the project itself keeps components of a kind. No component is named here: the core
# stays as it is when a family gains one.
_HOMES = {
    "models": "the project's own models are installed by `pip install multivae-<model>`",
    "priors": "the project's own are in multivae-mixture-prior and multivae-samplers",
} | {
    kind: f"the project's own are in multivae-{kind}"
    for kind in ("samplers", "metrics", "datasets")
}


class ComponentImportError(RegistryError, ImportError):
    """A component that is listed, but whose code cannot be imported."""


class Kind:
    """The components of one kind: a read-only view of the registry by name.

    A name may be bare (``"mopoe"``), an alias, or qualified by the distribution that offers
    the component (``"multivae-aggregated/mopoe"``). Nothing is imported before `load`.
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
        bare = [s.name for s in specs]
        return tuple(s.name if bare.count(s.name) == 1 else s.qualified_name for s in specs)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.specs())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and len(self._matches(name)) == 1

    def __repr__(self) -> str:
        return f"<{self.kind}: {', '.join(self.names()) or 'none'}>"

    def __getitem__(self, name: str) -> ComponentSpec:
        """Return the spec of a component.

        Raises:
            UnknownComponentError: No plugin offers the name.
            NameConflictError: Several do; the message gives the qualified names.
        """
        matches = self._matches(name)
        if len(matches) == 1:
            return matches[0]
        if not matches:
            raise UnknownComponentError(self._unknown(name))
        offers = " and ".join(sorted(repr(spec.qualified_name) for spec in matches))
        raise NameConflictError(
            f"{self.kind[:-1]} {name!r} is offered more than once: write {offers} "
            f"in full, or uninstall or block ({BLOCK_VARIABLE}) one of the plugins"
        )

    def load(self, name: str) -> Any:
        """Return the class (of a data set: the function) behind a name, importing it."""
        spec = self[name]
        return self._owner.resolve(spec, spec.target)

    def load_config(self, name: str) -> type[Any] | None:
        """Return the configuration class of a component, or None where it has none."""
        spec = self[name]
        return self._owner.resolve(spec, spec.config) if spec.config else None

    def options(self, name: str) -> dict[str, str]:
        """Return the options of a component with their defaults as text, importing its code.

        An option that must be given has the default ``""``, one whose default depends on other
        options ``...``.

        Raises:
            ComponentImportError: Its code cannot be imported.
        """
        return options_of(self.load_config(name))

    def table(self, width: int = 150) -> str:
        """Return everything of this kind as a table to print, importing all configurations.

        Name, family, reference, capabilities, and options with their defaults. Options that all
        have stand below, and in a row only where its default is another.

        Example:
            >>> from multivae_core import registry
            >>> print(registry.priors.table())  # doctest: +SKIP
        """
        rows = []
        for name in sorted(self.names(), key=lambda name: self[name].family):
            try:
                options = self.options(name)
            except ComponentImportError:  # it takes nothing else down
                options = {"(cannot be imported; try load to see why)": ""}
            rows.append((name, self[name], options))
        return table(rows, width)

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

    Example:
        >>> from multivae_core import registry
        >>> registry.likelihoods["normal"].plugin
        'multivae-core'
    """

    def __init__(
        self,
        find: Callable[[], Iterable[EntryPoint]] = lambda: entry_points(group=GROUP),
        builtins: Mapping[str, object] | None = None,
    ) -> None:
        # in the order of KINDS
        (
            self.models, self.encoders, self.decoders, self.fusions, self.priors,
            self.likelihoods, self.samplers, self.metrics, self.datasets, self.callbacks,
        ) = (Kind(self, kind) for kind in KINDS)  # fmt: skip
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
        return {plugin.name: plugin for plugin in self._discovered()}

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
        """Return the view of one kind: ``registry.kind("models")`` is ``registry.models``."""
        if kind not in KINDS:
            raise UnknownComponentError(f"no kind {kind!r}; the kinds are {', '.join(KINDS)}")
        view: Kind = getattr(self, kind)
        return view

    def register(
        self, spec: ComponentSpec, target: Callable[..., Any], config: type[Any] | None = None
    ) -> ComponentSpec:
        """Add a component of this process, for notebooks and tests, under the plugin "local".

        Registering the same kind and name again replaces it, as when a cell is run twice. The
        addresses in `spec` are replaced by those of the class and of its configuration.
        """
        addresses = address_of(target), "" if config is None else address_of(config)
        spec = attrs.evolve(spec, plugin=_LOCAL, target=addresses[0], config=addresses[1])
        self._local[spec.kind, spec.name] = spec
        self._objects.update(zip(addresses, (target, config), strict=True))
        return spec

    def unregister(self, name: str) -> None:
        """Forget a plugin, by distribution or entry point, or one component by qualified name."""
        plugins = self._discovered()
        gone = {p.name for p in plugins if name in {p.name, p.entry_point}} | {name} & {_LOCAL}
        before = len(self.specs())

        def stays(spec: ComponentSpec) -> bool:
            return spec.plugin not in gone and spec.qualified_name != name

        self._local = {key: spec for key, spec in self._local.items() if stays(spec)}
        self._plugins = tuple(
            attrs.evolve(plugin, specs=tuple(filter(stays, plugin.specs)))
            for plugin in plugins
            if plugin.name not in gone
        )
        if not gone and len(self.specs()) == before:
            have = ", ".join(sorted({p.name for p in plugins}))
            raise UnknownComponentError(f"nothing to unregister is called {name!r}: have {have}")

    def find_config(self, kind: str, config: type[Any]) -> ComponentSpec:
        """Return the component of a kind that a configuration class belongs to."""
        found = [s for s in self.kind(kind).specs() if self._same(s.config, config)]
        # A plugin may borrow a class; the component that lives beside it comes first.
        home = [s for s in found if _package(s.target) == _package(s.config)] or found
        if len(home) == 1:
            return home[0]
        what, one = address_of(config), kind[:-1]
        if not home:
            raise UnknownComponentError(
                f"{what} is the configuration of no registered {one}: register the class it"
                " configures (mv.register), or install its plugin"
            )
        offers = " and ".join(repr(spec.qualified_name) for spec in home)
        raise NameConflictError(
            f"{what} is the configuration of {offers}: give each {one} a configuration class of"
            " its own"
        )

    def resolve(self, spec: ComponentSpec, address: str) -> Any:
        """Return what an address of a spec stands for, importing it."""
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
        # A package may list a class where it is exported, not where it is defined.
        module, _, name = listed.partition(":")
        if name != config.__qualname__:
            return False
        exported = getattr(sys.modules.get(module), name, None)
        return module == config.__module__ or exported is config

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
            for plugin, error in found.failures:
                second = f"{plugin.name}:{plugin.entry_point}"
                self._failures[second if plugin.name in self._failures else plugin.name] = error
        # Only now, so that warnings turned into errors leave a complete registry behind.
        for plugin, error in found.failures:
            _report(plugin, error)
        return self._plugins


def address_of(thing: Any) -> str:
    """Return the address ``"package.module:Name"`` under which a spec lists a class."""
    return f"{thing.__module__}:{thing.__qualname__}"


def _package(address: str) -> str:
    return address.partition(":")[0].partition(".")[0]


def _report(plugin: Plugin, error: BaseException) -> None:
    """Warn about a plugin at the line of the user's that first needed the registry."""
    ours = {"", "multivae_core", "attr", "cattrs"}  # what attrs generates belongs to no module
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ours:
        level, frame = level + 1, frame.f_back
    text = (
        f"plugin {plugin} (entry point {plugin.entry_point!r}) could not be used: "
        f"{type(error).__name__}: {error}; the others are not affected. Repair or uninstall "
        f"it, or set {BLOCK_VARIABLE}={plugin.entry_point}"
    )
    warnings.warn(text, PluginWarning, stacklevel=level)


registry = Registry()


def register(
    kind: str, *, name: str, config: type[Any] | None = None, **description: Any
) -> Callable[[_T], _T]:
    """Return a decorator that registers a class of this process, as in a notebook.

    Further arguments are fields of its `ComponentSpec` (`aliases`, `capabilities`, ...); the
    summary is the first line of the docstring by default.

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
        first = (target.__doc__ or "").strip().partition("\n")[0]
        fields = {"summary": first, **description}
        spec = ComponentSpec(kind=kind, name=name, target=address_of(target), **fields)
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
    """Return a decorator that registers a model, by default with the usual capabilities."""
    return register("models", name=name, config=config, capabilities=capabilities, **description)
