"""Configurations: to JSON and back, and the path in every error."""

from __future__ import annotations

import json
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multivae_core.config import (
    build,
    component,
    config,
    in_range,
    non_negative,
    one_of,
    positive,
    structure,
    unstructure,
)
from multivae_core.errors import ConfigError, MultivaeError
from multivae_core.likelihoods import NormalConfig, PoissonConfig
from multivae_core.model_config import ModalityConfig, ModelConfig
from multivae_core.networks import MLPConfig


@config
class Inner:
    depth: int = attrs.field(default=1, validator=positive)


@config
class Options:
    number: float = attrs.field(default=1.0, validator=non_negative)
    count: int = attrs.field(default=1, validator=positive)
    share: float = attrs.field(default=0.5, validator=in_range(0.0, 1.0))
    kind: str = attrs.field(default="a", validator=one_of("a", "b"))
    flag: bool = False
    perhaps: int | None = None
    either: float | str = 1.0
    listed: list[list[str]] | None = None
    sizes: tuple[int, ...] = ()
    weights: dict[str, float] = attrs.field(factory=dict)
    inner: Inner = attrs.field(factory=Inner)
    many: dict[str, Inner] = attrs.field(factory=dict)
    fusion: Any = component("fusions", default="product")
    maybe: Any = component("fusions", default=None)


def model_options(**svhn):
    return {"modalities": {"svhn": {"shape": [3], **svhn}, "mnist": {"shape": [2]}}}


def refused(options, message, cls=Options):
    with pytest.raises(ConfigError) as caught:
        structure(cls, options)
    assert str(caught.value).startswith(message), str(caught.value)


class TestRoundTrip:
    @given(
        number=st.floats(0, 1e9),
        count=st.integers(1, 2**60),
        share=st.floats(0, 1),
        kind=st.sampled_from("ab"),
        flag=st.booleans(),
        perhaps=st.none() | st.integers(),
        either=st.floats(-5, 5) | st.text(max_size=3),
        listed=st.none() | st.lists(st.lists(st.text(max_size=2), max_size=2), max_size=2),
        sizes=st.lists(st.integers(), max_size=3).map(tuple),
        weights=st.dictionaries(st.text(max_size=3), st.floats(-1, 1), max_size=3),
        depth=st.integers(1, 9),
        fusion=st.sampled_from(["product", {"type": "weighted_product", "weighting": "clamp"}]),
    )
    def test_every_configuration_survives_json(self, depth, **options):
        own = Options(inner=Inner(depth=depth), many={"x": Inner(depth=depth)}, **options)
        again = structure(Options, json.loads(json.dumps(unstructure(own))))
        assert again == own
        assert unstructure(again) == unstructure(own)

    def test_a_model_with_everything(self):
        own = structure(
            ModelConfig,
            {
                "modalities": {
                    "svhn": {
                        "shape": [3, 32, 32],
                        "likelihood": {"type": "laplace", "scale": 0.75},
                        "encoder": "conv",
                        "weight": 2,
                    },
                    "text": {"shape": [5], "likelihood": "categorical", "decoder": "mlp"},
                },
                "beta": 2.5,
                "prior": {"type": "scaled", "learn": False},
            },
        )
        assert own.modalities["svhn"].shape == (3, 32, 32)
        written = json.loads(json.dumps(unstructure(own)))
        assert written["modalities"]["svhn"]["likelihood"]["type"] == "multivae-core/laplace"
        assert structure(ModelConfig, written) == own

    def test_configurations_are_frozen(self):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            Options().count = 2


class TestComponents:
    @pytest.mark.parametrize(
        "form",
        [
            {"type": "normal", "scale": 1.0},
            {"type": "multivae-core/normal"},
            "normal",
            NormalConfig(),
        ],
    )
    def test_by_name_mapping_or_configuration(self, form):
        own = ModalityConfig(shape=(3,), likelihood=form)
        assert own.likelihood == NormalConfig()
        assert build("likelihoods", own.likelihood, (3,)).n_params == 1

    def test_none_where_the_default_is_none(self):
        assert Options().maybe is None
        assert Options(maybe=None).maybe is None

    def test_none_where_a_component_is_needed(self):
        with pytest.raises(ConfigError, match=r"modalities\.svhn\.likelihood: "):
            structure(ModelConfig, model_options(likelihood=None))

    @pytest.mark.parametrize("form", [3, {"scale": 1.0}, {"type": 3}, ["normal"]])
    def test_other_forms_are_refused(self, form):
        path = r"modalities\.svhn\.likelihood: expected a name of likelihoods, a mapping with the"
        with pytest.raises(ConfigError, match=path):
            structure(ModelConfig, model_options(likelihood=form))

    @pytest.mark.parametrize("form", ["norml", {"type": "norml"}])
    def test_unknown_names_are_answered_with_the_known_ones(self, form):
        with pytest.raises(ConfigError, match=r"modalities\.svhn\.likelihood: .*norml.*normal"):
            structure(ModelConfig, model_options(likelihood=form))

    def test_a_configuration_of_another_kind(self):
        message = r"modalities\.svhn\.likelihood: .*MLPConfig is the configuration of no"
        with pytest.raises(MultivaeError, match=message):
            structure(ModelConfig, model_options(likelihood=MLPConfig()))


