"""One move of one player: backward, sums over processes, the guard against NaN, the optimiser."""

from __future__ import annotations

__all__ = ["NotFinite", "Stepper"]

import functools
import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from multivae_core.errors import TrainingError
from multivae_core.losses import LossOutput
from multivae_core.training.feeding import Work
from multivae_core.training.objective import (
    Key,
    Meter,
    Record,
    check_output,
    objective,
    record,
    weight_sums,
)
from multivae_core.training.optimisers import Mover
from multivae_core.training.options import TrainerOptions

_SKIPS = 10
_NORM = "gradient_norm"


class NotFinite(Exception):
    """A loss or gradient that is NaN or infinite.

    Args:
        what: What is, with its player.
        late: Whether it was some steps ago.
    """

    def __init__(self, what: str, late: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.late = late


class Stepper:
    """Moves players.

    Gradients of several processes are summed here, all at once and after the last piece, by
    ``accelerator.reduce``: there is no wrapper around the model, so that a loss may run any of
    its networks any number of times, and none of them.

    On an accelerator nobody waits for a number: a step that is not finite is called off on the
    device, as are all after it, and the run stops when the numbers are looked at. On a CPU, in
    float16, and with optimisers that are not fused, every step is looked at.

    Args:
        model: The model.
        options: The trainer's options.
        accelerator: An `accelerate.Accelerator`.
    """

    def __init__(self, model: nn.Module, options: TrainerOptions, accelerator: Any) -> None:
        self.model = model
        self.options = options
        self.accelerator = accelerator
        self.several = accelerator.num_processes > 1
        self.deferred = (
            accelerator.device.type != "cpu"
            and accelerator.scaler is None
            and options.non_finite == "stop"
        )
        self.half = accelerator.mixed_precision in ("fp16", "bf16")
        self.skipped = 0
        self._bad: Tensor | None = None

    def reduce(self, values: Tensor) -> Tensor:
        """Sum over processes."""
        if not self.several:
            return values
        total: Tensor = self.accelerator.reduce(values, "sum")
        return total

    def move(self, mover: Mover, work: list[Work], meter: Meter) -> Tensor:
        """Make one step of one player.

        Args:
            mover: The player.
            work: The parts of this process's rows.
            meter: Takes what is reported.

        Returns:
            The objective over the global batch, detached.

        Raises:
            NotFinite: See `TrainerOptions.non_finite`; no weight was changed.
        """
        sums = self._measured(mover, work) if len(work) > 1 and mover.weighted else {}
        mover.clear()
        loss, records = self._backward(mover, work, sums)
        if self.several:
            loss = self._sum_gradients(mover, loss)
        gradients = [p.grad for p in mover.params if p.grad is not None]
        mover.tried, mover.moved = True, mover.moved or bool(gradients)
        scaler = self.accelerator.scaler
        if scaler is not None and gradients:
            scaler.unscale_(mover.optimiser)
        norm = _norm(gradients, loss)
        if not self._admitted(mover, loss, norm, records):
            return loss
        for entry in records:
            meter.add(entry)
        key = Key(mover.player.name, 0, "number", _NORM)
        meter.add(Record((key,), norm.view(1).to(loss), (None,), 1.0))
        self._step(mover, gradients, norm)
        return loss

    def look(self, meter: Meter) -> Meter:
        """Take in what a meter has waiting; return that as a meter of its own.

        Raises:
            NotFinite: A step since the last look was called off.
        """
        if self._bad is not None and bool(self._bad):
            for entry in meter.waiting():
                if (what := _culprit(entry)) is not None:
                    raise NotFinite(what, late=True)
            raise NotFinite("the gradient", late=True)
        return meter.flush(self.reduce if self.several else None)

    def pieces(self, mover: Mover, part: Work) -> Iterator[LossOutput]:
        """The pieces of a player's loss, in mixed precision if that was asked for."""
        found = mover.player.loss(part.batch, part.step)
        iterator = iter((found,)) if isinstance(found, LossOutput) else iter(found)
        while True:
            with self.accelerator.autocast() if self.half else nullcontext():
                output = next(iterator, None)
            if output is None:
                return
            if not mover.checked:
                check_output(output, part.batch.size, mover.player.name)
            yield output

    def _backward(
        self, mover: Mover, work: list[Work], sums: dict[tuple[int, str], Tensor]
    ) -> tuple[Tensor, list[Record]]:
        losses, records = [], []
        for part in work:
            for number, output in enumerate(self.pieces(mover, part)):
                known = functools.partial(
                    self._denominators, output, part, number, sums if len(work) > 1 else None
                )
                value = objective(output, part.share, known)
                if value.requires_grad:
                    self._send(value, output)
                losses.append(value.detach())
                records.append(
                    record(output, part.share, mover.player.name, number, part.batch.index)
                )
        mover.checked = True
        if not losses:
            raise TrainingError(f"the loss of player {mover.player.name!r} has no pieces")
        return functools.reduce(torch.add, losses), records

    def _send(self, value: Tensor, output: LossOutput) -> None:
        if output.terms or self.accelerator.scaler is None:
            self.accelerator.backward(value)
        else:
            # a surrogate alone carries on gradients, which are scaled already
            value.backward()

    def _denominators(
        self,
        output: LossOutput,
        part: Work,
        number: int,
        measured: dict[tuple[int, str], Tensor] | None,
    ) -> dict[str, Tensor]:
        if measured is None:
            sums = weight_sums(output, part.share)
            if not self.several:
                return sums
            return dict(zip(sums, self.reduce(torch.stack(list(sums.values()))), strict=True))
        try:
            return {
                name: measured[number, name]
                for name, term in output.terms.items()
                if term.weight is not None
            }
        except KeyError as error:
            raise TrainingError(
                f"term {error.args[0][1]!r} got weights of its own in the middle of training;"
                " with gradient accumulation it must have them from the first step"
            ) from error

    def _measured(self, mover: Mover, work: list[Work]) -> dict[tuple[int, str], Tensor]:
        """Sums of weights over the global batch, found by a pass before the one that counts.

        It is made in evaluation mode, so that it moves neither running statistics nor random
        states; weights may depend on what is present, not on dropout.
        """
        sums: dict[tuple[int, str], Tensor] = {}
        modes = [module for module in self.model.modules() if module.training]
        self.model.eval()
        for part in work:
            for number, output in enumerate(self.pieces(mover, part)):
                found = weight_sums(output, part.share)
                # pieces may use the gradients of those before them
                ones = dict.fromkeys(found, part.batch.present.new_ones((), dtype=torch.float))
                value = objective(output, part.share, functools.partial(dict, ones))
                if value.requires_grad:
                    value.backward()
                for name, weight in found.items():
                    sums[number, name] = sums.get((number, name), 0.0) + weight
        for module in modes:
            module.training = True
        mover.weighted = bool(sums)
        if sums and self.several:
            whole = self.reduce(torch.stack(list(sums.values())))
            sums = dict(zip(sums, whole, strict=True))
        return sums

    def _sum_gradients(self, mover: Mover, loss: Tensor) -> Tensor:
        """Sum gradients and the loss over processes, in one exchange.

        A parameter without a gradient in all processes stays without: a gradient of zeros
        would let the optimiser's momentum move it.
        """
        params = mover.params
        kind = functools.reduce(torch.promote_types, (p.dtype for p in params))
        there = torch.tensor([float(p.grad is not None) for p in params], device=loss.device)
        flat = [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in params]
        both = [*(part.to(kind) for part in flat), there.to(kind), loss.to(kind).view(1)]
        whole = self.reduce(torch.cat(both))
        sizes = [*(p.numel() for p in params), len(params), 1]
        *gradients, counts, total = whole.split(sizes)
        for parameter, gradient, count in zip(params, gradients, counts.tolist(), strict=True):
            if count:
                parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
        summed: Tensor = total.to(loss.dtype)[0]
        return summed

    def _admitted(
        self, mover: Mover, loss: Tensor, norm: Tensor, records: list[Record]
    ) -> bool:
        """Whether the step may be made; in the deferred case the device decides."""
        # with loss scaling a gradient that overflows is usual, and the scaler's business
        value = loss if self.accelerator.scaler is not None else loss + norm
        if self.deferred and mover.fused:
            bad = (~torch.isfinite(value)).float()
            self._bad = bad if self._bad is None else torch.maximum(self._bad, bad)
            # read by torch's fused kernels, which then leave weights and memory alone
            mover.optimiser.found_inf = self._bad  # type: ignore[attr-defined]
            return True
        if math.isfinite(float(value)):
            self.skipped = 0
            return True
        self.skipped += 1
        if self.options.non_finite == "skip" and self.skipped < _SKIPS:
            return False
        for entry in records:
            if (what := _culprit(entry)) is not None:
                raise NotFinite(what)
        names = [
            name
            for name, p in zip(mover.names, mover.params, strict=True)
            if p.grad is not None and not bool(torch.isfinite(p.grad).all())
        ]
        where = f" of {names[0]!r}" if names else ""
        raise NotFinite(f"the gradient{where} (player {mover.player.name!r})")

    def _step(self, mover: Mover, gradients: list[Tensor], norm: Tensor) -> None:
        limit = self.options.clip_norm
        if limit is not None and gradients:
            torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
        scaler = self.accelerator.scaler
        if scaler is None:
            mover.optimiser.step()
        elif gradients:
            scaler.step(mover.optimiser)
            scaler.update()


def _norm(gradients: list[Tensor], like: Tensor) -> Tensor:
    if not gradients:
        return torch.zeros_like(like)
    norms = list(torch._foreach_norm(gradients))
    if any(norm.dtype != norms[0].dtype for norm in norms):
        norms = [norm.double() for norm in norms]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


def _culprit(entry: Record) -> str | None:
    """Say which recorded number is not finite, and in which rows of the batch."""
    if entry.rows is None:
        if bool(torch.isfinite(entry.values).all()):
            return None
        return f"the gradient (player {entry.keys[0].player!r})"
    for key, values in zip(entry.keys, entry.rows, strict=True):
        if key.role == "metric":
            continue
        wrong = (~torch.isfinite(values)).nonzero().flatten().tolist()
        if wrong:
            name = "the bound" if key.role == "bound" else f"term {key.name!r}"
            where = "" if entry.index is None else f", such as row {int(entry.index[wrong[0]])}"
            return (
                f"{name} (player {key.player!r}; {float(values[wrong[0]])} in {len(wrong)} of"
                f" {len(values)} rows{where})"
            )
    return None
