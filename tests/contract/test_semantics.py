"""Rows of the contract about what the optimisers compute: counts, keys, agreement of forms, closed forms, safety."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import orbax.checkpoint
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxopt_pde
from tests.zoo import ZOO, call, names, parabola, train

every = pytest.mark.parametrize("name", ZOO)
relaxed = pytest.mark.parametrize("name", names())
multi = pytest.mark.parametrize("name", names(multi_gradient=True))
stepwise = pytest.mark.parametrize("name", names(multi_gradient=False))


@relaxed
def test_the_key_is_an_integer_or_a_typed_key(name):
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    reached = [
        train(entry, entry.make(**entry.heated(0.1), key=key), params, grad_fn, 3, minibatch_noise=True)[1][0]
        for key in (7, np.int64(7), jax.random.key(7), jax.random.key_data(jax.random.key(7)), 8)
    ]
    for other in reached[1:4]:
        chex.assert_trees_all_equal(reached[0], other)
    assert bool(jnp.any(reached[0] != reached[4]))
    for bad in ("seed", 1.5, None, True):
        with pytest.raises(TypeError, match="key must be"):
            entry.make(key=bad)
    with pytest.raises(ValueError, match="vmap over it"):
        entry.make(key=jax.random.split(jax.random.key(0)))


@relaxed
def test_vmap_over_keys_gives_independent_noise(name):
    """The sample correlation between members has standard deviation 1/√n."""
    entry, size = ZOO[name], 4000
    params = jnp.zeros(size)

    def one(key):
        tx = entry.make(**entry.heated(1.0), key=key)
        # Curvatures differ: on an isotropic quadratic the control variate has no variance at all.
        grad_fn = lambda p: jnp.linspace(0.1, 4.0, size) * p
        return call(entry, tx, tx.init(params), params, grad_fn, minibatch_noise=True)[0]

    updates = jax.vmap(one)(jax.random.split(jax.random.key(0), 4))
    correlation = np.corrcoef(updates) - np.eye(4)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(size)


@multi
def test_the_keys_given_to_grad_fn_are_all_different(name):
    """Fresh over steps, chains and updates, and not the noise's."""
    entry, (params, _, _) = ZOO[name], parabola()
    seen = []

    def grad_fn(p, step):
        jax.debug.callback(
            lambda k, s, c: seen.append((k, s, c)), jax.random.key_data(step.key), step.step, step.chain
        )
        return p

    tx = entry.make()
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update(params, state, params, grad_fn=grad_fn)
    jax.effects_barrier()
    steps, chains = entry.gradients, entry.chains
    assert len({tuple(np.ravel(k)) for k, _, _ in seen}) == 2 * steps * chains
    assert {int(s) for _, s, _ in seen} == set(range(steps))
    assert {int(c) for _, _, c in seen} == set(range(chains))


@multi
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_grad_fn_runs_exactly_num_steps_times(name, num_steps):
    """Batched over chains; the samples of ``heat_sgd`` run one by one by default, and count one by one."""
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    count, calls = entry.count(num_steps), []

    def counted(p):
        jax.debug.callback(lambda: calls.append(1))
        return grad_fn(p)

    tx = entry.make(**count)
    jax.block_until_ready(
        jax.jit(functools.partial(call, entry, tx, grad_fn=counted))(tx.init(params), params)
    )
    jax.effects_barrier()
    assert len(calls) == count[entry.loop]


@multi
def test_the_program_does_not_grow_with_num_steps(name):
    entry, (params, grad_fn, _) = ZOO[name], parabola()

    def size(num_steps):
        tx = entry.make(**entry.count(num_steps))
        return len(
            jax.jit(functools.partial(call, entry, tx, grad_fn=grad_fn))
            .lower(tx.init(params), params)
            .as_text()
        )

    assert size(64) <= size(3) + 200  # the digits of the constants


def _problem():
    """A smooth non-quadratic loss on a tree."""
    params = {"a": jnp.linspace(-1, 1, 5), "b": (jnp.array(0.3), jnp.ones((2, 3)))}
    return params, jax.grad(lambda p: sum(jnp.sum(jnp.cosh(leaf)) for leaf in jax.tree.leaves(p)))


