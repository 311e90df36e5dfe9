"""Joint encoder with surrogates that have ELBOs of their own (Vedantam et al. 2018)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import multivae_core as mv
from multivae_core.noise import NoiseSource

from ..adapter import Options, mapping, number
from ..case import CaseError, Entry
from .joint import JointAdapter

__all__ = ["TELBO"]


class TELBO(JointAdapter):
    """Joint encoder with surrogates that have ELBOs of their own (Vedantam et al. 2018)."""

    rescales = True

    def translate(self, config: Options) -> dict[str, Any]:
        """Stages go by epoch; rescaling is on unless switched off; factors replace the weights."""
        self.warmup = config.take("warmup", 10, number)
        self.stage = self._stage(self.arguments.take("epoch", 1, number))
        factors = {
            ours: config.take(f"{theirs}_factors", self.weights, mapping)
            for ours, theirs in (("lambdas", "lambda"), ("gammas", "gamma"))
        }
        return {**factors, "schedule": "two_stage", "beta": config.take("beta", 1.0, number)}

    def own_arguments(self, entry: Entry) -> None:
        """An entry may belong to another stage than the case."""
        own = Options(entry.fields.get("forward_arguments", {}), self.case.name)
        stage = self._stage(
            own.take("epoch", self.case.content["forward_arguments"]["epoch"], number)
        )
        own.close()
        if entry.fields.get("stage", stage) != stage:
            raise CaseError(f"{self.case.name}: stage {entry['stage']} does not follow from epoch")
        self.stage = stage

    def objective(self, output: mv.LossOutput, batch: mv.Batch, draws: int) -> Tensor:
        """The terms of the stage."""
        terms = {
            n: t for n, t in output.terms.items() if n.startswith("elbo:") == (self.stage == 2)
        }
        return super().objective(mv.LossOutput(terms=terms), batch, draws)

    def component(self, entry: Entry, noise: NoiseSource, draws: int) -> Tensor | None:
        """The divergence, a sum over the batch, and the mean reconstruction."""
        self.own_arguments(entry)
        terms, name = self.terms(entry, noise, draws), entry["name"]
        if name == "kld_joint":
            return self.case.rows * terms["kl"]
        return terms["reconstruction"] if name == "recon_joint" else None

    def _stage(self, epoch: float) -> int:
        return 1 if epoch <= self.warmup else 2
