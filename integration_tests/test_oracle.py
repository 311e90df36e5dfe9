"""Likelihoods of models that are made to be a linear-Gaussian truth, against its exact numbers.

Networks are linear and their weights are set, not trained: decoders are the true loadings,
encoders the true experts of the model's own fusion rule with wider or narrower deviations.
Models see standardised data and everything is compared on the scale of the data.

The truth: D = 3, and each modality adds a precision of about 1 to each coordinate, beside the
prior's 1. Mixtures set that number. Their components are posteriors of fewer modalities than the
posterior of all, so that the effective sample size falls as modalities become more informative;
where they disagree about a row it falls most. With 1 the worst of 210 rows keeps 14 % of the
samples for MMVAE and 22 % for MoPoE (10 to 14 and 20 to 22 over seeds of the rows), while the
posterior of all three modalities (deviation 0.5) is far from any of one modality (0.7) and from
the prior (1).

Statistics: an estimate may miss by more than 4 standard errors in at most 1 row of 1,000; of
normal errors 1 in 16,000 does. Seeds are fixed.
"""

from __future__ import annotations

import itertools
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import nn

import multivae_core as mv
from multivae_core.noise import Step, TrainingNoise
from multivae_datasets.linear_gaussian import LinearGaussian

FEATURES = {"a": 5, "b": 6, "c": 7}
SUBSETS = [s for k in (1, 2, 3) for s in itertools.combinations(FEATURES, k)]
PAIRS = [(g, t) for g in SUBSETS for t in SUBSETS if not {*g} & {*t}]
ROWS, SAMPLES = 210, 1000
LINEAR = {"type": "mlp", "hidden": []}


@attrs.frozen
class Case:
    """A model, its options, and the rule by which its experts are made.

    ``least``: share of the samples that must be effective in the worst row. Every private latent
    costs some: at a deviation too wide by 1.2, 1 in 20.
    """

    model: str
    rule: str
    options: dict[str, Any] = attrs.field(factory=dict)
    private: int = 0
    least: float = 0.1


NORMAL = {"family": "normal"}  # its prior is N(0, I) until it is trained
SOFTPLUS = {"family": "normal_with_softplus", "prior": "standard_normal"}
ONE = {"private_dims": 1}
CASES = {
    "jmvae": Case("jmvae", "posterior", {"joint_encoder": LINEAR}),
    "jmvae without correction": Case(
        "jmvae", "share", {"joint_encoder": LINEAR, "subset_posterior": "poe"}
    ),
    "telbo": Case("telbo", "posterior", {"joint_encoder": LINEAR, "proposal_scale": 1.0}),
    "jnf": Case("jnf", "posterior", {"joint_encoder": LINEAR, "flow_context": "base"}),
    "mvae": Case("mvae", "likelihood"),
    "mvae without prior expert": Case("mvae", "share", {"prior_expert": "never"}),
    "mmvae": Case("mmvae", "posterior", NORMAL),
    "mmvae softplus": Case("mmvae", "posterior", SOFTPLUS),
    "mmvae_plus": Case("mmvae_plus", "posterior", NORMAL | ONE, 1, least=0.05),
    # with its own default experts that are right for one modality are not for several
    "dmvae": Case("dmvae", "likelihood", ONE | {"prior_expert": "always"}, 1),
    "mopoe": Case("mopoe", "likelihood"),
    "mopoe prior always": Case("mopoe", "likelihood", {"prior_expert": "always"}),
    "mopoe prior never": Case("mopoe", "share", {"prior_expert": "never"}),
    "mopoe product proposal": Case("mopoe", "likelihood", {"proposal": "product"}),
    "mopoe private": Case("mopoe", "likelihood", {"private_dims": dict.fromkeys("abc", 2)}, 2),
    "mopoe learned weights": Case("mopoe", "likelihood", {"subset_weights": "learned"}),
    "codevae": Case("codevae", "posterior"),
    "mwbvae": Case("mwbvae", "posterior"),
    "helvae": Case("helvae", "posterior"),
    "helvae mixture": Case("helvae", "share", {"fusion": "hellinger_mixture"}),
    "masked_pi": Case("masked_pi", "likelihood", {"fusion": "product", "prior_expert": "always"}),
    "mvtcae": Case("mvtcae", "share"),
    "mmjsd": Case("mmjsd", "posterior"),
    "gpoe": Case("gpoe", "posterior"),
    "gpoe private": Case(
        "gpoe",
        "likelihood",
        {
            "fusion": "product",
            "prior_expert": "always",
            "private_dims": dict.fromkeys("abc", 2),
        },
        2,
    ),
    "gpoe mixture": Case("gpoe", "posterior", {"fusion": "mixture"}),
}
EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
MAIN_CASES = pytest.mark.parametrize("name", ["mvae", "mmvae", "mopoe"])


