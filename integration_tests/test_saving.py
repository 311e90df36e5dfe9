"""Every installed model: saved, loaded in a new process, the same outputs to the last bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import multivae_core as mv
from multivae_core.persistence import read_tensors, write_tensors

MODELS = ("dmvae", "gpoe", "mmjsd", "mmvae", "mmvae_plus", "mopoe", "mvae", "mvtcae")
VARIANTS: dict[str, dict[str, Any]] = {
    "dmvae": {"private_dims": 2, "n_sources": 2},
    "gpoe": {"fusion": "mixture_of_products", "private_dims": {"table": 2}},
    "mmjsd": {"private_dims": {"image": 2}, "weights": {"table": 2.0}},
    "mmvae": {"latent_dim": 2, "dtype": "float64"},
    "mmvae_plus": {"private_dims": {"table": 2, "image": 2}, "tie_private_prior": True},
    "mopoe": {"private_dims": {"image": 2}},
    "mvae": {"fusion": "weighted_product", "beta_schedule": 50},
    "mvtcae": {"proposal": "defensive", "alpha": 0.5},
}


def data() -> mv.IncompleteDataset:
    """Mixed types, both kinds of holes."""
    generator = np.random.default_rng(0)
    table, image = generator.normal(size=(20, 4)), generator.normal(size=(20, 1, 8, 8))
    table[3, 1] = image[5:9] = np.nan
    counts = generator.poisson(3.0, size=(20, 3))
    flags = generator.random((20, 2)) < 0.5
    values = {"table": table, "image": image, "counts": counts, "flags": flags}
    return mv.IncompleteDataset(values).hide(0.2, seed=1, keep_one=True)


def create(name: str, **options: Any) -> Any:
    small = {"type": "conv", "channels": [4], "hidden": [8]}
    modalities = {
        "image": {"encoder": small, "decoder": small},
        "counts": {"likelihood": "negative_binomial"},
    }
    return mv.create_model(name, data(), modalities=modalities, **{"latent_dim": 3, **options})


def outputs(model: Any) -> dict[str, Tensor]:
    """Everything that a user may ask for."""
    rows = data()
    seen = rows.restrict({"table", "flags"})
    return {
        "embedding": model.embed(rows),
        "log_likelihood": model.log_likelihood(rows, n_samples=10).value,
        **{f"predicted {n}": x for n, x in model.predict(seen, n_samples=5).items()},
        **{f"imputed {n}": x for n, x in model.impute(seen, n_samples=5).filled.items()},
        **{f"generated {n}": x for n, x in model.generate(5, output="sample").items()},
    }


_AGAIN = """
import sys, importlib.util as u
import multivae_core as mv
tests, *folders = sys.argv[1:]
spec = u.spec_from_file_location("saving", tests)
t = sys.modules["saving"] = u.module_from_spec(spec)
spec.loader.exec_module(t)
for folder in folders:
    t.write_tensors(folder + ".there", t.outputs(mv.load_model(folder)))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models, and what they gave here and in another process."""
    base = tmp_path_factory.mktemp("models")
    folders = []
    for name in MODELS:
        for variant, options in {"plain": {}, "variant": VARIANTS[name]}.items():
            folder = base / f"{name}-{variant}"
            model = create(name, **options)
            model.save(folder)
            write_tensors(Path(f"{folder}.here"), outputs(model))
            folders.append(str(folder))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", _AGAIN, __file__, *folders]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return base


@pytest.mark.parametrize("variant", ["plain", "variant"])
@pytest.mark.parametrize("name", MODELS)
def test_same_outputs_in_a_new_process(saved: Path, name: str, variant: str) -> None:
    here = read_tensors(saved / f"{name}-{variant}.here")
    there = read_tensors(saved / f"{name}-{variant}.there")
    assert here.keys() == there.keys()
    for what, value in here.items():
        assert torch.equal(value, there[what]), what
        assert bool(torch.isfinite(value).all()), what


@pytest.mark.parametrize("name", MODELS)
def test_the_folder_names_its_plugin(saved: Path, name: str) -> None:
    config = (saved / f"{name}-plain" / "config.json").read_text()
    assert f'"model": "multivae-aggregated/{name}"' in config
    card = (saved / f"{name}-plain" / "README.md").read_text()
    assert "pip install multivae-core multivae-aggregated" in card


@pytest.mark.parametrize("name", MODELS)
def test_configurations_come_back(saved: Path, name: str) -> None:
    for variant, options in {"plain": {}, "variant": VARIANTS[name]}.items():
        again = mv.load_model(saved / f"{name}-{variant}")
        assert again.config == create(name, **options).config
