"""What ties the codes of different modalities together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from multivae_core.distributions import Normal
from multivae_core.errors import DataError
from multivae_core.losses import Term
from multivae_core.noise import NoiseSource

__all__ = ["class_term", "cross_term", "pair_term", "product_term", "sliced_wasserstein"]

Decode = Callable[[Tensor, int], Tensor]


def sliced_wasserstein(
    z: Tensor, present: Tensor, n_projections: int, noise: NoiseSource, pooled: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean distance between the codes of two modalities, along random directions.

    Along a direction both sides are sorted and the mean absolute difference is taken (Tian &
    Engel 2019). The codes need not belong to the same rows; where one modality has more rows than
    the other, its first ones count. Against the pooled codes it is their quantiles that count.

    Args:
        z: Codes, ``(M, B, D)``.
        present: ``(B, M)`` bool.
        n_projections: Number of directions.
        noise: Gives the directions, the same for all rows.
        pooled: Whether every modality is held against the codes of all of them together, which
            costs M distances, and not against every other one, which costs M (M - 1) / 2.

    Returns:
        The mean over these distances, weighted by rows, and the number of rows.
    """
    uniform = noise.batch_uniform("directions", (n_projections, 1, z.shape[2]))[:, 0]
    directions = torch.special.ndtri(uniform.double()).to(z.dtype)
    directions = directions / directions.norm(dim=1, keepdim=True)
    along = [own.index_select(0, there.nonzero()[:, 0]) @ directions.T
             for own, there in zip(z, present.T, strict=True)]  # fmt: skip
    total, rows = z.new_zeros(()), 0
    for apart in _from_pooled(along) if pooled else _between_pairs(along):
        if len(apart):
            total, rows = total + len(apart) * apart.abs().mean(), rows + len(apart)
    return total / max(rows, 1), total.new_tensor(float(rows))


def _between_pairs(along: list[Tensor]) -> Iterator[Tensor]:
    """Differences of the sorted values of every pair, ``(R, P)``."""
    for one, two in itertools.combinations(along, 2):
        count = min(len(one), len(two))
        yield one[:count].sort(dim=0).values - two[:count].sort(dim=0).values


def _from_pooled(along: list[Tensor]) -> Iterator[Tensor]:
    """Differences of sorted values from as many quantiles of all values, ``(R, P)``."""
    everything = torch.cat(along).sort(dim=0).values
    for own in along:
        share = (torch.arange(len(own), device=own.device) + 0.5) / max(len(own), 1)
        yield own.sort(dim=0).values - everything[(share * len(everything)).long()]


def class_term(scores: Tensor, labels: Tensor | None, present: Tensor) -> Term:
    """Cross-entropy of the classes given every code, mean over what a labelled row has.

    Args:
        scores: Logits of every code, ``(M, B, C)``.
        labels: ``(B,)``; below 0: there is none.
        present: ``(B, M)`` bool.

    Raises:
        DataError: No labels, or one that is too high.
    """
    if labels is None:
        raise DataError("beta_class needs labels; give the data set labels, or set it to 0")
    if bool((labels >= scores.shape[2]).any()):
        raise DataError(
            f"a label is {int(labels.max())}, n_classes is {scores.shape[2]}; raise n_classes"
        )
    wanted = labels.long().clamp_min(0).expand(len(scores), -1)
    each = -scores.log_softmax(dim=2).gather(2, wanted[..., None])[..., 0]
    return _mean(each, present.T & (labels >= 0))


def pair_term(codes: Normal, present: Tensor) -> Term:
    """Squared distance between the codes of a row's modalities, mean over its pairs."""
    pairs = torch.combinations(torch.arange(len(codes.mean), device=present.device))
    first, second = pairs.T
    apart = (codes.mean[first] - codes.mean[second]).square().sum(dim=2)
    return _mean(apart, present.T[first] & present.T[second])


def product_term(decode: Decode, z: Tensor, base: Tensor, present: Tensor) -> Term:
    """Squared errors of latents out of one code of the row, in rows with a pair.

    Args:
        decode: Code and number of a modality -> its latent.
        z: Codes, ``(B, D)``.
        base: Latents, ``(M, B, L)``.
        present: ``(B, M)`` bool.
    """
    each = [(own - decode(z, m)).square().mean(dim=1) for m, own in enumerate(base)]
    return _mean(torch.stack(each), present.T & (present.sum(dim=1) > 1))


def cross_term(decode: Decode, z: Tensor, base: Tensor, present: Tensor) -> Term:
    """Squared errors of latents out of the codes of other modalities, ``(M, B, D)``."""
    each, valid = [], []
    for m, own in enumerate(base):
        each.append((own - decode(z, m)).square().mean(dim=2))
        other = torch.arange(len(z), device=z.device) != m
        valid.append(present.T & present[:, m] & other[:, None])
    return _mean(torch.cat(each), torch.cat(valid))


def _mean(each: Tensor, valid: Tensor) -> Term:
    """Mean over what is valid of a row, ``(K, B)``; rows without any weigh 0."""
    count = valid.sum(dim=0)
    value = torch.where(valid, each, 0.0).sum(dim=0) / count.clamp_min(1)
    return Term(value, (count > 0).to(value.dtype))