SETTINGS = {
    "temperature 0": {"temperature": 0.0},
    "hot": {"temperature": 0.3},
    "hot, gaussian": {"temperature": 0.3, "noise": "gaussian"},
    "papers' mean": {"temperature": 0.01, "averaging": 0.25},
    "inner momentum": {"temperature": 0.01, "inner_momentum": 0.6},
    "burn-in": {"temperature": 0.01, "burn_in": 2},
    "one step": {"temperature": 0.1, "num_steps": 1},
    "schedules": {"temperature": optax.exponential_decay(0.1, 1, 0.5)},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_stepwise_gives_the_iterates_of_grad_fn_mode(setting, momentum, x64):
    """K = 1, same settings, same key: equal at every temperature, after every outer step."""
    params, grad_fn = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), _problem()[0]), _problem()[1]
    inner = {"smoothing_time": 0.7, "inner_learning_rate": 0.05, "num_steps": 5, "key": 3} | SETTINGS[setting]
    one = jaxopt_pde.entropy_sgd(0.4, momentum=momentum, estimator="displacement", **inner)
    many = jaxopt_pde.entropy_sgd_stepwise(optax.sgd(0.4, momentum), **inner)
    step = jax.jit(lambda p, s: one.update(p, s, p, grad_fn=lambda q, _: grad_fn(q)))
    small_step = jax.jit(lambda p, s: many.update(grad_fn(p), s, p))
    p, q, state, small_state = params, params, one.init(params), many.init(params)
    for _ in range(6):
        updates, state = step(p, state)
        p = optax.apply_updates(p, updates)
        for _ in range(inner["num_steps"]):
            updates, small_state = small_step(q, small_state)
            q = optax.apply_updates(q, updates)
        chex.assert_trees_all_close(q, p, rtol=1e-11, atol=1e-12)
        chex.assert_trees_all_equal(jaxopt_pde.eval_params(small_state, q), q)
    assert int(small_state.outer_count) == int(state.outer_count) == 6


@stepwise
def test_stepwise_evaluates_at_the_anchor_between_outer_steps(name):
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    tx = optax.chain(optax.clip(10.0), entry.make())
    state, particle = tx.init(params), params
    for count in range(1, 2 * entry.arguments["num_steps"]):
        updates, state = tx.update(grad_fn(particle), state, particle)
        particle = optax.apply_updates(particle, updates)
        evaluated = jaxopt_pde.eval_params(state, particle)
        if count < entry.arguments["num_steps"]:
            chex.assert_trees_all_equal(evaluated, params)
            assert bool(jnp.any(particle != params))
        elif count == entry.arguments["num_steps"]:
            chex.assert_trees_all_equal(evaluated, particle)


@multi
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_nan_inside_grad_fn_cannot_reach_params(name, bad):
    """One bad minibatch of the third update: zero update, counted, outer state untouched, next update as usual."""
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    tx = entry.make()

    @jax.jit
    def step(params, state, poison):
        def grad(p, s):
            return jnp.where((s.step == 4) & poison, bad, 1.0) * grad_fn(p)

        return tx.update(params, state, params, grad_fn=grad)

    state = tx.init(params)
    for update in range(5):
        poisoned = update == 2
        updates, new_state = step(params, state, poisoned)
        assert bool(jnp.all(jnp.isfinite(updates)))
        if poisoned and "learning_rate" in entry.arguments:
            np.testing.assert_array_equal(updates, 0)
            chex.assert_trees_all_equal(new_state.outer, state.outer)
        params, state = optax.apply_updates(params, updates), new_state
    relaxed = state if hasattr(state, "notfinite_count") else state[0]
    assert int(relaxed.notfinite_count) == 1
    assert int(relaxed.outer_count) == 5
    chex.assert_tree_all_finite(jax.tree.leaves(optax.tree.unwrap_random_key_data(state)))


@stepwise
@pytest.mark.parametrize("bad", [jnp.nan, -jnp.inf])
def test_a_nan_gradient_moves_nothing_in_stepwise_form(name, bad):
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    tx = entry.make()
    state = tx.init(params)
    for update in range(2 * entry.arguments["num_steps"] + 1):
        gradient = grad_fn(params) if update != 3 else grad_fn(params).at[1].set(bad)
        updates, state = tx.update(gradient, state, params)
        if update == 3:
            np.testing.assert_array_equal(updates, 0)
        params = optax.apply_updates(params, updates)
    assert int(state.notfinite_count) == 1
    chex.assert_tree_all_finite(jax.tree.leaves(optax.tree.unwrap_random_key_data(state)))


