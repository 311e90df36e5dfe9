"""mWAE and mAAE: formulas by hand, both players, rows with holes, what cannot be asked."""

from __future__ import annotations

import math

import attrs
import numpy as np
import pytest
import torch

import multivae_core as mv
from multivae_aggregated._divergences import gradient_penalty, mmd
from multivae_core.errors import CapabilityError, ConfigError, TrainingError
from multivae_core.noise import RowNoise, ScriptedNoise, Step, TrainingNoise, ZeroNoise
from multivae_core.training.objective import Share, objective

F64 = torch.float64
SCALES = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]
CASES = [
    ("mwae", {}),
    ("mwae", {"divergence": "wgan"}),
    ("mwae", {"divergence": "wgan-gp", "alignment": 0.5}),
    ("maae", {}),
    ("maae", {"divergence": "gan-gp", "n_sources": 2, "source": "b"}),
]
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]} {c[1]}")


def make(make_model, case, **options):
    return make_model(case[0], **{**case[1], **options})


def outputs(model, batch, step):
    """Every term of both players."""
    prepared = model.prepare(batch)
    found = dict(model.loss(prepared, step).terms)
    if model.critic is not None:
        for output in model.critic_loss(prepared, step):
            found |= output.terms
    return found


def total(terms, seen, kind=""):
    """The objective: the sum over terms of sum(w v) / sum(w)."""
    result = 0.0
    for name, term in terms.items():
        if name.startswith(kind):
            weight = seen.double() if term.weight is None else term.weight
            value = torch.where(weight != 0, weight * term.value, 0.0).sum()
            result = result + value / weight.sum().clamp_min(1e-300)
    return result


def gradients(model, terms, seen):
    model.zero_grad()
    total(terms, seen).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def linear_data(rows=300, seed=0, missing=0.3, sizes=(5, 8, 4)):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, 2))
    values = {
        name: z @ rng.normal(size=(2, size)) + 0.3 * rng.normal(size=(rows, size))
        for name, size in zip("abc", sizes, strict=True)
    }
    present = rng.random((rows, 3)) > missing
    present[~present.any(axis=1), 0] = True
    return mv.IncompleteDataset(values, present=present)


