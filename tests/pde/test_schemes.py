"""Orders of convergence of the stepping schemes, smooth and past kinks, in 1-D to 3-D."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import pde
from tests.pde import oracles

TIME, TEMPERATURE = 0.1, 1 / 20
SIZES = (50, 100, 200)


@functools.cache
def exact(n):
    return oracles.cole_hopf_line(
        oracles.wave, np.arange(n) / n, TIME, TEMPERATURE, spread=1.5, curvature=60.0
    )


def errors(scheme, diffusion, sizes, *, norm=np.max):
    found = []
    for n in sizes:
        grid = pde.Grid.uniform(0.0, 1.0, n, boundary="periodic")
        initial = oracles.wave(np.arange(n) / n)
        solution = pde.solve_hamilton_jacobi(
            initial, grid, TIME, temperature=TEMPERATURE, scheme=scheme, diffusion=diffusion
        ).check()
        found.append(norm(np.abs(np.asarray(solution.values[0]) - exact(n))))
    return found


@pytest.mark.parametrize(
    ("scheme", "diffusion", "order", "finest"),
    [  # the order of each scheme, and the error of MATH's table at N = 200 where it has one
        ("godunov", "explicit", 1, 1e-2),
        ("godunov", "exponential", 1, 1e-2),
        ("engquist_osher", "explicit", 1, 1e-2),
        ("lax_friedrichs", "explicit", 1, np.inf),
        ("central", "explicit", 2, 7e-4),
        ("central", "exponential", 2, 7e-4),
    ],
)
def test_orders_where_u_is_smooth(x64, scheme, diffusion, order, finest):
    found = errors(scheme, diffusion, SIZES)
    assert np.all(np.abs(oracles.orders(found) - order) < 0.3), found
    assert found[-1] <= finest


def test_weno5_is_fifth_order_once_it_resolves(x64):
    """From N = 100 on, in space and (Δt ~ Δx² of explicit diffusion, third order) in time; Δu is fourth order."""
    found = errors("weno5", "explicit", (100, 200))
    assert abs(oracles.orders(found)[0] - 5) < 0.3
    # exponential diffusion is split: second order in time, Δt ~ Δx, on top of a far smaller error in space
    split = errors("weno5", "exponential", (100, 200))
    assert oracles.orders(split)[0] > 2 - 0.3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "bound", "low", "high"), [("godunov", 5.5e-3, 0.8, 1.05), ("central", 7e-4, 1.9, 2.2)]
)
def test_acceptance_at_400(x64, scheme, bound, low, high):
    """MATH §1 (a)."""
    found = errors(scheme, "explicit", (200, 400))
    assert found[-1] <= bound
    assert low <= oracles.orders(found)[0] <= high
    assert errors("weno5", "explicit", (400,))[0] < 1e-6


@functools.cache
def moreau(n, time):
    return oracles.moreau_line(oracles.wave, np.arange(n) / n, time, spread=1.5, points=20_001)


@pytest.mark.parametrize(
    "scheme", [pytest.param("godunov", marks=pytest.mark.slow), "lax_friedrichs", "weno5"]
)
def test_inviscid_before_and_after_the_kinks(x64, scheme):
    """Kinks form at t = 1/max(-f'') = 1/59: first order in L1 on both sides of it, more for weno5 before."""
    frames = []
    for n in SIZES:
        grid = pde.Grid.uniform(0.0, 1.0, n, boundary="periodic")
        initial = oracles.wave(np.arange(n) / n)
        solution = pde.solve_hamilton_jacobi(
            initial, grid, [0.005, 0.1], temperature=0, scheme=scheme
        ).check()
        frames.append(
            [
                np.mean(np.abs(np.asarray(frame) - moreau(n, time)))
                for time, frame in zip((0.005, 0.1), solution.values, strict=True)
            ]
        )
    before, after = np.transpose(frames)
    if scheme == "weno5":
        # third order in Δt, and whole steps: 2, 4, 7 of them
        assert abs(np.mean(oracles.orders(before)) - 3 * np.log2(7 / 2) / 2) < 0.3
        # what is left sits in the cells of the kinks and depends on where they fall: over two doublings
        assert np.mean(oracles.orders(after)) > 1
    else:
        assert np.all(np.abs(oracles.orders(before) - 1) < 0.3), before
        assert np.all(np.abs(oracles.orders(after) - 1) < 0.3), after


OTHERS = {  # f, lower, upper, t, a bound on f(x) - min f within reach
    "neumann": (oracles.even_wave, 0.0, 1.0, 0.1, 1.4),
    "extrapolate": (oracles.roof, -4.0, 4.0, 0.5, 4.0),
}


@pytest.mark.parametrize("boundary", OTHERS)
@pytest.mark.parametrize(("scheme", "order"), [("godunov", 1), ("central", 2)])
def test_other_boundaries(x64, boundary, scheme, order):
    """Linear tails: away from the ends, where the slope of the tail is itself a first-order difference."""
    f, low, high, time, spread = OTHERS[boundary]
    found = []
    for n in (61, 121):
        grid = pde.Grid.uniform(low, high, n, boundary=boundary)
        x = np.linspace(low, high, n)
        line = oracles.linear_tails(f, low, high, grid.spacing[0]) if boundary == "extrapolate" else f
        inside = np.abs(x) <= 2
        exact = oracles.cole_hopf_line(line, x[inside], time, 0.1, spread=spread, curvature=60.0)
        stepped = pde.solve_hamilton_jacobi(f(x), grid, time, temperature=0.1, scheme=scheme).check()
        found.append(np.abs(np.asarray(stepped.values[0])[inside] - exact).mean())
    assert oracles.orders(found)[0] > order - 0.3, found


def plane(x, y):
    """Not a sum over axes."""
    w = 2 * np.pi
    return 0.3 * np.cos(w * x) + 0.2 * np.sin(w * y) + 0.15 * np.cos(w * (x + y))


@pytest.mark.parametrize(("scheme", "order"), [("godunov", 1), ("central", 2), ("weno5", 4)])
def test_orders_in_2d(x64, scheme, order):
    """Against a trapezoidal sum over the periodic plane, to rounding here: c·Δx²/T <= 0.7 at N = 24."""
    found = []
    for n in (24, 48):
        grid = pde.Grid.uniform((0.0, 0.0), (1.0, 1.0), (n, n), boundary="periodic")
        values = plane(*np.meshgrid(np.arange(n) / n, np.arange(n) / n, indexing="ij"))
        stepped = pde.solve_hamilton_jacobi(values, grid, 0.05, temperature=0.1, scheme=scheme).check()
        found.append(np.abs(stepped.values[0] - oracles.cole_hopf_torus(values, 0.05, 0.1)).max())
    assert oracles.orders(found)[0] > order - 0.3, found


def test_the_exact_route_in_2d(x64):
    n = 24
    grid = pde.Grid.uniform((0.0, 0.0), (1.0, 1.0), (n, n), boundary="periodic")
    values = plane(*np.meshgrid(np.arange(n) / n, np.arange(n) / n, indexing="ij"))
    solution = pde.solve_hamilton_jacobi(values, grid, 0.05, temperature=0.1).check()
    np.testing.assert_allclose(solution.values[0], oracles.cole_hopf_torus(values, 0.05, 0.1), atol=1e-14)


def test_3d_is_the_sum_of_its_axes(x64):
    """f = Σ fᵢ(xᵢ) gives u = Σ uᵢ: weno5 in 3-D errs by the three axes' errors, exact by rounding."""
    n, time, temperature = 16, 0.05, 0.2
    axis = np.cos(2 * np.pi * np.arange(n) / n) / 4
    initial = axis[:, None, None] + 0.5 * axis[None, :, None] - axis[None, None, :]
    grid = pde.Grid.uniform((0.0,) * 3, (1.0,) * 3, (n,) * 3, boundary="periodic")
    x = np.arange(n) / n
    parts = [
        oracles.cole_hopf_line(
            lambda y, a=a: a * np.cos(2 * np.pi * y) / 4, x, time, temperature, spread=0.5, curvature=10.0
        )
        for a in (1.0, 0.5, -1.0)
    ]
    expected = parts[0][:, None, None] + parts[1][None, :, None] + parts[2][None, None, :]
    at = lambda scheme: pde.solve_hamilton_jacobi(initial, grid, time, temperature=temperature, scheme=scheme)
    # what folds back from waves N - m: max over m of exp(-2π²tT(N - m)²)·I_m(1.25) = 2e-12, on each axis
    np.testing.assert_allclose(at("exact").check().values[0], expected, atol=1e-11)
    fourth = (
        0.25 * (2 * np.pi) ** 6 / 90 / n**4 * temperature / 2 * time
    )  # error of the fourth-order Δ over time
    np.testing.assert_allclose(at("weno5").check().values[0], expected, atol=3 * 5 * fourth)


