"""The Fokker-Planck solver: what it keeps exactly, closed-form Gaussians, and its duality with the Bellman equation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import pde
from jaxopt_pde.pde import fokker_planck
from tests.pde import oracles

TEMPERATURE = 0.5


def weights(grid):
    """Trapezoidal weights."""
    total = np.ones(grid.shape)
    for axis, (n, boundary) in enumerate(zip(grid.shape, grid.boundary, strict=True)):
        ends = np.ones(n)
        if boundary != "periodic":
            ends[[0, -1]] = 0.5
        total *= ends.reshape([-1 if k == axis else 1 for k in range(grid.ndim)])
    return total * np.prod(grid.spacing)


def gaussian(x, mean, variance):
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


def ornstein_uhlenbeck(x, mean, variance, time, temperature=TEMPERATURE):
    spread = variance * np.exp(-2 * time) - temperature * np.expm1(-2 * time) / 2
    return gaussian(x, mean * np.exp(-time), spread)


def test_the_ornstein_uhlenbeck_density_is_second_order(x64):
    found = []
    for n in (41, 81):
        grid, x = pde.Grid.uniform(-4.0, 4.0, n), np.linspace(-4, 4, n)
        solve = functools.partial(pde.solve_fokker_planck, gaussian(x, 1.0, 0.2), grid, [0.4, 1.0])
        solution = solve(drift=lambda x: -x, temperature=TEMPERATURE).check()
        truth = np.stack([ornstein_uhlenbeck(x, 1.0, 0.2, time) for time in (0.4, 1.0)])
        found.append(np.max(np.abs(solution.values - truth), axis=1))
    assert np.all(np.abs(np.log2(found[0] / found[1]) - 2) < 0.15), found


@pytest.mark.slow
def test_a_control_that_depends_on_time(x64):
    """α = x/(1 + s), b = 0: the mean falls as 1/(1 + s), the variance is (v₀ + T((1 + s)³ − 1)/3)/(1 + s)²."""
    found = []
    for n in (41, 81):
        grid, x = pde.Grid.uniform(-4.0, 4.0, n), np.linspace(-4, 4, n)
        solution = pde.solve_fokker_planck(
            gaussian(x, 1.5, 0.3),
            grid,
            2.0,
            drift=jnp.zeros_like,
            temperature=0.3,
            control=lambda x, time, key: x / (1 + time),
        ).check()
        truth = gaussian(x, 0.5, (0.3 + 0.1 * 26) / 9)
        found.append(np.max(np.abs(solution.values[0] - truth)))
    assert abs(np.log2(found[0] / found[1]) - 2) < 0.15, found


@pytest.mark.slow
def test_a_rotating_gaussian_in_two_dimensions(x64):
    """b = −x + ωJx: the mean turns, the isotropic variance does not notice. Not a gradient."""
    spin, time, temperature, found = 2.0, 0.7, 1.0, []
    matrix = jnp.array([[-1.0, -spin], [spin, -1.0]])
    for n in (25, 49):
        grid = pde.Grid.uniform((-3.5, -3.5), (3.5, 3.5), (n, n))
        x = np.asarray(grid.points)
        at = lambda mean, x=x: gaussian(x[..., 0], mean[0], 0.5) * gaussian(x[..., 1], mean[1], 0.5)
        solution = pde.solve_fokker_planck(
            at((1.0, 0.0)), grid, time, drift=lambda x: matrix @ x, temperature=temperature
        )
        truth = at(np.exp(-time) * np.array([np.cos(spin * time), np.sin(spin * time)]))
        found.append(np.max(np.abs(solution.check().values[0] - truth)))
    assert abs(np.log2(found[0] / found[1]) - 2) < 0.2, found


@pytest.mark.parametrize(
    ("temperature", "boundary"),
    [(0.05, ("periodic", "extrapolate")), pytest.param(0, ("neumann", "periodic"), marks=pytest.mark.slow)],
)
def test_mass_and_sign(x64, temperature, boundary):
    """Random densities with zeros, random drifts out of the box, every boundary, a control that jumps."""
    grid = pde.Grid.uniform((0.0, 0.0), (1.0, 1.0), (12, 11), boundary=boundary)
    rng = np.random.default_rng(0)
    density = np.maximum(rng.normal(size=grid.shape), 0)
    mix = rng.normal(size=(2, 2)) * 3
    solution = pde.solve_fokker_planck(
        density,
        grid,
        [0.0, 0.01, 0.2],
        drift=lambda x: mix @ jnp.sin(7 * x),
        temperature=temperature,
        control=lambda x, time, key: jnp.where(time < 0.05, 1.0, -20.0) * x,
    ).check()
    np.testing.assert_array_equal(solution.values[0], density)
    assert solution.values.min() >= 0
    mass = np.sum(np.asarray(solution.values) * weights(grid), axis=(1, 2))
    # one rounding of the sum of points and one of each step
    np.testing.assert_allclose(mass, mass[0], rtol=2**-53 * (100 + int(solution.num_steps)))
    assert np.abs(np.asarray(solution.values[2] - density)).max() > 0.5


def well(x):
    return 0.5 * (x[0] ** 2 - 1) ** 2 + 0.2 * x[0]


def well_drift(x):
    return -2 * x * (x**2 - 1) - 0.2


def ripple(x):
    return jnp.cos(x[0]) + jnp.cos(x[1]) + 0.5 * jnp.sin(2 * x[0]) * jnp.cos(x[1])


def ripple_drift(x):
    along = jnp.sin(x[0]) - jnp.cos(2 * x[0]) * jnp.cos(x[1])
    return jnp.stack([along, jnp.sin(x[1]) + 0.5 * jnp.sin(2 * x[0]) * jnp.sin(x[1])])


def test_no_mass_is_lost_in_single_precision():
    """Roundings that do not all fall to one side add up like a random walk: √steps of them, five times over."""
    grid = pde.Grid.uniform(-2.0, 2.0, 81)
    start = grid.evaluate(lambda x: jnp.exp(-8 * (x[0] - 1) ** 2))
    solution = pde.solve_fokker_planck(
        start, grid, 8.0, drift=lambda x: 2 * x * (1 - x**2), temperature=1.2
    ).check()
    before, after = (np.sum(weights(grid) * np.asarray(v, float)) for v in (start, solution.values[-1]))
    assert int(solution.num_steps) > 4000
    assert abs(after / before - 1) < 5 * np.sqrt(int(solution.num_steps)) * 2**-24


def test_the_gibbs_density_stays(x64):
    """Exactly for a quartic loss."""
    grid = pde.Grid.uniform(-2.0, 2.0, 41)
    gibbs = jnp.exp(-2 * grid.evaluate(well) / TEMPERATURE)
    solution = pde.solve_fokker_planck(gibbs, grid, 1.0, drift=well_drift, temperature=TEMPERATURE).check()
    # rates of size 2T/Δx² times the roundings of ρ; relaxation takes a time of order 1
    np.testing.assert_allclose(solution.values[0], gibbs, rtol=2**-52 * int(solution.num_steps))


@pytest.mark.slow
def test_the_gibbs_density_stays_to_fourth_order(x64):
    """For other losses; in two dimensions, periodic and not."""
    found = []
    for n in (16, 32):
        grid = pde.Grid.uniform((0.0, 0.0), (2 * np.pi, np.pi), (n, n + 1), boundary=("periodic", "neumann"))
        gibbs = jnp.exp(-2 * grid.evaluate(ripple) / 1.5)
        solution = pde.solve_fokker_planck(gibbs, grid, 0.5, drift=ripple_drift, temperature=1.5).check()
        found.append(float(jnp.max(jnp.abs(solution.values[0] / gibbs - 1))))
    assert abs(oracles.orders(found)[0] - 4) < 0.5, found


def test_every_density_comes_to_gibbs_at_the_rate_of_the_gap(x64):
    """The double well forgets where the mass was; the rate is the first excited level of the Schrödinger operator
    −(T/2)∂² + |f'|²/(2T) − f''/2, that the drift and diffusion are similar to."""
    grid = pde.Grid.uniform(-2.5, 2.5, 81)
    x = np.asarray(grid.axes[0])
    start = gaussian(x, 1.0, 0.05)
    solution = pde.solve_fokker_planck(
        start, grid, [0.3, 10.0, 15.0], drift=well_drift, temperature=1.0
    ).check()
    gibbs = np.exp(-2 * np.asarray(grid.evaluate(well)))
    gibbs *= np.sum(weights(grid) * start) / np.sum(weights(grid) * gibbs)
    left = x < 0
    assert np.sum((weights(grid) * solution.values[0])[left]) < 0.1 < np.sum((weights(grid) * gibbs)[left])
    fine = np.linspace(-2.5, 2.5, 200)
    potential = well_drift(fine) ** 2 / 2 - (6 * fine**2 - 2) / 2
    operator = np.diag(potential) - oracles.second_difference(200, fine[1] - fine[0], "extrapolate") / 2
    level = np.linalg.eigvalsh(operator[1:-1, 1:-1])  # symmetric; nothing is at the ends
    assert abs(level[0]) < 1e-3
    gap = np.max(np.abs(np.asarray(solution.values[1:]) - gibbs), axis=1)
    # Δx² = 4e-3 times fourth derivatives that count in units of the well's width 0.5
    np.testing.assert_allclose(np.log(gap[0] / gap[1]) / 5, level[1], rtol=0.02)


