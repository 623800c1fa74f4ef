"""Recorded iterates and the principal plane: singular values, random walks, rounding, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import landscape

MIXED = {"w": (40, 3, 2), "b": (40, 4), "scale": (40,)}


def walk(key, shapes=MIXED):
    keys = jax.random.split(key, len(shapes))
    return {
        name: jnp.cumsum(jax.random.normal(k, shape), axis=0)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def as_rows(tree):
    leaves = jax.tree.leaves(tree)
    return np.concatenate([np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in leaves], axis=1)


def as_vector(tree):
    return as_rows(jax.tree.map(lambda leaf: leaf[None], tree))[0]


@pytest.mark.parametrize("center", ["last", "mean", "tree"])
def test_the_plane_is_that_of_the_singular_value_decomposition(center):
    """By NumPy in float64 on the joined matrix: directions up to sign, coordinates, shares, origin."""
    trajectory = walk(jax.random.key(0))
    rows = as_rows(trajectory)
    start = jax.tree.map(lambda leaf: leaf[0], trajectory)
    origin = {"last": rows[-1], "mean": rows.mean(0), "tree": rows[0]}[center]
    plane, explained = landscape.pca_plane(trajectory, center=start if center == "tree" else center)
    left, singular, right = np.linalg.svd(rows - origin, full_matrices=False)
    np.testing.assert_allclose(explained, (singular**2 / np.sum(singular**2))[:2], rtol=1e-5)
    np.testing.assert_allclose(as_vector(plane.origin), origin, atol=1e-5)
    for axis, direction in enumerate(plane.directions):
        found = as_vector(direction)
        sign = np.sign(found @ right[axis])
        np.testing.assert_allclose(found, sign * right[axis], atol=1e-4)
        np.testing.assert_allclose(
            plane.coordinates[:, axis], sign * left[:, axis] * singular[axis], atol=1e-4 * singular[0]
        )
        assert plane.coordinates[np.argmax(np.abs(plane.coordinates[:, axis])), axis] > 0


def test_coordinates_are_those_of_project_and_mirrored_walks_have_mirrored_planes():
    trajectory = walk(jax.random.key(1))
    plane, _ = landscape.pca_plane(trajectory)
    coordinates, _ = jax.vmap(functools.partial(landscape.project, plane))(trajectory)
    np.testing.assert_allclose(coordinates, plane.coordinates, atol=1e-4)
    np.testing.assert_allclose(plane.coordinates[-1], 0.0, atol=1e-6)
    mirrored, _ = landscape.pca_plane(jax.tree.map(jnp.negative, trajectory))
    np.testing.assert_allclose(mirrored.coordinates, plane.coordinates, atol=1e-4)


@pytest.mark.parametrize(("center", "limit"), [("mean", (6, 6 / 4)), ("last", (8, 8 / 9))])
def test_a_random_walk_looks_two_dimensional(center, limit):
    """Shares 6/(π²k²) about the mean, 8/(π²(2k−1)²) about the end, whatever the walk; nothing was optimised.

    Eight walks of n = 60 positions in P = 4,000 dimensions. Exact for P → ∞ are the eigenvalues of the discrete
    covariance, O(1/n²) from the limit; the bias of finite P is O(1/P) of the gaps, below 1e-3.
    """
    steps, size, walks = 60, 4_000, 8
    times = np.arange(steps)
    covariance = np.minimum.outer(times, times).astype(float)
    weights = np.full(steps, 1 / steps) if center == "mean" else np.eye(steps)[-1]
    away = np.eye(steps) - weights[None]
    eigenvalues = np.linalg.eigvalsh(away @ covariance @ away.T)[::-1]
    exact = (eigenvalues / eigenvalues.sum())[:2]
    np.testing.assert_allclose(exact, np.array(limit) / np.pi**2, rtol=0.03)

    def shares(key):
        return landscape.pca_plane(
            jnp.cumsum(jax.random.normal(key, (steps, size)), axis=0), center=center
        ).explained

    found = np.asarray(jax.jit(jax.vmap(shares))(jax.random.split(jax.random.key(2), walks)))
    error = found.std(axis=0, ddof=1) / np.sqrt(walks)
    np.testing.assert_array_less(np.abs(found.mean(axis=0) - exact), 4 * error + 1e-3)


def test_a_share_far_below_float32_of_the_first_is_found():
    """Axes of lengths 1, 1e-5 and 5e-6 in 5,000 dimensions: shares 1e-10 and less, which the Gram matrix loses."""
    angles = np.linspace(0.0, 2 * np.pi, 33)[:-1]
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(5_000, 3)))[0]
    rows = np.stack([np.cos(angles), 1e-5 * np.sin(angles), 5e-6 * np.sin(2 * angles)], axis=1) @ axes.T
    plane, explained = landscape.pca_plane(jnp.asarray(rows, jnp.float32), center=jnp.zeros(5_000))
    second = np.asarray(plane.directions[1], np.float64)
    assert abs(second @ axes[:, 1]) > 1 - 1e-3
    assert abs(second @ np.asarray(plane.directions[0], np.float64)) < 1e-6
    assert explained[1] == pytest.approx(1e-10, rel=1e-2)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_squares_neither_overflow_nor_vanish(scale):
    trajectory = walk(jax.random.key(0))
    plane, explained = landscape.pca_plane(trajectory)
    scaled, shares = landscape.pca_plane(jax.tree.map(lambda leaf: scale * leaf, trajectory))
    np.testing.assert_allclose(shares, explained, rtol=1e-5)
    np.testing.assert_allclose(scaled.coordinates / scale, plane.coordinates, atol=1e-3)


def test_mean_of_small_motion_far_from_zero():
    """Whole numbers at 1.6e7, exact in float32, whose sum is not: the mean must keep their digits.

    (1, 0), (2, 3), (3, 0), a hundred times over: squared deviations 2 along the first axis to 6 along the second.
    """
    rows = 1.6e7 + np.tile(np.array([[1, 0], [2, 3], [3, 0]], np.float32), (100, 1))
    plane, explained = landscape.pca_plane(jnp.asarray(rows), center="mean")
    np.testing.assert_array_equal(plane.origin, [1.6e7 + 2, 1.6e7 + 1])
    np.testing.assert_allclose(explained, [0.75, 0.25], rtol=1e-6)


def test_half_precision_keeps_its_dtype():
    trajectory = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), walk(jax.random.key(0)))
    plane, explained = landscape.pca_plane(trajectory)
    assert {leaf.dtype for leaf in jax.tree.leaves((plane.origin, plane.directions))} == {
        jnp.dtype("bfloat16")
    }
    _, singular, _ = np.linalg.svd(as_rows(trajectory) - as_rows(trajectory)[-1])
    np.testing.assert_allclose(explained, (singular**2 / np.sum(singular**2))[:2], rtol=1e-4)


@pytest.mark.parametrize("every", [1, 3, 12])
def test_recording_keeps_every_mth_iterate_of_the_plain_scan(every):
    def step(carry, x):
        params, count = carry
        return ({"w": params["w"] + x, "b": 2.0 * params["b"]}, count + 1), jnp.sum(params["w"])

    start = ({"w": jnp.arange(3.0), "b": jnp.array(1.0)}, 0)
    xs = jax.random.normal(jax.random.key(3), (12, 3))
    recording = jax.jit(
        lambda start, xs: landscape.record(step, start, xs, every=every, params_of=lambda carry: carry[0])
    )(start, xs)
    (params, count), outputs = jax.lax.scan(step, start, xs)
    assert recording.carry[1] == count == 12
    np.testing.assert_array_equal(recording.carry[0]["w"], params["w"])
    np.testing.assert_array_equal(recording.outputs, outputs)
    iterates = recording.iterates
    assert iterates["w"].shape == (12 // every + 1, 3)
    np.testing.assert_array_equal(iterates["b"], 2.0 ** np.arange(0, 13, every))
    np.testing.assert_array_equal(iterates["w"][-1], params["w"])
    np.testing.assert_allclose(iterates["w"][1], start[0]["w"] + xs[:every].sum(0), rtol=1e-5)


def test_recording_stores_no_other_iterates():
    """The compiled loop of a million steps of a million numbers holds three rows, not a million."""
    step = lambda x, _: (0.5 * x, None)
    run = lambda x: landscape.record(step, x, num_steps=10**6, every=5 * 10**5)
    memory = jax.jit(run).lower(jnp.zeros(10**6)).compile().memory_analysis()
    assert memory.output_size_in_bytes < 4 * 4.1e6
    assert memory.temp_size_in_bytes < 4 * 4.1e6


def test_bad_recordings():
    step = lambda x, _: (x, None)
    with pytest.raises(ValueError, match="every must divide num_steps=10"):
        landscape.record(step, jnp.zeros(2), num_steps=10, every=3)
    with pytest.raises(ValueError, match="num_steps must be given"):
        landscape.record(step, jnp.zeros(2))
    with pytest.raises(ValueError, match="xs must hold arrays with a leading axis num_steps=3"):
        landscape.record(step, jnp.zeros(2), jnp.zeros(4), num_steps=3)
    with pytest.raises(TypeError, match="every must be a Python integer"):
        landscape.record(step, jnp.zeros(2), num_steps=4, every=2.0)


def test_bad_trajectories():
    good = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]], np.float32)
    with pytest.raises(ValueError, match="at least three iterates to span a plane, got 2"):
        landscape.pca_plane(good[:2])
    with pytest.raises(ValueError, match="one number of iterates"):
        landscape.pca_plane({"a": good, "b": good[:2]})
    with pytest.raises(ValueError, match=r"trajectory\['b'\] must have a leading axis"):
        landscape.pca_plane({"a": good, "b": jnp.array(1.0)})
    with pytest.raises(ValueError, match="one number of iterates"):
        landscape.pca_plane({})
    with pytest.raises(TypeError, match="dtype int"):
        landscape.pca_plane(good.astype(int))
    with pytest.raises(ValueError, match="identical"):
        landscape.pca_plane(jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="one line"):
        landscape.pca_plane(jnp.outer(jnp.arange(5.0), jnp.array([1.0, 2.0, -3.0])), center="mean")
    with pytest.raises(ValueError, match="finite"):
        landscape.pca_plane(jnp.asarray(good).at[1, 1].set(jnp.nan))
    with pytest.raises(ValueError, match="center must be one of 'last', 'mean', got 'first'"):
        landscape.pca_plane(good, center="first")
    with pytest.raises(ValueError, match="center gave a leaf of shape"):
        landscape.pca_plane(good, center=jnp.zeros(3))