def root(p):
    return jnp.sqrt(1 + jnp.sum(p**2))


def quartic(p):
    return jnp.sum(p**2) ** 2 / 4


HAMILTONIANS = {  # H, its conjugate, the velocities it reaches for |p| <= 7
    "root": (root, lambda v: -np.sqrt(1 - v**2), np.linspace(-1, 1, 20_001)),
    "quartic": (quartic, lambda v: 0.75 * np.abs(v) ** (4 / 3), np.linspace(-2.2, 2.2, 20_001)),
}


@pytest.mark.parametrize("scheme", ["lax_friedrichs", "weno5"])
@pytest.mark.parametrize("name", HAMILTONIANS)
def test_other_convex_hamiltonians(x64, name, scheme):
    """Against Hopf and Lax's formula with the Legendre transform, past the kinks, in L1."""
    hamiltonian, conjugate, speeds = HAMILTONIANS[name]
    f = lambda x: oracles.wave(x) / 4
    found = []
    for n in (50, 100):
        grid = pde.Grid.uniform(0.0, 1.0, n, boundary="periodic")
        x = np.arange(n) / n
        solution = pde.solve_hamilton_jacobi(
            f(x), grid, 0.2, temperature=0.0, hamiltonian=hamiltonian, scheme=scheme
        ).check()
        truth = oracles.hopf_lax(f, conjugate, x, 0.2, speeds)
        found.append(np.abs(np.asarray(solution.values[0]) - truth).mean())
    assert oracles.orders(found)[0] > 0.7, found
    assert found[-1] < {"lax_friedrichs": 2e-2, "weno5": 1e-3}[scheme]


