"""Likelihoods by importance sampling, with a standard error for every row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from multivae_core.data import Batch, IncompleteDataset
from multivae_core.errors import CapabilityError, DataError
from multivae_core.losses import log_mean_exp
from multivae_core.noise import RowNoise
from multivae_core.posteriors import Latents

if TYPE_CHECKING:
    from multivae_core.model import MultimodalVAE

__all__ = [
    "LATENT_ROWS",
    "Estimate",
    "batches_of",
    "conditional_log_likelihood",
    "elbo",
    "evaluating",
    "log_likelihood",
    "log_scale",
    "raw_batches",
    "summarised",
]

LATENT_ROWS = 1000
"""Latent rows per decoder call: about what a cache holds; results do not depend on it."""

_HELD_ROWS = 32 * LATENT_ROWS


@attrs.frozen(kw_only=True)
class Estimate:
    """An estimate for every row of the data.

    Args:
        value: ``(N,)`` nats.
        standard_error: ``(N,)`` Monte-Carlo error of each value, nats.
        effective_sample_size: ``(N,)``; far below the number of samples, the proposal does not
            fit and neither the value nor its error can be trusted.
        n_samples: Samples per row.
    """

    value: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor
    n_samples: int

    @property
    def mean(self) -> float:
        """Mean over the rows, nats per row."""
        return float(self.value.double().mean())

    @property
    def mean_standard_error(self) -> float:
        """Error of the mean that comes from having these rows and not others, nats per row."""
        rows = len(self.value)
        return float(self.value.double().std() / math.sqrt(rows)) if rows > 1 else math.nan

    def __str__(self) -> str:
        return (
            f"{self.mean:.3f} +- {self.mean_standard_error:.3f} nats per row"
            f" ({len(self.value)} rows; of {self.n_samples} samples"
            f" {float(self.effective_sample_size.median()):.1f} are effective in the median row;"
            f" Monte-Carlo error at most {float(self.standard_error.max()):.3f})"
        )


@contextmanager
def evaluating(model: MultimodalVAE) -> Iterator[None]:
    """Evaluation mode without gradients; the mode is restored afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def batches_of(
    model: MultimodalVAE, data: IncompleteDataset | Batch, rows: int
) -> Iterator[Batch]:
    """Prepared batches of at most so many rows, in order; see `raw_batches`."""
    for batch in raw_batches(data, rows):
        yield model.prepare(batch)


def raw_batches(data: IncompleteDataset | Batch, rows: int) -> Iterator[Batch]:
    """Batches of at most so many rows as they are, in order.

    Raises:
        DataError: What was given is neither a data set nor a batch.
    """
    if isinstance(data, Batch):
        for start in range(0, data.size, rows):
            stop = min(start + rows, data.size)
            yield data.take(torch.arange(start, stop, device=data.index.device))
    elif isinstance(data, IncompleteDataset):
        yield from data.batches(rows)
    else:
        raise DataError(
            f"expected an IncompleteDataset or a Batch, got {type(data).__name__}; wrap arrays:"
            " IncompleteDataset({'name': array, ...})"
        )


def log_likelihood(
    model: MultimodalVAE,
    data: IncompleteDataset | Batch,
    n_samples: int,
    seed: int,
    latent_rows: int,
) -> Estimate:
    """Estimate log p of what is observed, see `MultimodalVAE.log_likelihood`."""
    model.require("joint_likelihood")
    return summarised(_weights(model, data, n_samples, seed, latent_rows), n_samples)


def elbo(
    model: MultimodalVAE,
    data: IncompleteDataset | Batch,
    n_samples: int,
    seed: int,
    latent_rows: int,
) -> Estimate:
    """Estimate the evidence lower bound, see `MultimodalVAE.elbo`."""
    model.require("joint_likelihood")
    means, errors = [], []
    for log_w in _weights(model, data, n_samples, seed, latent_rows):
        means.append(log_w.mean(dim=0))
        spread = log_w.std(dim=0) if n_samples > 1 else torch.full_like(log_w[0], math.nan)
        errors.append(spread / math.sqrt(n_samples))
    value = torch.cat(means)
    return Estimate(
        value=value,
        standard_error=torch.cat(errors),
        effective_sample_size=torch.full_like(value, n_samples),
        n_samples=n_samples,
    )