class TestObjective:
    def test_reconstruction_is_the_mean_over_pairs_of_what_a_row_has(
        self, make_model, make_batch, training
    ):
        model, batch = make_model("mwae"), make_batch()
        terms = outputs(model, batch, training())
        codes = model.codes(model.prepare(batch))
        for b in range(batch.size):
            own = [m for m in range(3) if batch.present[b, m]]
            pairs = [
                -model.decoders["abc"[k]](codes[m, b][None, None]).log_prob(
                    batch.values["abc"[k]][b]
                )
                for m in own
                for k in own
            ]
            expected = float(sum(pairs).detach()) / len(pairs) if pairs else 0.0
            assert float(terms["reconstruction"].value[b].detach()) == pytest.approx(expected)

    def test_alignment_is_the_mean_over_the_same_pairs(self, make_model, make_batch, training):
        model, batch = make_model("mwae", alignment=0.5), make_batch()
        terms = outputs(model, batch, training())
        codes = model.codes(model.prepare(batch)).detach().numpy()
        for b in range(batch.size):
            own = codes[batch.present[b].numpy(), b]
            away = ((own[:, None] - own[None]) ** 2).sum(axis=2)
            expected = 0.5 * away.mean() if len(own) else 0.0
            assert float(terms["alignment"].value[b].detach()) == pytest.approx(expected)

    def test_the_kernels_divergence_by_hand(self, make_model, make_batch, training):
        model, batch = make_model("mwae", lambda_div=3.0), make_batch()
        step = training()
        terms = outputs(model, batch, step)
        codes = model.codes(model.prepare(batch)).detach()
        draws = step.noise.normal("real", (3, batch.size, 2))
        for m, name in enumerate("abc"):
            rows = batch.present[:, m]
            expected = by_hand(codes[m, rows].numpy(), draws[m, rows].numpy())
            assert float(terms[f"divergence:{name}"].value.detach()) == pytest.approx(expected)
            assert int(terms[f"divergence:{name}"].weight) == int(rows.sum())

    @pytest.mark.parametrize("sizes", [{"a": 3, "b": 2}, {"a": 3, "b": 2, "c": 4, "d": 1}])
    @pytest.mark.parametrize("holes", [False, True])
    def test_an_undecided_discriminator_costs_two_log_two(
        self, make_model, make_batch, training, sizes, holes
    ):
        model, batch = make_model("maae", sizes, lambda_div=3.0), make_batch(12, sizes, 0, holes)
        for parameter in model.critic.parameters():
            parameter.data.zero_()
        terms = outputs(model, batch, training())
        both = total(terms, batch.something, "real") + total(terms, batch.something, "fake")
        assert float(both.detach()) == pytest.approx(2 * math.log(2))
        generator = total(terms, batch.something, "divergence")
        assert float(generator.detach()) == pytest.approx(3 * math.log(2))

    @pytest.mark.parametrize("name", ["mwae", "maae"])
    def test_scores_by_hand(self, make_model, make_batch, training, name):
        kind = {"mwae": "wgan", "maae": "gan"}[name]
        model, batch = make_model(name, divergence=kind, lambda_div=2.0), make_batch()
        step, seen = training(), batch.something
        terms = outputs(model, batch, step)
        low = torch.nn.functional.logsigmoid
        high = (lambda s: -s) if kind == "wgan" else (lambda s: -low(s))
        poor = (lambda s: s) if kind == "wgan" else (lambda s: -low(-s))
        codes = model.codes(model.prepare(batch))
        real = high(model.critic(step.noise.normal("real", (1, 12, 2))[0])[seen, 0]).mean()
        own = [model.critic(codes[m, batch.present[:, m]])[:, 0] for m in range(3)]
        expected = {
            "real": real,
            "fake": sum(poor(s).mean() for s in own) / 3,
            "divergence": 2 * sum(high(s).mean() for s in own) / 3,
        }
        for what, value in expected.items():
            torch.testing.assert_close(total(terms, seen, what), value)

    def test_the_penalty_of_a_linear_critic_is_known(self, make_model, make_batch, training):
        model = make_model(
            "mwae", divergence="wgan-gp", penalty=7.0, critic={"type": "mlp", "hidden": []}
        )
        terms = outputs(model, make_batch(), training())
        slope = model.critic.layers[0].weight.norm()
        expected = 7.0 * (slope - 1).square()
        torch.testing.assert_close(total(terms, make_batch().something, "penalty"), expected)

    def test_points_of_the_penalty_lie_between_draw_and_code(
        self, make_model, make_batch, training, monkeypatch
    ):
        model, batch, step = make_model("maae", divergence="gan-gp"), make_batch(), training()
        found = []
        monkeypatch.setattr(
            "multivae_aggregated._cross.gradient_penalty",
            lambda critic, points: found.append(points) or gradient_penalty(critic, points),
        )
        outputs(model, batch, step)
        codes = model.codes(model.prepare(batch))
        real, share = step.noise.normal("real", (1, 12, 2)), step.noise.uniform("share", (3, 12))
        points = share[..., None] * real + (1 - share[..., None]) * codes
        torch.testing.assert_close(found[0], points[batch.present.T])

    def test_outside_training_the_kernel_speaks_for_a_critic_too(self, make_model, make_batch):
        batch = make_batch()
        step = Step(noise=RowNoise(0, batch.index, F64))
        critic = make_model("maae", lambda_div=10.0, beta=0.1)
        kernel = make_model("mwae")
        kernel.load_state_dict(critic.state_dict(), strict=False)
        one, two = (model.loss(model.prepare(batch), step).terms for model in (critic, kernel))
        assert one.keys() == two.keys()
        for name, term in one.items():
            torch.testing.assert_close(term.value, two[name].value)

    @EVERY_CASE
    def test_the_weight_unless_it_is_given(self, make_model, make_batch, training, case):
        batch = make_batch()
        usual = {"mmd": 10.0, "wgan": 10.0}.get(make(make_model, case).config.divergence, 1.0)
        one, two = (
            total(outputs(model, batch, training()), batch.something, "divergence")
            for model in (make(make_model, case), make(make_model, case, lambda_div=2.0 * usual))
        )
        torch.testing.assert_close(2.0 * one, two)

    def test_beta_weighs_the_divergence_in_training(self, make_model, make_batch, training):
        batch = make_batch()
        one, two = (
            total(outputs(model, batch, training()), batch.something, "divergence")
            for model in (make_model("mwae"), make_model("mwae", beta=0.5, lambda_div=20.0))
        )
        torch.testing.assert_close(one, two)

    def test_drawn_sources_are_right_in_the_mean(self, make_model, make_batch, training):
        batch = make_batch()
        every, some = make_model("mwae"), make_model("mwae", n_sources=1)
        whole = outputs(every, batch, training())["reconstruction"].value.detach()
        drawn = torch.stack(
            [
                outputs(some, batch, training(k))["reconstruction"].value.detach()
                for k in range(150)
            ]
        )
        error = drawn.std(dim=0) / math.sqrt(150)
        assert bool(((drawn.mean(dim=0) - whole).abs() <= 4.5 * error + 1e-12).all())
        assert bool((drawn.std(dim=0)[0] > 0).all())
        all_of_them = make_model("mwae", n_sources=3)
        again = outputs(all_of_them, batch, training())["reconstruction"].value
        torch.testing.assert_close(again.detach(), whole)
        step = Step(noise=RowNoise(0, batch.index, F64))
        evaluated = some.loss(some.prepare(batch), step).terms["reconstruction"].value
        torch.testing.assert_close(evaluated.detach(), whole)


