"""Rows of the contract that need several devices: eight virtual CPU devices, set up in conftest.py."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_pde
from experiments._collectives import Collective, collectives
from tests.zoo import ZOO, call

every = pytest.mark.parametrize("name", ZOO)


@every
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_an_explicit_mesh_keeps_the_types_of_the_state(name, jit):
    """Shape, dtype and sharding of every leaf after an update are those of init, as optax asks of its own."""
    entry = ZOO[name]
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params = jax.device_put(jnp.ones((16, 4), jnp.float16), PartitionSpec("x", None))
        tx = entry.make()
        update = functools.partial(call, entry, tx, grad_fn=lambda p: p)
        state = tx.init(params)
        updates, new_state = (jax.jit(update) if jit else update)(state, params)
        assert jax.typeof(updates) == jax.typeof(params)
        assert jax.tree.map(jax.typeof, new_state) == jax.tree.map(jax.typeof, state)


LOSS = lambda p, x: jnp.mean((x @ p["w"]) ** 2) + jnp.cosh(p["b"])
PARAMS = {"w": jnp.linspace(-1, 1, 12).reshape(3, 4), "b": jnp.array(0.5)}
MODEL = 4 * 13  # bytes of PARAMS
PAYLOADS = {"displacement": MODEL, "gradient": MODEL, "control_variate": 3 * MODEL + 4 * 2 * 5}
"""Largest all-reduce of an estimate in bytes: one mean of the chains, or three and five inner products a leaf."""


def chains_mesh(*shape, kind=AxisType.Auto):
    return jax.make_mesh(shape, ("chains", "data")[: len(shape)], axis_types=(kind,) * len(shape))


def entropy_update(estimator, noise, chain_sharding, params, batches):
    tx = jaxopt_pde.entropy_sgd(
        0.5, 1.0, 0.1, temperature=0.1, num_steps=5, num_chains=16, noise=noise, estimator=estimator,
        chain_sharding=chain_sharding,
    )  # fmt: skip
    grad_fn = lambda p, s: jax.grad(LOSS)(p, s.batch(batches))
    return tx.update(params, tx.init(params), params, grad_fn=grad_fn)[0]


@pytest.mark.parametrize(
    ("estimator", "noise", "kind", "spec"),
    [
        ("displacement", "rademacher", AxisType.Auto, (None, "chains")),
        ("control_variate", "gaussian", AxisType.Auto, (None, "chains", "data")),
        ("control_variate", "rademacher", AxisType.Explicit, ()),
        ("gradient", "gaussian", AxisType.Explicit, (None, "chains", "data")),
    ],
)
def test_sharded_chains_equal_unsharded_ones_and_talk_once(estimator, noise, kind, spec):
    """Chains over one axis, the examples of every minibatch over another: L reductions of gradients on the latter, as
    in data parallel training, and one of estimates on the former."""
    if kind == AxisType.Explicit and jax.__version_info__ < (0, 10):
        pytest.skip("explicit axes need JAX 0.10")
    batches = jax.random.normal(jax.random.key(1), (5, 16, 8, 3))
    update = functools.partial(entropy_update, estimator, noise)
    alone = jax.jit(functools.partial(update, None))(PARAMS, batches)
    shape = (4, 2) if "data" in spec else (8,)
    mesh = chains_mesh(*shape, kind=kind)
    with jax.set_mesh(mesh):
        whole = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
        parts = jax.device_put(batches, NamedSharding(mesh, PartitionSpec(*spec)))
        sharded = jax.jit(functools.partial(update, NamedSharding(mesh, PartitionSpec("chains"))))
        chex.assert_trees_all_close(sharded(whole, parts), alone, rtol=1e-5, atol=1e-6)
        found = collectives(sharded.lower(whole, parts).compile())
    # The gradient in w of each of 4 chains; that in b sees no data.
    assert [c for c in found if c.times > 1] == [Collective("all-reduce", 4 * 4 * 12, 5, 2)] * (
        "data" in spec
    )
    (once,) = [c for c in found if c.times == 1]
    assert (once.kind, once.group_size) == ("all-reduce", shape[0])
    assert MODEL <= once.num_bytes <= PAYLOADS[estimator]


def test_two_subscripts_instead_of_batch_would_talk_at_every_step():
    """Why ``InnerStep.batch`` exists; should XLA learn it, the method may go."""
    mesh = chains_mesh(8)
    sharding = NamedSharding(mesh, PartitionSpec("chains"))
    batches = jax.device_put(jnp.ones((5, 16, 8, 3)), NamedSharding(mesh, PartitionSpec(None, "chains")))

    def estimate(params, batches):
        return jaxopt_pde.smoothing.langevin(
            lambda p, s: jax.grad(LOSS)(p, batches[s.step, s.chain]), params, jax.random.key(0),
            smoothing_time=1.0, temperature=0.1, step_size=0.1, num_steps=5, num_chains=16,
            chain_sharding=sharding,
        ).gradient  # fmt: skip

    found = collectives(jax.jit(estimate).lower(PARAMS, batches).compile())
    assert any(c.times == 5 for c in found)


@pytest.mark.parametrize("chain_batch_size", [None, 2])
def test_batch_is_two_subscripts(chain_batch_size):
    """Whatever chains run together; inside another vmap, here of several data sets, too."""
    batches = {
        "x": jax.random.normal(jax.random.key(1), (2, 3, 4, 5)),
        "y": jnp.arange(24.0).reshape(2, 3, 4),
    }

    def gradient(pick, batches):
        return jaxopt_pde.smoothing.langevin(
            lambda p, s: p * pick(s, batches)["y"] + pick(s, batches)["x"], jnp.ones(5), jax.random.key(0),
            smoothing_time=1.0, temperature=0.0, step_size=0.1, num_steps=3, num_chains=4, estimator="gradient",
            chain_batch_size=chain_batch_size,
        ).gradient  # fmt: skip

    method, subscripts = lambda s, b: s.batch(b), lambda s, b: jax.tree.map(lambda a: a[s.step, s.chain], b)
    estimate = lambda pick: jax.jit(functools.partial(gradient, pick))
    both = jax.vmap(estimate(method))(batches)
    np.testing.assert_allclose(both, jax.vmap(estimate(subscripts))(batches), rtol=1e-6)
    np.testing.assert_allclose(both[0], estimate(method)(jax.tree.map(lambda a: a[0], batches)), rtol=1e-6)
    with pytest.raises(ValueError, match=r"leading axes \[num_steps, num_chains\], got shape \(3,\)"):
        gradient(method, {"x": jnp.ones((3, 4, 5)), "y": jnp.ones(3)})


def test_the_standard_error_costs_one_more_reduction_of_a_number_a_leaf():
    mesh = chains_mesh(8)

    def estimate(params):
        return jaxopt_pde.smoothing.langevin(
            lambda p, s: jax.grad(LOSS)(p, jax.random.normal(s.key, (2, 3))), params, jax.random.key(0),
            smoothing_time=1.0, temperature=0.1, step_size=0.1, num_steps=5, num_chains=16,
            chain_sharding=NamedSharding(mesh, PartitionSpec("chains")),
        )  # fmt: skip

    gradients, errors = collectives(jax.jit(estimate).lower(PARAMS).compile())
    assert MODEL <= gradients.num_bytes <= PAYLOADS["control_variate"]
    assert errors == Collective("all-reduce", 4 * 2, 1, 8)


def test_rollouts_talk_about_their_least_exponent_and_then_once():
    mesh = chains_mesh(8)
    loss = lambda p: jnp.sum(p["w"] ** 2) + jnp.cosh(p["b"])
    control = jaxopt_pde.control.path_integral(
        loss, loss, horizon=1.0, temperature=1.0, num_rollouts=16, num_steps=5,
        rollout_sharding=NamedSharding(mesh, PartitionSpec("chains")),
    )  # fmt: skip
    program = jax.jit(lambda p, key: control(p, 0.3, key)).lower(PARAMS, jax.random.key(0)).compile()
    assert collectives(program) == (
        Collective("all-reduce", 4, 1, 8),
        Collective("all-reduce", MODEL + 4, 1, 8),  # and the sum of the weights
    )


def test_points_of_a_slice_are_gathered_once():
    mesh = chains_mesh(8)
    loss = lambda p: jnp.sum(p["w"] ** 2) + jnp.cosh(p["b"])
    surface = lambda p: jaxopt_pde.landscape.slice(
        loss, p, [p], [jnp.linspace(-1, 1, 32)], sharding=NamedSharding(mesh, PartitionSpec("chains"))
    )
    program = jax.jit(surface).lower(PARAMS).compile()
    assert collectives(program) == (Collective("all-gather", 4 * 32, 1, 8),)


def test_the_mesh_axis_must_divide_the_chains():
    mesh = jax.make_mesh((8,), ("chains",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("chains"))
    with pytest.raises(ValueError, match=r"num_chains=12 must be a multiple of 8.*'chains'"):
        jaxopt_pde.entropy_sgd(0.5, 1.0, 0.1, num_chains=12, chain_sharding=sharding)
    with pytest.raises(ValueError, match="chain_sharding must be NamedSharding"):
        jaxopt_pde.entropy_sgd(0.5, 1.0, 0.1, num_chains=8, chain_sharding=PartitionSpec("chains"))


@pytest.mark.parametrize("chain_batch_size", [1, 2, 3])
def test_chains_in_turn_equal_chains_together(chain_batch_size):
    params = jnp.linspace(-1, 1, 7)
    batches = jax.random.normal(jax.random.key(1), (5, 4, 7))

    def update(size):
        tx = jaxopt_pde.entropy_sgd(
            0.5, 1.0, 0.1, temperature=0.1, num_steps=5, num_chains=4, chain_batch_size=size
        )
        grad_fn = lambda p, s: jnp.sinh(p - batches[s.step, s.chain])
        return optax.apply_updates(params, tx.update(params, tx.init(params), params, grad_fn=grad_fn)[0])

    np.testing.assert_allclose(update(chain_batch_size), update(None), rtol=1e-6, atol=1e-6)
