"""The training protocol of the Entropy-SGD paper: its data, networks, step rules and schedules."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxopt_pde
from experiments import _datasets
from experiments._methods import Method
from jaxopt_pde import _validate
from jaxopt_pde.models import AllCNN, LeNet

__all__ = ["STEPS", "TASKS", "Data", "Protocol", "Spec", "fit_whitening", "load", "prepare", "protocol"]

STEPS = 20
"""L, inner steps of Entropy-SGD in the paper, and in the rule h = t."""

CONTRAST, RIDGE = 55.0, 0.1
"""Norm of an image after contrast normalisation, and what is added to the variances that whitening divides by."""

BLOCK = 5000
"""Images whose covariance is computed at once."""


class Spec(NamedTuple):
    """What the paper says of a model.

    Attributes:
        title: what figures call it.
        published: its name in the paper's table.
        source: name of a data set in ``_datasets``.
        updates: of Entropy-SGD in the paper's training, after each of which γ grows by 1.001.
        methods: that can train it; the last is the paper's baseline.
        drops: shares of Entropy-SGD's training after which its outer rate falls, and by what factor.
        scope: γ at the start.
        noise: ε of the paper.
        dropout: rates of the hidden layers, of Entropy-SGD and of the baseline.
        weight_decay: λ in λ|x|²/2.
    """

    title: str
    published: str
    source: str
    updates: int
    methods: tuple[str, ...]
    drops: tuple[tuple[float, ...], float]
    scope: float
    noise: float
    dropout: tuple[float, float]
    weight_decay: float


OURS = "Entropy-SGD, h = t"
_LENET = Spec(
    "LeNet, MNIST", "LeNet", "mnist", 5 * 469, ("Entropy-SGD", OURS, "Adam, dropout 0.25", "Adam"),
    ((0.4,), 10.0), 1e-4, 1e-3, (0.25, 0.5), 0.0,
)  # fmt: skip
TASKS = {
    "lenet": _LENET,
    "allcnn": Spec(
        "All-CNN, CIFAR-10", "All-CNN", "cifar10", 10 * 391, ("Entropy-SGD", OURS, "SGD"),
        ((0.4, 0.8), 5.0), 0.03, 1e-4, (0.5, 0.5), 1e-3,
    ),
    "digits": _LENET._replace(title="small LeNet, digits", published="", source="digits"),
}  # fmt: skip
"""By the name on the command line; ``digits`` has the protocol of LeNet on images that need no file."""


class Data(NamedTuple):
    """Images uint8 [n, h, w, c] and labels, on the device.

    Attributes:
        train, test: images and labels; the training images are in random order.
        whitening: None, or mean [d] and matrix [d, d] of an image of d numbers.
        note: what the data are called.
    """

    train: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]
    whitening: tuple[jax.Array, jax.Array] | None
    note: str


def load(spec: Spec, *, num_train: int | None, whiten: bool, seed: int, data_dir: str | None) -> Data:
    """Reads a data set and shuffles its training images.

    Args:
        spec: whose.
        num_train: how many of the training images; None for all.
        whiten: whether images are contrast-normalised and whitened, as these training images say.
        seed: of the order, so of the choice.
        data_dir: where MNIST and CIFAR-10 lie; None reads the environment variable JAXOPT_PDE_DATA.

    Raises:
        FileNotFoundError: the data are not there; says what was looked for and where.
        ValueError: more training images asked for than there are.
    """
    if spec.source == "digits":  # 24 x 24 pixels as bytes, like the others: LeNet needs 22 x 22
        data = _datasets.digits(validation=0.0, test=0.3)
        magnify = lambda images: np.rint(255 * images.repeat(3, 1).repeat(3, 2)).astype(np.uint8)
        train, test = magnify(data.train_images), magnify(data.test_images)
    else:
        data = getattr(_datasets, spec.source)(data_dir)
        train, test = data.train_images, data.test_images
    count = len(train) if num_train is None else num_train
    if count > len(train):
        msg = f"num_train must be at most {len(train)}, the training images of {data.note}, got {num_train}."
        raise ValueError(msg)
    order = np.random.RandomState(seed).permutation(len(train))[:count]
    put = lambda images, labels: (jnp.asarray(images), jnp.asarray(labels))
    whitening = put(*fit_whitening(train[order])) if whiten else None
    return Data(
        put(train[order], data.train_labels[order]), put(test, data.test_labels), whitening, data.note
    )


def _normalise_contrast(flat):
    """Mean 0 and norm CONTRAST for every image [n, d]; NumPy or JAX."""
    centred = flat - flat.mean(1, keepdims=True)
    return centred * (CONTRAST / ((centred**2).sum(1, keepdims=True) ** 0.5 + 1e-8))


def fit_whitening(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean m and matrix W = (C + 0.1 I)^(-1/2) of ZCA, C the covariance of contrast-normalised images.

    Args:
        images: [n, h, w, c]; of n < d = h·w·c images only the n principal axes are computed.

    Returns:
        m [d], W [d, d], float32; a white image is (x − m) W.
    """
    count, size = len(images), images[0].size
    normalised = lambda part: _normalise_contrast(part.reshape(len(part), -1).astype(np.float32))
    if count < size:
        flat = normalised(images)
        mean = flat.mean(0)
        _, spreads, axes = np.linalg.svd(flat - mean, full_matrices=False)
        variances, axes = spreads**2 / count, axes.T
    else:  # as float32 all images of CIFAR-10 have 614 MB, so a part at a time
        total, products = np.zeros(size), np.zeros((size, size))
        for first in range(0, count, BLOCK):
            flat = normalised(images[first : first + BLOCK])
            total += flat.sum(0)
            products += flat.T @ flat
        mean = total / count
        variances, axes = np.linalg.eigh(products / count - np.outer(mean, mean))
    gains = 1 / np.sqrt(np.maximum(variances, 0) + RIDGE) - 1 / np.sqrt(RIDGE)
    matrix = np.eye(size) / np.sqrt(RIDGE) + (axes * gains) @ axes.T
    return mean.astype(np.float32), matrix.astype(np.float32)


