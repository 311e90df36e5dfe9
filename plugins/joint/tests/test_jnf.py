"""JNF: its flows as densities, its samplers against Gaussian products, its stages."""

from __future__ import annotations

import math

import attrs
import numpy as np
import pytest
import torch
from scipy import stats

import multivae_core as mv
from multivae_core.correlation import correlation
from multivae_core.errors import CapabilityError, ConfigError, TrainingError
from multivae_core.noise import RowNoise
from multivae_joint._flows import FLOWS, FlowExperts, LatentFlow
from multivae_joint._sampling import HMC

F64 = torch.float64
SIZES = {"a": 3, "b": 2, "c": 4, "d": 2}
QUICK = {"transforms": 2, "hidden": [8], "context_dim": 6}


def gaussian_flows(model):
    """Make every flow the identity, so that a surrogate is the Gaussian of its base."""
    with torch.no_grad():
        for p in model.flows.parameters():
            p.zero_()


@pytest.fixture
def product(make_model, make_batch):
    """A model whose surrogates are Gaussians, narrower than the prior."""
    model = make_model("jnf", sizes=SIZES, flow_context="base", **QUICK)
    gaussian_flows(model)
    with torch.no_grad():
        for name in SIZES:
            model.encoders[name].head.bias[2:] = torch.tensor([-1.5, -1.0])
    return model


@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("context", [0, 3])
def test_flows_are_densities(kind, context):
    torch.manual_seed(0)
    flow = LatentFlow(kind, 2, context, 2, (8,)).double()
    rows, given = 3, torch.randn(3, max(context, 1), dtype=F64)
    base = torch.randn(5, rows, 2, dtype=F64)
    z = flow.inverse(base, given)
    again, log_det = flow(z, given)
    torch.testing.assert_close(again, base, rtol=1e-5, atol=1e-5)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x, given)[0], z)
    for k in range(5):
        for b in range(rows):
            own = torch.linalg.slogdet(jacobian[k, b, :, k, b]).logabsdet
            torch.testing.assert_close(log_det[k, b], own)
    encoded = torch.zeros(1, 1, 2, 2, dtype=F64)
    grid = torch.linspace(-12, 12, 241, dtype=F64)
    points = torch.cartesian_prod(grid, grid)[:, None]
    if not context:
        experts = FlowExperts({"a": flow}, encoded, False)
        density = experts.log_prob(0, points, torch.tensor([0])).detach().exp().sum() * 0.1**2
        assert float(density) == pytest.approx(1.0, abs=2e-3)


def test_modalities_may_have_flows_of_their_own(make_model, make_batch):
    model = make_model("jnf", flow_type="realnvp", flow_types={"b": "nsf"}, **QUICK)
    names = [{type(m).__name__ for m in model.flows[n].modules()} for n in "abc"]
    assert names[0] == names[2] != names[1]
    alike = make_model("jnf", flow_type="nsf", **QUICK)
    assert {type(m).__name__ for m in alike.flows["b"].modules()} == names[1]


@pytest.mark.parametrize("form", ["base", "context"])
def test_terms_are_the_formulas(make_model, make_batch, training, form):
    model = make_model("jnf", flow_context=form, n_samples=2, **QUICK)
    batch, step = make_batch(), training()
    prepared = model.prepare(batch)
    out = model.loss(prepared, step)
    q = model.joint(prepared)
    z = q.mean + (0.5 * q.log_variance).exp() * step.noise.normal("flows", (2, batch.size, 2))
    for b in range(batch.size):
        expected = 0.0
        for name in "abc":
            if batch.column(name)[b]:
                raw = model.encoders[name](batch.values[name][b : b + 1])["shared"]
                base, log_det = model.flows[name](z[:, b : b + 1], raw.flatten(1))
                mean, log_variance = raw[0] if form == "base" else torch.zeros(2, 2, dtype=F64)
                p = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
                expected -= float((p.log_prob(base).sum(-1) + log_det).mean().detach())
        assert float(out.terms["flows"].value[b].detach()) == pytest.approx(expected)
    model.zero_grad()
    out.terms["flows"].value.sum().backward()
    moved = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert moved == {"encoders", "flows"}


