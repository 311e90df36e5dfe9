"""Canonical correlations between embeddings of a batch, with gradients.

    corr(u, v) = sum of the singular values of S_uu^(-1/2) S_uv S_vv^(-1/2)

(Andrew, Arora, Bilmes & Livescu 2013, eq. 10), S the covariances over the rows that have both.
For several embeddings at once, with S all their covariances and D its diagonal blocks,

    corr(u_1, ..., u_M) = sum of the k largest eigenvalues of D^(-1/2) S D^(-1/2), less 1 each

which is the same for two (Kettenring 1971, MAXVAR).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from multivae_core.data.batch import Batch
from multivae_core.errors import TrainingError

__all__ = [
    "canonical_maps",
    "check_size",
    "correlation",
    "joint_correlation",
    "sum_of_correlations",
]

_RIDGE = 1e-3


def correlation(left: Tensor, right: Tensor, top: int | None = None) -> Tensor:
    """Sum of the canonical correlations of two embeddings.

    Args:
        left: ``(R, k)``.
        right: ``(R, k)``.
        top: How many count, the largest first; None: all k.
    """
    dtype, left, right = left.dtype, _centred(left), _centred(right)
    scale = 1.0 / max(len(left) - 1, 1)
    between = _whitening(left, scale).mT @ (scale * left.T @ right) @ _whitening(right, scale)
    # in descending order
    total: Tensor = torch.linalg.svdvals(between)[:top].sum()
    return total.to(dtype)


def sum_of_correlations(
    embed: Callable[[str, Batch], Tensor], batch: Batch, top: int | None = None
) -> Tensor:
    """Sum of the correlations of all pairs of modalities, each in the rows that have both.

    A pair with fewer than 4 k such rows is left out: they say nothing about a covariance.

    Args:
        embed: Embeds one modality of a batch in which every row has it, ``(R, k)``.
        batch: What is seen.
        top: See `correlation`.
    """
    parts = []
    for one, two in combinations(batch.names, 2):
        both = batch.take((batch.column(one) & batch.column(two)).nonzero().squeeze(1))
        left, right = embed(one, both), embed(two, both)
        enough = both.size >= 4 * left.shape[1]
        parts.append(correlation(left, right, top) if enough else 0.0 * left.sum())
    return torch.stack(parts).sum()


def check_size(batch: Batch, least: int) -> None:
    """Refuse batches that are too small for a covariance, whatever they lack.

    Raises:
        TrainingError: A batch has fewer rows.
    """
    if batch.size < least:
        raise TrainingError(
            f"a batch of {batch.size} rows says nothing of a correlation that takes {least} rows"
            " with everything it is about; raise batch_size, or choose smaller codes"
        )


def joint_correlation(codes: Tensor, top: int | None = None) -> Tensor:
    """The correlation of M embeddings at once, ``(M, R, k)``; see `correlation`."""
    stacked = _centred(codes.transpose(0, 1).flatten(1))
    covariance = stacked.T @ stacked / max(codes.shape[1] - 1, 1)
    whitened, _ = _whitened(covariance, len(codes))
    found = torch.linalg.eigvalsh(whitened).flip(0)[: top or codes.shape[2]]
    total: Tensor = (found - 1.0).clamp_min(0.0).sum()
    return total.to(codes.dtype)


def canonical_maps(covariance: Tensor, count: int) -> Tensor:
    """The maps from embeddings to canonical variates, ``(M, k, k)``; rows are multiplied by them.

    Variates of different embeddings are what is most correlated between these; their variances
    are 1 on average over the embeddings.

    Args:
        covariance: Of the embeddings side by side, ``(M k, M k)``.
        count: Their number M.
    """
    whitened, roots = _whitened(covariance.double(), count)
    size = len(covariance) // count
    vectors = torch.linalg.eigh(whitened).eigenvectors[:, -size:].flip(1)
    maps: Tensor = roots @ vectors.reshape(count, size, size) * count**0.5
    return maps.to(covariance.dtype)


def _whitened(covariance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Covariance with identities on its diagonal, and what made them so, ``(M, k, k)``."""
    covariance, size = _ridged(covariance), len(covariance) // count
    blocks = covariance.view(count, size, count, size)
    roots = _inverse_root(torch.stack([blocks[m, :, m] for m in range(count)]))
    return torch.einsum("mji,mjnk,nkl->minl", roots, blocks, roots).reshape_as(covariance), roots


def _centred(values: Tensor) -> Tensor:
    """Less the mean over rows, in double precision: the ridge is far below float32's rounding."""
    return values.double() - values.double().mean(dim=0)


def _whitening(centred: Tensor, scale: float) -> Tensor:
    """What makes the covariance the identity, ``(k, k)``."""
    return _inverse_root(_ridged(scale * centred.T @ centred))


def _ridged(covariance: Tensor) -> Tensor:
    same = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return covariance + _RIDGE * same


def _inverse_root(covariance: Tensor) -> Tensor:
    """R with R^T S R = I, upper triangular, ``(..., k, k)``.

    Any other differs by a rotation, which changes no singular value. The symmetric one has no
    gradient where eigenvalues of S coincide, as with two directions that embeddings do not fill.
    """
    same = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    lower = torch.linalg.cholesky(covariance)
    root: Tensor = torch.linalg.solve_triangular(lower, same, upper=False).mT
    return root
