"""The trainer: what it does to a model, what it reports, what it refuses."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import signal

import attrs
import numpy as np
import pytest
import torch
from torch import nn

import multivae_core as mv
from multivae_core.errors import ConfigError, DataError, TrainingError
from multivae_core.training import History, Trainer, TrainerOptions
from multivae_core.training.options import budgets

torch.set_num_threads(1)

SHAPES = {"a": (3,), "b": (4,)}


@attrs.frozen
class TinyConfig:
    latent_dim: int = 2
    dropout: float = 0.0


class Tiny(nn.Module):
    """Two modalities, product posterior, unit-variance normal likelihoods."""

    def __init__(self, dropout=0.0, seed=0, dtype=torch.float64):
        super().__init__()
        self.config = TinyConfig(dropout=dropout)
        self.notes = {}
        self.modalities = tuple(SHAPES)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoders = nn.ModuleDict(
                {
                    name: nn.Sequential(
                        nn.Linear(shape[0], 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4)
                    )
                    for name, shape in SHAPES.items()
                }
            )
            self.decoders = nn.ModuleDict(
                {name: nn.Linear(2, shape[0]) for name, shape in SHAPES.items()}
            )
            self.flow = nn.Linear(2, 2)
        self.to(dtype)

    @property
    def dtype(self):
        return self.flow.weight.dtype

    @property
    def device(self):
        return self.flow.weight.device

    def prepare(self, batch):
        for name in batch.values:
            if name not in SHAPES:
                raise DataError(f"modality {name!r} is unknown to this model")
        return attrs.evolve(batch, values={n: x.to(self.dtype) for n, x in batch.values.items()})

    def parts(self, batch, step):
        precision, weighted = 1.0, 0.0
        for name in SHAPES:
            mean, log_var = self.encoders[name](batch.values[name]).chunk(2, dim=1)
            own = torch.where(batch.column(name)[:, None], torch.exp(-log_var), 0.0)
            precision, weighted = precision + own, weighted + own * mean
        mean, variance = weighted / precision, 1.0 / precision
        noise = step.noise.normal("shared", (1, batch.size, 2))[0]
        z = mean + variance.sqrt() * noise
        kl = 0.5 * (mean**2 + variance - variance.log() - 1).sum(1)
        scores = {
            name: torch.where(
                batch.column(name),
                0.5 * (batch.values[name] - self.decoders[name](z)).square().sum(1),
                0.0,
            )
            for name in SHAPES
        }
        return z, kl, scores

    def loss(self, batch, step):
        _, kl, scores = self.parts(batch, step)
        value = sum(scores.values()) + kl
        return mv.LossOutput(terms={"elbo": mv.Term(value)}, metrics={"kl": kl.detach()})

    def pieces(self, batch, step):
        yield self.loss(batch, step)

    def stages(self):
        return (
            mv.Stage(
                name="train",
                players=(mv.Player(name="model", parameters=(self,), loss=self.pieces),),
            ),
        )


class Staged(Tiny):
    """A joint stage, then a flow on frozen networks."""

    start_from = "best"

    def flow_loss(self, batch, step):
        with torch.no_grad():
            z, _, _ = self.parts(batch, step)
        yield mv.LossOutput(terms={"fit": mv.Term((self.flow(z) - z.flip(1)).square().sum(1))})

    def stages(self):
        joint = mv.Player(
            name="joint", parameters=(self.encoders, self.decoders), loss=self.pieces
        )
        flow = mv.Player(
            name="flow", parameters=(self.flow,), loss=self.flow_loss, optimiser={"lr": 0.02}
        )
        return (
            mv.Stage(name="joint", players=(joint,), share=3.0),
            mv.Stage(name="flows", players=(flow,), start_from=self.start_from),
        )


class Adversarial(Tiny):
    """Two players that share a loss in opposite directions; the second moves every other step."""

    def critic_loss(self, batch, step):
        z, _, _ = self.parts(batch, step)
        yield mv.LossOutput(terms={"gap": mv.Term(self.flow(z).square().sum(1))})

    def stages(self):
        return (
            mv.Stage(
                name="game",
                players=(
                    mv.Player(
                        name="auto",
                        parameters=(self.encoders, self.decoders),
                        loss=self.pieces,
                    ),
                    mv.Player(
                        name="critic", parameters=(self.flow,), loss=self.critic_loss, every=2
                    ),
                ),
            ),
        )


def make_data(rows=50, seed=0, holes=True):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, 2))
    values = {
        name: z @ rng.normal(size=(2, shape[0])) + 0.3 * rng.normal(size=(rows, shape[0]))
        for name, shape in SHAPES.items()
    }
    present = rng.random((rows, 2)) < 0.7
    present[~present.any(1), 0] = True
    return mv.IncompleteDataset(values, present=present if holes else None)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def fit(model=None, data=None, validation=None, **options):
    model = Tiny() if model is None else model
    options = {"batch_size": 16, "progress": False, **options}
    if "steps" not in options:
        options = {"epochs": 3, **options}
    history = Trainer(**options).fit(model, data or make_data(), validation)
    return model, history


def test_loss_falls_and_is_reported():
    model, history = fit(epochs=30, lr=0.01, validation=make_data(20, seed=1))
    assert len(history) == 30
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    row = history.epochs[-1]
    assert row.step == 30 * 4
    assert set(row.numbers) == {
        "loss", "elbo", "kl", "gradient_norm", "lr",
        "validation/loss", "validation/elbo", "validation/kl",
    }  # fmt: skip
    assert row.numbers["loss"] == row.numbers["elbo"]
    assert not model.training
    assert model.notes["training"]["steps"] == 120
    assert History.from_rows(json.loads(history.to_json())["epochs"]) == history
    assert "<- best" in repr(history)


def test_same_seed_same_run_and_another_seed_another():
    first, one = fit(Tiny(dropout=0.3))
    torch.rand(7)  # the state before training does not matter
    second, two = fit(Tiny(dropout=0.3))
    third, three = fit(Tiny(dropout=0.3), seed=1)
    assert same(weights(first), weights(second))
    assert one == two
    assert not same(weights(first), weights(third))
    assert one != three


def test_global_random_states_are_put_back():
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    expected = torch.rand(3), np.random.rand(3), random.random()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    fit(Tiny(dropout=0.3), epochs=1)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])
    assert random.random() == expected[2]


def test_one_step_is_adam_on_the_mean_over_rows_by_hand():
    data, model = make_data(12), Tiny()
    reference = Tiny()
    batch = next(iter(data.batches(12, shuffle=True, seed=0, epoch=0)))
    from multivae_core.noise import TrainingNoise

    step = mv.Step(training=True, noise=TrainingNoise(0, 0, dtype=torch.float64))
    optimiser = torch.optim.Adam(reference.parameters(), lr=1e-3)
    reference.loss(reference.prepare(batch), step).terms["elbo"].value.mean().backward()
    optimiser.step()
    fit(model, data, epochs=1, batch_size=12)
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_accumulation_changes_rounding_only(parts):
    whole, one = fit()
    cut, two = fit(gradient_accumulation=parts)
    for first, second in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-9)


def test_rows_with_nothing_seen_weigh_nothing():
    data = make_data(24)
    empty = mv.IncompleteDataset(
        {name: np.full((8, *shape), np.nan) for name, shape in SHAPES.items()},
        allow_empty_rows=True,
    )
    both = data.concat(empty)
    _, history = fit(data=both, epochs=1, batch_size=32)
    _, reference = fit(data=data, epochs=1, batch_size=32)
    # before the first step the losses differ by noise alone: compare by validation
    one = fit(data=data, validation=data, epochs=1, lr=1e-12)[1]["validation/loss"]
    two = fit(data=data, validation=both, epochs=1, lr=1e-12)[1]["validation/loss"]
    assert one == pytest.approx(two, rel=1e-12)
    assert math.isfinite(history["loss"][0])
    assert math.isfinite(reference["loss"][0])


def test_validation_does_not_depend_on_batch_size_and_changes_nothing():
    valid = make_data(21, seed=1)
    with_it, one = fit(Tiny(dropout=0.3), validation=valid, best_model=False)
    without, _ = fit(Tiny(dropout=0.3))
    assert same(weights(with_it), weights(without))
    # the loss before the first step, measured in batches of 50 and of 25
    two = fit(batch_size=50, epochs=1, lr=1e-12, validation=valid)[1]["validation/loss"]
    three = fit(batch_size=25, epochs=1, lr=1e-12, validation=valid)[1]["validation/loss"]
    assert two == pytest.approx(three, rel=1e-9)
    assert len(one["validation/loss"]) == 3


def test_last_batch_of_one_row_and_batch_without_a_modality():
    values = {name: np.ones((9, *shape)) for name, shape in SHAPES.items()}
    present = {"a": np.ones(9, bool), "b": np.arange(9) == 0}
    _, history = fit(data=mv.IncompleteDataset(values, present=present), batch_size=4)
    assert np.isfinite(history["loss"]).all()


def test_stages_freeze_and_start_from_best():
    class Spy:
        def __init__(self):
            self.modes, self.flags, self.start = {}, {}, {}

        @mv.hookimpl
        def stage_start(self, run):
            self.start[run.stage.name] = weights(run.model)

        @mv.hookimpl
        def step_end(self, run):
            self.modes[run.stage.name] = {n: m.training for n, m in run.model.named_modules()}
            self.flags[run.stage.name] = {
                n: p.requires_grad for n, p in run.model.named_parameters()
            }

    spy, model = Spy(), Staged(dropout=0.2)
    model.decoders["a"].bias.requires_grad_(False)
    model, history = fit(
        model, epochs={"joint": 4, "flows": 2}, lr=0.3, validation=make_data(20, seed=1),
        callbacks=[spy],
    )  # fmt: skip
    assert [row.stage for row in history] == ["joint"] * 4 + ["flows"] * 2
    assert not spy.flags["joint"]["flow.weight"]
    assert not spy.flags["joint"]["decoders.a.bias"]
    assert spy.flags["joint"]["encoders.a.0.weight"]
    assert spy.modes["joint"]["encoders.a.2"]
    assert not spy.modes["joint"]["flow"]
    assert spy.flags["flows"]["flow.weight"]
    assert not spy.flags["flows"]["encoders.a.0.weight"]
    assert not spy.modes["flows"]["encoders.a.2"]
    after = weights(model)
    frozen = [name for name in after if not name.startswith("flow")]
    assert all(torch.equal(after[name], spy.start["flows"][name]) for name in frozen)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"decoders.a.bias"}
    # the flow stage starts from the best joint weights, as a run that ends with that stage does
    joint_only = Staged(dropout=0.2)
    joint_only.decoders["a"].bias.requires_grad_(False)
    joint_only.stages = lambda: (Staged.stages(joint_only)[0],)
    fit(joint_only, epochs=4, lr=0.3, validation=make_data(20, seed=1))
    assert same(spy.start["flows"], weights(joint_only))


def test_players_move_their_own_parameters_only():
    class Spy:
        changed: list = []  # noqa: RUF012

        @mv.hookimpl
        def train_start(self, run):
            self.before = weights(run.model)

        @mv.hookimpl
        def step_end(self, run):
            now = weights(run.model)
            self.changed.append(
                {n.split(".")[0] for n in now if not torch.equal(now[n], self.before[n])}
            )
            self.before = now

    _, history = fit(Adversarial(), epochs=1, callbacks=[Spy()])
    assert Spy.changed == [
        {"encoders", "decoders", "flow"},
        {"encoders", "decoders"},
        {"encoders", "decoders", "flow"},
        {"encoders", "decoders"},
    ]
    assert {"auto/loss", "critic/gap", "critic/gradient_norm", "loss"} <= set(
        history.epochs[0].numbers
    )
    assert history["loss"] == history["auto/loss"]


def test_a_player_may_act_after_its_moves():
    class Clipped(Adversarial):
        calls = 0

        def clip(self):
            self.calls += 1
            with torch.no_grad():
                self.flow.weight.clamp_(-0.01, 0.01)

        def stages(self):
            (stage,) = super().stages()
            fit, critic = stage.players
            return (
                attrs.evolve(stage, players=(fit, attrs.evolve(critic, after_move=self.clip))),
            )

    model, _ = fit(Clipped(), epochs=1)
    assert model.calls == 2  # it moves in every other of four steps
    assert float(model.flow.weight.detach().abs().max()) <= 0.01


def test_best_weights_come_back():
    valid = make_data(20, seed=1)
    model, history = fit(epochs=8, lr=0.1, validation=valid)
    best = history.best
    assert best.epoch < 8
    reference, _ = fit(epochs=best.epoch, lr=0.1, best_model=False)
    assert same(weights(model), weights(reference))
    last, _ = fit(epochs=8, lr=0.1, validation=valid, best_model=False)
    assert not same(weights(last), weights(model))


def test_patience_ends_a_stage():
    _, history = fit(epochs=100, lr=0.5, validation=make_data(20, seed=1), patience=3)
    assert len(history) == history.best.epoch + 3


@pytest.mark.parametrize(
    "name", ["adam", "adamw", "sgd", "adamax", "radam", "nadam", "rmsprop", "adagrad"]
)
def test_every_optimiser(name):
    _, history = fit(optimiser=name, lr=0.01, epochs=4)
    assert history["loss"][-1] < history["loss"][0]


def test_options_of_the_optimiser():
    plain, _ = fit(optimiser="sgd")
    heavy, _ = fit(optimiser="sgd", optimiser_options={"momentum": 0.9})
    assert not same(weights(plain), weights(heavy))


def test_schedules():
    rates = {}
    for schedule in ("constant", "linear", "cosine"):
        _, history = fit(schedule=schedule, warmup=2, epochs=3, lr=0.1)
        rates[schedule] = history["lr"]
    assert rates["constant"] == [0.1] * 3
    # 12 steps, 2 of them warm-up; the rate noted is that of the last step of an epoch
    assert rates["linear"] == pytest.approx([0.1 * (1 - k / 10) for k in (1, 5, 9)])
    shape = [(1 + math.cos(math.pi * k / 10)) / 2 for k in (1, 5, 9)]
    assert rates["cosine"] == pytest.approx([0.1 * s for s in shape])


def test_clipping_bounds_the_step():
    before, (model, _) = (
        weights(Tiny()),
        fit(optimiser="sgd", lr=1.0, clip_norm=1e-3, epochs=1, batch_size=50),
    )
    moved = sum(float((weights(model)[n] - before[n]).square().sum()) for n in before)
    assert math.sqrt(moved) == pytest.approx(1e-3, rel=1e-3)


class Poisoned(Tiny):
    """Gives NaN at one step, in the loss or in the gradient only."""

    where = "loss"
    at = 5

    def loss(self, batch, step):
        output = super().loss(batch, step)
        if step.number != self.at or not step.training:
            return output
        value = output.terms["elbo"].value
        if self.where == "loss":
            value = torch.where(torch.arange(batch.size) == 3, math.nan, value)
        else:
            value = value + (self.flow.weight * 0.0).sum().sqrt()
        return attrs.evolve(output, terms={"elbo": mv.Term(value)})


def test_nan_loss_stops_at_the_last_finite_weights(tmp_path):
    model = Poisoned()
    with pytest.raises(TrainingError) as caught:
        fit(model, epochs=4, folder=tmp_path, checkpoint_every={"steps": 2})
    message = str(caught.value)
    for part in ("term 'elbo'", "stage 'train'", "epoch 2", "step 6", "step-00000004", "lr",
                 "clip_norm", "nan in 1 of 16 rows, such as row"):  # fmt: skip
        assert part in message, part
    reference, _ = fit(steps=5)
    assert same(weights(model), weights(reference))
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("options", [{}, {"log_every": 1}, {"clip_norm": 1.0}])
def test_nan_gradient_stops_before_a_checkpoint_is_written(options, tmp_path):
    model = Poisoned()
    model.where = "gradient"
    with pytest.raises(TrainingError, match=r"gradient.*step 6 .*step-00000004"):
        fit(model, epochs=4, folder=tmp_path, checkpoint_every={"steps": 2}, **options)
    healed = Poisoned(seed=3)
    healed.at = -1
    fit(healed, epochs=4, folder=tmp_path, checkpoint_every={"steps": 2}, **options)
    reference, _ = fit(epochs=4, **options)
    assert same(weights(healed), weights(reference))


def test_nan_gradient_is_never_the_best_model():
    model = Poisoned()
    model.where = "gradient"
    with pytest.raises(TrainingError, match=r"weight 'flow.weight'.* epoch 2, step 8"):
        fit(model, epochs=4, validation=make_data(20, seed=1))


def test_callbacks_in_order_and_stop():
    calls = []

    class Spy:
        @mv.hookimpl
        def train_start(self, run):
            calls.append("train_start")

        @mv.hookimpl
        def stage_start(self, run):
            calls.append("stage_start")

        @mv.hookimpl
        def epoch_start(self, run):
            calls.append("epoch_start")

        @mv.hookimpl
        def step_end(self, run, loss):
            assert loss.ndim == 0
            assert not loss.requires_grad
            calls.append("step_end")

        @mv.hookimpl
        def epoch_end(self, run, row):
            calls.append(f"epoch_end {row.epoch}")
            if row.epoch == 2:
                run.stop()

        @mv.hookimpl
        def stage_end(self, run):
            calls.append("stage_end")

        @mv.hookimpl
        def train_end(self, run):
            calls.append("train_end")

    fit(epochs=9, batch_size=50, callbacks=[Spy()])
    assert calls == [
        "train_start", "stage_start", "epoch_start", "step_end", "epoch_end 1",
        "epoch_start", "step_end", "epoch_end 2", "stage_end", "train_end",
    ]  # fmt: skip


def test_registered_callback_by_name():
    seen = []

    @attrs.frozen(kw_only=True)
    class Options:
        text: str = "x"

    class Talker:
        def __init__(self, options):
            self.options = options

        @mv.hookimpl
        def train_end(self, run):
            seen.append(self.options.text)

    mv.register("callbacks", name="talker", config=Options)(Talker)
    try:
        fit(epochs=1, callbacks=["talker", {"type": "talker", "text": "y"}, Options(text="z")])
    finally:
        mv.registry.unregister("local/talker")
    assert seen == ["x", "y", "z"]


def test_lines_are_logged_where_there_is_no_terminal(caplog, capsys):
    with caplog.at_level(logging.INFO, logger="multivae_core"):
        fit(epochs=2, progress=None)
    lines = [r.message for r in caplog.records if "rows/s" in r.message]
    assert len(lines) == 2
    assert "epoch 1/2" in lines[0]
    assert "loss" in lines[0]
    fit(epochs=2, progress=True)
    assert capsys.readouterr().err.count("rows/s") == 2


def test_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    fit(epochs=2, progress=None, log_every=1)
    text = capsys.readouterr().err
    assert "epoch 2/2" in text
    assert "loss" in text


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    fit(epochs=2, trackers="tensorboard", folder=tmp_path, log_every=2)
    assert list(tmp_path.rglob("events.out.*"))


def test_compiled_networks_train_alike():
    plain, one = fit()
    compiled, two = fit(compile="eager")
    assert one == two
    assert same(weights(plain), weights(compiled))
    assert all(module._compiled_call_impl is None for module in compiled.modules())


def test_bfloat16():
    _, history = fit(Tiny(dtype=torch.float32), mixed_precision="bf16", epochs=20, lr=0.01)
    assert history["loss"][-1] < history["loss"][0]
    fit(mixed_precision="no", epochs=1)


def test_steps_as_budget():
    _, history = fit(steps=10)
    assert [row.step for row in history] == [4, 8, 10]


def test_budgets_are_shared():
    stages = Staged().stages()
    parts = budgets(TrainerOptions(epochs=10), stages)
    assert [(part.unit, part.amount) for part in parts] == [("epochs", 7), ("epochs", 3)]
    parts = budgets(TrainerOptions(epochs={"joint": 4}, steps={"flows": 9}), stages)
    assert [(part.unit, part.amount) for part in parts] == [("epochs", 4), ("steps", 9)]
    for total in range(2, 30):
        assert sum(p.amount for p in budgets(TrainerOptions(steps=total), stages)) == total


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs: must be a whole number >= 1, got 0"),
        ({"epochs": 2.5}, "epochs: must be a whole number >= 1, got 2.5"),
        ({"epochs": {}}, "epochs: names no stage"),
        ({"epochs": {"joint": 0}}, "epochs.joint: must be"),
        ({"steps": -1}, "steps: must be"),
        ({"batch_size": 0}, "batch_size: must be a whole number >= 1, got 0"),
        ({"batch_size": True}, "batch_size"),
        ({"optimiser": "lion"}, "optimiser: must be one of 'adam'"),
        ({"lr": 0}, "lr: must be > 0"),
        ({"lr": math.nan}, "lr: must be a number"),
        ({"weight_decay": -1}, "weight_decay: must be >= 0"),
        ({"schedule": "step"}, "schedule: must be one of"),
        ({"clip_norm": 0}, "clip_norm: must be > 0"),
        ({"mixed_precision": "fp8"}, "mixed_precision: must be one of"),
        ({"checkpoint_every": {"rows": 3}}, "checkpoint_every: must be a number of epochs"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"resume": "yes please", "folder": None}, None),
        ({"resume": True}, "resume: must be 'auto', False or the path"),
        ({"zzz": 5}, "zzz: unknown option of a trainer; there is epochs"),
    ],
)
def test_bad_options(options, words):
    if words is None:
        with pytest.raises(TrainingError, match="no intact checkpoint"):
            fit(**options)
        return
    with pytest.raises(ConfigError) as caught:
        Trainer(**options)
    assert words in str(caught.value)


def test_options_that_do_not_fit_the_model():
    with pytest.raises(ConfigError, match=r"epochs: no stage 'flow'; .* 'joint', 'flows'"):
        fit(Staged(), epochs={"joint": 1, "flow": 1})
    with pytest.raises(ConfigError, match="nothing for stage 'flows'"):
        fit(Staged(), epochs={"joint": 1})
    with pytest.raises(ConfigError, match="1 is too little for 2 stages"):
        fit(Staged(), epochs=1)
    with pytest.raises(ConfigError, match="not both"):
        fit(epochs=1, steps=1)
    with pytest.raises(ConfigError, match="adam of player 'model' refuses .*momentum"):
        fit(optimiser_options={"momentum": 0.9})
    with pytest.raises(ConfigError, match="is unknown or not installed"):
        fit(trackers=["abacus"])
    with pytest.raises(ConfigError, match="fp16"):
        fit(mixed_precision="fp16")


def test_bad_data():
    data = make_data()
    with pytest.raises(DataError, match="training data: expected an IncompleteDataset, got dict"):
        Trainer().fit(Tiny(), {"a": 1})
    with pytest.raises(DataError, match="validation data: expected an IncompleteDataset"):
        Trainer().fit(Tiny(), data, [1])
    with pytest.raises(DataError, match="validation data: there is nothing observed"):
        fit(validation=data.restrict([]))
    strange = mv.IncompleteDataset({"zebra": np.ones((4, 2))})
    with pytest.raises(DataError, match="training data: modality 'zebra' is unknown"):
        fit(data=strange)
    with pytest.raises(ConfigError, match="fit needs a model, got str"):
        Trainer().fit("mopoe", data)


def test_bad_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="folder: .*cannot be written to"):
        fit(folder=tmp_path / "file")


def test_bad_callbacks():
    class Nothing:
        pass

    class Typo:
        @mv.hookimpl
        def epoch_ended(self, run):
            pass

    class Argument:
        @mv.hookimpl
        def epoch_end(self, rows):
            pass

    with pytest.raises(ConfigError, match=r"callbacks.0: .*has no hook"):
        fit(callbacks=[Nothing()])
    with pytest.raises(ConfigError, match=r"callbacks.0: .*epoch_ended"):
        fit(callbacks=[Typo()])
    with pytest.raises(ConfigError, match=r"callbacks.0: .*rows"):
        fit(callbacks=[Argument()])
    with pytest.raises(ConfigError, match="is a class; give an object"):
        fit(callbacks=[Typo])


def test_bad_models():
    class NoRows(Tiny):
        def loss(self, batch, step):
            return mv.LossOutput(terms={"elbo": mv.Term(torch.zeros(()))})

    class Stuck(Tiny):
        def loss(self, batch, step):
            return mv.LossOutput(terms={"elbo": mv.Term(torch.zeros(batch.size))})

    class Stranger(Tiny):
        def stages(self):
            other = nn.Linear(2, 2)
            player = mv.Player(name="model", parameters=(other,), loss=self.pieces)
            return (mv.Stage(name="train", players=(player,)),)

    class Tuple(Tiny):
        def pieces(self, batch, step):
            yield 3.0

    with pytest.raises(TrainingError, match=r"term 'elbo' has shape \(\); it must be \(16,\)"):
        fit(NoRows())
    with pytest.raises(TrainingError, match="no parameter of player 'model' had a gradient"):
        fit(Stuck())
    with pytest.raises(TrainingError, match="are not the model's"):
        fit(Stranger())
    with pytest.raises(TrainingError, match="it must give LossOutput objects"):
        fit(Tuple())
    broken = Tiny()
    with torch.no_grad():
        broken.flow.weight[0, 0] = math.nan
    with pytest.raises(TrainingError, match=r"weight 'flow.weight' .* not finite before training"):
        fit(broken)
    frozen = Tiny().requires_grad_(False)
    with pytest.raises(TrainingError, match="has no parameter that can move"):
        fit(frozen)


def test_control_c_finishes_the_step_and_writes_a_checkpoint(tmp_path, caplog):
    class Impatient:
        @mv.hookimpl
        def step_end(self, run):
            if run.position.step == 5:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(Tiny(dropout=0.3), folder=tmp_path, callbacks=[Impatient()])
    assert signal.getsignal(signal.SIGINT) is before
    assert sorted(path.name for path in tmp_path.glob("step-*"))[-1] == "step-00000005"
    assert any("interrupted at stage 'train', step 5" in r.message for r in caplog.records)
    resumed, history = fit(Tiny(dropout=0.3, seed=9), folder=tmp_path)
    straight, reference = fit(Tiny(dropout=0.3))
    assert same(weights(resumed), weights(straight))
    assert history == reference


def test_trainer_shows_its_options():
    trainer = Trainer(epochs=3, lr=0.01)
    assert repr(trainer) == "Trainer(epochs=3, lr=0.01)"
    assert trainer.options.batch_size == 128
