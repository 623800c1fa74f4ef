"""A batch that grows while the learning rate stays: samples used against error, on the mean of a cloud.

The dual of the space-adaptive learning rate: keep h and take b ≥ σ²/(2 (f − f*)/h − |∇f|²) examples to a step. The
problem is k-means with one centre, examples are drawn with replacement and arrive two at a time, and every method
sees the same ones. :func:`jaxopt_pde.adaptive_batch` gathers them inside one compiled program until its rule holds,
with the variance of the gradient estimated on the way: knowing f and f* exactly, knowing neither but the curvature
L, or with the losses of the microbatches in place of f. The exact rule is told the variance and the gradient too.
They are held against every constant batch of a grid of powers of two at the same h.

What to see: a constant batch is fast and stops at its floor, or slow; the growing one follows the lower envelope of
them all, or is below it. The comparison on the right is the hard one, against the constant batch that is best for the
error in question, chosen in hindsight: a ratio below 1 is a win for the growing batch. Given exact losses it wins at
all but large errors, where it loses the few examples that it takes to measure the variance; by curvature alone it
needs about as many samples as the best constant batch, and fewer at small errors, without having to be told which
that is; with losses of microbatches it loses everywhere, the more the smaller the error, since what they know of f is
no better near the minimum. None of it uses fewer samples than adapting the learning rate at the smallest batch, shown
in black: what a growing batch saves is not samples but steps one after the other.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxopt_pde
from experiments import _run
from experiments._stochastic_paths import Method, label_ends, run_paths
from jaxopt_pde import problems

MICROBATCH = 2
"""Examples that arrive at a time."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The data, the step, the batches and the number of paths."""

    seed: int = 0
    """Seeds data, minibatches and the bootstrap."""
    num_examples: int = 1000
    """Examples, standard normal."""
    dimension: int = 4
    """Coordinates of an example."""
    learning_rate: float = 0.25
    """h, in units of 1/L."""
    batch_sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    """Grid of constant batches, in examples; even."""
    largest_batch: int = 16384
    """Greatest adaptive batch, in examples."""
    num_updates: int = 15000
    """Pairs of examples that every path uses."""
    num_paths: int = 200
    """Paths of every method."""
    num_checkpoints: int = 121
    """Places along the paths where the loss is looked at."""
    targets: tuple[float, ...] = (1.0, 0.1, 0.01, 0.002)
    """Errors E f − f* of the table, in [param²]."""
    num_resamples: int = 500
    """Bootstrap resamples of the paths, for the intervals of the ratios."""


SMOKE = Config(
    batch_sizes=(2, 16, 64), num_updates=400, num_paths=16, num_checkpoints=25, targets=(1.0, 0.1), num_resamples=50
)  # fmt: skip

LOSS, CURVATURE, NOISY = "growing, exact loss", "growing, by curvature", "growing, microbatch losses"
RULE, ADAPTIVE, CONSTANT = "growing, exact rule", "adaptive h, batch of 2", "constant"
COLOURS = {LOSS: "#0072b2", CURVATURE: "#009e73", NOISY: "#d55e00", RULE: "#cc79a7", ADAPTIVE: "black"}


class Gathered(NamedTuple):
    """State of :func:`gather`: microbatches in hand, their mean gradient, and the size of the last batch."""

    count: Any
    mean: Any
    batch_size: Any


def gather(needed, learning_rate) -> optax.GradientTransformation:
    """SGD on the mean of as many microbatch gradients as ``needed(params)`` says; no estimates."""

    def init(params):
        return Gathered(jnp.zeros([], jnp.int32), jnp.zeros_like(params), jnp.zeros([], jnp.int32))

    def update(updates, state, params=None):
        count = state.count + 1
        mean = state.mean + (updates - state.mean) / count
        ready = count >= needed(params)
        size = jnp.where(ready, count, state.batch_size)
        left = Gathered(jnp.where(ready, 0, count), jnp.where(ready, 0, mean), size)
        return jnp.where(ready, -learning_rate * mean, 0), left

    return optax.GradientTransformation(init, update)


def make_methods(config: Config, problem: problems.StochasticProblem) -> dict[str, Method]:
    """All that is compared, each fed two examples at a time."""
    h, most = config.learning_rate / problem.smoothness, config.largest_batch // MICROBATCH
    sgd, watched = optax.sgd(h), ("batch_size",)
    grow = functools.partial(jaxopt_pde.adaptive_batch, sgd, h, max_microbatches=most)
    by_loss, by_curvature = grow(f_min=0.0), grow(smoothness=problem.smoothness)
    by_noisy = grow(f_min=problem.minimum)
    adaptive = jaxopt_pde.space_adaptive_sgd(max_learning_rate=1 / problem.strong_convexity)

    def required(params):
        moments = (
            problem.excess_loss(params),
            jnp.sum(problem.gradient(params) ** 2),
            problem.example_variance(params),
        )
        return jnp.minimum(problems.required_batch_size(*moments, h) / MICROBATCH, most)

    sizes = np.array(config.batch_sizes, np.float32)[:, None] / MICROBATCH
    return {
        LOSS: Method(lambda row: by_loss, exact=True, watched=watched),
        CURVATURE: Method(lambda row: by_curvature, watched=watched),
        NOISY: Method(lambda row: by_noisy, watched=watched),
        RULE: Method(lambda row: gather(required, h), watched=watched),
        ADAPTIVE: Method(lambda row: adaptive, exact=True),
        CONSTANT: Method(lambda row: gather(lambda params: row[0], h), sizes),
    }


