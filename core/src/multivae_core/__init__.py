"""Multimodal variational autoencoders on partial data: interfaces, data, training, plugins.

Names are imported when they are first used: ``multivae_core.registry`` lists what is
installed without importing torch.
"""

from __future__ import annotations

__all__ = [
    "API_LEVEL",
    "Batch",
    "CapabilityError",
    "ComponentSpec",
    "ConfigError",
    "DataError",
    "FileFormatError",
    "IncompleteDataset",
    "LossOutput",
    "ModalityConfig",
    "ModelConfig",
    "MultimodalVAE",
    "MultivaeError",
    "NameConflictError",
    "Player",
    "PluginWarning",
    "RegistryError",
    "Stage",
    "Step",
    "Term",
    "Trainer",
    "TrainingError",
    "UnknownComponentError",
    "__version__",
    "create_model",
    "hookimpl",
    "load_dataset",
    "load_model",
    "register",
    "register_model",
    "registry",
]

from typing import TYPE_CHECKING

from multivae_core._lazy import lazy
from multivae_core._version import __version__
from multivae_core.errors import (
    CapabilityError,
    ConfigError,
    DataError,
    FileFormatError,
    MultivaeError,
    NameConflictError,
    PluginWarning,
    RegistryError,
    TrainingError,
    UnknownComponentError,
)

if TYPE_CHECKING:
    from multivae_core._registry import register, register_model, registry
    from multivae_core.create import create_model, load_dataset
    from multivae_core.data import Batch, IncompleteDataset
    from multivae_core.losses import LossOutput, Term
    from multivae_core.model import MultimodalVAE
    from multivae_core.model_config import ModalityConfig, ModelConfig
    from multivae_core.noise import Step
    from multivae_core.plugins import API_LEVEL, ComponentSpec, hookimpl
    from multivae_core.saving import load_model
    from multivae_core.stages import Player, Stage
    from multivae_core.training import Trainer

# Where each lazy name lives; a test compares this with the imports above.
_HOMES = {
    "API_LEVEL": "plugins",
    "Batch": "data",
    "ComponentSpec": "plugins",
    "IncompleteDataset": "data",
    "LossOutput": "losses",
    "ModalityConfig": "model_config",
    "ModelConfig": "model_config",
    "MultimodalVAE": "model",
    "Player": "stages",
    "Stage": "stages",
    "Step": "noise",
    "Term": "losses",
    "Trainer": "training",
    "create_model": "create",
    "hookimpl": "plugins",
    "load_dataset": "create",
    "load_model": "saving",
    "register": "_registry",
    "register_model": "_registry",
    "registry": "_registry",
}

__getattr__, __dir__ = lazy(__name__, _HOMES)
