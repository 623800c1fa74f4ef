"""Space-adaptive learning rates on a network, against tuned schedules.

scikit-learn's 1,797 digits, a multilayer perceptron, minibatches of 32 and the same number of them for every method:
the rules that can be run where neither f* nor the strong convexity is known. These are the space-adaptive rate with
f_min = 0, of single minibatches and of running means; the same with an online target level for f*; and the
signal-to-noise rule from the two halves of each minibatch. Against them stand SGD with a constant rate and with one
that falls to 0 as a cosine, with and without momentum, and Adam, also with a cosine.

Each method has one number from the same grid, chosen by its validation error at the end: the learning rate, the
greatest step of the space-adaptive rate, 1/L of the signal-to-noise rule. Test errors are reported for that number
only. Look at the step sizes on the right: the network can fit its data, and at the chosen number the space-adaptive
rate sits at the greatest step allowed from first to last. It is SGD with a constant rate, no
better and no worse, except that the rule of single minibatches bears twice the rate before it diverges. The target
level lowers the step about as a cosine does; the signal-to-noise rule lowers it too early and loses. So nothing is
saved: in the last panel, the error against the number that is tuned, all have the same kind of valley, and momentum
lowers the training loss by more than any rule for the rate does.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn

import jaxopt_pde
from experiments import _run
from experiments.quickstart import chosen, error, interval, loss, make_replicas
from experiments.relaxation_1d import spread_out
from jaxopt_pde import _validate


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run; the defaults give the figure of the gallery."""

    methods: tuple[str, ...] = (
        "SGD, constant", "SGD, cosine", "momentum, cosine", "Adam, cosine",
        "SALR, one minibatch", "SALR, running means", "SALR, target level", "signal-to-noise",
    )  # fmt: skip
    """Which methods to run."""
    seed: int = 0
    """Seeds the split of the data; with its index, every replica's initial weights and minibatches."""
    num_seeds: int = 12
    """Replicas: initial weights and minibatch orders."""
    num_gradients: int = 1200
    """Minibatch gradients that each run spends, a multiple of report_every."""
    report_every: int = 40
    """Gradients between two points of the curves."""
    batch_size: int = 32
    """Examples in a minibatch, drawn with replacement; even, its halves give signal and noise."""
    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
    """The grid, the same for every method."""
    width: int = 32
    """Hidden units."""
    target_gap: float = 2.3
    """First gap of the target level, about the loss of a network that knows nothing, log 10."""


NOT_REPRODUCIBLE = ("seconds",)

SMOKE = Config(methods=("signal-to-noise",), num_seeds=2, num_gradients=80, rates=(0.1, 1.0), width=8)


class Network(nn.Module):
    """One hidden layer: logits of [batch, 8, 8, 1] images."""

    width: int

    @nn.compact
    def __call__(self, images):
        """Logits [batch, 10]."""
        return nn.Dense(10)(nn.relu(nn.Dense(self.width)(images.reshape(len(images), -1))))


class Method(NamedTuple):
    """``make(rate)`` gives the optimiser, ``step(rate, count, state)`` the size of its last step."""

    make: Callable[[Any], optax.GradientTransformation]
    step: Callable[[Any, Any, Any], Any]


def methods(config: Config) -> dict[str, Method]:
    """The methods compared, with everything fixed but the one number."""
    cosine = optax.cosine_decay_schedule(1.0, config.num_gradients)
    falling = lambda rate: lambda count: rate * cosine(count)
    scheduled = lambda rate, count, state: rate * cosine(count)
    taken = lambda rate, count, state: optax.tree.get(state, "learning_rate")
    salr = lambda estimator: (
        lambda rate: jaxopt_pde.space_adaptive_sgd(max_learning_rate=rate, estimator=estimator)
    )
    noisy = lambda rate: optax.chain(jaxopt_pde.scale_by_signal_to_noise(1 / rate), optax.scale(-1.0))
    known = {
        "SGD, constant": Method(optax.sgd, lambda rate, count, state: rate),
        "SGD, cosine": Method(lambda rate: optax.sgd(falling(rate)), scheduled),
        "momentum, cosine": Method(lambda rate: optax.sgd(falling(rate), 0.9, nesterov=True), scheduled),
        "Adam, cosine": Method(lambda rate: optax.adam(falling(rate)), scheduled),
        "SALR, one minibatch": Method(salr("instantaneous"), taken),
        "SALR, running means": Method(salr("ema"), taken),
        "SALR, target level": Method(
            lambda rate: jaxopt_pde.target_level(salr("ema")(rate), config.target_gap), taken
        ),
        "signal-to-noise": Method(noisy, taken),
    }
    for name in config.methods:
        _validate.check_choice("methods", name, tuple(known))
    return {name: known[name] for name in config.methods}


