"""`create_model`: defaults out of the data, own networks, seeds, types; and `load_dataset`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import multivae_core as mv
from multivae_core.config import build, component, config
from multivae_core.distributions import Normal
from multivae_core.likelihoods import NormalConfig, PoissonConfig
from multivae_core.networks import Conv1dConfig, ConvConfig, MLPConfig
from multivae_core.posteriors import FactorisedPosterior
from multivae_core.priors import kl_to_prior


@config
class TinyConfig(mv.ModelConfig):
    fusion: Any = component("fusions", default="product")


class Tiny(mv.MultimodalVAE):
    """A product of experts and its ELBO."""

    def __init__(self, config: TinyConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        self.fusion = build("fusions", config.fusion, len(self.modalities), config.latent_dim)

    def posterior(self, batch: mv.Batch) -> FactorisedPosterior:
        encoded = self.run_encoders(batch)["shared"]
        experts = Normal(encoded[:, :, 0], encoded[:, :, 1])
        return FactorisedPosterior({"shared": self.fusion(experts, batch.present)})

    def loss(self, batch: mv.Batch, step: mv.Step) -> mv.LossOutput:
        q = self.posterior(batch).parts["shared"]
        z, _ = q.draw(1, step.noise, "shared")
        log_px = self.reconstruction({"shared": z}, batch, step)[0]
        return mv.LossOutput(
            terms={"elbo": mv.Term(kl_to_prior(q, self.shared_prior, z) - log_px)}
        )


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    mv.register_model(name="tiny_create", config=TinyConfig)(Tiny)
    yield
    mv.registry.unregister("local/tiny_create")


def create(data: mv.IncompleteDataset, **options: Any) -> Any:
    return mv.create_model("tiny_create", data, **{"latent_dim": 3, **options})


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def mixed() -> mv.IncompleteDataset:
    """Every default in one data set."""
    table = rows(12, 4)
    table[3, 1] = np.nan
    image = rows(12, 2, 8, 8).astype(np.float32)
    image[5:7] = np.nan
    return mv.IncompleteDataset(
        {
            "table": table,
            "image": image,
            "sequence": rows(12, 2, 16),
            "flags": rows(12, 5) > 0,
            "counts": np.random.default_rng(1).poisson(3.0, size=(12, 4)),
            "volume": rows(12, 1, 4, 4, 4),
        }
    )


def mixed_model(**options: Any) -> Any:
    return create(mixed(), modalities={"counts": {"likelihood": "poisson"}}, **options)


def test_shapes_come_from_the_data() -> None:
    data = mixed()
    parts = mixed_model().config.modalities
    assert {name: own.shape for name, own in parts.items()} == data.shapes


def test_likelihoods_come_from_the_types() -> None:
    parts = mixed_model().config.modalities
    assert parts["table"].likelihood == NormalConfig(scale="learned")
    assert parts["image"].likelihood == NormalConfig(scale="learned")
    assert parts["counts"].likelihood == PoissonConfig()
    assert type(parts["flags"].likelihood).__name__ == "BernoulliConfig"


def test_networks_come_from_the_shapes() -> None:
    parts = mixed_model().config.modalities
    kinds = {name: type(own.encoder) for name, own in parts.items()}
    assert kinds == {
        "table": MLPConfig,
        "image": ConvConfig,
        "sequence": Conv1dConfig,
        "flags": MLPConfig,
        "counts": MLPConfig,
        "volume": ConvConfig,
    }
    assert {name: type(own.decoder) for name, own in parts.items()} == kinds


def test_classes_are_no_sequence() -> None:
    one_hot = np.eye(10)[np.arange(12) % 10][:, None].repeat(3, axis=1)  # (12, 3, 10)
    data = mv.IncompleteDataset({"words": one_hot})
    model = create(data, modalities={"words": {"likelihood": "categorical"}})
    assert isinstance(model.config.modalities["words"].encoder, MLPConfig)


def test_real_values_are_standardised_and_others_are_not() -> None:
    model = mixed_model()
    scaled = {name for name, own in model.config.modalities.items() if own.standardise}
    assert scaled == {"table", "image", "sequence", "volume"}
    for name in ("flags", "counts"):
        assert bool((model.transforms[name].scale == 1.0).all())
        assert bool((model.transforms[name].shift == 0.0).all())


def test_standardise_can_be_switched_off() -> None:
    data = mv.IncompleteDataset({"a": 5.0 + rows(12, 3)})
    model = create(data, modalities={"a": {"standardise": False}})
    assert bool((model.transforms["a"].shift == 0.0).all())
    assert_close(model.prepare(data.batch()).values["a"], data.batch().values["a"].float())


def test_the_scale_is_that_of_the_observed_training_entries() -> None:
    data = mixed()
    model = mixed_model(dtype="float64")
    batch = data.batch()
    own = batch.values["table"][:, 1][batch.observed["table"][:, 1]]
    assert_close(model.transforms["table"].shift[1], own.mean())
    assert_close(model.transforms["table"].scale[1], own.std(unbiased=False))
    images = batch.values["image"][batch.column("image")].double()
    assert_close(model.transforms["image"].shift.flatten(), images.mean(dim=(0, 2, 3)))


def test_encoders_are_told_about_holes_where_the_data_had_some() -> None:
    parts = mixed_model().config.modalities
    assert [name for name, own in parts.items() if own.element_mask] == ["table"]


def test_memory_mapped_data_give_the_same_model(tmp_path: Path) -> None:
    values = rows(500, 6)
    np.save(tmp_path / "a.npy", values)
    mapped = mv.IncompleteDataset.from_folder(tmp_path)
    one = create(mv.IncompleteDataset({"a": values})).state_dict()
    other = create(mapped).state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_options_reach_the_model() -> None:
    model = create(
        mixed().restrict({"table", "flags", "image", "sequence", "volume", "counts"}),
        modalities={"counts": {"likelihood": "poisson", "weight": 2.0}},
        latent_dim=7,
        beta=0.5,
        beta_schedule=100,
    )
    assert (model.config.latent_dim, model.config.beta) == (7, 0.5)
    assert model.config.beta_schedule.steps == 100
    assert model.config.modalities["counts"].weight == 2.0


def test_components_are_given_by_name_mapping_or_configuration() -> None:
    data = mv.IncompleteDataset({"a": rows(12, 3), "b": rows(12, 3), "c": rows(12, 3)})
    wide = MLPConfig(hidden=(5, 4))
    model = create(
        data,
        modalities={
            "a": {"encoder": "mlp", "likelihood": "laplace"},
            "b": {"encoder": {"type": "mlp", "hidden": [5, 4]}},
            "c": {"encoder": wide, "likelihood": NormalConfig(scale=0.5)},
        },
    )
    parts = model.config.modalities
    assert parts["b"].encoder == parts["c"].encoder == wide
    assert parts["c"].likelihood.scale == 0.5
    assert type(parts["a"].likelihood).__name__ == "LaplaceConfig"


class Flat(nn.Module):
    """A network of a user's own."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.map = nn.Linear(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x.flatten(1)).tanh()


