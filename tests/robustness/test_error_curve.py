"""Error curves of results that say nothing: a model that returns NaN, distances without successes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde.robustness import AttackResult, error_curve, fgsm


def broken(x):
    """Two logits; NaN where the first pixel is above 0.9."""
    return jnp.where(x[:, :1] > 0.9, jnp.nan, jnp.stack([x[:, 0], x[:, 1]], 1))


def test_an_image_without_a_class_is_not_counted_as_robust():
    """One NaN among three images: NaN, not an error of 1/3; without that image the curve is finite."""
    x, y, radii = jnp.array([[0.7, 0.6], [0.8, 0.1], [1.0, 0.5]]), jnp.zeros(3, jnp.int32), jnp.array([0.1])
    with pytest.warns(UserWarning, match="logits of 1 of 3 images are NaN"):
        result = fgsm(broken, x, y, jax.random.key(0), radius=0.08)
    curve = error_curve(result, radii)
    np.testing.assert_array_equal(curve.radii, radii)
    assert all(np.isnan(value).all() for value in curve[1:])
    rest = error_curve(AttackResult(*(value[:2] for value in result)), radii)
    assert float(rest.error[0]) == 0.5
    assert not any(np.isnan(value).any() for value in rest)


def test_a_nan_at_one_radius_does_not_hide_a_success_at_another():
    success, distance = jnp.array([[False], [True]]), jnp.array([[0.0], [0.2]])
    result = AttackResult(distance[..., None], jnp.array([[jnp.nan], [1.0]]), success, distance)
    assert float(error_curve(result, jnp.array([0.3])).error[0]) == 1


def test_bare_distances_are_refused():
    with pytest.raises(TypeError, match="result must be the AttackResult of an attack, got ArrayImpl"):
        error_curve(jnp.ones(3))