def test_which_rows_teach_the_flows(make_model, make_batch, training):
    batch = make_batch()
    count = batch.present.sum(dim=1)
    for options, wanted in (
        ({}, count >= 1),
        ({"min_available": 2}, count >= 2),
        ({"flow_rows": "complete"}, count == 3),
    ):
        model = make_model("jnf", **QUICK, **options)
        term = model.loss(model.prepare(batch), training()).terms["flows"]
        assert torch.equal(term.weight.bool(), wanted)
        assert not term.value[~wanted].any()


def exact(model, batch, rule="poe_corrected"):
    """Mean and deviation of the product in which the prior counts once, or by another rule."""
    prepared = model.prepare(batch)
    mean, log_variance = model.run_encoders(prepared)["shared"].detach().unbind(dim=2)
    there = prepared.present.T[..., None]
    precision = torch.where(there, (-log_variance).exp(), 0.0)
    further = {"poe_corrected": there.sum(dim=0) - 1, "poe": 0, "poe_with_prior": -1}[rule]
    total = precision.sum(dim=0) - further
    return (precision * mean).sum(dim=0) / total, total.rsqrt()


@pytest.mark.parametrize("sampler", ["hmc", "sir", "auto"])
@pytest.mark.parametrize("names", ["ab", "acd"])
def test_products_are_sampled(product, make_batch, sampler, names):
    model, n = product, 800
    model.config = attrs.evolve(
        model.config, sampler=sampler, hmc_steps=40, leapfrog_steps=5, step_size=0.2
    )
    batch = make_batch(2, SIZES, holes=False).restrict(set(names))
    mean, deviation = exact(model, batch)
    posterior = model.posterior(model.prepare(batch))
    z = posterior.draw(n, RowNoise(0, batch.index, F64)).latents["shared"]
    # importance resampling of 64 candidates is biased by about 1 / (2 * effective candidates)
    slack = 0.0 if sampler == "hmc" else 0.05
    error = (z.mean(dim=0) - mean).abs() / deviation
    assert float(error.max()) < 4.5 / math.sqrt(n) + slack
    ratio = z.std(dim=0) / deviation
    assert float((ratio - 1).abs().max()) < 4.5 / math.sqrt(2 * n) + slack
    (report,) = posterior.report.values()
    if sampler == "hmc":
        assert 0.6 < float(report.quality.min()) <= float(report.quality.max()) < 0.97
    else:
        assert float(report.quality.min()) > 5


@pytest.mark.parametrize("rule", ["poe", "poe_with_prior"])
@pytest.mark.parametrize("sampler", ["hmc", "sir"])
def test_how_often_the_prior_counts_in_a_product(product, make_batch, sampler, rule):
    model, n = product, 800
    own = {"sampler": sampler, "hmc_steps": 40, "leapfrog_steps": 5, "step_size": 0.2}
    model.config = attrs.evolve(model.config, subset_posterior=rule, **own)
    with torch.no_grad():
        for name in SIZES:
            model.encoders[name].head.bias[2:] = -0.5
    batch = make_batch(2, SIZES, holes=False).restrict(set("acd"))
    (_, usual), (mean, deviation) = exact(model, batch), exact(model, batch, rule)
    z = model.encode(batch, n_samples=n)["shared"]
    slack = 0.0 if sampler == "hmc" else 0.05
    assert float(((z.mean(dim=0) - mean).abs() / deviation).max()) < 4.5 / math.sqrt(n) + slack
    # far enough from the other rule for the test to tell them apart
    assert float((usual / deviation).min()) > 1.2
    ratio = z.std(dim=0) / deviation
    assert float((ratio - 1).abs().max()) < 4.5 / math.sqrt(2 * n) + slack


def test_encoders_run_once(make_model, make_batch):
    model = make_model("jnf", sizes=SIZES, hmc_steps=3, **QUICK)
    batch = make_batch(4, SIZES, holes=False)
    passes = []
    for name in SIZES:
        model.encoders[name].register_forward_hook(lambda *_, name=name: passes.append(name))
    model.encode(batch.restrict({"a", "b"}), n_samples=2)
    assert sorted(passes) in (["a", "b"], ["a", "b", "c", "d"])