def by_hand(codes, draws):
    n, size = codes.shape

    def kernel(x, y):
        return sum(2 * size * s / (2 * size * s + ((x - y) ** 2).sum()) for s in SCALES)

    pairs = [(i, j) for i in range(n) for j in range(n)]
    within = sum(kernel(x[i], x[j]) for x in (codes, draws) for i, j in pairs if i != j) / (
        n * (n - 1)
    )
    return within - 2 * sum(kernel(codes[i], draws[j]) for i, j in pairs) / n**2


class TestKernel:
    def test_it_is_zero_in_the_mean_for_draws_of_the_prior_and_grows_with_a_shift(self):
        torch.manual_seed(0)
        means = []
        for shift in (0.0, 0.3, 0.6, 1.2):
            values = torch.stack(
                [mmd(torch.randn(20, 3) + shift, torch.randn(20, 3), SCALES) for _ in range(200)]
            )
            means.append(float(values.mean()))
            if not shift:
                assert abs(means[0]) < 4 * float(values.std()) / math.sqrt(200)
                assert bool((values < 0).any())
        assert means == sorted(means)
        assert means[1] > 0.02

    def test_equal_codes_have_a_finite_gradient(self):
        codes = torch.zeros(6, 2, dtype=F64, requires_grad=True)
        mmd(codes, torch.randn(6, 2, dtype=F64), SCALES).backward()
        assert bool(codes.grad.isfinite().all())
        assert bool(codes.grad.any())

    def test_gradients_are_those_of_differences(self):
        torch.manual_seed(0)
        codes = torch.randn(5, 2, dtype=F64, requires_grad=True)
        draws = torch.randn(5, 2, dtype=F64)
        assert torch.autograd.gradcheck(lambda x: mmd(x, draws, SCALES), codes)


