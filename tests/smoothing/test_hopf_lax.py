"""The Moreau envelope: closed forms, contraction factors, the envelope theorem, agreement with the Langevin chain."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde.smoothing import gaussian, hopf_lax, langevin
from tests.smoothing.test_gaussian import quadratic

METHODS = {
    "fixed point": {"smoothing_time": 0.3, "num_steps": 400},
    "proximal descent": {"smoothing_time": 0.9, "step_size": 0.4, "num_steps": 150},
    "heavy ball": {"smoothing_time": 0.9, "step_size": 0.4, "num_steps": 100, "momentum": 0.3},
    "nesterov": {
        "smoothing_time": 0.9,
        "step_size": 0.2,
        "num_steps": 120,
        "momentum": 0.4,
        "nesterov": True,
    },
}


@pytest.mark.parametrize("method", METHODS)
def test_quadratics_in_any_dimension(method, x64):
    """Indefinite Hessians with eigenvalues −0.4 … 3: every form converges where its contraction factor is below 1."""
    for dimension in (1, 2, 3, 20):
        A, b, x = quadratic(dimension)
        loss = lambda y, A=A, b=b: y @ A @ y / 2 - b @ y
        smoothed = hopf_lax(lambda y, step: A @ y - b, x, 0, value_fn=loss, **METHODS[method])  # noqa: B023
        exact = gaussian(A, b, x, smoothing_time=METHODS[method]["smoothing_time"], temperature=0.0)
        np.testing.assert_allclose(smoothed.gradient, exact.gradient, atol=1e-12)
        np.testing.assert_allclose(smoothed.positions[0], exact.info["mean"], atol=1e-12)
        assert smoothed.value == pytest.approx(float(exact.value), abs=1e-12)
        assert smoothed.info["residual"] < 1e-11
        assert int(smoothed.num_gradients) == METHODS[method]["num_steps"]


def test_the_residual_and_the_contraction_are_those_of_the_linear_iteration(x64):
    """f = ½ λ y²: residual before step l is |λx| |1 − a (1 + tλ)|^l; without convergence the ratio exceeds 1."""
    lam, x, t = 2.0, jnp.array(1.5), 0.4
    for step_size, factor in ((None, -t * lam), (0.1, 1 - 0.1 / t * (1 + t * lam))):
        smoothed = hopf_lax(lambda y, step: lam * y, x, 0, smoothing_time=t, num_steps=6, step_size=step_size)
        assert smoothed.info["residual"] == pytest.approx(lam * 1.5 * abs(factor) ** 5)
        assert smoothed.info["contraction"] == pytest.approx(abs(factor))
    diverging = hopf_lax(lambda y, step: lam * y, x, 0, smoothing_time=0.6, num_steps=6)
    assert diverging.info["contraction"] == pytest.approx(1.2)
    assert np.isnan(hopf_lax(lambda y, step: y, x, 0, smoothing_time=t, num_steps=1).info["contraction"])


def test_it_is_the_langevin_chain_at_temperature_zero(x64):
    """Same steps, same minibatches (the keys of InnerStep agree), same last particle."""
    grad_fn = lambda y, step: jnp.sinh(y) + 0.1 * jax.random.normal(step.key, y.shape)
    x = jnp.array([0.5, -1.0])
    same = {"smoothing_time": 1.0, "step_size": 0.1, "num_steps": 13, "momentum": 0.5}
    one = hopf_lax(grad_fn, x, jax.random.key(3), **same)
    two = langevin(grad_fn, x, jax.random.key(3), temperature=0.0, **same)
    np.testing.assert_allclose(one.positions, two.positions, rtol=1e-12)


def test_the_envelope_lies_below_the_loss_and_has_its_minimum(x64):
    """u ≤ f, min u = min f; f' = tanh(50 y), nearly |y|, has nearly the Huber function."""
    f = lambda y: jnp.logaddexp(50 * y, -50 * y) / 50
    xs, t = jnp.linspace(-2, 2, 41), 0.5
    run = jax.vmap(
        lambda x: hopf_lax(
            lambda y, step: jax.grad(f)(y), x, 0, smoothing_time=t, step_size=0.02, num_steps=400, value_fn=f
        )
    )
    smoothed = jax.jit(run)(xs)
    assert bool(jnp.all(smoothed.value <= f(xs) + 1e-12))
    assert float(smoothed.value.min()) == pytest.approx(float(f(0.0)), abs=1e-9)
    huber = np.where(np.abs(xs) < t, np.asarray(xs) ** 2 / (2 * t), np.abs(xs) - t / 2)
    np.testing.assert_allclose(smoothed.value, huber, atol=np.log(2) / 50 + 1e-9)
    np.testing.assert_allclose(smoothed.gradient, np.tanh(50 * (xs - t * smoothed.gradient)), atol=1e-6)


def test_the_value_obeys_the_equation(x64):
    """∂u/∂x = p exactly, and u_t = −½ p²: y is held constant. The Jacobian of p is ∇²u = f''/(1 + t f'')."""
    f = jnp.cosh
    run = lambda x, t: hopf_lax(
        lambda y, step: jnp.sinh(y), x, 0, smoothing_time=t, step_size=0.1, num_steps=120, value_fn=f
    )
    x, t = jnp.array(0.9), 0.4
    smoothed = run(x, t)
    u_x, u_t = jax.grad(lambda x, t: run(x, t).value, argnums=(0, 1))(x, t)
    assert float(u_x) == pytest.approx(float(smoothed.gradient), rel=1e-13)
    assert float(u_t) == pytest.approx(-(float(smoothed.gradient) ** 2) / 2, rel=1e-13)
    curvature = np.cosh(float(smoothed.positions[0]))
    hessian = jax.jacrev(lambda x: run(x, t).gradient)(x)
    assert float(hessian) == pytest.approx(curvature / (1 + t * curvature), rel=1e-9)


@pytest.mark.parametrize(("dtype", "accuracy"), [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
def test_small_times_lose_no_digits(dtype, accuracy):
    """(x − y)/t has an error of eps |x|/t: 0.6 here in float32; p itself is carried."""
    smoothed = hopf_lax(lambda y, step: 3 * y, jnp.array(10.0, dtype), 0, smoothing_time=1e-6)
    assert smoothed.gradient.dtype == dtype
    assert float(smoothed.gradient) == pytest.approx(30 / (1 + 3e-6), rel=accuracy)


def test_warm_starts_and_trees(x64):
    params = {"a": jnp.array([1.0, -2.0]), "b": (jnp.array(0.3),)}
    grad_fn = lambda p, step: jax.tree.map(jnp.sinh, p)
    settings = {"smoothing_time": 1.0, "step_size": 0.1}
    first = hopf_lax(grad_fn, params, 0, num_steps=10, **settings)
    second = hopf_lax(grad_fn, params, 0, num_steps=7, start=first.positions, **settings)
    chex.assert_trees_all_close(
        second.gradient, hopf_lax(grad_fn, params, 0, num_steps=17, **settings).gradient, rtol=1e-12
    )
    with pytest.raises(ValueError, match="start gave a leaf of shape"):
        hopf_lax(grad_fn, params, 0, start=params, **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"smoothing_time": 0.0}, "smoothing_time must be positive and finite, got 0.0"),
        ({"step_size": -1.0}, "step_size must be positive and finite, got -1.0"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"value_fn": lambda y: y}, r"value_fn must return a scalar loss, got shape \(2,\)"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        hopf_lax(lambda y, step: y, jnp.ones(2), 0, **({"smoothing_time": 1.0} | change))
