"""Exact conditioning in linear-Gaussian models, for every pattern of holes."""

from __future__ import annotations

__all__ = ["Affine", "FloatArray", "GaussianMixture", "Joint"]

import attrs
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@attrs.frozen(eq=False)
class Affine:
    """A Gaussian whose mean is affine in the data and whose variance does not depend on them.

    Args:
        weight: ``(D, d)``.
        bias: ``(D,)``.
        variance: ``(D,)``.
    """

    weight: FloatArray
    bias: FloatArray
    variance: FloatArray

    def __call__(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return mean and variance, each ``(N, D)``, for data ``(N, d)``."""
        mean = x @ self.weight.T + self.bias
        return mean, np.broadcast_to(self.variance, mean.shape)

    def widened(self, factor: float) -> Affine:
        """Return the same with all standard deviations times the factor."""
        return attrs.evolve(self, variance=self.variance * factor**2)


@attrs.frozen(eq=False)
class GaussianMixture:
    """A mixture of C Gaussians for each of N rows; one component is a plain Gaussian.

    Args:
        log_weights: ``(N, C)``; each row sums to one in the exponential.
        means: ``(N, C, D)``.
        covariances: ``(N, C, D, D)``.
    """

    log_weights: FloatArray
    means: FloatArray
    covariances: FloatArray

    @property
    def mean(self) -> FloatArray:
        """``(N, D)``: mean over the components."""
        mean: FloatArray = np.einsum("nc,ncd->nd", np.exp(self.log_weights), self.means)
        return mean

    @property
    def covariance(self) -> FloatArray:
        """``(N, D, D)``: covariance within plus between components."""
        weights = np.exp(self.log_weights)
        apart = self.means - self.mean[:, None]
        within: FloatArray = np.einsum("nc,ncde->nde", weights, self.covariances)
        between: FloatArray = np.einsum("nc,ncd,nce->nde", weights, apart, apart)
        return within + between

    @property
    def variance(self) -> FloatArray:
        """``(N, D)``: the diagonal of `covariance`."""
        return np.diagonal(self.covariance, axis1=1, axis2=2)

    def marginal(self, part: slice) -> GaussianMixture:
        """Return the mixture of some of the D coordinates."""
        return GaussianMixture(
            self.log_weights, self.means[..., part], self.covariances[..., part, part]
        )


@attrs.frozen(eq=False, kw_only=True)
class Joint:
    """``x = L u + b + e`` with ``u`` a mixture of C diagonal Gaussians, everything stacked.

    Args:
        loadings: L ``(F, U)``.
        offsets: b ``(F,)``.
        noise: Variances of e ``(F,)``.
        weights: ``(C,)``.
        means: ``(C, U)``.
        variances: ``(C, U)``.
    """

    loadings: FloatArray
    offsets: FloatArray
    noise: FloatArray
    weights: FloatArray
    means: FloatArray
    variances: FloatArray

    def condition(self, x: FloatArray, observed: BoolArray) -> tuple[GaussianMixture, FloatArray]:
        """Return p(u | observed x) and log p(observed x) ``(N,)`` in nats.

        Rows with the same holes are solved together; nothing under a hole is read.

        Args:
            x: ``(N, F)``.
            observed: ``(N, F)``.
        """
        rows, (components, latents) = len(x), self.means.shape
        log_joint = np.empty((rows, components))
        means = np.empty((rows, components, latents))
        covariances = np.empty((rows, components, latents, latents))
        patterns, which = np.unique(observed, axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            (members,) = np.nonzero(which.reshape(-1) == number)
            solved = self._solve(x[np.ix_(members, pattern)], pattern)
            log_joint[members], means[members], covariances[members] = solved
        log_joint += np.log(self.weights)
        log_density = np.logaddexp.reduce(log_joint, axis=1)
        return GaussianMixture(log_joint - log_density[:, None], means, covariances), log_density

    def _solve(
        self, x: FloatArray, pattern: BoolArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return log p(x | c) ``(R, C)``, means ``(R, C, U)`` and covariances ``(C, U, U)``.

        By Woodbury and the determinant lemma: matrices of the size of the latents, not of x.
        """
        loadings, noise = self.loadings[pattern], self.noise[pattern]
        residual = x - self.offsets[pattern]
        scaled = loadings / noise[:, None]
        identity = np.eye(self.loadings.shape[1])
        precision = identity / self.variances[:, None] + loadings.T @ scaled  # (C, U, U)
        covariance = np.asarray(np.linalg.inv(precision), dtype=np.float64)
        information = (residual @ scaled)[:, None] + self.means / self.variances  # (R, C, U)
        means: FloatArray = np.einsum("cuv,rcv->rcu", covariance, information)
        squares: FloatArray = (
            (residual**2 / noise).sum(axis=1)[:, None]
            + (self.means**2 / self.variances).sum(axis=1)
            - (information * means).sum(axis=2)
        )
        log_volume: FloatArray = (
            np.log(2 * np.pi * noise).sum()
            + np.log(self.variances).sum(axis=1)
            + np.linalg.slogdet(precision)[1]
        )
        return -(log_volume + squares) / 2, means, covariance
