"""One modality given others (Sohn et al. 2015)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import multivae_core as mv
from multivae_core.distributions import Normal
from multivae_core.noise import NoiseSource

from ..adapter import Adapter, Built, Options, number
from ..case import CaseError, Entry, Networks
from .joint import Several, load_gaussian, widen_gaussian

__all__ = ["CVAE"]


class Joined(nn.Module):
    """The conditions as they are, side by side."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def forward(self, values: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([values[name].flatten(1) for name in self.names], dim=1)


class CVAE(Adapter):
    """One modality given others (Sohn et al. 2015)."""

    known_extra = frozenset({"prior_network", "encoder_input_order"})

    def translate(self, config: Options) -> dict[str, Any]:
        """The encoder may see more than the conditions."""
        order = list(self.case.order)
        self.main = config.take("main_modality", None, lambda v: v in order)
        self.conditions = config.take(
            "conditioning_modalities", None, lambda v: isinstance(v, list) and set(v) <= set(order)
        )
        self.inputs = list(self.case.content["encoder_input_order"])
        if self.inputs[0] != self.main or self.inputs[1 : 1 + len(self.conditions)] != (
            self.conditions
        ):
            raise CaseError(f"{self.case.name}: encoder_input_order is {self.inputs}")
        self.learned = bool(self.case.content["extra"].get("prior_network", False))
        return {
            "beta": config.take("beta", 1.0, number),
            "main": self.main,
            "conditions": self.conditions,
            "encoder_inputs": self.inputs[1:],
            "conditional_prior": "learned" if self.learned else "standard",
        }

    def further(self, networks: Networks) -> dict[str, Any]:
        """The golden's networks as the user's own; its decoder reads [z, conditions]."""
        own: dict[str, nn.Module] = {
            "condition": Joined(self.conditions),
            "joint_encoder": Several(networks, "encoder", self.inputs),
        }
        if self.learned:
            spec = networks.specs["prior_network"]
            if spec["inputs"] != [f"x.{name}" for name in self.conditions]:
                raise CaseError(f"{self.case.name}: prior_network has inputs {spec['inputs']}")
            own["prior_network"] = nn.Sequential(*networks._trunk("prior_network", None))
        spec = networks.specs["decoder"]
        if spec["inputs"] != ["z", *(f"x.{name}" for name in self.conditions)]:
            raise CaseError(f"{self.case.name}: decoder has inputs {spec['inputs']}")
        self.decoder = nn.Sequential(
            *networks._trunk("decoder", None),
            networks._linear("decoder", "recon", spec["heads"]["recon"]),
            nn.Unflatten(1, tuple(spec["reshape"])),
        )
        return {"networks": own, "decoders": {self.main: self.decoder}}

    def load(self, built: Built) -> None:
        """Load the heads of the encoder and of the learned prior."""
        super().load(built)
        model: Any = built.model
        load_gaussian(built.networks, "encoder", model.encoder.head)
        if self.learned:
            load_gaussian(built.networks, "prior_network", model.learned_prior.head)

    def widen(self, built: Built) -> None:
        """A proposal close to N(0, I); or, with a learned prior, that prior, a little wider."""
        model: Any = built.model
        widen_gaussian(model.encoder.head)
        if self.learned:
            prior = model._prior

            def wider(batch: mv.Batch, _: Normal) -> Normal:
                own = prior(batch)
                return Normal(own.mean, own.log_variance + math.log(2.0))

            model._posterior = wider

    def conditional(self, entry: Entry) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The main modality given the conditions."""
        return tuple(self.conditions), (self.main,)

    def component(self, entry: Entry, noise: NoiseSource, draws: int) -> Tensor | None:
        """Divergence and reconstruction, not weighted."""
        batch, built = self.case.batch(entry["data"], draws), self.build(entry, beta=1.0)
        terms = self.output(built, batch, noise).terms
        name = {"kl": "kl", "recon_loss": "reconstruction"}.get(entry["name"])
        return None if name is None else terms[name].value.view(draws, -1).mean(dim=1)

    def array(self, entry: Entry) -> Tensor:
        """Means of the posterior and of the prior, and what decoders make of them."""
        built, everything = self.build(entry), self.case.batch(entry["data"])
        prior = entry.quantity in ("prior_mean", "reconstruction_from_prior_mean")
        batch = everything.restrict(self.conditions) if prior else everything
        means = built.model.encode(batch)
        if entry.quantity in ("encode_mean", "prior_mean"):
            return means["shared"]
        raw: list[Tensor] = []
        self.decoder.register_forward_hook(lambda _, __, output: raw.append(output))
        built.model.decode(means, batch)
        return raw[0]
