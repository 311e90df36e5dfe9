"""Folders that appear whole or not at all, and files that are checked before they are read."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multivae_core import persistence
from multivae_core.errors import FileFormatError
from multivae_core.persistence import (
    find_folder,
    new_folder,
    plain,
    read_json,
    read_tensors,
    tensor_table,
    write_json,
    write_tensors,
    write_text,
)


def replaceable(_: Path) -> str:
    return ""


def fill(folder: Path, text: str, **options: Any) -> None:
    with new_folder(folder, **options) as draft:
        write_text(draft / "a.txt", text)
        write_text(draft / "b.txt", text)


def texts(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in ("a.txt", "b.txt")]


# ---------------------------------------------------------------------------- folders


def test_a_folder_appears_with_everything_in_it(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "model"
    with new_folder(target) as draft:
        assert not target.exists()
        write_text(draft / "a.txt", "one")
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert (target / "a.txt").read_text() == "one"


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "model") as draft:
            write_text(draft / "a.txt", "one")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_old_folder_is_whole_until_the_new_one_is(tmp_path: Path) -> None:
    target = tmp_path / "model"
    fill(target, "old")

    def fail() -> None:
        with new_folder(target, replaceable) as draft:
            write_text(draft / "a.txt", "new")
            assert texts(target) == ["old", "old"]
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert texts(target) == ["old", "old"]
    fill(target, "new", refusal=replaceable)
    assert texts(target) == ["new", "new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    fill(tmp_path / "thesis", "precious")
    with pytest.raises(
        FileFormatError, match=r"thesis is not replaced, because it exists: choose"
    ):
        fill(tmp_path / "thesis", "new")
    with pytest.raises(FileFormatError, match="because it is a thesis: choose another folder, or"):
        fill(tmp_path / "thesis", "new", refusal=lambda _: "it is a thesis")
    assert texts(tmp_path / "thesis") == ["precious", "precious"]


def test_a_file_is_not_replaced_and_an_empty_folder_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileFormatError, match="is a file and is not overwritten: choose the name"):
        fill(tmp_path / "file", "new", refusal=replaceable)
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "empty", "new")
    assert texts(tmp_path / "empty") == ["new", "new"]


def test_leftovers_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    target = tmp_path / "model"
    fill(target, "old")
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "a.txt").write_text("torn")
    fill(target, "new", refusal=replaceable)
    assert texts(target) == ["new", "new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_kill_between_the_renamings_loses_nothing(tmp_path: Path) -> None:
    target = tmp_path / "model"
    fill(target, "old")
    target.rename(tmp_path / ".model.previous")  # as far as the killed process came
    assert texts(find_folder(target)) == ["old", "old"]

    def fail() -> None:
        with new_folder(target, replaceable):
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert texts(find_folder(target)) == ["old", "old"]
    fill(target, "new", refusal=replaceable)
    assert texts(find_folder(target)) == ["new", "new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


_KILLS = """
import os, signal, sys
from pathlib import Path
from multivae_core.persistence import find_folder, new_folder, write_text

target = Path(sys.argv[1])

def fill(text):
    with new_folder(target, lambda _: "") as draft:
        write_text(draft / "a.txt", text)
        write_text(draft / "b.txt", text)

def killed_at(stop):
    calls = 0
    for name in ("mkdir", "rename", "write_bytes"):
        def counted(self, *args, original=getattr(Path, name), **options):
            nonlocal calls
            calls += 1
            if calls == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, *args, **options)
        setattr(Path, name, counted)
    fill("new")

for stop in range(1, 9):
    fill("old")
    child = os.fork()
    if child == 0:
        killed_at(stop)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    folder = find_folder(target)
    print(status, *((folder / name).read_text() for name in ("a.txt", "b.txt")))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_anywhere_there_is_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _KILLS, str(tmp_path / "model")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = [line.split() for line in done.stdout.splitlines()]
    assert len(found) == 8
    assert all(one == other for _, one, other in found)  # never a mixture
    assert [one for status, one, _ in found if status == "0"] == ["new", "new"]
    assert all(int(status) == signal.SIGKILL for status, *_ in found if status != "0")
    assert found[0][1:] == ["old", "old"]


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"there is no folder .*nope.*: check the path"):
        find_folder(tmp_path / "nope")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileFormatError, match="is a file, not a folder: give the folder"):
        find_folder(tmp_path / "file")


# ---------------------------------------------------------------------------- JSON


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True], "ä": {"b": "x"}, "inf": float("inf")}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert (tmp_path / "x.json").read_bytes().endswith(b"\n")


