"""The grid's control: the gradient it claims to be, where it ends, and that it is the optimal one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import control, pde

COST, TEMPERATURE, HORIZON = 1.5, 0.4, 0.8
TIMES = np.linspace(0.0, HORIZON, 17)


def terminal(x):
    return 0.5 * x**2 + 0.8 * np.cos(2 * x + 0.3)


def well_drift(x):
    return -2 * x * (x**2 - 1) - 0.2


@functools.cache
def value_function():
    """With 81 points, in float64."""
    x = np.linspace(-2.5, 2.5, 81)
    grid = pde.Grid.uniform(-2.5, 2.5, 81, boundary="extrapolate")
    return pde.solve_bellman(
        terminal(x), grid, TIMES, drift=well_drift, temperature=TEMPERATURE, control_cost=COST
    ).check()


def test_it_is_the_gradient_of_the_value_over_the_cost(x64):
    """By differences of ``value``, between times as at them; a scalar and a vector come back as they came."""
    u = value_function()
    alpha = control.feedback(u, control_cost=COST)
    h = 1e-5
    for time in (0.0, 0.33, HORIZON):
        for x in (-1.03, 0.0, 0.71):
            difference = (u.value(x + h, time) - u.value(x - h, time)) / (2 * h)
            # the interpolant's second derivatives jump by O(Δx²) at nodes: h/2 of that, and rounding 1e-16/h
            np.testing.assert_allclose(alpha(x, time), difference / COST, rtol=1e-6, atol=1e-8)
    assert alpha(0.3, 0.1).shape == ()
    vector = alpha(jnp.array([0.3], jnp.float32), 0.1)
    assert vector.shape == (1,)
    assert vector.dtype == jnp.float32
    np.testing.assert_allclose(vector[0], alpha(0.3, 0.1), rtol=1e-6)


def test_the_horizon(x64):
    """∇V/c there, nothing past it; before the first time the answer is not known, and says so."""
    alpha = control.feedback(value_function(), control_cost=COST)
    slope = 0.71 - 1.6 * np.sin(2 * 0.71 + 0.3)
    # the gradient of the cubic is third order: Δx³ = 2.4e-4 times V⁗/24 = 0.5
    np.testing.assert_allclose(alpha(0.71, HORIZON), slope / COST, atol=2e-4)
    for later in (np.nextafter(HORIZON, 1), 2.0, np.inf):
        assert alpha(0.71, later) == 0
    assert np.isnan(alpha(0.71, -0.1))
    grown = jax.grad(lambda time: alpha(0.71, time))(1.0)
    assert grown == 0


def test_in_two_dimensions(x64):
    """u = ½x'Px + const: P solves −Ṗ = −(AP + PA) − P²/c backwards from Q."""
    hessian, last = np.array([[1.0, 0.3], [0.3, 0.6]]), np.array([[0.8, -0.2], [-0.2, 1.1]])
    horizon, count = 0.5, 2000
    riccati = last
    for _ in range(count):  # the midpoint rule: (horizon/count)² = 6e-8
        step = horizon / count
        rate = lambda p: -(hessian @ p + p @ hessian) - p @ p / COST
        riccati = riccati + step * rate(riccati + step / 2 * rate(riccati))
    grid = pde.Grid.uniform((-2.0, -2.0), (2.0, 2.0), (15, 15), boundary="extrapolate")
    x = np.asarray(grid.points)
    u = pde.solve_bellman(
        0.5 * np.einsum("...i,ij,...j", x, last, x),
        grid,
        horizon,
        drift=lambda x: -hessian @ x,
        temperature=0.2,
        control_cost=COST,
    ).check()
    alpha = control.feedback(u, control_cost=COST)
    points = np.random.default_rng(0).uniform(
        -0.6, 0.6, size=(20, 2)
    )  # far from the ends, where u goes on linearly
    found = jax.vmap(alpha, in_axes=(0, None))(points, 0.0)
    # quadratics are exact in space; third order in time, 6e-5 by the bound of test_bellman
    np.testing.assert_allclose(found, points @ riccati / COST, atol=1e-4)
    with pytest.raises(ValueError, match=r"one point of shape \(2,\)"):
        alpha(jnp.zeros(3), 0.0)


