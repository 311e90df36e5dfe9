"""A normalising flow as the prior of the shared latent: z = f(e), e ~ N(0, I).

    log p(z) = log N(f^-1(z); 0, I) + log |det df^-1 / dz|

The maps are those of zuko, which is imported when such a prior is made.
"""

from __future__ import annotations

from collections.abc import Hashable
from importlib import import_module
from typing import Any

import attrs
from torch import Tensor, nn

from multivae_core.config import config, one_of, positive
from multivae_core.errors import ConfigError
from multivae_core.noise import NoiseSource
from multivae_core.priors import Prior, standard_log_prob

__all__ = ["FlowPrior", "FlowPriorConfig"]


@config
class FlowPriorConfig:
    """A normalising flow.

    Args:
        flow: ``maf``: masked autoregressive, whose densities take one pass and whose samples D;
            ``nsf``: the same with rational-quadratic splines, which act between -5 and 5;
            ``realnvp``: affine coupling, one pass both ways, for D > 1.
        transforms: Number of transforms.
        hidden: Sizes of the hidden layers of each.
    """

    flow: str = attrs.field(default="maf", validator=one_of("maf", "nsf", "realnvp"))
    transforms: int = attrs.field(default=3, validator=positive)
    hidden: list[int] = attrs.field(factory=lambda: [64, 64])


class FlowPrior(Prior):
    """A normalising flow (as in Chen et al. 2017)."""

    def __init__(self, config: FlowPriorConfig, latent_dim: int) -> None:
        super().__init__(config, latent_dim)
        if config.flow == "realnvp" and latent_dim < 2:
            raise ConfigError("realnvp couples two parts of a latent; use maf", "flow")
        flows: Any = _zuko().flows
        families = {"maf": flows.MAF, "nsf": flows.NSF, "realnvp": flows.RealNVP}
        made = families[config.flow](
            latent_dim, transforms=config.transforms, hidden_features=config.hidden
        )
        self.transform: nn.Module = made.transform

    def sample(self, n: int, rows: int, noise: NoiseSource, name: Hashable) -> Tensor:
        """See `Prior.sample`."""
        value: Tensor = self.transform().inv(noise.normal(name, (n, rows, self.latent_dim)))
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """See `Prior.log_prob`."""
        base, log_det = self.transform().call_and_ladj(value)
        density: Tensor = standard_log_prob(base) + log_det
        return density

    def mean(self) -> Tensor:
        """The image of 0: a flow's mean has no closed form."""
        own = next(self.parameters())
        value: Tensor = self.transform().inv(own.new_zeros(1, self.latent_dim))[0]
        return value


def _zuko() -> Any:
    try:
        return import_module("zuko")
    except ImportError as error:
        raise ConfigError(
            "the prior 'flow' needs zuko; pip install 'multivae-mixture-prior[flow]'", "prior"
        ) from error
