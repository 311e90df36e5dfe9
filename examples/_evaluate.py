"""What a trained model is worth: likelihood, errors of imputation, and a linear probe.

Errors of imputation are on the standardised scale: a feature minus its mean over the training
data, divided by its standard deviation there. Standard errors say how far a number would move with
other test rows. Choices (ridge's penalty here, the model's best epoch before) use the validation
data; the test data give numbers and decide nothing.
"""

from __future__ import annotations

__all__ = ["Numbers", "Parts", "imputation", "likelihood", "nearest", "probe"]

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import multivae_core as mv

PENALTIES = (1.0, 10.0, 100.0, 1000.0)
Numbers = dict[str, Any]
Parts = tuple[mv.IncompleteDataset, mv.IncompleteDataset, mv.IncompleteDataset]


class Scale:
    """The standardised scale of the training data, on which 0 is the mean and fills a hole."""

    def __init__(self, train: mv.IncompleteDataset) -> None:
        self.moments = {}
        for name in train.names:
            mean, spread = (part.numpy().ravel() for part in train.moments(name))
            self.moments[name] = (mean, np.where(spread > 0, spread, 1.0))

    def __call__(self, name: str, values: Any) -> np.ndarray:
        """Standardise values ``(N, F)``."""
        mean, spread = self.moments[name]
        return (np.asarray(values) - mean) / spread

    def filled(self, data: mv.IncompleteDataset) -> dict[str, np.ndarray]:
        """Every view ``(N, F)``, with the training mean where a row does not have it."""
        batch = data.batch()
        return {
            name: np.where(_seen(batch, name)[:, None], self(name, _flat(batch, name)), 0.0)
            for name in data.names
        }


