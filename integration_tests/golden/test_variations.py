"""The adapters on options that no golden number covers, and what they must refuse.

Values come from `reference`, which first has to give the golden's own.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from multivae_core.noise import GeneratorNoise, ZeroNoise

from .adapter import Adapter, installed_as
from .adapters import adapter_of
from .case import Case, CaseError, Entry, find_cases, golden_folder, readable
from .checks import check, kind_of
from .reference import loss

pytestmark = pytest.mark.golden

FAMILIES = ("MVAE", "MMVAE", "MoPoE")
CASES = [
    case
    for case in readable(find_cases(golden_folder()))[0]
    if case.model in FAMILIES and installed_as(case.model) is not None
]
if not CASES:
    pytest.skip(f"no case of {', '.join(FAMILIES)}", allow_module_level=True)


def first(model: str, **wanted: Any) -> Case:
    for case in CASES:
        config = case.config | {"private": bool(case.private_dims)}
        if case.model == model and all(config.get(k) == v for k, v in wanted.items()):
            return case
    return pytest.skip(f"no case of {model} with {wanted}")


def varied(
    case: Case,
    config: dict[str, Any] | None = None,
    forward: dict[str, Any] | None = None,
    tensors: dict[str, torch.Tensor] | None = None,
    **keys: Any,
) -> Case:
    """The same case with other options."""
    other = Case(case.folder)
    content = copy.deepcopy(case.content) | keys
    content["config"] |= config or {}
    content["forward_arguments"] |= forward or {}
    other.__dict__["content"] = content
    other.__dict__["tensors"] = case.tensors | (tensors or {})
    return other


def ours(case: Case, data: str) -> float:
    adapter, batch = adapter_of(case), case.batch(data)
    with torch.no_grad():
        output = adapter.output(adapter.build(question(data)), batch, ZeroNoise(torch.float64))
    return float(adapter.losses(output, batch, 1)[0])


def question(data: str = "complete", **fields: Any) -> Entry:
    usual = {"quantity": "loss", "mode": "zero_noise", "variant": "moderate"}
    return Entry(0, usual | {"data": data} | fields)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_reference_gives_the_golden_losses(case):
    entries = [e for e in case.entries if e.quantity == "loss" and e.mode == "zero_noise"]
    assert entries
    for entry in entries:
        if not set(case.content["variants"][entry["variant"]]):
            expected = pytest.approx(entry["value"], rel=1e-6 if case.model == "MoPoE" else 1e-9)
            assert loss(case, entry["data"]) == expected


SCALES = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
TWO = {"modality_order": ["c", "a"]}
VARIATIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mvae beta, no warm-up": ("MVAE", {}, {"config": {"beta": 0.3, "warmup": 0}}),
    "mvae default warm-up": (
        "MVAE", {}, {"config": {"warmup": 10}, "forward": {"epoch": 3, "batch_ratio": 0.2}}),
    "mvae start of warm-up": (
        "MVAE", {}, {"config": {"warmup": 8}, "forward": {"epoch": 1, "batch_ratio": 0.0}}),
    "mvae end of warm-up": (
        "MVAE", {}, {"config": {"warmup": 4}, "forward": {"epoch": 4, "batch_ratio": 0.9}}),
    "mvae all pairs": ("MVAE", {}, {"config": {"use_subsampling": True, "k": 3}}),
    "mvae k without sub-sampling": ("MVAE", {}, {"config": {"use_subsampling": False, "k": 3}}),
    "mvae own factors": ("MVAE", {}, {"config": {
        "uses_likelihood_rescaling": True, "rescale_factors": {"a": 2.0, "b": 0.5, "c": 0.1}}}),
    "mvae factors that are off": ("MVAE", {}, {"config": {
        "uses_likelihood_rescaling": False, "rescale_factors": {"a": 2.0, "b": 0.5, "c": 0.1}}}),
    "mvae other order": ("MVAE", {"k": 3}, {"modality_order": ["c", "a", "b"]}),
    "mvae two modalities": ("MVAE", {"use_subsampling": True, "k": 0}, TWO),
    "mmvae two modalities": ("MMVAE", {}, TWO),
    "mopoe two modalities": ("MoPoE", {"subsets": None, "private": False}, TWO),
    "mmvae softplus": (
        "MMVAE", {}, {"config": {"prior_and_posterior_dist": "normal_with_softplus", "K": 3}}),
    "mmvae softplus, prior": (
        "MMVAE", {"learn_prior": True},
        {"config": {"prior_and_posterior_dist": "normal_with_softplus"},
         "tensors": {"prior.logvar": SCALES}}),
    "mmvae laplace, prior": (
        "MMVAE", {}, {"config": {"prior_and_posterior_dist": "laplace_with_softmax"},
                      "tensors": {"prior.logvar": SCALES}}),
    "mmvae normal, fixed prior": (
        "MMVAE", {}, {"config": {"prior_and_posterior_dist": "normal", "learn_prior": False},
                      "tensors": {"prior.logvar": SCALES}}),
    "mmvae beta is not read": ("MMVAE", {}, {"config": {"beta": 4.0}}),
    "mmvae rescaled": ("MMVAE", {}, {"config": {"uses_likelihood_rescaling": True, "K": 2}}),
    "mmvae dreg": ("MMVAE", {}, {"config": {"loss": "dreg_looser"}, "forward": {"K": 4}}),
    "mmvae other order": ("MMVAE", {}, {"modality_order": ["b", "c", "a"]}),
    "mopoe some subsets": ("MoPoE", {"subsets": None, "private": False}, {"config": {
        "subsets": [["a"], ["c", "b"], ["b"], ["c"]], "beta": 0.7}}),
    "mopoe named subsets": ("MoPoE", {"subsets": None, "private": False}, {"config": {
        "subsets": {"a": ["a"], "b": ["b"], "c": ["c"], "a_b_c": ["a", "b", "c"]}}}),
    "mopoe beta 0": ("MoPoE", {"private": False}, {"config": {"beta": 0.0}}),
    "mopoe style": ("MoPoE", {"private": True}, {"config": {"beta": 2.0, "beta_style": 3.0}}),
    "mopoe no style": ("MoPoE", {"private": True}, {"config": {"beta_style": 0.0}}),
    "mopoe private rescaled": ("MoPoE", {"private": True}, {"config": {
        "uses_likelihood_rescaling": True}}),
    "mopoe other order": ("MoPoE", {"private": True}, {"modality_order": ["b", "c", "a"]}),
}  # fmt: skip


@pytest.mark.parametrize("data", ["complete", "incomplete"])
@pytest.mark.parametrize("name", VARIATIONS)
def test_options_mean_what_the_golden_says(name, data):
    model, wanted, changes = VARIATIONS[name]
    case = varied(first(model, **wanted), **changes)
    assert ours(case, data) == pytest.approx(loss(case, data), rel=1e-8)


@pytest.mark.parametrize("data", ["complete", "incomplete"])
@pytest.mark.parametrize(("model", "config"), [
    ("MVAE", {"use_subsampling": True, "k": 10}),
    ("MVAE", {"use_subsampling": True, "k": 0}),
    ("MMVAE", {}),
    ("MoPoE", {}),
    ("MoPoE", {"subsets": [["a"], ["b"], ["c"], ["a_b"], ["a_b", "a"]], "beta": 0.2}),
])  # fmt: skip
def test_four_modalities(model, config, data):
    case = first(model, **({"private": False, "subsets": None} if model == "MoPoE" else {}))
    case = with_fourth(varied(case, config))
    assert ours(case, data) == pytest.approx(loss(case, data), rel=1e-8)


def with_fourth(case: Case) -> Case:
    """The case with modality a once more, under a name that could be a subset's, in other rows."""
    content, name = copy.deepcopy(case.content), "a_b"
    for part in ("encoders", "decoders"):
        content["networks"][f"{part}.{name}"] = copy.deepcopy(content["networks"][f"{part}.a"])
    content["networks"][f"encoders.{name}"]["inputs"] = [f"x.{name}"]
    content["modalities"][name] = content["modalities"]["a"]
    tensors = {
        f"x.{name}": case.tensors["x.a"].flip(0),
        f"masks.{name}": case.tensors["masks.b"].flip(0),
    }
    keys = ("networks", "modalities")
    order = [*case.order, name]
    return varied(case, None, None, tensors, modality_order=order, **{k: content[k] for k in keys})