def test_draws_do_not_depend_on_the_batch(make_model, make_batch):
    model = make_model("jnf", sampler="auto", hmc_steps=6, **QUICK)
    batch = make_batch(20)
    whole = model.encode(batch, n_samples=3)["shared"]
    for rows in ([4], [3, 7, 9]):
        part = model.encode(batch.take(torch.tensor(rows)), n_samples=3)["shared"]
        torch.testing.assert_close(part, whole[:, rows])


def test_a_move_to_nowhere_is_refused(product, make_batch):
    def target(z):
        inside = (z.abs() < 1).all(dim=-1)
        return torch.where(inside, -(z.square()).sum(-1), torch.nan)

    start = torch.zeros(50, 1, 2, dtype=F64)
    chain = HMC(steps=30, leapfrog=3, step_size=0.5)
    found = chain.run(target, start, torch.tensor([0]), 1, RowNoise(0, torch.arange(1), F64))
    assert bool(found.z.isfinite().all())
    assert float(found.z.abs().max()) < 1


def test_point_estimates(make_model, make_batch):
    batch = make_batch(30, holes=False).restrict({"b"})
    model = make_model("jnf", flow_context="base", point="base", **QUICK)
    raw = model.run_encoders(model.prepare(batch))["shared"][1]
    place = model.flows["b"].inverse(raw[None, :, 0], raw.flatten(1))[0]
    torch.testing.assert_close(model.encode(batch)["shared"], place.detach())
    mean = make_model("jnf", flow_context="base", n_mean=4000, **QUICK)
    z = mean.encode(batch, n_samples=4000, seed=1)["shared"]
    error = z.std(dim=0) * math.sqrt(2 / 4000)
    assert bool(((mean.encode(batch)["shared"] - z.mean(dim=0)).abs() < 4.5 * error).all())


def test_proposal_is_the_mixture_of_the_flows(make_model, make_batch):
    model, batch = make_model("jnf", hmc_steps=3, **QUICK), make_batch()
    prepared = model.prepare(batch)
    draw = model.proposal(prepared).draw(6, RowNoise(0, batch.index, F64))
    z, experts = draw.latents["shared"], model.experts(prepared)
    for b in range(batch.size):
        row = torch.tensor([b])
        names = [m for m in range(3) if batch.present[b, m]]
        if 0 < len(names) < 3:
            each = torch.stack([experts.log_prob(m, z[:, [b]], row)[:, 0] for m in names])
            expected = each.logsumexp(dim=0) - math.log(len(names))
            if 6 % len(names) == 0:
                torch.testing.assert_close(draw.log_q[:, b], expected)
    with pytest.raises(CapabilityError, match="no posterior_density: the posterior of 2 to M"):
        model.require("posterior_density")
    several = batch.present.sum(dim=1) == 2
    assert bool(several.any())
    assert model.posterior(prepared).draw(2, RowNoise(0, batch.index, F64)).log_q is None
    lone = model.prepare(batch.restrict({"a"}))
    assert model.posterior(lone).draw(2, RowNoise(0, batch.index, F64)).log_q is not None


def test_likelihood_of_linear_gaussian_rows(make_batch):
    # one latent, x_m = w_m z + noise: the surrogates are the posteriors, 1.2 times as wide
    rng = np.random.default_rng(0)
    v, w = 0.5, {n: rng.normal(size=d) for n, d in SIZES.items()}
    z = rng.normal(size=(60, 1))
    x = {
        n: torch.as_tensor(z * w[n] + rng.normal(size=(60, d)) * v**0.5) for n, d in SIZES.items()
    }
    linear = {"type": "mlp", "hidden": []}
    part = {"encoder": linear, "decoder": linear, "standardise": False,
            "likelihood": {"type": "normal", "scale": v**0.5}}  # fmt: skip
    model = mv.create_model("jnf", mv.IncompleteDataset(x), latent_dim=1, dtype="float64",
                            modalities=dict.fromkeys(SIZES, part), flow_context="base",
                            **QUICK)  # fmt: skip
    gaussian_flows(model)
    with torch.no_grad():
        for n in SIZES:
            precision = 1 + w[n] @ w[n] / v
            head, layer = model.encoders[n].head, model.decoders[n].network.layers[0]
            for parameter in (head.weight, head.bias, layer.bias):
                parameter.zero_()
            head.weight[0] = torch.as_tensor(w[n] / v / precision)
            head.bias[1] = math.log(1.44 / precision)
            layer.weight[:, 0] = torch.as_tensor(w[n])
    for names in ("a", "bc", "acd"):
        data = mv.IncompleteDataset(x).restrict(set(names))
        loading = np.concatenate([w[n] for n in names])
        values = np.concatenate([x[n].numpy() for n in names], axis=1)
        covariance = np.outer(loading, loading) + v * np.eye(len(loading))
        truth = torch.as_tensor(stats.multivariate_normal.logpdf(values, cov=covariance))
        found = model.log_likelihood(data, n_samples=1000)
        assert bool(((found.value - truth).abs() <= 4.5 * found.standard_error + 1e-9).all())


