"""Beside other people's solvers: hj_reachability without viscosity, exponax with it."""

import exponax
import hj_reachability
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hj_reachability import boundary_conditions, sets

from jaxopt_pde import pde
from tests.pde import oracles


class Kinetic:
    """H = ½|p|² as hj_reachability wants it; its time runs backwards for reachability, forwards here."""

    def hamiltonian(self, state, time, value, slope):
        del state, time, value
        return 0.5 * slope @ slope

    def partial_max_magnitudes(self, state, time, value, slopes):
        del state, time, value
        return jnp.maximum(jnp.abs(slopes.lo), jnp.abs(slopes.hi))


KINETIC = Kinetic()


def their_solution(values, time):
    shape, ndim = values.shape, values.ndim
    with jax.numpy_rank_promotion("allow"):
        grid = hj_reachability.Grid.from_lattice_parameters_and_boundary_conditions(
            sets.Box(np.zeros(ndim), np.ones(ndim)), shape, (boundary_conditions.periodic,) * ndim
        )
        settings = hj_reachability.SolverSettings.with_accuracy("medium")
        return np.asarray(
            hj_reachability.step(settings, KINETIC, grid, 0.0, jnp.asarray(values), time, progress_bar=False)
        )


def test_hj_reachability_in_1d(x64):
    """Both against the envelope past the kinks, in L1: ours is no worse, and they agree to the sum of the errors."""
    n, time = 100, 0.1
    x = np.arange(n) / n
    truth = oracles.moreau_line(oracles.wave, x, time, spread=1.5, points=20_001)
    grid = pde.Grid.uniform(0.0, 1.0, n, boundary="periodic")
    theirs = their_solution(oracles.wave(x), time)
    their_error = np.abs(theirs - truth).mean()
    assert their_error < 5e-3  # the oracle and the wiring are right: ENO2 has Δx² = 1e-4 times slopes of 6
    for scheme, factor in (("weno5", 1.0), ("exact", 0.1)):
        ours = pde.solve_hamilton_jacobi(oracles.wave(x), grid, time, temperature=0, scheme=scheme).check()
        assert np.abs(np.asarray(ours.values[0]) - truth).mean() <= factor * their_error


def test_hj_reachability_in_2d(x64):
    n, time = 40, 0.1
    x, y = np.meshgrid(np.arange(n) / n, np.arange(n) / n, indexing="ij")
    w = 2 * np.pi
    values = 0.3 * np.cos(w * x) + 0.2 * np.sin(w * y) + 0.15 * np.cos(w * (x + y))
    grid = pde.Grid.uniform((0.0, 0.0), (1.0, 1.0), (n, n), boundary="periodic")
    exact, weno5 = (
        np.asarray(pde.solve_hamilton_jacobi(values, grid, time, temperature=0, scheme=s).check().values[0])
        for s in ("exact", "weno5")
    )
    theirs = their_solution(values, time)
    error = np.abs(theirs - exact).mean()
    assert error < 2e-3  # of an amplitude of 1
    assert np.abs(weno5 - exact).mean() <= error


@pytest.mark.parametrize("ndim", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_exponax(x64, ndim):
    """Their u_t + ½|∇u|² = ν Δu, ν = T/2, has its mean taken out.

    It keeps waves up to N/3 = 26, and its step is fourth order.
    """
    n, time, temperature, steps = 80, 0.1, 0.1, 200
    axes = np.meshgrid(*[np.arange(n) / n] * ndim, indexing="ij")
    values = 0.2 * sum(np.cos(2 * np.pi * x) for x in axes) + 0.1 * np.sin(2 * np.pi * (axes[0] + axes[-1]))
    with jax.numpy_rank_promotion("allow"):
        stepper = exponax.stepper.generic.GeneralGradientNormStepper(
            ndim,
            1.0,
            n,
            time / steps,
            linear_coefficients=(0.0, 0.0, temperature / 2),
            gradient_norm_scale=1.0,
            order=4,
        )
        theirs = np.asarray(exponax.repeat(stepper, steps)(jnp.asarray(values)[None])[0])
    grid = pde.Grid.uniform((0.0,) * ndim, (1.0,) * ndim, (n,) * ndim, boundary="periodic")
    ours = pde.solve_hamilton_jacobi(values, grid, time, temperature=temperature).check().values[0]
    np.testing.assert_allclose(ours - ours.mean(), theirs - theirs.mean(), atol=1e-8)
