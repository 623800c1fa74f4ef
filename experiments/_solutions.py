"""Solutions of one small network by several optimisers at equal numbers of gradients, for the landscape experiments."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _datasets, _methods, _run
from jaxopt_pde import _validate
from jaxopt_pde.models import MLP

__all__ = ["Solutions", "Task", "Training", "chosen", "make_task", "train"]

PIECES = 20  # of a training, between which it may be interrupted


@dataclasses.dataclass(frozen=True)
class Training:
    """What is trained."""

    methods: tuple[str, ...] = ("SGD, Nesterov", "SAM", "Entropy-SGD, K = 1")
    """Which optimisers, of experiments/_methods.py."""
    dataset: str = "digits"
    """``"digits"`` (comes with scikit-learn) or ``"mnist"`` (from data_dir)."""
    data_dir: str | None = dataclasses.field(default=None, metadata={"hash": False})
    """Where MNIST lies; None reads the environment variable JAXOPT_PDE_DATA."""
    widths: tuple[int, ...] = (32, 32)
    """Hidden layers of the network."""
    num_train: int = 1000
    """Training images, the same for all solutions."""
    num_validation: int = 300
    """Images for choosing the learning rates."""
    num_test: int = 497
    """Test images; digits has 1,797 in all."""
    random_labels: float = 0.0
    """Share of the training labels that are drawn anew, uniformly."""
    num_seeds: int = 5
    """Replicas: initial weights and minibatches, the same for every method and rate."""
    num_gradients: int = 2000
    """Minibatch gradients that each training spends; a multiple of those of an update (20 and 40 for Entropy-SGD)."""
    batch_size: int = 50
    """Examples in a minibatch, drawn with replacement."""
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    """The grid, the same for every method; the inner learning rate for Entropy-SGD."""
    temperature: float = 1e-6
    """Entropy-SGD: temperature T, in units of the loss."""
    time_per_rate: float = 50.0
    """Entropy-SGD: smoothing time t over the inner learning rate."""
    seed: int = 0
    """Of everything random."""


Batch = tuple[jax.Array, jax.Array]


class Task(NamedTuple):
    """The data and the loss.

    Attributes:
        train: images [n, h, w, 1] in [0, 1] and labels [n], some of them random if the config says so.
        validation: images and true labels.
        test: images and true labels.
        loss: ``(params, (images, labels)) -> mean cross-entropy``.
        error: ``(params, (images, labels)) -> share misclassified``.
        init: ``key -> params``.
        unravel: weights [P] -> params; every leaf float32.
        note: what figures call the data.
    """

    train: Batch
    validation: Batch
    test: Batch
    loss: Callable[[Any, Batch], jax.Array]
    error: Callable[[Any, Batch], jax.Array]
    init: Callable[[jax.Array], Any]
    unravel: Callable[[jax.Array], Any]
    note: str


class Solutions(NamedTuple):
    """What the trainings ended in, arrays on the host.

    Attributes:
        weights: [method, rate, seed, P] float32, in the order of ``jax.flatten_util.ravel_pytree``.
        start: [seed, P], the initial weights.
        train_loss: [method, rate, seed], of the whole training set.
        train_error: the same shape, a share of it.
        validation_error: the same shape.
        test_loss: the same shape.
        test_error: the same shape.
    """

    weights: np.ndarray
    start: np.ndarray
    train_loss: np.ndarray
    train_error: np.ndarray
    validation_error: np.ndarray
    test_loss: np.ndarray
    test_error: np.ndarray


def make_task(config: Training) -> Task:
    """Draws the split and the random labels, and makes the network.

    Raises:
        ValueError: an unknown data set, more images than it has, a share of random labels outside [0, 1).
    """
    _validate.check_choice("dataset", config.dataset, ("digits", "mnist"))
    _validate.check_fraction("random_labels", config.random_labels)
    if config.dataset == "digits":
        data = _datasets.digits(validation=0.0, test=0.0).as_float()
    else:
        data = _datasets.mnist(config.data_dir).as_float()
    sizes = (config.num_train, config.num_validation, config.num_test)
    if sum(sizes) > len(data.train_labels):
        have = len(data.train_labels)
        msg = f"num_train, num_validation, num_test = {sizes} are more images than {data.note} has, {have}."
        raise ValueError(msg)
    split, noise = jax.random.split(_run.key_for(config.seed, "data"))
    order = np.asarray(jax.random.permutation(split, len(data.train_labels)))
    images, labels = data.train_images[order], data.train_labels[order]
    ends = np.cumsum((0, *sizes))
    parts = [(jnp.asarray(images[a:b]), jnp.asarray(labels[a:b])) for a, b in itertools.pairwise(ends)]
    drawn = jax.random.randint(noise, (2, config.num_train), 0, 10 * config.num_train)
    replaced = drawn[0] < config.random_labels * 10 * config.num_train
    parts[0] = (parts[0][0], jnp.where(replaced, drawn[1] % 10, parts[0][1]))
    network = MLP(config.widths)

    def loss(params, batch):
        logits = network.apply({"params": params}, batch[0], train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def error(params, batch):
        logits = network.apply({"params": params}, batch[0], train=False)
        return jnp.mean(logits.argmax(-1) != batch[1])

    init = lambda key: network.init(key, parts[0][0][:1], train=False)["params"]
    example = jax.eval_shape(init, jax.random.key(0))
    _, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), example))
    return Task(*parts, loss, error, init, unravel, data.note)


def train(config: Training, task: Task, session: _run.Session = _run.NULL_SESSION) -> Solutions:
    """Trains every method at every rate and seed, batched, one program a method.

    Raises:
        ValueError: ``num_gradients`` is not a whole number of updates of a method.
    """
    methods = _methods.compared(
        config.methods,
        num_gradients=config.num_gradients,
        temperature=config.temperature,
        time_per_rate=config.time_per_rate,
    )
    for method in methods:
        if config.num_gradients % method.gradients_per_update:
            msg = (
                f"num_gradients={config.num_gradients} must be a multiple of the {method.gradients_per_update} "
                f"gradients of an update of {method.name}."
            )
            raise ValueError(msg)

    @jax.jit
    @jax.vmap
    def draw(index):
        weights, order = jax.random.split(jax.random.fold_in(_run.key_for(config.seed, "replica"), index))
        shape = (config.num_gradients, config.batch_size)
        return task.init(weights), jax.random.randint(order, shape, 0, config.num_train)

    starts, minibatches = draw(jnp.arange(config.num_seeds))
    ravel = jax.vmap(lambda params: jax.flatten_util.ravel_pytree(params)[0])
    with session.progress("training", len(methods)) as meter:
        stages = []
        for method in methods:
            name = f"training, {method.name}"
            solve = functools.partial(_solve, config, task, method, starts, minibatches, session.within(name))
            stages.append(session.stage(name, solve))
            meter.advance(train_loss=float(stages[-1]["train_loss"].min()))
    stacked = {name: np.stack([stage[name] for stage in stages]) for name in stages[0]}
    return Solutions(start=np.asarray(ravel(starts)), **stacked)


def _solve(
    config: Training, task: Task, method: _methods.Method, starts, minibatches, session: _run.Session
) -> _run.Arrays:
    gradient = jax.grad(task.loss)

    def advance(number, state, rate, order, train):
        batch_of = lambda n: jax.tree.map(lambda leaf: leaf[order[n]], train)
        step = lambda _, state: _methods.update(method, gradient, state, rate, batch_of)
        return jax.lax.fori_loop(0, number, step, state)

    def found(state, train, validation, test):
        params = state.evaluated
        return {
            "weights": jax.flatten_util.ravel_pytree(params)[0],
            "train_loss": task.loss(params, train),
            "train_error": task.error(params, train),
            "validation_error": task.error(params, validation),
            "test_loss": task.loss(params, test),
            "test_error": task.error(params, test),
        }

    def of_both(function, of_rates, of_seeds):
        return jax.jit(jax.vmap(jax.vmap(function, of_seeds), of_rates))

    rates = jnp.asarray(config.learning_rates, jnp.float32)
    start = functools.partial(_methods.start, method)
    states = of_both(start, (0, None), (None, 0))(rates, starts)
    advance = of_both(advance, (None, 0, 0, None, None), (None, 0, None, 0, None))
    updates = config.num_gradients // method.gradients_per_update
    numbers = np.diff(np.linspace(0, updates, PIECES + 1).astype(np.int32))

    def body(states, index):
        return advance(numbers[index], states, rates, minibatches, task.train), {}

    states, _ = session.scan("updates", body, states, PIECES)
    data = (task.train, task.validation, task.test)
    return jax.device_get(of_both(found, (0, None, None, None), (0, None, None, None))(states, *data))


def chosen(config: Training, solutions: Solutions) -> tuple[Solutions, np.ndarray]:
    """Each method's solutions at its rate of least mean validation error, axes [method, seed, …]; and those rates."""
    best = solutions.validation_error.mean(-1).argmin(-1)
    method = np.arange(len(best))
    picked = {
        name: value if name == "start" else value[method, best] for name, value in solutions._asdict().items()
    }
    return Solutions(**picked), np.array(config.learning_rates)[best]
