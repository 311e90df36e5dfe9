"""Special functions that torch lacks: incomplete beta, quantiles of counts and of Student's t."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = [
    "betainc", "gamma_quantile", "negative_binomial_cdf", "negative_binomial_quantile",
    "poisson_cdf", "poisson_quantile", "softplus", "stirling_error", "student_t_quantile",
]  # fmt: skip

_HALF_LOG_2PI = 0.9189385332046727
_STIRLING_FROM = 16.0  # from here on the series below is exact to about 1e-14
_PIECE = 1 << 16  # elements per piece of a long search: its working set stays in the cache
_BELOW_ONE = 1.0 - 2.0**-53
_TINY = 1e-300


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)), linear only where that is exact in float64 too."""
    return functional.softplus(x, threshold=40.0)


def stirling_error(x: Tensor) -> Tensor:
    """Return log Gamma(x) - [(x - 1/2) log x - x + log(2 pi)/2] for x > 0, elementwise.

    What is left of log Gamma when its large parts are taken out by hand. Densities written with
    it do not subtract two large logarithms of Gamma from each other, which in float32 would
    leave few digits (Loader 2000, "Fast and accurate computation of binomial probabilities").
    """
    value: Tensor = _StirlingError.apply(x)  # type: ignore[no-untyped-call]
    return value


class _StirlingError(torch.autograd.Function):
    """Derivatives by hand: half the time of recording every step, in the hot path of counts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        small = x.clamp(max=_STIRLING_FROM)
        direct = torch.lgamma(small) - (small - 0.5) * torch.log(small) + small - _HALF_LOG_2PI
        y = 1.0 / x.clamp(min=_STIRLING_FROM)
        y2 = y * y
        series = y * (1 / 12 - y2 * (1 / 360 - y2 * (1 / 1260 - y2 / 1680)))
        return torch.where(x < _STIRLING_FROM, direct, series)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        small = x.clamp(max=_STIRLING_FROM)
        direct = torch.digamma(small) - torch.log(small) + 0.5 / small
        y2 = x.clamp(min=_STIRLING_FROM).pow(-2)
        series = -y2 * (1 / 12 - y2 * (1 / 120 - y2 * (1 / 252 - y2 / 240)))
        return grad * torch.where(x < _STIRLING_FROM, direct, series)


@torch.no_grad()
def betainc(a: Tensor, b: Tensor, x: Tensor, complement: Tensor | None = None) -> Tensor:
    """Return the regularised incomplete beta function I_x(a, b), elementwise, in float64.

    Continued fraction DLMF 8.17.22 by the modified Lentz method, on the side of the mean where
    it converges fast; the number of terms grows with the square root of max(a, b).

    Args:
        a: First parameter, > 0; all arguments broadcast.
        b: Second parameter, > 0.
        x: Upper limit, between 0 and 1.
        complement: 1 - x, where the caller knows it better than the subtraction would.

    Returns:
        Probabilities, float64. Not differentiable.
    """
    y = 1.0 - _double(x) if complement is None else _double(complement)
    a, b, x, y = torch.broadcast_tensors(_double(a), _double(b), _double(x), y)
    mirrored = x * (a + b + 2.0) > a + 1.0
    a, b = torch.where(mirrored, b, a), torch.where(mirrored, a, b)
    x, y = torch.where(mirrored, y, x), torch.where(mirrored, x, y)
    log_front = a * torch.log(x) + b * torch.log(y) - _log_beta(a, b) - torch.log(a)
    value = torch.exp(log_front) * _beta_fraction(a, b, x)
    return torch.where(mirrored, 1.0 - value, value).clamp(0.0, 1.0)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    """Return log B(a, b); the large parameter enters by differences that do not cancel."""
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    growth = (high + low - 0.5) * torch.log1p(low / high) + low * torch.log(high) - low
    rising = growth + stirling_error(high + low) - stirling_error(high)
    return torch.lgamma(low) - rising


def _beta_fraction(a: Tensor, b: Tensor, x: Tensor, terms: int = 20_000) -> Tensor:
    """Evaluate the continued fraction of the incomplete beta function."""
    shape = x.shape
    a, b, x = a.reshape(-1), b.reshape(-1), x.reshape(-1)
    c = torch.ones_like(x)
    d = 1.0 / _nonzero(1.0 - (a + b) * x / (a + 1.0))
    value, found = d, d.clone()
    place = torch.arange(x.numel(), device=x.device)
    for m in range(1, terms):
        even = m * (b - m) * x / ((a + (2 * m - 1)) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + (2 * m + 1)))
        for numerator in (even, odd):
            d = 1.0 / _nonzero(1.0 + numerator * d)
            c = _nonzero(1.0 + numerator / c)
            value = value * (c * d)
        if m % 8 == 0:  # a look costs a pass and, on a GPU, a wait; NaN counts as finished
            going = ((c * d - 1.0).abs() > 1e-14).nonzero().squeeze(1)
            if going.numel() < 0.7 * x.numel():
                found.index_copy_(0, place, value)
                if going.numel() == 0:
                    break
                place, a, b, x, c, d, value = (
                    t.index_select(0, going) for t in (place, a, b, x, c, d, value)
                )
    return found.view(shape)


def _nonzero(x: Tensor) -> Tensor:
    """Keep a denominator of Lentz's method off zero."""
    return torch.where(x.abs() < _TINY, _TINY, x)


