"""MCVAE and VCCA against their formulas, against each other, and what they must refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import multivae_core as mv
from multivae_coordinated._source_parts import dropout_entropy
from multivae_core.errors import CapabilityError, ConfigError, DataError
from multivae_core.noise import Step


def heads(model, batch, name, b, latent="shared"):
    raw = model.encoders[name](batch.values[name][b : b + 1])[latent][0].detach().numpy()
    return raw[0], np.exp(raw[1])


def log_px(model, batch, name, b, *latents):
    z = torch.as_tensor(np.concatenate(latents))[None, None]
    location = model.decoders[name](z).mean[0, 0].detach().numpy()
    return stats.norm.logpdf(batch.values[name][b].numpy(), location, 0.8).sum()


def kl(mean, variance):
    return 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum()


def seen(batch, b):
    return [m for m in "abc" if bool(batch.column(m)[b])]


def total(out):
    return sum(term.value for term in out.terms.values()).detach().numpy()


@pytest.mark.parametrize("norm", ["sum", "mean"])
def test_mcvae_is_its_formula_in_every_row(make_model, make_batch, quiet, norm):
    model, batch = make_model("mcvae", beta=3.0, cross_norm=norm), make_batch()
    out = total(model.loss(model.prepare(batch), quiet()))
    for b in range(batch.size):
        own = seen(batch, b)
        terms = []
        for m in own:
            mean, variance = heads(model, batch, m, b)
            rebuilt = sum(log_px(model, batch, n, b, mean) for n in own)
            terms.append(3.0 * kl(mean, variance) - rebuilt / (len(own) if norm == "mean" else 1))
        if own:
            assert out[b] == pytest.approx(np.mean(terms), rel=1e-10)


def test_vcca_private_is_its_formula(make_model, make_batch, quiet):
    options = {"private_dims": {"a": 2, "c": 1}, "style_betas": {"c": 0.5}, "beta": 2.0}
    model = make_model("dvcca", reference="b", missing_reference="skip", **options)
    batch = make_batch()
    out = model.loss(model.prepare(batch), quiet())
    for b in range(batch.size):
        own = seen(batch, b)
        counted = out.terms["kl"].weight[b].item()
        assert counted == ("b" in own)
        if not counted:
            continue
        mean, variance = heads(model, batch, "b", b)
        value = 2.0 * kl(mean, variance)
        for n in own:
            latents = [mean]
            if n != "b":
                private = heads(model, batch, n, b, ("private", n))
                latents.append(private[0])
                value += 2.0 * {"a": 1.0, "c": 0.5}[n] * kl(*private)
            value -= log_px(model, batch, n, b, *latents)
        assert total(out)[b] == pytest.approx(value, rel=1e-10)


def test_vcca_of_all_references_is_mcvae(make_model, make_batch, training):
    batch = make_batch()
    values = []
    for name in ("mcvae", "dvcca"):
        model = make_model(name)
        values.append(total(model.loss(model.prepare(batch), training())))
    np.testing.assert_array_equal(*values)


def test_reference_weights_are_scaled_over_what_a_row_has(make_model, make_batch, quiet):
    batch, weights = make_batch(), {"a": 2.0, "b": 1.0, "c": 5.0}
    mixed = make_model("dvcca", reference_weights=weights)
    out = total(mixed.loss(mixed.prepare(batch), quiet()))
    single = {}
    for m in "abc":
        model = make_model("dvcca", reference_weights={n: 1e-200 for n in "abc" if n != m})
        single[m] = total(model.loss(model.prepare(batch), quiet()))
    for b in range(batch.size):
        own = seen(batch, b)
        if own:
            wanted = sum(weights[m] * single[m][b] for m in own) / sum(weights[m] for m in own)
            assert out[b] == pytest.approx(wanted, rel=1e-9)


def test_drawn_sources_are_unbiased(make_model, make_batch, quiet):
    # 600 steps of 1 of 3 sources; 5 standard errors of the mean
    batch = make_batch(rows=6)
    full, drawn = make_model("mcvae"), make_model("mcvae", n_sources=1)
    prepared = full.prepare(batch)
    wanted = total(full.loss(prepared, quiet()))
    with torch.no_grad():
        values = np.array([total(drawn.loss(prepared, quiet(number))) for number in range(600)])
    error = values.std(axis=0) / 600**0.5
    rows = batch.something.numpy()
    assert (abs(values.mean(axis=0) - wanted)[rows] <= 5 * error[rows] + 1e-9).all()


def test_channels_alone_are_encoded(make_model, make_batch):
    model = make_model("mcvae", channels=["a", "c"])
    assert not list(model.encoders["b"].parameters())
    data = make_batch()
    with_b, without = model.embed(data), model.embed(data.restrict({"a", "c"}))
    torch.testing.assert_close(with_b, without, rtol=0, atol=0)


class TestSparse:
    def test_divergence_has_the_published_values(self, make_model, make_batch, quiet):
        # sheet of Molchanov et al. 2017: their fit, at four points
        model = make_model("mcvae", sparse=True, latent_dim=4)
        with torch.no_grad():
            model.log_alpha.copy_(torch.tensor([-8.0, 0.0, 3.0, 8.0]))
        out = model.loss(model.prepare(make_batch(holes=False)), quiet())
        wanted = 4.6359 + 0.43124 + 0.02542 + 0.00017
        assert out.terms["kl"].value[0].item() == pytest.approx(wanted, abs=2e-4)

    @pytest.mark.parametrize("log_alpha", [-4.0, -1.0, 0.5, 2.0])
    def test_divergence_is_the_integral_but_for_a_constant(self, make_model, log_alpha):
        # KL(N(1, alpha) || 1/|z|) = E log|1 + sqrt(alpha) e| - log alpha / 2 + constant. The fit
        # is good to 0.02; the constant is that of large alpha, where it goes to 0.
        def divergence(value):
            spread = np.exp(value / 2)
            zero = -1 / spread
            mean_log = integrate.quad(
                lambda e: stats.norm.pdf(e) * np.log(abs(1 + spread * e)), -12, 12, points=[zero]
            )[0]
            return mean_log - value / 2

        model = make_model("mcvae", sparse=True, latent_dim=1)
        assert model.log_alpha.shape == (1,)
        ours = -dropout_entropy(torch.tensor([log_alpha])).item()
        assert ours == pytest.approx(divergence(log_alpha) - divergence(16.0), abs=0.03)

    def test_variance_follows_the_mean(self, make_model, make_batch):
        model = make_model("mcvae", sparse=True)
        batch = model.prepare(make_batch(holes=False).restrict({"a"}))
        part = model.posterior(batch).parts["shared"].components
        row = model.modalities.index("a")
        wanted = model.log_alpha.exp() * part.mean[row] ** 2
        torch.testing.assert_close(part.variance[row], wanted, rtol=1e-5, atol=1e-12)
        assert model.encoders["a"].head.out_features == 2  # there is no head for a variance

    def test_dimensions_above_the_threshold_are_zero(self, make_model, make_batch):
        model = make_model("mcvae", sparse=True, threshold=0.5)
        with torch.no_grad():
            model.log_alpha.copy_(torch.tensor([-3.0, 3.0]))
        assert model.dropout_probabilities().tolist() == pytest.approx([0.047, 0.953], abs=1e-3)
        embedded = model.embed(make_batch(holes=False))
        assert (embedded[:, 0] != 0).all()
        assert embedded[:, 1].abs().max() < 1e-12

    def test_there_is_no_likelihood(self, make_model, make_batch):
        model = make_model("mcvae", sparse=True)
        for call in (lambda: model.log_likelihood(make_batch()), lambda: model.generate(3)):
            with pytest.raises(CapabilityError, match="improper prior"):
                call()
        make_model("mcvae").require("joint_likelihood")


def test_point_is_the_geometric_mean_and_draws_are_of_the_mixture(make_model, make_batch):
    batch = make_batch(holes=False)
    model = make_model("mcvae")
    experts = [heads(model, batch, m, 0) for m in "abc"]
    precision = sum(1 / v for _, v in experts)
    wanted = sum(m / v for m, v in experts) / precision
    np.testing.assert_allclose(model.embed(batch)[0], wanted, rtol=1e-10)
    draws = model.encode(batch, n_samples=3000)["shared"][:, 0].numpy()
    mean = np.mean([m for m, _ in experts], axis=0)
    spread = draws.std(axis=0) / 3000**0.5
    assert (abs(draws.mean(axis=0) - mean) < 5 * spread).all()  # 1 in 1.7 million


def test_rows_without_the_reference_are_refused_or_left_at_the_prior(
    make_model, make_batch, quiet
):
    data = make_batch()
    strict = make_model("dvcca", reference="c")
    with pytest.raises(DataError, match="row 2 has no 'c', the view that the shared latent"):
        strict.embed(data)
    with pytest.raises(DataError, match="reference='all', or missing_reference='skip'"):
        strict.loss(strict.prepare(data), quiet())
    with pytest.raises(CapabilityError, match="encodes_any_subset"):
        strict.require("encodes_any_subset")
    loose = make_model("dvcca", reference="c", missing_reference="skip")
    assert loose.embed(data)[2].tolist() == [0.0, 0.0]
    make_model("dvcca").require("encodes_any_subset")


def test_private_codes_may_be_withheld(make_model, make_batch, training):
    batch, dims = make_batch(400, holes=False), {"a": 2, "c": 1}
    model = make_model("dvcca", private_dims=dims, private_dropout=0.3)
    plain, step = make_model("dvcca", private_dims=dims), training()
    seen = []
    model.decoders["a"].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    out = model.loss(model.prepare(batch), step)
    wanted = plain.loss(plain.prepare(batch), step)
    own = plain.private(plain.run_encoders(plain.prepare(batch)))["private", "a"]
    drawn = own.sample(1, step.noise, ("private", "a"))[0]
    prior = step.noise.normal(("prior", ("private", "a")), (1, 400, 2))[0]
    told = seen[0][0, :, 2:]
    is_own, is_prior = (told == drawn).all(dim=1), (told == prior).all(dim=1)
    assert bool((is_own ^ is_prior).all())
    assert 0.2 < float(is_prior.double().mean()) < 0.4
    for name in ("kl", "kl_private"):  # divergences count whole
        torch.testing.assert_close(out.terms[name].value, wanted.terms[name].value)
    assert not torch.equal(out.terms["reconstruction"].value, wanted.terms["reconstruction"].value)
    quiet = Step(noise=step.noise)
    for one, two in zip(
        model.loss(model.prepare(batch), quiet).terms.values(),
        plain.loss(plain.prepare(batch), quiet).terms.values(),
        strict=True,
    ):
        torch.testing.assert_close(one.value, two.value)


def test_path_derivative(make_model, make_batch, training):
    model, batch = make_model("mcvae", path_derivative=True), make_batch(holes=False)
    prepared, step = model.prepare(batch), training()
    found = model.loss(prepared, step).terms["kl"].value
    experts = model._experts(model.run_encoders(prepared))
    z = experts.sample_once(step.noise, "shared")
    log_q = torch.distributions.Normal(experts.mean, experts.variance.sqrt()).log_prob(z)
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    torch.testing.assert_close(found, (log_q - log_p).sum(dim=2).mean(dim=0))
    # the score is left out: it has the mean 0, and is all there is where q_m is the prior
    with torch.no_grad():
        for name in "abc":
            model.encoders[name].head.weight.zero_()
            model.encoders[name].head.bias.zero_()
    model.loss(prepared, step).terms["kl"].value.sum().backward()
    assert float(model.encoders["a"].head.bias.grad.abs().max()) < 1e-9


def test_prediction_is_the_mean_of_what_the_sources_decode(make_model, make_batch):
    # the rule of the authors' code for several channels, here with posteriors that are points
    model, batch = make_model("mcvae"), make_batch(holes=False)
    with torch.no_grad():
        for name in "abc":
            model.encoders[name].head.bias[2:] = -60.0
            model.encoders[name].head.weight[2:] = 0.0
    made = model.predict(batch, n_samples=3)["b"]
    each = [model.decode({"shared": torch.stack([
        torch.as_tensor(heads(model, batch, m, b)[0]) for b in range(batch.size)
    ])})["b"].mean for m in "abc"]  # fmt: skip
    torch.testing.assert_close(made, torch.stack(each).mean(dim=0).view_as(made))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mcvae", {"channels": ["d"]}, "channels: unknown modality 'd'; there is a, b, c"),
        ("mcvae", {"channels": []}, "channels: must name one modality or more"),
        ("mcvae", {"threshold": 0.5}, "threshold: drops dimensions of the sparse variant"),
        ("mcvae", {"sparse": True, "private_dims": {"a": 1}}, "sparse: has no private latents"),
        ("dvcca", {"private_dropout": 0.1}, "private_dropout: there are no private latents"),
        ("dvcca", {"reference": "d"}, "reference: must be 'all' or a modality: a, b, c"),
        ("dvcca", {"reference_weights": {"d": 1.0}}, "reference_weights.d: unknown modality"),
    ],
)
def test_refusals(make_model, name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_model(name, **options)


def test_an_encoder_for_what_is_no_source_is_refused(make_batch):
    data = mv.IncompleteDataset(make_batch(holes=False).values)
    with pytest.raises(ConfigError, match=r"encoders\.b: the modality is no source"):
        mv.create_model("dvcca", data, reference="a", encoders={"b": torch.nn.Linear(2, 2)})
