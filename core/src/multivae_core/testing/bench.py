"""The bench on which a model is checked: its models, its data, and what it says about them."""

from __future__ import annotations

__all__ = ["FILLERS", "SHAPES", "Bench", "Case", "filled", "missing"]

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch
from torch import Tensor

from multivae_core._registry import registry
from multivae_core.config import structure
from multivae_core.create import create_model
from multivae_core.data import Batch, IncompleteDataset
from multivae_core.errors import UnknownComponentError
from multivae_core.plugins import ComponentSpec
from multivae_core.testing.report import NotApplicable

if TYPE_CHECKING:
    from multivae_core.model import MultimodalVAE
    from multivae_core.testing.oracle import Oracle

SHAPES: dict[str, tuple[int, ...]] = {"a": (3,), "b": (1, 6, 6), "c": (4,)}
"""A table of real numbers, an image and a category."""
FILLERS = (math.nan, math.inf, -math.inf, 1e30)
"""What is put under holes."""

_MLP = {"type": "mlp", "hidden": [8]}
_CONV = {"type": "conv", "channels": [4], "hidden": []}
_MODALITIES: dict[str, dict[str, Any]] = {
    "a": {"likelihood": {"type": "normal", "scale": "learned"}, "encoder": _MLP, "decoder": _MLP},
    "b": {"likelihood": {"type": "normal", "scale": 0.5}, "encoder": _CONV, "decoder": _CONV},
    "c": {"likelihood": "categorical", "encoder": _MLP, "decoder": _MLP},
}


@attrs.frozen(kw_only=True)
class Case:
    """A model to check, and what the checks must be told about it.

    Args:
        model: Its name, bare or qualified, or its class.
        options: Options of the model, over modalities ``a`` (3 real numbers), ``b`` (an image
            1 x 6 x 6) and ``c`` (one of 4 categories); ``modalities`` changes their defaults.
        oracle: Options beside these when the model is made to be a linear-Gaussian truth, whose
            modalities of the same names have 5, 6 and 7 real numbers.
        needed: Modalities that every row has, for a model that cannot encode any subset.
        truth: For a model with decoders of its own kind: returns the model as a truth, see
            `multivae_core.testing.oracle.Oracle`.
        label: What the table calls it; by default the name of the model and its options.
    """

    model: str | type[Any]
    options: Mapping[str, Any] = attrs.field(factory=dict)
    oracle: Mapping[str, Any] = attrs.field(factory=dict)
    needed: tuple[str, ...] = ()
    truth: Callable[[], Oracle] | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """What the table calls it."""
        model = self.model if isinstance(self.model, str) else self.model.__name__
        words = [f"{key}={value}" for key, value in self.options.items()]
        return self.label or " ".join([model, *words])

    def spec(self) -> ComponentSpec:
        """Return the line of the registry about the model.

        Raises:
            UnknownComponentError: The model is not registered.
        """
        if isinstance(self.model, str):
            return registry.models[self.model]
        for spec in registry.models.specs():
            if registry.models.load(spec.qualified_name) is self.model:
                return spec
        raise UnknownComponentError(
            f"{self.model.__name__} is not registered, and the checks need its configuration and"
            " capabilities; decorate it with @mv.register_model(name=..., config=...)"
        )


