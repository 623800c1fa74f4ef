"""Profiles of local entropy: the bounds and limits that the figure shows, on the smoke run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _solutions, local_entropy_profile
from jaxopt_pde.landscape._perturbations import scale_tree


@pytest.fixture(scope="module")
def found(smoke):
    return smoke("local_entropy_profile").results


def test_the_gaussian_average_is_above_the_integral_within_their_errors(found):
    """Jensen. Four errors of either; those of two chains come with one degree of freedom, so the larger of both errors
    that are known at a point counts, the quadrature's with them."""
    error = 4 * (found["entropy_error"] + found["heat_error"]) + found["quadrature_error"]
    assert np.all(found["entropy"] <= found["heat"] + error)
    assert np.all(found["heat"] > 0)


def test_cole_hopf_is_trusted_at_the_smallest_time_and_agrees_there(found):
    """Both have error bars; the mean over seeds and choices of their difference is within four of its own errors."""
    assert np.all(found["effective"][..., 0] > found["trusted"])
    difference = (found["entropy"] - found["cole_hopf"])[..., 0]
    error = (
        4 * found["entropy_error"][..., 0]
        + 4 * found["heat_error"][..., 0]
        + found["quadrature_error"][..., 0]
    )
    assert np.all(np.abs(difference) < error)
    assert np.all(np.diff(found["effective"], axis=-1) < 0)


def test_every_weight_is_scaled_by_the_librarys_filters():
    task = _solutions.make_task(local_entropy_profile.SMOKE)
    params = task.init(jax.random.key(0))
    flat, _ = jax.flatten_util.ravel_pytree(params)
    scale = task.unravel(local_entropy_profile.filter_scale(task, flat))
    expected = scale_tree(params, "filter", "rms")
    for got, want in zip(jax.tree.leaves(scale), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, jnp.broadcast_to(want, got.shape), rtol=1e-6)


def test_rates_are_of_least_error_and_of_the_common_loss():
    """The common loss is the least that the worse of two methods reaches, 0.1: the other's nearest is its second."""
    loss = np.array([[[1.0], [0.1], [0.01]], [[2.0], [0.5], [0.1]]])
    error = np.array([[[0.3], [0.2], [0.1]], [[0.1], [0.2], [0.3]]])
    fields = dict.fromkeys(_solutions.Solutions._fields)
    picked = local_entropy_profile.pick_rates(
        _solutions.Solutions(**fields | {"train_loss": loss, "validation_error": error})
    )
    np.testing.assert_array_equal(picked, [[2, 0], [1, 2]])


def test_the_table_has_every_choice_method_scale_and_three_times(found):
    headers, rows = local_entropy_profile.table(found)
    assert len(rows) == 2 * len(found["method"]) * 2 * 3
    assert {row[0] for row in rows} == set(local_entropy_profile.CHOICES)
    assert len({len(row) for row in rows} | {len(headers)}) == 1
