"""What holds for every model of the family, whatever it is called."""

from __future__ import annotations

import pytest
import torch

import multivae_core as mv
from multivae_core.errors import CapabilityError
from multivae_core.plugins import CAPABILITIES

NAMES = [
    name
    for name in mv.registry.models.names()
    if mv.registry.models[name].plugin == "multivae-aggregated"
]
CLAIMS = {name: mv.registry.models[name].capabilities for name in NAMES}
#: mmJSD takes N(0, I) alone
ANY_PRIOR = [(name, {}) for name in NAMES if name != "mmjsd"]
ANY_PRIOR += [(n, {"private_dims": 1}) for n, _ in ANY_PRIOR if "private_latents" in CLAIMS[n]]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_model_lacks_has_a_reason_and_is_refused(make_model, name):
    model, claimed = make_model(name), CLAIMS[name]
    assert not claimed & set(model.lacks)
    # private latents are an option, which a model has or has not
    for capability in CAPABILITIES - claimed - {"private_latents"}:
        with pytest.raises(CapabilityError, match=f"has no {capability}: .* "):
            model.require(capability)


@pytest.mark.parametrize("name", ["gpoe", "helvae"])
def test_a_mean_over_modalities_is_no_bound_and_says_so(make_model, name):
    model = make_model(name, likelihood_reduction="mean")
    with pytest.raises(CapabilityError, match="no loss_is_bound: likelihood_reduction='mean'"):
        model.require("loss_is_bound")
    make_model(name).require("loss_is_bound")


@pytest.mark.parametrize(("name", "options"), ANY_PRIOR)
def test_rows_with_nothing_have_the_models_own_prior(make_model, make_batch, name, options):
    own = {"type": "scaled", "family": "normal", "learn": False}
    model, batch = make_model(name, prior=own, **options), make_batch()
    with torch.no_grad():
        model.shared_prior.raw_scale.copy_(torch.tensor([3.0, -2.0]))
    drawn = model.encode(batch, n_samples=2000)["shared"][:, 1]
    expected = torch.tensor([3.0, -2.0], dtype=torch.float64).mul(0.5).exp()
    torch.testing.assert_close(drawn.std(dim=0), expected, rtol=0.07, atol=0.0)
    if "joint_likelihood" not in model.lacks:
        z = {
            latent: torch.randn(3, batch.size, size, dtype=torch.float64)
            for latent, size in model.latent_sizes.items()
        }
        prepared = model.prepare(batch)
        found, wanted = model.proposal(prepared).log_prob(z), model.prior(prepared).log_prob(z)
        torch.testing.assert_close(found[:, 1], wanted[:, 1])
        assert not torch.allclose(found[:, 0], wanted[:, 0])


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_that_is_no_density_gives_no_likelihood(make_model, make_batch, name):
    model = make_model(name, modalities={"b": {"likelihood": "squared_error"}})
    reason = "'squared_error' of 'b' is no density|encoders give points"
    for verb in ("log_likelihood", "elbo"):
        with pytest.raises(CapabilityError, match=reason):
            getattr(model, verb)(make_batch(), n_samples=2)
    with pytest.raises(CapabilityError, match="no conditional_likelihood"):
        model.conditional_log_likelihood(make_batch(), ("a",), ("c",))
    with pytest.raises(CapabilityError, match="no loss_is_bound"):
        model.require("loss_is_bound")
