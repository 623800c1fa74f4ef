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
from tests.zoo import ZOO, call, names, parabola

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


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("estimator", ["displacement", "control_variate"])
def test_sharded_chains_equal_unsharded_ones(noise, estimator):
    mesh = jax.make_mesh((8,), ("chains",), axis_types=(AxisType.Auto,))
    params = {"w": jnp.linspace(-1, 1, 12).reshape(3, 4), "b": jnp.array(0.5)}
    batches = jax.random.normal(jax.random.key(1), (5, 16, 3))
    grad_fn = jax.grad(lambda p, x: jnp.mean((x @ p["w"]) ** 2) + jnp.cosh(p["b"]))

    def update(chain_sharding, params):
        tx = jaxopt_pde.entropy_sgd(
            0.5, 1.0, 0.1, temperature=0.1, num_steps=5, num_chains=16, noise=noise, estimator=estimator,
            chain_sharding=chain_sharding,
        )  # fmt: skip
        return tx.update(
            params, tx.init(params), params, grad_fn=lambda p, s: grad_fn(p, batches[s.step, s.chain])
        )[0]

    alone = jax.jit(functools.partial(update, None))(params)
    sharded = jax.jit(functools.partial(update, NamedSharding(mesh, PartitionSpec("chains"))))
    chex.assert_trees_all_close(sharded(params), alone, rtol=1e-5, atol=1e-6)
    program = sharded.lower(params).compile().as_text()
    assert "all-gather" not in program
    assert "f32[2,3,4]" in program  # two chains on each device


def test_the_mesh_axis_must_divide_the_chains():
    mesh = jax.make_mesh((8,), ("chains",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("chains"))
    with pytest.raises(ValueError, match=r"num_chains=12 must be a multiple of 8.*'chains'"):
        jaxopt_pde.entropy_sgd(0.5, 1.0, 0.1, num_chains=12, chain_sharding=sharding)
    with pytest.raises(ValueError, match="chain_sharding must be NamedSharding"):
        jaxopt_pde.entropy_sgd(0.5, 1.0, 0.1, num_chains=8, chain_sharding=PartitionSpec("chains"))


@pytest.mark.parametrize("name", names(multi_gradient=True))
def test_nothing_moves_between_host_and_device_inside_a_step(name):
    entry, (params, grad_fn, _) = ZOO[name], parabola()
    tx = entry.make()
    step = jax.jit(functools.partial(call, entry, tx, grad_fn=grad_fn))
    state = tx.init(params)
    step(state, params)
    with jax.transfer_guard("disallow"):
        updates, _ = step(state, params)
        jax.block_until_ready(updates)
    assert np.all(np.isfinite(updates))


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
