"""Reading data frames and folders: alignment by id, memory maps, no pickle."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from multivae_core.data import IncompleteDataset
from multivae_core.errors import DataError, FileFormatError

pd = pytest.importorskip("pandas")


def frame(ids: list, columns: int = 2, seed: int = 0):
    x = np.random.default_rng(seed).normal(size=(len(ids), columns))
    return pd.DataFrame(x, index=ids, columns=[f"c{i}" for i in range(columns)])


def test_frames_are_aligned_by_id(caplog: pytest.LogCaptureFixture) -> None:
    a, b = frame(["p", "q", "r"]), frame(["r", "s", "p"], seed=1)
    a.loc["q", "c0"] = np.nan
    with caplog.at_level(logging.INFO, "multivae_core"):
        data = IncompleteDataset.from_dataframes(
            {"a": a, "b": b}, labels={"s": 3, "q": 1, "r": 2, "p": 0, "x": 9}
        )
    assert "aligned 4 rows by id, 2 of them in all 2 tables" in caplog.text
    assert data.ids.tolist() == ["p", "q", "r", "s"]
    assert data.labels.tolist() == [0, 1, 2, 3]
    assert data.present.tolist() == [[True, True], [True, False], [True, True], [False, True]]
    batch = data.batch()
    assert batch.values["a"][2].tolist() == a.loc["r"].tolist()
    assert batch.values["b"][0].tolist() == b.loc["p"].tolist()
    assert batch.values["b"][1].tolist() == [0.0, 0.0]
    assert data.observed["a"].tolist() == [
        [True, True],
        [False, True],
        [True, True],
        [False, False],
    ]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, unique=True), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_every_cell_lands_in_its_row(tables: list[list[int]]) -> None:
    frames = {f"m{i}": frame(ids, seed=i) for i, ids in enumerate(tables)}
    data = IncompleteDataset.from_dataframes(frames)
    batch = data.batch()
    assert sorted(data.ids.tolist()) == sorted(set().union(*tables))
    for column, (name, table) in enumerate(frames.items()):
        expected = table.reindex(data.ids)
        assert np.array_equal(batch.values[name].numpy(), expected.fillna(0.0).to_numpy())
        assert batch.present[:, column].tolist() == expected.notna().any(axis=1).tolist()
    again = IncompleteDataset.from_dataframes(dict(reversed(frames.items()))).subset
    assert again(slice(None)).names == tuple(reversed(frames))


def test_id_column_and_column_types() -> None:
    a = pd.DataFrame({"who": [1, 2, 3], "n": [1, 2, 3], "flag": [True, False, True]})
    b = pd.DataFrame({"who": [3, 1, 2], "x": pd.array([1, None, 3], dtype="Int64")})
    c = pd.DataFrame({"who": [1, 2, 3], "y": np.array([1, 2, 3], np.float32)})
    data = IncompleteDataset.from_dataframes({"a": a, "b": b, "c": c}, id_column="who")
    assert data.dtypes == {"a": torch.int64, "b": torch.float64, "c": torch.float32}
    assert data.batch().values["a"].tolist() == [[1, 1], [2, 0], [3, 1]]
    assert data.present[:, 1].tolist() == [False, True, True]
    assert data.batch().values["b"].tolist() == [[0.0], [3.0], [1.0]]


def test_labels_from_a_series() -> None:
    data = IncompleteDataset.from_dataframes(
        {"a": frame(["p", "q"])}, labels=pd.Series([1.5, 0.5], index=["q", "p"])
    )
    assert data.labels.tolist() == [0.5, 1.5]


def test_folder_of_csv_with_ids(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\ufeffid,x,y\np1,1,2\np2,,NA\n p3 ,5,6\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("id,z\np3,7\np1,8\n")
    (tmp_path / "labels.csv").write_text("id,class\np1,0\np2,1\np3,0\n")
    (tmp_path / "README.md").write_text("ignored")
    data = IncompleteDataset.from_folder(tmp_path, id_column="id", allow_empty_rows=True)
    assert data.ids.tolist() == ["p1", "p2", "p3"]
    assert data.labels.tolist() == [0, 1, 0]
    assert data.labels.dtype == torch.int64
    assert data.present.tolist() == [[True, True], [False, False], [True, True]]
    assert data.batch().values["b"].tolist() == [[8.0], [0.0], [7.0]]


def mapped_folder(path: Path, rows: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(rows, 2, 3)).astype(np.float32)
    image[1], image[2, 0, 0] = np.nan, np.nan
    text = rng.integers(0, 9, size=(rows, 4))
    np.save(path / "image.npy", image)
    np.save(path / "text.npy", text)
    np.save(path / "text.present.npy", np.arange(rows) != 3)
    mask = torch.ones(rows, 2, dtype=torch.bool)
    mask[4, 1] = False
    sound = torch.from_numpy(rng.normal(size=(rows, 2)))
    sound[4, 1] = torch.inf
    save_file({"values": sound, "observed": mask}, path / "sound.safetensors")
    np.save(path / "labels.npy", np.arange(rows))
    return {"image": image, "text": text, "sound": sound.numpy()}


def test_memory_mapped_files_of_both_kinds(tmp_path: Path) -> None:
    arrays = mapped_folder(tmp_path)
    data = IncompleteDataset.from_folder(tmp_path)
    assert data.names == ("image", "sound", "text")
    batch = data.batch([4, 1, 3])
    assert np.array_equal(batch.values["image"].numpy(), np.nan_to_num(arrays["image"][[4, 1, 3]]))
    assert batch.values["sound"][0, 1] == 0.0
    assert batch.values["text"].tolist() == [
        arrays["text"][4].tolist(),
        arrays["text"][1].tolist(),
        [0] * 4,
    ]
    assert batch.present.tolist() == [[True, True, True], [False, True, True], [True, True, False]]
    assert batch.labels.tolist() == [4, 1, 3]
    first, second = data.split(0.5, seed=0)
    assert len(first.concat(second).batch().values["image"]) == 6


def test_a_memory_map_passed_by_hand_is_not_copied(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 3), np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r+")
    data = IncompleteDataset({"x": mapped})
    mapped[2] = 5.0
    assert data.batch([2]).values["x"].tolist() == [[5.0, 5.0, 5.0]]


def test_npy_rows_are_aligned_by_lists_of_ids(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1.0], [2.0]]))
    np.save(tmp_path / "b.npy", np.array([[3.0], [4.0]]))
    (tmp_path / "a.ids.txt").write_text("u\nv\n")
    (tmp_path / "b.ids.txt").write_text("v\nw\n")
    data = IncompleteDataset.from_folder(tmp_path)
    assert data.ids.tolist() == ["u", "v", "w"]
    assert data.batch().values["b"].tolist() == [[0.0], [3.0], [4.0]]
    assert data.subset([2, 1]).batch().values["a"].tolist() == [[0.0], [2.0]]
    assert data.concat(data.subset([2, 1])).ids.tolist() == ["u", "v", "w", "w", "v"]


def test_pickled_arrays_run_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(
        FileFormatError, match=r"a\.npy cannot be read .* pickled objects are refused"
    ):
        IncompleteDataset.from_folder(tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{broken")
    with pytest.raises(FileFormatError, match=r"a\.safetensors cannot be read"):
        IncompleteDataset.from_folder(tmp_path)
    (tmp_path / "a.safetensors").unlink()
    np.save(tmp_path / "b.npy", np.ones((100, 3)))
    with (tmp_path / "b.npy").open("r+b") as stream:
        stream.truncate(500)
    with pytest.raises(FileFormatError, match=r"b\.npy cannot be read"):
        IncompleteDataset.from_folder(tmp_path)


def test_folder_without_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = frame([1])
    (tmp_path / "a.csv").write_text("x\n1\n2\n")
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert len(IncompleteDataset.from_folder(tmp_path)) == 2
    with pytest.raises(DataError, match="needs pandas, which is not installed: pip install"):
        IncompleteDataset.from_dataframes({"a": table})
