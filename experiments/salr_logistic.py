"""Space-adaptive learning rates on real data: logistic regression, excess loss against minibatch gradients.

Two data sets that come with scikit-learn: breast cancer (569 patients, benign or malignant) and handwritten digits
(1,797 pictures, even or odd), standardised, with a column of ones, under ridge regularisation λ = 0.01. f* is known
to 1e-10 from Newton's method. Every step takes one minibatch of sixteen examples, the same in every method on the
same path. The exact rule h = 2 (f − f*)/E|∇f_B|² is told f and the moments of the gradient over all data, which is
not counted: it says what the rule could do, not what it costs.

What to see: the exact rule, with nothing tuned, is ahead of the best of sixteen schedules c/(k + k₀) at every step on
digits; on breast cancer it is behind for some twenty steps, where that schedule starts at 4/L, ahead for most of the
others and level at the end. Everything that can be had without all data pays for what it does not know. The
certainty-equivalent rule knows λ, L and |x_0 − x*| and measures the noise: it has no floor, but λ is the least
curvature and L the largest, far apart here, so that its steps are too short at first and too long later, and its
error is about twice that of the best schedule, where on k-means it was level. The signal-to-noise rule, which knows L
alone, takes steps that are too short throughout. Rules with losses of minibatches in place of f are told f* here and
still fall behind, at once with single minibatches (also optax's stochastic Polyak step), later with running means.
Schedule, constant rate and Adam are each the best at the end of the rates of a grid, in hindsight on the paths that
are shown.
"""

import dataclasses
import functools
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer, load_digits

import jaxopt_pde
from experiments import _run
from experiments._stochastic_paths import (
    Method,
    best,
    constant,
    label_ends,
    log_slope,
    mean_and_margin,
    paired_ratio,
    run_paths,
    schedules,
)
from jaxopt_pde import problems


@dataclasses.dataclass(frozen=True)
class Config:
    """The regularisation, the numbers of steps and paths, and the grids."""

    seed: int = 0
    """Seeds the minibatches."""
    regularisation: float = 0.01
    """λ, the strong convexity, in units of the loss."""
    batch_size: int = 16
    """Examples in a minibatch, drawn with replacement; even, since some rules look at its halves."""
    cancer_steps: int = 3000
    """Steps on breast cancer."""
    cancer_paths: int = 128
    """Paths on breast cancer."""
    digits_steps: int = 2000
    """Steps on digits."""
    digits_paths: int = 64
    """Paths on digits."""
    num_checkpoints: int = 41
    """Places along the paths where the loss is looked at."""
    schedule_scales: tuple[float, ...] = (0.125, 0.5, 2.0, 8.0)
    """Schedules c/(k + k₀): the grid of c, in units of 1/μ."""
    schedule_starts: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Schedules: the grid of their first step c/k₀, in units of 1/L."""
    constant_rates: tuple[float, ...] = (1 / 64, 1 / 16, 1 / 4, 1.0)
    """Grid of constant learning rates, in units of 1/L."""
    adam_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    """Grid of Adam's learning rate, in units of x."""
    decay: float = 0.99
    """Of the running means of fixed length."""


SMOKE = Config(
    cancer_steps=20, cancer_paths=3, digits_steps=6, digits_paths=3, num_checkpoints=5, adam_rates=(1e-2,)
)

ORACLE, CERTAIN, SIGNAL = "SALR, exact", "certainty-equivalent", "signal-to-noise"
SCHEDULE, MEAN = "best c/(k + k₀)", "SALR, running mean"
COLOURS = {
    ORACLE: "#0072b2",
    CERTAIN: "#009e73",
    SIGNAL: "#7a5195",
    SCHEDULE: "black",
    "constant": "#808080",
    "Adam": "#cc79a7",
    MEAN: "#e69f00",
    "SALR, growing mean": "#b8860b",
    "SALR, instantaneous": "#8c2d04",
    "SPS+ (optax)": "#56b4e9",
}
CASES = ("breast cancer", "digits")


class Case(NamedTuple):
    """A problem with its numbers of paths and steps."""

    problem: problems.StochasticProblem
    num_paths: int
    num_steps: int


