"""A row of which nothing is seen has the model's own prior, whatever that is.

The aggregated family has this test beside its models; here are those of the other families.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import multivae_core as mv

FLOWS = {"hidden": [8], "transforms": 2, "context_dim": 4, "sampler": "sir", "candidates": 4}
CASES = {
    "crmvae": ("crmvae", {}),
    "dvcca": ("dvcca", {}),
    "jmvae": ("jmvae", {}),
    "jnf": ("jnf", FLOWS),
    "latent_translation": ("latent_translation", {}),
    "mcvae": ("mcvae", {}),
    "mcvae geometric": ("mcvae", {"encode_with": "geometric"}),
    "telbo": ("telbo", {}),
}


@pytest.mark.parametrize(("name", "options"), CASES.values(), ids=CASES)
def test_rows_with_nothing_have_the_models_own_prior(name, options):
    # 2,000 draws: the deviation is known to 1.6 %, the limit is 4 of that
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=(6, 3)), "b": rng.normal(size=(6, 2))}
    data = mv.IncompleteDataset(values)
    own = {"type": "scaled", "family": "normal", "learn": False}
    model = mv.create_model(name, data, latent_dim=2, prior=own, dtype="float64", **options)
    with torch.no_grad():
        model.shared_prior.raw_scale.copy_(torch.tensor([3.0, -2.0]))
    hidden = data.restrict(torch.tensor([[True, True], [False, False]]).repeat(3, 1))
    drawn = model.encode(hidden, n_samples=2000)["shared"]
    wanted = torch.tensor([3.0, -2.0], dtype=torch.float64).mul(0.5).exp()
    torch.testing.assert_close(drawn[:, 1].std(dim=0), wanted, rtol=0.065, atol=0.0)
    assert not torch.allclose(drawn[:, 0].std(dim=0), wanted, rtol=0.065)
