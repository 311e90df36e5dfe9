"""A golden case: its files, its batch of data and its networks as torch modules."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import multivae_core as mv

__all__ = ["Case", "CaseError", "Entry", "Networks", "find_cases", "golden_folder", "readable"]

FORMAT = "golden-1"

_ROOT = Path(__file__).resolve().parents[2]
_CASE_KEYS = {
    "format", "name", "model", "peer", "seed", "dtype", "batch_size", "latent_dim",
    "private_dims", "modalities", "modality_order", "config", "forward_arguments",
    "loss_reduction", "networks", "variants", "has_incomplete", "extra", "expected",
}  # fmt: skip
_OPERATIONS = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}


class CaseError(Exception):
    """A case says something that this program does not understand, so it must not be passed."""


def golden_folder() -> Path:
    """The folder with the golden numbers; it need not exist."""
    return _ROOT / os.environ.get("MULTIVAE_GOLDEN", "../shared/golden")


def find_cases(folder: Path) -> list[Path]:
    """Every folder under ``fixtures``; one without a case.json is an error when it is read."""
    inner = folder / "fixtures"
    return sorted(
        path for path in (inner if inner.is_dir() else folder).glob("*") if path.is_dir()
    )


def readable(folders: Iterable[Path]) -> tuple[list[Case], dict[str, str]]:
    """The cases that can be read, and for the others what is wrong."""
    cases, broken = [], {}
    for folder in folders:
        case = Case(folder)
        try:
            if not (case.model and case.entries and case.tensors):
                raise CaseError("it is empty")
        except (CaseError, KeyError, OSError, SafetensorError, ValueError) as bad:
            broken[case.name] = f"{type(bad).__name__}: {bad}"
        else:
            cases.append(case)
    return cases, broken


@attrs.frozen
class Entry:
    """One expected quantity.

    Args:
        number: Its place in the file.
        fields: As the file has them.
    """

    number: int
    fields: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        if key not in self.fields:
            raise CaseError(f"entry {self.number} ({self.label}) has no field {key!r}")
        return self.fields[key]

    @property
    def quantity(self) -> str:
        """What is expected."""
        return str(self.fields.get("quantity"))

    @property
    def mode(self) -> str | None:
        """How it was computed; None for deterministic arrays."""
        return self.fields.get("mode")

    @property
    def label(self) -> str:
        """A short description for reports."""
        fields = self.fields
        subset = "+".join(fields.get("subset", ()))
        parts = (self.quantity, self.mode, fields.get("name"), fields.get("variant"), subset)
        return "-".join(str(part) for part in (*parts, fields.get("data")) if part)


@attrs.frozen(eq=False, slots=False)
class Case:
    """One folder of golden numbers.

    Args:
        folder: Where its two files are.
    """

    folder: Path

    @cached_property
    def content(self) -> dict[str, Any]:
        """The case.json."""
        content = json.loads((self.folder / "case.json").read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise CaseError(
                f"{self.name}: format {content.get('format')!r}; this program reads {FORMAT!r}"
            )
        return dict(content)

    @property
    def unknown_keys(self) -> list[str]:
        """What the case says beside what this program reads."""
        return sorted(set(self.content) - _CASE_KEYS)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Weights, data and expected arrays."""
        return load_file(self.folder / "tensors.safetensors")

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Everything expected."""
        return tuple(Entry(i, each) for i, each in enumerate(self.content["expected"]))

    @property
    def name(self) -> str:
        """Name of the folder: a label and never a setting."""
        return self.folder.name

    @property
    def model(self) -> str:
        """The model under its peer's name."""
        return str(self.content["model"])

    @property
    def config(self) -> dict[str, Any]:
        """The model's options under the peer's names."""
        return dict(self.content["config"])

    @property
    def order(self) -> tuple[str, ...]:
        """The modalities in the peer's order."""
        return tuple(self.content["modality_order"])

    @property
    def rows(self) -> int:
        """Rows of the batch, B."""
        return int(self.content["batch_size"])

    @property
    def latent_dim(self) -> int:
        """Size of the shared latent."""
        return int(self.content["latent_dim"])

    @property
    def private_dims(self) -> dict[str, int]:
        """Sizes of the private latents; empty without."""
        return dict(self.content["private_dims"] or {})

    @property
    def reduction_factor(self) -> float:
        """What our mean over rows is multiplied by to be in the golden's units."""
        reduction = self.content["loss_reduction"]
        for word, factor in (("sum", float(self.rows)), ("mean", 1.0)):
            if reduction.startswith(word):
                return factor
        raise CaseError(f"{self.name}: unknown loss_reduction {reduction!r}")

    def modalities(self) -> dict[str, dict[str, Any]]:
        """Name -> options of our modality: shape and likelihood."""
        result: dict[str, dict[str, Any]] = {}
        for name in self.order:
            given = dict(self.content["modalities"][name])
            shape, kind, scale = given.pop("shape"), given.pop("likelihood"), given.pop("scale", 1)
            if given:
                raise CaseError(f"{self.name}: modality {name!r} has unknown keys {list(given)}")
            scaled = {"scale": float(scale)} if kind in ("normal", "laplace") else {}
            result[name] = {"shape": list(shape), "likelihood": {"type": kind, **scaled}}
        return result

    def batch(self, data: str, draws: int = 1) -> mv.Batch:
        """The batch of data.

        Args:
            data: ``complete`` or ``incomplete``.
            draws: How often the rows are repeated, the whole batch each time.
        """
        if data not in ("complete", "incomplete"):
            raise CaseError(f"{self.name}: unknown data {data!r}")
        values: dict[str, Tensor] = {}
        columns: list[Tensor] = []
        for name in self.order:
            x = self.tensors[f"x.{name}"]
            seen = torch.ones(self.rows, dtype=torch.bool)
            if data == "incomplete":
                seen = self.tensors[f"masks.{name}"].bool()
                # what is under a hole must not matter
                x = torch.where(seen.view(-1, *(1 for _ in x.shape[1:])), x, torch.nan)
            values[name] = x.repeat(draws, *(1 for _ in x.shape[1:]))
            columns.append(seen.repeat(draws))
        return mv.Batch(values=values, present=torch.stack(columns, dim=1))

    def networks(self, variant: str) -> Networks:
        """Fresh networks with the weights of a variant."""
        if variant not in self.content["variants"]:
            raise CaseError(f"{self.name}: unknown variant {variant!r}")
        return Networks(self, dict(self.content["variants"][variant]))