def prepare(images: jax.Array, whitening: tuple[jax.Array, jax.Array] | None) -> jax.Array:
    """What the network sees of a batch of bytes: x/255, or white images."""
    inputs = images.astype(jnp.float32)
    if whitening is None:
        return inputs / 255
    mean, matrix = whitening
    flat = _normalise_contrast(inputs.reshape(len(inputs), -1))
    return ((flat - mean[None]) @ matrix).reshape(inputs.shape)


class Protocol(NamedTuple):
    """How a method trains a model.

    Attributes:
        build: key of the method's noise -> method of the comparison.
        rate: its learning rate, the inner one for Entropy-SGD.
        network: with its dropout.
    """

    build: Callable[[Any], Method]
    rate: float
    network: nn.Module


def protocol(
    spec: Spec, name: str, gradients: int, inner_rate: float, widths: tuple[int, int] | None
) -> Protocol:
    """Step rule and schedules of a method; what falls after a share of the paper's training does so of this one.

    ``"Entropy-SGD"`` has every constant of the paper: h = η t with t = 1/γ, γ growing by 1.001^(share of the
    training × the paper's updates), averaging 1 − α = 0.25, T = ε²/2, and momentum 0.9 in both loops. The library's
    inner momentum is a heavy ball and amplifies the pull to x as much as the loss. In the authors' code it
    amplifies the loss alone, the mean's weights are the other way round, and its Python version never lets γ grow.
    ``"Entropy-SGD, h = t"`` moves the weights to the mean of the particles, without outer momentum, while the inner
    rate ε decays by a cosine; t = 50 ε = (L/4) ε/(1 − 0.9). Adam and SGD have the paper's rates.

    Args:
        spec: of the model.
        name: one of ``spec.methods``.
        gradients: that the training spends.
        inner_rate: ε at the start, for h = t.
        widths: channels of the network; None for the paper's.

    Raises:
        ValueError: for another name.
    """
    _validate.check_choice("methods", name, spec.methods)
    share = lambda count: count / gradients
    # Every 30 of 100 epochs, every 60 of 200.
    thirds = lambda count: _falling(share(count), (0.3, 0.6, 0.9), 5.0)

    def adam(rate):
        return optax.adam(lambda count: rate * thirds(count))

    def sgd(rate):
        return optax.sgd(lambda count: rate * thirds(count), momentum=0.9, nesterov=True)

    def papers(rate, key):
        time = lambda count: 1 / (spec.scope * 1.001 ** (share(STEPS * count) * spec.updates))
        return jaxopt_pde.entropy_sgd(
            lambda count: _falling(share(STEPS * count), *spec.drops) * time(count),
            time,
            rate,
            momentum=0.9,
            nesterov=True,
            temperature=spec.noise**2 / 2,
            num_steps=STEPS,
            averaging=0.25,
            inner_momentum=0.9,
            noise="gaussian",
            key=key,
        )

    def ours(rate, key):
        decayed = lambda count: rate * optax.cosine_decay_schedule(1.0, gradients // STEPS)(count)
        time = lambda count: 50 * decayed(count)
        return jaxopt_pde.entropy_sgd(time, time, decayed, num_steps=STEPS, inner_momentum=0.9, key=key)

    dropout = spec.dropout[name == spec.methods[-1]]
    if spec.source == "cifar10":
        network = AllCNN(widths=widths or AllCNN.widths, dropout_rate=dropout)
    else:
        channels = widths or LeNet.channels
        network = LeNet(channels=channels, hidden=10 * channels[1], dropout_rate=dropout)
    if name.startswith("Entropy-SGD"):
        make, rate = (ours, inner_rate) if name == OURS else (papers, 0.1)
        build = lambda key: Method(name, functools.partial(make, key=key), STEPS)
    else:
        make, rate = (sgd, 0.1) if name == "SGD" else (adam, 1e-3)
        build = lambda key: Method(name, make)
    return Protocol(build, rate, network)


def _falling(share, drops: tuple[float, ...], factor: float):
    """One, divided by ``factor`` after each of these shares."""
    return factor ** -jnp.sum(share >= jnp.asarray(drops)).astype(jnp.float32)