def test_own_networks_become_parts_of_the_model() -> None:
    data = mv.IncompleteDataset({"a": rows(12, 2, 3), "b": rows(12, 4)})
    encoder, decoder = Flat(6, 5), nn.Sequential(nn.Linear(3, 6), nn.Unflatten(1, (2, 3)))
    model = create(data, encoders={"a": encoder}, decoders={"a": decoder})
    assert any(module is encoder for module in model.modules())
    assert any(module is decoder for module in model.modules())
    assert model.config.modalities["a"].encoder is None
    assert model.config.modalities["b"].encoder == MLPConfig()
    assert model.embed(data).shape == (12, 3)
    assert model.predict(data)["a"].shape == (12, 2, 3)


def test_own_networks_get_the_type_of_the_model() -> None:
    data = mv.IncompleteDataset({"a": rows(12, 6)})
    model = create(data, encoders={"a": Flat(6, 5)}, dtype="float64")
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model.embed(data).dtype == torch.float64


@pytest.mark.parametrize("dtype", ["float32", "float64", torch.float64])
def test_the_model_has_the_type_asked_for(dtype: Any) -> None:
    model = mixed_model(dtype=dtype)
    wanted = getattr(torch, str(dtype).removeprefix("torch."))
    floats = [v for v in model.state_dict().values() if v.is_floating_point()]
    assert {value.dtype for value in floats} == {wanted}
    assert model.embed(mixed()).dtype == wanted
    assert torch.get_default_dtype() == torch.float32


def test_float64_models_are_built_in_float64() -> None:
    weights = mixed_model(dtype="float64").state_dict()
    some = next(v for name, v in weights.items() if name.endswith("weight"))
    assert not torch.equal(some, some.float().double())


def test_the_seed_decides_the_weights_and_nothing_else() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = mixed_model(seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    same, other = mixed_model(seed=1).state_dict(), mixed_model(seed=2).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_the_order_of_the_modalities_changes_nothing() -> None:
    a, b = rows(12, 3, seed=1), rows(12, 4, seed=2)
    one = create(mv.IncompleteDataset({"a": a, "b": b})).state_dict()
    other = create(mv.IncompleteDataset({"b": b, "a": a})).state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_what_lies_under_holes_changes_nothing() -> None:
    values, observed = rows(20, 3), np.random.default_rng(3).random((20, 3)) < 0.7
    models = [
        create(
            mv.IncompleteDataset(
                {"a": np.where(observed, values, filler)},
                observed={"a": observed},
                allow_empty_rows=True,
            )
        ).state_dict()
        for filler in (np.nan, np.inf, 1e30)
    ]
    for name, value in models[0].items():
        assert torch.equal(value, models[1][name])
        assert torch.equal(value, models[2][name])


def test_a_full_mask_is_no_mask() -> None:
    values = rows(20, 3)
    full = np.ones((20, 3), bool)
    one = create(mv.IncompleteDataset({"a": values}))
    other = create(mv.IncompleteDataset({"a": values}, observed={"a": full}))
    assert one.config == other.config
    assert all(torch.equal(v, other.state_dict()[n]) for n, v in one.state_dict().items())


def test_the_model_notes_what_it_was_made_from() -> None:
    notes = mixed_model().notes["data"]
    assert notes["rows"] == 12
    assert [part["name"] for part in notes["modalities"]] == list(mixed().names)


def test_an_untrained_model_does_everything() -> None:
    data, model = mixed(), mixed_model()
    assert bool(torch.isfinite(model.log_likelihood(data, n_samples=5).value).all())
    filled = model.impute(data, n_samples=5).filled
    assert {name: tuple(value.shape[1:]) for name, value in filled.items()} == data.shapes


def test_data_sets_are_loaded_by_name() -> None:
    def small(n: int = 3, *, scale: float = 1.0) -> mv.IncompleteDataset:
        """A data set."""
        return mv.IncompleteDataset({"a": scale * rows(n, 2)})

    mv.register("datasets", name="small")(small)
    try:
        assert len(mv.load_dataset("small")) == 3
        assert len(mv.load_dataset("small", n=5)) == 5
        with pytest.raises(
            mv.ConfigError, match=r"datasets\.small\.rows: unknown option; there is n, scale"
        ):
            mv.load_dataset("small", rows=5)
        with pytest.raises(mv.UnknownComponentError, match="Did you mean 'small'"):
            mv.load_dataset("smal")
    finally:
        mv.registry.unregister("local/small")
