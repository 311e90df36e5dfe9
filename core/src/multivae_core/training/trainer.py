"""`Trainer`: options in, a trained model and its history out."""

from __future__ import annotations

__all__ = ["Trainer"]

import inspect
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multivae_core.data import IncompleteDataset
from multivae_core.errors import TrainingError
from multivae_core.training.callbacks import gather
from multivae_core.training.checkpoints import CheckpointFolder
from multivae_core.training.checks import check_data, check_model, check_stages
from multivae_core.training.history import History
from multivae_core.training.options import TrainerOptions, budgets
from multivae_core.training.randomness import preserved, seed_everything
from multivae_core.training.run import Run
from multivae_core.training.state import restore
from multivae_core.training.surroundings import (
    compiled,
    make_accelerator,
    polite_interrupt,
    share_weights,
    tracking,
)

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

    Example:
        >>> trainer = Trainer(epochs=50, batch_size=128, seed=0)
        >>> history = trainer.fit(model, train, validation=valid)  # doctest: +SKIP
    """

    def __init__(self, **options: Any) -> None:
        self.options = TrainerOptions.read(options)

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
            ConfigError: Budgets that do not fit the model's stages; a folder that cannot be
                written to; a tracker or callback that does not exist.
            TrainingError: A loss that is not finite; a checkpoint of another run.
            KeyboardInterrupt: After Ctrl-C, when the step is done and a checkpoint is written.
        """
        options = self.options
        check_model(model)
        check_data(model, train, "training")
        if validation is not None:
            check_data(model, validation, "validation")
        stages = tuple(model.stages())
        check_stages(stages)
        plan = tuple(zip(stages, budgets(options, stages), strict=True))
        hooks = gather(options.callbacks)
        folder = None
        if options.folder is not None:
            folder = CheckpointFolder(options.folder, options.keep)
        accelerator = make_accelerator(options)
        with ExitStack() as stack:
            stack.enter_context(preserved(accelerator.device))
            seed_everything(options.seed, accelerator.process_index)
            model.to(accelerator.device)
            share_weights(model, accelerator.num_processes)
            run = Run(model, train, validation, options, plan, hooks, accelerator, folder)
            _resume(run, folder)
            stack.enter_context(compiled(model, options.compile))
            stack.enter_context(tracking(accelerator, options))
            stack.enter_context(polite_interrupt(run))
            run.train()
        _note(run)
        return run.history


# help() and editors show the options rather than **options
Trainer.__init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        *inspect.signature(TrainerOptions).parameters.values(),
    ]
)


def _resume(run: Run, folder: CheckpointFolder | None) -> None:
    """Take up the run that the options point to, if there is one."""
    resume, found = run.options.resume, None
    if folder is not None and run.accelerator.is_main_process:
        folder.tidy()
    run.accelerator.wait_for_everyone()
    if isinstance(resume, Path):
        found = CheckpointFolder.at(resume)
    elif folder is not None and resume is not False:
        found = folder.latest()
        if found is None and (resume is True or folder.all()):
            raise TrainingError(
                f"no intact checkpoint in {folder.folder}; choose another folder, or begin anew"
                " in an empty one with resume='auto'"
            )
    if found is not None:
        restore(run, found)
        run.resumed(found.path)
        logger.info("going on from %s (step %d)", found.path, run.position.step)
    own = found is not None and folder is not None and _inside(found.path, folder.folder)
    if folder is not None and folder.all() and not own:
        raise TrainingError(
            f"{folder.folder} holds checkpoints of another run; go on with it (resume='auto'),"
            " remove them, or choose another folder"
        )


def _inside(path: Path, folder: Path) -> bool:
    return path.parent.resolve() == folder.resolve()


def _note(run: Run) -> None:
    """Tell the model how it was trained, for its card."""
    best = run.history.best
    run.model.notes["training"] = {
        "epochs": len(run.history),
        "steps": run.position.step,
        "batch_size": run.options.batch_size,
        "optimiser": run.options.optimiser,
        "lr": run.options.lr,
        "seed": run.options.seed,
        **({} if best is None else {"best": best.numbers}),
    }
