"""Model folders: what a model is, its weights and its card; on disk and on the hub."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from multivae_core import persistence
from multivae_core._registry import registry
from multivae_core._version import __version__
from multivae_core.building import without_memory
from multivae_core.config import structure, unstructure
from multivae_core.errors import ConfigError, FileFormatError, UnknownComponentError
from multivae_core.model_card import model_card
from multivae_core.plugins import ComponentSpec

if TYPE_CHECKING:
    from multivae_core.model import MultimodalVAE

__all__ = ["load_model", "push_to_hub", "save_model"]

FORMAT = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_FILES = (CONFIG, WEIGHTS, CARD)
_KEYS: dict[str, type[Any]] = {
    **{"format": int, "model": str, "dtype": str},
    **dict.fromkeys(("config", "custom", "notes", "versions"), dict),
}
_WORDS: dict[type, str] = {int: "a whole number", str: "a text", dict: "an object"}
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def save_model(
    model: MultimodalVAE, folder: str | Path, *, summary: Mapping[str, Any] | None = None
) -> Path:
    """Write a model folder: ``config.json``, ``model.safetensors`` and a card; return its path.

    The folder appears complete or not at all. A model folder that is there is replaced, and is
    intact until the new one is complete.

    Args:
        model: A model whose class is registered.
        folder: Where to; it may exist if it is empty or a model folder and nothing else.
        summary: What else the card should tell, for example ``{"metrics": {...}}``; it is kept
            in the folder and in ``model.notes`` of the model that is loaded from it.

    Raises:
        FileFormatError: Something else is there, or the model has parts that cannot be stored.
        UnknownComponentError: The class of the model is not registered.
    """
    spec, record = _record(model, summary)
    weights = _weights(model)
    target = Path(folder)
    with persistence.new_folder(target, _not_a_model) as draft:
        persistence.write_tensors(draft / WEIGHTS, weights)
        persistence.write_json(draft / CONFIG, record)
        count = sum(value.numel() for value in weights.values())
        persistence.write_text(draft / CARD, model_card(spec, record, count))
    return target


def load_model(
    path: str | Path,
    *,
    encoders: Mapping[str, nn.Module] | None = None,
    decoders: Mapping[str, nn.Module] | None = None,
    networks: Mapping[str, nn.Module] | None = None,
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> MultimodalVAE:
    """Load a model that was saved, in evaluation mode.

    Nothing is executed but code that is installed: the folder names registry entries, and the
    weights are safetensors. Names, shapes and types of all tensors are checked before any is
    copied.

    Args:
        path: A model folder, or ``"hub:user/repo"`` for a repository of the hub.
        encoders: The networks of one's own that the model was created with; they get the
            saved weights.
        decoders: Likewise.
        networks: Likewise, by role.
        device: Where to put the model.
        revision: Branch, tag or commit of the repository.

    Raises:
        FileFormatError: The folder is incomplete or damaged, or needs something that was not
            given; the message says what.
        RegistryError: The model's plugin is not installed; the message names it.
    """
    folder = _locate(path, revision)
    record = _read_record(folder / CONFIG)
    own = {"encoders": dict(encoders or {}), "decoders": dict(decoders or {})}
    if networks or record["custom"].get("networks"):
        own["networks"] = dict(networks or {})
    _check_custom(folder, record, own)
    model = _blank(folder / CONFIG, record, own)
    _assign(model, folder / WEIGHTS)
    model.notes.update(record["notes"])
    model.to(device)
    return model.eval()


def push_to_hub(
    model: MultimodalVAE,
    repo: str,
    *,
    summary: Mapping[str, Any] | None = None,
    private: bool = True,
    revision: str | None = None,
    message: str = "Upload model",
    token: str | None = None,
) -> str:
    """Upload the model folder to the Hugging Face hub; return the address of the commit.

    Args:
        model: The model.
        repo: ``"user/repo"``; it is created if needed.
        summary: As in `save_model`.
        private: Whether a repository that is created can be seen by its owner alone.
        revision: Branch to upload to.
        message: Message of the commit.
        token: Access token; None: the one of ``hf auth login``.

    Raises:
        FileFormatError: The repository cannot be written or reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as parent:
        folder = save_model(model, Path(parent) / "model", summary=summary)
        with _hub_errors(repo):
            api.create_repo(repo, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo, folder_path=folder, revision=revision, commit_message=message
            )
    return str(commit.commit_url)


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn failures of the hub's client into one kind of error with a remedy."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise FileFormatError(
            f"{repo!r} cannot be the name of a repository of the hub; write 'user/repo'"
        ) from error
    except Exception as error:  # the client's HTTP library, and so its errors, have changed before
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileFormatError(
            f"the repository {repo!r} of the hub cannot be used ({first}): check its name and"
            " revision, the connection, and for private ones `hf auth login`"
        ) from error


