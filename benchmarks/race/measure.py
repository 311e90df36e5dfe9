"""What a trained model is worth, by our estimators, whoever trained its weights."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path

import pictures
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from workloads import Data

import multivae_core as mv

__all__ = ["accuracy", "fit"]

ROWS, SAMPLES = 200, 200


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
    if len(next(iter(data.test.shapes.values()))) == 3:
        rows, judges = data.test.subset(slice(0, ROWS)), pictures.classifiers(folder)
        found = pictures.coherence(model, rows, judges)
    else:
        found = _probe(model, data)
    return {str(size): each for size, each in found.items()}


def _probe(model: mv.MultimodalVAE, data: Data) -> dict[int, float]:
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(model.embed(data.complete).numpy(), pictures.labels(data.complete).numpy())
    truth = pictures.labels(data.test).numpy()
    scores = defaultdict(list)
    for visible in pictures.subsets(data.test.names, len(data.test.names)):
        seen = model.embed(data.test.restrict(visible)).numpy()
        scores[len(visible)].append(float(probe.score(seen, truth)))
    return {size: statistics.fmean(each) for size, each in sorted(scores.items())}
