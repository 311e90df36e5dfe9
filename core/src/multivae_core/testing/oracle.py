"""A model that is made to be a linear-Gaussian truth, without knowledge of the model.

Networks are linear. Decoders and their noise are set to those of the truth, and the prior is
N(0, I), so that the model's exact likelihoods are known. What it believes given data, the
proposal of its estimates, is set by one of the rules for experts of `LinearGaussian.expert`,
with deviations x 1.2: the one whose samples are the most effective. Where none reaches a tenth of
the samples in every row (learned fusions, flows, other maps from raw scales) everything
but decoders and prior is fitted: divergences from and to the true posteriors of all subsets of
modalities, on draws of the truth, are made small. Estimates of a fitted model are compared
in the rows, three quarters at least, whose effective sample size is at least a tenth of the
samples.

The truth has D = 3, and each modality adds a precision of about 1 to each coordinate, beside the
prior's 1. Mixtures set that number: their components are posteriors of fewer modalities than the
posterior of all, so that samples become fewer as modalities become more informative, while the
posterior of all three (deviation 0.5) stays far from that of one (0.7) and from the prior (1).
"""

from __future__ import annotations

__all__ = ["FEATURES", "LATENT_ROWS", "ROWS", "SAMPLES", "Oracle", "missed", "sparse"]

import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from multivae_core._registry import registry
from multivae_core.data import Batch, IncompleteDataset
from multivae_core.noise import RowNoise
from multivae_core.posteriors import LatentName, Latents
from multivae_core.priors import standard_log_prob
from multivae_core.testing._gaussian import FloatArray
from multivae_core.testing.linear_gaussian import LinearGaussian, Rule
from multivae_core.testing.report import Broken

if TYPE_CHECKING:
    from multivae_core.estimation import Estimate
    from multivae_core.model import MultimodalVAE
    from multivae_core.testing.bench import Bench

FEATURES = {"a": 5, "b": 6, "c": 7}
ROWS, SAMPLES = 210, 1000
LATENT_ROWS = 10_000
"""Per call of a decoder: the linear ones are small."""
RULES: tuple[Rule, ...] = ("likelihood", "share", "posterior")

_SIGNAL = {"a": (1.2, 0.8, 1.0), "b": (1.0, 1.2, 0.8), "c": (0.8, 1.0, 1.2)}
_MIN_SCALE = 1e-6
_ENOUGH = 0.1
_SPARSE = 3  # rows of which one is looked at where few will do; no divisor of the 8 patterns
_STEPS = 200


