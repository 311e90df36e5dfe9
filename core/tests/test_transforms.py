"""The scale on which a model sees a modality."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import multivae_core as mv
from multivae_core.likelihoods import Normal, NormalConfig
from multivae_core.transforms import Transform


def fitted(values: torch.Tensor, observed: torch.Tensor | None = None) -> Transform:
    """Return a transform fitted through a data set, as `create_model` does."""
    masks = None if observed is None else {"x": observed}
    data = mv.IncompleteDataset({"x": values}, observed=masks, allow_empty_rows=True)
    seen = torch.ones_like(values, dtype=torch.bool) if observed is None else observed
    transform = Transform(data.shapes["x"]).double()
    transform.fit(*data.moments("x"), seen.sum(dim=0))
    return transform


def test_features_get_mean_0_and_spread_1() -> None:
    generator = torch.Generator().manual_seed(0)
    values = 5.0 + 3.0 * torch.randn(200, 4, generator=generator, dtype=torch.float64)
    seen = fitted(values)(values)
    assert_close(seen.mean(dim=0), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    assert_close(seen.std(dim=0, unbiased=False), torch.ones(4, dtype=torch.float64))


def test_only_observed_entries_count() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(100, 3, generator=generator, dtype=torch.float64)
    observed = torch.rand(100, 3, generator=generator) < 0.6
    transform = fitted(torch.where(observed, values, 1e30), observed)
    for feature in range(3):
        own = values[observed[:, feature], feature]
        assert_close(transform.shift[feature], own.mean())
        assert_close(transform.scale[feature], own.std(unbiased=False))


@pytest.mark.parametrize("shape", [(2, 5, 5), (3, 8), (2, 3, 4, 5)])
def test_channels_are_scaled_as_a_whole(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(50, *shape, generator=generator, dtype=torch.float64)
    values = values * torch.linspace(1.0, 9.0, shape[-1], dtype=torch.float64)
    observed = torch.rand(50, *shape, generator=generator) < 0.5
    transform = fitted(values, observed)
    assert transform.scale.shape == (shape[0], *(1 for _ in shape[1:]))
    for channel in range(shape[0]):
        own = values[:, channel][observed[:, channel]]
        assert_close(transform.shift[channel].squeeze(), own.mean())
        assert_close(transform.scale[channel].squeeze(), own.std(unbiased=False))


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.7e8, 1e-30])
def test_constant_features_keep_their_scale(constant: float) -> None:
    values = torch.full((1000, 2), constant, dtype=torch.float64)
    values[:, 1] += torch.arange(1000)
    transform = fitted(values)
    assert float(transform.scale[0]) == 1.0
    assert float(transform.scale[1]) > 100.0
    assert_close(float(transform.shift[0]), constant)


def test_what_is_never_observed_keeps_its_scale() -> None:
    values = torch.randn(20, 2, dtype=torch.float64)
    observed = torch.ones(20, 2, dtype=torch.bool)
    observed[:, 1] = False
    transform = fitted(values, observed)
    assert float(transform.shift[1]) == 0.0
    assert float(transform.scale[1]) == 1.0


def test_a_spread_that_the_type_cannot_hold_counts_as_constant() -> None:
    transform = Transform((1,))
    spread = torch.tensor([1e-42], dtype=torch.float64)
    transform.fit(torch.zeros(1, dtype=torch.float64), spread, torch.tensor([9]))
    assert float(transform.scale[0]) == 1.0


@given(
    st.floats(-1e6, 1e6),
    st.sampled_from([0.001, 0.5, 3.0, 1e5]),
    st.integers(0, 2**32 - 1),
)
def test_there_and_back(shift: float, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = shift + scale * torch.randn(9, 3, generator=generator, dtype=torch.float64)
    transform = fitted(values)
    back = transform(values) * transform.scale + transform.shift
    assert_close(back, values, rtol=1e-9, atol=1e-9 * scale)


def test_densities_move_with_the_scale() -> None:
    generator = torch.Generator().manual_seed(3)
    values = 7.0 + 4.0 * torch.randn(30, 3, generator=generator, dtype=torch.float64)
    observed = torch.rand(30, 3, generator=generator) < 0.7
    transform = fitted(values, observed)
    head = Normal(NormalConfig(scale=0.3), (3,)).double()
    location = torch.randn(30, 1, 3, generator=generator, dtype=torch.float64)
    likelihood = head(location)
    on_model_scale = likelihood.log_prob(transform(values), observed)
    on_data_scale = transform.to_data(likelihood).log_prob(values, observed)
    assert_close(on_data_scale, on_model_scale - transform.log_scale(observed))


@pytest.mark.parametrize("unit", [1e-3, 2.0, 1e6])
def test_a_change_of_unit_changes_nothing_on_the_scale_of_the_model(unit: float) -> None:
    generator = torch.Generator().manual_seed(4)
    values = 2.0 + torch.randn(40, 3, generator=generator, dtype=torch.float64)
    one, other = fitted(values), fitted(unit * values)
    assert_close(other(unit * values), one(values), rtol=1e-10, atol=1e-10)
    everything = torch.ones(1, 3, dtype=torch.bool)
    gained = other.log_scale(everything) - one.log_scale(everything)
    assert_close(gained.item(), 3 * math.log(unit), rtol=1e-10, atol=1e-10)


def test_a_large_offset_costs_no_digits_where_the_data_have_them() -> None:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    values = 1e9 + 20.0 * noise
    data = mv.IncompleteDataset({"x": values})
    transform = Transform((2,))  # float32 holds 1e9 to a multiple of 64
    transform.fit(*data.moments("x"), torch.full((2,), 200), torch.float64)
    seen = transform(values)
    assert seen.dtype == torch.float32
    expected = (values - values.mean(dim=0)) / values.std(dim=0, unbiased=False)
    assert_close(seen, expected.float(), rtol=0, atol=1e-5)
