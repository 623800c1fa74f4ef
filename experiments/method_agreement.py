"""Every way of computing the relaxed loss, on one problem with a closed form: errors, costs and orders.

The loss is periodic in one dimension, f(x) = −T log(1 + c cos 2πx), for which the Hopf-Cole transform of
u_t + ½|∇u|² = (T/2) Δu is a single decaying cosine, so that u and ∇u are known at every t. All errors are measured
against that, in double precision: the largest over the period for what is computed on a grid, and the root of the mean
square over points and seeds for what is sampled, with a 95 % interval over the seeds.

Orders are fitted on log-log axes and printed with the standard error of the slope, the nominal order in brackets.
What to see: upwind schemes are of order one whichever flux they take, central differences of order two, weno5 of order
four (that of its Laplacian), and the exact route reaches rounding with some thirty points. Gradients are read through
the cubic interpolation of ``Solution``, so that order three is the best that can be had. The noise of sampled
gradients falls by half an order; Langevin chains then stop at the bias of their step, of order one in the step.

Two limits have methods of their own, measured against the solution of that limit: the inf-convolution and
``hopf_lax`` at T = 0, and ``heat`` at T → ∞ with t·T fixed. The last panel puts all methods at the same points and
sets the error that each made against the error that it stated: Langevin chains with the larger step exceed it,
because a standard error over chains does not see their common bias.
"""

import dataclasses
import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from experiments import _run
from jaxopt_pde import pde, problems, smoothing

NOMINAL = {"godunov": (1, 1), "engquist_osher": (1, 1), "lax_friedrichs": (1, 1), "central": (2, 2), "weno5": (4, 3),
           "exact": (math.inf, 3), "inf_convolution": (3, 2)}  # fmt: skip
"""Orders of u and of ∇u by method; infinity stands for faster than every power."""
STAGES = {"godunov": 1, "engquist_osher": 1, "lax_friedrichs": 1, "central": 3, "weno5": 3}
ROUNDING = 1e-13
"""Errors below do not enter a fit."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The problem, and how far each method is taken."""

    temperature: float = 0.1
    """T of the problem and of the equation, in units of the loss."""
    contrast: float = 0.75
    """c in (0, 1); t·λ < 1 for the most negative curvature λ = T c (2π)²/(1 − c) keeps all methods single-valued."""
    smoothing_time: float = 0.05
    """t, in squared units of x over units of the loss."""
    schemes: tuple[str, ...] = tuple(NOMINAL)
    """Methods on grids."""
    grid_points: tuple[int, ...] = (8, 12, 16, 32, 64, 128, 256, 512)
    """Points N of one period."""
    gradients: tuple[int, ...] = (512, 2048, 8192, 32768)
    """Gradient evaluations n that a sampled estimate of ∇u(x) may spend, multiples of all 16 t/ε."""
    step_sizes: tuple[float, ...] = (0.5, 0.125)
    """Langevin steps ε over t; a chain runs for 16 t, the first half not counted."""
    num_positions: int = 16
    """Points of the period at which gradients are estimated."""
    num_seeds: int = 40
    """Independent estimates at every point."""
    bias_gradients: int = 2**17
    """Gradients per seed and point behind the bias of a Langevin step; the seeds are averaged too."""
    iterations: int = 40
    """Fixed-point iterations of ``hopf_lax``."""
    quadrature_points: tuple[int, ...] = (5, 9, 13, 17, 21, 25, 29, 33)
    """Points of the quadrature rule, odd."""
    seed: int = 0
    """Seeds the samples."""


SMOKE = Config(
    schemes=("godunov",), grid_points=(32, 64), gradients=(64, 256), step_sizes=(0.5,), num_positions=4,
    num_seeds=4, bias_gradients=2**10, iterations=30, quadrature_points=(9, 25),
)  # fmt: skip


def exact(config: Config) -> SimpleNamespace:
    """The problem and what is known of u: closed form at T, Newton at T = 0, Gauss-Hermite for heat."""
    problem = problems.periodic_wells(contrast=config.contrast, temperature=config.temperature)
    t, T = config.smoothing_time, config.temperature
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    loss = lambda x: problem.loss(x[None])
    value = lambda x: problem.exact(x[None], t, T)
    slope, bend = jax.grad(loss), jax.grad(jax.grad(loss))

    def minimiser(x):  # of f(y) + (x − y)²/(2t), convex because t·λ < 1
        newton = lambda _, y: y - (slope(y) + (y - x) / t) / (bend(y) + 1 / t)
        return jax.lax.fori_loop(0, 40, newton, x)

    return SimpleNamespace(
        x=(jnp.arange(config.num_positions) + 0.3) / config.num_positions
        - 0.5,  # on no grid, without symmetry
        loss=loss,
        value=value,
        slope=jax.grad(value),
        envelope=lambda x: loss(minimiser(x)) + (x - minimiser(x)) ** 2 / (2 * t),
        envelope_slope=lambda x: slope(minimiser(x)),
        heat_slope=lambda x: jax.vmap(slope)(x + math.sqrt(t * T) * nodes) @ (weights / weights.sum()),
        factor=lambda x: t * jnp.abs(bend(minimiser(x))),
    )


