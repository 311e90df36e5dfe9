"""Priors that any model can be given: densities, draws, and what models make of them."""

from __future__ import annotations

import copy
import math
import sys

import numpy as np
import pytest
import torch
from scipy import special, stats

import multivae_core as mv
from multivae_core.config import structure
from multivae_core.distributions import Laplace, Normal
from multivae_core.errors import ConfigError, DataError
from multivae_core.losses import LossOutput
from multivae_core.noise import GeneratorNoise, RowNoise
from multivae_mixture_prior._kmeans import k_means
from multivae_mixture_prior.flow import FlowPrior, FlowPriorConfig
from multivae_mixture_prior.mixture import GaussianMixture, GaussianMixtureConfig

F64 = torch.float64
FAMILIES = ("normal", "normal_with_softplus", "laplace_with_softmax")
MODELS = ("mvae", "mopoe", "mmvae_plus", "mvtcae")
needs_mvae = pytest.mark.skipif("mvae" not in mv.registry.models, reason="mvae is not installed")


def mixture(dim=2, seed=0, **options):
    torch.manual_seed(seed)
    prior = GaussianMixture(structure(GaussianMixtureConfig, options), dim).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(std=0.7)
    return prior


def noise(rows, seed=0):
    return RowNoise(seed, torch.arange(rows), F64)


