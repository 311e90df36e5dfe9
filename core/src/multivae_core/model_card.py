"""The model card: what a reader of a model folder should know, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from multivae_core.plugins import ComponentSpec

__all__ = ["model_card"]


def model_card(spec: ComponentSpec, record: Mapping[str, Any], n_weights: int) -> str:
    """Return the card of a saved model.

    Args:
        spec: The registry's entry of the model.
        record: The content of its ``config.json``.
        n_weights: How many numbers its weights are.
    """
    config, notes = record["config"], record["notes"]
    parts = [
        _front_matter(spec),
        _introduction(spec, record, n_weights),
        _loading(spec, record),
        "## Modalities\n\n" + _modalities(config["modalities"]),
        *_data(notes.get("data")),
        *_metrics(notes.get("metrics")),
        "## Options\n\n" + _table(("option", "value"), _options(config)),
        *_others(notes),
        "## Versions\n\n" + _table(("package", "version"), record["versions"].items()),
        "## Licence\n\nNot chosen yet. Name a licence here and in the first lines of this file"
        " before sharing the model.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(spec: ComponentSpec) -> str:
    tags = "".join(f"\n- {tag}" for tag in ("multimodal", "vae", "missing-data", spec.name))
    return f"---\nlibrary_name: multivae\nlicense: unknown\ntags:{tags}\n---"


def _introduction(spec: ComponentSpec, record: Mapping[str, Any], n_weights: int) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(record["config"]["modalities"]))
    sentences = [
        f"A multimodal variational autoencoder of the kind `{spec.qualified_name}` over the"
        f" modalities {names}, any of which may be missing;"
        f" {n_weights:,} numbers in {record['dtype']}.",
    ]
    if spec.summary:
        sentences.append(spec.summary.rstrip(".") + ".")
    if spec.reference:
        sentences.append(f"Reference: {spec.reference.rstrip('.')}.")
    return f"# {spec.name}\n\n" + " ".join(sentences)


def _loading(spec: ComponentSpec, record: Mapping[str, Any]) -> str:
    own = [
        f"{role}={{{', '.join(f'{name!r}: network' for name in names)}}}"
        for role, names in record["custom"].items()
        if names
    ]
    call = ", ".join(['"<this folder, or hub:user/repo>"', *own])
    packages = "multivae-core"
    if spec.plugin not in ("multivae-core", "local"):
        packages += f" {spec.plugin}"
    lines = [
        "## Use",
        f"```python\n# pip install {packages}\nimport multivae_core as mv\n\n"
        f"model = mv.load_model({call})\nz = model.embed(data)  # an mv.IncompleteDataset\n```",
    ]
    if own:
        lines.append("Networks that are passed are not described by this folder.")
    if spec.plugin == "local":
        lines.append("The code of the model's class is not part of any package.")
    return "\n\n".join(lines)


def _modalities(modalities: Mapping[str, Mapping[str, Any]]) -> str:
    rows = (
        (
            f"`{name}`",
            " x ".join(map(str, own["shape"])),
            _short(own["likelihood"]),
            _short(own["encoder"]) if own["encoder"] else "own network",
            _short(own["decoder"]) if own["decoder"] else "own network",
            "yes" if own["standardise"] else "no",
        )
        for name, own in sorted(modalities.items())
    )
    header = ("modality", "shape", "likelihood", "encoder", "decoder", "standardised")
    return _table(header, rows)


def _short(component: Any) -> str:
    """Return a component as ``name(option=value, ...)``."""
    if not isinstance(component, Mapping) or "type" not in component:
        return _text(component)
    options = ", ".join(f"{k}={_text(v)}" for k, v in component.items() if k != "type")
    return f"{str(component['type']).rpartition('/')[2]}({options})"


def _data(data: Any) -> Iterable[str]:
    """What `create_model` noted about the training data."""
    if not isinstance(data, Mapping) or not {"rows", "labels", "modalities"} <= data.keys():
        return
    rows = (
        (
            f"`{own.get('name')}`",
            own.get("dtype"),
            _percent(own.get("missing")),
            _percent(own.get("holes")),
        )
        for own in data["modalities"]
    )
    table = _table(("modality", "type", "rows without it", "missing elements in the rest"), rows)
    yield f"## Training data\n\n{data['rows']} rows; labels: {data['labels']}.\n\n{table}"


def _percent(share: Any) -> str:
    return f"{share:.1%}" if isinstance(share, int | float) else "unknown"


def _metrics(metrics: Any) -> Iterable[str]:
    if isinstance(metrics, Mapping) and metrics:
        rows = ((name, _text(value)) for name, value in metrics.items())
        yield "## Metrics\n\n" + _table(("metric", "value"), rows)


def _others(notes: Mapping[str, Any]) -> Iterable[str]:
    for name, value in notes.items():
        if name not in ("data", "metrics"):
            text = value if isinstance(value, str) else f"```json\n{_text(value, indent=2)}\n```"
            yield f"## {str(name).capitalize()}\n\n{text}"


def _options(config: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name, value in config.items():
        if name != "modalities":
            yield f"`{name}`", _short(value)


def _text(value: Any, indent: int | None = None) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, indent=indent)


def _table(header: tuple[str, ...], rows: Iterable[Iterable[object]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
