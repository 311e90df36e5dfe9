"""What a trainer can be told, checked before any work, and how a budget is shared by stages."""

from __future__ import annotations

__all__ = ["PLATEAU_PATIENCE", "Budget", "TrainerOptions", "budgets", "that_matter"]

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from multivae_core.config import in_range, non_negative, one_of, positive
from multivae_core.errors import ConfigError
from multivae_core.stages import Stage

Amount = int | Mapping[str, int]
PLATEAU_PATIENCE = 5


def _whole(value: Any, path: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"must be a whole number >= {least}, got {value!r}", path)
    return value


def _at_least(least: int) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        _whole(value, field.name, least)

    return check


def _amount(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, Mapping):
        if not value:
            raise ConfigError("names no stage; give a number, or {'stage': number}", field.name)
        for stage, number in value.items():
            _whole(number, f"{field.name}.{stage}")
    elif value is not None:
        _whole(value, field.name)


def _interval(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, Mapping):
        if len(value) != 1 or not set(value) <= {"epochs", "steps"}:
            raise ConfigError(
                "must be a number of epochs, {'epochs': number} or {'steps': number};"
                f" got {dict(value)!r}",
                field.name,
            )
        (unit, number), = value.items()
        _whole(number, f"{field.name}.{unit}")
    else:
        _whole(value, field.name)


