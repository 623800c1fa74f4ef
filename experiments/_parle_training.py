"""Parle with its replicas spread over devices, and data-parallel SGD on the same devices, as one function each.

Both spend R minibatch gradients at a time on the same minibatches: the n-th of replica r is drawn from a key of n and
r, with the data whole on every device, so that a device looks up only what its own replicas need and nothing is
gathered. SGD moves one model by the mean of the R gradients and exchanges it at every step; Parle moves R models and
exchanges their mean once in L steps. The programs are the same on one device and on devices of several processes; only
the mesh differs.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxopt_pde
from experiments import _run
from experiments._parle_settings import PARLE, SGD, Settings
from jaxopt_pde.models import MLP

__all__ = ["AXIS", "Data", "Programs", "State", "first_key", "make_mesh", "make_programs", "place"]

AXIS = "replicas"


class Data(NamedTuple):
    """Images [n, 8, 8, 1] and labels [n], whole on every device."""

    train_images: Any
    train_labels: Any
    validation_images: Any
    validation_labels: Any
    test_images: Any
    test_labels: Any


class State(NamedTuple):
    """A training between two updates.

    Attributes:
        params: Parle: with the axis of the replicas; SGD: one model.
        opt_state: of the optimiser.
        key: constant; the minibatches are drawn from it.
        count: updates so far, of L gradients of every replica.
    """

    params: Any
    opt_state: Any
    key: jax.Array
    count: jax.Array


class Programs(NamedTuple):
    """A method's training, not yet compiled.

    Attributes:
        start: ``(key, rate) -> State``.
        advance: ``(state, rate, data) -> state`` after ``report_every`` updates; talks between devices.
        measure: ``(state, data) -> {name: scalar}``: training loss, both errors; at the mean of the replicas.
        shardings: the state's, on the mesh; None without a mesh.
    """

    start: Callable[..., State]
    advance: Callable[..., State]
    measure: Callable[..., dict[str, jax.Array]]
    shardings: Any


def make_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """One axis over the devices."""
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def first_key(seed: int, replicate: int = 0) -> jax.Array:
    """What ``Programs.start`` takes, for one of several independent trainings with the same split of the data."""
    return jax.random.fold_in(_run.key_for(seed, "training"), replicate)


def place(tree: Any, mesh: Mesh) -> Any:
    """Every array of ``tree``, which all processes hold alike, whole on every device of the mesh."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda a: jax.make_array_from_callback(np.shape(a), whole, np.asarray(a).__getitem__), tree
    )


def make_programs(settings: Settings, method: str, mesh: Mesh | None = None) -> Programs:
    """The programs of a method.

    Args:
        settings: what to train; its rates are not read here but given to the programs.
        method: one of ``METHODS``.
        mesh: where the replicas are; None for one device, and for ``vmap`` over keys and rates.
    """
    network = MLP(settings.features)
    build = {PARLE: _parle, SGD: _sgd}[method]
    start, update, evaluated = build(settings, network, mesh)

    def advance(state: State, rate, data: Data) -> State:
        step = lambda state, _: (update(state, rate, data), None)
        return jax.lax.scan(step, state, length=settings.report_every)[0]

    def measure(state: State, data: Data) -> dict[str, jax.Array]:
        logits = functools.partial(network.apply, {"params": evaluated(state)}, train=False)
        error = lambda images, labels: jnp.mean(logits(images).argmax(-1) != labels)
        return {
            "train_loss": loss(logits(data.train_images), data.train_labels),
            "validation_error": error(data.validation_images, data.validation_labels),
            "test_error": error(data.test_images, data.test_labels),
        }

    shardings = None
    if mesh is not None:
        spread = PartitionSpec(AXIS) if method == PARLE else PartitionSpec()
        shapes = jax.eval_shape(start, jax.random.key(0), jnp.zeros([]))
        shardings = jax.tree.map(
            lambda leaf: NamedSharding(mesh, spread if leaf.ndim else PartitionSpec()), shapes
        )
    return Programs(start, advance, measure, shardings)


