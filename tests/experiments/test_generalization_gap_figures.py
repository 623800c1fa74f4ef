"""What the figure of generalization_gap claims, on a small configuration."""

import dataclasses

import numpy as np
import pytest

from experiments import generalization_gap

CONFIG = dataclasses.replace(generalization_gap.SMOKE, width=16, num_steps=300, report_every=300)


@pytest.fixture(scope="module")
def results():
    return generalization_gap.run(CONFIG)


def test_no_fit_is_below_the_floor_of_its_own_slope_on_the_data(results):
    """A function is as Lipschitz on the data as its steepest secant, so the floor at that slope lies below its loss."""
    images, _, labels, _ = generalization_gap.draw_labels(CONFIG)
    secants = results["steepest_secant"] * results["base"]
    for f, b, s in np.ndindex(secants.shape):
        floor = generalization_gap.least_loss(images[s], labels[f, s], secants[f, b, s : s + 1])
        assert results["train_loss"][f, b, s] >= floor[0] - 1e-5


def test_the_floor_is_zero_from_the_constant_of_the_labels_on_and_known_at_zero():
    random = np.random.default_rng(0)
    points, labels = random.normal(size=(30, 2)), np.where(np.arange(30) < 12, 1.0, -1.0)
    distances = np.linalg.norm(points[:12, None] - points[None, 12:], axis=-1)
    constant = 2 / distances.min()
    slopes = constant * np.array([0.0, 0.9, 1.0])
    flat, below, exact = generalization_gap.least_loss(points, labels, slopes)
    assert flat == pytest.approx(2 * 12 / 30)  # twelve pairs of residual 1 and 1, or worse
    # One pair alone, which the closed form of two points settles: (2 - Ld)²/2.
    assert below >= (2 - 0.9 * 2) ** 2 / 2 / 30 * (1 - 1e-9)
    assert exact == pytest.approx(0, abs=1e-12)


def test_the_measured_slopes_are_ordered_and_the_bound_is_kept(results):
    rounded = 1 + 1e-5
    for lower in ("largest_gradient", "steepest_secant"):
        assert np.all(results[lower] <= results["norm_product"] * rounded)
    bounded, free = results["largest_gradient"][:, 0], results["largest_gradient"][:, 1]
    assert np.all(bounded < 1.5 * results["bound"][0])
    assert np.all(free > bounded)


def test_random_labels_are_fitted_without_a_bound_only(results):
    true, coins = results["train_loss"].mean(-1)
    assert coins[1] < 0.1 < coins[0]
    assert true[0] < coins[0]
    assert np.all(results["constant"][0] == pytest.approx(1))
    assert np.all(results["constant"][1] > 1)
    assert [len(row) for row in generalization_gap.table(results)[1]] == [10] * 4
