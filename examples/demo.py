"""The whole path on real data: six views of handwritten digits, three tenths of them missing.

Trains MoPoE and writes model/, metrics.json, history.json and figures/ to runs/demo. The model
fits training data, validation data choose the epoch, test data give the numbers and pictures.
Ends with an error if a number is not what it is held to. ``nox -s demo`` runs it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import _coverage
import _evaluate
import _figures
import _report

import multivae_core as mv

FOLDER = Path(__file__).parents[1] / "runs" / "demo"
STARTED = time.monotonic()


def main() -> int:
    """Train, evaluate and save; return the number of checks that failed."""
    asked = _arguments()
    train, valid, test = mv.load_dataset("mfeat").split(0.7, 0.15, seed=0)
    train = train.hide(0.3, seed=0)
    say(f"Training data: {train.summary()}")

    model = mv.create_model("mopoe", train, latent_dim=32)
    trainer = mv.Trainer(epochs=asked.epochs, batch_size=128, seed=0, progress=True)
    history = trainer.fit(model, train, validation=valid)
    say(f"Trained; losses in nats per row\n\n{history!r}")

    metrics = evaluate(model, (train, valid, test))
    found = metrics["held_to"] = _report.checks(metrics)
    say(_report.checks_table(found))

    model.save(asked.folder / "model", summary=_report.summary(metrics))
    history.to_json(asked.folder / "history.json")
    _figures.draw(asked.folder / "figures", model, history, metrics, test)
    metrics["seconds"] = round(time.monotonic() - STARTED, 1)
    text = json.dumps(metrics, indent=1) + "\n"
    (asked.folder / "metrics.json").write_text(text, encoding="utf-8")
    say(f"Model, metrics.json and figures are in {asked.folder}")
    return sum(not check["holds"] for check in found)


def evaluate(model: mv.MultimodalVAE, parts: _evaluate.Parts) -> dict[str, Any]:
    """Measure everything, and say it as it is known."""
    train, _, test = parts
    views = _evaluate.imputation(model, parts)
    say(_report.imputation_table(views))
    behind = [name for name, row in views.items() if row["ridge"] < row["model"]]
    sources = {name: _evaluate.nearest(parts, name) for name in behind}
    say(_report.explain(views, sources))
    covered = _coverage.coverage(model, train, test, test.hide(0.3, seed=1))
    covered["by_visible"] = _coverage.by_visible(model, train, test)
    say(_report.coverage_table(covered))
    probed = _evaluate.probe(model, train, test)
    say(_report.probe_table(probed))
    fit = _evaluate.likelihood(model, train, test, 1000)
    say(_report.likelihood_text(fit))
    return {"log_likelihood": fit, "imputation": views, "coverage": covered, "probe": probed}


def say(text: str) -> None:
    """Print a paragraph with the seconds since the start."""
    print(f"\n[{time.monotonic() - STARTED:.0f} s] {text}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where results go")
    parser.add_argument("--epochs", type=int, default=100, help="passes over the training data")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main() > 0)
