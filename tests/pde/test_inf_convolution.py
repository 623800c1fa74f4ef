"""The inviscid route: two searches with one answer, and the order properties of a Moreau envelope."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import pde
from jaxopt_pde.pde.inf_convolution import hull_points
from tests.pde import oracles

BOUNDARIES = ("neumann", "periodic", "extrapolate")


@functools.cache
def envelope(boundary, shape=12):
    grid = pde.Grid.uniform((0.0,) * np.size(shape), (1.0,) * np.size(shape), shape, boundary=boundary)
    return grid, jax.jit(lambda f, t: pde.inf_convolution(f, grid, t))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@hypothesis.given(st.integers(0, 10_000), st.sampled_from([1e-4, 1e-2, 0.1, 1.0]))
@hypothesis.settings(max_examples=25)
def test_order_properties(boundary, seed, time):
    """Below f and the min over grid points, not by more than a cell's parabola; commutes with constants and mirrors."""
    grid, solve = envelope(boundary)
    mirror = (lambda v: np.roll(v[::-1], 1)) if boundary == "periodic" else (lambda v: v[::-1].copy())
    f = np.random.default_rng(seed).normal(size=12)
    with jax.enable_x64(True):
        u, raised, mirrored = (np.asarray(solve(v, time)) for v in (f, f + 3, mirror(f)))
    eps = 1e-12  # slopes of tails have rounding 2e-16·|f|·n, and come in squared
    period = 1.0 if boundary == "periodic" else None
    x = [np.arange(12) * grid.spacing[0]]
    over_points = oracles.moreau_grid(f.astype(float), x, time, period)
    assert np.all(u <= f + eps)
    assert np.all(u <= over_points + eps)
    np.testing.assert_allclose(raised, u + 3, atol=eps)
    # a best point exactly half a period away has two parabolas, of which one is looked at: a tie's worth
    np.testing.assert_allclose(
        mirrored, mirror(u), atol=tie(f, grid, time) if boundary == "periodic" else eps
    )
    if boundary != "extrapolate":  # a parabola dips below its points by c·Δx²/8 at most
        assert u.min() >= f.min() - tie(f, grid, time) - eps


def tie(f, grid, time):
    """c·Δx²/8 with c the largest second difference + 1/t: what lies between a grid minimum and a parabola's."""
    wrapped = np.pad(f.astype(float), 1, "wrap" if grid.boundary[0] == "periodic" else "reflect")
    return (np.abs(np.diff(wrapped, n=2)).max() + grid.spacing[0] ** 2 / time) / 8


def test_convex_is_monotone_and_repeats(x64):
    """On parabolas all is exact: S_s S_t = S_{s+t}, and f <= g gives u <= v."""
    grid = pde.Grid.uniform(-2.0, 2.0, 41, boundary="extrapolate")
    x = np.asarray(grid.axes[0])
    solve = jax.jit(lambda f, t: pde.inf_convolution(f, grid, t))
    f = 1.5 * x**2 - 0.3 * x
    exact = lambda t: oracles.quadratic(3.0, 0.3, x[:, None], t, 0.0)[0]
    inner = np.abs(x) < 1.2  # the tails are not the parabola's: their feet stay outside for these x
    np.testing.assert_allclose(solve(f, 0.3)[inner], exact(0.3)[inner], atol=1e-14)
    np.testing.assert_allclose(solve(solve(f, 0.1), 0.2)[inner], exact(0.3)[inner], atol=1e-13)
    assert np.all(solve(f, 0.3) <= solve(f + x**2 + 0.1 * np.cos(x), 0.3))


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_hulls_find_the_best_grid_point(x64, boundary):
    """Against all pairs: whatever is chosen among ties, its value is the least."""
    n, dx = 40, 1 / 40
    rng = np.random.default_rng(0)
    index = np.arange(n)
    lines = [
        rng.normal(size=n),
        oracles.wave(index / n),
        np.zeros(n),
        np.abs(index - 19.5),
        rng.integers(0, 3, n).astype(float),
        np.where(index < 20, 0.0, 1e3),
        np.eye(n)[7],
        -np.eye(n)[0],
        -((index * dx) ** 2) / 2,
    ]
    lines = np.stack(lines, axis=1)
    find = jax.jit(lambda values, time: hull_points(values, dx, time, boundary)[0])
    gap = (index[:, None] - index) * dx
    if boundary == "periodic":
        gap -= np.round(gap)
    for time in (1e-6, 1e-3, 0.02, 0.3, 1.0, 50.0):
        best = np.asarray(find(lines, time))
        all_pairs = lines[None] + (gap**2 / (2 * time))[:, :, None]
        found = np.take_along_axis(all_pairs, best[:, None], axis=1)[:, 0]
        # heights of the hull have size (n²/8 + t·f/Δx²)·Δx²/t
        rounding = 8 * np.finfo(float).eps * (n**2 * dx**2 / (8 * time) + np.abs(lines).max(axis=0))
        assert np.all(found <= all_pairs.min(axis=1) + rounding), time


def test_axes_compose(x64):
    """In 2-D against all pairs of grid points: never above, and below by a cell's parabola on each axis at most."""
    grid, solve = envelope(("neumann", "periodic"), (9, 10))
    f = np.random.default_rng(1).normal(size=(9, 10))
    for time in (1e-3, 0.05, 1.0):
        u = np.asarray(solve(f, time))
        x, y = (np.asarray(a) for a in grid.axes)
        brute = oracles.moreau_grid(f, [x, y], time, np.array([np.inf, 1.0]))
        assert np.all(u <= brute + 1e-14)
        bends = np.abs(np.diff(np.pad(f, ((1, 1), (0, 0)), "reflect"), n=2, axis=0)).max()
        bends += np.abs(np.diff(np.pad(f, ((0, 0), (1, 1)), "wrap"), n=2, axis=1)).max()
        assert np.all(u >= brute - (bends + sum(dx**2 for dx in grid.spacing) / time) / 2)


def test_gradient_is_the_minimisers_weight(x64):
    """Danskin: a perturbation of f moves u by its value at the minimiser, so each row of ∂u/∂f sums to 1."""
    _, solve = envelope("periodic", 40)
    f = oracles.wave(np.arange(40) / 40)
    jacobian = np.asarray(jax.jacrev(solve)(f, 0.05))
    np.testing.assert_allclose(jacobian.sum(axis=1), 1, atol=1e-12)
    direction = np.random.default_rng(0).normal(size=40)
    h = 1e-6
    difference = (solve(f + h * direction, 0.05) - solve(f - h * direction, 0.05)) / (2 * h)
    np.testing.assert_allclose(jacobian @ direction, difference, atol=1e-6)  # h² and rounding 1e-16/h
    slope = (solve(f, 0.05 + h) - solve(f, 0.05 - h)) / (2 * h)
    np.testing.assert_allclose(jax.jvp(lambda t: solve(f, t), (0.05,), (1.0,))[1], slope, atol=1e-6)


def test_bad_input_is_named():
    grid, _ = envelope("neumann")
    with pytest.raises(ValueError, match=r"grid's shape \(12,\), got \(11,\)"):
        pde.inf_convolution(jnp.ones(11), grid, 1.0)
    with pytest.raises(ValueError, match="smoothing_time must be finite and at least 0, got -1"):
        pde.inf_convolution(jnp.ones(12), grid, -1.0)
