"""Sampling a product of flow posteriors, many rows and samples at a time.

The target of a row with modalities S is log pi(z) = sum_{m in S} log q_m(z | x_m) - c log p(z),
up to a constant; with c = |S| - 1 the prior counts once. Encoders have run; only flows do here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from multivae_core.noise import NoiseSource
from multivae_core.priors import Prior
from multivae_joint._flows import FlowExperts, mixture_log_prob

__all__ = ["HMC", "Sampled", "divided_out", "log_target", "resample"]

_SAMPLES_AT_ONCE = 16  # not a number of rows: those of a batch must not change a row's draws
_GAMMA, _T0, _KAPPA = 0.05, 10.0, 0.75  # Hoffman & Gelman 2014, section 3.2


@attrs.frozen
class Sampled:
    """Samples of products of experts.

    Args:
        z: ``(n, R, D)``.
        quality: ``(R,)``; of Hamiltonian Monte Carlo the share of accepted moves, of resampling
            the effective number of candidates per sample.
        step_size: ``(R,)`` that moves were made with; None: there are none.
    """

    z: Tensor
    quality: Tensor
    step_size: Tensor | None = None


def divided_out(members: Tensor, rule: str) -> Tensor:
    """How often the prior is divided out of the product of every row, c above, ``(B,)``.

    Args:
        members: ``(B, M)`` bool.
        rule: One of `SUBSET_RULES`.
    """
    count = members.sum(dim=1)
    if rule == "poe_corrected":
        return (count - 1).clamp_min(0)
    return torch.zeros_like(count) - (rule == "poe_with_prior") * (count > 1).to(count.dtype)


def log_target(
    experts: FlowExperts, members: Tensor, prior: Prior, rule: str, z: Tensor
) -> Tensor:
    """Log-density of the product up to a constant, ``(n, R, D)`` -> ``(n, R)`` nats."""
    further = divided_out(members, rule).to(z.dtype)
    return experts.log_probs(z, members).sum(dim=2) - further * prior.log_prob(z)


@attrs.frozen(kw_only=True)
class HMC:
    """Hamiltonian Monte Carlo (Neal 2011) with one chain per row and sample.

    Every chain ends after ``steps`` moves with one sample. In the first half the step size of a
    row is adapted to the acceptance of its own chains (Hoffman & Gelman 2014, eq. 6), and stays
    from then on.

    Args:
        steps: Moves per chain.
        leapfrog: Leapfrog steps per move.
        step_size: What adaptation starts from.
        acceptance: Share of accepted moves that is aimed at.
    """

    steps: int
    leapfrog: int
    step_size: float
    acceptance: float = 0.8

    def run(
        self,
        target: Callable[[Tensor], Tensor],
        start: Tensor,
        rows: Tensor,
        total: int,
        noise: NoiseSource,
    ) -> Sampled:
        """Move from a start to samples of the target.

        Args:
            target: Log-density up to a constant, ``(n, R, D)`` -> ``(n, R)``.
            start: ``(n, R, D)``.
            rows: ``(R,)`` numbers in the batch; numbers are drawn for all of it.
            total: Rows of the batch.
            noise: Source of the random numbers.
        """
        n, _, size = start.shape

        def drawn(draw: Callable[..., Tensor], what: str, move: int, *shape: int) -> Tensor:
            every = draw(("hmc", what, move), (shape[0], total, *shape[1:]))
            return every.index_select(1, rows)

        z, (log_p, slope) = start, _with_slope(target, start)
        log_step = start.new_full((len(rows),), math.log(self.step_size))
        mean_log, error = log_step.clone(), torch.zeros_like(log_step)
        centre, accepted = log_step + math.log(10.0), torch.zeros_like(log_step)
        half = self.steps // 2
        for move in range(self.steps):
            momentum = drawn(noise.normal, "momentum", move, n, size)
            jitter = 0.8 + 0.4 * drawn(noise.uniform, "jitter", move, 1)[0]
            used = (log_step if move < half else mean_log).exp() * jitter
            there = self._leap(target, z, slope, momentum, used[:, None])
            end, end_momentum, end_log_p, end_slope = there
            gain = end_log_p - log_p + 0.5 * (momentum.square() - end_momentum.square()).sum(-1)
            # NaN compares false: a move to nowhere is refused
            chance = torch.where(gain.isfinite(), gain.clamp_max(0.0).exp(), 0.0)
            take = drawn(noise.uniform, "accept", move, n) < chance
            z = torch.where(take[..., None], end, z)
            slope = torch.where(take[..., None], end_slope, slope)
            log_p = torch.where(take, end_log_p, log_p)
            if move < half:
                t = move + 1.0
                share = 1.0 / (t + _T0)
                error = (1.0 - share) * error + share * (self.acceptance - chance.mean(dim=0))
                log_step = centre - error * math.sqrt(t) / _GAMMA
                mean_log = t**-_KAPPA * log_step + (1.0 - t**-_KAPPA) * mean_log
            else:
                accepted = accepted + chance.mean(dim=0) / (self.steps - half)
        return Sampled(z, accepted, mean_log.exp())

    def _leap(
        self,
        target: Callable[[Tensor], Tensor],
        z: Tensor,
        slope: Tensor,
        momentum: Tensor,
        step: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        momentum = momentum + 0.5 * step * slope
        log_p = slope
        for number in range(self.leapfrog):
            z = z + step * momentum
            log_p, slope = _with_slope(target, z)
            last = number + 1 == self.leapfrog
            momentum = momentum + (0.5 if last else 1.0) * step * slope
        return z, momentum, log_p, slope


def resample(
    experts: FlowExperts,
    members: Tensor,
    prior: Prior,
    rule: str,
    candidates: int,
    n: int,
    noise: NoiseSource,
) -> Sampled:
    """Sampling by importance resampling (Rubin 1987): every sample has candidates of its own.

    Candidates are from the mixture of the experts, evenly allotted.

    Args:
        experts: The experts of all rows of the batch.
        members: ``(B, M)`` bool; rows without any get draws of N(0, I).
        prior: The prior.
        rule: How often it counts, one of `SUBSET_RULES`.
        candidates: Per sample.
        n: Samples per row.
        noise: Source of the random numbers.
    """
    found, sizes = [], []
    shares = members.to(experts.encoded.dtype)
    shares = shares / shares.sum(dim=1, keepdim=True).clamp_min(1.0)
    rows, further = len(members), divided_out(members, rule).to(shares.dtype)
    for start in range(0, n, _SAMPLES_AT_ONCE):
        count = min(_SAMPLES_AT_ONCE, n - start)
        name = f"candidates {start}"
        flat, _ = experts.mixture(members, candidates * count, noise, name, prior.latent_dim)
        # an even allotment goes through the experts in turn: so do the candidates of a sample
        z = flat.view(candidates, count, rows, -1)
        each = experts.log_probs(flat, members)
        log_w = each.sum(dim=2) - further * prior.log_prob(flat) - mixture_log_prob(each, shares)
        weights = log_w.view(candidates, count, rows).softmax(dim=0)
        sizes.append(1.0 / weights.square().sum(dim=0))
        edges = weights.cumsum(dim=0)
        mark = noise.uniform((name, "pick"), (count, rows))
        place = (edges < mark).sum(dim=0).clamp_max(candidates - 1)
        chosen = place[None, ..., None].expand(1, count, rows, z.shape[-1])
        found.append(z.gather(0, chosen)[0])
    return Sampled(torch.cat(found), torch.cat(sizes).mean(dim=0))


def _with_slope(target: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """The target and its gradient in z, without a graph into anything else."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        log_p = target(z)
        (slope,) = torch.autograd.grad(log_p.sum(), z)
    return log_p.detach(), slope
