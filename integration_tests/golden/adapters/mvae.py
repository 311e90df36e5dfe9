"""Product of experts with sub-sampling (Wu & Goodman 2018)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import multivae_core as mv
from multivae_core.noise import NoiseSource

from ..adapter import Adapter, Options, flag, number, whole
from ..case import CaseError, Entry

__all__ = ["MVAE"]


class MVAE(Adapter):
    """Product of experts with sub-sampling (Wu & Goodman 2018)."""

    def translate(self, config: Options) -> dict[str, Any]:
        """Annealing is resolved into beta; ``k`` is only read with sub-sampling."""
        count = len(self.case.order)
        subsampling = config.take("use_subsampling", True, flag)
        asked = config.take("k", 0, whole)
        warmup, beta = config.take("warmup", 10, number), config.take("beta", 1.0, number)
        epoch = self.arguments.take("epoch", 1, number)
        ratio = self.arguments.take("batch_ratio", 0.0, number)
        annealing = 1.0 if epoch >= warmup else (epoch - 1 + ratio) / warmup
        self.drawn = asked if subsampling and count > 2 else 0
        self.proper = 2**count - count - 2
        return {
            "beta": annealing * beta,
            "subsampling": subsampling,
            "n_subsets": self.drawn,
            "subset_sampling": "uniform",
            "duplicate_terms": "count",
        }

    def draws_at_once(self) -> bool:
        """One draw of subsets serves a batch, unless all of them are taken."""
        return self.drawn in (0, self.proper)

    def losses(self, output: mv.LossOutput, batch: mv.Batch, draws: int) -> Tensor:
        """Divide every subset's sum by the rows that have a member of it, as the golden does.

        In rows that have no member of a subset its term is exactly 0.
        """
        total, sizes = torch.zeros(draws, dtype=torch.float64), []
        for name, term in output.terms.items():
            if term.weight is not None:
                raise CaseError(f"term {name!r} has a weight, a sum over rows was expected")
            value = term.value.view(draws, -1)
            counted = (value != 0).sum(dim=1)
            sizes.append(int(counted[0]))
            total = total + value.sum(dim=1) / counted.clamp_min(1)
        self._check_sizes(sorted(sizes), batch, draws)
        return self.case.reduction_factor * total

    def _check_sizes(self, sizes: list[int], batch: mv.Batch, draws: int) -> None:
        """The rows that were counted must be those that have a member, subset by subset."""
        present = batch.present[: batch.size // draws]
        bits = torch.arange(1, 2 ** present.shape[1])[:, None] >> torch.arange(present.shape[1])
        subsets = (bits & 1).bool()
        kinds = subsets.sum(dim=1)
        wanted = kinds == present.shape[1]
        if self.options["subsampling"]:
            wanted = wanted | (kinds == 1)
        if self.drawn == self.proper:
            wanted = torch.ones_like(wanted)
        expected = (subsets[wanted][:, None] & present).any(dim=2).sum(dim=1).tolist()
        if self.draws_at_once() and sizes != sorted(expected):
            raise CaseError(f"rows per term {sizes}, expected {sorted(expected)}")

    def component(self, entry: Entry, noise: NoiseSource, draws: int) -> Tensor | None:
        """Parts of the ELBO of one subset: that of a model which is shown nothing else."""
        name = entry["name"]
        built = self.build(entry, subsampling=False, n_subsets=0)
        if name == "beta":
            beta = built.model.beta(mv.Step(training=True, noise=noise))
            return torch.tensor([beta], dtype=torch.float64)
        for prefix in ("", "kld", "recon"):
            subset = self._subset(name.removeprefix(prefix))
            if not name.startswith(prefix) or not subset:
                continue
            batch = self.case.batch(entry["data"], draws).restrict(subset)
            output, seen = self.output(built, batch, noise), batch.something.view(draws, -1)
            value = output.metrics["kl"] if prefix == "kld" else output.terms["elbo"].value
            return torch.where(seen, value.view(draws, -1), 0.0).sum(1) / seen.sum(1)
        return None

    def _subset(self, joined: str) -> list[str]:
        """The subset whose sorted names are joined by underscores; empty: none is."""
        count = len(self.case.order)
        for code in range(1, 2**count):
            subset = [name for i, name in enumerate(self.case.order) if code >> i & 1]
            if "_".join(sorted(subset)) == joined:
                return subset
        return []
