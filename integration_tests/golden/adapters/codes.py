"""Autoencoders whose codes follow the prior: multimodal WAE and AAE (multi-view-AE)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

import multivae_core as mv
from multivae_core.noise import ScriptedNoise, ZeroNoise

from ..adapter import Adapter, Built, Options
from ..case import CaseError, Entry

__all__ = ["MAAE", "MWAE"]


class Codes(Adapter):
    """What both have: three losses, and a draw of the prior that the case has written down."""

    peer: ClassVar[str] = "multiviewae "
    divergence: ClassVar[str]

    def translate(self, config: Options) -> dict[str, Any]:
        """One hidden layer of the critic; the peer does not weigh the encoders' divergence."""
        spec = self.case.content["networks"]["discriminator"]
        operations = [layer["op"] for layer in spec["trunk"]]
        if operations != ["linear", "tanh"] or spec["inputs"] != ["z"]:
            raise CaseError(f"{self.case.name}: a discriminator with {operations} is not known")
        hidden = len(self.case.tensors[spec["trunk"][0]["bias"]])
        critic = {"type": "mlp", "hidden": [hidden], "activation": "tanh"}
        return {"divergence": self.divergence, "lambda_div": 1.0, "critic": critic}

    def load(self, built: Built) -> None:
        """Load the critic."""
        super().load(built)
        spec = self.case.content["networks"]["discriminator"]
        layers = built.model.get_submodule("critic.layers")
        for place, own in ((0, spec["trunk"][0]), (2, spec["heads"]["score"])):
            for part in ("weight", "bias"):
                built.networks.load(
                    own[part], layers.get_submodule(str(place)).get_parameter(part)
                )

    def array(self, entry: Entry) -> Tensor:
        """A loss; the peer's critic weighs one prior against M codes, ours against their mean."""
        model: Any = self.build(entry).model
        script = {"real": self.case.tensors["z_real"]}
        noise = ScriptedNoise(ZeroNoise(torch.float64), script)
        step = mv.Step(training=True, noise=noise)
        batch = model.prepare(self.case.batch(entry["data"]))
        terms = model.loss(batch, step).terms
        terms |= {name: term for out in model.critic_loss(batch, step)
                  for name, term in out.terms.items()}  # fmt: skip
        means = {
            kind: sum(t.value.mean() for name, t in terms.items() if name.split(":")[0] == kind)
            for kind in ("reconstruction", "divergence", "real", "fake")
        }
        if entry.quantity == "discriminator_loss":
            count = len(self.case.order)
            return (means["real"] + count * means["fake"]) / (count + 1)
        known = {"reconstruction_loss": "reconstruction", "generator_loss": "divergence"}
        if entry.quantity not in known:
            return super().array(entry)
        return means[known[entry.quantity]]


class MWAE(Codes):
    """Multimodal Wasserstein autoencoder: a critic, whose weights are clipped as it moves."""

    divergence = "wgan"


class MAAE(Codes):
    """Multimodal adversarial autoencoder."""

    divergence = "gan"
