"""Coupled replicas: the pull, closed forms on quadratics, what travels between devices, safety."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_pde
from experiments._collectives import Collective, collectives

CURVATURES = np.array([0.5, 2.0])
CENTRES = np.array([[1.0, -2.0], [0.5, 3.0], [-4.0, 0.0]])  # fᵢ = ½ Σ λ (x − bᵢ)²
START = np.array([[2.0, 1.0], [-1.0, 0.0], [0.5, 4.0]])


def test_the_pull_is_the_gradient_of_the_coupling_energy(x64):
    """Σᵢ|xᵢ − x̄|²/(2ρ) over all leaves, differentiated with x̄ in it."""
    params = {"a": jnp.asarray(START), "b": jnp.array([0.3, -1.0, 2.0])}
    energy = lambda p: (
        sum(jnp.sum((x - x.mean(axis=0, keepdims=True)) ** 2) for x in jax.tree.leaves(p)) / (2 * 0.7)
    )
    tx = jaxopt_pde.elastic_coupling(lambda count: 0.7)
    pull, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    chex.assert_trees_all_close(pull, jax.grad(energy)(params), rtol=1e-12)
    chex.assert_trees_all_close(
        jaxopt_pde.eval_params(state, params), jax.tree.map(lambda x: x.mean(axis=0), params), rtol=1e-12
    )
    loose = jaxopt_pde.elastic_coupling(math.inf)
    chex.assert_trees_all_equal(loose.update(params, loose.init(params), params)[0], params)


def test_elastic_sgd_on_quadratics_in_closed_form(x64):
    """x̄ moves as if alone; deviations contract by 1 − h(λ + 1/ρ) to λ(bᵢ − b̄)/(λ + 1/ρ)."""
    step, coupling, updates = 0.2, 0.8, 25
    tx = optax.chain(jaxopt_pde.elastic_coupling(coupling), optax.sgd(step))
    params, state = jnp.asarray(START), tx.init(jnp.asarray(START))
    update = jax.jit(tx.update)
    for _ in range(updates):
        emitted, state = update(CURVATURES[None] * (params - CENTRES), state, params)
        params = optax.apply_updates(params, emitted)
    mean, middle = START.mean(axis=0), CENTRES.mean(axis=0)
    consensus = middle + (1 - step * CURVATURES) ** updates * (mean - middle)
    rate = CURVATURES + 1 / coupling
    limit = CURVATURES * (CENTRES - middle) / rate
    deviation = limit + (1 - step * rate) ** updates * (START - mean - limit)
    np.testing.assert_allclose(jaxopt_pde.eval_params(state, params), consensus, rtol=1e-10)
    np.testing.assert_allclose(params, consensus + deviation, rtol=1e-10)


def test_the_gradient_of_one_replica_that_is_not_finite_stops_only_that_one():
    tx = optax.chain(jaxopt_pde.elastic_coupling(1.0), optax.sgd(0.1))
    params = {"w": jnp.asarray(START, jnp.float32), "b": jnp.array([0.3, -1.0, 2.0])}
    state = tx.init(params)
    good, _ = tx.update(params, state, params)
    bad, state = tx.update({**params, "b": params["b"].at[1].set(jnp.nan)}, state, params)
    for name in params:
        np.testing.assert_array_equal(bad[name][1], 0)
        np.testing.assert_array_equal(bad[name][::2], good[name][::2])
    assert int(state[0].notfinite_count) == 1
    assert int(state[0].count) == 1


def parle(**changes):
    arguments = {
        "learning_rate": 0.3, "smoothing_time": 0.8, "inner_learning_rate": 0.1, "coupling_time": 1.5,
        "temperature": 0.0, "num_steps": 200,
    }  # fmt: skip
    return jaxopt_pde.parle(**{**arguments, **changes})


def own_gradient(p, step):
    """The gradient of the replica's own loss, found by its number."""
    return CURVATURES * (p - jnp.asarray(CENTRES, p.dtype)[step.chain])


