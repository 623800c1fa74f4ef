"""The grid and the rollouts solve one equation: a double well, where neither has a closed form."""

import jax
import jax.numpy as jnp
import pytest

from jaxopt_pde import control, pde

TEMPERATURE, HORIZON, START = 0.5, 1.0, 0.4
ROLLOUTS = 20_000


def loss(x):
    return jnp.sum((x**2 - 1) ** 2 / 2 + x / 5)


@pytest.fixture(scope="module")
def solution():
    grid = pde.Grid.uniform(-3.0, 3.0, 151, boundary="extrapolate")
    drift = lambda x: -jax.grad(loss)(x)
    times = jnp.linspace(0.0, HORIZON, 21)
    return pde.solve_bellman(grid.evaluate(loss), grid, times, drift=drift, temperature=TEMPERATURE).check()


def sampled(num_steps, guide=None):
    estimator = control.path_integral(
        loss,
        loss,
        horizon=HORIZON,
        temperature=TEMPERATURE,
        num_rollouts=ROLLOUTS,
        num_steps=num_steps,
        guide=guide,
    )
    return jax.jit(estimator.estimate)(jnp.array(START), 0.0, jax.random.key(num_steps))


def test_grid_and_rollouts_agree(solution):
    """Richardson's extrapolation takes the O(h) of the Euler chain away; four standard errors remain."""
    coarse, fine = sampled(40), sampled(80)
    for name, error, expected in (
        ("value", "standard_error", solution.value(jnp.array(START), 0.0)),
        ("control", "control_standard_error", control.feedback(solution)(jnp.array(START), 0.0)),
    ):
        found = 2 * getattr(fine, name) - getattr(coarse, name)
        spread = jnp.hypot(2 * getattr(fine, error), getattr(coarse, error))
        assert abs(found - expected) < 4 * spread, name
        assert 4 * spread < abs(expected) / 3  # a factor of a half or two would be seen


def test_the_grids_control_is_the_guide_without_variance(solution):
    guided = sampled(80, guide=control.feedback(solution))
    free = sampled(80)
    assert guided.effective_sample_size > 0.97 * ROLLOUTS > free.effective_sample_size
    assert guided.standard_error < free.standard_error / 4
    assert abs(guided.value - free.value) < 4 * jnp.hypot(guided.standard_error, free.standard_error)
