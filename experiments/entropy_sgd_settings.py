"""Which settings of Entropy-SGD matter, at an equal number of minibatch gradients, one changed at a time.

The base is ``entropy_sgd`` with L = 20 inner steps of one chain, inner momentum m = 0.9, temperature T = 1e-8,
smoothing time t = 100 ε for the inner learning rate ε, and an outer step h = t, which moves the weights to the mean of
the particles. ε falls as a cosine to 0 over the training, from one outer update to the next, and t and h with it, so
that h = t stays true. The other rows change one thing: steps L, chains K, the time t, the schedules, the inner
momentum, the noise, the estimator of ∇u, the average of the particles, the outer step. The last four are no such
change: particles that are never restarted (``two_time_scale``), and as references SGD with Nesterov momentum, also
with an exponential mean of its iterates, and SAM, all with the same cosine.

All rows spend the same number of minibatch gradients, and the n-th gradient of a seed uses the same minibatch in
every row. One number is tuned, the learning rate, over the same five points for every row of a task, with one
seed on validation data; six fresh seeds then meet the test data. "edge" in the table marks a rate at the end of the
grid: such a row might do better with more tuning. Differences are paired over the seeds, in per cent of the base's
error, for the language of its cross-entropy above the entropy rate, which no method can go below; the base's mean
counts as exact. The p-values are adjusted by Holm over all rows. A run took 20 minutes on two cores that had other
work.

No row beats the base on the mean over the tasks once p-values are adjusted, and eight lose: K = 4 with L = 20
(+79 ± 9 %), t = 20 ε (+23 ± 9), m = 0 (+72 ± 7), T = 1e-4 with either noise (+33 ± 8, +25 ± 10), the gradient form
(+376 ± 66), h = t/2 (+14 ± 5) and outer momentum 0.9 (+35 ± 7). The language, where 640 gradients are too few and
intervals are narrow, is the task that tells settings apart: there the last particle alone (−13 ± 5), the exponential
mean (−8 ± 3) and t = 500 ε (−6 ± 3) gain a little; elsewhere they are within noise of the base, as L = 10 and 40 are
on the mean. The control variate, K = 4 with L = 5 and the two time scales each lost a seed or two at a rate that the
one tuning seed had passed, hence their wide intervals. SGD is better than the base on the language (−28 ± 5) and not
worse elsewhere: here Entropy-SGD saves nothing.

Do not read the panel of random labels as it looks. All rows but two are left of zero there because the one tuning seed
gave the base the rate 0.009, at 9.7 % of validation error against 10.0 % at 0.03, and its test error is then 10.5 %.
With three tuning seeds, tried afterwards for this task, the base and seven rows, it takes 0.03 and has 7.5 ± 1.3 %;
SGD has 7.5 ± 1.5, and after Holm's correction none of the seven differs from it. The intervals do not contain such
accidents of tuning, and in the mean over the tasks this one is worth about seven points in favour of every row that
escaped it. The mean over the other three tasks, also looked at afterwards, has the same eight losers, and in addition
L = 5 (+17 ± 8), the mean of all steps (+19 ± 7), t/ε falling tenfold (+8 ± 4) and outer momentum 0.5 (+17 ± 6); SGD is
then at −8 ± 7.

A space-adaptive outer step is left out: its rule compares the loss at the weights with a target, and the relaxed loss
u that the outer step descends is not measured by the chains; to measure f(x) instead would cost gradients that the
other rows do not spend.
"""

import dataclasses
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from experiments import _run
from experiments._bakeoff_presets import DIGITS, LANGUAGE, MNIST_1D, PRESETS
from experiments._bakeoff_statistics import Paired, paired
from experiments._bakeoff_tasks import make_task
from experiments._bakeoff_training import Program, Run, Trainer
from experiments._entropy_sgd_variants import BASE, VARIANTS, Variant, named
from experiments.quickstart import interval
from jaxopt_pde import _validate, plotting
from jaxopt_pde.plotting.style import COLOURS, FONT_SIZE, INK, PALE

