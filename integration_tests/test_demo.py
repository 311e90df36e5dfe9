"""The evaluation of the demo on made-up data whose answers are known.

Statistics: shares are of entries that are independent of each other, so that a share of N hits
misses by more than 4 standard errors in 1 run of 16,000; seeds are fixed.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import multivae_core as mv

EXAMPLES = Path(__file__).parents[1] / "examples"
DIGITS = 4


@pytest.fixture(scope="module")
def part():
    """A module of the demo by name; they import each other as scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module
        for name in ("_coverage", "_evaluate", "_figures", "_report", "demo"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def parts():
    """Views with a common cause: pictures in steps of 1, and two that are continuous."""
    random = np.random.default_rng(0)
    labels = random.integers(DIGITS, size=150)
    cause = np.eye(DIGITS)[labels] + 0.3 * random.normal(size=(150, DIGITS))
    sizes = {"fou": 5, "mor": 3, "pix": 240, "zer": 4}
    views = {
        name: cause @ random.normal(size=(DIGITS, size)) + 0.2 * random.normal(size=(150, size))
        for name, size in sizes.items()
    }
    views["pix"] = views["pix"].round()
    data = mv.IncompleteDataset(
        {name: view.astype(np.float32) for name, view in views.items()}, labels=labels
    )
    train, valid, test = data.split(90, 20, seed=0)
    return train.hide(0.3, seed=0), valid, test


@pytest.fixture(scope="module")
def results(part, parts):
    """A model that learned a little, its history and its numbers."""
    train, valid, test = parts
    model = mv.create_model("mopoe", train, latent_dim=4)
    history = mv.Trainer(epochs=5, batch_size=32, seed=0).fit(model, train, validation=valid)
    coverage = part("_coverage")
    covered = coverage.coverage(model, train, test, test.hide(0.3, seed=1), n=19)
    covered["by_visible"] = coverage.by_visible(model, train, test, n=19)
    metrics = {
        "log_likelihood": part("_evaluate").likelihood(model, train, test, 20),
        "imputation": part("_evaluate").imputation(model, parts, 5),
        "coverage": covered,
        "probe": part("_evaluate").probe(model, train, test),
    }
    return model, history, metrics


def miss(hits: np.ndarray, share: float) -> float:
    """How many standard errors the share of hits is away from what it should be."""
    return abs(hits.mean() - share) / np.sqrt(share * (1 - share) / hits.size)


@pytest.mark.parametrize("width", [0.0, 0.5, 3.0, 50.0])
@pytest.mark.parametrize("draws", [19, 200])
def test_ranks_of_a_perfect_gaussian_are_uniform(part, draws, width):
    # what was measured is the middle of the cell into which the truth fell
    random = np.random.default_rng(1)
    truth, made = random.normal(size=(100, 60)), random.normal(size=(draws, 100, 60))
    seen = (np.floor(truth / width) + 0.5) * width if width else truth
    rank = part("_coverage").random_ranks(made, seen, np.full(60, width), random)
    assert rank.min() > 0
    assert rank.max() < 1
    for level in (0.5, 0.9):
        assert miss(np.abs(rank - 0.5) < level / 2, level) < 4


def test_intervals_that_are_too_narrow_are_found_out(part):
    random = np.random.default_rng(2)
    truth, made = random.normal(size=(100, 60)), 0.5 * random.normal(size=(200, 100, 60))
    rank = part("_coverage").random_ranks(made, truth.round(), np.ones(60), random)
    assert miss(np.abs(rank - 0.5) < 0.45, 0.9) > 10


def test_steps_are_found(part):
    random = np.random.default_rng(3)
    whole = random.integers(7, size=200)
    columns = [whole, 0.25 * whole, 2 * whole % 3 + 0.5, random.normal(size=200), 0 * whole]
    columns += [np.where(whole > 3, 5, whole % 2 * 2)]  # 0, 2 and 5: steps of 1, never seen
    steps = part("_coverage").step_of(np.stack(columns, axis=1).astype(np.float32))
    assert steps.tolist() == [1, 0.25, 1, 0, 0, 1]


def test_coverage_of_what_was_hidden(parts, results):
    covered = results[2]["coverage"]
    test = parts[2]
    assert covered["draws"] == 19
    assert set(covered["views"]) == set(test.names)
    hidden = (~test.hide(0.3, seed=1).present).sum(dim=0).tolist()
    assert [view["rows"] for view in covered["views"].values()] == hidden
    assert sum(group["rows"] for group in covered["by_visible"].values()) == len(test)
    for group in (*covered["views"].values(), covered["all"]):
        assert np.all(np.diff(group["actual"]) >= 0)
        assert len(group["standard_error"]) == len(covered["levels"])


def test_baselines_are_what_they_are_called(part, parts, results):
    train, _, test = parts
    table = results[2]["imputation"]
    for name, row in table.items():
        mean, spread = (moment.numpy() for moment in train.moments(name))
        z = (test.batch().values[name].numpy() - mean) / spread
        assert row["mean"] == pytest.approx(np.sqrt(np.square(z).mean()), rel=1e-5)
        assert row["ridge"] < row["mean"]
        assert row["ridge"] < row["ridge_narrow"] * 1.01
        assert {"model", "shown", "model_error", "features", "width"} <= row.keys()
    source, error = part("_evaluate").nearest(parts, "zer")
    assert source in {"fou", "mor", "pix"}
    assert error < table["zer"]["mean"]


def test_probe_and_likelihood(results):
    probe, fit = results[2]["probe"], results[2]["log_likelihood"]
    assert [row["choices"] for row in probe.values()] == [4, 6, 4, 1]
    for row in probe.values():
        assert row["difference"] == pytest.approx(row["model"] - row["pca"])
    assert probe["4"]["pca"] > 1.5 / DIGITS
    assert fit["samples"] == 20
    assert 1 <= fit["effective_samples_least"] <= fit["effective_samples_median"] <= 20


def test_checks_can_fail(part, results):
    metrics = json.loads(json.dumps(results[2]))
    report = part("_report")
    metrics["imputation"]["mor"]["model"] = 2 * metrics["imputation"]["mor"]["mean"]
    metrics["probe"]["2"]["difference"] = -0.1
    metrics["coverage"]["all"]["actual"][metrics["coverage"]["levels"].index(0.9)] = 0.95
    found = report.checks(metrics)
    assert len(found) == 5
    assert [row["holds"] for row in found][0::2] == [False, False, False]
    assert report.checks_table(found).count("NO") >= 3


def test_reports_and_pictures(part, parts, results, tmp_path):
    model, history, metrics = results
    report = part("_report")
    texts = (
        report.imputation_table(metrics["imputation"]),
        report.explain(metrics["imputation"], {"zer": ("mor", 0.5)}),
        report.coverage_table(metrics["coverage"]),
        report.probe_table(metrics["probe"]),
        report.likelihood_text(metrics["log_likelihood"]),
    )
    assert all("nan" not in text for text in texts)
    model.save(tmp_path / "model", summary=report.summary(metrics))
    assert "imputation of zer" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    part("_figures").draw(tmp_path, model, history, metrics, parts[2])
    names = {"training", "embedding", "imputed_digits", "calibration", "probe"}
    assert {file.stem for file in tmp_path.glob("*.png")} == names
    assert all(file.stat().st_size > 5000 for file in tmp_path.glob("*.png"))
