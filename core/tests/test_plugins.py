"""Discovery: what a plugin table may say, and that a bad plugin takes nothing else down."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path

import pluggy
import pytest

from multivae_core import ConfigError, PluginWarning, RegistryError, UnknownComponentError
from multivae_core._registry import Registry
from multivae_core.plugins import (
    API_LEVEL,
    CAPABILITIES,
    GROUP,
    ComponentSpec,
    discover,
    hookimpl,
)

GOOD = """
from multivae_core.plugins import ComponentSpec, hookimpl
MULTIVAE_API_LEVEL = 1
@hookimpl
def multivae_components():
    return [ComponentSpec(kind="models", name="{name}", target="nowhere.at_all:Model")]
"""

Site = Callable[..., None]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Install a distribution of one module: ``site(name, code, entry_point)``."""
    monkeypatch.syspath_prepend(str(tmp_path))
    created: list[str] = []

    def install(name: str, code: str, entry: str = "", version: str = "1.2") -> None:
        module = name.replace("-", "_").lower()
        assert module.startswith(("acme", "zeta"))  # hides no real package
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        header = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (info / "METADATA").write_text(header)
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{entry or module} = {module}\n")
        created.append(module)

    yield install
    for module in created:
        sys.modules.pop(module, None)


@pytest.fixture
def fresh(tmp_path: Path) -> Registry:
    """A registry that sees the core and what ``site`` installed."""

    def find() -> list:
        found = distributions(path=[str(tmp_path)])
        return [entry for each in found for entry in each.entry_points.select(group=GROUP)]

    return Registry(find)


def test_a_plugin_is_listed_and_its_specs_are_attributed(site: Site, fresh: Registry) -> None:
    site("Acme_Models", GOOD.format(name="acme"))
    spec = fresh.models["acme"]
    assert spec.plugin == "acme-models"
    assert spec.qualified_name == "acme-models/acme"
    assert fresh.failures == {}
    assert str(fresh.plugins["acme-models"]) == "acme-models 1.2"
    assert "nowhere" not in sys.modules