Place = tuple[Tensor, slice, slice]
"""A parameter, the rows of it that hold a tensor, and which elements of the tensor they hold."""


class Networks:
    """The golden's own layers as the user's networks of one of our models.

    Args:
        case: The case.
        variant: Weight overrides.
    """

    def __init__(self, case: Case, variant: dict[str, Any]) -> None:
        self.case = case
        self.specs: dict[str, dict[str, Any]] = case.content["networks"]
        self.places: dict[str, list[Place]] = defaultdict(list)
        """Name of a weight tensor -> where it is."""
        self.flat = set(variant.pop("flat", ()))
        self.constant = dict(variant.pop("constant_heads", {}))
        named = self.flat | {key.split(":")[0] for key in self.constant}
        if variant or not named <= set(self.specs):
            raise CaseError(f"{case.name}: a variant has {list(variant)} for networks {named}")
        self.encoders = {name: self._encoder(name) for name in case.order if self._own(name)}
        self.decoders = {
            name: self._decoder(name) for name in case.order if f"decoders.{name}" in self.specs
        }

    def network(self, key: str) -> nn.Sequential:
        """A further network, its heads side by side in the order of the case."""
        heads = self.specs[key]["heads"]
        sizes = [self.case.tensors[head["bias"]].shape[0] for head in heads.values()]
        inputs = self.case.tensors[next(iter(heads.values()))["weight"]].shape[1]
        last = nn.Linear(inputs, sum(sizes), dtype=torch.float64)
        for head, start, size in zip(heads, _starts(sizes), sizes, strict=True):
            self.load_layer(key, head, last, slice(start, start + size))
        return nn.Sequential(*self._trunk(key, None), last)

    def load_layer(self, key: str, head: str, linear: nn.Linear, rows: slice) -> None:
        """Load one head of a network into rows of a layer."""
        self._load_head(key, head, linear, rows, [key])

    def load_heads(self, encoders: Mapping[str, nn.Module]) -> None:
        """Load mean and scale heads into our encoders, which have one linear head for all.

        Args:
            encoders: Modality -> our encoder, with ``latents`` and ``head``.
        """
        for name in self.encoders:
            own: Any = encoders[name]
            start, loaded, keys = 0, 0, self._own(name)
            for latent, size in own.latents.items():
                key = keys[0] if latent == "shared" else keys[-1]
                private = latent != "shared" and "shared" in own.latents
                prefix = "private_" if private and key.startswith("enc") else ""
                for part in ("mu", "logvar")[: getattr(own, "parts", 2)]:
                    rows = slice(start, start + size)
                    self._load_head(key, prefix + part, own.head, rows, keys)
                    start, loaded = start + size, loaded + 1
            if loaded != sum(len(self.specs[key]["heads"]) for key in keys) or (
                start != own.head.out_features
            ):
                raise CaseError(f"{self.case.name}: the heads of {name!r} do not fit")

    def load(self, tensor: str, parameter: nn.Parameter, part: slice = slice(None)) -> None:
        """Load one tensor that belongs to no network, for example a prior's, or a part of it."""
        value = self.case.tensors[tensor].flatten()[part]
        self._put(tensor, value.reshape(parameter.shape), parameter, slice(None), part)

    def gradient(self, tensor: str) -> Tensor:
        """Gradient of the loss with respect to one weight tensor of the golden."""
        if tensor not in self.places:
            raise CaseError(f"{self.case.name}: our model has no counterpart of {tensor!r}")
        total = torch.zeros_like(self.case.tensors[tensor]).flatten()
        for parameter, rows, part in self.places[tensor]:
            if parameter.grad is not None:
                total[part] += parameter.grad[rows].flatten()
        return total

    def _own(self, name: str) -> list[str]:
        """The networks that encode a modality: one, or one more for its private latent."""
        return [
            key for kind in ("", "private_") if (key := f"{kind}encoders.{name}") in self.specs
        ]

    def _encoder(self, name: str) -> nn.Module:
        trunks = []
        for key in self._own(name):
            inputs = self.specs[key]["inputs"]
            if inputs != [f"x.{name}"]:
                raise CaseError(f"{self.case.name}: encoder of {name!r} has inputs {inputs}")
            trunks.append(nn.Sequential(nn.Flatten(), *self._trunk(key, None)))
        return trunks[0] if len(trunks) == 1 else _SideBySide(trunks)

    def _decoder(self, name: str) -> nn.Module:
        key = f"decoders.{name}"
        spec = self.specs[key]
        sizes = {"z": self.case.latent_dim}
        if len(spec["inputs"]) == 1 and spec["inputs"] != ["z"]:
            # a level of a hierarchy, or a latent of this modality alone
            sizes = {spec["inputs"][0]: self.case.tensors[spec["trunk"][0]["weight"]].shape[1]}
        if name in self.case.private_dims:
            sizes[f"w.{name}"] = self.case.private_dims[name]
        # a case may list z alone where the decoder reads [z, w]
        order = list(dict.fromkeys([*spec["inputs"], *sizes]))
        if set(order) != set(sizes) or list(spec["heads"]) != ["recon"]:
            raise CaseError(f"{self.case.name}: {key} has inputs {order}, heads {spec['heads']}")
        starts = dict(zip(sizes, _starts(sizes.values()), strict=True))
        columns = [starts[part] + i for part in order for i in range(sizes[part])]
        layers = [*self._trunk(key, sum(sizes.values()))]
        layers.append(self._linear(key, "recon", spec["heads"]["recon"]))
        if "reshape" in spec:
            layers.append(nn.Unflatten(1, tuple(spec["reshape"])))
        return nn.Sequential(_Columns(columns), *layers)

    def _trunk(self, key: str, inputs: int | None) -> Iterator[nn.Module]:
        spec, first = self.specs[key], True
        if set(spec) - {"inputs", "trunk", "heads", "reshape"}:
            raise CaseError(f"{self.case.name}: network {key} has unknown keys {list(spec)}")
        for layer in spec["trunk"]:
            if layer["op"] != "linear":
                if layer["op"] not in _OPERATIONS:
                    raise CaseError(f"{self.case.name}: unknown operation {layer['op']!r}")
                yield _Operation(layer["op"])
                continue
            linear = self._linear(key, None, layer, flat=first and key in self.flat)
            if first and inputs is not None and linear.in_features != inputs:
                raise CaseError(f"{self.case.name}: {key} reads {linear.in_features} inputs")
            first = False
            yield linear

    def _linear(
        self, key: str, head: str | None, spec: Mapping[str, str], flat: bool = False
    ) -> nn.Linear:
        outputs, inputs = self.case.tensors[spec["weight"]].shape
        linear = nn.Linear(inputs, outputs, dtype=torch.float64)
        self._fill(f"{key}:{head}", spec, linear, slice(None), flat)
        return linear

    def _load_head(
        self, key: str, head: str, linear: nn.Linear, rows: slice, keys: list[str]
    ) -> None:
        """Load a head; it reads the features of its own network alone."""
        spec = self.specs[key]["heads"][head]
        if len(keys) == 1:
            self._fill(f"{key}:{head}", spec, linear, rows, False)
            return
        weight = self.case.tensors[spec["weight"]]
        start = 0 if key == keys[0] else linear.in_features - weight.shape[1]
        with torch.no_grad():
            linear.weight[rows] = 0.0
            linear.weight[rows, start : start + weight.shape[1]] = weight
            linear.bias[rows] = self.case.tensors[spec["bias"]]

    def _fill(
        self, label: str, spec: Mapping[str, str], linear: nn.Linear, rows: slice, flat: bool
    ) -> None:
        weight, bias = self.case.tensors[spec["weight"]], self.case.tensors[spec["bias"]]
        if flat or label in self.constant:
            weight = torch.zeros_like(weight)
        if label in self.constant:
            bias = torch.full_like(bias, float(self.constant[label]))
        self._put(spec["weight"], weight, linear.weight, rows)
        self._put(spec["bias"], bias, linear.bias, rows)

    def _put(
        self,
        tensor: str,
        value: Tensor,
        parameter: Tensor,
        rows: slice,
        part: slice = slice(None),
    ) -> None:
        if parameter[rows].shape != value.shape or parameter.dtype != value.dtype:
            raise CaseError(
                f"{self.case.name}: {tensor} is {tuple(value.shape)}, our place for it is"
                f" {tuple(parameter[rows].shape)}"
            )
        with torch.no_grad():
            parameter[rows] = value
        self.places[tensor].append((parameter, rows, part))


class _Columns(nn.Module):
    """Bring our [shared, private] into the order that the golden's decoder reads."""

    columns: Tensor

    def __init__(self, columns: list[int]) -> None:
        super().__init__()
        self.register_buffer("columns", torch.tensor(columns))

    def forward(self, latent: Tensor) -> Tensor:
        return latent.index_select(-1, self.columns)


class _SideBySide(nn.Module):
    """Several networks as one, with their features next to each other."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, value: Tensor) -> Tensor:
        return torch.cat([part(value) for part in self.parts], dim=1)


class _Operation(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, value: Tensor) -> Tensor:
        return _OPERATIONS[self.name](value)


def _starts(sizes: Any) -> list[int]:
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    return starts[:-1]
