"""Training: the trainer, its options, its history, and hooks around it."""

from __future__ import annotations

from multivae_core.training.callbacks import TrainingHooks
from multivae_core.training.options import TrainerOptions
from multivae_core.training.reports import Epoch, History
from multivae_core.training.run import Run
from multivae_core.training.trainer import Trainer

__all__ = ["Epoch", "History", "Run", "Trainer", "TrainerOptions", "TrainingHooks"]
