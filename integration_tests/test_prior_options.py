"""Options of a prior of one package in models of others: they count, or they are refused."""

from __future__ import annotations

import pytest
import torch

import multivae_core as mv
from multivae_core.errors import ConfigError

PATH = {"path_derivative": True}
TEMPERED = {"type": "gmm", "n_components": 3, "temperature": 2.0}


@pytest.fixture(scope="module")
def data():
    random = torch.Generator().manual_seed(0)
    return mv.IncompleteDataset({m: torch.randn(20, 3, generator=random) for m in "abc"})


@pytest.mark.parametrize(
    ("model", "options"),
    [("mmvae", {}), ("mmvae_plus", {}), ("cmvae", {}), ("mcvae", PATH), ("dvcca", PATH),
     ("telbo", PATH)],
)  # fmt: skip
@pytest.mark.parametrize("prior", [TEMPERED, {"type": "gmm", "divergence": "vade"}])
def test_divergences_that_a_loss_would_not_ask_for_are_refused(data, model, options, prior):
    with pytest.raises(ConfigError, match=r"prior: this model's loss has log p\(z\) itself"):
        mv.create_model(model, data, latent_dim=2, prior=prior, **options)


@pytest.mark.parametrize("model", ["mopoe", "mvae", "mcvae", "telbo", "jmvae"])
def test_others_ask_for_them(data, model):
    losses = []
    for prior in ({**TEMPERED, "temperature": 1.0}, TEMPERED):
        torch.manual_seed(0)
        made = mv.create_model(model, data, latent_dim=2, prior=prior, dtype="float64")
        with torch.no_grad():
            made.shared_prior.means.mul_(3.0)
        trainer = mv.Trainer(steps=2, batch_size=20, progress=False, seed=0)
        losses.append(trainer.fit(made, data).epochs[0].numbers["loss"])
    assert losses[1] > losses[0]