def loss(logits, labels):
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _gradient(settings: Settings, network: MLP):
    """``(params, key, data) -> gradient`` on the minibatch of a key."""

    def objective(params, key, data: Data):
        chosen = jax.random.randint(key, (settings.batch_size,), 0, data.train_labels.shape[0])
        logits = network.apply({"params": params}, data.train_images[chosen], train=True)
        return loss(logits, data.train_labels[chosen])

    return jax.grad(objective)


def _initial(network: MLP, key):
    return network.init(key, jnp.zeros((1, 8, 8, 1)), train=False)["params"]


def _minibatch_key(key, count, step, replica):
    for index in (count, step, replica):
        key = jax.random.fold_in(key, index)
    return key


def _decayed(settings: Settings, rate, steps_per_update: int):
    schedule = optax.cosine_decay_schedule(1.0, settings.num_updates * steps_per_update)
    return lambda count: rate * schedule(count)


def _parle(settings: Settings, network: MLP, mesh: Mesh | None):
    gradient = _gradient(settings, network)

    def transformation(rate):
        time = settings.time_per_rate * rate
        coupling = settings.coupling * time
        return jaxopt_pde.parle(
            1 / (1 / time + 1 / coupling),
            time,
            _decayed(settings, rate, 1),
            coupling_time=coupling,
            num_steps=settings.num_steps,
            inner_momentum=settings.momentum,
            temperature=0.0,
        )

    def start(key, rate) -> State:
        weights, order = jax.random.split(key)
        params = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (settings.num_replicas, *x.shape)), _initial(network, weights)
        )
        return State(params, transformation(rate).init(params), order, jnp.zeros([], jnp.int32))

    def update(state: State, rate, data: Data) -> State:
        def at(params, step):
            return gradient(params, _minibatch_key(state.key, state.count, step.step, step.chain), data)

        updates, opt_state = transformation(rate).update(
            state.params, state.opt_state, state.params, grad_fn=at
        )
        params = optax.apply_updates(state.params, updates)
        return State(params, opt_state, state.key, state.count + 1)

    return start, update, lambda state: jaxopt_pde.eval_params(state.opt_state, state.params)


def _sgd(settings: Settings, network: MLP, mesh: Mesh | None):
    gradient = _gradient(settings, network)
    replicas = jnp.arange(settings.num_replicas)

    def transformation(rate):
        rate = _decayed(settings, rate, settings.num_steps)
        return optax.sgd(rate, momentum=settings.momentum, nesterov=True)

    def start(key, rate) -> State:
        weights, order = jax.random.split(key)
        params = _initial(network, weights)
        return State(params, transformation(rate).init(params), order, jnp.zeros([], jnp.int32))

    def update(state: State, rate, data: Data) -> State:
        def step(carry, index):
            params, opt_state = carry
            grads = mean_gradient(params, state.key, state.count, index, data)
            updates, opt_state = transformation(rate).update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        carry, _ = jax.lax.scan(step, (state.params, state.opt_state), jnp.arange(settings.num_steps))
        return State(*carry, state.key, state.count + 1)

    def mean_gradient(params, key, count, index, data):
        def of(replicas, params, key, count, index, data):
            one = lambda replica: gradient(params, _minibatch_key(key, count, index, replica), data)
            return jax.tree.map(lambda g: g.mean(axis=0), jax.vmap(one)(replicas))

        if mesh is None:
            return of(replicas, params, key, count, index, data)
        exchanged = lambda *arguments: jax.lax.pmean(of(*arguments), AXIS)
        whole = PartitionSpec()
        spread = jax.shard_map(
            exchanged,
            mesh=mesh,
            in_specs=(PartitionSpec(AXIS), *[whole] * 5),
            out_specs=whole,
            check_vma=False,
        )
        return spread(replicas, params, key, count, index, data)

    return start, update, lambda state: state.params