TASKS = {
    "digits": DIGITS,
    "digits-40": dataclasses.replace(DIGITS, title="digits, 40 % random labels", random_labels=0.4),
    "mnist-1d": MNIST_1D,
    "characters": LANGUAGE,
    "linear": PRESETS["smoke"].tasks["mnist-1d"],
}
"""Tasks that need no file; "linear" is the one of SMOKE."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run; the defaults give the figure of the gallery."""

    tasks: tuple[str, ...] = ("characters", "digits", "digits-40", "mnist-1d")
    """Of TASKS; the longest first, for the threads."""
    gradients: tuple[int, ...] = (640, 1200, 1200, 2000)
    """Minibatch gradients that each training spends, task by task: a multiple of K·L for every variant."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Of VARIANTS; the base is always run."""
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """The grid of the inner learning rate (of the references: the learning rate), the same for all variants."""
    scales: tuple[float, ...] = (20.0, 1.0, 0.3, 1.0)
    """What the grid is multiplied by, task by task, so that the base's best rate lies inside."""
    num_tuning_seeds: int = 1
    """Seeds that each rate is tried with."""
    num_seeds: int = 6
    """Fresh seeds on test, at least 2."""
    seed: int = 0
    """Of splits, random labels and, with their indices, of all trainings."""
    num_threads: int = dataclasses.field(default=2, metadata={"hash": False})
    """Tasks at a time: networks this small leave all cores but one idle."""


SMOKE = Config(
    tasks=("linear",), gradients=(80,), variants=("L = 10",), rates=(0.03, 0.3), scales=(1.0,), num_seeds=2
)

NOT_FINITE = ("validation_loss",)


def check(config: Config) -> list[Variant]:
    """The variants of a config.

    Raises:
        ValueError: an unknown task or variant, a budget that is not a whole number of updates, counts too small.
    """
    for name in config.tasks:
        _validate.check_choice("tasks", name, tuple(TASKS))
    _validate.check_count("num_tuning_seeds", config.num_tuning_seeds)
    _validate.check_count("num_seeds", config.num_seeds, minimum=2)
    _validate.check_count("num_threads", config.num_threads)
    variants = named(config.variants)
    for name in ("gradients", "scales"):
        if len(getattr(config, name)) != len(config.tasks):
            msg = f"{name} must have one number for each of {config.tasks}, got {getattr(config, name)}."
            raise ValueError(msg)
    for gradients in config.gradients:
        for variant in variants:
            if gradients % variant.method.gradients_per_update:
                msg = (
                    f"gradients={gradients} must be a multiple of the {variant.method.gradients_per_update} "
                    f"gradients of an update of {variant.name}."
                )
                raise ValueError(msg)
    return variants


