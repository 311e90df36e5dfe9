"""The repository as a whole: versions, names and lists that must agree with each other."""

from __future__ import annotations

import ast
import tomllib
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import multivae_core as mv
from multivae_core.plugins import API_LEVEL, GROUP, OLDEST_API_LEVEL

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = sorted(file.parent for file in ROOT.glob("plugins/*/pyproject.toml"))
FOLDERS = [ROOT / "core", *PLUGINS]
VERSION_FILE = ROOT / "core" / "src" / "multivae_core" / "_version.py"

each_distribution = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
each_plugin = pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)


@cache
def settings(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def name(folder: Path) -> str:
    return str(settings(folder)["project"]["name"])


def package(folder: Path) -> str:
    return name(folder).replace("-", "_")


def specs(folder: Path) -> list[mv.ComponentSpec]:
    return list(import_module(f"{package(folder)}.plugin").multivae_components())


@each_distribution
def test_the_version_comes_from_one_file_and_all_are_in_step(folder: Path) -> None:
    assert settings(folder)["project"]["dynamic"] == ["version"]
    source = folder / settings(folder)["tool"]["hatch"]["version"]["path"]
    assert source.resolve() == VERSION_FILE
    assert version(name(folder)) == mv.__version__


def test_there_is_one_version_literal() -> None:
    found = [
        file
        for folder in FOLDERS
        for file in [*folder.glob("src/**/*.py"), folder / "pyproject.toml"]
        if f'"{mv.__version__}"' in file.read_text(encoding="utf-8")
    ]
    assert found == [VERSION_FILE]


@each_plugin
def test_plugins_require_this_series_of_the_core(folder: Path) -> None:
    major, minor, _ = map(int, mv.__version__.split("."))
    needs = settings(folder)["project"]["dependencies"]
    assert f"multivae-core>={major}.{minor},<{major}.{minor + 1}" in needs
    assert [need for need in needs if need.startswith("multivae")] == [
        need for need in needs if need.startswith("multivae-core")
    ]


@each_distribution
def test_a_distribution_has_the_same_shape_as_the_others(folder: Path) -> None:
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert {"LICENSE", "README.md", "pyproject.toml", "src", "tests"} <= names
    assert names <= {"LICENSE", "NOTICE", "README.md", "pyproject.toml", "src", "tests"}
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (folder / "src" / package(folder) / "py.typed").exists()
    assert settings(folder)["project"]["requires-python"] == ">=3.11"


@each_plugin
def test_the_entry_point_leads_to_a_table_for_this_core(folder: Path) -> None:
    points = settings(folder)["project"]["entry-points"][GROUP]
    assert points == {folder.name: f"{package(folder)}.plugin"}
    level = import_module(f"{package(folder)}.plugin").MULTIVAE_API_LEVEL
    assert OLDEST_API_LEVEL <= level <= API_LEVEL


def test_every_plugin_of_the_repository_is_in_use_and_none_failed() -> None:
    assert mv.registry.failures == {}
    assert {name(folder) for folder in FOLDERS} <= set(mv.registry.plugins)


@each_plugin
def test_aliases_are_the_models_of_the_table(folder: Path) -> None:
    models = sorted(spec.name for spec in specs(folder) if spec.kind == "models")
    assert settings(folder)["tool"]["multivae"]["aliases"] == models


def test_no_family_is_called_like_a_model() -> None:
    models = {spec.name for folder in PLUGINS for spec in specs(folder)}
    assert not models & {folder.name for folder in PLUGINS}
    assert not models & {"core", "cli"}


@each_plugin
def test_every_target_lives_in_its_own_package(folder: Path) -> None:
    for spec in specs(folder):
        addresses = [spec.target, spec.config] if spec.config else [spec.target]
        assert all(a.startswith(f"{package(folder)}.") for a in addresses), spec
        assert spec.summary, spec
        if spec.kind == "models":
            assert spec.family == folder.name, spec
            assert spec.reference, spec
            assert spec.config, spec


def test_every_package_is_in_the_contracts_and_the_type_check() -> None:
    tools = settings(ROOT)["tool"]
    packages = {package(folder) for folder in FOLDERS}
    contracts = tools["importlinter"]["contracts"]
    layers, one_way, torch_free = contracts
    assert set(tools["importlinter"]["root_packages"]) == packages
    families = set(layers["layers"][0].split(" | "))
    assert families == packages - {"multivae_core"}
    assert layers["layers"][1:] == ["multivae_core"]
    assert one_way["exhaustive"] is True
    assert {f"{family}.plugin" for family in families} <= set(torch_free["source_modules"])
    sources = {f"{folder.relative_to(ROOT).as_posix()}/src" for folder in FOLDERS}
    assert set(tools["mypy"]["files"]) == set(tools["mypy"]["mypy_path"].split(":")) == sources


def test_the_core_names_no_plugin_package() -> None:
    packages = [package(folder) for folder in PLUGINS]
    sample = ROOT / "integration_tests" / "sample_plugin"
    if sample.exists():
        packages += [name(sample), package(sample)]
    for file in (ROOT / "core" / "src").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not [each for each in packages if each in text], file


def test_every_nox_session_says_what_it_does() -> None:
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    sessions = {
        node.name: ast.get_docstring(node)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    }
    assert all(sessions.values())
    expected = {
        "demo",
        "tests",
        "isolation",
        "aliases",
        "golden",
        "lint",
        "types",
        "build",
        "bench",
    }
    assert expected <= set(sessions)


def test_the_readme_commands_are_the_ones_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "python -m pip install nox && nox -s demo" in readme
    command = "python -m pip install nox && nox -s tests"
    assert command in readme
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@each_plugin
def test_the_readme_names_every_model(folder: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    models = [spec.name for spec in specs(folder) if spec.kind == "models"]
    assert [model for model in models if f"`{model}`" not in readme] == []
