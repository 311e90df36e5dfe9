"""The other side of the race: the package ``multivae`` 1.0.3, with our networks and weights."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from workloads import LEARNING_RATE, Data, Workload, decoder, trunk

import multivae_core as mv

try:
    import torchvision  # noqa: F401  the peer does
except RuntimeError:
    # Built for CUDA, as on PyPI for Linux, it fails beside a CPU build of torch, which cannot
    # load its operators. A race needs none of them: it is enough that they are declared.
    _OPERATORS = torch.library.Library("torchvision", "DEF")
    for _operator in ("nms", "qnms"):
        _OPERATORS.define(f"{_operator}(Tensor a, Tensor b, float c) -> Tensor")

import multivae.models
from multivae.data import IncompleteDataset, MultimodalBaseDataset
from multivae.models.base import ModelOutput
from multivae.models.nn import BaseMultilatentEncoder
from multivae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.models.nn.base_architectures import BaseDecoder, BaseEncoder

__all__ = ["Refused", "build", "load_weights", "train", "weights"]

logging.disable(logging.INFO)  # the peer tells every epoch on the console


class Refused(Exception):
    """The peer does not train this model on data with holes."""


class _Encoder(BaseEncoder):
    """A trunk and one linear head: location and raw scale of the shared latent."""

    def __init__(self, shape: tuple[int, ...], latent_dim: int, private_dim: int) -> None:
        super().__init__()
        self.latent_dim, self.style_dim = latent_dim, private_dim
        self.trunk = trunk(shape)
        with torch.no_grad():
            features = self.trunk(torch.zeros(1, *shape)).shape[1]
        self.head = nn.Linear(features, 2 * (latent_dim + private_dim))

    def forward(self, x: Tensor) -> Any:
        shared, private, raw = self.latent_dim, self.style_dim, self.head(self.trunk(x))
        # slices, not `split`, whose parts the peer could not overwrite, as it does
        found = {"embedding": raw[:, :shared], "log_covariance": raw[:, shared : 2 * shared]}
        if private:
            found["style_embedding"] = raw[:, 2 * shared : -private]
            found["style_log_covariance"] = raw[:, -private:]
        return ModelOutput(**found)


class _PrivateEncoder(_Encoder, BaseMultilatentEncoder):
    """The same, of the class that the peer wants where there are private latents."""


class _Decoder(BaseDecoder):
    def __init__(self, shape: tuple[int, ...], latent: int) -> None:
        super().__init__()
        self.network = decoder(shape, latent)

    def forward(self, z: Tensor) -> Any:
        return ModelOutput(reconstruction=self.network(z))


class _Trainer(BaseTrainer):
    """The peer's trainer without bars, printed numbers and files."""

    def _setup_callbacks(self) -> None:
        super()._setup_callbacks()
        self.callback_handler.callbacks = []

    def save_model(self, model: Any, dir_path: str) -> None:
        """Write nothing: weights leave as tensors."""


def build(work: Workload, data: Data) -> Any:
    """Return the peer's untrained model, to be given weights."""
    shapes = data.train.shapes
    kind = getattr(multivae.models, work.peer)
    config = getattr(multivae.models, f"{work.peer}Config")
    encoder = _PrivateEncoder if work.private_dim else _Encoder
    size = work.latent_dim + work.private_dim
    private = {"modalities_specific_dim": work.private_dim} if work.private_dim else {}
    return kind(
        config(
            n_modalities=len(shapes),
            latent_dim=work.latent_dim,
            input_dims=shapes,
            decoders_dist=dict.fromkeys(shapes, "normal"),
            **work.peer_options,
            **private,
        ),
        {m: encoder(shape, work.latent_dim, work.private_dim) for m, shape in shapes.items()},
        {m: _Decoder(shape, size) for m, shape in shapes.items()},
    )


def train(work: Workload, model: Any, data: mv.IncompleteDataset, epochs: int, seed: int) -> float:
    """Train, and return the CPU seconds that it took.

    Raises:
        Refused: The peer's model does not take data with holes.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=epochs,
            per_device_train_batch_size=work.batch_size,
            learning_rate=LEARNING_RATE,
            seed=seed,
            no_cuda=True,
        )
        try:
            trainer = _Trainer(model, _dataset(data), training_config=config)
        except Exception as error:  # the trainer raises nothing more special
            if "not compatible with incomplete" in str(error):
                raise Refused(str(error)) from error
            raise
        start = time.process_time()
        trainer.train()
        return time.process_time() - start


def weights(model: Any) -> dict[str, Tensor]:
    """Return a copy of all weights under their neutral names; see `ours`."""
    return {name: value.detach().clone() for name, value in _tensors(model).items()}


def load_weights(model: Any, given: Mapping[str, Tensor]) -> None:
    """Load weights under their neutral names; all of them, and nothing else."""
    own = _tensors(model)
    if set(own) != set(given):
        raise ValueError(f"weights differ: {sorted(set(own) ^ set(given))}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(given[name].view_as(value))


def _tensors(model: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for role, networks in (("encoder", model.encoders), ("decoder", model.decoders)):
        for modality, network in networks.items():
            for name, value in network.named_parameters():
                found[f"{role}.{modality}.{name.removeprefix('network.')}"] = value
    if hasattr(model, "prior_log_var"):  # MMVAE
        found["prior"] = model.prior_log_var
    if hasattr(model, "logvars_priors"):  # MMVAE+
        found |= {f"prior.{m}": model.logvars_priors[m] for m in model.encoders}
    return found


def _dataset(data: mv.IncompleteDataset) -> Any:
    """The peer's data set: zeros under holes, and masks if there are any."""
    batch = data.batch()
    if bool(data.present.all()):
        return MultimodalBaseDataset(batch.values)
    masks = {name: batch.column(name) for name in batch.names}
    return IncompleteDataset(data=batch.values, masks=masks)
