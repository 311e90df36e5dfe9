"""The masked VAE against its formulas, one row and one mask at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from multivae_core.errors import ConfigError
from multivae_core.noise import RowNoise, ScriptedNoise, Step, TrainingNoise

F64 = torch.float64
PRODUCT = {"fusion": "product", "prior_expert": "always"}


def total(out):
    return sum(term.value for term in out.terms.values())


def scripted(step, mask):
    """The step with the modalities of the random subset written down."""
    keys = torch.where(torch.as_tensor(mask), 0.25, 0.75)
    return Step(training=step.training, noise=ScriptedNoise(step.noise, {"mask": keys}))


def product(model, batch, b, members):
    precision, pull = np.ones(model.config.latent_dim), 0.0
    for name in members:
        mean, raw = model.encoders[name](batch.values[name][b : b + 1])["shared"][0].detach()
        precision, pull = precision + np.exp(-raw.numpy()), pull + (mean * (-raw).exp()).numpy()
    return pull / precision, 1.0 / precision


def kl(mean, variance, other_mean=0.0, other_variance=1.0):
    ratio = variance / other_variance
    return 0.5 * (ratio - 1 - np.log(ratio) + (mean - other_mean) ** 2 / other_variance).sum()


def score(model, batch, b, name, z):
    mean = model.decoders[name](torch.as_tensor(z)[None, None]).mean[0, 0].detach().numpy()
    return stats.norm.logpdf(batch.values[name][b].numpy(), mean, 0.8).sum()


@pytest.mark.parametrize("mask", [*itertools.product([False, True], repeat=3)])
def test_both_bounds_of_every_mask(make_model, make_batch, training, mask):
    model, batch = make_model("masked_pi", beta=2.0, **PRODUCT), make_batch()
    step = scripted(training(), mask)
    out = model.loss(model.prepare(batch), step)
    assert list(out.terms) == ["elbo:subset", "elbo:rest"]
    eps = step.noise.normal("shared", (2, batch.size, 2)).numpy()
    for b in range(batch.size):
        have = [n for n in "abc" if bool(batch.column(n)[b])]
        seen = [n for n, chosen in zip("abc", mask, strict=True) if chosen and n in have]
        rest = [n for n in have if n not in seen]
        small, whole = product(model, batch, b, seen), product(model, batch, b, have)
        first = second = 0.0
        if seen:
            z = small[0] + np.sqrt(small[1]) * eps[0, b]
            first = sum(score(model, batch, b, n, z) for n in seen) - 2.0 * kl(*small)
        if rest:
            z = whole[0] + np.sqrt(whole[1]) * eps[1, b]
            second = sum(score(model, batch, b, n, z) for n in rest) - 2.0 * kl(*whole, *small)
        assert -float(out.terms["elbo:subset"].value.detach()[b]) == pytest.approx(first)
        assert -float(out.terms["elbo:rest"].value.detach()[b]) == pytest.approx(second)


@pytest.mark.parametrize("rule", ["always", "never", "largest", "full_set"])
def test_where_the_prior_is_an_expert(make_model, make_batch, quiet, rule):
    # of the whole the joint ELBO of MVAE is left, of everything in the subset too
    one = make_model("masked_pi", fusion="product", prior_expert=rule)
    two = make_model("mvae", subsampling=False, prior_expert=rule)
    for name, parameter in two.named_parameters():
        assert torch.equal(parameter, one.get_parameter(name))
    batch = make_batch()
    expected = total(two.loss(two.prepare(batch), quiet()))
    for chosen, term in ((False, "elbo:rest"), (True, "elbo:subset")):
        out = one.loss(one.prepare(batch), scripted(quiet(), [chosen] * 3))
        torch.testing.assert_close(out.terms[term].value, expected)
        torch.testing.assert_close(total(out), expected)
        (other,) = set(out.terms) - {term}
        assert not out.terms[other].value.any()


def test_nothing_in_the_subset_leaves_the_models_own_prior(make_model, make_batch, quiet):
    model, batch = make_model("masked_pi", prior="scaled", **PRODUCT), make_batch()
    with torch.no_grad():
        model.shared_prior.raw_scale.copy_(torch.tensor([1.0, -0.5]))
    out = model.loss(model.prepare(batch), scripted(quiet(), [False] * 3))
    mean, variance = product(model, batch, 0, "abc")
    other = model.shared_prior.distribution().variance.detach().numpy()
    expected = sum(score(model, batch, 0, n, mean) for n in "abc") - kl(mean, variance, 0, other)
    assert -float(out.terms["elbo:rest"].value.detach()[0]) == pytest.approx(expected)


def test_private_divergences_count_once_whatever_the_mask(make_model, make_batch, training):
    options = {"private_dims": {"a": 1, "c": 2}, "style_betas": {"c": 3.0}, "beta": 2.0}
    model, batch = make_model("masked_pi", **PRODUCT, **options), make_batch()
    prepared = model.prepare(batch)
    raw = {n: model.run_encoders(prepared)["private", n].detach().numpy() for n in "ac"}
    expected = [
        2.0 * sum(w * kl(raw[n][b, 0], np.exp(raw[n][b, 1])) for n, w in (("a", 1.0), ("c", 3.0)))
        for b in range(batch.size)
    ]
    for mask in itertools.product([False, True], repeat=3):
        out = model.loss(prepared, scripted(training(), mask))
        found = out.terms["kl_private"].value.detach()
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64))


def test_every_present_modality_is_decoded_once(make_model, make_batch, training):
    model, batch = make_model("masked_pi"), make_batch()
    rows = dict.fromkeys("abc", 0)
    decode = model.decode_one

    def counted(name, latents, *rest):
        rows[name] += latents["shared"].shape[:2].numel()
        return decode(name, latents, *rest)

    model.decode_one = counted
    model.loss(model.prepare(batch), training())
    assert rows == {name: int(batch.column(name).sum()) for name in "abc"}


@pytest.mark.parametrize("sampling", ["coin", "size"])
def test_masks(make_model, sampling):
    model = make_model("masked_pi", mask_sampling=sampling)
    present = torch.ones(20000, 3, dtype=torch.bool)
    present[:, 1] = torch.arange(20000) % 2 == 0
    drawn = model._subset(present, TrainingNoise(0, 0, dtype=F64))
    assert not (drawn & ~present).any()
    for chosen in (present[:, 1], ~present[:, 1]):
        sizes = drawn[chosen].sum(dim=1).bincount().double()
        n = len(sizes) - 1
        pmf = stats.binom.pmf(np.arange(n + 1), n, 0.5) if sampling == "coin" else 1 / (n + 1)
        expected = np.full(n + 1, 10000.0) * pmf
        assert stats.chisquare(sizes.numpy(), expected).pvalue > 1e-3
        rates = drawn[chosen].double().mean(dim=0)[present[chosen][0]]
        assert bool(((rates - 0.5).abs() < 0.02).all())


def test_masks_of_evaluation_belong_to_the_row(make_model, make_batch):
    model, batch = make_model("masked_pi"), make_batch()
    order = torch.arange(11, -1, -1)
    one, two = (
        total(model.loss(model.prepare(b), Step(noise=RowNoise(0, b.index, F64))))
        for b in (batch, batch.take(order))
    )
    torch.testing.assert_close(one[order], two)


@pytest.mark.parametrize("pooling", ["sum", "attention"])
def test_the_pool_learns(make_model, make_batch, training, pooling):
    model = make_model("masked_pi", fusion={"type": "pooling", "pooling": pooling, "width": 8})
    batch = make_batch(30)
    prepared = model.prepare(batch)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for number in range(40):
        optimiser.zero_grad()
        loss = total(model.loss(prepared, training(number)))[batch.something].mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3
    assert all(bool(p.grad.any()) for p in model.fusion.parameters())
    q = model.posterior(prepared).parts["shared"]
    assert not q.mean[~batch.something].any()
    assert not q.log_variance[~batch.something].any()


def test_refusals(make_model):
    with pytest.raises(ConfigError, match="mask_sampling: must be one of 'coin', 'size'"):
        make_model("masked_pi", mask_sampling="fair")
    with pytest.raises(ConfigError, match="fusion: must give one Gaussian per subset"):
        make_model("masked_pi", fusion="mixture")