tabulate = lambda function, x: jax.jit(jax.vmap(function))(x)
size = lambda values: jnp.sqrt(jnp.mean(values**2))
langevin_name = "langevin, ε = {:g}t".format  # of ε/t


def on_grids(config: Config, scheme: str) -> dict[str, jax.Array]:
    """Largest errors of u at the grid points and of ∇u anywhere, and the work, for every number of points."""
    known, t = exact(config), config.smoothing_time
    inviscid = scheme == "inf_convolution"
    value, slope = (known.envelope, known.envelope_slope) if inviscid else (known.value, known.slope)
    x = jnp.concatenate([known.x, jnp.linspace(-0.5, 0.5, 4001)])
    wanted, read = tabulate(slope, x), jax.jit(lambda solution: solution.gradient(x, t))
    settings = {"temperature": config.temperature, "scheme": scheme, "diffusion": "explicit"}
    if inviscid:
        settings = {"temperature": 0, "scheme": "exact"}
    rows = []
    for n in config.grid_points:
        grid = pde.Grid.uniform(-0.5, 0.5, n, boundary="periodic")
        solution = pde.solve_hamilton_jacobi(tabulate(known.loss, grid.axes[0]), grid, t, **settings).check()
        error = jnp.max(jnp.abs(solution.values[0] - tabulate(value, grid.axes[0])))
        work = n * n if settings["scheme"] == "exact" else n * STAGES[scheme] * solution.num_steps
        rows.append((error, read(solution), jnp.asarray(work)))
    value_error, slopes, work = (jnp.stack(column) for column in zip(*rows, strict=True))
    here = slice(config.num_positions)
    gradient_error = jnp.max(jnp.abs(slopes - wanted[None]), axis=1)
    made, stated = size(slopes[-1, here] - wanted[here]), size(slopes[-1, here] - slopes[-2, here])
    return {
        "value_error": value_error,
        "gradient_error": gradient_error,
        "work": work,
        "made": made,
        "stated": stated,
    }


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def estimates(config: Config, name: str, n: int, num_steps: int, step_size, x: jax.Array, keys: jax.Array):
    """∇u from n gradients and its stated standard error, [seed, position]."""
    loss = exact(config).loss
    gradient = lambda y, step: jax.grad(loss)(y)
    common = {"smoothing_time": config.smoothing_time, "temperature": config.temperature}

    def estimate(x, key):
        if name == "cole_hopf":
            return smoothing.cole_hopf(loss, x, key, num_samples=n, **common)
        if name == "heat":
            return smoothing.heat(gradient, x, key, num_samples=n, sample_batch_size=None, **common)
        chains = {"num_steps": num_steps, "num_chains": n // num_steps, "step_size": step_size}
        return smoothing.langevin(gradient, x, key, **chains, **common)

    def one_seed(key):
        result = jax.vmap(estimate, (0, None))(x, key)
        return result.gradient, result.info["standard_error"]

    return jax.lax.map(one_seed, keys)


def sampled(config: Config, name: str, share: float) -> dict[str, jax.Array]:
    """Mean squares [n, seed] and standard deviations [n] of the errors of ∇u, for every number of gradients."""
    known = exact(config)
    x = known.x
    wanted = tabulate(known.heat_slope if name == "heat" else known.slope, x)
    settings = (round(16 / share) if share else 0, share * config.smoothing_time, x)
    keys = lambda n: jax.random.split(_run.key_for(config.seed, name, n), config.num_seeds)
    results = [estimates(config, name, n, *settings, keys(n)) for n in config.gradients]
    errors, stated = (jnp.stack(part) for part in zip(*results, strict=True))
    errors = errors - wanted[None, None]
    squares, spread = jnp.mean(errors**2, axis=-1), jnp.sqrt(errors.var(axis=1).mean(axis=-1))
    return {"squares": squares, "spread": spread, "made": size(errors[-1]), "stated": size(stated[-1])}


def step_biases(config: Config) -> dict[str, jax.Array]:
    """Bias of ∇u from chains of many steps ε, root mean square over the points, for three ε."""
    known, shares = exact(config), max(config.step_sizes) / 2.0 ** np.arange(3)
    settings = (config, "bias", config.bias_gradients, round(16 / shares[-1]))
    keys = jax.random.split(_run.key_for(config.seed, "bias"), config.num_seeds)
    run = lambda share: estimates(*settings, share * config.smoothing_time, known.x, keys)[0]
    errors = jnp.stack([run(share) for share in shares])
    errors = errors - tabulate(known.slope, known.x)[None, None]
    noise = errors.var(axis=1, ddof=1) / config.num_seeds
    biases = jnp.sqrt(jnp.maximum(jnp.mean(errors.mean(axis=1) ** 2 - noise, axis=-1), 0))
    return {"shares": shares, "biases": biases}


def iterated(config: Config) -> dict[str, jax.Array]:
    """Largest error of ∇u at T = 0 after each fixed-point iteration, and the factor that theory gives."""
    known = exact(config)
    x = known.x
    wanted, gradient = tabulate(known.envelope_slope, x), lambda y, _: jax.grad(known.loss)(y)
    settings = {"smoothing_time": config.smoothing_time, "num_steps": 2}

    def one(start, _):
        result = jax.vmap(lambda x, start: smoothing.hopf_lax(gradient, x, 0, start=start, **settings))(
            x, start
        )
        contraction = jnp.nan_to_num(jnp.clip(result.info["contraction"], 0, 0.99))  # 0/0 at the end
        bound = contraction / (1 - contraction) * result.info["residual"]
        return result.positions, (result.gradient - wanted, bound)

    scan = jax.jit(lambda start: jax.lax.scan(one, start, length=config.iterations // 2)[1])
    errors, bounds = scan(x[:, None])
    largest, factor = jnp.max(jnp.abs(errors), axis=1), jnp.max(tabulate(known.factor, x))
    made, stated = size(errors[-1]), size(bounds[-1])
    return {"iteration_error": largest, "factor": factor, "made": made, "stated": stated}


def integrated(config: Config) -> dict[str, jax.Array]:
    """Largest error of ∇u by the quadrature rule, for every number of points."""
    known = exact(config)
    common = {"smoothing_time": config.smoothing_time, "temperature": config.temperature}
    wanted = tabulate(known.slope, known.x)
    rule = lambda n: tabulate(lambda x: smoothing.quadrature(known.loss, x, num_points=n, **common), known.x)
    results = [rule(n) for n in config.quadrature_points]
    errors = jnp.stack([jnp.max(jnp.abs(result.gradient - wanted)) for result in results])
    made, stated = size(results[-1].gradient - wanted), size(results[-1].info["gradient_error"])
    return {"quadrature_error": errors, "made": made, "stated": stated}


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Errors, work and biases of all methods; everything is computed in float64."""
    samplers = {"cole_hopf": 0.0, "heat": 0.0} | {langevin_name(share): share for share in config.step_sizes}
    parts = {scheme: functools.partial(on_grids, config, scheme) for scheme in config.schemes}
    parts |= {name: functools.partial(sampled, config, name, share) for name, share in samplers.items()}
    parts |= {"hopf_lax": lambda: iterated(config), "quadrature": lambda: integrated(config)}
    stages = {}
    with jax.enable_x64(True), session.progress("methods", len(parts) + 1) as meter:
        for name, compute in (parts | {"biases": lambda: step_biases(config)}).items():
            stages[name] = session.stage(name, compute)
            meter.advance()
    results = {"problem": np.array([config.contrast, config.temperature, config.smoothing_time])}
    names = {"scheme": config.schemes, "points": config.grid_points, "sampler": samplers, "method": parts,
             "gradients": config.gradients, "quadrature_points": config.quadrature_points}  # fmt: skip
    results |= {name: np.array(list(values)) for name, values in names.items()}
    stacked = {("value_error", "gradient_error", "work"): config.schemes, ("squares", "spread"): samplers,
               ("made", "stated"): parts}  # fmt: skip
    for arrays, names in stacked.items():
        results |= {array: np.stack([stages[name][array] for name in names]) for array in arrays}
    return stages["hopf_lax"] | stages["quadrature"] | stages["biases"] | results


def order(size: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    """Slope of log error over log size and its standard error; NaN where too few errors lie above rounding."""
    if (kept := error > ROUNDING).sum() < 2:
        return math.nan, math.nan
    fit = stats.linregress(np.log(size[kept]), np.log(error[kept]))
    return fit.slope, fit.stderr if kept.sum() > 2 else math.nan


def orders(results: _run.Arrays) -> dict[tuple[str, str], tuple[float, float, float]]:
    """(method, quantity) -> fitted order, its standard error, nominal order."""
    fits = {}
    for s, scheme in enumerate(map(str, results["scheme"])):
        for q, (quantity, errors) in enumerate((("u", "value_error"), ("∇u", "gradient_error"))):
            slope, deviation = order(results["points"][-4:], results[errors][s, -4:])  # the finest grids
            fits[scheme, quantity] = -slope, deviation, NOMINAL[scheme][q]
    for s, name in enumerate(map(str, results["sampler"])):
        slope, deviation = order(results["gradients"], results["spread"][s])
        fits[name, "noise of ∇u"] = -slope, deviation, 0.5
    fits["langevin", "bias of ∇u in ε"] = *order(results["shares"], results["biases"]), 1.0
    return fits


def rate(results: _run.Arrays) -> tuple[float, float]:
    """Factor per iteration of ``hopf_lax``, fitted over the second half of what lies above rounding; standard error."""
    error = results["iteration_error"]
    end = int(np.argmax(error < 100 * ROUNDING)) or len(error)
    steps = 2 * np.arange(end // 2, end)
    fit = stats.linregress(steps, np.log(error[steps // 2]))
    return math.exp(fit.slope), math.exp(fit.slope) * fit.stderr


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Fitted against nominal orders, and errors made against errors stated."""
    rows = []
    for (method, quantity), (fitted, deviation, nominal) in orders(results).items():
        found = f"{fitted:.3f} ± {deviation:.3f}" if math.isfinite(fitted) else "rounding reached"
        rows.append([method, f"order of {quantity}", found, f"{nominal:g}" if nominal < 99 else "spectral"])
    found = "{:.4f} ± {:.4f}".format(*rate(results))
    rows.append(["hopf_lax", "factor per iteration", found, f"{results['factor']:.4f}"])
    biases = zip(results["shares"], results["biases"], strict=True)
    rows += [[langevin_name(share), "bias of ∇u", f"{bias:.2e}", ""] for share, bias in biases]
    for method, made, stated in zip(results["method"], results["made"], results["stated"], strict=True):
        rows.append([str(method), "error of ∇u (stated)", f"{made:.1e}", f"{stated:.1e}"])
    return ["method", "what", "found", "nominal"], rows


BLACK, GREY, ORANGE, SKY, BLUE, GREEN, PINK, RED = (
    "#000000", "#808080", "#e69f00", "#56b4e9", "#0072b2", "#009e73", "#cc79a7", "#d55e00"
)  # fmt: skip
STYLES = {
    "godunov": (ORANGE, "-", "o"), "engquist_osher": (ORANGE, "--", "v"), "lax_friedrichs": (ORANGE, ":", "s"),
    "central": (SKY, "-", "o"), "weno5": (BLUE, "-", "o"), "exact": (BLACK, "-", "o"), "quadrature": (BLACK, "-", "o"),
    "inf_convolution": (GREY, "-", "D"), "hopf_lax": (GREY, "-", "D"),
    "cole_hopf": (GREEN, "-", "o"), "heat": (PINK, "-", "o"), "langevin": (RED, "-", "o"),
}  # fmt: skip
"""Colour (Okabe & Ito), line and marker: a colour a family, upwind, central, exact integrals, T = 0, samplers."""


def _style(method: str) -> dict[str, str]:
    color, line, marker = STYLES[method.partition(",")[0]]
    return {"color": color, "ls": line, "marker": marker, "ms": 4, "clip_on": False}


def _label_ends(axis, ends, gap: float) -> None:
    """(ordinate, text, colour) beside the ends of curves, moved apart to a least share of the height."""
    low, high = np.log(axis.get_ylim())
    ends = sorted(ends)
    heights = np.array([(math.log(y) - low) / (high - low) for y, _, _ in ends])
    for _ in range(200):
        overlap = np.maximum(gap - np.diff(heights), 0) / 2
        heights[1:] += overlap
        heights[:-1] -= overlap
    for height, (_, text, colour) in zip(heights, ends, strict=True):
        axis.text(1.02, height, text, transform=axis.transAxes, color=colour, fontsize=9, va="center")


def figure(results: _run.Arrays) -> plt.Figure:
    """Six panels: errors on grids, their cost, sampled gradients, iterations, and agreement."""
    fits = orders(results)
    contrast, temperature, time = results["problem"]
    fig, axes = plt.subplots(2, 3, figsize=(14.6, 7.8), layout="constrained")
    problem = f"$f(x) = -T\\,\\log(1 + {contrast:g}\\cos 2\\pi x)$, $T = {temperature:g}$, $t = {time:g}$"
    fig.suptitle(f"{problem}.   At curves: fitted order ± its standard error (nominal order)", fontsize=11)
    _grids(axes[0, 0], results, "points", "value_error", "u", fits)
    _grids(axes[0, 1], results, "points", "gradient_error", "∇u", fits)
    _grids(axes[0, 2], results, "work", "value_error", "u", {})
    _samplers(axes[1, 0], results, fits)
    _iterations(axes[1, 1], results)
    _agreement(axes[1, 2], results)
    for letter, axis in zip("abcdef", axes.flat, strict=True):
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(letter, loc="left", fontweight="bold", fontsize=11)
    return fig


def _grids(axis, results, cost: str, errors: str, quantity: str, fits: dict) -> None:
    ends, costs = [], np.broadcast_to(results[cost], results[errors].shape)
    for scheme, work, error in zip(map(str, results["scheme"]), costs, results[errors], strict=True):
        if cost == "points" or scheme != "inf_convolution":
            axis.loglog(work, np.maximum(error, 1e-17), **_style(scheme))
            fitted, deviation, nominal = fits.get((scheme, quantity), (math.nan,) * 3)
            text = (
                f"{scheme} {fitted:.3f} ± {deviation:.3f} ({nominal:g})" if math.isfinite(fitted) else scheme
            )
            ends.append((error[-1], text, STYLES[scheme][0]))
    axis.set(ylabel=f"largest error of ${quantity}$", xlabel="grid points $N$")
    if cost == "points":
        axis.set_xticks(results["points"][::2], map(str, results["points"][::2]))
        axis.minorticks_off()
    else:
        axis.set(xlabel="$N$ × stages × steps;  $N^2$ for exact")
    _label_ends(axis, ends, 0.062)


def _samplers(axis, results, fits) -> None:
    n, ends = results["gradients"], []
    for name, squares in zip(map(str, results["sampler"]), results["squares"], strict=True):
        mean, colour = squares.mean(axis=1), _style(name)["color"]
        half = stats.t.ppf(0.975, squares.shape[1] - 1) * stats.sem(squares, axis=1)  # 95 %
        axis.loglog(n, np.sqrt(mean), **_style(name))
        low = np.sqrt(np.maximum(mean - half, mean / 100))
        axis.fill_between(n, low, np.sqrt(mean + half), color=colour, alpha=0.2, lw=0)
        fitted, deviation, _ = fits[name, "noise of ∇u"]
        ends.append((np.sqrt(mean[-1]), f"{name}\nnoise {fitted:.3f} ± {deviation:.3f} (0.5)", colour))
    for share, bias in zip(results["shares"], results["biases"], strict=True):
        if langevin_name(share) in results["sampler"]:
            axis.axhline(bias, color=RED, lw=1, ls=":")
            x, side = (n[0], "left") if share == max(results["shares"]) else (n[-1], "right")
            axis.text(x, 0.93 * bias, f"bias, ε = {share:g}t", fontsize=9, color=RED, ha=side, va="top")
    axis.set(xlabel="evaluations of $∇f$", ylabel="RMS error of sampled $∇u$", xlim=(n[0], n[-1]))
    _label_ends(axis, ends, 0.115)


def _iterations(axis, results) -> None:
    iteration = 2 * np.arange(1, len(results["iteration_error"]) + 1)
    axis.semilogy(iteration, np.maximum(results["iteration_error"], 1e-17), **_style("hopf_lax"))
    axis.semilogy(results["quadrature_points"], results["quadrature_error"], **_style("quadrature"))
    axis.set(xlabel="iterations, or quadrature points", ylabel="largest error of $∇u$")
    factor = "{:.4f} ± {:.4f}".format(*rate(results))
    text = f"hopf_lax, $T = 0$\n× {factor} ({results['factor']:.4f})\nan iteration"
    _label_ends(axis, [(1e-13, text, GREY), (1e-5, "quadrature", BLACK)], 0.1)


def _agreement(axis, results) -> None:
    names = list(map(str, results["method"]))
    for row, (name, made, stated) in enumerate(zip(names, results["made"], results["stated"], strict=True)):
        line = {"color": _style(name)["color"], "lw": 1, "mew": 2}
        axis.plot([made, stated], [row, row], "|-", ms=12, markevery=[1], **line)
        axis.plot(made, row, "o", ms=4, **line)
    axis.set(xlabel="RMS error of $∇u$ at the same $x$:  ● made  | stated", xscale="log")
    axis.set_ylim(len(names), -1)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.tick_params(axis="y", length=0, left=False, labelleft=False, labelright=True)
    axis.spines["left"].set_visible(False)
