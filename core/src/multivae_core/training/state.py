"""Where a run stands: its position, its fingerprint, and both to checkpoints and back."""

from __future__ import annotations

__all__ = [
    "Position",
    "captured",
    "differences",
    "fingerprint",
    "load_weights",
    "restore",
    "weights_of",
]

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import unstructure
from multivae_core.data import IncompleteDataset
from multivae_core.errors import MultivaeError, TrainingError
from multivae_core.training.checkpoints import Checkpoint, Saved
from multivae_core.training.history import History
from multivae_core.training.objective import Meter
from multivae_core.training.options import that_matter
from multivae_core.training.randomness import random_state, restore_random_state

if TYPE_CHECKING:
    from multivae_core.training.run import Run

logger = logging.getLogger(__name__)


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
        best_step: The step after which it was measured.
        reference: The validation loss that patience compares with.
        waited: Epochs without a better one.
        rate: What the plateau schedule has made of the learning rate, as a share.
        stuck: Epochs without a better one since it last did.
    """

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    epoch: int = 0
    batch: int = 0
    data_epoch: int = 0
    stopped: bool = False
    best: float | None = None
    best_step: int | None = None
    reference: float | None = None
    waited: int = 0
    rate: float = 1.0
    stuck: int = 0

    def next_stage(self) -> Position:
        """The beginning of the stage that follows."""
        return Position(step=self.step, stage=self.stage + 1, data_epoch=self.data_epoch)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, each tensor once; they are not copied."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and id(value) not in seen:
            seen.add(id(value))
            found[name] = value.detach()
    return found


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a model, in place."""
    with torch.no_grad():
        for name, value in weights_of(model).items():
            value.copy_(weights[name])


def fingerprint(run: Run) -> dict[str, Any]:
    """What must be the same when a run goes on."""
    weights = weights_of(run.model)
    return {
        "model": {
            "class": type(run.model).__qualname__,
            "config": _plain(run.model.config),
            "weights": {
                name: f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
                for name, value in weights.items()
            },
            "stages": {s.name: [player.name for player in s.players] for s in run.stages},
        },
        "options": that_matter(run.options),
        "training data": _describe(run.train_data),
        "validation data": None if run.validation is None else _describe(run.validation.data),
    }


def _plain(configuration: Any) -> Any:
    try:
        return json.loads(json.dumps(unstructure(configuration)))
    except (TypeError, ValueError, MultivaeError):  # a configuration of the user's own kind
        return repr(configuration)


def _describe(data: IncompleteDataset) -> dict[str, Any]:
    """Sizes, and a digest of the masks and of three rows: another table is noticed."""
    digest = hashlib.sha256(data.present.numpy().tobytes())
    sample = data.batch([0, len(data) // 2, len(data) - 1])
    for name in data.names:
        digest.update(sample.values[name].contiguous().view(torch.uint8).numpy().tobytes())
    return {
        "rows": len(data),
        "shapes": {name: list(shape) for name, shape in data.shapes.items()},
        "types": {name: str(kind) for name, kind in data.dtypes.items()},
        "digest": digest.hexdigest()[:16],
    }


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Say what differs between two fingerprints, one line per entry."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{path} {key}".strip())
    elif old != new:
        yield f"{path}: {old!r} in the checkpoint, {new!r} now"


def captured(run: Run) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Everything that a checkpoint holds: tensors by file, and the rest as JSON can hold it."""
    tensors: dict[str, Tensor] = {}
    memory: dict[str, Any] = {}
    for mover in run.movers:
        own, others = mover.state()
        tensors |= {f"optimiser/{name}": value for name, value in own.items()}
        memory |= others
    device = run.accelerator.device
    random_tensors, random_others = random_state(device)
    if run.stepper.several:
        random_tensors = {
            name: run.accelerator.gather(value.to(device)[None]).cpu()
            for name, value in random_tensors.items()
        }
    else:
        random_tensors = {name: value[None] for name, value in random_tensors.items()}
    scaler = run.accelerator.scaler
    state = {
        "position": attrs.asdict(run.position),
        "fingerprint": run.fingerprint,
        "processes": run.accelerator.num_processes,
        "meter": run.meter.state(),
        "history": run.history.to_rows(),
        "optimisers": memory,
        "random": random_others,
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    return {"model": weights_of(run.model), "optimisers": tensors | random_tensors}, state


def restore(run: Run, checkpoint: Checkpoint) -> None:
    """Put a run where a checkpoint was written.

    Optimisers are given their memory when the stage is taken up: see ``run.memory``.

    Raises:
        TrainingError: Model, data or options differ from those of the checkpoint.
    """
    state = checkpoint.state
    if different := list(differences(state["fingerprint"], run.fingerprint)):
        more = f"; and {len(different) - 4} more" if len(different) > 4 else ""
        raise TrainingError(
            f"checkpoint {checkpoint.path} is of another run: {'; '.join(different[:4])}{more}."
            " Only budgets (epochs, steps, patience), files and display may change when a run"
            " goes on; use the same settings, another folder, or resume=False in an empty one"
        )
    position = Position(**state["position"])
    total = run.budgets[position.stage].total_steps(run.feeder.batches)
    if position.stage_step > total:
        raise TrainingError(
            f"checkpoint {checkpoint.path} is at step {position.stage_step} of stage"
            f" {run.stages[position.stage].name!r}, and the budget is {total} steps; give at"
            " least as many epochs or steps as are done"
        )
    several = run.accelerator.num_processes
    load_weights(run.model, checkpoint.tensors("model"))
    tensors = checkpoint.tensors("optimisers")
    if state["processes"] != several:
        logger.warning(
            "the checkpoint is of %d processes, these are %d: the run goes on, but not bit for"
            " bit as it would have", state["processes"], several,
        )  # fmt: skip
    own = run.accelerator.process_index % state["processes"]
    random = {name: value[own] for name, value in tensors.items() if name.startswith("random/")}
    restore_random_state(random, state["random"], run.accelerator.device)
    run.position = position
    run.meter = Meter.of_state(state["meter"])
    run.history.epochs[:] = History.from_rows(state["history"]).epochs
    memory = {name.removeprefix("optimiser/"): value for name, value in tensors.items()}
    run.memory = memory, state["optimisers"]
    best = checkpoint.best_weights()
    if best is not None and position.best_step is not None:
        run.best = Saved(position.best_step, best)
    if state["scaler"] is not None and run.accelerator.scaler is not None:
        run.accelerator.scaler.load_state_dict(state["scaler"])
