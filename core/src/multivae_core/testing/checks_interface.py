"""Checks of what surrounds a model: configuration, capabilities, files, shapes."""

from __future__ import annotations

__all__ = ["CHECKS"]

import inspect
import json
import pickle
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import torch
from torch import Tensor

from multivae_core.config import unstructure
from multivae_core.errors import CapabilityError, ConfigError
from multivae_core.plugins import CAPABILITIES, USUAL_CAPABILITIES
from multivae_core.posteriors import PointPosterior
from multivae_core.saving import load_model
from multivae_core.testing.bench import SHAPES, Bench
from multivae_core.testing.probe import evaluations, losses, same
from multivae_core.testing.report import Broken

_FILES = {"config.json", "model.safetensors", "README.md"}
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_][\w.]*|(?:torch|multivae\w*)(\.\w+)+")


def config(bench: Bench) -> None:
    """A configuration survives the way to JSON and back, and refuses unknown options."""
    own = bench.main.config
    plain = unstructure(own)
    again = bench.configured(json.loads(json.dumps(plain)))
    if again != own:
        field = next(f.name for f in attrs.fields(type(own))
                     if getattr(own, f.name) != getattr(again, f.name))  # fmt: skip
        raise Broken(f"the option {field!r} is another one after JSON and back")
    try:
        bench.configured({**plain, "no_such_option": 1})
    except ConfigError:
        return
    raise Broken("an unknown option is not refused by the configuration")


def capabilities(bench: Bench) -> None:
    """What the spec claims is what the class does; what it lacks has a reason and is refused."""
    model, claimed = bench.main, bench.spec.capabilities
    for name in sorted(CAPABILITIES | set(model.lacks)):
        reason = model.lacks.get(name)
        if name not in CAPABILITIES or (reason is not None and not reason.strip()):
            raise Broken(f"lacks[{name!r}] is no capability, or has no reason")
        if name in claimed and name in type(model).lacks:  # options may take more away
            raise Broken(f"the spec claims {name}, which the class lacks: {reason}")
        if name in USUAL_CAPABILITIES - claimed and reason is None:
            raise Broken(f"the spec does not claim {name}, and the class's lacks has no reason")
    verbs: dict[str, Callable[[], object]] = {
        "joint_likelihood": lambda: model.log_likelihood(bench.batch(), n_samples=2),
        "conditional_likelihood": lambda: model.conditional_log_likelihood(
            bench.batch(), ("b",), ("a",), n_samples=2
        ),
        "generate": lambda: model.generate(2),
    }
    for name, verb in verbs.items():
        if bench.has(name):
            continue
        try:
            verb()
        except CapabilityError:
            continue
        raise Broken(f"the model lacks {name}, but does not refuse it with a CapabilityError")
    private = any(isinstance(name, tuple) for name in model.latent_shapes)
    if private and "private_latents" not in claimed:
        raise Broken("the model has private latents, and the spec does not claim private_latents")


def files(bench: Bench) -> None:
    """A folder holds JSON, safetensors and a card: nothing pickled, no import path."""
    with _saved(bench) as folder:
        odd = {path.name for path in folder.iterdir()} ^ _FILES
        if odd:
            raise Broken(f"the folder of a model must hold {sorted(_FILES)}; differs by {odd}")
        for text in _texts(json.loads((folder / "config.json").read_text(encoding="utf-8"))):
            if _IMPORT_PATH.fullmatch(text):
                raise Broken(f"config.json holds the import path {text!r}")
        refused = mock.Mock(side_effect=Broken("loading a model unpickles something"))
        with (
            mock.patch.object(pickle, "load", refused),
            mock.patch.object(pickle, "loads", refused),
            mock.patch.object(torch, "load", refused),
        ):
            load_model(folder)


def save_load(bench: Bench) -> None:
    """A model that was saved and loaded says the same, bit for bit."""
    batch, model = bench.batch(), bench.main
    with _saved(bench) as folder:
        loaded = load_model(folder)
    rule = "saved and loaded"
    same(_state(model), _state(loaded), rule)
    one, two = losses(model, batch), losses(loaded, batch)
    same(one.values, two.values, rule)
    same(one.gradients, two.gradients, rule)
    same(evaluations(bench, model, batch), evaluations(bench, loaded, batch), rule)


def seed(bench: Bench) -> None:
    """The same seed gives the same, bit for bit, whatever torch's own generator does."""
    batch, before = bench.batch(), torch.get_rng_state()
    found = []
    try:
        for outside in (5, 6):
            # the probes seed torch's generator themselves; here it is to differ
            with mock.patch.object(torch, "manual_seed", return_value=None):
                torch.default_generator.manual_seed(outside)
                model = bench.model()
                step = losses(model, batch)
                found.append(
                    _state(model) | step.values | step.gradients
                    | evaluations(bench, model, batch)
                    | (model.generate(3) if bench.has("generate") else {})
                )  # fmt: skip
    finally:
        torch.set_rng_state(before)
    same(found[0], found[1], "the same seed twice")


