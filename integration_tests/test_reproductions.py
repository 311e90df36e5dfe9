"""Every reproduction runs, at a scale of seconds; what it finds is for `nox -s reproduce`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks" / "reproduce"
NAMES = ("cmvae", "crmvae", "jmvae", "jnf", "mcvae", "mhvae", "mmvae_plus")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_reproduction_runs_and_prints_its_table(name, tmp_path):
    pytest.importorskip("torchmetrics", reason="installed by the sessions of nox")
    command = [sys.executable, "run.py", "--smoke", "--only", name, "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert f"## {name}:" in done.stdout
    assert "| measured | paper | ours | verdict |" in done.stdout
    assert "A SMOKE TEST" in done.stdout


def test_no_reproduction_is_forgotten():
    helpers = {"claim", "run"}
    modules = {path.stem for path in FOLDER.glob("*.py")} - helpers
    with_table = {
        name for name in modules if "REPRODUCTION =" in (FOLDER / f"{name}.py").read_text()
    }
    assert with_table == set(NAMES)
