"""Likelihoods by importance sampling against quadrature, on a toy that is not linear.

Statistics: a claim of equality allows 4.5 standard errors (7 in a million fail by chance).
"""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import multivae_core as mv
from multivae_core.config import structure
from multivae_core.distributions import Mixture, Normal
from multivae_core.errors import CapabilityError, DataError
from multivae_core.estimation import Estimate, evaluating
from multivae_core.posteriors import Draw, FactorisedPosterior, Posterior

F64 = torch.float64
FEATURES = {"a": 2, "b": 3}
SCALE = {"a": 0.6, "b": 0.4}


class Toy(mv.MultimodalVAE):
    """A product of experts, or their mixture, wider than what the encoders say."""

    mixture = False
    log_variance = 2.5

    def posterior(self, batch):
        encoded = self.run_encoders(batch)["shared"]
        experts = Normal(encoded[:, :, 0], encoded[:, :, 1])
        if self.mixture:
            usable = (batch.present | ~batch.something[:, None]).to(self.dtype)
            shared = Mixture(experts, usable / usable.sum(dim=1, keepdim=True))
        else:
            seen = batch.present.T[..., None]
            precision = torch.where(seen, (-experts.log_variance).exp(), 0.0)
            total = 1.0 + precision.sum(dim=0)
            shared = Normal((precision * experts.mean).sum(dim=0) / total, -total.log())
        return FactorisedPosterior({"shared": shared})

    def loss(self, batch, step):
        raise NotImplementedError


class MixtureToy(Toy):
    mixture = True
    log_variance = 0.5


def toy(cls=Toy, latent_dim=1, standardise=False, dtype=F64):
    modalities = {
        name: {
            "shape": [size],
            "likelihood": {"type": "normal", "scale": SCALE[name]},
            "standardise": standardise,
        }
        for name, size in FEATURES.items()
    }
    config = structure(mv.ModelConfig, {"modalities": modalities, "latent_dim": latent_dim})
    torch.manual_seed(3)
    model = cls(
        config,
        encoders={name: nn.Linear(size, 4) for name, size in FEATURES.items()},
        decoders={
            name: nn.Sequential(nn.Linear(latent_dim, 5), nn.Tanh(), nn.Linear(5, size))
            for name, size in FEATURES.items()
        },
    )
    with torch.no_grad():
        for parameter in model.decoders.parameters():
            parameter.mul_(1.5)
        for name in FEATURES:
            head = model.encoders[name].head  # wide experts: every weight is finite in variance
            head.weight.mul_(0.5)
            head.weight[latent_dim:] = 0.0
            head.bias[latent_dim:] = cls.log_variance
    if standardise:
        for place, name in enumerate(FEATURES):
            model.transforms[name].shift.fill_(0.3 * place)
            model.transforms[name].scale.fill_(2.0 + place)
    return model.to(dtype)


def data(rows=12, seed=0, holes=True):
    rng = np.random.default_rng(seed)
    values = {
        name: torch.as_tensor(rng.normal(size=(rows, size))) for name, size in FEATURES.items()
    }
    present = torch.ones(rows, 2, dtype=torch.bool)
    observed = {}
    if holes:
        present = torch.as_tensor(rng.random((rows, 2)) < 0.7)
        present[:3] = torch.tensor([[1, 1], [0, 1], [0, 0]]).bool()
        mask = torch.as_tensor(rng.random((rows, 3)) < 0.7)
        mask[:, 0] = True
        observed = {"b": mask}
    return mv.Batch(values=values, present=present, observed=observed)


def decoded(model, name, z):
    """What a decoder gives for latents (G, D), by numpy."""
    first, _, second = model.decoders[name].network
    w1, b1, w2, b2 = (
        p.detach().numpy() for p in (first.weight, first.bias, second.weight, second.bias)
    )
    return np.tanh(z @ w1.T + b1) @ w2.T + b2


