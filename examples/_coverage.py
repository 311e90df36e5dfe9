"""Whether intervals are honest: how often they contain what was hidden, by randomised ranks."""

from __future__ import annotations

__all__ = ["LEVELS", "by_visible", "coverage", "random_ranks", "step_of"]

from typing import Any

import numpy as np
import torch

import multivae_core as mv

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
Numbers = dict[str, Any]


def coverage(
    model: mv.MultimodalVAE,
    train: mv.IncompleteDataset,
    test: mv.IncompleteDataset,
    hidden: mv.IncompleteDataset,
    n: int = 200,
) -> Numbers:
    """How often central intervals of the draws contain what was hidden, per view and in all.

    Args:
        model: The trained model.
        train: Training data, which tell in which steps features were measured.
        test: The test data.
        hidden: The same with holes, which the model fills in.
        n: Draws per row.
    """
    found = _hits(model, train, test, hidden, n)
    views = {
        name: {"rows": int((entries > 0).sum()), **_shares(hits, entries), "plain_90": plain}
        for name, (hits, entries, plain) in found.items()
    }
    hits, entries = (sum(part[i] for part in found.values()) for i in (0, 1))
    return {"draws": n, "levels": LEVELS, "views": views, "all": _shares(hits, entries)}


def by_visible(
    model: mv.MultimodalVAE, train: mv.IncompleteDataset, test: mv.IncompleteDataset, n: int = 200
) -> Numbers:
    """The same over all views, for rows of which 1, 2, ... views chosen at random are visible.

    Args:
        model: The trained model.
        train: Training data.
        test: Complete test data, dealt to as many groups of rows.
        n: Draws per row.
    """
    views, random = len(test.names), np.random.default_rng(1)
    visible = 1 + random.permutation(len(test)) % (views - 1)
    order = random.random((len(test), views)).argsort(1)
    hidden = test.restrict(torch.from_numpy(order < visible[:, None]))
    found = _hits(model, train, test, hidden, n)
    hits, entries = (sum(part[i] for part in found.values()) for i in (0, 1))
    groups = {k: visible == k for k in range(1, views)}
    return {
        str(k): {"rows": int(rows.sum()), **_shares(hits[:, rows], entries[rows])}
        for k, rows in groups.items()
    }


def random_ranks(
    draws: np.ndarray, truth: np.ndarray, step: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Rank of the truth among n draws, uniform in (0, 1) if it is one more draw.

    An interval between the ranks (n + 1) p contains the truth if its rank is between the p. A
    feature that is measured in steps stands for a cell of that width, in which its place is
    chosen at random among the draws that fall there.

    Args:
        draws: ``(n, N, F)``.
        truth: ``(N, F)``.
        step: ``(F,)``, 0 where a feature is continuous.
        random: Where chance comes from.
    """
    below = (draws < truth - step / 2).sum(0)
    tied = (draws < truth + step / 2).sum(0) - below
    place = below + np.floor(random.random(truth.shape) * (tied + 1))
    return (place + random.random(truth.shape)) / (len(draws) + 1)


def step_of(values: np.ndarray) -> np.ndarray:
    """Step in which each feature was measured, ``(N, F)`` -> ``(F,)``; 0 for a continuous one.

    It is the smallest gap between two values, or a half or third of it, if all gaps are multiples.
    """
    steps = np.zeros(values.shape[1])
    for j, column in enumerate(values.T.astype(np.float64)):
        gaps = np.diff(np.unique(column))
        for part in (1, 2, 3) if len(gaps) else ():
            multiples = gaps * (part / gaps.min())
            if np.abs(multiples - multiples.round()).max() < 1e-3:
                steps[j] = gaps.min() / part
                break
    return steps


def _hits(
    model: mv.MultimodalVAE,
    train: mv.IncompleteDataset,
    test: mv.IncompleteDataset,
    hidden: mv.IncompleteDataset,
    n: int,
) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """View -> hits ``(L, N)``, hidden entries ``(N,)``, share in the 90 % intervals as they are.

    The last is without ranks: the truth between the quantiles of the draws, cells or not.
    """
    made = model.impute(hidden, n_samples=n, quantiles=(0.05, 0.95), keep_samples=True)
    random, truth, left, known = np.random.default_rng(0), test.batch(), hidden.batch(), {}
    batch = train.batch()
    for name in test.names:
        y, draws = _flat(truth.values[name]), made.samples[name].flatten(2).numpy()
        rows = (truth.column(name) & ~left.column(name)).numpy()
        if not rows.any():
            continue
        steps = step_of(_flat(batch.values[name])[batch.column(name).numpy()])
        rank = random_ranks(draws[:, rows], y[rows], steps, random)
        hits, entries = np.zeros((len(LEVELS), len(test))), np.where(rows, y.shape[1], 0)
        hits[:, rows] = [(np.abs(rank - 0.5) < level / 2).sum(1) for level in LEVELS]
        low, high = (_flat(part)[rows] for part in made.quantiles[name])
        known[name] = hits, entries, float(((low <= y[rows]) & (y[rows] <= high)).mean())
    return known


def _flat(values: torch.Tensor) -> np.ndarray:
    return values.flatten(1).numpy()


def _shares(hits: np.ndarray, entries: np.ndarray) -> Numbers:
    """Hits ``(L, N)`` of entries ``(N,)``: shares, with errors for entries that share a row."""
    share = hits.sum(1) / entries.sum()
    spread = np.square(hits - share[:, None] * entries).sum(1)
    return {"actual": share.tolist(), "standard_error": (np.sqrt(spread) / entries.sum()).tolist()}
