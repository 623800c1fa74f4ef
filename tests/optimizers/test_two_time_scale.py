"""Fast particles and their slow mean: laws on quadratics, limits, the relaxed descent, safety."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_pde

STEP, TIME, AVERAGING, CURVATURE, SIGMA = 0.2, 0.8, 0.9, 1.5, 0.7


def recursion(momentum: float, particles: int) -> tuple[np.ndarray, np.ndarray]:
    """z ← M z + B ξ for z = (y₁…y_K, v₁…v_K, x), loss ½λy², gradients λy + σξ and steps of sgd with momentum.

    v ← m v + λ y + (y − x)/t + σ ξ,    y ← y − h v,    x ← a x + (1 − a) ⟨y⟩.
    """
    one = np.eye(particles)
    v = np.hstack([(CURVATURE + 1 / TIME) * one, momentum * one, np.full((particles, 1), -1 / TIME)])
    y = np.hstack([one, 0 * one, np.zeros((particles, 1))]) - STEP * v
    x = (1 - AVERAGING) * y.mean(axis=0, keepdims=True)
    x[0, -1] += AVERAGING
    noise = SIGMA * np.vstack(
        [-STEP * one, one, np.full((1, particles), -STEP * (1 - AVERAGING) / particles)]
    )
    return np.vstack([y, v, x]), noise


def run(tx, params, grad_fn, num_updates: int):
    """(params, state) after ``num_updates`` updates; ``grad_fn(params, key)``."""

    @jax.jit
    def loop(params):
        def body(carry, count):
            params, state = carry
            gradient = grad_fn(params, jax.random.fold_in(jax.random.key(5), count))
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, tx.init(params)), jnp.arange(num_updates))[0]

    return loop(params)


@pytest.mark.parametrize(("momentum", "particles"), [(0.0, None), (0.5, 3)])
def test_the_stationary_law_on_a_quadratic_is_that_of_the_linear_recursion(momentum, particles):
    """All second moments of (y, x) over 10,000 independent coordinates, against the discrete Lyapunov equation.

    A sample covariance of Gaussians has standard error √((S_ii S_jj + S_ij²)/n).
    """
    count, copies = particles or 1, 10_000
    matrix, noise = recursion(momentum, count)
    exact = scipy.linalg.solve_discrete_lyapunov(matrix, noise @ noise.T)
    assert max(abs(np.linalg.eigvals(matrix))) ** 250 < 1e-3  # the start is forgotten
    tx = jaxopt_pde.two_time_scale(
        optax.sgd(STEP, momentum), TIME, averaging=AVERAGING, num_particles=particles
    )
    start = jnp.zeros((copies,) if particles is None else (particles, copies))
    grad_fn = lambda y, key: CURVATURE * y + SIGMA * jax.random.normal(key, y.shape)
    y, state = run(tx, start, grad_fn, 250)
    slow = jaxopt_pde.eval_params(state, y)
    assert slow.shape == (copies,)
    sample = np.vstack([np.reshape(y, (count, copies)), slow[None]]).astype(float)
    kept = [*range(count), 2 * count]
    exact = exact[np.ix_(kept, kept)]
    variance = np.diag(exact)
    error = np.sqrt((np.outer(variance, variance) + exact**2) / copies)
    assert np.max(np.abs(sample @ sample.T / copies - exact) / error) < 4.5
    assert np.max(np.abs(sample.mean(axis=1)) / np.sqrt(variance / copies)) < 4.5


def test_the_mean_follows_the_linear_recursion_from_any_start(x64):
    momentum, particles, updates = 0.5, 2, 30
    matrix, _ = recursion(momentum, particles)
    start = np.array([1.0, -3.0])
    tx = jaxopt_pde.two_time_scale(
        optax.sgd(STEP, momentum), TIME, averaging=AVERAGING, num_particles=particles
    )
    y, state = run(tx, jnp.asarray(start), lambda y, key: CURVATURE * y, updates)
    expected = np.linalg.matrix_power(matrix, updates) @ [*start, 0.0, 0.0, start.mean()]
    np.testing.assert_allclose(y, expected[:2], rtol=1e-11)
    np.testing.assert_allclose(jaxopt_pde.eval_params(state, y), expected[-1], rtol=1e-11)


@pytest.mark.parametrize("forever", [math.inf, lambda count: jnp.inf])
def test_without_a_pull_it_is_the_inner_optimiser_and_x_its_exponential_mean(forever, x64):
    grad_fn = lambda y, key: jax.tree.map(jnp.sinh, y)
    start = {"a": jnp.linspace(-1, 2, 4), "b": jnp.array(0.3)}
    inner = optax.adam(0.05)
    y, state = run(jaxopt_pde.two_time_scale(inner, forever, averaging=0.8), start, grad_fn, 12)
    plain, mean = start, start
    inner_state = inner.init(start)
    for _ in range(12):
        updates, inner_state = inner.update(grad_fn(plain, None), inner_state)
        plain = optax.apply_updates(plain, updates)
        mean = jax.tree.map(lambda x, p: 0.8 * x + 0.2 * p, mean, plain)
    chex.assert_trees_all_close(y, plain, rtol=1e-12)
    chex.assert_trees_all_close(jaxopt_pde.eval_params(state, y), mean, rtol=1e-12)


def test_averaging_zero_makes_x_the_mean_of_the_particles():
    tx = jaxopt_pde.two_time_scale(optax.sgd(0.1), 1.0, averaging=0.0, num_particles=3)
    start = jnp.array([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]])
    y, state = run(tx, start, lambda y, key: jnp.sinh(y), 4)
    np.testing.assert_allclose(jaxopt_pde.eval_params(state, y), y.mean(axis=0), rtol=1e-6)
    assert float(jnp.std(y, axis=0).min()) > 0.05


def test_a_schedule_of_averaging_gives_the_uniform_mean():
    """a_k = 1 − 1/(k + 2) makes x the mean of the start and of all particles so far."""
    tx = jaxopt_pde.two_time_scale(optax.sgd(0.1), math.inf, averaging=lambda k: 1 - 1 / (k + 2.0))
    y, state = run(tx, jnp.array(2.0), lambda y, key: y, 9)
    visited = 2.0 * 0.9 ** np.arange(10)
    np.testing.assert_allclose(jaxopt_pde.eval_params(state, y), visited.mean(), rtol=1e-5)


def test_a_slow_x_descends_the_relaxed_loss(x64):
    """x(n) → exp(−s ∇²u) x(0), ∇²u = λ/(1 + tλ), at the time s = n (1 − a) t; the error is of order 1 − a."""
    curvatures, start, horizon = jnp.array([0.3, 1.0, 4.0]), jnp.array([1.0, -2.0, 0.5]), 1.6
    exact = start * jnp.exp(-horizon * curvatures / (1 + TIME * curvatures))
    errors = []
    for rate in (0.02, 0.01, 0.005):
        tx = jaxopt_pde.two_time_scale(optax.sgd(STEP), TIME, averaging=1 - rate)
        y, state = run(tx, start, lambda y, key: curvatures * y, round(horizon / (rate * TIME)))
        errors.append(jnp.abs(jaxopt_pde.eval_params(state, y) - exact))
    order = jnp.log2(errors[0] / errors[1]), jnp.log2(errors[1] / errors[2])
    np.testing.assert_allclose(order[1], 1.0, atol=0.1)
    assert bool(jnp.all(jnp.abs(order[1] - 1) < jnp.abs(order[0] - 1) + 1e-3))


def test_a_bad_gradient_moves_nothing_and_is_counted():
    """NaN does not pass even where the inner optimiser's sign would hide an infinity."""
    inner = optax.chain(optax.trace(0.9), optax.scale_by_sign(), optax.scale(-0.1))
    tx = jaxopt_pde.two_time_scale(inner, 1.0, num_particles=2)
    params = jnp.array([[1.0, 2.0], [3.0, 5.0]])
    state = tx.init(params)
    for bad, count in ((jnp.inf, 1), (jnp.nan, 2)):
        updates, new = tx.update(params.at[1, 0].set(bad), state, params)
        np.testing.assert_array_equal(updates, 0)
        chex.assert_trees_all_equal(new.inner, state.inner)
        np.testing.assert_array_equal(jaxopt_pde.eval_params(new, params), [2.0, 3.5])
        assert int(new.notfinite_count) == int(new.count) == count
        state = new


