"""Planes through points, means over batches however they are cut, errors over batches, estimates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import landscape
from jaxopt_pde.landscape import _batches

DATA = {"x": jax.random.normal(jax.random.key(0), (17, 3)), "y": jnp.arange(17.0)}


def loss(batch, weights):
    return jnp.mean((batch["x"] @ weights - batch["y"]) ** 2)


def loader():
    return iter([{name: leaf[start : start + 5] for name, leaf in DATA.items()} for start in range(0, 17, 5)])


def tree(key):
    return {"a": jax.random.normal(key, (4, 3)), "b": jax.random.normal(jax.random.fold_in(key, 1), (5,))}


def test_a_plane_through_three_points_contains_them():
    points = [tree(key) for key in jax.random.split(jax.random.key(1), 3)]
    plane = landscape.plane_through(*points)
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(d)]) for d in plane.directions]
    np.testing.assert_allclose(np.array(flat) @ np.array(flat).T, np.eye(2), atol=3e-7)
    for point, coordinates in zip(points, plane.coordinates, strict=True):
        found, distance = landscape.project(plane, point)
        np.testing.assert_allclose(found, coordinates, atol=3e-6)
        assert distance < 3e-6
    assert min(plane.coordinates[1, 0], plane.coordinates[2, 1]) > 0


def test_projection_obeys_pythagoras():
    plane = landscape.plane_through(*(tree(key) for key in jax.random.split(jax.random.key(1), 3)))
    point = tree(jax.random.key(9))
    coordinates, distance = landscape.project(plane, point)
    offset = jax.tree.map(jnp.subtract, point, plane.origin)
    whole = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(offset))
    assert float(jnp.sum(coordinates**2) + distance**2) == pytest.approx(whole, rel=1e-6)
    assert distance > 1


@pytest.mark.parametrize("third", [[2.0, 4.0, 6.0], [0.0, 0.0, 0.0]])
def test_three_points_on_a_line_span_no_plane(third):
    with pytest.raises(ValueError, match="must not lie on one line"):
        landscape.plane_through(jnp.zeros(3), jnp.array([1.0, 2.0, 3.0]), jnp.array(third))


@pytest.mark.parametrize("size", [None, 1, 5, 17, 100])
def test_means_do_not_depend_on_the_cut(size):
    weights = jnp.array([1.0, -2.0, 0.5])
    cut = _batches.make_batches(DATA, size)
    mean = _batches.mean_over_batches(loss, cut, weights)
    assert mean == pytest.approx(float(loss(DATA, weights)), rel=1e-6)
    values, shares = _batches.each_batch(loss, cut, weights)
    assert float(values @ shares) == pytest.approx(float(loss(DATA, weights)), rel=1e-6)


def test_a_loader_is_arrays_in_batches():
    weights = jnp.array([1.0, -2.0, 0.5])
    cut, loaded = _batches.make_batches(DATA, 5), _batches.make_batches(loader, None)
    assert _batches.mean_over_batches(loss, loaded, weights) == pytest.approx(
        float(loss(DATA, weights)), rel=1e-6
    )
    for got, wanted in zip(
        _batches.each_batch(loss, loaded, weights), _batches.each_batch(loss, cut, weights), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_the_error_over_equal_batches_is_the_textbooks():
    values = np.random.default_rng(0).normal(size=(8, 3))
    error = _batches.batch_error(jnp.asarray(values), jnp.full(8, 1 / 8))
    np.testing.assert_allclose(error, np.std(values, axis=0, ddof=1) / np.sqrt(8), rtol=1e-6)
    assert _batches.batch_error(jnp.ones((1, 3)), jnp.ones(1)) is None


def test_the_error_over_unequal_batches_is_unbiased():
    """20,000 data sets of 24 examples cut into 16, 6 and 2: the mean of error² is σ²/24 within 4 standard errors."""
    examples = np.random.default_rng(1).normal(size=(24, 20_000))
    values = np.stack([part.mean(axis=0) for part in np.split(examples, [16, 22])])
    squares = np.asarray(_batches.batch_error(jnp.asarray(values), jnp.array([16, 6, 2]) / 24)) ** 2
    assert abs(squares.mean() - 1 / 24) < 4 * squares.std() / np.sqrt(20_000)


def test_estimates_combine_their_errors_and_unpack_into_two():
    estimate = landscape.Estimate.combine(
        jnp.ones(2),
        probe_error=jnp.array([3.0, 0.0]),
        batch_error=jnp.array([4.0, 1.0]),
        info={"n": jnp.array(7)},
    )
    mean, error = jax.jit(lambda e: jax.tree.map(lambda leaf: leaf + 0, e))(estimate)
    np.testing.assert_allclose(mean, 1)
    np.testing.assert_allclose(error, [5, 1])
    low, high = estimate.interval(2.0)
    np.testing.assert_allclose(high - low, [20, 4])
    assert estimate.info["n"] == 7
    assert np.isnan(landscape.Estimate.combine(jnp.array(1.0)).standard_error)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _batches.make_batches({}, None), ValueError, "data must hold arrays"),
        (lambda: _batches.make_batches(jnp.zeros((0, 2)), None), ValueError, "at least one example"),
        (lambda: _batches.make_batches([jnp.zeros(2), jnp.zeros(3)], None), ValueError, "one number of examples"),
        (lambda: _batches.make_batches({"x": 3.0}, None), TypeError, "leading example axis"),
        (lambda: _batches.make_batches(iter([np.ones(3)]), None), TypeError, r"lambda: iter\(loader\)"),
        (lambda: _batches.make_batches(DATA, 0), ValueError, "batch_size must be at least 1"),
        (lambda: _batches.make_batches(loader, 5), ValueError, "batch_size must be None"),
        (lambda: _batches.mean_over_batches(loss, lambda: iter([]), jnp.ones(3)), ValueError, "gave no batches"),
        (lambda: landscape.project(landscape.Plane(jnp.zeros(3), (), None), jnp.zeros(2)), ValueError, "params gave"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_iterator_that_runs_out_is_named_in_the_second_pass():
    spent = loader()
    data = _batches.make_batches(lambda: spent, None)
    _batches.mean_over_batches(loss, data, jnp.ones(3))
    with pytest.raises(ValueError, match="must return a fresh iterator"):
        _batches.mean_over_batches(loss, data, jnp.ones(3))