@attrs.frozen(kw_only=True, eq=False)
class Oracle:
    """A truth and a model with the same prior and decoders.

    Args:
        truth: Knows the exact likelihoods.
        model: The model, float64.
        rule: The rule of its experts; None: they were fitted.
        needed: Modalities that every row shows, see `Case`.
    """

    truth: LinearGaussian
    model: MultimodalVAE
    rule: Rule | None = None
    needed: tuple[str, ...] = ()

    @classmethod
    def of(cls, bench: Bench) -> Oracle:
        """Make the model of a bench a truth.

        Raises:
            Broken: Its networks cannot be set from outside; the case must bring its truth.
        """
        plain = _created(bench, _truth({}))
        private = {name[1]: shape[0] for name, shape in plain.latent_shapes.items()
                   if isinstance(name, tuple)}  # fmt: skip
        if extra := [n for n in plain.latent_shapes if n != "shared" and not isinstance(n, tuple)]:
            raise Broken(f"the latent {extra[0]!r} is unknown to the linear truth; give the Case"
                         " a `truth`")  # fmt: skip
        truth = _truth(private)
        model = _created(bench, truth)
        with torch.no_grad():
            for name in FEATURES:
                _set_decoder(model, truth, name)
        _check_decoders(model, truth)
        _check_prior(model, truth)
        oracle = cls(truth=truth, model=model, needed=bench.case.needed)
        shares = {rule: oracle.with_experts(rule, 1.2).share(every=_SPARSE) for rule in RULES}
        best = max(RULES, key=lambda rule: shares[rule])
        chosen = oracle.with_experts(best, 1.2)
        if min(shares[best], chosen.share()) >= 1.2 * _ENOUGH:
            return chosen
        for divergence, rate in _ROUNDS:
            _fit(oracle, divergence, rate)
            if oracle.fits():
                break
        return oracle

    def with_experts(self, rule: Rule, factor: float) -> Oracle:
        """Set the experts by a rule, their deviations times a factor."""
        with torch.no_grad():
            for name in FEATURES:
                _set_encoder(self.model, self.truth, name, rule, factor)
        return attrs.evolve(self, rule=rule)

    @functools.cached_property
    def data(self) -> IncompleteDataset:
        """The complete rows that are compared."""
        return self.truth.sample(ROWS, seed=0)

    def estimate(self, data: IncompleteDataset, seed: int) -> Estimate:
        """Return the model's log-likelihoods."""
        return self.model.log_likelihood(
            data, n_samples=SAMPLES, seed=seed, latent_rows=LATENT_ROWS
        )

    def share(self, every: int = 1) -> float:
        """Smallest effective share of the samples over rows: all patterns, and complete ones."""
        parts = (self.patterns()["mixed"], self.data)
        return min(float(self._shares(sparse(data, every)).min()) for data in parts)

    def fits(self) -> bool:
        """Whether nine of ten rows of every pattern have enough effective samples."""
        shares = (self._shares(sparse(data)) for data in self.patterns().values())
        return all(float((each >= _ENOUGH).double().mean()) >= 0.9 for each in shares)

    def _shares(self, data: IncompleteDataset) -> Tensor:
        found = self.estimate(data, seed=5)
        return (found.effective_sample_size / SAMPLES).nan_to_num(0.0)

    def patterns(self) -> dict[str, IncompleteDataset]:
        """The data as seen through every subset, and through all at once, row by row."""
        seen = {
            "+".join(s): self.data.restrict(s)
            for k in range(1, len(FEATURES) + 1)
            for s in itertools.combinations(FEATURES, k)
            if {*self.needed} <= {*s}
        }
        codes = torch.arange(len(self.data)) % 8  # 0: nothing is seen
        mixed = ((codes[:, None] >> torch.arange(3)) & 1).bool() | self._needed()
        return {**seen, "mixed": self.data.restrict(mixed)}

    def _needed(self) -> Tensor:
        return torch.tensor([name in self.needed for name in FEATURES])

    def compare(self, estimate: Estimate, exact: FloatArray, where: str, parts: int = 1) -> Tensor:
        """Return whether the estimate misses by more than it says, for rows to be trusted.

        Args:
            estimate: What the model says.
            exact: What is true, ``(N,)``.
            where: What the rows are, for the message.
            parts: Estimates that it is made of; each may have an error of 0.1 nats.

        Raises:
            Broken: Too few effective samples, or too large an error.
        """
        shares = estimate.effective_sample_size / estimate.n_samples
        trusted = shares >= _ENOUGH
        part = float(trusted.double().mean())
        if part < (1.0 if self.rule else 0.75):
            raise Broken(
                f"{where}: {1 - part:.1%} of the rows have fewer effective samples than a tenth"
                f" of {estimate.n_samples} (the worst {float(shares.min()):.1%})"
            )
        worst = float(estimate.standard_error[trusted].max())
        if worst > (allowed := 0.1 * parts**0.5):
            raise Broken(f"{where}: a standard error of {worst:.3f} nats, above {allowed:.2f}")
        return missed(estimate, exact)[trusted]


def sparse(data: IncompleteDataset, every: int = _SPARSE) -> IncompleteDataset:
    """Every so many rows."""
    return data if every == 1 else data.subset(torch.arange(0, len(data), every))


