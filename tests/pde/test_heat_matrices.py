"""Exponential diffusion: the matrices are the exponential of a difference matrix, so their properties follow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from jaxopt_pde import pde
from jaxopt_pde.pde.diffusion import apply_along_axes, heat_matrices
from tests.pde import oracles

BOUNDARIES = ("neumann", "periodic", "extrapolate")
AMOUNTS = (0.0, 1e-6, 1e-3, 0.05, 3.0)


@functools.cache
def matrices(n, boundary, monotone):
    """At each amount, from one compilation."""
    grid = pde.Grid.uniform(0.0, 1.0, n, boundary=boundary)
    with jax.enable_x64(True):
        make = jax.jit(lambda amount: heat_matrices(grid, amount, monotone=monotone, dtype=jnp.float64)[0])
        return grid, {amount: np.asarray(make(amount)) for amount in AMOUNTS}, make


@pytest.mark.parametrize("n", [4, 9, 10])  # odd and even: the highest Fourier wave has no sine
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_exponential_of_the_difference_matrix(boundary, n):
    """expm of the three-point matrix: rows sum to 1, nothing negative, P_a P_b = P_{a+b}."""
    grid, found, make = matrices(n, boundary, True)
    difference = oracles.second_difference(n, grid.spacing[0], boundary)
    for amount, matrix in found.items():
        # n terms of size <= 1 each way, and expm's own rounding
        np.testing.assert_allclose(matrix, expm(amount * difference), atol=1e-13)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-14)
        assert matrix.min() >= -1e-14
    with jax.enable_x64(True):
        np.testing.assert_allclose(found[1e-3] @ found[0.05], make(0.051), atol=1e-13)
    np.testing.assert_allclose(found[0.0], np.eye(n), atol=1e-14)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_spectral_symbol_is_exact_on_resolved_waves(boundary):
    """With the derivative's eigenvalues every wave that fits the boundary decays by exp(-amount·k²)."""
    n = 10
    grid, found, _ = matrices(n, boundary, False)
    x = np.arange(n) * grid.spacing[0]
    for wave in range(1, 5):
        k = (2 if boundary == "periodic" else 1) * np.pi * wave
        values = np.sin(k * x) if boundary != "neumann" else np.cos(k * x)
        for amount, matrix in found.items():
            np.testing.assert_allclose(matrix @ values, np.exp(-amount * k**2) * values, atol=1e-13)


@pytest.mark.parametrize("monotone", [True, False])
def test_linear_functions_stay_where_the_tails_are_linear(monotone):
    grid, found, _ = matrices(9, "extrapolate", monotone)
    line = 3 - 2 * np.arange(9) * grid.spacing[0]
    for matrix in found.values():
        np.testing.assert_allclose(matrix @ line, line, atol=1e-13)


def test_axes_commute_and_float32_keeps_the_range():
    grid = pde.Grid.uniform((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (5, 6, 7), boundary=BOUNDARIES)
    values = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 6, 7)), jnp.float32)
    each = heat_matrices(grid, jnp.float32(0.01), monotone=True, dtype=jnp.float32)
    smooth = apply_along_axes(each, values)
    expected = np.einsum("ai,bj,ck,ijk->abc", *(np.asarray(m, np.float64) for m in each), values)
    rounding = 32 * np.finfo(np.float32).eps  # three sums of up to 7 terms below 1
    np.testing.assert_allclose(smooth, expected, atol=rounding)
    assert values.min() - rounding <= smooth.min() <= smooth.max() <= values.max() + rounding
