"""Checks of what must not change a number: holes, order, batches, chunks, units, other rows."""

from __future__ import annotations

__all__ = ["CHECKS"]

import math

import attrs
import torch

from multivae_core.data import Batch, IncompleteDataset
from multivae_core.testing.bench import FILLERS, SHAPES, Bench, filled, missing
from multivae_core.testing.probe import (
    close,
    evaluations,
    joint_density,
    losses,
    noise_of,
    same,
    subsets,
)
from multivae_core.testing.report import Broken


def holes(bench: Bench) -> None:
    """What lies under a hole changes nothing, bit for bit: not in weights, losses, estimates."""
    model, batch = bench.main, bench.batch()
    step, says = losses(model, batch), evaluations(bench, model, batch)
    train = bench.batch(40, seed=9)
    for filler in FILLERS:
        rule = f"{filler} under the holes"
        other = filled(batch, filler)
        again = losses(model, other)
        same(step.values, again.values, rule)
        same(step.gradients, again.gradients, rule)
        same(says, evaluations(bench, model, other), rule)
    made = [bench.model(bench.dataset(data)) for data in (train, filled(train, math.nan))]
    one, two = ({n: x for n, x in m.state_dict().items() if x.is_floating_point()} for m in made)
    same(one, two, "nan under the holes of the data that a model is made for")


def whole(bench: Bench) -> None:
    """Complete data are data with masks in which nothing is missing."""
    complete = bench.batch(holes=False, elements=False)
    all_seen = {name: torch.ones_like(x, dtype=torch.bool) for name, x in complete.values.items()}
    one = IncompleteDataset(complete.values)
    two = bench.dataset(attrs.evolve(complete, observed=all_seen))
    by_hand = attrs.evolve(complete, observed=all_seen)
    train = bench.batch(40, seed=9, holes=False, elements=False)
    model, rows = bench.model(bench.dataset(train)), torch.arange(14)
    first, says = losses(model, one.batch(rows)), evaluations(bench, model, one)  # type: ignore[arg-type]
    for rule, batch in (
        ("a mask that hides nothing", two.batch(rows)),
        ("everything restricted to", one.batch(rows).restrict(set(SHAPES))),
        ("a batch made by hand", attrs.evolve(by_hand, index=torch.arange(14))),
    ):
        again = losses(model, batch)
        same(first.values, again.values, rule)
        # sums over elements may be taken in another order
        close(first.gradients, again.gradients, rule, 1e-12)
        same(says, evaluations(bench, model, batch), rule)


def rows(bench: Bench) -> None:
    """Order of rows, splits of a batch and shares of processes change rounding alone."""
    model, batch = bench.main, bench.batch()
    order = torch.randperm(batch.size, generator=torch.Generator().manual_seed(0))
    parts = [torch.tensor([0, 3]), torch.arange(4, 9), torch.tensor([1, 2, *range(9, 14)])]
    says = evaluations(bench, model, batch)
    moved = evaluations(bench, model, batch.take(order))
    close({name: x[order] for name, x in says.items()}, moved, "another order of rows")
    split = [evaluations(bench, model, batch.take(part)) for part in parts]
    joined = {name: torch.cat([piece[name] for piece in split]) for name in says}
    close({n: x[torch.cat(parts)] for n, x in says.items()}, joined, "a batch in parts")
    bench.need("row_objective")
    step = losses(model, batch, noise_of(model))
    again = losses(model, batch.take(order), noise_of(model, order))
    close({n: x[order] for n, x in step.values.items()}, again.values, "another order of rows")
    close(step.gradients, again.gradients, "another order of rows")
    pieces = [losses(model, batch.take(p), noise_of(model, p), whole=step) for p in parts]
    joined = {name: torch.cat([piece.values[name] for piece in pieces]) for name in step.values}
    rule = "processes that share the rows of a step"
    close({n: x[torch.cat(parts)] for n, x in step.values.items()}, joined, rule)
    sums = {
        name: torch.stack([p.gradients.get(name, torch.zeros_like(g)) for p in pieces]).sum(dim=0)
        for name, g in step.gradients.items()
    }
    close(step.gradients, sums, rule)


def others(bench: Bench) -> None:
    """Which holes other rows have changes nothing about a row."""
    model, batch = bench.main, bench.batch()
    mine = torch.tensor([0, 3, 4])
    keep = torch.tensor([name in bench.case.needed for name in batch.names])
    for shown in (keep, keep | torch.tensor([True, False, False])):
        mask = shown.expand(batch.size, 3).clone()
        mask[mine] = True
        changed = batch.restrict(mask)
        rule = "other rows with other holes"
        one, two = evaluations(bench, model, batch), evaluations(bench, model, changed)
        close({n: x[mine] for n, x in one.items()}, {n: x[mine] for n, x in two.items()}, rule)
        if bench.has("row_objective"):
            values, again = losses(model, batch).values, losses(model, changed).values
            close({n: x[mine] for n, x in values.items()}, {n: x[mine] for n, x in again.items()},
                  rule)  # fmt: skip