class TestHoles:
    @EVERY_CASE
    @pytest.mark.parametrize("filler", [math.nan, math.inf, 1e30])
    def test_values_under_holes_change_nothing(
        self, make_model, make_batch, training, case, filler
    ):
        model, batch = make(make_model, case), make_batch(elements=True)
        values = {n: torch.where(batch.seen(n), x, filler) for n, x in batch.values.items()}
        found = []
        for each in (batch, attrs.evolve(batch, values=values)):
            terms = outputs(model, each, training())
            found.append((terms, gradients(model, terms, batch.something), model.encode(each)))
        (one, grad, mean), (two, other, again) = found
        assert all(torch.equal(term.value, two[name].value) for name, term in one.items())
        assert grad.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in grad.items())
        assert all(bool(value.isfinite().all()) for value in grad.values())
        assert torch.equal(mean["shared"], again["shared"])

    @EVERY_CASE
    def test_the_order_of_modalities_changes_nothing(self, make_model, make_batch, training, case):
        batch, back = make_batch(), {"c": 4, "b": 2, "a": 3}
        other = mv.Batch(values={n: batch.values[n] for n in back}, present=batch.present.flip(1))
        one = outputs(make(make_model, case), batch, training())
        two = outputs(make_model(case[0], back, **case[1]), other, training())
        assert all(torch.equal(term.value, two[name].value) for name, term in one.items())

    @EVERY_CASE
    def test_rows_with_nothing_cost_nothing_and_follow_the_prior(
        self, make_model, make_batch, training, case
    ):
        model, batch = make(make_model, case), make_batch()
        terms = outputs(model, batch, training())
        for name, term in terms.items():
            if term.value.ndim and name != "real":
                weight = torch.ones(12) if term.weight is None else term.weight
                assert float((weight * term.value).detach()[1]) == 0.0
        assert not model.encode(batch)["shared"][1].any()
        drawn = model.encode(batch, n_samples=2000)["shared"]
        assert abs(float(drawn[:, 1].std()) - 1.0) < 0.05
        assert not drawn[:, 0].std(dim=0).any()
        nothing = batch.restrict(set())
        terms = outputs(model, nothing, training())
        assert float(total(terms, nothing.something).detach()) == 0.0
        found = gradients(model, terms, nothing.something)
        assert all(bool(value.isfinite().all()) for value in found.values())

    def test_a_modality_of_one_row_has_no_discrepancy(self, make_model, make_batch, training):
        model, batch = make_model("mwae"), make_batch(holes=False)
        mask = torch.ones(12, 3, dtype=torch.bool)
        mask[1:, 0] = False
        terms = outputs(model, batch.restrict(mask), training())
        assert float(terms["divergence:a"].value) == float(terms["divergence:a"].weight) == 0.0
        codes = model.codes(model.prepare(batch)).detach().numpy()
        draws = training().noise.normal("real", (3, 12, 2)).numpy()
        expected = 10.0 / 2 * by_hand(codes[1], draws[1])  # the mean is over the other two
        assert float(terms["divergence:b"].value.detach()) == pytest.approx(expected)

    def test_a_row_is_encoded_with_the_mean_of_what_it_has_or_with_the_source(
        self, make_model, make_batch
    ):
        batch = make_batch()
        one, two = make_model("mwae"), make_model("mwae", source="b")
        codes = one.codes(one.prepare(batch)).detach()
        plain, named = (model.encode(batch)["shared"] for model in (one, two))
        for b in range(batch.size):
            own = codes[batch.present[b], b]
            mean = own.mean(dim=0) if len(own) else torch.zeros(2, dtype=F64)
            torch.testing.assert_close(plain[b], mean)
            torch.testing.assert_close(named[b], codes[1, b] if batch.present[b, 1] else mean)