class Bench:
    """Models and data of one case; made once and shared by its checks, which leave them alone."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.spec = case.spec()
        self.dims = 3

    @functools.cached_property
    def main(self) -> MultimodalVAE:
        """The model with its initial weights, float64."""
        return self.model()

    @functools.cached_property
    def oracle(self) -> Oracle:
        """The model as a linear-Gaussian truth."""
        from multivae_core.testing.oracle import Oracle

        return self.case.truth() if self.case.truth is not None else Oracle.of(self)

    def model(
        self,
        data: IncompleteDataset | None = None,
        dtype: str = "float64",
        order: Iterable[str] = tuple(SHAPES),
        modalities: Mapping[str, Mapping[str, Any]] | None = None,
        seed: int = 1,
        **options: Any,
    ) -> MultimodalVAE:
        """Return a new model; the same arguments, the same weights."""
        given = {**self.case.options, **options}
        stated = given.pop("modalities", {})
        parts = {
            name: {**_MODALITIES[name], **stated.get(name, {}), **(modalities or {}).get(name, {})}
            for name in order
        }
        given.setdefault("latent_dim", self.dims)
        data = self.dataset() if data is None else data
        return create_model(
            self.spec.qualified_name, data, modalities=parts, dtype=dtype, seed=seed, **given
        )

    def configured(self, plain: Any) -> Any:
        """Return a configuration of the model made of what JSON holds."""
        return structure(registry.models.load_config(self.spec.qualified_name), plain)  # type: ignore[arg-type]

    def lacks(self, capability: str) -> str:
        """Return why the model does not have a capability; empty if it has it."""
        if capability in self.main.lacks:
            return self.main.lacks[capability]
        return "" if capability in self.spec.capabilities else f"it does not claim {capability}"

    def has(self, *capabilities: str) -> bool:
        """Whether the model has all of these capabilities."""
        return not any(map(self.lacks, capabilities))

    def need(self, *capabilities: str) -> None:
        """Raise `NotApplicable` if the model lacks one of these."""
        for capability in capabilities:
            if reason := self.lacks(capability):
                raise NotApplicable(reason)

    def batch(
        self,
        rows: int = 14,
        seed: int = 0,
        holes: bool = True,
        elements: bool = True,
        order: Iterable[str] = tuple(SHAPES),
    ) -> Batch:
        """Rows 0 has everything and row 1 nothing; under holes lie ordinary numbers.

        Args:
            rows: Number of rows.
            seed: Of values and holes.
            holes: Whether modalities are missing.
            elements: Whether there are holes inside ``a`` and ``b``.
            order: Of the modalities.
        """
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(rows, 1))
        pattern = np.sin(np.arange(36)).reshape(1, 1, 6, 6)
        kinds = np.digitize(z[:, 0] + 0.5 * rng.normal(size=rows), [-0.7, 0.0, 0.7])
        values = {
            "a": 5.0 + (z + 0.5 * rng.normal(size=(rows, 3))) * [1.0, 20.0, 0.1],
            "b": z[:, :, None, None] * pattern + 0.5 * rng.normal(size=(rows, 1, 6, 6)),
            "c": np.eye(4)[kinds],
        }
        present = {name: rng.random(rows) < 0.6 for name in SHAPES}
        observed = {name: rng.random(values[name].shape) < 0.6 for name in ("a", "b")}
        observed["a"][:, 0] = observed["b"][:, 0, 0, 0] = True
        for name in SHAPES:
            present[name][0], present[name][1] = True, False
            if not holes or name in self.case.needed:
                present[name][:] = True
        return Batch(
            values={name: torch.as_tensor(values[name]) for name in order},
            present=torch.as_tensor(np.stack([present[name] for name in order], axis=1)),
            observed={
                n: torch.as_tensor(observed[n]) for n in order if n in observed and elements
            },
            index=torch.arange(rows) + 100,
        )

    def dataset(self, batch: Batch | None = None) -> IncompleteDataset:
        """Return a batch as a data set; by default 40 rows that models are made for."""
        batch = self.batch(40, seed=9) if batch is None else batch
        return IncompleteDataset(
            batch.values,
            present={name: batch.column(name) for name in batch.names},
            observed=batch.observed,
            allow_empty_rows=True,
        )


def filled(batch: Batch, filler: float) -> Batch:
    """The batch with a number under every hole."""
    values = {n: torch.where(batch.seen(n), x, filler) for n, x in batch.values.items()}
    return attrs.evolve(batch, values=values)


def missing(batch: Batch, visible: Iterable[str]) -> Tensor:
    """``(B, M)``: what is present when only these modalities are visible."""
    shown = set(visible)
    return batch.present & torch.tensor([name in shown for name in batch.names])
