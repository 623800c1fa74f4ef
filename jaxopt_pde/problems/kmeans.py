"""k-means as a stochastic problem: minibatches of data, with the variance of their gradient in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from .. import _validate
from .problem import constants
from .stochastic_problem import StochasticProblem

__all__ = ["kmeans", "planted_clusters"]


def kmeans(
    data: ArrayLike,
    num_clusters: int = 1,
    *,
    batch_size: int = 1,
    replace: bool = True,
    initial: ArrayLike | None = None,
) -> StochasticProblem:
    """The k-means loss f(x) = (1/2n) Σᵢ minⱼ |xⱼ − aᵢ|² of centres x₁ … x_k.

    One example has f_i = ½ |x_{j(i)} − aᵢ|², j(i) the nearest centre, so |∇f_i|² = 2 f_i and s₁(x) = 2f(x) − |∇f(x)|²:
    with the fraction pⱼ of the examples nearest to xⱼ, their mean āⱼ and variance sⱼ, and Dⱼ = |xⱼ − āⱼ|,

        f = ½ Σⱼ pⱼ (sⱼ + Dⱼ²),   ∇ⱼf = pⱼ (xⱼ − āⱼ),   E|e_B|² = (1/b) Σⱼ [pⱼ (sⱼ + Dⱼ²) − pⱼ² Dⱼ²]

    times (n − b)/(n − 1) without replacement. One centre: f = ½ |x − ā|² + s/2 and s₁ = s, the same everywhere: the
    isotropic quadratic, μ = L = 1. More than one: f is not convex; as long as no example changes its centre it is a
    quadratic with Hessian diag(pⱼ) ⊗ I and s₁(x) ≤ Σ pⱼsⱼ + 2 (1 − min pⱼ) F(x), and the constants of the problem are
    those of the quadratic about the local minimiser.

    Args:
        data: examples a [n, m] in [param]. Concrete.
        num_clusters: k ≥ 1.
        batch_size: b, 1 … n.
        replace: whether minibatches are drawn with replacement.
        initial: first centres [k, m] (or flat, [k·m]), in [param]; None: the example farthest from the mean, then each
            time the one farthest from those chosen.

    Returns:
        :class:`StochasticProblem` of dimension k·m: a point is the centres row by row, ``x.reshape(k, m)``, a minibatch
        the indices of its examples [b]. One centre: x* = ā, everything exact. More: ``minimiser`` is the local one that
        Lloyd's iteration reaches from ``initial``, ``minimum`` the loss there (f* itself is unknown), μ = min pⱼ,
        L = max pⱼ, σ² = Σ pⱼsⱼ and ρ = 1 − min pⱼ in its cell, times the factor of b, and ``convex`` False.

    Raises:
        ValueError: data not finite or of another shape, fewer distinct examples than clusters, a cluster left empty on
            the way, a batch size out of range.
        TypeError: a count that is not an integer.

    Example:
        >>> problem = kmeans([[0.0], [2.0], [4.0]], batch_size=2, replace=False)
        >>> print(problem.minimiser, round(problem.minimum, 3), round(problem.noise_variance, 3))
        [2.] 1.333 0.667
        >>> problem = kmeans([[0.0], [1.0], [8.0], [9.0]], 2)
        >>> print(problem.minimiser, problem.minimum, problem.strong_convexity)
        [0.5 8.5] 0.125 0.5

    References:
        A. Oberman, ICERM 2018 (the example). For k > 1 the variance there is that of the mean over the examples of one
        centre: :func:`active_gradient_variance`.
    """
    _validate.check_count("num_clusters", num_clusters)
    data = np.atleast_1d(np.asarray(data, np.float64))
    if data.ndim != 2 or not data.size or not np.all(np.isfinite(data)):
        msg = f"data must be finite, of shape [n, m], got shape {data.shape}: {data!r}."
        raise ValueError(msg)
    count, width = data.shape
    if initial is None:
        initial = _farthest_points(data, num_clusters)
    initial = np.asarray(initial, np.float64)
    if initial.size != num_clusters * width or initial.shape not in ((initial.size,), (num_clusters, width)):
        msg = f"initial must have shape [{num_clusters}, {width}], got {initial.shape}."
        raise ValueError(msg)
    centres, nearest = _lloyd(data, initial.reshape(num_clusters, width))
    fractions = np.bincount(nearest, minlength=num_clusters) / count
    spread = float(np.mean(np.sum((data - centres[nearest]) ** 2, axis=1)))

    def batch_loss_of(point, batch):
        x, a = point.reshape(num_clusters, width), constants(data, point)
        a = a if batch is None else a[batch]
        if num_clusters > 1:
            # By the index of the nearest centre, not by the minimum, whose gradient is shared among equals.
            distances = jnp.sum((jax.lax.stop_gradient(x)[None] - a[:, None]) ** 2, axis=-1)
            x = x[jnp.argmin(distances, axis=1)]
        return 0.5 * jnp.mean(jnp.sum((x - a) ** 2, axis=-1))

    def excess_loss(point):
        return 0.5 * jnp.sum((point - constants(centres[0], point)) ** 2)

    def loss(point):
        if num_clusters == 1:
            return excess_loss(point) + 0.5 * constants(spread, point)
        return batch_loss_of(point, None)

    def example_variance(point):
        if num_clusters == 1:
            return constants(spread, point)
        value, slope = jax.value_and_grad(loss)(point)
        return jnp.maximum(2 * value - jnp.sum(slope**2), 0.0)

    return StochasticProblem(
        name=f"k-means, k = {num_clusters}",
        loss=loss,
        batch_loss=batch_loss_of,
        example_variance=example_variance,
        minimum=0.5 * spread,
        minimiser=centres.ravel(),
        initial=initial.ravel(),
        strong_convexity=fractions.min(),
        smoothness=fractions.max(),
        example_noise_variance=spread,
        example_noise_growth=1 - fractions.min(),
        batch_size=batch_size,
        num_examples=count,
        replace=replace,
        convex=num_clusters == 1,
        excess_loss=excess_loss if num_clusters == 1 else None,
    )


def _farthest_points(data: np.ndarray, num_clusters: int) -> np.ndarray:
    distances = np.sum((data - data.mean(axis=0)) ** 2, axis=1)
    chosen = [int(np.argmax(distances))]
    distances = np.full(len(data), np.inf)
    for _ in range(num_clusters - 1):
        distances = np.minimum(distances, np.sum((data - data[chosen[-1]]) ** 2, axis=1))
        chosen.append(int(np.argmax(distances)))
        if not distances[chosen[-1]] > 0:
            distinct = len(chosen) - 1
            msg = f"num_clusters must be at most the number of distinct examples, {distinct}, got {num_clusters}."
            raise ValueError(msg)
    return data[chosen]


def _lloyd(data: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's iteration until the loss no longer falls: centres and the cluster of each example."""
    shift, least = data.mean(axis=0), np.inf
    data, centres = data - shift, centres - shift
    while True:
        # |a|² does not matter to which centre is nearest, and no array [n, k, m] is made.
        nearest = np.argmin(np.sum(centres**2, axis=1) - 2 * data @ centres.T, axis=1)
        sizes = np.bincount(nearest, minlength=len(centres))
        if not np.all(sizes):
            empty = np.flatnonzero(sizes == 0).tolist()
            msg = (
                "initial must leave no cluster empty: "
                f"no example is nearest to centre {empty}, got {centres + shift!r}."
            )
            raise ValueError(msg)
        totals = np.zeros_like(centres)
        np.add.at(totals, nearest, data)
        centres = totals / sizes[:, None]
        loss = np.sum((data - centres[nearest]) ** 2)
        if not loss < least:
            return centres + shift, nearest
        least = loss


