"""Low precision, and what a step leaves behind: bfloat16 with float32 sums, donated buffers, no host in the loop."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxopt_pde
from tests.zoo import ZOO, call, parabola

ROUNDOFF = 2.0**-8  # half the spacing of bfloat16 numbers, relative


def outer_steps(tx, params, grad_fn, number):
    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(params, state, params, grad_fn=grad_fn)
            return (optax.apply_updates(params, updates), state), params

        return jax.lax.scan(step, (params, tx.init(params)), length=number)

    (params, state), path = run(params)
    return params, state, path


def test_float32_particles_move_bfloat16_params_that_bfloat16_particles_cannot():
    """f = ½(x − a)², x = 1.5, a = 1.25: a step ε·0.25 is below half the spacing 2⁻⁷ there, so y rounds back to x.

    With float32 particles one update moves x by c (x − a), c = ½ mean(1 − rᵏ) over k = 11 … 20, r = 1 − 2ε, until
    that is below half a spacing; the gradient is taken at y rounded, which adds half a spacing to a.
    """
    step_size, target, spacing = 0.01, 1.25, 2.0**-7
    start = jnp.full(3, 1.5, jnp.bfloat16)

    def train(accumulator_dtype):
        tx = jaxopt_pde.entropy_sgd(
            1.0, 1.0, step_size, temperature=0.0, num_steps=20, accumulator_dtype=accumulator_dtype
        )
        return outer_steps(tx, start, lambda p, step: p - jnp.bfloat16(target), 60)[0]

    np.testing.assert_array_equal(train(jnp.bfloat16), start)
    reached = train(None)
    assert reached.dtype == jnp.bfloat16
    moved = np.mean(1 - (1 - 2 * step_size) ** np.arange(11, 21)) / 2
    assert np.all(np.abs(np.float64(reached) - target) <= spacing / 2 * (1 / moved + 1))


def test_float32_params_with_bfloat16_gradients_follow_the_float32_path():
    """The difference of two paths on f = λ|x − a|²/2 with the same noise never exceeds η/λ, if gradients differ by η.

    Rounding x, the difference and the product gives η ≤ λ u (|x| + 2|x − a|), a and λ being bfloat16 numbers.
    """
    curvature, target = 2.0, jnp.array([1.0, -0.5, 0.25, 3.0])
    start = jnp.array([0.3, 1.7, -2.1, 0.7])

    def train(dtype):
        grad_fn = lambda p, step: (
            jnp.asarray(curvature, dtype) * (p.astype(dtype) - target.astype(dtype))
        ).astype(p.dtype)
        tx = jaxopt_pde.entropy_sgd(0.5, 0.5, 0.05, temperature=0.01, num_steps=5, num_chains=2)
        return outer_steps(tx, start, grad_fn, 40)

    _, _, exact_path = train(jnp.float32)
    mixed, state, path = train(jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves((mixed, path))} == {jnp.dtype(jnp.float32)}
    chex.assert_trees_all_equal_dtypes(state, jaxopt_pde.entropy_sgd(0.5, 0.5, 0.05).init(start))
    spread = 0.5  # particles leave x by a few √(T t)
    largest = np.max(np.abs(path), axis=0) + spread
    away = np.max(np.abs(path - target[None]), axis=0) + spread
    difference = np.max(np.abs(path - exact_path), axis=0)
    assert np.all(difference <= ROUNDOFF * (largest + 2 * away))
    assert np.all(difference > 0)  # the gradients were rounded


def test_a_small_temperature_survives_bfloat16_params():
    """A flat loss and T = 1e-8 at x = 1: steps of 1e-5, far below the spacing, and ∇u is the mean of the noise.

    In float32 particles it is there to the last bit of bfloat16; in bfloat16 ones it is lost.
    """

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def gradient(dtype, accumulator_dtype=None):
        return jaxopt_pde.smoothing.langevin(
            lambda p, step: jnp.zeros_like(p),
            jnp.ones(256, dtype),
            jax.random.key(0),
            smoothing_time=1.0,
            temperature=1e-8,
            step_size=0.01,
            estimator="displacement",
            noise="rademacher",
            accumulator_dtype=accumulator_dtype,
        ).gradient

    exact, kept = gradient(jnp.float32), gradient(jnp.bfloat16)
    assert kept.dtype == jnp.bfloat16
    assert float(jnp.std(exact)) > 1e-5
    np.testing.assert_allclose(np.float32(kept), exact, rtol=ROUNDOFF)
    np.testing.assert_array_equal(np.float32(gradient(jnp.bfloat16, jnp.bfloat16)), 0)


class Network(nn.Module):
    """BatchNorm between two layers, parameters in float32 whatever computes."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs, *, train):
        hidden = nn.Dense(16, dtype=self.dtype)(inputs)
        hidden = nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(hidden)
        return nn.Dense(1, dtype=self.dtype)(nn.relu(hidden)).astype(jnp.float32)


