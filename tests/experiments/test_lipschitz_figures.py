"""What the figures of lipschitz_convergence and certificates claim, on small configurations."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import certificates, lipschitz_convergence
from experiments.quickstart import interval

CONVERGENCE = dataclasses.replace(
    lipschitz_convergence.SMOKE, line=(32, 128, 512), square=(64, 144, 256), cube=(8, 64), draws=(40, 4, 2, 8),
    queries=(1024, 48, 8, 1024),
)  # fmt: skip


@pytest.fixture(scope="module")
def convergence():
    return lipschitz_convergence.run(CONVERGENCE)


@pytest.fixture(scope="module")
def certified(smoke):
    return smoke("certificates").results


def test_the_error_is_below_the_bound_for_every_sample_and_attains_it(convergence):
    ratios = {
        name: convergence[f"error_{name}"]
        / (2 * CONVERGENCE.lipschitz * convergence[f"fill_{name}"][..., None])
        for name in lipschitz_convergence.DIMENSIONS
    }
    for ratio in ratios.values():
        assert ratio.max() <= 1 + 1e-9
    assert ratios["line"][..., 1].max() == pytest.approx(1, abs=1e-6)  # |u0'| = L0 at the end of the line
    # Of the smooth u0, at the end where u0' = L0/2, the gap to the upper extension closes at (L0 + L0/2)/(2 L0).
    assert ratios["line"][..., 0].max() == pytest.approx(0.75, abs=1e-3)


def test_grids_converge_like_one_over_the_root_of_n(convergence):
    slope = lambda name: lipschitz_convergence.slopes(
        convergence, name, convergence[f"error_{name}"][:, 0, 0], random=False
    )
    assert slope("line") == pytest.approx(-1, abs=0.02)
    assert slope("square") == pytest.approx(-1 / 2, abs=0.03)


def test_random_points_on_a_line_follow_the_law_with_the_logarithm(convergence):
    slopes = lipschitz_convergence.slopes(convergence, "line", convergence["error_line"][:, 1:, 0])
    # A finite n leaves about 0.12, and the draws their own uncertainty; below, n is larger and it is 0.12 in all.
    assert abs(slopes.mean() - 1) <= 0.12 + interval(slopes)


@pytest.mark.slow
def test_the_law_with_the_logarithm_to_larger_samples():
    line = dataclasses.replace(CONVERGENCE, line=(32, 256, 2048), queries=(4096, 48, 8, 1024))
    found = lipschitz_convergence.run(line)
    slopes = lipschitz_convergence.slopes(found, "line", found["error_line"][:, 1:, 0])
    assert abs(slopes.mean() - 1) <= 0.12, slopes.mean()


def test_on_a_circle_three_labels_are_no_slower_than_one(convergence):
    for label in (0, 2):
        slopes = lipschitz_convergence.slopes(
            convergence, "circle", convergence["error_circle"][:, 1:, label]
        )
        assert slopes.mean() - interval(slopes) > 2 / 3  # far from 1/3
        assert abs(slopes.mean() - 1) <= 0.12 + interval(slopes)


def test_noise_stops_interpolation_and_one_sided_noise_the_nearest_fit(convergence):
    noise = CONVERGENCE.noise_range
    through, fits = convergence["through_line"][:, 1:], convergence["fit_error_line"][:, 1:]
    constant = convergence["constant_line"][:, 1:]
    assert np.all(through[-1] > 0.9 * noise / 2)  # the largest of 512 uniform errors
    assert np.median(constant[-1]) > 20 * np.median(constant[0])  # as n²: 256 times as large
    symmetric, one_sided = fits[..., 0], fits[..., 1]
    assert symmetric[-1].mean() < symmetric[0].mean() / 2
    assert np.all(one_sided[-1] > noise / 2)
    assert one_sided[-1].mean() < 1.2 * noise / 2
    # No fit is off by more than half of the range, and some pair of labels needs nearly that much.
    misfit = convergence["misfit_line"][-1, 1:]
    assert np.all(misfit <= noise / 2)
    assert np.all(misfit > 0.6 * noise / 2)


def test_a_sound_certificate_is_never_false_and_the_gradient_at_the_image_is(certified):
    ratio = certificates.ratios(certified)
    for place, name in enumerate(certificates.NAMES):
        own = ratio[..., place, :]
        assert np.isfinite(own).any()
        if name in certificates.SOUND:
            assert np.nanmax(own) < 1, name
    assert np.sum(ratio[..., certificates.NAMES.index("local"), :] > 1) > 10


def test_the_bound_exceeds_every_gradient_and_pairs_beat_the_margin(certified):
    assert np.all(certified["pair_bound"] >= certified["pair_on_data"])
    radius = lambda name: certified["certified"][..., certificates.NAMES.index(name), :]
    # Lip(fᵢ - fⱼ) ≤ 2 Lip(f), also of the bounds, to rounding.
    assert np.all(radius("pairs") >= radius("margin") * (1 - 1e-4))
    headers, rows = certificates.table(certified)
    assert all(len(row) == len(headers) for row in rows)


def test_the_layers_of_the_convolutional_network_are_those_of_its_bound():
    """Steepest secants between images and their neighbours stay below the product of norms."""
    config = dataclasses.replace(certificates.SMOKE, channels=(2, 3))
    model = certificates.network(config, "convolutional")
    images = jax.random.uniform(jax.random.key(0), (16, 8, 8, 1))
    variables = model.init(jax.random.key(1), images[:1], train=False)
    chain = certificates.layers(variables)
    assert [layer.kernel.shape[-1] for layer in chain] == [2, 3, 10]
    bound = certificates.robustness.lipschitz_upper_bound(chain, output_norm=2)
    moved = model.apply(variables, images, train=False) - model.apply(variables, images + 1e-2, train=False)
    assert np.all(np.linalg.norm(moved, axis=-1) <= float(bound) * 8 * 1e-2)
    with pytest.raises(ValueError, match="convolutional"):
        certificates.network(config, "transformer")