def densities(prior, z):
    """Weighted densities of every component, one at a time."""
    weights = special.softmax(
        np.where(prior.active.numpy(), prior.logits.detach().numpy(), -np.inf)
    )
    found = []
    for c, weight in enumerate(weights):
        mean, raw = prior.means[c].detach().numpy(), prior.raw_scales[c].detach().numpy()
        floor = prior.config.min_scale if prior.config.learn_scales else 0.0
        if prior.config.family == "laplace_with_softmax":
            law = stats.laplace(mean, special.softmax(raw) * len(raw) + 1e-6 + floor)
        else:
            scale = np.exp(raw / 2)
            if prior.config.family == "normal_with_softplus":
                scale = np.log1p(np.exp(raw)) + 1e-6
            law = stats.norm(mean, np.sqrt(scale**2 + floor**2))
        found.append(weight * law.pdf(z).prod(axis=-1))
    return np.stack(found, axis=-1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("learn", [True, False])
def test_a_mixture_is_the_sum_of_its_components(family, learn):
    prior = mixture(n_components=4, family=family, learn_scales=learn, min_scale=0.1)
    prior.set_active(torch.tensor([True, True, False, True]))
    z = torch.randn(3, 5, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    each = densities(prior, z.numpy())
    np.testing.assert_allclose(prior.log_prob(z).detach(), np.log(each.sum(-1)), rtol=1e-10)
    expected = each / each.sum(-1, keepdims=True)
    np.testing.assert_allclose(prior.responsibilities(z).detach(), expected, atol=1e-12)
    assert not prior.responsibilities(z)[..., 2].any()
    prior.log_prob(z).sum().backward()
    assert all(p.grad.isfinite().all() for p in prior.parameters() if p.requires_grad)
    assert not prior.means.grad[2].any()


@pytest.mark.parametrize(
    ("family", "scale"),
    list(zip(FAMILIES, (1.0, math.log(2.0), 1.0), strict=True)),
)
def test_scales_that_are_not_learned_are_those_of_a_raw_zero(family, scale):
    options = {"family": family, "learn_scales": False}
    prior = GaussianMixture(structure(GaussianMixtureConfig, options), 3)
    own = prior.components()
    found = own.scale if isinstance(own, Laplace) else own.variance.sqrt()
    torch.testing.assert_close(found, torch.full_like(found, scale), atol=1e-5, rtol=0)
    assert not prior.raw_scales.requires_grad


def test_learned_scales_have_a_floor():
    prior = mixture(min_scale=0.2)
    with torch.no_grad():
        prior.raw_scales.fill_(-50.0)
    torch.testing.assert_close(
        prior.components().variance, torch.full_like(prior.means, 0.04).detach()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_are_of_the_density(family):
    prior = mixture(dim=1, n_components=3, family=family, learn_scales=False)
    prior.set_active(torch.tensor([True, False, True]))
    z = prior.sample(1, 20_000, noise(20_000), "shared")[0, :, 0].detach().numpy()
    grid = np.linspace(-30, 30, 200_001)
    cdf = np.cumsum(densities(prior, grid[:, None]).sum(-1)) * (grid[1] - grid[0])
    assert stats.kstest(z, lambda x: np.interp(x, grid, cdf)).pvalue > 1e-3
    means = prior.mean().detach().numpy()
    np.testing.assert_allclose(means, z.mean(), atol=5 * z.std() / math.sqrt(len(z)))


def test_every_draw_is_of_the_mixture_and_not_of_one_component_in_turn():
    prior = mixture(dim=1, n_components=2, learn_scales=False)
    with torch.no_grad():
        prior.means.copy_(torch.tensor([[-50.0], [50.0]]))
        prior.logits.zero_()
    drawn = prior.sample(2, 4000, noise(4000), "shared")[..., 0] > 0
    assert abs(float(drawn.double().mean(dim=1).sub(0.5).abs().max())) < 0.04
    assert abs(float((drawn[0] == drawn[1]).double().mean()) - 0.5) < 0.04


def test_the_closed_divergence_is_an_upper_bound_and_exact_for_one_component():
    prior = mixture(n_components=3, divergence="bound")
    q = Normal(torch.randn(6, 2, dtype=F64), torch.randn(6, 2, dtype=F64))
    z, log_q = q.draw(20_000, noise(6), "z")
    sampled = (log_q - prior.log_prob(z)).detach()
    error = sampled.std(dim=0) / math.sqrt(len(sampled))
    assert bool((prior.kl(q) >= sampled.mean(dim=0) - 4 * error).all())
    own, one = prior.components(), prior.active.clone()
    one[1:] = False
    prior.set_active(one)
    torch.testing.assert_close(prior.kl(q), q.kl(own[0]))
    assert prior.kl(Laplace(q.mean, q.variance)) is None
    assert mixture().kl(q) is None


def test_the_bound_is_that_of_the_best_responsibilities():
    prior = mixture(n_components=3, divergence="bound")
    q = Normal(torch.randn(1, 2, dtype=F64), torch.randn(1, 2, dtype=F64))
    each = torch.stack([q.kl(prior.components()[c]) for c in range(3)], dim=-1)
    gamma = (prior.log_weights() - each).softmax(dim=-1)
    value = (gamma * (each + gamma.log() - prior.log_weights())).sum(dim=-1)
    torch.testing.assert_close(prior.kl(q), value)


@pytest.mark.parametrize("divergence", ["sampled", "bound", "vade"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergences_under_tempered_responsibilities(divergence, temperature):
    prior = mixture(n_components=4, divergence=divergence, temperature=temperature)
    prior.set_active(torch.tensor([True, True, False, True]))
    q = Normal(torch.randn(5, 2, dtype=F64), torch.randn(5, 2, dtype=F64))
    z = q.sample(20_000, noise(5), "z")
    wide = Normal(q.mean.expand(len(z), -1, -1), q.log_variance.expand(len(z), -1, -1))
    found = prior.divergence(wide, z)
    for b in range(5):
        total = 0.0
        log_pi, own = prior.log_weights(), prior.components()
        kept = [c for c in range(4) if bool(prior.active[c])]
        log_p = torch.stack([own[c].log_prob(z[0, b]) for c in kept])
        closed = torch.stack([q[b].kl(own[c]) for c in kept])
        cost = q[b].log_prob(z[0, b]) - log_p if divergence == "sampled" else closed
        score = log_pi[kept] + (-closed if divergence == "bound" else log_p)
        g = (score / temperature).softmax(dim=0)
        total = (g * (cost + g.log() - log_pi[kept])).sum()
        torch.testing.assert_close(found[0, b], total)
    # each is an upper bound in expectation, exact for the sampled one at temperature 1
    plain = (q.log_prob(z) - prior.log_prob(z)).detach()
    gap = (found - plain).detach()
    error = 4.5 * gap.std(dim=0) / math.sqrt(len(z)) + 1e-9
    assert bool((gap.mean(dim=0) > -error).all())
    if (divergence, temperature) == ("sampled", 1.0):
        torch.testing.assert_close(found, plain)
    found.sum().backward()
    assert all(p.grad.isfinite().all() for p in prior.parameters())


def test_flat_responsibilities_move_every_component():
    for temperature, moved in ((1.0, False), (100.0, True)):
        prior = mixture(n_components=2, temperature=temperature, learn_scales=False)
        with torch.no_grad():
            prior.means.copy_(torch.tensor([[0.0, 0.0], [30.0, 0.0]]))
            prior.logits.zero_()
        q = Normal(torch.zeros(1, 2, dtype=F64), torch.full((1, 2), -4.0, dtype=F64))
        prior.divergence(q, q.mean).sum().backward()
        assert (abs(float(prior.means.grad[1, 0])) > 1e-6) == moved


@pytest.mark.parametrize("family", FAMILIES)
def test_before_the_start_it_is_the_standard_one(family):
    prior = mixture(n_components=3, family=family, warm_up=True, divergence="bound")
    z = torch.randn(7, 2, dtype=F64)
    law = stats.laplace if "laplace" in family else stats.norm
    np.testing.assert_allclose(prior.log_prob(z).detach(), law.logpdf(z).sum(-1), rtol=1e-9)
    prior.log_prob(z).sum().backward()
    assert not prior.means.grad.any()
    prior.start_from(torch.randn(30, 2, dtype=F64))
    assert not np.allclose(prior.log_prob(z).detach(), law.logpdf(z).sum(-1))
    again = mixture(n_components=3, family=family, warm_up=True)
    again.load_state_dict(prior.state_dict())
    torch.testing.assert_close(again.log_prob(z), prior.log_prob(z))  # a file remembers it


def test_the_start_can_fit_scales():
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([[0.0, 0.0], [4.0, 0.0]], dtype=F64)
    scales = torch.tensor([[0.3, 1.5], [1.0, 0.5]], dtype=F64)
    label = (torch.arange(8000) % 4 == 0).long()
    rows = torch.randn(8000, 2, dtype=F64, generator=generator)
    rows = means[label] + scales[label] * rows
    prior = mixture(n_components=2, min_scale=0.05)
    prior.start_from(rows, em_rounds=60)
    order = prior.means[:, 0].argsort()
    found = prior.components()
    torch.testing.assert_close(found.mean[order], means, atol=0.1, rtol=0)
    torch.testing.assert_close(found.variance.sqrt()[order], scales, atol=0.06, rtol=0)
    torch.testing.assert_close(
        prior.log_weights().exp()[order], torch.tensor([0.75, 0.25], dtype=F64), atol=0.02, rtol=0
    )
    by_k_means = mixture(n_components=2, min_scale=0.05)
    by_k_means.start_from(rows)
    assert prior.log_prob(rows).mean() > by_k_means.log_prob(rows).mean()
    fixed = mixture(n_components=2, learn_scales=False)
    before = fixed.raw_scales.clone()
    fixed.start_from(rows, em_rounds=5)
    assert torch.equal(fixed.raw_scales, before)
    with pytest.raises(DataError, match="em_rounds needs family='normal'"):
        mixture(n_components=2, family="laplace_with_softmax").start_from(rows, em_rounds=1)


def test_scales_that_are_fitted_keep_the_floor():
    prior = mixture(n_components=2, min_scale=0.2)
    rows = torch.cat([torch.zeros(20, 2), torch.ones(20, 2)]).double()
    prior.start_from(rows, em_rounds=20)
    assert float(prior.components().variance.detach().min()) >= 0.2**2 - 1e-9
    assert bool(prior.log_prob(rows).isfinite().all())


def test_a_model_warms_up_and_goes_on(make_model, make_batch, tmp_path):
    if "mopoe" not in mv.registry.models:
        pytest.skip("mopoe is not installed")
    prior = {"type": "gmm", "n_components": 3, "warm_up": True, "divergence": "vade"}
    model, plain = make_model("mopoe", prior=prior), make_model("mopoe")
    batch = make_batch(40, holes=False)
    torch.testing.assert_close(
        model.elbo(batch, n_samples=400).value, plain.elbo(batch, n_samples=400).value
    )
    model.shared_prior.start_from(model.embed(batch), em_rounds=3)
    assert not torch.allclose(model.elbo(batch).value, plain.elbo(batch).value)
    data = mv.IncompleteDataset(batch.values)
    mv.Trainer(steps=3, batch_size=20, progress=False).fit(model, data)
    model.save(tmp_path / "m")
    assert torch.equal(mv.load_model(tmp_path / "m").embed(batch), model.embed(batch))


def test_one_component_alone_for_a_while():
    prior = mixture(n_components=3)
    with prior.only(1):
        assert prior.active.tolist() == [False, True, False]
    assert bool(prior.active.all())
    prior.set_active(torch.tensor([True, False, True]))
    with pytest.raises(DataError, match=r"component 1 .* choose one of \[0, 2\]"), prior.only(1):
        pass
    with pytest.raises(DataError, match="at least one active"):
        prior.set_active(torch.zeros(3, dtype=torch.bool))


def test_k_means_finds_separate_clouds():
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]], dtype=F64)
    label = torch.arange(300) % 3
    rows = truth[label] + 0.3 * torch.randn(300, 2, dtype=F64, generator=generator)
    centres, shares = k_means(rows, 3, seed=0)
    gap = torch.cdist(truth, centres)
    assert float(gap.amin(dim=1).max()) < 0.1
    assert sorted(gap.argmin(dim=1).tolist()) == [0, 1, 2]
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / 3))
    same, _ = k_means(torch.ones(5, 2), 3, seed=0)
    assert bool((same == 1).all())