def test_everything_has_a_plain_form() -> None:
    value = {
        1: torch.tensor([1.5]),
        "n": np.float32(2.0),
        "t": (1, {2}),
        ("private", "a"): Path("x"),
        "none": None,
    }
    found = plain(value)
    assert found == {"1": [1.5], "n": 2.0, "t": [1, [2]], "('private', 'a')": "x", "none": None}
    json.dumps(found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON .*: the file is damaged or was edited; copy it again"),
        (b'{"a": 1', "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1, 2]", "must hold a JSON object, it holds a list"),
        (pickle.dumps({"a": 1}), "is not valid JSON"),
    ],
)
def test_damaged_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        read_json(tmp_path / "x.json")


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(
        FileFormatError, match=r"has no file x\.json: the folder is incomplete; co"
    ):
        read_json(tmp_path / "x.json")


# ---------------------------------------------------------------------------- tensors


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "f32": torch.randn(3, 4, generator=generator),
        "f64": torch.randn(5, generator=generator, dtype=torch.float64),
        "f16": torch.randn(2, generator=generator).half(),
        "bf16": torch.randn(2, generator=generator).bfloat16(),
        "i64": torch.arange(4),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
    }


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, tensors())
    found = read_tensors(path)
    assert found.keys() == tensors().keys()
    for name, value in tensors().items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    table = tensor_table(path)
    assert table["f32"] == "float32 of shape (3, 4)"
    assert table["scalar"] == "float32 of shape ()"
    assert table["f64"] == "float64 of shape (5,)"


def test_shared_memory_and_views_are_written_whole(tmp_path: Path) -> None:
    path, base = tmp_path / "x.safetensors", torch.arange(12.0)
    views = {"all": base, "again": base, "part": base[3:5], "turned": base.view(3, 4).T}
    write_tensors(path, views)
    found = read_tensors(path)
    assert all(torch.equal(found[name], value) for name, value in views.items())
    assert path.stat().st_size < 1000


def test_parameters_and_their_gradients_stay_apart(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    write_tensors(tmp_path / "x.safetensors", {"w": weight})
    assert not read_tensors(tmp_path / "x.safetensors")["w"].requires_grad


def test_what_was_read_does_not_depend_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(1000)})
    found = read_tensors(path)["a"]
    path.write_bytes(b"\0" * path.stat().st_size)
    assert bool((found == 1.0).all())


def test_tensors_that_have_no_place_in_the_format(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="tensor 'a' is complex64 .*not stored: convert it"):
        write_tensors(tmp_path / "x", {"a": torch.zeros(2, dtype=torch.complex64)})
    with pytest.raises(FileFormatError, match=r"tensor 'a' is float32 \(torch.sparse_coo\)"):
        write_tensors(tmp_path / "x", {"a": torch.eye(2).to_sparse()})


class Bomb:
    """What an attacker would pickle."""

    fuse: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.fuse,)


@pytest.mark.parametrize("writer", ["pickle2", "pickle4", "torch", "old_torch"])
def test_pickles_are_recognised_and_not_run(tmp_path: Path, writer: str) -> None:
    path, Bomb.fuse = tmp_path / "x.safetensors", tmp_path / "exploded"
    if writer.startswith("pickle"):
        path.write_bytes(pickle.dumps(Bomb(), protocol=int(writer[-1])))
    else:
        torch.save(Bomb(), path, _use_new_zipfile_serialization=writer == "torch")
    for read in (tensor_table, read_tensors):
        with pytest.raises(
            FileFormatError, match="is a pickle or a torch archive, not safetensor"
        ):
            read(path)
    assert not (tmp_path / "exploded").exists()
    with path.open("rb") as file:  # the bomb would have worked
        (torch.load(file, weights_only=False) if "torch" in writer else pickle.load(file))
    assert (tmp_path / "exploded").exists()


def test_a_header_length_that_looks_like_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for wanted in (0x0280, 0x0480):  # begins with the bytes 80 02, 80 04
        for size in range(wanted):
            write_tensors(path, {"a" * size: torch.zeros(1)})
            if path.read_bytes()[:2] == wanted.to_bytes(2, "little"):
                break
        assert path.read_bytes()[:2] == wanted.to_bytes(2, "little")
        assert len(tensor_table(path)) == 1


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(3), "b": torch.ones(2)})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(FileFormatError, match=rf"\({size} bytes\) is truncated or damaged"):
            tensor_table(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(FileFormatError, match="truncated or damaged"):
        tensor_table(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_damage_is_an_error_of_ours_or_harmless(tmp_path: Path, place: int, value: int) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(3), "b": torch.ones(2, 2)})
    raw = bytearray(path.read_bytes())
    raw[place % len(raw)] = value
    path.write_bytes(raw)
    with suppress(FileFormatError):  # anything else would be a bug
        read_tensors(path)
        tensor_table(path)


def test_the_module_has_no_road_to_a_pickle() -> None:
    source = Path(persistence.__file__).read_text()
    for word in ("import pickle", "torch.load(", "torch.save("):
        assert word not in source
