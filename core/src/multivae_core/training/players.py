"""Players at work: what they move, with which batches, by which optimiser and at which rate."""

from __future__ import annotations

__all__ = [
    "Feeder",
    "Local",
    "Mover",
    "Work",
    "gradient_norm",
    "lr_factor",
    "movers",
    "summed",
]

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from multivae_core.data import Batch, IncompleteDataset
from multivae_core.data.iterate import count_batches, row_batches
from multivae_core.errors import ConfigError, TrainingError
from multivae_core.losses import LossOutput
from multivae_core.noise import NoiseSource, RowNoise, Step, TrainingNoise
from multivae_core.stages import Player, Stage
from multivae_core.training.objective import (
    Report,
    Share,
    check_output,
    objective,
    report,
    weight_sums,
)
from multivae_core.training.options import OPTIMISERS, TrainerOptions

if TYPE_CHECKING:
    from multivae_core.model import MultimodalVAE


class Local(NamedTuple):
    """A global batch ``rows`` ``(B,)``, and what this process has of it: ``[low, high)``.

    A process that got no row fetches one, so that it takes part in every exchange.
    """

    rows: Tensor
    low: int
    high: int
    batch: Batch


class Work(NamedTuple):
    """What a player's loss is called with: prepared rows and their share of the global batch."""

    share: Share
    batch: Batch
    step: Step


