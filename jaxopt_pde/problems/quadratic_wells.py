"""Wells that are each a quadratic: their soft minimum is closed under the viscous flow, their minimum under T = 0."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .. import _validate
from .problem import Problem, constants, sort_by_value

__all__ = ["hard_minimum", "sharp_and_wide", "soft_minimum"]


class _Wells(NamedTuple):
    """qᵢ(x) = ½ (x − cᵢ)'Aᵢ(x − cᵢ) + hᵢ, with Aᵢ = Qᵢ diag(λᵢ) Qᵢ'."""

    centres: Float[np.ndarray, "m d"]
    eigenvalues: Float[np.ndarray, "m d"]
    bases: Float[np.ndarray, "m d d"]
    heights: Float[np.ndarray, " m"]

    def relaxed(self, point, smoothing_time, temperature) -> Float[Array, " m"]:
        """The relaxed loss of every well; at t = 0 the wells themselves."""
        centres, lam, bases, heights = (constants(part, point) for part in self)
        z = jnp.einsum("mij,mi->mj", bases, point[None, :] - centres)
        damped = 1 + smoothing_time * lam
        logarithms = temperature * jnp.log1p(smoothing_time * lam)
        return heights + 0.5 * jnp.sum(lam * z**2 / damped + logarithms, axis=1)


def _wells(centres: ArrayLike, hessians: ArrayLike, heights: ArrayLike) -> _Wells:
    centres = np.asarray(centres, np.float64)
    if centres.ndim != 2 or not centres.size or not np.all(np.isfinite(centres)):
        msg = f"centres must be finite, of shape [m, d], got {centres!r}."
        raise ValueError(msg)
    count, dimension = centres.shape
    hessians = np.asarray(hessians, np.float64)
    if hessians.ndim == 1:
        hessians = np.tile(hessians[:, None], (1, dimension))
    if hessians.ndim == 2:
        hessians = hessians[:, :, None] * np.eye(dimension)
    if hessians.shape != (count, dimension, dimension) or not np.all(np.isfinite(hessians)):
        shapes = f"[{count}], [{count}, {dimension}] or [{count}, {dimension}, {dimension}]"
        msg = f"hessians must be finite, of shape {shapes}, got {hessians!r}."
        raise ValueError(msg)
    if not np.allclose(hessians, hessians.swapaxes(1, 2), rtol=1e-12):
        msg = f"hessians must be symmetric, got {hessians!r}."
        raise ValueError(msg)
    eigenvalues, bases = np.linalg.eigh(hessians)
    if not np.all(eigenvalues > 0):
        msg = f"hessians must be positive definite, got eigenvalues {eigenvalues!r}."
        raise ValueError(msg)
    heights = np.asarray(heights, np.float64)
    if heights.shape != (count,) or not np.all(np.isfinite(heights)):
        msg = f"heights must be finite, of shape [{count}], got {heights!r}."
        raise ValueError(msg)
    return _Wells(centres, eigenvalues, bases, heights)


def _matrices(wells: _Wells) -> np.ndarray:
    return np.einsum("mij,mj,mkj->mik", wells.bases, wells.eigenvalues, wells.bases)


def _values(wells: _Wells, points: np.ndarray) -> np.ndarray:
    """Every well at every point [n, d] → [n, m], on the host in float64."""
    z = np.einsum("mij,nmi->nmj", wells.bases, points[:, None] - wells.centres)
    return wells.heights + 0.5 * np.sum(wells.eigenvalues * z**2, axis=2)


def _box(wells: _Wells, minimum: float, rise: float) -> tuple[np.ndarray, np.ndarray]:
    """A box that holds, for every well, its points up to ``rise`` above the global minimum."""
    depth = np.maximum(minimum + rise - wells.heights, 0.0)
    reach = np.sqrt(2 * depth[:, None] * np.diagonal(np.linalg.inv(_matrices(wells)), axis1=1, axis2=2))
    return (wells.centres - reach).min(axis=0), (wells.centres + reach).max(axis=0)


def hard_minimum(
    centres: ArrayLike, hessians: ArrayLike, heights: ArrayLike, *, rise: float = 2.0
) -> Problem:
    """The minimum of quadratic wells, whose relaxation at T = 0 is the minimum of their Moreau envelopes.

    f = minᵢ qᵢ, qᵢ(x) = ½ (x − cᵢ)'Aᵢ(x − cᵢ) + hᵢ, and u = minᵢ ½ (x − cᵢ)'Aᵢ(I + tAᵢ)⁻¹(x − cᵢ) + hᵢ, because the
    infimum over y of a minimum is the minimum of the infima.

    Args:
        centres: cᵢ [m, d] in [param].
        hessians: Aᵢ, positive definite: [m, d, d], diagonals [m, d] or multiples of the identity [m], in [loss/param²].
        heights: hᵢ [m] in [loss].
        rise: the domain is the box about all that the wells hold up to this much above the global minimum, in [loss].

    Returns:
        :class:`Problem` with the minimisers that no other well undercuts and u at T = 0.

    Raises:
        ValueError: an array of another shape, not finite, or a matrix that is not symmetric positive definite.

    Example:
        >>> import jax.numpy as jnp
        >>> problem = hard_minimum([[-1.0], [1.0]], [1.0, 9.0], [0.0, 0.1])
        >>> print(problem.minimisers.tolist(), f"{problem.exact(jnp.array([1.0]), 0.5, 0.0):.3f}")
        [[-1.0], [1.0]] 0.100
    """
    _validate.check_positive("rise", rise)
    wells = _wells(centres, hessians, heights)
    own = np.arange(len(wells.heights))
    kept = np.argmin(_values(wells, wells.centres), axis=1) == own
    minimisers, minimum = sort_by_value(wells.centres[kept], wells.heights[kept])
    lower, upper = _box(wells, minimum, rise)

    def exact(point, smoothing_time, temperature):
        return jnp.min(wells.relaxed(point, smoothing_time, 0.0))

    return Problem(
        name="minimum of quadratics",
        loss=lambda point: exact(point, 0.0, 0.0),
        lower=lower,
        upper=upper,
        minimisers=minimisers,
        minimum=minimum,
        exact=exact,
        exact_temperature=0.0,
    )


def soft_minimum(
    centres: ArrayLike, hessians: ArrayLike, heights: ArrayLike, *, temperature: float, rise: float = 2.0
) -> Problem:
    """The soft minimum of quadratic wells, whose relaxation at the same temperature is the soft minimum of theirs.

    f = −T log Σ exp(−qᵢ/T), qᵢ(x) = ½ (x − cᵢ)'Aᵢ(x − cᵢ) + hᵢ: exp(−f/T) is a sum, and Cole-Hopf carries each term to
    its own, so that u = −T log Σ exp(−uᵢ/T) with uᵢ the closed form of :func:`quadratic` for qᵢ.

    Args:
        centres: cᵢ [m, d] in [param].
        hessians: Aᵢ, positive definite: [m, d, d], diagonals [m, d] or multiples of the identity [m], in [loss/param²].
        heights: hᵢ [m] in [loss].
        temperature: T > 0, which rounds the ridges of f and at which u is known, in [loss].
        rise: the domain is the box about all that the wells hold up to this much above the global minimum, in [loss].

    Returns:
        :class:`Problem` with the minimisers that descent reaches from the centres and u at that temperature.

    Raises:
        ValueError: an array of another shape, not finite, or a matrix that is not symmetric positive definite; a
            temperature that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> problem = soft_minimum([[-1.0], [1.0]], [1.0, 1.0], [0.0, 0.0], temperature=1.0)
        >>> print(f"{problem.exact(jnp.array([0.0]), 1.0, 1.0):.4f}")  # ½·½ + ½ log 2 − log 2
        -0.0966
    """
    _validate.check_positive("rise", rise)
    _validate.check_positive("temperature", temperature)
    wells = _wells(centres, hessians, heights)
    minimisers, values = _soft_minimisers(wells, float(temperature))
    minimisers, minimum = sort_by_value(minimisers, values)
    lower, upper = _box(wells, minimum, rise)

    def exact(point, smoothing_time, temperature):
        relaxed = wells.relaxed(point, smoothing_time, temperature)
        return -temperature * jax.nn.logsumexp(-relaxed / temperature)

    return Problem(
        name="soft minimum of quadratics",
        loss=lambda point: exact(point, 0.0, temperature),
        lower=lower,
        upper=upper,
        minimisers=minimisers,
        minimum=minimum,
        exact=exact,
        exact_temperature=float(temperature),
    )


def _soft_minimisers(wells: _Wells, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Distinct minimisers and their values, from every centre: a descent that never overshoots, then Newton.

    The descent majorises f by Σ pᵢ qᵢ, with pᵢ the weights of the wells at x, and moves to the minimiser of that.
    """
    A, eye = _matrices(wells), np.eye(wells.centres.shape[1])

    def weights(points):
        exponents = -_values(wells, points) / temperature
        peak = exponents.max(axis=1, keepdims=True)
        p = np.exp(exponents - peak)
        return p / p.sum(axis=1, keepdims=True), -temperature * (peak[:, 0] + np.log(p.sum(axis=1)))

    points = wells.centres
    for _ in range(200):
        p, _ = weights(points)
        pull = np.einsum("nm,mij,mj->ni", p, A, wells.centres)
        points = np.linalg.solve(np.einsum("nm,mij->nij", p, A), pull[:, :, None])[:, :, 0]
    for _ in range(10):
        p, _ = weights(points)
        slopes = np.einsum("mij,nmj->nmi", A, points[:, None] - wells.centres)
        gradient = np.einsum("nm,nmi->ni", p, slopes)
        spread = np.einsum("nm,nmi,nmj->nij", p, slopes, slopes) - gradient[:, :, None] * gradient[:, None, :]
        hessian = np.einsum("nm,mij->nij", p, A) - spread / temperature
        # Where wells merge the Hessian may be singular on the way: leave such a point to the descent above.
        sound = np.linalg.eigvalsh(hessian)[:, 0] > 0
        hessian = np.where(sound[:, None, None], hessian, eye)
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        points = points - np.where(sound[:, None], step, 0.0)
    scale = np.abs(wells.centres).max() + 1 / np.sqrt(wells.eigenvalues.max())
    distinct = [
        i
        for i in range(len(points))
        if sound[i] and not any(np.linalg.norm(points[i] - points[j]) < 1e-6 * scale for j in range(i))
    ]
    return points[distinct], weights(points)[1][distinct]


