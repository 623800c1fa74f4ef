"""One relaxation, independent computations: quadrature, Langevin, Cole-Hopf, and the two limits of the family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde.smoothing import cole_hopf, heat, hopf_lax, langevin, quadrature


def loss(p):
    """A coupled, tilted double well in (a, b)."""
    return jnp.sum(0.5 * (p["a"] ** 2 - 1) ** 2 + 0.2 * p["a"]) + 0.5 * p["b"] ** 2 + 0.3 * p["a"][0] * p["b"]


PARAMS = {"a": jnp.array([1.2]), "b": jnp.array(-0.5)}
grad_fn = lambda p, step: jax.grad(loss)(p)


def vector(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def wide(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)


def test_three_ways_to_the_viscous_gradient(x64):
    """∂(quadrature value) = quadrature gradient; Cole-Hopf within 4 standard errors in all three forms; Langevin
    within 4 standard errors and its O(ε) bias, taken as the change from ε to 2ε.
    """
    x, t, temperature = wide(PARAMS), 0.3, 0.3
    same = {"smoothing_time": t, "temperature": temperature}
    run = lambda p: quadrature(loss, p, **same)
    has_aux = lambda p: (run(p).value, run(p))
    (value, exact), by_autodiff = jax.jit(jax.value_and_grad(has_aux, has_aux=True))(x)
    np.testing.assert_allclose(vector(by_autodiff), vector(exact.gradient), atol=1e-12)
    assert float(exact.info["gradient_error"]) < 1e-12
    for estimator in ("displacement", "gradient", "control_variate"):
        run = lambda p, e=estimator: cole_hopf(loss, p, 0, num_samples=20_000, estimator=e, **same)
        weighted = jax.jit(run)(x)
        miss = np.linalg.norm(vector(weighted.gradient) - vector(exact.gradient))
        assert miss < 4 * weighted.info["standard_error"] < 0.2
        assert abs(weighted.value - value) < 4 * weighted.info["value_standard_error"]

    @jax.jit
    def chains(step_size):
        return langevin(
            grad_fn, x, 1, step_size=step_size, num_steps=200, num_chains=1000, burn_in=60, **same
        )

    fine, coarse = chains(0.02), chains(0.04)
    bias = np.linalg.norm(vector(coarse.gradient) - vector(fine.gradient))
    miss = np.linalg.norm(vector(fine.gradient) - vector(exact.gradient))
    assert miss < bias + 4 * float(fine.info["standard_error"]) < 0.1


def test_the_inviscid_limit_is_hopf_lax(x64):
    """As T → 0, ∇u tends to the envelope's gradient linearly in T, and so does u."""
    x, t = wide(PARAMS), 0.3
    cold = hopf_lax(grad_fn, x, 0, smoothing_time=t, step_size=0.1, num_steps=200, value_fn=loss)
    run = jax.jit(lambda T: quadrature(loss, x, smoothing_time=t, temperature=T))
    misses = [
        (
            np.linalg.norm(vector(run(T).gradient) - vector(cold.gradient)),
            abs(float(run(T).value - cold.value)),
        )
        for T in (2e-3, 1e-3, 1e-9)
    ]
    assert misses[0][0] / misses[1][0] == pytest.approx(2, rel=0.05)
    assert misses[0][1] / misses[1][1] == pytest.approx(2, rel=0.05)
    assert max(misses[2]) < 1e-7


def test_the_hot_limit_with_fixed_variance_is_heat(x64):
    """As T → ∞ with tT = 0.09 fixed; Gaussian averages within 4.5 standard errors of quadrature at T = 1e4."""
    x, variance = wide(PARAMS), 0.09
    hot = quadrature(loss, x, smoothing_time=variance / 1e4, temperature=1e4)
    averaged = heat(
        grad_fn, x, 2, smoothing_time=variance, temperature=1.0, num_samples=20_000, sample_batch_size=None,
        value_fn=loss,
    )  # fmt: skip
    miss = np.linalg.norm(vector(averaged.gradient) - vector(hot.gradient))
    assert miss < 4.5 * averaged.info["standard_error"] < 0.1
    assert abs(averaged.value - hot.value) < 4.5 * averaged.info["value_standard_error"] + 1e-4