@pytest.mark.parametrize("estimator", ["displacement", "gradient", "control_variate"])
def test_closed_form_on_a_quadratic(estimator, x64):
    """∇u = A (I + tA)⁻¹ x for f = ½ xᵀAx, at T = 0 to the contraction of 400 steps."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    A, x, t = root @ root.T / 6 + 0.1 * np.eye(6), rng.normal(size=6), 0.8
    tx = jaxopt_pde.local_entropy_gradient(t, 0.1, temperature=0.0, num_steps=400, estimator=estimator)
    x = jnp.asarray(x)
    gradient, _ = tx.update(x, tx.init(x), x, grad_fn=lambda p, step: A @ p)
    np.testing.assert_allclose(gradient, A @ np.linalg.solve(np.eye(6) + t * A, x), rtol=1e-10)


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("estimator", ["displacement", "gradient"])
def test_the_variance_of_the_estimate_falls_as_one_over_chains(estimator, noise):
    """400 repeats in 50 dimensions: the ratio of variances has a relative standard deviation of about 1.5 %."""
    params = jnp.zeros(50)

    def variance(num_chains):
        def one(key):
            tx = jaxopt_pde.local_entropy_gradient(
                1.0,
                0.1,
                temperature=1.0,
                num_steps=10,
                num_chains=num_chains,
                estimator=estimator,
                noise=noise,
                key=key,
            )
            return tx.update(params, tx.init(params), params, grad_fn=lambda p, step: 2.0 * p)[0]

        return float(jnp.var(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(num_chains), 400))))

    single = variance(1)
    for num_chains in (4, 16):
        assert variance(num_chains) * num_chains / single == pytest.approx(1, abs=0.08)


@relaxed
@settings(max_examples=3, deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3))
def test_units_of_loss_and_params_do_not_matter(name, log_loss, log_param):
    """f → c f, x → s x with t → s²/c t, ε → s²/c ε, h → s²/c h, T → c T: the trajectory scales by s."""
    entry = ZOO[name]
    if "adam" in name or "outer" in entry.arguments:
        return  # Adam's own update has no units; the stepwise form equals the grad_fn form, tested above
    c, s = 2.0 ** round(log_loss), 2.0 ** round(log_param)
    params, grad_fn, _ = parabola()
    times = ("smoothing_time", "inner_learning_rate", "coupling_time")
    inner = {name: entry.arguments[name] for name in times if name in entry.arguments}
    scaled = {name: value * s**2 / c for name, value in inner.items()}
    rate = entry.arguments.get("learning_rate", 0.5)
    rates = [
        {"learning_rate": r} if "learning_rate" in entry.arguments else {} for r in (rate, rate * s**2 / c)
    ]
    outer = lambda r: (
        entry.outer if "learning_rate" in entry.arguments else lambda tx: optax.chain(tx, optax.sgd(r))
    )
    one = outer(rate)(entry.factory(**{**entry.arguments, **entry.heated(0.1)} | rates[0]))
    two = outer(rate * s**2 / c)(
        entry.factory(**{**entry.arguments, **entry.heated(0.1 * c)} | scaled | rates[1])
    )
    reached = train(entry, one, params, grad_fn, 5)[1][0]
    rescaled = train(entry, two, params * s, lambda p: grad_fn(p / s) * (c / s), 5)[1][0]
    np.testing.assert_allclose(rescaled / s, reached, rtol=2e-4, atol=1e-5)


@every
def test_a_restored_run_is_bitwise_the_uninterrupted_one(name, tmp_path):
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    tx = entry.make(**entry.heated(0.1))
    step = jax.jit(functools.partial(call, entry, tx, grad_fn=grad_fn))
    state, checkpoint = tx.init(params), tmp_path / "checkpoint"
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        for update in range(17):
            if update == 8:
                checkpointer.save(checkpoint, (params, state))
                checkpointer.wait_until_finished()
            updates, state = step(state, params)
            params = optax.apply_updates(params, updates)
        restored, restored_state = checkpointer.restore(checkpoint, jax.eval_shape(lambda: (params, state)))
    for _ in range(9):
        updates, restored_state = step(restored_state, restored)
        restored = optax.apply_updates(restored, updates)
    chex.assert_trees_all_equal(restored, params)
    chex.assert_trees_all_equal(*map(optax.tree.unwrap_random_key_data, (restored_state, state)))


@multi
def test_minimises_inside_optimistix(name):
    """optimistix hands every optax optimiser ``value_fn``, which serves where ``grad_fn`` is missing."""
    target = jnp.array([1.0, -1.0, 0.5])
    solver = optimistix.OptaxMinimiser(ZOO[name].make(**ZOO[name].heated(0.0)), rtol=1e-6, atol=1e-6)
    solution = optimistix.minimise(
        lambda p, _: jnp.sum((p - target) ** 2) / 2, solver, jnp.zeros(3), max_steps=5000, throw=False
    )
    np.testing.assert_allclose(solution.value, target, atol=3e-2)


@multi
def test_persistent_state_beyond_the_outer_optimiser_is_scalars(name):
    entry = ZOO[name]
    state = entry.factory(**entry.arguments).init({"w": jnp.ones((64, 64))})
    own = jax.tree.leaves(state._replace(outer=()))
    assert sum(leaf.size for leaf in own) == 3


@stepwise
def test_stepwise_keeps_two_trees_and_one_for_momentum(name):
    entry = ZOO[name]
    params = {"w": jnp.ones((64, 64))}
    own = jax.tree.leaves(entry.make().init(params)._replace(outer=()))
    trees = sum(leaf.size for leaf in own if leaf.ndim) / 64**2
    assert trees == (2 if "inner_momentum" not in entry.arguments else 3)