def missed(estimate: Estimate, exact: FloatArray) -> Tensor:
    """``(N,)`` bool: further from the exact value than 4 standard errors."""
    error = (estimate.value - torch.as_tensor(exact)).abs()
    return ~(error <= 4 * estimate.standard_error + 1e-9)


def _truth(private: dict[str, int]) -> LinearGaussian:
    own = {name: private.get(name, 0) for name in FEATURES}
    features = {name: count + own[name] for name, count in FEATURES.items()}
    signal = {name: (*shared, *(0.7,) * own[name]) for name, shared in _SIGNAL.items()}
    noise: dict[str, Any] = {"a": 0.5, "b": np.linspace(0.2, 2.0, features["b"]), "c": 30.0}
    return LinearGaussian.orthogonal(
        features, 3, signal=signal, noise=noise, private_dim=private, seed=1
    )


def _created(bench: Bench, truth: LinearGaussian) -> MultimodalVAE:
    linear = {"type": "mlp", "hidden": []}
    likelihood = {"type": "normal", "scale": "learned", "min_scale": _MIN_SCALE}
    own = {"encoder": linear, "decoder": linear, "likelihood": likelihood}
    options: dict[str, Any] = {"latent_dim": 3, "beta": 1.0, **bench.case.oracle}
    config_class = registry.models.load_config(bench.spec.qualified_name)
    if "prior" in {field.name for field in attrs.fields(config_class)}:  # type: ignore[arg-type]
        options.setdefault("prior", "standard_normal")
    data = truth.sample(400, seed=99)
    return bench.model(data, modalities=dict.fromkeys(FEATURES, own), **options)


def _set_decoder(model: MultimodalVAE, truth: LinearGaussian, name: str) -> None:
    transform, decoder = model.transforms[name], cast(Any, model.decoders[name])
    layers = [m for m in decoder.network.modules() if isinstance(m, nn.Linear)]
    columns = [truth.loadings[name]]
    if name in truth.private:
        columns.append(truth.private[name])
    weight = torch.as_tensor(np.concatenate(columns, axis=1)) / transform.scale[:, None]
    if len(layers) != 1 or layers[0].weight.shape != weight.shape:
        raise Broken(
            f"the decoder of {name!r} is not one linear map of its latents when the network is an"
            " mlp without hidden layers; give the Case a `truth`"
        )
    layers[0].weight.copy_(weight)
    offset = torch.as_tensor(truth.offsets[name])
    layers[0].bias.copy_((offset - transform.shift) / transform.scale)
    noise = torch.as_tensor(truth.noise[name]) / transform.scale
    decoder.likelihood.scale.raw.copy_((noise - _MIN_SCALE).log())


def _check_decoders(model: MultimodalVAE, truth: LinearGaussian) -> None:
    """The decoders' means are those of the truth, on the scale of the data."""
    drawn = truth.draw(7, seed=3)
    given: Latents = {name: torch.as_tensor(value) for name, value in drawn.latents.items()}
    for name, likelihood in model.decode(given).items():
        wanted = drawn.latents["shared"] @ truth.loadings[name].T + truth.offsets[name]
        if name in truth.private:
            wanted = wanted + drawn.latents["private", name] @ truth.private[name].T
        off = float((likelihood.mean.squeeze(0) - torch.as_tensor(wanted)).abs().max())
        if off > 1e-8 * float(np.abs(wanted).max()):
            raise Broken(
                f"decoding the latents of the truth misses the mean of {name!r} by {off:g}"
            )


def _check_prior(model: MultimodalVAE, truth: LinearGaussian) -> None:
    """The prior of all latents is N(0, I)."""
    drawn: Latents = {
        n: torch.as_tensor(z)[None] for n, z in truth.draw(7, seed=3).latents.items()
    }
    with torch.no_grad():
        found = model.prior(model.blank(7)).log_prob(drawn)
    wanted = sum(standard_log_prob(z) for z in drawn.values())
    if not torch.allclose(found, torch.as_tensor(wanted), rtol=1e-9):
        raise Broken(
            "the prior of its latents is not N(0, I); give the Case options in `oracle` with which"
            " it is, or a `truth`"
        )


