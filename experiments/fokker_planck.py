"""The density of stochastic descent: the Fokker-Planck equation against histograms of simulated paths.

SGD with learning rate h and gradient noise of variance T/h an axis is the Euler step of dx = −∇f ds + √T dW, whose
density solves ρ_s = div(ρ ∇f) + (T/2) Δρ and tends to the Gibbs density exp(−2f/T). The figure compares that density on
a grid with counts of paths: for a tilted double well at several times, where the bins' 95 % intervals should contain
the curve nineteen times in twenty and the residuals show it, and for the Müller-Brown surface in the plane.

What to see: the distance in total variation of a histogram of n paths from the equation falls like n^(−1/2) for as
long as the Euler step can be told from the diffusion by no such histogram, and then stays at the bias of the step,
which is proportional to h. The lines are no fit: the law of the Euler chain itself is found by Chapman and
Kolmogorov's equation, and the distance follows from it and the binomial law of the counts.

The last panel has real minibatches, one example at a time, for k-means with one centre, where the noise is that of the
data: SGD with rate h and noise of variance σ² is the diffusion of temperature T = h σ². At a small rate its stationary
density is Gibbs's, a Gaussian, whatever the data are; at a large one the data show through and the spread is larger
than Gibbs's by the factor (1 − h/2)^(−1/2), so that temperature alone does not describe it.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import _run
from experiments._histograms import LIMIT, bin_masses, expected_distance, histogram, wilson
from jaxopt_pde import pde, problems

ORANGE, GREEN, RED, GREY = "#e69f00", "#009e73", "#d55e00", "#777777"
RATE_COLOURS = (RED, ORANGE, GREEN)
TIME_COLOURS = ("#fde0a6", "#e69f00", "#c4622d", "#7b3294", "#2d1b69")
HALF_WIDTH = 2.0  # of the grid on the line


@dataclasses.dataclass(frozen=True)
class Config:
    """The losses, the steps and the numbers of paths."""

    seed: int = 0
    """Seeds all paths."""
    temperature: float = 1.2
    """T on the line, in [loss]: high enough for paths to cross the barrier, of height 1."""
    start: float = 0.9
    """Mean of the first density, in [param]; its standard deviation is 0.15."""
    times: tuple[float, ...] = (0.05, 0.3, 1.0, 3.0, 12.0)
    """Times s of the densities on the line, in [param²/loss]; the distances are measured at the third."""
    points: int = 161
    """Grid points on the line, a multiple of the number of bins and one."""
    bins: int = 40
    """Bins on the line."""
    paths: int = 20_000
    """Paths of the densities on the line."""
    step: float = 0.0025
    """Their Euler step h, in [param²/loss]."""
    steps: tuple[float, ...] = (0.05, 0.01, 0.0025)
    """Euler steps h of the distances."""
    most_paths: int = 409_600
    """Paths of the distances; fewer are disjoint parts of them."""
    plane_temperature: float = 60.0
    """T on the Müller-Brown surface, in [loss]."""
    plane_times: tuple[float, ...] = (0.003, 0.02)
    """Two times of the densities on that surface, in [param²/loss], or none to leave it out."""
    plane_points: int = 97
    """Grid points along each axis."""
    plane_paths: int = 60_000
    """Paths on that surface."""
    plane_step: float = 2e-5
    """Their Euler step; the largest curvature at a minimum is 4,068."""
    rates: tuple[float, ...] = (0.7, 0.2, 0.02)
    """Learning rates h of k-means."""
    chains: int = 40_000
    """Independent runs of SGD on k-means, each of 6/h steps."""


SMOKE = Config(
    times=(0.05, 0.3, 1.0),
    points=81,
    paths=2000,
    step=0.01,
    steps=(0.05, 0.01),
    most_paths=25_600,
    plane_times=(),
    rates=(0.7, 0.1),
    chains=4000,
)


def euler_paths(gradient, x, key, step, counts, temperature: float) -> jax.Array:
    """Positions [time, ...] of SGD with Gaussian noise from ``x`` after ``counts`` [time] steps, increasing."""

    def advance(x, key):
        return x - step * gradient(x) + jnp.sqrt(temperature * step) * jax.random.normal(key, x.shape)

    def until(carry, bounds):
        number = lambda i, x: advance(x, jax.random.fold_in(key, i))
        x = jax.lax.fori_loop(bounds[0], bounds[1], number, carry)
        return x, x

    bounds = jnp.stack([jnp.roll(counts, 1).at[0].set(0), counts], axis=1)
    return jax.lax.scan(until, x, bounds)[1]


def chain_law(slope, density: np.ndarray, x: np.ndarray, step: float, count: int, temperature: float):
    """Density of the Euler chain on the grid after ``count`` steps, by Chapman and Kolmogorov's equation."""
    spread = math.sqrt(temperature * step)
    mean = x - step * slope
    kernel = np.exp(-((x[:, None] - mean) ** 2) / (2 * spread**2)) / (spread * math.sqrt(2 * math.pi))
    kernel *= x[1] - x[0]
    for _ in range(count):
        density = kernel @ density
    return density