def truth_of(case):
    signal = {"a": (1.2, 0.8, 1.0), "b": (1.0, 1.2, 0.8), "c": (0.8, 1.0, 1.2)}
    own = (0.7,) * case.private
    return LinearGaussian.orthogonal(
        FEATURES,
        3,
        signal={name: (*shared, *own) for name, shared in signal.items()},
        noise={"a": 0.5, "b": np.linspace(0.2, 2.0, 6), "c": 30.0},
        private_dim=case.private,
        seed=1,
    )


def model_of(case, factor):
    """The truth and a model that is the truth, whose experts have deviations times a factor."""
    truth = truth_of(case)
    linear = {"type": "mlp", "hidden": []}
    likelihood = {"type": "normal", "scale": "learned", "min_scale": 1e-6}
    own = {"encoder": linear, "decoder": linear, "likelihood": likelihood}
    model = mv.create_model(
        case.model,
        truth.sample(400, seed=99),
        latent_dim=3,
        modalities=dict.fromkeys(FEATURES, own),
        dtype="float64",
        **case.options,
    )
    with torch.no_grad():
        for name in FEATURES:
            set_encoder(model, truth, name, case, factor)
            set_decoder(model, truth, name)
        if hasattr(model, "joint_encoder"):
            set_joint_encoder(model, truth, factor)
        for flow in getattr(model, "flows", nn.Module()).parameters():
            flow.zero_()  # the identity: surrogates are the Gaussians of the bases
    return truth, model


def set_joint_encoder(model, truth, factor):
    """The exact posterior of complete rows: the precisions of all, and of the prior, add up."""
    experts = {name: truth.expert(name, "likelihood") for name in FEATURES}
    total = 1.0 + sum(1.0 / expert.variance for expert in experts.values())
    head, place = model.joint_encoder.head, 0
    head.weight.zero_()
    head.bias.zero_()
    head.bias[3:] = torch.as_tensor(factor**2 / total).log()
    for name, size in FEATURES.items():
        pull, transform = 1.0 / (experts[name].variance * total), model.transforms[name]
        weight = torch.as_tensor(pull[:, None] * experts[name].weight)
        head.weight[:3, place : place + size] = weight * transform.scale
        head.bias[:3] += weight @ transform.shift + torch.as_tensor(pull * experts[name].bias)
        place += size


def set_encoder(model, truth, name, case, factor):
    transform = model.transforms[name]
    encoder = model.encoders[name]
    assert not list(encoder.trunk.parameters())
    latents = {"shared": truth.expert(name, case.rule)}
    if case.private:
        latents["private", name] = truth.expert(name, "posterior", ("private", name))
    weights, biases = [], []
    for latent in encoder.latents:
        expert = latents[latent].widened(factor)
        weight = torch.as_tensor(expert.weight)
        raw = torch.as_tensor(expert.variance).log()
        if case.options.get("family") == "normal_with_softplus":
            raw = torch.expm1(torch.as_tensor(expert.variance).sqrt() - 1e-6).log()
        weights += [weight * transform.scale, torch.zeros_like(weight)]
        biases += [weight @ transform.shift + torch.as_tensor(expert.bias), raw]
    encoder.head.weight.copy_(torch.cat(weights))
    encoder.head.bias.copy_(torch.cat(biases))


def set_decoder(model, truth, name):
    transform, decoder = model.transforms[name], model.decoders[name]
    (layer,) = [m for m in decoder.network.modules() if isinstance(m, nn.Linear)]
    columns = [truth.loadings[name], truth.private.get(name, np.zeros((FEATURES[name], 0)))]
    layer.weight.copy_(torch.as_tensor(np.concatenate(columns, axis=1)) / transform.scale[:, None])
    layer.bias.copy_((torch.as_tensor(truth.offsets[name]) - transform.shift) / transform.scale)
    noise = torch.as_tensor(truth.noise[name]) / transform.scale
    decoder.likelihood.scale.raw.copy_((noise - 1e-6).log())


def patterns_of(data):
    """The data as seen through every subset, and through all of them at once, row by row."""
    seen = {"+".join(s): data.restrict(s) for s in SUBSETS}
    codes = torch.arange(len(data)) % 8  # 0: nothing is seen
    mixed = (codes[:, None] >> torch.arange(3)) & 1
    return {**seen, "mixed": data.restrict(mixed.bool())}


def missed(estimate, exact):
    """Whether an estimate misses by more than it says, for every row."""
    error = (estimate.value - torch.as_tensor(exact)).abs()
    return error > 4 * estimate.standard_error + 1e-9


