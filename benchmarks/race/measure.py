"""What a trained model is worth, by our estimators, whoever trained its weights."""

from __future__ import annotations

import functools
import itertools
import json
import statistics
from collections import defaultdict
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from workloads import PICTURES, Data, standardised

import multivae_core as mv
from multivae_core.persistence import read_tensors, write_tensors

__all__ = ["accuracy", "classifiers", "fit"]

ROWS, SAMPLES = 200, 200
_CLASSIFIER_EPOCHS = 5


def fit(model: mv.MultimodalVAE, data: Data) -> dict[str, float]:
    """Held-out joint log-likelihood, nats per row, with two standard errors of the mean.

    ``se`` says how well the rows stand for others; ``monte_carlo_se`` how well the samples do.
    """
    found = model.log_likelihood(data.test.subset(slice(0, ROWS)), n_samples=SAMPLES)
    return {
        "value": float(found.value.mean()),
        "se": float(found.value.std() / ROWS**0.5),
        "monte_carlo_se": float(found.standard_error.norm() / ROWS),
    }


def accuracy(model: mv.MultimodalVAE, data: Data, folder: Path) -> dict[str, float]:
    """Accuracy for each number of visible modalities, the mean over all subsets of that size.

    Pictures: how often what is generated for the other modalities shows the digit of the row.
    Features: a linear probe of the embedding, fitted to complete training rows.
    """
    pictures = len(next(iter(data.test.shapes.values()))) == 3
    return _coherence(model, data, folder) if pictures else _probe(model, data)


def _probe(model: mv.MultimodalVAE, data: Data) -> dict[str, float]:
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(model.embed(data.complete).numpy(), _labels(data.complete).numpy())
    truth = _labels(data.test).numpy()
    scores = defaultdict(list)
    for visible in _subsets(data.test.names, len(data.test.names)):
        seen = model.embed(data.test.restrict(visible)).numpy()
        scores[len(visible)].append(float(probe.score(seen, truth)))
    return _means(scores)


def _coherence(model: mv.MultimodalVAE, data: Data, folder: Path) -> dict[str, float]:
    judges, rows = classifiers(data, folder), data.test.subset(slice(0, ROWS))
    scores = defaultdict(list)
    for visible in _subsets(rows.names, len(rows.names) - 1):
        targets = tuple(name for name in rows.names if name not in visible)
        generated = model.predict(rows.restrict(visible), targets, n_samples=1)
        for name in targets:
            right = _classes(judges[name], generated[name]) == _labels(rows)
            scores[len(visible)].append(float(right.double().mean()))
    return _means(scores)


def _subsets(names: tuple[str, ...], most: int) -> list[tuple[str, ...]]:
    sizes = range(1, most + 1)
    return [each for size in sizes for each in itertools.combinations(names, size)]


def _means(scores: dict[int, list[float]]) -> dict[str, float]:
    return {str(size): statistics.fmean(each) for size, each in sorted(scores.items())}


def _labels(data: mv.IncompleteDataset) -> Tensor:
    if data.labels is None:
        raise ValueError("the data sets of the race have labels")
    return data.labels


def _classes(network: nn.Module, pictures: Tensor) -> Tensor:
    with torch.no_grad():
        classes: Tensor = network(pictures).argmax(dim=1)
    return classes


def classifiers(data: Data, folder: Path) -> dict[str, nn.Module]:
    """One classifier of digits per modality, trained once and kept as safetensors."""
    return _classifiers(tuple(data.test.names), folder)


@functools.cache
def _classifiers(names: tuple[str, ...], folder: Path) -> dict[str, nn.Module]:
    path = folder / "classifiers.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judges: dict[str, nn.Module] = {name: _classifier() for name in names}
    every = nn.ModuleDict(judges)
    if path.exists():
        every.load_state_dict(read_tensors(path))
        return judges
    # the 8,000 rows, on the scale of the 2,000 that are raced
    raced = mv.load_dataset("polymnist", split="train", n=2000, **PICTURES)
    train = standardised(mv.load_dataset("polymnist", split="train", **PICTURES), raced)
    test = standardised(mv.load_dataset("polymnist", split="test", **PICTURES), raced)
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
    loss, pictures, labels = nn.CrossEntropyLoss(), train.batch().values[name], _labels(train)
    order = torch.Generator().manual_seed(0)
    for _ in range(_CLASSIFIER_EPOCHS):
        for rows in torch.randperm(len(train), generator=order).split(128):
            optimiser.zero_grad()
            loss(network(pictures[rows]), labels[rows]).backward()
            optimiser.step()
    right = _classes(network, test.batch().values[name]) == _labels(test)
    return round(float(right.double().mean()), 3)
