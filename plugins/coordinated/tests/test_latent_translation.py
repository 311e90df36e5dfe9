"""Latent translation: its stages, its terms, and what it can and cannot do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import multivae_core as mv
from multivae_coordinated._alignment import sliced_wasserstein
from multivae_coordinated._bridge import Layers, Scaler
from multivae_core.errors import CapabilityError, ConfigError, DataError
from multivae_core.noise import RowNoise, Step

SMALL = {"base_dim": 3, "bridge_layers": [6]}


def labelled(batch, labels):
    return mv.Batch(values=batch.values, present=batch.present, labels=torch.as_tensor(labels))


def test_base_is_one_vae_per_modality(make_model, make_batch, quiet):
    model, batch = make_model("latent_translation", beta=2.0, **SMALL), make_batch()
    terms = model.base_loss(model.prepare(batch), quiet()).terms
    for name in "abc":
        own, value = batch.column(name), terms[f"base:{name}"].value.detach()
        assert torch.equal(terms[f"base:{name}"].weight, own.double())
        raw = model.encoders[name](batch.values[name])["base", name].detach()
        mean, variance = raw[:, 0].numpy(), raw[:, 1].exp().numpy()
        location = model.decoders[name](raw[None, :, 0]).mean[0].detach().numpy()
        log_px = stats.norm.logpdf(batch.values[name].numpy(), location, 0.8).sum(axis=1)
        kl = 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum(axis=1)
        np.testing.assert_allclose(value[own], (2.0 * kl - log_px)[own.numpy()], rtol=1e-10)


def test_the_vaes_are_frozen_while_the_bridge_is_built(make_model, make_batch):
    model = make_model("latent_translation", **SMALL)
    data = mv.IncompleteDataset(make_batch(rows=30, holes=False).values)
    mv.Trainer(steps={"base": 3, "bridge": 1}, seed=0, progress=False).fit(model, data)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    again = make_model("latent_translation", **SMALL)
    mv.Trainer(steps={"base": 3, "bridge": 6}, seed=0, progress=False).fit(again, data)
    moved = {k for k, v in again.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert all(k.startswith("bridge.") for k in moved)


def test_stages_hold_every_parameter_once(make_model):
    model = make_model("latent_translation", beta_class=1.0, n_classes=3, **SMALL)
    found = [
        id(p)
        for stage in model.stages()
        for player in stage.players
        for part in player.parameters
        for p in part.parameters()
    ]
    assert sorted(found) == sorted(id(p) for p in model.parameters())


def test_scaler_is_the_mean_and_deviation_of_all_it_watched():
    scaler, generator = Scaler(2, 3).double(), torch.Generator().manual_seed(0)
    seen = []
    for _ in range(4):
        base = 5.0 + 3.0 * torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
        present = torch.rand(7, 2, generator=generator) < 0.7
        base[~present.T] = torch.nan
        scaler.watch(base, present)
        seen.append((base, present))
    for m in range(2):
        rows = torch.cat([base[m][present[:, m]] for base, present in seen])
        torch.testing.assert_close(scaler.mean[m], rows.mean(dim=0))
        torch.testing.assert_close(scaler.variance[m], rows.var(dim=0, correction=0))
        scaled = scaler.apply_to(rows, m)
        torch.testing.assert_close(scaler.undo(scaled, m), rows)


def test_distance_is_that_of_sorted_projections():
    # in one dimension every direction is +1 or -1: the mean distance of sorted values
    z = torch.tensor([[[0.0], [1.0], [5.0]], [[4.0], [2.0], [9.0]]])
    present = torch.tensor([[True, True], [True, True], [True, False]])
    noise = RowNoise(0, torch.arange(3))
    distance, rows = sliced_wasserstein(z, present, 4, noise)
    assert distance.item() == pytest.approx((abs(0 - 2) + abs(1 - 4)) / 2)
    assert rows.item() == 2
    nothing = sliced_wasserstein(z, torch.zeros_like(present), 4, noise)
    assert [value.item() for value in nothing] == [0.0, 0.0]


def test_distance_from_the_pooled_codes():
    # 1 and 2 of one modality, 5 of another: the quartiles of 1, 2, 5 are 1 and 5, its median 2
    z = torch.tensor([[[1.0], [2.0]], [[5.0], [9.0]]])
    present = torch.tensor([[True, True], [True, False]])
    noise = RowNoise(0, torch.arange(2))
    distance, rows = sliced_wasserstein(z, present, 4, noise, pooled=True)
    assert distance.item() == pytest.approx(((0 + 3) + 3) / 3)
    assert rows.item() == 3
    same = torch.randn(1, 6, 2, generator=torch.Generator().manual_seed(0)).expand(3, 6, 2)
    nothing, _ = sliced_wasserstein(same, torch.ones(6, 3, dtype=torch.bool), 4, noise, True)
    assert nothing.item() == pytest.approx(0.0, abs=1e-6)


def test_layers_add_and_mix():
    torch.manual_seed(0)
    net = Layers(3, [3, 5], 2, residual=True, gated=True).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    one = x + net.layers[0](x).relu()
    two = net.around[1](one) + net.layers[1](one).relu()
    own, gate = net.head(two).chunk(2, dim=1)
    share = gate.sigmoid()
    torch.testing.assert_close(net(x), share * own + (1 - share) * net.skip(x))
    plain = Layers(3, [], 2).double()
    torch.testing.assert_close(plain(x), plain.head(x))


def test_the_bridge_need_not_be_told_the_modality(make_model, make_batch):
    # two modalities with the same numbers: told apart they have different codes
    sizes = {"a": 3, "b": 3}
    for told in (True, False):
        model = make_model("latent_translation", sizes=sizes, use_domain=told, **SMALL)
        model.encoders["b"].load_state_dict(model.encoders["a"].state_dict())
        batch = make_batch(6, sizes, holes=False)
        batch.values["b"] = batch.values["a"].clone()
        alone = [model.embed(batch.restrict({name})) for name in "ab"]
        assert torch.allclose(*alone) == (not told)


def test_pairs_as_in_a_product_of_experts(make_model, make_batch, quiet):
    weights = {"pairing": "poe", "beta_product": 2.0, "beta_cross": 3.0}
    model = make_model("latent_translation", residual=True, gated=True, **weights, **SMALL)
    batch, step = model.prepare(make_batch()), Step(noise=quiet().noise)
    terms = model.bridge_loss(batch, step).terms
    base = torch.stack([model.encoders[m](batch.values[m])["base", m][:, 0] for m in "abc"])
    scaled = model.bridge.scaled(base)
    codes = model.bridge.codes(scaled)
    for b in range(batch.size):
        own = [m for m in range(3) if batch.present[b, m]]
        assert terms["product"].weight[b] == terms["cross"].weight[b] == (len(own) > 1)
        if len(own) < 2:
            continue
        precision = sum(1.0 / codes.variance[m, b] for m in own)
        z = sum(codes.mean[m, b] / codes.variance[m, b] for m in own) / precision

        def error(z, m, b=b):
            return (scaled[m, b] - model.bridge.back(z[None], m)[0]).square().mean()

        wanted = 2.0 * sum(error(z, m) for m in own) / len(own)
        torch.testing.assert_close(terms["product"].value[b], wanted)
        across = [error(codes.mean[m, b], n) for m in own for n in own if m != n]
        torch.testing.assert_close(terms["cross"].value[b], 3.0 * sum(across) / len(across))
        q = model.posterior(batch).parts["shared"]
        torch.testing.assert_close(q.mean[b], z)
        torch.testing.assert_close(q.variance[b], 1.0 / precision)
    empty = ~batch.something
    assert not q.mean[empty].any()
    assert bool((q.variance[empty] == 1.0).all())


def test_the_classifier_may_have_layers(make_model, make_batch, quiet):
    options = {"beta_class": 1.0, "n_classes": 4, "class_layers": [7]}
    model = make_model("latent_translation", **options, **SMALL)
    assert [layer.out_features for layer in model.classifier.layers] == [7]
    batch = model.prepare(labelled(make_batch(), [0] * 12))
    model.bridge_loss(batch, quiet()).terms["class"].value.sum().backward()
    assert model.classifier.layers[0].weight.grad.any()


def test_terms_that_weigh_nothing_are_left_out(make_model, make_batch, quiet):
    def names(**options):
        model = make_model("latent_translation", **SMALL, **options)
        batch = labelled(make_batch(), [0] * 12)
        return {n for n in model.bridge_loss(model.prepare(batch), quiet()).terms if ":" not in n}

    assert names(beta_align=0.0) == set()
    assert names() == {"align"}
    assert names(pairing="poe") == {"align", "product", "cross"}
    assert names(pairing="poe", beta_product=0.0, beta_cross=0.0) == {"align"}
    everything = {"beta_class": 1.0, "n_classes": 2, "beta_pair": 1.0}
    assert names(**everything) == {"align", "class", "pair"}


def test_classifier_sees_labelled_rows_alone(make_model, make_batch, quiet):
    model = make_model("latent_translation", beta_class=1.0, n_classes=4, **SMALL)
    batch = model.prepare(labelled(make_batch(), [3, 2, -1, 1, 0, -1, 2, 2, 1, 0, 3, 3]))
    term = model.bridge_loss(batch, quiet()).terms["class"]
    wanted = batch.something & (batch.labels >= 0)
    assert torch.equal(term.weight, wanted.double())
    assert (term.value[wanted] > 0).all()


def test_rows_with_pairs_are_drawn_together(make_model, make_batch, quiet):
    model = make_model("latent_translation", beta_pair=2.0, **SMALL)
    batch = model.prepare(make_batch())
    term = model.bridge_loss(batch, quiet()).terms["pair"]
    assert torch.equal(term.weight, (batch.present.sum(dim=1) > 1).double())
    code = {m: model.posterior(batch.restrict({m})).parts["shared"].mean for m in "ab"}
    row = next(b for b in range(12) if batch.present[b].tolist() == [True, True, False])
    # the codes of the loss are of drawn latents, which are at their means here, but the scale
    # moved when the loss was taken; so ask again, outside of training
    term = model.bridge_loss(batch, Step(noise=quiet().noise)).terms["pair"]
    code = {m: model.posterior(batch.restrict({m})).parts["shared"].mean for m in "ab"}
    wanted = 2.0 * (code["a"][row] - code["b"][row]).square().sum()
    assert term.value[row].item() == pytest.approx(wanted.item(), rel=1e-9)


def test_several_modalities_are_encoded_by_the_geometric_mean_of_their_codes(
    make_model, make_batch
):
    model, batch = make_model("latent_translation", **SMALL), make_batch(holes=False)
    posterior = {
        names: model.posterior(model.prepare(batch.restrict({*names}))).parts["shared"]
        for names in ("a", "b", "c", "abc")
    }
    alone = [posterior[name] for name in "abc"]
    precision = sum(1.0 / q.variance for q in alone) / 3
    pull = sum(q.mean / q.variance for q in alone) / 3
    exact = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(posterior["abc"].variance, 1.0 / precision, **exact)
    torch.testing.assert_close(posterior["abc"].mean, pull / precision, **exact)


def test_it_has_no_likelihood(make_model, make_batch):
    model = make_model("latent_translation", **SMALL)
    with pytest.raises(CapabilityError, match="put together from VAEs"):
        model.log_likelihood(make_batch())
    for options in ({}, {"beta_align": 0.0}):  # the scale too is that of the batches so far
        with pytest.raises(CapabilityError, match="row_objective: latents are scaled"):
            make_model("latent_translation", **options, **SMALL).require("row_objective")


def test_bad_input_is_refused(make_model, make_batch, quiet):
    with pytest.raises(ConfigError, match="n_classes: must be given for a classifier"):
        make_model("latent_translation", beta_class=1.0)
    with pytest.raises(ConfigError, match="class_layers: there is no classifier"):
        make_model("latent_translation", class_layers=[4])
    for option in ("bridge_layers", "class_layers"):
        with pytest.raises(ConfigError, match=f"{option}.*must be > 0"):
            make_model("latent_translation", **{option: [0]}, beta_class=1.0, n_classes=2)
    model = make_model("latent_translation", beta_class=1.0, n_classes=2, **SMALL)
    with pytest.raises(DataError, match="beta_class needs labels"):
        model.bridge_loss(model.prepare(make_batch()), quiet())
    with pytest.raises(DataError, match="a label is 2, n_classes is 2; raise n_classes"):
        model.bridge_loss(model.prepare(labelled(make_batch(), [2] * 12)), quiet())


@pytest.mark.slow
def test_labels_make_translation_keep_the_class():
    # Two views of 4 classes, never seen together: with labels a code tells the class whichever
    # view it came from. Chance is 0.25.
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 600)
    views = {}
    for name, size in {"a": 5, "b": 6}.items():
        centres = 4.0 * rng.normal(size=(4, size))
        views[name] = centres[labels] + rng.normal(size=(600, size))
    present = {"a": np.arange(600) % 2 == 0, "b": np.arange(600) % 2 == 1}
    train = mv.IncompleteDataset(views, present=present, labels=labels)
    options = {"beta_class": 5.0, "n_classes": 4, "beta_align": 3.0, "beta_prior": 0.02}
    options |= {"base_dim": 4, "bridge_layers": [32]}
    model = mv.create_model("latent_translation", train, latent_dim=4, **options)
    epochs = {"base": 100, "bridge": 500}
    mv.Trainer(epochs=epochs, batch_size=600, lr=5e-3, seed=0, progress=False).fit(model, train)
    complete = mv.IncompleteDataset(views, labels=labels)
    made = model.predict(complete.restrict({"a"}), targets=("b",), n_samples=1)["b"].numpy()
    centres = np.stack([views["b"][labels == k].mean(axis=0) for k in range(4)])
    nearest = ((made[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == labels).mean() >= 0.9
