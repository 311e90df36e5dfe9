"""CMVAE: MMVAE+ with clusters; assignment, generation from a cluster, selection of clusters.

The bound's other parts are MMVAE+'s and are tested with it.
"""

from __future__ import annotations

import math

import attrs
import numpy as np
import pytest
import torch
from scipy import special, stats

import multivae_core as mv
from multivae_core.errors import ConfigError, DataError
from multivae_core.testing import LinearGaussian
from multivae_mixture_prior._clusters import select

F64 = torch.float64
FAMILIES = ("normal", "normal_with_softplus", "laplace_with_softmax")


def total(out):
    return sum(term.value for term in out.terms.values())


def scrambled(model):
    """All priors different from each other and from the start."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "prior" in name and "raw_scales" not in name:
                parameter.normal_(std=0.5)
    return model


@pytest.fixture
def cmvae(make_model):
    def make(**options):
        return scrambled(make_model("cmvae", **{"private_dims": 1, "n_clusters": 4} | options))

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cluster_term_is_the_expectation_of_the_paper(cmvae, family):
    model = cmvae(family=family)
    z = torch.randn(3, 6, 2, dtype=F64)
    prior = model.shared_prior
    given = prior.responsibilities(z)
    explicit = (given * (prior.component_log_prob(z) + prior.log_weights() - given.log())).sum(-1)
    torch.testing.assert_close(prior.log_prob(z), explicit)


@pytest.mark.parametrize("estimator", ["iwae", "dreg"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_cluster_at_0_is_mmvae_plus(make_model, make_batch, training, family, estimator):
    pytest.importorskip("multivae_aggregated")
    options = {"family": family, "estimator": estimator, "n_samples": 3, "private_dims": 1}
    plus = make_model("mmvae_plus", **options)
    model = make_model("cmvae", **options, n_clusters=1, spread=0.0)
    state = model.state_dict()
    own = {n: p for n, p in plus.state_dict().items() if not n.startswith("shared_prior")}
    model.load_state_dict(state | own)
    batch = make_batch(8)
    first, second = (m.loss(m.prepare(batch), training()) for m in (plus, model))
    torch.testing.assert_close(total(first), total(second))
    torch.testing.assert_close(first.bound, second.bound)


def test_one_sample_gives_the_same_value_with_every_estimator(cmvae, make_batch, training):
    batch, found = make_batch(6), []
    for estimator in ("iwae", "dreg", "stl"):
        model = cmvae(estimator=estimator)
        found.append(total(model.loss(model.prepare(batch), training())))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_a_missing_modality_is_one_that_is_not_there(cmvae, make_batch, training):
    model, batch = cmvae(n_samples=2), make_batch(7, holes=False)
    shown = batch.restrict(("a", "c"))
    values = {n: torch.where(shown.seen(n), v, math.nan) for n, v in shown.values.items()}
    hidden = mv.Batch(values=values, present=shown.present)
    without = mv.Batch(
        values={n: batch.values[n] for n in ("a", "c")},
        present=torch.ones(7, 2, dtype=torch.bool),
    )
    first = total(model.loss(model.prepare(hidden), training()))
    assert torch.equal(first, total(model.loss(model.prepare(without), training())))
    for pool in ("mean_prob", "vote"):
        assert torch.equal(model.clusters(hidden, pool), model.clusters(without, pool))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pool", ["mean_prob", "vote"])
def test_rows_are_assigned_by_what_is_seen(cmvae, make_batch, family, pool):
    model, batch = cmvae(family=family), make_batch(9)
    found = model.clusters(batch, pool).detach()
    means, weights = model.shared_prior.means.detach(), model.shared_prior.log_weights().exp()
    own = model.shared_prior.components()
    scale = (own.scale if hasattr(own, "scale") else own.variance.sqrt()).detach().numpy()
    law = stats.laplace if family == "laplace_with_softmax" else stats.norm
    for b in range(9):
        votes = []
        for name in model.modalities:
            if not bool(batch.column(name)[b]):
                continue
            z = model.encoders[name](batch.values[name][b : b + 1])["shared"][0, 0].detach()
            log_p = law.logpdf(z.numpy(), means.numpy(), scale).sum(axis=-1)
            given = special.softmax(log_p + weights.log().detach().numpy())
            votes.append(np.eye(4)[given.argmax()] if pool == "vote" else given)
        expected = np.mean(votes, axis=0) if votes else weights.detach().numpy()
        np.testing.assert_allclose(found[b], expected, atol=1e-9)
    drawn = model.clusters(batch, pool, n_samples=5, seed=1)
    torch.testing.assert_close(drawn.sum(dim=1), torch.ones(9, dtype=F64))
    assert torch.equal(drawn, model.clusters(batch, pool, n_samples=5, seed=1))
    assert not torch.equal(drawn, model.clusters(batch, pool, n_samples=5, seed=2))


def test_a_cluster_is_generated_from(cmvae):
    model = cmvae(family="normal")
    with torch.no_grad():
        model.shared_prior.means.mul_(100.0)
    for cluster in range(4):
        rows = model.generate_cluster(cluster, 6)
        again = model.generate_cluster(cluster, 6)
        assert all(torch.equal(rows[n], again[n]) for n in rows)
    one, two = model.generate_cluster(0, 6), model.generate_cluster(1, 6)
    assert not any(torch.equal(one[n], two[n]) for n in one)
    assert bool(model.shared_prior.active.all())
    with pytest.raises(DataError, match=r"component 4 .* choose one of \[0, 1, 2, 3\]"):
        model.generate_cluster(4, 2)


def slow_selection(prior, table, present, pool, normaliser, beta):
    """The rule, one row, modality and cluster at a time; table: ``(M, N, C)``."""
    logits, keep = prior.logits.detach().numpy(), prior.active.numpy().copy()
    m_count, n_rows, c_count = table.shape
    scores, sets = {}, {}
    while keep.sum() > 1:
        pi = special.softmax(np.where(keep, logits, -np.inf))
        base = c_count if normaliser == "initial" else keep.sum()
        entropies, likelihoods, mass = [], [], np.zeros(c_count)
        for i in range(n_rows):
            here = [m for m in range(m_count) if present[i, m]]
            if not here:
                continue
            given, log_p = [], []
            for m in here:
                weighted = pi * np.exp(table[m, i])
                log_p.append(math.log(weighted.sum()))
                given.append(weighted / weighted.sum())
            entropies.append(np.mean([stats.entropy(g) for g in given]) / math.log(base))
            likelihoods.append(np.mean(log_p))
            mean = np.mean(given, axis=0)
            votes = np.bincount([g.argmax() for g in given], minlength=c_count)
            label = votes.argmax() if pool == "vote" else mean.argmax()
            mass[label] += mean.max()
        scores[keep.sum()] = beta * np.mean(entropies) - np.mean(likelihoods) / prior.latent_dim
        sets[keep.sum()] = tuple(np.flatnonzero(keep))
        keep[np.where(keep, mass, np.inf).argmin()] = False
    best = min(scores, key=scores.get)
    return scores, sets[best]


@pytest.mark.parametrize("pool", ["mean_prob", "vote"])
@pytest.mark.parametrize("normaliser", ["initial", "active"])
def test_the_selection_is_its_rule(cmvae, make_batch, pool, normaliser):
    model, batch = cmvae(n_clusters=6, beta=2.5), make_batch(40)
    table, present = model._table(batch, None, 0)
    expected = slow_selection(
        model.shared_prior, table[0].detach().numpy(), present.numpy(), pool, normaliser, 2.5
    )
    found = model.prune(batch, pool, normaliser)
    assert found.criterion.keys() == expected[0].keys() == {6, 5, 4, 3, 2}
    for count, value in expected[0].items():
        assert found.criterion[count] == pytest.approx(value)
    assert found.kept == expected[1]
    assert model.shared_prior.active.nonzero().flatten().tolist() == list(found.kept)


def test_a_cluster_without_mass_can_go_and_nothing_changes(cmvae, make_batch):
    model, batch = cmvae(), make_batch(20)
    with torch.no_grad():
        model.shared_prior.means[2] = 1e4
    before, values = model.clusters(batch), model.log_likelihood(batch, n_samples=5).value
    keep = torch.tensor([True, True, False, True])
    rest = model.shared_prior.logits.detach()[keep].logsumexp(0)
    shift = model.shared_prior.logits.detach().logsumexp(0) - rest
    model.shared_prior.set_active(keep)
    after = model.clusters(batch)
    seen = batch.something
    torch.testing.assert_close(before[seen], after[seen])
    # the same but for the weight that went: log pi grew by the same amount everywhere
    torch.testing.assert_close(
        model.log_likelihood(batch, n_samples=5).value[seen], values[seen] + shift
    )


def test_the_selection_survives_certain_assignments(cmvae, make_batch):
    model, batch = cmvae(family="normal"), make_batch(30)
    with torch.no_grad():
        model.shared_prior.means.mul_(1e4)  # every softmax is one-hot
    found = model.prune(batch)
    assert all(math.isfinite(value) for value in found.criterion.values())
    assert 2 <= len(found.kept) <= 4


def test_a_pruned_model_works(cmvae, make_batch, training, tmp_path):
    model, batch = cmvae(), make_batch(20)
    model.shared_prior.set_active(torch.tensor([True, False, True, False]))
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    before = model.shared_prior.means.detach().clone()
    for number in range(5):
        value = total(model.loss(model.prepare(batch), training(number))).mean()
        optimiser.zero_grad()
        value.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimiser.step()
    moved = (model.shared_prior.means.detach() != before).any(dim=1)
    assert moved.tolist() == [True, False, True, False]
    model.save(tmp_path / "m")
    again = mv.load_model(tmp_path / "m")
    assert again.shared_prior.active.tolist() == [True, False, True, False]
    assert torch.equal(model.clusters(batch), again.clusters(batch))
    value = model.log_likelihood(batch, n_samples=5).value
    assert torch.equal(value, again.log_likelihood(batch, n_samples=5).value)
    assert torch.equal(model.generate(3)["a"], again.generate(3)["a"])
    assert bool((model.clusters(batch)[:, [1, 3]] == 0).all())
    with pytest.raises(DataError, match=r"choose one of \[0, 2\]"):
        model.generate_cluster(1, 2)
    assert again.prune(batch).kept == (0, 2)


def test_what_cannot_be_selected_from_is_refused(cmvae, make_batch):
    model, batch = cmvae(), make_batch(5)
    with pytest.raises(DataError, match="nothing is seen of any row"):
        model.prune(batch.restrict(()))
    with pytest.raises(DataError, match="pool must be one of mean_prob, vote"):
        model.clusters(batch, pool="mode")
    with pytest.raises(DataError, match="normaliser must be one of initial, active"):
        model.prune(batch, normaliser="none")
    with pytest.raises(DataError, match="n_samples must be at least 1"):
        model.clusters(batch, n_samples=0)


def test_selection_leaves_the_prior_alone(cmvae, make_batch):
    model, batch = cmvae(), make_batch(9)
    table, present = model._table(batch, None, 0)
    with torch.no_grad():
        select(table, present, model.shared_prior, "vote", "active", 1.0)
    assert bool(model.shared_prior.active.all())


def test_clusters_start_where_the_embedded_data_are(cmvae, make_batch):
    model, batch = cmvae(n_clusters=3), make_batch(30)
    model.start_clusters(batch)
    embedded = model.embed(batch, "shared")[batch.something]
    distances = torch.cdist(embedded, model.shared_prior.means.detach())
    nearest = distances.argmin(dim=1)
    for cluster in range(3):
        own = embedded[nearest == cluster].mean(dim=0)
        torch.testing.assert_close(model.shared_prior.means[cluster].detach(), own)


def test_every_row_may_have_a_whole_rows_likelihood(cmvae, make_batch, training):
    batch = make_batch()
    plain, scaled = cmvae(), cmvae(missing_norm="total")
    prepared, step = plain.prepare(batch), training()
    seen = batch.present.sum(dim=1)
    latents = {"shared": torch.randn(2, 12, 2, dtype=F64)}
    latents |= {("private", m): torch.randn(2, 12, 1, dtype=F64) for m in "abc"}
    one = plain.reconstruction(latents, prepared, step)
    two = scaled.reconstruction(latents, prepared, step)
    torch.testing.assert_close(two, one * 3 / seen.clamp_min(1))
    whole = seen == 3
    losses = [model.loss(prepared, step).terms["bound"].value for model in (plain, scaled)]
    torch.testing.assert_close(losses[0][whole], losses[1][whole])
    assert not torch.isclose(losses[0], losses[1])[(seen > 0) & ~whole].any()
    torch.testing.assert_close(
        scaled.log_likelihood(batch, n_samples=6).value,
        plain.log_likelihood(batch, n_samples=6).value,
    )


def test_the_default_clusters(make_model):
    model = make_model("cmvae")
    own = model.config.prior
    assert (own.n_components, own.family, own.learn_scales) == (10, model.config.family, False)
    names = {name for name, p in model.named_parameters() if p.requires_grad and "prior" in name}
    auxiliary = {f"auxiliary_priors.{m}.raw_scale" for m in range(3)}
    assert names == {"shared_prior.logits", "shared_prior.means"} | auxiliary
    with pytest.raises(ConfigError, match="must be a mixture of clusters"):
        make_model("cmvae", prior="standard_normal")
    for option in ({"temperature": 2.0}, {"divergence": "vade"}):
        with pytest.raises(ConfigError, match=r"loss has log p\(z\) itself"):
            make_model("cmvae", prior={"type": "gmm", **option})


def test_clusters_that_have_not_started_are_no_clusters(make_model, make_batch):
    model, batch = make_model("cmvae", prior={"type": "gmm", "warm_up": True}), make_batch()
    for asked in (
        lambda: model.clusters(batch), lambda: model.prune(batch),
        lambda: model.generate_cluster(0, 2),
    ):  # fmt: skip
        with pytest.raises(DataError, match="call start_clusters first"):
            asked()
    model.start_clusters(batch)
    assert model.clusters(batch).shape == (len(batch.present), 10)


def linear(truth):
    """A CMVAE whose decoders, noise, clusters and experts are those of a linear truth."""
    map_ = {"type": "mlp", "hidden": []}
    likelihood = {"type": "normal", "scale": "learned", "min_scale": 1e-6}
    own = {"encoder": map_, "decoder": map_, "likelihood": likelihood, "standardise": False}
    model = mv.create_model(
        "cmvae", truth.sample(50, seed=9), modalities=dict.fromkeys(truth.names, own),
        latent_dim=truth.latent_dim, private_dims={}, family="normal",
        n_clusters=len(truth.weights), dtype="float64",
    )  # fmt: skip
    with torch.no_grad():
        prior = model.shared_prior
        prior.logits.copy_(torch.as_tensor(truth.weights).log())
        prior.means.copy_(torch.as_tensor(truth.means))
        prior.raw_scales.copy_(torch.as_tensor(truth.scales).square().log())
        for name in truth.names:
            layer = next(m for m in model.decoders[name].network.modules()
                         if isinstance(m, torch.nn.Linear))  # fmt: skip
            layer.weight.copy_(torch.as_tensor(truth.loadings[name]))
            layer.bias.copy_(torch.as_tensor(truth.offsets[name]))
            noise = torch.as_tensor(truth.noise[name]) - 1e-6
            model.decoders[name].likelihood.scale.raw.copy_(noise.log())
            expert = truth.expert(name, "likelihood").widened(1.2)
            head = model.encoders[name].head
            weight, bias = torch.as_tensor(expert.weight), torch.as_tensor(expert.bias)
            head.weight.copy_(torch.cat([weight, torch.zeros_like(weight)]))
            head.bias.copy_(torch.cat([bias, torch.as_tensor(expert.variance).log()]))
    return model


def test_likelihoods_are_those_of_a_mixture_of_gaussians():
    truth = LinearGaussian.orthogonal(
        {"a": 4, "b": 5}, 2, signal=3.0, noise=1.0, components=3, seed=1
    )
    truth = attrs.evolve(truth, weights=np.array([0.5, 0.3, 0.2]))
    model, data = linear(truth), truth.sample(200, seed=0)
    for given in (("a", "b"), ("a",), ("b",)):
        seen = data.restrict(given)
        found = model.log_likelihood(seen, n_samples=2000)
        exact = torch.as_tensor(truth.log_likelihood(seen))
        assert float(found.effective_sample_size.min()) > 100
        off = (found.value - exact).abs() - 4 * found.standard_error
        assert int((off > 1e-9).sum()) == 0
        assert model.elbo(seen, 200).mean < float(exact.mean())
    model.shared_prior.set_active(torch.tensor([True, True, False]))  # a wrong prior is seen
    wrong = model.log_likelihood(data, n_samples=1000)
    off = (wrong.value - torch.as_tensor(truth.log_likelihood(data))).abs()
    assert float(off.max()) > 0.1
