"""What it costs JNF to infer the latents of rows that have 2 of 3 modalities.

MultiVae 1.0.3 runs the encoder of each modality of the subset once for the start of its chains,
and again for every energy that they ask for: 1 at the start of a move and 10 in its leapfrog
steps, in 100 moves. These are 1 + 100 x (1 + 10) = 1,101 passes per encoder. Here what encoders
give is kept, because it does not change while a chain moves.

64 rows, 3 modalities of 100 features, 20 latents, one sample per row, weights as they are at the
start: neither passes nor seconds depend on training. One thread.

Run ``python benchmarks/subset_cost.py``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

import multivae_core as mv

__all__ = ["Cost", "main", "measure"]

ROWS, FEATURES, LATENTS = 64, 100, 20
NAMES, SEEN = ("a", "b", "c"), ("a", "b")
PEER = 1101


@attrs.frozen(kw_only=True)
class Cost:
    """What one call of `encode` took.

    Args:
        passes: Network -> number of times that it ran on at least one row.
        cpu: Seconds of CPU.
        wall: Seconds.
    """

    passes: dict[str, int]
    cpu: float
    wall: float


@contextmanager
def counted(networks: dict[str, nn.Module]) -> Iterator[Counter[str]]:
    """Count how often each network runs on at least one row."""
    found: Counter[str] = Counter(dict.fromkeys(networks, 0))

    def hook(name: str) -> Any:
        def count(module: nn.Module, given: Any, result: Any) -> None:
            whole = result if isinstance(result, Tensor) else next(iter(result.values()))
            found[name] += len(whole) > 0

        return count

    handles = [each.register_forward_hook(hook(name)) for name, each in networks.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def measure(sampler: str, rows: int = ROWS) -> Cost:
    """Encode rows that have 2 of 3 modalities, after a first call that is not measured.

    Args:
        sampler: ``hmc`` or ``sir``; the other options are the defaults.
        rows: Number of rows.
    """
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(rows, FEATURES)).astype(np.float32) for name in NAMES}
    data = mv.IncompleteDataset(values)
    model = mv.create_model("jnf", data, latent_dim=LATENTS, sampler=sampler, seed=0)
    seen = data.restrict(SEEN)
    model.encode(seen.subset(slice(0, 2)), n_samples=1, seed=0)
    own: Any = model
    networks: dict[str, nn.Module] = {name: own.encoders[name] for name in NAMES}
    networks["joint encoder"] = own.joint_encoder
    with counted(networks) as passes:
        wall, cpu = time.perf_counter(), time.process_time()
        model.encode(seen, n_samples=1, seed=0)
        return Cost(
            passes=dict(passes),
            cpu=time.process_time() - cpu,
            wall=time.perf_counter() - wall,
        )


def main() -> None:
    """Print passes and seconds of both samplers."""
    torch.set_num_threads(1)
    print(f"{ROWS} rows, {len(SEEN)} of {len(NAMES)} modalities, {LATENTS} latents")
    for sampler in ("hmc", "sir"):
        cost = measure(sampler)
        passes = ", ".join(f"{name} {number:,}" for name, number in cost.passes.items())
        print(
            f"{sampler}: passes of the encoders {passes} (MultiVae {PEER:,} for each of"
            f" {', '.join(SEEN)}); {cost.cpu:.1f} s of CPU, {cost.wall:.1f} s"
        )


if __name__ == "__main__":
    main()
