"""What the figures of method_agreement and semiconcavity claim, on small configurations."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import method_agreement, semiconcavity


@pytest.mark.parametrize(
    ("scheme", "points"), [("godunov", (32, 64)), ("central", (32, 64)), ("exact", (16, 32))]
)
def test_grid_methods_converge_at_their_order(scheme, points):
    config = dataclasses.replace(method_agreement.SMOKE, grid_points=points)
    with jax.enable_x64(True):
        found = {name: np.asarray(array) for name, array in method_agreement.on_grids(config, scheme).items()}
    if scheme == "exact":
        assert found["value_error"][-1] < 1e-14
        return
    order = np.log2(found["value_error"][-2] / found["value_error"][-1])
    assert order == pytest.approx(method_agreement.NOMINAL[scheme][0], abs=0.15)
    assert found["made"] < 1.5 * found["stated"]


def test_iteration_contracts_by_the_factor_of_theory():
    with jax.enable_x64(True):
        found = method_agreement.iterated(method_agreement.SMOKE)
    fitted, _ = method_agreement.rate({name: np.asarray(array) for name, array in found.items()})
    assert fitted == pytest.approx(float(found["factor"]), rel=1e-2)


def test_order_of_a_power_is_found_and_rounding_left_out():
    size = np.array([8.0, 16.0, 32.0, 64.0])
    slope, deviation = method_agreement.order(size, np.array([8.0**-2, 16.0**-2, 32.0**-2, 1e-16]))
    assert slope == pytest.approx(-2)
    assert deviation == pytest.approx(0, abs=1e-6)
    assert np.isnan(method_agreement.order(size, np.full(4, 1e-16))).all()


@pytest.fixture(scope="module")
def bending(smoke):
    return smoke("semiconcavity").results


def test_no_bound_is_violated_beyond_the_quadrature(bending):
    for name, (excess, error) in semiconcavity.bounds(bending).items():
        assert excess.size, name
        assert excess.max() <= error + 1e-10, name


def test_quadrature_agrees_with_the_closed_form(bending):
    assert bending["plane_quadrature_error"].max() < 1e-9
    assert bending["quadrature_error"].max() < 1e-5


def test_folklore_fails_and_the_minimum_flattens(bending):
    up = semiconcavity.rising(bending)
    assert (up & (bending["curvature"][:-1] > 0)).any()
    assert bending["curvature"].min() < -2 * bending["most_concave"]
    assert np.all(np.diff(bending["tracked_curvature"]) < 0)
    assert np.all(np.diff(bending["basin"]) > -0.05)
    assert bending["num_minima"][0] > bending["num_minima"][-1]
