"""What the figure of csgd_network claims, on a small configuration."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import csgd_network
from experiments._network_control import open_loop
from jaxopt_pde import control


@pytest.fixture(scope="module")
def trained(smoke):
    return smoke("csgd_network").results


def test_rollouts_are_counted_as_gradients(trained):
    """What the estimates say they spent is the stated cost, is within the budget, and is nearly all of it."""
    config = csgd_network.SMOKE
    for m, method in enumerate(csgd_network.methods(config).values()):
        blocks = trained["updates"][m] // method.hold
        np.testing.assert_array_equal(trained["gradients"][m], blocks * method.cost(config))
        left = [config.first_report, config.num_gradients] - trained["gradients"][m]
        assert np.all((left >= 0) & (left < method.cost(config)))
    guided = csgd_network.methods(config)["CSGD, held, guided"]
    assert guided.cost(config) == (8 + 3) * 16 + 10


def test_weights_collapse_at_the_temperature_of_the_minibatches(trained):
    """One rollout of eight has the weight without a guide; all run hot share it better."""
    cold, hot = trained["probe_size"][0, 0].mean(axis=-1)
    assert cold < 1.1
    assert hot > 1.5
    assert np.all(trained["collapsed"] >= 0.5)


def test_tuning_takes_the_best_rate_of_each_budget(trained):
    picked, rates = csgd_network.tuned(trained, "validation_error")
    np.testing.assert_array_equal(picked.mean(-1), trained["validation_error"].mean(-1).min(-1))
    assert rates.shape == trained["gradients"].shape


def test_the_open_loop_guide_solves_the_noiseless_linear_quadratic_problem(x64):
    """Its sweeps converge to the optimal control along the optimal path of f = ½ a x², V = ½ q x², up to O(h)."""
    steepness, weight, horizon, steps = 0.7, 0.5, 1.0, 200
    times = jnp.arange(steps) * (horizon / steps)
    plan = open_loop(
        lambda x, _: steepness * x, lambda x: weight * jnp.sum(x**2) / 2, jnp.array([1.0]), times, 40
    )
    exact = control.linear_quadratic(steepness, weight, horizon=horizon, temperature=1.0)
    move = lambda x, s: (x - horizon / steps * (steepness * x + exact.control(x, s)), exact.control(x, s))
    _, along = jax.lax.scan(move, jnp.array([1.0]), times)
    np.testing.assert_allclose(plan, along, rtol=0.01)


def test_a_hold_that_does_not_divide_the_horizon_is_refused():
    with pytest.raises(ValueError, match="hold=3 must divide horizon=10"):
        csgd_network.run(dataclasses.replace(csgd_network.SMOKE, hold=3))
