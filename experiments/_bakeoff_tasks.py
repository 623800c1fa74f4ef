"""What the bake-off trains: data, network, loss and error of each task."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments import _datasets, quickstart
from experiments._markov_language import CONTEXT, make_language
from experiments._mnist_1d import mnist_1d
from jaxopt_pde import _validate
from jaxopt_pde.models import recompute_batch_stats

__all__ = ["CharLSTM", "SmallCNN", "Spec", "Task", "make_task"]

ALPHABET, TEXT_LENGTH = 12, 33
SOURCES = ("digits", "mnist", "cifar10", "mnist-1d", "language")
EVALUATED_AT_ONCE = 500
STATISTICS_BATCHES = 8

Batch = tuple[jax.Array, jax.Array]


class SmallCNN(nn.Module):
    """Two 3 × 3 convolutions with pooling and a linear layer."""

    width: int

    @nn.compact
    def __call__(self, inputs, *, train):
        """Logits [batch, 10] of images."""
        del train
        return quickstart.Network(self.width)(inputs)


class CharLSTM(nn.Module):
    """LSTM layers over characters and a linear layer: logits of the next character at every place."""

    width: int
    num_layers: int = 1

    @nn.compact
    def __call__(self, inputs, *, train):
        """Logits [batch, length, alphabet] of texts [batch, length]."""
        del train
        hidden = jax.nn.one_hot(inputs, ALPHABET)
        for _ in range(self.num_layers):
            hidden = nn.RNN(nn.OptimizedLSTMCell(self.width))(hidden)
        return nn.Dense(ALPHABET)(hidden)


@dataclasses.dataclass(frozen=True)
class Spec:
    """A task of a preset."""

    title: str
    """What figures call it."""
    source: str
    """One of SOURCES."""
    network: nn.Module
    """Called with ``train=``; may have BatchNorm and dropout."""
    sizes: tuple[int, int, int]
    """Examples for training, validation and testing; 0 for all there are, testing only."""
    batch_size: int
    """Examples in a minibatch."""
    gradients: int
    """Minibatch gradients that each training spends."""
    milliseconds: float
    """Measured time of one of them, batched, on one core; 0 where not measured."""
    random_labels: float = 0.0
    """Share of the training labels that are drawn anew, uniformly; validation and test labels are true."""
    lanes: int = 6
    """Trainings that run batched; as many as memory allows."""
    published: str = ""
    """What published tables call the model."""


class Task(NamedTuple):
    """Data and functions.

    Attributes:
        name: in the preset.
        spec: where it comes from.
        train: inputs and labels, some random if the spec says so.
        validation: inputs and true labels.
        test: inputs and true labels.
        init: key -> weights.
        loss: (weights, batch, key) -> mean cross-entropy of the training network, nats.
        evaluate: (weights, (data, …)) -> losses and errors, one per data, of the network that is evaluated: its batch
            statistics are those of the training set at these weights, its dropout is off.
        unit: factor of the errors in tables and its name.
        chance: error of one who knows nothing, which stands for a run that diverged.
        floor: error that no method can go below.
        note: what the data are called.
    """

    name: str
    spec: Spec
    train: Batch
    validation: Batch
    test: Batch
    init: Callable[[jax.Array], Any]
    loss: Callable[[Any, Batch, jax.Array], jax.Array]
    evaluate: Callable[[Any, tuple[Batch, ...]], tuple[jax.Array, jax.Array]]
    unit: tuple[float, str]
    chance: float
    floor: float
    note: str


def _images(source: str, sizes: tuple[int, int, int], data_dir: str | None, task: str):
    """Training images and labels, test images and labels (none: taken from the training ones), and a note."""
    if source == "digits":
        data = _datasets.digits(validation=0.0, test=0.0)
    elif source == "mnist-1d":
        return *mnist_1d(sum(sizes)), None, None, "MNIST-1D (generated)"
    else:
        try:
            data = {"mnist": _datasets.mnist, "cifar10": _datasets.cifar10}[source](data_dir)
        except FileNotFoundError as error:
            msg = f"{error}\nOr leave the task out: --tasks with others than {task}."
            raise FileNotFoundError(msg) from error
    test = (data.test_images, data.test_labels) if len(data.test_labels) else (None, None)
    return data.train_images, data.train_labels, *test, data.note


def _split(spec: Spec, arrays, random: np.random.RandomState, name: str) -> list[Batch]:
    """Training, validation and test part, in random order; the last from the test images where there are some."""
    inputs, labels, test_inputs, test_labels = arrays
    num_train, num_validation, num_test = spec.sizes
    needed = num_train + num_validation + (num_test if test_inputs is None else 0)
    if needed > len(labels):
        msg = f"Task {name} wants {needed} training examples, {spec.source} has {len(labels)}."
        raise ValueError(msg)
    order = random.permutation(len(labels))
    scale = lambda part: part.astype(np.float32) / 255 if part.dtype == np.uint8 else part
    take = lambda chosen: (jnp.asarray(scale(inputs[chosen])), jnp.asarray(labels[chosen]))
    held = num_train + num_validation
    parts = [take(order[:num_train]), take(order[num_train:held])]
    if test_inputs is None:
        return [*parts, take(order[held : held + num_test])]
    chosen = slice(0, num_test or len(test_labels))
    return [*parts, (jnp.asarray(scale(test_inputs[chosen])), jnp.asarray(test_labels[chosen]))]


def _texts(spec: Spec, seed: int):
    """Texts and the characters that follow, and their entropy rate; the three parts are independent."""
    language = make_language(ALPHABET, seed=seed)
    drawn = [language.draw(size, TEXT_LENGTH, 3 * seed + n + 1) for n, size in enumerate(spec.sizes)]
    parts = [(jnp.asarray(texts[:, :-1]), jnp.asarray(texts[:, 1:])) for texts in drawn]
    return parts, language.entropy_rate


def make_task(name: str, spec: Spec, *, seed: int, data_dir: str | None = None) -> Task:
    """Loads or generates the data, splits them, draws random labels.

    Args:
        name: in the preset.
        spec: what to make.
        seed: of the split, of the random labels and of the language.
        data_dir: where MNIST and CIFAR-10 lie; None reads the environment variable JAXOPT_PDE_DATA.

    Raises:
        FileNotFoundError: the data are not there; says what was looked for and how to leave the task out.
        ValueError: an unknown source, more examples than there are, a share of random labels outside [0, 1).
    """
    _validate.check_choice("source", spec.source, SOURCES)
    _validate.check_fraction("random_labels", spec.random_labels)
    random = np.random.RandomState(
        [seed, zlib.crc32(spec.source.encode())]
    )  # the same split for a task's relatives
    if spec.source == "language":
        parts, floor = _texts(spec, seed)
        unit, chance, note = (1.0, "nats"), float(np.log(ALPHABET)), "Markov language (generated)"
    else:
        *arrays, note = _images(spec.source, spec.sizes, data_dir, name)
        parts, floor = _split(spec, arrays, random, name), 0.0
        unit, chance = (100.0, "%"), 0.9
    inputs, labels = parts[0]
    if spec.random_labels:
        replaced = random.rand(len(labels)) < spec.random_labels
        parts[0] = (inputs, jnp.where(replaced, random.randint(0, 10, len(labels)), labels))
    network, skipped = spec.network, CONTEXT - 1 if spec.source == "language" else 0

    def initial(key):
        return network.init(key, inputs[:1], train=False)

    has_statistics = "batch_stats" in jax.eval_shape(initial, jax.random.key(0))
    empty = jax.eval_shape(initial, jax.random.key(0)).get("batch_stats", {})

    def variables_of(params):
        stats = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), empty)
        return {"params": params, "batch_stats": stats} if has_statistics else {"params": params}

    def cross_entropy(logits, labels):
        # A text's first characters lack the context that the floor presumes.
        logits, labels = (logits[:, skipped:], labels[:, skipped:]) if skipped else (logits, labels)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    def loss(params, batch, key):
        logits, _ = network.apply(
            variables_of(params), batch[0], train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return cross_entropy(logits, batch[1]).mean()

    def evaluate(params, data):
        variables = variables_of(params)
        if has_statistics:
            count = min(STATISTICS_BATCHES, len(inputs) // spec.batch_size)
            batches = inputs[: count * spec.batch_size].reshape(count, spec.batch_size, *inputs.shape[1:])
            variables["batch_stats"] = recompute_batch_stats(network, variables, batches)
        means = [_mean_over(functools.partial(_measure, network, cross_entropy, variables), d) for d in data]
        losses, errors = jnp.array(means).T
        return losses, losses if spec.source == "language" else errors

    return Task(
        name, spec, *parts, lambda key: initial(key)["params"], loss, evaluate, unit, chance, floor, note
    )  # fmt: skip


def _measure(network, cross_entropy, variables, data: Batch):
    """Summed loss and summed misses of some examples, means over the places of a text."""
    logits = network.apply(variables, data[0], train=False)
    per_example = cross_entropy(logits, data[1]).reshape(len(data[1]), -1).mean(1)
    wrong = (logits.argmax(-1) != data[1]).reshape(len(data[1]), -1).mean(1)
    return jnp.stack([per_example.sum(), wrong.sum()])


def _mean_over(measure, data: Batch):
    """``measure`` over the number of examples, a part at a time: activations of all would not fit."""
    count = len(data[1])
    whole = count // EVALUATED_AT_ONCE * EVALUATED_AT_ONCE
    total = jnp.zeros(2)
    if whole:
        parts = jax.tree.map(lambda a: a[:whole].reshape(-1, EVALUATED_AT_ONCE, *a.shape[1:]), data)
        total = jax.lax.map(measure, parts).sum(0)
    if whole < count:
        total += measure(jax.tree.map(lambda a: a[whole:], data))
    return total / count
