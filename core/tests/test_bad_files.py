"""Bad model folders: every refusal names the thing, the rule, the remedy, and runs nothing."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import multivae_core as mv
from multivae_core.distributions import Normal
from multivae_core.fusion import ProductConfig, ProductFusion
from multivae_core.persistence import read_tensors, write_tensors
from multivae_core.posteriors import FactorisedPosterior


class Tiny(mv.MultimodalVAE):
    """A product of experts without a loss."""

    def __init__(self, config: mv.ModelConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        self.fusion = ProductFusion(ProductConfig(), len(self.modalities), config.latent_dim)

    def posterior(self, batch: mv.Batch) -> FactorisedPosterior:
        encoded = self.run_encoders(batch)["shared"]
        experts = Normal(encoded[:, :, 0], encoded[:, :, 1])
        return FactorisedPosterior({"shared": self.fusion(experts, batch.present)})

    def loss(self, batch: mv.Batch, step: mv.Step) -> mv.LossOutput:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    mv.register_model(name="tiny_file", config=mv.ModelConfig)(Tiny)
    yield
    if "tiny_file" in mv.registry.models:
        mv.registry.unregister("local/tiny_file")


def create(**options: Any) -> Any:
    generator = np.random.default_rng(0)
    values = {"table": generator.normal(size=(6, 3)), "flags": generator.random((6, 4)) < 0.5}
    return mv.create_model("tiny_file", mv.IncompleteDataset(values), latent_dim=2, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create().save(tmp_path / "m")
    return tmp_path / "m"


def edit(folder: Path, *path: str, to: Any) -> None:
    """Change one entry of config.json; None deletes it."""
    record = json.loads((folder / "config.json").read_text())
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    if to is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    (folder / "config.json").write_text(json.dumps(record))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = read_tensors(folder / "model.safetensors")
    change(weights)
    write_tensors(folder / "model.safetensors", weights)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def first(weights: dict[str, torch.Tensor]) -> str:
    return "decoders.each.0.network." + min(
        name.removeprefix("decoders.each.0.network.")
        for name in weights
        if name.startswith("decoders.each.0.network.")
    )


FILES: list[tuple[str, Callable[[Path], object], str]] = [
    ("no folder", shutil.rmtree, "there is no folder"),
    (
        "no configuration",
        lambda f: (f / "config.json").unlink(),
        "has no file config.json: the folder is incomplete; copy it again, or give the"
        " folder that",
    ),
    (
        "no weights",
        lambda f: (f / "model.safetensors").unlink(),
        "has no file model.safetensors: the folder is incomplete",
    ),
    ("truncated configuration", lambda f: truncate(f / "config.json"), "is not valid JSON"),
    (
        "configuration of another kind",
        lambda f: (f / "config.json").write_text("[]"),
        "must hold a JSON object, it holds a list",
    ),
    (
        "another library's configuration",
        lambda f: (f / "config.json").write_text('{"architectures": ["Bert"]}'),
        "format: must be a whole number, got None; the file is incomplete or was edited, or is"
        " not the config.json of a model folder: copy it again",
    ),
    (
        "newer format",
        lambda f: edit(f, "format", to=2),
        "format: 2 is newer than 1, the newest that multivae-core",
    ),
    (
        "missing key",
        lambda f: edit(f, "dtype", to=None),
        "config.json: dtype: must be a text, got None; the file is incomplete or was edited",
    ),
    (
        "unknown key",
        lambda f: edit(f, "code", to="import os"),
        "config.json: code: unknown key; there is format, model, dtype, config",
    ),
    (
        "unknown option",
        lambda f: edit(f, "config", "latent_size", to=3),
        "config.json: config.latent_size: unknown option; there is modalities, latent_dim",
    ),
    (
        "unknown option further in",
        lambda f: edit(f, "config", "modalities", "table", "likelihood", "sigma", to=3),
        "config.json: config.modalities.table.likelihood.sigma: unknown option; there is scale",
    ),
    (
        "value that is not allowed",
        lambda f: edit(f, "config", "latent_dim", to=-2),
        "config.json: config.latent_dim: must be > 0, got -2; the file was edited, or written by"
        " another version (multivae-core",
    ),
    (
        "shape without an axis",
        lambda f: edit(f, "config", "modalities", "table", "shape", to=[]),
        "config.modalities.table.shape: must be one or more lengths above 0, got ()",
    ),
    (
        "type",
        lambda f: edit(f, "dtype", to="int8"),
        "dtype: must be float32 or float64, got 'int8'",
    ),
    (
        "import path in place of a name",
        lambda f: edit(f, "config", "modalities", "table", "encoder", to={"type": "os:system"}),
        "config.modalities.table.encoder: no installed plugin offers the encoder 'os:system'",
    ),
    ("model too large", lambda f: edit(f, "config", "latent_dim", to=10**15), "config.json: "),
    (
        "other size",
        lambda f: edit(f, "config", "latent_dim", to=3),
        "is float32 of shape (4, 256), the model needs float32 of shape (6, 256); the"
        " weights belong"
        " to another configuration or another version: copy the whole folder again",
    ),
    (
        "wrong shape",
        lambda f: change_weights(f, lambda w: w.update({first(w): torch.zeros(9)})),
        "is float32 of shape (9,), the model needs float32 of shape",
    ),
    (
        "wrong type",
        lambda f: change_weights(f, lambda w: w.update({first(w): w[first(w)].double()})),
        "is float64 of shape",
    ),
    (
        "missing tensor",
        lambda f: change_weights(f, lambda w: w.pop(first(w))),
        "which the model needs; the weights belong to another configuration",
    ),
    (
        "extra tensor",
        lambda f: change_weights(f, lambda w: w.update(spy=torch.zeros(1))),
        "the model has no tensor 'spy'; the weights belong to another configuration",
    ),
    ("truncated weights", lambda f: truncate(f / "model.safetensors"), "is truncated or damaged"),
    (
        "empty weights",
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "model.safetensors (0 bytes) is truncated or damaged",
    ),
    (
        "text in place of weights",
        lambda f: (f / "model.safetensors").write_text("hello " * 9),
        "is truncated or damaged",
    ),
    (
        "pickle in place of weights",
        lambda f: (f / "model.safetensors").write_bytes(pickle.dumps({"a": 1})),
        "is a pickle or a torch archive, not safetensors: loading it could run any code,"
        " so nothing"
        " was read; ask its author for a folder that `save` wrote",
    ),
    (
        "torch archive in place of weights",
        lambda f: torch.save({"a": torch.zeros(1)}, f / "model.safetensors"),
        "is a pickle or a torch archive",
    ),
    (
        "networks of somebody's own",
        lambda f: edit(f, "custom", "encoders", to=["table"]),
        "the encoder of modality 'table' is a network of its author's own, which the folder does"
        " not describe; build it and pass it again: load_model(..., encoders={'table': network})",
    ),
    (
        "damaged list of networks",
        lambda f: edit(f, "custom", "encoders", to=3),
        "custom.encoders: must be a list of modalities, got 3",
    ),
]


@pytest.mark.parametrize(
    ("damage", "message"), [row[1:] for row in FILES], ids=[row[0] for row in FILES]
)
def test_files(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(mv.FileFormatError) as info:
        mv.load_model(folder)
    assert message in str(info.value)
    assert str(folder) in str(info.value)


def test_damaged_own_networks_keep_their_weights(tmp_path: Path) -> None:
    create(encoders={"table": nn.Linear(3, 5)}).save(tmp_path / "m")
    truncate(tmp_path / "m" / "model.safetensors")
    own = nn.Linear(3, 5)
    before = own.weight.detach().clone()
    with pytest.raises(mv.FileFormatError, match="truncated"):
        mv.load_model(tmp_path / "m", encoders={"table": own})
    assert torch.equal(own.weight, before)
    assert not own.weight.is_meta


def test_networks_that_do_not_belong(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(
        mv.FileFormatError, match="an own encoder was passed for 'table', but"
    ) as e:
        mv.load_model(folder, encoders={"table": nn.Linear(3, 5)})
    assert "own networks are those of no modality; leave it out" in str(e.value)
    create(encoders={"table": nn.Linear(3, 5)}).save(tmp_path / "own")
    with pytest.raises(
        mv.FileFormatError, match=r"must be a torch.nn.Module, got 'mlp'; pass the"
    ):
        mv.load_model(tmp_path / "own", encoders={"table": "mlp"})  # type: ignore[dict-item]
    with pytest.raises(mv.FileFormatError, match=r"is float32 of shape \(5, 3\), the model needs"):
        mv.load_model(tmp_path / "own", encoders={"table": nn.Linear(3, 4)})


def test_models_that_are_not_installed(folder: Path) -> None:
    edit(folder, "model", to="multivae-nowhere/mopoe")
    with pytest.raises(mv.RegistryError, match="Install the distribution 'multivae-nowhere'"):
        mv.load_model(folder)
    edit(folder, "model", to="local/tiny_file")
    mv.registry.unregister("local/tiny_file")
    with pytest.raises(mv.RegistryError) as info:
        mv.load_model(folder)
    assert (
        "'local/tiny_file' was registered inside another process, as in a notebook: run the code"
        " with @mv.register_model(name='tiny_file') here first" in str(info.value)
    )


def test_a_revision_of_a_folder(folder: Path) -> None:
    with pytest.raises(
        mv.FileFormatError, match="revision='v1' belongs to a repository of the hub"
    ):
        mv.load_model(folder, revision="v1")


def test_classes_that_nobody_could_load(tmp_path: Path) -> None:
    class Unknown(Tiny):
        """Not registered."""

    model = Unknown(create().config)
    with pytest.raises(mv.RegistryError, match="Unknown is not a registered model, so that no"):
        model.save(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_what_a_folder_cannot_hold(tmp_path: Path) -> None:
    class Moody(nn.Linear):
        def get_extra_state(self) -> str:
            return "grumpy"

        def set_extra_state(self, state: str) -> None:
            """Forget it."""

    with pytest.raises(
        mv.FileFormatError, match="keeps extra state of type str, but a model folde"
    ):
        create(encoders={"table": Moody(3, 5)}).save(tmp_path / "m")
    with pytest.raises(mv.FileFormatError, match="the model is in float16, which is not stored;"):
        create().half().save(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_other_people_s_folders_are_safe(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    with pytest.raises(
        mv.FileFormatError, match=r"has other contents than a model \(chapter.tex\)"
    ):
        create().save(tmp_path / "thesis")
    (folder / "figure.png").write_text("precious")
    with pytest.raises(
        mv.FileFormatError, match=r"\(figure.png\): choose another folder, or delet"
    ):
        create().save(folder)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "README.md").write_text("precious")
    with pytest.raises(mv.FileFormatError, match="because it is not a model folder"):
        create().save(tmp_path / "site")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(mv.FileFormatError, match="is a file and is not overwritten"):
        create().save(tmp_path / "file")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "precious"
    assert (folder / "figure.png").exists()
    assert (tmp_path / "site" / "README.md").read_text() == "precious"