def test_verification(x64):
    """∫ρ₀u(·, 0) = E[V + (c/2)∫|α|²] under α, by the Fokker-Planck density; half or twice α costs more.

    The excess of k α is (c/2) E∫|kα − α|² along its own path, which is computed too: an equality for every k.
    """
    u = value_function()
    alpha = control.feedback(u, control_cost=COST)
    x, dx = np.linspace(-2.5, 2.5, 81), 5 / 80
    start = np.exp(-((x - 0.6) ** 2) / 0.1) / np.sqrt(0.1 * np.pi)
    optimum = np.sum(start * u.values[0]) * dx
    field = np.asarray(jax.jit(jax.vmap(jax.vmap(alpha, (0, None)), (None, 0)))(x, TIMES))
    paid, excess = {}, {}
    for factor in (1.0, 0.5, 2.0, -1.0):
        scaled = control.Feedback(u, COST / factor)  # data: one program for all
        density = pde.solve_fokker_planck(
            start, u.grid, TIMES, drift=well_drift, temperature=TEMPERATURE, control=scaled
        ).check()
        rho = np.asarray(density.values)
        mean = lambda values, rho=rho: np.trapezoid(rho * values, x, axis=1)
        power = np.trapezoid(mean(field**2), TIMES)
        paid[factor] = mean(terminal(x))[-1] + COST / 2 * factor**2 * power - optimum
        excess[factor] = COST / 2 * (factor - 1) ** 2 * power
    # second order in Δx of the density (Δx²/12 of its second derivatives) and in the spacing of times
    tolerance = 2.5e-3
    for factor, over in excess.items():
        assert abs(paid[factor] - over) < tolerance, (factor, paid, excess)
    assert min(excess[0.5], excess[2.0]) > 3 * tolerance


def test_it_composes(x64):
    """A scan of vmapped Euler steps under jit, the control handed over as data; and its derivative in x."""
    alpha = control.feedback(value_function(), control_cost=COST)

    @jax.jit
    def descend(alpha, start):
        def step(x, time):
            push = jax.vmap(alpha, in_axes=(0, None, None))(x, time, jax.random.key(0))
            return x + 0.05 * (jax.vmap(well_drift)(x) - push), None

        return jax.lax.scan(step, start, 0.05 * jnp.arange(20))[0]

    start = jnp.linspace(-1.5, 1.5, 5)[:, None]
    x = np.asarray(start)[:, 0]
    for k in range(20):
        x = x + 0.05 * (well_drift(x) - np.array([alpha(point, 0.05 * k) for point in x]))
    np.testing.assert_allclose(descend(alpha, start)[:, 0], x, rtol=1e-12)
    compiled = descend._cache_size()
    descend(control.feedback(value_function(), control_cost=2 * COST), start)
    assert descend._cache_size() == compiled
    h = 1e-6
    difference = (alpha(0.31 + h, 0.2) - alpha(0.31 - h, 0.2)) / (2 * h)
    np.testing.assert_allclose(jax.grad(alpha)(0.31, 0.2), difference, rtol=1e-6)


def test_bad_input():
    with pytest.raises(TypeError, match=r"solution must be a pde\.Solution"):
        control.feedback(lambda x: x)
    grid = pde.Grid.uniform(0.0, 1.0, 5)
    solution = pde.Solution(grid, jnp.ones(1), jnp.ones((1, 5)), "weno5", jnp.int32(0), jnp.int32(0))
    for cost in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="control_cost must be positive"):
            control.feedback(solution, control_cost=cost)
    alpha = control.feedback(solution)
    assert (alpha(0.5, 1.0).shape, alpha(jnp.ones(1), 1.0).shape) == ((), (1,))
    for points in (jnp.ones(5), jnp.ones((2, 1))):
        with pytest.raises(ValueError, match=r"one point of shape \(1,\), got shape .*: vmap over many"):
            alpha(points, 1.0)