class Feeder:
    """Batches of one data set; every process takes a contiguous share of the same rows."""

    def __init__(
        self,
        data: IncompleteDataset,
        model: MultimodalVAE,
        options: TrainerOptions,
        accelerator: Any,
    ) -> None:
        self.data = data
        self.model = model
        self.options = options
        self.process, self.processes = accelerator.process_index, accelerator.num_processes
        self.batches = count_batches(len(data), options.batch_size)
        self.dtype, self.device = model.dtype, model.device
        something = data.present.any(dim=1)
        self.something = None if bool(something.all()) else something

    def epoch(
        self, epoch: int = 0, start: int = 0, stop: int | None = None, shuffle: bool = True
    ) -> Iterator[Local]:
        """Iterate over the batches ``[start, stop)`` of an epoch, whose number makes the order."""
        size, seed = self.options.batch_size, self.options.seed
        order = row_batches(
            len(self.data), size, shuffle=shuffle, seed=seed, epoch=epoch, start=start
        )
        plan = list(order)[: None if stop is None else stop - start]
        cuts = [
            [len(rows) * (self.process + i) // self.processes for i in (0, 1)] for rows in plan
        ]
        own = [
            rows[low:high] if high > low else rows[:1]
            for rows, (low, high) in zip(plan, cuts, strict=True)
        ]
        fetched = self.data.fetch(own, self.options.workers)
        for rows, (low, high), batch in zip(plan, cuts, fetched, strict=True):
            yield Local(rows, low, high, batch)

    def work(
        self, local: Local, number: int, progress: float, training: bool = True
    ) -> list[Work]:
        """Prepare step ``number`` of the run, in the parts whose gradients are accumulated.

        In validation what a row draws depends on the row alone.
        """
        size, total, seed = local.batch.size, len(local.rows), self.options.seed
        parts = min(self.options.gradient_accumulation, size)
        found = []
        for part in range(parts):
            low, high = size * part // parts, size * (part + 1) // parts
            batch = local.batch if parts == 1 else local.batch.take(torch.arange(low, high))
            batch = self.model.prepare(batch)
            places = None  # in the global batch, for the noise
            if high - low < total:
                # the row that stands in for none may lie behind the last one
                places = torch.arange(low, high, device=self.device) + local.low
                places = places.clamp_max(total - 1)
            noise: NoiseSource = RowNoise(seed, batch.index, self.dtype)
            if training:
                noise = TrainingNoise(seed, number, total, places, self.dtype, self.device)
            step = Step(number=number, progress=progress, training=training, noise=noise)
            found.append(Work(self._share(local, low, high), batch, step))
        return found

    def _share(self, local: Local, low: int, high: int) -> Share:
        """How some of the rows at hand stand in the global batch."""
        count, here, mask = len(local.rows), high - low, None
        if self.something is not None:
            something = self.something.index_select(0, local.rows)
            mask = something[local.low + low : local.low + high]
            count, here = int(something.sum()), int(mask.sum())
        if local.low == local.high:
            return Share(torch.zeros(1, dtype=torch.bool, device=self.device), 0, count, True)
        return Share(None if mask is None or here == high - low else mask.to(self.device),
                     here, count)  # fmt: skip


class Mover:
    """A player with its parameters and its optimiser.

    Gradients of several processes are summed here, all at once and after the last piece, by
    ``accelerator.reduce``: there is no wrapper around the model, so that a loss may run any of
    its networks any number of times, and none of them.

    Args:
        player: The player.
        params: Name -> parameter, in the order of the model.
        options: The trainer's options.
        accelerator: accelerate's object.
    """

    def __init__(
        self,
        player: Player,
        params: Mapping[str, nn.Parameter],
        options: TrainerOptions,
        accelerator: Any,
    ) -> None:
        self.player = player
        self.names, self.params = list(params), list(params.values())
        self.optimiser = build_optimiser(self.params, player, options)
        self.accelerator = accelerator
        self.base_lr = float(self.optimiser.param_groups[0]["lr"])
        self.half = accelerator.mixed_precision in ("fp16", "bf16")
        self.checked = False  # the shapes of its loss
        self.tried = self.moved = False  # whether it had a turn, and gradients

    def set_rate(self, factor: float) -> None:
        """Set the learning rate as a share of the player's own."""
        self.optimiser.param_groups[0]["lr"] = self.base_lr * factor

    def state(self) -> dict[str, Tensor]:
        """The optimiser's memory by ``player/parameter/key``."""
        return {
            f"{self.player.name}/{name}/{key}": value.detach()
            for name, parameter in zip(self.names, self.params, strict=True)
            for key, value in self.optimiser.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def restore(self, memory: Mapping[str, Tensor]) -> None:
        """Set the optimiser's memory to what `state` returned."""
        places = {f"{self.player.name}/{name}": i for i, name in enumerate(self.names)}
        found: dict[int, dict[str, Tensor]] = {}
        for path, value in memory.items():
            owner, _, key = path.rpartition("/")
            if owner in places:
                found.setdefault(places[owner], {})[key] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": found, "param_groups": groups})

    def pieces(self, part: Work) -> Iterator[LossOutput]:
        """The pieces of the player's loss, in mixed precision if that was asked for."""
        found = self.player.loss(part.batch, part.step)
        iterator = iter((found,)) if isinstance(found, LossOutput) else iter(found)
        while True:
            with self.accelerator.autocast() if self.half else nullcontext():
                output = next(iterator, None)
            if output is None:
                return
            if not self.checked:
                check_output(output, part.batch.size, self.player.name)
            yield output

    def gradients(self, work: list[Work]) -> tuple[Tensor, list[tuple[Report, Work]]]:
        """Leave gradients; return the objective of the global batch and what is reported."""
        for parameter in self.params:
            parameter.grad = None
        name, scaler = self.player.name, self.accelerator.scaler
        losses, reports = [], []
        for part in work:
            for number, output in enumerate(self.pieces(part)):
                sums = functools.partial(self._denominators, output, part, len(work))
                value = objective(output, part.share, sums)
                if value.requires_grad:
                    # a surrogate alone carries on gradients, which are scaled already
                    plain = scaler is None or not output.terms
                    (value if plain else scaler.scale(value)).backward()
                losses.append(value.detach())
                reports.append((report(output, part.share, name, number), part))
        if not losses:
            raise TrainingError(f"the loss of player {name!r} has no pieces")
        self.checked = self.tried = True
        loss = functools.reduce(torch.add, losses)
        if self.accelerator.num_processes > 1:
            loss = self._sum_gradients(loss)
        self.moved = self.moved or any(p.grad is not None for p in self.params)
        if scaler is not None and any(p.grad is not None for p in self.params):
            scaler.unscale_(self.optimiser)
        return loss, reports

    def step(self, norm: Tensor | None, limit: float | None) -> None:
        """Move, after clipping gradients of this norm to a limit."""
        if limit is not None and norm is not None:
            gradients = [p.grad for p in self.params if p.grad is not None]
            if gradients:
                torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
        scaler = self.accelerator.scaler
        if scaler is None:
            self.optimiser.step()
        elif any(p.grad is not None for p in self.params):
            scaler.step(self.optimiser)
            scaler.update()
        if self.player.after_move is not None:
            self.player.after_move()

    def _denominators(self, output: LossOutput, part: Work, parts: int) -> dict[str, Tensor]:
        sums = weight_sums(output, part.share)
        if parts > 1:
            raise TrainingError(
                f"term {next(iter(sums))!r} has weights of its own, whose sum over a batch is not"
                " known before all its parts are; use gradient_accumulation=1"
            )
        whole = summed(self.accelerator, torch.stack(list(sums.values())))
        return dict(zip(sums, whole, strict=True))

    def _sum_gradients(self, loss: Tensor) -> Tensor:
        """Sum gradients and the loss over processes, in one exchange.

        A parameter without a gradient in all processes stays without: a gradient of zeros
        would let the optimiser's momentum move it.
        """
        params = self.params
        kind = functools.reduce(torch.promote_types, (p.dtype for p in params))
        there = torch.tensor([float(p.grad is not None) for p in params], device=loss.device)
        flat = [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in params]
        both = torch.cat([part.to(kind) for part in (*flat, there, loss.view(1))])
        sizes = [*(p.numel() for p in params), len(params), 1]
        *gradients, counts, total = summed(self.accelerator, both).split(sizes)
        for parameter, gradient, count in zip(params, gradients, counts.tolist(), strict=True):
            if count:
                parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
        return total.to(loss.dtype)[0]  # type: ignore[no-any-return]


def summed(accelerator: Any, values: Tensor) -> Tensor:
    """The sum over processes: the one place where they exchange numbers in a step."""
    several = accelerator.num_processes > 1
    total: Tensor = accelerator.reduce(values, "sum") if several else values
    return total


def gradient_norm(mover: Mover) -> Tensor:
    """The norm of a player's gradient, a scalar."""
    gradients = [p.grad for p in mover.params if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=mover.params[0].device)
    norms = torch._foreach_norm(gradients)
    kind = functools.reduce(torch.promote_types, {norm.dtype for norm in norms})
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(kind) for norm in norms]))
    return total


