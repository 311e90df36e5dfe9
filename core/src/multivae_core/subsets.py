"""Subsets of modalities, as rows of bool matrices."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["PRIOR_EXPERT", "all_subsets", "fixed_subsets", "groups_of", "prior_joins"]

PRIOR_EXPERT = ("always", "never", "largest", "full_set")
"""Where the prior N(0, I) is one more expert, see `prior_joins`."""


def all_subsets(n: int) -> Tensor:
    """All non-empty subsets of n modalities, ``(2^n - 1, n)`` bool; the full one is last."""
    codes = torch.arange(1, 2**n)
    return ((codes[:, None] >> torch.arange(n)) & 1).bool()


def fixed_subsets(n: int, most: int) -> Tensor:
    """About so many non-empty subsets, ``(S, n)`` bool, each once, the same ones every time.

    All of them where they are no more; otherwise the single ones, the full one, and as many
    random ones as there is room for.
    """
    if n < 31 and 2**n - 1 <= most:
        return all_subsets(n)
    certain = torch.cat([torch.eye(n), torch.ones(1, n)]).bool()
    generator = torch.Generator().manual_seed(n)
    drawn = torch.rand(max(most - n - 1, 0), n, generator=generator, device="cpu") < 0.5
    sizes = drawn.sum(dim=1)
    # a subset that is listed twice would count twice in a uniform mixture
    further = drawn[(sizes > 1) & (sizes < n)].unique(dim=0)
    return torch.cat([certain, further.to(certain.device)])


def groups_of(subsets: Tensor, present: Tensor) -> Tensor:
    """What a row has of every subset.

    Args:
        subsets: ``(S, M)`` or ``(S, B, M)`` bool.
        present: ``(B, M)`` bool.

    Returns:
        ``(S, B, M)`` bool.
    """
    return (subsets[:, None] if subsets.ndim == 2 else subsets) & present


def prior_joins(rule: str, groups: Tensor, present: Tensor) -> Tensor:
    """Where the prior N(0, I) is one more expert.

    Args:
        rule: ``always``; ``never``; ``largest``: in the product of all that a row has, so that a
            row with modalities A is treated as complete data on A; ``full_set``: in the product
            of all M modalities alone (the rule of the authors' code for MoPoE).
        groups: ``(S, B, M)`` bool.
        present: ``(B, M)`` bool.

    Returns:
        ``(S, B)`` bool.
    """
    if rule == "largest":
        return (groups == present).all(dim=2)
    if rule == "full_set":
        return groups.all(dim=2)
    return torch.full(groups.shape[:2], rule == "always", device=present.device)
