"""JNF against JMVAE where what some modalities say of the latents is not Gaussian.

The data are those of `plane`. The latent has two dimensions, so that the posterior p(z | x_S) of a
trained model is known, on a grid: the prior times the likelihoods of its decoders. So are the
Gaussians of JMVAE and the flows of JNF, and products of flows too.

In one setting the decoders are the process that made the data, and only encoders and flows learn:
both models have the same p(z | x_S). In the other they are learned; then a model is free to bend
its latents until its posteriors are nearer to Gaussians, as by unrolling the ring.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import matplotlib
import torch
from claim import Figure, Reproduction, Scale, above_zero, standard_error
from plane import FEATURES, NAMES, NOISE, Grid, World, energy, exact, predictive, world
from torch import Tensor, nn

import multivae_core as mv
from multivae_core.posteriors import FactorisedPosterior

matplotlib.use("Agg")
from matplotlib import pyplot as plt

__all__ = ["REPRODUCTION"]

SUBSETS = tuple(s for size in (1, 2) for s in combinations(NAMES, size))
ROWS_AT_ONCE = 8
JOINT_EPOCHS, FLOW_EPOCHS = 40, 40
MODELS = ("JMVAE", "JNF")
TRAIN, TEST, DRAWS = 8000, 32, 200
ROW = 4  # of the first test set, in the picture


def train(
    data: mv.IncompleteDataset, truth: World | None, seed: int, scale: Scale
) -> dict[str, mv.MultimodalVAE]:
    """Train both on complete rows; without a truth they learn decoders of their own."""
    joint, flows = scale.pick(JOINT_EPOCHS, 1), scale.pick(FLOW_EPOCHS, 1)
    budgets = {"JMVAE": joint + flows, "JNF": {"joint": joint, "flows": flows}}
    models = {name: create(name, data, truth, seed) for name in MODELS}
    for name, model in models.items():
        mv.Trainer(
            epochs=budgets[name],
            batch_size=256,
            lr=3e-3,
            schedule="cosine",
            seed=seed,
            progress=False,
        ).fit(model, data)
        model.eval()
        print(f"  seed {seed}, decoders {_kind(truth)}: {name} trained", flush=True)
    return models


def create(
    name: str, data: mv.IncompleteDataset, truth: World | None, seed: int, **further: Any
) -> Any:
    """An untrained model; JNF resamples, if it is not told otherwise."""
    part: dict[str, Any] = {"encoder": {"type": "mlp", "hidden": [64, 64]}}
    options: dict[str, Any] = {"joint_encoder": {"type": "mlp", "hidden": [128, 128]}}
    if truth is None:
        part["decoder"] = {"type": "mlp", "hidden": [64, 64]}
    else:
        part |= {"likelihood": {"type": "normal", "scale": NOISE}, "standardise": False}
        options["decoders"] = {m: Known(truth, m) for m in NAMES}
    if name == "JNF":
        options |= {"hidden": [64, 64], "context_dim": 32, "sampler": "sir"} | further
    return mv.create_model(
        name.lower(), data, latent_dim=2, modalities=dict.fromkeys(NAMES, part), seed=seed,
        **options,
    )  # fmt: skip


class Known(nn.Module):
    """The process itself as the decoder of a modality; there is nothing to learn.

    Args:
        truth: The process.
        name: The modality.
    """

    def __init__(self, truth: World, name: str) -> None:
        super().__init__()
        self.truth, self.name = truth, name

    def forward(self, z: Tensor) -> Tensor:
        """Means of the features, ``(R, 2)`` -> ``(R, features)``."""
        return self.truth.means(z)[self.name]


def _kind(truth: World | None) -> str:
    return "learned" if truth is None else "known"


def model_scores(model: mv.MultimodalVAE, z: Tensor, rows: mv.Batch) -> dict[str, Tensor]:
    """Modality -> log p(x_m | z) of a model, like `World.scores`."""
    decoded = model.decode({"shared": z})
    return {m: decoded[m].log_prob(rows.values[m][:, None]) for m in NAMES}


@torch.no_grad()
def believed(model: Any, grid: Grid, data: mv.IncompleteDataset) -> Tensor:
    """Log q_S(z) of a model on the grid, ``(B, G)``; a product of flows is normalised there."""
    posterior = model.posterior(model.prepare(data.batch()))
    z = grid.z[:, None].expand(-1, len(data), -1)
    count = int(data.present[0].sum())
    log_q: Tensor
    if isinstance(posterior, FactorisedPosterior):
        log_q = posterior.log_prob({"shared": z})
    elif count == len(NAMES):
        log_q = posterior.gaussian.log_prob(z)
    else:
        log_q = posterior.experts.log_probs(z, posterior.members).sum(dim=2)
        if count > 1:
            further = (count - 1) * model.shared_prior.log_prob(grid.z)[:, None]
            log_q = grid.normalised((log_q - further).T).T
    return log_q.T


Measured = dict[str, Tensor]


def measure(
    model: mv.MultimodalVAE, grid: Grid, data: mv.IncompleteDataset, seen: Sequence[str], n: int
) -> Measured:
    """What a model's posterior of a subset is worth, every entry ``(N,)``.

    ``kl``: KL(p(z | x_S) || q_S) in nats; ``energy``: squared energy distance between n draws
    of each, without bias, 0 where they agree; ``predictive``: log mean p(x_T | z) over n draws
    of q_S, T all other modalities; ``best``: the same with the integral over p(z | x_S);
    ``lost``: their difference, which is what the posterior costs and the decoders do not.
    """
    parts = [
        _measure(model, grid, data.subset(slice(at, at + ROWS_AT_ONCE)), seen, n, at)
        for at in range(0, len(data), ROWS_AT_ONCE)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def _measure(
    model: mv.MultimodalVAE,
    grid: Grid,
    data: mv.IncompleteDataset,
    seen: Sequence[str],
    n: int,
    seed: int,
) -> Measured:
    rows, visible = data.batch(), data.restrict(seen)
    scores = model_scores(model, grid.z, rows)
    log_p, log_q = exact(grid, scores, seen), believed(model, grid, visible)
    found = {"kl": grid.integral(log_p, log_p - log_q)}
    rest = [m for m in NAMES if m not in seen]
    if rest:
        z = model.encode(visible, n_samples=n, seed=seed)["shared"]
        found["energy"] = energy(z, grid.draw(log_p, n, seed))
        decoded = model.decode({"shared": z})
        drawn = sum(decoded[m].log_prob(rows.values[m]) for m in rest)
        found["predictive"] = torch.as_tensor(drawn).logsumexp(dim=0) - math.log(n)
        found["best"] = predictive(grid, log_p, scores, rest)
        found["lost"] = found["best"] - found["predictive"]
    return found


Table = dict[tuple[str, str, tuple[str, ...]], list[Tensor]]
"""What, model, subset -> for every seed its test rows, ``(N,)``."""


def run(scale: Scale) -> list[Figure]:
    """Train with several seeds, compare row by row, draw one row."""
    grid, truth = Grid.of(scale.pick(121, 31)), world()
    known: Table = {}
    learned: Table = {}
    samplers = []
    for seed in range(scale.pick(3, 1)):
        data = truth.draw(scale.pick(TRAIN, 128), 2 * seed)
        test = truth.draw(scale.pick(TEST, 4), 2 * seed + 1)
        models = train(data, truth, seed, scale)
        fill(known, models, grid, test, scale)
        samplers.append(compare_samplers(models["JNF"], data, truth, test, grid, scale))
        if seed == 0:
            draw(models, grid, truth, test, scale)
        fill(learned, train(data, None, seed, scale), grid, test, scale)
    return [
        *figures(known, "known decoders", ("kl", "energy", "predictive")),
        *figures(learned, "learned decoders", ("kl", "energy", "predictive", "lost")),
        sampler_figure(samplers),
    ]


def fill(
    table: Table,
    models: dict[str, mv.MultimodalVAE],
    grid: Grid,
    test: mv.IncompleteDataset,
    scale: Scale,
) -> None:
    """Enter what both models are worth into a table."""
    for seen in (*SUBSETS, NAMES):
        for name, model in models.items():
            found = measure(model, grid, test, seen, scale.pick(DRAWS, 10))
            for what, rows in found.items():
                table.setdefault((what, name, seen), []).append(rows)


def compare_samplers(
    model: Any,
    data: mv.IncompleteDataset,
    truth: World,
    test: mv.IncompleteDataset,
    grid: Grid,
    scale: Scale,
) -> dict[str, float]:
    """Energy distance to the product of flows itself, and seconds of CPU, of each sampler."""
    n, test = scale.pick(100, 5), test.subset(slice(0, scale.pick(8, 2)))
    pairs = [test.restrict(seen) for seen in SUBSETS if len(seen) == 2]
    products = [grid.draw(believed(model, grid, pair), n, 1) for pair in pairs]
    found: dict[str, float] = {}
    for sampler in ("hmc", "sir"):
        other = create("JNF", data, truth, 0, sampler=sampler, hmc_steps=scale.pick(100, 4))
        other.load_state_dict(model.state_dict())
        began = time.process_time()
        drawn = [other.encode(pair, n_samples=n, seed=0)["shared"] for pair in pairs]
        found[f"{sampler} seconds"] = time.process_time() - began
        distances = [energy(z, y) for z, y in zip(drawn, products, strict=True)]
        found[sampler] = float(torch.cat(distances).mean())
    return found


def figures(table: Table, where: str, whats: Sequence[str]) -> list[Figure]:
    """The lines of one setting."""
    joint = [f"{m} {spread(per_seed(table, 'kl', m, 3, torch.median))}" for m in MODELS]
    lines = [
        Figure(
            what=f"KL from p(z given all) to q, median row, nats, {where}",
            paper="not printed",
            ours=", ".join(joint),
        )
    ]
    for size in (1, 2):
        lines += [compared(table, what, where, size) for what in whats]
    return lines


def compared(table: Table, what: str, where: str, size: int) -> Figure:
    """JMVAE and JNF over all subsets of a size, and their difference.

    The verdict is on JNF being better. Of the divergences the median row counts: rows whose
    joint encoder is in the wrong place make the mean, which is told too.
    """
    label, sign = {
        "kl": ("KL from p(z given x_S) to q_S, median row, nats", -1.0),
        "energy": ("energy distance of q_S to p(z given x_S)", -1.0),
        "predictive": ("log p(x_T given x_S), nats", 1.0),
        "lost": ("nats of log p(x_T given x_S) lost to the exact posterior", -1.0),
    }[what]

    def found(entry: str, reduce: Callable[[Tensor], Tensor]) -> list[list[float]]:
        return [per_seed(table, entry, name, size, reduce) for name in MODELS]

    old, new = found(what, torch.median if what == "kl" else torch.mean)
    gains = [b - a for a, b in zip(old, new, strict=True)]
    ours = f"JMVAE {spread(old)}, JNF {spread(new)}, difference {spread(gains)}"
    further = {"kl": ("kl", "mean row"), "predictive": ("best", "by the exact posterior")}
    if what in further:
        entry, said = further[what]
        ours += f"; {said} {', '.join(map(spread, found(entry, torch.mean)))}"
    better = [sign * gain for gain in gains]
    return Figure(
        what=f"{label}, {where}, {size} of 3 seen",
        paper="not printed",
        ours=ours,
        holds=above_zero(better),
    )


def per_seed(
    table: Table, what: str, name: str, size: int, reduce: Callable[[Tensor], Tensor]
) -> list[float]:
    """Reduced over rows, then the mean over the subsets of a size; one number per seed."""
    columns = [
        [float(reduce(rows)) for rows in seeds]
        for (entry, model, seen), seeds in table.items()
        if (entry, model, len(seen)) == (what, name, size)
    ]
    return [statistics.fmean(numbers) for numbers in zip(*columns, strict=True)]


def spread(numbers: Sequence[float]) -> str:
    """The mean over seeds with its standard error."""
    return f"{statistics.fmean(numbers):.3f} ({standard_error(numbers):.3f})"


def sampler_figure(found: list[dict[str, float]]) -> Figure:
    """HMC against resampling."""
    columns = {name: [each[name] for each in found] for name in found[0]}
    seconds = {name: statistics.fmean(columns[f"{name} seconds"]) for name in ("hmc", "sir")}
    parts = [f"{n.upper()} {spread(columns[n])} in {took:.1f} s" for n, took in seconds.items()]
    return Figure(
        what="energy distance of draws to the product of two flows, known decoders",
        paper="not printed",
        ours=", ".join(parts) + " of CPU (8 rows, 3 pairs, 100 draws)",
    )


def draw(
    models: dict[str, mv.MultimodalVAE],
    grid: Grid,
    truth: World,
    test: mv.IncompleteDataset,
    scale: Scale,
) -> None:
    """Exact posterior, JMVAE's and JNF's of one row, for every subset; dots are draws."""
    row, n = test.subset([min(ROW, len(test) - 1)]), scale.pick(200, 5)
    scores = truth.scores(grid.z, row.batch())
    names = ("exact", *models)
    figure, axes = plt.subplots(len(names), len(SUBSETS), figsize=(13, 6.8), layout="constrained")
    for column, seen in enumerate(SUBSETS):
        log_p, visible = exact(grid, scores, seen), row.restrict(seen)
        for axis, name in zip(axes[:, column], names, strict=True):
            given = name in models
            density = believed(models[name], grid, visible) if given else log_p
            axis.imshow(
                **grid.picture(density[0].exp()), cmap="Blues", vmax=float(log_p.max().exp())
            )
            z = grid.draw(log_p, n, 0)
            if given:
                z = models[name].encode(visible, n_samples=n)["shared"]
            axis.plot(*z[:, 0].T, ".", color="tab:red", markersize=1.5, alpha=0.6)
            axis.set(xlim=(-3, 3), ylim=(-3, 3), xticks=(), yticks=())
        axes[0, column].set_title(" and ".join(seen), fontsize=10)
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(name)
    figure.savefig(scale.folder / "jnf.png", dpi=110)
    plt.close(figure)


REPRODUCTION = Reproduction(
    name="jnf",
    reference="Senellart, Chadebec & Allassonniere 2023, JNF",
    paper_setting="MNIST-SVHN, MNIST-SVHN-FashionMNIST and PolyMNIST; coherence of what is"
    " generated from subsets",
    our_setting="points of the plane seen by distance from the origin, by distance from an axis"
    f" and by direction, {FEATURES} features each with noise {NOISE}; {TRAIN:,} rows for training"
    f" and {TEST} for testing, new ones for each of 3 seeds, standard errors over these;"
    " encoders 64-64, joint encoder 128-128, Adam 3e-3 falling to 0, batches of 256; JNF"
    f" {JOINT_EPOCHS} epochs of joint VAE and {FLOW_EPOCHS} of 3 MAF transforms 64-64, JMVAE as"
    " many epochs together, alpha 0.1; known decoders are the process itself, learned ones are"
    f" 64-64; {DRAWS} draws, of products of flows by resampling; means over the subsets of a"
    " size; energy distances squared, 0 if equal",
    run=run,
)