def train(name: str, method: Method, network, replicas, config: Config, session) -> _run.Arrays:
    """All rates and seeds of a method in one batched program: curves [report, rate, seed] and seconds."""
    value_and_gradient = jax.value_and_grad(functools.partial(loss, network))
    halves = jax.vmap(value_and_gradient, (None, 0, 0))

    def start(rate, params):
        return params, method.make(rate).init(params), jnp.zeros([], jnp.int32)

    def advance(state, rate, minibatches, train, validation, test):
        tx = optax.with_extra_args_support(method.make(rate))

        def update(state, _):
            params, opt_state, count = state
            chosen = minibatches[count].reshape(2, -1)
            values, parts = halves(params, train[0][chosen], train[1][chosen])
            gradient = jax.tree.map(lambda part: part.mean(0), parts)
            extra = {"value": values.mean(), "microbatch_gradients": parts}
            updates, opt_state = tx.update(gradient, opt_state, params, **extra)
            step = jnp.asarray(method.step(rate, count, opt_state), jnp.float32)
            return (optax.apply_updates(params, updates), opt_state, count + 1), step

        state, steps = jax.lax.scan(update, state, length=config.report_every)
        params = state[0]
        return state, {
            "train_loss": loss(network, params, *train),
            "validation_error": error(network, params, *validation),
            "test_error": error(network, params, *test),
            "step": steps.mean(),
        }

    rates = jnp.asarray(config.rates, jnp.float32)
    state = jax.jit(jax.vmap(jax.vmap(start, (None, 0)), (0, None)))(rates, replicas.params)
    over_both = jax.vmap(jax.vmap(advance, (0, None, 0, None, None, None)), (0, 0, None, None, None, None))
    arguments = (rates, *replicas[1:])
    compiled = jax.jit(over_both, donate_argnums=0).lower(state, *arguments).compile()

    def body(state, _):
        begin = time.perf_counter()
        state, report = jax.block_until_ready(compiled(state, *arguments))
        return state, jax.device_get(report) | {"seconds": np.float64(time.perf_counter() - begin)}

    return session.scan(name, body, state, config.num_gradients // config.report_every)[1]


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Trains every method at every rate and seed; curves are [method, report, rate, seed]."""
    compared = methods(config)
    if config.num_gradients % config.report_every or config.batch_size % 2:
        msg = (
            f"report_every={config.report_every} must divide num_gradients={config.num_gradients}, and "
            f"batch_size={config.batch_size} be even."
        )
        raise ValueError(msg)
    network = Network(config.width)
    replicas = make_replicas(network, config)
    curves = []
    with session.progress("methods", len(compared)) as meter:
        for name, method in compared.items():
            curves.append(train(name, method, network, replicas, config, session))
            meter.advance()
    reports = config.num_gradients // config.report_every
    return {
        "method": np.array(list(compared)),
        "rate": np.array(config.rates),
        "gradients": config.report_every * np.arange(1, reports + 1),
        # A run that diverged guesses: error 0.9, loss clipped.
        **{key: np.stack([np.nan_to_num(c[key], nan=1e3, posinf=1e3) for c in curves]) for key in curves[0]},
    }


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Final errors and losses at the chosen rates, and how many of the grid do within one point of the best."""
    headers = [
        "method", "rate", "test error %", "valid. error %", "train loss", "last step", "rates within 1 %",
        f"seconds, {results['rate'].size * results['test_error'].shape[-1]} runs",
    ]  # fmt: skip
    quantities = ("test_error", "validation_error", "train_loss", "step")
    test, validation, train_loss, step = (chosen(results, name)[0][:, -1] for name in quantities)
    rates = chosen(results, "test_error")[1]
    everywhere = results["validation_error"][:, -1].mean(axis=-1)
    near = (everywhere <= everywhere.min(axis=1, keepdims=True) + 0.01).sum(axis=1)
    percent = lambda errors: f"{100 * errors.mean():.2f} ± {100 * interval(errors):.2f}"
    rows = [
        [
            str(method),
            f"{rates[m]:g}",
            percent(test[m]),
            percent(validation[m]),
            f"{train_loss[m].mean():.1e}",
            f"{step[m].mean():.2g}",
            f"{near[m]} of {results['rate'].size}",
            f"{results['seconds'][m].sum():.1f}",
        ]
        for m, method in enumerate(results["method"])
    ]
    return headers, rows


COLOURS = {
    "SGD, constant": "#999999", "SGD, cosine": "#000000", "momentum, cosine": "#0072b2", "Adam, cosine": "#56b4e9",
    "SALR, one minibatch": "#e69f00", "SALR, running means": "#d55e00", "SALR, target level": "#cc79a7",
    "signal-to-noise": "#009e73",
}  # fmt: skip


def figure(results: _run.Arrays) -> plt.Figure:
    """Training loss, step size and validation error along training at the chosen rates; error against the rate."""
    style = {"font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        fig, axes = plt.subplots(2, 2, figsize=(12.6, 7.8), layout="constrained")
        fig.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
        draw_curves(axes[0, 0], results, "train_loss", 1)
        axes[0, 0].set(ylabel="training loss   [nats]", title="training loss at the chosen rate")
        draw_curves(axes[0, 1], results, "step", 1)
        axes[0, 1].set(
            ylabel="step size h   [param²/loss], Adam’s in [param]", title="step size at the chosen rate"
        )
        draw_curves(axes[1, 0], results, "validation_error", 100)
        axes[1, 0].set(ylabel="validation error   [%]", title="validation error at the chosen rate")
        draw_rates(axes[1, 1], results)
    return fig


def draw_curves(axis, results: _run.Arrays, quantity: str, unit: float) -> None:
    """Means over the seeds with 95 % bands, names at the ends."""
    curves = unit * chosen(results, quantity)[0]
    count = results["gradients"]
    for curve, method in zip(curves, results["method"], strict=True):
        mean, half = curve.mean(axis=-1), interval(curve)
        axis.plot(count, mean, color=COLOURS[str(method)], linewidth=1.5)
        low = np.maximum(mean - half, mean / 3)
        axis.fill_between(count, low, mean + half, color=COLOURS[str(method)], alpha=0.12, linewidth=0)
    axis.set(yscale="log", xlabel="minibatch gradients", xlim=(0, count[-1]))
    label_ends(axis, results["method"], curves[:, -1].mean(axis=-1))


def label_ends(axis, names: np.ndarray, values: np.ndarray) -> None:
    """The methods' names right of a logarithmic axis, in the order of their last values."""
    bottom, top = axis.get_ylim()
    ends = np.log(np.clip(values, bottom, top) / bottom) / np.log(top / bottom)
    heights = spread_out(ends, 0.075)
    heights -= max(0.0, heights.max() - 1.0)
    heights += max(0.0, -heights.min())
    for name, height in zip(names, heights, strict=True):
        axis.text(
            1.02,
            height,
            str(name),
            color=COLOURS[str(name)],
            va="center",
            transform=axis.transAxes,
            fontsize=9.5,
        )


def draw_rates(axis, results: _run.Arrays) -> None:
    """Final validation error against the one number of each method, a ring at the chosen one."""
    errors = 100 * results["validation_error"][:, -1].mean(axis=-1)
    for curve, method in zip(errors, results["method"], strict=True):
        axis.plot(results["rate"], curve, "o-", color=COLOURS[str(method)], linewidth=1.5, markersize=4)
        best = curve.argmin()
        axis.plot(
            results["rate"][best],
            curve[best],
            "o",
            color=COLOURS[str(method)],
            markersize=9,
            fillstyle="none",
        )
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="learning rate, greatest step or 1/L",
        title="error against the number that is tuned",
    )
    axis.set_ylabel("final validation error   [%]")
    for other in (axis, axis.figure.axes[2]):
        other.yaxis.set_major_formatter("{x:g}")
        other.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if value in (2, 3, 5, 20, 50) else "")
