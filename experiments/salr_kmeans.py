"""Space-adaptive learning rates on k-means: one centre, where a theorem holds, and four, where none does.

The loss is f(x) = (1/2n) Σ min_j |x_j − a_i|², the minibatches are ten examples drawn with replacement. With one
centre f is the isotropic quadratic and h = 2 (f − f*)/E|∇f_B|² of exact quantities has the proved bound
E|x_k − x*|² ≤ 1/(αk + 1/q_0), α = μ²/σ² here, drawn dashed. The constant claimed in the talk is twice that, dotted:
the measured mean lies above it. With four centres f is not convex and there is no bound to draw.

What to see: the exact rule is ahead of the best of sixteen schedules c/(k + k₀) on the same minibatches, with one
centre by the factor d/(d + 2) that theory gives, and nothing in it was tuned. The certainty-equivalent rule, which
knows μ, L and q_0 and measures the noise, is level with that best schedule. Whatever puts losses of minibatches in
place of f stalls: the stochastic Polyak step and its like at once, running means and windows of fixed length at a
lower floor; a mean over a growing window goes on falling, but as 1/√k. A constant rate and Adam, each the best at
the end among the rates of its grid, trade speed for a floor. All choices from a grid are made in hindsight, on the
paths that are shown, which favours what was tuned.
"""

import dataclasses
import functools

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

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
    """The data, the numbers of steps and paths, and the grids."""

    seed: int = 0
    """Seeds data and minibatches."""
    batch_size: int = 10
    """Examples in a minibatch, drawn with replacement; even, since some rules look at its halves."""
    num_paths: int = 256
    """Paths of every variant, all methods on the same minibatches."""
    num_checkpoints: int = 49
    """Places along the paths where the loss is looked at."""
    num_examples: int = 1000
    """Examples with one centre, standard normal."""
    dimension: int = 4
    """Coordinates d of an example with one centre."""
    num_steps: int = 5000
    """Steps with one centre."""
    num_examples_of_four: int = 400
    """Examples with four centres, in the plane."""
    separation: float = 5.0
    """Distance of the nearest two of the four planted centres, in standard deviations of a cluster."""
    num_steps_of_four: int = 1500
    """Steps with four centres."""
    schedule_scales: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Schedules c/(k + k₀): the grid of c, in units of 1/μ."""
    schedule_starts: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5)
    """Schedules: the grid of their first step c/k₀, in units of 1/L."""
    constant_rates: tuple[float, ...] = (1 / 64, 1 / 16, 1 / 4, 1.0)
    """Grid of constant learning rates, in units of 1/L."""
    adam_rates: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0)
    """Grid of Adam's learning rate, in units of x."""
    decay: float = 0.9
    """Of the running means of fixed length."""
    window: int = 50
    """Updates in a window."""


SMOKE = Config(num_paths=16, num_steps=60, num_steps_of_four=40, num_checkpoints=9, num_examples=100)

ORACLE, CERTAIN, SCHEDULE = "SALR, exact", "certainty-equivalent", "best c/(k + k₀)"
COLOURS = {
    ORACLE: "#0072b2",
    CERTAIN: "#009e73",
    SCHEDULE: "black",
    "constant": "#808080",
    "Adam": "#cc79a7",
    "SALR, running mean": "#e69f00",
    "SALR, growing mean": "#b8860b",
    "SALR, window": "#d55e00",
    "SALR, instantaneous": "#8c2d04",
    "SPS+ (optax)": "#56b4e9",
}


def make_problem(config: Config, num_clusters: int) -> problems.StochasticProblem:
    """Normal data of one cluster, or of four in the plane."""
    key = _run.key_for(config.seed, "data", num_clusters)
    if num_clusters == 1:
        shape = config.num_examples, 1, config.dimension
    else:
        shape = config.num_examples_of_four, num_clusters, 2
    data, _, _ = problems.planted_clusters(key, *shape, separation=config.separation)
    return problems.kmeans(data, num_clusters, batch_size=config.batch_size)


