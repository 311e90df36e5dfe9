"""What a model says, as numbers that can be compared: losses with gradients, and evaluations."""

from __future__ import annotations

__all__ = [
    "Losses", "close", "evaluations", "joint_density", "losses", "noise_of", "same", "total_of",
]  # fmt: skip

import functools
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import attrs
import torch
from torch import Tensor, nn

from multivae_core.data import Batch
from multivae_core.losses import LossOutput
from multivae_core.model import MultimodalVAE
from multivae_core.noise import NoiseSource, RowNoise, Step, TrainingNoise
from multivae_core.stages import Player
from multivae_core.testing.bench import Bench
from multivae_core.testing.report import Broken
from multivae_core.training.objective import Share, check_output, objective, weight_sums

Numbers = dict[str, Tensor]


@attrs.frozen
class Losses:
    """The losses of all players on a batch.

    Args:
        values: Term, weight, bound or metric -> ``(B,)``.
        gradients: Parameter -> gradient of the objective, for every player.
        sums: Sums of the weights of terms that have their own.
        count: Rows that count.
    """

    values: Numbers
    gradients: Numbers
    sums: Numbers
    count: int


def noise_of(model: MultimodalVAE, rows: Tensor | None = None, total: int = 14) -> NoiseSource:
    """Noise of a training step on so many rows, of which one process has some."""
    kind, device = model.dtype, model.device
    return TrainingNoise(0, 3, total=total, rows=rows, dtype=kind, device=device)


def losses(
    model: MultimodalVAE,
    batch: Batch,
    noise: NoiseSource | None = None,
    training: bool = True,
    whole: Losses | None = None,
) -> Losses:
    """Run every player of every stage forward and backward.

    Args:
        model: The model.
        batch: As the user has it.
        noise: Source of random numbers; None: that of a training step.
        training: Whether weights and schedules count.
        whole: The losses of the global batch of which this one is a part.
    """
    prepared = model.prepare(batch)
    if noise is None:
        noise = noise_of(model, torch.arange(batch.size, device=model.device), batch.size)
    step = Step(number=3, progress=0.5, training=training, noise=noise)
    here = int(prepared.something.sum())
    mask = None if here == batch.size else prepared.something
    share = Share(mask, here, here if whole is None else whole.count)
    found = Losses({}, {}, {}, here)
    for stage, player in _players(model):
        with _moving(model, player) as moved:
            torch.manual_seed(0)
            for number, output in enumerate(player.loss(prepared, step)):
                check_output(output, batch.size, player.name)
                label = f"{stage}/{player.name}/{number}"
                _note(found, output, label)
                sums = weight_sums(output, share)
                found.sums.update({f"{label} {name}": value for name, value in sums.items()})
                if whole is not None:
                    sums = {name: whole.sums[f"{label} {name}"] for name in sums}
                value = objective(output, share, functools.partial(dict, sums))
                if value.requires_grad:
                    value.backward()
            for name, parameter in moved.items():
                if parameter.grad is not None:
                    found.gradients[f"{stage}/{player.name} {name}"] = parameter.grad.clone()
    return found


def _note(found: Losses, output: LossOutput, label: str) -> None:
    """Keep the values per row of one piece."""
    for name, term in output.terms.items():
        found.values[f"{label} term {name}"] = term.value.detach()
        if term.weight is not None:
            found.values[f"{label} weight {name}"] = term.weight.detach()
    if output.bound is not None:
        found.values[f"{label} bound"] = output.bound
    for name, value in output.metrics.items():
        found.values[f"{label} metric {name}"] = value


def total_of(outputs: list[LossOutput], something: Tensor) -> float:
    """What the outputs of one step report together, written apart from the trainer."""
    total = 0.0
    for output in outputs:
        if output.bound is not None:
            total += float(output.bound[something].mean())
            continue
        for term in output.terms.values():
            weight = something.to(term.value.dtype) if term.weight is None else term.weight
            counts = weight != 0
            if bool(counts.any()):
                weighted = (weight * term.value)[counts].sum() / weight[counts].sum()
                total += float(weighted)
    return total


def _players(model: MultimodalVAE) -> Iterator[tuple[str, Player]]:
    for stage in model.stages():
        for player in stage.players:
            yield stage.name, player