def choose(error: np.ndarray, loss: np.ndarray) -> int:
    """Index of the rate of least mean validation error; ties go to the least mean loss; both [rate, seed]."""
    loss = np.where(np.isfinite(loss), loss, np.inf)
    return int(np.lexsort((loss.mean(1), error.mean(1)))[0])


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Tunes and tests all variants on all tasks; arrays begin with [task, variant].

    Raises:
        ValueError: see :func:`check`.
    """
    variants = check(config)
    tasks = [make_task(name, TASKS[name], seed=config.seed) for name in config.tasks]
    stop = threading.Event()

    def cells(number: int) -> list[_run.Arrays]:
        task, done, programs = tasks[number], [], {}
        rates = config.scales[number] * np.array(config.rates)
        trainer = Trainer(task, config.gradients[number], 1, config.num_seeds, config.seed)
        for variant in variants:
            if stop.is_set():
                return []
            program = programs.setdefault(variant.method.name, Program(trainer, variant.method))
            name = f"{task.name}, {variant.name}"
            compute = functools.partial(measure, program, variant, rates, config, session.within(name))
            done.append(session.stage(name, compute))
            meter.advance(test_error=float(done[-1]["test_error"].mean()))
        return done

    with (
        session.progress("settings", len(tasks) * len(variants)) as meter,
        ThreadPoolExecutor(config.num_threads) as pool,
    ):
        try:
            rows = list(pool.map(cells, range(len(tasks))))
        except BaseException:  # Ctrl-C: what is finished is kept
            stop.set()
            raise
    found = {key: np.array([[cell[key] for cell in row] for row in rows]) for key in rows[0][0]}
    assert np.all(found["gradients"] == np.array(config.gradients)[:, None]), "all spend the same"
    return {
        "task": np.array(config.tasks),
        "title": np.array([task.spec.title for task in tasks]),
        "unit": np.array([task.unit[1] for task in tasks]),
        "factor": np.array([task.unit[0] for task in tasks]),
        "floor": np.array([task.floor for task in tasks]),
        "variant": np.array([variant.name for variant in variants]),
        "group": np.array([variant.group for variant in variants]),
        "rates": np.outer(config.scales, config.rates),
        **found,
    }


def measure(program: Program, variant: Variant, rates, config: Config, session: _run.Session) -> _run.Arrays:
    """The rates on validation, then the chosen one from fresh seeds on test."""
    task, shape = program.trainer.task, (len(rates), config.num_tuning_seeds)
    runs = lambda rate, count: [Run({**variant.fixed, "rate": rate}, seed) for seed in range(count)]
    tried = [run for rate in rates for run in runs(rate, config.num_tuning_seeds)]
    tuning = program.train(tried, "tuning", task.validation, session)
    loss = np.where(tuning["diverged"][-1], np.inf, tuning["loss"][-1]).reshape(shape)
    error = tuning["error"][-1].reshape(shape)
    chosen = choose(error, loss)
    test = program.train(runs(rates[chosen], config.num_seeds), "test", task.test, session)
    return {
        "validation_error": error,
        "validation_loss": loss,
        "chosen": np.array(chosen),
        "test_error": test["error"][-1],
        "diverged": test["diverged"][-1],
        "gradients": np.array(program.updates * variant.method.gradients_per_update),
        "updates": np.array(program.updates),
    }


class Comparison(NamedTuple):
    """Differences to the base, seed by seed, in per cent of the base's mean error above the floor.

    Attributes:
        by_task: of each task.
        average: of the mean over the tasks.
    """

    by_task: list[Paired]
    average: Paired


def compare(results: _run.Arrays) -> Comparison:
    """Paired over the seeds, which share weights and minibatches; the base's mean counts as exact."""
    excess = results["test_error"] - results["floor"][:, None, None]
    base = list(results["variant"]).index(BASE)
    relative = 100 * excess / excess[:, base].mean(-1)[:, None, None]
    return Comparison([paired(errors, base) for errors in relative], paired(relative.mean(0), base))


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """The average over the tasks, then each task; differences are to the base, with 95 % intervals over seeds."""
    headers = [
        "task", "changed", "variant", "test error", "less base", "in % of base", "Holm p", "rate", "updates",
        "gradients", "diverged",
    ]  # fmt: skip
    found, rows = compare(results), []
    names, groups = map(list, (results["variant"], results["group"]))
    base = names.index(BASE)
    percent = lambda pair, v: (
        ["–", "–"]
        if v == base
        else [f"{pair.difference[v]:+.1f} ± {pair.half_width[v]:.1f}", _p(pair.t_test[v])]
    )
    for v, name in enumerate(names):
        rows.append(["average", groups[v], name, "–", "–", *percent(found.average, v), "–", "–", "–", "–"])
    for t, task in enumerate(results["title"]):
        scaled, unit = results["factor"][t] * results["test_error"][t], results["unit"][t]
        for v, name in enumerate(names):
            errors, difference = scaled[v], scaled[v] - scaled[base]
            rate = f"{results['rates'][t, results['chosen'][t, v]]:g}"
            edge = results["chosen"][t, v] in (0, results["rates"].shape[1] - 1)
            lost = results["diverged"][t, v]
            rows.append(
                [
                    str(task),
                    groups[v],
                    name,
                    f"{errors.mean():.2f} ± {interval(errors):.2f} {unit}",
                    "–" if v == base else f"{difference.mean():+.2f} ± {interval(difference):.2f}",
                    *percent(found.by_task[t], v),
                    f"{rate} (edge)" if edge else rate,
                    f"{results['updates'][t, v]}",
                    f"{results['gradients'][t, v]:,}",
                    f"{lost.sum()} of {len(lost)}",
                ]
            )
        if results["floor"][t]:
            floor = f"{results['factor'][t] * results['floor'][t]:.2f} {unit}"
            rows.append([str(task), "–", "(no method can be below)", floor, *["–"] * (len(headers) - 4)])
    return headers, rows


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


ROW = 0.235
"""Height of a row, inches."""