def make_methods(config: Config, problem: problems.StochasticProblem) -> dict[str, Method]:
    """All that is compared; every rule that asks for f* is told it, and no step from an estimate exceeds 1/L."""
    mu, L, q0 = problem.strong_convexity, problem.smoothness, problem.initial_sq_distance
    exact = lambda row: jaxopt_pde.space_adaptive_sgd(max_learning_rate=1 / mu)
    certain = jaxopt_pde.scale_by_certainty_equivalent(mu, L, q0)
    sps = optax.polyak_sgd(1 / L, f_min=problem.minimum, variant="sps+")

    def plugged(estimator, **settings):
        made = functools.partial(jaxopt_pde.space_adaptive_sgd, problem.minimum, max_learning_rate=1 / L)
        return Method(lambda row: made(estimator=estimator, **settings))

    return {
        ORACLE: Method(exact, exact=True),
        CERTAIN: Method(lambda row: optax.chain(certain, optax.scale(-1.0))),
        SCHEDULE: schedules(problem, config.schedule_scales, config.schedule_starts),
        "constant": constant(problem, config.constant_rates),
        "Adam": Method(lambda row: optax.adam(row[0]), np.array(config.adam_rates, np.float32)[:, None]),
        "SALR, running mean": plugged("ema", decay=config.decay),
        "SALR, growing mean": plugged("ema"),
        "SALR, window": plugged("window", window=config.window),
        "SALR, instantaneous": plugged("instantaneous"),
        "SPS+ (optax)": Method(lambda row: sps),
    }


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """All methods on both problems; names begin with the number of centres."""
    results = {"method": np.array(list(COLOURS)), "num_paths": np.array(config.num_paths)}
    with session.progress("salr_kmeans", 2) as meter:
        for num_clusters, num_steps in ((1, config.num_steps), (4, config.num_steps_of_four)):
            problem = make_problem(config, num_clusters)
            methods = make_methods(config, problem)
            key = _run.key_for(config.seed, "minibatches", num_clusters)
            sizes = config.num_paths, num_steps, config.num_checkpoints
            stage = session.stage(
                f"k = {num_clusters}", functools.partial(run_paths, problem, methods, key, *sizes)
            )
            results |= {f"{num_clusters}/{name}": array for name, array in stage.items()}
            results |= {
                f"{num_clusters}/{name}/settings": method.settings for name, method in methods.items()
            }
            results |= {f"{num_clusters}/minimiser": problem.minimiser}
            meter.advance()
        steps, constants = jnp.asarray(results["1/steps"]), make_problem(config, 1).rate_constants
        results |= {
            "1/bound": problems.space_adaptive_bound(steps, **constants),
            "1/claimed": problems.refuted_talk_bound(steps, **constants),
            "1/limit": problems.gaussian_noise_limit(config.dimension),
            "4/data": problems.planted_clusters(
                _run.key_for(config.seed, "data", 4), config.num_examples_of_four, 4, 2, separation=config.separation
            )[0],
        }  # fmt: skip
    return {name: np.asarray(array) for name, array in results.items()}


