"""What must hold in any combination of installed wheels; MULTIVAE_INSTALLED names them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import distributions

import pytest

import multivae_core as mv

INSTALLED = set(filter(None, os.environ.get("MULTIVAE_INSTALLED", "").split(",")))

pytestmark = pytest.mark.skipif(not INSTALLED, reason="run by nox -s isolation")

LIST = """
import json, sys, time, multivae_core
names = {kind: multivae_core.registry.kind(kind).names() for kind in ("models", "datasets")}
heavy = sorted({"torch", "numpy", "accelerate"} & set(sys.modules))
print(json.dumps({"names": names, "heavy": heavy, "seconds": time.process_time()}))
"""


def test_exactly_these_distributions_are_installed_and_not_as_editables() -> None:
    found = {each.name: each for each in distributions() if each.name in INSTALLED}
    assert set(found) == INSTALLED
    for each in found.values():
        assert '"editable": true' not in (each.read_text("direct_url.json") or "")
    assert "site-packages" in mv.__file__


def test_every_installed_plugin_is_found_and_none_failed() -> None:
    assert mv.registry.failures == {}
    assert set(mv.registry.plugins) == INSTALLED


def test_listing_imports_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["heavy"] == []
    assert ("mopoe" in found["names"]["models"]) == ("multivae-aggregated" in INSTALLED)
    assert ("mfeat" in found["names"]["datasets"]) == ("multivae-datasets" in INSTALLED)
    print(f"{len(found['names']['models'])} models listed in {found['seconds']:.2f} CPU seconds")


def test_everything_listed_can_be_loaded() -> None:
    for spec in mv.registry.models.specs():
        assert mv.registry.models.load(spec.qualified_name) is not None
        config = mv.registry.models.load_config(spec.qualified_name)
        assert config is not None
        assert mv.registry.find_config("models", config) == spec
    for spec in mv.registry.datasets.specs():
        assert callable(mv.registry.datasets.load(spec.qualified_name))


def test_what_is_not_installed_is_named_with_its_remedy() -> None:
    with pytest.raises(mv.UnknownComponentError, match="Install the distribution 'acme-models'"):
        mv.registry.models["acme-models/unheard_of"]