def line(config: Config) -> dict[str, np.ndarray]:
    """The double well: densities and histograms over time, and the distance by number of paths and step."""
    problem = problems.double_well()
    gradient, T = jax.grad(problem.loss), config.temperature
    slope = lambda x: jax.vmap(gradient)(x[:, None])[:, 0]
    grid = pde.Grid.uniform(-HALF_WIDTH, HALF_WIDTH, config.points)
    x = np.linspace(-HALF_WIDTH, HALF_WIDTH, config.points)
    bell = np.exp(-((x - config.start) ** 2) / (2 * 0.15**2)) / (0.15 * math.sqrt(2 * math.pi))
    solution = pde.solve_fokker_planck(
        jnp.asarray(bell, jnp.float32), grid, jnp.asarray(config.times),
        drift=lambda x: -gradient(x), temperature=T, max_steps=1_000_000,
    ).check()  # fmt: skip
    density = np.asarray(solution.values, np.float64)
    f = np.asarray(grid.evaluate(problem.loss), np.float64)
    gibbs = np.exp(-2 * f / T)
    mass = bin_masses(density, grid.spacing[0], config.bins)
    mass /= mass.sum(axis=-1, keepdims=True)  # tens of thousands of steps in float32 lose about 0.1 % of it

    @functools.partial(jax.jit, static_argnums=0)
    def simulate(number, step, counts, key):
        first = config.start + 0.15 * jax.random.normal(jax.random.fold_in(key, 1), (number,))
        return euler_paths(slope, first, jax.random.fold_in(key, 2), step, counts, T)

    in_steps = lambda step, times: jnp.array([round(time / step) for time in times])
    key = _run.key_for(config.seed, "line")
    samples = simulate(config.paths, config.step, in_steps(config.step, config.times), key)
    middle, shown = config.times[2], mass[2]
    number = config.most_paths // 4 ** np.arange(round(math.log(config.most_paths / 100, 4)), -1, -1)
    distance, predicted, bias = [], [], []
    for step in config.steps:
        counts = in_steps(step, (middle,))
        key = _run.key_for(config.seed, "distance", f"{step:g}")
        found = np.asarray(simulate(config.most_paths, step, counts, key))[0]
        split = lambda n, found=found: histogram(found.reshape(-1, n), HALF_WIDTH, config.bins) / n
        distance.append([0.5 * np.abs(split(n) - shown).sum(axis=-1).mean() for n in number])
        law = chain_law(np.asarray(slope(grid.axes[0]), np.float64), bell, x, step, int(counts[0]), T)
        law = bin_masses(law, grid.spacing[0], config.bins)
        predicted.append(expected_distance(law, shown, number))
        bias.append(0.5 * np.abs(law - shown).sum())
    return {
        "x": x,
        "times": np.asarray(config.times),
        "density": density,
        "gibbs": gibbs / np.trapezoid(gibbs, x),
        "mass": mass,
        "counts": histogram(np.asarray(samples), HALF_WIDTH, config.bins),
        "number": number,
        "steps": np.asarray(config.steps),
        "distance": np.array(distance),
        "predicted": np.array(predicted),
        "bias": np.array(bias),
    }


