"""The grid: where its points are, what lies beyond its ends, and that it is static."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import pde


@pytest.mark.parametrize("boundary", ["neumann", "periodic", "extrapolate"])
def test_points_of_each_boundary(x64, boundary):
    """A periodic axis leaves out its upper end, the image of the lower; the others have both ends."""
    grid = pde.Grid.uniform(-1, 2, 12, boundary=boundary)
    expected = np.linspace(-1, 2, 12, endpoint=boundary != "periodic")
    np.testing.assert_allclose(grid.axes[0], expected, atol=1e-15)
    np.testing.assert_allclose(grid.spacing[0], expected[1] - expected[0], rtol=1e-15)
    np.testing.assert_allclose(grid.points[:, 0], expected, atol=1e-15)


def test_axes_are_independent(x64):
    grid = pde.Grid.uniform(
        (0.0, -1.0, 2.0), (1.0, 1.0, 4.0), (5, 4, 3), boundary=("neumann", "periodic", "extrapolate")
    )
    assert (grid.ndim, grid.lengths, grid.spacing) == (3, (1.0, 2.0, 2.0), (0.25, 0.5, 1.0))
    mesh = np.stack(
        np.meshgrid(np.arange(5) / 4, -1 + np.arange(4) / 2, 2.0 + np.arange(3), indexing="ij"), -1
    )
    np.testing.assert_allclose(grid.points, mesh, atol=1e-15)
    loss = lambda x: x[0] + 10 * x[1] ** 2 - x[0] * x[2]
    np.testing.assert_allclose(
        grid.evaluate(loss), mesh[..., 0] + 10 * mesh[..., 1] ** 2 - mesh[..., 0] * mesh[..., 2], atol=1e-14
    )


def test_sequences_and_numpy_numbers_are_welcome():
    grid = pde.Grid.uniform(
        [0.0, 0.0], np.array([1.0, 2.0]), np.array([4, 5]), boundary=["periodic", "neumann"]
    )
    assert grid == pde.Grid.uniform((0, 0), (1, 2), (4, 5), boundary=("periodic", "neumann"))
    assert pde.Grid.uniform(np.float32(0), np.int64(1), np.int64(4)).shape == (4,)


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("axis", [0, 1])
def test_pad_is_numpys(width, axis):
    """NumPy's ``reflect`` and ``wrap``; the linear tail has no second differences."""
    values = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    widths = [(0, 0), (0, 0)]
    widths[axis] = (width, width)
    np.testing.assert_array_equal(pde.pad(values, axis, width, "neumann"), np.pad(values, widths, "reflect"))
    np.testing.assert_array_equal(pde.pad(values, axis, width, "periodic"), np.pad(values, widths, "wrap"))
    tail = np.asarray(pde.pad(values, axis, width, "extrapolate"))
    second = np.diff(tail, n=2, axis=axis)
    ends = np.r_[0:width, -width:0]
    # second differences at and beyond the ends vanish up to the rounding of width·slope
    np.testing.assert_allclose(np.take(second, ends, axis), 0, atol=4 * width * np.finfo(np.float32).eps * 8)
    inside = [slice(None), slice(None)]
    inside[axis] = slice(width, -width)
    np.testing.assert_array_equal(tail[tuple(inside)], values)


def test_a_grid_is_static_under_jit():
    """No leaves, equal grids hash alike: an equal grid made anew does not trace again, another one does."""
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=2)
    def spread(grid, values):
        return jnp.max(values) * grid.spacing[0]

    make = lambda n: pde.Grid.uniform(0.0, 1.0, n)
    assert jax.tree.leaves(make(5)) == []
    assert hash(make(5)) == hash(make(5))
    assert make(5) == make(5) != make(6)
    for n in (5, 5, 9, 9, 5):
        np.testing.assert_allclose(spread(make(n), jnp.ones(3)), 1 / (n - 1), rtol=1e-6)


@pytest.fixture
def compilations():
    """Names of what XLA compiles, as it happens."""
    seen = []
    listener = lambda event, duration, **_: seen.append(event) if "backend_compile" in event else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listener)


@pytest.mark.parametrize("scheme", ["exact", "godunov"])
def test_the_second_solve_compiles_nothing(compilations, scheme):
    """Other data, times and temperatures of the same shape, and an equal grid made anew."""

    def solve(seed, time, temperature):
        grid = pde.Grid.uniform(0.0, 1.0, 16, boundary="periodic")
        initial = np.random.default_rng(seed).normal(size=16).astype(np.float32)
        return pde.solve_hamilton_jacobi(
            initial, grid, time, temperature=temperature, scheme=scheme, diffusion="explicit"
        )

    solve(0, 0.1, 0.2)
    assert compilations
    compilations.clear()
    solve(1, 0.3, 0.05)
    assert compilations == []


BAD = {
    "no axes": (dict(lower=(), upper=(), shape=()), ValueError, "1 to 3 axes"),
    "four axes": (dict(lower=(0,) * 4, upper=(1,) * 4, shape=(4,) * 4), ValueError, "smoothing"),
    "short lower": (
        dict(lower=0.0, upper=(1.0, 1.0), shape=(4, 4)),
        ValueError,
        "lower must have one entry an axis",
    ),
    "long upper": (dict(lower=(0.0, 0.0), upper=(1.0,) * 3, shape=(4, 4)), ValueError, "upper must have one"),
    "long boundary": (
        dict(lower=0.0, upper=1.0, shape=4, boundary=("neumann", "periodic")),
        ValueError,
        "boundary must have one",
    ),
    "swapped": (dict(lower=1.0, upper=0.0, shape=4), ValueError, "below upper on every axis, got"),
    "equal": (dict(lower=1.0, upper=1.0, shape=4), ValueError, "below upper"),
    "infinite": (dict(lower=0.0, upper=np.inf, shape=4), ValueError, "finite"),
    "nan": (dict(lower=np.nan, upper=1.0, shape=4), ValueError, "finite"),
    "one point": (dict(lower=0.0, upper=1.0, shape=1), ValueError, "shape must be at least 2, got 1"),
    "half a point": (dict(lower=0.0, upper=1.0, shape=4.5), TypeError, "shape must be a Python integer"),
    "boundary": (
        dict(lower=0.0, upper=1.0, shape=4, boundary="dirichlet"),
        ValueError,
        "'neumann', 'periodic', 'extrapolate', got 'dirichlet'",
    ),
    "no number": (dict(lower=None, upper=1.0, shape=4), (TypeError, ValueError), "lower must"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_grids_say_what_is_wrong(name):
    arguments, error, words = BAD[name]
    with pytest.raises(error, match=words):
        pde.Grid.uniform(**arguments)


def test_a_loss_that_is_no_scalar_is_refused():
    grid = pde.Grid.uniform((0.0, 0.0), (1.0, 1.0), (4, 4))
    with pytest.raises(
        ValueError, match=r"loss must give a scalar at a point of shape \(2,\), got shape \(2,\)"
    ):
        grid.evaluate(lambda x: x)
    np.testing.assert_array_equal(pde.Grid.uniform(0.0, 3.0, 4).evaluate(lambda x: x**2), [0, 1, 4, 9])
