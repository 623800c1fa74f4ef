"""Lipschitz functions through labelled points: McShane-Whitney extension, Lip(u0) of a data set, fill distance."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _validate
from ._checks import check_norm

__all__ = ["LipschitzExtension", "fill_distance", "lipschitz_constant", "lipschitz_extension"]

# Numbers in one chunk of differences x − xᵢ, should XLA not fuse them away: 64 MiB in float32.
_CHUNK_NUMBERS = 2**24


class LipschitzExtension(NamedTuple):
    """The extremal Lipschitz functions through the data, at queries.

    Attributes:
        upper: minᵢ uᵢ + L|x − xᵢ| [m] or [m, k], above every other L-Lipschitz interpolant (McShane).
        lower: maxᵢ uᵢ − L|x − xᵢ|, below every other (Whitney).
        midpoint: their mean, whose error against any L-Lipschitz u0 is at most L·fill, half that of the extremes.
    """

    upper: Float[Array, "m ..."]
    lower: Float[Array, "m ..."]
    midpoint: Float[Array, "m ..."]


def lipschitz_extension(
    points: Float[Array, "n ..."],
    labels: Float[Array, "n ..."],
    *,
    lipschitz: float | Float[Array, ""],
    norm: float | str = 2,
    chunk_size: int | None = None,
    check: bool = True,
) -> Callable[[Float[Array, "m ..."]], LipschitzExtension]:
    r"""The largest and the smallest L-Lipschitz function through (xᵢ, uᵢ), and their mean.

        u⁺(x) = minᵢ uᵢ + L ‖x − xᵢ‖,   u⁻(x) = maxᵢ uᵢ − L ‖x − xᵢ‖,   u⁻ ≤ u ≤ u⁺ for every L-Lipschitz interpolant u.

    They are the worst minimisers of the clean-label objective: any two of them differ by at most 2 L dist(x, {xᵢ}), so
    ‖u0 − u‖∞ ≤ 2 L·fill for the :func:`fill_distance`, (log n/n)^{1/m} for n random points on a manifold of
    dimension m (that of the data, whatever the number of labels). All points enter at every query: a few nearest ones
    are not enough.

    Vector labels [n, k] are extended one component at a time, which is L-Lipschitz from ‖·‖ to the **max-norm** of
    the labels. To the Euclidean norm it may be √k times steeper; an extension that keeps L there exists (Kirszbraun)
    but has no such formula.

    Args:
        points: xᵢ [n ≥ 1, ...], trailing axes flattened.
        labels: uᵢ [n] or [n, k].
        lipschitz: L ≥ 0 in [label/input].
        norm: on the inputs: 1, 2 or inf.
        chunk_size: queries in one pass; None chooses it so that n·d·chunk stays below 2²⁴ numbers.
        check: whether to compare the labels' own :func:`lipschitz_constant` (max-norm) with L, outside of traced
            functions; it takes n² distances. Unchecked labels steeper than L are not interpolated: u⁺ is then the
            largest L-Lipschitz function *below* the labels, u⁻ the smallest above.

    Returns:
        ``extend(queries)``: queries [m, ...] of the trailing shape of ``points`` → :class:`LipschitzExtension`. Pure;
        it may be jitted and differentiated.

    Raises:
        ValueError: labels steeper than L (also two labels at one point), shapes that do not fit, ``lipschitz`` < 0,
            an unknown norm.

    Example:
        >>> import jax.numpy as jnp
        >>> extend = lipschitz_extension(jnp.array([0.0, 1.0]), jnp.array([0.0, 0.0]), lipschitz=2.0)
        >>> upper, lower, midpoint = extend(jnp.array([0.0, 0.5, 2.0]))
        >>> print(upper, lower)
        [0. 1. 2.] [ 0. -1. -2.]

    References:
        McShane, *Extension of range of functions*, Bull. AMS 1934. Whitney, *Analytic extensions of differentiable
        functions defined in closed sets*, Trans. AMS 1934. Oberman & Calder, arXiv:1808.09540 (the theorem).
    """
    norm = check_norm(norm)
    flat, columns = _flat_points("points", points), _columns(labels, len(points))
    _validate.check_nonnegative("lipschitz", lipschitz)
    if chunk_size is not None:
        _validate.check_count("chunk_size", chunk_size)
    # Not points and labels: concrete ones that a traced function closes over are tracers once reshaped.
    if check and not any(isinstance(value, jax.core.Tracer) for value in (flat, columns, lipschitz)):
        _check_feasible(flat, columns, float(lipschitz), norm)
    trailing, slope = jnp.shape(points)[1:], jnp.asarray(lipschitz, flat.dtype)

    def extend(queries: Float[Array, "m ..."]) -> LipschitzExtension:
        if jnp.ndim(queries) == 0 or jnp.shape(queries)[1:] != trailing:
            msg = f"queries must have shape [m, {', '.join(map(str, trailing))}], got {jnp.shape(queries)}."
            raise ValueError(msg)
        rows = _flat_points("queries", queries)

        def one(x: Array) -> tuple[Array, Array]:
            reach = slope * _distances(x, flat, norm)[:, None]
            return (columns + reach).min(0), (columns - reach).max(0)

        upper, lower = jax.lax.map(one, rows, batch_size=chunk_size or _chunk(flat))
        shape = (rows.shape[0], *jnp.shape(labels)[1:])
        upper, lower = upper.reshape(shape), lower.reshape(shape)
        return LipschitzExtension(upper, lower, lower + (upper - lower) / 2)

    return extend


def lipschitz_constant(
    points: Float[Array, "n ..."],
    labels: Float[Array, "n ..."],
    *,
    norm: float | str = 2,
    output_norm: float | str = math.inf,
    chunk_size: int | None = None,
) -> Float[Array, ""]:
    r"""Lip(u0) of a data set: max_{i≠j} ‖uᵢ − uⱼ‖_Y/‖xᵢ − xⱼ‖_X, the smallest L any interpolant can have.

    Args:
        points: xᵢ [n ≥ 1, ...], trailing axes flattened.
        labels: uᵢ [n] or [n, k].
        norm: X, on the inputs: 1, 2 or inf.
        output_norm: Y, on vector labels: 1, 2 or inf. Only for the max-norm does :func:`lipschitz_extension` keep
            this constant.
        chunk_size: rows of the n×n table in one pass; None chooses it.

    Returns:
        A number in [label/input]; inf if two labels differ at one point, 0 if n = 1.

    Raises:
        ValueError: shapes that do not fit, an unknown norm.

    Example:
        One-hot labels are 1 apart in the max-norm and √2 in the Euclidean one:

        >>> import jax.numpy as jnp
        >>> points = jnp.array([[0.0, 0.0], [0.0, 4.0]])
        >>> constants = [lipschitz_constant(points, jnp.eye(2), output_norm=q) for q in (jnp.inf, 2)]
        >>> print(f"{constants[0]:.3f} {constants[1]:.3f}")
        0.250 0.354

    References:
        Oberman & Calder, arXiv:1808.09540.
    """
    norm, output_norm = check_norm(norm), check_norm(output_norm, name="output_norm")
    flat, columns = _flat_points("points", points), _columns(labels, len(points))
    if chunk_size is not None:
        _validate.check_count("chunk_size", chunk_size)
    return _steepest(flat, columns, norm, output_norm, chunk_size or _chunk(flat))


def fill_distance(
    points: Float[Array, "n ..."],
    queries: Float[Array, "m ..."],
    *,
    norm: float | str = 2,
    chunk_size: int | None = None,
) -> Float[Array, ""]:
    """max_q minᵢ ‖q − xᵢ‖: how far a query may be from the data, the theorem's sup_x dist(x, {xᵢ}) from below.

    Args:
        points: xᵢ [n ≥ 1, ...], trailing axes flattened.
        queries: [m ≥ 1, ...], a fine grid of the domain; the supremum exceeds the maximum by at most their own fill.
        norm: on the inputs: 1, 2 or inf.
        chunk_size: queries in one pass; None chooses it.

    Returns:
        A number in [input].

    Raises:
        ValueError: shapes that do not fit, an unknown norm.

    Example:
        >>> import jax.numpy as jnp
        >>> float(fill_distance(jnp.array([0.0, 1.0]), jnp.linspace(0.0, 1.5, 4)))
        0.5

    References:
        Oberman & Calder, arXiv:1808.09540. Wendland, *Scattered data approximation*, 2005, chapter 1.
    """
    norm = check_norm(norm)
    flat, rows = _flat_points("points", points), _flat_points("queries", queries)
    if flat.shape[1] != rows.shape[1]:
        msg = f"queries must have the trailing shape of points, {jnp.shape(points)[1:]}, got {jnp.shape(queries)}."
        raise ValueError(msg)
    if chunk_size is not None:
        _validate.check_count("chunk_size", chunk_size)
    nearest = lambda x: _distances(x, flat, norm).min()
    return jax.lax.map(nearest, rows, batch_size=chunk_size or _chunk(flat)).max()


def _flat_points(name: str, points: Array) -> Float[Array, "n d"]:
    points = jnp.asarray(points)
    _validate.check_float_tree(name, points)
    if points.ndim == 0 or points.shape[0] == 0:
        msg = f"{name} must have shape [n ≥ 1, ...], got {points.shape}."
        raise ValueError(msg)
    return points.reshape(points.shape[0], -1)


def _columns(labels: Any, num_points: int) -> Float[Array, "n k"]:
    labels = jnp.asarray(labels)
    _validate.check_float_tree("labels", labels)
    if labels.ndim not in (1, 2) or labels.shape[0] != num_points:
        msg = f"labels must have shape [{num_points}] or [{num_points}, k], got {labels.shape}."
        raise ValueError(msg)
    return labels.reshape(num_points, -1)


def _chunk(points: Array) -> int:
    return max(1, _CHUNK_NUMBERS // points.size)


def _distances(x: Float[Array, " d"], points: Float[Array, "n d"], norm: float) -> Float[Array, " n"]:
    """‖x − xᵢ‖ from the differences: |x|² + |xᵢ|² − 2x·xᵢ would cancel for near points, which are those that matter."""
    differences = jnp.abs(points - x[None])
    if norm == 1:
        return differences.sum(1)
    if math.isinf(norm):
        return differences.max(1)
    # The derivative at a data point is 0 (a subgradient of the distance), not NaN.
    squares = jnp.sum(differences**2, axis=1)
    zero = squares == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squares)))


@functools.partial(jax.jit, static_argnames=("norm", "output_norm", "chunk_size"))
def _steepest(points: Array, labels: Array, norm: float, output_norm: float, chunk_size: int) -> Array:
    def row(pair: tuple[Array, Array]) -> Array:
        x, u = pair
        rises, runs = _distances(u, labels, output_norm), _distances(x, points, norm)
        vertical = jnp.where(rises > 0, jnp.inf, 0)
        zero = runs == 0  # not runs > 0: NaN must come out as NaN
        return jnp.where(zero, vertical, rises / jnp.where(zero, 1, runs)).max()

    return jax.lax.map(row, (points, labels), batch_size=chunk_size).max()


def _check_feasible(points: Array, labels: Array, lipschitz: float, norm: float) -> None:
    steepest = float(_steepest(points, labels, norm, math.inf, _chunk(points)))
    # Two roundings of L: that of the quotient here, and that of the sum of d terms in the distance.
    slack = 1 + 4 * (points.shape[1] + 2) * float(np.finfo(points.dtype).eps)
    if not steepest <= lipschitz * slack:
        msg = (
            f"lipschitz must be at least the Lipschitz constant of the labels, {steepest:.6g} "
            f"(inf: one point with two labels), got {lipschitz!r}."
        )
        raise ValueError(msg)
