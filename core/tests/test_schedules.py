"""Schedules: bounds, continuity, ends, and what a configuration may say."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multivae_core.config import structure, unstructure
from multivae_core.errors import ConfigError
from multivae_core.model_config import ModelConfig
from multivae_core.noise import Step, ZeroNoise
from multivae_core.schedules import Cyclical, Linear

MODALITIES = {"a": {"shape": [2]}}


def at(number, training=True):
    return Step(number=number, training=training, noise=ZeroNoise())


def config(**options):
    return structure(ModelConfig, {"modalities": MODALITIES, **options})


@given(steps=st.integers(1, 200), start=st.floats(0, 1))
def test_linear_rises_by_equal_steps_to_one(steps, start):
    ramp = Linear(steps=steps, start=start)
    values = [ramp(at(number)) for number in range(steps + 5)]
    assert values[0] == start
    assert values[steps:] == [1.0] * 5
    assert all(start <= value <= 1.0 for value in values)
    rises = [b - a for a, b in zip(values, values[1:], strict=False)]
    assert all(-1e-12 <= rise <= (1 - start) / steps + 1e-12 for rise in rises)


@given(
    steps=st.integers(1, 60), ramp=st.floats(0, 1), cycles=st.integers(1, 4), start=st.floats(0, 1)
)
def test_cyclical_stays_in_bounds_and_falls_only_where_a_cycle_begins(steps, ramp, cycles, start):
    wave = Cyclical(steps=steps, ramp=ramp, cycles=cycles, start=start)
    values = [wave(at(number)) for number in range(steps * cycles + 3)]
    assert all(start <= value <= 1.0 for value in values)
    assert values[steps * cycles :] == [1.0] * 3
    for number, (a, b) in enumerate(zip(values, values[1:], strict=False), start=1):
        if number % steps:
            assert b >= a - 1e-12
    assert values[:steps] * cycles == values[: steps * cycles]
    risen = [value for number, value in enumerate(values[:steps]) if number / steps >= ramp]
    assert all(value == 1.0 for value in risen)


@pytest.mark.parametrize("schedule", [Linear(steps=10), Cyclical(steps=10)])
def test_evaluation_is_not_scheduled(schedule):
    assert schedule(at(0, training=False)) == 1.0
    assert schedule(at(0)) == 0.0


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [
        (None, None),
        (0, None),
        (30, Linear(steps=30)),
        ({"type": "linear", "steps": 5, "start": 0.5}, Linear(steps=5, start=0.5)),
        (
            {"type": "cyclical", "steps": 8, "ramp": 0.25, "cycles": 2},
            Cyclical(steps=8, ramp=0.25, cycles=2),
        ),
        (Linear(steps=3), Linear(steps=3)),
    ],
)
def test_a_configuration_takes_every_form_and_goes_through_json(given_value, expected):
    own = config(beta_schedule=given_value)
    assert own.beta_schedule == expected
    again = structure(ModelConfig, unstructure(own))
    assert attrs.asdict(again) == attrs.asdict(own)


@pytest.mark.parametrize(
    ("given_value", "message"),
    [
        (-3, r"beta_schedule\.steps: must be > 0, got -3"),
        ({"type": "linear", "steps": 0}, r"beta_schedule\.steps: must be > 0, got 0"),
        ({"type": "linear", "steps": 2.5}, r"beta_schedule\.steps: must be an integer, got 2.5"),
        ({"type": "linear"}, r"beta_schedule\.steps: this option is required"),
        (
            {"type": "linear", "steps": 2, "start": 2.0},
            r"beta_schedule\.start: must be between 0.0 and 1.0, got 2.0",
        ),
        ({"type": "linear", "steps": 2, "ramp": 1}, r"beta_schedule\.ramp: unknown option; there"),
        ({"type": "cosine", "steps": 2}, "beta_schedule: must be a number of steps, or a mapping"),
        ("linear", "beta_schedule: must be a number of steps"),
        (True, "beta_schedule: must be a number of steps"),
        (2.5, "beta_schedule: must be a number of steps"),
    ],
)
def test_refusals_have_their_path(given_value, message):
    with pytest.raises(ConfigError, match=message):
        config(beta_schedule=given_value)