def likelihood(
    model: mv.MultimodalVAE, train: mv.IncompleteDataset, test: mv.IncompleteDataset, n: int
) -> Numbers:
    """Held-out log p of all views, nats per row, beside features that know nothing of each other.

    Args:
        model: The trained model.
        train: Training data, for the means and deviations of the features.
        test: Complete rows.
        n: Importance samples per row; a tenth of them shows how far the bound still rises.
    """
    estimate, coarse = model.log_likelihood(test, n), model.log_likelihood(test, n // 10)
    scale, batch = Scale(train), test.batch()
    alone = np.zeros(len(test))
    for name in test.names:
        z = scale(name, _flat(batch, name))
        alone -= (0.5 * z**2 + 0.5 * np.log(2 * np.pi) + np.log(scale.moments[name][1])).sum(1)
    size = estimate.effective_sample_size.numpy()
    return {
        "nats_per_row": estimate.mean,
        "standard_error": estimate.mean_standard_error,
        "samples": n,
        "effective_samples_median": float(np.median(size)),
        "effective_samples_least": float(size.min()),
        "gain_over_a_tenth_of_the_samples": estimate.mean - coarse.mean,
        "independent_normals_nats_per_row": float(alone.mean()),
        "independent_normals_standard_error": _error(alone),
    }


def imputation(model: mv.MultimodalVAE, parts: Parts, n: int = 200) -> dict[str, Numbers]:
    """Hide each view in turn and fill it in from the others: root mean squared errors.

    Beside the model and the mean there are ridge on the mean-filled views, ridge whose prediction
    must pass through as few numbers as the model's embedding has, and the model when it is shown
    the view itself: what it misses even then is not in its embedding.

    Args:
        model: The trained model.
        parts: Training, validation and test data.
        n: Draws of the latents per row.
    """
    train, _, test = parts
    scale = Scale(train)
    views = [scale.filled(part) for part in parts]
    shown, width = model.predict(test, None, n), model.embed(test.subset([0])).shape[1]
    table = {}
    for name in test.names:
        others = test.restrict(set(test.names) - {name})
        ridge, narrow = _ridge(views, train, name, width)
        guesses = {
            "model": scale(name, model.predict(others, (name,), n)[name].flatten(1)),
            "mean": np.zeros_like(ridge),
            "ridge": ridge,
            "ridge_narrow": narrow,
            "shown": scale(name, shown[name].flatten(1)),
        }
        table[name] = {"features": ridge.shape[1], "width": width}
        for key, guess in guesses.items():
            table[name][key], table[name][f"{key}_error"] = _rmse(guess - views[2][name])
    return table


def _ridge(
    views: Sequence[dict[str, np.ndarray]], train: mv.IncompleteDataset, name: str, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Predict a view of the test data from the others: by ridge, and through a few numbers."""
    others = [key for key in train.names if key != name]
    rows = _seen(train.batch(), name)
    best = _best_ridge(views, others, name, rows)
    x, x_test = (np.hstack([part[key] for key in others]) for part in (views[0], views[2]))
    few = PCA(min(width, best.coef_.shape[0]), random_state=0).fit(best.predict(x[rows]))
    wide = best.predict(x_test)
    return wide, few.inverse_transform(few.transform(wide))


def _best_ridge(
    views: Sequence[dict[str, np.ndarray]], sources: Sequence[str], name: str, rows: np.ndarray
) -> Ridge:
    """Fit ridge to rows of the training data; the validation data choose its penalty."""
    x, x_valid = (np.hstack([part[key] for key in sources]) for part in views[:2])
    fits = [Ridge(penalty).fit(x[rows], views[0][name][rows]) for penalty in PENALTIES]
    return min(fits, key=lambda fit: np.square(fit.predict(x_valid) - views[1][name]).mean())


def nearest(parts: Parts, name: str) -> tuple[str, float]:
    """The single view off which ridge reads another best, and its error."""
    train, _, test = parts
    scale, batch = Scale(train), train.batch()
    views = [scale.filled(part) for part in parts]
    found = {}
    for source in set(test.names) - {name}:
        rows = _seen(batch, name) & _seen(batch, source)
        fit = _best_ridge(views, [source], name, rows)
        found[source] = _rmse(fit.predict(views[2][source]) - views[2][name])[0]
    return min(found.items(), key=lambda item: item[1])


def probe(model: mv.MultimodalVAE, train: mv.IncompleteDataset, test: mv.IncompleteDataset) -> Any:
    """Accuracy of a linear classifier, mean over all choices of 1, 2, ... visible views.

    It is trained on the embeddings of the incomplete training data; beside it, one on as many
    principal components of the same data with means in their holes.

    Args:
        model: The trained model.
        train: Labelled training data.
        test: Labelled test data.
    """
    scale, names = Scale(train), test.names
    known, filled = scale.filled(train), scale.filled(test)
    z, x = model.embed(train).numpy(), np.hstack([known[name] for name in names])
    pca = PCA(z.shape[1], random_state=0).fit(x)
    ours = _classifier().fit(z, train.labels)
    theirs = _classifier().fit(pca.transform(x), train.labels)
    table = {}
    for k in range(1, len(names) + 1):
        right = []
        for seen in itertools.combinations(names, k):
            some = [filled[name] if name in seen else 0 * filled[name] for name in names]
            guesses = (
                ours.predict(model.embed(test.restrict(seen)).numpy()),
                theirs.predict(pca.transform(np.hstack(some))),
            )
            right.append([guess == test.labels.numpy() for guess in guesses])
        a, b = np.mean(right, axis=0)
        table[str(k)] = {"choices": len(right)}
        for key, row in (("model", a), ("pca", b), ("difference", a - b)):
            table[str(k)] |= {key: float(row.mean()), f"{key}_error": _error(row)}
    return table


def _classifier() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))


def _seen(batch: mv.Batch, name: str) -> np.ndarray:
    return batch.column(name).numpy()


def _flat(batch: mv.Batch, name: str) -> np.ndarray:
    return batch.values[name].flatten(1).numpy()


def _error(rows: np.ndarray) -> float:
    """Standard error of a mean over rows."""
    return float(rows.std(ddof=1) / np.sqrt(len(rows)))


def _rmse(errors: np.ndarray) -> tuple[float, float]:
    """Root mean squared error and its standard error over rows (delta method)."""
    rows = np.square(errors).mean(1)
    value = float(np.sqrt(rows.mean()))
    return value, _error(rows) / (2 * value)
