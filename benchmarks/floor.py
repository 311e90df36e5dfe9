"""Bare networks: the work that an objective cannot avoid, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

import multivae_core as mv

__all__ = ["Replay", "bare_decoding", "bare_training"]


def bare_training(
    encoders: list[nn.Module],
    decoders: list[nn.Module],
    values: list[Tensor],
    latent_dim: int,
    batch_size: int,
    decoder_rows: int,
) -> Callable[[int], None]:
    """A loop over encoders, decoders, squared error, backward and Adam, one call per module.

    Args:
        encoders: One per modality, ``(B, *shape) -> (B, 2D)``.
        decoders: One per modality, ``(B, D) -> (B, *shape)``.
        values: One per modality, ``(N, *shape)``, without holes.
        latent_dim: Size D of the latent.
        batch_size: Rows per step.
        decoder_rows: Rows decoded per row of the batch and modality.

    Returns:
        A function that makes so many steps.
    """
    for encoder, x in zip(encoders, values, strict=True):
        encoder(x[:2])  # lazy layers get their sizes
    parameters = [p for module in [*encoders, *decoders] for p in module.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=1e-3)

    def slices() -> Iterator[list[Tensor]]:
        while True:
            for start in range(0, len(values[0]) - batch_size + 1, batch_size):
                yield [x[start : start + batch_size] for x in values]

    stream = slices()

    def run(steps: int) -> None:
        for _ in range(steps):
            batch = next(stream)
            optimiser.zero_grad()
            encoded = [encoder(x) for encoder, x in zip(encoders, batch, strict=True)]
            z = torch.stack(encoded).mean(dim=0)[:, :latent_dim]
            z = z.repeat(decoder_rows, *(1 for _ in z.shape[1:]))
            loss = torch.zeros(())
            for decoder, x in zip(decoders, batch, strict=True):
                out = decoder(z).view(decoder_rows, *x.shape)
                loss = loss + (out - x).square().sum()
            (loss / batch_size).backward()
            optimiser.step()

    return run


def bare_decoding(
    decoders: list[nn.Module], values: list[Tensor], latent_dim: int, samples: int
) -> Callable[[int], None]:
    """Decode so many samples per row in chunks of 1,000 latent rows, and square the errors."""

    @torch.no_grad()
    def run(rows: int) -> None:
        for row in range(rows):
            z = torch.randn(samples, latent_dim)
            for chunk in z.split(1000):
                for decoder, x in zip(decoders, values, strict=True):
                    (decoder(chunk) - x[row]).square().flatten(1).sum(dim=1)

    return run


class Replay:
    """The layers of a model, called again as in training, on noise, and nothing else.

    Record in a run of training, by `recording`, every call of a layer: its shape, and what had
    gradients. The floor is made of the same calls of copies, forward and backward, and Adam. It
    serves models whose networks are not one encoder and one decoder per modality.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.steps: list[list[_Call]] = [[]]
        self.copies: dict[tuple[nn.Module, bool], nn.Module] = {}
        self.noise: dict[tuple[int, ...], Tensor] = {}

    @contextmanager
    def recording(self) -> Iterator[_Marker]:
        """Record the calls; give the trainer what is returned as a callback."""
        layers = [module for module in self.model.modules() if not list(module.children())]
        hooks = [layer.register_forward_hook(self._record) for layer in layers]
        yield _Marker(self.steps)
        for hook in hooks:
            hook.remove()
        self.steps = [step for step in self.steps if step]
        parameters = [p for copy in self.copies.values() for p in copy.parameters()]
        self.optimiser = torch.optim.Adam([p for p in parameters if p.requires_grad], lr=1e-3)

    def __call__(self, steps: int) -> None:
        """Make so many steps, those that were recorded again and again."""
        for number in range(steps):
            self.optimiser.zero_grad()
            outputs = []
            for call in self.steps[number % len(self.steps)]:
                given = self.noise[call.shape].detach().requires_grad_(call.differentiable)
                with torch.set_grad_enabled(call.training):
                    found = call.layer(given)
                if found.requires_grad:
                    outputs.append(found)
            torch.autograd.backward(outputs, [torch.ones_like(each) for each in outputs])
            self.optimiser.step()

    def _record(self, layer: nn.Module, given: tuple[object, ...], found: object) -> None:
        if len(given) != 1 or not isinstance(given[0], Tensor) or not isinstance(found, Tensor):
            return
        x = given[0]
        frozen = all(not p.requires_grad for p in layer.parameters())
        if (layer, frozen) not in self.copies:
            self.copies[layer, frozen] = deepcopy(layer)
            self.copies[layer, frozen]._forward_hooks.clear()
        self.noise.setdefault(tuple(x.shape), torch.randn(x.shape, dtype=x.dtype))
        copy = self.copies[layer, frozen]
        call = _Call(copy, tuple(x.shape), x.requires_grad, torch.is_grad_enabled())
        self.steps[-1].append(call)


class _Call(NamedTuple):
    layer: nn.Module
    shape: tuple[int, ...]
    differentiable: bool
    training: bool


class _Marker:
    """A callback that begins a new list of calls after every step."""

    def __init__(self, steps: list[list[_Call]]) -> None:
        self.steps = steps

    @mv.hookimpl
    def step_end(self) -> None:
        self.steps.append([])
