"""Models of small pictures that several reproductions compare, each trained once per process."""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from claim import Figure, Scale, above_zero, standard_error
from torch import nn

import multivae_core as mv

sys.path.append(str(Path(__file__).parents[1] / "race"))
import pictures  # noqa: E402  the race's

__all__ = [
    "MOPOE",
    "OURS",
    "PAPER",
    "Setting",
    "columns",
    "compared",
    "nats",
    "percent",
    "rows",
    "seeds",
    "trained",
]

BATCH, LEARNING_RATE = 125, 1e-3
SEEDS = (0, 1, 2)
LIKELIHOOD = {"type": "laplace", "scale": 0.75}

PAPER = (
    "PolyMNIST, 5 modalities of 3 x 28 x 28, 60,000 rows; convolutional or residual networks;"
    " Laplace likelihood of scale 0.75"
)
OURS = (
    f"polymnist of 5 modalities of 3 x 14 x 14, {pictures.TRAINING_ROWS:,} rows, each feature"
    f" standardised; two convolutions; Laplace likelihood of scale 0.75; Adam {LEARNING_RATE:g},"
    f" batches of {BATCH}; {len(SEEDS)} seeds, standard errors over them; coherence of 200 test"
    " rows, one sample each, over all subsets, by classifiers that are right on 86 to 93 % of real"
    " pictures"
)


@attrs.frozen(kw_only=True, eq=False)
class Setting:
    """A model and its training.

    Args:
        model: Name of the model.
        latent_dim: Size of the shared latent.
        private_dim: Size of every private latent; 0: there is none.
        options: Options of the model.
        epochs: Passes over the training rows.
        midway: What is done with the model after half of the epochs.
    """

    model: str
    latent_dim: int
    private_dim: int = 0
    options: dict[str, Any]
    epochs: int = 60
    midway: Callable[[Any, mv.IncompleteDataset, int], None] | None = None


MOPOE = Setting(model="mopoe", latent_dim=64, options={"beta": 2.5})


@attrs.frozen(kw_only=True)
class Rows:
    """Complete rows; ``valid`` are for choices, ``test`` for figures."""

    train: mv.IncompleteDataset
    valid: mv.IncompleteDataset
    test: mv.IncompleteDataset


def seeds(scale: Scale) -> tuple[int, ...]:
    """The seeds of a reproduction."""
    return SEEDS[: scale.pick(len(SEEDS), 2)]


@functools.cache
def rows(scale: Scale) -> Rows:
    """Return the rows; no digit is in two of the parts in the same modality."""
    count, most = scale.pick(pictures.TRAINING_ROWS, 125), scale.pick(500, 60)
    more = pictures.load("train", count + most, by=count)
    return Rows(
        train=pictures.load("train", count, by=count),
        valid=more.subset(slice(count, count + most)),
        test=pictures.load("test", most, by=count),
    )


@functools.cache
def judges(scale: Scale) -> dict[str, nn.Module]:
    """The classifiers."""
    if scale.smoke:
        return pictures.classifiers(scale.folder / "smoke", 100)
    return pictures.classifiers(scale.folder)


def untrained(setting: Setting, seed: int, scale: Scale) -> mv.MultimodalVAE:
    """Return a model whose weights depend on the seed alone."""
    data = rows(scale).train
    size = setting.latent_dim + setting.private_dim
    private = {"private_dims": setting.private_dim} if setting.private_dim else {}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        trunks = {name: pictures.trunk(shape[0]) for name, shape in data.shapes.items()}
        decoders = {name: pictures.decoder(s[0], size) for name, s in data.shapes.items()}
    return mv.create_model(
        setting.model,
        data,
        latent_dim=setting.latent_dim,
        modalities=dict.fromkeys(data.names, {"likelihood": LIKELIHOOD, "standardise": False}),
        encoders=trunks,
        decoders=decoders,
        seed=seed,
        **setting.options,
        **private,
    )


@functools.cache
def trained(setting: Setting, seed: int, scale: Scale) -> Any:
    """Train a model, unless it was in this process; in two halves if there is something midway."""
    model, data = untrained(setting, seed, scale), rows(scale).train
    if setting.midway is None:
        fit(model, setting.epochs, seed, scale)
    else:
        fit(model, setting.epochs // 2, seed, scale)
        setting.midway(model, data, seed)
        fit(model, setting.epochs // 2, seed + 1000, scale)
    return model


def fit(model: mv.MultimodalVAE, epochs: int, seed: int, scale: Scale) -> None:
    """Train in place on the training rows."""
    trainer = mv.Trainer(
        epochs=scale.pick(epochs, 1),
        batch_size=BATCH,
        lr=LEARNING_RATE,
        seed=seed,
        progress=False,
    )
    trainer.fit(model, rows(scale).train)


@functools.cache
def measured(setting: Setting, seed: int, scale: Scale) -> dict[str, float]:
    """Return what a trained model is worth on test rows.

    ``1`` to ``4``: coherence by the number of visible modalities; ``all``: share of rows out of
    the prior in which all modalities show one digit; ``log_p``: nats per row.
    """
    model = trained(setting, seed, scale)
    data, classify = rows(scale).test.subset(slice(0, scale.pick(200, 20))), judges(scale)
    found = {str(k): v for k, v in pictures.coherence(model, data, classify).items()}
    found["all"] = pictures.agreement(model, scale.pick(1000, 50), classify)
    if "log_likelihood" not in model.lacks:
        estimate = model.log_likelihood(data, n_samples=scale.pick(100, 5))
        found["log_p"] = float(estimate.value.mean())
    shown = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
    print(f"  {setting.model}, seed {seed}: {shown}", flush=True)
    return found


def percent(values: Sequence[float]) -> str:
    """Mean over the seeds in percent, with its standard error."""
    return f"{100 * statistics.fmean(values):.1f} ({100 * standard_error(values):.1f})"


def nats(values: Sequence[float]) -> str:
    """Mean over the seeds in nats, with its standard error."""
    return f"{statistics.fmean(values):.0f} ({standard_error(values):.0f})"


def compared(what: str, paper: str, ours: Sequence[float], theirs: Sequence[float]) -> Figure:
    """A claim that ours are above theirs, pair by pair of one seed, in percentage points."""
    gaps = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    found = f"{statistics.fmean(gaps):+.1f} ({standard_error(gaps):.1f})"
    return Figure(what=what, paper=paper, ours=found, holds=above_zero(gaps))


def columns(setting: Setting, scale: Scale) -> dict[str, list[float]]:
    """What `measured` returns, over the seeds."""
    found = [measured(setting, seed, scale) for seed in seeds(scale)]
    return {name: [each[name] for each in found] for name in found[0]}
