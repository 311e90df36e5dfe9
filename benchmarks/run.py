"""Time over floor: what a model costs beside its bare networks, in one process on one thread.

The floor is one encoder and one decoder per modality. Models with further networks, marked *,
have their own layers as the floor, called as often and on as many rows as they call them.
Both sides alternate; CPU seconds; the figure is the median of the rounds' ratios. Without the
trainer's progress display, with everything else that a user gets.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import torch
from floor import Replay, bare_decoding, bare_training
from torch import Tensor, nn

import multivae_core as mv

__all__ = ["main"]

TABULAR = 100
PIXELS = (3, 28, 28)
_HIDDEN = {"type": "mlp", "hidden": [256]}


@attrs.frozen(kw_only=True)
class Workload:
    """One line of the table.

    Args:
        name: Shown in the table.
        model: Name of the model.
        options: Its options.
        goal: Time over floor to reach; None: none was set.
        modalities: Number of modalities M.
        decoder_rows: Rows that the floor decodes per data row and modality; None: the floor is
            made of all layers that the model has.
        images: Images and convolutions, or vectors and MLPs.
        missing: Share of modalities missing; the floor computes the filled rows.
        steps: Steps per round.
    """

    name: str
    model: str
    options: dict[str, object] = attrs.field(factory=dict)
    goal: float | None = None
    modalities: int = 5
    decoder_rows: int | None = 1
    images: bool = False
    missing: float = 0.0
    steps: int = 150


TRAINING = (
    Workload(name="MoPoE 5 x 100", model="mopoe", goal=1.0),
    Workload(name="MVAE 5 x 100", model="mvae", goal=1.0, decoder_rows=2),
    Workload(
        name="MMVAE K=1 5 x 100", model="mmvae", options={"n_samples": 1}, goal=1.0, decoder_rows=5
    ),
    Workload(
        name="MMVAE K=10 5 x 100",
        model="mmvae",
        options={"n_samples": 10},
        goal=1.0,
        decoder_rows=50,
        steps=20,
    ),
    Workload(name="MoPoE 8 x 100", model="mopoe", goal=1.8, modalities=8),
    Workload(
        name="MoPoE 5 x 3x28x28, half missing",
        model="mopoe",
        goal=0.6,
        images=True,
        missing=0.5,
        steps=4,
    ),
    Workload(name="MVTCAE 5 x 100", model="mvtcae"),
    Workload(name="mmJSD 5 x 100", model="mmjsd"),
    Workload(name="gPoE 5 x 100", model="gpoe"),
    Workload(
        name="DMVAE 5 x 100",
        model="dmvae",
        options={"private_dims": {}},
        decoder_rows=6,
        steps=60,
    ),
    Workload(
        name="MMVAE+ K=1 5 x 100",
        model="mmvae_plus",
        options={"n_samples": 1, "private_dims": {}},
        decoder_rows=5,
        steps=60,
    ),
    Workload(name="mWAE 5 x 100", model="mwae", decoder_rows=5, steps=60),
    Workload(name="mAAE 5 x 100", model="maae", decoder_rows=5, steps=60),
    Workload(name="masked_pi 5 x 100", model="masked_pi", steps=60),
    Workload(name="CoDE-VAE 5 x 100", model="codevae", decoder_rows=31, steps=20),
    Workload(name="HelVAE 5 x 100", model="helvae"),
    Workload(name="MWB-VAE 5 x 100", model="mwbvae"),
    Workload(name="CRMVAE 5 x 100", model="crmvae", goal=1.1, decoder_rows=2),
    Workload(name="MCVAE 5 x 100", model="mcvae", decoder_rows=5, steps=60),
    Workload(
        name="MCVAE sparse 5 x 100",
        model="mcvae",
        options={"sparse": True},
        decoder_rows=5,
        steps=60,
    ),
    Workload(name="VCCA 5 x 100", model="dvcca", decoder_rows=5, steps=60),
    Workload(name="MMVM 5 x 100", model="mmvm"),
    Workload(
        name="CMVAE K=1 5 x 100",
        model="cmvae",
        options={"n_samples": 1, "private_dims": {}},
        goal=1.3,
        decoder_rows=5,
        steps=60,
    ),
    *(
        Workload(
            name=f"{label} 5 x 100 *",
            model=model,
            options=options,
            goal=goal,
            decoder_rows=None,
            steps=4 if model == "mhvae" else 20,
        )
        for label, model, options, goal in (
            ("MoPoE", "mopoe", {}, None),
            ("JMVAE", "jmvae", {}, 1.1),
            ("TELBO", "telbo", {}, None),
            ("JNF", "jnf", {}, None),
            ("CVAE", "cvae", {"main": "m0"}, None),
            ("DCCAE", "dccae", {"correlation": "pairwise"}, None),
            ("latent translation", "latent_translation", {}, None),
            ("Nexus", "nexus", {}, None),
            ("MHVAE, 31 subsets", "mhvae", {}, None),
        )
    ),
)


def main() -> None:
    """Print the table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", default="", help="part of a line's name")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else arguments.rounds
    torch.set_num_threads(1)
    rows: list[tuple[str, list[float], float | None]] = [
        (w.name, training_ratio(w, rounds), w.goal) for w in TRAINING if arguments.only in w.name
    ]
    for model in ("mopoe", "mvae", "mmvae"):
        name = f"log-likelihood, {model} 5 x 100, K=1000"
        if arguments.only in name:
            rows.append((name, likelihood_ratio(model, rounds), 1.7))
    print(f"{'time over floor':<40} {'median':>7} {'min':>6} {'max':>6} {'goal':>6}")
    for name, ratios, goal in rows:
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        wanted = "     -" if goal is None else f"{goal:6.2f}"
        print(f"{name:<40} {middle:7.2f} {low:6.2f} {high:6.2f} {wanted}")
    if arguments.json:
        figures = {name: ratios for name, ratios, _ in rows}
        arguments.json.write_text(json.dumps(figures, indent=1))


