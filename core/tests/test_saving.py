"""Model folders: what is in them, and that it comes back to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import multivae_core as mv
from multivae_core.building import without_memory
from multivae_core.config import build, component, config
from multivae_core.distributions import Normal
from multivae_core.persistence import read_tensors, write_tensors
from multivae_core.posteriors import FactorisedPosterior
from multivae_core.priors import kl_to_prior
from multivae_core.saving import load_model, save_model


@config
class TinyConfig(mv.ModelConfig):
    fusion: Any = component("fusions", default="product")


class Tiny(mv.MultimodalVAE):
    """A product of experts, with all that makes loading hard."""

    def __init__(self, config: TinyConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        count = len(self.modalities)
        self.fusion = build("fusions", config.fusion, count, config.latent_dim)
        self.register_buffer("lost", torch.arange(3.0) / 7.0, persistent=False)
        self.register_buffer("kept", torch.full((2,), 0.1))
        self.fixed = nn.Parameter(torch.full((2,), 0.3), requires_grad=False)
        self.tied = self.encoders[self.modalities[0]].head
        self.plain = torch.linspace(0.0, 1.0, 3)

    def posterior(self, batch: mv.Batch) -> FactorisedPosterior:
        encoded = self.run_encoders(batch)["shared"]
        experts = Normal(encoded[:, :, 0] + self.lost.sum() * self.plain.sum(), encoded[:, :, 1])
        return FactorisedPosterior({"shared": self.fusion(experts, batch.present)})

    def loss(self, batch: mv.Batch, step: mv.Step) -> mv.LossOutput:
        q = self.posterior(batch).parts["shared"]
        z, _ = q.draw(1, step.noise, "shared")
        log_px = self.reconstruction({"shared": z}, batch, step)[0]
        return mv.LossOutput(
            terms={"elbo": mv.Term(kl_to_prior(q, self.shared_prior, z) - log_px)}
        )


class Flat(nn.Module):
    """A network of a user's own, with running statistics."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(1))


def register() -> None:
    mv.register_model(name="tiny_saving", config=TinyConfig)(Tiny)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register()
    yield
    mv.registry.unregister("local/tiny_saving")


def data() -> mv.IncompleteDataset:
    generator = np.random.default_rng(0)
    table, image = generator.normal(size=(12, 3)), generator.normal(size=(12, 1, 6, 6))
    table[2, 1] = image[4:6] = np.nan
    return mv.IncompleteDataset({"table": table, "image": image.astype(np.float32)})


def create(**options: Any) -> Any:
    small = {"encoder": {"type": "conv", "channels": [4], "hidden": [8]}}
    return mv.create_model(
        "tiny_saving", data(), **{"latent_dim": 3, "modalities": {"image": small}, **options}
    )


def outputs(model: Any) -> dict[str, Tensor]:
    """Everything that a user may ask for."""
    rows = data()
    estimate = model.log_likelihood(rows, n_samples=5)
    return {
        "embedding": model.embed(rows),
        "log_likelihood": estimate.value,
        **{f"imputed {n}": x for n, x in model.impute(rows, n_samples=5).filled.items()},
        **{f"generated {n}": x for n, x in model.generate(4, output="sample").items()},
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name])
        for name, value in one.items()
    )


# ---------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_loaded_model_is_the_same_to_the_last_bit(tmp_path: Path, dtype: str) -> None:
    model = create(dtype=dtype)
    model.save(tmp_path / "m")
    again = mv.load_model(tmp_path / "m")
    assert again.config == model.config
    assert str(again.dtype) == f"torch.{dtype}"
    assert same(model.state_dict(), again.state_dict())
    assert same(outputs(model), outputs(again))
    assert not again.training