def order(bench: Bench) -> None:
    """The order in which the user lists the modalities changes nothing."""
    back = tuple(reversed(SHAPES))
    batch, other = bench.batch(), bench.batch(order=back)
    one = bench.main
    two = bench.model(bench.dataset(bench.batch(40, seed=9, order=back)), order=back)
    rule = "another order of modalities"
    same(dict(one.named_parameters()), dict(two.named_parameters()), rule)
    says = evaluations(bench, one, batch)
    same(says, evaluations(bench, two, other), rule)
    same(says, evaluations(bench, one, other), rule)
    step, again = losses(one, batch), losses(two, other)
    same(step.values, again.values, rule)
    same(step.gradients, again.gradients, rule)


def chunks(bench: Bench) -> None:
    """The number of latent rows per call of the decoders changes rounding alone."""
    bench.need("joint_likelihood")
    model, batch = bench.main, bench.batch()
    for verb in (model.elbo, model.log_likelihood):
        one = verb(batch, n_samples=11)
        for latent_rows in (1, 13, 10**6):
            two = verb(batch, n_samples=11, latent_rows=latent_rows)
            rule = f"latent_rows={latent_rows}"
            close({"value": one.value}, {"value": two.value}, rule)
            close({"error": one.standard_error}, {"error": two.standard_error}, rule, 1e-7)


def subsets_(bench: Bench) -> None:
    """Every subset of modalities can be encoded; of nothing seen the prior is left, weight 0."""
    bench.need("encodes_any_subset")
    model, batch = bench.main, bench.batch()
    for names in subsets(tuple(SHAPES)):
        rule = f"restricted to {'+'.join(names) or 'nothing'}"
        shown = batch.restrict(names)
        hidden = attrs.evolve(batch, present=missing(batch, names))
        step, says = losses(model, shown), evaluations(bench, model, shown)
        again = losses(model, hidden)
        same(step.values, again.values, rule)
        same(step.gradients, again.gradients, rule)
        same(says, evaluations(bench, model, hidden), rule)
        if names:
            _same_without(bench, batch, names)
    _nothing(bench, batch)


def _same_without(bench: Bench, batch: Batch, names: tuple[str, ...]) -> None:
    """A modality that the batch does not have at all is one that is missing in every row."""
    without = Batch(
        values={n: x for n, x in batch.values.items() if n in names},
        present=batch.present[:, [n in names for n in batch.names]],
        observed={n: x for n, x in batch.observed.items() if n in names},
        index=batch.index,
    )
    rule = f"a batch that has {'+'.join(names)} alone"
    one, two = losses(bench.main, batch.restrict(names)), losses(bench.main, without)
    same(one.values, two.values, rule)


def _nothing(bench: Bench, batch: Batch) -> None:
    """Rows of which nothing is seen: the prior, no weight, likelihood 1."""
    model, empty = bench.main, ~batch.something
    densities = joint_density(model, batch)
    if densities is not None:
        q, p = densities
        rule = "a row of which nothing is seen has the prior as its posterior"
        close({"log-density": p[:, empty]}, {"log-density": q[:, empty]}, rule)
    if bench.has("joint_likelihood"):
        for verb in (model.elbo, model.log_likelihood):
            if bool(verb(batch, n_samples=7).value[empty].any()):
                raise Broken("the log-likelihood of nothing is not 0")
    if not bench.has("row_objective"):
        return
    keep = batch.something.nonzero().squeeze(1)
    step = losses(model, batch, noise_of(model))
    own = losses(model, batch.take(keep), noise_of(model, keep))
    rule = "rows of which nothing is seen weigh nothing"
    close(step.gradients, own.gradients, rule)


def units(bench: Bench) -> None:
    """Another unit shifts log-likelihoods by the log of the factor and changes nothing else."""
    model, batch, train = bench.main, bench.batch(), bench.batch(40, seed=9)
    if not model.config.modalities["a"].standardise:
        return
    for factor in (1000.0, 0.04):
        rule = f"a unit times {factor:g}"
        other, scaled = bench.model(bench.dataset(_scaled(train, factor))), _scaled(batch, factor)
        one, two = losses(model, batch), losses(other, scaled)
        close(one.values, two.values, rule, 1e-9)
        close(one.gradients, two.gradients, rule, 1e-9)
        expected = evaluations(bench, model, batch)
        shift = batch.seen("a").sum(dim=1).double() * math.log(factor)
        for name, value in expected.items():
            if name.split()[-1] == "a":
                expected[name] = factor * value
            elif name in ("elbo", "log_likelihood"):
                expected[name] = value - shift
            elif name == "conditional" and "a" in model.decoded:
                expected[name] = value - shift  # "a" is its target
        close(expected, evaluations(bench, other, scaled), rule, 1e-9)


def _scaled(batch: Batch, factor: float) -> Batch:
    return attrs.evolve(batch, values={**batch.values, "a": factor * batch.values["a"]})


CHECKS = {
    check.__name__.strip("_"): check
    for check in (holes, whole, rows, others, order, chunks, subsets_, units)
}
