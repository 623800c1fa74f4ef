"""What monotone schemes keep: order, range, constants, translations and the largest slope."""

import functools

import jax
import numpy as np
import pytest

from jaxopt_pde import pde

MONOTONE = ("godunov", "engquist_osher", "lax_friedrichs")
N = 16
EPS = 1e-14  # rounding of some twenty steps on values below 2


@functools.cache
def solver(scheme, boundary, diffusion):
    """f -> u at three times, at the largest step that is called stable."""
    grid = pde.Grid.uniform(0.0, 1.0, N, boundary=boundary)
    temperature = {"none": 0, "explicit": 0.1, "exponential": 0.1}[diffusion]
    return jax.jit(
        lambda f: pde.solve_hamilton_jacobi(
            f,
            grid,
            [0.01, 0.0625, 0.2],
            temperature=temperature,
            scheme=scheme,
            diffusion="auto" if diffusion == "none" else diffusion,
            cfl=1.0,
        )
    )


def slopes(u, boundary):
    return np.abs(np.diff(np.append(u, u[:1]) if boundary == "periodic" else u)).max()


CASES = [  # the two rates of explicit diffusion simply add: two cases of it are enough
    *((scheme, "periodic", diffusion) for scheme in MONOTONE for diffusion in ("none", "exponential")),
    ("godunov", "neumann", "none"),
    ("engquist_osher", "neumann", "none"),
    ("godunov", "neumann", "exponential"),
    ("engquist_osher", "periodic", "explicit"),
    ("godunov", "neumann", "explicit"),
]


@pytest.mark.parametrize(("scheme", "boundary", "diffusion"), CASES)
def test_range_slopes_and_symmetries(x64, scheme, boundary, diffusion):
    solve = solver(scheme, boundary, diffusion)
    rng = np.random.default_rng(0)
    for _ in range(5):
        f = rng.normal(size=N) * rng.uniform(size=N) ** 4
        solution = solve(f).check()
        u = np.asarray(solution.values)
        # maximum principle: H >= 0 brings values down, to min f at most
        assert u.max() <= f.max() + EPS
        assert u.min() >= f.min() - EPS
        before = f
        for frame in u:
            assert slopes(frame, boundary) <= slopes(before, boundary) + EPS
            before = frame
        raised = np.asarray(solve(f + 0.5).values)
        np.testing.assert_allclose(raised, u + 0.5, atol=EPS)
        if boundary == "periodic":
            np.testing.assert_allclose(solve(np.roll(f, 5)).values, np.roll(u, 5, axis=1), atol=EPS)
        mirrored = np.asarray(solve(f[::-1].copy()).values)
        np.testing.assert_allclose(mirrored, u[:, ::-1], atol=EPS)


@pytest.mark.parametrize(("scheme", "boundary", "diffusion"), CASES)
def test_comparison(x64, scheme, boundary, diffusion):
    """f <= g gives u <= v: with the steepest place the same in both, so are their steps.

    The first case is the hard one: a peak of half the height of another, which a step that counts one side of a
    peak only would take past it.
    """
    solve = solver(scheme, boundary, diffusion)
    rng = np.random.default_rng(1)
    g = np.zeros(N)
    g[3] = g[10] = 1 / N
    f = g.copy()
    f[10] /= 2
    pairs = [(f, g)]
    for _ in range(6):
        f = rng.uniform(0, 0.5, N)
        f[:3] = 0, 1.5, 0  # the steepest rise and the steepest fall
        g = f + np.where(np.arange(N) > 3, rng.uniform(0, 0.5, N) * (rng.uniform(size=N) < 0.4), 0)
        pairs.append((f, g))
    for f, g in pairs:
        u, v = solve(f).check(), solve(g).check()
        assert u.num_steps == v.num_steps
        assert np.all(np.asarray(u.values) <= np.asarray(v.values) + EPS)
