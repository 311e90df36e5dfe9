"""Checks against a linear-Gaussian truth, whose likelihoods are known exactly: see `oracle`.

An estimate may miss by more than 4 standard errors in 1 row of 1,000, or in a single row of fewer;
of normal errors 1 in 16,000 does. Seeds are fixed.
"""

from __future__ import annotations

__all__ = ["CHECKS"]

import itertools
import math

import torch

from multivae_core.data import IncompleteDataset
from multivae_core.noise import Step, TrainingNoise
from multivae_core.testing.bench import Bench
from multivae_core.testing.oracle import LATENT_ROWS, ROWS, SAMPLES, Oracle, missed, sparse
from multivae_core.testing.report import Broken

_PAIRS = ((("c",), ("a", "b")), (("a", "b"), ("c",)))
_DRAWS = 40


def likelihood(bench: Bench) -> None:
    """Log-likelihoods are exact within their errors, for every subset and pattern of holes."""
    bench.need("joint_likelihood")
    oracle, misses = bench.oracle, []
    for where, data in oracle.patterns().items():
        estimate, exact = oracle.estimate(data, seed=1), oracle.truth.log_likelihood(data)
        misses.append(oracle.compare(estimate, exact, where))
        _few(misses[-1], f"log-likelihoods of {where}", 0.01)
    _few(torch.cat(misses), "log-likelihoods")
    # Experts are those of whole modalities that see means in the holes: worse proposals, for
    # which the effective sample size vouches row by row.
    data = oracle.truth.sample(ROWS, seed=3).hide(0.2, level="element", seed=3)
    estimate = oracle.estimate(data, seed=4)
    trusted = estimate.effective_sample_size >= 0.2 * SAMPLES
    if (part := float(trusted.double().mean())) < 0.5:
        raise Broken(
            f"of {SAMPLES} samples a fifth is effective in only {part:.0%} of the rows that have"
            " holes inside modalities"
        )
    exact = oracle.truth.log_likelihood(data)
    _few(missed(estimate, exact)[trusted], "log-likelihoods with holes inside modalities")


def conditional(bench: Bench) -> None:
    """Conditional log-likelihoods are exact within their errors."""
    bench.need("joint_likelihood", "conditional_likelihood")
    oracle, misses = bench.oracle, []
    data = oracle.patterns()["mixed"]
    for given, targets in _PAIRS:
        if not {*oracle.needed} <= {*given}:
            continue
        estimate = oracle.model.conditional_log_likelihood(
            data, given, targets, n_samples=SAMPLES, seed=2, latent_rows=LATENT_ROWS
        )
        exact = oracle.truth.conditional_log_likelihood(data, given, targets)
        misses.append(oracle.compare(estimate, exact, f"{targets} given {given}", 2))
    _few(torch.cat(misses), "conditional log-likelihoods")


def flagged(bench: Bench) -> None:
    """A proposal that does not fit has few effective samples.

    Experts of half the deviation, or a quarter for fusions that widen them; for a fitted model,
    of whose experts nobody knows the deviations, a truth that moves away.
    """
    bench.need("joint_likelihood")
    oracle = bench.oracle
    model, rule = oracle.model, oracle.rule
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        silent = {where: sparse(data) for where, data in oracle.patterns().items()}
        for factor in (0.5, 0.25) if rule is not None else (math.nan,):
            if rule is not None:
                oracle.with_experts(rule, factor)
            else:
                _move(oracle)
            silent = {where: data for where, data in silent.items() if not _flags(oracle, data)}
        if silent:
            raise Broken(
                f"a proposal that does not fit is not flagged for {', '.join(silent)}: a tenth of"
                " the samples or more are called effective in every row"
            )
    finally:
        model.load_state_dict(before)


def _flags(oracle: Oracle, data: IncompleteDataset) -> bool:
    estimate = oracle.estimate(data, seed=1)
    return float(estimate.effective_sample_size.min()) < 0.1 * SAMPLES


