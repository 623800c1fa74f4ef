"""Between solutions: the loss rises on the straight line, and a bent path goes around.

Above, the training loss (geometric means over the pairs); below, the test error, along three kinds of paths through
the weights of a network: from the initial weights to the solution, between the solutions of two seeds, and between
those of two optimisers that began with the same weights and met the same minibatches. Solid is the straight line,
dashed a quadratic Bézier curve whose control point was trained with 1,000 minibatch gradients. Bands are 95 %
intervals over pairs that share no solution, five of two seeds and ten of the others, and over batches of the data. On
the right, the plane in which one of the curves lies.

From the start the loss falls all the way, on every line; the barrier, its rise above the chord, is 0.02 and lies in
the first twentieth. Between two seeds the barrier is 1.2 ± 0.7 for SGD, 0.9 ± 0.3 for SAM and 1.0 ± 0.7 for
Entropy-SGD: in this sense no method's solutions are closer. The curve lowers it to 0.028 ± 0.002, 0.026 ± 0.003 and
0.026 ± 0.005, and the worst test error on the way from 34 to 43 % down to about 3 %. Hidden units were not matched, so
part of the barrier is their order.

Between SGD and SAM of one seed there is next to none, 0.003 ± 0.003: they end in one valley. Between either and
Entropy-SGD it is 0.2 ± 0.3, more than 0.5 for two of the ten seeds and at most 0.1 for the others, and 0.002 on the
curve. Entropy-SGD's learning rate is three times as large, so this may be the rate and not the method.

The 45 curves took 45,000 gradients, as many as 22 trainings.
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from experiments import _run, _solutions
from experiments._histograms import LIMIT
from experiments.quickstart import interval
from jaxopt_pde import landscape, plotting


@dataclasses.dataclass(frozen=True)
class Config(_solutions.Training):
    """What to run; the defaults give the figure of the gallery."""

    num_seeds: int = 10
    """Solutions of a method; those of two seeds are a pair, no solution in two of them, so an even number."""
    curve_gradients: int = 1000
    """Minibatch gradients that each curve spends."""
    curve_rate: float = 0.1
    """Learning rate of the control point: Nesterov momentum 0.9, cosine decay to 0."""
    num_points: int = 21
    """Points of a path, both ends included."""
    examples_at_once: int = 100
    """Examples in the batches over which the error of the data is taken."""
    plane_points: int = 41
    """Points along each axis of the plane in which one of the curves lies."""


SMOKE = Config(
    methods=("SGD, Nesterov",), widths=(8,), num_train=100, num_validation=50, num_test=100, num_seeds=4,
    num_gradients=100, learning_rates=(0.1,), curve_gradients=20, num_points=5, examples_at_once=50, plane_points=5,
)  # fmt: skip

START, SEEDS, METHODS = "start to solution", "two seeds", "two methods"
KINDS = {
    START: "from the start to the solution",
    SEEDS: "two seeds, one method",
    METHODS: "two methods, one seed",
}


class Pairs(NamedTuple):
    """The ends of all paths.

    Attributes:
        kind: [pair], one of :data:`KINDS`.
        name: [pair], the method or both.
        replica: [pair], counts the independent pairs of one kind and name.
        ends: [2, pair, P].
    """

    kind: np.ndarray
    name: np.ndarray
    replica: np.ndarray
    ends: np.ndarray


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Trains and connects; paths are [pair, point], first straight and then curved where there is a curve."""
    if config.num_seeds % 2:
        msg = f"num_seeds must be even, solutions come in pairs, got {config.num_seeds}."
        raise ValueError(msg)
    if config.examples_at_once >= min(config.num_train, config.num_test):
        msg = f"examples_at_once must leave several batches, got {config.examples_at_once}."
        raise ValueError(msg)
    task = _solutions.make_task(config)
    solutions, rates = _solutions.chosen(config, _solutions.train(config, task, session))
    pairs = make_pairs(config.methods, solutions)
    bent = pairs.kind != START
    controls = session.stage("curves", lambda: {"control": connect(config, task, pairs.ends[:, bent])})[
        "control"
    ]
    begin, end = (np.concatenate([ends, ends[bent]]) for ends in pairs.ends)
    control = np.concatenate([pairs.ends.mean(0), controls])
    paths = session.stage("paths", lambda: measure(config, task, begin, control, end))
    number = len(pairs.kind)
    shown = 0  # the first pair of seeds of the first method
    assert pairs.kind[bent][shown] == SEEDS
    ends = pairs.ends[:, bent][:, shown]
    return {
        "kind": pairs.kind,
        "name": pairs.name,
        "replica": pairs.replica,
        "fraction": np.linspace(0, 1, config.num_points),
        **{f"straight_{key}": value[:number] for key, value in paths.items()},
        **{f"curved_{key}": value[number:] for key, value in paths.items()},
        "rate": rates,
        "method": np.array(config.methods),
        "gradients": np.array([config.num_gradients, config.curve_gradients]),
        "note": np.array(task.note),
        **plane_of_curve(config, task, ends[0], controls[shown], ends[1]),
    }


