"""Cases of the families whose truth or options need more words: joint, hierarchical, mixture."""

from __future__ import annotations

from functools import partial

from multivae_core.testing import Case

from . import hierarchical

__all__ = ["CASES"]

FLOWS = {"hidden": [8], "transforms": 2, "context_dim": 4, "n_mean": 4, "sampler": "sir"}
ONE_CLUSTER = {"type": "gmm", "n_components": 1, "learn_scales": False, "spread": 0.0}
CLUSTERED = {"family": "normal", "private_dims": 1, "prior": ONE_CLUSTER}
"""The truth of the kit has the prior N(0, I); one that is a mixture is in the plugin's tests."""
RANDOM = {"subsets": "random", "n_subsets": 2, "kl": "mc"}
ALONE = {"subset_weights": "equal", "alone": ["a"], "weight_norm": True, "recompute": True}

PAIRED = {
    "pairing": "poe",
    "beta_align": 0.0,
    "residual": True,
    "gated": True,
    "bridge_layers": [8],
}

CASES: dict[str, list[Case]] = {
    "cmvae": [
        Case(model="cmvae", oracle=CLUSTERED),
        Case(
            model="cmvae",
            options={"n_samples": 2, "estimator": "dreg", "cross_private": "aux"},
            oracle=CLUSTERED,
            label="cmvae dreg",
        ),
    ],
    "cvae": [
        Case(model="cvae", options={"main": "a"}, needed=("a",), label="cvae"),
        Case(
            model="cvae",
            options={"main": "a", "conditional_prior": "learned", "free_bits": 0.05},
            needed=("a",),
            label="cvae free bits",
        ),
    ],
    "dccae": [
        # codes of which the kit's small batches say something
        Case(model="dccae", options={"latent_dim": 2}, label="dccae"),
        Case(model="dccae", options={"correlation": "pairwise"}, label="dccae pairwise"),
    ],
    "latent_translation": [
        Case(model="latent_translation"),
        Case(model="latent_translation", options=PAIRED, label="latent_translation pairs"),
    ],
    "jnf": [Case(model="jnf", options={**FLOWS, "candidates": 8}, label="jnf")],
    "mhvae": [
        Case(model="mhvae", truth=hierarchical.mhvae),
        Case(
            model="mhvae",
            options={
                **RANDOM,
                "channels": [8, 6],
                "latent_channels": [5, 4],
                "share": "none",
                "normalise": "mean_modality",
                **ALONE,
            },
            truth=partial(hierarchical.mhvae, **RANDOM),
            label="mhvae random",
        ),
    ],
    "mmvm": [
        Case(model="mmvm"),
        Case(
            model="mmvm",
            options={
                "alpha": 0.2,
                "prior_kl": "mixture",
                "encode_with": "product",
                "missing_norm": "total",
            },
            label="mmvm mixture",
        ),
    ],
    "nexus": [
        Case(model="nexus", truth=hierarchical.nexus),
        Case(
            model="nexus",
            options={
                "modality_dims": {"a": 2, "b": 4},
                "msg_dim": 6,
                "aggregate": "sum",
                "dropout_rate": 0.8,
                "normalise": "mean_modality",
                "pretrain": ["b"],
                "sample_bottom": True,
            },
            truth=partial(hierarchical.nexus, dropout_rate=0.8),
            label="nexus options",
        ),
    ],
}