def whole(batch):
    return mv.IncompleteDataset(
        batch.values, present={n: batch.column(n) for n in batch.names}, allow_empty_rows=True
    )


@pytest.mark.parametrize("dcca", [None, 2])
def test_stages_leave_frozen_parts_alone(make_model, make_batch, dcca):
    data = whole(make_batch(120))
    model = make_model("jnf", dcca_dim=dcca, dcca_rescale=dcca is not None, **QUICK)
    seen = []

    class Watch:
        @mv.hookimpl
        def stage_start(self, run):
            seen.append({n: w.clone() for n, w in run.model.state_dict().items()})

        @mv.hookimpl
        def step_end(self, run, loss):
            awake = [n for n, m in run.model.named_modules() if m.training]
            if run.stage.name == "flows":
                assert not [n for n in awake if n.startswith(("joint_encoder", "decoders"))]
                assert not [n for n in awake if "embedding" in n]

    names = ["dcca", "joint", "flows"] if dcca else ["joint", "flows"]
    trainer = mv.Trainer(epochs=dict.fromkeys(names, 2), batch_size=60, callbacks=[Watch()],
                         progress=False)  # fmt: skip
    history = trainer.fit(model, data)
    assert [e.stage for e in history.epochs] == [n for n in names for _ in range(2)]
    seen.append(model.state_dict())
    own = {
        "dcca": lambda n: "embedding" in n,
        "joint": lambda n: n.startswith(("joint_encoder", "decoders")),
        "flows": lambda n: n.startswith(("encoders", "flows")) and "embedding" not in n,
    }
    for stage, before, after in zip(names, seen, seen[1:], strict=False):
        changed = {n for n in after if not torch.equal(before[n], after[n])}
        assert changed
        assert all(own[stage](n) for n in changed), (stage, changed)


def test_flows_are_no_worse_than_gaussians(make_batch):
    # surrogates of a posterior that is not Gaussian: flows trained alike reach a lower F
    def fit(**options):
        torch.manual_seed(0)
        data = whole(make_batch(200, {"a": 2, "b": 2}, holes=False))
        part = {"likelihood": {"type": "normal", "scale": 0.5}, "standardise": False}
        model = mv.create_model("jnf", data, latent_dim=2, dtype="float64", seed=0,
                                modalities=dict.fromkeys("ab", part), transforms=2, hidden=[16],
                                flow_context="base", **options)  # fmt: skip
        frozen = options.get("flow_type") is None
        if frozen:
            gaussian_flows(model)
            for p in model.flows.parameters():
                p.requires_grad_(False)
        history = mv.Trainer(epochs={"joint": 3, "flows": 25}, batch_size=100, lr=5e-3,
                             progress=False).fit(model, data)  # fmt: skip
        return history.epochs[-1].numbers["loss"]

    assert fit(flow_type="maf") < fit() + 0.05


def test_canonical_correlations(make_batch):
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(4000, 2))
    left = shared @ rng.normal(size=(2, 2))
    right = shared @ rng.normal(size=(2, 2)) + 0.01 * rng.normal(size=(4000, 2))
    full = float(correlation(torch.as_tensor(left), torch.as_tensor(right)))
    assert full == pytest.approx(2.0, abs=0.05)
    nothing = correlation(torch.as_tensor(left), torch.as_tensor(rng.normal(size=(4000, 2))))
    assert float(nothing) < 0.1


def test_the_largest_correlations_alone_may_count():
    rng = np.random.default_rng(0)
    left = rng.normal(size=(4000, 3))
    right = left * [1.0, 0.5, 0.1] + rng.normal(size=(4000, 3)) * [0.01, 0.5, 0.5]
    u, v = torch.as_tensor(left), torch.as_tensor(right)
    each = [abs(np.corrcoef(left[:, k], right[:, k])[0, 1]) for k in range(3)]
    for top in (1, 2, 3, None):
        wanted = sum(each[:top])
        assert float(correlation(u, v, top)) == pytest.approx(wanted, abs=0.03)


