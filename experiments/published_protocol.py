"""Entropy-SGD as its paper trains it: LeNet on MNIST, All-CNN on CIFAR-10, beside the printed errors.

The networks, the budgets, the constants and the schedules of the paper, end to end, at equal numbers of minibatch
gradients. An epoch of Entropy-SGD in the paper is L = 20 passes over the data; these are its effective epochs, and
those of all methods here. A shorter training than the paper's goes through the same schedules faster. Test errors
are those of the last weights, with batch statistics computed anew from training images; there is no tuning and no
validation set, and the test set chooses nothing.

Entropy-SGD has the paper's L, η' = 0.1, η, ε, scoping and momentum 0.9 in both loops, the inner one as the library's
heavy ball. Its variant h = t is the step rule that this repository prefers, not the paper's: the weights move to the
mean of the particles, there is no outer momentum, and the inner rate decays by a cosine from the same 0.1. The
baseline is the paper's, Adam for LeNet, SGD with Nesterov momentum for All-CNN. By the drafts of the paper in its
authors' repository, LeNet had dropout 0.5 with Adam and 0.25 with Entropy-SGD, so the two printed errors differ in
more than the optimiser: Adam is trained at both rates here. All-CNN sees images after global contrast normalisation
and ZCA, no augmentation, and weight decay 0.001 in every method. BatchNorm follows docs/guides/batch_norm.md.

On the left, test errors: every seed, their means, at the end the means' 95 % intervals (Student's t), and dotted what
the paper printed, after its 80 to 180 effective epochs. On the right, the loss of the same weights on 5,120 training
images, without dropout. The 10,000 test images alone make an error of 0.5 % uncertain by 0.14 points either way.

With the default, a fourteenth of the paper's budget, and three seeds, Entropy-SGD has 0.99 ± 0.08 per cent of test
error, with h = t 0.86 ± 0.19, Adam 0.94 ± 0.17 at the dropout of Entropy-SGD and 1.61 ± 0.24 at its own: most of what
parts the two methods of the paper in so short a training is the dropout.

Costs: a gradient of LeNet on 128 images takes about 0.011 s on two quiet cores, so the default 7 minutes, and the
paper's budget, ``--effective-epochs 100 --reports 10 --num-seeds 5``, about 3 hours. One of All-CNN takes about 6 s
on busy ones: ``--task allcnn --effective-epochs 200 --reports 10``, 9 times 78,200 of them, wants an accelerator.
"""

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn

from experiments import _methods, _protocol, _run
from experiments._bakeoff_training import minibatches
from experiments._protocol import STEPS, TASKS, Data, Protocol, Spec
from experiments._published import published
from experiments.quickstart import interval
from jaxopt_pde import _validate
from jaxopt_pde._arithmetic import squared_norm
from jaxopt_pde.models import recompute_batch_stats


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    task: str = "lenet"
    """``"lenet"`` on MNIST, ``"allcnn"`` on CIFAR-10, or ``"digits"``, LeNet on scikit-learn's digits, magnified."""
    methods: tuple[str, ...] | None = None
    """Which methods; None for all of the task. The table compares them with the last."""
    num_seeds: int = 3
    """Trainings of each method, at least 2, that differ in weights, minibatches, dropout and noise."""
    effective_epochs: float = 6.0
    """Passes over the training images of every training, rounded so that a report is whole outer steps; the
    paper's schedules take 100 for LeNet and 200 for All-CNN."""
    reports: int = 6
    """Points of the curves; a killed run goes on from the last one."""
    num_train: int | None = None
    """Training images, drawn at random; None for all."""
    batch_size: int = 128
    """Images in a minibatch."""
    widths: tuple[int, int] | None = None
    """Channels of both convolutions of LeNet, or of both stages of All-CNN; None for the paper's."""
    inner_rate: float = 0.1
    """ε at the start, of Entropy-SGD with h = t only; with inner momentum 0.9 its effective step is ten times that."""
    whiten: bool = True
    """All-CNN: contrast normalisation and ZCA; without, images are divided by 255."""
    seed: int = 0
    """Of the order of the training images and, with their indices, of all trainings."""
    data_dir: str | None = dataclasses.field(default=None, metadata={"hash": False})
    """Where MNIST and CIFAR-10 lie; None reads the environment variable JAXOPT_PDE_DATA."""


SMOKE = Config(
    task="digits", methods=("Entropy-SGD", "Adam"), num_seeds=2, effective_epochs=8.0, reports=2, num_train=200,
    batch_size=20, widths=(2, 3),
)  # fmt: skip

