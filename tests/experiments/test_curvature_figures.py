"""What hessian_spectra and flatness_vs_error claim, on their small configurations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments import _rank_correlation, _solutions, flatness_vs_error, hessian_spectra


@pytest.fixture(scope="module")
def spectra(smoke):
    return smoke("hessian_spectra").results


@pytest.fixture(scope="module")
def flatness(smoke):
    return smoke("flatness_vs_error").results


def test_eigenvalues_and_traces_are_those_of_the_exact_spectrum(spectra):
    """Extremes to the solver's tolerance, 1e-4 of the largest; traces within 5 of their standard errors."""
    exact = spectra["exact"]
    scale = np.abs(exact).max(-1)
    np.testing.assert_array_less(np.abs(spectra["top"][:2, 0] - exact[:, 0]), 2e-4 * scale)
    np.testing.assert_array_less(np.abs(spectra["bottom"][:2, 0] - exact[:, -1]), 2e-4 * scale)
    traces = exact.sum(-1)
    np.testing.assert_array_less(np.abs(spectra["trace"][:2, 0] - traces), 5 * spectra["trace_error"][:2, 0])


def test_the_black_line_is_the_exact_density(spectra):
    """It has mass 1 and the mean of the eigenvalues, to what rounding and the grid's ends leave."""
    for grid, width, exact in zip(spectra["grid"], spectra["bandwidth"], spectra["exact"], strict=True):
        curve = hessian_spectra.smoothed(exact, grid, width)
        assert abs(np.trapezoid(curve, grid) - 1) < 1e-4
        assert abs(np.trapezoid(curve * grid, grid) - exact.mean()) < 1e-4 * np.ptp(grid)


def test_rates_of_equal_loss_are_the_nearest_to_the_common_one():
    config = dataclasses.replace(hessian_spectra.SMOKE, learning_rates=(0.1, 0.2, 0.3))
    loss = np.array([[0.5, 0.011, 0.001], [0.4, 0.02, 0.01]])[..., None]  # the second reaches 0.01 only
    validation = np.array([[0.1, 0.3, 0.2], [0.3, 0.1, 0.2]])[..., None]
    solutions = _solutions.Solutions(None, None, loss, None, validation, None, None)
    np.testing.assert_array_equal(hessian_spectra.pick_rates(config, solutions), [[0, 1], [1, 2]])


def test_rescaled_layers_compute_the_same():
    task = _solutions.make_task(flatness_vs_error.SMOKE)
    params = task.init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    other = flatness_vs_error.rescaled(params, jnp.array([7.0]))
    np.testing.assert_allclose(task.loss(other, task.train), task.loss(params, task.train), rtol=1e-5)
    np.testing.assert_allclose(other["Dense_0"]["kernel"], 7 * params["Dense_0"]["kernel"], rtol=1e-6)


def test_rescaling_changes_the_measures_but_those_in_units_of_the_weights(flatness):
    """The same random numbers: invariant measures agree to float32's rounding of a difference of losses."""
    for name in ("expected_filter", "sam_elementwise", "entropy_filter"):
        one, other = flatness[name]
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5, err_msg=name)
    for name in ("top", "trace", "expected", "sam", "entropy", "norm"):
        one, other = flatness[name]
        assert np.max(np.abs(np.log(np.abs(other / one)))) > 0.1, name


def test_all_that_count_fit_and_every_measure_has_a_row(flatness, monkeypatch):
    assert np.all(flatness["train_loss"] <= flatness["fit_loss"])
    _, rows = flatness_vs_error.table(flatness)
    assert [row[0] for row in rows] == list(flatness_vs_error.MEASURES.values())
    bad = np.array([[[1.0, np.nan, 0.1]]])  # one of three fits
    untrained = _solutions.Solutions(np.zeros((1, 1, 3, 5)), np.zeros((3, 5)), *[bad] * 5)
    monkeypatch.setattr(_solutions, "train", lambda config, task, session: untrained)
    with pytest.raises(ValueError, match="leaves 1 of 3"):
        flatness_vs_error.run(dataclasses.replace(flatness_vs_error.SMOKE, fit_loss=0.5))


def test_rank_correlations_of_weighted_samples_are_scipys():
    generator = np.random.default_rng(3)
    x, y = generator.integers(0, 6, (2, 25)).astype(float)  # with ties
    y += 0.5 * x
    groups = np.repeat([0, 1], [10, 15])
    weights = generator.integers(0, 4, (3, 25)).astype(float)
    tau, rho = _rank_correlation.kendall(x, y, weights), _rank_correlation.spearman(x, y, weights)
    for sample, w in enumerate(weights.astype(int)):
        a, b = np.repeat(x, w), np.repeat(y, w)
        assert abs(tau[sample] - stats.kendalltau(a, b)[0]) < 1e-12
        assert abs(rho[sample] - stats.spearmanr(a, b)[0]) < 1e-12
    ones = np.ones((1, 25))
    inside = _rank_correlation.kendall(x, y, ones, groups)[0]
    concordant = pairs_x = pairs_y = 0
    for own in (groups == 0, groups == 1):
        a, b = (np.sign(v[own][:, None] - v[own]) for v in (x, y))
        concordant, pairs_x, pairs_y = (
            concordant + (a * b).sum(),
            pairs_x + (a**2).sum(),
            pairs_y + (b**2).sum(),
        )
    assert abs(inside - concordant / np.sqrt(pairs_x * pairs_y)) < 1e-12
    # Given itself, nothing varies.
    one = _rank_correlation.kendall(x, x, ones)
    assert np.isnan(_rank_correlation.partial(one, one, one)).all()


def test_the_interval_covers_effects_of_rows_and_columns():
    """x = y = 0 but for effects of configurations and seeds; the 95 % interval covers 0 in at least 88 of 100 repeats.

    The pigeonhole bootstrap is cautious, but percentiles of five seeds are not: 0.88 is two binomial deviations of 100
    repeats below 0.94.
    """
    generator, covered = np.random.default_rng(0), 0
    rows, columns = (index.reshape(-1) for index in np.meshgrid(np.arange(12), np.arange(5), indexing="ij"))
    for _ in range(100):
        x, y = (generator.normal(size=12)[rows] + 0.5 * generator.normal(size=5)[columns] for _ in range(2))
        x, y = (v + 0.3 * generator.normal(size=60) for v in (x, y))
        weights = _rank_correlation.pigeonhole(generator, rows, columns, 200)
        found = _rank_correlation.percentiles(_rank_correlation.kendall(x, y, weights))
        covered += found.low <= 0 <= found.high
    assert covered >= 88
