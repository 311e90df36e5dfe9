"""What a trained model is for: embeddings, generations, predictions and imputations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import attrs
import torch
from torch import Tensor

from multivae_core.data import Batch, IncompleteDataset
from multivae_core.errors import CapabilityError, DataError
from multivae_core.estimation import batches_of, evaluating, raw_batches
from multivae_core.likelihoods import Likelihood
from multivae_core.noise import RowNoise
from multivae_core.posteriors import LatentName, Latents

if TYPE_CHECKING:
    from multivae_core.model import MultimodalVAE

__all__ = ["Imputation", "Output", "decode", "embed", "encode", "generate", "impute", "predict"]

Output = Literal["mean", "sample"]
"""Whether a decoder's mean is wanted or a draw from it."""

_ROWS = 512
_DRAWN_ROWS = 4000


@attrs.frozen(kw_only=True)
class Imputation:
    """What a model says about every modality of every row, on the scale of the data.

    Args:
        filled: Modality -> ``(N, *shape)``; observed entries as they are, the others filled
            with a typical value: the mean of a real-valued modality, else the median of the
            draws or, for categories, the most probable one.
        mean: Modality -> ``(N, *shape)``; for categories and binary values a probability.
        quantiles: Modality -> ``(Q, N, *shape)`` of the draws, at `levels`.
        levels: The Q levels, between 0 and 1.
        samples: Modality -> ``(n, N, *shape)``, observed entries kept; None unless asked for.
    """

    filled: dict[str, Tensor]
    mean: dict[str, Tensor]
    quantiles: dict[str, Tensor]
    levels: tuple[float, ...]
    samples: dict[str, Tensor] | None = None


def encode(
    model: MultimodalVAE, data: IncompleteDataset | Batch, n_samples: int | None, seed: int
) -> Latents:
    """Posterior means or samples of every latent, see `MultimodalVAE.encode`."""
    parts: list[Latents] = []
    with evaluating(model):
        for batch in batches_of(model, data, _ROWS):
            posterior = model.posterior(batch)
            if n_samples is None:
                parts.append({name: value[0] for name, value in posterior.mean().items()})
            else:
                noise = RowNoise(seed, batch.index, model.dtype)
                parts.append(posterior.draw(n_samples, noise).latents)
    axis = 0 if n_samples is None else 1
    return {name: torch.cat([part[name] for part in parts], dim=axis) for name in parts[0]}


def embed(
    model: MultimodalVAE, data: IncompleteDataset | Batch, latents: Sequence[LatentName] | str
) -> Tensor:
    """One vector per row, see `MultimodalVAE.embed`."""
    means = encode(model, data, None, 0)
    wanted = model.representation if latents == "representation" else latents
    names: Sequence[LatentName] = [wanted] if isinstance(wanted, str) else wanted
    for name in names:
        if name not in means:
            known = ", ".join(repr(latent) for latent in means)
            raise DataError(
                f"embed: {type(model).__name__} has no latent {name!r}; it has {known}"
            )
    return torch.cat([means[name].flatten(1) for name in names], dim=1)


def decode(
    model: MultimodalVAE, latents: Mapping[LatentName, Tensor], data: Batch | None
) -> dict[str, Likelihood]:
    """The likelihood of every modality, see `MultimodalVAE.decode`."""
    full = _with_samples(model, latents)
    rows = next(iter(full.values())).shape[1]
    batch = model.prepare(data) if data is not None else model.blank(rows)
    with evaluating(model):
        return {name: _on_data_scale(model, name, full, batch) for name in model.decoded}


def generate(model: MultimodalVAE, n: int, seed: int, output: Output) -> dict[str, Tensor]:
    """Rows out of the prior, see `MultimodalVAE.generate`."""
    model.require("generate")
    _check_output(output)
    if n < 1:
        raise DataError(f"generate: the number of rows must be at least 1, got {n}")
    parts: list[dict[str, Tensor]] = []
    with evaluating(model):
        for start in range(0, n, _ROWS):
            batch = model.blank(min(_ROWS, n - start))
            batch = attrs.evolve(batch, index=batch.index + start)
            noise = RowNoise(seed, batch.index, model.dtype)
            latents = model.prior(batch).sample(1, batch.size, noise)
            parts.append(
                {
                    name: _output(_on_data_scale(model, name, latents, batch), output, noise, name)
                    for name in model.decoded
                }
            )
    return {name: torch.cat([part[name][0] for part in parts]) for name in model.decoded}