def assert_reliable(estimate, where, least=0.1):
    share = estimate.effective_sample_size.min() / estimate.n_samples
    assert share >= least, f"{where}: effective sample size {share:.3f} of the samples"
    worst = estimate.standard_error.max()
    assert worst <= 0.1 * (0.1 / least) ** 0.5, f"{where}: standard error {worst:.3f} nats"


@EVERY_CASE
def test_log_likelihood_is_exact_within_its_error(case):
    truth, model = model_of(case, 1.2)
    misses = []
    for where, data in patterns_of(truth.sample(ROWS, seed=0)).items():
        estimate = model.log_likelihood(data, n_samples=SAMPLES, seed=1)
        assert_reliable(estimate, where, case.least)
        misses.append(missed(estimate, truth.log_likelihood(data)))
    rows = torch.cat(misses)
    assert rows.sum() <= len(rows) / 1000


@MAIN_CASES
def test_conditional_log_likelihood_is_exact_within_its_error(name):
    truth, model = model_of(CASES[name], 1.2)
    complete = truth.sample(ROWS, seed=0)
    data = {"complete": complete, "mixed": patterns_of(complete)["mixed"]}
    misses = []
    for rows, (given, targets) in itertools.product(data, PAIRS):
        estimate = model.conditional_log_likelihood(
            data[rows], given, targets, n_samples=SAMPLES, seed=2
        )
        exact = truth.conditional_log_likelihood(data[rows], given, targets)
        assert_reliable(estimate, f"{rows}: {targets} given {given}")
        misses.append(missed(estimate, exact))
    rows = torch.cat(misses)
    assert rows.sum() <= len(rows) / 1000


@EVERY_CASE
def test_holes_inside_modalities_keep_likelihoods_exact(case):
    # Experts are those of whole modalities that see means in the holes: worse proposals, for
    # which the effective sample size vouches row by row.
    truth, model = model_of(case, 1.2)
    data = truth.sample(ROWS, seed=3).hide(0.2, level="element", seed=3)
    estimate = model.log_likelihood(data, n_samples=SAMPLES, seed=4)
    trusted = estimate.effective_sample_size >= 0.1 * SAMPLES
    assert trusted.double().mean() > 0.9
    assert (missed(estimate, truth.log_likelihood(data)) & trusted).sum() == 0


@pytest.mark.parametrize("name", ["mvae", "mmvae", "mopoe", "mopoe prior always"])
def test_true_experts_give_the_exact_value_with_few_samples(name):
    # Wherever the proposal is the posterior itself every weight is the likelihood.
    truth, model = model_of(CASES[name], 1.0)
    complete = truth.sample(40, seed=5)
    for subset in SUBSETS:
        if name != "mvae" and len(subset) > 1:
            continue
        data = complete.restrict(subset)
        estimate = model.log_likelihood(data, n_samples=3)
        np.testing.assert_allclose(estimate.value, truth.log_likelihood(data), rtol=1e-9)
        # Rounding of log weights of about 50 nats, under a root.
        assert estimate.standard_error.max() < 1e-6
        np.testing.assert_allclose(model.embed(data), truth.posterior(data).mean, atol=1e-9)


@EVERY_CASE
def test_narrow_proposals_are_flagged(case):
    # Half the deviation: weights have no variance. In multi-modality patterns the components of
    # a mixture cover for each other, so only the worst rows show it there.
    truth, model = model_of(case, 0.5)
    for where, data in patterns_of(truth.sample(ROWS, seed=0)).items():
        estimate = model.log_likelihood(data, n_samples=SAMPLES, seed=1)
        shares = estimate.effective_sample_size / SAMPLES
        assert shares.min() < 0.1, where
        if case.model == "mvae" and where != "mixed" or len(where) == 1:
            assert shares.median() < 0.1, where


def normal_kl(mean, variance, other_mean, other_variance):
    ratio = variance / other_variance
    shift = (mean - other_mean) ** 2 / other_variance
    return (ratio - 1 - np.log(ratio) + shift).sum(axis=1) / 2


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_elbo_of_a_product_is_the_likelihood_less_the_divergence(subset):
    truth, model = model_of(CASES["mvae"], 1.2)
    data = truth.sample(ROWS, seed=0).restrict(subset)
    exact, posterior = truth.log_likelihood(data), truth.posterior(data)
    q = model.posterior(model.prepare(data.batch())).parts["shared"]
    gap = normal_kl(
        q.mean.detach().numpy(), q.variance.detach().numpy(), posterior.mean, posterior.variance
    )
    estimate = model.elbo(data, n_samples=SAMPLES, seed=1)
    assert missed(estimate, exact - gap).sum() == 0