def _betas(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    if len(value) != 2:
        raise ConfigError(f"must be two numbers, got {value!r}", field.name)
    for beta in value:
        if not isinstance(beta, int | float) or not 0.0 <= beta < 1.0:
            raise ConfigError(f"must be two numbers of [0, 1), got {value!r}", field.name)


def _resume(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool | Path) and value != "auto":
        raise ConfigError(
            f"must be 'auto', True, False or the path of a checkpoint, got {value!r}", field.name
        )


def _path(value: Any) -> Any:
    return value if value is None or isinstance(value, bool) else Path(value)


def _path_or_auto(value: Any) -> Any:
    return Path(value) if isinstance(value, str) and value != "auto" else value


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _optional(check: Callable[..., None]) -> Any:
    return attrs.validators.optional(check)


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
        betas: Coefficients of the Adam kinds; None: torch's.
        momentum: Momentum of sgd and rmsprop; None: torch's.
        eps: The small number in denominators; None: torch's.
        schedule: Course of the learning rate over a stage: constant, linear, cosine, or plateau
            (halved after 5 epochs in which the validation loss did not fall).
        warmup: Steps at the beginning of every stage in which the rate rises from 0.
        final_lr: Where linear and cosine end, as a share of ``lr``.
        clip_norm: Largest norm of the gradient of a player.
        non_finite: What a loss or gradient that is NaN or infinite does: stop the run, or skip
            the step (ten in a row stop the run).
        gradient_accumulation: Parts into which the rows of a step are cut to save memory;
            the number changes results by rounding only.
        mixed_precision: "no", "bf16" or "fp16"; None: what ``accelerate launch`` says.
        device: None: the best there is; "cpu": no accelerator.
        patience: Stop a stage after this many epochs without a better validation loss.
        min_delta: By how much a validation loss must fall to count as better.
        best_model: End with the weights of the lowest validation loss of the last stage,
            where validation data are given.
        folder: Where checkpoints go; None: none are written.
        checkpoint_every: Epochs between checkpoints, or ``{"steps": number}``.
        keep: How many checkpoints stay.
        resume: "auto": go on where the folder's last checkpoint is, if there is one; True: it
            must exist; a path: from this checkpoint; False: begin anew, in an empty folder.
        compile: Compile the networks with ``torch.compile``; True or the name of a backend.
        workers: Processes that read ahead; 0 reads in this one.
        trackers: Names of accelerate's trackers, such as "tensorboard" or "wandb".
        tracker_folder: Where trackers write; None: the folder of the checkpoints, or "runs".
        project: Name of the project in trackers.
        progress: True: a bar on a terminal, lines elsewhere; None: a bar on a terminal, log
            messages elsewhere; False: log messages.
        log_every: Steps between looks at the numbers, for progress and trackers.
        callbacks: Objects with methods marked ``@mv.hookimpl``, or names of registered ones.

    Raises:
        ConfigError: A value that is not allowed.
    """

    epochs: Amount | None = attrs.field(default=None, validator=_amount)
    steps: Amount | None = attrs.field(default=None, validator=_amount)
    batch_size: int = attrs.field(default=128, validator=_at_least(1))
    seed: int = attrs.field(default=0, validator=_at_least(0))
    optimiser: str = attrs.field(
        default="adam",
        validator=one_of(
            "adam", "adamw", "sgd", "adamax", "radam", "nadam", "rmsprop", "adagrad"
        ),
    )
    lr: float = attrs.field(default=1e-3, validator=positive)
    weight_decay: float = attrs.field(default=0.0, validator=non_negative)
    betas: tuple[float, float] | None = attrs.field(
        default=None,
        converter=attrs.converters.optional(tuple),
        validator=_optional(_betas),
    )
    momentum: float | None = attrs.field(default=None, validator=_optional(in_range(0.0, 1.0)))
    eps: float | None = attrs.field(default=None, validator=_optional(positive))
    schedule: Literal["constant", "linear", "cosine", "plateau"] = attrs.field(
        default="constant", validator=one_of("constant", "linear", "cosine", "plateau")
    )
    warmup: int = attrs.field(default=0, validator=_at_least(0))
    final_lr: float = attrs.field(default=0.0, validator=in_range(0.0, 1.0))
    clip_norm: float | None = attrs.field(default=None, validator=_optional(positive))
    non_finite: Literal["stop", "skip"] = attrs.field(
        default="stop", validator=one_of("stop", "skip")
    )
    gradient_accumulation: int = attrs.field(default=1, validator=_at_least(1))
    mixed_precision: str | None = attrs.field(
        default=None, validator=one_of(None, "no", "bf16", "fp16")
    )
    device: str | None = attrs.field(default=None, validator=one_of(None, "cpu"))
    patience: int | None = attrs.field(default=None, validator=_optional(_at_least(1)))
    min_delta: float = attrs.field(default=0.0, validator=non_negative)
    best_model: bool = attrs.field(default=True, validator=one_of(True, False))
    folder: Path | None = attrs.field(default=None, converter=_path)
    checkpoint_every: Amount = attrs.field(default=1, validator=_interval)
    keep: int = attrs.field(default=2, validator=_at_least(1))
    resume: bool | Path | Literal["auto"] = attrs.field(
        default="auto", converter=_path_or_auto, validator=_resume
    )
    compile: bool | str = False
    workers: int = attrs.field(default=0, validator=_at_least(0))
    trackers: tuple[str, ...] = attrs.field(default=(), converter=_names)
    tracker_folder: Path | None = attrs.field(default=None, converter=_path)
    project: str = "multivae"
    progress: bool | None = attrs.field(default=None, validator=one_of(None, True, False))
    log_every: int = attrs.field(default=20, validator=_at_least(1))
    callbacks: tuple[Any, ...] = attrs.field(default=(), converter=tuple)

    def __attrs_post_init__(self) -> None:
        if self.resume is True and self.folder is None:
            raise ConfigError("True needs a folder with checkpoints; give folder=", "resume")
        if self.betas is not None and self.optimiser not in _WITH_BETAS:
            raise ConfigError(f"{self.optimiser} has none; leave it out", "betas")
        if self.momentum is not None and self.optimiser not in ("sgd", "rmsprop"):
            raise ConfigError(f"{self.optimiser} has none; leave it out", "momentum")
        if self.eps is not None and self.optimiser == "sgd":
            raise ConfigError("sgd has none; leave it out", "eps")

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> TrainerOptions:
        """Make options out of keywords; an unknown one is an error with a suggestion."""
        known = [field.name for field in attrs.fields(cls)]
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(known)}"
                raise ConfigError(f"unknown option of a trainer; {hint}", name)
        return cls(**options)

    def checkpoint_due(self, unit: Literal["epochs", "steps"], number: int) -> bool:
        """Whether a checkpoint is due after so many epochs or steps."""
        every = self.checkpoint_every
        interval = every if isinstance(every, Mapping) else {"epochs": every}
        return unit in interval and number % interval[unit] == 0


_WITH_BETAS = ("adam", "adamw", "adamax", "radam", "nadam")

_FREE = {
    "epochs", "steps", "patience", "best_model", "folder", "checkpoint_every", "keep", "resume",
    "workers", "trackers", "tracker_folder", "project", "progress", "log_every", "callbacks",
}  # fmt: skip


def that_matter(options: TrainerOptions) -> dict[str, Any]:
    """The options that must be the same when a run goes on; budgets may grow."""
    return {
        field.name: list(value) if isinstance(value, tuple) else value
        for field in attrs.fields(TrainerOptions)
        for value in [getattr(options, field.name)]
        if field.name not in _FREE
    }


@attrs.frozen
class Budget:
    """How long a stage lasts.

    Args:
        unit: What is counted.
        amount: How many of them.
    """

    unit: Literal["epochs", "steps"]
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
    given: dict[str, Budget] = {}
    for unit, amount in (("epochs", epochs), ("steps", steps)):
        if amount is None:
            continue
        shared = not isinstance(amount, Mapping)
        if shared and None not in (epochs, steps):
            raise ConfigError("give epochs or steps, not both as one number", unit)
        parts = _shared(amount, stages, unit) if isinstance(amount, int) else amount
        for name, number in parts.items():
            if name not in {stage.name for stage in stages}:
                listed = ", ".join(repr(stage.name) for stage in stages)
                raise ConfigError(f"no stage {name!r}; this model has {listed}", unit)
            if name in given:
                raise ConfigError(f"stage {name!r} has epochs already; give one", unit)
            given[name] = Budget("epochs" if unit == "epochs" else "steps", number)
    for stage in stages:
        if stage.name not in given:
            raise ConfigError(
                f"nothing for stage {stage.name!r}; give it epochs or steps, or give one number"
                " for all stages",
                "epochs",
            )
    return tuple(given[stage.name] for stage in stages)


def _shared(total: int, stages: Sequence[Stage], unit: str) -> dict[str, int]:
    """Cut a budget by shares, rounded so that the parts sum to it and none is empty."""
    if total < len(stages):
        raise ConfigError(f"{total} is too little for {len(stages)} stages", unit)
    whole = sum(stage.share for stage in stages)
    exact = [(total - len(stages)) * stage.share / whole for stage in stages]
    parts = [1 + int(part) for part in exact]
    by_rest = sorted(range(len(stages)), key=lambda i: int(exact[i]) - exact[i])
    for i in by_rest[: total - sum(parts)]:
        parts[i] += 1
    return {stage.name: part for stage, part in zip(stages, parts, strict=True)}