def make_problem(config: Config) -> problems.StochasticProblem:
    """One cloud, one centre."""
    key = _run.key_for(config.seed, "data")
    data, _, _ = problems.planted_clusters(key, config.num_examples, 1, config.dimension)
    return problems.kmeans(data, batch_size=MICROBATCH)


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """All paths, then the samples that every method needs to reach each error."""
    problem = make_problem(config)
    methods = make_methods(config, problem)
    key = _run.key_for(config.seed, "examples")
    sizes = config.num_paths, config.num_updates, config.num_checkpoints
    with session.progress("adaptive_batch_kmeans", 1) as meter:
        found = session.stage("paths", functools.partial(run_paths, problem, methods, key, *sizes))
        meter.advance()
    curves = np.concatenate([found[f"{name}/excess"] for name in (*COLOURS, CONSTANT)])
    draws = jax.random.randint(
        _run.key_for(config.seed, "bootstrap"), (config.num_resamples, config.num_paths), 0, config.num_paths
    )
    weights = np.stack([np.bincount(draw, minlength=config.num_paths) for draw in np.asarray(draws)])
    weights = np.concatenate([np.ones((1, config.num_paths)), weights]) / config.num_paths
    samples, targets = MICROBATCH * found["steps"], np.geomspace(curves[0, 0].mean() / 4, 1e-3, 41)
    means = curves @ weights.T  # [method, checkpoint, resample]
    return {
        "samples": samples,
        "method": np.array(list(COLOURS)),
        "batch_sizes": np.array(config.batch_sizes),
        "mean": means[:, :, 0],
        "low": np.quantile(means[:, :, 1:], 0.025, axis=-1),
        "high": np.quantile(means[:, :, 1:], 0.975, axis=-1),
        "batch": np.stack([found[f"{name}/batch_size"][0].mean(axis=-1) for name in (LOSS, CURVATURE, NOISY, RULE)])
        * MICROBATCH,
        "rule_scale": np.array(float(problem.example_noise_variance) / (2 / config.learning_rate - 2)),
        "targets": targets,
        "needed": crossings(samples, means, targets),
        "table_targets": np.array(config.targets),
        "table_needed": crossings(samples, means, np.array(config.targets)),
    }  # fmt: skip


NOT_FINITE = ("needed", "table_needed")


