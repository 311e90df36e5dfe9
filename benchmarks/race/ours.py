"""Our side of the race. Weights pass between the sides as plain tensors with neutral names.

``encoder.M.trunk.*``, ``encoder.M.head.*`` (location and raw scale of the shared latent, then of
the private one), ``decoder.M.*``; raw scales of learned priors: ``prior`` of the shared latent,
``prior.M`` of private latents in reconstructions of M from others.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from workloads import LEARNING_RATE, Data, Workload, decoder, trunk

import multivae_core as mv
from multivae_core.private_mixture_vae import PrivateMixtureVAE

__all__ = ["build", "load_weights", "train", "weights"]


def build(work: Workload, data: Data, seed: int) -> mv.MultimodalVAE:
    """Return our untrained model; the weights depend on the seed alone."""
    shapes = data.train.shapes
    torch.manual_seed(seed)
    trunks = {name: trunk(shape) for name, shape in shapes.items()}
    size = work.latent_dim + work.private_dim
    decoders = {name: decoder(shape, size) for name, shape in shapes.items()}
    private: dict[str, Any] = {}
    if work.private_dim:
        private["private_dims"] = dict.fromkeys(shapes, work.private_dim)
    normal = {"likelihood": {"type": "normal", "scale": 1.0}, "standardise": False}
    return mv.create_model(
        work.model,
        data.train,
        latent_dim=work.latent_dim,
        modalities=dict.fromkeys(shapes, normal),
        encoders=trunks,
        decoders=decoders,
        seed=seed,
        **work.options,
        **private,
    )


def train(
    work: Workload, model: mv.MultimodalVAE, data: mv.IncompleteDataset, epochs: int, seed: int
) -> float:
    """Train, and return the CPU seconds that it took."""
    trainer = mv.Trainer(
        epochs=epochs, batch_size=work.batch_size, lr=LEARNING_RATE, seed=seed, progress=False
    )
    start = time.process_time()
    trainer.fit(model, data)
    return time.process_time() - start


def weights(model: mv.MultimodalVAE) -> dict[str, Tensor]:
    """Return a copy of all weights under their neutral names."""
    found = {
        f"{role}.{name}": value.detach().clone()
        for role, module in _modules(model).items()
        for name, value in module.state_dict().items()
    }
    return found | {name: value.detach().clone() for name, value in _priors(model).items()}


def load_weights(model: mv.MultimodalVAE, given: Mapping[str, Tensor]) -> None:
    """Load weights under their neutral names; all of them, and nothing else."""
    left = dict(given)
    for role, module in _modules(model).items():
        module.load_state_dict({n: left.pop(f"{role}.{n}") for n in list(module.state_dict())})
    with torch.no_grad():
        for name, value in _priors(model).items():
            value.copy_(left.pop(name).view_as(value))
    if left:
        raise ValueError(f"our {type(model).__name__} has no place for {sorted(left)}")


def _modules(model: mv.MultimodalVAE) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name in model.modalities:
        encoder: Any = model.encoders[name]
        found[f"encoder.{name}.trunk"] = encoder.trunk.network
        found[f"encoder.{name}.head"] = encoder.head
        found[f"decoder.{name}"] = model.decoders[name].network
    return found


def _priors(model: Any) -> dict[str, Tensor]:
    """Raw scales of the priors that are learned; the others are 0 on both sides."""
    found = {"prior": getattr(model.shared_prior, "raw_scale", None)}
    if isinstance(model, PrivateMixtureVAE):
        for name in model.modalities:
            found[f"prior.{name}"] = model.auxiliary_prior(name).raw_scale
    return {name: raw for name, raw in found.items() if raw is not None and raw.requires_grad}
