"""Chance as an argument: every random number of a model comes from a noise source.

A draw has a name and a shape ``(n, B, *event)``: ``n`` samples of ``B`` rows. Draws are made for
all rows of the batch and gathered afterwards, so that holes in one row change no other row.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable

import attrs
import torch
from torch import Tensor

__all__ = [
    "GeneratorNoise",
    "NoiseSource",
    "RowNoise",
    "ScriptedNoise",
    "Step",
    "TrainingNoise",
    "ZeroNoise",
]

_MASK_52 = (1 << 52) - 1


def _key(*parts: Hashable) -> int:
    """A 63-bit key out of names and numbers, the same in every process and on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _normal_quantile(unit: Tensor) -> Tensor:
    result: Tensor = torch.special.ndtri(unit)
    return result


def _laplace_quantile(unit: Tensor) -> Tensor:
    # by the distance to the nearer end, which rounding cannot take to 0
    return (0.5 - unit).sign() * (2.0 * torch.minimum(unit, 1.0 - unit)).log()


class NoiseSource(ABC):
    """Where the random numbers of a model come from.

    Args:
        dtype: Type of what is returned.
        device: Where it is returned.
    """

    def __init__(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        self.dtype = dtype
        self.device = torch.device(device)

    @abstractmethod
    def uniform(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """Draw from the open interval (0, 1); ``shape`` is ``(n, B, *event)``."""

    @abstractmethod
    def batch_uniform(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """Draw from (0, 1) once for the whole batch, the same numbers on every process."""

    def normal(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """Draw from N(0, 1); ``shape`` is ``(n, B, *event)``."""
        return _normal_quantile(self.uniform(name, shape).double()).to(self.dtype)

    def laplace(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """Draw from the Laplace distribution of scale 1; ``shape`` is ``(n, B, *event)``."""
        return _laplace_quantile(self.uniform(name, shape))

    def choice(self, name: Hashable, probabilities: Tensor, n: int) -> Tensor:
        """Allot ``n`` draws of every row to its components by systematic sampling.

        Component s gets ``n p_s`` draws, rounded up or down, and exactly that in expectation.

        Args:
            name: Name of the draw.
            probabilities: ``(B, S)``, rows sum to 1.
            n: Draws per row.

        Returns:
            Component numbers, ``(n, B)``.
        """
        rows, components = probabilities.shape
        start = self.uniform(name, (1, rows)).to(probabilities)
        ticks = torch.arange(n, device=probabilities.device, dtype=probabilities.dtype)
        position = (ticks[:, None] + start) / n
        upper = probabilities.cumsum(dim=1)
        # the last edge is exactly 1 in exact arithmetic; rounding must not lead past the
        # last component that has a share
        chosen = torch.searchsorted(upper.contiguous(), position.T.contiguous(), right=True)
        steps = torch.arange(components, device=upper.device)
        last = torch.where(probabilities > 0, steps, 0).amax(dim=1)
        return torch.minimum(chosen, last[:, None]).T


class RowNoise(NoiseSource):
    """Evaluation: a number depends on (seed, name, sample, row, element) and on nothing else.

    A counter-based generator: the counter is mixed twice by the 64-bit finaliser of Steele,
    Lea & Flood 2014 (splitmix). Batch size, chunk size and other rows change nothing.

    Args:
        seed: Any integer.
        index: ``(B,)`` row numbers in the data set.
        dtype: Type of what is returned.
    """

    def __init__(self, seed: int, index: Tensor, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(dtype, index.device)
        self.seed = seed
        self.index = index.long()

    def uniform(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.uniform`."""
        n, rows, *event = shape
        size = torch.Size(event).numel()
        samples = torch.arange(n, device=self.device)[:, None]
        per_row = _mix(_mix(self.index + _key(self.seed, name)) + _mix(samples + 0x5851F42D))
        elements = _mix(torch.arange(size, device=self.device) + 0x14057B7E)
        bits = _mix(per_row[..., None] + elements)
        return _unit(bits, self.dtype).view(n, rows, *event)

    def normal(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.normal`."""
        return _normal_quantile(self._double(name, shape)).to(self.dtype)

    def laplace(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.laplace`."""
        return _laplace_quantile(self._double(name, shape)).to(self.dtype)

    def batch_uniform(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.batch_uniform`."""
        count = int(torch.Size(shape).numel())
        ticks = torch.arange(count, device=self.device)
        bits = _mix(_mix(ticks + _key(self.seed, name, "batch")))
        return _unit(bits, self.dtype).view(shape)

    def _double(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        return RowNoise(self.seed, self.index, torch.float64).uniform(name, shape)


def _mix(bits: Tensor) -> Tensor:
    """Spread every input bit over all 64 output bits (products wrap around on purpose)."""
    bits = bits + -7046029254386353131
    bits = (bits ^ ((bits >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    bits = (bits ^ ((bits >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return bits ^ ((bits >> 31) & 0x1FFFFFFFF)


def _unit(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn 64 random bits into a number of the open interval (0, 1)."""
    # 52 bits and a half are exact in a double, 53 may round to 1, as may a shorter type
    unit = (((bits >> 12) & _MASK_52).double() + 0.5) * 2.0**-52
    return unit.clamp_max(1.0 - torch.finfo(dtype).eps / 2.0).to(dtype)


class TrainingNoise(NoiseSource):
    """Training: numbers of the *global* batch from (seed, step number, name).

    Every process draws the whole and takes its rows, so the number of processes changes nothing.

    Args:
        seed: Seed of the run.
        number: Number of the step.
        total: Rows of the global batch; None: one process, whatever the batch has.
        rows: Numbers of this process's rows in the global batch, ``(B,)``; None: all.
        dtype: Type of what is returned.
        device: Where numbers are drawn and returned.
    """

    def __init__(
        self,
        seed: int,
        number: int,
        total: int | None = None,
        rows: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(dtype, device)
        self.seed = seed
        self.number = number
        self.total = total
        self.rows = rows
        self._generator = torch.Generator(self.device)

    def uniform(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.uniform`."""
        return self._rows_of(_open_uniform, name, shape)

    def normal(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.normal`."""
        return self._rows_of(torch.randn, name, shape)

    def batch_uniform(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.batch_uniform`."""
        self._generator.manual_seed(_key(self.seed, self.number, name, "batch"))
        return self._drawn(_open_uniform, shape)

    def _rows_of(
        self, draw: Callable[..., Tensor], name: Hashable, shape: tuple[int, ...]
    ) -> Tensor:
        self._generator.manual_seed(_key(self.seed, self.number, name))
        if self.rows is None or self.total is None:
            return self._drawn(draw, shape)
        whole = self._drawn(draw, (shape[0], self.total, *shape[2:]))
        return whole.index_select(1, self.rows)

    def _drawn(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        return draw(shape, generator=self._generator, dtype=self.dtype, device=self.device)


def _open_uniform(
    shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, device: torch.device
) -> Tensor:
    # torch.rand gives multiples of eps / 2, among them 0, whose logarithm and quantiles are
    # infinite: the middle of that cell takes its place
    middle = torch.finfo(dtype).eps / 4.0
    return torch.rand(shape, generator=generator, dtype=dtype, device=device).clamp_min(middle)


class GeneratorNoise(NoiseSource):
    """A plain torch generator: numbers depend on the order of the calls.

    Args:
        generator: The generator, on the device where numbers are wanted.
        dtype: Type of what is returned.
    """

    def __init__(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(dtype, generator.device)
        self.generator = generator

    def uniform(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.uniform`."""
        return _open_uniform(shape, self.generator, self.dtype, self.device)

    def normal(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.normal`."""
        return torch.randn(shape, generator=self.generator, dtype=self.dtype, device=self.device)

    def batch_uniform(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.batch_uniform`."""
        return self.uniform(name, shape)


class ZeroNoise(NoiseSource):
    """Every draw is the location of its distribution; a uniform is one half."""

    def uniform(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.uniform`."""
        return torch.full(shape, 0.5, dtype=self.dtype, device=self.device)

    def normal(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.normal`."""
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def laplace(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.laplace`."""
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def batch_uniform(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.batch_uniform`."""
        return self.uniform(name, shape)


class ScriptedNoise(NoiseSource):
    """Another source with some draws written down: a given component, subset or number.

    Args:
        base: Source of every draw that is not scripted.
        script: Name of a draw -> the tensor to hand out, broadcast to the shape asked for. For
            a choice these are component numbers.
    """

    def __init__(self, base: NoiseSource, script: dict[Hashable, Tensor]) -> None:
        super().__init__(base.dtype, base.device)
        self.base = base
        self.script = script

    def uniform(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.uniform`."""
        return self._scripted(name, shape, self.base.uniform)

    def normal(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.normal`."""
        return self._scripted(name, shape, self.base.normal)

    def laplace(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.laplace`."""
        return self._scripted(name, shape, self.base.laplace)

    def batch_uniform(self, name: Hashable, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.batch_uniform`."""
        return self._scripted(name, shape, self.base.batch_uniform)

    def choice(self, name: Hashable, probabilities: Tensor, n: int) -> Tensor:
        """See `NoiseSource.choice`."""
        if name in self.script:
            return self.script[name].to(self.device).expand(n, probabilities.shape[0])
        return self.base.choice(name, probabilities, n)

    def _scripted(
        self,
        name: Hashable,
        shape: tuple[int, ...],
        draw: Callable[[Hashable, tuple[int, ...]], Tensor],
    ) -> Tensor:
        if name in self.script:
            return self.script[name].to(self.device, self.dtype).expand(shape)
        return draw(name, shape)


@attrs.frozen(kw_only=True)
class Step:
    """Where training stands, and where its random numbers come from.

    Args:
        number: Number of the optimisation step, from 0.
        progress: Share of the stage that is behind, 0 to 1.
        training: False in evaluation: schedules are then 1 and rescaling is off.
        noise: The source of random numbers.
    """

    number: int = 0
    progress: float = 0.0
    training: bool = False
    noise: NoiseSource