def plane(config: Config) -> dict[str, np.ndarray]:
    """The Müller-Brown surface: densities and positions of paths that start in its shallowest well."""
    problem = problems.mueller_brown()
    gradient, T = jax.grad(problem.loss), config.plane_temperature
    middle = jnp.asarray(problem.minimisers[2], jnp.float32)
    grid = pde.Grid.uniform((-1.5, -0.4), (1.2, 2.0), (config.plane_points,) * 2)
    bell = grid.evaluate(lambda x: jnp.exp(-jnp.sum((x - middle) ** 2) / (2 * 0.08**2)))
    solution = pde.solve_fokker_planck(
        bell / (2 * math.pi * 0.08**2), grid, jnp.asarray(config.plane_times),
        drift=lambda x: -gradient(x), temperature=T, max_steps=1_000_000,
    ).check()  # fmt: skip
    counts = jnp.array([round(time / config.plane_step) for time in config.plane_times])

    @jax.jit
    def simulate(key):
        first = middle[None] + 0.08 * jax.random.normal(jax.random.fold_in(key, 1), (config.plane_paths, 2))
        key = jax.random.fold_in(key, 2)
        return euler_paths(jax.vmap(gradient), first, key, config.plane_step, counts, T)

    return {
        "plane/x": grid.axes[0],
        "plane/y": grid.axes[1],
        "plane/f": grid.evaluate(problem.loss),
        "plane/times": np.asarray(config.plane_times),
        "plane/density": solution.values,
        "plane/samples": simulate(_run.key_for(config.seed, "plane")),
    }


def minibatches(config: Config) -> dict[str, np.ndarray]:
    """SGD on k-means with one centre, an example a step: last iterates in units of Gibbs's spread, [rate, run]."""
    # A quarter of the data about 2 and the rest about 0, narrow enough for a large rate to show both.
    data = np.concatenate([np.linspace(-0.3, 0.3, 150), 2 + np.linspace(-0.3, 0.3, 50)])[:, None]
    problem = problems.kmeans(data, batch_size=1)

    @functools.partial(jax.jit, static_argnums=0)
    def simulate(steps, rate, key):
        def advance(i, x):
            keys = jax.random.split(jax.random.fold_in(key, i), config.chains)
            return x - rate * jax.vmap(problem.minibatch_gradient)(x, keys)

        start = jnp.broadcast_to(jnp.asarray(problem.minimiser, jnp.float32), (config.chains, 1))
        return jax.lax.fori_loop(0, steps, advance, start)[:, 0] - problem.minimiser[0]

    ends = []
    for rate in config.rates:
        end = simulate(math.ceil(6 / rate), rate, _run.key_for(config.seed, "k-means", f"{rate:g}"))
        # Gibbs: exp(−x²/T) about the mean, of variance T/2
        ends.append(np.asarray(end) / math.sqrt(rate * problem.noise_variance / 2))
    return {"rates": np.asarray(config.rates), "scaled": np.stack(ends)}


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """The three parts, or two."""
    results, parts = {}, (line, minibatches, plane)[: 3 if config.plane_times else 2]
    with session.progress("losses", len(parts)) as meter:
        for part in parts:
            results |= session.stage(part.__name__, functools.partial(part, config))
            meter.advance()
    return results


def residuals(results: _run.Arrays) -> tuple[np.ndarray, np.ndarray]:
    """(share − mass)/standard error in the bins of the line, [time, bin], and which bins expect five paths or more."""
    number, mass = results["counts"][0].sum(), results["mass"]
    error = np.sqrt(mass.clip(1e-30) * (1 - mass) / number)
    return (results["counts"] / number - mass) / error, number * mass >= 5