def quadrature(model, batch, latent_dim=1):
    """log p of what is observed of every row, on the scale of the data, on a grid."""
    axis = np.linspace(-9, 9, 4001 if latent_dim == 1 else 301)
    step = axis[1] - axis[0]
    z = np.stack(np.meshgrid(*[axis] * latent_dim, indexing="ij"), -1).reshape(-1, latent_dim)
    prior = stats.norm.logpdf(z).sum(-1) + latent_dim * math.log(step)
    result = []
    for b in range(batch.size):
        total = prior.copy()
        for name in batch.names:
            if not batch.column(name)[b]:
                continue
            transform = model.transforms[name]
            scale = transform.scale.numpy() if model.config.modalities[name].standardise else 1.0
            shift = transform.shift.numpy() if model.config.modalities[name].standardise else 0.0
            x = batch.values[name][b].numpy()
            each = stats.norm.logpdf(
                x, shift + scale * decoded(model, name, z), scale * SCALE[name]
            )
            if name in batch.observed:
                each = each[:, batch.observed[name][b].numpy()]
            total = total + each.sum(-1)
        top = total.max()
        result.append(top + math.log(np.exp(total - top).sum()))
    return torch.tensor(result, dtype=F64)


@pytest.mark.parametrize("cls", [Toy, MixtureToy])
@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_estimates_agree_with_quadrature(cls, standardise, latent_dim):
    model, batch = toy(cls, latent_dim, standardise), data()
    exact = quadrature(model, batch, latent_dim)
    estimate = model.log_likelihood(batch, n_samples=4000)
    error = (estimate.value - exact).abs()
    assert bool((error <= 4.5 * estimate.standard_error + 1e-6).all())
    assert float(estimate.standard_error.max()) < 0.1
    bound = model.elbo(batch, n_samples=4000)
    seen = batch.something
    assert bool((bound.value - 4.5 * bound.standard_error <= exact + 1e-6).all())
    assert float((exact - bound.value)[seen].mean()) > 0.01
    assert not estimate.value[~seen].any()


def test_conditionals_agree_with_quadrature():
    model, batch = toy(), data()
    exact = quadrature(model, batch) - quadrature(model, batch.restrict({"b"}))
    estimate = model.conditional_log_likelihood(batch, ["b"], ["a"], n_samples=4000)
    error = (estimate.value - exact).abs()
    assert bool((error <= 4.5 * estimate.standard_error + 1e-6).all())
    # nothing of the target is there: the conditional of nothing is 1
    nothing = ~batch.column("a")
    assert float(estimate.value[nothing].abs().max()) < 1e-12


def test_conditionals_are_differences():
    model, batch = toy(), data()
    joint = model.log_likelihood(batch, n_samples=50)
    given = model.log_likelihood(batch.restrict({"b"}), n_samples=50)
    own = model.conditional_log_likelihood(batch, ("b",), ("a",), n_samples=50)
    torch.testing.assert_close(own.value, joint.value - given.value, rtol=0, atol=1e-12)
    alone = model.conditional_log_likelihood(batch, (), ("a", "b"), n_samples=50)
    assert torch.equal(alone.value, joint.value)
    by_text = model.conditional_log_likelihood(batch, "b", "a", n_samples=50)
    assert torch.equal(by_text.value, own.value)


@pytest.mark.parametrize("verb", ["log_likelihood", "elbo", "conditional"])
def test_stated_errors_are_true(verb):
    # the variance over seeds against the stated one, both averaged over 30 rows: 60 seeds know a
    # row's variance to 18 %, the average to about 4 %
    model, batch = toy(), data(30, holes=False)
    runs = []
    for seed in range(60):
        if verb == "conditional":
            runs.append(model.conditional_log_likelihood(batch, "b", "a", 500, seed))
        else:
            runs.append(getattr(model, verb)(batch, n_samples=500, seed=seed))
    values = torch.stack([run.value for run in runs])
    stated = torch.stack([run.standard_error for run in runs])
    ratio = values.var(dim=0).mean() / stated.square().mean()
    # the two estimates of a conditional share their random numbers, which helps their
    # difference; the stated error does not count on it
    low, high = (0.1, 1.2) if verb == "conditional" else (0.8, 1.2)
    assert low < float(ratio) < high