def test_a_network_with_batch_norm_trains_in_bfloat16():
    """A forward and a backward pass are about twenty roundings; params, statistics and state stay in float32."""
    images = jax.random.normal(jax.random.key(0), (5, 64, 8))
    labels = jnp.sin(images[..., :1])
    tx = jaxopt_pde.entropy_sgd(0.2, 0.2, 0.05, num_steps=5, momentum=0.5)

    def loss(params, statistics, batch, dtype):
        variables = {"params": params, "batch_stats": statistics}
        outputs, updated = Network(dtype).apply(variables, batch[0], train=True, mutable=["batch_stats"])
        return jnp.mean((outputs - batch[1]) ** 2), updated["batch_stats"]

    variables = jax.jit(functools.partial(Network(jnp.float32).init, train=False))(
        jax.random.key(1), images[0]
    )
    start = variables["params"], variables["batch_stats"]

    @functools.partial(jax.jit, static_argnames="dtype")
    def gradient(params, statistics, dtype):
        return jax.grad(loss, has_aux=True)(params, statistics, (images[0], labels[0]), dtype)[0]

    exact, rounded = gradient(*start, jnp.float32), gradient(*start, jnp.bfloat16)
    error = optax.tree.norm(optax.tree.sub(rounded, exact)) / optax.tree.norm(exact)
    assert 0 < error < 20 * ROUNDOFF

    @jax.jit
    def train(params, statistics):
        def step(carry, _):
            params, statistics, state = carry
            grad_fn = lambda p, s: jax.grad(loss, has_aux=True)(
                p, statistics, (images[s.step], labels[s.step]), jnp.bfloat16
            )[0]
            updates, state = tx.update(params, state, params, grad_fn=grad_fn)
            params = optax.apply_updates(params, updates)
            value, statistics = loss(params, statistics, (images[0], labels[0]), jnp.bfloat16)
            return (params, statistics, state), value

        return jax.lax.scan(step, (params, statistics, tx.init(params)), length=30)

    (params, statistics, state), values = train(*start)
    assert values[-1] < 0.3 * values[0]
    chex.assert_trees_all_equal_dtypes((params, statistics, state), (*start, tx.init(start[0])))


def asks_nothing_of_the_host(function, arguments):
    """The guard sees what enters and leaves a compiled function, the program itself what it does in between."""
    program = function.lower(*arguments).as_text()
    assert not re.search("callback|infeed|outfeed|host_compute", program)


@pytest.mark.parametrize("name", ZOO)
def test_a_donating_step_frees_its_arguments_compiles_once_and_asks_nothing_of_the_host(name):
    """The arrays of the step before are gone, one program serves all steps, and nothing crosses to the host."""
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    tx = entry.make()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = call(entry, tx, state, params, grad_fn)
        return optax.apply_updates(params, updates), state

    params = jnp.copy(params)
    carry = step(params, tx.init(params))  # which must not hold the buffer of params, or donating both fails
    asks_nothing_of_the_host(step, carry)
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            before = jax.tree.leaves(carry)
            carry = jax.block_until_ready(step(*carry))
            # A number that no step reads, such as the learning rate kept to be looked at, is not an argument
            assert all(leaf.is_deleted() for leaf in before if leaf.ndim)
    assert step._cache_size() == 1
    assert np.all(np.isfinite(carry[0]))


@pytest.mark.parametrize(
    "name", ["space_adaptive_sgd", "two_time_scale", "parle", "entropy_sgd", "entropy_sgd_stepwise"]
)
def test_a_scan_of_steps_asks_nothing_of_the_host(name):
    """Also across the end of an outer step of the stepwise form."""
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    tx = entry.make()

    @jax.jit
    def run(params, state):
        def step(carry, _):
            updates, state = call(entry, tx, carry[1], carry[0], grad_fn)
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (params, state), length=25)[0]

    state = tx.init(params)
    run(params, state)
    asks_nothing_of_the_host(run, (params, state))
    with jax.transfer_guard("disallow"):
        reached, _ = jax.block_until_ready(run(params, state))
    assert float(jnp.max(jnp.abs(reached - params))) > 0
