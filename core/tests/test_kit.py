"""The kit's own machinery: reports, cases, the decorator, and the light pytest plugin."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import multivae_core as mv
from multivae_core.errors import MultivaeError
from multivae_core.testing import (
    Case,
    ConformanceError,
    check_model,
    every_check,
    names,
    report,
)  # fmt: skip
from multivae_core.testing.report import Outcome, Report, table


def test_the_plugin_of_pytest_imports_no_torch():
    script = (
        "import sys, multivae_core.testing.pytest_plugin as p;"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_table_shows_what_is_not_applicable_with_its_reason():
    report = Report(
        "pool_vae",
        (
            Outcome("holes", "ok", seconds=1.5),
            Outcome("bounds", "n/a", "it has no likelihood"),
            Outcome("rows", "FAILED", "another order of rows: the loss changes"),
        ),
    )
    lines = table([report])
    (row,) = [line for line in lines if line.startswith("pool_vae ")]
    assert row.split() == ["pool_vae", "ok", "n/a", "XX", "1.5", "s"]
    assert "pool_vae: bounds: n/a: it has no likelihood" in lines
    assert "pool_vae: rows: FAILED: another order of rows: the loss changes" in lines
    assert [outcome.check for outcome in report.failures] == ["rows"]


def test_a_reason_that_models_share_is_printed_once():
    nowhere, point = "this machine has no other device", "its encoders give points"
    bare = (Outcome("device", "n/a", nowhere),)
    pointed = (*bare, Outcome("bounds", "n/a", point), Outcome("likelihood", "n/a", point))
    reports = [Report("one", bare), Report("two", pointed), Report("three", pointed)]
    assert [line for line in table(reports) if "n/a:" in line] == [
        f"all models: device: n/a: {nowhere}",
        f"two, three: bounds, likelihood: n/a: {point}",
    ]


def test_every_check_makes_one_test_of_every_check_of_every_case():
    mark = every_check("one", ("two", {"beta": 2.0}), Case(model="three", label="third"))
    ids = [each.id for each in mark.args[1]]
    assert ids[: len(names())] == [f"one-{name}" for name in names()]
    assert {name.split("-")[0] for name in ids} == {"one", "two beta=2.0", "third"}


def test_what_is_no_case_is_refused():
    with pytest.raises(MultivaeError, match="takes names, classes"):
        every_check(3)


def test_unknown_models_and_classes_are_refused():
    with pytest.raises(mv.UnknownComponentError, match="no installed plugin offers"):
        check_model("no_such_model")

    class Nobody(mv.MultimodalVAE):
        pass

    with pytest.raises(mv.UnknownComponentError, match="register_model"):
        check_model(Nobody)


def test_an_error_inside_a_check_is_a_failure_with_its_rule():
    class Raises(mv.MultimodalVAE):
        def posterior(self, batch):
            raise ValueError("no posterior yet")

        def loss(self, batch, step):
            raise ValueError("no loss yet")

    mv.register_model(name="raises", config=mv.ModelConfig)(Raises)
    try:
        assert not check_model("raises", checks=["config"]).failures
        with pytest.raises(ConformanceError) as caught:
            check_model(Raises, checks=["config", "latents", "gradients"])
    finally:
        mv.registry.unregister("local/raises")
    text = str(caught.value)
    assert "Raises breaks 2 rules" in text
    assert "gradients: Gradients reach exactly" in text
    assert "ValueError: no loss yet" in text


def test_outcomes_of_other_processes_join_the_table_in_the_order_of_the_kit(monkeypatch):
    first, second, last = names()[0], names()[1], names()[-1]
    monkeypatch.setattr(report, "recorded", {"b": {last: Outcome(last, "ok")}})
    report.take(
        {"b": [{"check": first, "verdict": "ok"}], "a": [{"check": second, "verdict": "ok"}]}
    )
    sent = json.loads(json.dumps(report.dump()))
    monkeypatch.setattr(report, "recorded", {})
    report.take(sent)
    found = {each.model: [o.check for o in each.outcomes] for each in report.reports()}
    assert found == {"a": [second], "b": [first, last]}
    assert list(found) == ["a", "b"]
