"""`Trainer`: options in, a trained model and its history out."""

from __future__ import annotations

__all__ = ["Trainer"]

import inspect
import logging
import os
import random
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from multivae_core.data import IncompleteDataset
from multivae_core.errors import ConfigError, DataError, TrainingError
from multivae_core.stages import Stage
from multivae_core.training.callbacks import gather
from multivae_core.training.checkpoints import (
    checkpoints,
    newest,
    preserved,
    restore,
    weights_of,
)
from multivae_core.training.options import TrainerOptions, budgets, that_matter
from multivae_core.training.reports import History
from multivae_core.training.run import Run, not_finite

if TYPE_CHECKING:
    from multivae_core.model import MultimodalVAE

logger = logging.getLogger(__name__)


class Trainer:
    """Trains a model on data with holes, on one device or many.

    The same script runs on a CPU, on one GPU, and on many by ``accelerate launch``. Rows of a
    step, their noise and the weights of the loss are those of the global batch, so the number of
    processes and of accumulated parts changes results by rounding only.

    A step is one batch: every player moves once (or once in ``every`` steps). ``step.number``
    counts the steps of the whole run, ``step.progress`` is the share of the stage that is behind.
    Validation runs at the end of every epoch with ``step.training`` False, where the divergence
    and every modality have weight 1 whatever the schedule: values are comparable over a run.
    The validation loss of a stage is that of its first player.

    Args:
        **options: See `TrainerOptions`.

    Raises:
        ConfigError: An unknown option, or a value that is not allowed.
    """

    def __init__(self, **options: Any) -> None:
        known = inspect.signature(TrainerOptions).parameters
        if unknown := [name for name in options if name not in known]:
            listed = ", ".join(known)
            raise ConfigError(f"unknown option of a trainer; there is {listed}", unknown[0])
        self.options = TrainerOptions(**options)

    def __repr__(self) -> str:
        changed = [
            f"{name}={getattr(self.options, name)!r}"
            for name, parameter in inspect.signature(TrainerOptions).parameters.items()
            if getattr(self.options, name) != parameter.default
        ]
        return f"Trainer({', '.join(changed)})"

    def fit(
        self,
        model: MultimodalVAE,
        train: IncompleteDataset,
        validation: IncompleteDataset | None = None,
    ) -> History:
        """Train a model in place.

        The model ends on the device it was trained on, in evaluation mode, with the weights of
        its lowest validation loss if validation data are given (see ``best_model``). Torch's,
        numpy's and Python's random states are seeded for the run and put back afterwards.

        Args:
            model: The model.
            train: What it learns from.
            validation: What the best weights are chosen by.

        Returns:
            One row of numbers per epoch, those before an interruption included.

        Raises:
            DataError: Empty data, or data that do not fit the model.
            ConfigError: Options that do not fit the model, the machine or what is installed.
            TrainingError: A loss that is not finite; a checkpoint of another run.
            KeyboardInterrupt: After Ctrl-C, when the step is done and a checkpoint is written.
        """
        options = self.options
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"fit needs a model, got {type(model).__name__}; make one with"
                " mv.create_model(name, data)"
            )
        _check_data(model, train, "training")
        if validation is not None:
            _check_data(model, validation, "validation")
        stages = tuple(model.stages())
        _check_stages(stages)
        plan = tuple(zip(stages, budgets(options, stages), strict=True))
        hooks = gather(options.callbacks)
        accelerator = _accelerator(options)
        with ExitStack() as stack:
            stack.enter_context(preserved(accelerator.device))
            _seed(options.seed, accelerator.process_index)
            weights = _placed_weights(model, accelerator)
            run = Run(model, weights, (train, validation), options, plan, hooks, accelerator)
            _resume(run)
            stack.enter_context(_compiled(model, options.compile))
            stack.enter_context(_tracking(accelerator, options))
            stack.enter_context(_polite_interrupt(run))
            run.train()
        best = run.history.best
        model.notes["training"] = {
            "epochs": len(run.history),
            "steps": run.position.step,
            **{name: getattr(options, name) for name in ("batch_size", "optimiser", "lr", "seed")},
            **({} if best is None else {"best": best.numbers}),
        }
        return run.history


# help() and editors show the options rather than **options
Trainer.__signature__ = inspect.signature(TrainerOptions)  # type: ignore[attr-defined]


def _check_data(model: MultimodalVAE, data: Any, role: str) -> None:
    """Refuse data that are none, empty, or not the model's; ``role`` says which they are."""
    if not isinstance(data, IncompleteDataset):
        raise DataError(
            f"{role} data: expected an IncompleteDataset, got {type(data).__name__}; wrap"
            " arrays: mv.IncompleteDataset({'name': array, ...})"
        )
    if not bool(data.present.any()):
        remedy = "check how they were split or hidden"
        raise DataError(f"{role} data: there is nothing observed in any row; {remedy}")
    try:
        model.prepare(data.batch([0]))
    except DataError as error:
        raise DataError(f"{role} data: {error}") from error
    seen = dict(zip(data.names, data.present.any(dim=0).tolist(), strict=True))
    if never := [name for name in model.modalities if not seen.get(name)]:
        logger.warning("%s data never show %s of the model", role, ", ".join(never))


