"""A rugged loss in one dimension, relaxed by every method at once.

The loss f is a parabola under a sine wave and smooth random noise. Its relaxations solve u_t + ½|u_x|² = (T/2) u_xx
with u(x, 0) = f(x): without viscosity (T = 0, Hopf-Lax), with it (T > 0, Cole-Hopf), and in the limit of large T with
t·T fixed (the heat equation, a Gaussian average). Lines are the exact routes on a grid; markers are the estimators of
jaxopt_pde.smoothing, each of which sees only f or its gradient, with bars of one standard error where it is random.

What to see: as t grows the minima widen and the narrow ones vanish. Without viscosity minima stay where they are, the
maxima between them sharpen to kinks, and u never exceeds f. With viscosity everything is smooth and minima go sooner;
as T → 0 the smooth curves close on the kinked one. In one dimension no minimum is ever born, at any T, because
exp(−u/T) solves the heat equation, under which the number of maxima can only fall. The table says how far every
estimator is from the exact route and what it costs: Hopf-Lax from one start is the one that fails, since proximal
descent finds the nearest well and not the best.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import _run
from jaxopt_pde import pde, problems, smoothing

# Okabe & Ito
COLOURS = {
    "Hopf-Lax": "#d55e00",
    "quadrature": "#0072b2",
    "Cole-Hopf": "#e69f00",
    "Langevin": "#009e73",
    "heat": "#cc79a7",
}
SHAPES = {"Hopf-Lax": "^", "quadrature": "o", "Cole-Hopf": "s", "Langevin": "D", "heat": "v"}
TIME_SHADES = ("#9fb4c9", "#56789d", "#16294b")
HALF_WIDTH = 6.0  # of the grid; at its ends f rises too fast to have minima


@dataclasses.dataclass(frozen=True)
class Config:
    """What to relax, and how hard each estimator tries."""

    seed: int = 0
    """Seeds all samples and chains."""
    problem_seed: int = 0
    """Seeds the noise in the loss."""
    times: tuple[float, ...] = (0.02, 0.1, 0.5)
    """Smoothing times t of the curves, in [param²/loss]; ∇u is drawn at the second."""
    temperature: float = 1.0
    """Temperature T of the viscous curves, in [loss]; the heat curves have the same t·T."""
    temperatures: tuple[float, ...] = (3.0, 1.0, 0.3, 0.1)
    """Temperatures of the approach to T = 0 and of the counts of minima, in [loss]."""
    num_times: int = 60
    """Times at which minima are counted, from 0.001 to 5 in [param²/loss]."""
    num_points: int = 2049
    """Points of the grid."""
    num_places: int = 20
    """Points x at which every estimator is run, at every time."""
    num_samples: int = 1024
    """Gaussian samples of Cole-Hopf and heat."""
    num_steps: int = 6000
    """Langevin: steps L of a chain, enough to cross the barriers between wells."""
    num_chains: int = 16
    """Langevin: chains K."""
    momentum: float = 0.95
    """Langevin: heavy ball m, with which a chain drifts 1/(1 − m) times as far."""
    step_fraction: float = 0.1
    """Langevin: step ε in units of 1/(λ + 1/t), with λ the largest curvature of f; Hopf-Lax takes half that unit."""
    num_starts: int = 25
    """Hopf-Lax: starts of proximal descent, an odd number spread over x ± 1.5; the lowest end counts."""
    num_descent_steps: int = 200
    """Hopf-Lax: steps from each start, with Nesterov momentum."""


SMOKE = Config(
    times=(0.02, 0.1),
    temperatures=(1.0, 0.1),
    num_times=10,
    num_points=1025,
    num_places=12,
    num_samples=256,
    num_steps=4000,
)


class Method(NamedTuple):
    """An estimator of u or ∇u.

    Attributes:
        member: of the family it estimates: "inviscid", "viscous" or "heat".
        estimate: (x [1], t, key) -> arrays, scalars all: "gradient", "value" if there is one, "gradient_error" and
            "value_error" if the method knows them, "gradients" and "losses" spent.
    """

    member: str
    estimate: Callable[[Any, Any, Any], dict[str, Any]]


def methods(config: Config, problem: problems.Problem, curvature: float) -> dict[str, Method]:
    """The estimators by name; ``curvature`` is the largest f''."""
    gradient = jax.grad(problem.loss)
    grad_fn = lambda x, step: gradient(x)
    temperature = config.temperature
    starts = jnp.linspace(-1.5, 1.5, config.num_starts)
    step_unit = lambda time: 1 / (curvature + 1 / time)

    def flat(smoothed, losses=0, **known):
        known = {"gradient": smoothed.gradient[0], "value": smoothed.value, **known}
        counts = {"gradients": smoothed.num_gradients, "losses": losses}
        return {name: part for name, part in known.items() if part is not None} | counts

    def errors(smoothed):
        names = {"gradient_error": "standard_error", "value_error": "value_standard_error"}
        return {ours: smoothed.info[name] for ours, name in names.items() if name in smoothed.info}

    def hopf_lax(x, time, key):
        size = 0.5 * step_unit(time)
        ratio = jnp.sqrt(size / time)
        run = lambda start: smoothing.hopf_lax(
            grad_fn, x, key, smoothing_time=time, num_steps=config.num_descent_steps, step_size=size,
            momentum=(1 - ratio) / (1 + ratio), nesterov=True, start=start, value_fn=problem.loss,
        )  # fmt: skip
        ends = jax.vmap(run)(x[None, None] + starts[:, None, None])
        best, middle = (
            jax.tree.map(lambda leaf, i=index: leaf[i], ends)
            for index in (jnp.argmin(ends.value), len(starts) // 2)
        )
        alone = {"alone_gradient": middle.gradient[0], "alone_value": middle.value}
        best = best._replace(num_gradients=jnp.sum(ends.num_gradients))
        return flat(best, losses=len(starts), starts=len(starts), **alone)

    def quadrature(x, time, key):
        smoothed = smoothing.quadrature(
            problem.loss, x, smoothing_time=time, temperature=temperature, half_width=HALF_WIDTH
        )
        return flat(smoothed, smoothed.info["num_losses"])

    def cole_hopf(x, time, key):
        smoothed = smoothing.cole_hopf(
            problem.loss, x, key, smoothing_time=time, temperature=temperature, num_samples=config.num_samples
        )
        return flat(smoothed, config.num_samples, **errors(smoothed))

    def langevin(x, time, key):
        smoothed = smoothing.langevin(
            grad_fn, x, key, smoothing_time=time, temperature=temperature, num_steps=config.num_steps,
            num_chains=config.num_chains, step_size=config.step_fraction * step_unit(time),
            momentum=config.momentum, noise="rademacher",
        )  # fmt: skip
        return flat(smoothed, **errors(smoothed))

    def heat(x, time, key):
        smoothed = smoothing.heat(
            grad_fn, x, key, smoothing_time=time, temperature=temperature, num_samples=config.num_samples,
            value_fn=problem.loss, sample_batch_size=None,
        )  # fmt: skip
        return flat(smoothed, config.num_samples, **errors(smoothed))

    return {
        "Hopf-Lax": Method("inviscid", hopf_lax),
        "quadrature": Method("viscous", quadrature),
        "Cole-Hopf": Method("viscous", cole_hopf),
        "Langevin": Method("viscous", langevin),
        "heat": Method("heat", heat),
    }


def count_minima(values: np.ndarray, stride: int) -> np.ndarray:
    """Interior local minima along the last axis, seen on every ``stride``-th point (rounding makes none there)."""
    rises = np.diff(values[..., ::stride], axis=-1) >= 0
    return np.sum(~rises[..., :-1] & rises[..., 1:], axis=-1)


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """The exact routes on the grid, every estimator at its places, and the counts of minima."""
    problem = problems.rugged(config.problem_seed)
    grid = pde.Grid.uniform(-HALF_WIDTH, HALF_WIDTH, config.num_points, boundary="neumann")
    initial = grid.evaluate(problem.loss)
    curvature = float(np.diff(np.asarray(initial), 2).max() / grid.spacing[0] ** 2)

    times = np.asarray(config.times, np.float32)
    many = np.geomspace(1e-3, 5.0, config.num_times, dtype=np.float32)
    every = np.union1d(times, many)
    wanted, counted = np.searchsorted(every, times), np.searchsorted(every, many)
    temperatures = (0.0, *sorted({*config.temperatures, config.temperature}))
    solve = functools.partial(pde.solve_hamilton_jacobi, initial, grid, jnp.asarray(every))
    solutions = {temperature: solve(temperature=temperature).check() for temperature in temperatures}
    smooth = lambda time: pde.gaussian_convolution(initial, grid, time * config.temperature)
    routes = {"inviscid": solutions[0.0], "viscous": solutions[config.temperature]}
    routes["heat"] = dataclasses.replace(routes["inviscid"], values=jax.lax.map(smooth, jnp.asarray(every)))

    @jax.jit
    def at(route, x, time):
        return route.value(x, time), route.gradient(x, time)

    results = {"x": grid.axes[0], "f": initial, "times": times, "temperature": config.temperature}
    for name, route in routes.items():
        results |= {f"{name}/values": route.values[wanted]}
        results |= {f"{name}/slope": at(route, grid.axes[0], times[1])[1]}
    closed = jax.vmap(jax.vmap(problem.heat, (0, None)), (None, 0))
    results["heat/closed_form"] = closed(grid.points, jnp.asarray(times) * config.temperature)

    def estimate(name: str, method: Method, number: int) -> _run.Arrays:
        # Every method has its own places, so that markers do not cover each other.
        shift = (number / 3) % 1 - 1 / 3
        x = -2.8 + 5.6 * (jnp.arange(config.num_places) + 0.5 + shift) / config.num_places
        keys = jax.random.split(_run.key_for(config.seed, name), (len(times), config.num_places))
        over_places = jax.vmap(method.estimate, (0, None, 0))
        found = jax.jit(jax.vmap(over_places, (None, 0, 0)))(x[:, None], jnp.asarray(times), keys)
        exact = [at(routes[method.member], x, time) for time in times]
        values, gradients = (np.stack(part) for part in zip(*exact, strict=True))
        return {"x": x, "exact_value": values, "exact_gradient": gradients, **found}

    compared = methods(config, problem, curvature)
    with session.progress("estimators", len(compared)) as meter:
        for number, (name, method) in enumerate(compared.items()):
            stage = session.stage(name, functools.partial(estimate, name, method, number))
            results |= {f"{name}/{part}": array for part, array in stage.items()}
            meter.advance()

    stride = max(1, config.num_points // 1024)
    values = np.stack([solution.values for solution in solutions.values()])
    return {
        **results,
        "method": np.array(list(compared)),
        "temperatures": np.array(temperatures),
        "count_times": many,
        "minima": count_minima(values[:, counted], stride),
        "minima_of_f": count_minima(np.asarray(initial), stride),
        "limit": values[:, wanted[1]],
    }


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Largest deviations from the exact route over all places and times, and the cost of one of them."""
    headers = ["method", "|Δu|, largest", "in std errors", "|Δ∇u|, largest", "in std errors", "cost of one"]

    def row(title, name, prefix=""):
        cells = []
        for quantity in ("value", "gradient"):
            size, ratio = deviation(results, name, quantity, prefix)
            cells += ["–" if part is None else f"{np.abs(part).max():.2g}" for part in (size, ratio)]
        share = int(results["Hopf-Lax/starts"].max()) if prefix else 1
        counts = {what: int(results[f"{name}/{what}"].max()) // share for what in ("gradients", "losses")}
        return [title, *cells, " + ".join(f"{count:,} {what}" for what, count in counts.items() if count)]

    names = [str(name) for name in results["method"]]
    gap = np.abs(results["heat/values"] - results["heat/closed_form"])[:, np.abs(results["x"]) < 3].max()
    return headers, [
        *(row(name, name) for name in names),
        row("Hopf-Lax, one start", "Hopf-Lax", "alone_"),
        ["grid, heat, to closed form", f"{gap:.2g}", "–", "–", "–", f"{results['x'].size:,} losses, all x"],
    ]


def deviation(results: _run.Arrays, name: str, quantity: str, prefix: str = "") -> tuple[Any, Any]:
    """A method's "value" or "gradient" less the exact route, [time, place]; also in standard errors, or None."""
    if f"{name}/{quantity}" not in results:
        return None, None
    difference = results[f"{name}/{prefix}{quantity}"] - results[f"{name}/exact_{quantity}"]
    error = results.get(f"{name}/{quantity}_error")
    return difference, None if error is None else difference / error


def figure(results: _run.Arrays) -> plt.Figure:
    """Above: f and u at several times, for each member. Below: ∇u, the number of minima, and T → 0."""
    style = {"font.size": 11, "axes.titlesize": 12, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        fig, axes = plt.subplots(2, 3, figsize=(13.0, 7.3), layout="constrained")
        fig.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        titles = {
            "inviscid": "T = 0: minima stay, maxima become kinks",
            "viscous": f"T = {results['temperature']:g}: smooth, minima move and merge",
            "heat": "heat, same t·T: a Gaussian average",
        }
        for axis, (member, title) in zip(axes[0], titles.items(), strict=True):
            draw_member(axis, results, member)
            axis.set_title(title)
        axes[0, 0].set_ylabel("f, u(x, t)   [loss]")
        draw_slopes(axes[1, 0], results)
        draw_counts(axes[1, 1], results)
        draw_limit(axes[1, 2], results)
    return fig


def markers(axis, results: _run.Arrays, name: str, quantity: str, index: int, every: int = 1) -> None:
    """One method's estimates at one time and every so many places, with its standard errors if it has them."""
    errors = results.get(f"{name}/{quantity}_error")
    axis.errorbar(
        results[f"{name}/x"][::every],
        results[f"{name}/{quantity}"][index, ::every],
        yerr=None if errors is None else errors[index, ::every],
        fmt=SHAPES[name],
        color=COLOURS[name],
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.5,
        elinewidth=1.3,
        zorder=3,
    )


def spread_out(heights: np.ndarray, gap: float) -> np.ndarray:
    """Heights of labels, in the same order, at least ``gap`` apart and about where they were."""
    order = np.argsort(heights)
    sorted_heights = heights[order].astype(float)
    for _ in range(100):
        overlap = np.maximum(gap - np.diff(sorted_heights), 0) / 2
        sorted_heights[:-1] -= overlap
        sorted_heights[1:] += overlap
    placed = np.empty_like(sorted_heights)
    placed[order] = sorted_heights
    return placed


def draw_member(axis, results: _run.Arrays, member: str) -> None:
    """Draws f and u(·, t) of one member at all times, its estimators on top."""
    seen = np.abs(results["x"]) <= 3
    x, values = results["x"][seen], results[f"{member}/values"][:, seen]
    axis.plot(x, results["f"][seen], color="#b0b0b0", linewidth=1.0, zorder=1)
    shades = TIME_SHADES[-len(results["times"]) :]
    for index, shade in enumerate(shades):
        axis.plot(x, values[index], color=shade, linewidth=1.8, zorder=2)
    ends = spread_out(np.array([results["f"][seen][-1], *values[:, -1]]), 1.0)
    labels = ["f", *(f"t = {time:g}" for time in results["times"])]
    for height, label, colour in zip(ends, labels, ["#808080", *shades], strict=True):
        axis.text(3.1, height, label, color=colour, va="center", fontsize=10.5)
    used = {"inviscid": ["Hopf-Lax"], "viscous": ["quadrature", "Cole-Hopf"], "heat": ["heat"]}[member]
    for name in used:
        for index in range(len(results["times"])):
            markers(axis, results, name, "value", index, every=len(used))
    for row, name in enumerate(used):
        sign_method(axis, name, 0.5, 0.97 - 0.08 * row, centred=True)
    axis.set(xlim=(-3, 3), xlabel="x   [param]", ylim=(-2.5, 12.5))
    axis.spines["bottom"].set_bounds(-3, 3)


def sign_method(axis, name: str, x: float, y: float, *, centred: bool = False, note: str = "") -> None:
    """A method's marker and name in axes coordinates."""
    shift = -0.012 * len(name) if centred else 0.0
    axis.plot(
        x + shift, y, SHAPES[name], color=COLOURS[name], markersize=7, markeredgecolor="white",
        transform=axis.transAxes, clip_on=False,
    )  # fmt: skip
    axis.text(x + shift + 0.03, y, name + note, color=COLOURS[name], va="center", transform=axis.transAxes)


def draw_slopes(axis, results: _run.Arrays) -> None:
    """∇u at the second time: the three members as lines, every estimator on top."""
    x = results["x"]
    seen = np.abs(x) <= 2
    for member, colour in (("inviscid", "#d55e00"), ("heat", "#cc79a7"), ("viscous", "#16294b")):
        axis.plot(x[seen], results[f"{member}/slope"][seen], color=colour, linewidth=1.2, alpha=0.8, zorder=1)
    for name in ("Hopf-Lax", "heat", "quadrature", "Cole-Hopf", "Langevin"):
        markers(axis, results, name, "gradient", 1)
    axis.axhline(0, color="#b0b0b0", linewidth=0.8, zorder=0)
    axis.set(xlim=(-2, 2), xlabel="x   [param]", ylabel="∂u/∂x   [loss/param]")
    axis.set_title(f"every method's ∇u at t = {results['times'][1]:g}")
    for row, name in enumerate(("Hopf-Lax", "quadrature", "Cole-Hopf", "Langevin", "heat")):
        sign_method(axis, name, 0.03, 0.97 - 0.075 * row)


def temperature_colours(results: _run.Arrays) -> list[Any]:
    """Black for T = 0, then brighter with T."""
    warm = plt.get_cmap("plasma")(np.linspace(0.25, 0.85, len(results["temperatures"]) - 1))
    return ["black", *warm]


def draw_counts(axis, results: _run.Arrays) -> None:
    """Number of local minima against t, for every T."""
    for counts, colour in zip(results["minima"], temperature_colours(results), strict=True):
        axis.step(results["count_times"], counts, where="post", color=colour, linewidth=1.8)
    listed = zip(results["temperatures"], temperature_colours(results), strict=True)
    for row, (T, colour) in enumerate(listed):  # from top to bottom as the curves from right to left
        axis.text(0.97, 0.95 - 0.085 * row, f"T = {T:g}", color=colour, ha="right", transform=axis.transAxes)
    axis.set(xscale="log", xlabel="t   [param²/loss]", ylabel="local minima of u(·, t)", ylim=(0, None))
    axis.set_title("minima only vanish, sooner with viscosity")


def draw_limit(axis, results: _run.Arrays) -> None:
    """U at the second time about a kink, for T → 0."""
    seen = np.abs(results["x"] + 0.25) <= 1
    x, limit = results["x"][seen], results["limit"][:, seen]
    colours = temperature_colours(results)
    for values, colour in zip(limit, colours, strict=True):
        axis.plot(x, values, color=colour, linewidth=1.8)
    heights = spread_out(limit[:, -1], 0.3)
    for T, height, colour in zip(results["temperatures"], heights, colours, strict=True):
        axis.text(0.78, height, f"T = {T:g}", color=colour, va="center", fontsize=10.5)
    axis.plot(x, results["f"][seen], color="#b0b0b0", linewidth=1.0, zorder=0)
    axis.text(-0.62, 2.2, "f", color="#808080")
    axis.set(xlabel="x   [param]", ylabel="f, u(x, t)   [loss]", xlim=(-1.25, 0.75))
    axis.set_title(f"T → 0 at t = {results['times'][1]:g}: the kinks come back")
