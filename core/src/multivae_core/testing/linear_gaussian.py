"""Linear-Gaussian models whose posteriors and likelihoods are known in closed form.

``x_m = W_m z + V_m w_m + b_m + e_m`` with ``z ~ N(0, I)`` or a mixture of Gaussians,
``w_m ~ N(0, I)`` private to modality m, and ``e_m ~ N(0, diag(noise_m^2))``.
"""

from __future__ import annotations

__all__ = ["Affine", "Draw", "GaussianMixture", "LinearGaussian"]

from collections.abc import Iterable, Mapping
from typing import Literal

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from multivae_core.data import IncompleteDataset
from multivae_core.errors import ConfigError, DataError
from multivae_core.testing._gaussian import Affine, FloatArray, GaussianMixture, Joint
from multivae_core.testing._tables import Data, as_table

Latent = Literal["shared"] | tuple[Literal["private"], str]
Rule = Literal["likelihood", "share", "posterior"]


def _array(values: ArrayLike) -> FloatArray:
    return np.array(values, dtype=np.float64, ndmin=1)


def _arrays(values: Mapping[str, ArrayLike]) -> dict[str, FloatArray]:
    return {name: _array(array) for name, array in values.items()}


def _loadings(values: Mapping[str, ArrayLike]) -> dict[str, FloatArray]:
    if not values:  # the sizes of everything else are read off the loadings
        raise ConfigError("must name at least one modality; add one", "loadings")
    return _arrays(values)


@attrs.frozen(eq=False)
class Draw:
    """What `LinearGaussian.draw` made: component ``(n,)``, latents and values by name."""

    component: NDArray[np.int64]
    latents: dict[Latent, FloatArray]
    values: dict[str, FloatArray]


