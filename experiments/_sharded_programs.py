"""Training steps over a mesh of devices, compiled and not run: what they say to each other stands in the program.

The network is one hidden layer of tanh; its size does not matter to what is counted in units of it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_pde
from jaxopt_pde import InnerStep, control, landscape

__all__ = ["PROGRAMS", "Program", "Sizes", "compile_program", "cpu_devices", "num_params"]

FEATURES, HIDDEN, CLASSES = 48, 32, 10


class Sizes(NamedTuple):
    """What fixes the programs.

    Attributes:
        num_steps: L, gradient steps of one call.
        copies: K chains or R replicas in all, rollouts, and points of a slice, where their number is fixed.
        copies_per_device: the same for each device, where that is fixed.
        batch_size: examples of a gradient.
    """

    num_steps: int
    copies: int
    copies_per_device: int
    batch_size: int


class Program(NamedTuple):
    """A compiled call, and how many gradient steps (evaluations of the loss, for a slice) a device takes in it."""

    compiled: jax.stages.Compiled
    gradient_steps: int


def cpu_devices(count: int) -> list[jax.Device]:
    """The first ``count`` CPU devices; asks for eight if no backend has started yet.

    Raises:
        RuntimeError: where the process has fewer and JAX has started.
    """
    try:
        if jax.config.jax_num_cpu_devices < count:
            jax.config.update("jax_num_cpu_devices", max(count, 8))
    except RuntimeError:  # JAX has started: what there is may do, by XLA_FLAGS
        pass
    devices = jax.devices("cpu")
    if len(devices) < count:
        msg = (
            f"{count} CPU devices are needed and JAX has started with {len(devices)}. Run it in a process of its own, "
            f"set jax.config.update('jax_num_cpu_devices', {count}) before anything else, or start with "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count}."
        )
        raise RuntimeError(msg)
    return devices[:count]


def num_params() -> int:
    """Of the network."""
    return sum(leaf.size for leaf in jax.tree.leaves(_params()))


def _params(*leading: int) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = {"w": (FEATURES, HIDDEN), "b": (HIDDEN,), "v": (HIDDEN, CLASSES), "c": (CLASSES,)}
    return {name: jax.ShapeDtypeStruct((*leading, *shape), jnp.float32) for name, shape in shapes.items()}


def _batches(*leading: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    return (
        jax.ShapeDtypeStruct((*leading, FEATURES), jnp.float32),
        jax.ShapeDtypeStruct(leading, jnp.int32),
    )


def _loss(params, batch):
    images, labels = batch
    hidden = jnp.tanh(images @ params["w"] + params["b"][None])
    logits = hidden @ params["v"] + params["c"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _placed(tree: Any, mesh: jax.sharding.Mesh, *axes: str | None) -> Any:
    """The shapes, with a sharding over the named axes of the mesh; without axes, whole on every device."""
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _mesh(devices: list[jax.Device], **axes: int) -> jax.sharding.Mesh:
    return jax.make_mesh(tuple(axes.values()), tuple(axes), (AxisType.Auto,) * len(axes), devices=devices)


def _compiled(step: Callable, *arguments: Any) -> jax.stages.Compiled:
    """Machine code is not wanted, so it need not be good."""
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(step).lower(*arguments).compile(compiler_options=options)


def _by_subscripts(step, batches):
    return jax.tree.map(lambda b: b[step.step, step.chain], batches)


def _outer_step(tx, lookup=InnerStep.batch):
    def step(params, state, batches):
        grad_fn = lambda p, s: jax.grad(_loss)(p, lookup(s, batches))
        updates, state = tx.update(params, state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    return step


def _sgd(devices, sizes: Sizes) -> Program:
    """Every gradient is the mean over a batch split over the devices."""
    mesh, tx = _mesh(devices, data=len(devices)), optax.sgd(0.1, 0.9)

    def run(params, state, batches):
        def step(carry, batch):
            params, state = carry
            updates, state = tx.update(jax.grad(_loss)(params, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), batches)[0]

    carry = _placed((_params(), jax.eval_shape(tx.init, _params())), mesh)
    batches = _placed(_batches(sizes.num_steps, sizes.batch_size), mesh, None, "data")
    return Program(_compiled(run, *carry, batches), sizes.num_steps)


def _entropy_sgd(
    devices,
    sizes: Sizes,
    *,
    weak: bool = False,
    data: int = 1,
    lookup: Callable = InnerStep.batch,
    **settings,
) -> Program:
    """Chains and their batches over the devices; with ``data`` = 2 each batch over a pair of devices."""
    data = min(data, len(devices))
    mesh = _mesh(devices, chains=len(devices) // data, data=data)
    chains = sizes.copies_per_device * len(devices) if weak else sizes.copies
    tx = jaxopt_pde.entropy_sgd(
        0.5, 0.5, 0.1, num_steps=sizes.num_steps, num_chains=chains,
        chain_sharding=NamedSharding(mesh, PartitionSpec("chains")), **settings,
    )  # fmt: skip
    carry = _placed((_params(), jax.eval_shape(tx.init, _params())), mesh)
    batches = _placed(_batches(sizes.num_steps, chains, sizes.batch_size), mesh, None, "chains", "data")
    return Program(_compiled(_outer_step(tx, lookup), *carry, batches), sizes.num_steps)


def _parle(devices, sizes: Sizes, *, weak: bool = False) -> Program:
    """Replicas and their batches over the devices."""
    mesh = _mesh(devices, replicas=len(devices))
    replicas = sizes.copies_per_device * len(devices) if weak else sizes.copies
    tx = jaxopt_pde.parle(0.5, 0.5, 0.1, coupling_time=5.0, num_steps=sizes.num_steps)
    params = _placed(_params(replicas), mesh, "replicas")
    state = _placed(jax.eval_shape(tx.init, params), mesh)
    batches = _placed(_batches(sizes.num_steps, replicas, sizes.batch_size), mesh, None, "replicas")
    return Program(_compiled(_outer_step(tx), params, state, batches), sizes.num_steps)


def _path_integral(devices, sizes: Sizes) -> Program:
    """Rollouts over the devices; the loss is a quadratic, since second derivatives of a network compile slowly."""
    mesh = _mesh(devices, rollouts=len(devices))
    loss = lambda params: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)) / 2

    def estimate(params):
        estimator = control.path_integral(
            loss, loss, horizon=1.0, temperature=0.1, num_rollouts=sizes.copies, num_steps=sizes.num_steps,
            rollout_sharding=NamedSharding(mesh, PartitionSpec("rollouts")),
        )  # fmt: skip
        return estimator.estimate(params, 0.0, jax.random.key(0))

    return Program(_compiled(estimate, _placed(_params(), mesh)), sizes.num_steps)


def _slice(devices, sizes: Sizes) -> Program:
    """Points of a plane over the devices; two for each of the ``copies``."""
    mesh = _mesh(devices, points=len(devices))
    axes = jnp.linspace(-1.0, 1.0, 2), jnp.linspace(-1.0, 1.0, sizes.copies)

    def values(params, first, second, batch):
        loss = functools.partial(_loss, batch=batch)
        sharding = NamedSharding(mesh, PartitionSpec("points"))
        return landscape.slice(loss, params, (first, second), axes, sharding=sharding)

    trees = [_placed(_params(), mesh)] * 3
    steps = 2 * sizes.copies // len(devices)
    return Program(_compiled(values, *trees, _placed(_batches(sizes.batch_size), mesh)), steps)


PROGRAMS: dict[str, Callable[[list[jax.Device], Sizes], Program]] = {
    "SGD, data-parallel": _sgd,
    "Entropy-SGD, K fixed": _entropy_sgd,
    "Entropy-SGD, K/n fixed": functools.partial(_entropy_sgd, weak=True),
    "Entropy-SGD, control variate": functools.partial(_entropy_sgd, estimator="control_variate"),
    "Entropy-SGD, chains × data": functools.partial(_entropy_sgd, data=2),
    "Entropy-SGD, batches[step, chain]": functools.partial(_entropy_sgd, lookup=_by_subscripts),
    "Parle, R fixed": _parle,
    "Parle, R/n fixed": functools.partial(_parle, weak=True),
    "path integral": _path_integral,
    "landscape slice": _slice,
}
"""What is compiled, by name: ``(devices, sizes) -> Program``."""


def compile_program(name: str, num_devices: int, sizes: Sizes) -> Program:
    """One of :data:`PROGRAMS` over the first ``num_devices`` CPU devices."""
    return PROGRAMS[name](cpu_devices(num_devices), sizes)
