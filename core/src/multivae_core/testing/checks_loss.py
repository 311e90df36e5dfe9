"""Checks of the objective: gradients, terms, weights, training, number types, capture."""

from __future__ import annotations

__all__ = ["CHECKS"]

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from multivae_core.data import Batch
from multivae_core.losses import LossOutput
from multivae_core.model import MultimodalVAE
from multivae_core.noise import Step
from multivae_core.stages import Player, Stage
from multivae_core.testing.bench import SHAPES, Bench
from multivae_core.testing.probe import close, evaluations, losses, same, subsets, total_of
from multivae_core.testing.report import Broken, NotApplicable
from multivae_core.training import Trainer
from multivae_core.training.trainer import networks_of


def gradients(bench: Bench) -> None:
    """Gradients reach exactly the networks of the modalities that are present."""
    model, batch = bench.main, bench.batch(holes=False)
    for names in subsets(tuple(SHAPES))[1:]:
        if not {*bench.case.needed} <= {*names} or (len(names) < 3 and _picky(bench)):
            continue
        found = losses(model, batch.restrict(names)).gradients
        reached = {name.split(" ")[1] for name, gradient in found.items() if bool(gradient.any())}
        if bad := [
            name for name, gradient in found.items() if not bool(gradient.isfinite().all())
        ]:
            raise Broken(f"the gradient of {bad[0]} is not finite with {'+'.join(names)} present")
        for name in SHAPES:
            for role in ("encoder", "decoder"):
                if role == "decoder" and name not in model.decoded:
                    continue
                own = _parameters(model, getattr(model, f"{role}s")[name])
                if name not in names and own & reached:
                    raise Broken(
                        f"the {role} of {name!r}, which is absent, has a gradient in"
                        f" {sorted(own & reached)[0]}, with {'+'.join(names)} present"
                    )
                if name in names and own and not own & reached:
                    raise Broken(
                        f"no gradient reaches the {role} of {name!r}, with {'+'.join(names)}"
                        " present"
                    )


def _picky(bench: Bench) -> bool:
    return not bench.has("encodes_any_subset")


def _parameters(model: nn.Module, part: nn.Module) -> set[str]:
    own = set(part.parameters())
    return {name for name, parameter in model.named_parameters() if parameter in own}


def terms(bench: Bench) -> None:
    """The terms with their weights are the loss that the trainer reports."""
    model, data = bench.model(), bench.dataset(bench.batch(14))
    seen: dict[str, list[tuple[LossOutput, Tensor]]] = {}
    stages = model.stages()

    def watched(stage: Stage, player: Player) -> Player:
        def loss(batch: Batch, step: Step) -> Iterator[LossOutput]:
            for output in player.loss(batch, step):
                if stage is stages[0]:
                    seen.setdefault(player.name, []).append((output, batch.something))
                yield output

        return attrs.evolve(player, loss=loss)

    shown = tuple(
        attrs.evolve(stage, players=tuple(watched(stage, each) for each in stage.players))
        for stage in stages
    )
    with mock.patch.object(model, "stages", return_value=shown):
        epoch = next(iter(Trainer(epochs=len(stages), batch_size=14, seed=0).fit(model, data)))
    outputs = seen[stages[0].players[0].name]
    own = total_of([output for output, _ in outputs], outputs[0][1])
    reported = epoch.numbers["loss"]
    if not math.isclose(own, reported, rel_tol=1e-9, abs_tol=1e-9):
        raise Broken(f"the terms give the loss {own:.9g}, the trainer reports {reported:.9g}")
    for output, _ in outputs:
        for name, term in output.terms.items():
            if term.weight is not None and bool((term.weight < 0).any()):
                raise Broken(f"the weight of term {name!r} is negative")
    _whole_or_in_pieces(model, bench.batch())


def _whole_or_in_pieces(model: MultimodalVAE, batch: Batch) -> None:
    """`loss_pieces` is `loss`, if the model trains on it: values and gradients."""
    if any(p.loss != model.loss_pieces for s in model.stages() for p in s.players):
        return
    one = losses(model, batch)

    def plain(batch: Batch, step: Step) -> Iterator[LossOutput]:
        yield model.loss(batch, step)

    with mock.patch.object(model, "loss_pieces", plain):
        two = losses(model, batch)
    totals = [
        # a term of the batch is a scalar
        {"the loss": sum(v for n, v in each.values.items() if " term " in n) + torch.zeros(())}
        for each in (one, two)
    ]
    rule = "`loss` and the sum of its pieces"
    close(totals[0], totals[1], rule, 1e-9)
    close(one.gradients, two.gradients, rule, 1e-9)


