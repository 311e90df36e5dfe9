"""Players at work: which parameters move, with which optimiser and at which rate."""

from __future__ import annotations

__all__ = ["Mover", "build_optimiser", "lr_factor", "movers", "set_modes"]

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multivae_core.errors import ConfigError, TrainingError
from multivae_core.stages import Player, Stage
from multivae_core.training.options import TrainerOptions

_CLASSES = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "adamax": torch.optim.Adamax,
    "radam": torch.optim.RAdam,
    "nadam": torch.optim.NAdam,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}
_OWN = ("lr", "weight_decay", "betas", "momentum", "eps")


class Mover:
    """A player with its optimiser.

    Args:
        player: The player.
        names: Names of the parameters in the model.
        params: The parameters, in the order of the model.
        optimiser: Their optimiser.
    """

    def __init__(
        self,
        player: Player,
        names: Sequence[str],
        params: Sequence[nn.Parameter],
        optimiser: torch.optim.Optimizer,
    ) -> None:
        self.player = player
        self.names = list(names)
        self.params = list(params)
        self.optimiser = optimiser
        self.base_lr = float(optimiser.param_groups[0]["lr"])
        self.checked = False  # the shapes of its loss
        self.weighted = True  # whether its terms may have weights of their own
        self.tried = self.moved = False  # whether it had a turn, and gradients

    @property
    def fused(self) -> bool:
        """Whether a step can be called off on the device, without waiting for it."""
        return bool(self.optimiser.param_groups[0].get("fused"))

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.params:
            parameter.grad = None

    def set_rate(self, factor: float) -> None:
        """Set the learning rate as a share of the player's own."""
        self.optimiser.param_groups[0]["lr"] = self.base_lr * factor

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The optimiser's memory: tensors, and other values, by ``player/parameter/key``."""
        tensors, others = {}, {}
        for name, parameter in zip(self.names, self.params, strict=True):
            for key, value in self.optimiser.state.get(parameter, {}).items():
                path = f"{self.player.name}/{name}/{key}"
                if isinstance(value, Tensor):
                    tensors[path] = value.detach()
                else:
                    others[path] = value
        return tensors, others

    def restore(self, tensors: Mapping[str, Tensor], others: Mapping[str, Any]) -> None:
        """Set the optimiser's memory to what `state` returned."""
        memory: dict[int, dict[str, Any]] = {}
        for number, name in enumerate(self.names):
            prefix = f"{self.player.name}/{name}/"
            own = {
                path.removeprefix(prefix): value
                for source in (tensors, others)
                for path, value in source.items()
                if path.startswith(prefix)
            }
            if own:
                memory[number] = own
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": memory, "param_groups": groups})


def build_optimiser(
    params: Sequence[nn.Parameter], player: Player, options: TrainerOptions
) -> torch.optim.Optimizer:
    """Build a player's optimiser: the trainer's options, changed by the player's own.

    Raises:
        ConfigError: The player has an option that optimisers do not have.
    """
    for name in player.optimiser:
        if name not in _OWN:
            raise ConfigError(
                f"unknown option of an optimiser; there is {', '.join(_OWN)}",
                f"player {player.name}.optimiser.{name}",
            )
    chosen = {name: getattr(options, name) for name in _OWN} | dict(player.optimiser)
    kind: Callable[..., torch.optim.Optimizer] = _CLASSES[options.optimiser]
    arguments = {name: value for name, value in chosen.items() if value is not None}
    if "fused" in inspect.signature(kind).parameters:
        try:
            return kind(params, **arguments, fused=True)
        except (RuntimeError, ValueError):
            pass  # this device or type has no fused kernel
    return kind(params, **arguments)


def lr_factor(options: TrainerOptions, step: int, total: int) -> float:
    """The learning rate of a step of a stage, as a share of ``lr``."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    if options.schedule not in ("linear", "cosine"):
        return 1.0
    behind = min(1.0, (step - options.warmup) / max(1, total - options.warmup))
    shape = 1.0 - behind if options.schedule == "linear" else (1 + math.cos(math.pi * behind)) / 2
    return options.final_lr + (1.0 - options.final_lr) * shape


def movers(model: nn.Module, stage: Stage, options: TrainerOptions) -> list[Mover]:
    """Freeze what no player of the stage moves, and give every player an optimiser.

    Parameters that were frozen before training stay so: call this with the flags as the user
    left them.

    Raises:
        TrainingError: A player without parameters, or with some that are not the model's.
    """
    found = []
    free = {p for p in model.parameters() if p.requires_grad}
    for player in stage.players:
        wanted = set(_parameters(player))
        if strange := wanted - set(model.parameters()):
            raise TrainingError(
                f"stage {stage.name!r}, player {player.name!r}: {len(strange)} of its parameters"
                " are not the model's and would not be saved; make the module an attribute of"
                " the model"
            )
        own = [(name, p) for name, p in model.named_parameters() if p in wanted & free]
        if not own:
            raise TrainingError(
                f"stage {stage.name!r}, player {player.name!r} has no parameter that can move;"
                " give it modules with parameters, or set requires_grad on them"
            )
        names, params = zip(*own, strict=True)
        found.append(Mover(player, names, params, build_optimiser(params, player, options)))
    moving = {p for mover in found for p in mover.params}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in moving)
    return found


def set_modes(model: nn.Module, stage: Stage) -> None:
    """Training mode for the modules of the stage's players, evaluation mode for all others."""
    model.eval()
    for player in stage.players:
        for part in player.parameters:
            if isinstance(part, nn.Module):
                part.train()
                continue
            for module in model.modules():
                if any(p is part for p in module.parameters(recurse=False)):
                    module.training = True


def _parameters(player: Player) -> Iterator[nn.Parameter]:
    for part in player.parameters:
        if isinstance(part, nn.Module):
            yield from part.parameters()
        else:
            yield part