class TestPlayers:
    def test_a_kernel_needs_one_player_and_a_critic_two(self, make_model):
        (stage,) = make_model("mwae").stages()
        assert [player.name for player in stage.players] == ["model"]
        model = make_model("maae", n_critic=3, critic_optimiser={"lr": 0.01})
        fit, critic = model.stages()[0].players
        assert (fit.name, fit.every, critic.name, critic.every) == ("autoencoder", 3, "critic", 1)
        assert critic.optimiser == {"lr": 0.01}

    @EVERY_CASE
    def test_every_parameter_is_used(self, make_model, make_batch, training, case):
        model, batch = make(make_model, case), make_batch()
        assert model.encoders["a"].head.out_features == model.config.latent_dim
        found = gradients(model, outputs(model, batch, training()), batch.something)
        assert {name for name, _ in model.named_parameters()} == set(found)

    @pytest.mark.parametrize("case", CASES[1:])
    def test_a_critics_loss_does_not_reach_the_encoders(
        self, make_model, make_batch, training, case
    ):
        model, batch = make(make_model, case), make_batch()
        (output,) = model.critic_loss(model.prepare(batch), training())
        found = gradients(model, output.terms, batch.something)
        assert found
        assert all(name.startswith("critic.") for name in found)

    def test_without_divergence_it_is_a_plain_cross_autoencoder(
        self, make_model, make_batch, training
    ):
        model, batch = make_model("maae", lambda_div=0.0), make_batch()
        terms = model.loss(model.prepare(batch), training()).terms
        all_of_it = gradients(model, terms, batch.something)
        again = model.loss(model.prepare(batch), training()).terms
        alone = gradients(model, {"r": again["reconstruction"]}, batch.something)
        for name, value in alone.items():
            torch.testing.assert_close(all_of_it[name], value)
        data = linear_data()
        model = mv.create_model("maae", data, latent_dim=2, lambda_div=0.0)
        history = train(model, data, epochs=4)
        losses = [row.numbers["autoencoder/reconstruction"] for row in history.epochs]
        assert losses == sorted(losses, reverse=True)

    def test_the_critic_trains_with_dropout_in_every_step(self):
        data, seen = linear_data(60), []

        class Watch:
            @mv.hookimpl
            def step_end(self, run):
                critic = run.model.critic
                weights = torch.cat([p.detach().flatten() for p in critic.parameters()])
                drop = [m for m in critic.modules() if isinstance(m, torch.nn.Dropout)]
                here = torch.randn(4, 2)
                seen.append(
                    (critic.training and all(m.training for m in drop) and len(drop) > 0,
                     bool((critic(here) != critic(here)).any()), weights)
                )  # fmt: skip

        options = {"type": "mlp", "hidden": [8], "dropout": 0.5}
        model = mv.create_model("maae", data, latent_dim=2, critic=options)
        train(model, data, data, epochs=3, callbacks=[Watch()])
        assert all(training and dropped for training, dropped, _ in seen)
        assert all(not torch.equal(a[2], b[2]) for a, b in zip(seen, seen[1:], strict=False))
        assert not model.critic.training

    def test_clipped_weights_stay_in_their_range(self):
        data, largest = linear_data(60), []

        class Watch:
            @mv.hookimpl
            def step_end(self, run):
                largest.append(
                    max(float(p.detach().abs().max()) for p in run.model.critic.parameters())
                )

        for kind, limit in (("wgan", 0.02), ("wgan-gp", math.inf)):
            largest.clear()
            model = mv.create_model("mwae", data, latent_dim=2, divergence=kind, clip=0.02)
            train(model, data, epochs=2, callbacks=[Watch()])
            assert all(value <= limit + 1e-9 for value in largest)
        assert max(largest) > 0.02

    @pytest.mark.parametrize("at", [5])
    @pytest.mark.parametrize("case", [CASES[1], CASES[4]], ids=["wgan", "gan-gp"])
    def test_a_resumed_run_equals_one_that_was_not_interrupted(self, tmp_path, case, at):
        data = linear_data(70)

        class Killed(Exception):
            pass

        class Kill:
            @mv.hookimpl
            def step_end(self, run):
                if run.position.step == at:
                    raise Killed

        def fresh(seed):
            critic = {"type": "mlp", "hidden": [8], "dropout": 0.3}
            options = {**case[1], "critic": critic, "n_critic": 2}
            return mv.create_model(case[0], data, latent_dim=2, seed=seed, **options)

        options = {"epochs": 3, "batch_size": 20, "checkpoint_every": {"steps": 1}}
        one = fresh(0)
        history = train(one, data, **options)
        with pytest.raises(Killed):
            train(fresh(0), data, folder=tmp_path, callbacks=[Kill()], **options)
        torch.manual_seed(99)
        two = fresh(7)
        assert train(two, data, folder=tmp_path, **options) == history
        for name, value in one.state_dict().items():
            assert torch.equal(value, two.state_dict()[name]), name

    @pytest.mark.parametrize("case", [CASES[3], CASES[4]], ids=["gan", "gan-gp"])
    def test_scores_of_processes_add_up(self, make_model, make_batch, case):
        model, batch = make(make_model, case), make_batch(holes=True)

        def sums(terms):
            own = {name for name, term in terms.items() if term.weight is not None}
            return {name: batch.column(name[-1]).sum().double() for name in own}

        def value_of(part, rows):
            noise = TrainingNoise(0, 0, total=12, rows=rows, dtype=F64)
            terms = outputs(model, part, Step(training=True, noise=noise))
            seen = part.something
            share = Share(seen, int(seen.sum()), int(batch.something.sum()))
            return objective(mv.LossOutput(terms=terms), share, lambda: sums(terms))

        whole = value_of(batch, torch.arange(12))
        halves = [torch.arange(6), torch.arange(6, 12)]
        assert all(bool(batch.take(rows).present.any(dim=0).all()) for rows in halves)
        torch.testing.assert_close(sum(value_of(batch.take(r), r) for r in halves), whole)

    def test_a_batch_in_parts_is_refused(self):
        data = linear_data(60)
        model = mv.create_model("mwae", data, latent_dim=2)
        with pytest.raises(TrainingError, match="use gradient_accumulation=1"):
            train(model, data, gradient_accumulation=2)