class TestPaths:
    @pytest.mark.parametrize(
        ("svhn", "message"),
        [
            (
                {"likelihood": {"type": "normal", "scale": -1.0}},
                "modalities.svhn.likelihood.scale: must be > 0, got -1.0",
            ),
            (
                {"likelihood": {"type": "normal", "scal": 1.0}},
                "modalities.svhn.likelihood.scal: unknown option; there is scale, initial_scale",
            ),
            ({"weight": -1.0}, "modalities.svhn.weight: must be >= 0, got -1.0"),
            ({"weight": "much"}, "modalities.svhn.weight: must be a number, got 'much'"),
            ({"standardise": 1}, "modalities.svhn.standardise: must be true or false, got 1"),
            (
                {"wieght": 1.0},
                "modalities.svhn.wieght: unknown option; there is shape, likelihood",
            ),
            ({"shape": [3, "x"]}, "modalities.svhn.shape.1: must be an integer, got 'x'"),
            ({"shape": 3}, "modalities.svhn.shape: "),
        ],
    )
    def test_of_modalities(self, svhn, message):
        refused(model_options(**svhn), message, ModelConfig)

    @pytest.mark.parametrize("name", ["likelihood", "modalities", "shape", "scale"])
    def test_of_modalities_that_are_named_like_options(self, name):
        options = {"shape": [3], "likelihood": {"type": "normal", "scale": -1.0}}
        message = f"modalities.{name}.likelihood.scale: must be > 0, got -1.0"
        refused({"modalities": {name: options}}, message, ModelConfig)

    def test_of_what_is_missing(self):
        refused({"modalities": {"a": {}}}, "modalities.a.shape: this option is req", ModelConfig)
        refused({}, "modalities: this option is required", ModelConfig)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"number": -0.5}, "number: must be >= 0, got -0.5"),
            ({"number": float("nan")}, "number: must be a number, got nan"),
            ({"number": float("inf")}, "number: must be a number, got inf"),
            ({"number": True}, "number: must be a number, got True"),
            ({"count": 0}, "count: must be > 0, got 0"),
            ({"count": 1.5}, "count: must be an integer, got 1.5"),
            ({"count": "3"}, "count: must be an integer, got '3'"),
            ({"count": True}, "count: must be an integer, got True"),
            ({"count": None}, "count: must be an integer, got None"),
            ({"share": 1.5}, "share: must be between 0.0 and 1.0, got 1.5"),
            ({"kind": "c"}, "kind: must be one of 'a', 'b'; got 'c'"),
            ({"kind": 3}, "kind: must be a text, got 3"),
            ({"flag": "yes"}, "flag: must be true or false, got 'yes'"),
            ({"flag": 1}, "flag: must be true or false, got 1"),
            ({"perhaps": 2.5}, "perhaps: must be an integer or None, got 2.5"),
            ({"perhaps": "2"}, "perhaps: must be an integer or None, got '2'"),
            ({"either": [1]}, "either: must be a number or a text, got [1]"),
            ({"listed": "ab"}, "listed: must be a list, got 'ab'"),
            ({"listed": [["a"], "b"]}, "listed.1: must be a list, got 'b'"),
            ({"listed": [["a", 1]]}, "listed.0.1: must be a text, got 1"),
            ({"sizes": [1, 2.5]}, "sizes.1: must be an integer, got 2.5"),
            ({"sizes": "12"}, "sizes: must be a list, got '12'"),
            ({"weights": {"a": "b"}}, "weights.a: must be a number, got 'b'"),
            ({"weights": [1.0]}, "weights: must be a mapping, got [1.0]"),
            ({"inner": {"depth": 0}}, "inner.depth: must be > 0, got 0"),
            ({"inner": {"deep": 1}}, "inner.deep: unknown option; there is depth"),
            ({"inner": 3}, "inner: must be a mapping, got 3"),
            ({"many": {"x": {"depth": 0}}}, "many.x.depth: must be > 0, got 0"),
            ({"fusion": {"type": "mixture", "x": 1}}, "fusion.x: unknown option; there is no opt"),
        ],
    )
    def test_of_every_kind_of_value(self, options, message):
        refused(options, message)

    def test_under_a_given_path(self):
        with pytest.raises(ConfigError, match=r"^models\.mine\.count: must be > 0"):
            structure(Options, {"count": 0}, "models.mine")
        with pytest.raises(ConfigError, match=r"^here: must be a mapping, got \[\]"):
            structure(Options, [], "here")

    def test_as_an_attribute(self):
        with pytest.raises(ConfigError) as caught:
            structure(ModelConfig, model_options(likelihood={"type": "normal", "scale": -1.0}))
        assert caught.value.path == "modalities.svhn.likelihood.scale"

    def test_whole_numbers_are_numbers(self):
        own = structure(Options, {"number": 2, "weights": {"a": 1}})
        assert isinstance(own.number, float)
        assert isinstance(own.weights["a"], float)

    def test_numbers_of_numpy_are_numbers(self):
        given = {"number": np.float32(0.5), "count": np.int64(3), "sizes": [np.int32(4)]}
        own = structure(Options, given | {"either": np.float64(2.5), "perhaps": np.int8(1)})
        assert json.dumps([own.number, own.count, own.sizes, own.either, own.perhaps])
        with pytest.raises(ConfigError, match="count: must be an integer"):
            structure(Options, {"count": np.float64(3.0)})

    def test_validators_work_without_structuring_too(self):
        with pytest.raises(ConfigError, match="count: must be > 0"):
            Options(count=0)


def test_a_configuration_that_belongs_to_no_component():
    with pytest.raises(MultivaeError, match="Inner"):
        build("fusions", Inner())
    assert build("likelihoods", PoissonConfig(), (3,)).n_params == 1