def sharp_and_wide(
    dimension: int = 2,
    *,
    distance: float = 2.0,
    sharpness: float = 100.0,
    flatness: float = 1.0,
    advantage: float = 0.1,
    temperature: float = 0.1,
) -> Problem:
    """A narrow well, slightly deeper, beside a wide one: relaxation hands the global minimum to the wide one.

    The :func:`soft_minimum` of ½ s|x + e|² − δ and ½ w|x − e|², e = (distance/2) e₁. Each well's floor rises as
    (dT/2) log(1 + tλ), so that they change places at t* = (r − 1)/(s − r w), r = exp(2δ/(dT)): t* ≈ 0.018 here.

    Args:
        dimension: d ≥ 1.
        distance: between the centres, on the first axis, > 0, in [param].
        sharpness: s, curvature of the narrow well, in [loss/param²].
        flatness: w, curvature of the wide well, in [loss/param²], less than s.
        advantage: δ > 0, by how much the narrow well is deeper, in [loss]; less than (dT/2) log(s/w), which makes t*
            finite.
        temperature: T > 0, which rounds the ridge and at which u is known, in [loss].

    Returns:
        :class:`Problem`, the minimiser in the narrow well first.

    Raises:
        ValueError: a number out of the range given above.
        TypeError: a ``dimension`` that is not an integer.

    Example:
        >>> problem = sharp_and_wide()
        >>> print(problem.minimisers[:, 0].round(2), round(problem.minimum, 2))
        [-1.  1.] -0.1
    """
    _validate.check_count("dimension", dimension)
    numbers = {"distance": distance, "sharpness": sharpness, "flatness": flatness, "advantage": advantage}
    for name, value in {**numbers, "temperature": temperature}.items():
        _validate.check_positive(name, value)
    limit = 0.5 * dimension * temperature * np.log(sharpness / flatness)
    if not advantage < limit:
        msg = f"advantage must be less than (d T/2) log(sharpness/flatness) = {limit:.6g}, got {advantage!r}."
        raise ValueError(msg)
    centres = 0.5 * distance * np.outer([-1.0, 1.0], np.eye(dimension)[0])
    wells = soft_minimum(centres, [sharpness, flatness], [-advantage, 0.0], temperature=temperature)
    return dataclasses.replace(wells, name="sharp and wide wells")
