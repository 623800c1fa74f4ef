"""Six optimisers on real handwritten digits, at equal numbers of gradients.

scikit-learn's 1,797 digits (8 × 8 pixels, nothing is downloaded), a small convolutional network, minibatches of
64. Every method spends the same number of minibatch gradients; SAM takes two of them for a step, Entropy-SGD
takes L·K, the steps of its inner loop times its chains. Learning rates come from one grid for all methods, each
method's own by its validation error; test errors are reported for that rate only. The n-th gradient of a seed
uses the same minibatch in every method. All seeds and rates run batched in one program per method.

What is compared: SGD with Nesterov momentum 0.9, its learning rate decayed by a cosine to 0; Adam with the same
decay; SAM over that SGD with radius 0.05 (``optax.contrib.sam``); SGD with a constant rate, evaluated at an
exponential average of its weights; Entropy-SGD with one chain and with four, whose outer step ``h = t`` moves the
weights to the mean of the particles.
"""

import dataclasses
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn
from scipy import stats

from experiments import _datasets, _methods, _run
from experiments._methods import Method
from jaxopt_pde.models import Conv, max_pool


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run; the defaults give the README's table."""

    methods: tuple[str, ...] = _methods.METHODS
    """Which methods to run."""
    seed: int = 0
    """Seeds the split of the data; with its index, every replica's initial weights and minibatches."""
    num_seeds: int = 5
    """Replicas: initial weights and minibatch orders."""
    num_gradients: int = 960
    """Minibatch gradients that each run spends, a multiple of report_every."""
    report_every: int = 40
    """Gradients between two points of the curves; a multiple of 2 and of both products L·K."""
    batch_size: int = 64
    """Examples in a minibatch, drawn with replacement."""
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    """The grid, the same for every method; the inner learning rate for Entropy-SGD."""
    width: int = 8
    """Channels of the first convolution; the second has twice as many."""
    num_steps: tuple[int, int] = (20, 10)
    """Entropy-SGD: inner steps L with one chain, and with four."""
    temperature: float = 1e-6
    """Entropy-SGD: temperature T, in units of the loss."""
    inner_momentum: float = 0.9
    """Entropy-SGD: heavy ball m of the inner steps, as in the baselines; the effective inner step is ε/(1 − m)."""
    time_per_rate: float = 50.0
    """Entropy-SGD: smoothing time t over ε, from the rule L ≈ 2 to 4 times t (1 − m)/ε."""


NOT_REPRODUCIBLE = ("seconds",)

SMOKE = Config(
    methods=("SAM", "Entropy-SGD, K = 4"),
    num_seeds=2,
    num_gradients=80,
    learning_rates=(0.03, 0.1),
    width=4,
)


class Network(nn.Module):
    """Two 3 × 3 convolutions with pooling and a linear layer: logits of [batch, 8, 8, 1] images."""

    width: int

    @nn.compact
    def __call__(self, images):
        """Logits [batch, 10]."""
        hidden = max_pool(nn.relu(Conv(self.width, (3, 3))(images)), (2, 2))
        hidden = max_pool(nn.relu(Conv(2 * self.width, (3, 3))(hidden)), (2, 2))
        return nn.Dense(10)(hidden.reshape(len(hidden), -1))


def methods(config: Config) -> list[Method]:
    """The methods compared, with everything fixed but the learning rate.

    Raises:
        ValueError: for an unknown name in ``config.methods``.
    """
    fixed = ("num_gradients", "temperature", "inner_momentum", "time_per_rate", "num_steps")
    return _methods.compared(config.methods, **{name: getattr(config, name) for name in fixed})


def loss(network: Network, params, images, labels):
    """Mean cross-entropy."""
    logits = network.apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def error(network: Network, params, images, labels):
    """Share of images whose largest logit is not their label's."""
    return jnp.mean(network.apply(params, images).argmax(-1) != labels)


class Replicas(NamedTuple):
    """What all methods share.

    Attributes:
        params: initial weights, a leading axis of seeds on every leaf.
        minibatches: [seed, gradient, batch_size], indices of training images.
        train, validation, test: images and labels.
    """

    params: Any
    minibatches: jax.Array
    train: tuple[jax.Array, jax.Array]
    validation: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]


def make_replicas(network: Network, config: Config) -> Replicas:
    """Draws the split, the initial weights and the minibatches."""
    data = _datasets.digits(validation=0.2, test=0.3, seed=config.seed)
    parts = {
        part: (jnp.asarray(getattr(data, f"{part}_images")), jnp.asarray(getattr(data, f"{part}_labels")))
        for part in ("train", "validation", "test")
    }
    images, labels = parts["train"]

    @jax.jit
    @jax.vmap
    def draw(index):
        weights, order = jax.random.split(jax.random.fold_in(_run.key_for(config.seed, "replica"), index))
        shape = (config.num_gradients, config.batch_size)
        return network.init(weights, images[:1]), jax.random.randint(order, shape, 0, len(labels))

    return Replicas(*draw(jnp.arange(config.num_seeds)), **parts)


def make_update(method: Method, network: Network):
    """One update of one replica: ``(state, rate, minibatches, train) -> state``."""
    gradient = jax.grad(lambda params, batch: loss(network, params, *batch))

    def update(state, rate, minibatches, train):
        batch_of = lambda n: (train[0][minibatches[n]], train[1][minibatches[n]])
        return _methods.update(method, gradient, state, rate, batch_of)

    return update


