"""What the figures of fokker_planck and csgd_double_well claim, on small configurations."""

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import fokker_planck
from experiments._histograms import bin_masses, expected_distance, histogram, wilson


@pytest.fixture(scope="module")
def density():
    config = fokker_planck.SMOKE
    return fokker_planck.line(config) | fokker_planck.minibatches(config)


@pytest.fixture(scope="module")
def controlled(smoke):
    return smoke("csgd_double_well").results


def test_histograms_fit_the_density(density):
    z, enough = fokker_planck.residuals(density)
    inside, among = fokker_planck.covered(density)
    # Bins of one histogram are nearly independent, those of a path at different times are not quite
    assert inside.sum() / among.sum() > 0.95 - 4 * np.sqrt(0.05 * 0.95 / among.min())
    assert np.mean(z[enough] ** 2) < 1 + 4 * np.sqrt(2 / among.min())
    wrong = np.roll(density["mass"], 1, axis=0)
    assert np.mean(fokker_planck.residuals(density | {"mass": wrong})[0][enough] ** 2) > 10


def test_distance_falls_as_the_root_of_the_number_until_the_bias_of_the_step(density):
    number, distance, predicted = (density[name] for name in ("number", "distance", "predicted"))
    # The mean over 256 … 1 disjoint parts of a sum over some twenty bins
    np.testing.assert_allclose(distance, predicted, rtol=0.25)
    np.testing.assert_allclose(distance[:, 0], predicted[:, 0], rtol=0.05)
    rate = np.log(distance[-1, 1] / distance[-1, 0]) / np.log(number[1] / number[0])
    assert rate == pytest.approx(-0.5, abs=0.05)
    assert np.all(distance[:, -1] > 0.9 * density["bias"])
    assert density["bias"][0] / density["bias"][1] == pytest.approx(5, rel=0.25)  # steps 0.05 and 0.01


def test_spread_of_minibatches_is_that_of_the_chain_not_of_gibbs(density):
    for rate, scaled in zip(density["rates"], density["scaled"], strict=True):
        square = np.mean(scaled**2)
        error = np.std(scaled**2) / np.sqrt(scaled.size)
        assert abs(square - 1 / (1 - rate / 2)) < 4 * error
        assert abs(square - 1) > 4 * error or rate < 0.2


def test_intervals_masses_and_expected_distance():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20
    np.testing.assert_allclose(wilson(np.array(81 / 263), 263), [0.2553, 0.3662], atol=5e-5)
    np.testing.assert_allclose(wilson(np.array(0.0), 20), [0.0, 0.1611], atol=5e-5)
    np.testing.assert_allclose(wilson(np.array(1.0), 20), [1 - 0.1611, 1.0], atol=5e-5)
    x = np.linspace(-2, 2, 41)
    np.testing.assert_allclose(bin_masses(x**3 - x**2, 0.1, 2), [-4 - 8 / 3, 4 - 8 / 3])
    assert histogram(np.array([-9.0, -1.5, 0.5, 0.6, 9.0]), 2.0, 4).tolist() == [2, 0, 2, 1]
    law, reference = np.array([0.2, 0.3, 0.5]), np.array([0.25, 0.3, 0.45])
    draws = np.random.default_rng(0).multinomial(100, law, size=20_000) / 100
    distances = 0.5 * np.abs(draws - reference).sum(axis=-1)
    # Shares of 100 draws are Gaussian to a few per cent
    assert expected_distance(law, reference, [100])[0] == pytest.approx(distances.mean(), rel=0.02)


def test_improvement_is_both_energies(controlled):
    h = controlled["step"]
    residual, half = controlled["residual"]
    assert abs(residual) < 2 * half + 0.25 * h
    # With half the energy, or twice it, it is not
    gain, energies = controlled["improvement"], controlled["energies"]
    for factor in (0.5, 2.0):
        assert abs(gain[0] - factor * energies[0]) > 4 * (gain[1] + factor * energies[1]) + 0.25 * h
    cost, half = controlled["cost"]
    assert abs(cost - controlled["value"]) < 2 * half + 0.25 * h


def test_paths_and_densities_agree_and_control_helps_to_cross(controlled):
    for name in ("sgd", "csgd"):
        for what in ("loss", "energy", "crossed"):
            (mean, half), exact = controlled[f"{name}/{what}"], controlled[f"{name}/density_{what}"]
            # 4.3 standard errors (2.2 half widths) for the largest of some fifty times, and the Euler step
            assert np.all(np.abs(mean - exact) < 2.2 * half + 0.5 * controlled["step"]), (name, what)
    gain = controlled["sgd/density_loss"][-1] - controlled["csgd/density_loss"][-1]
    energies = controlled["sgd/density_energy"] + controlled["csgd/density_energy"]
    assert gain == pytest.approx(energies, rel=0.02)
    assert controlled["csgd/density_crossed"] > 0.85 > 0.25 > controlled["sgd/density_crossed"]


def test_control_pushes_over_the_barrier_later_harder_and_then_back(controlled):
    x, alpha = controlled["x"], controlled["alpha"]
    lower, higher = controlled["wells"]
    between = (x > controlled["top"]) & (x < higher)
    quarter = len(alpha) // 4
    assert alpha[2 * quarter][between].max() > 1.1 * alpha[0][between].max()
    assert np.abs(alpha[: 3 * quarter][:, np.abs(x - lower) < 0.3]).max() < 0.1 * alpha.max()
    assert alpha[-2][between].min() < 0  # too late: to the bottom of the higher well
    early = slice(1, len(alpha) // 5)
    assert np.all(controlled["csgd/density_loss"][early] > controlled["sgd/density_loss"][early])


@pytest.mark.slow
def test_paths_in_the_plane_have_the_moments_of_the_density():
    config = dataclasses.replace(
        fokker_planck.SMOKE, plane_times=(0.002,), plane_points=97, plane_paths=20_000
    )
    results = fokker_planck.plane(config)
    axes, density = (
        (np.asarray(results[f"plane/{name}"], np.float64) for name in ("x", "y")),
        results["plane/density"],
    )
    density, samples = np.asarray(density[0], np.float64), np.asarray(results["plane/samples"][0])
    for i, axis in enumerate(axes):
        marginal = density.sum(axis=1 - i) / density.sum()
        for power in (1, 2):
            moment, paths = marginal @ axis**power, samples[:, i] ** power
            # A Euler step and the grid err by about a hundredth of the spread
            assert abs(paths.mean() - moment) < 4 * paths.std() / np.sqrt(paths.size) + 0.01 * paths.std()
    axis = Figure().add_subplot()
    fokker_planck.draw_plane(axis, results | {"plane/samples": samples[None]}, 0)
    assert axis.get_title().endswith("s = 0.002")