FAULTS = {
    "missing import": ("import module_that_is_not_there", ModuleNotFoundError, "not_there"),
    "ends the process": ("raise SystemExit(3)", SystemExit, "3"),
    "no level": (GOOD.replace("MULTIVAE_API_LEVEL = 1", ""), RegistryError, "got None"),
    "old level": (
        GOOD.replace("LEVEL = 1", "LEVEL = 0"),
        RegistryError,
        "API level 0, this core speaks levels 1 to 1.*upgrade the plugin",
    ),
    "new level": (
        GOOD.replace("LEVEL = 1", "LEVEL = 99"),
        RegistryError,
        "API level 99, this core speaks levels 1 to 1.*upgrade multivae-core",
    ),
    "wrong signature": (
        GOOD.replace("components()", "components(registry)"),
        pluggy.PluginValidationError,
        "registry",
    ),
    "unknown hook": (
        GOOD.replace("multivae_components", "multivae_compoments"),
        pluggy.PluginValidationError,
        "multivae_compoments",
    ),
    "no hook": (GOOD.replace("@hookimpl", ""), RegistryError, "marked @hookimpl"),
    "hook raises": (GOOD.replace("return [", "1 / 0; return ["), ZeroDivisionError, "zero"),
    "hook exits": (GOOD.replace("return [", "exit(1); return ["), SystemExit, "1"),
    "hook returns nothing": (GOOD.replace("return [", "["), RegistryError, "marked @hookimpl"),
    "not a list": (GOOD.replace("return [", "return 7; ["), RegistryError, "got 7"),
    "not specs": (
        GOOD.replace("return [", "return ['acme']; ["),
        RegistryError,
        "must return ComponentSpecs, got 'acme'",
    ),
    "a generator that fails": (
        GOOD.replace("return [", "yield from ["),
        ConfigError,
        "ComponentSpec.name: must be lower-case",
    ),
    "one name twice": (GOOD.replace("return [", "return 2 * ["), RegistryError, "more than once"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_plugin_is_reported_and_takes_nothing_down(
    fault: str, site: Site, fresh: Registry
) -> None:
    code, kind, reason = FAULTS[fault]
    name = "Bad Name" if fault == "a generator that fails" else "bad"
    site("acme-bad", code.format(name=name), entry="bad")
    site("acme-before", GOOD.format(name="before"), entry="a")
    site("zeta-after", GOOD.format(name="after"), entry="z")
    message = rf"plugin acme-bad 1\.2 \(entry point 'bad'\) could not be used: {kind.__name__}"
    with pytest.warns(PluginWarning, match=message) as caught:
        assert fresh.models.names() == ("after", "before")
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the line of the caller, not one inside the core
    assert "MULTIVAE_BLOCK_PLUGINS=bad" in str(caught[0].message)
    assert list(fresh.failures) == ["acme-bad"]
    assert isinstance(fresh.failures["acme-bad"], kind)
    with pytest.raises(kind, match=reason):
        raise fresh.failures["acme-bad"]
    assert "normal" in fresh.likelihoods


def test_the_warning_points_at_the_user_whatever_the_path(site: Site, fresh: Registry) -> None:
    site("acme-bad", "1 / 0")
    with pytest.warns(PluginWarning) as caught:
        assert "mopoe" not in fresh.kind("models")
    assert caught[0].filename == __file__


def test_a_warning_turned_into_an_error_leaves_the_registry_usable(
    site: Site, fresh: Registry
) -> None:
    site("acme-bad", "1 / 0")
    site("acme-good", GOOD.format(name="good"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PluginWarning):
            fresh.models.names()
        assert fresh.models.names() == ("good",)


def test_keyboard_interrupt_is_not_swallowed_and_discovery_can_be_repeated(
    site: Site, fresh: Registry, tmp_path: Path
) -> None:
    site("acme-slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        fresh.models.names()
    (tmp_path / "acme_slow.py").write_text(GOOD.format(name="slow") + "# of another size")
    sys.modules.pop("acme_slow", None)
    assert fresh.models.names() == ("slow",)


def test_a_plugin_that_asks_the_registry_while_it_is_listed_fails_alone(
    site: Site, fresh: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multivae_core._registry.registry", fresh)
    code = GOOD.replace(
        "return [",
        "from multivae_core._registry import registry; registry.models.names(); return [",
    )
    site("acme-loop", code.format(name="loop"))
    with pytest.warns(PluginWarning, match="may not ask the registry"):
        assert fresh.models.names() == ()


def test_two_distributions_may_use_one_entry_point_name(site: Site, fresh: Registry) -> None:
    site("acme-one", GOOD.format(name="one"), entry="aggregated")
    site("acme-two", GOOD.format(name="two"), entry="aggregated")
    assert fresh.models.names() == ("one", "two")


def test_hooks_of_a_later_api_are_ignored_when_marked_optional(
    site: Site, fresh: Registry
) -> None:
    later = "\n@hookimpl(optionalhook=True)\ndef multivae_from_the_future(thing): ...\n"
    site("acme-future", GOOD.format(name="future") + later)
    assert fresh.models.names() == ("future",)


@pytest.mark.parametrize("blocked", ["bad", "acme-bad", "other, bad"])
def test_blocked_plugins_are_not_imported(
    blocked: str, site: Site, fresh: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTIVAE_BLOCK_PLUGINS", blocked)
    site("acme-bad", "1 / 0", entry="bad")
    site("acme-good", GOOD.format(name="good"))
    assert fresh.models.names() == ("good",)
    assert fresh.failures == {}
    assert "acme_bad" not in sys.modules


def test_the_order_of_entry_points_does_not_decide(site: Site, tmp_path: Path) -> None:
    for name in ("acme-a", "acme-b", "acme-c"):
        site(name, GOOD.format(name="mopoe"))
    found = distributions(path=[str(tmp_path)])
    entries = [entry for each in found for entry in each.entry_points]
    assert discover(entries) == discover(reversed(entries))


def test_a_half_registered_plugin_is_unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    """pluggy before 1.7 keeps a plugin whose second hook is invalid; this re-enacts it."""
    registered = pluggy.PluginManager.register

    def half(self: pluggy.PluginManager, plugin: object, name: str | None = None) -> str | None:
        key = registered(self, plugin, name)
        if name == "acme:acme":
            raise pluggy.PluginValidationError(plugin, "second hook is invalid")
        return key

    monkeypatch.setattr(pluggy.PluginManager, "register", half)
    managers = []
    checked = pluggy.PluginManager.add_hookspecs
    monkeypatch.setattr(
        pluggy.PluginManager,
        "add_hookspecs",
        lambda self, specs: (managers.append(self), checked(self, specs))[1],
    )

    class Entry:
        name, value, dist = "acme", "acme.plugin", None

        @staticmethod
        def load() -> object:
            return Table()

    found = discover([Entry()])  # type: ignore[list-item]
    assert [plugin.name for plugin, _ in found.failures] == ["acme"]
    assert managers[0].get_plugins() == set()


class Table:
    MULTIVAE_API_LEVEL = API_LEVEL

    @hookimpl
    def multivae_components(self) -> list[ComponentSpec]:
        return [ComponentSpec(kind="models", name="acme", target="acme:Acme")]


BAD_SPECS = [
    ({"kind": "model"}, "ComponentSpec.kind: must be one of models, .*got 'model'"),
    ({"name": "MoPoE"}, "ComponentSpec.name: must be lower-case letters.*got 'MoPoE'"),
    ({"name": "a/b"}, "ComponentSpec.name"),
    ({"name": 3}, "ComponentSpec.name"),
    ({"target": "acme.models"}, "ComponentSpec.target: must read 'package.module:Name'"),
    ({"target": "os:system('x')"}, "ComponentSpec.target"),
    ({"config": "acme"}, "ComponentSpec.config"),
    ({"aliases": ("Bad",)}, "ComponentSpec.aliases"),
    ({"aliases": "abc"}, "must be a tuple of texts, got 'abc'"),
    ({"capabilities": {"flies"}}, r"capabilities: must be taken from .*got \['flies'\]"),
]


@pytest.mark.parametrize(("change", "message"), BAD_SPECS)
def test_a_spec_refuses_bad_fields(change: dict, message: str) -> None:
    good = {"kind": "models", "name": "acme", "target": "acme.models:Acme"}
    with pytest.raises(ConfigError, match=message):
        ComponentSpec(**(good | change))


def test_the_list_of_capabilities_is_closed() -> None:
    assert sorted(CAPABILITIES) == [
        "conditional_likelihood",
        "encodes_any_subset",
        "generate",
        "joint_likelihood",
        "loss_is_bound",
        "posterior_density",
        "private_latents",
        "row_objective",
    ]


def test_unregister_forgets_plugins_and_components(site: Site, fresh: Registry) -> None:
    site("acme-one", GOOD.format(name="one"), entry="first")
    site("acme-two", GOOD.format(name="two"))
    fresh.unregister("first")
    assert fresh.models.names() == ("two",)
    fresh.unregister("acme-two/two")
    assert fresh.models.names() == ()
    with pytest.raises(UnknownComponentError, match="nothing to unregister is called 'first'"):
        fresh.unregister("first")
