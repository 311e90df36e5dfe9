"""An MHVAE over modalities of any shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import multivae_core as mv


@pytest.fixture
def make_maps():
    """Data of any shapes, ten rows of which some lack a modality, and an MHVAE for them."""

    def make(shapes, encoders=None, decoders=None, scale=0.8, **options):
        rng = np.random.default_rng(0)
        values = {n: torch.as_tensor(rng.normal(size=(10, *s))) for n, s in shapes.items()}
        data = mv.IncompleteDataset(values).hide(0.3, seed=0)
        own = {"likelihood": {"type": "normal", "scale": scale}}
        model = mv.create_model(
            "mhvae",
            data,
            latent_dim=2,
            modalities=dict.fromkeys(shapes, own),
            encoders=encoders,
            decoders=decoders,
            dtype="float64",
            **{"channels": [4], **options},
        )
        return data, model

    return make