def test_effective_sample_size_of_weights_by_hand():
    model, batch = toy(), data(4)
    estimate = model.log_likelihood(batch, n_samples=300)
    assert bool((estimate.effective_sample_size <= 300 + 1e-9).all())
    assert float(estimate.effective_sample_size[2]) == pytest.approx(300)  # nothing seen
    assert float(estimate.standard_error[2]) == pytest.approx(0.0, abs=1e-9)
    usual = float(estimate.effective_sample_size[1])
    model.encoders["b"].head.bias.data[1] = -8.0  # far too sure of itself
    sure = model.log_likelihood(batch, n_samples=300)
    assert usual > 100
    assert float(sure.effective_sample_size[1]) < 60


def test_more_samples_raise_the_bound():
    model, batch = toy(), data(40, holes=False)
    values = [
        torch.stack(
            [model.log_likelihood(batch, n_samples=k, seed=s).value.mean() for s in range(20)]
        ).mean()
        for k in (1, 5, 50)
    ]
    assert float(values[0]) < float(values[1]) < float(values[2])
    torch.testing.assert_close(
        model.log_likelihood(batch, n_samples=1).value, model.elbo(batch, n_samples=1).value
    )
    assert model.iwae(batch, n_samples=5).mean == model.log_likelihood(batch, n_samples=5).mean