def covered(results: _run.Arrays) -> tuple[np.ndarray, np.ndarray]:
    """How many bins' 95 % intervals hold the mass of the equation, and of how many, [time]."""
    number, mass = results["counts"][0].sum(), results["mass"]
    low, high = wilson(results["counts"] / number, number)
    enough = residuals(results)[1]
    return ((low <= mass) & (mass <= high) & enough).sum(axis=-1), enough.sum(axis=-1)


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Fit at every time, distance at the least and the largest number of paths, spread under minibatches."""
    headers = ["what", "where", "measured", "expected"]
    z, enough = residuals(results)
    inside, among = covered(results)
    rows = []
    for i, time in enumerate(results["times"]):
        square = np.mean(z[i][enough[i]] ** 2)
        measured = f"{inside[i]} of {among[i]}; {square:.2f}"
        rows.append(["bins that hold ρ; χ² a bin", f"s = {time:g}", measured, f"{0.95 * among[i]:.1f}; 1"])
    ends = results["number"][[0, -1]]
    for step, distance, predicted, bias in zip(
        results["steps"], results["distance"], results["predicted"], results["bias"], strict=True
    ):
        pairs = (" → ".join(f"{curve[i]:.4f}" for i in (0, -1)) for curve in (distance, predicted))
        where = f"h = {step:g}, n = {ends[0]:,} → {ends[1]:,}"
        rows.append(["total variation", where, *pairs])
        rows.append(
            ["bias of the Euler chain, n = ∞", f"h = {step:g}", f"{bias:.5f}", f"{bias / step:.2f} h"]
        )
    for rate, scaled in zip(results["rates"], results["scaled"], strict=True):
        half = LIMIT * scaled.std() / math.sqrt(2 * scaled.size)
        exact = f"{(1 - rate / 2) ** -0.5:.4f}"
        rows.append(
            ["spread on k-means over Gibbs's", f"h = {rate:g}", f"{scaled.std():.4f} ± {half:.4f}", exact]
        )
    return headers, rows


def figure(results: _run.Arrays) -> plt.Figure:
    """Above: densities, residuals and distances on the line. Below: the plane, and minibatches."""
    style = {"font.size": 11, "axes.titlesize": 12, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        fig, axes = plt.subplots(2, 3, figsize=(13.4, 8.0), layout="constrained")
        fig.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        draw_densities(axes[0, 0], results)
        draw_residuals(axes[0, 1], results)
        draw_distances(axes[0, 2], results)
        for i, axis in enumerate(axes[1, :2]):
            if i < len(results.get("plane/times", ())):
                draw_plane(axis, results, i)
            else:
                axis.set_axis_off()
        draw_minibatches(axes[1, 2], results)
    return fig


def time_colours(results: _run.Arrays) -> tuple[str, ...]:
    """A colour a time, light to dark."""
    return TIME_COLOURS[-len(results["times"]) :]


def draw_densities(axis, results: _run.Arrays) -> None:
    """Density and histogram with 95 % intervals, one above the other, and Gibbs's at the last time."""
    number, bins = results["counts"][0].sum(), results["mass"].shape[1]
    width = 2 * HALF_WIDTH / bins
    centres = -HALF_WIDTH + width * (np.arange(bins) + 0.5)
    for i, (time, colour) in enumerate(zip(results["times"], time_colours(results), strict=True)):
        base, scale = 1.15 * (len(results["times"]) - 1 - i), 1 / results["density"][i].max()
        share = results["counts"][i] / number
        shown = results["counts"][i] > 0
        low, high = (base + scale * end / width for end in wilson(share, number))
        axis.fill_between(
            results["x"], base, base + scale * results["density"][i], color=colour, alpha=0.35, lw=0
        )
        axis.plot(results["x"], base + scale * results["density"][i], color=colour, linewidth=1.6)
        axis.vlines(centres[shown], low[shown], high[shown], color="#222222", linewidth=1.1, zorder=3)
        axis.plot(centres[shown], (base + scale * share / width)[shown], "o", color="#222222", markersize=2.4)
        axis.text(2.05, base, f"s = {time:g}", fontsize=10, va="center")
    axis.plot(results["x"], scale * results["gibbs"], color=RED, linewidth=1.4, linestyle=(0, (4, 2)))
    axis.text(0.42, 0.33, "Gibbs\n$e^{−2f/T}$", color=RED, fontsize=10, ha="center")
    axis.set(xlim=(-2, 2), xlabel="x   [param]", yticks=[], ylabel="density / its maximum")
    axis.set_title(f"Double well: {number:,} paths and ρ(x, s)")


def draw_residuals(axis, results: _run.Arrays) -> None:
    """Standardised residuals of the bins, which should be in the band nineteen times in twenty."""
    bins = results["mass"].shape[1]
    centres = -HALF_WIDTH + 2 * HALF_WIDTH / bins * (np.arange(bins) + 0.5)
    z, enough = residuals(results)
    axis.axhspan(-LIMIT, LIMIT, color="#e8e8e8", linewidth=0)
    axis.axhline(0, color=GREY, linewidth=0.8)
    for i, (time, colour) in enumerate(zip(results["times"], time_colours(results), strict=True)):
        keep = enough[i]
        axis.plot(
            centres[keep], z[i][keep], "o", color=colour, markersize=5,
            markeredgecolor="#444444", markeredgewidth=0.4, label=f"{time:g}",
        )  # fmt: skip
    inside, among = covered(results)
    share = inside.sum() / among.sum()
    axis.set(xlim=(-2, 2), ylim=(-4.9, 4.9), xlabel="x   [param]", ylabel="(share − mass) / std error")
    axis.set_title(f"{100 * share:.1f} % of bins inside ±1.96 (95 % expected)")
    axis.legend(
        title="s", ncols=len(results["times"]), loc="lower center", frameon=False, fontsize=10,
        handletextpad=0.0, columnspacing=0.8,
    )  # fmt: skip


