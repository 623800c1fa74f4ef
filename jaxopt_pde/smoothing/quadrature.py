"""u(x, t) by quadrature in 1-D to 3-D: the oracle that the other estimators are tested against."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from .. import _validate
from .._typing import Params, Smoothed, ValueFn
from ._kernel import scalar_dtype

__all__ = ["quadrature"]

_NUM_POINTS = {1: 2049, 2: 257, 3: 65}  # per axis, of the final rule
_ZOOM_POINTS = {1: 513, 2: 65, 3: 33}  # per axis, of each zoom
_SEARCHES, _ZOOMS = 6, 24
_RADII, _REACH = 256, 200.0  # a search looks along rays, and 200 times farther than the last radius
_DROP = 40.0  # what lies 40 T above the minimum weighs e⁻⁴⁰ = 4e-18


class _Box(NamedTuple):
    """The parallelepiped centre + axes @ (half_widths * z), z in [−1, 1]ᵈ, with orthonormal axes."""

    centre: Float[Array, " d"]
    axes: Float[Array, "d d"]
    half_widths: Float[Array, " d"]


def quadrature(
    loss_fn: ValueFn,
    params: Params,
    *,
    smoothing_time: float | Float[Array, ""],
    temperature: float | Float[Array, ""],
    num_points: int | None = None,
    half_width: float | Float[Array, ""] | None = None,
) -> Smoothed:
    r"""The relaxed loss by the trapezoid rule, for params of at most three entries in all.

    With φ(y) = f(y) + |x − y|²/(2t), ρ ∝ exp(−φ/T) and d the dimension (Cole-Hopf),

        u(x, t) = −T log (2πtT)^(−d/2) ∫ exp(−φ(y)/T) dy,      ∇u = E_ρ[(x − y)/t],      ∇²u = I/t − Cov_ρ(y)/(t²T).

    The rule converges faster than any power of the spacing where f is smooth, since the integrand vanishes at the
    edge of the box. The box is found from the loss: rings around x out to 200 times the present radius show how far
    φ comes within 40 T of its minimum, then the box is zoomed, and turned into the principal axes of what is kept,
    24 times. A cell is dropped only if φ there, less its differences to the neighbours, lies more than 40 T above the
    minimum; so several wells are kept, and a narrow peak (T → 0) is found as long as the search grid sees its
    basin. Sums are taken after the minimum is subtracted, so small T is safe.

    Args:
        loss_fn: f, ``params -> loss``; evaluated under ``vmap``. It may return +inf (a constraint).
        params: x, any pytree of real floating arrays with 1, 2 or 3 entries in all.
        smoothing_time: t > 0, in [param²/loss].
        temperature: T > 0, in [loss]. For T = 0 use :func:`~jaxopt_pde.smoothing.hopf_lax`.
        num_points: points per axis of the final rule, odd (static). None means 2049, 257, 65 in 1-D, 2-D, 3-D.
        half_width: half width [param] of the box x ± half_width that holds the mass, for losses whose deep wells lie
            where the search cannot know of them; None searches. The box is zoomed all the same.

    Returns:
        :class:`Smoothed` with ``gradient``, ``value``, ``positions`` None, ``num_gradients`` 0, and ``info``:
        ``mean`` [d] and ``covariance`` [d, d] of ρ and ``hessian`` ∇²u [d, d], in the order of ``ravel_pytree``;
        ``value_error`` and ``gradient_error``, the differences to the same rule on every second point, which bound
        the true error where the rule converges at all; ``edge_mass``, the share of ρ on the faces of the box, which is
        not small if the box has cut something off; ``num_losses``, the loss evaluations.
        ``jax.grad`` of ``value`` is ``gradient``, and ``jax.hessian`` is ``hessian``: the box is held constant.

    Raises:
        ValueError: more than three entries, an even or too small ``num_points``, a setting out of range.
        TypeError: a leaf of ``params`` that is not real and floating.

    Good values:
        The defaults give 1e-10 or better in float64 for smooth losses with up to some tens of wells across the box in
        1-D and a few in 2-D; watch ``value_error``. At a kink of f the error falls as the square of the spacing. A
        well narrower than about a twentieth of its distance from x can be missed: give ``half_width``, or
        start nearer.

    Example:
        A double well at its ridge, where the relaxed loss is symmetric:

        >>> import jax.numpy as jnp, jaxopt_pde
        >>> smoothed = jaxopt_pde.smoothing.quadrature(
        ...     lambda y: (y**2 - 1) ** 2, jnp.array(0.0), smoothing_time=1.0, temperature=0.1)
        >>> print(f"{smoothed.value:.4f}", bool(jnp.abs(smoothed.gradient) < 1e-6))
        0.4534 True

    References:
        Cole-Hopf: Evans, Partial Differential Equations, section 4.4. The trapezoid rule: Trefethen & Weideman 2014,
        SIAM Review 56, 385. The search for the box is our own.
    """
    _validate.check_positive("smoothing_time", smoothing_time)
    _validate.check_positive("temperature", temperature)
    if half_width is not None:
        _validate.check_positive("half_width", half_width)
    _validate.check_float_tree("params", params)
    params = jax.tree.map(jnp.asarray, params)
    dtype = scalar_dtype(params)
    x, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(dtype), params))
    if not 1 <= x.size <= 3:
        msg = (
            f"params must have 1 to 3 entries in all for quadrature, got dimension {x.size}: use smoothing.gaussian "
            "for a quadratic, smoothing.cole_hopf up to about 10 dimensions, smoothing.langevin beyond."
        )
        raise ValueError(msg)
    num_points = _NUM_POINTS[x.size] if num_points is None else num_points
    _validate.check_count("num_points", num_points, minimum=5)
    if num_points % 2 == 0:
        msg = f"num_points must be odd, so that every second point is a rule too, got {num_points!r}."
        raise ValueError(msg)
    t, heat = jnp.asarray(smoothing_time, dtype), jnp.asarray(temperature, dtype)
    like = params

    def loss(y):
        tree = jax.tree.map(lambda leaf, x: leaf.astype(x.dtype), unravel(y), like)
        value = loss_fn(tree)
        _validate.check_scalar_output("loss_fn", value)
        return jnp.asarray(value, dtype)

    def potential(anchor, points):  # φ at points [n, d]
        return jax.vmap(loss)(points) + jnp.sum((points - anchor[None]) ** 2, axis=1) / (2 * t)

    fixed, scale = jax.lax.stop_gradient((x, (t, heat)))
    radius = None if half_width is None else jnp.asarray(half_width, dtype)
    box = _find_box(functools.partial(potential, fixed), jax.grad(loss), fixed, *scale, radius)
    result, num_losses = _integrate(potential, x, t, heat, jax.lax.stop_gradient(box), num_points)
    value, gradient, info = result
    info["num_losses"] = jnp.asarray(num_losses + _search_cost(x.size, half_width), jnp.int32)
    return Smoothed(
        gradient=jax.tree.map(lambda g, leaf: g.astype(leaf.dtype), unravel(gradient), params),
        value=value,
        positions=None,
        num_gradients=jnp.zeros([], jnp.int32),
        info=info,
    )


def _search_cost(dimension: int, half_width) -> int:
    rays = 0 if half_width is not None else _directions(dimension, jnp.float32).shape[0]
    return _SEARCHES * rays * _RADII + _ZOOMS * _ZOOM_POINTS[dimension] ** dimension


def _integrate(potential, x, t, heat, box: _Box, num_points: int):
    """u, ∇u and the moments of ρ by the trapezoid rule on ``box`` (whose edge weights vanish: all weights equal)."""
    dimension = x.size
    unit = jnp.linspace(-1, 1, num_points, dtype=x.dtype)
    z = _tensor(unit, dimension)
    offsets = (z * box.half_widths[None]) @ box.axes.T
    points = box.centre[None] + offsets
    phi = potential(x, points)
    lowest = jax.lax.stop_gradient(jnp.min(phi))
    density = jnp.exp(-(phi - lowest) / heat)
    spacing = 2 * box.half_widths / (num_points - 1)
    displacement = (x - box.centre)[None] - offsets  # x − y without forming y

    def rule(mass, thinning):
        total = jnp.sum(mass)
        log_volume = jnp.sum(jnp.log(thinning * spacing) - jnp.log(2 * jnp.pi * t * heat) / 2)
        value = lowest - heat * (jnp.log(total) + log_volume)
        return value, mass / total, (mass / total) @ displacement / t

    value, rho, gradient = rule(density, 1)
    coarse = _tensor(jnp.arange(num_points) % 2 == 0, dimension).all(axis=1)
    coarse_value, _, coarse_gradient = rule(jnp.where(coarse, density, 0), 2)
    edge = _tensor(jnp.abs(jnp.arange(num_points) - num_points // 2) == num_points // 2, dimension).any(
        axis=1
    )
    centred = displacement - (t * gradient)[None]
    covariance = (centred * rho[:, None]).T @ centred
    info = {
        "mean": x - t * gradient,
        "covariance": covariance,
        "hessian": jnp.eye(dimension, dtype=x.dtype) / t - covariance / (t**2 * heat),
        "value_error": jnp.abs(value - coarse_value),
        "gradient_error": jnp.linalg.norm(gradient - coarse_gradient),
        "edge_mass": jnp.sum(jnp.where(edge, rho, 0)),
    }
    return (value, gradient, info), num_points**dimension


def _tensor(coordinates: Array, dimension: int) -> Array:
    """The tensor grid of one axis' coordinates [n], as points [nᵈ, d]."""
    grids = jnp.meshgrid(*[coordinates] * dimension, indexing="ij")
    return jnp.stack([grid.reshape(-1) for grid in grids], axis=1)


