"""Derivatives of a functional of the solution, against central differences in float64.

Central differences with h = 1e-5 err by h²/6 times a third derivative and by rounding 1e-16/h: 1e-9 or so here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import pde
from tests.pde import oracles

H = 1e-5


def check(functional, initial, numbers, *, rtol=1e-6):
    """Reverse mode in everything, and forward mode along one direction of everything."""
    functional = jax.jit(functional)
    gradient = jax.jit(jax.grad(functional, argnums=tuple(range(1 + len(numbers)))))(initial, *numbers)
    directions = np.random.default_rng(0).normal(size=(3, len(initial)))
    for direction in directions:
        difference = functional(initial + H * direction, *numbers) - functional(
            initial - H * direction, *numbers
        )
        np.testing.assert_allclose(gradient[0] @ direction, difference / (2 * H), rtol=rtol, atol=1e-8)
    for k, number in enumerate(numbers):
        h = H * number
        up, down = ([*numbers[:k], number + s * h, *numbers[k + 1 :]] for s in (1, -1))
        difference = (functional(initial, *up) - functional(initial, *down)) / (2 * h)
        np.testing.assert_allclose(gradient[1 + k], difference, rtol=rtol, atol=1e-8)
    return gradient


WEIGHTS = np.random.default_rng(3).normal(size=24)


def test_exact_route(x64):
    """Products, logarithms, Laplace's method; r = c·Δx²/T is 0.1, 1 and 30. Linear tails are part of it."""
    grid = pde.Grid.uniform(-2.0, 2.0, 24, boundary="extrapolate")

    @jax.jit
    def functional(initial, time, temperature):
        return jnp.sum(
            WEIGHTS * pde.solve_hamilton_jacobi(initial, grid, time, temperature=temperature).values[0]
        )

    gradient = jax.jit(jax.grad(functional, (0, 1, 2)))
    x = np.linspace(-2, 2, 24)
    initial, time = 0.3 * np.cos(2 * x) + 0.2 * x**2 + 0.05 * np.sin(5 * x), 0.5
    for temperature in (3.0, 0.3, 0.01):
        found = gradient(initial, time, temperature)
        for direction in np.random.default_rng(0).normal(size=(3, 24)):
            change = functional(initial + H * direction, time, temperature)
            change -= functional(initial - H * direction, time, temperature)
            np.testing.assert_allclose(found[0] @ direction, change / (2 * H), rtol=1e-6, atol=1e-7)
        in_time = functional(initial, time + H, temperature) - functional(initial, time - H, temperature)
        np.testing.assert_allclose(found[1], in_time / (2 * H), rtol=1e-6, atol=1e-7)
        h = H * temperature
        in_temperature = functional(initial, time, temperature + h) - functional(
            initial, time, temperature - h
        )
        np.testing.assert_allclose(found[2], in_temperature / (2 * h), rtol=1e-6, atol=1e-6)
        # adding a constant to f adds it to u
        np.testing.assert_allclose(np.sum(found[0]), np.sum(WEIGHTS), rtol=1e-9)


@pytest.mark.parametrize(
    ("scheme", "diffusion"),
    [
        ("godunov", "explicit"),
        ("engquist_osher", "exponential"),
        ("weno5", "explicit"),
        pytest.param("weno5", "exponential", marks=pytest.mark.slow),
    ],
)
def test_stepping(x64, scheme, diffusion):
    """Some 10 steps. Godunov's max has a kink where p⁻ = -p⁺ only, which random data do not meet."""
    grid = pde.Grid.uniform(0.0, 1.0, 24, boundary="periodic")

    def functional(initial, temperature):
        solution = pde.solve_hamilton_jacobi(
            initial, grid, 0.04, temperature=temperature, scheme=scheme, diffusion=diffusion, max_steps=64
        )
        return jnp.sum(WEIGHTS * solution.values[0])

    initial = oracles.wave(np.arange(24) / 24 + 0.01)
    # weno5's weights vary on the scale of the data's own differences: third derivatives are 1e2 larger
    gradient = check(functional, initial, [0.11], rtol=1e-6 if scheme != "weno5" else 1e-5)
    np.testing.assert_allclose(np.sum(gradient[0]), np.sum(WEIGHTS), rtol=1e-9)
    tangent = (np.cos(np.arange(24.0)), 0.3)
    along = jax.jit(lambda f, temperature: jax.jvp(functional, (f, temperature), tangent)[1])(initial, 0.11)
    np.testing.assert_allclose(along, gradient[0] @ tangent[0] + gradient[1] * tangent[1], rtol=1e-9)


def test_a_parameter_the_hamiltonian_closes_over(x64):
    """Central fluxes have no artificial viscosity to hold fixed: the derivative is the discrete one."""
    grid = pde.Grid.uniform(0.0, 1.0, 24, boundary="periodic")

    def functional(initial, speed):
        solution = pde.solve_hamilton_jacobi(
            initial,
            grid,
            0.02,
            temperature=0.5,
            scheme="central",
            hamiltonian=lambda p: speed * jnp.sqrt(1 + jnp.sum(p**2)),
            max_steps=64,
        )
        return jnp.sum(WEIGHTS * solution.values[0])

    check(functional, oracles.wave(np.arange(24) / 24), [1.3])


def test_the_gradient_of_a_solution_query(x64):
    """∂u(x, t)/∂f is the local Gibbs density's weight: it is nonnegative where resolved and sums to 1."""
    grid = pde.Grid.uniform(0.0, 1.0, 24, boundary="periodic")
    value = lambda f: pde.solve_hamilton_jacobi(f, grid, 0.1, temperature=0.5).value(0.25, 0.1)
    weights = np.asarray(jax.jit(jax.grad(value))(oracles.wave(np.arange(24) / 24)))
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
    y = np.arange(24) / 24
    gap = (0.25 - y[:, None] + np.arange(-4, 5)) ** 2
    density = np.exp(-oracles.wave(y) / 0.5) * np.exp(-gap / (2 * 0.05)).sum(axis=1)
    np.testing.assert_allclose(weights, density / density.sum(), atol=1e-12)  # 0.25 is a node