def untouched(bench: Bench) -> None:
    """A batch is as it was, and so are the weights, after everything was asked about it."""
    model, batch = bench.model(), bench.batch()
    before = {f"values of {n}": x.clone() for n, x in batch.values.items()}
    before |= {f"mask of {n}": x.clone() for n, x in batch.observed.items()}
    before |= {"present": batch.present.clone(), "index": batch.index.clone()}
    weights = {name: value.clone() for name, value in _state(model).items()}
    losses(model, batch)
    evaluations(bench, model, batch)
    after = {f"values of {n}": x for n, x in batch.values.items()}
    after |= {f"mask of {n}": x for n, x in batch.observed.items()}
    same(before, after | {"present": batch.present, "index": batch.index}, "the user's batch")
    same(weights, _state(model), "weights that nobody trains")


def latents(bench: Bench) -> None:
    """Latents have the names and shapes that the model states, and samples are many."""
    model, batch = bench.main, bench.batch()
    shapes, rows, seen = model.latent_shapes, batch.size, batch.something
    means, samples = model.encode(batch), model.encode(batch, 4, seed=1)
    with torch.no_grad():
        prior = model.prior(model.blank(rows)).sample(4, rows, _row_noise(bench))
    for what, found, lead in (
        ("encode", means, (rows,)),
        ("encode with samples", samples, (4, rows)),
        ("the prior", prior, (4, rows)),
    ):
        _shapes(what, found, {name: (*lead, *shape) for name, shape in shapes.items()})
    size = sum(torch.Size(shapes[name]).numel() for name in model.representation)
    if (width := tuple(model.embed(batch).shape)) != (rows, size):
        raise Broken(f"embed gives {width}, where the representation has {(rows, size)}")
    with torch.no_grad():
        points = isinstance(model.posterior(model.prepare(batch)), PointPosterior)
    for name, value in samples.items():
        if not points and bool((value[:, seen].flatten(2).std(dim=0).amax(dim=-1) == 0).any()):
            raise Broken(f"the samples of {name!r} are one sample, repeated")


def outputs(bench: Bench) -> None:
    """Generations, predictions and imputations have the shapes and ranges of the data."""
    model, batch = bench.main, bench.batch()
    rows, whole = batch.size, {name: SHAPES[name] for name in model.decoded}
    if bench.has("generate"):
        _legal(bench, "generate", model.generate(5), {n: (5, *s) for n, s in whole.items()})
        drawn = model.generate(5, output="sample")
        for name, value in drawn.items():
            head: Any = model.decoders[name].likelihood
            head.check(value, None, name, torch.arange(5))
    rowwise = {name: (rows, *shape) for name, shape in whole.items()}
    _legal(bench, "predict", model.predict(batch, n_samples=5), rowwise)
    own = model.impute(batch, n_samples=9, keep_samples=True)
    _legal(bench, "imputed means", own.mean, rowwise)
    _legal(bench, "filled", own.filled, rowwise)
    if own.samples is None:
        raise Broken("impute with keep_samples=True gives no samples")
    _shapes("imputed samples", own.samples, {n: (9, *s) for n, s in rowwise.items()})
    _shapes("quantiles", own.quantiles, {n: (3, *s) for n, s in rowwise.items()})
    for name, value in own.filled.items():
        seen = batch.seen(name)
        truth = batch.values[name]
        if not torch.equal(value[seen].to(truth), truth[seen]):
            raise Broken(f"impute changes what was observed of {name!r}")
        kept = own.samples[name][:, seen].to(truth)
        if not torch.equal(kept, truth[seen].expand_as(kept)):
            raise Broken(f"impute's samples change what was observed of {name!r}")
        if bool((own.quantiles[name].diff(dim=0) < 0).any()):
            raise Broken(f"the quantiles of {name!r} are not in order")


def _legal(
    bench: Bench, what: str, found: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]
) -> None:
    """Refuse values of other shapes, that are not finite, or that are no shares of categories."""
    _shapes(what, found, shapes)
    for name, value in found.items():
        if not bool(value.isfinite().all()):
            raise Broken(f"{what}: {name} is not finite")
        head = bench.main.decoders[name].likelihood
        if getattr(head, "name", "") == "categorical":
            off = float((value.sum(dim=1) - 1.0).abs().max())
            if off > 1e-6 or bool((value < 0).any()):
                raise Broken(f"{what}: the probabilities of {name} miss a sum of 1 by {off:.3g}")


def _shapes(what: str, found: dict[Any, Tensor], shapes: dict[Any, tuple[int, ...]]) -> None:
    if set(found) != set(shapes):
        raise Broken(f"{what} is about {sorted(map(str, found))}, not {sorted(map(str, shapes))}")
    for name, shape in shapes.items():
        if tuple(found[name].shape) != shape:
            raise Broken(f"{what}: {name!r} has shape {tuple(found[name].shape)}, not {shape}")


def _row_noise(bench: Bench) -> Any:
    from multivae_core.noise import RowNoise

    return RowNoise(0, bench.batch().index, bench.main.dtype)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {f"weight {n}": x for n, x in model.state_dict().items() if x.is_floating_point()}


@contextmanager
def _saved(bench: Bench) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        bench.main.save(Path(place) / "model")
        yield Path(place) / "model"


CHECKS = {
    check.__name__: check
    for check in (config, capabilities, files, save_load, seed, untouched, latents, outputs)
    if inspect.isfunction(check)
}