def _find_box(potential, loss_gradient, x, t, heat, radius) -> _Box:
    """The box that holds what lies within 40 T of the minimum of φ, in its principal axes."""
    dimension, dtype = x.size, x.dtype
    spread = jnp.sqrt(2 * _DROP * t * heat)  # where |x − y|²/(2t) = 40 T
    if radius is None:
        slope = jnp.nan_to_num(jnp.linalg.norm(loss_gradient(x)), posinf=0, neginf=0)
        # Where f is convex, y* lies within t |∇f(x)|.
        first = jnp.maximum(spread, 4 * t * slope)
        radius = jax.lax.fori_loop(
            0, _SEARCHES, lambda _, radius: jnp.maximum(first, _search(potential, x, heat, radius)), first
        )
    points = _ZOOM_POINTS[dimension]
    z = _tensor(jnp.linspace(-1, 1, points, dtype=dtype), dimension)
    floor = 8 * jnp.finfo(dtype).eps * (jnp.max(jnp.abs(x)) + spread) + jnp.finfo(dtype).tiny

    def zoom(_, box):
        offsets = (z * box.half_widths[None]) @ box.axes.T
        kept = _keep(potential(box.centre[None] + offsets), heat, points, dimension)
        count = jnp.sum(kept).astype(dtype)
        mean = jnp.sum(jnp.where(kept[:, None], offsets, 0), axis=0) / count
        centred = jnp.where(kept[:, None], offsets - mean[None], 0)
        axes = jnp.linalg.eigh(centred.T @ centred / count)[1] if dimension > 1 else box.axes
        along = (offsets - mean[None]) @ axes
        low = jnp.min(jnp.where(kept[:, None], along, jnp.inf), axis=0)
        high = jnp.max(jnp.where(kept[:, None], along, -jnp.inf), axis=0)
        centre = box.centre + mean + axes @ ((low + high) / 2)
        return _Box(centre, axes, jnp.maximum((high - low) / 2, floor))

    box = _Box(x, jnp.eye(dimension, dtype=dtype), jnp.broadcast_to(radius, (dimension,)))
    return jax.lax.fori_loop(0, _ZOOMS, zoom, box)


