"""One adapter per model: the golden's options in our words, and our terms in its units.

An adapter branches on the model and its configuration, never on a case's name, and refuses every
option, value and argument that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

import multivae_core as mv
from multivae_core.noise import NoiseSource

from .adapter import Adapter, Built, Options, flag, installed_as, mapping, number, plain, whole
from .case import Case, CaseError, Entry

__all__ = ["ADAPTERS", "adapter_of"]


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


class MMVAE(Adapter):
    """Mixture of experts (Shi et al. 2019)."""

    def translate(self, config: Options) -> dict[str, Any]:
        """``beta`` exists and is never read."""
        config.take("beta", 1.0, number)
        samples = config.take("K", 10, lambda v: whole(v) and v > 0)
        families = ("laplace_with_softmax", "normal", "normal_with_softplus")
        family = config.take("prior_and_posterior_dist", families[0], lambda v: v in families)
        estimators = {"iwae_looser": "iwae", "dreg_looser": "dreg"}
        loss = config.take("loss", "dreg_looser", lambda v: v in estimators)
        return {
            "n_samples": self.arguments.take("K", samples, lambda v: whole(v) and v > 0),
            "family": family,
            "learn_prior": config.take("learn_prior", True, flag),
            "bound": "looser",
            "estimator": estimators[loss],
        }

    def load(self, built: Built) -> None:
        """Load the raw scale of the prior, learned or not."""
        prior: Any = built.model.shared_prior
        built.networks.load("prior.logvar", prior.raw_scale)
        extra = {name for name in self.case.tensors if name.startswith("prior.")}
        for name in sorted(extra - {"prior.logvar"}):
            if bool(self.case.tensors[name].any()):
                raise CaseError(f"{self.case.name}: our prior has no place for {name}")

    def wide(self, built: Built) -> Tensor:
        """Raw scale of the prior: an expert that is the prior."""
        prior: Any = built.model.shared_prior
        return torch.as_tensor(prior.raw_scale.detach())


class MoPoE(Adapter):
    """Mixture of products of experts (Sutter et al. 2021)."""

    # the peer rounds the mixture weights of incomplete rows to float32
    array_tolerance: ClassVar[Mapping[str, float]] = {"complete": 1e-8, "incomplete": 1e-6}

    def translate(self, config: Options) -> dict[str, Any]:
        """The peer's subsets are a list or a mapping; repeated and empty ones do not count."""
        private = self.case.private_dims
        stated = config.take("modalities_specific_dim", private, mapping)
        if stated != private:
            raise CaseError(f"{self.case.name}: modalities_specific_dim is not {private}")
        config.same("use_modality_specific_spaces", bool(private))
        subsets = config.take("subsets", None, lambda v: isinstance(v, list | dict))
        if subsets is not None:
            listed = subsets.values() if isinstance(subsets, dict) else subsets
            distinct = dict.fromkeys(tuple(sorted(each)) for each in listed if each)
            subsets = [list(each) for each in distinct]
        self.components = 2 ** len(self.case.order) - 1 if subsets is None else len(subsets)
        return {
            "beta": config.take("beta", 1.0, number),
            "beta_style": config.take("beta_style", 1.0, number),
            "private_dims": private,
            "subsets": subsets,
        }

    def options_for(self, entry: Entry) -> dict[str, Any]:
        """Where the prior is an expert, what encodes, and how many components are decoded."""
        everything = set(entry.fields.get("subset", ())) == set(self.case.order)
        chosen: dict[str, Any] = {}
        if entry.quantity not in ("loss", "component") or entry["data"] == "incomplete":
            chosen["prior_expert"] = "full_set"
        if entry.quantity in ("encode_mean", "encode_mean_private", "reconstruction"):
            chosen["encode_with"] = "mixture" if everything else "product"
        if entry.quantity == "joint_nll":
            chosen |= {"proposal": "product", "prior_expert": "always"}
        if entry.mode != "monte_carlo":
            chosen["n_components_per_step"] = self.components
        return chosen

    def component(self, entry: Entry, noise: NoiseSource, draws: int) -> Tensor | None:
        """Weighted reconstruction of one modality, and the mean of the components' KLs."""
        batch, name = self.case.batch(entry["data"], draws), entry["name"]
        if name == "joint_divergence":
            output = self.output(self.build(entry), batch, noise)
            return output.metrics["kl"].view(draws, -1).mean(dim=1)
        own = name.removeprefix("recon_")
        if own == name or own not in self.case.order:
            return None
        weights = {each: self.weights[each] * (each == own) for each in self.case.order}
        output = self.output(self.build(entry, weights), batch, noise)
        return output.terms["reconstruction"].value.view(draws, -1).mean(dim=1)


ADAPTERS: dict[str, type[Adapter]] = {"mvae": MVAE, "mmvae": MMVAE, "mopoe": MoPoE}
"""Our name of a model -> its adapter."""


def adapter_of(case: Case) -> Adapter:
    """The adapter of an installed model."""
    name = installed_as(case.model)
    if name is None or plain(name) not in ADAPTERS:
        raise CaseError(f"{case.model} is installed as {name!r}, and no adapter knows it")
    return ADAPTERS[plain(name)](case)