def make_pairs(methods: tuple[str, ...], solutions: _solutions.Solutions) -> Pairs:
    """Pairs of seeds (0, 1), (2, 3), …; every two methods of every seed; every start with what it led to."""
    rows: list[tuple[Any, ...]] = []
    seeds = range(solutions.start.shape[0])
    for method, weights in zip(methods, solutions.weights, strict=True):
        rows += [(SEEDS, method, s // 2, weights[s], weights[s + 1]) for s in seeds[::2]]
        rows += [(START, method, s, solutions.start[s], weights[s]) for s in seeds]
    for (one, first), (other, second) in itertools.combinations(
        zip(methods, solutions.weights, strict=True), 2
    ):
        rows += [(METHODS, f"{one} – {other}", s, first[s], second[s]) for s in seeds]
    kind, name, replica, begin, end = (np.array(column) for column in zip(*rows, strict=True))
    return Pairs(kind, name, replica, np.stack([begin, end]))


def connect(config: Config, task: _solutions.Task, ends: np.ndarray) -> np.ndarray:
    """The trained control points of the quadratic Bézier curves between ends [2, pair, P]."""
    rate = optax.cosine_decay_schedule(config.curve_rate, config.curve_gradients)
    optimizer = optax.sgd(rate, momentum=0.9, nesterov=True)

    @jax.jit
    def all_pairs(keys, begin, end, train):
        def one(key, begin, end):
            curve = landscape.connect(
                task.loss,
                task.unravel(begin),
                task.unravel(end),
                train,
                key,
                optimizer=optimizer,
                num_steps=config.curve_gradients,
                batch_size=config.batch_size,
            )
            return jax.flatten_util.ravel_pytree(curve.control)[0]

        return jax.vmap(one)(keys, begin, end)

    keys = jax.random.split(_run.key_for(config.seed, "curves"), ends.shape[1])
    return np.asarray(all_pairs(keys, *jnp.asarray(ends), task.train))


def measure(config: Config, task: _solutions.Task, begin, control, end) -> _run.Arrays:
    """Losses and errors along curves [pair, P], their errors over batches, and the barriers."""

    @jax.jit
    def all_pairs(weights, train, test):
        def one(begin, control, end):
            curve = landscape.Curve(*map(task.unravel, (begin, control, end)))
            fractions = jnp.linspace(0.0, 1.0, config.num_points)
            along = lambda function, data: landscape.curve_losses(
                function, curve, fractions, data=data, batch_size=config.examples_at_once
            )
            loss, error = along(task.loss, train), along(task.error, test)
            height = landscape.barrier(
                task.loss,
                curve.start,
                curve.end,
                control=curve.control,
                data=train,
                batch_size=config.examples_at_once,
                num_points=config.num_points,
            )
            return {
                "loss": loss.mean,
                "loss_batch_error": loss.batch_error,
                "error": error.mean,
                "error_batch_error": error.batch_error,
                "barrier": height.mean,
                "barrier_batch_error": height.batch_error,
            }

        return jax.vmap(one)(*weights)

    return jax.device_get(all_pairs(tuple(map(jnp.asarray, (begin, control, end))), task.train, task.test))


def plane_of_curve(config: Config, task: _solutions.Task, begin, control, end) -> _run.Arrays:
    """The training loss on the plane in which a quadratic Bézier curve lies: that of its three points."""

    @jax.jit
    def on_plane(begin, control, end, train):
        plane = landscape.plane_through(*map(task.unravel, (begin, end, control)))
        where = plane.coordinates
        low, high = where.min(0), where.max(0)
        margin = jnp.array([0.2, 0.25]) * (high - low).max()
        axes = jnp.linspace(low - margin, high + margin, config.plane_points, axis=1)
        data = {"data": train, "batch_size": config.examples_at_once}
        loss = landscape.slice(task.loss, plane.origin, plane.directions, tuple(axes), **data)
        return {
            "plane_axes": axes,
            "plane_corners": where,
            "plane_loss": loss.mean,
            "plane_batch_error": loss.batch_error,
        }

    return jax.device_get(on_plane(*map(jnp.asarray, (begin, control, end)), task.train))


def select(results: _run.Arrays, shape: str, key: str, kind: str, name: str) -> np.ndarray:
    """What belongs to a kind and name of pairs, a leading axis of pairs; shape is ``"straight"`` or ``"curved"``."""
    own = (results["kind"] == kind) & (results["name"] == name)
    if shape == "curved":
        own = own[results["kind"] != START]
    return results[f"{shape}_{key}"][own]


def band(results: _run.Arrays, shape: str, key: str, kind: str, name: str) -> np.ndarray:
    """Mean over pairs of the loss or error along the path and the ends of its 95 % interval, [3, point].

    Of the loss the geometric mean, as barriers of different pairs differ by orders of magnitude. The data are the same
    for all pairs, so their error over batches is added to the spread over pairs.
    """
    values = select(results, shape, key, kind, name)
    batches = select(results, shape, f"{key}_batch_error", kind, name)
    if key == "loss":
        values, batches = np.log(values), batches / values
    half = np.hypot(interval(values.T), LIMIT * batches.mean(0))
    three = values.mean(0) + half * np.array([0, -1, 1])[:, None]
    return np.exp(three) if key == "loss" else np.maximum(three, 0)


def groups(results: _run.Arrays) -> list[tuple[str, str]]:
    """Kinds and names in the order of the figure."""
    return [
        (kind, name)
        for kind in KINDS
        for name in dict.fromkeys(map(str, results["name"][results["kind"] == kind]))
    ]


def show(values: np.ndarray, digits: int) -> str:
    """Mean and 95 % confidence interval over the pairs."""
    return f"{values.mean():.{digits}f} ± {interval(values):.{digits}f}"


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Barriers on the line and on the curve; 95 % intervals over pairs that share no solution."""
    _, spent = results["gradients"]
    headers = [
        "between", "of", "pairs", "barrier on the line", "barrier on the curve",
        "standard error over batches: line, curve", "test error % at the ends", "worst test error % on the line",
        "worst test error % on the curve", "gradients spent by connect, each pair", "and all pairs",
    ]  # fmt: skip
    rows = []
    for kind, name in groups(results):
        pick = lambda shape, key, kind=kind, name=name: select(results, shape, key, kind, name)
        line, error = pick("straight", "barrier"), 100 * pick("straight", "error")
        over = f"{pick('straight', 'barrier_batch_error').mean():.4f}"
        ends = error[:, -1:] if kind == START else error[:, [0, -1]]
        row = [KINDS[kind], name, str(len(line)), show(line, 3)]
        if kind == START:
            rows.append(
                [*row, "–", f"{over}, –", show(ends.mean(1), 2), show(error.max(1), 2), "–", "0", "0"]
            )
            continue
        over = f"{over}, {pick('curved', 'barrier_batch_error').mean():.4f}"
        row += [show(pick("curved", "barrier"), 4), over, show(ends.mean(1), 2), show(error.max(1), 2)]
        row += [show(100 * pick("curved", "error").max(1), 2), f"{spent}", f"{spent * len(line)}"]
        rows.append(row)
    return headers, rows


COLOURS = {
    "SGD, Nesterov": plotting.COLOURS["blue"],
    "SAM": plotting.COLOURS["green"],
    "Entropy-SGD, K = 1": plotting.COLOURS["vermillion"],
    "SGD, Nesterov – SAM": plotting.COLOURS["sky"],
    "SGD, Nesterov – Entropy-SGD, K = 1": plotting.COLOURS["purple"],
    "SAM – Entropy-SGD, K = 1": plotting.COLOURS["orange"],
}


def figure(results: _run.Arrays) -> plt.Figure:
    """Training loss above and test error below, along the paths; on the right the plane of one curve."""
    kinds = list(dict.fromkeys(kind for kind, _ in groups(results)))
    with plotting.style():
        fig = plt.figure(figsize=(3.5 * len(kinds) + 5.2, 6.6))
        fig.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
        left, right = fig.subfigures(1, 2, width_ratios=(3.5 * len(kinds), 5.2))
        axes = left.subplots(2, len(kinds), sharex=True, sharey="row", squeeze=False)
        for column, kind in enumerate(kinds):
            for row, key in enumerate(("loss", "error")):
                draw_paths(axes[row, column], results, kind, key)
            axes[0, column].set_title(KINDS[kind])
            axes[1, column].set_xlabel("s along the path")
            names = [name for k, name in groups(results) if k == kind]
            handles = [plt.Line2D([], [], color=COLOURS.get(n, "black"), label=short(n)) for n in names]
            axes[1, column].legend(
                handles=handles, loc="upper center", labelcolor="linecolor", handlelength=1.2
            )
        axes[0, 0].set(ylabel="training loss, geometric mean", yscale="log")
        axes[1, 0].set(ylabel="test error   [%]", ylim=(0, None))
        grey = {"color": "#4d4d4d"}
        styles = [
            plt.Line2D([], [], label="straight line", **grey),
            plt.Line2D([], [], ls=(0, (4, 2)), label="trained Bézier curve", **grey),
        ]
        axes[0, 0].legend(handles=styles, loc="lower left")
        draw_plane(right.subplots(), results)
    return fig


def short(name: str) -> str:
    """Without what all figures of these solutions have in common."""
    return name.replace(", Nesterov", "").replace(", K = 1", "")


def draw_paths(axis, results: _run.Arrays, kind: str, key: str) -> None:
    """Mean over the pairs of one kind with its band, straight solid and curved dashed."""
    scale = 100 if key == "error" else 1
    for shape in ("straight", "curved") if kind != START else ("straight",):
        for own, name in groups(results):
            if own != kind:
                continue
            mean, low, high = scale * band(results, shape, key, kind, name)
            colour, x = COLOURS.get(name, "black"), results["fraction"]
            axis.plot(x, mean, color=colour, linestyle="-" if shape == "straight" else (0, (4, 2)))
            axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def draw_plane(axis, results: _run.Arrays) -> None:
    """Contours of the training loss with both ends, the line and the curve."""
    begin, end, control = results["plane_corners"]
    loss = results["plane_loss"]
    points = {"seed 0": begin, "seed 1": end}
    plotting.contour(
        axis, tuple(results["plane_axes"]), loss, levels=[0.01, 0.03, 0.1, 0.3, 1, 3, 10], equal=False
    )
    s = np.linspace(0, 1, 101)[:, None]
    curve = (1 - s) ** 2 * begin + 2 * s * (1 - s) * control + s**2 * end
    ink = {"color": "black", "linewidth": 1.8, "zorder": 4}
    axis.plot(*np.stack([begin, end]).T, **ink)
    axis.plot(*curve.T, linestyle=(0, (4, 2)), **ink)
    for name, point in points.items():
        axis.plot(*point, "o", color="black", markeredgecolor="white", markersize=9, zorder=6)
        side = -1 if name == "seed 0" else 1
        align = {"ha": "right" if side < 0 else "left", "va": "center"}
        axis.annotate(name, point, (9 * side, 0), textcoords="offset points", zorder=7, **align)
    where = [np.abs(a - m).argmin() for a, m in zip(results["plane_axes"], (begin + end) / 2, strict=True)]
    top, half = loss[tuple(where)], LIMIT * results["plane_batch_error"][tuple(where)]
    first = short(str(results["method"][0]))
    axis.set(xlabel="distance in weight space", ylabel="distance in weight space")
    axis.set_title(
        f"training loss on the plane of one curve, {first}\nmiddle of the line: {top:.2f} ± {half:.2f} over batches"
    )