@pytest.mark.parametrize("cls", [Toy, MixtureToy])
@pytest.mark.parametrize("latent_rows", [1, 7, 64, 10**6])
def test_chunks_change_nothing(cls, latent_rows):
    model, batch = toy(cls), data(20)
    for verb in ("log_likelihood", "elbo"):
        one = getattr(model, verb)(batch, n_samples=30)
        two = getattr(model, verb)(batch, n_samples=30, latent_rows=latent_rows)
        torch.testing.assert_close(two.value, one.value, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(two.standard_error, one.standard_error, rtol=1e-8, atol=1e-10)


def test_a_data_set_and_its_batch_give_the_same():
    model, batch = toy(), data(20)
    values = {name: value.clone() for name, value in batch.values.items()}
    whole = mv.IncompleteDataset(
        values,
        present={n: batch.column(n) for n in batch.names},
        observed=batch.observed,
        allow_empty_rows=True,
    )
    one, two = (model.log_likelihood(x, n_samples=30).value for x in (batch, whole))
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_training_options_play_no_part():
    model, batch = toy(), data()
    before = model.log_likelihood(batch, n_samples=30).value
    options = {
        "modalities": {
            name: {
                "shape": [size],
                "likelihood": {"type": "normal", "scale": SCALE[name]},
                "weight": 7.0,
            }
            for name, size in FEATURES.items()
        },
        "latent_dim": 1,
        "beta": 5.0,
        "beta_schedule": 100,
    }
    model.config = structure(mv.ModelConfig, options)
    model.train()
    assert torch.equal(model.log_likelihood(batch, n_samples=30).value, before)
    assert model.training


def test_evaluation_leaves_modes_and_gradients_as_they_were():
    model, batch = toy(), data()
    model.train()
    model.encoders["a"].eval()
    found = []
    with contextlib.suppress(ZeroDivisionError), evaluating(model):
        found += [torch.is_grad_enabled(), model.training]
        raise ZeroDivisionError
    assert found == [False, False]
    assert model.training
    assert not model.encoders["a"].training
    assert torch.is_grad_enabled()
    assert not model.log_likelihood(batch, n_samples=3).value.requires_grad


def test_float32_is_close_to_float64():
    batch = data(20)
    one = toy().log_likelihood(batch, n_samples=200).value
    two = toy(dtype=torch.float32).log_likelihood(batch, n_samples=200).value
    torch.testing.assert_close(two.double(), one, rtol=1e-4, atol=1e-4)


class TestReport:
    def test_means_and_errors(self):
        value = torch.tensor([1.0, 2.0, 6.0])
        own = Estimate(
            value=value,
            standard_error=torch.tensor([0.1, 0.2, 0.3]),
            effective_sample_size=torch.tensor([50.0, 80.0, 20.0]),
            n_samples=100,
        )
        assert own.mean == pytest.approx(3.0)
        assert own.mean_standard_error == pytest.approx(float(value.std()) / math.sqrt(3))
        assert str(own).startswith("3.000 +- 1.528 nats per row (3 rows; of 100 samples 50.0 are")
        assert str(own).endswith("Monte-Carlo error at most 0.300)")

    def test_one_sample_and_one_row_have_no_error(self):
        estimate = toy().log_likelihood(data(1, holes=False), n_samples=1)
        assert math.isnan(float(estimate.standard_error))
        assert math.isnan(estimate.mean_standard_error)
        assert math.isnan(float(toy().elbo(data(1, holes=False), n_samples=1).standard_error))


class TestRefusals:
    @pytest.mark.parametrize("n", [0, -3])
    def test_numbers_of_samples(self, n):
        with pytest.raises(DataError, match=f"must be at least 1, got {n} and 1000"):
            toy().log_likelihood(data(), n_samples=n)
        with pytest.raises(DataError, match=f"must be at least 1, got 5 and {n}"):
            toy().log_likelihood(data(), n_samples=5, latent_rows=n)

    @pytest.mark.parametrize(
        ("given", "targets", "message"),
        [
            (("a",), ("a", "b"), "'a' is both given and a target; name some modalities as"),
            (("a",), (), "there are no targets; name some"),
            (("a",), ("c",), "unknown modality 'c'"),
            (("c",), ("a",), "unknown modality 'c'"),
        ],
    )
    def test_conditions(self, given, targets, message):
        with pytest.raises(DataError, match=message):
            toy().conditional_log_likelihood(data(), given, targets)

    def test_arrays(self):
        with pytest.raises(DataError, match=r"expected an IncompleteDataset or a Batch, got dict"):
            toy().log_likelihood(data().values)

    def test_modalities_and_shapes(self):
        own = data()
        more = mv.Batch(values={**own.values, "c": own.values["a"]}, present=torch.ones(12, 3) > 0)
        with pytest.raises(DataError, match="modality 'c' is unknown to this model.* a, b"):
            toy().log_likelihood(more)
        wrong = mv.Batch(values={"a": torch.zeros(2, 5)}, present=torch.ones(2, 1) > 0)
        with pytest.raises(DataError, match=r"'a': measurements have shape \(5,\).* for \(2,\)"):
            toy().log_likelihood(wrong)

    def test_what_a_model_lacks(self):
        class Without(Toy):
            lacks = {
                "joint_likelihood": "it has no decoder of a",
                "conditional_likelihood": "it is not a density",
            }

        for verb in ("log_likelihood", "elbo", "iwae"):
            with pytest.raises(
                CapabilityError, match="Without has no joint_likelihood: it has no"
            ):
                getattr(toy(Without), verb)(data())
        with pytest.raises(CapabilityError, match="no conditional_likelihood: it is not a dens"):
            toy(Without).conditional_log_likelihood(data(), "a", "b")

    def test_a_proposal_without_density(self):
        class Silent(Posterior):
            def draw(self, n, noise):
                return Draw(latents={"shared": torch.zeros(n, 12, 1, dtype=F64)})

            def mean(self):
                return {"shared": torch.zeros(1, 12, 1, dtype=F64)}

        class Without(Toy):
            def posterior(self, batch):
                return Silent()

        with pytest.raises(CapabilityError, match="proposal of Without has no density.*override"):
            toy(Without).log_likelihood(data())


def test_a_modality_that_the_data_do_not_have_is_missing():
    model, batch = toy(), data(holes=False)
    less = mv.Batch(values={"b": batch.values["b"]}, present=batch.present[:, 1:])
    one = model.log_likelihood(less, n_samples=20).value
    two = model.log_likelihood(batch.restrict({"b"}), n_samples=20).value
    assert torch.equal(one, two)