def test_the_same_outputs_in_a_new_process(tmp_path: Path) -> None:
    model = create(dtype="float64", latent_dim=2, beta_schedule=100)
    model.save(tmp_path / "m")
    write_tensors(tmp_path / "here", outputs(model))
    code = (
        "import sys; tests, folder, out = sys.argv[1:]\n"
        "import importlib.util as u; spec = u.spec_from_file_location('tiny', tests)\n"
        "m = sys.modules['tiny'] = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(m); m.register()\n"
        "m.write_tensors(out, m.outputs(m.mv.load_model(folder)))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", code, __file__, str(tmp_path / "m"), str(tmp_path / "there")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert same(read_tensors(tmp_path / "here"), read_tensors(tmp_path / "there"))


def test_what_is_not_in_the_file_is_right_after_loading(tmp_path: Path) -> None:
    model = create(dtype="float64")
    model.save(tmp_path / "m")
    assert "lost" not in read_tensors(tmp_path / "m" / "model.safetensors")
    again = mv.load_model(tmp_path / "m")
    assert torch.equal(again.lost, model.lost)
    assert torch.equal(again.plain, model.plain)
    assert again.lost.dtype == torch.float64


def test_mixtures_of_sampled_subsets_come_back(tmp_path: Path) -> None:
    # their buffer is not stored and is drawn by a generator of its own
    fusion = {"type": "mixture_of_products", "max_subsets": 3}
    rows = np.random.default_rng(0).normal(size=(12, 2))
    many = mv.IncompleteDataset(dict.fromkeys("abcde", rows))
    model = mv.create_model("tiny_saving", many, latent_dim=3, fusion=fusion)
    model.save(tmp_path / "m")
    again = mv.load_model(tmp_path / "m")
    assert torch.equal(again.fusion.subsets, model.fusion.subsets)
    assert torch.equal(again.embed(many), model.embed(many))


def test_tied_and_frozen_parameters_stay_so(tmp_path: Path) -> None:
    model = create()
    model.save(tmp_path / "m")
    stored = read_tensors(tmp_path / "m" / "model.safetensors")
    assert len(stored) == len({id(v) for v in model.state_dict(keep_vars=True).values()})
    again = mv.load_model(tmp_path / "m")
    assert again.tied.weight is again.encoders[again.modalities[0]].head.weight
    assert not again.fixed.requires_grad
    assert again.tied.weight.requires_grad
    learn = {n: p.requires_grad for n, p in model.named_parameters()}
    assert {n: p.requires_grad for n, p in again.named_parameters()} == learn


def test_loading_leaves_torch_as_it_was(tmp_path: Path) -> None:
    create(dtype="float64").save(tmp_path / "m")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    mv.load_model(tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32
    assert not nn.Linear(2, 2).weight.is_meta


def test_a_loaded_model_can_be_trained_and_saved_over_itself(tmp_path: Path) -> None:
    create().save(tmp_path / "m")
    again = mv.load_model(tmp_path / "m").train()
    again.encoders["table"].head.weight.data.add_(1.0)
    again.save(tmp_path / "m")
    assert same(again.state_dict(), mv.load_model(tmp_path / "m").state_dict())


def test_a_failed_save_leaves_the_old_model(tmp_path: Path, monkeypatch: Any) -> None:
    model = create()
    model.save(tmp_path / "m")
    before = model.state_dict()["tied.weight"].clone()

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    model.tied.weight.data.add_(1.0)
    monkeypatch.setattr("multivae_core.saving.model_card", full)
    with pytest.raises(OSError, match="no space"):
        model.save(tmp_path / "m")
    assert torch.equal(mv.load_model(tmp_path / "m").tied.weight, before)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_own_networks_are_passed_again(tmp_path: Path) -> None:
    own = {"encoders": {"image": Flat(36, 5)}, "decoders": {"image": nn.Linear(3, 36)}}
    model = create(modalities={}, **own)
    model.train()
    model.encoders["image"](torch.randn(9, 1, 6, 6))  # moves the running statistics
    model.save(tmp_path / "m")
    fresh = {"encoders": {"image": Flat(36, 5)}, "decoders": {"image": nn.Linear(3, 36)}}
    again = load_model(tmp_path / "m", **fresh)
    assert any(module is fresh["encoders"]["image"] for module in again.modules())
    assert same(model.state_dict(), again.state_dict())
    assert same(outputs(model), outputs(again))


def test_registered_networks_come_back_by_themselves(tmp_path: Path) -> None:
    @config
    class FlatConfig:
        size: int = 5

    class FlatEncoder(Flat):
        def __init__(self, config: FlatConfig, shape: tuple[int, ...], with_mask: bool) -> None:
            super().__init__(int(np.prod(shape)), config.size)
            self.out_features = config.size

        def forward(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
            return super().forward(x)

    mv.register("encoders", name="flat", config=FlatConfig)(FlatEncoder)
    try:
        model = create(modalities={"image": {"encoder": {"type": "flat", "size": 7}}})
        model.save(tmp_path / "m")
        again = mv.load_model(tmp_path / "m")
        assert again.config.modalities["image"].encoder == FlatConfig(size=7)
        assert same(outputs(model), outputs(again))
    finally:
        mv.registry.unregister("local/flat")


def test_constructors_that_compute_with_their_weights() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(2, 2)
            self.size = float(self.map.weight.detach().norm())

    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(2, 2)
            self.register_buffer("copy", self.map.weight.detach().clone(), persistent=False)

    assert without_memory(torch.float32, nn.Linear, 2, 2).weight.is_meta
    assert without_memory(torch.float32, Norm).size > 0
    assert not without_memory(torch.float32, Teacher).copy.is_meta
    with pytest.raises(RuntimeError, match="of its own"):
        without_memory(torch.float32, self_destruct)


def self_destruct() -> nn.Module:
    raise RuntimeError("an error of its own")


# ---------------------------------------------------------------------------- the folder


def test_what_a_folder_holds(tmp_path: Path) -> None:
    model = create()
    assert save_model(model, tmp_path / "m", summary={"metrics": {"nll": np.float32(1.5)}}) == (
        tmp_path / "m"
    )
    files = sorted(path.name for path in (tmp_path / "m").iterdir())
    assert files == ["README.md", "config.json", "model.safetensors"]
    record = json.loads((tmp_path / "m" / "config.json").read_text())
    assert record["format"] == 1
    assert record["model"] == "local/tiny_saving"
    assert record["dtype"] == "float32"
    assert record["custom"] == {"encoders": [], "decoders": []}
    assert record["config"]["latent_dim"] == 3
    assert record["config"]["fusion"] == {
        "type": "multivae-core/product",
        "prior_expert": False,
    }
    assert record["versions"]["multivae-core"] == mv.__version__
    assert record["notes"]["metrics"] == {"nll": 1.5}
    assert record["notes"]["data"]["rows"] == 12


def test_notes_travel_with_the_model(tmp_path: Path) -> None:
    model = create()
    model.notes["metrics"] = {"nll": float("nan"), "probe": [0.5, 0.75]}
    model.save(tmp_path / "m", summary={"purpose": "a test"})
    again = mv.load_model(tmp_path / "m")
    assert again.notes["purpose"] == "a test"
    assert again.notes["metrics"]["probe"] == [0.5, 0.75]
    assert again.notes["data"] == json.loads(json.dumps(model.notes["data"]))
    again.save(tmp_path / "n")
    assert mv.load_model(tmp_path / "n").notes.keys() == again.notes.keys()


def test_the_card_tells_what_a_reader_needs(tmp_path: Path) -> None:
    own = {"encoders": {"image": Flat(36, 5)}}
    model = create(modalities={}, beta=0.25, **own)
    model.save(tmp_path / "m", summary={"metrics": {"a|b": 1 / 3}, "purpose": "Testing."})
    card = (tmp_path / "m" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: multivae\nlicense: unknown\ntags:")
    for part in (
        "# tiny_saving",
        "A product of experts, with all that makes loading hard.",
        "mv.load_model(\"<this folder, or hub:user/repo>\", encoders={'image': network})",
        "| `image` | 1 x 6 x 6 | normal(scale=learned",
        "| own network |",
        "12 rows; labels: none.",
        "| `table` | float64 | 0.0% | 2.8% |",
        "| `image` | float32 | 16.7% | 0.0% |",
        "| `beta` | 0.25 |",
        "| a\\|b | 0.333333 |",
        "## Purpose\n\nTesting.",
        f"| multivae-core | {mv.__version__} |",
        "## Licence\n\nNot chosen yet.",
    ):
        assert part in card, part


@pytest.mark.parametrize("notes", [{"data": 3}, {"data": {"rows": 1}}, {"metrics": "good"}, {}])
def test_any_notes_make_a_card(tmp_path: Path, notes: dict[str, Any]) -> None:
    model = create()
    model.notes = notes
    model.save(tmp_path / "m")
    assert mv.load_model(tmp_path / "m").notes == notes


def test_the_file_is_no_larger_than_its_weights(tmp_path: Path) -> None:
    big = {"encoder": {"type": "mlp", "hidden": [500, 500]}}
    model = create(modalities={"table": big})
    model.save(tmp_path / "m")
    size = sum(v.nbytes for v in {id(v): v for v in model.parameters()}.values())
    assert (tmp_path / "m" / "model.safetensors").stat().st_size <= 1.01 * size
