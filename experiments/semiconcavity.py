"""How the relaxed loss bends: bounds on its Hessian that hold, and folklore that fails.

For u_t + ½|∇u|² = (T/2) Δu the Hessian of u is that of the loss averaged over the local Gibbs density ρ, less the
covariance of the loss's gradient under ρ over T. Two inequalities follow. From above, D²u ≤ K (I + tK)⁻¹ with K the
averaged Hessian of the loss, and so D²u ≤ I/t whatever the loss is: u is semiconcave, and smoothing bounds curvature
from one side. From below, D²u ≥ E[H (I + tH)⁻¹], H the loss's Hessian, as long as t is less than 1/λ, λ the size of
its most negative curvature. The supremum of Δu falls at least as fast as 1/(1/C + t/d) in d dimensions, C the
supremum of Δf. The runs check all of them point by point, in one dimension on a rugged parabola and in two on a soft
minimum of tilted wells with a closed form, and print the largest violation beside the error of the quadrature.

What is often said, that smoothing lowers the curvature everywhere, is not among them. In the map the orange area is
where u bends upwards and does so more and more as t grows, and the infimum of the curvature first falls: between
wells the solution steepens towards a kink before viscosity or the next well takes it away. Minima widen and flatten:
along the global minimum of the loss the curvature follows λ/(1 + tλ), exact for a parabola, until other wells
come within reach.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from experiments import _run
from jaxopt_pde import problems


@dataclasses.dataclass(frozen=True)
class Config:
    """The two problems, the times and the quadrature."""

    seed: int = 0
    """Seeds the random part of the rugged loss."""
    noise: float = 0.3
    """Standard deviation of the random part, in units of the loss."""
    noise_length: float = 0.2
    """Correlation length of the random part, in units of x."""
    temperature: float = 0.3
    """T in one dimension, in units of the loss."""
    first_time: float = 1e-4
    """The least t, in squared units of x over units of the loss."""
    last_time: float = 1.0
    """The largest t."""
    num_times: int = 97
    """Times, equally spaced in log t."""
    num_points: int = 801
    """Points x of the domain in one dimension."""
    num_nodes: int = 6001
    """Quadrature points y; the spacing must resolve the narrowest ρ, of variance T·first_time."""
    shown_times: tuple[float, ...] = (0.01, 0.1, 0.5)
    """Times at which u is drawn."""
    plane_temperature: float = 0.4
    """T in two dimensions."""
    plane_times: int = 13
    """Times in two dimensions, equally spaced in log t between a hundredth of 1/λ and four times it."""
    plane_points: int = 33
    """Points x along each axis of the plane."""
    plane_nodes: int = 61
    """Quadrature points y along each axis of the plane."""


NOT_FINITE = ("lower", "tracked", "basin", "tracked_curvature", "plane_lower_excess")

SMOKE = Config(
    num_times=17,
    num_points=201,
    num_nodes=3001,
    first_time=1e-3,
    plane_times=3,
    plane_points=7,
    plane_nodes=61,
)


def rugged_line(config: Config):
    """The loss in one dimension and its two derivatives, as functions of a number."""
    problem = problems.rugged(
        _run.key_for(config.seed, "noise"), noise=config.noise, noise_length=config.noise_length
    )
    loss = lambda y: problem.loss(y[None])
    return problem, loss, jax.grad(loss), jax.grad(jax.grad(loss))


def line(config: Config) -> dict[str, jax.Array]:
    """u, its curvature and their bounds, [time, x], by the trapezoid rule."""
    problem, *derivatives = rugged_line(config)
    T, margin = config.temperature, problem.upper[0] / 2
    x = jnp.linspace(problem.lower[0], problem.upper[0], config.num_points)
    y = jnp.linspace(problem.lower[0] - margin, problem.upper[0] + margin, config.num_nodes)
    f, slope, bend = (jax.jit(jax.vmap(function))(y) for function in derivatives)
    times = jnp.geomspace(config.first_time, config.last_time, config.num_times)
    convex_until = 1 / jnp.max(-bend)

    def at(t):
        exponents = -(f[None] + (x[:, None] - y[None]) ** 2 / (2 * t)) / T
        peak = jnp.max(exponents, axis=1, keepdims=True)
        weights = jnp.exp(exponents - peak)
        total = jnp.sum(weights, axis=1)
        harmonic = jnp.where(t < convex_until, bend / (1 + t * bend), jnp.nan)
        moments = jnp.stack([slope, slope**2, bend, harmonic, y, y**2], axis=1)
        first, second, mean_bend, lower, mean, square = (weights @ moments / total[:, None]).T
        u = -T * (peak[:, 0] + jnp.log(total * (y[1] - y[0])) - jnp.log(2 * jnp.pi * t * T) / 2)
        curvature = mean_bend - (second - first**2) / T
        from_spread = 1 / t - (square - mean**2) / (t**2 * T)
        return {
            "u": u,
            "slope": first,
            "curvature": curvature,
            "upper": mean_bend / (1 + t * mean_bend),
            "lower": lower,
            "quadrature_error": jnp.max(jnp.abs(from_spread - curvature)),
        }

    start = jnp.asarray(problem.minimisers[0, 0])
    known = {
        "most_convex": jnp.max(bend),
        "most_concave": jnp.max(-bend),
        "at_minimum": derivatives[2](start),
    }
    found = jax.jit(functools.partial(jax.lax.map, at))(times)
    followed = jax.jit(follow)(x, found["slope"], found["curvature"], start)
    return {"x": x, "times": times, "f": jax.vmap(derivatives[0])(x), **found, **known, **followed}


def follow(x, slopes, curvatures, start) -> dict[str, jax.Array]:
    """The local minimum that starts at the global one of f, its curvature and basin, and the number of minima.

    Args:
        x: points [n].
        slopes: u_x, [time, n].
        curvatures: u_xx, [time, n].
        start: the global minimiser of f.

    Returns:
        Arrays [time]; NaN once the minimum has merged with a maximum.
    """

    def one(previous, functions):
        slope, curvature = functions
        left, right = slope[:-1], slope[1:]
        share = left / jnp.where(left == right, 1, left - right)
        zeros = x[:-1] + share * (x[1] - x[0])
        minima, maxima = (left < 0) & (right >= 0), (left >= 0) & (right < 0)
        nearest = jnp.argmin(jnp.where(minima, jnp.abs(zeros - previous), jnp.inf))
        here = jnp.where(jnp.abs(zeros[nearest] - previous) < 0.1, zeros[nearest], jnp.nan)
        below = jnp.max(jnp.where(maxima & (zeros < here), zeros, x[0]))
        above = jnp.min(jnp.where(maxima & (zeros > here), zeros, x[-1]))
        bend = curvature[nearest] + share[nearest] * (curvature[nearest + 1] - curvature[nearest])
        lost = jnp.isnan(here)
        found = {
            "tracked": here,
            "tracked_curvature": jnp.where(lost, jnp.nan, bend),
            "basin": jnp.where(lost, jnp.nan, above - below),
            "num_minima": jnp.sum(minima),
        }
        return here, found

    return jax.lax.scan(one, start, (slopes, curvatures))[1]


def tilted_wells(config: Config):
    """Three wells in the plane with one Hessian, so that ridges are no sharper far out: u is known at one T."""
    turn = np.array([[math.cos(0.5), -math.sin(0.5)], [math.sin(0.5), math.cos(0.5)]])
    hessian = turn @ np.diag([5.0, 1.0]) @ turn.T
    centres = [[-1.0, 0.0], [0.8, 0.6], [0.3, -1.0]]
    return problems.soft_minimum(
        centres, [hessian] * 3, [0.0, 0.2, 0.1], temperature=config.plane_temperature
    )


def harmonic(hessian: jax.Array, t) -> jax.Array:
    """H (I + tH)⁻¹ of 2 × 2 matrices [..., 2, 2]."""
    a, b, d = hessian[..., 0, 0], hessian[..., 0, 1], hessian[..., 1, 1]
    determinant = a * d - b * b
    scale = 1 / (1 + t * (a + d) + t * t * determinant)
    rows = jnp.stack([a + t * determinant, b, b, d + t * determinant], axis=-1)
    return (scale[..., None] * rows).reshape(hessian.shape)


def plane(config: Config) -> dict[str, jax.Array]:
    """By how much the Hessian in the plane exceeds its bounds, the largest over the points, for every time."""
    problem, T = tilted_wells(config), config.plane_temperature
    x = problems.domain_points(problem, config.plane_points).reshape(-1, 2)
    bend = jax.hessian(problem.loss)
    everywhere = jax.jit(jax.vmap(bend))(problems.domain_points(problem, 201).reshape(-1, 2))
    eigenvalues = jnp.linalg.eigvalsh(everywhere)
    laplacian = jnp.max(jnp.trace(everywhere, axis1=1, axis2=2))
    most_concave = jnp.max(-eigenvalues)
    times = jnp.geomspace(0.01, 4, config.plane_times) / most_concave
    unit = jnp.linspace(-1, 1, config.plane_nodes)
    square = jnp.stack(jnp.meshgrid(unit, unit, indexing="ij"), axis=-1).reshape(-1, 2)
    depth = jnp.max(jax.vmap(problem.loss)(x)) - problem.minimum + 40 * T

    def at_point(t, point):
        y = point[None] + jnp.sqrt(2 * t * depth) * square  # holds all of ρ but e⁻⁴⁰
        f, slope = jax.vmap(jax.value_and_grad(problem.loss))(y)
        hessian = jax.vmap(bend)(y)
        rho = jax.nn.softmax(-(f + jnp.sum((point[None] - y) ** 2, axis=1) / (2 * t)) / T)
        average = lambda values: jnp.tensordot(rho, values, axes=1)
        mean = average(slope)
        K = average(hessian)
        computed = K - ((slope - mean[None]).T * rho[None]) @ (slope - mean[None]) / T
        exact = jax.hessian(lambda point: problem.exact(point, t, T))(point)
        largest = lambda matrix: jnp.linalg.eigvalsh(matrix)[-1]
        lower = average(harmonic(hessian, t))
        return {
            "plane_upper_excess": largest(exact - harmonic(K, t)),
            "plane_lower_excess": jnp.where(t < 1 / most_concave, largest(lower - exact), jnp.nan),
            "plane_time_excess": largest(exact) - 1 / t,
            "plane_quadrature_error": jnp.max(jnp.abs(computed - exact)),
            "plane_laplacian": jnp.trace(exact),
        }

    at = lambda t: jax.lax.map(functools.partial(at_point, t), x)
    found = jax.jit(functools.partial(jax.lax.map, at))(times)
    known = {"plane_most_convex": laplacian, "plane_most_concave": most_concave, "plane_times": times}
    return known | {n: v if n == "plane_laplacian" else jnp.max(v, axis=1) for n, v in found.items()}


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Both problems, in float64."""
    with jax.enable_x64(True), session.progress("semiconcavity", 2) as meter:
        one = session.stage("line", lambda: line(config))
        meter.advance()
        two = session.stage("plane", lambda: plane(config))
        meter.advance()
    return (
        {"temperature": np.array(config.temperature), "shown_times": np.array(config.shown_times)} | one | two
    )


