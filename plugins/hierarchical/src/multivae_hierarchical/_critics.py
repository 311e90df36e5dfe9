"""The adversarial option: least-squares critics of reconstructions, patch by patch.

D_m is to give 1 for measurements and 0 for reconstructions (Mao et al. 2017); the model adds

    w sum_{m in A} d_m mean over passes and patches of (D_m(mean of p(x_m | z_1)) - 1)^2

to its loss, d_m being the number of elements, as the authors' code does; with
``adversarial_missing`` the sum is over all modalities, also those that a row lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from multivae_core.data import Batch
from multivae_core.likelihoods import Likelihood
from multivae_core.losses import LossOutput, Term
from multivae_core.networks.heads import PerModality
from multivae_core.noise import Step
from multivae_core.posteriors import Latents
from multivae_core.stages import Player, Stage
from multivae_hierarchical._subsets import draw_subsets

if TYPE_CHECKING:
    from multivae_hierarchical.mhvae import MHVAE

__all__ = ["build_critics", "fooled", "judged", "with_critics"]

_CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}


def build_critics(model: MHVAE) -> PerModality[nn.Module]:
    """One critic per modality: convolutions over images and volumes, layers over all else."""
    return PerModality(
        {name: _critic(model.config.modalities[name].shape) for name in model.modalities}
    )


def judged(subsets: Tensor, valid: Tensor, batch: Batch) -> Tensor:
    """Passes whose reconstructions are judged, ``(S, B)``: those from single modalities.

    Where a row has none of these, all passes from a part of what it has.
    """
    single = valid & (subsets.sum(dim=2) == 1)
    part = valid & (subsets != batch.present).any(dim=2)
    return torch.where(single.any(dim=0), single, part)


def fooled(model: MHVAE, latents: Latents, passes: Tensor, batch: Batch) -> Tensor:
    """The model's part, ``(B,)``.

    Args:
        model: Gives decoders and critics.
        latents: Latent -> ``(S, B, *event)``.
        passes: See `judged`.
        batch: What is seen.
    """
    weight = model.config.adversarial
    total = torch.zeros(batch.size, dtype=model.dtype, device=model.device)
    for name in model.modalities:
        score = _scores(model, name, latents, passes, batch, 1.0)
        total = total + weight * batch.values[name][0].numel() * score
    return total


def with_critics(model: MHVAE) -> tuple[Stage, ...]:
    """One stage in which the critics are a second player, after the model."""
    own = (model.encoders, model.decoders, model.hierarchy, model.shared_prior)
    first = Player(name="model", parameters=own, loss=model.loss_pieces)

    def loss(batch: Batch, step: Step) -> Iterator[LossOutput]:
        subsets, weights = draw_subsets(model.config, batch.present, step.noise, model.dtype)
        with torch.no_grad():
            latents = model.passes(batch, subsets, weights > 0, step)[1]
        yield _critic_loss(model, latents, judged(subsets, weights > 0, batch), batch)

    rate = {"lr": model.config.critic_lr}
    second = Player(name="critics", parameters=(model.critics,), loss=loss, optimiser=rate)
    return (Stage(name="train", players=(first, second)),)


def _critic_loss(model: MHVAE, latents: Latents, passes: Tensor, batch: Batch) -> LossOutput:
    """Half the squared distance from 1 and from 0, the sum over what a row has.

    What is decoded for a row that lacks the modality stands beside the mean over the measurements
    of the rows at hand, each process having its own; where there is none, it is left out.
    """
    terms = {}
    for name in model.modalities:
        values = torch.where(batch.seen(name), batch.values[name], 0.0)
        own = batch.column(name)
        real = torch.where(own, _distance(model, name, values, 1.0), 0.0)
        judged_here = passes
        if model.config.adversarial_missing:
            others = real.sum() / own.sum().clamp_min(1)
            real = torch.where(own | ~batch.something, real, others)
            judged_here = passes & own.any()
        fake = _scores(model, name, latents, judged_here, batch, 0.0)
        terms[name] = 0.5 * (real + fake)
    return LossOutput(terms={"critic": Term(torch.stack([*terms.values()]).sum(dim=0))})


def _scores(
    model: MHVAE, name: str, latents: Latents, passes: Tensor, batch: Batch, target: float
) -> Tensor:
    """Mean over the passes of a row of the squared distance from the target, ``(B,)``."""
    lacking = ~batch.column(name) & model.config.adversarial_missing
    wanted = (passes & (batch.column(name) | lacking)).flatten().nonzero().squeeze(1)
    rows = wanted % batch.size
    part = {
        latent: value.flatten(0, 1).index_select(0, wanted)[None]
        for latent, value in latents.items()
    }
    likelihood: Likelihood = model.decode_one(name, part, batch, rows)
    # without a gradient into decoders that the critics do not move
    mean = likelihood.mean[0] if target else likelihood.mean[0].detach()
    # holes are as empty as in measurements; what a row lacks is judged as a whole
    whole = lacking.view(-1, *(1 for _ in mean.shape[1:]))
    seen = (batch.seen(name) | whole).index_select(0, rows)
    each = _distance(model, name, torch.where(seen, mean, 0.0), target)
    count = passes.sum(dim=0).clamp_min(1)
    return each.new_zeros(batch.size).index_add(0, rows, each) / count


def _distance(model: MHVAE, name: str, values: Tensor, target: float) -> Tensor:
    patches: Tensor = model.critics[name](values)
    return (patches.flatten(1) - target).square().mean(dim=1)


def _critic(shape: tuple[int, ...]) -> nn.Module:
    rank = len(shape) - 1
    if rank not in _CONVOLUTIONS or min(shape[1:]) < 4:
        inputs = torch.Size(shape).numel()
        layers = [nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)]
        return nn.Sequential(nn.Flatten(), *layers)
    conv = _CONVOLUTIONS[rank]
    leaky = nn.LeakyReLU(0.2)
    first, second = conv(shape[0], 32, 4, 2, 1), conv(32, 64, 3, 2, 1)
    return nn.Sequential(first, leaky, second, leaky, conv(64, 1, 3, 1, 1))
