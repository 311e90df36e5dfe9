"""The model card: what a reader of a model folder should know, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
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
    config = record["config"]
    options = [(f"`{k}`", _text(v)) for k, v in config.items() if k != "modalities"]
    tags = "".join(f"\n- {tag}" for tag in ("multimodal", "vae", "missing-data", spec.name))
    parts = [
        f"---\nlibrary_name: multivae\nlicense: unknown\ntags:{tags}\n---",
        _introduction(spec, record, n_weights),
        *_use(spec, record["custom"]),
        "## Modalities",
        _modalities(config["modalities"]),
        *_notes(record["notes"]),
        "## Options",
        _table(("option", "value"), options),
        "## Versions",
        _table(("package", "version"), record["versions"].items()),
        "## Licence",
        "Not chosen yet. Name a licence here and in the first lines of this file before sharing"
        " the model.",
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(spec: ComponentSpec, record: Mapping[str, Any], n_weights: int) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(record["config"]["modalities"]))
    text = (
        f"# {spec.name}\n\nA multimodal variational autoencoder of the kind"
        f" `{spec.qualified_name}` over the modalities {names}, any of which may be missing;"
        f" {n_weights:,} numbers in {record['dtype']}."
    )
    text += f" {spec.summary.rstrip('.')}." if spec.summary else ""
    return text + (f" Reference: {spec.reference.rstrip('.')}." if spec.reference else "")


def _use(spec: ComponentSpec, custom: Mapping[str, list[str]]) -> Iterator[str]:
    own = [
        f", {role}={{{', '.join(f'{name!r}: network' for name in names)}}}"
        for role, names in custom.items()
        if names
    ]
    plugin = "" if spec.plugin in ("multivae-core", "local") else f" {spec.plugin}"
    yield "## Use"
    yield (
        f"```python\n# pip install multivae-core{plugin}\nimport multivae_core as mv\n\n"
        f'model = mv.load_model("<this folder, or hub:user/repo>"{"".join(own)})\n'
        "z = model.embed(data)  # an mv.IncompleteDataset\n```"
    )
    if own:
        yield "Networks that are passed are not described by this folder."
    if spec.plugin == "local":
        yield "The code of the model's class is not part of any package."


def _modalities(modalities: Mapping[str, Mapping[str, Any]]) -> str:
    header = ("modality", "shape", "likelihood", "encoder", "decoder", "standardised")
    rows = [
        (
            f"`{name}`",
            " x ".join(map(str, own["shape"])),
            _text(own["likelihood"]),
            *(_text(own[role]) if own[role] else "own network" for role in header[3:5]),
            "yes" if own["standardise"] else "no",
        )
        for name, own in sorted(modalities.items())
    ]
    return _table(header, rows)


def _notes(notes: Mapping[str, Any]) -> Iterator[str]:
    """What `create_model` noted about the training data, metrics, and what the author added."""
    for name, value in notes.items():
        yield f"## {'Training data' if name == 'data' else str(name).capitalize()}"
        if name == "data" and isinstance(value, Mapping) and "modalities" in value:
            yield f"{value.get('rows')} rows; labels: {value.get('labels')}."
            header = ("modality", "type", "rows without it", "missing elements in the rest")
            rows = [
                (f"`{own['name']}`", own["dtype"], f"{own['missing']:.1%}", f"{own['holes']:.1%}")
                for own in value["modalities"]
            ]
            yield _table(header, rows)
        elif name == "metrics" and isinstance(value, Mapping):
            yield _table(("metric", "value"), [(k, _text(v)) for k, v in value.items()])
        elif isinstance(value, str):
            yield value
        else:
            yield f"```json\n{json.dumps(value, indent=2)}\n```"


def _text(value: Any) -> str:
    """Return a value for a cell; a component as ``name(option=value, ...)``."""
    if isinstance(value, Mapping) and "type" in value:
        options = ", ".join(f"{k}={_text(v)}" for k, v in value.items() if k != "type")
        return f"{str(value['type']).rpartition('/')[2]}({options})"
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def _table(header: tuple[str, ...], rows: Iterable[Iterable[object]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
