"""What a trainer can be told, checked before any work, and how a budget is shared by stages."""

from __future__ import annotations

__all__ = ["Budget", "TrainerOptions", "budgets", "that_matter"]

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import attrs

from multivae_core.config import non_negative, one_of, positive
from multivae_core.errors import ConfigError
from multivae_core.stages import Stage

Amount = int | Mapping[str, int]
OPTIMISERS = {
    "adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "adamax": "Adamax", "radam": "RAdam",
    "nadam": "NAdam", "rmsprop": "RMSprop", "adagrad": "Adagrad",
}  # fmt: skip


def _whole(value: Any, path: str, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"must be a whole number >= {least}, got {value!r}", path)


def _at_least(least: int) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    return lambda _, field, value: _whole(value, field.name, least)


def _amount(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, Mapping):
        _whole(value, field.name)
    elif not value:
        raise ConfigError("names no stage; give a number, or {'stage': number}", field.name)
    else:
        for stage, number in value.items():
            _whole(number, f"{field.name}.{stage}")


def _interval(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, Mapping) and list(value) not in (["epochs"], ["steps"]):
        rule = "must be a number of epochs, or {'steps': number}"
        raise ConfigError(f"{rule}; got {dict(value)!r}", field.name)
    _amount(_, field, value)


def _resume(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    if value is not False and value != "auto" and not isinstance(value, Path):
        rule = "must be 'auto', False or the path of a checkpoint"
        raise ConfigError(f"{rule}; got {value!r}", field.name)


def _path(value: Any) -> Any:
    return Path(value) if isinstance(value, str) and value != "auto" else value


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


_optional = attrs.validators.optional


@attrs.frozen(kw_only=True)
class TrainerOptions:
    """The options of a `Trainer`.

    Args:
        epochs: Passes over the data: a number, which stages share, or one per stage such as
            ``{"joint": 40, "flows": 20}``. 50 where neither epochs nor steps are given.
        steps: Optimisation steps instead, in the same two forms. Some stages may have epochs
            and others steps.
        batch_size: Rows of one optimisation step, over all processes.
        seed: Seed of everything random; the same seed gives the same run.
        optimiser: adam, adamw, sgd, adamax, radam, nadam, rmsprop or adagrad; the fused kind
            where torch has one.
        lr: Learning rate.
        weight_decay: Weight decay, as the optimiser defines it.
        optimiser_options: Further options of torch's optimiser, such as ``{"momentum": 0.9}``;
            those of a player come on top.
        schedule: Course of the learning rate over a stage: constant, linear or cosine, both to 0.
        warmup: Steps at the beginning of every stage in which the rate rises from 0.
        clip_norm: Largest norm of the gradient of a player.
        gradient_accumulation: Parts into which the rows of a step are cut to save memory;
            the number changes results by rounding only.
        mixed_precision: "no", "bf16" or "fp16"; None: what ``accelerate launch`` says.
        device: None: the best there is; "cpu": no accelerator.
        patience: Stop a stage after this many epochs without a better validation loss.
        best_model: End with the weights of the lowest validation loss of the last stage,
            where validation data are given.
        folder: Where checkpoints go; None: none are written.
        checkpoint_every: Epochs between checkpoints, or ``{"steps": number}``.
        keep: How many checkpoints stay.
        resume: "auto": go on where the folder's last checkpoint is, if there is one; a path:
            from this checkpoint, or the last one of this folder; False: begin anew, in an
            empty folder.
        compile: Compile the networks with ``torch.compile``; True or the name of a backend.
        workers: Processes that read ahead; 0 reads in this one.
        trackers: Names of accelerate's trackers, such as "tensorboard" or "wandb"; files go to
            ``folder``, or "runs" where there is none.
        project: Name of the project in trackers.
        progress: True: a bar on a terminal, lines elsewhere; None: a bar on a terminal, log
            messages elsewhere; False: log messages.
        log_every: Steps between looks at the numbers: for progress and trackers, for the norm
            of the gradient where nothing is clipped, and for weights that are not finite.
        callbacks: Objects with methods marked ``@mv.hookimpl``, or names of registered ones.

    Raises:
        ConfigError: A value that is not allowed.
    """

    epochs: Amount | None = attrs.field(default=None, validator=_optional(_amount))
    steps: Amount | None = attrs.field(default=None, validator=_optional(_amount))
    batch_size: int = attrs.field(default=128, validator=_at_least(1))
    seed: int = attrs.field(default=0, validator=_at_least(0))
    optimiser: str = attrs.field(default="adam", validator=one_of(*OPTIMISERS))
    lr: float = attrs.field(default=1e-3, validator=positive)
    weight_decay: float = attrs.field(default=0.0, validator=non_negative)
    optimiser_options: Mapping[str, Any] = attrs.field(default={}, converter=dict)
    schedule: str = attrs.field(
        default="constant", validator=one_of("constant", "linear", "cosine")
    )
    warmup: int = attrs.field(default=0, validator=_at_least(0))
    clip_norm: float | None = attrs.field(default=None, validator=_optional(positive))
    gradient_accumulation: int = attrs.field(default=1, validator=_at_least(1))
    mixed_precision: str | None = attrs.field(
        default=None, validator=one_of(None, "no", "bf16", "fp16")
    )
    device: str | None = attrs.field(default=None, validator=one_of(None, "cpu"))
    patience: int | None = attrs.field(default=None, validator=_optional(_at_least(1)))
    best_model: bool = attrs.field(default=True, validator=one_of(True, False))
    folder: Path | None = attrs.field(default=None, converter=_path)
    checkpoint_every: Amount = attrs.field(default=1, validator=_interval)
    keep: int = attrs.field(default=2, validator=_at_least(1))
    resume: bool | Path | Literal["auto"] = attrs.field(
        default="auto", converter=_path, validator=_resume
    )
    compile: bool | str = False
    workers: int = attrs.field(default=0, validator=_at_least(0))
    trackers: tuple[str, ...] = attrs.field(default=(), converter=_names)
    project: str = "multivae"
    progress: bool | None = attrs.field(default=None, validator=one_of(None, True, False))
    log_every: int = attrs.field(default=20, validator=_at_least(1))
    callbacks: tuple[Any, ...] = attrs.field(default=(), converter=tuple)

    def checkpoint_due(self, unit: str, number: int) -> bool:
        """Whether a checkpoint is due after so many epochs or steps."""
        every = self.checkpoint_every
        interval = every if isinstance(every, Mapping) else {"epochs": every}
        return unit in interval and number % interval[unit] == 0


_FREE = {
    "epochs", "steps", "patience", "best_model", "folder", "checkpoint_every", "keep", "resume",
    "workers", "trackers", "project", "progress", "log_every", "callbacks",
}  # fmt: skip


def that_matter(options: TrainerOptions) -> dict[str, Any]:
    """The options that must be the same when a run goes on; budgets may grow."""
    everything = attrs.asdict(options, recurse=False)
    return {name: value for name, value in everything.items() if name not in _FREE}


@attrs.frozen
class Budget:
    """How long a stage lasts: so many epochs, or so many steps."""

    unit: str
    amount: int

    def total_steps(self, batches: int) -> int:
        """Optimisation steps of the stage, given the number of batches of an epoch."""
        return self.amount * batches if self.unit == "epochs" else self.amount


def budgets(options: TrainerOptions, stages: Sequence[Stage]) -> tuple[Budget, ...]:
    """Give every stage its budget.

    Raises:
        ConfigError: An unknown stage, a stage with two budgets or none, or too little to share.
    """
    epochs, steps = options.epochs, options.steps
    if epochs is None and steps is None:
        epochs = max(50, len(stages))
    names = [stage.name for stage in stages]
    given: dict[str, Budget] = {}
    for amount, unit in ((epochs, "epochs"), (steps, "steps")):
        parts = _shared(amount, stages, unit) if isinstance(amount, int) else amount or {}
        for name, number in parts.items():
            if name not in names:
                listed = ", ".join(map(repr, names))
                raise ConfigError(f"no stage {name!r}; this model has {listed}", unit)
            if name in given:
                raise ConfigError(f"stage {name!r} has epochs already; give one, not both", unit)
            given[name] = Budget(unit, number)
    if missing := [name for name in names if name not in given]:
        remedy = "give it epochs or steps, or give one number for all stages"
        raise ConfigError(f"nothing for stage {missing[0]!r}; {remedy}", "epochs")
    return tuple(given[name] for name in names)


def _shared(total: int, stages: Sequence[Stage], unit: str) -> dict[str, int]:
    """Cut a budget by shares, rounded so that the parts sum to it and none is empty."""
    spare = total - len(stages)
    if spare < 0:
        raise ConfigError(f"{total} is too little for {len(stages)} stages", unit)
    ends = list(accumulate((stage.share for stage in stages), initial=0.0))
    cuts = [round(spare * end / ends[-1]) for end in ends]
    parts = (1 + high - low for low, high in pairwise(cuts))
    return dict(zip((stage.name for stage in stages), parts, strict=True))