def test_the_start_from_latents():
    prior = mixture(n_components=2)
    prior.set_active(torch.tensor([True, False]))
    rows = torch.cat([torch.full((6, 2), -4.0), torch.full((2, 2), 4.0)]).double()
    prior.start_from(rows)
    order = prior.means[:, 0].argsort()
    assert prior.means[order, 0].tolist() == [-4.0, 4.0]
    torch.testing.assert_close(
        prior.log_weights().exp()[order], torch.tensor([0.7, 0.3], dtype=F64)
    )
    with pytest.raises(DataError, match=r"must be \(N, 2\) with N >= 2"):
        prior.start_from(rows[:1])
    with pytest.raises(DataError, match="a latent is not finite"):
        prior.start_from(torch.where(rows > 0, rows, math.nan))
    with pytest.raises(DataError, match="em_rounds must be 0, 1, 2"):
        prior.start_from(rows, em_rounds=-1)


@pytest.mark.parametrize("flow", ["maf", "nsf", "realnvp"])
def test_a_flow_is_a_density_and_draws_from_it(flow):
    pytest.importorskip("zuko")
    torch.manual_seed(3)
    options = {"flow": flow, "hidden": [8], "transforms": 2}
    prior = FlowPrior(structure(FlowPriorConfig, options), 2).double()
    grid = torch.linspace(-40, 40, 401, dtype=F64)
    cells = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        mass = prior.log_prob(cells).exp() * (grid[1] - grid[0]) ** 2
        assert float(mass.sum()) == pytest.approx(1.0, abs=5e-3)
        z = prior.sample(1, 20_000, noise(20_000), "shared")[0]
        moment = (mass[:, None] * cells).sum(dim=0)
    error = z.std(dim=0) / math.sqrt(len(z))
    assert bool(((z.mean(dim=0) - moment).abs() < 5 * error).all())
    assert prior.mean().shape == (2,)
    prior.log_prob(z).sum().backward()