def _double(x: Tensor) -> Tensor:
    """Move to float64, on the CPU where the device has no such type."""
    return x.detach().to("cpu" if x.device.type == "mps" else x.device, torch.float64)


def student_t_quantile(p: float, df: Tensor) -> Tensor:
    """Return the quantile of the standard Student t distribution, float64, elementwise in df.

    Bisects w = log(t^2 / df) in P(|T| > t) = I_y(df / 2, 1/2) with y = 1 / (1 + exp(w)).

    Args:
        p: Probability, strictly between 0 and 1.
        df: Degrees of freedom, > 0, any shape.
    """
    nu = _double(df)
    half, tail = torch.full_like(nu, 0.5), 2.0 * min(p, 1.0 - p)
    low, high = -80.0 - torch.log(nu), 5.0 - 2.0 * math.log(tail) * (1.0 + 1.0 / nu)
    for _ in range(64):
        w = 0.5 * (low + high)
        beyond = betainc(0.5 * nu, half, torch.sigmoid(-w), torch.sigmoid(w)) > tail
        low, high = torch.where(beyond, w, low), torch.where(beyond, high, w)
    t = torch.where(low > -80.0 - torch.log(nu), torch.sqrt(nu) * torch.exp(0.5 * low), 0.0)
    return t if p > 0.5 else -t


@torch.no_grad()
def gamma_quantile(p: Tensor, shape: Tensor) -> Tensor:
    """Return the logarithm of the quantile of Gamma(shape, rate 1), elementwise, float64.

    Newton's method on log P, in the upper tail on log Q, as functions of log x: both are concave,
    so that it converges from any start. The logarithm, because for a small shape the quantile
    itself is below the smallest double.

    Args:
        p: Probabilities, strictly between 0 and 1; broadcast against ``shape``.
        shape: Shape parameter, > 0.
    """
    p, a = torch.broadcast_tensors(_double(p).clamp(max=_BELOW_ONE), _double(shape))
    log_gamma = torch.lgamma(a)
    # P(a, x) <= x^a / Gamma(a + 1) gives a lower bound, exact for small x; Wilson & Hilferty
    # 1931 is good for the rest
    bound = (torch.log(p) + log_gamma + torch.log(a)) / a
    root = 1.0 - 1.0 / (9.0 * a) + torch.special.ndtri(p) / (3.0 * a.sqrt())
    rest = torch.log(a) + 3.0 * torch.log(root.clamp(min=0.2))
    y = torch.where(root < 0.2, bound, torch.maximum(bound, rest))
    upper = p > 0.9
    goal = torch.where(upper, torch.log1p(-p), torch.log(p))
    for _ in range(40):
        x = torch.exp(y)
        below, above = torch.special.gammainc(a, x), torch.special.gammaincc(a, x)
        value = torch.where(upper, above, below).clamp(min=_TINY)
        slope = torch.exp(a * y - x - log_gamma) / value
        gap = torch.log(value) - goal
        move = torch.where(upper, gap, -gap) / slope.clamp(min=_TINY)
        # where x underflows the bound is exact; a leap upwards could end where Q underflows
        move = torch.where(bound < -600.0, 0.0, move.clamp(max=2.0))
        y = y + move
        if not bool((move.abs() > 1e-12 * (1.0 + y.abs())).any()):
            break
    return y