def _search(potential, x, heat, radius) -> Float[Array, ""]:
    """The distance from x that φ is within 40 T of its minimum on rays, radii 0.01 to 200 times ``radius``."""
    directions = _directions(x.size, x.dtype)
    radii = radius * jnp.geomspace(0.01, _REACH, _RADII, dtype=x.dtype)
    points = x[None, None] + directions[:, None] * radii[None, :, None]
    phi = potential(points.reshape(-1, x.size)).reshape(-1, _RADII)
    kept = jax.vmap(lambda ray: _keep(ray, heat, _RADII, 1))(phi - jnp.min(phi))
    return jnp.max(jnp.where(kept, radii[None], 0))


def _directions(dimension: int, dtype) -> Float[Array, "n d"]:
    """Unit vectors, evenly spread: both, 64 on the circle, 256 of a Fibonacci spiral on the sphere."""
    if dimension == 1:
        directions = np.array([[-1.0], [1.0]])
    elif dimension == 2:
        angle = 2 * np.pi * (np.arange(64) + 0.5) / 64
        directions = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    else:
        height, angle = 1 - (2 * np.arange(256) + 1) / 256, np.pi * (3 - np.sqrt(5)) * np.arange(256)
        ring = np.sqrt(1 - height**2)
        directions = np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)
    return jnp.asarray(directions, dtype)


def _keep(phi: Float[Array, " n"], heat, points: int, dimension: int) -> Bool[Array, " n"]:
    """The cells where exp(−φ/T) may matter, and their neighbours."""
    grid = phi.reshape((points,) * dimension)
    within = grid  # a lower estimate of φ in the point's cell: less half its change to the neighbours, axis by axis
    for axis in range(dimension):
        step = jnp.abs(jnp.diff(grid, axis=axis))
        before, after = _either_side(jnp.where(jnp.isfinite(step), step, 0), axis, points)
        within = within - jnp.maximum(before, after) / 2
    kept = within <= jnp.min(grid) + _DROP * heat
    for axis in range(dimension):
        between = jax.lax.slice_in_dim(kept, 1, None, axis=axis) | jax.lax.slice_in_dim(
            kept, 0, -1, axis=axis
        )
        before, after = _either_side(between, axis, points)
        kept = before | after
    return kept.reshape(-1)


def _either_side(edges: Array, axis: int, points: int) -> tuple[Array, Array]:
    """From values on the edges between grid points along ``axis`` to those before and after each point."""
    padded = jnp.pad(edges, [(1, 1) if a == axis else (0, 0) for a in range(edges.ndim)])
    return tuple(jax.lax.slice_in_dim(padded, i, i + points, axis=axis) for i in (0, 1))
