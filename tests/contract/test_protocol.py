"""Rows of the contract about the optax protocol: what every exported optimiser must satisfy."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_pde
from tests import zoo
from tests.zoo import ZOO, call, names, parabola, train

every = pytest.mark.parametrize("name", ZOO)
relaxed = pytest.mark.parametrize("name", names())


def unwrap(tree):
    """Typed keys as numbers, for comparison."""
    return optax.tree.unwrap_random_key_data(tree)


def test_every_exported_optimiser_is_in_the_zoo():
    exported = {
        name
        for name in jaxopt_pde.optimizers.__all__
        if name.islower()
        and name not in ("eval_params", "injectable", "batch_size_controller", "gradient_noise")
    }
    assert exported == {entry.factory.__name__ for entry in ZOO.values()}


@every
def test_unknown_extra_arguments_are_accepted(name):
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    tx = entry.make()
    call(entry, tx, tx.init(params), params, grad_fn, nobody_knows_this=3, value=jnp.array(1.0))


@every
def test_the_second_update_compiles_nothing(name):
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    tx = entry.make()
    traced = jax.jit(chex.assert_max_traces(lambda s, p: call(entry, tx, s, p, grad_fn), n=1))
    chex.clear_trace_counter()
    state = tx.init(params)
    for _ in range(3):
        updates, state = traced(state, params)
        params = optax.apply_updates(params, updates)


@every
def test_map_params_round_trips(name):
    tx, (params, _, _) = ZOO[name].make(), parabola()
    state = tx.init(params)
    mapped = optax.tree.map_params(tx, lambda leaf: leaf, state)
    chex.assert_trees_all_equal(unwrap(mapped), unwrap(state))


@every
def test_thousands_of_steps_in_a_scan(name):
    entry, (params, grad_fn, target) = ZOO[name], parabola()
    reached, (_, state) = train(entry, entry.make(), params, grad_fn, 5000)
    np.testing.assert_allclose(reached, target, atol=3e-2)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, entry.make().init(params))


PROBLEMS = {
    "matrix": (
        {"w": jnp.array([[2.0, -1.0], [0.5, 3.0]])},
        lambda p: jnp.sum((p["w"] - jnp.eye(2)) ** 2) / 2,
        {"w": jnp.eye(2)},
    ),
    "vector and matrix": (
        (jnp.array([2.0, 2.0]), jnp.full((2, 2), -1.0)),
        lambda p: jnp.sum((p[0] - 1.0) ** 2) / 2 + jnp.sum((p[1] - 2.0) ** 2) / 2,
        (jnp.ones(2), jnp.full((2, 2), 2.0)),
    ),
    "scalar": (jnp.array(3.0), lambda p: (p + 1.0) ** 2 / 2, jnp.array(-1.0)),
}


@every
@pytest.mark.parametrize("problem", PROBLEMS)
def test_reaches_the_minimiser(name, problem):
    entry, (start, loss, minimiser) = ZOO[name], PROBLEMS[problem]
    reached, _ = train(entry, entry.make(), start, jax.grad(loss), 4000)
    chex.assert_trees_all_close(reached, minimiser, atol=3e-2)


@pytest.mark.parametrize("name", [n for n, e in ZOO.items() if e.rosenbrock])
def test_reaches_the_minimiser_of_rosenbrock(name):
    entry = ZOO[name]
    tx = entry.make(**entry.rosenbrock)
    rosenbrock = lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2
    reached, _ = train(entry, tx, jnp.array([-1.0, 1.2]), jax.grad(rosenbrock), 40_000)
    np.testing.assert_allclose(reached, [1.0, 1.0], atol=3e-2)


@every
def test_injected_hyperparameters_change_nothing(name):
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    plain = entry.make()
    injected = entry.outer(jaxopt_pde.injectable(entry.factory)(**entry.arguments))
    states, results = [], []
    for tx in (plain, injected):
        _, (reached, state) = train(entry, tx, params, grad_fn, 25)
        states.append(state)
        results.append(reached)
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)
    inner = jax.tree.map(
        lambda s: s.inner_state if hasattr(s, "inner_state") else s,
        states[1],
        is_leaf=lambda s: hasattr(s, "inner_state"),
    )
    chex.assert_trees_all_close(unwrap(inner), unwrap(states[0]), rtol=1e-5, atol=1e-6)


@every
def test_optax_inject_hyperparams_needs_only_the_loop_lengths_static(name):
    """Everything else, key and inner momentum included, may arrive traced."""
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    static = {"num_steps", "num_chains", "num_samples", "sample_batch_size", "outer", "accumulator_dtype"}
    static |= {"averaging", "momentum", "inner", "window", "patience", "max_microbatches", "min_microbatches"}
    static |= {"control", "num_particles"}  # a function, which is no schedule
    static &= set(entry.factory.__annotations__)
    injected = entry.outer(optax.inject_hyperparams(entry.factory, static_args=static)(**entry.arguments))
    expected, _ = train(entry, entry.make(), params, grad_fn, 25)
    reached, _ = train(entry, injected, params, grad_fn, 25)
    chex.assert_trees_all_close(reached, expected, rtol=1e-5, atol=1e-6)


@every
def test_injected_hyperparameters_are_read_from_the_state(name):
    """Setting the smoothing time (or another argument) in the state has the effect of constructing with it."""
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    outer = zoo.replicated if entry.replicas else lambda tx: tx
    tx = outer(jaxopt_pde.injectable(entry.factory)(**entry.arguments))
    state = tx.init(params)
    injected = state.inner if entry.replicas else state
    injected.hyperparams[entry.scheduled] = jnp.array(0.25)
    other = outer(entry.factory(**{**entry.arguments, entry.scheduled: 0.25}))
    updates, _ = call(entry, tx, state, params, grad_fn)
    expected, _ = call(entry, other, other.init(params), params, grad_fn)
    chex.assert_trees_all_close(updates, expected, rtol=1e-5)


@every
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_updates_have_the_dtype_of_params(name, dtype):
    entry, (params, grad_fn, _) = ZOO[name], parabola(dtype)
    tx = entry.make()
    updates, _ = jax.jit(functools.partial(call, entry, tx, grad_fn=grad_fn))(tx.init(params), params)
    assert updates.dtype == dtype


@every
def test_under_multisteps(name):
    """Zeros between the emitted updates. Multi-gradient forms pay for every mini-step: documented, asserted here."""
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    if "max_microbatches" in entry.arguments:
        pytest.skip("accumulates by itself, and waits for more than MultiSteps gives")
    calls = []

    def counted(p):
        jax.debug.callback(lambda: calls.append(1))
        return grad_fn(p)

    tx = optax.MultiSteps(entry.make(), every_k_schedule=4)
    state = tx.init(params)
    step = jax.jit(functools.partial(call, entry, tx, grad_fn=counted))
    for mini_step in range(8):
        updates, state = step(state, params)
        emits = mini_step % 4 == 3
        assert bool(jnp.any(updates != 0)) == emits
    jax.effects_barrier()
    # The chains are batched: one call of grad_fn serves all of them.
    assert len(calls) == 8 * (entry.gradients if entry.multi_gradient else 1)


@every
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_types_survive_a_cond(name, dtype, x64):
    entry, (params, grad_fn, _) = ZOO[name], parabola(dtype)
    tx = entry.make()
    foreign = jnp.array(1.0, jnp.float32 if dtype == jnp.float64 else jnp.float64)

    def step(state, go):
        skip = lambda: (jnp.zeros_like(params), state)
        return jax.lax.cond(go, lambda: call(entry, tx, state, params, grad_fn, value=foreign), skip)

    updates, state = jax.jit(step)(tx.init(params), True)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(params))
    assert updates.dtype == dtype
    assert bool(jnp.any(updates != 0)) == (
        "max_microbatches" not in entry.arguments
    )  # waits for a second one


SCHEDULED = ["learning_rate", "smoothing_time", "inner_learning_rate", "temperature", "weight_decay"]
SCHEDULED += [
    "f_min",
    "max_learning_rate",
    "smoothness",
    "strong_convexity",
    "initial_gap",
    "long_step_ratio",
]
SCHEDULED += ["statistical_advantage", "coupling_time"]


@pytest.mark.parametrize(
    ("name", "argument"),
    [(n, a) for n, a in itertools.product(ZOO, SCHEDULED) if a in ZOO[n].arguments],
)
def test_a_constant_schedule_equals_its_value(name, argument):
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    schedule = optax.constant_schedule(entry.arguments[argument])
    reached = [
        train(entry, tx, params, grad_fn, 10)[0] for tx in (entry.make(), entry.make(**{argument: schedule}))
    ]
    chex.assert_trees_all_close(*reached, rtol=1e-6)


@relaxed
def test_schedules_are_read_at_the_count_of_outer_steps(name):
    """A time that is 1 for two outer steps and 0.1 after gives the run with those two constants."""
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    if "adam" in name:
        pytest.skip("Adam's own state would have to be carried over between the two constant runs")
    updates_per_step = 1 if entry.multi_gradient else entry.arguments["num_steps"]
    scheduled = entry.make(smoothing_time=optax.piecewise_constant_schedule(1.0, {2: 0.1}))
    _, (expected, state) = train(entry, entry.make(smoothing_time=1.0), params, grad_fn, 2 * updates_per_step)
    late = entry.make(smoothing_time=0.1)
    for _ in range(updates_per_step):
        updates, state = call(entry, late, state, expected, grad_fn)
        expected = optax.apply_updates(expected, updates)
    _, (reached, _) = train(entry, scheduled, params, grad_fn, 3 * updates_per_step)
    chex.assert_trees_all_close(reached, expected, rtol=1e-5)


@relaxed
@pytest.mark.parametrize("accumulator_dtype", [jnp.bfloat16, jnp.float32])
def test_the_accumulator_dtype_is_honoured(name, accumulator_dtype):
    """Particles and means are held in that dtype: in the carry of the inner loop, or in the state."""
    entry, (params, grad_fn, _) = ZOO[name], parabola(jnp.bfloat16)
    tx = entry.make(accumulator_dtype=accumulator_dtype)
    state = tx.init(params)
    if entry.multi_gradient:
        jaxpr = jax.make_jaxpr(functools.partial(call, entry, tx, grad_fn=grad_fn))(state, params)
        (loop,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan")
        held = [v.aval.dtype for v in loop.outvars if v.aval.shape[-1:] == (3,)]
    else:
        held = [leaf.dtype for leaf in jax.tree.leaves((state.mean, state.velocity))]
    assert held
    assert set(held) == {jnp.dtype(accumulator_dtype)}


@every
def test_init_accepts_shapes_without_values(name):
    tx = ZOO[name].make()
    shapes = {"w": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    state, expected = (jax.eval_shape(tx.init, shapes), jax.eval_shape(tx.init, {"w": jnp.ones((2, 3))}))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, expected)
    tx.init(shapes)


@every
def test_eager_and_compiled_agree(name):
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    tx = entry.make()
    eager_state, jit_state = tx.init(params), jax.jit(tx.init)(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(eager_state, jit_state)
    eager = call(entry, tx, eager_state, params, grad_fn)
    compiled = jax.jit(functools.partial(call, entry, tx, grad_fn=grad_fn))(jit_state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(eager, compiled)
    chex.assert_trees_all_close(unwrap(eager), unwrap(compiled), rtol=1e-5, atol=1e-6)


@every
def test_mixed_dtypes_keep_theirs(name, x64):
    entry, tx = ZOO[name], ZOO[name].make()
    params = {
        "wide": jnp.ones(2, jnp.float64),
        "narrow": jnp.ones(3, jnp.float32),
        "half": jnp.ones(1, jnp.bfloat16),
    }
    reached, (trained, state) = train(entry, tx, params, lambda p: p, 3)
    chex.assert_trees_all_equal_shapes_and_dtypes(trained, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(reached, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(params))


@every
def test_eval_params_has_the_shapes_of_params(name):
    entry, (params, grad_fn, _) = ZOO[name], parabola(jnp.bfloat16)
    reached, (params, _) = train(entry, entry.make(), params, grad_fn, 7)
    chex.assert_trees_all_equal_shapes_and_dtypes(reached, params)


@every
def test_a_zero_learning_rate_stays_and_is_finite(name):
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    if entry.factory in (jaxopt_pde.two_time_scale, jaxopt_pde.lasry_lions):  # last in a chain
        tx = entry.make(inner=optax.sgd(0.0))
    elif "inner" in entry.arguments:
        tx = optax.chain(entry.make(), optax.scale(0.0))
    elif "max_learning_rate" in entry.arguments:
        tx = entry.make(max_learning_rate=0.0)
    elif "learning_rate" in entry.arguments:
        tx = entry.make(learning_rate=0.0)
    elif "outer" in entry.arguments:
        tx = entry.make(outer=optax.sgd(0.0))
    else:
        tx = optax.chain(entry.factory(**entry.arguments), optax.sgd(0.0))
        tx = zoo.replicated(tx) if entry.replicas else tx
    reached, _ = train(entry, tx, params, grad_fn, 30)
    chex.assert_trees_all_close(reached, params, atol=1e-6)