def train(model, data, validation=None, **options):
    given = {"epochs": 2, "batch_size": 30, "lr": 2e-3, "progress": False, **options}
    return mv.Trainer(**given).fit(model, data, validation)


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[3]], ids=["mmd", "wgan", "gan"])
def test_codes_come_to_the_prior_and_tell_other_modalities(case):
    data = linear_data(400, sizes=(6, 6, 6))
    learn, held = data.subset(np.arange(300)), data.subset(np.arange(300, 400))
    model = mv.create_model(case[0], learn, latent_dim=2, seed=1, **case[1])
    for name in "abc":  # they begin far away
        model.encoders[name].head.bias.data += 2.0

    def measured():
        batch = model.prepare(held.batch())
        with torch.no_grad():
            terms = model.loss(batch, Step(noise=RowNoise(0, batch.index))).terms
        values = {name: term.value for name, term in terms.items()}
        return {name: float(value.mean()) for name, value in values.items()}

    before = measured()
    train(model, learn, epochs=9, lr=1e-2)
    after = measured()
    for name, value in after.items():
        assert value < (0.8 if name == "reconstruction" else 0.2) * before[name], name
    seen = held.present[:, 0] & held.present[:, 1]
    truth = held.batch().values["b"][seen]
    told = model.predict(held.restrict({"a"}), ("b",), n_samples=1)["b"][seen]
    assert float((told - truth).square().mean()) < 0.6 * float(truth.var(dim=0).mean())


