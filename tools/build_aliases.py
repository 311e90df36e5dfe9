"""Build the alias wheels: ``multivae-mopoe`` holds no code and requires the family with MoPoE.

Usage: ``python tools/build_aliases.py dist``. Each family lists its aliases in the table
``[tool.multivae]`` of its pyproject.toml.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = """
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "multivae-{alias}"
version = "{version}"
description = "Shorthand that installs {family}, which holds {model}; no code of its own."
requires-python = ">=3.11"
license = "Apache-2.0"
dependencies = ["{family}=={version}"]

[tool.hatch.build.targets.wheel]
bypass-selection = true
"""


def version() -> str:
    """Return the version that all distributions share."""
    text = (ROOT / "core/src/multivae_core/_version.py").read_text(encoding="utf-8")
    return text.split('__version__ = "')[1].split('"')[0]


def build(model: str, family: str, target: Path) -> None:
    """Write the alias wheel of one model into a folder."""
    fields = {"alias": model.replace("_", "-"), "model": model, "family": family}
    with tempfile.TemporaryDirectory() as folder:
        text = TEMPLATE.format(version=version(), **fields)
        (Path(folder) / "pyproject.toml").write_text(text, encoding="utf-8")
        shutil.copy(ROOT / "LICENSE", folder)
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def main(target: Path) -> None:
    """Build every alias of every family."""
    for file in sorted(ROOT.glob("plugins/*/pyproject.toml")):
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
        for model in settings["tool"]["multivae"]["aliases"]:
            build(model, settings["project"]["name"], target.resolve())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
