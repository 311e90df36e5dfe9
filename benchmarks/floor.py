"""Bare networks: the work that an objective cannot avoid, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

__all__ = ["bare_decoding", "bare_training"]


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