def test_embeddings_may_be_rescaled(make_model, make_batch, training):
    quick = QUICK | {"sampler": "sir", "candidates": 4, "n_mean": 2}
    model = make_model("jnf", dcca_dim=2, dcca_top=1, dcca_rescale=True, **quick)
    batch = model.prepare(make_batch(40))
    trunk, before = model.encoders["b"].trunk, model.embed(batch)
    assert not bool(trunk.after[0].shown)  # nothing shown: they are left as they are
    model.train()
    model.loss(batch, training())
    rows = batch.rows("b")
    embedded = trunk.embedding(batch.values["b"][rows])
    scaled = trunk.after[0].eval()(embedded)
    torch.testing.assert_close(scaled.amin(dim=0), torch.zeros(2, dtype=F64))
    torch.testing.assert_close(scaled.amax(dim=0), torch.ones(2, dtype=F64))
    ratio = (embedded - embedded[0])[1:] / (scaled - scaled[0])[1:]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    model.eval()
    low = trunk.after[0].low.clone()
    assert not torch.equal(model.embed(batch), before)
    model.embed(make_batch(40, seed=3))
    assert torch.equal(trunk.after[0].low, low)  # evaluation changes nothing
    with pytest.raises(CapabilityError, match="row_objective: its embeddings' scale"):
        model.require("row_objective")


def test_embeddings_need_enough_rows(make_model, make_batch, training):
    model = make_model("jnf", dcca_dim=2, **QUICK)
    few = model.prepare(make_batch(7, holes=False))
    with pytest.raises(TrainingError, match="a batch of 7 rows says nothing of a correlation"):
        list(model._dcca_pieces(few, training()))
    (out,) = model._dcca_pieces(few, attrs.evolve(training(), number=3))
    assert float(out.terms["correlation"].value.detach()) == 0.0
    out.terms["correlation"].value.backward()
    (out,) = model._dcca_pieces(model.prepare(make_batch(60)), training())
    assert float(out.terms["correlation"].value.detach()) < 0.0


@pytest.mark.parametrize("kind", FLOWS)
def test_saved_and_loaded(make_model, make_batch, tmp_path, kind):
    model, batch = make_model("jnf", flow_type=kind, sampler="sir", **QUICK), make_batch()
    model.save(tmp_path / "m")
    again = mv.load_model(tmp_path / "m")
    assert torch.equal(again.embed(batch), model.embed(batch))
    assert torch.equal(
        again.log_likelihood(batch, n_samples=5).value,
        model.log_likelihood(batch, n_samples=5).value,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flow_type": "nice"}, "flow_type: must be one of 'maf', 'nsf', 'iaf', 'realnvp'"),
        ({"flow_types": {"a": "nice"}}, "flow_types.a: must be one of 'maf'"),
        ({"flow_types": {"d": "maf"}}, "flow_types.d: unknown modality; there is a, b, c"),
        ({"context_dim": 5}, "context_dim: must be even, got 5"),
        ({"sampler": "nuts"}, "sampler: must be one of 'hmc', 'sir', 'auto', 'mask_aware'"),
        ({"hmc_steps": 0}, "hmc_steps: must be > 0"),
        ({"hidden": [0]}, "hidden: must be > 0, got 0"),
        ({"subset_posterior": "moe"}, "subset_posterior: must be one of 'poe_corrected', 'poe'"),
        ({"dcca_top": 2}, "dcca_top: there are no embeddings; set dcca_dim"),
        ({"dcca_rescale": True}, "dcca_rescale: there are no embeddings"),
        ({"dcca_dim": 2, "dcca_top": 3}, "dcca_top: must be at most dcca_dim=2"),
    ],
)
def test_refusals(make_model, options, message):
    with pytest.raises(ConfigError, match=message):
        make_model("jnf", **options)


def test_embeddings_need_a_pair(make_model):
    with pytest.raises(ConfigError, match="dcca_dim: one modality has no correlations"):
        make_model("jnf", sizes={"a": 3}, dcca_dim=2)