def test_part_of_the_subsets_is_drawn_for_the_whole_batch():
    case = varied(first("MVAE", use_subsampling=True), {"k": 1})
    adapter = adapter_of(case)
    assert not adapter.draws_at_once()
    none, every = (loss(varied(case, {"k": k}), "incomplete") for k in (0, 3))
    noise = GeneratorNoise(torch.Generator().manual_seed(0), torch.float64)
    batch, built = case.batch("incomplete"), adapter.build(question("incomplete"))
    with torch.no_grad():
        outputs = [adapter.output(built, batch, Uniform(noise)) for _ in range(60)]
    values = {round(float(adapter.losses(output, batch, 1)[0]), 9) for output in outputs}
    # without other noise: the value of either pair, and together they make up all of them
    assert len(values) == 3
    assert sum(values) - 3 * none == pytest.approx(every - none, rel=1e-7)


class Uniform(ZeroNoise):
    """Zero noise with true choices."""

    def __init__(self, base: GeneratorNoise) -> None:
        super().__init__(torch.float64)
        self.uniform = base.uniform
        self.batch_uniform = base.batch_uniform


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown option": ("MVAE", {"config": {"approx_m": 1}}, "approx_m"),
    "unknown value": ("MVAE", {"config": {"k": -1}}, "k has a value"),
    "not a number": ("MVAE", {"config": {"beta": "1"}}, "beta has a value"),
    "unknown argument": ("MVAE", {"forward": {"temperature": 2}}, "temperature"),
    "unknown distribution": (
        "MMVAE", {"config": {"prior_and_posterior_dist": "student"}}, "student"),
    "unknown loss": ("MMVAE", {"config": {"loss": "iwae_tight"}}, "iwae_tight"),
    "no sample": ("MMVAE", {"config": {"K": 0}}, "K has a value"),
    "other private sizes": ("MoPoE", {"config": {"modalities_specific_dim": {"a": 9}}}, "dim"),
    "contradicting size": ("MoPoE", {"config": {"latent_dim": 99}}, "latent_dim"),
    "factors of other modalities": ("MoPoE", {"config": {"rescale_factors": {"a": 1.0}}}, "resc"),
    "other peer": ("MVAE", {"peer": "multiviewae 1.1.8"}, "multiviewae"),
    "extra": ("MVAE", {"extra": {"prior_network": True}}, "prior_network"),
    "unknown key": ("MVAE", {"annealing": "cosine"}, "annealing"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_unknown_options_are_refused(name):
    model, changes, words = REFUSED[name]
    with pytest.raises(CaseError, match=words):
        adapter_of(varied(first(model), **changes))


@pytest.mark.parametrize(("fields", "words"), [
    ({"quantity": "mutual_information"}, "no check knows"),
    ({"mode": "quasi_monte_carlo"}, "quasi_monte_carlo"),
    ({"forward_arguments": {"epoch": 3}, "value": 1.0}, "arguments of its own"),
    ({"data": "partial", "value": 1.0}, "partial"),
    ({"variant": "huge", "value": 1.0}, "huge"),
])  # fmt: skip
def test_unknown_questions_are_refused(fields, words):
    entry = question(**fields)
    with pytest.raises(CaseError, match=words):
        check(adapter_of(first("MVAE")), entry)


def test_unknown_questions_are_not_taken_for_checked():
    assert kind_of(question(quantity="mutual_information")) == "unknown"
    assert kind_of(question(mode="quasi_monte_carlo")) == "unknown"


@pytest.mark.parametrize("model", FAMILIES)
def test_a_wrong_number_is_noticed(model):
    case = varied(first(model))
    adapter: Adapter = adapter_of(case)
    questions = [entry for entry in case.entries if kind_of(entry) == "check"]
    assert questions
    for entry in questions:
        with pytest.raises(AssertionError):
            check(adapter, falsified(case, entry))


def falsified(case: Case, entry: Entry) -> Entry:
    """The entry with one number a little further off than its tolerance allows."""
    fields = copy.deepcopy(dict(entry.fields))
    if "tensor" in fields or "tensors" in fields:
        holder = fields.get("tensors", fields)
        key = next(iter(holder)) if "tensors" in fields else "tensor"
        wrong = case.tensors[holder[key]].clone()
        wrong.view(-1)[0] += 1.0 if entry.mode == "exact_quadrature" else 1e-5
        case.tensors["wrong"] = wrong
        holder[key] = "wrong"
    elif isinstance(fields["value"], dict):
        largest = max(fields["value"], key=fields["value"].get)
        fields["value"][largest] *= 1.0 + 1e-5
    else:
        fields["value"] += 12.0 * fields["se"] if "se" in fields else 2e-5 * fields["value"]
    return Entry(entry.number, fields)