def draw_distances(axis, results: _run.Arrays) -> None:
    """Total variation against the number of paths: n^(−1/2), then the bias of the Euler step."""
    number = results["number"]
    for i, step in enumerate(results["steps"]):
        colour = RATE_COLOURS[i]
        axis.plot(number, results["predicted"][i], color=colour, linewidth=1.4)
        axis.plot(number, results["distance"][i], "o", color=colour, markersize=5.5)
        axis.axhline(results["bias"][i], color=colour, linewidth=0.9, linestyle=(0, (1, 2)))
        axis.annotate(
            f"   h = {step:g}",
            (number[-1], results["bias"][i]),
            color=colour,
            va="center",
            annotation_clip=False,
        )
    middle = number[[2, -2]] if number.size > 3 else number[[0, -1]]
    guide = 0.6 * results["predicted"][-1][0] * (middle / number[0]) ** -0.5
    axis.plot(middle, guide, color=GREY, linewidth=1)
    axis.text(middle[0], guide[0], "$n^{−1/2}$ ", color=GREY, ha="right", va="center")
    axis.set(xscale="log", yscale="log", xlabel="n, paths", ylabel="total variation distance")
    axis.set_title(f"Distance of the histogram from ρ(·, {results['times'][2]:g})")


def draw_plane(axis, results: _run.Arrays, i: int) -> None:
    """Histogram of the paths and contours of the density on the Müller-Brown surface."""
    x, y = results["plane/x"], results["plane/y"]
    samples, density = results["plane/samples"][i], results["plane/density"][i].T
    edges = np.linspace(x[0], x[-1], 46), np.linspace(y[0], y[-1], 41)
    counts, *_ = np.histogram2d(*samples.T, bins=edges, density=True)
    counts[counts == 0] = np.nan
    levels = np.array([0.02, 0.1, 0.3, 0.6]) * density.max()
    axis.contour(
        x, y, results["plane/f"].T, np.arange(-140, 60, 20), colors="#c9c9c9", linewidths=0.6, linestyles="-"
    )
    axis.pcolormesh(*edges, counts.T, cmap="Blues", vmin=0, rasterized=True)
    axis.contour(x, y, density, levels, colors=[RED], linewidths=1.3)
    axis.set(xlim=(-1.25, 1.1), ylim=(-0.35, 1.95), xlabel="x₁   [param]", ylabel="x₂   [param]")
    number = f"{samples.shape[0]:,} paths (blue), " if i == 0 else ""
    axis.set_title(f"Müller-Brown: {number}ρ at s = {results['plane/times'][i]:g}")


def draw_minibatches(axis, results: _run.Arrays) -> None:
    """Stationary histograms of SGD on k-means, scaled so that the Gibbs density is the standard normal one."""
    x = np.linspace(-3.6, 3.6, 300)
    normal = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    peak = 0.0
    for rate, scaled, colour in zip(results["rates"], results["scaled"], RATE_COLOURS, strict=False):
        height, edges = np.histogram(scaled, bins=72, range=(-3.6, 3.6))
        height = height / (scaled.size * (edges[1] - edges[0]))
        axis.stairs(height, edges, color=colour, linewidth=1.5, label=f"h = {rate:g}")
        peak = max(peak, height.max())
    axis.plot(x, normal, color="#222222", linewidth=1.2, linestyle=(0, (4, 2)), label="Gibbs, T = hσ²")
    axis.set(xlim=(-3.6, 3.6), ylim=(0, 1.08 * peak), xlabel="(x − x*) / (T/2)$^{1/2}$", ylabel="density")
    axis.legend(frameon=False, loc="upper right", handlelength=1.4)
    axis.set_title("SGD on k-means, one example a step")
