"""Checkpoints: folders of safetensors and JSON, written whole or not at all, nothing pickled."""

from __future__ import annotations

__all__ = [
    "Position",
    "checkpoints",
    "fingerprint",
    "load_weights",
    "newest",
    "preserved",
    "restore",
    "save",
    "weights_of",
    "write_checkpoint",
]

import hashlib
import json
import logging
import math
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from multivae_core.config import unstructure
from multivae_core.data import IncompleteDataset
from multivae_core.errors import FileFormatError, MultivaeError, TrainingError
from multivae_core.persistence import (
    new_folder,
    plain,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from multivae_core.training.objective import Meter
from multivae_core.training.options import that_matter
from multivae_core.training.reports import History

if TYPE_CHECKING:
    from multivae_core.training.run import Run

logger = logging.getLogger(__name__)

FORMAT = 1
_STATE = "state.json"


@attrs.define(kw_only=True)
class Position:
    """Where training stands.

    Args:
        step: Optimisation steps of the run.
        stage: Number of the stage.
        stage_step: Steps of the stage.
        epoch: Whole epochs of the stage.
        batch: Batches of the epoch that are done.
        data_epoch: Whole epochs of the run, on which the order of the rows depends.
        stopped: Whether a callback ended the stage.
        best: Lowest validation loss of the stage.
        waited: Epochs without a better one.
    """

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    epoch: int = 0
    batch: int = 0
    data_epoch: int = 0
    stopped: bool = False
    best: float | None = None
    waited: int = 0


def write_checkpoint(
    folder: Path,
    step: int,
    keep: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> Path:
    """Write ``step-00000123/``, then remove all but the newest ``keep``.

    It is written under a temporary name, forced to the disk, and renamed. Its state file holds
    the checksums of the other files and its own.

    Args:
        folder: The checkpoints of the run.
        step: Optimisation steps so far.
        keep: How many checkpoints stay.
        tensors: File name (without suffix) -> name -> tensor.
        state: What JSON can hold.
    """
    path = folder / f"step-{step:08d}"
    with new_folder(path, lambda _: "") as draft:
        files = {}
        for stem, entries in tensors.items():
            file = draft / f"{stem}.safetensors"
            write_tensors(file, entries)
            files[file.name] = _checksum(file)
        body = {"format": FORMAT, "files": files, "state": dict(state)}
        write_json(draft / _STATE, {**body, "sha256": _digest(body)})
    kept = 0
    for old in checkpoints(folder):
        # what cannot be read does not count as kept; hashing everything would be slow
        if kept < keep and _read(old) is not None:
            kept += 1
        else:
            shutil.rmtree(old, ignore_errors=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Folders that look like checkpoints, newest first, damaged ones included."""
    return sorted(folder.glob("step-*"), key=lambda path: path.name, reverse=True)


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest intact checkpoint and its state, or None; damaged ones are warned of."""
    for path in [folder] if (folder / _STATE).exists() else checkpoints(folder):
        body = _read(path)
        try:
            files = {} if body is None else body["files"]
            if body is not None and all(_checksum(path / n) == c for n, c in files.items()):
                return path, body["state"]
        except OSError:
            pass  # a file is missing
        logger.warning("checkpoint %s is damaged; looking for the one before it", path)
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """The state file of a checkpoint, or None where it is missing or damaged."""
    try:
        body = read_json(path / _STATE)
    except FileFormatError:
        return None
    if body.pop("sha256", None) != _digest(body):
        return None
    if body.get("format") != FORMAT:
        raise TrainingError(
            f"checkpoint {path} has format {body.get('format')!r}, this version reads {FORMAT};"
            " go on with the version that wrote it"
        )
    return body


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, each tensor once; they are not copied."""
    found = {id(v): (n, v) for n, v in reversed(model.state_dict(keep_vars=True).items())}
    return {name: value.detach() for name, value in reversed(found.values())}


def load_weights(weights: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Copy weights, in place."""
    for name, value in weights.items():
        value.copy_(source[name])


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's, numpy's and Python's generators; doubles hold their integers."""
    _, keys, *rest = np.random.get_state(legacy=True)
    _, numbers, spare = random.getstate()
    found = {
        "random/torch": torch.get_rng_state(),
        "random/numpy": torch.tensor([*np.asarray(keys).tolist(), *rest], dtype=torch.float64),
        "random/python": torch.tensor(
            [*numbers, math.inf if spare is None else spare], dtype=torch.float64
        ),
    }
    if device.type == "cuda":
        found["random/device"] = torch.cuda.get_rng_state(device)
    return found


def restore_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(state["random/torch"])
    if device.type == "cuda" and "random/device" in state:
        torch.cuda.set_rng_state(state["random/device"], device)
    *keys, place, has_spare, spare = state["random/numpy"].tolist()
    words = np.array(keys, dtype=np.uint32)
    np.random.set_state(("MT19937", words, int(place), int(has_spare), spare))
    *numbers, spare = state["random/python"].tolist()
    random.setstate((3, tuple(map(int, numbers)), None if math.isinf(spare) else spare))


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Leave the generators as they were found: a run's randomness is its own."""
    state = random_state(device)
    try:
        yield
    finally:
        restore_random_state(state, device)


def fingerprint(run: Run) -> dict[str, Any]:
    """What must be the same when a run goes on."""
    try:
        config = plain(unstructure(run.model.config))
    except MultivaeError:  # a configuration with parts of the user's own kind
        config = repr(run.model.config)
    model = {"class": type(run.model).__qualname__, "config": config}
    model["weights"] = {n: f"{w.dtype} {list(w.shape)}" for n, w in run.weights.items()}
    model["stages"] = {s.name: [player.name for player in s.players] for s in run.stages}
    return {
        "model": model,
        "options": plain(that_matter(run.options)),
        "training data": _describe(run.feeder.data),
        "validation data": None if run.validation is None else _describe(run.validation.data),
    }


def _describe(data: IncompleteDataset) -> dict[str, Any]:
    """Sizes, and a digest of the masks and of three rows: another table is noticed."""
    digest = hashlib.sha256(data.present.numpy().tobytes())
    sample = data.batch([0, len(data) // 2, len(data) - 1])
    for name in data.names:
        digest.update(sample.values[name].contiguous().view(torch.uint8).numpy().tobytes())
    kinds = {name: f"{data.dtypes[name]} {list(shape)}" for name, shape in data.shapes.items()}
    return {"rows": len(data), "modalities": kinds, "digest": digest.hexdigest()[:16]}


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{path} {key}".strip())
    elif old != new:
        yield f"{path}: {old!r} in the checkpoint, {new!r} now"


def save(run: Run, folder: Path) -> Path:
    """Write down where a run stands; all processes take part, the main one writes."""
    accelerator = run.accelerator
    meter, sums = run.meter.state()
    own = {**random_state(accelerator.device), "meter": sums}
    for name, value in own.items():
        own[name] = value[None]
        if accelerator.num_processes > 1:
            own[name] = accelerator.gather(value[None].to(accelerator.device)).cpu()
    memory = {f"optimiser/{n}": v for mover in run.movers for n, v in mover.state().items()}
    scaler = accelerator.scaler
    state = {
        "position": attrs.asdict(run.position),
        "fingerprint": run.fingerprint,
        "processes": accelerator.num_processes,
        "meter": meter,
        "history": run.history.to_rows(),
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    tensors = {"model": run.weights, "training": own | memory}
    if run.best is not None:
        tensors["best"] = run.best
    step = run.position.step
    if accelerator.is_main_process:
        write_checkpoint(folder, step, run.options.keep, tensors, state)
    accelerator.wait_for_everyone()
    return folder / f"step-{step:08d}"


def restore(run: Run, path: Path, state: Mapping[str, Any]) -> None:
    """Put a run where a checkpoint was written.

    Optimisers are given their memory when the stage is taken up: see ``run.memory``.

    Raises:
        TrainingError: Model, data or options differ from those of the checkpoint.
    """
    accelerator = run.accelerator
    if different := list(_differences(state["fingerprint"], run.fingerprint)):
        more = f"; and {len(different) - 4} more" if len(different) > 4 else ""
        raise TrainingError(
            f"checkpoint {path} is of another run: {'; '.join(different[:4])}{more}. Only budgets"
            " (epochs, steps, patience), files and display may change when a run goes on; use"
            " the same settings, another folder, or resume=False in an empty one"
        )
    position = Position(**state["position"])
    total = run.budgets[position.stage].total_steps(run.feeder.batches)
    if position.stage_step > total:
        raise TrainingError(
            f"checkpoint {path} is at step {position.stage_step} of stage"
            f" {run.stages[position.stage].name!r}, and the budget is {total} steps; give at"
            " least as many epochs or steps as are done"
        )
    if state["processes"] != accelerator.num_processes:
        logger.warning("a checkpoint of %d processes goes on with %d: not bit for bit",
                       state["processes"], accelerator.num_processes)  # fmt: skip
    load_weights(run.weights, read_tensors(path / "model.safetensors"))
    tensors, prefix = read_tensors(path / "training.safetensors"), "optimiser/"
    run.memory = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
    here = accelerator.process_index % state["processes"]
    own = {n: v[here] for n, v in tensors.items() if not n.startswith(prefix)}
    restore_random_state(own, accelerator.device)
    run.position = position
    run.meter = Meter.of_state(state["meter"], own["meter"], accelerator.device)
    run.history.epochs[:] = History.from_rows(state["history"]).epochs
    if (path / "best.safetensors").exists():
        run.best = read_tensors(path / "best.safetensors")
    if state["scaler"] is not None and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    run.last_checkpoint = path
    if run.options.folder is not None and path.parent.resolve() == run.options.folder.resolve():
        run.saved = run.here