def updated(tx, params, grad_fn, num_updates: int):
    """(params, state) after ``num_updates`` updates of an optimiser in grad_fn mode."""

    @jax.jit
    def loop(params):
        def body(carry, _):
            params, state = carry
            updates, state = tx.update(params, state, params, grad_fn=grad_fn)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, tx.init(params)), length=num_updates)[0]

    return loop(params)


@pytest.mark.parametrize("estimator", ["displacement", "gradient"])
def test_parle_on_quadratics_in_closed_form(estimator, x64):
    """At T = 0 and L → ∞ the recursion of Elastic-SGD with the curvature λ/(1 + tλ) of the Moreau envelope.

    The first step after the burn-in of 100 has contracted by (1 − 0.1/0.8)¹⁰⁰ = 2e-6, the mean over the rest by 1e-7.
    """
    updates, relaxed = 6, CURVATURES / (1 + 0.8 * CURVATURES)
    params, state = updated(parle(estimator=estimator), jnp.asarray(START), own_gradient, updates)
    expected = START
    for _ in range(updates):
        pull = (expected - expected.mean(axis=0)) / 1.5
        expected = expected - 0.3 * (relaxed * (expected - CENTRES) + pull)
    np.testing.assert_allclose(params, expected, rtol=2e-6)
    np.testing.assert_allclose(jaxopt_pde.eval_params(state, params), params.mean(axis=0), rtol=1e-12)


def test_uncoupled_replicas_are_runs_of_entropy_sgd(x64):
    """At T = 0, momentum, Nesterov, decay, the papers' mean and inner momentum included."""
    shared = {
        "momentum": 0.6,
        "nesterov": True,
        "weight_decay": 0.1,
        "averaging": 0.25,
        "inner_momentum": 0.4,
    }
    together, _ = updated(
        parle(coupling_time=math.inf, num_steps=4, **shared), jnp.asarray(START), own_gradient, 5
    )
    alone = jaxopt_pde.entropy_sgd(0.3, 0.8, 0.1, temperature=0.0, num_steps=4, **shared)
    for replica in range(3):
        grad_fn = lambda p, step, replica=replica: CURVATURES * (p - CENTRES[replica])
        expected, _ = updated(alone, jnp.asarray(START[replica]), grad_fn, 5)
        np.testing.assert_allclose(together[replica], expected, rtol=1e-12)


def test_replicas_at_one_point_have_independent_noise():
    """Without coupling or curvature the mean of the chain is Gaussian; correlations have deviation 1/√n."""
    size = 4000
    tx = parle(temperature=1.0, num_steps=5, noise="gaussian")
    params = jnp.zeros((4, size))
    updates, _ = tx.update(params, tx.init(params), params, grad_fn=lambda p, step: p)
    assert np.abs(np.corrcoef(updates) - np.eye(4)).max() < 4.5 / np.sqrt(size)


