"""A latent per modality, and a shared one above that predicts them (Vasco et al. 2022)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from multivae_core.noise import NoiseSource

from ..adapter import Adapter, Options, mapping, number, whole
from ..case import CaseError, Entry, Networks

__all__ = ["Nexus"]


class Nexus(Adapter):
    """A latent per modality, and a shared one above that predicts them (Vasco et al. 2022)."""

    # what the golden's own program was told about the case
    known_extra: ClassVar[frozenset[str]] = frozenset({"batch_dependent", "no_zero", "slow"})

    def translate(self, config: Options) -> dict[str, Any]:
        """Annealing, the same for both levels, is resolved into their weights."""
        names = self.case.order
        warmup = config.take("warmup", 20, lambda v: whole(v) and v > 0)
        epoch = self.arguments.take("epoch", 1, whole)
        self.annealing = min(epoch / warmup, 1.0)
        self.adapted = config.take(
            "adapt_top_decoder_variance", [], lambda v: isinstance(v, list) and {*v} <= {*names}
        )

        def by_name(key: str) -> dict[str, float]:
            ones = dict.fromkeys(names, 1.0)
            return ones | config.take(key, {}, lambda v: mapping(v) and {*v} <= {*names})

        return {
            "modality_dims": config.take("modalities_specific_dim", None, mapping),
            "msg_dim": config.take("msg_dim", 10, whole),
            "dropout_rate": config.take("dropout_rate", 0.0, number),
            "adapt_top_scale": self.adapted,
            "bottom_betas": {m: self.annealing * b for m, b in by_name("bottom_betas").items()},
            "top_beta": self.annealing * config.take("top_beta", 1.0, number),
            "gammas": by_name("gammas"),
        }

    def further(self, networks: Networks) -> dict[str, Any]:
        """Messages, the joint encoder and the top decoders."""
        names, network = self.case.order, networks.network
        own = {
            "messages": nn.ModuleDict({m: network(f"top_encoders.{m}") for m in names}),
            "top_encoder": network("joint_encoder"),
            "top_decoders": nn.ModuleDict({m: network(f"top_decoders.{m}") for m in names}),
        }
        return {"networks": own}

    def draws_at_once(self) -> bool:
        """An adapted deviation belongs to a batch."""
        return not self.adapted

    def component(self, entry: Entry, noise: NoiseSource, draws: int) -> Tensor | None:
        """Parts of both levels, means over the rows."""
        name, weights = entry["name"], None
        if name == "annealing":
            return torch.tensor([self.annealing], dtype=torch.float64)
        kind, _, own = name.rpartition("_")
        if kind in ("recon_loss", "kl") and entry["data"] == "incomplete":
            return None  # the peer reports these with what is under the holes
        if kind == "recon_loss":
            weights = {each: self.weights[each] * (each == own) for each in self.case.order}
        built = self.build(entry, weights)
        output = self.output(built, self.case.batch(entry["data"], draws), noise)
        terms = {key: term.value for key, term in output.terms.items()}
        if name == "bottom_loss":
            value = terms["reconstruction"] + terms["kl_bottom"]
        elif name == "top_loss":
            value = terms["top"] + terms["kl_top"]
        elif name == "joint_KLD":
            value = output.metrics["top_kl"]
        elif kind == "recon_loss":
            value = terms["reconstruction"]
        elif kind == "kl":
            value = output.metrics[f"bottom_kl_{own}"]
        elif kind == "recon_z":
            value = self.options["gammas"][own] * output.metrics[f"prediction_{own}"]
        else:
            raise CaseError(f"{self.case.name}: no number of ours is called {name!r}")
        return value.view(draws, -1).mean(dim=1)
