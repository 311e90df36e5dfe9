"""What a run stands in: accelerate, compiled networks, trackers, Ctrl-C."""

from __future__ import annotations

__all__ = ["compiled", "make_accelerator", "polite_interrupt", "share_weights", "tracking"]

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from multivae_core.errors import ConfigError, TrainingError
from multivae_core.training.options import TrainerOptions, that_matter
from multivae_core.training.run import Run
from multivae_core.training.state import weights_of

logger = logging.getLogger(__name__)


def make_accelerator(options: TrainerOptions) -> Any:
    """The object of accelerate, which is imported here because it is heavy."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import DistributedType

    known = sorted(str(name) for name in get_available_trackers())
    for name in options.trackers:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise ConfigError(
                f"{name!r} is unknown or not installed; installed: {listed}", "trackers"
            )
    # it remembers the precision of the first one in the process; the processes' links stay
    AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(
            mixed_precision=options.mixed_precision,
            cpu=options.device == "cpu",
            log_with=list(options.trackers) or None,
            project_dir=str(options.tracker_folder or options.folder or Path("runs")),
        )
    except ValueError as error:
        raise ConfigError(str(error), "mixed_precision") from error
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("fp16 needs an accelerator, this is a CPU; use 'no'", "mixed_precision")
    # the launcher may have set it, and backward would divide by it; parts are cut here
    accelerator.gradient_accumulation_steps = 1
    sharded = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if accelerator.distributed_type in sharded:
        raise TrainingError(
            f"{accelerator.distributed_type.value} splits weights over processes, and nobody has"
            " built checkpoints and sums of gradients for that here; launch plain multi-GPU"
        )
    return accelerator


def share_weights(model: nn.Module, processes: int) -> None:
    """All processes begin with the weights of the first."""
    if processes > 1:
        from accelerate.utils import broadcast

        for value in weights_of(model).values():
            value.copy_(broadcast(value, from_process=0))


@contextmanager
def compiled(model: nn.Module, backend: bool | str) -> Iterator[None]:
    """Compile the networks for the time of a run: the outermost modules that can be called."""
    if backend is False:
        yield
        return
    networks = list(_networks(model))
    for network in networks:
        network.compile(backend="inductor" if backend is True else backend, dynamic=True)
    try:
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None


def _networks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        groups = isinstance(child, nn.ModuleList | nn.ModuleDict)
        if groups or type(child).forward is nn.Module.forward:
            yield from _networks(child)
        else:
            yield child


@contextmanager
def tracking(accelerator: Any, options: TrainerOptions) -> Iterator[None]:
    """Open and close the trackers."""
    if not options.trackers:
        yield
        return
    plain = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in that_matter(options).items()
    }
    accelerator.init_trackers(options.project, config=plain)
    try:
        yield
    finally:
        # not end_training(): it would also end the links between processes
        for tracker in accelerator.trackers:
            tracker.finish()


@contextmanager
def polite_interrupt(run: Run) -> Iterator[None]:
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