def beta(bench: Bench) -> None:
    """Outside training beta and the weights of modalities are 1; in training they count."""
    batch, one = bench.batch(), bench.main
    heavy = {"a": {"weight": 3.0}} if "a" in one.decoded else {"b": {"weight": 3.0}}
    two = bench.model(beta=0.25, beta_schedule=100, modalities=heavy)
    rule = "outside training, with beta 0.25 and weight 3,"
    same(evaluations(bench, one, batch), evaluations(bench, two, batch), rule)
    values = losses(one, batch, training=False).values
    same(values, losses(two, batch, training=False).values, rule)
    rounding = {name for name, value in values.items() if not value.any()}
    plain, weighted = losses(one, batch).values, losses(two, batch).values
    if all(torch.equal(plain[n], weighted[n]) for n in plain.keys() - rounding):
        raise Broken("beta 0.25 and weight 3 do not change the loss in training")


def training(bench: Bench) -> None:
    """The loss falls on a toy with holes."""
    data = bench.dataset(bench.batch(160, seed=4))
    model, stages = bench.model(data, dtype="float32"), len(bench.main.stages())
    trainer = Trainer(epochs=10 * stages, batch_size=32, lr=0.01, seed=0, device="cpu")
    history = trainer.fit(model, data)
    for stage in dict.fromkeys(epoch.stage for epoch in history):
        values = [epoch.numbers["loss"] for epoch in history if epoch.stage == stage]
        if not min(values[1:], default=-math.inf) < values[0] or not values[-1] < values[0]:
            raise Broken(
                f"the loss of stage {stage!r} does not fall: {values[0]:.4g} in its first epoch,"
                f" {values[-1]:.4g} in the last of {len(values)}"
            )


class _Narrow(TorchDispatchMode):
    """Notes the operations that give numbers of fewer than 64 bits."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def] # noqa: ANN204
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor) and each.is_floating_point() and each.element_size() < 8:
                self.found.add(_caller())
        return result


def _caller() -> str:
    """Where the innermost line outside torch and this module is, as ``file.py:line``."""
    frame = sys._getframe(1)
    while frame.f_back and ("/torch/" in frame.f_code.co_filename.replace("\\", "/")
                            or frame.f_code.co_filename == __file__):  # fmt: skip
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def precision(bench: Bench) -> None:
    """A float64 model computes in float64 throughout, and a float32 model nearly the same."""
    batch, wide, _ = bench.batch(), bench.model(), bench.main  # made before the watch
    with _Narrow() as watch:
        exact = losses(wide, batch)
        says = evaluations(bench, wide, batch)
    if watch.found:
        raise Broken(
            f"a float64 model computes in fewer digits in {', '.join(sorted(watch.found))}"
        )
    narrow = bench.model(dtype="float32")
    wide.load_state_dict(narrow.state_dict())
    rule, kept = "float32 against float64", ("mean of", "elbo", "log_likelihood", "conditional")
    says, rough = (
        {n: x for n, x in evaluations(bench, each, batch).items() if n.startswith(kept)}
        for each in (wide, narrow)
    )
    if wrong := [n for n, x in rough.items() if x.dtype != torch.float32]:
        raise Broken(f"a float32 model gives {rough[wrong[0]].dtype} as {wrong[0]}")
    close(says, rough, rule, 1e-3)
    if not exact.values:
        raise Broken("the loss has neither terms nor a bound")


def device(bench: Bench) -> None:
    """Another device gives nearly the same."""
    backends = {"cuda": torch.cuda, "mps": torch.backends.mps}
    found = [name for name, backend in backends.items() if backend.is_available()]
    if not found:
        raise NotApplicable("this machine has no other device")
    batch, model = bench.batch(), bench.model(dtype="float32")
    says = evaluations(bench, model, batch)
    model.to(found[0])
    losses(model, batch)
    there = {name: x.cpu() for name, x in evaluations(bench, model, batch).items()}
    close(says, there, f"on {found[0]}", 1e-3)


def compile_(bench: Bench) -> None:
    """Encoders and decoders are captured whole by torch.compile, and nothing changes."""
    model, batch, captured = bench.model(), bench.batch(), []
    plain = losses(model, batch)

    def capture(graph: Any, inputs: Any) -> Callable[..., Any]:
        captured.append(graph)
        run: Callable[..., Any] = graph.forward
        return run

    called: list[nn.Module] = []
    # what fuses experts may look at which rows there are; encoders and decoders may not
    networks = [*networks_of(model.encoders), *networks_of(model.decoders)]
    hooks = [n.register_forward_hook(lambda own, *_: called.append(own)) for n in networks]
    losses(model, batch)
    for hook in hooks:
        hook.remove()
    torch._dynamo.reset()
    for network in networks:
        network.compile(backend=capture, fullgraph=True, dynamic=True)
    try:
        again = losses(model, batch)
    finally:
        torch._dynamo.reset()
    if called and not captured:
        raise Broken("torch.compile captures none of the networks of a training step")
    close(plain.values, again.values, "captured by torch.compile")
    close(plain.gradients, again.gradients, "captured by torch.compile")


CHECKS = {
    check.__name__.strip("_"): check
    for check in (gradients, terms, beta, training, precision, device, compile_)
}
