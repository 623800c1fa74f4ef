"""Weighted Gaussians: closed forms within the reported errors, effective sample sizes, and any temperature."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde.smoothing import cole_hopf, gaussian, hopf_lax
from tests.smoothing.test_gaussian import quadratic

ESTIMATORS = ["displacement", "gradient", "control_variate"]
SETTINGS = {"smoothing_time": 0.6, "temperature": 0.5}


@functools.partial(jax.jit, static_argnames=("estimator", "antithetic", "num_samples"))
def repeated(keys, A, b, x, estimator="gradient", antithetic=True, num_samples=400):
    loss = lambda y: y @ A @ y / 2 - b @ y
    options = {"estimator": estimator, "antithetic": antithetic, "num_samples": num_samples}
    return jax.vmap(lambda key: cole_hopf(loss, x, key, **options, **SETTINGS))(keys)


def mild(dimension):
    """A quadratic and a point where about a third of the samples are effective."""
    A, b, x = quadratic(dimension)
    return A, b / 4, x / 4


@pytest.mark.parametrize(("estimator", "antithetic"), [*((e, True) for e in ESTIMATORS), ("gradient", False)])
def test_errors_are_what_they_are_reported_to_be(estimator, antithetic, x64):
    """A quadratic in 2-D, 300 repeats: errors of the reported size (within 15 %), and bias below a third of it.

    The delta method is asymptotic: with fewer than some 50 effective samples it reports up to 20 % too little.
    """
    A, b, x = mild(2)
    exact = gaussian(A, b, x, **SETTINGS)
    keys = jax.random.split(jax.random.key(1), 300)
    smoothed = jax.device_get(repeated(keys, A, b, x, estimator, antithetic))
    errors = smoothed.gradient - np.asarray(exact.gradient)
    reported = np.sqrt(np.mean(smoothed.info["standard_error"] ** 2))
    assert np.sqrt(np.mean(np.sum(errors**2, axis=1))) == pytest.approx(reported, rel=0.15)
    assert np.linalg.norm(errors.mean(axis=0)) < reported / 3
    value_errors = smoothed.value - float(exact.value)
    value_reported = np.sqrt(np.mean(smoothed.info["value_standard_error"] ** 2))
    assert np.sqrt(np.mean(value_errors**2)) == pytest.approx(value_reported, rel=0.15)
    assert abs(value_errors.mean()) < value_reported / 3
    assert int(smoothed.num_gradients[0]) == (0 if estimator == "displacement" else 400)
    assert int(smoothed.info["num_losses"][0]) == 400


def test_the_control_variate_is_the_best_of_the_three_and_errors_fall_as_one_over_root_n(x64):
    A, b, x = mild(2)
    keys = jax.random.split(jax.random.key(2), 100)
    error = lambda **options: float(
        np.sqrt(np.mean(repeated(keys, A, b, x, **options).info["standard_error"] ** 2))
    )
    errors = {estimator: error(estimator=estimator) for estimator in ESTIMATORS}
    assert errors["control_variate"] < 0.9 * min(errors["displacement"], errors["gradient"])
    assert error(num_samples=1600) == pytest.approx(errors["gradient"] / 2, rel=0.15)


@pytest.mark.parametrize("dimension", [1, 3, 20])
def test_quadratics_within_the_standard_error(dimension, x64):
    """Centred at the minimiser: pairs make ∇u exact, and u holds in 20 dimensions at T = 1e-3."""
    A, b, x = quadratic(dimension)
    t, temperature = 0.6, 1e-3
    exact = gaussian(A, b, x, smoothing_time=t, temperature=temperature)
    loss = lambda y: y @ A @ y / 2 - b @ y
    run = lambda **options: cole_hopf(
        loss, x, 4, smoothing_time=t, temperature=temperature, num_samples=2000, **options
    )
    run = jax.jit(run)
    for scale in (1.0, 0.9):
        smoothed = run(proposal_mean=exact.info["mean"], proposal_scale=scale)
        np.testing.assert_allclose(smoothed.gradient, exact.gradient, atol=1e-12)
        assert abs(smoothed.value - exact.value) < 4.5 * smoothed.info["value_standard_error"]
    nearby = run(proposal_mean=exact.info["mean"] + 0.01, proposal_scale=1.0)
    assert jnp.linalg.norm(nearby.gradient - exact.gradient) < 4.5 * nearby.info["standard_error"]


def test_centring_the_proposal_keeps_the_effective_sample_size(x64):
    """ESS/n = Π √(1 + 2tλ)/(1 + tλ) around the minimiser at every T; around x it falls to a few samples."""
    lam, t = jnp.linspace(0.2, 2.0, 10), 0.5
    x = jnp.ones(10)
    loss = lambda y: jnp.sum(lam * y**2) / 2
    prox = hopf_lax(lambda y, step: lam * y, x, 0, smoothing_time=t, step_size=0.4, num_steps=60)
    expected = float(jnp.prod(jnp.sqrt(1 + 2 * t * lam) / (1 + t * lam)))
    for temperature in (1e-1, 1e-3, 1e-6):
        run = functools.partial(
            cole_hopf, loss, x, 0, smoothing_time=t, temperature=temperature, num_samples=4000,
            estimator="displacement",
        )  # fmt: skip
        centred = run(proposal_mean=jax.tree.map(lambda y: y[0], prox.positions))
        assert float(centred.info["effective_sample_size"]) / 4000 == pytest.approx(expected, rel=0.1)
        assert float(run().info["effective_sample_size"]) < 100


@pytest.mark.parametrize("temperature", [1e-12, 1e-30])
def test_any_temperature_is_safe_in_single_precision(temperature):
    """Around x: finite, u ≤ f as far as samples reach. Around the minimiser: the envelope to single precision."""
    loss = lambda y: jnp.sum(jnp.cosh(y))
    x, t = jnp.array([1.0, -2.0]), 0.5
    prox = hopf_lax(
        lambda y, step: jnp.sinh(y), x, 0, smoothing_time=t, step_size=0.1, num_steps=200, value_fn=loss
    )
    for mean in (None, prox.positions[0]):
        smoothed = jax.jit(
            lambda m: cole_hopf(
                loss, x, 0, smoothing_time=t, temperature=temperature, num_samples=100, proposal_mean=m
            )
        )(mean)
        chex.assert_tree_all_finite(smoothed)
        assert 1 - 1e-5 <= smoothed.info["effective_sample_size"] <= 100.001
    np.testing.assert_allclose(smoothed.value, prox.value, rtol=1e-6)
    np.testing.assert_allclose(smoothed.gradient, prox.gradient, rtol=2e-5)
    assert float(cole_hopf(loss, x, 0, smoothing_time=t, temperature=1e-12).value) <= float(loss(x)) + 1e-5


def test_the_value_differentiates_to_the_gradient_form(x64):
    """∂/∂x with the key fixed: Σ w ∇f where samples move with x, Σ w (x − y)/t where the proposal stays."""
    loss = lambda p: jnp.sum(jnp.cosh(p["a"])) + jnp.sin(3 * p["b"])
    params = {"a": jnp.array([0.3, -1.0]), "b": jnp.array(0.4)}
    moved = jax.tree.map(lambda x: x - 0.1, params)
    for mean, estimator in ((None, "gradient"), (moved, "displacement")):
        run = functools.partial(
            cole_hopf, loss, key=1, proposal_mean=mean, num_samples=64, estimator=estimator, **SETTINGS
        )
        both = jax.jit(lambda p, run=run: (jax.grad(lambda q: run(q).value)(p), run(p).gradient))
        chex.assert_trees_all_close(*both(params), rtol=1e-11)
    sized = lambda size: cole_hopf(loss, params, 1, num_samples=64, sample_batch_size=size, **SETTINGS)
    together, in_tens = jax.jit(lambda: (sized(None), sized(10)))()
    chex.assert_trees_all_close(together, in_tens, rtol=1e-11)


def test_dtypes_and_vmap_over_params_and_keys():
    run = lambda x, key: cole_hopf(
        lambda p: jnp.sum(p.astype(jnp.float32) ** 2), x, key, num_samples=2000, **SETTINGS
    )
    xs, keys = jnp.ones((3, 2), jnp.bfloat16), jax.random.split(jax.random.key(0), 3)
    smoothed = jax.jit(jax.vmap(run))(xs, keys)
    assert smoothed.gradient.dtype == jnp.bfloat16
    assert smoothed.value.dtype == jnp.float32
    np.testing.assert_allclose(smoothed.gradient.astype(np.float32), 2 / 2.2, atol=0.1)
    assert len(set(np.asarray(smoothed.value).tolist())) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"num_samples": 1}, "num_samples must be at least 2, got 1"),
        ({"num_samples": 5}, "num_samples must be even with antithetic=True"),
        (
            {"estimator": "mean"},
            "estimator must be one of 'displacement', 'gradient', 'control_variate', got 'mean'",
        ),
        ({"proposal_mean": jnp.ones(3)}, r"proposal_mean gave a leaf of shape \(3,\)"),
        ({"proposal_scale": 0.0}, "proposal_scale must be positive and finite, got 0.0"),
        ({"sample_batch_size": 0}, "sample_batch_size must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        cole_hopf(lambda y: jnp.sum(y**2), jnp.ones(2), 0, **(SETTINGS | change))


def test_a_loss_that_is_no_scalar_is_refused():
    with pytest.raises(ValueError, match=r"loss_fn must return a scalar loss, got shape \(2,\)"):
        cole_hopf(lambda y: y, jnp.ones(2), 0, **SETTINGS)
