"""The inviscid exact route: Moreau envelopes on grids, one axis after another.

For T = 0 and H = ½|p|² the solution is Hopf and Lax's inf-convolution

    u(x, t) = min_y f(y) + |x − y|²/(2t),

and |x − y|² is a sum over axes, so that one-dimensional passes compose to it exactly. A pass finds the best grid
point for every x on the lower convex hull of (y, f(y) + y²/(2t)) - the slope x/t touches the hull there - and then
the best point between the neighbours, on the parabola through three points.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .. import _validate
from .grid import Grid, pad

__all__ = ["along_axis", "hull_points", "inf_convolution", "signed_distance", "tail_slopes"]

Lines = Float[Array, "n lines"]


def inf_convolution(
    initial: Float[Array, "*shape"], grid: Grid, smoothing_time: float | Float[Array, ""]
) -> Float[Array, "*shape"]:
    """The Moreau envelope u(x, t) = min_y f(y) + |x − y|²/(2t) of a grid function.

    Exact where f is quadratic between neighbouring grid points; u is O(Δx³) and its slope O(Δx²) where f is smooth, and
    O(Δx) at kinks of f that open upwards between grid points. O(N) hull steps and O(N log N) look-ups for N points, in
    any dimension.

    Args:
        initial: f on the grid, [*shape].
        grid: where; outside, f is continued as its boundary says.
        smoothing_time: t ≥ 0, in [param²/loss].

    Returns:
        u(·, t), [*shape]. Differentiable in ``initial`` and t almost everywhere (the minimiser is held fixed, as
        Danskin's theorem allows).

    Raises:
        ValueError: shapes that differ, or a negative time.

    Example:
        >>> from jaxopt_pde import pde
        >>> grid = pde.Grid.uniform(-2.0, 2.0, 9, boundary="extrapolate")
        >>> print(pde.inf_convolution(grid.axes[0] ** 2 / 2, grid, 1.0)[4:7])  # ¼ x²
        [0.     0.0625 0.25  ]

    References:
        Felzenszwalb & Huttenlocher 2012, Distance transforms of sampled functions. Lucet 1997, Faster than the fast
        Legendre transform. The refinement between grid points is our own.
    """
    initial = jnp.asarray(initial)
    if initial.shape != grid.shape:
        msg = f"initial must have the grid's shape {grid.shape}, got {initial.shape}."
        raise ValueError(msg)
    _validate.check_nonnegative("smoothing_time", smoothing_time)
    return _inf_convolution(initial, grid, jnp.asarray(smoothing_time, initial.dtype))


@functools.partial(jax.jit, static_argnames="grid")
def _inf_convolution(initial: Float[Array, "*shape"], grid: Grid, time) -> Float[Array, "*shape"]:
    positive = time > 0
    safe_time = jnp.where(positive, time, 1)
    values = initial
    for axis in range(grid.ndim):
        values = along_axis(functools.partial(_pass, grid=grid, axis=axis, time=safe_time), values, axis)
    return jnp.where(positive, values, initial)


def along_axis(
    function: Callable[[Lines], Lines], values: Float[Array, "*shape"], axis: int
) -> Float[Array, "*shape"]:
    """Applies a function of lines [n, lines] along one axis."""
    moved = jnp.moveaxis(values, axis, 0)
    return jnp.moveaxis(function(moved.reshape(moved.shape[0], -1)).reshape(moved.shape), 0, axis)


def _pass(values: Lines, *, grid: Grid, axis: int, time: Float[Array, ""]) -> Lines:
    n, dx, boundary = grid.shape[axis], grid.spacing[axis], grid.boundary[axis]
    # The neighbours on the hull too: of two wells that nearly tie, each has its best point between grid points.
    near = hull_points(jax.lax.stop_gradient(values), dx, jax.lax.stop_gradient(time), boundary)
    refine = lambda index, reach: _best_on_parabola(values, index, dx, time, boundary, reach)
    minimum = functools.reduce(jnp.minimum, map(refine, near, (1.0, 0.5, 0.5)))
    if boundary == "extrapolate":
        position = (jnp.arange(n, dtype=values.dtype) * dx)[:, None]
        for slope, end, edge in tail_slopes(values, dx):
            minimum = jnp.minimum(
                minimum, tail_minimum(position - edge * (n - 1) * dx, slope, end, time, edge)
            )
    return minimum


def _best_on_parabola(values: Lines, index: Int[Array, "n lines"], dx, time, boundary, reach: float) -> Lines:
    """Least value of f(y) + (x − y)²/(2t) on the parabola through three points, the middle one given for every x.

    Its vertex counts up to ``reach`` cells away: half a cell is the middle point's own.
    """
    n = values.shape[0]
    padded = pad(values, 0, 1, boundary)
    below, here, above = (jnp.take_along_axis(padded, index + k, axis=0) for k in range(3))
    distance = signed_distance(jnp.arange(n)[:, None] - index, n, boundary).astype(values.dtype) * dx
    centre = here + distance**2 / (2 * time)
    slope = (above - below) / (2 * dx) - distance / time
    curvature = (above - 2 * here + below) / dx**2 + 1 / time
    # Below the curvature 1/(16t) - a ridge between points - the grid point itself stands.
    steep = curvature > 1 / (16 * time)
    offset = jnp.where(steep, -slope / jnp.where(steep, curvature, 1), 0)
    near = jnp.clip(offset, -dx, dx)
    offset = near if reach == 1 else jnp.where(jnp.abs(offset) <= reach * dx, near, 0)
    refined = centre + offset * slope + offset**2 * curvature / 2
    return jnp.minimum(refined, centre)


def signed_distance(offset: Int[Array, "..."], n: int, boundary: str) -> Int[Array, "..."]:
    """Grid steps from y to x, to the nearest image on a periodic axis."""
    return offset - n * jnp.round(offset / n).astype(offset.dtype) if boundary == "periodic" else offset


def tail_slopes(values: Lines, dx: float) -> tuple[tuple[Array, Array, int], tuple[Array, Array, int]]:
    """((slope, end value, 0), (slope, end value, 1)): the linear tails below and above the box, [lines] each."""
    return (
        ((values[1] - values[0]) / dx, values[0], 0),
        ((values[-1] - values[-2]) / dx, values[-1], 1),
    )


def tail_minimum(
    position: Lines,
    slope: Float[Array, " lines"],
    end: Float[Array, " lines"],
    time: float | Float[Array, ""],
    edge: int,
) -> Lines:
    """Min of the linear tail over the half-line outside, where the minimiser x − t·slope lies there; else inf.

    Args:
        position: x measured from the edge, [n, 1].
        slope: of the tail, [lines].
        end: f at the edge, [lines].
        time: t.
        edge: 0 for the tail below the box, 1 for the one above.
    """
    foot = position - time * slope[None]
    outside = foot < 0 if edge == 0 else foot > 0
    return jnp.where(outside, end[None] + slope[None] * (position - time * slope[None] / 2), jnp.inf)


def hull_points(
    values: Lines, dx: float, time: float | Float[Array, ""], boundary: str
) -> Int[Array, "3 n lines"]:
    """For every x the grid point y with the least f(y) + (x − y)²/(2t), and the two next to it on the convex hull.

    Args:
        values: f along lines, [n, lines].
        dx: spacing.
        time: t > 0.
        boundary: of the axis; a reflected image is never nearer than the point itself, a wrapped one may be.

    Returns:
        Indices: the best point, the one before it and the one after it on the hull.
    """
    n = values.shape[0]
    if boundary == "periodic":  # one image at either side: the nearest is always as good as the others
        return hull_points(jnp.concatenate([values] * 3), dx, time, "")[:, n : 2 * n] % n
    scale = jnp.asarray(time / dx**2, values.dtype)
    return jax.vmap(functools.partial(_hull_of_line, scale=scale), in_axes=1, out_axes=2)(values)


def _hull_of_line(line: Float[Array, " n"], scale) -> Int[Array, "3 n"]:
    """Monotone chain in units of dx: points (j, j²/2 + scale·f_j), then the vertex touched by every slope i."""
    n = line.shape[0]
    # Measured from the middle, so that float32 keeps its digits.
    index = jnp.arange(n, dtype=line.dtype) - (n - 1) / 2
    height = index**2 / 2 + scale * (line - jnp.min(line))

    def slope(a, b):
        return (height[b] - height[a]) / (b - a).astype(line.dtype)

    def turn(_, state):
        """One push or one pop: n pushes and fewer pops, so 2n turns finish every line."""
        stack, size, new = state
        top, below = stack[jnp.maximum(size - 1, 0)], stack[jnp.maximum(size - 2, 0)]
        pops = (size >= 2) & (new < n) & (slope(below, top) >= slope(top, jnp.minimum(new, n - 1)))
        pushes = (new < n) & ~pops
        stack = stack.at[size].set(jnp.where(pushes, new, stack[size]), mode="drop")
        return (
            stack,
            size + pushes.astype(size.dtype) - pops.astype(size.dtype),
            new + pushes.astype(new.dtype),
        )

    start = (jnp.zeros(n, jnp.int32), jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32))
    stack, size, _ = jax.lax.fori_loop(0, 2 * n, turn, start)
    position = jnp.arange(n)
    real = position < size - 1
    following = jnp.where(real, stack[jnp.minimum(position + 1, n - 1)], stack + 1)
    breaks = jnp.where(real, slope(stack, jnp.minimum(following, n - 1)), jnp.inf)
    touched = jnp.searchsorted(breaks, index)
    return jnp.stack([stack[jnp.clip(touched + side, 0, size - 1)] for side in (0, -1, 1)])