def _set_encoder(
    model: MultimodalVAE, truth: LinearGaussian, name: str, rule: Rule, factor: float
) -> None:
    """Set location and log-variance of the experts, if the encoder is of the usual kind."""
    transform, encoder = model.transforms[name], model.encoders[name]
    head, latents = getattr(encoder, "head", None), getattr(encoder, "latents", None)
    if not isinstance(head, nn.Linear) or not latents or getattr(encoder, "parts", 2) != 2:
        return
    weights, biases = [], []
    for latent in latents:
        own: LatentName = latent
        expert = (
            truth.expert(name, rule)
            if own == "shared"
            else truth.expert(name, "posterior", ("private", name))
        ).widened(factor)
        weight = torch.as_tensor(expert.weight)
        weights += [weight * transform.scale, torch.zeros_like(weight)]
        biases += [weight @ transform.shift + torch.as_tensor(expert.bias),
                   torch.as_tensor(expert.variance).log()]  # fmt: skip
    weight = torch.cat(weights)
    if weight.shape == head.weight.shape:
        head.weight.copy_(weight)
        head.bias.copy_(torch.cat(biases))


def _fit(oracle: Oracle, divergence: Divergence, rate: float) -> None:
    """Fit everything but decoders and prior to the true posteriors of all subsets."""
    model, truth = oracle.model, oracle.truth
    fixed = ("decoders", "shared_prior", "transforms")
    moved = [p for name, p in model.named_parameters() if not name.startswith(fixed)]
    optimiser = torch.optim.Adam(moved, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
    generator = torch.Generator().manual_seed(0)
    for step in range(_STEPS):
        drawn = truth.draw(128, seed=1000 + step)
        present = (torch.rand(128, 3, generator=generator) < 0.6) | oracle._needed()
        values = {name: torch.as_tensor(value) for name, value in drawn.values.items()}
        batch = model.prepare(Batch(values=values, present=present))
        latents: Latents = {n: torch.as_tensor(z)[None] for n, z in drawn.latents.items()}
        optimiser.zero_grad()
        divergence(model, batch, latents, step).backward()
        torch.nn.utils.clip_grad_norm_(moved, 10.0)
        optimiser.step()
        schedule.step()


def _inclusive(model: MultimodalVAE, batch: Batch, latents: Latents, step: int) -> Tensor:
    """The divergence from the truth to the proposal, but for a constant, if there is a density."""
    proposal = model.proposal(batch)
    density = getattr(proposal, "log_prob", None)
    if density is None:
        return _exclusive(model, batch, latents, step)
    found: Tensor = -density(latents).mean()
    return found


def _exclusive(model: MultimodalVAE, batch: Batch, latents: Latents, step: int) -> Tensor:
    """The divergence from the proposal to the truth, but for a constant: the negative bound."""
    draw = model.proposal(batch).draw(2, RowNoise(step, batch.index, model.dtype))
    if draw.log_q is None:
        raise Broken("the model claims a joint likelihood, and its proposal has no density")
    log_p = model.prior(batch).log_prob(draw.latents) if draw.log_p is None else draw.log_p
    scores = torch.stack([model.score(n, draw.latents, batch) for n in model.decoded]).sum(dim=0)
    return (draw.log_q - log_p - scores).mean()


Divergence = Callable[["MultimodalVAE", Batch, Latents, int], Tensor]
_ROUNDS: tuple[tuple[Divergence, float], ...] = (
    (_inclusive, 0.03),
    (_exclusive, 0.01),
    (_inclusive, 0.01),
)
"""Until it fits: the first covers the posteriors, the second has the less noise."""
