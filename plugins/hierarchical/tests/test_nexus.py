"""Nexus against its formulas, row by row, and its options.

The linear-Gaussian acceptance test is in integration_tests.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import multivae_core as mv
from multivae_core.errors import CapabilityError, ConfigError
from multivae_core.noise import RowNoise, ScriptedNoise, Step, ZeroNoise
from multivae_hierarchical._subsets import drop_some

F64 = torch.float64
NAMES = ("a", "b", "c")
TOP = {"type": "mlp", "hidden": [6], "activation": "tanh"}
SMALL = {
    "msg_dim": 4,
    "modality_dims": {"b": 3},
    "top_encoder": TOP,
    "top_decoders": TOP,
    "dropout_rate": 0.0,
}


@pytest.fixture
def make(make_model):
    def make(**options):
        return make_model("nexus", **{**SMALL, **options})

    return make


def total(out):
    return sum(term.value for term in out.terms.values())


def loss_of(model, batch, step):
    with torch.no_grad():
        return model.loss(model.prepare(batch), step)


def present(batch, b):
    return [name for name in NAMES if bool(batch.column(name)[b])]


def kl(mean, log_variance):
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()


def by_hand(model, batch, b, heard=None, aggregate="mean"):
    """Terms of one row at zero noise: reconstruction, bottom KLs, squared errors, top KL."""
    have, top = present(batch, b), model.top
    parts = {}
    z = {}
    for name in have:
        mean, raw = model.encoders[name](batch.values[name][b : b + 1])["bottom", name][0]
        z[name] = mean
        score = model.decoders[name](mean[None, None]).log_prob(batch.values[name][b : b + 1])
        parts[name] = (-score[0, 0], kl(mean, raw))
    messages = [top.messages[name](z[name][None])[0] for name in heard or have]
    h = sum(messages) / (len(messages) if aggregate == "mean" else 1)
    mean, raw = top.encoder(h[None])[0].chunk(2)
    errors = {n: ((z[n] - top.decoders[n](mean[None])[0]) ** 2).sum() for n in have}
    return parts, errors, kl(mean, raw)


def nats(error, size, scale=1.0):
    return 0.5 * error / scale**2 + size * (math.log(scale) + 0.5 * math.log(2 * math.pi))


class TestFormula:
    @pytest.mark.parametrize("options", [
        {},
        {"bottom_betas": {"a": 2.0}, "top_beta": 0.3, "gammas": {"b": 4.0}, "beta": 1.5},
        {"top_scales": {"c": 0.5}, "aggregate": "sum"},
        {"top_likelihood": "squared_error", "gammas": {"a": 50.0}},
        {"modalities": {"a": {"weight": 50.0}}},
        {"normalise": "mean_modality"},
    ])  # fmt: skip
    def test_both_levels(self, make, make_batch, quiet, options):
        model, batch = make(**options), make_batch()
        out = loss_of(model, batch, quiet())
        beta, betas = options.get("beta", 1.0), options.get("bottom_betas", {})
        gammas, scales = options.get("gammas", {}), options.get("top_scales", {})
        weights = {m: o["weight"] for m, o in options.get("modalities", {}).items()}
        for b in range(batch.size):
            have = present(batch, b)
            if not have:
                assert not total(out)[b]
                continue
            with torch.no_grad():
                parts, errors, top = by_hand(
                    model, batch, b, aggregate=options.get("aggregate", "mean")
                )
            ratio = 3 / len(have) if "normalise" in options else 1.0
            expected = {
                "reconstruction": ratio * sum(weights.get(m, 1.0) * parts[m][0] for m in have),
                "kl_bottom": ratio * beta * sum(betas.get(m, 1.0) * parts[m][1] for m in have),
                "kl_top": beta * options.get("top_beta", 1.0) * top,
            }
            if "top_likelihood" in options:
                predicted = [gammas.get(m, 1.0) * errors[m] for m in have]
            else:
                predicted = [
                    gammas.get(m, 1.0) * nats(errors[m], model.dims[m], scales.get(m, 1.0))
                    for m in have
                ]
            expected["top"] = ratio * sum(predicted)
            for name, value in expected.items():
                torch.testing.assert_close(out.terms[name].value[b], value)

    def test_outside_training_there_are_no_weights(self, make, make_batch):
        loud = make(
            beta=3.0, bottom_betas={"a": 2.0}, gammas={"b": 4.0}, top_beta=0.1,
            dropout_rate=1.0, normalise="mean_modality", modalities={"a": {"weight": 9.0}},
        )  # fmt: skip
        batch = make_batch()
        step = Step(noise=RowNoise(0, batch.index, F64))
        assert torch.equal(total(loss_of(loud, batch, step)), total(loss_of(make(), batch, step)))

    def test_ramps_of_both_levels(self, make, make_batch, quiet):
        # the authors' ramps begin at 0: the first epoch has no divergence
        batch, plain = make_batch(), make()
        one = make(beta_schedule=10, top_schedule=40)
        full = loss_of(plain, batch, quiet(20)).terms
        for number, bottom, top in ((0, 0.0, 0.0), (5, 0.5, 0.125), (20, 1.0, 0.5), (50, 1, 1)):
            terms = loss_of(one, batch, quiet(number)).terms
            torch.testing.assert_close(terms["kl_bottom"].value, bottom * full["kl_bottom"].value)
            torch.testing.assert_close(terms["kl_top"].value, top * full["kl_top"].value)
        same = make(beta_schedule=10)
        terms = loss_of(same, batch, quiet(5)).terms
        torch.testing.assert_close(terms["kl_top"].value, 0.5 * full["kl_top"].value)

    def test_the_top_never_shapes_the_bottom(self, make, make_batch, training):
        model = make(dropout_rate=0.5)
        terms = model.loss(model.prepare(make_batch()), training()).terms
        (terms["top"].value + terms["kl_top"].value).sum().backward()
        for role in ("encoders", "decoders"):
            gradients = [p.grad for p in getattr(model, role).parameters()]
            assert all(grad is None or not grad.any() for grad in gradients)
        assert all(p.grad.any() for n, p in model.top.named_parameters() if n.endswith("weight"))
        model.zero_grad()
        terms = model.loss(model.prepare(make_batch()), training()).terms
        (terms["reconstruction"].value + terms["kl_bottom"].value).sum().backward()
        assert all(p.grad is None for p in model.top.parameters())


class TestPretraining:
    def test_stages_move_their_own_and_freeze_the_rest(self, make, make_batch, tmp_path):
        model, batch = make(pretrain=["b"], adapt_top_scale=["b"], dropout_rate=0.3), make_batch()
        data = mv.IncompleteDataset(
            batch.values, present={n: batch.column(n) for n in NAMES}, allow_empty_rows=True
        )
        seen = {}

        class Watch:
            @mv.hookimpl
            def stage_end(self, run):
                modes = {n: run.model.encoders[n].training for n in NAMES}
                seen[run.stage.name] = copied(run.model), modes

        def copied(model):
            return {n: v.detach().clone() for n, v in model.state_dict().items()}

        start = copied(model)
        options = {"epochs": {"pretrain": 2, "train": 2}, "batch_size": 5, "progress": False}
        mv.Trainer(**options, callbacks=[Watch()]).fit(model, data)
        assert list(seen) == ["pretrain", "train"]
        (middle, first), (end, second) = seen["pretrain"], seen["train"]
        place = NAMES.index("b")
        own = {
            n for n in start if n.startswith((f"encoders.each.{place}", f"decoders.each.{place}"))
        }
        moved = {n for n in start if not torch.equal(start[n], middle[n])}
        assert moved
        assert moved <= own
        later = {n for n in start if not torch.equal(middle[n], end[n])}
        assert not later & own
        assert {n.partition(".")[0] for n in later} == {"encoders", "decoders", "top"}
        assert first == {"a": False, "b": True, "c": False}
        assert second == {"a": True, "b": False, "c": True}

    def test_objectives_are_the_parts_of_the_whole(self, make, make_batch, quiet):
        model = make(pretrain=["b"], normalise="mean_modality", beta=2.0, gammas={"b": 3.0})
        batch = model.prepare(make_batch())
        with torch.no_grad():
            whole = model.loss(batch, quiet())
            first, second = (
                next(stage.players[0].loss(batch, quiet())) for stage in model.stages()
            )
            alone = make(normalise="available_sum", beta=2.0)
            own = alone.loss(alone.prepare(make_batch().restrict({"b"})), quiet())
        for name in ("top", "kl_top"):
            assert torch.equal(second.terms[name].value, whole.terms[name].value)
        share = 3.0 / batch.present.sum(dim=1).clamp_min(1)
        for name in ("reconstruction", "kl_bottom"):
            torch.testing.assert_close(first.terms[name].value, own.terms[name].value)
            both = share * first.terms[name].value + second.terms[name].value
            torch.testing.assert_close(both, whole.terms[name].value)
            # a mean over the rows that have what is trained, not over all that show something
            assert torch.equal(first.terms[name].weight, batch.column("b").to(F64))
            assert second.terms[name].weight is None
        assert set(first.terms) == {"reconstruction", "kl_bottom"}

    def test_all_of_them_leave_the_top_alone(self, make, make_batch, quiet):
        model = make(pretrain=list(NAMES))
        batch = model.prepare(make_batch())
        first, second = model.stages()
        (out,) = second.players[0].loss(batch, quiet())
        assert set(out.terms) == {"top", "kl_top"}
        assert second.players[0].parameters == (model.top, model.shared_prior)
        assert len(first.players[0].parameters) == 6
        assert len(make().stages()) == 1


class TestDropout:
    def test_sizes_and_members_are_uniform(self, training):
        rows = 60_000
        have = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]).bool().repeat(rows, 1)
        kept = drop_some(have, 0.3, training().noise)
        assert not bool((kept & ~have).any())
        code = (kept * torch.tensor([1, 2, 4])).sum(dim=1).view(rows, 4)
        share = [torch.bincount(code[:, i], minlength=8) / rows for i in range(4)]
        expected = [
            # 0.3: one or two are dropped, each 0.15, then each member alike
            {7: 0.7, 1: 0.05, 2: 0.05, 4: 0.05, 3: 0.05, 5: 0.05, 6: 0.05},
            {5: 0.7, 1: 0.15, 4: 0.15},
            {2: 1.0},
            {0: 1.0},
        ]
        for found, wanted in zip(share, expected, strict=True):
            for c in range(8):
                assert abs(float(found[c]) - wanted.get(c, 0.0)) < 4 * 0.46 / rows**0.5

    def test_reduced_messages_still_predict_everything(self, make, make_batch, quiet):
        model = make(dropout_rate=1.0)
        batch = make_batch(holes=False)
        step = quiet()
        script = {
            "dropout": torch.tensor([[0.0], [0.99]], dtype=F64),  # drop two
            "dropped": torch.tensor([0.1, 0.9, 0.2], dtype=F64),  # keep b
        }
        noise = ScriptedNoise(ZeroNoise(F64), script)
        out = loss_of(model, batch, Step(training=True, noise=noise))
        for b in range(3):
            with torch.no_grad():
                _, errors, top = by_hand(model, batch, b, heard=["b"])
            expected = sum(nats(errors[m], model.dims[m]) for m in NAMES)
            torch.testing.assert_close(out.terms["top"].value[b], expected)
            torch.testing.assert_close(out.terms["kl_top"].value[b], top)
        assert step.training

    def test_none_in_evaluation(self, make, make_batch):
        batch = make_batch()
        one, two = make(dropout_rate=1.0), make()
        assert torch.equal(one.embed(batch), two.embed(batch))

    def test_order_of_modalities_leaves_the_aggregate(self, make, make_batch, quiet):
        model, batch = make(), make_batch()
        back = mv.Batch(
            values={n: batch.values[n] for n in reversed(NAMES)}, present=batch.present.flip(1)
        )
        assert torch.equal(model.embed(batch), model.embed(back))


class TestAdaptedScale:
    def test_root_mean_square_of_the_batch(self, make, make_batch, quiet):
        model, batch = make(adapt_top_scale=["b"]), make_batch()
        before = model.top.log_variance("b").clone()
        out = loss_of(model, batch, quiet())
        rows = [b for b in range(batch.size) if "b" in present(batch, b)]
        with torch.no_grad():
            errors = {b: by_hand(model, batch, b)[1] for b in rows}
        scale = math.sqrt(sum(float(e["b"]) for e in errors.values()) / (3 * len(rows)))
        for b in rows:
            expected = nats(errors[b]["b"], 3, scale)
            torch.testing.assert_close(out.metrics["prediction_b"][b], expected)
        after = before + 0.1 * (2 * math.log(scale) - before)
        torch.testing.assert_close(model.top.log_variance("b"), after)
        assert float(model.top.log_variance("a")) == 0.0

    def test_evaluation_takes_the_running_value_row_by_row(self, make, make_batch):
        model, batch = make(adapt_top_scale=["b"]), make_batch()
        with torch.no_grad():
            model.top.follow("b", torch.tensor(-1.0), 1.0)
        step = Step(noise=RowNoise(0, batch.index, F64))
        whole = total(loss_of(model, batch, step))
        rows = torch.tensor([3, 5])
        part = batch.take(rows)
        step = Step(noise=RowNoise(0, part.index, F64))
        torch.testing.assert_close(total(loss_of(model, part, step)), whole[rows])
        assert float(model.top.log_variance("b")) == -1.0

    def test_a_batch_without_the_modality(self, make, make_batch, quiet):
        model, batch = make(adapt_top_scale=["b"]), make_batch().restrict({"a"})
        assert total(loss_of(model, batch, quiet())).isfinite().all()
        assert float(model.top.log_variance("b")) == 0.0

    def test_no_row_objective(self, make):
        assert make().lacks == {}
        with pytest.raises(CapabilityError, match="deviation from the rows of a batch"):
            make(adapt_top_scale=["a"]).require("row_objective")


class TestVerbs:
    def test_seen_modalities_keep_their_own_latent(self, make, make_batch):
        batch = make_batch()
        for path in ("bottom", "top"):
            model = make(decode_path=path)
            z = model.encode(batch)
            for b in range(batch.size):
                with torch.no_grad():
                    predicted = model.top.predict(z["shared"][None])
                for name in NAMES:
                    own = predicted[name][0, b]
                    if path == "bottom" and name in present(batch, b):
                        values = batch.values[name][b : b + 1]
                        own = model.encoders[name](values)["bottom", name][0, 0].detach()
                    torch.testing.assert_close(z["bottom", name][b], own)

    def test_paths_differ_in_what_is_decoded_and_not_in_likelihoods(self, make, make_batch):
        batch = make_batch(holes=False)
        one, two = make(), make(decode_path="top")
        a, b = (m.predict(batch, n_samples=3)["a"] for m in (one, two))
        assert not torch.allclose(a, b)
        a, b = (m.log_likelihood(batch, n_samples=3).value for m in (one, two))
        assert torch.equal(a, b)

    def test_sampled_predictions(self, make, make_batch, training):
        batch = make_batch().restrict({"a"})
        scales = {"top_scales": {"b": 0.5}}
        one, two = make(**scales), make(sample_bottom=True, **scales)
        draws = [m.encode(batch, 500, seed=1) for m in (one, two)]
        assert torch.equal(draws[0]["shared"], draws[1]["shared"])
        spread = (draws[1]["bottom", "b"] - draws[0]["bottom", "b"]).std()
        assert abs(float(spread) - 0.5) < 0.02
        assert not torch.equal(one.generate(4)["b"], two.generate(4)["b"])

    def test_densities(self, make, make_batch, training):
        model, batch = make(top_scales={"a": 0.4}, sample_bottom=True), make_batch()
        prepared = model.prepare(batch)
        draw = model.proposal(prepared).draw(3, training().noise)
        # predicted latents add equally to both
        gap = model.proposal(prepared).log_prob(draw.latents) - model.prior(prepared).log_prob(
            draw.latents
        )
        torch.testing.assert_close(draw.log_q - draw.log_p, gap)
        assert model.posterior(prepared).draw(2, training().noise).log_q is not None
        top = make(decode_path="top").posterior(prepared)
        assert top.draw(2, training().noise).log_q is None

    def test_nothing_seen_is_the_prior(self, make, make_batch, training):
        model, batch = make(sample_bottom=True), make_batch().restrict(set())
        prepared = model.prepare(batch)
        z = model.prior(prepared).sample(3, batch.size, training().noise)
        own = model.posterior(prepared).draw(3, training().noise).latents
        for name, value in z.items():
            assert torch.equal(value, own[name])

    def test_squared_error_as_a_density_has_variance_one_half(self, make):
        model = make(top_likelihood="squared_error", gammas={"a": 50.0})
        assert float(model.top.log_variance("a").exp()) == pytest.approx(0.5)


class TestHoles:
    def test_what_lies_under_holes(self, make, make_batch, training):
        model, batch = make(dropout_rate=0.5, adapt_top_scale=["a"]), make_batch()
        found = []
        for filler in (0.0, float("nan")):
            model.zero_grad()
            values = {
                n: torch.where(batch.column(n)[:, None], x, filler)
                for n, x in batch.values.items()
            }
            own = mv.Batch(values=values, present=batch.present)
            loss = total(model.loss(model.prepare(own), training()))
            loss.sum().backward()
            found.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
        for one, two in zip(*found, strict=True):
            assert torch.equal(one, two)
            assert bool(one.isfinite().all())


class TestNetworks:
    def test_own_networks_by_role(self, make, make_batch, tmp_path):
        def own():
            return {
                "messages": nn.ModuleDict({n: nn.Linear(3 if n == "b" else 2, 4) for n in NAMES}),
                "top_encoder": nn.Linear(4, 4),
            }

        model = make(networks=own())
        assert model.top.encoder.in_features == 4
        model.save(tmp_path / "m")
        again = mv.load_model(tmp_path / "m", networks=own())
        batch = make_batch()
        assert torch.equal(again.embed(batch), model.embed(batch))

    @pytest.mark.parametrize(("own", "message"), [
        ({"top_encoder": nn.Linear(4, 3)}, "top_encoder.*rows, 4.*rows, 4"),
        ({"messages": nn.ModuleDict({"a": nn.Linear(2, 4)})}, "networks.messages.*ModuleDict"),
        ({"joint": nn.Linear(2, 2)}, "networks.joint"),
    ])  # fmt: skip
    def test_networks_that_do_not_fit(self, make, own, message):
        with pytest.raises(ConfigError, match=message):
            make(networks=own)


@pytest.mark.parametrize(("options", "message"), [
    ({"modality_dims": {"d": 2}}, "modality_dims.d: unknown modality; there is a, b, c"),
    ({"gammas": {"d": 2.0}}, "gammas.d"),
    ({"adapt_top_scale": ["d"]}, "adapt_top_scale.d"),
    ({"pretrain": ["d"]}, "pretrain.d: unknown modality"),
    ({"dropout_rate": 1.5}, "dropout_rate"),
    ({"bottom_betas": {"a": -1.0}}, "bottom_betas.a"),
    ({"top_scales": {"a": 0.0}}, "top_scales.a"),
    ({"top_likelihood": "squared_error", "top_scales": {"a": 1.0}}, "needs top_likelihood"),
    ({"decode_path": "both"}, "decode_path"),
])  # fmt: skip
def test_refusals(make, options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_loss_falls_and_a_folder_brings_the_model_back(make, make_batch, tmp_path):
    model, batch = make(dropout_rate=0.3, adapt_top_scale=["a"]), make_batch(40)
    data = mv.IncompleteDataset(
        batch.values, present={n: batch.column(n) for n in NAMES}, allow_empty_rows=True
    )
    history = mv.Trainer(epochs=6, batch_size=10, seed=0, progress=False).fit(model, data)
    losses = [epoch.numbers["loss"] for epoch in history.epochs]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "m")
    again = mv.load_model(tmp_path / "m")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert torch.equal(again.embed(batch), model.embed(batch))
