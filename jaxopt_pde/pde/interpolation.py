"""Grid functions between grid points: cubic Hermite interpolation with fourth-order slopes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .grid import Grid, pad

__all__ = ["interpolate"]

_GHOSTS = 3


def interpolate(
    values: Float[Array, "*shape"], grid: Grid, point: Float[Array, " d"]
) -> tuple[Float[Array, ""], Float[Array, " d"]]:
    """Value and gradient at one point.

    Piecewise cubic along each axis, continuously differentiable; for smooth functions the value is fourth order and
    the gradient third order in the spacing. Outside the box the function is wrapped (periodic), reflected
    (Neumann) or goes on linearly along each axis (extrapolate).

    Args:
        values: grid function, [*shape].
        grid: its grid, at least 4 points an axis.
        point: x, [d].

    Returns:
        The value and the gradient of the interpolant (its exact derivative), [d].
    """
    padded = values
    for axis, boundary in enumerate(grid.boundary):
        padded = pad(padded, axis, _GHOSTS, boundary)
    inside, starts, weights, slopes = [], [], [], []
    for axis, (low, dx, n, boundary) in enumerate(
        zip(grid.lower, grid.spacing, grid.shape, grid.boundary, strict=True)
    ):
        steps = (point[axis] - low) / dx
        folded, sign = _fold(steps, n, boundary)
        cell = jnp.clip(jnp.floor(jax.lax.stop_gradient(folded)), 0, n - (1 if boundary == "periodic" else 2))
        inside.append(sign / dx)
        starts.append(cell.astype(jnp.int32) + _GHOSTS - 2)
        slope = _slopes(folded - cell)
        overshoot = steps - folded if boundary == "extrapolate" else 0.0
        weights.append(_weights(folded - cell) + overshoot * slope)
        slopes.append(slope)
    window = jax.lax.dynamic_slice(padded, starts, (6,) * grid.ndim)
    value = _contract(window, weights)
    gradient = jnp.stack(
        [
            inside[axis] * _contract(window, [*weights[:axis], slopes[axis], *weights[axis + 1 :]])
            for axis in range(grid.ndim)
        ]
    )
    return value, gradient


def _fold(steps, n: int, boundary: str):
    """The place inside the grid that a place outside stands for, and the sign of its derivative."""
    if boundary == "periodic":
        return steps - n * jax.lax.stop_gradient(jnp.floor(steps / n)), 1.0
    if boundary == "neumann":
        period = 2 * (n - 1)
        wrapped = steps - period * jax.lax.stop_gradient(jnp.floor(steps / period))
        mirrored = wrapped > n - 1
        return jnp.where(mirrored, period - wrapped, wrapped), jnp.where(mirrored, -1.0, 1.0)
    return jnp.clip(steps, 0, n - 1), 1.0


def _weights(s):
    """Of the points −2 … 3 around the cell [0, 1], from Hermite's basis with slopes (f₋₂ − 8f₋₁ + 8f₁ − f₂)/12."""
    return _from_hermite((1 + 2 * s) * (1 - s) ** 2, s * (1 - s) ** 2, s**2 * (3 - 2 * s), s**2 * (s - 1))


def _slopes(s):
    """Derivatives of :func:`_weights`."""
    return _from_hermite(6 * s * (s - 1), (1 - s) * (1 - 3 * s), 6 * s * (1 - s), s * (3 * s - 2))


def _from_hermite(value0, slope0, value1, slope1):
    return jnp.stack(
        [
            slope0 / 12,
            (slope1 - 8 * slope0) / 12,
            value0 - 8 * slope1 / 12,
            value1 + 8 * slope0 / 12,
            (8 * slope1 - slope0) / 12,
            -slope1 / 12,
        ]
    )


def _contract(window, weights):
    for weight in weights:
        window = jnp.tensordot(weight.astype(window.dtype), window, axes=1)
    return window
