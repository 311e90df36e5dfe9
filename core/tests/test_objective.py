"""Values per row to one number: weights, holes, shares of a batch, and what is reported."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from multivae_core.errors import TrainingError
from multivae_core.losses import LossOutput, Term
from multivae_core.training.objective import (
    Meter,
    Share,
    check_output,
    means,
    objective,
    report,
    weight_sums,
)

ALL = torch.ones(4, dtype=torch.bool)
SOME = torch.tensor([True, False, True, True])


def whole(something):
    """The share of who has the whole batch."""
    return Share(something, int(something.sum()), int(something.sum()))


def numbers(meter, players=("p",)):
    return means(meter.totals(lambda values: values), players)


def value_of(output, share):
    return objective(output, share, lambda: weight_sums(output, share))


def parameter(*numbers):
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


def test_mean_over_rows_of_which_something_is_seen():
    x = parameter(1.0, math.nan, 3.0, 5.0)
    value = value_of(LossOutput(terms={"t": Term(x)}), whole(SOME))
    value.backward()
    assert value.item() == 3.0
    assert torch.equal(x.grad, torch.tensor([1, 0, 1, 1], dtype=torch.float64) / 3)


def test_terms_add_and_own_weights_normalise():
    x = parameter(1.0, 2.0, 3.0, 4.0)
    weight = torch.tensor([0.0, 1.0, 0.0, 3.0], dtype=torch.float64)
    output = LossOutput(terms={"a": Term(x), "b": Term(2 * x, weight), "c": Term(x)})
    assert value_of(output, whole(ALL)).item() == 2.5 + 2 * (2 + 12) / 4 + 2.5


def test_value_under_a_zero_weight_is_selected_away():
    x = parameter(1.0, math.inf, 3.0, math.nan)
    weight = torch.tensor([1.0, 0.0, 1.0, 0.0])
    value = value_of(LossOutput(terms={"t": Term(x, weight)}), whole(ALL))
    value.backward()
    assert value.item() == 2.0
    assert torch.equal(x.grad, torch.tensor([0.5, 0, 0.5, 0], dtype=torch.float64))


@pytest.mark.parametrize("weight", [None, torch.zeros(4)])
def test_an_empty_sum_is_zero_with_its_graph(weight):
    x = parameter(1.0, 2.0, 3.0, 4.0)
    nothing = torch.zeros(4, dtype=torch.bool)
    value = value_of(LossOutput(terms={"t": Term(x, weight)}), whole(nothing))
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(x.grad, torch.zeros(4, dtype=torch.float64))


def test_surrogate_moves_the_gradient_and_not_the_report():
    x = parameter(1.0, 2.0, 3.0, 4.0)
    output = LossOutput(terms={"t": Term(x)}, surrogate=10 * x.sum())
    share = whole(ALL)
    value_of(output, share).backward()
    assert torch.equal(x.grad, torch.full((4,), 10.25, dtype=torch.float64))
    meter = Meter()
    meter.add(report(output, share, "p", 0))
    assert numbers(meter) == {"loss": 2.5, "t": 2.5}


def test_bound_is_reported_instead_of_terms():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    output = LossOutput(terms={"t": Term(x)}, bound=10 * x, metrics={"m": -x, "t": x})
    meter = Meter()
    meter.add(report(output, whole(ALL), "p", 0))
    assert numbers(meter) == {"loss": 25.0, "t": 2.5, "m": -2.5, "metric/t": 2.5}


def test_pieces_add_and_players_are_told_apart():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    share, meter = whole(ALL), Meter()
    for player, factor in (("p", 1.0), ("q", 10.0)):
        for piece in range(2):
            output = LossOutput(terms={"t": Term(factor * x)})
            meter.add(report(output, share, player, piece))
    assert numbers(meter) == {"loss": 5.0, "t": 5.0}
    assert numbers(meter, ["p", "q"]) == {
        "loss": 5.0, "p/loss": 5.0, "p/t": 5.0, "q/loss": 50.0, "q/t": 50.0,
    }  # fmt: skip


@settings(deadline=None)
@given(
    values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12),
    seen=st.lists(st.booleans(), min_size=12, max_size=12),
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=12, max_size=12),
    parts=st.integers(1, 5),
)
def test_shares_add_up_to_the_whole(values, seen, weights, parts):
    """Objective, gradient and report of parts of a batch sum to those of the whole."""
    n = len(values)
    something = torch.tensor(seen[:n])
    weight = torch.tensor(weights[:n], dtype=torch.float64)

    def pieces(x: Tensor, rows: slice) -> LossOutput:
        terms = {"plain": Term(x[rows].sin()), "own": Term(x[rows].cos(), weight[rows])}
        return LossOutput(terms=terms, surrogate=x[rows].square().sum())

    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    whole_share, whole_meter = whole(something), Meter()
    whole_output = pieces(x, slice(None))
    value = value_of(whole_output, whole_share)
    value.backward()
    whole_meter.add(report(whole_output, whole_share, "p", 0))

    y = x.detach().clone().requires_grad_(True)
    total, meter = 0.0, Meter()
    cuts = [n * i // parts for i in range(parts + 1)]
    for low, high in zip(cuts, cuts[1:], strict=False):
        if low == high:
            continue
        own = something[low:high]
        share = Share(own, int(own.sum()), int(something.sum()))
        output = pieces(y, slice(low, high))
        part = objective(output, share, lambda: {"own": weight.sum()})
        part.backward()
        total += float(part.detach())
        meter.add(report(output, share, "p", 0))
    assert total == pytest.approx(float(value.detach()), rel=1e-9, abs=1e-9)
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-9, atol=1e-9)
    expected = numbers(whole_meter)
    assert numbers(meter) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_stand_in_counts_nothing():
    x = parameter(1.0)
    share = Share(mask=torch.tensor([False]), here=0, count=3, stand_in=True)
    output = LossOutput(terms={"a": Term(x), "b": Term(x, torch.ones(1))}, surrogate=x.sum())
    value = objective(output, share, lambda: {"b": torch.tensor(3.0)})
    value.backward()
    assert value.item() == 0.0
    assert x.grad.item() == 0.0
    assert weight_sums(output, share)["b"].item() == 0.0


def test_how_often_one_looks_changes_no_digit():
    generator = torch.Generator().manual_seed(0)
    entries = [
        report(
            LossOutput(terms={"t": Term(torch.randn(7, generator=generator))}),
            whole(torch.ones(7, dtype=torch.bool)),
            "p",
            0,
        )
        for _ in range(50)
    ]
    often, once = Meter(), Meter()
    for entry in entries:
        often.add(entry)
        numbers(often)
        once.add(entry)
    assert numbers(often) == numbers(once)
    assert torch.equal(often.state()[1], once.state()[1])
    again = Meter.of_state(*once.state(), torch.device("cpu"))
    assert numbers(again) == numbers(once)


def test_half_precision_values_are_summed_in_single():
    x = torch.full((4096,), 1.01, dtype=torch.bfloat16)
    share = whole(torch.ones(4096, dtype=torch.bool))
    value = value_of(LossOutput(terms={"t": Term(x)}), share)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(float(x[0]), rel=1e-6)


def test_a_value_of_the_batch_is_averaged_over_its_parts_and_reported():
    x = parameter(1.0, 2.0, 3.0, 6.0)

    def output(rows):
        own = x[rows]
        enough = len(own) > 1
        spread = own.var() if enough else torch.tensor(math.nan)
        weight = torch.tensor(float(enough * len(own)))
        return LossOutput(terms={"t": Term(own), "spread": Term(spread, weight)})

    parts, meter = [slice(0, 3), slice(3, 4), slice(0, 1)], Meter()
    shares = [Share(None, 3, 4), Share(None, 1, 4), Share(torch.tensor([False]), 0, 4, True)]
    outputs = [output(rows) for rows in parts]
    for each, share in zip(outputs, shares, strict=True):
        check_output(each, len(each.terms["t"].value), "p")
        meter.add(report(each, share, "p", 0))
    sums = {"spread": torch.tensor(3.0)}
    values = [objective(o, s, lambda: sums) for o, s in zip(outputs, shares, strict=True)]
    # the variance of the first three; a row alone has none, and one that stands in counts nowhere
    assert sum(values).item() == pytest.approx(3.0 + 1.0)
    assert numbers(meter) == {"loss": 4.0, "t": 3.0, "spread": 1.0}
    sum(values).backward()
    expected = torch.tensor([-0.75, 0.25, 1.25, 0.25], dtype=torch.float64)
    torch.testing.assert_close(x.grad, expected)
    alone = LossOutput(terms={"spread": Term(torch.tensor(5.0), torch.tensor(2.0))})
    meter = Meter()
    meter.add(report(alone, whole(SOME), "p", 0))
    assert numbers(meter) == {"loss": 5.0, "spread": 5.0}


def test_losses_of_wrong_shape_are_named():
    good = torch.zeros(4)
    for output, words in [
        (LossOutput(terms={"t": Term(torch.zeros(4, 1))}), "term 't' has shape (4, 1)"),
        (LossOutput(terms={"t": Term(good, torch.ones(3))}), "weight of term 't'"),
        (LossOutput(terms={"t": Term(good.sum())}), "term 't' has shape ()"),
        (LossOutput(terms={"t": Term(good.sum(), good)}), "term 't' has shape ()"),
        (LossOutput(terms={"t": Term(good)}, bound=torch.zeros(())), "the bound"),
        (LossOutput(terms={"t": Term(good)}, metrics={"m": torch.zeros(2)}), "metric 'm'"),
    ]:
        with pytest.raises(TrainingError, match="one value per row") as caught:
            check_output(output, 4, "p")
        assert words in str(caught.value)
    with pytest.raises(TrainingError, match="neither terms nor a surrogate"):
        value_of(LossOutput(terms={}), whole(ALL))
