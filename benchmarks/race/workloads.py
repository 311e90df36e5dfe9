"""What is raced: data, networks, and the options with which both sides have one objective."""

from __future__ import annotations

import functools
from typing import Any

import attrs
import pictures
from torch import nn

import multivae_core as mv

__all__ = ["LEARNING_RATE", "SEEDS", "WORKLOADS", "Data", "Workload", "decoder", "load", "trunk"]

LEARNING_RATE = 1e-3
SEEDS = (0, 1, 2)

# Each comes with the peer's words for the same objective; both keep their other defaults.
_LAPLACE = {"family": "laplace_with_softmax", "estimator": "iwae", "n_samples": 1}
_PEER_LAPLACE = {
    "prior_and_posterior_dist": "laplace_with_softmax",
    "loss": "iwae_looser",
    "K": 1,
}


@attrs.frozen(kw_only=True, eq=False)
class Workload:
    """One line of the table.

    Args:
        data: Name of the data set.
        model: Our name of the model.
        peer: The peer's name of the model.
        missing: Share of the modalities that training data lack.
        latent_dim: Size D of the shared latent.
        private_dim: Size of every private latent; 0: there is none.
        epochs: Passes over the training data.
        batch_size: Rows of a step.
        options: Options of our model.
        peer_options: Options of the peer's model.
    """

    data: str
    model: str
    peer: str
    missing: float = 0.0
    latent_dim: int
    private_dim: int = 0
    epochs: int
    batch_size: int = 128
    options: dict[str, Any]
    peer_options: dict[str, Any]

    @property
    def name(self) -> str:
        """What ``--only`` looks for."""
        return f"{self.data}/{self.model}/{'half' if self.missing else 'complete'}"


def _mfeat(
    model: str, peer: str, options: dict[str, Any], peer_options: dict[str, Any], **others: Any
) -> list[Workload]:
    """Complete and half missing; options that depend on it are a pair."""
    return [
        Workload(
            data="mfeat",
            model=model,
            peer=peer,
            missing=0.5 * half,
            latent_dim=20,
            epochs=30,
            options=_chosen(options, half),
            peer_options=_chosen(peer_options, half),
            **others,
        )
        for half in (0, 1)
    ]


def _chosen(options: dict[str, Any], half: int) -> dict[str, Any]:
    return {k: v[half] if isinstance(v, tuple) else v for k, v in options.items()}


def _pictures(
    model: str, peer: str, options: dict[str, Any], peer_options: dict[str, Any], **others: Any
) -> Workload:
    return Workload(
        data="polymnist",
        model=model,
        peer=peer,
        latent_dim=32,
        epochs=40,
        # 2,000 rows are 16 such batches: of a short one the peer's MoPoE gives most rows, and of
        # one of 128 twice the share, to the full subset, which is another objective
        batch_size=125,
        options=options,
        peer_options=peer_options,
        **others,
    )


WORKLOADS = (
    # With holes the two count the terms of subsets differently; without these terms, which the
    # peer advises against on such data, they do not.
    *_mfeat(
        "mvae",
        "MVAE",
        {"subsampling": (True, False)},
        {"use_subsampling": (True, False), "k": 0, "warmup": 0},
    ),
    *_mfeat("mmvae", "MMVAE", {**_LAPLACE, "learn_prior": True}, _PEER_LAPLACE),
    *_mfeat("mopoe", "MoPoE", {"prior_expert": "full_set"}, {}),
    *_mfeat(
        "mvtcae",
        "MVTCAE",
        {"alpha": 5 / 6, "beta": 2.5, "normalise": "total"},
        {"alpha": 5 / 6, "beta": 2.5},
    ),
    *_mfeat("mmvae_plus", "MMVAEPlus", _LAPLACE, _PEER_LAPLACE, private_dim=8),
    _pictures("mopoe", "MoPoE", {"prior_expert": "full_set"}, {}),
    _pictures("mmvae_plus", "MMVAEPlus", _LAPLACE, _PEER_LAPLACE, private_dim=16),
)


@attrs.frozen(kw_only=True)
class Data:
    """The rows of a workload, standardised by the moments of the complete training rows.

    Args:
        train: What both sides train on, with its holes.
        complete: The same rows without holes, for probes.
        test: Held-out complete rows.
    """

    train: mv.IncompleteDataset
    complete: mv.IncompleteDataset
    test: mv.IncompleteDataset


@functools.cache
def load(name: str, missing: float) -> Data:
    """Return the data of a workload; the same rows and the same holes for every seed."""
    if name == "mfeat":
        train, test = mv.load_dataset("mfeat").split(0.7, seed=0)
        complete = pictures.standardised(train, train)
        test = pictures.standardised(test, train)
    else:
        complete = pictures.load("train", pictures.TRAINING_ROWS)
        test = pictures.load("test", 500)
    hidden = complete.hide(missing, seed=0, keep_one=True) if missing else complete
    return Data(train=hidden, complete=complete, test=test)


def trunk(shape: tuple[int, ...]) -> nn.Sequential:
    """Features of a modality: one hidden layer of 256, or two convolutions of stride 2."""
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(shape[0], 256), nn.ReLU())
    return pictures.trunk(shape[0])


def decoder(shape: tuple[int, ...], latent: int) -> nn.Sequential:
    """A modality out of its latents, the layers of the trunk backwards."""
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(latent, 256), nn.ReLU(), nn.Linear(256, shape[0]))
    return pictures.decoder(shape[0], latent)
