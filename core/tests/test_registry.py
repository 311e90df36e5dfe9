"""The registry: names, aliases, conflicts, loading, and that listing imports no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

import multivae_core as mv
from multivae_core._registry import ComponentImportError, Registry
from multivae_core.plugins import CAPABILITIES, KINDS, USUAL_CAPABILITIES, ComponentSpec, hookimpl


class Net:
    """A class that a test registers.

    With more text below the first line.
    """


class NetConfig:
    """Its configuration."""


class Other:
    """Another class."""


def table(*specs: ComponentSpec) -> object:
    """Return a plugin that offers these specs."""

    class Table:
        @hookimpl
        def multivae_components(self) -> tuple[ComponentSpec, ...]:
            return specs

    return Table()


def model(name: str, target: str = f"{__name__}:Net", **fields: object) -> ComponentSpec:
    return ComponentSpec(kind="models", name=name, target=target, **fields)


def registry_of(**plugins: object) -> Registry:
    return Registry(list, {name.replace("_", "-"): plugin for name, plugin in plugins.items()})


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    before = dict(mv.registry._local)
    yield
    mv.registry._local.clear()
    mv.registry._local.update(before)


def test_views_find_names_aliases_and_qualified_names() -> None:
    registry = registry_of(acme=table(model("alpha", aliases=("a", "first"))))
    for name in ("alpha", "a", "first", "acme/alpha", "acme/a"):
        assert registry.models[name].qualified_name == "acme/alpha"
        assert name in registry.models
    assert registry.models.names() == ("alpha",)
    assert list(registry.models) == ["alpha"]
    assert len(registry.models) == 1
    assert 3 not in registry.models
    assert repr(registry.models) == "<models: alpha>"
    assert repr(registry.priors) == "<priors: none>"


def test_every_kind_has_its_view() -> None:
    registry = registry_of()
    for kind in KINDS:
        assert registry.kind(kind) is getattr(registry, kind)
        assert registry.kind(kind).kind == kind
    with pytest.raises(mv.UnknownComponentError, match="no kind 'model'; the kinds are models"):
        registry.kind("model")


def test_a_conflict_names_both_and_qualified_names_work() -> None:
    registry = registry_of(
        multivae_aggregated=table(model("mopoe")), acme=table(model("mopoe"), model("other"))
    )
    message = (
        "model 'mopoe' is offered more than once: write 'acme/mopoe' and "
        "'multivae-aggregated/mopoe' in full"
    )
    with pytest.raises(mv.NameConflictError, match=message):
        registry.models["mopoe"]
    assert "mopoe" not in registry.models
    assert registry.models["acme/mopoe"].plugin == "acme"
    assert registry.models["multivae-aggregated/mopoe"].plugin == "multivae-aggregated"
    names = registry.models.names()
    assert names == ("acme/mopoe", "multivae-aggregated/mopoe", "other")
    assert all(name in registry.models for name in names)


def test_a_name_outranks_an_alias_and_two_aliases_conflict() -> None:
    registry = registry_of(
        acme=table(model("alpha", aliases=("beta", "x"))),
        zeta=table(model("beta", aliases=("x",))),
    )
    assert registry.models["beta"].plugin == "zeta"
    with pytest.raises(mv.NameConflictError, match="'acme/alpha' and 'zeta/beta'"):
        registry.models["x"]


@pytest.mark.parametrize(
    ("kind", "name", "parts"),
    [
        (
            "models",
            "mopo",
            ["the model 'mopo'", "Did you mean 'mopoe'?", "Installed models: mopoe"],
        ),
        ("models", "MoPoE", ["Did you mean 'mopoe'?"]),
        ("models", "jmvae", ["Install the plugin that provides it", "multivae-<model>"]),
        ("models", "acme/mopoe", ["Install the distribution 'acme'"]),
        ("priors", "gmm", ["the prior 'gmm'", "Installed priors: none", "multivae-mixture-prior"]),
        ("encoders", "resnet", ["Install the plugin that provides it."]),
        ("models", 3, ["the model 3"]),
    ],
)
def test_an_unknown_name_gets_a_remedy(kind: str, name: str, parts: list[str]) -> None:
    registry = registry_of(multivae_aggregated=table(model("mopoe")))
    with pytest.raises(mv.UnknownComponentError) as caught:
        registry.kind(kind)[name]
    for part in parts:
        assert part in str(caught.value)


def test_load_gives_classes_and_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "acme_networks"
    monkeypatch.setitem(sys.modules, address, sys.modules[__name__])
    registry = registry_of(
        acme=table(
            model("alpha", f"{address}:Net", config=f"{address}:NetConfig"),
            model("beta", f"{address}:Net"),
        )
    )
    assert registry.models.load("alpha") is Net
    assert registry.models.load_config("acme/alpha") is NetConfig
    assert registry.models.load_config("beta") is None


@pytest.mark.parametrize("target", ["module_that_is_not_there:Model", "json:Model"])
def test_a_target_that_cannot_be_imported_is_listed_and_named(target: str) -> None:
    registry = registry_of(acme=table(model("alpha", target)))
    assert registry.models.names() == ("alpha",)
    with pytest.raises(ComponentImportError) as caught:
        registry.models.load("alpha")
    for part in ("model 'alpha'", "acme", target):
        assert part in str(caught.value)
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, mv.RegistryError)
    assert caught.value.__cause__ is not None


def test_register_model_in_a_notebook_and_run_the_cell_twice() -> None:
    for _ in range(2):

        @mv.register_model(name="mine", config=NetConfig, aliases=["my"])
        class Mine:
            """A model of mine."""

    spec = mv.registry.models["my"]
    assert spec.qualified_name == "local/mine"
    assert spec.summary == "A model of mine."
    assert spec.capabilities == USUAL_CAPABILITIES
    assert mv.registry.models.load("mine") is Mine
    assert mv.registry.models.load_config("mine") is NetConfig
    mv.registry.unregister("local/mine")
    assert "mine" not in mv.registry.models


def test_register_takes_any_kind_and_refuses_unknown_ones() -> None:
    mv.register("fusions", name="net", summary="Short.")(Net)
    assert mv.registry.fusions["net"].summary == "Short."
    with pytest.raises(mv.ConfigError, match="must be one of models"):
        mv.register("fusion", name="net")(Net)
    mv.registry.unregister("local")
    assert "net" not in mv.registry.fusions


def test_a_local_name_that_is_taken_becomes_a_conflict_not_a_takeover() -> None:
    mv.register("likelihoods", name="normal")(Net)
    with pytest.raises(mv.NameConflictError, match="'local/normal' and 'multivae-core/normal'"):
        mv.registry.likelihoods["normal"]


def test_find_config_goes_from_class_to_component() -> None:
    registry = registry_of()
    registry.register(model("alpha"), Net, NetConfig)
    assert registry.find_config("models", NetConfig).name == "alpha"
    with pytest.raises(mv.UnknownComponentError, match="Other is the configuration of no regist"):
        registry.find_config("models", Other)
    with pytest.raises(mv.UnknownComponentError, match="of no registered encoder"):
        registry.find_config("encoders", NetConfig)
    registry.register(model("beta"), Other, NetConfig)
    with pytest.raises(mv.NameConflictError, match="'local/alpha' and 'local/beta'"):
        registry.find_config("models", NetConfig)


def test_find_config_prefers_the_owner_and_knows_exported_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A class is listed where its package exports it, and another plugin borrows it."""
    home = type(sys)("acme_home")
    home.NetConfig = NetConfig
    monkeypatch.setitem(sys.modules, "acme_home", home)
    registry = registry_of(
        acme=table(model("alpha", "acme_home:Net", config="acme_home:NetConfig")),
        thief=table(model("gamma", "thief:Net", config="acme_home:NetConfig")),
    )
    assert registry.find_config("models", NetConfig).plugin == "acme"