@EVERY_CASE
def test_elbo_is_below_the_likelihood(case):
    truth, model = model_of(case, 1.2)
    for where, data in patterns_of(truth.sample(ROWS, seed=0)).items():
        exact = torch.as_tensor(truth.log_likelihood(data))
        estimate = model.elbo(data, n_samples=SAMPLES, seed=1)
        slack = 4 * estimate.standard_error + 1e-9
        assert (estimate.value <= exact + slack).all(), where
        assert estimate.value.mean() < exact.mean(), where


@EVERY_CASE
def test_iwae_rises_with_the_samples_towards_the_likelihood(case):
    # Wide experts, so that the bounds are far apart; 2,000 rows. Each rise is more than 4 standard
    # errors of its mean over rows.
    truth, model = model_of(case, 2.0)
    for subset in (("a",), tuple(FEATURES)):
        data = truth.sample(2000, seed=6).restrict(subset)
        exact = torch.as_tensor(truth.log_likelihood(data))
        bounds = [model.iwae(data, n_samples=k, seed=7).value for k in (1, 4, 16, 64)]
        for lower, higher in itertools.pairwise([*bounds, exact]):
            rise = higher - lower
            error = rise.std() / len(rise) ** 0.5
            assert rise.mean() > (4 * error if higher is not exact else -4 * error)


@MAIN_CASES
def test_predictions_are_conditional_means(name):
    # E[x_c | x_a] under the proposal: exact for true experts, within 5 standard errors of 4,000
    # samples of the latent.
    truth, model = model_of(CASES[name], 1.0)
    data = truth.sample(50, seed=8).restrict({"a"})
    posterior = truth.posterior(data)
    loading = truth.loadings["c"]
    mean = posterior.mean @ loading.T + truth.offsets["c"]
    spread = np.sqrt(posterior.variance @ (loading**2).T)
    predicted = model.predict(data, targets=("c",), n_samples=4000, seed=9)["c"].numpy()
    assert (np.abs(predicted - mean) < 5 * spread / np.sqrt(4000)).all()


def test_the_masked_bound_of_true_experts_is_the_likelihood():
    # Both of its parts are exact for every mask: log p(x_S) and log p(the rest | x_S). Means over
    # 200 draws of latents and masks, within 4.5 standard errors.
    truth, model = model_of(CASES["masked_pi"], 1.0)
    for where, data in patterns_of(truth.sample(40, seed=10)).items():
        many = data.subset(torch.arange(len(data)).repeat(200))
        batch = model.prepare(many.batch())
        noise = TrainingNoise(0, 0, dtype=torch.float64)
        with torch.no_grad():
            out = model.loss(batch, Step(training=True, noise=noise))
        found = -sum(term.value for term in out.terms.values()).view(200, -1)
        # the loss is on the model's scale
        exact = torch.as_tensor(truth.log_likelihood(data))
        for name in FEATURES:
            moved = model.transforms[name].scale.log().sum()
            exact = exact + torch.where(batch.column(name)[: len(data)], moved, 0.0)
        slack = 4.5 * found.std(dim=0) / 200**0.5 + 1e-9
        assert ((found.mean(dim=0) - exact).abs() <= slack).all(), where


@pytest.mark.parametrize("pooling", ["sum", "attention"])
def test_a_learned_pool_finds_a_proposal_that_keeps_likelihoods_exact(pooling):
    # Its experts cannot be set: encoders and pool are fitted to the true decoders.
    fusion = {"type": "pooling", "pooling": pooling, "width": 32}
    truth, model = model_of(Case("masked_pi", "posterior", {"fusion": fusion}), 1.0)
    data = truth.sample(1000, seed=11).batch()
    batches = [model.prepare(data.take(torch.arange(n, 1000, 10))) for n in range(10)]
    learned = [*model.encoders.parameters(), *model.fusion.parameters()]
    optimiser = torch.optim.Adam(learned, lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, total_iters=200)
    for number in range(200):
        step = Step(training=True, noise=TrainingNoise(0, number, dtype=torch.float64))
        optimiser.zero_grad()
        out = model.loss(batches[number % 10], step)
        sum(term.value for term in out.terms.values()).mean().backward()
        optimiser.step()
        schedule.step()
    misses = []
    for where, part in patterns_of(truth.sample(ROWS, seed=0)).items():
        estimate = model.log_likelihood(part, n_samples=SAMPLES, seed=1)
        assert_reliable(estimate, where)
        misses.append(missed(estimate, truth.log_likelihood(part)))
    rows = torch.cat(misses)
    assert rows.sum() <= len(rows) / 1000