def poisson_cdf(k: Tensor, rate: Tensor) -> Tensor:
    """Return P(X <= k) of a Poisson count, for whole k >= -1, float64."""
    k, rate = torch.broadcast_tensors(_double(k), _double(rate))
    return torch.where(k < 0, 0.0, torch.special.gammaincc(k.clamp(min=0) + 1.0, rate))


def negative_binomial_cdf(k: Tensor, log_mean: Tensor, log_size: Tensor) -> Tensor:
    """Return P(X <= k) of a negative binomial count, for whole k >= -1, float64.

    Args:
        k: Counts.
        log_mean: Log of the mean.
        log_size: Log of the size r; the variance is mean + mean^2 / r.
    """
    k, size, logit = _double(k), _double(log_size).exp(), _double(log_size) - _double(log_mean)
    up_to = betainc(size, k.clamp(min=0) + 1.0, torch.sigmoid(logit), torch.sigmoid(-logit))
    return torch.where(k < 0, 0.0, up_to)


def poisson_quantile(p: Tensor | float, rate: Tensor) -> Tensor:
    """Return the smallest count k with P(X <= k) >= p; float64, broadcast over p and rate."""
    rate = _double(rate)
    return _smallest(poisson_cdf, p, rate, rate, rate)


def negative_binomial_quantile(p: Tensor | float, log_mean: Tensor, log_size: Tensor) -> Tensor:
    """Return the smallest count k with P(X <= k) >= p; float64, broadcast over the arguments."""
    log_mean, log_size = torch.broadcast_tensors(_double(log_mean), _double(log_size))
    mean = torch.exp(log_mean)
    variance = mean * (1.0 + torch.exp(log_mean - log_size))
    return _smallest(negative_binomial_cdf, p, mean, variance, log_mean, log_size)


@torch.no_grad()
def _smallest(
    cdf: Callable[..., Tensor],
    p: Tensor | float,
    mean: Tensor,
    variance: Tensor,
    *parameters: Tensor,
) -> Tensor:
    """Return the smallest whole k >= 0 with cdf(k, *parameters) >= p, elementwise.

    Starts at the guess of Cornish & Fisher 1938, gallops away from it until the answer is
    bracketed, then bisects; an element that is done leaves the search.
    """
    q = torch.as_tensor(p, dtype=torch.float64, device=mean.device).clamp(max=_BELOW_ONE)
    shape = torch.broadcast_shapes(q.shape, mean.shape)
    z = torch.special.ndtri(q)
    # standard deviation times skewness is 2 variance / mean - 1 for both distributions
    skewed = (2.0 * variance / mean - 1.0) * (z * z - 1.0) / 6.0
    guess = torch.nan_to_num(mean + variance.sqrt() * z + skewed, nan=0.0).clamp(min=0.0).floor()
    flat = [tensor.expand(shape).reshape(-1) for tensor in (guess, q, *parameters)]
    pieces = zip(*(tensor.split(_PIECE) for tensor in flat), strict=True)
    found = [_search(cdf, *piece) for piece in pieces]
    return torch.cat(found).view(shape)


def _search(cdf: Callable[..., Tensor], k: Tensor, p: Tensor, *parameters: Tensor) -> Tensor:
    """Gallop and bisect from ``k``; everything is flat and of one length."""
    found, place = k.clone(), torch.arange(k.numel(), device=k.device)
    low, high = torch.full_like(k, -1.0), torch.full_like(k, torch.inf)
    step = 1.0
    for _ in range(300):
        short = cdf(k, *parameters) < p
        low, high = torch.where(short, k, low), torch.where(short, high, k)
        found.index_copy_(0, place, torch.where(high < torch.inf, high, k))
        active = (high - low > 1.0).nonzero().squeeze(1)
        if active.numel() == 0:
            break
        leap = torch.where(short, k + step, k - step)
        k = torch.where((leap > low) & (leap < high), leap, torch.floor(0.5 * (low + high)))
        step = 2.0 * step
        place, k, p, low, high, *parameters = (  # type: ignore[assignment]
            t.index_select(0, active) for t in (place, k, p, low, high, *parameters)
        )
    return found
