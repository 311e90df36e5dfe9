"""Checkpoints: a resumed run equals an uninterrupted one; files that are damaged or foreign."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import attrs
import numpy as np
import pytest
import torch
from torch import nn

import multivae_core as mv
from multivae_core.errors import TrainingError
from multivae_core.persistence import read_tensors
from multivae_core.training import Trainer
from multivae_core.training.checkpoints import newest, write_checkpoint

torch.set_num_threads(1)


class Killed(Exception):
    """Raised in the middle of training, as a kill would."""


class KillAt:
    def __init__(self, step):
        self.step = step

    @mv.hookimpl
    def step_end(self, run):
        np.random.rand()  # callbacks may draw, too
        if run.position.step == self.step:
            raise Killed


@attrs.frozen
class Config:
    latent_dim: int = 2


class Net(nn.Module):
    """A stage with dropout and two players, then a stage that starts from the best weights."""

    def __init__(self, seed=0, width=8):
        super().__init__()
        self.config = Config(width)
        self.notes = {}
        self.modalities = ("a",)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Linear(3, width), nn.Dropout(0.5), nn.Linear(width, 2))
            self.norm = nn.BatchNorm1d(2)
            self.head = nn.Linear(2, 3)
            self.critic = nn.Linear(2, 1)

    @property
    def dtype(self):
        return self.critic.weight.dtype

    @property
    def device(self):
        return self.critic.weight.device

    def prepare(self, batch):
        return attrs.evolve(batch, values={"a": batch.values["a"].to(self.dtype)})

    def latent(self, batch, step):
        z = self.norm(self.body(batch.values["a"]))
        return z + 0.1 * step.noise.normal("z", (1, batch.size, 2))[0]

    def fit_loss(self, batch, step):
        error = (self.head(self.latent(batch, step)) - batch.values["a"]).square().sum(1)
        weight = batch.values["a"][:, 0].abs()
        yield mv.LossOutput(terms={"error": mv.Term(error, weight)})

    def critic_loss(self, batch, step):
        gap = (self.critic(self.latent(batch, step))[:, 0] - 1).square()
        yield mv.LossOutput(terms={"gap": mv.Term(gap)})

    def stages(self):
        fit = mv.Player(
            name="fit", parameters=(self.body, self.norm, self.head), loss=self.fit_loss
        )
        critic = mv.Player(
            name="critic", parameters=(self.critic,), loss=self.critic_loss, every=3
        )
        last = mv.Player(name="last", parameters=(self.critic,), loss=self.critic_loss)
        return (
            mv.Stage(name="game", players=(fit, critic)),
            mv.Stage(name="last", players=(last,), start_from="best"),
        )


def make_data(seed, rows=40):
    rng = np.random.default_rng(seed)
    return mv.IncompleteDataset({"a": rng.normal(size=(rows, 3))})


TRAIN, VALID = make_data(0), make_data(1, 12)
OPTIONS = {
    "epochs": {"game": 3, "last": 2},  # 5 steps per epoch, 25 in all
    "batch_size": 8,
    "lr": 0.05,
    "schedule": "cosine",
    "warmup": 2,
    "progress": False,
    "checkpoint_every": {"steps": 2},
}


def fit(model=None, train=TRAIN, validation=VALID, **changes):
    model = Net() if model is None else model
    return model, Trainer(**{**OPTIONS, **changes}).fit(model, train, validation)


def restarted(folder):
    """A model as a new process makes it: other weights, unless it has to begin anew."""
    return Net(seed=7 if list(folder.glob("step-*")) else 0)


def last_state(folder):
    """Weights, optimisers and random states of the newest checkpoint."""
    path = max(folder.glob("step-*"))
    state = json.loads((path / "state.json").read_text())["state"]
    for row in state["history"]:
        row.pop("seconds")
    return (
        read_tensors(path / "model.safetensors"),
        read_tensors(path / "training.safetensors"),
        state,
    )


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    model, history = fit(folder=folder, callbacks=[KillAt(-1)])
    return model.state_dict(), history, last_state(folder)


@pytest.mark.parametrize("at", [1, 2, 3, 5, 7, 14, 15, 16, 20, 23, 25])
def test_resumed_equals_uninterrupted_bit_for_bit(straight, at, tmp_path):
    """Killed between epochs, inside one, at the end of a stage, and at the end of the run."""
    with pytest.raises(Killed):
        fit(folder=tmp_path, callbacks=[KillAt(at)])
    torch.manual_seed(at)  # a new process begins elsewhere
    model, history = fit(restarted(tmp_path), folder=tmp_path, callbacks=[KillAt(-1)])
    weights, reference, (tensors, optimisers, state) = straight
    assert_same(model.state_dict(), weights)
    assert history == reference
    mine = last_state(tmp_path)
    assert_same(mine[0], tensors)
    assert_same(mine[1], optimisers)
    assert mine[2] == state


@pytest.mark.parametrize("every", [1, 2])
def test_killed_again_and_again(straight, every, tmp_path):
    """Checkpoints at the ends of epochs; killed four times in one run."""
    for at in (4, 9, 13, 21):
        with pytest.raises(Killed):
            fit(
                restarted(tmp_path), folder=tmp_path, callbacks=[KillAt(at)],
                checkpoint_every=every,
            )  # fmt: skip
    model, history = fit(folder=tmp_path, callbacks=[KillAt(-1)], checkpoint_every=every)
    assert_same(model.state_dict(), straight[0])
    assert history == straight[1]


def test_a_finished_run_is_not_run_again(tmp_path):
    first, history = fit(folder=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    second, again = fit(Net(seed=3), folder=tmp_path, callbacks=[KillAt(26)])
    assert_same(first.state_dict(), second.state_dict())
    assert history == again
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_more_epochs_go_on(tmp_path):
    options = {"schedule": "constant", "epochs": {"game": 2, "last": 2}}
    fit(folder=tmp_path, **options)
    longer = {**options, "epochs": {"game": 2, "last": 4}}
    model, history = fit(Net(seed=3), folder=tmp_path, **longer)
    reference, straight = fit(**longer)
    assert_same(model.state_dict(), reference.state_dict())
    assert history == straight
    with pytest.raises(TrainingError, match="is at step 20 of stage 'last', and the budget is 5"):
        fit(folder=tmp_path, **{**options, "epochs": {"game": 2, "last": 1}})


def test_only_the_last_ones_stay(tmp_path):
    fit(folder=tmp_path, keep=3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000022", "step-00000024", "step-00000025"]
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or path.suffix in (".json", ".safetensors")
        if path.suffix == ".json":
            json.loads(path.read_text())


@pytest.mark.parametrize(
    "damage",
    [
        "truncated tensors",
        "truncated state",
        "changed state",
        "changed byte",
        "missing file",
        "half written",
        "best missing",
    ],
)
def test_a_torn_checkpoint_is_passed_over(straight, damage, tmp_path, caplog):
    with pytest.raises(Killed):
        fit(folder=tmp_path, callbacks=[KillAt(9)])
    newest = max(tmp_path.glob("step-*"))
    assert newest.name == "step-00000008"
    state, tensors = newest / "state.json", newest / "training.safetensors"
    if damage == "truncated tensors":
        tensors.write_bytes(tensors.read_bytes()[:-9])
    elif damage == "truncated state":
        state.write_bytes(state.read_bytes()[:-30])
    elif damage == "changed state":
        state.write_text(state.read_text().replace('"epoch": 1', '"epoch": 2', 1))
    elif damage == "changed byte":
        data = bytearray(tensors.read_bytes())
        data[-1] ^= 1
        tensors.write_bytes(bytes(data))
    elif damage == "missing file":
        tensors.unlink()
    elif damage == "half written":
        newest.rename(tmp_path / ".step-00000008.partial")
    else:
        (newest / "best.safetensors").unlink()
    model, history = fit(Net(seed=5), folder=tmp_path, callbacks=[KillAt(-1)])
    warned = [r.message for r in caplog.records if "is damaged" in r.message]
    assert len(warned) == (0 if damage == "half written" else 1)
    assert_same(model.state_dict(), straight[0])
    assert history == straight[1]
    assert not list(tmp_path.glob(".step-*"))


def test_no_pickle_is_read(tmp_path):
    with pytest.raises(Killed):
        fit(folder=tmp_path, callbacks=[KillAt(3)])
    newest = max(tmp_path.glob("step-*"))

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save(Bomb(), newest / "model.safetensors")
    with pytest.raises(TrainingError, match="no intact checkpoint"):
        fit(folder=tmp_path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.01}, "options lr: 0.05 in the checkpoint, 0.01 now"),
        ({"batch_size": 10}, "options batch_size: 8 in the checkpoint, 10 now"),
        ({"seed": 1}, "options seed: 0 in the checkpoint, 1 now"),
        ({"optimiser": "sgd"}, "options optimiser: 'adam' in the checkpoint, 'sgd' now"),
        ({"model": Net(width=9)}, "model config"),
        ({"train": make_data(0, 41)}, "training data rows: 40 in the checkpoint, 41 now"),
        ({"train": make_data(5)}, "training data digest"),
        ({"validation": None}, "validation data"),
    ],
)
def test_another_run_is_refused(changes, words, tmp_path):
    with pytest.raises(Killed):
        fit(folder=tmp_path, callbacks=[KillAt(3)])
    with pytest.raises(TrainingError, match="is of another run") as caught:
        fit(folder=tmp_path, **changes)
    assert words in str(caught.value)
    assert "resume=False" in str(caught.value)


def test_ways_to_resume(straight, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    with pytest.raises(TrainingError, match="no intact checkpoint"):
        fit(folder=run, resume=run)
    with pytest.raises(Killed):
        fit(folder=run, callbacks=[KillAt(7)])
    with pytest.raises(TrainingError, match="holds checkpoints of another run"):
        fit(folder=run, resume=False)
    for source in (run, run / "step-00000004", str(run / "step-00000006")):
        shutil.rmtree(other, ignore_errors=True)
        model, _ = fit(Net(seed=5), folder=other, resume=source, callbacks=[KillAt(-1)])
        assert_same(model.state_dict(), straight[0])
    model, _ = fit(Net(seed=5), resume=run, callbacks=[KillAt(-1)])
    assert_same(model.state_dict(), straight[0])
    (run / "step-00000006" / "state.json").write_text("{}")
    with pytest.raises(TrainingError, match="no intact checkpoint"):
        fit(resume=run / "step-00000006")
    with pytest.raises(TrainingError, match="no intact checkpoint"):
        fit(resume=tmp_path / "nowhere")


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("multivae_core.training.checkpoints.FORMAT", 2)
    write_checkpoint(tmp_path, 3, 2, {"model": {}}, {})
    monkeypatch.undo()
    with pytest.raises(TrainingError, match="has format 2, this version reads 1"):
        newest(tmp_path)


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    for number in (1, 2):
        tensors = {"model": {"w": torch.full((2,), float(number))}}
        write_checkpoint(tmp_path, 1, 2, tensors, {"n": number})
    path, state = newest(tmp_path)
    assert state["n"] == 2
    assert torch.equal(read_tensors(path / "model.safetensors")["w"], torch.full((2,), 2.0))
    assert [found.name for found in tmp_path.iterdir()] == ["step-00000001"]


def test_tied_weights_are_saved_once(tmp_path):
    class Tied(Net):
        def __init__(self, seed=0):
            super().__init__(seed)
            self.twin = self.critic

    with pytest.raises(Killed):
        fit(Tied(), folder=tmp_path, callbacks=[KillAt(7)])
    model, history = fit(Tied(seed=4), folder=tmp_path, callbacks=[KillAt(-1)])
    straight, reference = fit(Tied(), callbacks=[KillAt(-1)])
    assert_same(model.state_dict(), straight.state_dict())
    assert history == reference


def test_accumulation_with_own_weights_is_refused():
    with pytest.raises(TrainingError, match="term 'error' has weights .* gradient_accumulation=1"):
        fit(gradient_accumulation=3)


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from test_checkpoints import Killed, KillAt, Net, fit
import torch
torch.set_num_threads(1)
fit(folder={folder!r}, callbacks=[KillAt(-1)], epochs={{"game": 3, "last": 2000}})
"""


@pytest.mark.slow
def test_killed_process(tmp_path):
    """SIGKILL at a moment of the system's choosing; the run goes on as if nothing had been."""
    import signal
    import time
    from pathlib import Path

    here = str(Path(__file__).parent)
    epochs = {"game": 3, "last": 40}
    script = SCRIPT.format(here=here, folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("step-*"))) < 2 and time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(process.stderr.read().decode())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    reached = int(max(tmp_path.glob("step-*")).name[5:])
    if reached >= 5 * 43:
        pytest.skip("the process was killed too late")
    # the cosine schedule depends on the budget: the same budget as the killed run
    model, history = fit(
        Net(seed=5), folder=tmp_path, callbacks=[KillAt(-1), StopAt(reached + 30)],
        epochs={**epochs, "last": 2000},
    )  # fmt: skip
    straight, reference = fit(
        callbacks=[KillAt(-1), StopAt(reached + 30)], epochs={**epochs, "last": 2000}
    )
    assert_same(model.state_dict(), straight.state_dict())
    assert history == reference


class StopAt:
    def __init__(self, step):
        self.step = step

    @mv.hookimpl
    def epoch_end(self, run):
        if run.position.step >= self.step and run.stage.name == "last":
            run.stop()
