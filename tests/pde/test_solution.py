"""A Solution between grid points and times, outside the box, and what it says about itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import pde
from jaxopt_pde.pde import solution as outcome

BOUNDARIES = ("neumann", "periodic", "extrapolate")


def held(values, grid, times=(0.0,), status=outcome.FINISHED):
    """A Solution with these frames."""
    frames = jnp.stack([jnp.asarray(v) for v in values])
    return pde.Solution(
        grid, jnp.asarray(times, frames.dtype), frames, "exact", jnp.int32(0), jnp.int32(status)
    )


SMOOTH = {  # functions that fit each boundary, with derivatives
    "periodic": (lambda x: np.sin(2 * np.pi * x + 0.4), lambda x: 2 * np.pi * np.cos(2 * np.pi * x + 0.4)),
    "neumann": (lambda x: np.cos(3 * np.pi * x), lambda x: -3 * np.pi * np.sin(3 * np.pi * x)),
    "extrapolate": (
        lambda x: 0.3 * np.sin(5 * x) + x,
        lambda x: 1.5 * np.cos(5 * x) + 1,
    ),
}


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_orders_of_value_and_gradient(x64, boundary):
    """Fourth and third order; with linear tails away from the ends, where the ghosts are only second order."""
    f, slope = SMOOTH[boundary]
    span = (0.2, 0.8) if boundary == "extrapolate" else (-2.0, 3.0)
    x = np.linspace(*span, 1001)
    errors = []
    for n in (40, 80, 160):
        grid = pde.Grid.uniform(0.0, 1.0, n, boundary=boundary)
        solution = held([f(np.asarray(grid.axes[0]))], grid)
        value, gradient = solution.value(x, 0.0), solution.gradient(x, 0.0)
        errors.append((np.abs(value - f(x)).max(), np.abs(gradient - slope(x)).max()))
    measured = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(np.abs(measured - [4, 3]) < 0.3), measured


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_nodes_are_met_and_the_gradient_is_the_values_derivative(x64, boundary):
    """In 2-D on random data, inside, at nodes, in the strips and in the corners outside."""
    grid = pde.Grid.uniform((0.0, -1.0), (1.0, 2.0), (6, 7), boundary=boundary)
    values = np.random.default_rng(0).normal(size=(6, 7))
    solution = held([values], grid)
    np.testing.assert_allclose(solution.value(grid.points, 0.0), values, atol=1e-13)
    rng = np.random.default_rng(1)
    points = jnp.asarray(
        np.concatenate([rng.uniform(-3, 4, (200, 2)), np.asarray(grid.points).reshape(-1, 2)])
    )
    derivative = jax.jit(jax.vmap(jax.grad(lambda x: solution.value(x, 0.0))))(points)
    # values up to 3, slopes 20, products of both outside
    np.testing.assert_allclose(solution.gradient(points, 0.0), derivative, atol=1e-11)
    step = 1e-6 * jnp.asarray(rng.normal(size=points.shape))
    change = solution.value(points + step, 0.0) - solution.value(points - step, 0.0)
    # continuous with its derivative: central differences agree to h·(jump of the second derivative)
    np.testing.assert_allclose(change, 2 * jnp.sum(step * derivative, axis=1), atol=1e-8)


def test_outside_the_box(x64):
    """Wrapped, reflected, or straight on."""
    rng = np.random.default_rng(0)
    values, inside = rng.normal(size=10), rng.uniform(0, 1, 50)
    wrapped, reflected, straight = (
        held([values], pde.Grid.uniform(0.0, 1.0, 10, boundary=b))
        for b in ("periodic", "neumann", "extrapolate")
    )
    for shift in (-3, -1, 1, 2):
        np.testing.assert_allclose(wrapped.value(inside + shift, 0.0), wrapped.value(inside, 0.0), atol=1e-12)
        np.testing.assert_allclose(
            reflected.value(2 * shift + inside, 0.0), reflected.value(inside, 0.0), atol=1e-12
        )
    np.testing.assert_allclose(reflected.value(-inside, 0.0), reflected.value(inside, 0.0), atol=1e-12)
    np.testing.assert_allclose(reflected.gradient(-inside, 0.0), -reflected.gradient(inside, 0.0), atol=1e-11)
    np.testing.assert_allclose(reflected.gradient(np.array([0.0, 1.0]), 0.0), 0, atol=1e-12)
    ends, slopes = straight.value(np.array([0.0, 1.0]), 0.0), straight.gradient(np.array([0.0, 1.0]), 0.0)
    np.testing.assert_allclose(straight.value(-inside, 0.0), ends[0] - slopes[0] * inside, atol=1e-12)
    np.testing.assert_allclose(straight.value(1 + inside, 0.0), ends[1] + slopes[1] * inside, atol=1e-12)


def test_linear_functions_are_exact_everywhere_in_3d(x64):
    """Tails included, for linear tails are what they are."""
    grid = pde.Grid.uniform((-1.0,) * 3, (1.0,) * 3, (4, 5, 6), boundary="extrapolate")
    slope = np.array([1.0, -2.0, 0.5])
    solution = held([np.asarray(grid.points) @ slope + 3], grid)
    x = np.random.default_rng(0).uniform(-4, 4, (100, 3))
    # 216 weights that grow with the distance, up to 10 on each axis
    np.testing.assert_allclose(solution.value(x, 0.0), x @ slope + 3, atol=1e-12)
    np.testing.assert_allclose(solution.gradient(x, 0.0), np.broadcast_to(slope, x.shape), atol=1e-12)


def test_shapes():
    line, plane = pde.Grid.uniform(0.0, 1.0, 5), pde.Grid.uniform((0.0, 0.0), (1.0, 1.0), (5, 6))
    one, two = held([jnp.arange(5.0)], line), held([jnp.ones((5, 6))], plane)
    for shape, value in (
        ((), ()),
        ((3,), (3,)),
        ((3, 4), (3, 4)),
        ((3, 1), (3,)),
        ((1,), ()),
        ((2, 3, 1), (2, 3)),
    ):
        assert one.value(jnp.zeros(shape), 0.0).shape == value
        assert one.gradient(jnp.zeros(shape), 0.0).shape == shape
    for shape in ((2,), (2, 3, 2)):
        assert two.value(jnp.zeros(shape), 0.0).shape == shape[:-1]
        assert two.gradient(jnp.zeros(shape), 0.0).shape == shape
    assert one.value(0, 0).dtype == jnp.float32
    for shape in ((), (3,), (2, 1)):
        with pytest.raises(ValueError, match="x must have a last axis of size 2, got shape"):
            two.value(jnp.zeros(shape), 0.0)
    with pytest.raises(ValueError, match=r"time must be a scalar, got shape \(2,\): vmap"):
        one.value(0.5, jnp.zeros(2))


def test_between_times():
    """Linear between, NaN outside, whatever the neighbours hold."""
    grid = pde.Grid.uniform(0.0, 1.0, 5)
    ramp = held([jnp.full(5, 1.0), jnp.full(5, 3.0), jnp.full(5, 2.0)], grid, (0.1, 0.3, 1.0))
    for time, value in ((0.1, 1), (0.2, 2), (0.3, 3), (0.65, 2.5), (1.0, 2)):
        np.testing.assert_allclose(ramp.value(0.4, time), value, rtol=1e-6)
    times = jnp.array([0.05, 0.09, 1.01, jnp.inf, jnp.nan])
    assert np.all(np.isnan(jax.vmap(lambda t: ramp.value(0.4, t))(times)))
    assert np.all(np.isnan(jax.vmap(lambda t: ramp.gradient(0.4, t))(times)))
    single = held([jnp.full(5, 1.0)], grid, (0.1,))
    assert single.value(0.4, 0.1) == 1
    assert np.isnan(single.value(0.4, 0.2))
    stopped = held([jnp.full(5, 1.0), jnp.full(5, 3.0), jnp.full(5, jnp.nan)], grid, (0.1, 0.3, 1.0))
    np.testing.assert_allclose([stopped.value(0.4, t) for t in (0.1, 0.2, 0.3)], [1, 2, 3], rtol=1e-6)
    first_only = held([jnp.full(5, 1.0), jnp.full(5, jnp.nan)], grid, (0.1, 0.3))
    assert first_only.value(0.4, 0.1) == 1
    assert np.isnan(first_only.value(0.4, 0.2))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (outcome.FINISHED, "computed at all times"),
        (outcome.NONFINITE_INITIAL, "initial data have values that are not finite"),
        (outcome.NONFINITE_VALUES, "stopped being finite: .* lower cfl"),
        (outcome.BAD_NUMBERS, "times are negative or do not increase"),
        (outcome.STEP_LIMIT, "step limit .* raise max_steps, use diffusion='exponential'.*NaN"),
    ],
)
def test_result_is_a_sentence_and_check_raises_it(status, words):
    solution = held([jnp.zeros(5)], pde.Grid.uniform(0.0, 1.0, 5), status=status)
    assert solution.result.endswith(".")
    if status == outcome.FINISHED:
        assert words in solution.result
        assert solution.check() is solution
    else:
        with pytest.raises(RuntimeError, match=words) as caught:
            solution.check()
        assert str(caught.value) == solution.result


def test_a_pytree_through_vmap_and_jit():
    """A batch of solves in one call, then each queried; grid and scheme are static parts."""
    grid = pde.Grid.uniform(0.0, 1.0, 12, boundary="periodic")
    batch = jnp.asarray(np.random.default_rng(0).normal(size=(3, 12)), jnp.float32)
    solve = lambda f, temperature: pde.solve_hamilton_jacobi(f, grid, 0.02, temperature=temperature)
    temperatures = jnp.array([0.5, 0.1, 0.02])
    many = jax.jit(jax.vmap(solve))(batch, temperatures)
    assert many.values.shape == (3, 1, 12)
    assert (many.grid, many.scheme) == (grid, "exact")
    queried = jax.vmap(lambda s: s.value(0.3, 0.02))(many)
    for k in range(3):
        alone = solve(batch[k], float(temperatures[k]))
        np.testing.assert_allclose(many.values[k], alone.values, atol=1e-5)  # float32, sums in another order
        np.testing.assert_allclose(queried[k], alone.value(0.3, 0.02), atol=1e-5)
