"""The kit against planted mistakes: each is caught, and each check alone catches one of them."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from unittest import mock

import attrs
import pytest
import torch
from torch import nn

import multivae_core as mv
from multivae_core.config import config
from multivae_core.distributions import Normal
from multivae_core.fusion import ProductConfig, ProductFusion
from multivae_core.losses import LossOutput, Term
from multivae_core.plugins import USUAL_CAPABILITIES
from multivae_core.posteriors import FactorisedPosterior
from multivae_core.priors import kl_to_prior
from multivae_core.testing import Case, checks_truth, kit, oracle
from multivae_core.testing.bench import Bench

pytestmark = pytest.mark.slow


class Sound(mv.MultimodalVAE):
    """A product of experts and its ELBO, without a mistake."""

    def __init__(self, config, **networks):
        super().__init__(config, **networks)
        self.fusion = ProductFusion(ProductConfig(), len(self.modalities), config.latent_dim)

    def experts(self, batch):
        encoded = self.run_encoders(batch)["shared"]
        return Normal(encoded[:, :, 0], encoded[:, :, 1])

    def posterior(self, batch):
        joint = self.fusion(self.experts(batch), batch.present, prior_expert="always")
        return FactorisedPosterior({"shared": joint})

    def value(self, batch, step):
        q = self.posterior(batch).parts["shared"]
        z, _ = q.draw(1, step.noise, "shared")
        log_px = self.reconstruction({"shared": z}, batch, step)[0]
        return -log_px, self.beta(step) * kl_to_prior(q, self.shared_prior, z[0])

    def loss(self, batch, step):
        reconstruction, kl = self.value(batch, step)
        return LossOutput(terms={"reconstruction": Term(reconstruction), "kl": Term(kl)})


def more(output, extra):
    """The output with something added to its first term."""
    name, term = next(iter(output.terms.items()))
    return attrs.evolve(output, terms={**output.terms, name: Term(term.value + extra)})


MISTAKES = {}


def mistake(*caught, sole=True, **options):
    """Register a class as a mistake that these checks catch, and no others if ``sole``."""

    def note(cls):
        MISTAKES[cls.__name__] = (cls, set(caught), sole, options)
        return cls

    return note


@config
class Halved(mv.ModelConfig):
    tag: float = attrs.field(default=1.0, converter=lambda value: value / 2)


@mistake("config", config=Halved)
class OptionChangesInJson(Sound):
    pass


@mistake("capabilities")
class ClaimsWhatItLacks(Sound):
    lacks = {"generate": "it was forgotten in the spec"}


@mistake("files")
class PicklesItsState(Sound):
    def save(self, folder, summary=None):
        super().save(folder, summary)
        Path(folder, "state.pkl").write_bytes(pickle.dumps({"epoch": 1}))


@mistake("save_load")
class BufferIsNotSaved(Sound):
    def __init__(self, config, **networks):
        super().__init__(config, **networks)
        self.register_buffer("extra", torch.rand(()), persistent=False)

    def loss(self, batch, step):
        return more(super().loss(batch, step), self.extra)


@mistake("seed")
class GlobalGenerator(Sound):
    def loss(self, batch, step):
        return more(super().loss(batch, step), torch.rand((), dtype=self.dtype))


@mistake("untouched")
class WritesIntoTheBatch(Sound):
    def loss(self, batch, step):
        if "a" in batch.observed:
            batch.observed["a"][~batch.column("a")] = True
        return super().loss(batch, step)


@mistake("latents")
class RepresentsNoLatent(Sound):
    representation = ("share",)


@mistake("outputs")
class GeneratesTooFew(Sound):
    def generate(self, n, seed=0, output="mean"):
        return {name: x[:-1] for name, x in super().generate(n, seed, output).items()}


@mistake("holes")
class MultipliesTheMask(Sound):
    def prepare(self, batch):
        prepared = super().prepare(batch)
        if "a" not in batch.values:
            return prepared
        masked = batch.seen("a") * self.transforms["a"](batch.values["a"])
        return attrs.evolve(prepared, values={**prepared.values, "a": masked})


@mistake("whole")
class MaskMattersWhenAllIsThere(Sound):
    def loss(self, batch, step):
        extra = 0.01 if batch.observed and bool(batch.present.all()) else 0.0
        return more(super().loss(batch, step), extra)


@mistake("rows")
class PlaceInTheBatch(Sound):
    def loss(self, batch, step):
        return more(super().loss(batch, step), 0.01 * torch.arange(batch.size).to(self.dtype))


@mistake("others")
class SkipsRareModalities(Sound):
    def loss(self, batch, step):
        often = [m for m in batch.names if batch.column(m).to(self.dtype).mean() >= 0.25]
        return super().loss(batch.restrict(often), step)


@mistake("order")
class OrderOfTheDict(Sound):
    def loss(self, batch, step):
        place = list(self.config.modalities).index("a")
        return more(super().loss(batch, step), 0.01 * place)


@mistake("chunks")
class MixesSamples(Sound):
    def decode_one(self, name, latents, batch, rows=None):
        z = latents["shared"]
        mixed = z + 1e-3 * (z - z.mean(dim=0))
        return super().decode_one(name, {**latents, "shared": mixed}, batch, rows)


@mistake("subsets")
class NothingIsSharperThanThePrior(Sound):
    def posterior(self, batch):
        joint = super().posterior(batch).parts["shared"]
        sharper = joint.log_variance - 1.0
        kept = torch.where(batch.something[:, None], joint.log_variance, sharper)
        return FactorisedPosterior({"shared": Normal(joint.mean, kept)})


@mistake("units")
class UnitInTheLoss(Sound):
    def loss(self, batch, step):
        return more(super().loss(batch, step), 1e-4 * self.transforms["a"].scale.log().mean())


@mistake("gradients")
class DeadEncoder(Sound):
    def experts(self, batch):
        q = super().experts(batch)
        mean, spread = q.mean.clone(), q.log_variance.clone()
        mean[2], spread[2] = q.mean[2].detach(), q.log_variance[2].detach()
        return Normal(mean, spread)


@mistake("terms")
class TrainsOnSomethingElse(Sound):
    def loss_pieces(self, batch, step):
        own = self.loss(batch, step)
        yield LossOutput(terms={name: Term(2 * term.value) for name, term in own.terms.items()})


@mistake("beta")
class BetaOutsideTraining(Sound):
    def beta(self, step):
        return self.config.beta


@mistake("training")
class Climbs(Sound):
    def loss(self, batch, step):
        terms = super().loss(batch, step).terms
        return LossOutput(
            terms={n: Term(2 * t.value.detach() - t.value) for n, t in terms.items()}
        )


@mistake("precision")
class SinglePrecisionInside(Sound):
    def experts(self, batch):
        q = super().experts(batch)
        return Normal(q.mean, q.log_variance.float().to(self.dtype))


class Branching(nn.Module):
    def __init__(self, trunk):
        super().__init__()
        self.trunk, self.out_features = trunk, trunk.out_features

    def forward(self, values, observed=None):
        if values.numel() and float(values.abs().max()) > 1e9:
            values = values / 2
        return self.trunk(values, observed)


@mistake("compile")
class BranchesOnValues(Sound):
    def __init__(self, config, **networks):
        super().__init__(config, **networks)
        for name in self.modalities:
            self.encoders[name].trunk = Branching(self.encoders[name].trunk)


class Shifted(FactorisedPosterior):
    by = 0.3

    def draw(self, n, noise):
        draw = super().draw(n, noise)
        return attrs.evolve(draw, log_q=draw.log_q + self.by)


@mistake("likelihood")
class DensityOffWithHolesInside(Sound):
    def proposal(self, batch):
        own = self.posterior(batch)
        inside = any(not bool(mask.all()) for mask in batch.observed.values())
        return Shifted(own.parts) if inside else own


@mistake("conditional")
class ForgetsTheMarginal(Sound):
    def conditional_log_likelihood(self, data, given, targets, n_samples=1000, seed=0, **kwargs):
        return self.log_likelihood(data.restrict({*given, *targets}), n_samples, seed, **kwargs)


@mistake("flagged")
class AllSamplesAreEffective(Sound):
    def log_likelihood(self, data, n_samples=1000, seed=0, latent_rows=1000):
        own = super().log_likelihood(data, n_samples, seed, latent_rows)
        size = torch.full_like(own.value, n_samples)
        return attrs.evolve(own, effective_sample_size=size)


@mistake("bounds")
class ElboWithoutDivergence(Sound):
    def elbo(self, data, n_samples=10, seed=0, latent_rows=1000):
        own = super().elbo(data, n_samples, seed, latent_rows)
        return attrs.evolve(own, value=torch.where(own.value == 0, 0.0, own.value + 5.0))


@mistake("loss_bound")
class DropsTheDivergence(Sound):
    def loss(self, batch, step):
        reconstruction, kl = self.value(batch, step)
        return LossOutput(terms={"reconstruction": Term(reconstruction), "kl": Term(0.0 * kl)})


@mistake("likelihood", "conditional", sole=False)
class DensityIsForgotten(Sound):
    def proposal(self, batch):
        shifted = Shifted(self.posterior(batch).parts)
        shifted.by = 2.0
        return shifted


@mistake("likelihood", sole=False)
class PriorExpertNotInTheDensity(Sound):
    def proposal(self, batch):
        class Other(FactorisedPosterior):
            def draw(own, n, noise):  # noqa: N805
                z, _ = own.parts["shared"].draw(n, noise, "shared")
                return mv_draw(z, without.log_prob(z))

        without = self.fusion(self.experts(batch), batch.present, prior_expert="never")
        return Other(self.posterior(batch).parts)


def mv_draw(z, log_q):
    from multivae_core.posteriors import Draw

    return Draw(latents={"shared": z}, log_q=log_q)


@mistake("rows", "others", sole=False)
class SumsOverTheBatch(Sound):
    def loss(self, batch, step):
        terms = super().loss(batch, step).terms
        return LossOutput(
            terms={n: Term(t.value.mean().expand(batch.size)) for n, t in terms.items()}
        )


@mistake("rows", "others", sole=False)
class BatchStatistics(Sound):
    def experts(self, batch):
        q = super().experts(batch)
        return Normal(q.mean - 0.1 * q.mean.mean(dim=1, keepdim=True), q.log_variance)


@mistake("rows", sole=False)
class OneDrawForAllRows(Sound):
    def value(self, batch, step):
        q = self.posterior(batch).parts["shared"]
        z = (q.mean + q.variance.sqrt() * step.noise.batch_uniform("z", q.mean.shape))[None]
        log_px = self.reconstruction({"shared": z}, batch, step)[0]
        return -log_px, self.beta(step) * kl_to_prior(q, self.shared_prior, z[0])


@mistake("holes", sole=False)
class EncodesWhatLiesUnderHoles(Sound):
    def prepare(self, batch):
        prepared = super().prepare(batch)
        if "a" not in batch.values:
            return prepared
        raw = self.transforms["a"](batch.values["a"])
        return attrs.evolve(prepared, values={**prepared.values, "a": raw})


@pytest.fixture(scope="module")
def found():
    """Mistake -> the checks that caught it, and why; on fewer rows and samples than the kit's."""
    caught = {"Sound": run(Sound)}
    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (oracle, "ROWS", 80), (checks_truth, "ROWS", 80),
            (oracle, "SAMPLES", 400), (checks_truth, "SAMPLES", 400),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(module, name, value))
        for name, (cls, _, _, options) in MISTAKES.items():
            caught[name] = run(cls, **options)
    return caught


def run(cls, config=None):
    name = cls.__name__.lower()
    options = config or attrs.make_class(
        f"{cls.__name__}Config", {}, bases=(mv.ModelConfig,), frozen=True, kw_only=True
    )
    claims = USUAL_CAPABILITIES | {"loss_is_bound"}
    mv.register_model(name=name, config=options, capabilities=claims)(cls)
    try:
        bench = Bench(Case(model=name))
        outcomes = [kit.run(check, bench) for check in kit.names()]
        return {each.check: each.reason for each in outcomes if each.verdict == "FAILED"}
    finally:
        mv.registry.unregister(f"local/{name}")


def test_the_model_without_a_mistake_passes(found):
    assert found["Sound"] == {}


@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_is_caught(found, name):
    _, expected, sole, _ = MISTAKES[name]
    if sole:
        assert set(found[name]) == expected, found[name]
    else:
        assert expected <= set(found[name]), found[name]


def test_every_check_alone_catches_a_mistake(found):
    alone = {next(iter(caught)) for caught in found.values() if len(caught) == 1}
    assert alone >= set(kit.names()) - {"device"}  # which needs another device