def bounds(results: _run.Arrays) -> dict[str, tuple[np.ndarray, float]]:
    """By how much u exceeds each bound, the largest over x, [time], and the error of the quadrature."""
    t, curvature = results["times"], results["curvature"]
    s, laplacian = results["plane_times"], results["plane_laplacian"].max(axis=1)
    early, soon = t < 1 / results["most_concave"], s < 1 / results["plane_most_concave"]
    one = {
        "u_xx ≤ 1/t": np.max(curvature, axis=1) - 1 / t,
        "u_xx ≤ K/(1 + tK)": np.max(curvature - results["upper"], axis=1),
        "u_xx ≥ E[f″/(1 + t f″)], t < 1/λ": np.max((results["lower"] - curvature)[early], axis=1),
        "sup u_xx ≤ 1/(1/C + t)": np.max(curvature, axis=1) - 1 / (1 / results["most_convex"] + t),
    }
    two = {
        "D²u ≤ I/t": results["plane_time_excess"],
        "D²u ≤ K(I + tK)⁻¹": results["plane_upper_excess"],
        "D²u ≥ E[H(I + tH)⁻¹], t < 1/λ": results["plane_lower_excess"][soon],
        "sup Δu ≤ 1/(1/C + t/2)": laplacian - 1 / (1 / results["plane_most_convex"] + s / 2),
    }
    errors = results["quadrature_error"].max(), results["plane_quadrature_error"].max()
    return {
        f"{d}-D: {name}": (excess, errors[d - 1])
        for d, part in ((1, one), (2, two))
        for name, excess in part.items()
    }


