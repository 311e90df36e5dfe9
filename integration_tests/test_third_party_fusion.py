"""The sample plugin's rule of fusion, by its name, in models of the aggregated family."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import multivae_core as mv
from multivae_core.noise import Step, TrainingNoise
from multivae_core.plugins import ComponentSpec

SOURCE = Path(__file__).parent / "sample_plugin" / "src" / "acme_pool" / "model.py"
SIZES = {"a": 3, "b": 2, "c": 4}


@pytest.fixture(autouse=True)
def _log_pool(monkeypatch):
    found = importlib.util.spec_from_file_location("acme_pool_model", SOURCE)
    module = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, "acme_pool_model", module)
    found.loader.exec_module(module)
    spec = ComponentSpec(kind="fusions", name="log_pool", target="acme_pool_model:LogPool")
    mv.registry.register(spec, module.LogPool, module.LogPoolConfig)
    yield
    mv.registry.unregister("local/log_pool")


def data(rows=60):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, 2, generator=generator)
    loadings = {name: torch.randn(2, size, generator=generator) for name, size in SIZES.items()}
    noise = {name: torch.randn(rows, size, generator=generator) for name, size in SIZES.items()}
    values = {name: z @ loadings[name] + 0.3 * noise[name] for name in SIZES}
    return mv.IncompleteDataset(values).hide(0.3, seed=1, keep_one=True)


def step_of(number=0):
    return Step(training=True, noise=TrainingNoise(0, number))


def objective(model, batch, step):
    return sum(term.value for term in model.loss(model.prepare(batch), step).terms.values())


def test_the_pool_is_the_product_with_equal_weights():
    one = mv.create_model("gpoe", data(), latent_dim=2, fusion="log_pool")
    two = mv.create_model("gpoe", data(), latent_dim=2)
    assert one.config.fusion.__class__.__name__ == "LogPoolConfig"
    two.load_state_dict(one.state_dict(), strict=False)
    batch = data().batch()
    torch.testing.assert_close(objective(one, batch, step_of()), objective(two, batch, step_of()))


@pytest.mark.parametrize("name", ["gpoe", "mvae", "mvtcae", "mopoe"])
def test_models_train_with_it(name, tmp_path):
    model, batch = mv.create_model(name, data(), latent_dim=2, fusion="log_pool"), data().batch()
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for number in range(30):
        optimiser.zero_grad()
        loss = objective(model, batch, step_of(number)).mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < sum(losses[:5])
    model.save(tmp_path / "model")
    same = mv.load_model(tmp_path / "model")
    assert torch.equal(same.embed(batch), model.embed(batch))
