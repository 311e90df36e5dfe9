"""MMVAE+ against its formulas, one row, source and sample at a time.

Likelihoods against the linear-Gaussian truth are in integration_tests/test_oracle.py.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import special, stats

import multivae_core.mixture_vae as module
from multivae_core.errors import ConfigError
from multivae_core.noise import RowNoise, ScriptedNoise, Step

F64 = torch.float64
LAPLACE, NORMAL, SOFTPLUS = "laplace_with_softmax", "normal", "normal_with_softplus"
DIMS = {"a": 1, "b": 3}


def total(out):
    return sum(term.value for term in out.terms.values())


def law(location, raw, family):
    """A family's distribution, and how a standard draw becomes one of it."""
    if family == LAPLACE:
        scale = special.softmax(raw) * len(raw) + 1e-6
        return stats.laplace(location, scale), lambda eps: location + scale * eps
    scale = np.exp(raw / 2) if family == NORMAL else np.log1p(np.exp(raw)) + 1e-6
    return stats.norm(location, scale), lambda eps: location + scale * eps


def prior_law(prior):
    raw = prior.raw_scale.detach().numpy()
    return law(np.zeros_like(raw), raw, prior.config.family)


def scrambled(model):
    """All priors different from each other and from the start."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "prior" in name:
                parameter.normal_(std=0.5)
    return model


def log_weights(model, batch, noise, b, beta=1.0, weights=None):
    """Log-weights of one row: source -> K numbers."""
    config, names = model.config, model.modalities
    count, k = len(names), config.n_samples
    draw = noise.laplace if config.family == LAPLACE else noise.normal

    def standard(name, per_source, size):
        shape = ((count if per_source else 1) * k, batch.size, size)
        return draw(name, shape)[:, b].unflatten(0, (-1, k)).numpy()

    here = [name for name in names if bool(batch.column(name)[b])]
    q, own = {}, {}
    for name in here:
        encoded = model.encoders[name](batch.values[name][b : b + 1])
        q[name] = law(*encoded["shared"][0].detach().numpy(), config.family)
        if name in DIMS:
            own[name] = law(*encoded["private", name][0].detach().numpy(), config.family)
    factorized = config.variant == "factorized"
    eps = standard("shared", True, config.latent_dim)
    result = np.zeros((len(here), k))
    for place, i in itertools.product(range(len(here)), range(k)):
        m = here[place]
        r = names.index(m)
        z = q[m][1](eps[r, i])
        mixed = special.logsumexp([each[0].logpdf(z).sum() for each in q.values()])
        ratio = prior_law(model.shared_prior)[0].logpdf(z).sum() - mixed + math.log(len(here))
        for name in here:
            latent = z
            if name in own:
                private, auxiliary = ("private", name), ("auxiliary", name)
                if factorized:
                    w = own[name][1](standard(private, True, DIMS[name])[r, i])
                elif name == m:
                    w = own[name][1](standard(private, False, DIMS[name])[0, i])
                else:
                    r_n = prior_law(model.auxiliary_prior(name))
                    w = r_n[1](standard(auxiliary, True, DIMS[name])[r, i])
                if factorized or name == m:
                    ratio += prior_law(model.private_prior(name))[0].logpdf(w).sum()
                    ratio -= own[name][0].logpdf(w).sum()
                latent = np.concatenate([z, w])
            mean = model.decoders[name](torch.as_tensor(latent)[None, None]).mean[0, 0]
            score = stats.norm.logpdf(batch.values[name][b], mean.detach().numpy(), 0.8).sum()
            result[place, i] += (weights or {}).get(name, 1.0) * score
        result[place, i] += beta * ratio
    return result


def bound_of(model, batch, noise, **options):
    """Looser or tight bound of every row."""
    found = np.zeros(batch.size)
    for b in range(batch.size):
        if not bool(batch.something[b]):
            continue
        log_w = log_weights(model, batch, noise, b, **options)
        means = special.logsumexp(log_w, axis=1) - math.log(log_w.shape[1])
        tight = special.logsumexp(log_w) - math.log(log_w.size)
        found[b] = tight if model.config.bound == "tight" else means.mean()
    return torch.as_tensor(found)


def gradient(model, batch, step, pieces=False):
    model.zero_grad()
    for out in model.loss_pieces(batch, step) if pieces else [model.loss(batch, step)]:
        value = total(out).mean() if out.terms else 0.0
        (value if out.surrogate is None else value + out.surrogate).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def plus(make_model):
    def make(**options):
        return scrambled(make_model("mmvae_plus", **{"private_dims": DIMS} | options))

    return make


@pytest.mark.parametrize("family", [LAPLACE, NORMAL, SOFTPLUS])
@pytest.mark.parametrize("bound", ["looser", "tight"])
@pytest.mark.parametrize("variant", ["plus", "factorized"])
def test_bounds_are_the_formulas(plus, make_batch, training, family, bound, variant):
    model = plus(family=family, bound=bound, n_samples=2, variant=variant, learn_prior_w=True)
    batch, step = make_batch(5), training()
    out = model.loss(model.prepare(batch), step)
    expected = bound_of(model, batch, step.noise)
    torch.testing.assert_close(-total(out).detach(), expected)
    torch.testing.assert_close(-out.bound, expected)
    assert out.terms["bound"].weight is None


@pytest.mark.parametrize("estimator", ["dreg", "stl"])
@pytest.mark.parametrize("variant", ["plus", "factorized"])
def test_what_is_reported_does_not_depend_on_the_estimator(
    plus, make_batch, training, estimator, variant
):
    model = plus(estimator=estimator, n_samples=3, variant=variant)
    batch, step = make_batch(4), training()
    out = model.loss(model.prepare(batch), step)
    torch.testing.assert_close(-out.bound, bound_of(model, batch, step.noise))


def test_beta_and_weights_change_training_alone(plus, make_batch, training):
    weights = {"a": 3.0, "b": 0.5}
    own = {name: {"weight": weight} for name, weight in weights.items()}
    model = plus(modalities=own, beta=4.0, n_samples=2)
    batch, step = make_batch(4), training()
    found = -total(model.loss(model.prepare(batch), step)).detach()
    expected = bound_of(model, batch, step.noise, beta=4.0, weights=weights)
    torch.testing.assert_close(found, expected)
    found = -total(model.loss(model.prepare(batch), Step(noise=step.noise))).detach()
    torch.testing.assert_close(found, bound_of(model, batch, step.noise))


class TestGradients:
    @pytest.mark.parametrize(
        "options", [{}, {"bound": "tight", "family": NORMAL}, {"variant": "factorized"}]
    )
    def test_plain_gradient_agrees_with_finite_differences(
        self, plus, make_batch, training, options
    ):
        model = plus(n_samples=3, learn_prior_z=True, learn_prior_w=True, **options)
        batch, step = model.prepare(make_batch()), training()
        found = gradient(model, batch, step)
        for name, parameter in model.named_parameters():
            if "auxiliary" in name and "variant" in options:
                assert name not in found
                continue
            place, size = (0,) * parameter.ndim, 1e-6
            with torch.no_grad():
                parameter[place] += size
                high = total(model.loss(batch, step)).mean()
                parameter[place] -= 2 * size
                low = total(model.loss(batch, step)).mean()
                parameter[place] += size
            expected = float(high - low) / (2 * size)
            assert float(found[name][place]) == pytest.approx(expected, rel=1e-4, abs=1e-7)

    @pytest.mark.parametrize("estimator", ["iwae", "dreg", "stl"])
    @pytest.mark.parametrize("n_sources", [None, 2])
    @pytest.mark.parametrize("variant", ["plus", "factorized"])
    def test_pieces_add_up_to_the_whole(
        self, plus, make_batch, training, monkeypatch, estimator, n_sources, variant
    ):
        model = plus(estimator=estimator, n_samples=3, n_sources=n_sources, variant=variant)
        batch, step = model.prepare(make_batch()), training()
        whole = gradient(model, batch, step)
        value = total(model.loss(batch, step))
        monkeypatch.setattr(module, "_PIECE_ROWS", 10)
        pieces = gradient(model, batch, step, pieces=True)
        assert whole.keys() == pieces.keys()
        for name, each in whole.items():
            torch.testing.assert_close(pieces[name], each)
        with torch.enable_grad():
            outs = [out for out in model.loss_pieces(batch, step) if out.terms]
        assert len(outs) == (n_sources or 3)
        torch.testing.assert_close(sum(map(total, outs)), value)

    @pytest.mark.parametrize("variant", ["plus", "factorized"])
    def test_decoders_and_priors_learn_the_same_from_every_estimator(
        self, plus, make_batch, training, variant
    ):
        # draws from r are not damped: what moves r is what moves a decoder
        found = []
        for estimator in ("iwae", "dreg", "stl"):
            model = plus(
                estimator=estimator, n_samples=4, variant=variant,
                learn_prior_z=True, learn_prior_w=True,
            )  # fmt: skip
            found.append(gradient(model, model.prepare(make_batch()), training()))
        names = [n for n in found[0] if n.startswith("decoders") or "prior" in n]
        assert len(names) > 6
        for name in names:
            torch.testing.assert_close(found[1][name], found[0][name])
            torch.testing.assert_close(found[2][name], found[0][name])
        heads = [n for n in found[0] if n.startswith("encoders") and "head" in n]
        assert not any(torch.allclose(found[1][n], found[0][n]) for n in heads)

    @pytest.mark.parametrize("variant", ["plus", "factorized"])
    def test_dreg_and_stl_are_the_same_for_one_sample(self, plus, make_batch, training, variant):
        for k, same in ((1, True), (4, False)):
            found = []
            for estimator in ("dreg", "stl"):
                model = plus(estimator=estimator, n_samples=k, variant=variant)
                found.append(gradient(model, model.prepare(make_batch()), training()))
            assert all(torch.allclose(found[0][n], found[1][n]) for n in found[0]) is same

    def test_one_experts_dreg_has_the_plain_gradient_on_average(
        self, make_model, make_batch, training
    ):
        # one modality is no mixture: "dreg" is unbiased for any K, for z and for w
        sizes = {"a": 2}
        batch = make_batch(1, sizes, holes=False).take(torch.zeros(400, dtype=torch.long))
        found = {}
        for estimator in ("iwae", "dreg"):
            model = make_model(
                "mmvae_plus", sizes=sizes, n_samples=3, estimator=estimator, family=NORMAL,
                private_dims=1,
            )  # fmt: skip
            prepared = model.prepare(batch)
            steps = [training(s, seed=int(estimator == "dreg")) for s in range(15)]
            each = [gradient(model, prepared, s)["encoders.each.0.head.bias"] for s in steps]
            found[estimator] = torch.stack(each)
        gap = found["iwae"].mean(dim=0) - found["dreg"].mean(dim=0)
        error = ((found["iwae"].var(dim=0) + found["dreg"].var(dim=0)) / 15).sqrt()
        assert bool((gap.abs() < 6.5 * error).all())  # Student t with 14 degrees of freedom


def test_every_choice_of_sources_once_is_the_whole(plus, make_batch, quiet):
    batch, whole = make_batch(), plus()
    for n in (1, 2):
        model = plus(n_sources=n)
        prepared, values = model.prepare(batch), []
        for order in itertools.permutations((0.1, 0.5, 0.9)):
            noise = ScriptedNoise(quiet().noise, {"sources": torch.tensor(order)})
            values.append(total(model.loss(prepared, Step(training=True, noise=noise))))
        expected = total(whole.loss(prepared, quiet()))
        torch.testing.assert_close(torch.stack(values).mean(dim=0), expected)


class TestAcceptance:
    @pytest.mark.parametrize("estimator", ["iwae", "dreg"])
    def test_without_private_latents_it_is_mmvae(
        self, make_model, make_batch, training, estimator
    ):
        options = {"n_samples": 3, "beta": 2.5, "estimator": estimator}
        one = make_model("mmvae_plus", private_dims={}, learn_prior_z=True, **options)
        two = make_model("mmvae", **options)
        two.load_state_dict(one.state_dict())
        batch, step = one.prepare(make_batch()), training()
        assert torch.equal(total(one.loss(batch, step)), total(two.loss(batch, step)))
        first, second = gradient(one, batch, step), gradient(two, batch, step)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_one_modality_is_an_iwae_of_both_latents(self, make_model, make_batch, training):
        sizes = {"a": 3}
        model = make_model("mmvae_plus", sizes=sizes, private_dims=2, family=NORMAL, n_samples=4)
        batch, step = model.prepare(make_batch(5, sizes, holes=False)), training()
        found = -total(model.loss(batch, step)).detach()
        encoded = model.encoders["a"](batch.values["a"])
        log_w, latents = 0.0, []
        for latent, size in (("shared", 2), (("private", "a"), 2)):
            mean, log_variance = encoded[latent].unbind(1)
            eps = step.noise.normal(latent, (4, 5, size))
            q = torch.distributions.Normal(mean, (log_variance / 2).exp())
            latents.append(mean + q.scale * eps)
            p = torch.distributions.Normal(0.0, 1.0)
            log_w = log_w + (p.log_prob(latents[-1]) - q.log_prob(latents[-1])).sum(-1)
        likelihood = model.decoders["a"](torch.cat(latents, dim=-1))
        log_w = (log_w + likelihood.log_prob(batch.values["a"], None)).detach()
        torch.testing.assert_close(found, log_w.logsumexp(0) - math.log(4))

    @pytest.mark.parametrize("names", ["a", "ab"])
    def test_auxiliary_priors_learn_from_cross_reconstructions(
        self, make_model, make_batch, training, names
    ):
        sizes = dict.fromkeys(names, 2)
        model = make_model("mmvae_plus", sizes=sizes, private_dims=2)
        batch = model.prepare(make_batch(6, sizes, holes=False))
        found = gradient(model, batch, training())
        moved = [bool(found[n].any()) for n in found if n.startswith("auxiliary")]
        assert moved == [len(names) > 1] * len(names)

    @pytest.mark.parametrize(("variant", "reached"), [("plus", False), ("factorized", True)])
    def test_a_target_lends_no_private_code(self, plus, make_batch, quiet, variant, reached):
        model = plus(variant=variant, n_sources=1)
        order = torch.tensor([0.1, 0.5, 0.9])  # "a" is the source
        step = Step(training=True, noise=ScriptedNoise(quiet().noise, {"sources": order}))
        found = gradient(model, model.prepare(make_batch(holes=False)), step)
        place = model.modalities.index("b")
        start = 2 * model.config.latent_dim
        assert [*model.encoders["b"].latents] == ["shared", ("private", "b")]
        head = found[f"encoders.each.{place}.head.weight"]
        assert bool(head[start:].any()) is reached
        assert bool(head[:start].any())  # q_b is part of the mixture

    def test_likelihoods_know_nothing_of_r_and_need_every_modality(self, plus, make_batch):
        model, batch = plus(cross_private="aux"), make_batch()
        kept = {name: value.clone() for name, value in batch.values.items()}
        before = model.log_likelihood(batch, n_samples=20).value
        with torch.no_grad():
            for prior in model.auxiliary_priors:
                prior.raw_scale.add_(torch.linspace(-1, 1, len(prior.raw_scale)) + 0.3)
        assert torch.equal(model.log_likelihood(batch, n_samples=20).value, before)
        for name in model.modalities:
            torch.testing.assert_close(batch.values[name], kept[name], equal_nan=True)
            with torch.no_grad():
                [*model.decoders[name].network.parameters()][-1].add_(0.5)
            after = model.log_likelihood(batch, n_samples=20).value
            assert bool((after != before)[batch.column(name)].all())
            assert torch.equal(after[~batch.column(name)], before[~batch.column(name)])
            before = after

    def test_generated_rows_have_styles_of_their_own(self, make_model, make_batch):
        model = make_model("mmvae_plus", private_dims=2)
        noise = RowNoise(0, torch.arange(4000), F64)
        latents = model.prior(model.blank(1)).sample(1, 4000, noise)
        own = [latents["private", name][0] for name in model.modalities]
        both = torch.cat([latents["shared"][0], *own], dim=1).T
        correlation = torch.corrcoef(both) - torch.eye(8, dtype=F64)
        assert float(correlation.abs().max()) < 4.5 / math.sqrt(4000)
        seen = []
        decode = model.decode_one

        def spy(name, latents, batch, rows=None):
            seen.append(latents["shared"])
            return decode(name, latents, batch, rows)

        model.decode_one = spy
        model.generate(5)
        assert len(seen) == 3
        assert all(torch.equal(z, seen[0]) for z in seen)

    def test_scales_of_r_sum_to_the_dimension(self, plus):
        model = plus()
        scale = model.auxiliary_prior("b").distribution().scale
        assert float(scale.sum().detach()) == pytest.approx(3 * (1 + 1e-6))
        assert float((scale.max() - scale.min()).detach()) > 0.1


@pytest.mark.parametrize("family", [LAPLACE, NORMAL, SOFTPLUS])
@pytest.mark.parametrize("place", ["prior", "aux"])
def test_private_latents_of_what_is_not_seen(plus, make_batch, family, place):
    model, batch = plus(family=family, cross_private=place), make_batch()
    prepared = model.prepare(batch)
    w = torch.randn(6, batch.size, 3, dtype=F64)
    p, r = model.private_prior("b"), model.auxiliary_prior("b")
    missing = ~batch.column("b") & batch.something
    assert bool(missing.any())
    q = model.posterior(prepared).parts["private", "b"].log_prob(w)
    expected = (p if place == "prior" else r).log_prob(w)
    torch.testing.assert_close(q[:, missing], expected[:, missing])
    torch.testing.assert_close(q[:, ~batch.something], p.log_prob(w)[:, ~batch.something])
    q = model.proposal(prepared).parts["private", "b"].log_prob(w)
    torch.testing.assert_close(q[:, missing], p.log_prob(w)[:, missing])
    assert not torch.allclose(q[:, batch.column("b")], p.log_prob(w)[:, batch.column("b")])


def test_one_private_prior_serves_all_where_tied(make_model, make_batch, training):
    options = {"private_dims": {"a": 2, "c": 2}, "learn_prior_w": True}
    model = scrambled(make_model("mmvae_plus", tie_private_prior=True, **options))
    other = make_model("mmvae_plus", **options)
    state = model.state_dict()
    state["private_priors.1.raw_scale"] = state["private_priors.0.raw_scale"]
    other.load_state_dict(state)
    batch, step = model.prepare(make_batch()), training()
    one, two = gradient(model, batch, step), gradient(other, batch, step)
    both = sum(two[f"private_priors.{i}.raw_scale"] for i in (0, 1))
    torch.testing.assert_close(one["private_priors.0.raw_scale"], both)
    assert model.private_prior("a") is model.private_prior("c")


@pytest.mark.parametrize("learn", [True, False])
def test_priors_are_learned_where_asked(make_model, learn):
    options = dict.fromkeys(("learn_prior_z", "learn_prior_w", "learn_aux"), learn)
    model = make_model("mmvae_plus", private_dims=1, **options)
    learned = [p.requires_grad for n, p in model.named_parameters() if "prior" in n]
    assert learned == [learn] * 7


def test_sizes_may_be_one_number_and_are_that_of_the_shared_latent(make_model):
    assert make_model("mmvae_plus", private_dims=3).config.private_dims == dict.fromkeys("abc", 3)
    assert make_model("mmvae_plus").config.private_dims == dict.fromkeys("abc", 2)


def test_a_modality_may_be_called_shared(make_model, make_batch, training):
    sizes = {"shared": 3, "a": 2}
    model, batch = make_model("mmvae_plus", sizes=sizes, private_dims=2), make_batch(6, sizes)
    total(model.loss(model.prepare(batch), training())).mean().backward()
    found = model.encode(batch)
    assert set(found) == {"shared", ("private", "shared"), ("private", "a")}
    assert bool(model.log_likelihood(batch, n_samples=5).value.isfinite().all())
    assert model.generate(2)["shared"].shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"private_dims": {"d": 1}}, "private_dims.d: unknown modality; there is a, b, c"),
        ({"private_dims": 0}, "private_dims.a: must be > 0, got 0"),
        ({"private_dims": 1.5}, "private_dims: must be an integer or a mapping .* got 1.5"),
        ({"private_dims": {"a": 1, "b": 2}, "tie_private_prior": True}, "one size, got 1 and 2"),
        ({"cross_private": "r"}, "cross_private: must be one of 'prior', 'aux'; got 'r'"),
        ({"variant": "minus"}, "variant: must be one of 'plus', 'factorized'; got 'minus'"),
        ({"n_sources": 2, "bound": "tight"}, "n_sources: drawing sources is unbiased for the"),
        ({"learn_prior": True}, "learn_prior: unknown option; there is modalities"),
    ],
)
def test_refusals(make_model, options, message):
    with pytest.raises(ConfigError, match=message):
        make_model("mmvae_plus", **options)
