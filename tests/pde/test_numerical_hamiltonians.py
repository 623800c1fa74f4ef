"""Differences and numerical Hamiltonians: what makes a scheme consistent and monotone."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import pde
from jaxopt_pde.pde import stencils

slopes = st.floats(-10, 10, allow_subnormal=False)
LF = lambda left, right: stencils.lax_friedrichs(left, right, None, (10.0,) * len(left))
FLUXES = {"godunov": stencils.godunov, "engquist_osher": stencils.engquist_osher, "lax_friedrichs": LF}
EPS = np.finfo(np.float32).eps


def at(flux, left, right):
    wrap = lambda p: tuple(jnp.asarray([x], jnp.float32) for x in np.atleast_1d(p))
    return float(FLUXES[flux](wrap(left), wrap(right))[0])


@pytest.mark.parametrize("flux", FLUXES)
@hypothesis.given(st.tuples(slopes, slopes))
@hypothesis.settings(max_examples=40)
def test_consistent(flux, p):
    """Ĥ(p, p) = H(p), to the rounding of the sum of two squares."""
    np.testing.assert_allclose(at(flux, p, p), 0.5 * np.sum(np.square(p)), rtol=4 * EPS, atol=1e-30)


@pytest.mark.parametrize("flux", FLUXES)
@hypothesis.given(slopes, slopes, st.floats(0, 5))
@hypothesis.settings(max_examples=40)
def test_monotone(flux, left, right, more):
    """Nondecreasing in p⁻, nonincreasing in p⁺ (Lax-Friedrichs: while |p| ≤ α = 10)."""
    higher, lower = min(left + more, 10.0), max(right - more, -10.0)
    rounding = 4 * EPS * 200  # of values up to α·20/2 + 50
    assert at(flux, higher, right) >= at(flux, left, right) - rounding
    assert at(flux, left, lower) >= at(flux, left, right) - rounding


@hypothesis.given(slopes, slopes)
@hypothesis.settings(max_examples=40)
def test_godunov_is_the_extremum_and_engquist_osher_adds_at_peaks(left, right):
    """Godunov: min of ½p² over [p⁻, p⁺], or max over [p⁺, p⁻]. Engquist-Osher never less, equal off peaks."""
    inside = np.linspace(min(left, right), max(left, right), 7)
    candidates = 0.5 * np.append(inside, [np.clip(0.0, inside[0], inside[-1])]) ** 2
    expected = candidates.min() if left <= right else candidates.max()
    np.testing.assert_allclose(at("godunov", left, right), expected, rtol=4 * EPS, atol=1e-30)
    assert at("engquist_osher", left, right) >= at("godunov", left, right) * (1 - 4 * EPS)
    if not left > 0 > right:
        np.testing.assert_allclose(at("engquist_osher", left, right), expected, rtol=4 * EPS, atol=1e-30)


@pytest.fixture(scope="module")
def field():
    grid = pde.Grid.uniform((0.0, 0.0), (1.0, 2.0), (6, 7), boundary=("neumann", "periodic"))
    return jnp.asarray(np.random.default_rng(0).normal(size=(6, 7)), jnp.float32), grid


def test_plain_functions_are_the_named_ones(field):
    values, grid = field
    one, centre, high = (
        difference(values, grid)
        for difference in (
            stencils.one_sided_differences,
            stencils.central_differences,
            stencils.weno5_differences,
        )
    )
    alpha = tuple(max(float(jnp.abs(p).max()) for p in pair) for pair in zip(*one, strict=True))
    expected = {
        "godunov": stencils.godunov(*one),
        "engquist_osher": stencils.engquist_osher(*one),
        "lax_friedrichs": stencils.lax_friedrichs(*one, None, alpha),
        "central": stencils.godunov(*centre),
        "weno5": stencils.godunov(*high),
    }
    assert set(expected) == set(stencils.SCHEMES)
    for name, values_of in expected.items():
        np.testing.assert_array_equal(
            pde.numerical_hamiltonian(values, grid, scheme=name), values_of, err_msg=name
        )
    half = lambda p: 0.5 * jnp.sum(p**2)
    for name in ("lax_friedrichs", "central", "weno5"):
        sides = {"lax_friedrichs": one, "central": centre, "weno5": high}[name]
        np.testing.assert_allclose(
            pde.numerical_hamiltonian(values, grid, scheme=name, hamiltonian=half, dissipation=alpha),
            stencils.lax_friedrichs(*sides, None, alpha),
            rtol=1e-5,  # float32 sums in another order
            atol=1e-4,
            err_msg=name,
        )


def test_differences_by_hand(field):
    """Against NumPy differences of a NumPy pad."""
    values, grid = field
    left, right = stencils.one_sided_differences(values, grid)
    for axis, mode in enumerate(("reflect", "wrap")):
        widths = [(0, 0), (0, 0)]
        widths[axis] = (1, 1)
        gaps = np.diff(np.pad(np.asarray(values), widths, mode), axis=axis) / grid.spacing[axis]
        n = grid.shape[axis]
        # division by Δx may become a product with 1/Δx: two roundings
        np.testing.assert_allclose(left[axis], np.take(gaps, range(n), axis), rtol=4 * EPS)
        np.testing.assert_allclose(right[axis], np.take(gaps, range(1, n + 1), axis), rtol=4 * EPS)


@pytest.mark.parametrize(("order", "degree"), [(2, 3), (4, 5)])
def test_laplacian_is_exact_on_polynomials(x64, order, degree):
    """In the interior: the error of order 2 starts with the fourth derivative, of order 4 with the sixth."""
    grid = pde.Grid.uniform((-1.0, -1.0), (1.0, 1.0), (9, 10), boundary="extrapolate")
    x, y = np.meshgrid(*grid.axes, indexing="ij")
    values = x**degree - 2 * y**degree + x * y
    expected = degree * (degree - 1) * (x ** (degree - 2) - 2 * y ** (degree - 2))
    got = pde.laplacian(jnp.asarray(values), grid, order=order)
    inner = (slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(got[inner], expected[inner], atol=1e-12)


def test_weno5_is_exact_on_parabolas_and_fifth_order_on_waves(x64):
    """Each of the three candidate slopes is third order, so a parabola's derivative comes out to rounding."""
    grid = pde.Grid.uniform(-1.0, 1.0, 12, boundary="extrapolate")
    x = np.asarray(grid.axes[0])
    weno5 = jax.jit(stencils.weno5_differences)  # a grid is static of itself
    for side in weno5(jnp.asarray(x**2 - x), grid):
        np.testing.assert_allclose(side[0][3:-3], (2 * x - 1)[3:-3], atol=1e-13)
    errors = []
    for n in (40, 80, 160):
        grid = pde.Grid.uniform(0.0, 1.0, n, boundary="periodic")
        x = np.asarray(grid.axes[0])
        left, right = weno5(np.sin(2 * np.pi * x), grid)
        exact = 2 * np.pi * np.cos(2 * np.pi * x)
        errors.append(max(np.abs(left[0] - exact).max(), np.abs(right[0] - exact).max()))
    assert np.all(np.log2(np.divide(errors[:-1], errors[1:])) > 4.7), errors


def test_a_flux_that_is_not_to_be_had_says_so(field):
    values, grid = field
    eikonal = lambda p: jnp.sqrt(1 + jnp.sum(p**2))
    for scheme in ("godunov", "engquist_osher"):
        with pytest.raises(ValueError, match=r"½\|p\|² only.*'lax_friedrichs', 'central' or 'weno5'"):
            pde.numerical_hamiltonian(values, grid, scheme=scheme, hamiltonian=eikonal)
    with pytest.raises(ValueError, match="dissipation must be given"):
        pde.numerical_hamiltonian(values, grid, scheme="weno5", hamiltonian=eikonal)
    with pytest.raises(ValueError, match=r"scheme must be one of 'godunov'.*got 'upwind'"):
        pde.numerical_hamiltonian(values, grid, scheme="upwind")
