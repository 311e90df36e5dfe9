"""MMVAE against its formulas, one row, expert and sample at a time.

The linear-Gaussian acceptance test is in integration_tests/test_oracle.py, the bias of "dreg" in
core/tests/test_losses.py.
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


def total(out):
    return sum(term.value for term in out.terms.values())


def law(location, raw, family):
    """The expert as a scipy distribution."""
    if family == LAPLACE:
        return stats.laplace(location, special.softmax(raw) * len(raw) + 1e-6)
    scale = np.exp(raw / 2) if family == NORMAL else np.log1p(np.exp(raw)) + 1e-6
    return stats.norm(location, scale)


def decoded(model, name, z):
    return model.decoders[name](torch.as_tensor(z)[None, None]).mean[0, 0].detach().numpy()


def experts_of(model, batch, b):
    family = model.config.family
    return {
        name: law(
            *model.encoders[name](batch.values[name][b : b + 1])["shared"][0].detach().numpy(),
            family,
        )
        for name in model.modalities
        if bool(batch.column(name)[b])
    }


def log_weight(model, batch, b, experts, z, beta=1.0, weights=None):
    total = 0.0
    for name in experts:
        x = batch.values[name][b].numpy()
        score = stats.norm.logpdf(x, decoded(model, name, z), 0.8).sum()
        total += (weights or {}).get(name, 1.0) * score
    prior = law(
        np.zeros_like(z), model.shared_prior.raw_scale.detach().numpy(), model.config.family
    )
    log_q = special.logsumexp([q.logpdf(z).sum() for q in experts.values()]) - math.log(
        len(experts)
    )
    return total + beta * (prior.logpdf(z).sum() - log_q)


def bounds(model, batch, noise, k, **options):
    """Looser and tight bound of every row by the formulas."""
    kind = "laplace" if model.config.family == LAPLACE else "normal"
    count = len(model.modalities)
    shape = (count * k, batch.size, model.config.latent_dim)
    eps = getattr(noise, kind)("shared", shape).unflatten(0, (count, k)).numpy()
    looser, tight = np.zeros(batch.size), np.zeros(batch.size)
    for b in range(batch.size):
        experts = experts_of(model, batch, b)
        if not experts:
            continue
        rows = []
        for m, name in enumerate(model.modalities):
            if name in experts:
                q = experts[name]
                scale = q.kwds.get("scale", q.args[1])
                z = q.args[0] + scale * eps[m][:, b]
                rows.append([log_weight(model, batch, b, experts, x, **options) for x in z])
        own = special.logsumexp(rows, axis=1) - math.log(k)
        looser[b], tight[b] = own.mean(), special.logsumexp(rows) - math.log(np.size(rows))
    return looser, tight


@pytest.mark.parametrize("family", [LAPLACE, NORMAL, SOFTPLUS])
@pytest.mark.parametrize("bound", ["looser", "tight"])
@pytest.mark.parametrize("k", [1, 3])
def test_bounds_are_the_formulas(make_model, make_batch, training, family, bound, k):
    model = make_model("mmvae", family=family, bound=bound, n_samples=k)
    with torch.no_grad():
        model.shared_prior.raw_scale.copy_(torch.tensor([0.4, -0.3]))
    batch, step = make_batch(), training()
    out = model.loss(model.prepare(batch), step)
    looser, tight = bounds(model, batch, step.noise, k)
    expected = torch.as_tensor(looser if bound == "looser" else tight)
    torch.testing.assert_close(-total(out).detach(), expected)
    torch.testing.assert_close(-out.bound, expected)
    assert out.terms["bound"].weight is None


@pytest.mark.parametrize("estimator", ["iwae", "dreg", "stl"])
@pytest.mark.parametrize("bound", ["looser", "tight"])
def test_what_is_reported_does_not_depend_on_the_estimator(
    make_model, make_batch, training, estimator, bound
):
    model = make_model("mmvae", estimator=estimator, bound=bound, n_samples=3)
    batch, step = make_batch(), training()
    out = model.loss(model.prepare(batch), step)
    expected = bounds(model, batch, step.noise, 3)[bound == "tight"]
    torch.testing.assert_close(-out.bound, torch.as_tensor(expected))
    assert not out.bound.requires_grad


def test_beta_and_weights_change_training_alone(make_model, make_batch, training):
    weights = {"a": 3.0, "b": 0.5}
    model = make_model(
        "mmvae", modalities={n: {"weight": w} for n, w in weights.items()}, beta=4.0, n_samples=2
    )
    batch, step = make_batch(), training()
    out = model.loss(model.prepare(batch), step)
    expected = bounds(model, batch, step.noise, 2, beta=4.0, weights=weights)[0]
    torch.testing.assert_close(-total(out).detach(), torch.as_tensor(expected))
    out = model.loss(model.prepare(batch), Step(noise=step.noise))
    expected = bounds(model, batch, step.noise, 2)[0]
    torch.testing.assert_close(-total(out).detach(), torch.as_tensor(expected))


class TestGradients:
    def gradient(self, model, batch, step, pieces=False):
        model.zero_grad()
        for out in model.loss_pieces(batch, step) if pieces else [model.loss(batch, step)]:
            value = total(out).mean() if out.terms else 0.0
            (value if out.surrogate is None else value + out.surrogate).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    @pytest.mark.parametrize("bound", ["looser", "tight"])
    @pytest.mark.parametrize("family", [LAPLACE, NORMAL])
    def test_plain_gradient_agrees_with_finite_differences(
        self, make_model, make_batch, training, bound, family
    ):
        model = make_model("mmvae", bound=bound, family=family, n_samples=3)
        batch, step = model.prepare(make_batch()), training()
        found = self.gradient(model, batch, step)
        assert len(found) == len(list(model.parameters()))
        for name, parameter in model.named_parameters():
            place = (0,) * parameter.ndim
            step_size = 1e-6
            with torch.no_grad():
                parameter[place] += step_size
                high = total(model.loss(batch, step)).mean()
                parameter[place] -= 2 * step_size
                low = total(model.loss(batch, step)).mean()
                parameter[place] += step_size
            expected = float(high - low) / (2 * step_size)
            assert float(found[name][place]) == pytest.approx(expected, rel=1e-4, abs=1e-7)

    @pytest.mark.parametrize("estimator", ["iwae", "dreg", "stl"])
    @pytest.mark.parametrize("n_sources", [None, 2])
    def test_pieces_add_up_to_the_whole(
        self, make_model, make_batch, training, monkeypatch, estimator, n_sources
    ):
        model = make_model("mmvae", estimator=estimator, n_samples=3, n_sources=n_sources)
        batch, step = model.prepare(make_batch()), training()
        whole = self.gradient(model, batch, step)
        value = total(model.loss(batch, step))
        monkeypatch.setattr(module, "_PIECE_ROWS", 10)
        pieces = self.gradient(model, batch, step, pieces=True)
        assert whole.keys() == pieces.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(pieces[name], gradient)
        outs = []
        for out in model.loss_pieces(batch, step):
            outs.append(out)
            if out.terms:
                total(out).mean().backward()
        assert len(outs) == (n_sources or 3) + 1
        torch.testing.assert_close(sum(total(o) for o in outs if o.terms), value)
        bound = sum(o.bound for o in outs if o.terms)
        torch.testing.assert_close(bound, model.loss(batch, step).bound)

    def test_pieces_without_gradients_are_one_piece(
        self, make_model, make_batch, training, monkeypatch
    ):
        monkeypatch.setattr(module, "_PIECE_ROWS", 10)
        model = make_model("mmvae")
        with torch.no_grad():
            (out,) = model.loss_pieces(model.prepare(make_batch()), training())
        assert list(out.terms) == ["bound"]

    def test_decoders_learn_the_same_from_every_estimator(self, make_model, make_batch, training):
        batch = make_batch()
        found = []
        for estimator in ("iwae", "dreg", "stl"):
            model = make_model("mmvae", estimator=estimator, n_samples=4)
            found.append(self.gradient(model, model.prepare(batch), training()))
        for name in found[0]:
            if name.startswith(("decoders", "shared_prior")):
                torch.testing.assert_close(found[1][name], found[0][name])
                torch.testing.assert_close(found[2][name], found[0][name])

    def test_dreg_and_stl_are_the_same_for_one_sample_and_differ_for_more(
        self, make_model, make_batch, training
    ):
        batch = make_batch()
        for k, same in ((1, True), (4, False)):
            found = []
            for estimator in ("dreg", "stl"):
                model = make_model("mmvae", estimator=estimator, n_samples=k)
                found.append(self.gradient(model, model.prepare(batch), training()))
            close = all(torch.allclose(found[0][n], found[1][n]) for n in found[0])
            assert close is same

    def test_one_samples_dreg_has_the_plain_gradient_on_average(
        self, make_model, make_batch, training
    ):
        # 3,000 copies of one row; the gradient of the rows' mean into the head of an encoder,
        # over 20 steps each: |z| < 4.5 for 20 numbers
        batch = make_batch(1, holes=False).take(torch.zeros(500, dtype=torch.long))
        found = {}
        for estimator in ("iwae", "dreg"):
            model = make_model("mmvae", estimator=estimator, n_samples=1, family=NORMAL)
            prepared = model.prepare(batch)
            found[estimator] = torch.stack(
                [
                    self.gradient(model, prepared, training(s, seed=int(estimator == "dreg")))[
                        "encoders.each.0.head.bias"
                    ]
                    for s in range(25)
                ]
            )
        gap = found["iwae"].mean(dim=0) - found["dreg"].mean(dim=0)
        error = ((found["iwae"].var(dim=0) + found["dreg"].var(dim=0)) / 25).sqrt()
        assert bool((gap.abs() < 5.5 * error).all())  # Student t with 24 degrees of freedom


class TestSources:
    def test_every_choice_of_sources_once_is_the_whole(self, make_model, make_batch, quiet):
        # latents at the experts' locations: the choice is the only chance, and is enumerated
        batch = make_batch()
        for n in (1, 2):
            model = make_model("mmvae", n_sources=n)
            whole = make_model("mmvae")
            prepared = model.prepare(batch)
            values = []
            for order in itertools.permutations((0.1, 0.5, 0.9)):
                noise = ScriptedNoise(quiet().noise, {"sources": torch.tensor(order)})
                values.append(total(model.loss(prepared, Step(training=True, noise=noise))))
            expected = total(whole.loss(prepared, quiet()))
            torch.testing.assert_close(torch.stack(values).mean(dim=0), expected)

    def test_sources_are_what_a_row_has(self, make_model, make_batch, training):
        model, batch = make_model("mmvae", n_sources=2), make_batch()
        sources = model.samples(model.prepare(batch), training()).sources
        assert sources.shape == (2, batch.size)
        for b in range(batch.size):
            own = [s for s in sources[:, b].tolist() if s >= 0]
            assert len(set(own)) == len(own) == min(2, int(batch.present[b].sum()))
            assert all(bool(batch.present[b, s]) for s in own)

    def test_more_sources_than_modalities_are_all(self, make_model, make_batch, training):
        batch, step = make_batch(), training()
        one, two = make_model("mmvae", n_sources=9), make_model("mmvae")
        prepared = one.prepare(batch)
        assert torch.equal(total(one.loss(prepared, step)), total(two.loss(prepared, step)))


class TestAcceptance:
    @pytest.mark.parametrize("family", [LAPLACE, NORMAL])
    def test_one_modality_and_one_sample_are_a_vae(self, make_model, make_batch, training, family):
        sizes = {"a": 3}
        model = make_model("mmvae", sizes=sizes, n_samples=1, family=family)
        batch, step = make_batch(5, sizes, holes=False), training()
        found = -total(model.loss(model.prepare(batch), step)).detach()
        kind = "laplace" if family == LAPLACE else "normal"
        eps = getattr(step.noise, kind)("shared", (1, 5, 2))[0].numpy()
        for b in range(5):
            (q,) = experts_of(model, batch, b).values()
            z = q.args[0] + q.args[1] * eps[b]
            p = law(np.zeros(2), np.zeros(2), family)
            x = batch.values["a"][b].numpy()
            elbo = stats.norm.logpdf(x, decoded(model, "a", z), 0.8).sum()
            elbo += p.logpdf(z).sum() - q.logpdf(z).sum()
            assert float(found[b]) == pytest.approx(elbo)

    def test_tight_is_above_looser_on_the_same_samples(self, make_model, make_batch, training):
        batch = make_batch(40)
        models = [make_model("mmvae", bound=b, n_samples=2) for b in ("looser", "tight")]
        for number in range(5):
            looser, tight = (-total(m.loss(m.prepare(batch), training(number))) for m in models)
            assert bool((tight >= looser - 1e-12).all())

    def test_with_identical_experts_the_gap_vanishes(self, make_model, make_batch, training):
        batch = make_batch(30, holes=False)
        gaps = []
        for k in (1, 20, 400):
            models = [make_model("mmvae", bound=b, n_samples=k) for b in ("looser", "tight")]
            for model in models:
                for name in model.modalities:  # heads that ignore their input
                    torch.nn.init.zeros_(model.encoders[name].head.weight)
                    torch.nn.init.zeros_(model.encoders[name].head.bias)
            looser, tight = (-total(m.loss(m.prepare(batch), training())) for m in models)
            gaps.append(float((tight - looser).mean().detach()))
        assert gaps[0] > gaps[1] > gaps[2] > 0.0
        assert gaps[2] < 0.02 * gaps[0]

    @pytest.mark.parametrize("family", [LAPLACE, NORMAL, SOFTPLUS])
    def test_likelihoods_of_far_apart_experts_agree_with_quadrature(
        self, make_model, make_batch, training, family
    ):
        sizes = {"a": 1, "b": 1}
        model = make_model("mmvae", sizes=sizes, latent_dim=1, family=family)
        with torch.no_grad():
            model.shared_prior.raw_scale.fill_(0.3)
            for place, name in enumerate("ab"):
                head = model.encoders[name].head
                head.weight.zero_()
                head.bias.copy_(torch.tensor([(-1.6, 1.6)[place], 0.2]))
        batch = make_batch(6, sizes)
        estimate = model.log_likelihood(batch, n_samples=4000)
        grid = np.linspace(-25, 25, 20001)
        prior = law(np.zeros(1), np.array([0.3]), family).logpdf(grid)
        for b in range(6):
            joint = prior.copy()
            for name in "ab":
                if bool(batch.column(name)[b]):
                    z = torch.as_tensor(grid).view(1, -1, 1)
                    mean = model.decoders[name](z).mean[0, :, 0].detach().numpy()
                    joint += stats.norm.logpdf(batch.values[name][b].numpy(), mean, 0.8)
            exact = special.logsumexp(joint) + math.log(grid[1] - grid[0])
            error = abs(float(estimate.value[b]) - exact)
            assert error <= 4.5 * float(estimate.standard_error[b]) + 1e-5
        assert float(estimate.standard_error.max()) < 0.15
        # the tight bound rises to the same number
        tight = make_model(
            "mmvae", sizes=sizes, latent_dim=1, family=family, bound="tight", n_samples=2000
        )
        tight.load_state_dict(model.state_dict())
        value = -total(tight.loss(tight.prepare(batch), Step(noise=training().noise))).detach()
        assert float((value - estimate.value).abs().max()) < 0.1

    def test_components_of_encodings_are_uniform_for_every_row(self, make_model, make_batch):
        model, batch = make_model("mmvae", family=NORMAL, latent_dim=1), make_batch(6)
        with torch.no_grad():
            for place, name in enumerate("abc"):
                head = model.encoders[name].head
                head.weight.zero_()
                head.bias.copy_(torch.tensor([100.0 * place, -10.0]))
        counts = np.zeros((6, 3))
        for seed in range(900):
            z = model.encode(batch, n_samples=1, seed=seed)["shared"][0, :, 0]
            for b in range(6):
                if bool(batch.something[b]):
                    counts[b, int((float(z[b]) + 50) // 100)] += 1
        for b in range(6):
            have = batch.present[b].numpy()
            assert not counts[b, ~have].any()
            if have.sum() > 1:
                assert stats.chisquare(counts[b, have]).pvalue > 1e-4
        # and several draws of a row are spread evenly
        z = model.encode(batch, n_samples=6)["shared"][:, 0, 0]
        assert sorted(((z + 50) // 100).long().tolist()) == [0, 0, 1, 1, 2, 2]

    def test_scales_sum_to_the_dimension(self, make_model, make_batch):
        model = make_model("mmvae", latent_dim=5)
        parts = model.posterior(model.prepare(make_batch(holes=False))).parts["shared"]
        expected = torch.full((3, 12), 5 * (1 + 1e-6), dtype=F64)
        torch.testing.assert_close(parts.components.scale.sum(-1), expected)
        total = model.shared_prior.distribution().scale.sum()
        assert float(total.detach()) == pytest.approx(5 * (1 + 1e-6))


@pytest.mark.parametrize("learn", [True, False])
def test_the_prior_is_learned_where_asked(make_model, make_batch, training, learn):
    model = make_model("mmvae", learn_prior=learn)
    total(model.loss(model.prepare(make_batch()), training())).sum().backward()
    assert model.shared_prior.raw_scale.requires_grad is learn
    assert (model.shared_prior.raw_scale.grad is not None) is learn


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"family": NORMAL},
        {"family": SOFTPLUS},
        {"prior": "standard_normal", "family": NORMAL},
        {"prior": "standard_normal", "family": SOFTPLUS},
        {"prior": {"type": "scaled", "family": LAPLACE}},
        {"prior": {"type": "scaled", "family": SOFTPLUS}, "family": NORMAL},
        {"prior": "standard_normal"},
    ],
)
def test_rows_with_nothing_have_the_prior_and_no_loss(make_model, make_batch, training, options):
    model, batch = make_model("mmvae", **options), make_batch()
    if hasattr(model.shared_prior, "raw_scale"):
        with torch.no_grad():
            model.shared_prior.raw_scale.copy_(torch.tensor([0.7, -0.4]))
    prepared = model.prepare(batch)
    z = torch.randn(5, batch.size, 2, dtype=F64)
    own = model.posterior(prepared).log_prob({"shared": z})[:, 1]
    torch.testing.assert_close(own, model.shared_prior.log_prob(z[:, 1]))
    for estimator in ("iwae", "dreg"):
        for bound in ("looser", "tight"):
            other = make_model("mmvae", estimator=estimator, bound=bound, **options)
            loss = total(other.loss(prepared, training()))
            assert not loss[1].any()
            loss.sum().backward()
            assert all(
                bool(p.grad.isfinite().all()) for p in other.parameters() if p.grad is not None
            )


def test_the_posterior_is_the_mixture(make_model, make_batch):
    model, batch = make_model("mmvae", family=NORMAL), make_batch()
    own = model.posterior(model.prepare(batch))
    z = torch.randn(4, batch.size, 2, dtype=F64)
    found = own.log_prob({"shared": z}).detach().numpy()
    for b in range(batch.size):
        experts = experts_of(model, batch, b)
        if experts:
            each = [q.logpdf(z[:, b].numpy()).sum(-1) for q in experts.values()]
            expected = special.logsumexp(each, axis=0) - math.log(len(experts))
            np.testing.assert_allclose(found[:, b], expected)
            mean = np.mean([q.args[0] for q in experts.values()], axis=0)
            np.testing.assert_allclose(own.mean()["shared"][0, b].detach().numpy(), mean)


def test_the_looser_bound_is_a_bound(make_model, make_batch):
    model, batch = make_model("mmvae", n_samples=2), make_batch(10)
    prepared = model.prepare(batch)
    values = torch.stack(
        [
            -total(model.loss(prepared, Step(noise=RowNoise(s, batch.index, F64)))).detach()
            for s in range(150)
        ]
    )
    exact = model.log_likelihood(batch, n_samples=5000).value
    error = values.std(dim=0) / math.sqrt(150)
    assert bool((values.mean(dim=0) - 4.5 * error <= exact + 0.01).all())


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n_samples": 0}, "n_samples: must be > 0, got 0"),
            ({"family": "gauss"}, "^family: must be one of 'normal', 'normal_with_softplus'"),
            ({"bound": "loose"}, "bound: must be one of 'looser', 'tight'; got 'loose'"),
            ({"estimator": "vimco"}, "estimator: must be one of 'iwae', 'dreg', 'stl'"),
            ({"n_sources": 0}, "n_sources: must be > 0, got 0"),
            ({"n_sources": 1.5}, "n_sources: must be an integer or None, got 1.5"),
            ({"n_sources": 2, "bound": "tight"}, "n_sources: drawing sources is unbiased for the"),
            ({"learn_prior": 1}, "learn_prior: must be true or false, got 1"),
            ({"prior": "standard_normall"}, "prior: .*'standard_normall'.*standard_normal"),
            ({"prior": {"type": "scaled", "family": "x"}}, "prior.family: must be one of"),
            ({"fusion": "product"}, "fusion: unknown option; there is modalities"),
        ],
    )
    def test_options(self, make_model, options, message):
        with pytest.raises(ConfigError, match=message):
            make_model("mmvae", **options)
