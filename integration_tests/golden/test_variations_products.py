"""The adapters of MVTCAE, mmJSD and gPoE: what they must refuse, and what they must notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .adapter import installed_as
from .adapters import adapter_of
from .case import Case, CaseError, find_cases, golden_folder, readable
from .checks import check, kind_of
from .test_variations import falsified, varied

pytestmark = pytest.mark.golden

MODELS = ("MVTCAE", "mmJSD", "gPoE")
CASES = {
    case.model: case
    for case in readable(find_cases(golden_folder()))[0]
    if case.model in MODELS and installed_as(case.model) is not None
}


def case_of(model: str) -> Case:
    return CASES[model] if model in CASES else pytest.skip(f"no case of {model}")


@pytest.mark.parametrize(("model", "changes", "words"), [
    ("MVTCAE", {"config": {"alpha": 1.5}}, "alpha has a value"),
    ("MVTCAE", {"config": {"tc_ratio": 0.5}}, "tc_ratio"),
    ("MVTCAE", {"peer": "multiviewae 1.1.8"}, "multiviewae"),
    ("mmJSD", {"config": {"beta": 2}}, "beta has a value"),
    ("mmJSD", {"config": {"weight_ll": True}}, "weight_ll"),
    ("mmJSD", {"private_dims": {"a": 1}}, "private latents of this peer"),
    ("mmJSD", {"peer": "multivae 1.0.3"}, "multivae 1"),
    ("gPoE", {"config": {"s_dim": 2}}, "s_dim"),
    ("gPoE", {"peer": "multivae 1.0.3"}, "multivae 1"),
])  # fmt: skip
def test_unknown_options_are_refused(model: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CaseError, match=words):
        adapter_of(varied(case_of(model), **changes))


def test_weights_that_the_peer_would_clamp_are_refused() -> None:
    case = case_of("gPoE")
    adapter = adapter_of(varied(case, tensors={"poe_weight": case.tensors["poe_weight"] + 1}))
    with pytest.raises(CaseError, match="would clamp"):
        adapter.build(case.entries[0])


def test_unknown_numbers_are_refused() -> None:
    case = case_of("gPoE")
    with pytest.raises(CaseError, match="no number of ours is called"):
        adapter_of(case).array(case.entries[0])


@pytest.mark.parametrize("model", MODELS)
def test_a_wrong_number_is_noticed(model: str) -> None:
    case = varied(case_of(model))
    adapter = adapter_of(case)
    questions = [entry for entry in case.entries if kind_of(entry) == "check"]
    assert questions
    for entry in questions:
        if isinstance(entry.fields.get("value"), list):
            wrong = entry.fields | {"value": torch.tensor(entry["value"]).mul(1.00001).tolist()}
            entry = type(entry)(entry.number, wrong)
        else:
            entry = falsified(case, entry)
        with pytest.raises(AssertionError):
            check(adapter, entry)
