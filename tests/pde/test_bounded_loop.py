"""A loop of traced length: the same as Python's, forwards and in reverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde.pde.time_stepping import bounded_loop, runge_kutta_step


def body(carry):
    x, scale, taken = carry
    return jnp.sin(x * scale) + x / 2, scale, taken + 1


def in_python(x, scale, count):
    carry = (x, scale, 0)
    for _ in range(count):
        carry = body(carry)
    return carry


@pytest.mark.parametrize("limit", [1, 2, 7, 30])
def test_counts_up_to_the_limit_and_beyond(limit):
    loop = jax.jit(lambda count, x, scale: bounded_loop(body, (x, scale, jnp.int32(0)), count, limit))
    x, scale = jnp.float32(0.7), jnp.float32(1.3)
    states = [0.7]
    for _ in range(limit):
        states.append(np.sin(states[-1] * 1.3) + states[-1] / 2)
    for count in (-1, *range(limit + 1), limit + 1, 10**6):
        reached = min(max(count, 0), limit)
        got, _, taken = loop(count, x, scale)
        assert int(taken) == reached
        # |d sin(1.3x)/dx + 1/2| < 2, but the map's own derivative contracts on the orbit: rounding stays of size eps
        np.testing.assert_allclose(got, states[reached], rtol=2e-6, err_msg=str(count))


def test_reverse_mode_gradient(x64):
    """Against Python's loop; one compilation serves every count."""
    limit = 12
    value = lambda x, scale, count: bounded_loop(body, (x, scale, 0), count, limit)[0]
    loop = jax.jit(jax.value_and_grad(value, (0, 1)))
    for count in (0, 1, 5, 11, 12):
        expected = jax.value_and_grad(lambda x, s, n=count: in_python(x, s, n)[0], (0, 1))(0.7, 1.3)
        np.testing.assert_allclose(loop(0.7, 1.3, count)[0], expected[0], rtol=1e-13)
        np.testing.assert_allclose(loop(0.7, 1.3, count)[1], expected[1], rtol=1e-12, atol=1e-14)


def test_steps_that_do_not_happen_leave_no_nan():
    """The body may be undefined past the count: neither value nor gradient sees it."""
    shrink = lambda x: jnp.sqrt(x) - 1  # real three times from 30, then NaN
    value = lambda x: bounded_loop(shrink, x, 2, 8)
    got, slope = jax.value_and_grad(value)(jnp.float32(30.0))
    inner = np.sqrt(30.0) - 1
    np.testing.assert_allclose(got, np.sqrt(inner) - 1, rtol=1e-5)
    np.testing.assert_allclose(slope, 1 / (4 * np.sqrt(inner) * np.sqrt(30.0)), rtol=1e-5)


@pytest.mark.parametrize("stages", [1, 3])
def test_order_of_runge_kutta(x64, stages):
    """u' = -u² from 1: u(1) = 1/2."""
    step = jax.jit(lambda u, dt: runge_kutta_step(lambda u: -(u**2), u, dt, stages))
    errors = []
    for count in (16, 32, 64):
        u = jnp.asarray(1.0)
        for _ in range(count):
            u = step(u, 1 / count)
        errors.append(abs(float(u) - 0.5))
    order = np.log2(errors[1] / errors[2])
    assert abs(order - stages) < 0.1, order
