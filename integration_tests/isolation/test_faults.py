"""Plugins with faults: each is a wheel built outside the repository and installed by pip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import multivae_core as mv

OURS = set(mv.registry.models.names())

GOOD = """
from multivae_core.plugins import ComponentSpec, hookimpl

MULTIVAE_API_LEVEL = 1

@hookimpl
def multivae_components():
    return [ComponentSpec(kind="models", name="{model}", target="{module}:Model")]

class Model:
    pass
"""

# fault: (what to change in a good plugin, the failure that is reported, part of its message)
FAULTS = {
    "import": (("MULTIVAE_API", "import not_there\nMULTIVAE_API"), "ModuleNotFound", "not_there"),
    "exit": (("MULTIVAE_API", "raise SystemExit(1)\nMULTIVAE_API"), "SystemExit", "1"),
    "nolevel": (("MULTIVAE_API_LEVEL = 1", ""), "RegistryError", "MULTIVAE_API_LEVEL"),
    "old": (("LEVEL = 1", "LEVEL = 0"), "RegistryError", "API level 0, this core speaks levels 1"),
    "new": (("LEVEL = 1", "LEVEL = 9"), "RegistryError", "API level 9, this core speaks levels 1"),
    "signature": (("components()", "components(registry)"), "PluginValidation", "registry"),
    "raises": (("return [", "1 / 0; return ["), "ZeroDivisionError", "division"),
    "notspecs": (("return [", "return ['mopoe']; ["), "RegistryError", "got 'mopoe'"),
    "badspec": (('name="', 'name="No '), "ConfigError", "ComponentSpec.name"),
}

REPORT = """
import json, sys, warnings
import multivae_core as mv
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    names = mv.registry.models.names()
assert "torch" not in sys.modules
failures = {name: [type(e).__name__, str(e)] for name, e in mv.registry.failures.items()}
messages = [str(each.message) for each in caught]
print(json.dumps({"names": names, "failures": failures, "warnings": messages}))
"""


def wheel(folder: Path, name: str, code: str, entry: str = "", needs: str = ">=0.1") -> Path:
    """Write a wheel of one module, as a stranger's build tool would."""
    module = name.replace("-", "_")
    info = f"{module}-1.2.dist-info"
    files = {
        f"{module}.py": code.format(model=name.removeprefix("acme-"), module=module),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n"
        f"Requires-Dist: multivae-core{needs}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[multivae.plugins]\n{entry or module} = {module}\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    path = folder / f"{module}-1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(inside, text)
    return path


def faulty(folder: Path, fault: str) -> Path:
    (before, after), *_ = FAULTS[fault]
    assert before in GOOD
    return wheel(folder, f"acme-{fault}", GOOD.replace(before, after))


def pip(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def install(site: Path, *wheels: Path) -> None:
    done = pip("install", "--quiet", "--no-index", "--no-deps", "--target", site, *wheels)
    assert done.returncode == 0, done.stderr


def python(site: Path, code: str, **env: str) -> str:
    """Run code in a new process in which the wheels of ``site`` are installed too."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(site)} | env,
        cwd=site,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def report(site: Path, **env: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(python(site, REPORT, **env))
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_reported_by_name_and_the_others_load(fault: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, faulty(tmp_path, fault), wheel(tmp_path, "acme-good", GOOD))
    found = report(site)
    _, kind, message = FAULTS[fault]
    name = f"acme-{fault}"
    assert set(found["names"]) == OURS | {"good"}
    assert list(found["failures"]) == [name]
    assert found["failures"][name][0].startswith(kind)
    assert message in found["failures"][name][1]
    (warning,) = found["warnings"]
    assert f"plugin {name} 1.2" in warning
    assert kind in warning
    assert message in warning


def test_all_faults_together_take_nothing_down(tmp_path: Path) -> None:
    site = tmp_path / "site"
    wheels = [faulty(tmp_path, fault) for fault in FAULTS]
    install(site, *wheels, wheel(tmp_path, "acme-good", GOOD))
    found = report(site)
    assert set(found["names"]) == OURS | {"good"}
    assert set(found["failures"]) == {f"acme-{fault}" for fault in FAULTS}
    assert len(found["warnings"]) == len(FAULTS)


def test_a_target_that_cannot_be_imported_is_listed_and_load_says_whose_it_is(
    tmp_path: Path,
) -> None:
    site = tmp_path / "site"
    code = GOOD.replace("{module}:Model", "acme_nowhere.models:Model")
    install(site, wheel(tmp_path, "acme-ghost", code))
    assert set(report(site)["names"]) == OURS | {"ghost"}
    message = python(
        site,
        "import multivae_core as mv\n"
        "try: mv.registry.models.load('ghost')\n"
        "except ImportError as error: print(error)",
    )
    for part in ("model 'ghost'", "acme-ghost 1.2", "acme_nowhere.models:Model", "No module"):
        assert part in message


def test_two_distributions_with_one_entry_point_name_both_load(tmp_path: Path) -> None:
    site = tmp_path / "site"
    names = ("acme-one", "acme-two")
    install(site, *(wheel(tmp_path, name, GOOD, entry="aggregated") for name in names))
    found = report(site)
    assert set(found["names"]) == OURS | {"one", "two"}
    assert found["failures"] == {}


def test_a_name_that_two_plugins_claim_needs_its_qualified_form(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, wheel(tmp_path, "acme-mopoe", GOOD))
    found = report(site)
    both = {"acme-mopoe/mopoe", "multivae-aggregated/mopoe"}
    assert set(found["names"]) == OURS - {"mopoe"} | both
    assert found["failures"] == {}
    lines = python(
        site,
        "import multivae_core as mv\n"
        "try: mv.registry.models['mopoe']\n"
        "except mv.NameConflictError as error: print(error)\n"
        "print(mv.registry.models['multivae-aggregated/mopoe'].target)\n"
        "print(mv.registry.models['acme-mopoe/mopoe'].target)\n"
        "mv.registry.unregister('acme-mopoe'); print(mv.registry.models['mopoe'].plugin)",
    ).splitlines()
    assert all(name in lines[0] for name in both)
    assert lines[1:] == [
        "multivae_aggregated.mopoe:MoPoE",
        "acme_mopoe:Model",
        "multivae-aggregated",
    ]


@pytest.mark.parametrize("blocked", ["acme_exit,acme_mopoe", "acme-exit, acme-mopoe"])
def test_blocked_plugins_are_left_out(blocked: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, faulty(tmp_path, "exit"), wheel(tmp_path, "acme-mopoe", GOOD))
    found = report(site, MULTIVAE_BLOCK_PLUGINS=blocked)
    assert set(found["names"]) == OURS
    assert found["failures"] == {}
    assert found["warnings"] == []


def test_an_unknown_name_is_answered_with_near_misses_and_failures(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, faulty(tmp_path, "raises"))
    message = python(
        site,
        "import warnings; warnings.simplefilter('ignore')\n"
        "import multivae_core as mv\n"
        "try: mv.registry.models['mopo']\n"
        "except mv.UnknownComponentError as error: print(error)",
    )
    for part in ("'mopo'", "Did you mean 'mopoe'?", "Installed models:", "acme-raises"):
        assert part in message


def test_pip_refuses_a_plugin_for_another_version_of_the_core(tmp_path: Path) -> None:
    file = wheel(tmp_path, "acme-late", GOOD, needs=">=99")
    done = pip("install", "--dry-run", "--no-index", "--find-links", tmp_path, file)
    assert done.returncode != 0
    assert "multivae-core>=99" in done.stderr


def test_the_environment_itself_is_sound() -> None:
    done = pip("check")
    assert done.returncode == 0, done.stdout
    assert mv.registry.failures == {}
