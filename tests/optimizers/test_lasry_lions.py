"""Sup- and inf-convolution around any optimiser: the recursion, its limits, what it descends, safety."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_pde

CURVATURES = np.array([0.5, 1.0, 3.0])


def run(tx, params, grad_fn, num_updates: int):
    """(z, state) after ``num_updates`` updates in one program."""

    @jax.jit
    def loop(params):
        def body(carry, _):
            params, state = carry
            updates, state = tx.update(grad_fn(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, tx.init(params)), length=num_updates)[0]

    return loop(params)


@pytest.mark.parametrize(("updates", "averaging"), [(1, 0.9), (2, 0.9), (25, 0.9), (25, None)])
def test_it_is_the_documented_recursion(updates, averaging, x64):
    rate, momentum, radius, pull, decay = 0.1, 0.6, 0.2, 0.05, 0.8
    start = np.array([1.0, -2.0, 0.5])
    y = z = x = start
    m, v = np.zeros(3), np.zeros(3)
    for k in range(updates):
        g = CURVATURES * z
        m, v = decay * m + g, momentum * v + g
        y = y - rate * v - pull * (y - x)
        x = x + (9 / (k + 9) if averaging is None else max(1 - averaging, 1 / (k + 1))) * (y - x)
        z = y + radius * m / np.linalg.norm(m)
    tx = jaxopt_pde.lasry_lions(
        optax.sgd(rate, momentum), radius, pull=pull, averaging=averaging, ascent_decay=decay
    )
    params, state = run(tx, jnp.asarray(start), lambda p: jnp.asarray(CURVATURES) * p, updates)
    np.testing.assert_allclose(params, z, rtol=1e-11)
    np.testing.assert_allclose(jaxopt_pde.eval_params(state, params), x, rtol=1e-11)


def test_without_ascent_the_pull_is_that_of_two_time_scale_at_t_h_over_kappa(x64):
    """Elastic force (y − x)/t in a plain step of rate h against κ = h/t beside it."""
    rate, time, start = 0.2, 4.0, jnp.array([1.0, -2.0, 0.5])
    averaging = lambda count: jnp.minimum(0.9, count / (count + 1.0))
    plain = jaxopt_pde.two_time_scale(optax.sgd(rate), time, averaging=averaging)
    ours = jaxopt_pde.lasry_lions(optax.sgd(rate), 0.0, pull=rate / time, averaging=0.9)
    for tx, (params, state) in [(tx, run(tx, start, jnp.sinh, 30)) for tx in (plain, ours)]:
        reached = jaxopt_pde.eval_params(state, params)
        if tx is plain:
            expected = params, reached
    chex.assert_trees_all_close((params, reached), expected, rtol=1e-11)


def test_without_ascent_and_pull_it_is_the_inner_optimiser_and_x_the_mean_of_its_iterates(x64):
    start = {"a": jnp.linspace(-1, 2, 4), "b": jnp.array(0.3)}
    gradient = lambda p: jax.tree.map(jnp.sinh, p)
    tx = jaxopt_pde.lasry_lions(optax.adam(0.05), 0.0, pull=0.0, averaging=0.99)
    params, state = run(tx, start, gradient, 12)
    iterates, plain, inner = [], start, optax.adam(0.05).init(start)
    for _ in range(12):
        updates, inner = optax.adam(0.05).update(gradient(plain), inner)
        plain = optax.apply_updates(plain, updates)
        iterates.append(plain)
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 12, *iterates)
    chex.assert_trees_all_close(params, plain, rtol=1e-12)
    chex.assert_trees_all_close(jaxopt_pde.eval_params(state, params), mean, rtol=1e-12)


def test_the_ascent_solves_the_eikonal_equation_of_an_isotropic_quadratic(x64):
    """f(z) on f = ½k|y|² is f^ρ(y) = ½k(|y| + ρ)², which solves u_s = |∇u|; one update from rest steps by its −h∇."""
    curvature, radius, rate = 2.0, 0.3, 0.05
    start = jnp.array([0.6, -0.8])
    tx = jaxopt_pde.lasry_lions(optax.sgd(rate), radius, pull=0.0, ascent_decay=0.0)
    value = lambda y, s: curvature * (optax.tree.norm(y) + s) ** 2 / 2
    eikonal = jax.grad(value, 1)(start, radius) - optax.tree.norm(jax.grad(value)(start, radius))
    assert abs(float(eikonal)) < 1e-12
    params, state = run(tx, start, lambda p: curvature * p, 1)  # its ascent starts here: a plain step
    y = start - rate * curvature * start
    np.testing.assert_allclose(params, y + radius * y / optax.tree.norm(y), rtol=1e-12)
    np.testing.assert_allclose(curvature * params @ params / 2, value(y, radius), rtol=1e-12)
    updates, _ = tx.update(curvature * params, state, params)
    moved = y - rate * jax.grad(value)(y, radius)
    np.testing.assert_allclose(params + updates, moved + radius * moved / optax.tree.norm(moved), rtol=1e-12)


def test_a_valley_narrower_than_the_radius_does_not_hold_it():
    """A well of standard deviation 0.1 in a slope: f ends at its bottom, f^ρ with ρ = 0.3 outside of it."""
    loss = lambda p: p[0] / 10 - jnp.exp(-(((p[0] - 1.5) / 0.1) ** 2) / 2)
    reached = []
    for radius in (0.0, 0.3):
        tx = jaxopt_pde.lasry_lions(optax.sgd(0.003), radius, pull=0.0)
        params, state = run(tx, jnp.array([1.65]), jax.grad(loss), 6000)
        reached.append(float(jaxopt_pde.eval_params(state, params)[0]))
    assert abs(reached[0] - 1.5) < 0.02
    assert reached[1] < 1.5 - 2 * 0.1


def test_a_changed_radius_is_undone_with_the_radius_it_was_made_with(x64):
    """With a schedule of ρ, y follows the recursion: the params are moved by the new radius from y, not from z."""
    radius = lambda count: jnp.where(count < 2, 0.5, 0.0)
    tx = jaxopt_pde.lasry_lions(optax.sgd(0.0), radius, pull=0.0)
    start = jnp.array([1.0, 2.0])
    for updates, length in ((1, 0.5), (2, 0.5), (3, 0.0)):
        params, _ = run(tx, start, lambda p: p, updates)
        np.testing.assert_allclose(optax.tree.norm(params - start), length, atol=1e-12)


def test_a_bad_gradient_moves_nothing_and_is_counted():
    inner = optax.chain(optax.trace(0.9), optax.scale_by_sign(), optax.scale(-0.1))
    tx = jaxopt_pde.lasry_lions(inner, 0.1)
    params = jnp.array([1.0, 2.0])
    state = tx.init(params)
    for bad, count in ((jnp.inf, 1), (jnp.nan, 2)):
        updates, new = tx.update(params.at[1].set(bad), state, params)
        np.testing.assert_array_equal(updates, 0)
        chex.assert_trees_all_equal((new.inner, new.ascent), (state.inner, state.ascent))
        np.testing.assert_array_equal(jaxopt_pde.eval_params(new, params), params)
        assert int(new.notfinite_count) == int(new.count) == count
        state = new
    updates, state = tx.update(params, state, params)
    assert bool(jnp.all(jnp.isfinite(updates)))
    assert bool(jnp.any(updates != 0))


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="inner must be an optax optimiser"):
        jaxopt_pde.lasry_lions(0.1)
    tx = jaxopt_pde.lasry_lions(optax.sgd(0.1))
    with pytest.raises(ValueError, match="lasry_lions needs params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