def test_a_flow_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ConfigError, match=r"pip install 'multivae-mixture-prior\[flow\]'"):
        FlowPrior(FlowPriorConfig(), 2)


def test_coupling_needs_two_parts():
    with pytest.raises(ConfigError, match="realnvp couples two parts"):
        FlowPrior(structure(FlowPriorConfig, {"flow": "realnvp"}), 1)


def small(name):
    return {"type": name, **({"n_components": 3} if name != "flow" else {"hidden": [8]})}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prior", ["gmm", "vamp", "flow"])
def test_any_model_can_be_given_any_prior(name, prior, make_model, make_batch, training, tmp_path):
    if name not in mv.registry.models:
        pytest.skip(f"{name} is not installed")
    model, batch = make_model(name, prior=small(prior)), make_batch(20)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    before = {n: p.clone() for n, p in model.shared_prior.named_parameters() if p.requires_grad}
    values = []
    for number in range(25):
        out: LossOutput = model.loss(model.prepare(batch), training(number, seed=number))
        weight = batch.something.double()
        total = sum((t.value * (weight if t.weight is None else t.weight)).sum() / weight.sum()
                    for t in out.terms.values())  # fmt: skip
        values.append(float(total.detach()))
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    assert np.mean(values[-5:]) < np.mean(values[:5])
    moved = [not torch.equal(p, before[n]) for n, p in model.shared_prior.named_parameters()
             if n in before]  # fmt: skip
    assert all(moved)
    assert bool(model.log_likelihood(batch, n_samples=20).value.isfinite().all())
    assert all(value.isfinite().all() for value in model.generate(5).values())
    model.save(tmp_path / "m")
    again = mv.load_model(tmp_path / "m")
    one, two = model.generate(4), again.generate(4)
    assert all(torch.equal(one[n], two[n]) for n in one)
    first = model.log_likelihood(batch, n_samples=7).value
    assert torch.equal(first, again.log_likelihood(batch, n_samples=7).value)


