"""Schedules of a weight over training; the unit is the optimisation step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from multivae_core.config import config, in_range, positive, structure
from multivae_core.errors import ConfigError
from multivae_core.noise import Step

__all__ = ["Cyclical", "Linear", "schedule"]


@config
class Linear:
    """A ramp from a start to 1 that is continuous at its end, then 1.

    Args:
        steps: Length of the ramp in optimisation steps.
        start: Value at step 0.
        plateau: Steps over which a value stays. With the steps of an epoch the ramp goes by the
            epoch: (e - 1) / W in epoch e = 1, 2, ... has steps=W * plateau; with (W - 1) * plateau
            it reaches 1 in epoch W, as JMVAE's authors have it; and with start=1/W beside that
            it is e / W, as in MultiVae.
    """

    type: str = attrs.field(default="linear", init=False)
    steps: int = attrs.field(validator=positive)
    start: float = attrs.field(default=0.0, validator=in_range(0.0, 1.0))
    plateau: int = attrs.field(default=1, validator=positive)

    def __call__(self, step: Step) -> float:
        """Return the factor; 1 outside training."""
        if not step.training:
            return 1.0
        number = step.number - step.number % self.plateau
        return self.start + (1.0 - self.start) * min(1.0, number / self.steps)


@config
class Cyclical:
    """Ramps from a start to 1 that begin anew with every cycle (Fu et al. 2019).

    Args:
        steps: Length of a cycle in optimisation steps.
        ramp: Share of a cycle in which the value rises; in the rest of it the value is 1.
        cycles: Number of cycles, after which the value stays 1.
        start: Value at the beginning of a cycle.
    """

    type: str = attrs.field(default="cyclical", init=False)
    steps: int = attrs.field(validator=positive)
    ramp: float = attrs.field(default=0.5, validator=in_range(0.0, 1.0))
    cycles: int = attrs.field(default=4, validator=positive)
    start: float = attrs.field(default=0.0, validator=in_range(0.0, 1.0))

    def __call__(self, step: Step) -> float:
        """Return the factor; 1 outside training."""
        if not step.training or step.number >= self.steps * self.cycles:
            return 1.0
        inside = (step.number % self.steps) / self.steps
        risen = 1.0 if inside >= self.ramp else inside / self.ramp
        return self.start + (1.0 - self.start) * risen


_KINDS: dict[str, type[Linear] | type[Cyclical]] = {"linear": Linear, "cyclical": Cyclical}


def schedule() -> Any:
    """Declare a field for a schedule: None, a number of steps (linear), or a mapping."""
    return attrs.field(
        default=None,
        converter=attrs.Converter(lambda value, field: _read(value, field.name), takes_field=True),
    )


def _read(value: Any, path: str) -> Linear | Cyclical | None:
    if value is None or isinstance(value, Linear | Cyclical):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return structure(Linear, {"steps": value}, path) if value else None
    if isinstance(value, Mapping) and value.get("type") in _KINDS:
        options = {key: entry for key, entry in value.items() if key != "type"}
        return structure(_KINDS[value["type"]], options, path)
    raise ConfigError(
        f"must be a number of steps, or a mapping with 'type' linear or cyclical; got {value!r}",
        path,
    )