def make_case(config: Config, name: str) -> Case:
    """The standardised data, constant columns left out and one of ones added."""
    load = load_breast_cancer if name == "breast cancer" else load_digits
    features, labels = load(return_X_y=True)
    varying = features.std(axis=0) > 0
    features = (features - features.mean(axis=0))[:, varying] / features.std(axis=0)[varying]
    features = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    settings = {"regularisation": config.regularisation, "batch_size": config.batch_size}
    problem = problems.logistic(features, labels % 2, **settings)
    if name == "breast cancer":
        return Case(problem, config.cancer_paths, config.cancer_steps)
    return Case(problem, config.digits_paths, config.digits_steps)


def make_methods(config: Config, problem: problems.StochasticProblem) -> dict[str, Method]:
    """All that is compared; every rule that asks for f* is told it, and no step from an estimate exceeds 1/L."""
    mu, L, q0 = problem.strong_convexity, problem.smoothness, problem.initial_sq_distance
    exact = jaxopt_pde.space_adaptive_sgd(max_learning_rate=1 / mu)
    sps = optax.polyak_sgd(1 / L, f_min=problem.minimum, variant="sps+")

    def watching(transformation, **settings):
        return Method(lambda row: transformation, watched=("learning_rate",), **settings)

    def descending(rule):
        return watching(optax.chain(rule, optax.scale(-1.0)))

    plugged = functools.partial(jaxopt_pde.space_adaptive_sgd, problem.minimum, max_learning_rate=1 / L)
    return {
        ORACLE: watching(exact, exact=True),
        CERTAIN: descending(jaxopt_pde.scale_by_certainty_equivalent(mu, L, q0)),
        SIGNAL: descending(jaxopt_pde.scale_by_signal_to_noise(L)),
        SCHEDULE: schedules(problem, config.schedule_scales, config.schedule_starts),
        "constant": constant(problem, config.constant_rates),
        "Adam": Method(lambda row: optax.adam(row[0]), np.array(config.adam_rates, np.float32)[:, None]),
        MEAN: watching(plugged(estimator="ema", decay=config.decay)),
        "SALR, growing mean": watching(plugged(estimator="ema")),
        "SALR, instantaneous": watching(plugged(estimator="instantaneous")),
        "SPS+ (optax)": Method(lambda row: sps),
    }


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """All methods on both data sets; names begin with that of the data."""
    results = {"method": np.array(list(COLOURS))}
    with session.progress("salr_logistic", len(CASES)) as meter:
        for name in CASES:
            case = make_case(config, name)
            methods = make_methods(config, case.problem)
            key = _run.key_for(config.seed, "minibatches", name)
            sizes = case.num_paths, case.num_steps, config.num_checkpoints
            stage = session.stage(name, functools.partial(run_paths, case.problem, methods, key, *sizes))
            kept = {part: array for part, array in stage.items() if not part.endswith("/first")}
            results |= {f"{name}/{part}": array for part, array in kept.items()}
            results |= {f"{name}/{method}/settings": methods[method].settings for method in methods}
            results |= {
                f"{name}/{part}": np.array(getattr(case.problem, part))
                for part in ("smoothness", "strong_convexity")
            }
            meter.advance()
    return results


def errors(results: _run.Arrays, case: str, method: str) -> np.ndarray:
    """Excess loss f − f* of the best variant at the end, [checkpoints, paths]."""
    excess = results[f"{case}/{method}/excess"]
    return excess[best(excess)]


