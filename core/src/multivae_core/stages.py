"""Stages and players: who is trained when, and by which loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import attrs
from torch import nn

from multivae_core.config import positive
from multivae_core.data.batch import Batch
from multivae_core.losses import LossOutput
from multivae_core.noise import Step

__all__ = ["Player", "Stage"]

PieceLoss = Callable[[Batch, Step], Iterator[LossOutput]]


@attrs.frozen(kw_only=True)
class Player:
    """A group of parameters with a loss of its own.

    Args:
        name: Shown in logs and checkpoints.
        parameters: Modules whose parameters the player moves. What belongs to no player of a
            stage is frozen and in evaluation mode.
        loss: ``(prepared batch, step)`` -> pieces of the loss, each of which the trainer sends
            backward at once.
        optimiser: Options that differ from the trainer's, for example ``{"lr": 1e-4}``.
        every: The player moves once in so many steps.
        after_move: Called after every move, for example to bring weights back into a range.
    """

    name: str
    parameters: tuple[nn.Module | nn.Parameter, ...]
    loss: PieceLoss
    optimiser: dict[str, float] = attrs.field(factory=dict)
    every: int = attrs.field(default=1, validator=positive)
    after_move: Callable[[], None] | None = None


@attrs.frozen(kw_only=True)
class Stage:
    """A part of training.

    Args:
        name: Shown in logs and checkpoints; budgets can be given per stage by this name.
        players: Who moves, in this order in every step.
        share: Part of the budget where none is given per stage; shares are scaled to sum to 1.
        start_from: Weights that the stage begins with: the last ones, or the best ones of the
            stage before.
    """

    name: str
    players: tuple[Player, ...]
    share: float = attrs.field(default=1.0, validator=positive)
    start_from: Literal["last", "best"] = "last"
