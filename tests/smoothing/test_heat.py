"""The Gaussian average: closed forms, honest standard errors, and how the samples are run."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde.smoothing import heat
from tests.smoothing.test_gaussian import quadratic

SETTINGS = {"smoothing_time": 0.5, "temperature": 0.8}
STATIC = ("num_samples", "antithetic", "sample_batch_size")
VARIANCE = 0.4


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("dimension", [1, 20])
def test_pairs_are_exact_on_quadratics(dimension, noise, x64):
    """u = f + ½ tT tr A, ∇u = ∇f: the gradient without any error, the value within its standard error."""
    A, b, x = quadratic(dimension)
    loss = lambda y: y @ A @ y / 2 - b @ y
    run = lambda x: heat(
        lambda y, step: A @ y - b, x, 1, num_samples=400, noise=noise, value_fn=loss, **SETTINGS
    )
    smoothed = jax.jit(run)(x)
    np.testing.assert_allclose(smoothed.gradient, A @ x - b, atol=1e-13)
    assert smoothed.info["standard_error"] < 1e-13
    expected = float(loss(x)) + VARIANCE * float(jnp.trace(A)) / 2
    assert abs(smoothed.value - expected) < 4.5 * smoothed.info["value_standard_error"] + 1e-12
    assert int(smoothed.num_gradients) == 400


@jax.jit
@jax.vmap
def waves(key):
    """400 estimates for f = Σ sin(k y)/k: ∇u_k = cos(k y) exp(−k² tT/2)."""
    one = lambda n, antithetic: heat(
        lambda y, step: jnp.cos(FREQUENCIES * y), POINT, key, num_samples=n, antithetic=antithetic,
        sample_batch_size=None, value_fn=lambda y: jnp.sum(jnp.sin(FREQUENCIES * y) / FREQUENCIES), **SETTINGS,
    )  # fmt: skip
    return one(8, True), one(8, False), one(64, False)


FREQUENCIES, POINT = np.array([0.5, 1.0, 3.0]), np.array([0.3, 1.2, -0.7])


def test_errors_are_what_they_are_reported_to_be_and_fall_as_one_over_root_n(x64):
    """400 repeats: unbiased within 4.5 standard errors; the reported variance is that of the repeats within 10 %."""
    exact = np.cos(FREQUENCIES * POINT) * np.exp(-(FREQUENCIES**2) * VARIANCE / 2)
    exact_value = np.sum(np.sin(FREQUENCIES * POINT) / FREQUENCIES * np.exp(-(FREQUENCIES**2) * VARIANCE / 2))
    spreads = []
    for smoothed in jax.device_get(waves(jax.random.split(jax.random.key(0), 400))):
        variances = np.var(smoothed.gradient, axis=0, ddof=1)
        assert np.all(np.abs(smoothed.gradient.mean(0) - exact) < 4.5 * np.sqrt(variances / 400))
        assert np.mean(smoothed.info["standard_error"] ** 2) == pytest.approx(variances.sum(), rel=0.1)
        value_variance = np.var(smoothed.value, ddof=1)
        assert abs(smoothed.value.mean() - exact_value) < 4.5 * np.sqrt(value_variance / 400)
        assert np.mean(smoothed.info["value_standard_error"] ** 2) == pytest.approx(value_variance, rel=0.25)
        spreads.append(variances.sum())
    pairs, few, many = spreads
    assert few / many == pytest.approx(8, rel=0.2)
    assert pairs < 0.9 * few  # the odd part of ∇f cancels


def test_the_value_differentiates_to_the_gradient(x64):
    loss = lambda y: jnp.sum(jnp.sin(y))
    run = lambda y: heat(lambda z, step: jnp.cos(z), y, 3, value_fn=loss, **SETTINGS)
    np.testing.assert_allclose(jax.grad(lambda y: run(y).value)(POINT), run(POINT).gradient, rtol=1e-12)
    alone = heat(lambda z, step: jnp.cos(z), POINT, 3, num_samples=1, antithetic=False, **SETTINGS)
    assert alone.value is None
    assert np.isnan(alone.info["standard_error"])


@pytest.mark.parametrize("antithetic", [True, False])
def test_samples_in_turn_equal_samples_together(antithetic, x64):
    """Whatever runs together: same indices, same keys, same noise, same mean and error; every index once."""
    batches = jax.random.normal(jax.random.key(1), (12, 3))
    params = {"a": POINT, "b": jnp.array(0.2)}

    def run(size):
        seen = []

        def grad_fn(p, step):
            record = lambda s, k: seen.append((int(s), tuple(np.asarray(k).tolist())))
            jax.debug.callback(record, step.step, jax.random.key_data(step.key))
            return {"a": jnp.sin(p["a"] * batches[step.step]), "b": p["b"] + step.chain}

        smoothed = jax.jit(heat, static_argnums=0, static_argnames=STATIC)(
            grad_fn,
            params,
            jax.random.key(5),
            num_samples=12,
            antithetic=antithetic,
            sample_batch_size=size,
            **SETTINGS,
        )
        jax.effects_barrier()
        return smoothed, sorted(seen)

    expected, seen = run(1)
    assert [index for index, _ in seen] == list(range(12))
    assert len({key for _, key in seen}) == 12
    for size in (4, None):
        smoothed, others = run(size)
        chex.assert_trees_all_close(smoothed, expected, rtol=1e-12)
        assert others == seen


def test_dtypes_and_vmap():
    params = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(())}
    grad_fn = lambda p, step: p
    many = jax.vmap(lambda k: heat(grad_fn, params, k, smoothing_time=1.0, temperature=0.1).gradient)
    gradients = many(jax.random.split(jax.random.key(0), 4))
    assert gradients["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(gradients["w"].astype(np.float32), 1, atol=0.02)
    np.testing.assert_allclose(gradients["b"], 1, rtol=1e-5)
    cold = heat(grad_fn, params, 0, smoothing_time=1.0, temperature=0.0)
    chex.assert_trees_all_equal(cold.gradient, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1.0}, "temperature must be finite and at least 0, got -1.0"),
        ({"num_samples": 3}, r"num_samples must be even with antithetic=True \(pairs x ± ξ\), got 3"),
        ({"noise": "cauchy"}, "noise must be one of 'gaussian', 'rademacher', got 'cauchy'"),
        ({"sample_batch_size": 8}, "sample_batch_size must be 1 or an even divisor of num_samples=20, got 8"),
        ({"sample_batch_size": 5}, "sample_batch_size must be 1 or an even divisor of num_samples=20, got 5"),
        ({"sample_batch_size": 3, "antithetic": False}, "must be a divisor of num_samples=20, got 3"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        heat(lambda y, step: y, jnp.ones(2), 0, **(SETTINGS | change))