class TestVerbs:
    @EVERY_CASE
    def test_there_is_no_likelihood(self, make_model, make_batch, case):
        model, batch = make(make_model, case), make_batch()
        for verb in ("elbo", "log_likelihood", "iwae"):
            with pytest.raises(CapabilityError, match="encoders give points.*reconstructions"):
                getattr(model, verb)(batch)
        with pytest.raises(CapabilityError, match="no conditional_likelihood"):
            model.conditional_log_likelihood(batch, ("a",), ("b",))
        assert model.posterior(model.prepare(batch)).draw(2, ZeroNoise(F64)).log_q is None

    @pytest.mark.parametrize("name", ["mwae", "maae"])
    def test_its_table_says_the_same(self, make_model, name):
        known = mv.registry.models[name].capabilities
        assert not known & set(make_model(name).lacks)
        assert known == {"encodes_any_subset", "generate"}

    @pytest.mark.parametrize("likelihood", ["normal", "squared_error"])
    def test_what_it_can_do(self, make_model, make_batch, likelihood):
        modalities = {name: {"likelihood": likelihood} for name in "abc"}
        model, batch = make_model("maae", modalities=modalities), make_batch()
        assert model.generate(5)["b"].shape == (5, 2)
        filled = model.impute(batch, n_samples=9).filled["b"]
        assert bool(filled.isfinite().all())
        seen = batch.column("b")
        assert torch.equal(filled[seen], batch.values["b"][seen])
        assert model.embed(batch).shape == (12, 2)

    @EVERY_CASE
    def test_saved_and_loaded(self, make_model, make_batch, training, case, tmp_path):
        model, batch = make(make_model, case), make_batch()
        model.save(tmp_path / "model")
        again = mv.load_model(tmp_path / "model")
        assert again.config == model.config
        for name, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), name
        one, two = (outputs(each, batch, training()) for each in (model, again))
        assert all(torch.equal(term.value, two[name].value) for name, term in one.items())

    def test_the_draw_of_the_prior_can_be_written_down(self, make_model, make_batch):
        model, batch = make_model("maae"), make_batch(holes=False)
        real = torch.arange(24, dtype=F64).view(12, 2) / 10
        noise = ScriptedNoise(ZeroNoise(F64), {"real": real})
        terms = outputs(model, batch, Step(training=True, noise=noise))
        expected = torch.nn.functional.softplus(-model.critic(real)[:, 0])
        torch.testing.assert_close(terms["real"].value, expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mwae", {"divergence": "gan"}, "divergence: must be one of 'mmd', 'wgan-gp', 'wgan'"),
        ("maae", {"divergence": "mmd"}, "divergence: must be one of 'gan', 'gan-gp'"),
        ("mwae", {"lambda_div": -1.0}, "lambda_div: must be >= 0, got -1.0"),
        ("mwae", {"kernel_scales": []}, "kernel_scales: must have at least one entry"),
        ("mwae", {"kernel_scales": [1.0, 0.0]}, "kernel_scales.*must be > 0, got 0.0"),
        ("mwae", {"source": "x"}, "source: unknown modality 'x'; there is a, b, c"),
        ("mwae", {"n_sources": 0}, "n_sources: must be > 0, got 0"),
        ("mwae", {"clip": 0.0}, "clip: must be > 0, got 0.0"),
        ("maae", {"clip": 0.1}, "clip: unknown option"),
        ("maae", {"n_critic": 0}, "n_critic: must be > 0, got 0"),
        ("maae", {"penalty": 0.0}, "penalty: must be > 0, got 0.0"),
        ("maae", {"critic": "conv"}, "critic: .*'mlp', which takes any shape"),
        ("maae", {"critic_optimiser": {"lr": -1.0}}, "critic_optimiser.lr: must be >= 0"),
        ("mwae", {"prior": "scaled"}, "prior: .*must not be learned.*learn=False"),
    ],
)
def test_refusals(make_model, name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_model(name, **options)


def test_a_prior_that_stands_still_is_fine(make_model, make_batch, training):
    prior = {"type": "scaled", "family": "normal", "learn": False}
    model, batch = make_model("mwae", prior=prior), make_batch()
    assert bool(total(outputs(model, batch, training()), batch.something).isfinite())