@pytest.mark.slow
def test_without_noise_it_is_upwind(x64):
    """ρ₀(xeˢ)eˢ for b = −x, first order in the mean; 0 as a number and as an array agree."""
    found = []
    for n in (81, 161):
        grid, x = pde.Grid.uniform(-3.0, 3.0, n), np.linspace(-3, 3, n)
        solve = lambda t, grid=grid, x=x: pde.solve_fokker_planck(
            gaussian(x, 1.0, 0.2), grid, 0.5, drift=lambda x: -x, temperature=t
        ).check()
        truth = gaussian(x * np.exp(0.5), 1.0, 0.2) * np.exp(0.5)
        upwind = solve(0).values[0]
        found.append(np.sum(np.abs(upwind - truth)) * grid.spacing[0])
    np.testing.assert_allclose(solve(jnp.asarray(0.0)).values[0], upwind, atol=1e-9)
    assert 0.75 < oracles.orders(found)[0] < 1.1, found


def test_duality_with_the_bellman_equation(x64):
    """u(x₀, 0) = −cT log E exp(−V(X_h)/(cT)), E by the density from x₀: two solvers, one number, as Δx → 0.

    For c → ∞ it is E V. The density of one grid point is the transpose of the backward equation, of second order.
    """
    horizon, temperature, found = 0.5, 0.6, []
    terminal = lambda x: 0.5 * x**2 + np.cos(2 * x)
    for n in (41, 81):
        grid, x = pde.Grid.uniform(-3.0, 3.0, n, boundary="extrapolate"), np.linspace(-3, 3, n)
        here = int(np.argmin(np.abs(x - 0.6)))
        point = np.zeros(n)
        point[here] = 1 / grid.spacing[0]
        descent = dict(drift=well_drift, temperature=temperature)
        density = pde.solve_fokker_planck(point, grid, horizon, **descent).check().values[0]
        gaps = []
        for cost in (0.7, 1e7):
            heat = cost * temperature
            low = terminal(x).min()
            mean = np.sum(weights(grid) * density * np.expm1((low - terminal(x)) / heat))
            expected = low - heat * np.log1p(mean)
            value = pde.solve_bellman(
                terminal(x), grid, horizon, control_cost=cost, scheme="weno5", **descent
            )
            gaps.append(abs(float(value.check().values[0, here]) - expected))
        found.append(gaps)
    found = np.array(found)
    assert np.all(np.abs(np.log2(found[0] / found[1]) - 2) < 0.3), found


