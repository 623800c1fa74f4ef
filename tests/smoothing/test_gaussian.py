"""The closed form on quadratics: it solves the equation, its derivatives are its own, and it refuses what has no u."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde.smoothing import gaussian


def quadratic(dimension, lowest=-0.4):
    """A [d, d] with eigenvalues from ``lowest`` to 3, b and x [d], seeded by the dimension."""
    rng = np.random.default_rng(dimension)
    basis = np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]
    A = basis @ np.diag(np.linspace(lowest, 3, dimension)) @ basis.T
    return jnp.asarray((A + A.T) / 2), *jnp.asarray(rng.normal(size=(2, dimension)))


@pytest.mark.parametrize("dimension", [1, 20])
def test_it_solves_the_viscous_hamilton_jacobi_equation(dimension, x64):
    """u_t + ½|∇u|² = (T/2) Δu by automatic differentiation, and u(x, t → 0) = f(x)."""
    (A, b, x), t, temperature = quadratic(dimension), 0.9, 0.3
    u = jax.jit(lambda x, t: gaussian(A, b, x, smoothing_time=t, temperature=temperature).value)
    (p, u_t), hessian = jax.jit(jax.grad(u, argnums=(0, 1)))(x, t), jax.jit(jax.hessian(u))(x, t)
    residual = u_t + p @ p / 2 - temperature / 2 * jnp.trace(hessian)
    assert abs(residual) < 1e-12 * dimension
    assert abs(u(x, 1e-9) - (x @ A @ x / 2 - b @ x)) < 1e-7
    smoothed = gaussian(A, b, x, smoothing_time=t, temperature=temperature)
    np.testing.assert_allclose(smoothed.gradient, p, atol=1e-13)
    np.testing.assert_allclose(smoothed.info["hessian"], hessian, atol=1e-12)


def test_at_temperature_zero_it_is_the_moreau_envelope(x64):
    """The minimum of φ, at y*: no other y is lower; the temperature adds (T/2) log det(I + tA) and no gradient."""
    (A, b, x), t = quadratic(4), 0.7
    cold, warm = (gaussian(A, b, x, smoothing_time=t, temperature=T) for T in (0.0, 0.5))
    phi = lambda y: y @ A @ y / 2 - b @ y + jnp.sum((x - y) ** 2) / (2 * t)
    others = cold.info["mean"][None] + jax.random.normal(jax.random.key(0), (100, 4))
    assert abs(phi(cold.info["mean"]) - cold.value) < 1e-13
    assert bool(jnp.all(jax.vmap(phi)(others) > cold.value))
    np.testing.assert_array_equal(cold.gradient, warm.gradient)
    assert float(warm.value - cold.value) == pytest.approx(0.25 * np.linalg.slogdet(np.eye(4) + t * A)[1])
    np.testing.assert_array_equal(cold.info["covariance"], 0)


def test_trees_and_dtypes_are_those_of_params():
    params = {"w": jnp.ones((2, 2), jnp.bfloat16), "b": jnp.array(0.5)}
    A = jnp.diag(jnp.arange(1.0, 6.0))  # ravelled in the order b, w
    linear = {"w": jnp.zeros((2, 2)), "b": jnp.array(0.25)}
    smoothed = gaussian(A, linear, params, smoothing_time=1.0, temperature=0.1)
    assert smoothed.gradient["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(smoothed.gradient["b"], (0.5 - 0.25) / 2, rtol=1e-6)
    expected = (np.arange(2.0, 6.0) / np.arange(3.0, 7.0)).reshape(2, 2)
    np.testing.assert_allclose(smoothed.gradient["w"].astype(float), expected, rtol=4e-3)
    assert int(smoothed.num_gradients) == 0
    many = jax.vmap(
        lambda x: gaussian(jnp.eye(2), jnp.zeros(2), x, smoothing_time=1.0, temperature=0.0).gradient
    )
    np.testing.assert_allclose(many(jnp.ones((3, 2))), 0.5)


def test_what_has_no_relaxation_is_refused():
    x, settings = jnp.ones(2), {"smoothing_time": 2.5, "temperature": 0.1}
    A = jnp.diag(jnp.array([1.0, -0.4]))
    with pytest.raises(ValueError, match=r"lowest eigenvalue is -0.4, so t < 2.5, got 2.5"):
        gaussian(A, x, x, **settings)
    traced = jax.jit(lambda A: gaussian(A, x, x, **settings))(A)
    assert bool(jnp.all(jnp.isnan(jnp.append(traced.gradient, traced.value))))
    with pytest.raises(ValueError, match=r"hessian must have shape \(2, 2\), d as in params, got \(3, 3\)"):
        gaussian(jnp.eye(3), x, x, **settings)
    with pytest.raises(ValueError, match="hessian must be symmetric"):
        gaussian(jnp.array([[1.0, 1.0], [0.0, 1.0]]), x, x, **settings)
    with pytest.raises(ValueError, match="linear must have 2 entries, as params have, got 3"):
        gaussian(jnp.eye(2), jnp.ones(3), x, **settings)
    with pytest.raises(ValueError, match="temperature must be finite and at least 0, got -1"):
        gaussian(jnp.eye(2), x, x, smoothing_time=1.0, temperature=-1.0)