def test_scoping_reads_both_times_at_each_update():
    """Two updates under decaying schedules are one with each pair of values."""
    times = optax.exponential_decay(0.8, 1, 0.5), optax.exponential_decay(1.5, 1, 0.25)
    scheduled, _ = updated(
        parle(smoothing_time=times[0], coupling_time=times[1], num_steps=5),
        jnp.asarray(START),
        own_gradient,
        2,
    )
    params = jnp.asarray(START)
    for time, coupling in ((0.8, 1.5), (0.4, 0.375)):
        tx = parle(smoothing_time=time, coupling_time=coupling, num_steps=5)
        params, _ = updated(tx, params, own_gradient, 1)
    np.testing.assert_allclose(scheduled, params, rtol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_replicas_on_devices_communicate_once_an_update(kind):
    """One all-reduce, of a model and a number, in an update of 7 gradients, each device with its own batches."""
    if kind == AxisType.Explicit and jax.__version_info__ < (0, 10):
        pytest.skip("explicit axes need JAX 0.10")
    mesh = jax.make_mesh((8,), ("replicas",), axis_types=(kind,))
    tx = parle(num_steps=7, temperature=0.1, momentum=0.9)
    params = jnp.linspace(-1, 2, 8 * 12).reshape(8, 12)
    batches = jax.random.normal(jax.random.key(1), (7, 8, 12))
    grad_fn = lambda p, s, batches: jnp.sinh(p - s.batch(batches))

    @jax.jit
    def step(params, state, batches):
        return tx.update(params, state, params, grad_fn=functools.partial(grad_fn, batches=batches))

    expected, _ = step(params, tx.init(params), batches)
    sharded = jax.device_put(params, NamedSharding(mesh, PartitionSpec("replicas")))
    parts = jax.device_put(batches, NamedSharding(mesh, PartitionSpec(None, "replicas")))
    state = jax.device_put(tx.init(sharded), NamedSharding(mesh, PartitionSpec()))
    state = state._replace(outer=jax.tree.map(lambda s: jax.device_put(s, sharded.sharding), state.outer))
    updates, _ = step(sharded, state, parts)
    np.testing.assert_allclose(updates, expected, rtol=2e-5, atol=1e-6)
    program = step.lower(sharded, state, parts).compile()
    assert " while(" in program.as_text()
    assert collectives(program) == (Collective("all-reduce", 4 * 12 + 4, 1, 8),)


def test_elastic_coupling_on_devices_is_one_reduction_of_a_model():
    mesh = jax.make_mesh((8,), ("replicas",), axis_types=(AxisType.Auto,))
    tx = jaxopt_pde.elastic_coupling(0.5)
    params = jnp.linspace(-1, 2, 8 * 12).reshape(8, 12) ** 2
    step = jax.jit(lambda p, s: tx.update(p, s, p))
    expected, _ = step(params, tx.init(params))
    sharded = jax.device_put(params, NamedSharding(mesh, PartitionSpec("replicas")))
    state = jax.device_put(tx.init(sharded), NamedSharding(mesh, PartitionSpec()))
    np.testing.assert_allclose(step(sharded, state)[0], expected, rtol=1e-5)
    model, count = sorted(collectives(step.lower(sharded, state).compile()), reverse=True)
    assert model == Collective("all-reduce", 4 * 12, 1, 8)
    assert (count.times, count.num_bytes <= 4) == (1, True)


def test_a_pull_that_overflows_moves_only_the_replica_it_can():
    """x̄ = 0 and every x is finite, but (x − x̄)/ρ is not for the first two: they stay, the third descends."""
    tx = parle(coupling_time=1e-3, num_steps=2)
    params = jnp.array([[3e38], [-3e38], [0.0]])
    updates, state = tx.update(params, tx.init(params), params, grad_fn=lambda p, s: jnp.ones_like(p))
    np.testing.assert_array_equal(updates[:2], 0.0)
    assert np.isfinite(updates[2]).all()
    assert updates[2] < 0
    assert int(state.notfinite_count) == 0


@pytest.mark.parametrize("make", [lambda: jaxopt_pde.elastic_coupling(1.0), parle])
def test_params_without_a_common_axis_are_refused(make):
    for params, where in (
        ({"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2))}, r"params\['b'\] has shape \(2, 2\)"),
        ({"a": jnp.ones((3, 2)), "b": jnp.array(1.0)}, r"params\['b'\] has shape \(\)"),
        (jnp.ones((0, 2)), r"params has shape \(0, 2\)"),
    ):
        with pytest.raises(ValueError, match=where):
            make().init(params)
    with pytest.raises(ValueError, match="needs params"):
        make().update(jnp.ones(2), make().init(jnp.ones(2)))
    with pytest.raises(TypeError, match="MaskedNode"):
        make().init({"a": jnp.ones((3, 2)), "b": optax.MaskedNode()})