@attrs.frozen(kw_only=True, eq=False)
class LinearGaussian:
    """A linear-Gaussian model with exact sampling, posteriors, likelihoods and experts.

    Every method takes data with holes of any pattern, at modality or element level, as an
    `IncompleteDataset`, a `Batch`, or a mapping of arrays ``(N, d_m)`` in which NaN is a hole and
    an absent name is a modality that nobody has. All arithmetic is float64.

    Args:
        loadings: Modality name -> W_m ``(d_m, D)``.
        offsets: Modality name -> b_m ``(d_m,)``.
        noise: Modality name -> standard deviations ``(d_m,)``.
        private: Modality name -> V_m ``(d_m, P_m)``; only for modalities with private latents.
        weights: ``(C,)`` weights of the mixture that z follows, one component by default.
        means: ``(C, D)``, zero by default.
        scales: ``(C, D)`` standard deviations, one by default.

    Raises:
        ConfigError: Shapes that do not agree, or weights or deviations that are not positive.

    Example:
        >>> model = LinearGaussian.orthogonal({"a": 4, "b": 5}, latent_dim=2)
        >>> data = model.sample(3, seed=0)
        >>> model.log_likelihood(data).shape, model.posterior(data).variance.shape
        ((3,), (3, 2))
    """

    loadings: Mapping[str, FloatArray] = attrs.field(converter=_loadings)
    offsets: Mapping[str, FloatArray] = attrs.field(converter=_arrays)
    noise: Mapping[str, FloatArray] = attrs.field(converter=_arrays)
    private: Mapping[str, FloatArray] = attrs.field(converter=_arrays, factory=dict)
    weights: FloatArray = attrs.field(converter=_array, default=(1.0,))
    means: FloatArray = attrs.field(converter=_array)
    scales: FloatArray = attrs.field(converter=_array)
    _joint: Joint = attrs.field(init=False, repr=False)

    @means.default
    def _centred(self) -> FloatArray:
        return np.zeros((len(self.weights), self.latent_dim))

    @scales.default
    def _standard(self) -> FloatArray:
        return np.ones((len(self.weights), self.latent_dim))

    @_joint.default
    def _stacked(self) -> Joint:
        _check(self)
        return _stack(self)

    @classmethod
    def orthogonal(
        cls,
        features: Mapping[str, int],
        latent_dim: int,
        *,
        signal: float | Mapping[str, ArrayLike] = 1.0,
        noise: float | Mapping[str, ArrayLike] = 0.5,
        private_dim: int | Mapping[str, int] = 0,
        components: int = 1,
        seed: int = 0,
    ) -> LinearGaussian:
        """Return a random model in which every posterior given whole modalities is diagonal.

        The columns of [W_m V_m] are orthogonal in the metric of the noise, so that
        W_m' Psi_m^-1 W_m = diag(signal_m): what modality m adds to the precision of z.

        Args:
            features: Modality name -> d_m, at least D + P.
            latent_dim: D.
            signal: Precision that a modality adds to each coordinate of z and of its private
                latent; one number, or per modality a number or ``(D + P,)``.
            noise: Standard deviation; one number, or per modality a number or ``(d_m,)``.
            private_dim: P; one number, or per modality, 0 for those that are not named.
            components: Of the mixture that z follows, equal in weight; their means are N(0, 4)
                and their standard deviations 0.5 to 1. One component is N(0, I).
            seed: Of loadings, offsets and components.

        Raises:
            ConfigError: A modality with fewer features than latents.
        """
        rng = np.random.default_rng(seed)
        columns, offsets, deviations = {}, {}, {}
        for name, count in features.items():
            own = private_dim.get(name, 0) if isinstance(private_dim, Mapping) else private_dim
            size = latent_dim + own
            if count < size:
                raise ConfigError(
                    f"must be >= {size}, the number of latents, for orthogonal loadings,"
                    f" got {count}; use more features or fewer latents",
                    f"features.{name}",
                )
            basis = np.linalg.qr(rng.normal(size=(count, size)))[0]
            gain = _array(signal[name] if isinstance(signal, Mapping) else signal)
            spread = _array(noise[name] if isinstance(noise, Mapping) else noise)
            deviations[name] = np.broadcast_to(spread, (count,))
            columns[name] = basis * np.sqrt(gain) * deviations[name][:, None]
            offsets[name] = rng.normal(size=count)
        mixture: dict[str, FloatArray] = {}
        if components > 1:
            shape = (components, latent_dim)
            mixture = {
                "weights": np.full(components, 1 / components),
                "means": 2 * rng.normal(size=shape),
                "scales": rng.uniform(0.5, 1, size=shape),
            }
        return cls(
            loadings={name: both[:, :latent_dim] for name, both in columns.items()},
            private={
                name: both[:, latent_dim:]
                for name, both in columns.items()
                if both.shape[1] > latent_dim
            },
            offsets=offsets,
            noise=deviations,
            **mixture,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities, in the order of ``loadings``."""
        return tuple(self.loadings)

    @property
    def latent_dim(self) -> int:
        """The size D of the shared latent."""
        return int(next(iter(self.loadings.values())).shape[-1])

    def draw(self, n: int, seed: int) -> Draw:
        """Return n rows with the latents they were made from."""
        rng = np.random.default_rng(seed)
        component = rng.choice(len(self.weights), size=n, p=self.weights)
        shared = rng.normal(self.means[component], self.scales[component])
        latents: dict[Latent, FloatArray] = {"shared": shared}
        values = {}
        for name, loading in self.loadings.items():
            mean = shared @ loading.T + self.offsets[name]
            if name in self.private:
                own = rng.normal(size=(n, self.private[name].shape[1]))
                latents["private", name] = own
                mean = mean + own @ self.private[name].T
            values[name] = rng.normal(mean, self.noise[name])
        return Draw(component, latents, values)

    def sample(self, n: int, seed: int, *, hidden: float = 0.0) -> IncompleteDataset:
        """Return n rows as a data set; labels are the components of the mixture, if it has many.

        Args:
            n: Number of rows.
            seed: Rows and holes depend on it alone.
            hidden: Share of the modalities that are then hidden, completely at random.
        """
        drawn = self.draw(n, seed)
        labels = drawn.component if len(self.weights) > 1 else None
        data = IncompleteDataset(drawn.values, labels=labels)
        return data.hide(hidden, seed=seed) if hidden else data

    def posterior(self, data: Data, latent: Latent = "shared") -> GaussianMixture:
        """Return the exact posterior of a latent given what each row shows.

        One Gaussian per component of the prior; ``mean``, ``variance`` and ``covariance`` are
        those of the whole. Covariances are diagonal when the model is orthogonal and no modality
        has holes inside.
        """
        return self._joint.condition(*self._table(data))[0].marginal(self._place(latent))

    def log_likelihood(self, data: Data) -> FloatArray:
        """Return the exact log p(what is observed) of each row, ``(N,)`` in nats."""
        return self._joint.condition(*self._table(data))[1]

    def conditional_log_likelihood(
        self, data: Data, given: Iterable[str], targets: Iterable[str]
    ) -> FloatArray:
        """Return the exact log p(x_targets | x_given) of each row, ``(N,)`` in nats.

        Both are names of modalities; of each, what a row observes counts. A row without anything
        of ``given`` has the marginal likelihood of its targets, one without targets has 0.

        Raises:
            DataError: An unknown modality, or one that is both given and a target.
        """
        given, targets = set(given), set(targets)
        wrong = sorted(given & targets) + sorted((given | targets) - set(self.names))
        if wrong:
            raise DataError(
                f"conditional_log_likelihood: {wrong[0]!r} must be one of {', '.join(self.names)}"
                " and either given or a target; change `given` or `targets`"
            )
        x, observed = self._table(data)
        both = observed & self._features(given | targets)
        condition = self._joint.condition
        return condition(x, both)[1] - condition(x, observed & self._features(given))[1]

    def expert(self, name: str, rule: Rule = "posterior", latent: Latent = "shared") -> Affine:
        """Return what one modality alone says about a latent, by the rule of a fusion.

        ``likelihood``: p(x_m | z) as a function of z. A product of these *and* the prior is the
        exact posterior for every subset. ``share``: that times the M-th root of the prior. A
        product without prior is then exact for the full set only. ``posterior``: p(z | x_m), for
        mixtures and single modalities.

        Raises:
            ConfigError: Loadings that are not orthogonal, a coordinate about which the modality
                says nothing under ``likelihood``, or a mixture prior under another rule.
        """
        share = {"likelihood": 0.0, "share": 1 / len(self.names), "posterior": 1.0}[rule]
        weight, gain = self._factor(name, latent)
        place = self._place(latent)
        prior = self._joint.means[:, place], self._joint.variances[:, place]
        if share and len(self.weights) > 1 and latent == "shared":
            raise ConfigError(
                f"must be 'likelihood' under a mixture prior, got {rule!r}; use that rule, or a"
                " model with one component",
                "rule",
            )
        precision = gain + share / prior[1][0]
        if not (precision > 0).all():
            raise ConfigError(
                "must load on every coordinate under the rule 'likelihood'; use a positive signal"
                " or another rule",
                f"loadings.{name}",
            )
        shift = share * prior[0][0] / prior[1][0] - weight @ self.offsets[name]
        return Affine(weight / precision[:, None], shift / precision, 1 / precision)

    def _factor(self, name: str, latent: Latent) -> tuple[FloatArray, FloatArray]:
        """Return W' Psi^-1 ``(D, d)`` and the diagonal of W' Psi^-1 W ``(D,)``."""
        own = self.private.get(name, np.empty((len(self.noise[name]), 0)))
        columns = np.concatenate([self.loadings[name], own], axis=1)
        weight = columns.T / self.noise[name] ** 2
        gram = weight @ columns
        gain = np.diag(gram)
        if not np.allclose(gram, np.diag(gain), rtol=0, atol=1e-9 * gain.max()):
            raise ConfigError(
                "must have orthogonal columns for a diagonal expert; make the model by"
                " LinearGaussian.orthogonal",
                f"loadings.{name}",
            )
        part = slice(self.latent_dim) if latent == "shared" else slice(self.latent_dim, None)
        return weight[part], gain[part]

    def _place(self, latent: Latent) -> slice:
        """Where a latent stands among the stacked ones."""
        start, stop = 0, self.latent_dim
        if latent == "shared":
            return slice(start, stop)
        for name, loading in self.private.items():
            start, stop = stop, stop + loading.shape[1]
            if latent == ("private", name):
                return slice(start, stop)
        raise ConfigError(
            f"must be 'shared' or ('private', name) for a name out of {list(self.private)}, got"
            f" {latent!r}; ask for one of these",
            "latent",
        )

    def _table(self, data: Data) -> tuple[FloatArray, NDArray[np.bool_]]:
        return as_table(data, {name: len(offset) for name, offset in self.offsets.items()})

    def _features(self, names: set[str]) -> NDArray[np.bool_]:
        """``(F,)``: True for the features of these modalities."""
        return np.concatenate([np.full(len(b), m in names) for m, b in self.offsets.items()])


def _stack(model: LinearGaussian) -> Joint:
    """Stack shared and private latents, and the features of all modalities."""
    sizes = [model.latent_dim, *(loading.shape[1] for loading in model.private.values())]
    starts = dict(zip(model.private, np.cumsum(sizes)[:-1], strict=True))
    rows = []
    for name, loading in model.loadings.items():
        row = np.zeros((len(loading), sum(sizes)))
        row[:, : model.latent_dim] = loading
        if name in starts:
            own = model.private[name]
            row[:, starts[name] : starts[name] + own.shape[1]] = own
        rows.append(row)
    rest = (len(model.weights), sum(sizes) - model.latent_dim)
    return Joint(
        loadings=np.concatenate(rows),
        offsets=np.concatenate([model.offsets[name] for name in model.names]),
        noise=np.concatenate([model.noise[name] for name in model.names]) ** 2,
        weights=model.weights,
        means=np.concatenate([model.means, np.zeros(rest)], axis=1),
        variances=np.concatenate([model.scales**2, np.ones(rest)], axis=1),
    )


def _check(model: LinearGaussian) -> None:
    """Refuse shapes that do not agree; the message names the array."""
    shared = (len(model.weights), model.latent_dim)
    wanted: list[tuple[str, FloatArray, tuple[int, ...]]] = [
        ("weights", model.weights, shared[:1]),
        ("means", model.means, shared),
        ("scales", model.scales, shared),
    ]
    for name, loading in model.loadings.items():
        if not {name} <= set(model.offsets) & set(model.noise):
            raise ConfigError("must have offsets and noise as well; add them", f"loadings.{name}")
        count = len(loading)
        wanted.append((f"loadings.{name}", loading, (count, model.latent_dim)))
        wanted.append((f"offsets.{name}", model.offsets[name], (count,)))
        wanted.append((f"noise.{name}", model.noise[name], (count,)))
    for name, own in model.private.items():
        if name not in model.loadings or own.ndim != 2:
            raise ConfigError("must be (d_m, P_m) of a modality with loadings", f"private.{name}")
        wanted.append((f"private.{name}", own, (len(model.loadings[name]), own.shape[1])))
    for path, array, shape in wanted:
        if array.shape != shape:
            raise ConfigError(f"must have shape {shape}, got {array.shape}; reshape it", path)
    positive = {"weights": model.weights, "scales": model.scales}
    positive |= {f"noise.{name}": deviation for name, deviation in model.noise.items()}
    for path, array in positive.items():
        if not (array > 0).all():
            raise ConfigError(f"must be > 0 everywhere, got {array.min()}; raise it", path)
    if abs(model.weights.sum() - 1) > 1e-9:
        raise ConfigError(f"must sum to 1, got {model.weights.sum()}; divide by it", "weights")