def predict(
    model: MultimodalVAE,
    data: IncompleteDataset | Batch,
    targets: Iterable[str] | None,
    n_samples: int,
    seed: int,
) -> dict[str, Tensor]:
    """Posterior predictive means, see `MultimodalVAE.predict`."""
    names = _targets(model, targets, "predict")
    parts: list[dict[str, Tensor]] = []
    with evaluating(model):
        for batch in batches_of(model, data, _rows_per_batch(n_samples)):
            noise = RowNoise(seed, batch.index, model.dtype)
            latents = model.posterior(batch).draw(n_samples, noise).latents
            parts.append(
                {
                    name: _on_data_scale(model, name, latents, batch).mean.mean(dim=0)
                    for name in names
                }
            )
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def impute(
    model: MultimodalVAE,
    data: IncompleteDataset | Batch,
    targets: Iterable[str] | None,
    n_samples: int,
    levels: Sequence[float],
    keep_samples: bool,
    seed: int,
) -> Imputation:
    """Multiple imputation, see `MultimodalVAE.impute`."""
    if any(not 0.0 < level < 1.0 for level in levels):
        raise DataError(f"impute: quantile levels must be between 0 and 1, got {tuple(levels)}")
    parts: dict[str, list[_Filled]] = {name: [] for name in _targets(model, targets, "impute")}
    with evaluating(model):
        for raw in raw_batches(data, _rows_per_batch(n_samples)):
            batch = model.prepare(raw)
            noise = RowNoise(seed, batch.index, model.dtype)
            latents = model.posterior(batch).draw(n_samples, noise).latents
            for name in parts:
                # as measured: the way to the model's scale and back rounds
                truth = raw.values.get(name, batch.values[name])
                filled = _fill(model, name, latents, batch, truth, noise, levels)
                parts[name].append(filled if keep_samples else attrs.evolve(filled, samples=None))

    def joined(field: str, axis: int) -> dict[str, Tensor]:
        return {
            name: torch.cat([getattr(part, field) for part in each], dim=axis)
            for name, each in parts.items()
        }

    return Imputation(
        filled=joined("filled", 0),
        mean=joined("mean", 0),
        quantiles=joined("quantiles", 1),
        levels=tuple(levels),
        samples=joined("samples", 1) if keep_samples else None,
    )


@attrs.frozen
class _Filled:
    filled: Tensor
    mean: Tensor
    quantiles: Tensor
    samples: Tensor | None


def _fill(
    model: MultimodalVAE,
    name: str,
    latents: Latents,
    batch: Batch,
    truth: Tensor,
    noise: RowNoise,
    levels: Sequence[float],
) -> _Filled:
    likelihood = _on_data_scale(model, name, latents, batch)
    samples = likelihood.sample(noise, ("value", name))
    mean = likelihood.mean.mean(dim=0)
    truth = truth.to(model.device)
    seen = batch.seen(name)
    return _Filled(
        filled=torch.where(seen, truth, likelihood.typical(mean, samples)),
        mean=mean,
        quantiles=_quantiles(samples, levels, likelihood.whole_numbers),
        samples=torch.where(seen, truth.to(samples.dtype), samples),
    )


def _quantiles(samples: Tensor, levels: Sequence[float], whole: bool) -> Tensor:
    """Quantiles over the first axis at the ranks (K+1)p, which a new draw falls below with p.

    Between two ranks lies a value between two draws; for whole numbers it is the outer draw.
    """
    n = samples.shape[0]
    ordered = samples.sort(dim=0).values
    wanted = torch.tensor(levels, dtype=torch.float64)
    places = (wanted * (n + 1) - 1.0).clamp(0.0, n - 1.0)
    if whole:
        places = torch.where(wanted < 0.5, places.floor(), places.ceil())
    lower = places.floor().long()
    upper = places.ceil().long()
    share = (places - lower).to(samples.device, samples.dtype)
    share = share.view(-1, *(1 for _ in samples.shape[1:]))
    return torch.lerp(ordered[lower.to(samples.device)], ordered[upper.to(samples.device)], share)


def _rows_per_batch(n_samples: int) -> int:
    if n_samples < 1:
        raise DataError(f"n_samples must be at least 1, got {n_samples}")
    return max(1, min(_ROWS, _DRAWN_ROWS // n_samples))


def _on_data_scale(model: MultimodalVAE, name: str, latents: Latents, batch: Batch) -> Likelihood:
    likelihood = model.decode_one(name, latents, batch)
    if model.config.modalities[name].standardise:
        return model.transforms[name].to_data(likelihood)
    return likelihood


def _output(likelihood: Likelihood, output: Output, noise: RowNoise, name: str) -> Tensor:
    return likelihood.mean if output == "mean" else likelihood.sample(noise, ("value", name))


def _check_output(output: str) -> None:
    if output not in ("mean", "sample"):
        raise DataError(f"output must be 'mean' or 'sample', got {output!r}")


def _targets(model: MultimodalVAE, targets: Iterable[str] | None, verb: str) -> list[str]:
    if targets is None:
        return list(model.decoded)
    names = [targets] if isinstance(targets, str) else list(targets)
    for name in names:
        if name not in model.modalities:
            raise DataError(
                f"{verb}: unknown modality {name!r}; the model has {', '.join(model.modalities)}"
            )
        if name not in model.decoded:
            raise CapabilityError(
                f"{verb}: {type(model).__name__} conditions on {name!r} and does not model it;"
                f" ask for {', '.join(model.decoded)}"
            )
    return names


def _with_samples(model: MultimodalVAE, latents: Mapping[LatentName, Tensor]) -> Latents:
    """Latents as ``(n, B, *event)``; those given as ``(B, *event)`` become one sample."""
    if not latents:
        raise DataError("decode: no latents were given; pass what encode returned")
    shapes = model.latent_shapes
    for name, shape in shapes.items():
        if name not in latents:
            raise DataError(f"decode: the latent {name!r} is missing; pass what encode returned")
        if tuple(latents[name].shape[-len(shape) :]) != shape:
            own, wanted = (
                s[0] if len(s) == 1 else s for s in (latents[name].shape[-len(shape) :], shape)
            )
            raise DataError(
                f"decode: {name!r} has size {own}, the model has {wanted};"
                " pass what encode returned"
            )
    return {
        name: (value[None] if value.ndim == len(shapes[name]) + 1 else value).to(
            model.device, model.dtype
        )
        for name, value in latents.items()
    }
