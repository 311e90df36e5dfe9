"""A fair race: ours and the package ``multivae`` 1.0.3, the same work on both sides.

The rules:

* Same rows, same holes, standardised once; same networks with the same initial weights; same
  likelihood (normal, scale 1); same objective, see `workloads`; same batch size, learning rate,
  number of steps and seed. Each side keeps its own trainer with its defaults, its own order of
  rows and its own noise. The weights after the last step count, not the best ones.
* Time is the CPU time of the training call on one thread, without bars, files and imports; the
  sides take turns and who begins alternates.
* Both results are measured by our estimators: the peer's weights are loaded into our model.
  Log-likelihood of 200 held-out complete rows with 200 samples; and, for each number of visible
  modalities, the mean over all subsets: coherence of generated pictures, judged by classifiers
  that are trained once, or accuracy of a linear probe of the embedding.
* Where the peer refuses training data with holes the cell is ours alone. It does so for JMVAE,
  JNF and TELBO (and its CVAE has no masks), of the models raced here for none.
* A cell is one workload with one seed, both sides. Finished cells are kept as JSON in runs/race
  and not run again; the table is made of those that are there.

Known differences that are left: the peer's MoPoE deals the subsets of a complete batch to blocks
of rows, what is left over to the full set (ours draws one per row; on polymnist batches of 128
with a last one of 80 made that 12 nats of log p, batches of 125 make it nothing); its MMVAE and
MMVAE+ add up the rows of a batch (ours takes the mean), of which Adam sees nothing but its
epsilon.

``nox -s race``, in parts ``nox -s race -- --only mfeat/mopoe --seeds 0``.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from typing import Any

import attrs
import measure
import ours
import peer
import pictures
import table
import torch
from workloads import LEARNING_RATE, SEEDS, WORKLOADS, Data, Workload, load

import multivae_core as mv
from multivae_core.persistence import read_json, write_json

__all__ = ["main"]

FOLDER = Path(__file__).parents[2] / "runs" / "race"
SIDES = ("ours", "peer")


def main() -> None:
    """Plan, run what is not finished, and print the table."""
    asked = _arguments()
    torch.set_num_threads(1)
    chosen = [work for work in WORKLOADS if any(part in work.name for part in asked.only)]
    if asked.epochs is not None:
        chosen = [attrs.evolve(work, epochs=asked.epochs) for work in chosen]
    if not chosen:
        raise SystemExit(f"nothing is called {asked.only}; there is {[w.name for w in WORKLOADS]}")
    cells = [(work, seed) for seed in asked.seeds for work in chosen]
    if not asked.table:
        todo = [cell for cell in cells if finished(asked.folder, *cell) is None]
        if todo:
            plan(todo, asked.folder)
        for number, (work, seed) in enumerate(todo, start=1):
            print(f"[{number}/{len(todo)}] {work.name}, seed {seed}", end=" ", flush=True)
            result = cell(work, seed, asked.folder)
            keep(asked.folder, work, seed, result)
            print(table.short(result), flush=True)
    found = {
        work.name: [f for seed in SEEDS if (f := finished(asked.folder, work, seed)) is not None]
        for work in chosen
    }
    text = table.render({name: results for name, results in found.items() if results})
    print(f"\n{text}")


def plan(cells: list[tuple[Workload, int]], folder: Path) -> None:
    """Print what the cells will cost, from one timed step of each workload on each side."""
    total, started = 0.0, time.monotonic()
    print(f"{'planned CPU seconds, for each seed':<36} {'steps':>5} {'ours':>7} {'peer':>7}")
    for work in dict.fromkeys(work for work, _ in cells):
        data = load(work.data, work.missing)
        if work.data == "polymnist":
            pictures.classifiers(folder)
        steps = work.epochs * -(-len(data.train) // work.batch_size)
        found = {side: steps * one_step(side, work, data) for side in SIDES}
        total += sum(found.values()) * sum(each == work for each, _ in cells)
        print(
            f"{work.name:<36} {steps:>5} {found['ours']:>7.1f} {found['peer']:>7.1f}", flush=True
        )
    began = time.monotonic() - started
    print(
        f"{len(cells)} cells: {total / 60:.0f} minutes of training, and about"
        f" {len(cells) * _measuring(cells) / 60:.0f} of measuring; this plan took {began:.0f} s\n",
        flush=True,
    )


def one_step(side: str, work: Workload, data: Data) -> float:
    """CPU seconds of one step after two others; a side that refuses costs nothing."""
    rows = data.train.subset(slice(0, work.batch_size))
    try:
        return [side_train(side, work, data, rows, 1, seed=0)[0] for _ in range(3)][-1]
    except peer.Refused:
        return 0.0


def _measuring(cells: list[tuple[Workload, int]]) -> float:
    """Seconds that the measurements of a cell take on both sides, roughly."""
    pictures = sum(work.data == "polymnist" for work, _ in cells) / len(cells)
    return 3.0 + 13.0 * pictures


def cell(work: Workload, seed: int, folder: Path) -> dict[str, Any]:
    """Run one workload with one seed on both sides, and measure both results."""
    data = load(work.data, work.missing)
    result: dict[str, Any] = {}
    for side in SIDES if seed % 2 == 0 else reversed(SIDES):
        gc.collect()
        try:
            seconds, weights = side_train(side, work, data, data.train, work.epochs, seed)
        except peer.Refused as error:
            result[side] = {"refused": str(error).splitlines()[-1]}
            continue
        model = ours.build(work, data, seed)
        ours.load_weights(model, weights)
        result[side] = {
            "cpu_seconds": seconds,
            "log_likelihood": measure.fit(model, data),
            "accuracy": measure.accuracy(model, data, folder),
        }
    return {side: result[side] for side in SIDES}


def side_train(
    side: str, work: Workload, data: Data, rows: mv.IncompleteDataset, epochs: int, seed: int
) -> tuple[float, dict[str, torch.Tensor]]:
    """Train one side from the initial weights of the seed; CPU seconds and trained weights."""
    model = ours.build(work, data, seed)
    if side == "ours":
        return ours.train(work, model, rows, epochs, seed), ours.weights(model)
    other = peer.build(work, data)
    peer.load_weights(other, ours.weights(model))
    return peer.train(work, other, rows, epochs, seed), peer.weights(other)


def finished(folder: Path, work: Workload, seed: int) -> dict[str, Any] | None:
    """Return a cell that was run with the same settings, or None."""
    path = _path(folder, work, seed)
    found = read_json(path) if path.exists() else {}
    return found["result"] if found.get("settings") == _settings(work) else None


def keep(folder: Path, work: Workload, seed: int, result: dict[str, Any]) -> None:
    """Write a finished cell, whole or not at all."""
    path = _path(folder, work, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".partial")
    write_json(draft, {"settings": _settings(work), "seed": seed, "result": result})
    draft.replace(path)


def _path(folder: Path, work: Workload, seed: int) -> Path:
    return folder / f"{work.name.replace('/', '-')}-{seed}.json"


def _settings(work: Workload) -> dict[str, Any]:
    measured = {"rows": measure.ROWS, "samples": measure.SAMPLES}
    return attrs.asdict(work) | measured | {"lr": LEARNING_RATE}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[""], help="parts of workloads' names")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), choices=SEEDS)
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    parser.add_argument("--epochs", type=int, help="another budget, to try things out")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where results are kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
