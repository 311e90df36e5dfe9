"""Bad models: every refusal of options and data names the thing, the rule, the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from torch import nn

import multivae_core as mv
from multivae_core.distributions import Normal
from multivae_core.fusion import ProductConfig, ProductFusion
from multivae_core.posteriors import FactorisedPosterior

N = 6


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


class Bare(Tiny):
    """Registered without a configuration."""


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    mv.register_model(name="tiny_bad", config=mv.ModelConfig)(Tiny)
    mv.register_model(name="bare_bad")(Bare)
    yield
    for name in ("tiny_bad", "bare_bad"):
        if name in mv.registry.models:
            mv.registry.unregister(f"local/{name}")


def x(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


def data(**values: Any) -> mv.IncompleteDataset:
    return mv.IncompleteDataset(values or {"table": x(N, 3), "flags": x(N, 4) > 0})


def create(**options: Any) -> Any:
    return mv.create_model("tiny_bad", data(), **{"latent_dim": 2, **options})


def on(name: str, **options: Any) -> dict[str, Any]:
    """Options of one modality."""
    return {"modalities": {name: options}}


def made_of(likelihood: str | None = None, **values: Any) -> Any:
    own = {"modalities": {name: {"likelihood": likelihood} for name in values}}
    return mv.create_model("tiny_bad", data(**values), **(own if likelihood else {}))


hole = np.where(np.eye(N, 3) > 0, np.nan, x(N, 3))
nowhere = np.full((N, 2), np.nan)
late = np.ones((N, 3), int)
late[4, 1] = -2

OPTIONS: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    (
        "unknown model",
        lambda: mv.create_model("tiny_bat", data()),
        mv.UnknownComponentError,
        "no installed plugin offers the model 'tiny_bat'. Did you mean 'tiny_bad'",
    ),
    (
        "model without options",
        lambda: mv.create_model("bare_bad", data()),
        mv.ConfigError,
        "model 'local/bare_bad' is registered without a configuration class, so that"
        " nothing is known"
        " about its options; register it with config=",
    ),
    (
        "unknown option",
        lambda: create(latent_dims=3),
        mv.ConfigError,
        "latent_dims: unknown option; there is modalities, latent_dim, beta, beta_schedule, prior",
    ),
    (
        "option too small",
        lambda: create(latent_dim=0),
        mv.ConfigError,
        "latent_dim: must be > 0, got 0",
    ),
    (
        "option of another type",
        lambda: create(latent_dim=2.5),
        mv.ConfigError,
        "latent_dim: must be an integer, got 2.5",
    ),
    (
        "truth for a number",
        lambda: create(latent_dim=True),
        mv.ConfigError,
        "latent_dim: must be an integer, got True",
    ),
    (
        "not a number",
        lambda: create(beta=float("nan")),
        mv.ConfigError,
        "beta: must be a number, got nan",
    ),
    (
        "unknown component",
        lambda: create(prior="nosuch"),
        mv.ConfigError,
        "prior: no installed plugin offers the prior 'nosuch'",
    ),
    (
        "no component",
        lambda: create(prior=None),
        mv.ConfigError,
        "prior: expected a name of priors, a mapping with the key 'type', or a configuration; got",
    ),
    (
        "component without a name",
        lambda: create(prior={"scale": 2}),
        mv.ConfigError,
        "prior: expected a name of priors, a mapping with the key 'type'",
    ),
    (
        "seed",
        lambda: create(seed=-1),
        mv.ConfigError,
        "seed: must be a whole number from 0 to 2**63 - 1, got -1",
    ),
    (
        "type",
        lambda: create(dtype="float16"),
        mv.ConfigError,
        "dtype: must be 'float32' or 'float64', got 'float16'; for speed use the trainer's mixed",
    ),
    (
        "unknown modality",
        lambda: create(**on("tabel", weight=2.0)),
        mv.ConfigError,
        "modalities.tabel: the data have no modality 'tabel', they have table, flags; did you mean"
        " 'table'?",
    ),
    (
        "modalities as a list",
        lambda: create(modalities=["table"]),
        mv.ConfigError,
        "modalities: must map a modality to its options, such as {'table':"
        " {'likelihood': 'normal'}}",
    ),
    (
        "modality as a text",
        lambda: create(modalities={"table": "normal"}),
        mv.ConfigError,
        "modalities.table: must be a mapping such as {'likelihood': 'normal'}, got 'normal'",
    ),
    (
        "unknown option of a modality",
        lambda: create(**on("table", likelyhood="normal")),
        mv.ConfigError,
        "modalities.table.likelyhood: unknown option; there is likelihood, encoder, decoder,",
    ),
    (
        "shape",
        lambda: create(**on("table", shape=(3,))),
        mv.ConfigError,
        "modalities.table.shape: is taken from the data; there is likelihood, encoder",
    ),
    (
        "unknown likelihood",
        lambda: create(**on("table", likelihood="gauss")),
        mv.ConfigError,
        "modalities.table.likelihood: no installed plugin offers the likelihood 'gauss'",
    ),
    (
        "option of a likelihood",
        lambda: create(**on("table", likelihood={"type": "normal", "scale": -1.0})),
        mv.ConfigError,
        "modalities.table.likelihood.scale: must be > 0, got -1.0",
    ),
    (
        "unknown option of a network",
        lambda: create(**on("table", encoder={"type": "mlp", "hiden": [3]})),
        mv.ConfigError,
        "modalities.table.encoder.hiden: unknown option; there is hidden, activation",
    ),
    (
        "network for other shapes",
        lambda: create(**on("table", decoder="conv")),
        mv.ConfigError,
        "modalities.table.decoder: network 'conv' needs (C, H, W) or (C, D, H, W)",
    ),
    (
        "weight",
        lambda: create(**on("table", weight=-1)),
        mv.ConfigError,
        "modalities.table.weight: must be >= 0, got -1",
    ),
    (
        "truth as a text",
        lambda: create(**on("table", standardise="yes")),
        mv.ConfigError,
        "modalities.table.standardise: must be true or false, got 'yes'",
    ),
    (
        "scale of flags",
        lambda: create(**on("flags", standardise=True)),
        mv.ConfigError,
        "modalities.flags.standardise: must be false for the likelihood 'bernoulli',"
        " whose values have"
        " no scale that could be changed; leave it out, or choose a real-valued likelihood",
    ),
    (
        "network for an unknown modality",
        lambda: create(encoders={"x": nn.Linear(3, 3)}),
        mv.ConfigError,
        "encoders.x: the data have no modality 'x', they have table, flags",
    ),
    (
        "class of a network",
        lambda: create(encoders={"table": nn.Linear}),
        mv.ConfigError,
        "encoders.table: must be a torch.nn.Module (an object, not its class)",
    ),
    (
        "name of a network",
        lambda: create(decoders={"table": "mlp"}),
        mv.ConfigError,
        "networks by name go into modalities={'table': {'decoder': 'mlp'}}",
    ),
    (
        "network given twice",
        lambda: create(encoders={"table": nn.Linear(3, 3)}, **on("table", encoder="mlp")),
        mv.ConfigError,
        "encoders.table: given twice: here and as modalities.table.encoder; leave one of them out",
    ),
    (
        "encoder for another size",
        lambda: create(encoders={"table": nn.Linear(4, 3)}),
        mv.ConfigError,
        "the network given as encoder of 'table' fails on a batch of shape (2, 3)",
    ),
    (
        "encoder that is not flat",
        lambda: create(encoders={"table": nn.Unflatten(1, (3, 1))}),
        mv.ConfigError,
        "(rows, features); for 2 rows it gave (2, 3, 1): flatten its output",
    ),
    (
        "decoder for another size",
        lambda: create(decoders={"table": nn.Linear(5, 3)}),
        mv.ConfigError,
        "the network given as decoder of 'table' fails on latents of shape (2, 2)",
    ),
    (
        "decoder of another size",
        lambda: create(decoders={"table": nn.Linear(2, 5)}),
        mv.ConfigError,
        "gave (2, 5) for 2 rows of latents; it must map (rows, 2) to (rows, 3)",
    ),
]

DATA: list[tuple[str, Callable[[], object], str]] = [
    (
        "a mapping of arrays",
        lambda: mv.create_model("tiny_bad", {"table": x(N, 3)}),  # type: ignore[arg-type]
        "create_model needs an IncompleteDataset, got a dict; build one: mv.IncompleteDataset(",
    ),
    (
        "missing everywhere",
        lambda: made_of(table=x(N, 3), audio=nowhere),
        "modality 'audio' is missing in all of the 6 rows, so that nothing can be"
        " learned about it;"
        " leave it out of the data set, or train on rows that have it",
    ),
    (
        "integers",
        lambda: made_of(genes=np.ones((N, 3), int)),
        "modality 'genes' holds integers (int64), which may be counts, categories or measurements:"
        " say which. Counts: modalities={'genes': {'likelihood': 'poisson'}}",
    ),
    (
        "integers as measurements",
        lambda: made_of("normal", genes=np.ones((N, 3), int)),
        "modality 'genes': likelihood 'normal' is for real numbers, the data are int64;"
        " call .float()",
    ),
    (
        "flags as measurements",
        lambda: made_of("normal", flags=np.ones((N, 3), bool)),
        "likelihood 'normal' is for real numbers, the data are bool; choose"
        " likelihood='bernoulli'",
    ),
    (
        "measurements as counts",
        lambda: made_of("poisson", table=np.full((N, 3), 0.5)),
        "modality 'table', row 0: likelihood 'poisson' is for counts (0, 1, 2, ...), got"
        " 0.5; give",
    ),
    (
        "negative counts",
        lambda: made_of("negative_binomial", genes=late),
        "modality 'genes', row 4: likelihood 'negative_binomial' is for counts (0, 1, 2,"
        " ...), got -2",
    ),
    (
        "bytes as flags",
        lambda: made_of("bernoulli", image=np.full((N, 2, 2), 255)),
        "row 0: likelihood 'bernoulli' is for values between 0 and 1, got 255; divide by"
        " the largest",
    ),
    (
        "codes as categories",
        lambda: made_of("categorical", cell=np.full((N, 3), 2)),
        "likelihood 'categorical' needs one-hot values (a single 1) along the last axis",
    ),
    (
        "one class",
        lambda: made_of("categorical", cell=np.ones((N, 1))),
        "modalities.cell.likelihood: likelihood 'categorical' needs at least 2 classes",
    ),
    (
        "values that float32 cannot hold",
        lambda: made_of(table=x(N, 3) * 1e39),
        "which float32 cannot hold; change their unit, or create the model with dtype='float64'",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "message"), [row[1:] for row in OPTIONS], ids=[row[0] for row in OPTIONS]
)
def test_options(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as info:
        call()
    assert message in str(info.value)


@pytest.mark.parametrize(
    ("call", "message"), [row[1:] for row in DATA], ids=[row[0] for row in DATA]
)
def test_data(call: Callable[[], object], message: str) -> None:
    with pytest.raises((mv.DataError, mv.ConfigError)) as info:
        call()
    assert message in str(info.value)


def test_rows_are_numbered_as_in_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multivae_core.create._CHUNK", 6)  # two rows of 3 at a time
    with pytest.raises(mv.DataError, match="modality 'genes', row 4"):
        made_of("poisson", genes=late)


def test_holes_are_not_judged() -> None:
    counts = np.where(np.isnan(hole), np.nan, 2.0)
    assert made_of("poisson", genes=counts).modalities == ("genes",)


def test_refusals_come_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: object, **__: object) -> None:
        raise AssertionError("built although the data do not fit")

    monkeypatch.setattr(Tiny, "__init__", unwanted)
    with pytest.raises(mv.DataError, match="row 4"):
        made_of("poisson", genes=late)