def train(method: Method, network: Network, replicas: Replicas, config: Config, session) -> _run.Arrays:
    """All learning rates and seeds of a method in one batched program: curves [report, rate, seed] and seconds."""
    update = make_update(method, network)
    num_reports = config.num_gradients // config.report_every

    def advance(state, rate, minibatches, train, validation, test):
        step = lambda state, _: (update(state, rate, minibatches, train), None)
        state, _ = jax.lax.scan(step, state, length=config.report_every // method.gradients_per_update)
        params = state.evaluated
        return state, {
            "train_loss": loss(network, params, *train),
            "validation_error": error(network, params, *validation),
            "test_error": error(network, params, *test),
        }

    rates = jnp.asarray(config.learning_rates, jnp.float32)
    start = functools.partial(_methods.start, method)
    state = jax.jit(jax.vmap(jax.vmap(start, (None, 0)), (0, None)))(rates, replicas.params)
    over_seeds = jax.vmap(advance, (0, None, 0, None, None, None))
    over_both = jax.vmap(over_seeds, (0, 0, None, None, None, None))
    arguments = (rates, *replicas[1:])
    compiled = jax.jit(over_both, donate_argnums=0).lower(state, *arguments).compile()

    with session.progress(method.name, config.num_gradients) as meter:

        def body(state, _):
            begin = time.perf_counter()
            state, report = jax.block_until_ready(compiled(state, *arguments))
            seconds = time.perf_counter() - begin
            report = jax.device_get(report)
            meter.advance(
                config.report_every, validation_error=float(report["validation_error"].mean(1).min())
            )
            return state, report | {"seconds": np.float64(seconds)}

        return session.scan(method.name, body, state, num_reports)[1]


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Trains every method at every rate and seed; curves are [method, report, rate, seed].

    Raises:
        ValueError: if ``num_gradients`` or ``report_every`` does not divide into whole updates.
    """
    compared = methods(config)
    for method in compared:
        if config.num_gradients % config.report_every or config.report_every % method.gradients_per_update:
            msg = (
                f"report_every={config.report_every} must divide num_gradients={config.num_gradients} and be a "
                f"multiple of the {method.gradients_per_update} gradients of an update of {method.name}."
            )
            raise ValueError(msg)
    network = Network(config.width)
    replicas = make_replicas(network, config)
    curves = [train(method, network, replicas, config, session) for method in compared]
    reports = config.num_gradients // config.report_every
    return {
        "method": np.array([method.name for method in compared]),
        "rate": np.array(config.learning_rates),
        "gradients": config.report_every * np.arange(1, reports + 1),
        **{name: np.stack([curve[name] for curve in curves]) for name in curves[0]},
    }


def chosen(results: _run.Arrays, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Each method's curves of ``name`` at its best rate by final validation error [method, report, seed]; the rates."""
    best = results["validation_error"][:, -1].mean(axis=-1).argmin(axis=-1)
    return results[name][np.arange(len(best)), :, best], results["rate"][best]


def interval(samples: np.ndarray) -> np.ndarray:
    """Half-width of the 95 % confidence interval of the mean over the last axis (Student's t)."""
    count = samples.shape[-1]
    return stats.t.ppf(0.975, count - 1) * samples.std(axis=-1, ddof=1) / np.sqrt(count)


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Final errors, losses and costs at the chosen rates."""
    test, rates = chosen(results, "test_error")
    validation, _ = chosen(results, "validation_error")
    train_loss, _ = chosen(results, "train_loss")
    seconds = results["seconds"].sum(axis=-1)
    runs = results["rate"].size * test.shape[-1]
    headers = [
        "method", "rate", "test error %", "valid. error %", "train loss", "gradients", f"seconds, {runs} runs"
    ]  # fmt: skip
    rows = [
        [
            str(method),
            f"{rates[m]:g}",
            f"{100 * test[m, -1].mean():.2f} ± {100 * interval(test[m, -1]):.2f}",
            f"{100 * validation[m, -1].mean():.2f} ± {100 * interval(validation[m, -1]):.2f}",
            f"{train_loss[m, -1].mean():.4f}",
            f"{results['gradients'][-1]}",
            f"{seconds[m]:.1f}",
        ]
        for m, method in enumerate(results["method"])
    ]
    return headers, rows


def figure(results: _run.Arrays) -> plt.Figure:
    """Training loss and validation error against gradients, means and 95 % bands over the seeds."""
    colours = ["#4d4d4d", "#56b4e9", "#009e73", "#cc79a7", "#e69f00", "#d55e00"]  # Okabe & Ito
    panels = [("train_loss", "training loss (nats)", 1), ("validation_error", "validation error (%)", 100)]
    fig, axes = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    for axis, (name, label, unit) in zip(axes, panels, strict=True):
        curves, rates = chosen(results, name)
        for m, method in enumerate(results["method"]):
            mean, half = unit * curves[m].mean(axis=-1), unit * interval(curves[m])
            entropy = str(method).startswith("Entropy")
            line = {
                "color": colours[m],
                "linewidth": 2.2 if entropy else 1.4,
                "label": f"{method} ({rates[m]:g})",
            }
            axis.plot(results["gradients"], mean, **line)
            low = np.maximum(mean - half, mean / 10)  # a log axis has no 0
            axis.fill_between(
                results["gradients"], low, mean + half, color=colours[m], alpha=0.15, linewidth=0
            )
        axis.set(xlabel="minibatch gradients", ylabel=label, yscale="log", xlim=(0, results["gradients"][-1]))
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].yaxis.set_major_formatter("{x:g}")
    axes[1].yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if value in (2, 5, 20, 50) else "")
    fig.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9,
        title="method (learning rate chosen on the validation set)", title_fontsize=9,
    )  # fmt: skip
    return fig