def chosen(results: _run.Arrays, case: str, method: str) -> np.ndarray:
    """The settings of that variant."""
    return results[f"{case}/{method}/settings"][best(results[f"{case}/{method}/excess"])]


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Errors at the end with 95 % intervals, and their ratios to the best schedule on the same minibatches."""
    headers = ["data", "method", "setting", "E f − f* at the end", "ratio to best c/(k + k₀)", "slope"]
    rows = []
    for case in CASES:
        steps, reference = results[f"{case}/steps"], errors(results, case, SCHEDULE)
        for method in COLOURS:
            values, row = errors(results, case, method), chosen(results, case, method)
            mean, margin = mean_and_margin(values)
            ratio, width = paired_ratio(values[-1], reference[-1])
            setting = "–" if len(results[f"{case}/{method}/settings"]) == 1 else f"h = {row[0]:.3g}"
            if method == SCHEDULE:
                setting = f"{row[0] / row[1]:.3g}/(k + {1 / row[1]:.3g})"
            cells = [f"{mean[-1]:.3g} ± {margin[-1]:.2g}", f"{ratio:.3g} ± {width:.2g}"]
            rows.append([case, method, setting, *cells, f"{log_slope(steps, mean):.2f}"])
        ratio, width = paired_ratio(errors(results, case, ORACLE)[1:], reference[1:])
        below = (
            f"below 1 at {100 * np.mean(ratio < 1):.0f} %, interval {100 * np.mean(ratio + width < 1):.0f} %"
        )
        rows.append([case, ORACLE, "–", "all checkpoints, k ≥ 1", below, ""])
    return headers, rows


def figure(results: _run.Arrays) -> plt.Figure:
    """A row for each data set: means, ratio to the best schedule, learning rates."""
    style = {
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
    }
    with plt.rc_context(style):
        fig, axes = plt.subplots(2, 3, figsize=(15.0, 8.2), layout="constrained", width_ratios=(1.15, 1, 1))
        fig.get_layout_engine().set(w_pad=0.08, h_pad=0.1)
        for row, case in zip(axes, CASES, strict=True):
            draw_means(row[0], results, case)
            draw_ratio(row[1], results, case)
            draw_rates(row[2], results, case)
            for axis in row:
                axis.set(xscale="log", xlim=(1, results[f"{case}/steps"][-1]))
                axis.set_xlabel("minibatch gradients $k$")
    return fig


def draw_means(axis, results: _run.Arrays, case: str) -> None:
    """Means over the paths with their 95 % bands."""
    steps, entries = results[f"{case}/steps"][1:], []
    for name, colour in COLOURS.items():
        values = errors(results, case, name)[1:]
        mean, margin = mean_and_margin(values)
        front = name in (ORACLE, CERTAIN, SCHEDULE)
        axis.plot(steps, mean, color=colour, linewidth=2 if front else 1.4, zorder=3 + front)
        low = np.maximum(mean - margin, mean / 10)
        axis.fill_between(steps, low, mean + margin, color=colour, alpha=0.2, lw=0)
        entries.append((mean[-1], name, colour))
    axis.set(yscale="log", ylabel="$E\\,f(x_k) - f^*$  [loss]")
    axis.set_title(f"{case}: means over {values.shape[-1]} paths, 95 % bands")
    label_ends(axis, entries, 0.055 * np.ptp(np.log10(axis.get_ylim())))


def draw_ratio(axis, results: _run.Arrays, case: str) -> None:
    """Error over that of the best schedule, paired, with 95 % bands."""
    steps, reference = results[f"{case}/steps"][1:], errors(results, case, SCHEDULE)[1:]
    entries = [(1.0, SCHEDULE, "black")]
    for name in (ORACLE, CERTAIN, MEAN):
        ratio, width = paired_ratio(errors(results, case, name)[1:], reference)
        axis.plot(steps, ratio, color=COLOURS[name], linewidth=2)
        low = np.maximum(ratio - width, ratio / 10)
        axis.fill_between(steps, low, ratio + width, color=COLOURS[name], alpha=0.2, lw=0)
        entries.append((ratio[-1], name, COLOURS[name]))
    axis.axhline(1, color="black", linewidth=1)
    axis.set(
        yscale="log", ylim=(0.5, 20), ylabel="ratio of means", title="error over that of the best schedule"
    )
    ticks = [0.5, 1, 2, 5, 10, 20]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_yticks([], minor=True)
    label_ends(axis, entries, 0.055 * np.ptp(np.log10(axis.get_ylim())))


def draw_rates(axis, results: _run.Arrays, case: str) -> None:
    """Mean learning rates."""
    steps, entries = results[f"{case}/steps"][1:], []
    for name in (ORACLE, CERTAIN, SIGNAL, MEAN, "SALR, growing mean"):
        rate = results[f"{case}/{name}/learning_rate"][0, 1:].mean(axis=-1)
        axis.plot(steps, rate, color=COLOURS[name], linewidth=1.8)
        entries.append((rate[-1], name, COLOURS[name]))
    first, decay = chosen(results, case, SCHEDULE)
    rate = first / (1 + decay * (steps - 1))
    axis.plot(steps, rate, color="black", linewidth=1.8)
    entries.append((rate[-1], SCHEDULE, "black"))
    axis.axhline(1 / results[f"{case}/smoothness"], color="#808080", linewidth=1, linestyle="--")
    entries.append((1 / results[f"{case}/smoothness"], "1/L", "#808080"))
    axis.set(yscale="log", ylabel="mean learning rate $h_k$  [param²/loss]", title="learning rates")
    label_ends(axis, entries, 0.055 * np.ptp(np.log10(axis.get_ylim())))
