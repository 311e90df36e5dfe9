"""What is in dist/ after a build: one wheel and one sdist each, licence, marker, version."""

from __future__ import annotations

import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import multivae_core as mv

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"
FOLDERS = [ROOT / "core", *sorted(file.parent for file in ROOT.glob("plugins/*/pyproject.toml"))]
FAMILIES = {
    folder.name: tomllib.loads((folder / "pyproject.toml").read_text()) for folder in FOLDERS
}
ALIASES = {
    model: settings["project"]["name"]
    for settings in FAMILIES.values()
    for model in settings["tool"].get("multivae", {}).get("aliases", [])
}

pytestmark = pytest.mark.skipif(not DIST.exists(), reason="nothing built: run nox -s build")


def stem(name: str) -> str:
    return f"{name.replace('-', '_')}-{mv.__version__}"


def metadata(archive: zipfile.ZipFile) -> dict[str, list[str]]:
    (path,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    message = Parser().parsestr(archive.read(path).decode())
    return {key: message.get_all(key, []) for key in message}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wheel_holds_the_package_its_licence_and_its_marker(family: str) -> None:
    name = FAMILIES[family]["project"]["name"]
    package = name.replace("-", "_")
    with zipfile.ZipFile(DIST / f"{stem(name)}-py3-none-any.whl") as archive:
        files = set(archive.namelist())
        fields = metadata(archive)
        licence = archive.read(f"{stem(name)}.dist-info/licenses/LICENSE")
    assert fields["Version"] == [mv.__version__]
    assert fields["Requires-Python"] == [">=3.11"]
    assert f"{package}/py.typed" in files
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert {file.split("/")[0] for file in files} == {package, f"{stem(name)}.dist-info"}
    assert not [file for file in files if "/tests/" in file or file.endswith(".pyc")]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_sdist_can_be_built_from_alone(family: str) -> None:
    name = FAMILIES[family]["project"]["name"]
    with tarfile.open(DIST / f"{stem(name)}.tar.gz") as archive:
        files = {file.removeprefix(f"{stem(name)}/") for file in archive.getnames()}
    package = name.replace("-", "_")
    assert {"LICENSE", "README.md", "pyproject.toml", f"src/{package}/py.typed"} <= files


@pytest.mark.parametrize("model", ALIASES)
def test_an_alias_holds_no_code_and_requires_its_family(model: str) -> None:
    name = f"multivae-{model.replace('_', '-')}"
    path = DIST / f"{stem(name)}-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        assert all(".dist-info/" in file for file in archive.namelist())
        fields = metadata(archive)
    assert fields["Requires-Dist"] == [f"{ALIASES[model]}=={mv.__version__}"]
    assert ALIASES[model] in fields["Summary"][0]
    assert path.stat().st_size < 10_000