def _move(oracle: Oracle) -> None:
    """Move what the decoders say by 3 deviations of every latent."""
    with torch.no_grad():
        for name, loading in oracle.truth.loadings.items():
            shift = 3.0 * torch.as_tensor(loading.sum(axis=1))
            bias = next(p for n, p in oracle.model.decoders[name].network.named_parameters()
                        if n.endswith("bias"))  # fmt: skip
            bias.add_(shift / oracle.model.transforms[name].scale)


def bounds(bench: Bench) -> None:
    """The derived ELBO lies below the likelihood, and IWAE rises with the samples towards it."""
    bench.need("joint_likelihood")
    oracle = bench.oracle
    model, truth = oracle.model, oracle.truth
    for where, data in oracle.patterns().items():
        exact = torch.as_tensor(truth.log_likelihood(data))
        estimate = model.elbo(data, n_samples=100, seed=1, latent_rows=LATENT_ROWS)
        slack = 4 * estimate.standard_error + 1e-9
        if bool((estimate.value > exact + slack).any()) or estimate.value.mean() >= exact.mean():
            above = float((estimate.value - exact).mean())
            raise Broken(f"the ELBO of {where} is not below the log-likelihood: {above:+.3g} nats")
    data = truth.sample(1000, seed=6).restrict(set(truth.names))
    exact = torch.as_tensor(truth.log_likelihood(data))
    values = [
        model.iwae(data, n_samples=k, seed=7, latent_rows=LATENT_ROWS).value
        for k in (1, 4, 16, 64)
    ]
    for lower, higher in itertools.pairwise([*values, exact]):
        _rises(higher - lower, strictly=False)
    _rises(values[-1] - values[0], strictly=True)


def _rises(rise: torch.Tensor, strictly: bool) -> None:
    error = float(rise.std()) / len(rise) ** 0.5
    if not float(rise.mean()) > (4 * error if strictly else -4 * error - 1e-9):
        raise Broken(f"more samples change IWAE by {float(rise.mean()):+.3g} nats +- {error:.2g}")


def loss_bound(bench: Bench) -> None:
    """The loss in training, at beta 1, is on average not below minus the log-likelihood."""
    bench.need("joint_likelihood", "loss_is_bound")
    oracle = bench.oracle
    model, patterns = oracle.model, oracle.patterns()
    for where in ("a", "a+b+c", "mixed") if not oracle.needed else ("a+b+c", "mixed"):
        data = patterns[where]
        batch = model.prepare(data.batch())
        scale = sum(model.transforms[n].log_scale(batch.seen(n)) for n in model.decoded)
        draws = []
        for number in range(_DRAWS):
            noise = TrainingNoise(1, number, dtype=model.dtype)
            step = Step(number=number, progress=1.0, training=True, noise=noise)
            with torch.no_grad():
                outputs = list(model.loss_pieces(batch, step))
            bound = sum(
                sum(term.value for term in output.terms.values())
                if output.bound is None
                else output.bound
                for output in outputs
            )
            draws.append(torch.where(batch.something, bound + scale, 0.0))
        losses = torch.stack(draws)
        gap = losses.mean(dim=0) + torch.as_tensor(oracle.truth.log_likelihood(data))
        error = losses.std(dim=0) / _DRAWS**0.5
        short = gap < -5 * error - 1e-9
        mean_error = float(losses.mean(dim=1).std()) / _DRAWS**0.5
        if float(gap.mean()) < -4 * mean_error or float(short.double().mean()) > 0.01:
            raise Broken(
                f"the loss of {where} is no bound: {-float(gap.mean()):.3g} nats below minus the"
                f" log-likelihood on average, and too low in {int(short.sum())} of {ROWS} rows"
            )


def _few(rows: torch.Tensor, what: str, share: float = 0.001) -> None:
    if float(rows.sum()) > max(1.0, share * len(rows)):
        raise Broken(
            f"{int(rows.sum())} of {len(rows)} {what} miss by more than 4 standard errors"
        )


CHECKS = {
    check.__name__: check for check in (likelihood, conditional, flagged, bounds, loss_bound)
}