def rising(results: _run.Arrays) -> np.ndarray:
    """Where u_xx increases from one time to the next by more than the quadrature may be wrong, [time − 1, x]."""
    return np.diff(results["curvature"], axis=0) > 10 * results["quadrature_error"][:-1, None] + 1e-9


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Largest violations, where the folklore fails, and what becomes of the minimum."""
    rows = [
        [f"{name}: largest violation", f"{excess.max():.1e}", f"quadrature error {error:.0e}"]
        for name, (excess, error) in bounds(results).items()
    ]
    up, positive = rising(results), results["curvature"][:-1] > 0
    plane = np.diff(results["plane_laplacian"], axis=0) > 1e-9
    share = lambda mask: f"{100 * mask.mean():.0f} %"
    infimum = results["curvature"].min(axis=1)
    lowest, curvature = infimum.argmin(), results["at_minimum"]
    ratio = results["tracked_curvature"] / (curvature / (1 + results["times"] * curvature))
    rows += [
        ["1-D: points x where u_xx increases at some t", share(up.any(axis=0)), f"{share(up)} of all (x, log t)"],
        ["1-D: points x where u_xx > 0 increases at some t", share((up & positive).any(axis=0)),
         f"{share(up & positive)} of all (x, log t)"],
        ["2-D: points x where Δu increases at some t", share(plane.any(axis=0)), f"{share(plane)} of all (x, log t)"],
        ["1-D: inf u_xx at t = 0, at its least, at the end",
         f"{-results['most_concave']:.1f}, {infimum[lowest]:.1f}, {infimum[-1]:.2f}",
         f"least at t = {results['times'][lowest]:.3f}"],
        ["1-D: curvature at the minimum over λ/(1 + tλ)", f"{np.nanmin(ratio):.3f} to {np.nanmax(ratio):.3f}",
         f"λ = {curvature:.1f}"],
        ["1-D: width of its basin, first and last t", f"{results['basin'][0]:.2f}, {results['basin'][-1]:.2f}", ""],
        ["1-D: number of minima, first and last t", f"{results['num_minima'][0]}, {results['num_minima'][-1]}", ""],
    ]  # fmt: skip
    return ["what", "found", "beside"], rows


BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#808080"  # Okabe & Ito
TIME, CURVATURE = "smoothing time $t$  [param²/loss]", "$u_{xx}$  [loss/param²]"


def figure(results: _run.Arrays) -> plt.Figure:
    """Six panels: u, the map of rising curvature, extremes, the two-sided bound, the minimum, sharpness."""
    fig = plt.figure(figsize=(14.6, 7.8), layout="constrained")
    places = [["a", "b", "c"], ["a", "b", "c"], ["d", "e", "f"], ["d", "g", "f"]]
    axes = fig.subplot_mosaic(places)
    for letter, panel in zip("abcdf", (_solutions, _map, _extremes, _two_sided, _sharpness), strict=True):
        panel(axes[letter], results)
    _minimum(axes["e"], axes["g"], results)
    titles = {
        "a": "the loss and its relaxation",
        "b": "where $u_{xx}$ grows with $t$, while",
        "c": "extreme curvatures",
        "d": "two-sided bound at $t = 1/(2λ)$",
        "e": "the global minimum of $f$, followed",
        "f": "suprema over their bounds",
    }
    for letter, axis in axes.items():
        axis.spines[["top", "right"]].set_visible(False)
        if letter in titles:
            axis.set_title(rf"$\bf{{{letter}}}$   {titles[letter]}", loc="left", fontsize=11)
    return fig


def _say(axis, x, y, text, colour, **settings) -> None:
    axis.text(x, y, text, transform=axis.transAxes, color=colour, fontsize=9.5, **settings)


def _solutions(axis, results) -> None:
    x, times, shown = results["x"], results["times"], results["shown_times"]
    axis.plot(x, results["f"], color=GREY, lw=1.2)
    axis.text(x[-1] + 0.08, results["f"][-1], "$f$", color=GREY, va="center")
    for time, colour in zip(shown, plt.cm.cividis(np.linspace(0, 0.8, len(shown))), strict=True):
        k = np.abs(np.log(times / time)).argmin()
        u, here = results["u"][k], results["tracked"][k]
        axis.plot(x, u, color=colour, lw=1.8)
        axis.plot(here, np.interp(here, x, u), "o", color=colour, ms=5)
        axis.text(x[-1] + 0.08, u[-1], f"$t = {times[k]:.2g}$", color=colour, va="center")
    axis.set(xlabel="$x$  [param]", ylabel="$u(x, t)$  [loss]", xlim=(x[0], x[-1]))


def _map(axis, results) -> None:
    middle = np.sqrt(results["times"][1:] * results["times"][:-1])
    kind = rising(results) * np.where(results["curvature"][:-1] > 0, 2, 1)
    colours = {"cmap": ListedColormap(["#ffffff", "#b3d4e8", RED]), "vmin": 0, "vmax": 2}
    axis.pcolormesh(results["x"], middle, kind, shading="nearest", rasterized=True, **colours)
    axis.axhline(1 / results["most_concave"], color="black", lw=1, ls="--")
    axis.text(results["x"][-1] + 0.08, 1 / results["most_concave"], "$1/λ$", va="center")
    axis.set(yscale="log", xlabel="$x$  [param]", ylabel=TIME, ylim=(middle[0], middle[-1]))
    _say(axis, 0.74, 1.024, "$u_{xx} > 0$", RED)
    _say(axis, 0.89, 1.024, "$u_{xx} < 0$", "#4a90b8")


def _extremes(axis, results) -> None:
    t, infimum = results["times"], -results["curvature"].min(axis=1)
    axis.loglog(t, 1 / t, color="black", lw=1.2, ls=":")
    axis.loglog(t, 1 / (1 / results["most_convex"] + t), color="black", lw=1.2, ls="--")
    axis.loglog(t, results["curvature"].max(axis=1), color=BLUE, lw=2)
    axis.loglog(t, np.where(infimum > 0, infimum, np.nan), color=RED, lw=2)
    axis.set(xlabel=TIME, ylabel=CURVATURE, xlim=(t[0], t[-1]), ylim=(None, 4 * infimum.max()))
    _say(axis, 0.03, 0.64, "sup $u_{xx}$", BLUE)
    _say(axis, 0.03, 0.56, "≤ $1/(1/C + t)$, dashed", "black")
    _say(axis, 0.03, 0.48, "≤ $1/t$, dotted", "black")
    _say(axis, 0.97, 0.93, "$-$ inf $u_{xx}$: kinks form,\nthen dissolve", RED, ha="right", va="top")


def _two_sided(axis, results) -> None:
    x, k = results["x"], np.abs(np.log(2 * results["times"] * results["most_concave"])).argmin()
    axis.semilogy(x, results["upper"][k] - results["curvature"][k], color=BLUE, lw=1.6)
    axis.semilogy(x, results["curvature"][k] - results["lower"][k], color=GREEN, lw=1.6)
    axis.set(xlabel="$x$  [param]", ylabel="distance to the bound  [loss/param²]", xlim=(x[0], x[-1]))
    low, high = np.log(axis.get_ylim())
    axis.set_ylim(math.exp(low - 0.3 * (high - low)), math.exp(high))
    _say(axis, 0.03, 0.15, "from above: $K/(1 + tK) - u_{xx}$,  $K = E_ρ[f″]$", BLUE)
    _say(axis, 0.03, 0.07, "from below: $u_{xx} - E_ρ[f″/(1 + t f″)]$", GREEN)


def _minimum(top, bottom, results) -> None:
    t, start = results["times"], results["at_minimum"]
    top.loglog(t, results["tracked_curvature"], color=BLUE, lw=2)
    top.loglog(t, start / (1 + t * start), color="black", lw=1.2, ls="--")
    _say(top, 0.03, 0.28, "curvature", BLUE)
    _say(top, 0.03, 0.08, "$λ_0/(1 + tλ_0)$, dashed", "black")
    bottom.semilogx(t, results["basin"], color=GREEN, lw=2)
    _say(bottom, 0.03, 0.42, "width of its basin", GREEN)
    bottom.set_ylim(0, 8)
    count = results["num_minima"]
    for k in [0, *(np.flatnonzero(np.diff(count)) + 1)]:
        bottom.annotate(str(count[k]), (t[k], 0.9), xycoords=("data", "axes fraction"), fontsize=9, ha="left")
    _say(bottom, 0.08, 0.9, "minima of $u$ in all", "black")
    top.set(ylabel="[loss/param²]", xlim=(t[0], t[-1]), xticklabels=[])
    bottom.set(xlabel=TIME, ylabel="[param]", xlim=(t[0], t[-1]))


def _sharpness(axis, results) -> None:
    for prefix, tops, d, colour in (("", "curvature", 1, BLUE), ("plane_", "plane_laplacian", 2, ORANGE)):
        t, C = results[f"{prefix}times"], results[f"{prefix}most_convex"]
        axis.semilogx(t * C, results[tops].max(axis=1) * (1 / C + t / d), color=colour, lw=2)
    axis.axhline(1, color="black", lw=1.2, ls="--")
    axis.set(xlabel="$tC$,   $C$ = sup $Δf$", ylabel="sup $Δu$ × $(1/C + t/d)$", ylim=(None, 1.01))
    _say(axis, 0.19, 0.12, "one dimension", BLUE)
    _say(axis, 0.38, 0.78, "two dimensions", ORANGE)
