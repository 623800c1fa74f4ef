"""What the figure of csgd_improvement claims, on small configurations."""

import dataclasses

import numpy as np
import pytest

from experiments import csgd_improvement
from experiments._controlled_paths import by_path_integral, by_training, on_grid
from experiments.csgd_improvement import SCALES, SMOKE


def as_results(stage):
    return {name: array[None] for name, array in stage.items()}


def assert_the_identity(results):
    """Within 4 standard errors and the square of the Euler step's relative bias, which extrapolation leaves."""
    found = csgd_improvement.checks(results)
    allowed = 4 * found["extrapolated"][:, 1] + found["coarse"][:, 0] ** 2
    assert np.all(np.abs(found["extrapolated"][:, 0]) < allowed)
    assert np.all(allowed < 0.2)  # beyond which a control too weak by half would pass
    cost = found["cost"]
    assert np.all(np.abs(cost[:, 0]) < 4 * cost[:, 1] + found["coarse"][:, 0] ** 2)
    residual = results["scaled_residual"] / results["improvement"][:, 1, :1, None]
    assert np.all(np.abs(residual[..., 0]) > 4 * residual[..., 1] + np.abs(found["coarse"][:, :1]))


@pytest.fixture(scope="module")
def quadratic(smoke):
    return smoke("csgd_improvement").results


def test_the_identity_holds_for_the_closed_form_and_no_multiple_of_it(quadratic):
    assert_the_identity(quadratic)
    share = quadratic["spent"][0, 1, 0] / quadratic["improvement"][0, 1, 0]
    assert 0.1 < share < 0.9  # neither half is the whole


def test_the_inequality_sees_the_sign_only(quadratic):
    mean, error = np.moveaxis(quadratic["scaled_slack"][0], -1, 0)
    np.testing.assert_array_equal(np.sign(mean), np.sign(SCALES))
    assert np.all(np.abs(mean) > 4 * error)


def test_the_total_cost_and_not_the_terminal_one_is_best_at_the_optimal_control(quadratic):
    scale = quadratic["exact_scale"]
    assert abs(scale[quadratic["exact_slack"].argmax()] - 1) <= np.diff(scale)[0]
    assert np.all(np.diff(quadratic["exact_improvement"]) > 0)
    for trivial in (0.0, 1.0):
        assert np.interp(trivial, scale, quadratic["exact_residual"]) == pytest.approx(0, abs=2e-3)


def test_the_curves_are_what_is_measured(quadratic):
    """By 4 standard errors and the first order in h, whose size the residuals at two steps tell."""
    found = csgd_improvement.checks(quadratic)
    for name in ("improvement", "slack", "residual"):
        exact = np.interp(quadratic["curve_scale"], quadratic["exact_scale"], quadratic[f"exact_{name}"])
        mean, error = quadratic[f"curve_{name}"]
        allowed = 4 * error + 4 * found["fine"][0, 0] * np.maximum(1, np.abs(exact))
        np.testing.assert_array_less(np.abs(mean - exact), allowed)


def test_the_identity_holds_on_a_grid():
    config = dataclasses.replace(SMOKE, paths=500, grid_steps=(40, 80))
    assert_the_identity(as_results(csgd_improvement.measure(config, on_grid(config, 1, 81))))


@pytest.mark.slow
@pytest.mark.parametrize("guided", [False, True])
def test_the_identity_holds_for_path_integrals(guided):
    config = dataclasses.replace(SMOKE, sampled_steps=(20, 40), value_rollouts=20_000)
    case = by_path_integral(config, 10, 32, 100, guided)
    assert_the_identity(as_results(csgd_improvement.measure(config, case)))


@pytest.mark.slow
def test_the_identity_holds_for_a_trained_network():
    config = dataclasses.replace(SMOKE, sampled_steps=(20, 40), updates=600)
    assert_the_identity(as_results(csgd_improvement.measure(config, by_training(config, 10))))