def test_anisotropic_hamiltonian_in_2d(x64):
    """½p'Ap: min over y of f + (x - y)'A⁻¹(x - y)/(2t), by brute force at some points."""
    matrix = np.array([[1.0, 0.5], [0.5, 0.6]])
    n, time = 48, 0.1
    grid = pde.Grid.uniform((0.0, 0.0), (1.0, 1.0), (n, n), boundary="periodic")
    x, y = np.meshgrid(np.arange(n) / n, np.arange(n) / n, indexing="ij")
    ellipse = lambda p: p @ (jnp.asarray(matrix) @ p) / 2
    solution = pde.solve_hamilton_jacobi(plane(x, y), grid, time, temperature=0, hamiltonian=ellipse).check()
    assert solution.scheme == "weno5"
    a, b = np.meshgrid(np.linspace(-0.4, 0.4, 801), np.linspace(-0.4, 0.4, 801), indexing="ij")
    step = np.stack([a, b], axis=-1)
    cost = np.einsum("...i,ij,...j", step, np.linalg.inv(matrix), step) / (2 * time)
    rng = np.random.default_rng(0)
    gaps = []
    for i, j in rng.integers(0, n, (12, 2)):
        truth = np.min(plane(i / n + a, j / n + b) + cost)
        gaps.append(abs(float(solution.values[0, i, j]) - truth))
    # first order across kinks, α·Δx·|∇u|/2 = 0.02 at one of them; higher elsewhere
    assert np.median(gaps) < 5e-4
    assert max(gaps) < 0.02


def test_a_hamiltonian_given_is_the_one_built_in(x64):
    half = lambda p: 0.5 * jnp.sum(p**2)
    grid = pde.Grid.uniform(0.0, 1.0, 50, boundary="periodic")
    initial = jnp.asarray(oracles.wave(np.arange(50) / 50))
    solve = functools.partial(
        pde.solve_hamilton_jacobi, initial, grid, TIME, temperature=TEMPERATURE, diffusion="explicit"
    )
    for scheme in ("lax_friedrichs", "central"):
        given, own = solve(scheme=scheme, hamiltonian=half).check(), solve(scheme=scheme).check()
        if scheme == "central":  # equal sides leave nothing for the artificial viscosity to act on
            np.testing.assert_allclose(given.values, own.values, atol=1e-13)
        assert jax.tree.structure(given) == jax.tree.structure(own)
        assert given.num_steps == own.num_steps
        np.testing.assert_allclose(given.values, own.values, atol=1e-12)
