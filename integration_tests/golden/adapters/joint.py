"""What the models with a joint encoder share: that network, and its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from multivae_core.noise import NoiseSource

from ..adapter import Adapter, Built
from ..case import CaseError, Entry, Networks

__all__ = ["JointAdapter", "Several", "load_gaussian", "widen_gaussian"]


class Several(nn.Module):
    """A golden network with several inputs as the user's own: values by name to features."""

    def __init__(self, networks: Networks, key: str, inputs: list[str]) -> None:
        super().__init__()
        found = networks.specs[key]["inputs"]
        if found != [f"x.{name}" for name in inputs]:
            raise CaseError(f"{networks.case.name}: {key} has inputs {found}")
        self.inputs = inputs
        self.layers = nn.Sequential(*networks._trunk(key, None))

    def forward(self, values: Mapping[str, Tensor]) -> Tensor:
        features: Tensor = self.layers(
            torch.cat([values[name].flatten(1) for name in self.inputs], dim=1)
        )
        return features


def load_gaussian(networks: Networks, key: str, head: nn.Linear) -> None:
    """Load the heads of a golden network into one linear layer, the mean first."""
    size = networks.case.latent_dim
    heads = networks.specs[key]["heads"]
    if set(heads) != {"mu", "logvar"} or head.out_features != 2 * size:
        raise CaseError(f"{networks.case.name}: {key} has the heads {list(heads)}")
    for place, name in enumerate(("mu", "logvar")):
        rows = slice(place * size, (place + 1) * size)
        networks._fill(f"{key}:{name}", heads[name], head, rows, False)


def widen_gaussian(head: nn.Linear) -> None:
    """Let a Gaussian encoder say a little less than the prior N(0, I)."""
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.bias[len(head.bias) // 2 :] = math.log(2.0)


class JointAdapter(Adapter):
    """A model with a joint encoder, which was built for complete rows alone."""

    def further(self, networks: Networks) -> dict[str, Any]:
        """The golden's joint encoder as the user's own."""
        own = Several(networks, "joint_encoder", list(self.case.order))
        return {"networks": {"joint_encoder": own}}

    def load(self, built: Built) -> None:
        """Load the heads of the joint encoder."""
        super().load(built)
        model: Any = built.model
        load_gaussian(built.networks, "joint_encoder", model.joint_encoder.head)

    def widen(self, built: Built) -> None:
        """Likelihoods of complete rows are estimated with the joint encoder."""
        super().widen(built)
        model: Any = built.model
        widen_gaussian(model.joint_encoder.head)

    def terms(
        self, entry: Entry, noise: NoiseSource, draws: int, **options: Any
    ) -> dict[str, Tensor]:
        """Means over the batch of our terms, ``(draws,)`` each."""
        batch = self.case.batch(entry["data"], draws)
        output = self.output(self.build(entry, **options), batch, noise)
        return {name: t.value.view(draws, -1).mean(dim=1) for name, t in output.terms.items()}