def conditional_log_likelihood(
    model: MultimodalVAE,
    data: IncompleteDataset | Batch,
    given: Iterable[str],
    targets: Iterable[str],
    n_samples: int,
    seed: int,
    latent_rows: int,
) -> Estimate:
    """Estimate log p(targets | given), see `MultimodalVAE.conditional_log_likelihood`."""
    model.require("conditional_likelihood")
    given, targets = _names(given), _names(targets)
    both = sorted(set(given) & set(targets))
    if both or not targets:
        what = f"{both[0]!r} is both given and a target" if both else "there are no targets"
        raise DataError(
            f"conditional_log_likelihood: {what}; name some modalities as targets, and others,"
            " or none, as given"
        )
    if "joint_likelihood" in model.lacks:
        _check_split(model, given, targets)
        seen = data.restrict({*given, *targets})
        return summarised(_weights(model, seen, n_samples, seed, latent_rows), n_samples)
    joint = log_likelihood(model, data.restrict({*given, *targets}), n_samples, seed, latent_rows)
    if not given:
        return joint
    marginal = log_likelihood(model, data.restrict(set(given)), n_samples, seed, latent_rows)
    return Estimate(
        value=joint.value - marginal.value,
        standard_error=(joint.standard_error**2 + marginal.standard_error**2).sqrt(),
        effective_sample_size=torch.minimum(
            joint.effective_sample_size, marginal.effective_sample_size
        ),
        n_samples=n_samples,
    )


def _check_split(model: MultimodalVAE, given: list[str], targets: list[str]) -> None:
    """What is modelled as a condition alone can be given, and the rest be a target."""
    wrong = [name for name in given if name in model.decoded]
    wrong += [name for name in targets if name not in model.decoded]
    if wrong:
        raise CapabilityError(
            f"conditional_log_likelihood: {type(model).__name__} models"
            f" {', '.join(model.decoded)} given the other modalities, so that {wrong[0]!r} cannot"
            f" be {'given' if wrong[0] in given else 'a target'}"
        )


def _names(names: Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _weights(
    model: MultimodalVAE,
    data: IncompleteDataset | Batch,
    n_samples: int,
    seed: int,
    latent_rows: int,
) -> Iterator[Tensor]:
    """Log importance weights on the scale of the data, ``(K, B)`` for batch after batch."""
    if n_samples < 1 or latent_rows < 1:
        raise DataError(
            f"n_samples and latent_rows must be at least 1, got {n_samples} and {latent_rows}"
        )
    rows = max(1, min(256, latent_rows, _HELD_ROWS // n_samples))
    with evaluating(model):
        for batch in batches_of(model, data, rows):
            noise = RowNoise(seed, batch.index, model.dtype)
            draw = model.proposal(batch).draw(n_samples, noise)
            if draw.log_q is None:
                raise CapabilityError(
                    f"the proposal of {type(model).__name__} has no density, which importance"
                    " sampling needs; override `proposal` with a posterior that has one"
                )
            log_p = draw.log_p
            if log_p is None:
                log_p = model.prior(batch).log_prob(draw.latents)
            score = _score(model, draw.latents, batch, latent_rows) - log_scale(model, batch)
            yield torch.where(batch.something, score + log_p - draw.log_q, 0.0)


def _score(model: MultimodalVAE, latents: Latents, batch: Batch, latent_rows: int) -> Tensor:
    """Log-likelihood of everything present, ``(K, B)``, in cache-sized calls of the decoders."""
    samples = max(1, latent_rows // batch.size)
    n = next(iter(latents.values())).shape[0]
    pieces = []
    for start in range(0, n, samples):
        part = {name: value[start : start + samples] for name, value in latents.items()}
        scores = [model.score(name, part, batch) for name in model.decoded]
        pieces.append(torch.stack(scores).sum(dim=0))
    return torch.cat(pieces)


def log_scale(model: MultimodalVAE, batch: Batch) -> Tensor:
    """What a log-density loses on the way to the scale of the data, ``(B,)``."""
    total = torch.zeros(batch.size, dtype=model.dtype, device=model.device)
    for name in model.decoded:
        if not model.config.modalities[name].standardise:
            continue
        total = total + model.transforms[name].log_scale(batch.seen(name))
    return total


def summarised(weights: Iterable[Tensor], n_samples: int) -> Estimate:
    """Log-mean-exp of the weights with its error by the delta method.

    Args:
        weights: Log-weights, nats, ``(K, B)`` for batch after batch.
        n_samples: Their number K.
    """
    values, errors, sizes = [], [], []
    for log_w in weights:
        share = log_w.softmax(dim=0)
        size = 1.0 / share.square().sum(dim=0)
        values.append(log_mean_exp(log_w))
        relative = (1.0 / size - 1.0 / n_samples).clamp_min(0.0)
        errors.append((relative * n_samples / max(n_samples - 1, 1)).sqrt())
        sizes.append(size)
    error = torch.cat(errors)
    return Estimate(
        value=torch.cat(values),
        standard_error=error if n_samples > 1 else torch.full_like(error, math.nan),
        effective_sample_size=torch.cat(sizes),
        n_samples=n_samples,
    )