@contextmanager
def _moving(model: MultimodalVAE, player: Player) -> Iterator[dict[str, nn.Parameter]]:
    """Let gradients reach the parameters of one player alone, and put everything back."""
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    kept = {buffer: buffer.clone() for buffer in model.buffers()}
    own: set[nn.Parameter] = set()
    for part in player.parameters:
        own.update([part] if isinstance(part, nn.Parameter) else part.parameters())
    moved = {n: p for n, p in model.named_parameters() if p in own and before[n]}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in moved)
        parameter.grad = None
    try:
        yield moved
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
            parameter.grad = None
        for buffer, value in kept.items():  # a step may count, and keep running statistics
            buffer.copy_(value)


def evaluations(bench: Bench, model: MultimodalVAE, batch: Batch) -> Numbers:
    """Everything that the model says about a batch, row by row: name -> ``(B, ...)``."""
    torch.manual_seed(0)
    found = {f"mean of {name!r}": z for name, z in model.encode(batch).items()}
    found |= {f"draw of {n!r}": z.transpose(0, 1) for n, z in model.encode(batch, 3).items()}
    own = model.impute(batch, n_samples=5, keep_samples=True)
    for name in own.filled:
        found[f"filled {name}"] = own.filled[name]
        found[f"imputed mean {name}"] = own.mean[name]
        found[f"quantiles {name}"] = own.quantiles[name].transpose(0, 1)
        if own.samples is not None:
            found[f"samples {name}"] = own.samples[name].transpose(0, 1)
    found |= {f"predicted {n}": x for n, x in model.predict(batch, n_samples=4).items()}
    if bench.has("joint_likelihood"):
        for verb in ("elbo", "log_likelihood"):
            estimate = getattr(model, verb)(batch, n_samples=11)
            found[verb] = estimate.value
            found[f"error of {verb}"] = estimate.standard_error
            found[f"effective size of {verb}"] = estimate.effective_sample_size
    if bench.has("conditional_likelihood"):
        given, target = _given(model)
        estimate = model.conditional_log_likelihood(batch, given, target, n_samples=11)
        found["conditional"] = estimate.value
    return found


def _given(model: MultimodalVAE) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Modalities to condition on, those without a decoder among them, and one to score."""
    target = model.decoded[0]
    only = [name for name in model.modalities if name not in model.decoded]
    return tuple(only) or (model.decoded[-1],), (target,)


def joint_density(model: MultimodalVAE, batch: Batch, n: int = 5) -> tuple[Tensor, Tensor] | None:
    """Densities of draws of the posterior, under it and under the prior, ``(n, B)`` each."""
    with torch.no_grad():
        prepared = model.prepare(batch)
        draw = model.posterior(prepared).draw(n, RowNoise(8, prepared.index, model.dtype))
        if draw.log_q is None:
            return None
        log_p = draw.log_p
        return draw.log_q, model.prior(prepared).log_prob(draw.latents) if log_p is None else log_p


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor], rule: str) -> None:
    """Raise `Broken` unless all numbers are finite and equal, bit for bit."""
    _keys(one, two, rule)
    for name, value in one.items():
        for each in (value, two[name]):
            if not bool(each.isfinite().all()):
                raise Broken(f"{rule}: {name} is not finite")
        if not torch.equal(value, two[name]):
            raise Broken(f"{rule}: {name} changes by up to {_apart(value, two[name]):.3g}")


def close(
    one: Mapping[str, Tensor], two: Mapping[str, Tensor], rule: str, tolerance: float = 1e-10
) -> None:
    """Raise `Broken` unless numbers differ by at most the tolerance times their size."""
    _keys(one, two, rule)
    for name, value in one.items():
        size = float(value.abs().amax()) if value.numel() else 0.0
        other, allowed = two[name].to(value), tolerance * max(1.0, size)
        off = (value - other).abs()
        if not bool((off <= allowed + tolerance * value.abs()).all()):
            raise Broken(
                f"{rule}: {name} changes by up to {float(off.max()):.3g}, where rounding explains"
                f" {allowed:.1g}"
            )


def _keys(one: Mapping[str, Tensor], two: Mapping[str, Tensor], rule: str) -> None:
    if one.keys() != two.keys():
        odd = next(iter(one.keys() ^ two.keys()))
        raise Broken(f"{rule}: {odd} is there only once")
    for name in one:
        if one[name].shape != two[name].shape:
            shapes = tuple(one[name].shape), tuple(two[name].shape)
            raise Broken(f"{rule}: {name} has shape {shapes[0]} and {shapes[1]}")


def _apart(one: Tensor, two: Tensor) -> float:
    return float((one.double() - two.double()).abs().max())


def subsets(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """All subsets of the modalities, the empty one first."""
    return [s for k in range(len(names) + 1) for s in itertools.combinations(names, k)]