NOT_FINITE = ("test_loss", "train_loss")
NOT_REPRODUCIBLE = ("seconds",)

EVALUATED_AT_ONCE = 200
STATISTICS_BATCHES = 40


class Measures(NamedTuple):
    """Of given weights with dropout off and batch statistics of training images; shares and nats."""

    test_error: jax.Array
    test_loss: jax.Array
    train_loss: jax.Array


def resolve(config: Config) -> tuple[Spec, tuple[str, ...]]:
    """The task and the methods of a config.

    Raises:
        ValueError: an unknown task or method, sizes out of range.
    """
    _validate.check_choice("task", config.task, tuple(TASKS))
    spec = TASKS[config.task]
    methods = spec.methods if config.methods is None else config.methods
    for name in methods:
        _validate.check_choice("methods", name, spec.methods)
    _validate.check_count("num_seeds", config.num_seeds, minimum=2)
    for name in ("reports", "batch_size"):
        _validate.check_count(name, getattr(config, name))
    for name in ("effective_epochs", "inner_rate"):
        _validate.check_positive(name, getattr(config, name))
    if config.num_train is not None:
        _validate.check_count("num_train", config.num_train, minimum=config.batch_size)
    return spec, methods


def gradients_per_report(config: Config, num_train: int) -> int:
    """Whole outer steps, at least one, that bring all reports nearest to the epochs asked for."""
    asked = config.effective_epochs * num_train / config.batch_size
    return STEPS * max(1, round(asked / (STEPS * config.reports)))


class Network(NamedTuple):
    """A model without its parameters.

    Attributes:
        module: with its dropout.
        statistics: batch statistics, all zero; what evaluates or trains never reads their values.
    """

    module: nn.Module
    statistics: Any

    def variables(self, params) -> dict[str, Any]:
        """What the module is applied to."""
        return {"params": params, "batch_stats": self.statistics}