def figure(results: _run.Arrays) -> plt.Figure:
    """Differences to the base of every variant: the average over the tasks, and each task."""
    found, names = compare(results), [str(name) for name in results["variant"]]
    groups = [str(group) for group in results["group"]]
    rows = [v for v, name in enumerate(names) if name != BASE]
    at, separators = heights([groups[v] for v in rows])
    other_rate = results["chosen"] != results["chosen"][:, [names.index(BASE)]]
    panels = [("mean over the tasks", found.average)]
    if len(found.by_task) > 1:
        panels += list(zip(map(str, results["title"]), found.by_task, strict=True))
    with plotting.style():
        size = (3.4 + 1.75 * len(panels) + 0.55, ROW * (at.max() + 1.5) + 1.2)
        fig, axes = plt.subplots(
            1,
            len(panels),
            figsize=size,
            sharey=True,
            squeeze=False,
            width_ratios=[1.3] + [1] * (len(panels) - 1),
        )
        for number, (axis, (title, pair)) in enumerate(zip(axes[0], panels, strict=True)):
            tuned = other_rate[number - 1] if number else np.zeros(len(names), bool)
            _draw_panel(axis, pair, rows, at, tuned)
            for height in separators:
                axis.axhline(height, color="#dddddd", linewidth=0.8, zorder=0)
            axis.set_title(title.replace(", 40 %", ",\n40 %"), fontweight="bold" if number == 0 else "normal")
            axis.tick_params(axis="y", length=0)
        first = axes[0, 0]
        first.set_yticks(at, [names[v] for v in rows])
        first.set_ylim(at.max() + 0.8, -0.8)
        starts = [n for n, v in enumerate(rows) if n == 0 or groups[v] != groups[rows[n - 1]]]
        for n in starts:
            first.annotate(
                groups[rows[n]], (0, at[n]), (-205, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center", fontsize=FONT_SIZE, color=INK,
                annotation_clip=False,
            )  # fmt: skip
        fig.supxlabel(
            "test error less the base's, % of the base's (95 % intervals, paired over seeds; left is better)\n"
            "base: Entropy-SGD, L = 20, K = 1, h = t = 100 ε, ε falling as a cosine, m = 0.9, T = 1e-8. "
            "Open dots: another learning rate was chosen than for the base",
            fontsize=10,
        )
    return fig


def heights(groups: list[str]) -> tuple[np.ndarray, list[float]]:
    """Where the rows stand, groups apart from each other, and the lines between groups."""
    at, separators, height = [], [], 0.0
    for n, group in enumerate(groups):
        if n and group != groups[n - 1]:
            height += 0.5
            separators.append(height - 0.75)
        at.append(height)
        height += 1.0
    return np.array(at), separators


def _draw_panel(axis, pair: Paired, rows: list[int], at: np.ndarray, other_rate: np.ndarray) -> None:
    """Dots with intervals, open where another rate was chosen than the base's; arrows to what lies beyond."""
    difference, half = pair.difference[rows], pair.half_width[rows]
    reach = np.sort(np.abs(difference) + half)
    limit = 1.15 * max(reach[int(0.75 * (len(reach) - 1))], 1.0)
    for height, middle, width, opened in zip(at, difference, half, other_rate[rows], strict=True):
        colour = COLOURS["vermillion" if middle > 0 else "blue"] if abs(middle) > width else PALE
        if abs(middle) > limit:
            side = np.sign(middle)
            axis.plot(
                0.97 * side * limit, height, marker=">" if side > 0 else "<", color=colour, markersize=5
            )
            axis.annotate(
                f"{middle:+.0f} %", (0.97 * side * limit, height), (-7 * side, 0), textcoords="offset points",
                ha="right" if side > 0 else "left", va="center", color=colour, fontsize=FONT_SIZE,
            )  # fmt: skip
            continue
        axis.plot(
            [middle - width, middle + width], [height] * 2, color=colour, linewidth=1.5, solid_capstyle="butt"
        )
        axis.plot(
            middle, height, "o", color=colour, markerfacecolor="white" if opened else colour, markersize=4.8
        )
    axis.axvline(0, color=INK, linewidth=1, zorder=1)
    axis.set_xlim(-limit, limit)
    axis.locator_params(axis="x", nbins=4)