def build_optimiser(
    params: Sequence[nn.Parameter], player: Player, options: TrainerOptions
) -> torch.optim.Optimizer:
    """Build a player's optimiser: the trainer's options, changed by the player's own."""
    own = {"lr": options.lr, "weight_decay": options.weight_decay}
    own |= {**options.optimiser_options, **player.optimiser}
    kind = getattr(torch.optim, OPTIMISERS[options.optimiser])
    try:
        return kind(params, **own, fused=True)  # type: ignore[no-any-return]
    except (RuntimeError, TypeError, ValueError):
        pass  # there is no fused kind, or not for this device or type
    try:
        return kind(params, **own)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{options.optimiser} of player {player.name!r} refuses {own}: {error}",
            "optimiser_options",
        ) from error


def lr_factor(options: TrainerOptions, step: int, total: int) -> float:
    """The learning rate of a step of a stage, as a share of ``lr``."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    behind = min(1.0, (step - options.warmup) / max(1, total - options.warmup))
    if options.schedule == "linear":
        return 1.0 - behind
    return (1 + math.cos(math.pi * behind)) / 2 if options.schedule == "cosine" else 1.0


def movers(
    params: Mapping[str, nn.Parameter], stage: Stage, options: TrainerOptions, accelerator: Any
) -> list[Mover]:
    """Freeze what no player of the stage moves, and give every player an optimiser.

    Parameters that were frozen before training stay so: call this with the flags as the user
    left them.

    Raises:
        TrainingError: A player without parameters, or with some that are not the model's.
    """
    found = []
    free = {name: p for name, p in params.items() if p.requires_grad}
    known = set(params.values())
    for player in stage.players:
        where = f"stage {stage.name!r}, player {player.name!r}"
        wanted = {
            parameter
            for part in player.parameters
            for parameter in (part.parameters() if isinstance(part, nn.Module) else (part,))
        }
        if strange := wanted - known:
            raise TrainingError(
                f"{where}: {len(strange)} of its parameters are not the model's and would not be"
                " saved; make the module an attribute of the model"
            )
        own = {name: p for name, p in free.items() if p in wanted}
        if not own:
            raise TrainingError(
                f"{where} has no parameter that can move; give it modules with parameters, or"
                " set requires_grad on them"
            )
        found.append(Mover(player, own, options, accelerator))
    moving = {p for mover in found for p in mover.params}
    for parameter in free.values():
        parameter.requires_grad_(parameter in moving)
    return found