def test_x_keeps_small_increments_of_half_precision_params():
    """(1 − a)(y − x) = 1/1000 of 1 is lost in bfloat16, whose steps at 1 are 1/128 and below it 1/256."""
    tx = jaxopt_pde.two_time_scale(optax.sgd(0.0), math.inf, averaging=0.999)
    params = jnp.ones(1, jnp.bfloat16)
    state = tx.init(params)._replace(count=jnp.array(1, jnp.int32))  # x = 0
    for _ in range(3):
        _, state = tx.update(params, state, params)
    np.testing.assert_allclose(state.slow, 1 - 0.999**3, rtol=1e-4)
    held = jaxopt_pde.two_time_scale(optax.sgd(0.0), 1.0, accumulator_dtype=jnp.bfloat16).init(params)
    assert held.slow.dtype == jnp.bfloat16


def test_sharded_particles_communicate_once():
    """Eight particles on eight devices: what travels has the size of one model, and the result is the same."""
    mesh = jax.make_mesh((8,), ("particles",), axis_types=(AxisType.Auto,))
    tx = jaxopt_pde.two_time_scale(optax.sgd(0.1, 0.9), 1.0, num_particles=8)
    params = jnp.linspace(-1, 2, 8 * 5).reshape(8, 5)
    state = tx.init(params)._replace(count=jnp.array(1, jnp.int32))
    step = jax.jit(lambda p, s: tx.update(jnp.sinh(p), s, p))
    expected = step(params, state)
    sharded = jax.device_put(params, NamedSharding(mesh, PartitionSpec("particles")))
    chex.assert_trees_all_close(step(sharded, state), expected, rtol=1e-5, atol=1e-6)
    program = step.lower(sharded, state).compile().as_text()
    assert "all-gather" not in program
    assert "all-reduce" in program


def test_bad_input_is_named():
    with pytest.raises(TypeError, match=r"inner must be an optax optimiser"):
        jaxopt_pde.two_time_scale(0.1, 1.0)
    with pytest.raises(ValueError, match="smoothing_time must be positive, got -inf"):
        jaxopt_pde.two_time_scale(optax.sgd(0.1), -math.inf)
    with pytest.raises(TypeError, match="num_particles must be a Python integer"):
        jaxopt_pde.two_time_scale(optax.sgd(0.1), 1.0, num_particles=2.0)
    tx = jaxopt_pde.two_time_scale(optax.sgd(0.1), 1.0, num_particles=2)
    with pytest.raises(
        ValueError, match=r"params\['w'\] must have num_particles=2 as its first axis.*\(3,\)"
    ):
        tx.init({"w": jnp.ones(3)})
    with pytest.raises(ValueError, match="needs params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