def _check_stages(stages: Sequence[Stage]) -> None:
    """Refuse stages and players without names of their own."""
    groups = {f"player of stage {s.name!r}": [p.name for p in s.players] for s in stages}
    for what, names in {"stage": [stage.name for stage in stages], **groups}.items():
        if not names or len(set(names)) < len(names) or any("/" in name for name in names):
            raise TrainingError(
                f"every {what} needs a name of its own without '/', and there must be at least"
                f" one; got {names}"
            )


def _accelerator(options: TrainerOptions) -> Any:
    """The object of accelerate, which is imported here because it is heavy."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    if options.trackers:
        from accelerate.tracking import get_available_trackers

        known = sorted(str(name) for name in get_available_trackers())
        if unknown := [name for name in options.trackers if name not in known]:
            reason = f"{unknown[0]!r} is unknown or not installed; installed: {known}"
            raise ConfigError(reason, "trackers")
    # it remembers the precision of the first one in the process; the processes' links stay
    AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(
            mixed_precision=options.mixed_precision,
            cpu=options.device == "cpu",
            log_with=list(options.trackers) or None,
            project_dir=str(options.folder or Path("runs")),
        )
    except ValueError as error:
        raise ConfigError(str(error), "mixed_precision") from error
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("fp16 needs an accelerator, this is a CPU; use 'no'", "mixed_precision")
    sharded = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if accelerator.distributed_type in sharded:
        raise TrainingError(
            f"{accelerator.distributed_type.value} splits weights over processes, and nobody has"
            " built checkpoints and sums of gradients for that here; launch plain multi-GPU"
        )
    return accelerator


def _seed(seed: int, process: int) -> None:
    """Seed torch, numpy and Python; dropout then differs from process to process."""
    # a large odd factor keeps the seeds of different runs and processes apart
    torch.manual_seed((seed + 0x9E3779B1 * process) % 2**63)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _placed_weights(model: MultimodalVAE, accelerator: Any) -> dict[str, Tensor]:
    """The weights, finite, on the device, and in all processes those of the first."""
    weights = weights_of(model)
    if any(value.device != accelerator.device for value in weights.values()):
        model.to(accelerator.device)
        weights = weights_of(model)
    if (name := not_finite(weights)) is not None:
        raise TrainingError(
            f"weight {name!r} of the model is not finite before training; build or load the"
            " model anew"
        )
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast

        for value in weights.values():
            value.copy_(broadcast(value, from_process=0))
    return weights


def _prepare_folder(folder: Path) -> None:
    """Make it, and remove what an interrupted write left behind."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ConfigError(f"{str(folder)!r} cannot be written to; choose another one", "folder")
    for leftover in folder.glob(".step-*.p*"):  # .partial and .previous
        shutil.rmtree(leftover, ignore_errors=True)


def _resume(run: Run) -> None:
    """Take up the run that the options point to, if there is one."""
    resume, folder = run.options.resume, run.options.folder
    if folder is not None and run.accelerator.is_main_process:
        _prepare_folder(folder)
    run.accelerator.wait_for_everyone()
    source = resume if isinstance(resume, Path) else folder if resume == "auto" else None
    found = None if source is None else newest(source)
    if found is not None:
        restore(run, *found)
        logger.info("going on from %s (step %d)", found[0], run.position.step)
    elif source is not None and (isinstance(resume, Path) or checkpoints(source)):
        raise TrainingError(
            f"no intact checkpoint in {source}; give the folder of a run or one of its step-..."
            " folders, or begin anew in an empty folder"
        )
    if folder is not None and run.saved is None and checkpoints(folder):
        raise TrainingError(
            f"{folder} holds checkpoints of another run; go on with it (resume='auto'), remove"
            " them, or choose another folder"
        )


@contextmanager
def _compiled(model: nn.Module, backend: bool | str) -> Iterator[None]:
    """Compile the networks for the time of a run: the outermost modules that can be called."""
    networks = [] if backend is False else list(networks_of(model))
    for network in networks:
        network.compile(backend="inductor" if backend is True else backend, dynamic=True)
    try:
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None


def networks_of(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        groups = isinstance(child, nn.ModuleList | nn.ModuleDict)
        if groups or type(child).forward is nn.Module.forward:
            yield from networks_of(child)
        else:
            yield child


@contextmanager
def _tracking(accelerator: Any, options: TrainerOptions) -> Iterator[None]:
    """Open and close the trackers."""
    if options.trackers:
        config = {n: v if isinstance(v, int | float) else str(v)
                  for n, v in that_matter(options).items()}  # fmt: skip
        accelerator.init_trackers(options.project, config=config)
    try:
        yield
    finally:
        # not end_training(): it would also end the links between processes
        for tracker in accelerator.trackers:
            tracker.finish()


@contextmanager
def _polite_interrupt(run: Run) -> Iterator[None]:
    """Let the first Ctrl-C wait for the end of the step; the second one does not wait."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def note(number: int, frame: Any) -> None:
        if run.interrupted:
            raise KeyboardInterrupt
        run.interrupted = True
        logger.warning("stopping after this step; once more to stop at once")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
