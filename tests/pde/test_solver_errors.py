"""What the solver refuses, in which words, and what it can only report once it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import pde

RING = pde.Grid.uniform(0.0, 1.0, 8, boundary="periodic")
WAVE = np.cos(2 * np.pi * np.arange(8) / 8).astype(np.float32)
NONFINITE = np.where(np.arange(8) == 5, np.inf, WAVE).astype(np.float32)
EIKONAL = lambda p: jnp.sqrt(1 + jnp.sum(p**2))

REFUSED = {  # name: (arguments that differ, error, words)
    "no grid": (dict(grid=(0.0, 1.0, 8)), TypeError, "grid must be a pde.Grid"),
    "shape": (dict(initial=WAVE[:7]), ValueError, r"grid's shape \(8,\), got \(7,\): see Grid.evaluate"),
    "rank": (dict(initial=WAVE[:, None]), ValueError, r"got \(8, 1\)"),
    "integers": (dict(initial=np.arange(8)), TypeError, "initial has dtype int64, expected a floating dtype"),
    "complex": (dict(initial=WAVE + 0j), TypeError, "initial is complex"),
    "infinite": (dict(initial=NONFINITE), ValueError, r"initial must be finite, got inf at index \(5,\)"),
    "unsorted": (
        dict(times=[0.2, 0.1]),
        ValueError,
        r"increasing sequence of finite numbers >= 0, got \[0.2, 0.1\]",
    ),
    "repeated": (dict(times=[0.1, 0.1]), ValueError, "increasing"),
    "negative time": (dict(times=-0.1), ValueError, "got -0.1"),
    "endless": (dict(times=[0.1, np.inf]), ValueError, "finite"),
    "no times": (dict(times=[]), ValueError, r"got \[\]"),
    "table of times": (dict(times=[[0.1, 0.2]]), ValueError, "times must be a number"),
    "cold": (dict(temperature=-1.0), ValueError, "temperature must be finite and at least 0, got -1.0"),
    "nan": (dict(temperature=float("nan")), ValueError, "temperature must be finite"),
    "word": (dict(temperature="hot"), TypeError, "temperature must be a number"),
    "vector": (dict(temperature=jnp.ones(2)), ValueError, "temperature must be a scalar"),
    "scheme": (
        dict(scheme="upwind"),
        ValueError,
        "scheme must be one of 'auto', 'exact', 'godunov', 'engquist_osher', 'lax_friedrichs', 'central', 'weno5', "
        "got 'upwind'",
    ),
    "diffusion": (
        dict(diffusion="implicit"),
        ValueError,
        "one of 'auto', 'explicit', 'exponential', got 'implicit'",
    ),
    "cfl": (dict(cfl=1.5), ValueError, "cfl must be at most 1, got 1.5"),
    "numpy cfl": (dict(cfl=np.float32(1.5)), ValueError, "cfl must be at most 1"),
    "no cfl": (dict(cfl=0.0), ValueError, "cfl must be positive"),
    "no steps": (dict(max_steps=0), ValueError, "max_steps must be at least 1"),
    "half a step": (dict(max_steps=0.5), TypeError, "max_steps must be a Python integer"),
    "exact for another H": (
        dict(scheme="exact", hamiltonian=EIKONAL),
        ValueError,
        r"solves H = ½\|p\|² only; with hamiltonian= use one of 'lax_friedrichs', 'central', 'weno5'",
    ),
    "godunov for another H": (dict(scheme="godunov", hamiltonian=EIKONAL), ValueError, "'godunov' knows H"),
    "central without viscosity": (dict(scheme="central", temperature=0), ValueError, "Use 'weno5'"),
    "too many steps": (
        # 0.9 a step: 1·100·64/0.9 = 7111.1
        dict(scheme="godunov", times=1.0, temperature=100.0, diffusion="explicit", max_steps=50),
        ValueError,
        r"needs at least 7112 explicit steps on this grid, more than max_steps=50: use diffusion='exponential'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_runs(name):
    changed, error, words = REFUSED[name]
    arguments = dict(initial=WAVE, grid=RING, times=0.1, temperature=0.1) | changed
    positional = [arguments.pop(key) for key in ("initial", "grid", "times")]
    with pytest.raises(error, match=words):
        pde.solve_hamilton_jacobi(*positional, **arguments)


@pytest.mark.parametrize(
    ("points", "boundary", "scheme", "temperature", "least"),
    [(3, "neumann", "exact", 0, 4), (3, "periodic", "weno5", 0.1, 4), (5, "extrapolate", "exact", 0.1, 6)],
)
def test_grids_too_small(points, boundary, scheme, temperature, least):
    grid = pde.Grid.uniform((0.0, 0.0), (1.0, 1.0), (9, points), boundary=boundary)
    with pytest.raises(
        ValueError, match=rf"at least {least} points an axis for scheme='{scheme}', got shape \(9, "
    ):
        pde.solve_hamilton_jacobi(jnp.zeros((9, points)), grid, 0.1, temperature=temperature, scheme=scheme)


def test_the_smallest_grids_work():
    """A constant stays one, on as few points as are allowed."""
    for points, boundary, scheme, temperature in (
        (4, "neumann", "weno5", 0.1),
        (6, "extrapolate", "godunov", 0.1),
        (4, "extrapolate", "exact", 0),
    ):
        grid = pde.Grid.uniform(0.0, 1.0, points, boundary=boundary)
        solution = pde.solve_hamilton_jacobi(
            jnp.full(points, 2.0), grid, 0.1, temperature=temperature, scheme=scheme
        ).check()
        np.testing.assert_allclose(
            solution.values, 2.0, rtol=1e-5 if scheme != "exact" else 2e-4
        )  # Gregory's ends


def test_auto_takes_exponential_diffusion_where_explicit_steps_are_too_many():
    """The case refused above runs on ``"auto"``, in the few steps that H needs."""
    solution = pde.solve_hamilton_jacobi(WAVE, RING, 1.0, temperature=100.0, scheme="godunov", max_steps=64)
    assert solution.check().num_steps == 51  # √½/Δx² / 0.9 = 50.3
    assert np.ptp(solution.values) < 1e-5


STATUS = {  # name: (initial, times, temperature, words)
    "fine": (WAVE, [0.01, 0.02], 0.1, "computed at all times"),
    "infinite data": (NONFINITE, [0.01, 0.02], 0.1, "initial data"),
    "unsorted": (WAVE, [0.02, 0.01], 0.1, "do not increase"),
    "negative time": (WAVE, [-0.01, 0.01], 0.1, "negative"),
    "negative temperature": (WAVE, [0.01, 0.02], -0.1, "temperature is negative"),
    "no temperature": (WAVE, [0.01, 0.02], np.nan, "not a number"),
    "overflow": (WAVE * 1e30, [0.01, 0.02], 0.1, "limit|finite"),
    "step limit": (WAVE, [0.01, 100.0], 0.1, "step limit"),
}


def traced(scheme):
    return jax.jit(
        lambda f, t, temperature: pde.solve_hamilton_jacobi(
            f, RING, t, temperature=temperature, scheme=scheme, max_steps=20
        )
    )


@pytest.fixture(scope="module")
def traced_solvers():
    return {scheme: traced(scheme) for scheme in ("exact", "godunov")}


@pytest.mark.parametrize("scheme", ["exact", "godunov"])
def test_what_is_traced_is_told_by_the_status(traced_solvers, scheme):
    for name, (initial, times, temperature, words) in STATUS.items():
        if scheme == "exact" and name in ("step limit", "overflow"):
            continue
        solution = traced_solvers[scheme](initial, jnp.asarray(times), temperature)
        if name == "fine":
            solution.check()
        else:
            with pytest.raises(RuntimeError, match=words):
                solution.check()
        if name == "step limit":  # what was reached is there
            assert np.all(np.isfinite(solution.values[0]))
            assert np.all(np.isnan(solution.values[1]))
            assert solution.value(0.3, 0.01) == traced_solvers[scheme](
                initial, jnp.asarray([0.01, 0.02]), 0.1
            ).value(0.3, 0.01)


def test_half_precision_is_computed_in_float32():
    """So that exp(-f/T) has digits."""
    for dtype in (jnp.float16, jnp.bfloat16):
        solution = pde.solve_hamilton_jacobi(jnp.zeros(8, dtype), RING, 0.1, temperature=0, scheme="godunov")
        assert solution.check().values.dtype == jnp.float32