class Program:
    """One method's training, compiled at its first report, for all seeds."""

    def __init__(self, spec: Spec, protocol: Protocol, statistics: Any, gradients: int):
        self.spec, self.protocol, self.gradients = spec, protocol, gradients
        self.network, self.method = Network(protocol.network, statistics), protocol.build(0)
        self.start = jax.jit(lambda key, params: _methods.start(protocol.build(key), protocol.rate, params))
        self.compiled = None

    def _loss(self, params, batch, whitening):
        images, labels, key = batch
        logits, _ = self.network.module.apply(
            self.network.variables(params),
            _protocol.prepare(images, whitening),
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],  # and dropped: in training a batch is normalised by its own
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        if self.spec.weight_decay:
            loss += self.spec.weight_decay / 2 * squared_norm(params, loss.dtype)
        return loss

    def _advance(self, state, dropout, order, first, train, whitening):
        """The updates of a report: ``order`` [gradient, batch], ``first`` the index of its first gradient."""
        gradient = jax.grad(lambda params, batch: self._loss(params, batch, whitening))

        def batch_of(n):
            chosen = order[n - first]
            return train[0][chosen], train[1][chosen], jax.random.fold_in(dropout, n)

        def step(state, _):
            return _methods.update(self.method, gradient, state, self.protocol.rate, batch_of), None

        return jax.lax.scan(step, state, length=self.gradients // self.method.gradients_per_update)[0]

    def advance(self, state, *arguments):
        """``_advance`` and the seconds it took, without compiling."""
        if self.compiled is None:
            self.compiled = jax.jit(self._advance, donate_argnums=0).lower(state, *arguments).compile()
        begin = time.perf_counter()
        state = jax.block_until_ready(self.compiled(state, *arguments))
        return state, time.perf_counter() - begin


def make_evaluate(network: Network, batch_size: int):
    """``(params, train, test, whitening) -> Measures``, compiled once for all methods: dropout is off."""

    @jax.jit
    def evaluate(params, train, test, whitening):
        count = min(STATISTICS_BATCHES, len(train[1]) // batch_size)
        images = train[0][: count * batch_size]
        seen = _protocol.prepare(images, whitening).reshape(count, batch_size, *images.shape[1:])
        variables = network.variables(params)
        variables["batch_stats"] = recompute_batch_stats(network.module, variables, seen)

        def measure(part):
            logits = network.module.apply(variables, _protocol.prepare(part[0], whitening), train=False)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, part[1])
            return jnp.stack([losses.sum(), (logits.argmax(-1) != part[1]).sum(dtype=jnp.float32)])

        test_loss, test_error = _mean(measure, test)
        train_loss, _ = _mean(measure, (images, train[1][: len(images)]))
        return Measures(test_error, test_loss, train_loss)

    return evaluate


def _mean(measure, data):
    """Sums of ``measure`` over the number of examples, a part at a time: activations of all would not fit."""
    count = len(data[1])
    whole = count // EVALUATED_AT_ONCE * EVALUATED_AT_ONCE
    total = jnp.zeros(2)
    if whole:
        parts = jax.tree.map(lambda a: a[:whole].reshape(-1, EVALUATED_AT_ONCE, *a.shape[1:]), data)
        total += jax.lax.map(measure, parts).sum(0)
    if whole < count:
        total += measure(jax.tree.map(lambda a: a[whole:], data))
    return total / count


def train(
    config: Config, data: Data, program: Program, init, evaluate, seed: int, session, meter
) -> _run.Arrays:
    """One training: its measures and seconds [report]."""
    per_report = program.gradients
    # The same for every method: weights, minibatches, dropout masks.
    key = lambda purpose: _run.key_for(config.seed, config.task, seed, purpose)
    count = len(data.train[1])
    order = minibatches(key("minibatches"), count, config.batch_size, config.reports * per_report)
    state = program.start(key("noise"), init(key("weights"))["params"])
    dropout = key("dropout")

    def body(state, report):
        first = report * per_report
        part = jnp.asarray(order[first : first + per_report])
        state, seconds = program.advance(
            state, dropout, part, jnp.asarray(first, jnp.int32), data.train, data.whitening
        )
        measures = jax.device_get(evaluate(state.params, data.train, data.test, data.whitening))
        meter.advance(test_error=float(measures.test_error))
        return state, measures._asdict() | {"seconds": np.float64(seconds)}

    return session.scan(f"{program.method.name}, seed {seed}", body, state, config.reports)[1]


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Trains every method from every seed; curves are [method, seed, report].

    Raises:
        ValueError: see :func:`resolve`; ``num_train`` above what there is.
        FileNotFoundError: MNIST or CIFAR-10 is not there; says what was looked for and where.
    """
    spec, methods = resolve(config)
    whiten = config.whiten and spec.source == "cifar10"
    data = _protocol.load(
        spec, num_train=config.num_train, whiten=whiten, seed=config.seed, data_dir=config.data_dir
    )
    num_train = len(data.train[1])
    per_report = gradients_per_report(config, num_train)
    total = config.reports * per_report
    protocols = [_protocol.protocol(spec, name, total, config.inner_rate, config.widths) for name in methods]
    # Dropout apart, which neither initial weights nor evaluations know, all have one network.
    module, shape = protocols[0].network, (1, *data.train[0].shape[1:])
    init = jax.jit(lambda key: module.init(key, jnp.zeros(shape), train=False))
    shapes = jax.eval_shape(init, jax.random.key(0))["batch_stats"]
    statistics = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    evaluate, curves = make_evaluate(Network(module, statistics), config.batch_size), []
    with session.progress(spec.title, len(methods) * config.num_seeds * config.reports) as meter:
        for protocol in protocols:
            program = Program(spec, protocol, statistics, per_report)
            seeds = range(config.num_seeds)
            own = [train(config, data, program, init, evaluate, seed, session, meter) for seed in seeds]
            curves.append({key: np.stack([curve[key] for curve in own]) for key in own[0]})
    gradients = per_report * np.arange(1, config.reports + 1)
    return {
        "title": np.array(spec.title),
        "note": np.array(data.note),
        "published": np.array(spec.published),
        "method": np.array(methods),
        "gradients": gradients,
        "epochs": gradients * config.batch_size / num_train,
        **{key: np.stack([curve[key] for curve in curves]) for key in curves[0]},
    }


def printed(results: _run.Arrays) -> list[tuple[str, float, float, float]]:
    """The paper's rows for this model: method, error %, its ±, effective epochs; none for the digits."""
    rows = published("entropy_sgd").where(model=str(results["published"]))
    return [
        cell
        for row in rows
        for cell in (
            ("Entropy-SGD", row["Entropy-SGD"], row["+-"], row["effective epochs"]),
            (row["baseline"], row["baseline value"], row["baseline +-"], row["baseline epochs"]),
        )
    ]


def show(values: np.ndarray, digits: int) -> str:
    """Mean and 95 % confidence interval over the seeds."""
    return f"{values.mean():.{digits}f} ± {interval(values):.{digits}f}"


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Ours at the end, means and 95 % intervals over the seeds, above what the paper printed."""
    methods = [str(method) for method in results["method"]]
    errors, count = 100 * results["test_error"][..., -1], results["test_error"].shape[1]
    headers = [
        "model, data", "method", "effective epochs", "test error %", f"less that of {methods[-1]}, paired",
        "training loss", "seeds", "seconds of training, each",
    ]  # fmt: skip
    rows = [
        [
            f"{str(results['title']).split(',')[0]}, {results['note']}",
            method,
            f"{results['epochs'][-1]:.3g}",
            show(errors[m], 2),
            "–" if m == len(methods) - 1 else show(errors[m] - errors[-1], 2),
            f"{results['train_loss'][m, :, -1].mean():.4f}",
            str(count),
            f"{results['seconds'][m].sum(-1).mean():.0f}",
        ]
        for m, method in enumerate(methods)
    ]
    for method, error, spread, epochs in printed(results):
        row = [f"{results['published']}, the paper", method, f"{epochs:g}", f"{error:.2f} ± {spread:.2f}"]
        rows.append([*row, "–", "–", "–", "–"])
    return headers, rows


COLOURS = {
    "Entropy-SGD": "#d55e00", "Entropy-SGD, h = t": "#e69f00", "Adam, dropout 0.25": "#56b4e9", "Adam": "#0072b2",
    "SGD": "#0072b2",
}  # fmt: skip
STYLE = {"font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False}


def figure(results: _run.Arrays) -> plt.Figure:
    """Test error and training loss against effective epochs, with the printed errors."""
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(1, 2, figsize=(11.5, 4.8), layout="constrained", width_ratios=(1.25, 1))
        fig.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
        epochs = results["epochs"]
        panels = (("test_error", "test error   [%]", 100), ("train_loss", "training loss   [nats]", 1))
        for axis, (name, label, unit) in zip(axes, panels, strict=True):
            for m, method in enumerate(map(str, results["method"])):
                colour, curves = COLOURS[method], unit * results[name][m]
                axis.plot(epochs, curves.T, color=colour, linewidth=0.7, alpha=0.45)
                axis.plot(
                    epochs, curves.mean(0), "o-", color=colour, linewidth=2, markersize=3.5, label=method
                )
            axis.set(xlabel="effective epochs (gradients × batch / images)", ylabel=label, yscale="log")
            # From 0, where nothing was measured, to leave the intervals room at the right.
            axis.set_xlim(0, 1.08 * epochs[-1])
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(
                lambda value, _: f"{value:g}" if f"{value:e}"[0] in "23457" else ""
            )
        axes[1].legend(frameon=False, fontsize=10, labelcolor="linecolor", handlelength=1.4)
        draw_ends(axes[0], results)
        draw_printed(axes[0], results)
        axes[0].set_title(f"{results['title']}: test error")
        axes[1].set_title("training loss of the same weights")
    return fig


def draw_ends(axis, results: _run.Arrays) -> None:
    """The last means with their 95 % intervals, right of the curves and apart from each other."""
    errors = 100 * results["test_error"][..., -1]
    for m, (method, ends) in enumerate(zip(map(str, results["method"]), errors, strict=True)):
        at = (1.02 + 0.015 * m) * results["epochs"][-1]
        mean = ends.mean()
        reach = np.array([[min(interval(ends), 0.9 * mean)], [interval(ends)]])  # a log axis has no 0
        axis.errorbar(
            at, mean, reach, fmt="o", color=COLOURS[method], markersize=4, capsize=2.5, linewidth=1.2
        )


def draw_printed(axis, results: _run.Arrays) -> None:
    """Dotted levels at what the paper printed, named at the left, the larger above its line."""
    rows = sorted(printed(results), key=lambda row: row[1])
    for (method, error, spread, _), side in zip(rows, ("top", "bottom"), strict=False):
        axis.axhline(error, color=COLOURS[method], linestyle=":", linewidth=1.4)
        axis.annotate(
            f"{method}, the paper: {error:.2f} ± {spread:.2f} %",
            (0.02, error),
            (0, 2 if side == "bottom" else -2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va=side,
            fontsize=9.5,
            color=COLOURS[method],
        )
    if rows:
        axis.set_ylim(bottom=0.75 * rows[0][1])
