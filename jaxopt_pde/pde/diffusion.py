"""The heat semigroup exp(τ (T/2) Δ) on a grid as one dense product an axis: diffusion without a step limit.

The second difference with constant coefficients is diagonal in a known basis - Fourier, cosine, or sine plus
linear functions - for each boundary, so its exponential costs no linear solve, is unconditionally stable, exact in time
and reverse-mode differentiable in T. With the eigenvalues of the three-point difference it is also monotone.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .grid import Grid

__all__ = ["apply_along_axes", "diffuse", "heat_matrices"]


def heat_matrices(
    grid: Grid, amount: Float[Array, ""], *, monotone: bool, dtype: DTypeLike
) -> tuple[Float[Array, "n n"], ...]:
    """exp(amount · ∂²) for each axis.

    Args:
        grid: the grid with its boundaries.
        amount: (T/2)·τ ≥ 0, in [param²].
        monotone: eigenvalues of the three-point difference, −(4/Δx²) sin²(θ/2), which keep order; else those of the
            derivative, −(θ/Δx)², exact for what the grid resolves.
        dtype: of the matrices.

    Returns:
        One matrix [n, n] an axis, with rows that sum to 1.
    """
    matrices = []
    for n, dx, boundary in zip(grid.shape, grid.spacing, grid.boundary, strict=True):
        forward, backward, angle, base = _basis(n, boundary)
        decay = _decay(amount, angle, dx, monotone, dtype)
        matrix = jnp.matmul(
            jnp.asarray(backward, dtype) * decay[None],
            jnp.asarray(forward, dtype),
            precision=jax.lax.Precision.HIGHEST,
        ) + jnp.asarray(base, dtype)
        matrices.append(matrix / jnp.sum(matrix, axis=1, keepdims=True))
    return tuple(matrices)


def apply_along_axes(
    matrices: Sequence[Float[Array, "n n"]], values: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """One matrix along each axis."""
    for axis, matrix in enumerate(matrices):
        product = jnp.tensordot(matrix, values, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
        values = jnp.moveaxis(product, 0, axis)
    return values


def diffuse(
    values: Float[Array, "*shape"], grid: Grid, amount: Float[Array, ""], *, monotone: bool
) -> Float[Array, "*shape"]:
    """exp(amount · Δ) of a grid function without its matrix: two products an axis, for an ``amount`` used once.

    Args:
        values: the grid function.
        grid: its grid.
        amount: as in :func:`heat_matrices`.
        monotone: as there.

    Returns:
        The product, constants unchanged to the last digit.
    """
    dtype = values.dtype
    for axis, (n, dx, boundary) in enumerate(zip(grid.shape, grid.spacing, grid.boundary, strict=True)):
        forward, backward, angle, base = (np.asarray(part) for part in _basis(n, boundary))
        decay = _decay(amount, angle, dx, monotone, dtype)
        moved = jnp.moveaxis(values, axis, 0)
        level = moved[:1]  # taken off, so that rounding does not add up over the steps
        flat = (moved - level).reshape(n, -1)
        product = lambda matrix, columns: jnp.matmul(
            jnp.asarray(matrix, dtype), columns, precision=jax.lax.Precision.HIGHEST
        )
        smooth = product(backward, decay[:, None] * product(forward, flat)) + product(base, flat)
        values = jnp.moveaxis(smooth.reshape(moved.shape) + level, 0, axis)
    return values


def _decay(amount, angle, dx: float, monotone: bool, dtype):
    """Factor of each mode."""
    symbol = 2 * np.sin(angle / 2) / dx if monotone else angle / dx
    return jnp.exp(-amount * jnp.asarray(symbol**2, dtype))


def _basis(n: int, boundary: str):
    """(to coefficients, from coefficients, angle of each mode, part left alone), in float64."""
    if boundary == "periodic":
        index = np.arange(n)
        modes = np.arange(n // 2 + 1)
        cosines = np.cos(2 * np.pi * np.outer(index, modes) / n)
        sines = np.sin(2 * np.pi * np.outer(index, modes[1 : (n + 1) // 2]) / n)
        backward = np.concatenate([cosines, sines], axis=1)
        angle = 2 * np.pi / n * np.concatenate([modes, modes[1 : (n + 1) // 2]])
        return backward.T / np.sum(backward**2, axis=0)[:, None], backward, angle, np.zeros((n, n))
    index = np.arange(n)
    if boundary == "neumann":
        backward = np.cos(np.pi * np.outer(index, index) / (n - 1))
        weights = np.where((index == 0) | (index == n - 1), 0.5, 1.0)
        norms = np.sum(weights[:, None] * backward**2, axis=0)
        return backward.T * weights / norms[:, None], backward, np.pi * index / (n - 1), np.zeros((n, n))
    # Linear continuation: no second difference at the ends, so linear functions stay as they are.
    modes = np.arange(1, n - 1)
    backward = np.sin(np.pi * np.outer(index, modes) / (n - 1))
    base = np.zeros((n, n))
    base[:, 0], base[:, -1] = 1 - index / (n - 1), index / (n - 1)
    forward = 2 / (n - 1) * backward.T @ (np.eye(n) - base)
    return forward, backward, np.pi * modes / (n - 1), base
