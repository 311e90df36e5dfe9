"""What the conformance kit is run on: every registered model, and options worth a run."""

from __future__ import annotations

from typing import Any

import multivae_core as mv
from multivae_core.testing import Case
from multivae_core.testing.bench import Bench
from multivae_core.testing.oracle import Oracle

from . import families

__all__ = ["CASES", "every_case"]

REFERENCE = {"reference": "a", "missing_reference": "skip", "private_dims": {"a": 2, "b": 2}}
GAUSSIAN = {"family": "normal", "private_dims": 1}
"""MMVAE+ with the prior N(0, I): its default experts come with a Laplace prior."""


def with_reference() -> Oracle:
    """Rows that show the reference: of others VCCA knows the prior alone."""
    return Oracle.of(Bench(Case(model="dvcca", options=REFERENCE, needed=("a",))))


def varied(model: str, label: str, **options: Any) -> Case:
    """A case with options, under a short name."""
    return Case(model=model, options=options, label=f"{model} {label}")


CASES: dict[str, list[Case]] = {
    **families.CASES,
    "dmvae": [
        Case(model="dmvae"),
        varied(
            "dmvae",
            "private",
            private_dims={"a": 2},
            n_sources=2,
            kl_count="official",
            prior_expert="always",
        ),
    ],
    "dvcca": [
        Case(model="dvcca"),
        Case(model="dvcca", options=REFERENCE, truth=with_reference, label="dvcca reference"),
    ],
    "gpoe": [
        Case(model="gpoe"),
        varied("gpoe", "mixture", fusion="mixture_of_products", private_dims={"b": 2}),
    ],
    "maae": [Case(model="maae"), varied("maae", "gan-gp", divergence="gan-gp", n_critic=2)],
    "mcvae": [
        Case(model="mcvae"),
        varied("mcvae", "sparse", sparse=True, threshold=0.5, cross_norm="mean"),
    ],
    "mmjsd": [
        Case(model="mmjsd"),
        varied(
            "mmjsd",
            "private",
            prior_component="sampled",
            private_dims={"a": 2},
            aggregation="mixture",
        ),
    ],
    "mmvae": [
        Case(model="mmvae"),
        varied("mmvae", "dreg", n_samples=2, estimator="dreg", bound="tight", family="normal"),
        varied("mmvae", "sources", n_samples=3, n_sources=1),
    ],
    "mmvae_plus": [
        Case(model="mmvae_plus", oracle=GAUSSIAN),
        varied(
            "mmvae_plus",
            "dreg",
            n_samples=2,
            estimator="dreg",
            bound="tight",
            family="normal",
            private_dims={"a": 2},
        ),
    ],
    "mopoe": [
        Case(model="mopoe"),
        varied(
            "mopoe",
            "private",
            private_dims={"a": 2, "b": 2},
            n_components_per_step=2,
            encode_with="mixture",
        ),
        varied("mopoe", "subsets", n_subsets=2, proposal="product"),
    ],
    "mvae": [
        Case(model="mvae"),
        varied("mvae", "random subsets", n_subsets=1, per_row_subsets=True, prior_expert="never"),
        varied("mvae", "weighted", fusion="weighted_product", term_reduction="mean"),
    ],
    "mvtcae": [
        Case(model="mvtcae"),
        varied("mvtcae", "total", normalise="total", proposal="defensive", prior_expert="largest"),
    ],
    "mwae": [Case(model="mwae"), varied("mwae", "wgan-gp", divergence="wgan-gp", alignment=0.1)],
}
"""Model -> its cases. A model that is not named here is run with its default options."""


def every_case() -> list[Case]:
    """The cases of every registered model, in the order of their names."""
    names = mv.registry.models.names()
    return [case for name in names for case in CASES.get(name, [Case(model=name)])]