def planted_clusters(
    key: Key[Array, ""] | int,
    num_examples: int,
    num_clusters: int,
    dimension: int,
    *,
    separation: float = 6.0,
    deviation: float = 1.0,
    fractions: ArrayLike | None = None,
) -> tuple[Float[np.ndarray, "n m"], np.ndarray, Float[np.ndarray, "k m"]]:
    """Data drawn about known centres: aᵢ = c_{j(i)} + s ξᵢ, ξᵢ ~ N(0, I).

    The centres are normal, scaled so that the two nearest are ``separation`` deviations apart; one centre is at 0.

    Args:
        key: typed key or integer seed; the same data in float32 and float64. Concrete.
        num_examples: n, at least ``num_clusters``.
        num_clusters: k ≥ 1.
        dimension: m ≥ 1.
        separation: distance of the two nearest centres in units of ``deviation``, > 0.
        deviation: s > 0, of every coordinate, in [param].
        fractions: how much of the data is planted at each centre [k], > 0; None: equal. The counts are rounded to the
            nearest that add up to n.

    Returns:
        Data [n, m], the centre each example was drawn about [n] and the centres [k, m], on the host in float64; in
        the order of the centres.

    Raises:
        ValueError: a number out of range, or an empty cluster: fewer examples than clusters, or a fraction too small.
        TypeError: a count that is not an integer, ``key`` not a key or traced.

    Example:
        >>> data, labels, centres = planted_clusters(0, 100, 4, 2)
        >>> data.shape, labels[:3].tolist(), centres.shape
        ((100, 2), [0, 0, 0], (4, 2))
    """
    for name, value in {"num_clusters": num_clusters, "dimension": dimension}.items():
        _validate.check_count(name, value)
    _validate.check_count("num_examples", num_examples, minimum=num_clusters)
    _validate.check_positive("separation", separation)
    _validate.check_positive("deviation", deviation)
    shares = np.ones(num_clusters) if fractions is None else np.asarray(fractions, np.float64)
    if shares.shape != (num_clusters,) or not np.all(np.isfinite(shares) & (shares > 0)):
        msg = f"fractions must be positive and finite, of shape [{num_clusters}], got {fractions!r}."
        raise ValueError(msg)
    ends = np.rint(np.cumsum(shares) / shares.sum() * num_examples).astype(int)
    sizes = np.diff(ends, prepend=0)
    if not np.all(sizes):
        msg = f"fractions must leave no cluster empty, got {fractions!r} of {num_examples} examples: {sizes.tolist()}."
        raise ValueError(msg)
    if isinstance(key, jax.core.Tracer):
        msg = f"key must be concrete, because the data are made on the host; got {key!r}."
        raise TypeError(msg)
    with jax.ensure_compile_time_eval():
        shape = (num_clusters + num_examples, dimension)
        draws = np.asarray(jax.random.normal(_validate.as_key(key), shape, jnp.float32), np.float64)
    centres, noise = draws[:num_clusters], draws[num_clusters:]
    if num_clusters == 1:
        centres = np.zeros_like(centres)
    else:
        gaps = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
        centres = centres * (separation * deviation / gaps[~np.eye(num_clusters, dtype=bool)].min())
    labels = np.repeat(np.arange(num_clusters), sizes)
    return centres[labels] + deviation * noise, labels, centres
