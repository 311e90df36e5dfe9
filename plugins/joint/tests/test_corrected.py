"""The product of posteriors in which the prior counts once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import multivae_core as mv
from multivae_core.distributions import Normal
from multivae_joint.corrected import CorrectedProduct, CorrectedProductConfig


@pytest.fixture
def fusion():
    return CorrectedProduct(CorrectedProductConfig(), 3, 2)


def test_it_is_the_posterior_where_every_expert_is_one(fusion):
    # z ~ N(0, I), x_m = w_m z + noise of variance v_m, coordinate by coordinate
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(3, 1, 2)), rng.uniform(0.3, 2.0, size=(3, 1, 2))
    x = rng.normal(size=(3, 5, 2))
    precision = w**2 / v
    experts = Normal(
        torch.as_tensor(w * x / v / (1 + precision)),
        -torch.as_tensor(np.broadcast_to(np.log1p(precision), x.shape).copy()),
    )
    subsets = (torch.arange(1, 8)[:, None] >> torch.arange(3) & 1).bool()
    fused = fusion.groups(experts, subsets[:, None])
    for subset, mean, variance in zip(subsets.numpy(), fused.mean, fused.variance, strict=True):
        total = 1 + precision[subset].sum(axis=0)
        exact = (w * x / v)[subset].sum(axis=0) / total
        np.testing.assert_allclose(mean, exact, rtol=1e-12)
        np.testing.assert_allclose(variance, np.broadcast_to(1 / total, (5, 2)), rtol=1e-12)


def test_experts_wider_than_the_prior_leave_a_precision(fusion):
    wide = Normal(torch.ones(3, 4, 2), torch.full((3, 4, 2), 1.5))
    members = torch.tensor([[[True, True, True]]])
    fused = fusion.groups(wide, members)
    torch.testing.assert_close(fused.log_variance, torch.full((1, 4, 2), 1.5))
    assert fusion.clamped(wide, members).tolist() == [[1.0] * 4]
    narrow = Normal(torch.ones(3, 4, 2), torch.full((3, 4, 2), -1.0))
    assert not fusion.clamped(narrow, members).any()
    assert not fusion.clamped(wide, torch.tensor([[[True, False, False]]])).any()


def test_nothing_is_the_prior(fusion):
    experts = Normal(torch.randn(3, 2, 2), torch.randn(3, 2, 2))
    present = torch.tensor([[False, False, False], [True, False, False]])
    fused = fusion(experts, present)
    assert not fused.mean[0].any()
    assert not fused.log_variance[0].any()
    torch.testing.assert_close(fused.mean[1], experts.mean[0, 1])


def test_any_model_reaches_it_by_name():
    spec = mv.registry.fusions["corrected_product"]
    assert spec.plugin == "multivae-joint"
