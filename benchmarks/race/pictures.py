"""The small pictures, which the reproductions use too: data, networks, and coherence.

`polymnist` of 14 x 14 pixels: five pictures of one digit on backgrounds that tell nothing of it.
What a model generates is judged by one classifier of digits per modality.
"""

from __future__ import annotations

import functools
import itertools
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import multivae_core as mv
from multivae_core.persistence import read_tensors, write_tensors

__all__ = [
    "TRAINING_ROWS",
    "agreement",
    "classifiers",
    "coherence",
    "decoder",
    "labels",
    "load",
    "standardised",
    "subsets",
    "trunk",
]

TRAINING_ROWS = 2000
_OPTIONS = {"size": 14, "seed": 0}
_CLASSIFIER_EPOCHS = 5


def load(split: str, n: int | None = None, by: int = TRAINING_ROWS) -> mv.IncompleteDataset:
    """Return rows on the scale of some training rows; by default one for each digit."""
    return standardised(_raw(split, n), _raw("train", by))


@functools.cache
def _raw(split: str, n: int | None) -> mv.IncompleteDataset:
    return mv.load_dataset("polymnist", split=split, n=n, **_OPTIONS)


def standardised(data: mv.IncompleteDataset, by: mv.IncompleteDataset) -> mv.IncompleteDataset:
    """Return complete data shifted and scaled, feature by feature, by the moments of others."""
    values = data.batch().values
    scaled: dict[str, Tensor] = {}
    for name in data.names:
        mean, deviation = by.moments(name)
        deviation = torch.where(deviation > 0, deviation, 1.0)
        scaled[name] = ((values[name] - mean) / deviation).float()
    return mv.IncompleteDataset(scaled, labels=data.labels)


def labels(data: mv.IncompleteDataset) -> Tensor:
    """Return the labels of data that have them."""
    if data.labels is None:
        raise ValueError("these data have no labels")
    return data.labels


def trunk(channels: int) -> nn.Sequential:
    """Features of a picture: two convolutions of stride 2."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    )


def decoder(channels: int, latent: int) -> nn.Sequential:
    """A picture out of its latents, the layers of the trunk backwards."""
    return nn.Sequential(
        nn.Linear(latent, 512),
        nn.ReLU(),
        nn.Unflatten(1, (32, 4, 4)),
        nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, channels, 3, stride=2, padding=1, output_padding=1),
    )


def subsets(names: tuple[str, ...], most: int) -> list[tuple[str, ...]]:
    """All non-empty subsets of at most so many names."""
    sizes = range(1, most + 1)
    return [each for size in sizes for each in itertools.combinations(names, size)]


def coherence(
    model: mv.MultimodalVAE, rows: mv.IncompleteDataset, judges: Mapping[str, nn.Module]
) -> dict[int, float]:
    """How often what is generated for the others shows the digit, by the number that is visible.

    One sample of the latents per row; the mean over all subsets of a size and all other
    modalities.
    """
    scores = defaultdict(list)
    for visible in subsets(rows.names, len(rows.names) - 1):
        targets = tuple(name for name in rows.names if name not in visible)
        generated = model.predict(rows.restrict(visible), targets, n_samples=1)
        for name in targets:
            right = _classes(judges[name], generated[name]) == labels(rows)
            scores[len(visible)].append(float(right.double().mean()))
    return {size: statistics.fmean(each) for size, each in sorted(scores.items())}


def agreement(model: mv.MultimodalVAE, n: int, judges: Mapping[str, nn.Module]) -> float:
    """Share of n rows out of the prior in which all modalities show one digit."""
    generated = model.generate(n)
    shown = torch.stack([_classes(judges[name], each) for name, each in generated.items()])
    return float((shown == shown[0]).all(dim=0).double().mean())


def _classes(network: nn.Module, pictures: Tensor) -> Tensor:
    with torch.no_grad():
        classes: Tensor = network(pictures).argmax(dim=1)
    return classes


@functools.cache
def classifiers(folder: Path, n: int | None = None) -> dict[str, nn.Module]:
    """One classifier of digits per modality, trained once and kept as safetensors.

    Args:
        folder: Where they are kept; one for each number of rows.
        n: Training rows; None: one for each digit there is, many more than the models see.
    """
    path = folder / "classifiers.safetensors"
    names = _raw("test", 1).names
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judges: dict[str, nn.Module] = {name: _classifier() for name in names}
    every = nn.ModuleDict(judges)
    if path.exists():
        every.load_state_dict(read_tensors(path))
        return judges
    train, test = load("train", n), load("test", n)
    right = {name: _train_classifier(judges[name], name, train, test) for name in names}
    folder.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".partial")
    write_tensors(draft, every.state_dict())
    draft.replace(path)
    print(f"accuracy of the classifiers on real pictures: {json.dumps(right)}", flush=True)
    return judges


def _classifier() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 3 * 3, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def _train_classifier(
    network: nn.Module, name: str, train: mv.IncompleteDataset, test: mv.IncompleteDataset
) -> float:
    """Train it in place, and return its accuracy on real held-out pictures."""
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    loss, pictures, truth = nn.CrossEntropyLoss(), train.batch().values[name], labels(train)
    order = torch.Generator().manual_seed(0)
    for _ in range(_CLASSIFIER_EPOCHS):
        for rows in torch.randperm(len(train), generator=order).split(128):
            optimiser.zero_grad()
            loss(network(pictures[rows]), truth[rows]).backward()
            optimiser.step()
    right = _classes(network, test.batch().values[name]) == labels(test)
    return round(float(right.double().mean()), 3)
