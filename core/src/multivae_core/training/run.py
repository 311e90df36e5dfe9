"""One run of training: stages, epochs, steps, and what happens between them."""

from __future__ import annotations

__all__ = ["Run"]

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy
import torch
from torch import Tensor

from multivae_core.data import IncompleteDataset
from multivae_core.errors import TrainingError
from multivae_core.stages import Stage
from multivae_core.training.checkpoints import CheckpointFolder, Saved
from multivae_core.training.feeding import Feeder, Local
from multivae_core.training.history import VALIDATION, Epoch, History
from multivae_core.training.objective import Meter, record
from multivae_core.training.optimisers import Mover, lr_factor, movers, set_modes
from multivae_core.training.options import PLATEAU_PATIENCE, Budget, TrainerOptions
from multivae_core.training.progress import display
from multivae_core.training.state import (
    Position,
    captured,
    fingerprint,
    load_weights,
    weights_of,
)
from multivae_core.training.steps import NotFinite, Stepper

if TYPE_CHECKING:
    from multivae_core.model import MultimodalVAE

logger = logging.getLogger(__name__)


class Run:
    """A model on its way through its stages; callbacks get this object.

    Attributes:
        model: The model.
        options: The trainer's options.
        stages: The stages.
        budgets: How long each lasts.
        history: The epochs so far.
        position: Where training stands, see `Position`; read it, do not change it.
        accelerator: accelerate's object: device, processes, trackers.
        last_checkpoint: The folder written last, or resumed from, or None.
    """

    def __init__(
        self,
        model: MultimodalVAE,
        train: IncompleteDataset,
        validation: IncompleteDataset | None,
        options: TrainerOptions,
        plan: Sequence[tuple[Stage, Budget]],
        hooks: pluggy.PluginManager,
        accelerator: Any,
        folder: CheckpointFolder | None,
    ) -> None:
        self.model = model
        self.options = options
        self.stages = tuple(stage for stage, _ in plan)
        self.budgets = tuple(budget for _, budget in plan)
        self.hooks = hooks.hook
        self.accelerator = accelerator
        self.folder = folder
        self.feeder = self._feeder(train)
        self.validation = None if validation is None else self._feeder(validation)
        self.display = display(options.progress, accelerator.is_main_process)
        self.stepper = Stepper(model, options, accelerator)
        self.history = History()
        self.position = Position()
        self.meter = Meter()
        self.movers: list[Mover] = []
        self.memory: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None
        self.best: Saved | None = None
        self.last_checkpoint: Path | None = None
        self.interrupted = False
        self.fingerprint = fingerprint(self)
        self._free = [p for p in model.parameters() if p.requires_grad]
        self._saved: tuple[int, ...] | None = None
        self._between_steps = True

    def _feeder(self, data: IncompleteDataset) -> Feeder:
        return Feeder(data, self.model, self.options, self.accelerator)

    @property
    def stage(self) -> Stage:
        """The stage in which training stands."""
        return self.stages[self.position.stage]

    @property
    def train_data(self) -> IncompleteDataset:
        """The training data."""
        return self.feeder.data

    @property
    def total_steps(self) -> int:
        """Optimisation steps of the stage."""
        return self.budgets[self.position.stage].total_steps(self.feeder.batches)

    def stop(self) -> None:
        """End the stage after this epoch."""
        self.position.stopped = True

    def resumed(self, path: Path) -> None:
        """Note that the run stands where this checkpoint was written."""
        self.last_checkpoint = path
        if self.folder is not None and path.parent.resolve() == self.folder.folder.resolve():
            self._saved = self._here

    @property
    def _here(self) -> tuple[int, ...]:
        position = self.position
        return position.step, position.stage, position.epoch, position.batch

    def train(self) -> None:
        """Go through all stages from where the run stands.

        Raises:
            TrainingError: A loss or gradient is not finite; a player that never moves.
        """
        try:
            self.hooks.train_start(run=self)
            while True:
                self._stage()
                if self.position.stage + 1 == len(self.stages):
                    break
                self._to_next_stage()
            if self.options.best_model and self.best is not None:
                load_weights(self.model, self.best.weights)
            self.hooks.train_end(run=self)
        except NotFinite as error:
            raise TrainingError(self._obituary(error)) from None
        except KeyboardInterrupt:
            self._leave()
            raise
        finally:
            self._thaw()

    def _stage(self) -> None:
        self._thaw()
        self.movers = movers(self.model, self.stage, self.options)
        set_modes(self.model, self.stage)
        if self.memory is not None:
            for mover in self.movers:
                mover.restore(*self.memory)
            self.memory = None
        rows = len(self.train_data) / self.feeder.batches
        self.display.start(
            self.stage.name,
            round(self.total_steps * rows),
            round(self.position.stage_step * rows),
        )
        try:
            self.hooks.stage_start(run=self)
            while not self._over():
                self._epoch()
        finally:
            self.display.close()
        if self.folder is not None:
            self._checkpoint()
        self.hooks.stage_end(run=self)

    def _over(self) -> bool:
        position, patience = self.position, self.options.patience
        if position.batch:  # an interrupted epoch comes to its end first
            return False
        tired = patience is not None and position.waited >= patience
        return position.stopped or tired or position.stage_step >= self.total_steps

    def _to_next_stage(self) -> None:
        self.position = self.position.next_stage()
        if self.stage.start_from == "best":
            if self.best is not None:
                load_weights(self.model, self.best.weights)
            else:
                logger.info(
                    "stage %r starts from the last weights: there was no validation to tell"
                    " the best", self.stage.name,
                )  # fmt: skip
        self.best = None
        self.movers = []

    def _epoch(self) -> None:
        began, position = time.monotonic(), self.position
        left = self.total_steps - position.stage_step
        stop = min(self.feeder.batches, position.batch + left)
        self.hooks.epoch_start(run=self)
        for local in self.feeder.epoch(position.data_epoch, position.batch, stop):
            self._between_steps = False
            loss = self._step(local)
            self._between_steps = True
            if self._listeners:
                self.hooks.step_end(run=self, loss=loss)
            if self.options.checkpoint_due("steps", position.step):
                self._checkpoint()
            self._mind_interrupt()
        self._between_steps = False
        self._end_epoch(began)
        if self.options.checkpoint_due("epochs", position.epoch):
            self._checkpoint()
        self._mind_interrupt()

    @property
    def _listeners(self) -> bool:
        return bool(self.hooks.step_end.get_hookimpls())

    def _step(self, local: Local) -> Tensor:
        position, options, total = self.position, self.options, self.total_steps
        factor = position.rate * lr_factor(options, position.stage_step, total)
        work = self.feeder.work(
            local, position.step, position.stage_step / total, options.gradient_accumulation
        )
        loss = torch.zeros(())
        for mover in self.movers:
            if position.stage_step % mover.player.every:
                continue
            mover.set_rate(factor)
            self._focus(mover)
            loss = self.stepper.move(mover, work, self.meter)
        position.step += 1
        position.stage_step += 1
        position.batch += 1
        self.display.step(len(local.rows))
        if position.step % options.log_every == 0:
            self._look()
        return loss

    def _focus(self, mover: Mover) -> None:
        """With several players only the one who moves has gradients."""
        if len(self.movers) > 1:
            for other in self.movers:
                for parameter in other.params:
                    parameter.requires_grad_(False)
            for parameter in mover.params:
                parameter.requires_grad_(True)

    def _look(self) -> None:
        numbers = self.stepper.look(self.meter).numbers(self._players)
        if numbers:
            self.display.note(self._label(), numbers)
            self._track({f"train/{name}": value for name, value in numbers.items()})

    @property
    def _players(self) -> list[str]:
        return [mover.player.name for mover in self.movers]

    def _end_epoch(self, began: float) -> None:
        position = self.position
        self._look()
        for mover in self.movers:
            if mover.tried and not mover.moved:
                raise TrainingError(
                    f"stage {self.stage.name!r}: no parameter of player {mover.player.name!r}"
                    " had a gradient in a whole epoch; its loss must depend on its parameters"
                )
        numbers = self.meter.numbers(self._players)
        if self.validation is not None:
            measured = self._validate(self.validation)
            numbers |= {f"validation/{name}": value for name, value in measured.items()}
        numbers["lr"] = float(self.movers[0].optimiser.param_groups[0]["lr"])
        row = Epoch(
            stage=self.stage.name,
            epoch=position.epoch + 1,
            step=position.step,
            numbers=numbers,
            seconds=time.monotonic() - began,
        )
        self.history.epochs.append(row)
        if VALIDATION in numbers:
            self._judge(numbers[VALIDATION])
        label = self._label()
        position.epoch += 1
        position.data_epoch += 1
        position.batch = 0
        self.meter = Meter()
        self.display.line(label, numbers)
        self._track({f"epoch/{name}": value for name, value in numbers.items()})
        self._between_steps = True
        self.hooks.epoch_end(run=self, row=row)

    def _validate(self, feeder: Feeder) -> dict[str, float]:
        """The loss of the stage's first player on the validation data, pooled over all rows."""
        meter, first = Meter(), self.movers[0]
        position = self.position
        self.model.eval()
        with torch.no_grad():
            for local in feeder.epoch(shuffle=False):
                part = feeder.evaluation(
                    local, position.step, position.stage_step / self.total_steps
                )
                for number, output in enumerate(self.stepper.pieces(first, part)):
                    meter.add(record(output, part.share, first.player.name, number))
        set_modes(self.model, self.stage)
        meter.flush(self.stepper.reduce if self.stepper.several else None)
        return meter.numbers([first.player.name])

    def _judge(self, value: float) -> None:
        """Compare a validation loss with those before; NaN is never better."""
        position, options = self.position, self.options
        if math.isfinite(value) and (position.best is None or value < position.best):
            position.best, position.best_step = value, position.step
            weights = {n: w.to("cpu", copy=True) for n, w in weights_of(self.model).items()}
            self.best = Saved(position.step, weights)
        reference = math.inf if position.reference is None else position.reference
        if value < reference - (options.min_delta if math.isfinite(reference) else 0.0):
            position.reference, position.waited, position.stuck = value, 0, 0
            return
        position.waited += 1
        position.stuck += 1
        if options.schedule == "plateau" and position.stuck >= PLATEAU_PATIENCE:
            position.rate, position.stuck = position.rate / 2, 0

    def _checkpoint(self) -> None:
        """Write a checkpoint, unless there is one of this very position."""
        here = self._here
        if self.folder is None or here == self._saved:
            return
        position = self.position
        self._look()
        tensors, state = captured(self)
        if self.accelerator.is_main_process:
            self.folder.save(position.step, tensors, state, self.best)
        self.accelerator.wait_for_everyone()
        self._saved = here
        self.last_checkpoint = self.folder.folder / f"step-{position.step:08d}"
        self.hooks.checkpoint_saved(run=self, path=self.last_checkpoint)

    def _mind_interrupt(self) -> None:
        """Turn Ctrl-C, noted by a signal handler, into an exception between two steps."""
        asked = self.interrupted
        if self.stepper.several:
            # processes must leave together; they ask each other only now and then
            if self.position.batch and self.position.step % self.options.log_every:
                return
            device = self.accelerator.device
            asked = bool(self.stepper.reduce(torch.tensor(float(asked), device=device)))
        if asked:
            raise KeyboardInterrupt

    def _leave(self) -> None:
        at = f"stage {self.stage.name!r}, step {self.position.step}"
        if self.folder is not None and self._between_steps and self.movers:
            self._checkpoint()
            logger.warning("interrupted at %s; checkpoint %s", at, self.last_checkpoint)
        else:
            last = self.last_checkpoint or "none"
            logger.warning("interrupted at %s; last checkpoint: %s", at, last)

    def _obituary(self, error: NotFinite) -> str:
        position, options = self.position, self.options
        step = f"step {position.step + 1}"
        if error.late:
            step = f"one of the {options.log_every} steps before step {position.step + 1}"
        last = self.last_checkpoint or "none (folder= makes a run write them)"
        return (
            f"{error.what} is not finite in stage {self.stage.name!r}, epoch {position.epoch + 1},"
            f" {step} of the run. The model has the weights of the last finite step; last good"
            f" checkpoint: {last}. Try a lower lr (now {options.lr:g}), clip_norm=,"
            " standardised data, or non_finite='skip'"
        )

    def _label(self) -> str:
        budget = self.budgets[self.position.stage]
        of = f"/{budget.amount}" if budget.unit == "epochs" else ""
        return f"{self.stage.name} epoch {self.position.epoch + 1}{of}"

    def _track(self, numbers: Mapping[str, float]) -> None:
        if self.options.trackers:
            self.accelerator.log(dict(numbers), step=self.position.step)

    def _thaw(self) -> None:
        """Freeze and thaw parameters as the user had them; forget gradients."""
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        for parameter in self._free:
            parameter.requires_grad_(True)
        self.model.eval()