def errors(results: _run.Arrays, num_clusters: int, method: str) -> np.ndarray:
    """|x − x*|² (one centre) or f − f* (four) of the best variant at the end, [checkpoints, paths]."""
    excess = results[f"{num_clusters}/{method}/excess"]
    return excess[best(excess)] * (2 if num_clusters == 1 else 1)


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Errors at the end with 95 % intervals, and their ratios to the best schedule on the same minibatches."""
    headers = ["centres", "method", "setting", "error at the end", "ratio to best c/(k + k₀)", "slope"]
    rows = []
    for number, quantity in ((1, "E|x − x*|²"), (4, "E f − f*")):
        steps, reference = results[f"{number}/steps"], errors(results, number, SCHEDULE)
        for method in COLOURS:
            values = errors(results, number, method)
            mean, margin = mean_and_margin(values)
            ratio, width = paired_ratio(values[-1], reference[-1])
            settings = results[f"{number}/{method}/settings"]
            row = settings[best(results[f"{number}/{method}/excess"])]
            setting = "–" if len(settings) == 1 else f"h = {row[0]:.3g}"
            if method == SCHEDULE:
                setting = f"{row[0] / row[1]:.3g}/(k + {1 / row[1]:.3g})"
            rows.append(
                [str(number), method, setting, f"{quantity} = {mean[-1]:.3g} ± {margin[-1]:.2g}",
                 f"{ratio:.3g} ± {width:.2g}", f"{log_slope(steps, mean):.2f}"]
            )  # fmt: skip
        ratio, width = paired_ratio(errors(results, number, ORACLE), reference)
        late = steps >= 10
        worst = np.argmax((ratio + width)[late])
        text = f"{ratio[late][worst]:.3g} ± {width[late][worst]:.2g} at k = {steps[late][worst]}"
        rows.append([str(number), ORACLE, "–", "largest ratio for k ≥ 10", text, ""])
    mean, margin = mean_and_margin(errors(results, 1, ORACLE))
    for name, quantity in (("proved bound", "1/bound"), ("talk's claim", "1/claimed")):
        ratio, width = mean[-1] / results[quantity][-1], margin[-1] / results[quantity][-1]
        rows.append(
            ["1", ORACLE, "–", f"E|x − x*|² over the {name} at the end", f"{ratio:.3g} ± {width:.2g}", ""]
        )
    return headers, rows


def figure(results: _run.Arrays) -> plt.Figure:
    """Above one centre, below four: a path, the means, and the ratio to the best schedule."""
    style = {
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
    }
    with plt.rc_context(style):
        fig, axes = plt.subplots(2, 3, figsize=(15.0, 8.2), layout="constrained", width_ratios=(1, 1.15, 1))
        fig.get_layout_engine().set(w_pad=0.08, h_pad=0.1)
        draw_path(axes[0, 0], results)
        draw_clusters(axes[1, 0], results)
        for row, number in enumerate((1, 4)):
            draw_means(axes[row, 1], results, number)
            draw_ratio(axes[row, 2], results, number)
    return fig


def set_limits(axis, results: _run.Arrays, number: int) -> None:
    """Steps on a logarithmic axis."""
    steps = results[f"{number}/steps"]
    axis.set(xscale="log", xlim=(1, steps[-1]), xlabel="step $k$")


def draw_path(axis, results: _run.Arrays) -> None:
    """One path of a few methods, all on the same minibatches."""
    entries = []
    for name in ("SPS+ (optax)", "SALR, running mean", SCHEDULE, ORACLE):
        values = errors(results, 1, name)[1:, 0]
        axis.plot(
            results["1/steps"][1:], values, color=COLOURS[name], linewidth=2.2 if name == ORACLE else 1.4
        )
        entries.append((values[-1], name, COLOURS[name]))
    axis.plot(results["1/steps"][1:], results["1/bound"][1:], color="black", linestyle="--", linewidth=1.2)
    entries.append((results["1/bound"][-1], "bound on the mean", "black"))
    axis.set(yscale="log", ylabel="$|x_k - x^*|^2$  [param²]", title="one centre: one path")
    set_limits(axis, results, 1)
    label_ends(axis, entries, 0.055 * np.ptp(np.log10(axis.get_ylim())))


def draw_means(axis, results: _run.Arrays, number: int) -> None:
    """Means over the paths with their 95 % bands; for one centre with the two bounds."""
    steps, entries = results[f"{number}/steps"][1:], []
    for name, colour in COLOURS.items():
        mean, margin = (part[1:] for part in mean_and_margin(errors(results, number, name)))
        front = name in (ORACLE, CERTAIN, SCHEDULE)
        axis.plot(
            steps,
            mean,
            color=colour,
            linewidth=2 if front else 1.4,
            linestyle=(0, (3, 2)) if name == CERTAIN else "-",
            zorder=3 + front + (name == CERTAIN),
        )
        axis.fill_between(
            steps, np.maximum(mean - margin, mean / 10), mean + margin, color=colour, alpha=0.2, lw=0
        )
        entries.append((mean[-1], name, colour))
    if number == 1:
        for name, text, style in (
            ("1/bound", "proved bound", "--"),
            ("1/claimed", "claimed in the talk", ":"),
        ):
            colour = "black" if style == "--" else "#c00000"
            axis.plot(steps, results[name][1:], color=colour, linestyle=style, linewidth=1.5, zorder=6)
            entries.append((results[name][-1], text, colour))
    quantity = "$E\\,|x_k - x^*|^2$  [param²]" if number == 1 else "$E\\,f(x_k) - f^*$  [param²]"
    title = "means" if number == 1 else "means (no theorem)"
    axis.set(yscale="log", ylabel=quantity, title=f"{title} over {results['num_paths']} paths, 95 % bands")
    set_limits(axis, results, number)
    label_ends(axis, entries, 0.055 * np.ptp(np.log10(axis.get_ylim())))


def draw_ratio(axis, results: _run.Arrays, number: int) -> None:
    """Error over that of the best schedule, paired, with 95 % bands."""
    steps, reference = results[f"{number}/steps"][1:], errors(results, number, SCHEDULE)[1:]
    entries = []
    for name in (ORACLE, CERTAIN):
        ratio, width = paired_ratio(errors(results, number, name)[1:], reference)
        axis.plot(steps, ratio, color=COLOURS[name], linewidth=2)
        axis.fill_between(steps, ratio - width, ratio + width, color=COLOURS[name], alpha=0.2, lw=0)
        entries.append((ratio[-1], name, COLOURS[name]))
    axis.axhline(1, color="black", linewidth=1)
    set_limits(axis, results, number)
    if number == 1:
        axis.plot(
            steps, results["1/claimed"][1:] / reference.mean(axis=1), color="#c00000", linestyle=":", linewidth=1.5
        )  # fmt: skip
        entries.append((results["1/claimed"][-1] / reference[-1].mean(), "claimed bound", "#c00000"))
        axis.axhline(results["1/limit"], color=COLOURS[ORACLE], linewidth=1, linestyle=(0, (1, 3)))
        axis.text(1.2, results["1/limit"] - 0.012, "$d/(d + 2)$", color=COLOURS[ORACLE], va="top")
    entries.append((1.0, SCHEDULE, "black"))
    axis.set(title="error over that of the best schedule", ylabel="ratio of means", ylim=(0.3, 1.2))
    label_ends(axis, entries, 0.022)


def draw_clusters(axis, results: _run.Arrays) -> None:
    """The data of four centres and the exact rule's first path."""
    data = results["4/data"]
    axis.plot(*data.T, ".", color="#b0b0b0", markersize=3, rasterized=True)
    path = results[f"4/{ORACLE}/first"][0].reshape(-1, 4, 2)
    for centre in range(4):
        axis.plot(*path[:, centre].T, color=COLOURS[ORACLE], linewidth=1.4)
        axis.plot(*path[0, centre], "o", color=COLOURS[ORACLE], markersize=6, markerfacecolor="white")
    axis.plot(*results["4/minimiser"].reshape(4, 2).T, "x", color="black", markersize=8, markeredgewidth=2)
    axis.set(title=f"four centres: a path of {ORACLE}", xlabel="$x_1$  [param]", ylabel="$x_2$  [param]")
    axis.set_aspect("equal", adjustable="datalim")
    axis.annotate("start", path[0, 0], xytext=(-6, -16), textcoords="offset points", color=COLOURS[ORACLE])