def training_ratio(work: Workload, rounds: int) -> list[float]:
    """Ratios of CPU seconds per step, ours over the floor's."""
    torch.manual_seed(0)
    shape = PIXELS if work.images else (TABULAR,)
    names = [f"m{i}" for i in range(work.modalities)]
    values = {name: torch.randn(512 if work.images else 2048, *shape) for name in names}
    data = mv.IncompleteDataset(values)
    if work.missing:
        data = data.hide(work.missing, seed=0, keep_one=True)
    latent = 64 if work.images else 20
    own = work.decoder_rows is None
    layers = {"encoder": _HIDDEN, "decoder": _HIDDEN} if own else {}
    networks = {
        "encoders": {name: _encoder(work.images) for name in names},
        "decoders": {name: _decoder(work.images, latent) for name in names},
    }
    model = mv.create_model(
        work.model,
        data,
        latent_dim=latent,
        modalities={
            name: {"likelihood": "normal", "standardise": False} | layers for name in names
        },
        **({} if own else networks),
        **work.options,
    )

    def ours(steps: int, **others: object) -> None:
        mv.Trainer(steps=steps, batch_size=128, seed=0, progress=False, **others).fit(model, data)

    if work.decoder_rows is None:
        bare: Callable[[int], None] = Replay(model)
        with bare.recording() as marker:
            ours(4, callbacks=[marker])
    else:
        bare = bare_training(
            [_TwoHeads(_encoder(work.images), latent) for _ in names],
            [_decoder(work.images, latent) for _ in names],
            list(values.values()),
            latent,
            128,
            work.decoder_rows,
        )
    return _alternate(ours, bare, work.steps, rounds)


def likelihood_ratio(name: str, rounds: int) -> list[float]:
    """Ratios of CPU seconds per row of a likelihood with 1,000 samples, over decoders only."""
    torch.manual_seed(0)
    names = [f"m{i}" for i in range(5)]
    values = {m: torch.randn(64, TABULAR) for m in names}
    data = mv.IncompleteDataset(values)
    decoders = {m: _decoder(False, 20) for m in names}
    model = mv.create_model(
        name,
        data,
        latent_dim=20,
        modalities={m: {"likelihood": "normal", "standardise": False} for m in names},
        encoders={m: _encoder(False) for m in names},
        decoders=decoders,
    )
    bare = bare_decoding(list(decoders.values()), list(values.values()), 20, 1000)

    def ours(rows: int) -> None:
        model.log_likelihood(data.subset(torch.arange(rows)), n_samples=1000)

    return _alternate(ours, bare, 32, rounds)


def _alternate(
    ours: Callable[[int], None], bare: Callable[[int], None], amount: int, rounds: int
) -> list[float]:
    ours(2)
    bare(2)
    ratios = []
    for _ in range(rounds):
        seconds = []
        for run in (ours, bare):
            start = time.process_time()
            run(amount)
            seconds.append(time.process_time() - start)
        ratios.append(seconds[0] / seconds[1])
    return ratios


class _TwoHeads(nn.Module):
    """The peer's encoder: one linear head for the mean and one for the log-variance."""

    def __init__(self, trunk: nn.Module, latent: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.mean = nn.LazyLinear(latent)
        self.log_variance = nn.LazyLinear(latent)

    def forward(self, values: Tensor) -> Tensor:
        """Mean and log-variance side by side, ``(B, 2D)``."""
        features = self.trunk(values)
        return torch.cat([self.mean(features), self.log_variance(features)], dim=1)


def _encoder(images: bool) -> nn.Module:
    """The peer's sizes: 100-256 for vectors; three strided convolutions for images."""
    if not images:
        return nn.Sequential(nn.Linear(TABULAR, 256), nn.ReLU())
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    )


def _decoder(images: bool, latent: int) -> nn.Module:
    if not images:
        return nn.Sequential(nn.Linear(latent, 256), nn.ReLU(), nn.Linear(256, TABULAR))
    return nn.Sequential(
        nn.Linear(latent, 2048),
        nn.ReLU(),
        nn.Unflatten(1, (128, 4, 4)),
        nn.ConvTranspose2d(128, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 3, 3, stride=2, padding=1, output_padding=1),
    )


if __name__ == "__main__":
    main()
