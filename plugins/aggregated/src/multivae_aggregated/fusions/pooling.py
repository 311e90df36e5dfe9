"""A rule that is learned: the posterior is a function of a set of experts (Hirt et al. 2024).

With h_i the mean and the log-variance of expert i, and networks chi and rho,

    sum:        (mean, log-variance) = rho( sum_{i in S} chi(h_i) )
    attention:  the same, with blocks of self-attention among the members before the sum

which no order of the experts changes (Zaheer et al. 2017; Lee et al. 2019).
"""

from __future__ import annotations

import itertools

import attrs
import torch
from torch import Tensor, nn

from multivae_aggregated.fusions.closed_form import taking_part
from multivae_core.config import config, non_negative, one_of, positive
from multivae_core.distributions import Normal
from multivae_core.errors import ConfigError
from multivae_core.fusion import Fusion, member_sums

__all__ = ["PoolingConfig", "PoolingFusion"]


@config
class PoolingConfig:
    """Options of learned pooling.

    Args:
        pooling: ``sum``, or ``attention`` among the members before it.
        width: Size of an expert's features and of every hidden layer.
        depth: Hidden layers of chi, and of rho.
        blocks: Blocks of attention.
        heads: Heads of every block, a divisor of the width.
    """

    pooling: str = attrs.field(default="sum", validator=one_of("sum", "attention"))
    width: int = attrs.field(default=128, validator=positive)
    depth: int = attrs.field(default=1, validator=non_negative)
    blocks: int = attrs.field(default=1, validator=positive)
    heads: int = attrs.field(default=4, validator=positive)

    def __attrs_post_init__(self) -> None:
        if self.pooling == "attention" and self.width % self.heads:
            raise ConfigError(
                f"must divide the width {self.width}, got {self.heads}; change one of them",
                "heads",
            )


class PoolingFusion(Fusion):
    """Learned pooling of a set of experts; where only the prior takes part, the prior."""

    def __init__(self, config: PoolingConfig, n_experts: int, latent_dim: int) -> None:
        super().__init__(config, n_experts, latent_dim)
        width, hidden = config.width, [config.width] * config.depth
        self.chi = _network([2 * latent_dim, *hidden, width])
        blocks = config.blocks if config.pooling == "attention" else 0
        self.blocks = nn.ModuleList(_Block(width, config.heads) for _ in range(blocks))
        self.rho = _network([width, *hidden, 2 * latent_dim])

    def fuse(self, experts: Normal, members: Tensor) -> Normal:
        """See `Fusion.fuse`."""
        experts = taking_part(experts, members)
        features = self.chi(torch.cat([experts.mean, experts.log_variance], dim=2))
        if self.blocks:
            pooled = self._attended(features, members)
        else:
            (pooled,) = member_sums([features], members)
        mean, log_variance = self.rho(pooled).chunk(2, dim=2)
        some = members[..., : self.n_experts].any(dim=2, keepdim=True)
        return Normal(torch.where(some, mean, 0.0), torch.where(some, log_variance, 0.0))

    def _attended(self, features: Tensor, members: Tensor) -> Tensor:
        """Let the members of every group attend to each other and add them up, ``(S, B, W)``."""
        groups, (experts, rows, width) = len(members), features.shape
        members = members.expand(groups, rows, experts).flatten(0, 1)
        # who is no member attends to itself alone, which nobody reads
        itself = torch.eye(experts, dtype=torch.bool, device=members.device)
        mask = (members[:, None] | itself)[:, None]
        hidden = features.transpose(0, 1).expand(groups, rows, experts, width).flatten(0, 1)
        for block in self.blocks:
            hidden = block(hidden, mask)
        total = torch.where(members[..., None], hidden, 0.0).sum(dim=1)
        return total.view(groups, rows, width)


class _Block(nn.Module):
    """Self-attention and a dense layer, each added to what comes in, after normalisation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.inward, self.outward = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = _network([width, 2 * width, width])

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """``(G, E, W)`` -> ``(G, E, W)``; the mask ``(G, 1, E, E)`` is True where one is read."""
        split = self.inward(self.norms[0](hidden)).unflatten(2, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        read = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        hidden = hidden + self.outward(read.transpose(1, 2).flatten(2))
        dense: Tensor = self.dense(self.norms[1](hidden))
        return hidden + dense


def _network(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inward, outward in itertools.pairwise(sizes):
        layers += [nn.Linear(inward, outward), nn.SiLU()]
    return nn.Sequential(*layers[:-1])
