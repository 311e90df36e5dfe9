"""Train, save and load MoPoE with nothing installed but the core and the alias of the model."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

import multivae_core as mv


def main() -> None:
    """Run the whole path on a small made-up data set with holes."""
    assert version("multivae-mopoe") == mv.__version__
    assert mv.registry.failures == {}
    assert set(mv.registry.plugins) == {"multivae-core", "multivae-aggregated"}
    assert "mopoe" in mv.registry.models

    generator = torch.Generator().manual_seed(0)
    z = torch.randn(96, 2, generator=generator)
    values = {name: z @ torch.randn(2, size, generator=generator) for name, size in SIZES}
    data = mv.IncompleteDataset(values).hide(0.3, seed=0)
    train, valid, test = data.split(0.7, 0.15, seed=0)

    model = mv.create_model("mopoe", train, latent_dim=3)
    mv.Trainer(epochs=2, batch_size=32, seed=0).fit(model, train, validation=valid)
    embedded = model.embed(test)
    assert embedded.shape == (len(test), 3)
    assert torch.isfinite(embedded).all()
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "mopoe")
        again = mv.load_model(Path(folder) / "mopoe")
    assert torch.equal(again.embed(test), embedded)
    plugin = mv.registry.models["mopoe"].plugin
    print(f"trained, saved and loaded {type(model).__name__} from {plugin}")


SIZES = (("a", 4), ("b", 3), ("c", 6))

if __name__ == "__main__":
    main()