def test_find_config_of_a_class_that_a_second_run_of_a_cell_replaced() -> None:
    registry = registry_of()
    classes = [type("Config", (), {"__module__": "cell"}) for _ in range(2)]
    for config in classes:
        registry.register(model("alpha"), Net, config)
    assert registry.find_config("models", classes[1]).name == "alpha"
    with pytest.raises(mv.UnknownComponentError):
        registry.find_config("models", classes[0])


def test_the_core_lists_its_own_components() -> None:
    registry = Registry(list)
    assert registry.likelihoods.names() == (
        "bernoulli",
        "categorical",
        "huber",
        "laplace",
        "negative_binomial",
        "normal",
        "poisson",
        "squared_error",
        "student_t",
        "zero_inflated_negative_binomial",
    )
    assert registry.encoders.names() == registry.decoders.names() == ("conv", "conv1d", "mlp")
    assert registry.fusions.names() == (
        "mixture",
        "mixture_of_products",
        "product",
        "weighted_product",
    )
    assert registry.priors.names() == ("scaled", "standard_normal")
    assert registry.failures == {}


def test_everything_the_core_lists_can_be_imported() -> None:
    registry = Registry(list)
    for spec in registry.specs():
        view = registry.kind(spec.kind)
        assert callable(view.load(spec.name)), spec
        config = view.load_config(spec.name)
        assert config is not None, spec
        assert registry.find_config(spec.kind, config) == spec