@pytest.mark.parametrize("controlled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_derivatives_against_differences(x64, controlled):
    """In ρ₀, T, the time and a number that the drift closes over, or a control that is data carries."""
    grid = pde.Grid.uniform(-2.0, 2.0, 16)
    rng = np.random.default_rng(4)
    weight, start, direction = rng.normal(size=16), rng.uniform(0.5, 1, size=16), rng.normal(size=16)

    @jax.jit
    def functional(density, numbers):
        temperature, time, strength = numbers
        push = dict(drift=lambda x: -strength * x)
        if controlled:
            held = jax.tree_util.Partial(lambda k, x, time, key: k * x * jnp.cos(time), strength)
            push = dict(drift=lambda x: -x, control=held)
        solution = pde.solve_fokker_planck(density, grid, time, temperature=temperature, max_steps=27, **push)
        return weight @ solution.values[0]

    numbers = np.array([0.4, 0.19, 0.7])
    in_density, in_numbers = jax.jit(jax.grad(functional, (0, 1)))(start, numbers)
    h = 1e-5
    for k in range(3):
        shift = h * np.eye(3)[k]
        difference = (functional(start, numbers + shift) - functional(start, numbers - shift)) / (2 * h)
        np.testing.assert_allclose(in_numbers[k], difference, rtol=1e-6, atol=1e-8)
    # linear in ρ₀
    along = functional(direction + 3, numbers) - functional(np.full(16, 3.0), numbers)
    np.testing.assert_allclose(in_density @ direction, along, rtol=1e-9)


GRID = pde.Grid.uniform(-1.0, 1.0, 9)
FLAT = np.full(9, 0.5, np.float32)


def pull(x, time, key):
    return x


def test_nothing_is_compiled_twice():
    solve = lambda k: pde.solve_fokker_planck(
        FLAT * k, GRID, 0.1 * k, drift=lambda x: -k * x, temperature=0.1 * k, control=pull
    )
    first = solve(1.0)
    compiled = fokker_planck._solve._cache_size()
    assert not np.allclose(solve(2.0).values, first.values)
    assert fokker_planck._solve._cache_size() == compiled


REFUSED = {
    "negative": (
        dict(density=FLAT - np.eye(9, dtype=np.float32)[3]),
        ValueError,
        r"at least 0, got -0.5 at index \(3,\)",
    ),
    "shape": (dict(density=FLAT[:5]), ValueError, "density must have the grid's shape"),
    "infinite": (dict(density=FLAT * np.float32(np.inf)), ValueError, "density must be finite"),
    "times": (dict(times=[0.2, 0.1]), ValueError, "increasing"),
    "cold": (dict(temperature=-1.0), ValueError, "temperature must be finite and at least 0"),
    "cfl": (dict(cfl=1.1), ValueError, "cfl must be at most 1"),
    "drift": (dict(drift=lambda x: x / 0), ValueError, r"drift must be finite on the grid, got .* at x = "),
    "drift shape": (dict(drift=lambda x: x[0]), ValueError, r"drift must give a vector of shape \(1,\)"),
    "control": (dict(control=1.0), TypeError, "control must be a function"),
    "control shape": (
        dict(control=lambda x, t, k: x[0]),
        ValueError,
        r"control must give a vector of shape \(1,\)",
    ),
    "grid": (dict(grid=pde.Grid.uniform(0.0, 1.0, 3), density=FLAT[:3]), ValueError, "at least 4 points"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_runs(name):
    changed, error, words = REFUSED[name]
    arguments = dict(density=FLAT, grid=GRID, times=0.1, drift=lambda x: -x, temperature=0.1) | changed
    positional = [arguments.pop(key) for key in ("density", "grid", "times")]
    with pytest.raises(error, match=words):
        pde.solve_fokker_planck(*positional, **arguments)


def test_what_is_traced_is_told_by_the_status():
    @jax.jit
    def solve(density, times, temperature, slope):
        return pde.solve_fokker_planck(
            density, GRID, times, drift=lambda x: slope * x, temperature=temperature, max_steps=20
        )

    fine = dict(density=FLAT, times=np.array([0.1, 0.2]), temperature=0.1, slope=-1.0)
    for changed, words in (
        ({}, "computed at all times"),
        (dict(density=FLAT * np.nan), "initial data"),
        (dict(density=-FLAT), "initial density"),
        (dict(slope=np.nan), "drift"),
        (dict(times=np.array([0.2, 0.1])), "do not increase"),
        (dict(temperature=-0.1), "temperature is negative"),
        (dict(times=np.array([0.1, 9.0])), "step limit"),
    ):
        solution = solve(**(fine | changed))
        assert words in solution.result, (changed, solution.result)
    assert np.all(np.isfinite(solution.values[0]))
    assert np.all(np.isnan(solution.values[1]))
