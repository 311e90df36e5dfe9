"""Small models in float64 and batches with holes, for the tests of every model of the family."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import multivae_core as mv
from multivae_core.noise import Step, TrainingNoise

SIZES = {"a": 3, "b": 2, "c": 4}


class QuietNoise(TrainingNoise):
    """Latents at their locations; choices and subsets are left to chance."""

    def normal(self, name, shape):
        return torch.zeros(shape, dtype=self.dtype)

    laplace = normal


@pytest.fixture
def quiet():
    def step(number=0, **options):
        noise = QuietNoise(0, number, dtype=torch.float64)
        return Step(training=True, number=number, noise=noise, **options)

    return step


@pytest.fixture
def training():
    def step(number=0, seed=0, **options):
        noise = TrainingNoise(seed, number, dtype=torch.float64)
        return Step(training=True, number=number, noise=noise, **options)

    return step


@pytest.fixture
def make_batch():
    def make(rows=12, sizes=None, seed=0, holes=True, elements=False):
        rng = np.random.default_rng(seed)
        sizes = SIZES if sizes is None else sizes
        values = {n: torch.as_tensor(rng.normal(size=(rows, d))) for n, d in sizes.items()}
        present = torch.ones(rows, len(sizes), dtype=torch.bool)
        if holes:
            present = torch.as_tensor(rng.random((rows, len(sizes))) < 0.6)
            present[0] = True
            present[1] = False
            present[2] = torch.arange(len(sizes)) == 0
        observed = {}
        if elements:
            for name in sizes:
                mask = torch.as_tensor(rng.random((rows, sizes[name])) < 0.7)
                mask[:, 0] = True
                observed[name] = mask
        return mv.Batch(values=values, present=present, observed=observed)

    return make


@pytest.fixture
def make_model(make_batch):
    def make(name, sizes=None, modalities=None, latent_dim=2, seed=0, **options):
        sizes = SIZES if sizes is None else sizes
        batch = make_batch(8, sizes, holes=False)
        own = {
            modality: {
                "likelihood": {"type": "normal", "scale": 0.8},
                "encoder": {"type": "mlp", "hidden": [5]},
                "decoder": {"type": "mlp", "hidden": [5]},
                "standardise": False,
                **(modalities or {}).get(modality, {}),
            }
            for modality in sizes
        }
        return mv.create_model(
            name,
            mv.IncompleteDataset(batch.values),
            latent_dim=latent_dim,
            modalities=own,
            seed=seed,
            dtype="float64",
            **options,
        )

    return make