def test_listing_models_imports_no_torch() -> None:
    code = (
        "import sys, time, multivae_core; multivae_core.registry.models.names(); "
        "print(sorted({'torch', 'numpy', 'accelerate'} & set(sys.modules)), time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, _, seconds = done.stdout.rpartition(" ")
    print(f"listing the models: {seconds.strip()} CPU seconds")
    assert heavy == "[]"


def test_lazy_names_live_where_type_checkers_look_for_them() -> None:
    tree = ast.parse(Path(mv.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module.removeprefix("multivae_core.")
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert seen == mv._HOMES
    assert set(seen) < set(mv.__all__)
    for name in mv.__all__:
        assert getattr(mv, name) is not None, name


@attrs.frozen
class Sized:
    """A configuration."""

    hidden: int
    beta: float = 1.0
    layers: list[int] = attrs.Factory(list)


@attrs.frozen
class Twice:
    """Another one."""

    hidden: int
    beta: float = 1.0
    copies: int = attrs.field(default=attrs.Factory(lambda self: self.hidden, takes_self=True))


def test_the_table_has_names_families_references_capabilities_and_options() -> None:
    here = {"family": "toys", "capabilities": {"generate"}}
    registry = registry_of(
        one=table(
            model("first", config=f"{__name__}:Sized", reference="A 2020", **here),
            model("second", config=f"{__name__}:Twice", reference="B 2021", **here),
            model("lost", config="no_such_module:Config"),
        )
    )
    assert registry.models.options("first") == {"hidden": "", "beta": "1.0", "layers": "[]"}
    lines = registry.models.table(80).splitlines()
    assert lines[0].split() == ["name", "family", "reference", "can", "options"]
    assert lines[2].startswith("lost")
    assert "cannot be imported" in lines[2]
    (first,) = [line for line in lines if line.startswith("first")]
    number = 1 + sorted(CAPABILITIES).index("generate")
    marks = "".join(str(n) if n == number else "." for n in range(1, len(CAPABILITIES) + 1))
    assert first.split() == [
        "first",
        "toys",
        "A",
        "2020",
        marks,
        "hidden,",
        "beta=1.0,",
        "layers=[]",
    ]
    assert f"{number} generate" in " ".join(lines[-3:])
    assert max(map(len, lines)) <= 80


def test_options_that_all_have_stand_once_below_the_table() -> None:
    registry = registry_of(
        one=table(
            model("first", config=f"{__name__}:Sized"), model("second", config=f"{__name__}:Twice")
        )
    )
    lines = registry.models.table().splitlines()
    assert [line.split() for line in lines[2:4]] == [
        ["first", "layers=[]"],
        ["second", "copies=..."],
    ]
    assert lines[-1] == "all have: hidden, beta=1.0"
    assert registry.samplers.table() == "none installed"
    assert registry.models.table(0).splitlines()[2].split() == ["first", "layers=[]"]


def test_an_unknown_attribute_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'create_modle'"):
        mv.create_modle  # noqa: B018
