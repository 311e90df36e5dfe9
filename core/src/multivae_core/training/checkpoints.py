"""Checkpoints: folders of safetensors and JSON, written whole or not at all, nothing pickled."""

from __future__ import annotations

__all__ = ["Checkpoint", "CheckpointFolder", "Saved"]

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from torch import Tensor

from multivae_core.errors import ConfigError, FileFormatError, TrainingError
from multivae_core.persistence import (
    new_folder,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)

logger = logging.getLogger(__name__)

FORMAT = 1
_STATE = "state.json"


@attrs.frozen
class Saved:
    """Weights that are to be saved as the best ones.

    Args:
        step: The step after which they were the best.
        weights: Name -> tensor.
    """

    step: int
    weights: dict[str, Tensor]


@attrs.frozen
class Checkpoint:
    """A checkpoint that was found intact.

    Args:
        path: Its folder.
        state: Everything that is not a tensor.
        best: The folder of the best weights, or None.
    """

    path: Path
    state: dict[str, Any]
    best: Path | None

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of ``model`` or ``optimisers``."""
        return read_tensors(self.path / f"{name}.safetensors")

    def best_weights(self) -> dict[str, Tensor] | None:
        """The best weights of the stage so far."""
        return None if self.best is None else read_tensors(self.best / "model.safetensors")


class CheckpointFolder:
    """The checkpoints of one run: ``step-00000123/`` and ``best-00000100/``.

    A folder is written under a temporary name, forced to the disk, and renamed. Its state file
    holds the checksums of the other files and its own.

    Args:
        folder: Where they are; it is made if it does not exist.
        keep: How many checkpoints stay.

    Raises:
        ConfigError: The folder cannot be written to.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"{str(folder)!r} cannot be written to ({error}); choose another one", "folder"
            ) from error

    def tidy(self) -> None:
        """Remove what an interrupted write left behind."""
        for kind in ("step", "best"):
            for leftover in self.folder.glob(f".{kind}-*.p*"):  # .partial and .previous
                shutil.rmtree(leftover, ignore_errors=True)

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        best: Saved | None,
    ) -> Path:
        """Write a checkpoint, then remove old ones.

        Args:
            step: Optimisation steps so far.
            tensors: File name (without suffix) -> name -> tensor.
            state: What JSON can hold.
            best: The best weights, written if they are not there yet.
        """
        reference = None
        if best is not None:
            reference = f"best-{best.step:08d}"
            if _read(self.folder / reference) is None:
                self._write(reference, {"model": best.weights}, {"step": best.step})
        path = self._write(f"step-{step:08d}", tensors, {**state, "best_folder": reference})
        self._prune()
        return path

    def all(self) -> list[Path]:
        """Folders that look like checkpoints, newest first, damaged ones included."""
        return _candidates(self.folder)

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint, or None; damaged ones are named in a warning."""
        return _newest(self.folder)

    @staticmethod
    def at(path: Path) -> Checkpoint:
        """The checkpoint at a path, or the newest one of a folder of checkpoints.

        Raises:
            TrainingError: There is none, or it is damaged.
        """
        if (path / _STATE).exists():
            if (found := _open(path)) is not None:
                return found
            raise TrainingError(
                f"checkpoint {path} is damaged: a file is missing, or its checksum is wrong;"
                " resume from another one"
            )
        if (found := _newest(path)) is not None:
            return found
        raise TrainingError(
            f"no intact checkpoint in {path}; give the folder of a run or one of its step-..."
            " folders, or resume=False"
        )

    def _write(
        self, name: str, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
    ) -> Path:
        with new_folder(self.folder / name, lambda _: "") as draft:
            files = {}
            for stem, entries in tensors.items():
                file = draft / f"{stem}.safetensors"
                write_tensors(file, entries)
                files[file.name] = _checksum(file)
            body = {"format": FORMAT, "files": files, "state": dict(state)}
            write_json(draft / _STATE, {**body, "sha256": _digest(body)})
        return self.folder / name

    def _prune(self) -> None:
        """Remove old checkpoints, and best weights that no kept one needs."""
        needed: list[str | None] = []
        for path in self.all():
            # what cannot be read does not count as kept; hashing everything would be slow
            body = _read(path) if len(needed) < self.keep else None
            if body is None:
                shutil.rmtree(path, ignore_errors=True)
            else:
                needed.append(body["state"].get("best_folder"))
        for path in self.folder.glob("best-*"):
            if path.name not in needed:
                shutil.rmtree(path, ignore_errors=True)


def _candidates(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), key=lambda path: path.name, reverse=True)


def _newest(folder: Path) -> Checkpoint | None:
    for path in _candidates(folder):
        if (found := _open(path)) is not None:
            return found
        logger.warning("checkpoint %s is damaged; looking for the one before it", path)
    return None


def _open(path: Path) -> Checkpoint | None:
    """The checkpoint in a folder, or None where it or its best weights are not intact."""
    body = _read(path)
    if body is None or not _intact(path, body):
        return None
    name = body["state"].get("best_folder")
    if name is None:
        return Checkpoint(path, body["state"], None)
    best = path.parent / Path(name).name
    best_body = _read(best)
    if best_body is None or not _intact(best, best_body):
        return None
    return Checkpoint(path, body["state"], best)


def _read(path: Path) -> dict[str, Any] | None:
    """The state file of a folder, or None where it is missing or damaged."""
    try:
        body = read_json(path / _STATE)
    except FileFormatError:
        return None
    if body.pop("sha256", None) != _digest(body):
        return None
    if body.get("format") != FORMAT:
        raise TrainingError(
            f"checkpoint {path} has format {body.get('format')!r}, this version reads {FORMAT};"
            " go on with the version that wrote it"
        )
    return body


def _intact(path: Path, body: Mapping[str, Any]) -> bool:
    try:
        return all(_checksum(path / name) == known for name, known in body["files"].items())
    except OSError:
        return False


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
