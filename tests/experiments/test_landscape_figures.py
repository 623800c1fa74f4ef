"""What landscape_slices and interpolation claim, on small configurations."""

import dataclasses
import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _run, _solutions, interpolation, landscape_slices
from jaxopt_pde import landscape

SLICES, PATHS = landscape_slices.SMOKE, interpolation.SMOKE


@pytest.fixture(scope="module")
def paths():
    return interpolation.run(PATHS)


def test_f_and_u_are_those_of_the_points_that_the_figure_says():
    """The loss at a corner of the plane directly; u no further from f than T times the log of the number of samples."""
    config = dataclasses.replace(SLICES, plane_points=3)
    task = _solutions.make_task(config)
    params = task.init(jax.random.key(3))
    weights, coordinates = jax.flatten_util.ravel_pytree(params)[0], jnp.array([-0.5, 0.0, 0.5])
    key = _run.key_for(config.seed, "plane")
    found = jax.jit(lambda train, w: landscape_slices.slices(config, task, train, w, key, 2, coordinates))(
        task.train, weights
    )
    of_directions, _ = jax.random.split(key)
    first, second = landscape.random_directions(of_directions, params)
    moved = jax.tree.map(lambda p, a, b: p + 0.5 * a - 0.5 * b, params, first, second)
    np.testing.assert_allclose(found["f"][2, 0], task.loss(moved, task.train), rtol=1e-5)
    np.testing.assert_allclose(found["f"][1, 1], task.loss(params, task.train), rtol=1e-5)
    norms = [jnp.linalg.norm(tree["Dense_0"]["kernel"], axis=0) for tree in (first, params)]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    assert np.all((found["effective"] >= 1) & (found["effective"] <= config.num_samples * (1 + 1e-5)))
    assert np.all(found["u_probe_error"] > 0)
    # At T = 1 the untrained loss varies little under the noise: u is near f, and not at the same height.
    assert np.all(np.abs(found["u"] - found["f"]) < np.log(config.num_samples))
    assert not np.allclose(found["u"], found["f"], rtol=1e-4)


def test_the_radius_of_a_level_is_exact_on_exponentials():
    radii = np.linspace(0, 0.5, 6)
    losses = np.stack([0.01 * np.exp(10 * radii), np.full(6, 0.2), np.full(6, 0.9)])
    found = landscape_slices.reached(radii, losses, 0.3)
    assert found[0] == pytest.approx(np.log(30) / 10)
    assert np.isnan(found[1])
    assert found[2] == 0


def test_bands_add_the_spread_over_seeds_and_the_error_of_the_data():
    """By hand: two seeds at 1 and 3, so 2 ± 12.706, and ± 1.96 times 0.5 of the batches."""
    line = np.array([1.0, 3.0])[None, :, None, None] + np.zeros((1, 2, 4, 1))
    results = {"line_f": line, "line_f_batch_error": np.full(line.shape, 0.5)}
    mean, half = landscape_slices.band(results, "f")
    assert mean.item() == 2
    assert half.item() == pytest.approx(np.hypot(12.7062, 1.959964 * 0.5), rel=1e-4)
    rising = {
        "line_u": np.linspace(0.0, 1.0, 3)[None, None, None] * np.array([1.0, 5.0])[None, :, None, None]
    }
    np.testing.assert_allclose(landscape_slices.rise(rising, "u"), [[1.0, 5.0]])


def test_no_solution_is_in_two_pairs_of_seeds_and_every_seed_compares_every_two_methods():
    """Weights that say whose they are."""
    weights = 10.0 * np.arange(1, 4)[:, None, None] + np.arange(6)[None, :, None]
    blank = np.zeros((3, 6))
    solutions = _solutions.Solutions(weights, np.arange(6.0)[:, None], *[blank] * 5)
    pairs = interpolation.make_pairs(("a", "b", "c"), solutions)
    ends = pairs.ends[..., 0]
    of = lambda kind: ends[:, pairs.kind == kind]
    seeds = of(interpolation.SEEDS)
    assert sorted(seeds.ravel()) == sorted(weights.ravel())
    assert np.all(seeds[0] // 10 == seeds[1] // 10)
    methods = of(interpolation.METHODS)
    assert np.all(methods[0] % 10 == methods[1] % 10)
    expected = [(a, b) for a, b in itertools.combinations((1, 2, 3), 2) for _ in range(6)]
    assert sorted(zip(*(methods // 10).astype(int), strict=True)) == expected
    starts = of(interpolation.START)
    assert np.all(starts[0] == starts[1] % 10)


def test_paths_end_in_the_solutions_and_barriers_are_those_of_the_curves_drawn(paths):
    task = _solutions.make_task(PATHS)
    best, _ = _solutions.chosen(PATHS, _solutions.train(PATHS, task))
    bent = paths["kind"] != interpolation.START
    name = PATHS.methods[0]
    line = interpolation.select(paths, "straight", "loss", interpolation.SEEDS, name)
    np.testing.assert_allclose(line[:, [0, -1]].ravel(), best.train_loss[0], rtol=1e-4)
    test = interpolation.select(paths, "straight", "error", interpolation.START, name)
    np.testing.assert_allclose(test[:, -1], best.test_error[0], atol=1e-6)
    np.testing.assert_allclose(
        paths["curved_loss"][:, [0, -1]], paths["straight_loss"][bent][:, [0, -1]], rtol=1e-4
    )
    for shape in ("straight", "curved"):
        loss, s = paths[f"{shape}_loss"], paths["fraction"]
        over = loss - (1 - s) * loss[:, :1] - s * loss[:, -1:]
        np.testing.assert_allclose(paths[f"{shape}_barrier"], over.max(1).clip(0), atol=1e-5)


def test_a_trained_curve_has_a_lower_barrier_than_the_line(paths):
    bent = paths["kind"] != interpolation.START
    assert paths["curved_barrier"].mean() < paths["straight_barrier"][bent].mean()


def test_the_plane_is_that_of_the_curve(paths):
    """One end at the origin, the other on the first axis, and all three points of the curve inside the picture."""
    begin, end, _ = paths["plane_corners"]
    np.testing.assert_allclose(begin, 0, atol=1e-6)
    assert end[1] == pytest.approx(0, abs=1e-4)
    assert end[0] > 0
    low, high = paths["plane_axes"][:, 0], paths["plane_axes"][:, -1]
    assert np.all((paths["plane_corners"] > low) & (paths["plane_corners"] < high))


def test_the_table_counts_the_gradients_of_the_curves(paths):
    headers, rows = interpolation.table(paths)
    spent = {row[0]: row[headers.index("and all pairs")] for row in rows}
    curves = PATHS.num_seeds // 2
    assert spent[interpolation.KINDS[interpolation.SEEDS]] == str(curves * PATHS.curve_gradients)
    assert spent[interpolation.KINDS[interpolation.START]] == "0"


def test_unusable_configurations_are_named():
    with pytest.raises(ValueError, match="num_seeds must be even"):
        interpolation.run(dataclasses.replace(PATHS, num_seeds=3))
    with pytest.raises(ValueError, match="examples_at_once"):
        interpolation.run(dataclasses.replace(PATHS, examples_at_once=100))