def _record(
    model: MultimodalVAE, summary: Mapping[str, Any] | None
) -> tuple[ComponentSpec, dict[str, Any]]:
    """Return the registry's entry of a model and the content of ``config.json``."""
    spec = _spec(type(model))
    kind = str(model.dtype).removeprefix("torch.")
    if kind not in _DTYPES:
        raise FileFormatError(
            f"the model is in {kind}, which is not stored; call model.float() before saving"
        )
    versions = {"multivae-core": __version__, "torch": torch.__version__}
    plugin = registry.plugins.get(spec.plugin)
    if plugin is not None and plugin.version:
        versions[plugin.name] = plugin.version
    own = model.config.modalities
    custom = {
        f"{role}s": [name for name in model.modalities if getattr(own[name], role) is None]
        for role in ("encoder", "decoder")
    }
    return spec, {
        "format": FORMAT,
        "model": spec.qualified_name,
        "dtype": kind,
        "config": unstructure(model.config),
        "custom": custom | ({"networks": [*model.own_networks]} if model.own_networks else {}),
        "notes": persistence.plain({**model.notes, **(summary or {})}),
        "versions": versions,
    }


def _spec(model_class: type[Any]) -> ComponentSpec:
    """Return the registry's entry of a model class."""
    ending = f":{model_class.__qualname__}"
    for spec in registry.models.specs():
        if spec.target.endswith(ending) and registry.resolve(spec, spec.target) is model_class:
            return spec
    raise UnknownComponentError(
        f"{model_class.__name__} is not a registered model, so that no saved folder could name"
        " it: mark the class with @mv.register_model(name=..., config=...), or list it in a plugin"
    )


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return what is stored, each parameter once, under the first of its names."""
    first: dict[int, str] = {}
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise FileFormatError(
                f"{name.rpartition('.')[0]} keeps extra state of type {type(value).__name__}, but"
                " a model folder holds tensors only: keep it in a buffer, or in the configuration"
            )
        if first.setdefault(id(value), name) == name:
            weights[name] = value
    return weights


def _not_a_model(folder: Path) -> str:
    """Tell why an existing folder must not be replaced by a model; ``""`` if it may."""
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in _FILES)
    if foreign:
        return f"it has other contents than a model ({foreign[0]})"
    try:
        _read_record(folder / CONFIG)
    except FileFormatError as error:
        return f"it is not a model folder ({error})"
    return ""


def _locate(path: str | Path, revision: str | None) -> Path:
    if isinstance(path, str) and path.startswith("hub:"):
        from huggingface_hub import snapshot_download

        repo = path.removeprefix("hub:")
        with _hub_errors(repo):  # out of the client's cache; nothing else is fetched
            found = snapshot_download(repo, revision=revision, allow_patterns=list(_FILES))
        return Path(found)
    if revision is not None:
        raise FileFormatError(
            f"revision={revision!r} belongs to a repository of the hub, but {str(path)!r} is a"
            " folder: leave it out, or write 'hub:user/repo'"
        )
    return persistence.find_folder(Path(path))


def _read_record(path: Path) -> dict[str, Any]:
    """Read ``config.json`` and check everything in it that does not depend on the model."""
    record = persistence.read_json(path)
    for key, kind in _KEYS.items():
        value: Any = record.get(key)
        if type(value) is not kind:
            raise FileFormatError(
                f"{path}: {key}: must be {_WORDS[kind]}, got {value!r}; the file is incomplete or"
                " was edited, or is not the config.json of a model folder: copy it again"
            )
        if key == "format" and value > FORMAT:
            raise FileFormatError(
                f"{path}: format: {value} is newer than {FORMAT}, the newest that multivae-core"
                f" {__version__} reads; upgrade it: pip install -U multivae-core"
            )
    for key in record:
        if key not in _KEYS:
            raise FileFormatError(f"{path}: {key}: unknown key; there is {', '.join(_KEYS)}")
    if record["dtype"] not in _DTYPES:
        listed = " or ".join(_DTYPES)
        raise FileFormatError(f"{path}: dtype: must be {listed}, got {record['dtype']!r}")
    return record


def _check_custom(
    folder: Path, record: Mapping[str, Any], own: Mapping[str, Mapping[str, nn.Module]]
) -> None:
    """Make sure that exactly the networks are given that the folder cannot rebuild."""
    for kind, networks in own.items():
        role, needed = kind[:-1], record["custom"].get(kind, [])
        of, what = ("role", "roles") if kind == "networks" else ("modality", "modalities")
        problem = ""
        if not isinstance(needed, list):
            problem = f"{CONFIG}: custom.{kind}: must be a list of {what}, got {needed!r}"
        elif missing := [name for name in needed if name not in networks]:
            problem = (
                f"the {role} of {of} {missing[0]!r} is a network of its author's own, which"
                " the folder does not describe; build it and pass it again: load_model(...,"
                f" {kind}={{{missing[0]!r}: network}}); a registered network needs no passing"
            )
        elif extra := [name for name in networks if name not in needed]:
            problem = (
                f"an own {role} was passed for {extra[0]!r}, but this model's own networks are"
                f" those of {', '.join(needed) or 'no ' + of}; leave it out"
            )
        elif wrong := [n for n, network in networks.items() if not isinstance(network, nn.Module)]:
            problem = (
                f"{kind}[{wrong[0]!r}] must be a torch.nn.Module, got {networks[wrong[0]]!r};"
                " pass the same kind of object that create_model got"
            )
        if problem:
            raise FileFormatError(f"{folder}: {problem}")


def _blank(
    path: Path, record: Mapping[str, Any], own: Mapping[str, Mapping[str, nn.Module]]
) -> MultimodalVAE:
    """Build the model that a record describes, its own weights still without memory."""
    name = record["model"]
    if name.startswith("local/") and name not in registry.models:
        raise UnknownComponentError(
            f"{path}: model: {name!r} was registered inside another process, as in a notebook: run"
            f" the code with @mv.register_model(name={name.partition('/')[2]!r}) here first"
        )
    model_class, config_class = registry.models.load(name), registry.models.load_config(name)
    dtype = _DTYPES[record["dtype"]]
    try:
        config = structure(config_class or dict, record["config"], "config")
        model: MultimodalVAE = without_memory(dtype, model_class, config, **own)
    except (ConfigError, RuntimeError) as error:
        versions = ", ".join(f"{key} {version}" for key, version in record["versions"].items())
        raise FileFormatError(
            f"{path}: {error}; the file was edited, or written by another version ({versions})"
        ) from error
    return model.to(dtype)


def _assign(model: nn.Module, path: Path) -> None:
    """Give a model the weights of a file, after checking that all of them fit."""
    weights = _weights(model)
    needed = {name: persistence.describe(v.dtype, v.shape) for name, v in weights.items()}
    found = persistence.tensor_table(path)
    remedy = (
        "; the weights belong to another configuration or another version: copy the whole folder"
        " again"
    )
    for name in {**needed, **found}:
        if name not in found:
            raise FileFormatError(f"{path} has no tensor {name!r}, which the model needs{remedy}")
        if name not in needed:
            raise FileFormatError(f"{path}: the model has no tensor {name!r}{remedy}")
        if found[name] != needed[name]:
            raise FileFormatError(
                f"{path}: tensor {name!r} is {found[name]}, the model needs {needed[name]}{remedy}"
            )
    tensors: dict[int, Tensor] = {}
    for name, read in persistence.read_tensors(path).items():
        value = weights[name]
        own = isinstance(value, nn.Parameter)
        tensors[id(value)] = nn.Parameter(read, value.requires_grad) if own else read
    state = {key: tensors[id(v)] for key, v in model.state_dict(keep_vars=True).items()}
    model.load_state_dict(state, assign=True)
