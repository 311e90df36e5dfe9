"""Folders, tensors and JSON on disk: written atomically, checked when read, never pickled."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from multivae_core.errors import FileFormatError

__all__ = [
    "describe", "find_folder", "new_folder", "plain", "read_json", "read_tensors",
    "tensor_table", "write_json", "write_tensors", "write_text",
]  # fmt: skip

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
# How files begin that run code when they are unpickled: torch archives and bare pickles.
_PICKLES = (b"PK\x03\x04", *(bytes((0x80, protocol)) for protocol in range(2, 6)))


@contextmanager
def new_folder(folder: Path, refusal: Callable[[Path], str] | None = None) -> Iterator[Path]:
    """Yield an empty folder that takes the place of another when the block ends without error.

    At every instant there is either the old folder or the complete new one: the new one is
    filled under a temporary name beside it, synced to the disk and renamed. In the moment
    between the two renamings that replace a folder, and after a crash there, the old one is
    under its second name, where `find_folder` looks.

    Args:
        folder: The place; missing parents are made.
        refusal: Tells why an existing folder must not be replaced, or ``""`` if it may; None:
            nothing is ever replaced. Empty folders may always be.

    Raises:
        FileFormatError: There is something that must not be replaced.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft, spare = folder.with_name(f".{folder.name}.partial"), _spare(folder)
    if spare.exists() and not folder.exists():
        spare.rename(folder)  # an earlier process was stopped between its two renamings
    _refuse_foreign(folder, refusal)
    for leftover in (draft, spare):
        shutil.rmtree(leftover, ignore_errors=not leftover.exists())
    draft.mkdir()
    try:
        yield draft
        for path in (*draft.rglob("*"), draft):
            _sync(path)
        if folder.exists():
            folder.rename(spare)
        draft.rename(folder)
    except BaseException:
        if spare.exists() and not folder.exists():
            spare.rename(folder)
        shutil.rmtree(draft, ignore_errors=True)
        raise
    _sync(folder.parent)
    shutil.rmtree(spare, ignore_errors=True)


def find_folder(folder: Path) -> Path:
    """Return where a folder that `new_folder` wrote is, also after a crash while replacing it.

    Raises:
        FileFormatError: There is none.
    """
    if folder.is_file():
        raise FileFormatError(f"{folder} is a file, not a folder: give the folder that holds it")
    for place in (folder, _spare(folder.resolve())):
        if place.is_dir():
            return place
    raise FileFormatError(
        f"there is no folder {folder} (looked for in {Path.cwd()}): check the path"
    )


def _spare(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _refuse_foreign(folder: Path, refusal: Callable[[Path], str] | None) -> None:
    if folder.is_file():
        raise FileFormatError(
            f"{folder} is a file and is not overwritten: choose the name of a folder"
        )
    if not folder.exists() or not any(folder.iterdir()):
        return
    reason = refusal(folder) if refusal is not None else "it exists"
    if reason:
        raise FileFormatError(
            f"{folder} is not replaced, because {reason}: choose another folder, or delete it"
            " first"
        )


def _sync(path: Path) -> None:
    """Ask the operating system to bring a file or folder to the disk."""
    # folders cannot be opened everywhere, and not every file system can sync
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def plain(value: Any) -> Any:
    """Turn a value into what JSON can hold: tensors become lists, the unknown becomes text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, indented for readers."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8 with the same line ends everywhere."""
    path.write_bytes(text.encode("utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileFormatError: The file is missing or damaged, or holds something else.
    """
    _require(path)
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{path} is not valid JSON ({error}): the file is damaged or was edited; copy it again"
        ) from error
    if not isinstance(value, dict):
        raise FileFormatError(
            f"{path} must hold a JSON object, it holds a {type(value).__name__}: the file is"
            " damaged or another one; copy it again"
        )
    return value


def _require(path: Path) -> None:
    if not path.is_file():
        raise FileFormatError(
            f"{path.parent} has no file {path.name}: the folder is incomplete; copy it again, or"
            " give the folder that `save` wrote"
        )


def describe(dtype: torch.dtype, shape: Iterable[int]) -> str:
    """Return what a tensor is, for comparisons and messages: ``"float32 of shape (2, 3)"``."""
    return f"{str(dtype).removeprefix('torch.')} of shape {tuple(shape)}"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, which may be on any device and may share memory, as safetensors.

    Raises:
        FileFormatError: A tensor of a type that the format does not have.
    """
    ready: dict[str, Tensor] = {}
    owners: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.dtype not in _DTYPES.values():
            kind = f"{tensor.dtype}".removeprefix("torch.")
            raise FileFormatError(
                f"tensor {name!r} is {kind} ({tensor.layout}), which is not stored: convert it to"
                " a dense tensor of a usual real type"
            )
        dense = tensor.detach().cpu().contiguous()
        memory = dense.untyped_storage()
        # the format knows neither shared memory nor parts of a larger piece of memory
        if memory.data_ptr() in owners or memory.nbytes() != dense.nbytes:
            dense = dense.clone()
        owners.add(dense.untyped_storage().data_ptr())
        ready[name] = dense
    save_file(ready, path)


def tensor_table(path: Path) -> dict[str, str]:
    """Return what every tensor of a file is, see `describe`, without reading the values.

    Raises:
        FileFormatError: The file is missing, truncated, or not in the format; a pickle is
            recognised, and nothing of it is run.
    """
    with _opened(path) as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        for name, part in parts.items():
            if part.get_dtype() not in _DTYPES:
                raise FileFormatError(
                    f"{path}: tensor {name!r} has the type {part.get_dtype()}, which no model of"
                    " this library has; save the model again in float32 or float64"
                )
        return {n: describe(_DTYPES[p.get_dtype()], p.get_shape()) for n, p in parts.items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file; fails as `tensor_table` does."""
    with _opened(path) as file:
        # out of the mapped file: what happens to it later cannot reach the copies
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    _require(path)
    with path.open("rb") as raw:
        start = raw.read(16)
    # the header of safetensors is JSON after 8 bytes of length, which may look like a pickle
    if start.startswith(_PICKLES) and start[8:9] != b"{":
        raise FileFormatError(
            f"{path} is a pickle or a torch archive, not safetensors: loading it could run any"
            " code, so nothing was read; ask its author for a folder that `save` wrote"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise FileFormatError(
            f"{path} ({path.stat().st_size} bytes) is truncated or damaged ({error}): nothing was"
            " loaded; copy it again"
        ) from error