def crossings(samples: np.ndarray, means: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Samples after which the mean error is first at most the target; infinite if it never is.

    Args:
        samples: [checkpoints].
        means: [method, checkpoint, resample].
        targets: [target].

    Returns:
        [target, method, resample], interpolated between checkpoints in the logarithms.
    """
    found = np.full((len(targets), means.shape[0], means.shape[2]), np.inf)
    logarithms, places = np.log(np.maximum(means, 1e-30)), np.log(np.maximum(samples, 1))
    for index, target in enumerate(np.log(targets)):
        reached = logarithms <= target
        after = np.maximum(np.argmax(reached, axis=1), 1)[:, None]
        low, high = (np.take_along_axis(logarithms, at, axis=1)[:, 0] for at in (after - 1, after))
        share = np.clip((low - target) / np.where(low > high, low - high, 1), 0, 1)
        left, right = places[after - 1][:, 0], places[after][:, 0]
        found[index] = np.where(reached.any(axis=1), np.exp(left + share * (right - left)), np.inf)
    return found


def ratios(needed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples over those of the best constant batch, and its 95 % bootstrap interval, each [target, method].

    The best constant batch is chosen anew for each target and in each resample. Infinite where the method does not
    reach the target, NaN where no constant batch does.
    """
    fixed = needed[:, len(COLOURS) :].min(axis=1)
    with np.errstate(invalid="ignore"):
        ratio = needed[:, : len(COLOURS)] / fixed[:, None]
    first = np.where(np.isfinite(fixed[:, :1]), ratio[:, :, 0], np.nan)
    resampled = np.where(np.isnan(ratio[:, :, 1:]), np.inf, ratio[:, :, 1:])
    ordered = np.sort(resampled, axis=-1)
    edge = int(0.025 * ordered.shape[-1])
    return first, ordered[:, :, edge], ordered[:, :, ordered.shape[-1] - 1 - edge]


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Samples to reach each error, and the ratio to the best constant batch."""
    headers = ["E f − f*", "method", "samples", "ratio to the best constant batch, 95 % interval"]
    rows, needed = [], results["table_needed"]
    ratio, low, high = ratios(needed)
    count = len(COLOURS)
    for index, target in enumerate(results["table_targets"]):
        fixed = needed[index, count:, 0]
        cells = lambda value, form: "not reached" if not np.isfinite(value) else format(value, form)
        size = results["batch_sizes"][np.argmin(fixed)]
        rows.append([f"{target:g}", f"best constant batch, {size}", cells(fixed.min(), ",.0f"), "1"])
        for method, name in enumerate(results["method"]):
            text = f"{ratio[index, method]:.2f} ({low[index, method]:.2f} to {high[index, method]:.2f})"
            reached = np.isfinite(needed[index, method, 0]) and np.isfinite(fixed.min())
            rows.append(
                [f"{target:g}", str(name), cells(needed[index, method, 0], ",.0f"), text if reached else "–"]
            )
    ratio, _, high = ratios(results["needed"])
    for method, name in enumerate(results["method"]):
        with np.errstate(invalid="ignore"):
            wins = np.mean(ratio[:, method] <= 1)
            sure = np.mean(high[:, method] <= 1)
        text = f"≤ 1 at {100 * wins:.0f} %, whole interval at {100 * sure:.0f} %"
        rows.append(["all targets of the figure", str(name), "–", text])
    return headers, rows


def figure(results: _run.Arrays) -> plt.Figure:
    """Error against samples, batch size against error, and samples over those of the best constant batch."""
    style = {
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
    }
    with plt.rc_context(style | {"axes.titlesize": 12}):
        fig, axes = plt.subplots(1, 3, figsize=(15.0, 4.9), layout="constrained")
        fig.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
        draw_errors(axes[0], results)
        draw_batches(axes[1], results)
        draw_ratios(axes[2], results)
    return fig


def draw_errors(axis, results: _run.Arrays) -> None:
    """Mean error against samples."""
    samples, count, entries = results["samples"][1:], len(COLOURS), []
    sizes = results["batch_sizes"]
    for row, size in enumerate(sizes):
        mean = results["mean"][count + row, 1:]
        axis.plot(samples, mean, color="#b0b0b0", linewidth=1)
        if row % 2 == 0 and mean[-1] > 2e-3:
            entries.append((mean[-1], f"constant, {size}", "#808080"))
    for row, (name, colour) in enumerate(COLOURS.items()):
        mean, low, high = (results[part][row, 1:] for part in ("mean", "low", "high"))
        axis.plot(samples, mean, color=colour, linewidth=1.8, zorder=3)
        axis.fill_between(samples, low, high, color=colour, alpha=0.2, lw=0)
        entries.append((mean[-1], name, colour))
    axis.set(xscale="log", yscale="log", xlim=(samples[0], samples[-1]), xlabel="examples used")
    axis.set(ylabel="$E\\,f(x) - f^*$  [param²]", title="error against samples")
    label_ends(axis, entries, 0.06 * np.ptp(np.log10(axis.get_ylim())))


def draw_batches(axis, results: _run.Arrays) -> None:
    """Mean batch size against mean error, which falls to the right."""
    for row, name in enumerate((NOISY, CURVATURE, LOSS, RULE)):
        error = results["mean"][list(COLOURS).index(name)]
        batch = results["batch"][(LOSS, CURVATURE, NOISY, RULE).index(name)]
        seen = (batch > 0) & (results["samples"] > 20)
        axis.plot(error[seen], batch[seen], color=COLOURS[name], linewidth=1.8)
        axis.text(0.03, 0.93 - 0.065 * row, name, color=COLOURS[name], fontsize=9.5, transform=axis.transAxes)
    error = np.geomspace(results["mean"][:4].min(), results["mean"][0, 0], 50)
    needed = np.maximum(results["rule_scale"] / error, MICROBATCH)
    axis.plot(error, needed, color="black", ls="--", lw=1.2)
    axis.set(xscale="log", yscale="log", xlim=(error[-1], error[0]), title="batch size against error")
    axis.set(xlabel="$E\\,f(x) - f^*$  [param²]", ylabel="mean batch  [examples]")
    rule = "the rule at $E\\,f$:\n$σ^2/(2(f - f^*)/h - |∇f|^2)$"
    axis.text(0.98, 0.1, rule, transform=axis.transAxes, ha="right", fontsize=9.5)


def draw_ratios(axis, results: _run.Arrays) -> None:
    """Samples to reach an error, over those of the best constant batch for that error."""
    ratio, low, high = ratios(results["needed"])
    targets, entries = results["targets"], []
    for row, (name, colour) in enumerate(COLOURS.items()):
        seen = np.isfinite(ratio[:, row])
        if not seen.any():
            continue
        axis.plot(targets[seen], ratio[seen, row], color=colour, linewidth=1.8)
        top = np.where(np.isfinite(high[seen, row]), high[seen, row], 50.0)
        axis.fill_between(targets[seen], low[seen, row], top, color=colour, alpha=0.2, lw=0)
        entries.append((ratio[seen, row][-1], name, colour))
    axis.axhline(1, color="black", linewidth=1, linestyle="--")
    entries.append((1.0, "best constant batch", "#606060"))
    axis.set(xscale="log", yscale="log", xlim=(targets[0], targets[-1]), ylim=(0.1, 10))
    axis.set(xlabel="error to be reached, $E\\,f(x) - f^*$  [param²]", ylabel="ratio of samples")
    axis.set_title("samples over those of the best constant batch")
    label_ends(axis, entries, 0.12)