@needs_mvae
@pytest.mark.parametrize("name", ["mvae", "mmvae"])
def test_vamp_is_the_mean_of_the_posteriors_of_its_inputs(name, make_model):
    model = make_model(name, prior=small("vamp"))
    posterior = model.posterior(model.shared_prior.pseudo_batch()).parts["shared"]
    z = torch.randn(4, 6, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    wide = z.reshape(-1, 1, 2).expand(-1, 3, -1)
    expected = posterior.log_prob(wide).logsumexp(dim=1) - math.log(3)
    torch.testing.assert_close(model.shared_prior.log_prob(z), expected.view(4, 6))
    drawn = model.shared_prior.sample(1, 30_000, noise(30_000), "shared")[0]
    torch.testing.assert_close(drawn.mean(dim=0), posterior.mean.mean(dim=0), atol=0.05, rtol=0)
    torch.testing.assert_close(model.shared_prior.mean(), posterior.mean.mean(dim=0))


@needs_mvae
def test_vamp_moves_with_the_encoders_and_is_no_part_of_itself(make_model):
    model = make_model("mvae", prior=small("vamp"))
    z = torch.zeros(1, 1, 2, dtype=F64)
    before = model.shared_prior.log_prob(z)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.encoders.parameters():
            parameter.add_(0.3)
    assert not torch.equal(model.shared_prior.log_prob(z), before)
    assert torch.equal(other.shared_prior.log_prob(z), before)  # a copy has its own encoders
    names = [name for name, _ in model.shared_prior.named_parameters()]
    assert names == ["logits", "inputs.0", "inputs.1", "inputs.2"]
    model.shared_prior.log_prob(z).sum().backward()
    assert all(p.grad is not None for p in model.encoders.parameters())


@needs_mvae
def test_vamp_can_start_at_rows_of_data(make_model, make_batch):
    batch = make_batch(30, holes=True)
    batch.values["b"] = batch.values["b"].abs().mul(5).floor()
    mlp = {"type": "mlp", "hidden": [5]}
    own = {n: {"encoder": mlp, "decoder": mlp} for n in batch.names}
    own["b"]["likelihood"] = "poisson"
    model = mv.create_model("mvae", mv.IncompleteDataset(batch.values), modalities=own,
                            dtype="float64", latent_dim=2, prior=small("vamp"))  # fmt: skip
    assert bool((model.shared_prior.pseudo_batch().values["b"] > 0).all())
    model.shared_prior.start_from(batch)
    found = model.shared_prior.pseudo_batch().values
    whole = batch.present.all(dim=1)
    scaled = model.prepare(batch).values
    for name in ("a", "b"):
        gap = torch.cdist(found[name], scaled[name][whole]).amin(dim=1)
        assert gap.max().item() < 0.01
    with pytest.raises(DataError, match="rows have every modality, and there are 3"):
        model.shared_prior.start_from(batch.restrict(("a",)))


def test_vamp_without_a_model_says_so():
    from multivae_mixture_prior.vamp import VampPrior, VampPriorConfig

    prior = VampPrior(VampPriorConfig(), 2)
    with pytest.raises(ConfigError, match="not bound"):
        prior.sample(1, 3, GeneratorNoise(torch.Generator()), "shared")
