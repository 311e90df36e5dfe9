"""One run of training: stages, epochs, steps, and what happens between them."""

from __future__ import annotations

__all__ = ["Run", "not_finite"]

import functools
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy
import torch
from torch import Tensor, nn

from multivae_core.data import IncompleteDataset
from multivae_core.errors import TrainingError
from multivae_core.stages import Stage
from multivae_core.training.checkpoints import Position, fingerprint, load_weights, save
from multivae_core.training.objective import Key, Meter, Report, means, report
from multivae_core.training.options import Budget, TrainerOptions
from multivae_core.training.players import (
    Feeder,
    Local,
    Mover,
    gradient_norm,
    lr_factor,
    movers,
    summed,
)
from multivae_core.training.reports import VALIDATION, Display, Epoch, History

if TYPE_CHECKING:
    from multivae_core.model import MultimodalVAE

logger = logging.getLogger(__name__)


class Run:
    """A model on its way through its stages; callbacks get this object.

    Every look at the numbers (each ``log_every`` steps, at the end of an epoch and before a
    checkpoint) makes sure that losses and weights are finite, so that no checkpoint, validation
    or best model holds others. On a CPU the loss is looked at in every step, before weights move;
    an accelerator would have to be waited for.

    Attributes:
        model: The model.
        weights: Its parameters and saved buffers by name, which share memory with it.
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
        weights: Mapping[str, Tensor],
        data: tuple[IncompleteDataset, IncompleteDataset | None],
        options: TrainerOptions,
        plan: Sequence[tuple[Stage, Budget]],
        hooks: pluggy.PluginManager,
        accelerator: Any,
    ) -> None:
        self.model = model
        self.weights = dict(weights)
        self.options = options
        self.stages: tuple[Stage, ...] = tuple(stage for stage, _ in plan)
        self.budgets: tuple[Budget, ...] = tuple(budget for _, budget in plan)
        self.hooks = hooks.hook
        self.accelerator = accelerator
        train, valid = data
        feeder = functools.partial(Feeder, model=model, options=options, accelerator=accelerator)
        self.feeder = feeder(train)
        self.validation = None if valid is None else feeder(valid)
        self.display = Display(options.progress, accelerator.is_main_process)
        self.history = History()
        self.position = Position()
        self.meter = Meter()
        self.movers: list[Mover] = []
        self._players: list[str] = []
        self.memory: Mapping[str, Tensor] | None = None
        self.best: dict[str, Tensor] | None = None
        self.last_checkpoint: Path | None = None
        self.saved: tuple[int, ...] | None = None
        self.interrupted = False
        self._sum = functools.partial(summed, accelerator)
        self._params = dict(model.named_parameters())
        self._free = [p for p in self._params.values() if p.requires_grad]
        self._awake: list[nn.Module] = []
        self._seen: dict[Key, tuple[float, float]] = {}

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        return fingerprint(self)

    @property
    def stage(self) -> Stage:
        """The stage in which training stands."""
        return self.stages[self.position.stage]

    @property
    def total_steps(self) -> int:
        """Optimisation steps of the stage."""
        return self.budgets[self.position.stage].total_steps(self.feeder.batches)

    @property
    def here(self) -> tuple[int, ...]:
        """What tells the places apart at which there may be a checkpoint."""
        position = self.position
        return position.step, position.stage, position.epoch, position.batch

    def stop(self) -> None:
        """End the stage after this epoch."""
        self.position.stopped = True

    def train(self) -> None:
        """Go through all stages from where the run stands.

        Raises:
            TrainingError: A loss or gradient is not finite; a player that never moves.
        """
        try:
            self.hooks.train_start(run=self)
            self._stage()
            while self.position.stage + 1 < len(self.stages):
                self._next_stage()
            if self.options.best_model and self.best is not None:
                load_weights(self.weights, self.best)
            self.hooks.train_end(run=self)
        finally:
            self._thaw()
            self._set_training(False)

    def _stage(self) -> None:
        self._thaw()
        self.movers = movers(self._params, self.stage, self.options, self.accelerator)
        self._players = [mover.player.name for mover in self.movers]
        self._wake()
        if self.memory is not None:
            for mover in self.movers:
                mover.restore(self.memory)
            self.memory = None
        rows = len(self.feeder.data) / self.feeder.batches
        total, done = (round(n * rows) for n in (self.total_steps, self.position.stage_step))
        self.display.start(self.stage.name, total, done)
        try:
            self.hooks.stage_start(run=self)
            while not self._over():
                self._epoch()
        finally:
            self.display.close()
        self._checkpoint()
        self.hooks.stage_end(run=self)

    def _thaw(self) -> None:
        """Thaw the parameters that the user had left free; forget gradients."""
        for parameter in self._free:
            parameter.requires_grad_(True)
            parameter.grad = None

    def _wake(self) -> None:
        """Training mode for the modules of the stage's players, evaluation mode for all others."""
        self.model.eval()
        for part in (part for player in self.stage.players for part in player.parameters):
            if isinstance(part, nn.Module):
                part.train()
                continue
            for module in self.model.modules():
                if any(p is part for p in module.parameters(recurse=False)):
                    module.training = True
        self._awake = [module for module in self.model.modules() if module.training]

    def _set_training(self, training: bool) -> None:
        for module in self._awake:
            module.training = training

    def _over(self) -> bool:
        position, patience = self.position, self.options.patience
        if position.batch:  # an interrupted epoch comes to its end first
            return False
        tired = patience is not None and position.waited >= patience
        return position.stopped or tired or position.stage_step >= self.total_steps

    def _next_stage(self) -> None:
        old = self.position
        self.position = Position(step=old.step, stage=old.stage + 1, data_epoch=old.data_epoch)
        if self.stage.start_from == "best" and self.best is not None:
            load_weights(self.weights, self.best)
        self.best = None
        self._stage()

    def _epoch(self) -> None:
        began, position, due = time.monotonic(), self.position, self.options.checkpoint_due
        left = self.total_steps - position.stage_step
        stop = min(self.feeder.batches, position.batch + left)
        self.hooks.epoch_start(run=self)
        for local in self.feeder.epoch(position.data_epoch, position.batch, stop):
            loss = self._step(local)
            if self.hooks.step_end.get_hookimpls():
                self.hooks.step_end(run=self, loss=loss)
            if due("steps", position.step):
                self._checkpoint()
            self._mind_interrupt()
        self._end_epoch(began)
        if due("epochs", position.epoch):
            self._checkpoint()
        self._mind_interrupt()

    def _step(self, local: Local) -> Tensor:
        position, options, total = self.position, self.options, self.total_steps
        factor = lr_factor(options, position.stage_step, total)
        work = self.feeder.work(local, position.step, position.stage_step / total)
        look = (position.step + 1) % options.log_every == 0
        loss = torch.zeros(())
        for mover in self.movers:
            if position.stage_step % mover.player.every:
                continue
            mover.set_rate(factor)
            self._focus(mover)
            loss, reports = mover.gradients(work)
            norm = None
            if look or position.batch == 0 or options.clip_norm is not None:
                norm = gradient_norm(mover)
                key = Key(mover.player.name, 0, "number", "gradient_norm")
                reports.append((Report((key,), norm.view(1), 1.0, norm[None, None]), work[0]))
            if loss.device.type == "cpu" and not (
                math.isfinite(loss) and (norm is None or math.isfinite(norm))
            ):
                found = (entry.culprit(part.batch.index) for entry, part in reports)
                raise self._failure(next(filter(None, found), "the loss"))
            for entry, _ in reports:
                self.meter.add(entry)
            mover.step(norm, options.clip_norm)
        position.step, position.stage_step = position.step + 1, position.stage_step + 1
        position.batch += 1
        self.display.step(len(local.rows))
        if look:
            self._look()
        return loss

    def _focus(self, mover: Mover) -> None:
        """With several players only the one who moves has gradients."""
        if len(self.movers) > 1:
            for other in sorted(self.movers, key=lambda one: one is mover):
                for parameter in other.params:
                    parameter.requires_grad_(other is mover)

    def _look(self) -> dict[Key, tuple[float, float]]:
        """The totals of the epoch; refuse to go on where they or the weights are not finite."""
        totals = self.meter.totals(self._sum)
        for key, (value, _) in totals.items():
            if key.role in ("bound", "term") and not math.isfinite(value):
                raise self._failure(f"{key.role} {key.name!r} of {key.player!r}", late=True)
        if (name := not_finite(self.weights)) is not None:
            raise self._failure(f"weight {name!r}, or its gradient,", late=True)
        old, self._seen = self._seen, totals
        news = {k: (a - old.get(k, (0, 0))[0], b - old.get(k, (0, 0))[1])
                for k, (a, b) in totals.items()}  # fmt: skip
        if numbers := means({k: v for k, v in news.items() if v[1]}, self._players):
            self.display.note(self._label, numbers)
            self._track("train", numbers)
        return totals

    def _end_epoch(self, began: float) -> None:
        position, label = self.position, self._label
        numbers = means(self._look(), self._players)
        for mover in self.movers:
            if mover.tried and not mover.moved:
                raise TrainingError(
                    f"stage {self.stage.name!r}: no parameter of player {mover.player.name!r}"
                    " had a gradient in a whole epoch; its loss must depend on its parameters"
                )
        if self.validation is not None:
            measured = self._validate(self.validation)
            numbers |= {f"validation/{name}": value for name, value in measured.items()}
            self._judge(numbers[VALIDATION])
        numbers["lr"] = float(self.movers[0].optimiser.param_groups[0]["lr"])
        position.epoch, position.data_epoch = position.epoch + 1, position.data_epoch + 1
        position.batch = 0
        name, seconds = self.stage.name, time.monotonic() - began
        row = Epoch(name, position.epoch, position.step, numbers, seconds)
        self.history.epochs.append(row)
        self.meter, self._seen = Meter(), {}
        self.display.line(label, numbers)
        self._track("epoch", numbers)
        self.hooks.epoch_end(run=self, row=row)

    def _validate(self, feeder: Feeder) -> dict[str, float]:
        """The loss of the stage's first player on the validation data, pooled over all rows."""
        meter, first, position = Meter(), self.movers[0], self.position
        self._set_training(False)
        with torch.no_grad():
            for local in feeder.epoch(shuffle=False):
                progress = position.stage_step / self.total_steps
                for part in feeder.work(local, position.step, progress, training=False):
                    for number, output in enumerate(first.pieces(part)):
                        meter.add(report(output, part.share, first.player.name, number))
        self._set_training(True)
        return means(meter.totals(self._sum), [first.player.name])

    def _judge(self, value: float) -> None:
        """Compare a validation loss with those before; NaN is never better."""
        position = self.position
        if math.isfinite(value) and (position.best is None or value < position.best):
            position.best, position.waited = value, 0
            self.best = {name: w.to("cpu", copy=True) for name, w in self.weights.items()}
        else:
            position.waited += 1

    def _checkpoint(self) -> None:
        """Write a checkpoint, unless there is one of this very position."""
        if self.options.folder is None or self.here == self.saved:
            return
        self._look()
        self.last_checkpoint = save(self, self.options.folder)
        self.saved = self.here
        self.hooks.checkpoint_saved(run=self, path=self.last_checkpoint)

    def _mind_interrupt(self) -> None:
        """Turn Ctrl-C, noted by a signal handler, into a checkpoint and an exception."""
        asked = self.interrupted
        if self.accelerator.num_processes > 1:
            # processes must leave together; they ask each other only now and then
            if self.position.batch and self.position.step % self.options.log_every:
                return
            asked = bool(self._sum(torch.tensor(float(asked), device=self.accelerator.device)))
        if asked:
            self._checkpoint()
            where = f"stage {self.stage.name!r}, step {self.position.step}"
            logger.warning("interrupted at %s; checkpoint %s", where, self.last_checkpoint)
            raise KeyboardInterrupt

    def _failure(self, what: str, late: bool = False) -> TrainingError:
        """What is not finite, where, and what to do; late: weights may have moved since."""
        position = self.position
        step = f"step {position.step + 1} of the run. The model has the weights before it"
        if late:
            step = f"step {position.step} of the run or shortly before"
        last = self.last_checkpoint or "none (folder= makes a run write them)"
        return TrainingError(
            f"{what} is not finite in stage {self.stage.name!r}, epoch {position.epoch + 1},"
            f" {step}; last good checkpoint: {last}. Try a lower lr (now {self.options.lr:g}),"
            " clip_norm=, or standardised data"
        )

    @property
    def _label(self) -> str:
        budget = self.budgets[self.position.stage]
        of = f"/{budget.amount}" if budget.unit == "epochs" else ""
        return f"{self.stage.name} epoch {self.position.epoch + 1}{of}"

    def _track(self, group: str, numbers: Mapping[str, float]) -> None:
        if self.options.trackers:
            named = {f"{group}/{name}": value for name, value in numbers.items()}
            self.accelerator.log(named, step=self.position.step)


def not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The name of a weight that is NaN or infinite, or None."""
    real = {name: value for name, value in weights.items() if value.is_floating_point()}
    # a sum is finite only where all of it is, and one look tells; then each in turn
    sums = [value.sum(dtype=torch.float64) for value in real.values()]
    if not sums or math.isfinite(torch.stack(sums).sum()):
        return None
    return next((n for n, value in real.items() if not bool(value.isfinite().all())), None)
