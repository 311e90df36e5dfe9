"""What is looked at before any work: model, data and stages, each refusal with its remedy."""

from __future__ import annotations

__all__ = ["check_data", "check_model", "check_stages"]

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from multivae_core.data import IncompleteDataset
from multivae_core.errors import ConfigError, DataError, TrainingError
from multivae_core.stages import Stage
from multivae_core.training.state import weights_of

if TYPE_CHECKING:
    from multivae_core.model import MultimodalVAE

logger = logging.getLogger(__name__)


def check_model(model: Any) -> None:
    """Refuse what is no model, and weights that are not finite."""
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"fit needs a model, got {type(model).__name__}; make one with"
            " mv.create_model(name, data)"
        )
    for name, value in weights_of(model).items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise TrainingError(
                f"weight {name!r} of the model is not finite before training; build or load the"
                " model anew"
            )


def check_data(model: MultimodalVAE, data: Any, role: str) -> None:
    """Refuse data that are none, empty, or not the model's; ``role`` says which they are."""
    if not isinstance(data, IncompleteDataset):
        raise DataError(
            f"{role} data: expected an IncompleteDataset, got {type(data).__name__}; wrap"
            " arrays: mv.IncompleteDataset({'name': array, ...})"
        )
    if len(data) == 0 or not bool(data.present.any()):
        what = "no rows" if len(data) == 0 else "nothing observed in any row"
        raise DataError(f"{role} data: there is {what}; check how they were split or hidden")
    try:
        model.prepare(data.batch([0]))
    except DataError as error:
        raise DataError(f"{role} data: {error}") from error
    seen = dict(zip(data.names, data.present.any(dim=0).tolist(), strict=True))
    if never := [name for name in model.modalities if not seen.get(name)]:
        logger.warning("%s data never show %s of the model", role, ", ".join(never))


def check_stages(stages: Sequence[Stage]) -> None:
    """Refuse stages and players without names of their own, and numbers out of range."""
    if not stages:
        raise TrainingError("the model has no stages; stages() must return at least one")
    groups = [("stage", [stage.name for stage in stages])]
    groups += [
        (f"player of stage {stage.name!r}", [player.name for player in stage.players])
        for stage in stages
    ]
    for what, names in groups:
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice or not names or any("/" in name for name in names):
            raise TrainingError(
                f"every {what} needs a name of its own without '/', and there must be at least"
                f" one; got {names}"
            )
    for stage in stages:
        for player in stage.players:
            if player.every < 1 or not math.isfinite(stage.share) or stage.share <= 0:
                raise TrainingError(
                    f"stage {stage.name!r}: shares must be > 0 and 'every' of a player >= 1; got"
                    f" share {stage.share} and every {player.every}"
                )
