"""The valleys that SGD, SAM and Entropy-SGD end in: the loss, and the relaxed loss on the same planes.

Three optimisers train the same network on the same minibatches from the same initial weights, at equal numbers of
gradients, each at its best learning rate of one grid. Above, the training loss f on a random plane through each
solution; below, on the very same plane, the relaxed loss u(x, t), all with the same levels. The two directions come
from the same random numbers and have the norms of the solution's own filters, so that α = 0.5 moves every filter by
half its length; biases stay. On the right, means over random lines, with 95 % bands over seeds and batches.

u is the Cole-Hopf formula with 200 samples around every point, of relative size √(tT) = 0.3 in every filter, the same
ones at every point and for every method, and T = 1, of the size of the losses shown. That is on purpose: then, at the
worst point of the three planes, the samples still count for 95. With T = 0.3 and the same noise they would count for
14 at the corners and with T = 0.1 for 2, which is a picture of the least loss met and not of u. The price is that u
lies but 2 or 3 % below the mean loss under the noise at the solutions, and that T is a million times the temperature
that Entropy-SGD was run with.

The relaxation fills the bottom of the valleys, 0.0003 to 0.001 deep in f, up to about 0.1, and keeps the order of
their widths. At the solution u is 0.115 ± 0.032 for SGD, 0.088 ± 0.017 for SAM and 0.077 ± 0.042 for Entropy-SGD. At
radius 0.5, f has risen by 0.70, 0.54 and 0.40, less than for SGD by 0.17 ± 0.13 (SAM) and 0.31 ± 0.14 (Entropy-SGD),
seed by seed; u by 1.03, 0.80 and 0.67. So on these digits both end in wider valleys than SGD. But SAM's loss is the
largest of the three within a radius of 0.15, Entropy-SGD's learning rate is the largest of the grid, three times that
of the others, and the test errors, 2.5 ± 0.4, 2.3 ± 0.4 and 2.1 ± 0.7 %, follow the widths but do not differ beyond
their intervals.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import _run, _solutions
from experiments._histograms import LIMIT
from experiments.quickstart import interval
from jaxopt_pde import landscape, plotting


@dataclasses.dataclass(frozen=True)
class Config(_solutions.Training):
    """What to run; the defaults give the figure of the gallery."""

    noise: float = 0.3
    """√(tT), the standard deviation of the samples around a weight over the root mean square of its filter."""
    smoothing_temperature: float = 1.0
    """T of u, in units of the loss; t follows from the noise."""
    num_samples: int = 200
    """Samples of u, the same at all points of a slice."""
    radius: float = 0.5
    """Half the width of the planes and the length of the lines, in norms of the filters."""
    plane_points: int = 21
    """Points along each axis of a plane; odd, so that the solution is one."""
    line_points: int = 9
    """Points of a line, the solution and the end included."""
    num_directions: int = 6
    """Random lines through each solution."""
    examples_at_once: int = 100
    """Examples in the batches over which the error of the data is taken."""
    level: float = 0.3
    """The table has the radius at which the loss reaches this."""


SMOKE = Config(
    methods=("SGD, Nesterov",), widths=(8,), num_train=100, num_validation=50, num_test=50,
    num_seeds=2, num_gradients=200, learning_rates=(0.1,), num_samples=8, plane_points=5, line_points=3,
    num_directions=2, examples_at_once=50, level=1.0,
)  # fmt: skip

NOT_FINITE = ("reach",)


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Trains and slices; planes are [method, α, β], lines [method, seed, direction, radius]."""
    task = _solutions.make_task(config)
    solutions, rates = _solutions.chosen(config, _solutions.train(config, task, session))
    coordinates = np.linspace(-config.radius, config.radius, config.plane_points)
    radii = np.linspace(0, config.radius, config.line_points)
    # One program for the planes and one for the lines; closing over the data would fold them into it.
    compiled = jax.jit(functools.partial(slices, config, task), static_argnums=3)
    take = lambda *where: jax.device_get(compiled(task.train, *where))
    planes, lines = [], []
    with session.progress("slices", len(config.methods)) as meter:
        for name, weights in zip(config.methods, jnp.asarray(solutions.weights), strict=True):
            on_plane = lambda weights=weights: plane(config, take, weights[0], coordinates)
            on_lines = lambda weights=weights: lines_through(config, take, weights, radii)
            planes.append(session.stage(f"plane, {name}", on_plane))
            lines.append(session.stage(f"lines, {name}", on_lines))
            meter.advance()
    stacked = {f"plane_{key}": np.stack([part[key] for part in planes]) for key in planes[0]}
    stacked |= {f"line_{key}": np.stack([part[key] for part in lines]) for key in lines[0]}
    reach = [reached(radii, stacked[f"line_{loss}"].mean(2), config.level) for loss in "fu"]
    return {
        **stacked,
        "method": np.array(config.methods),
        "rate": rates,
        "largest_rate": np.array(max(config.learning_rates)),
        "test_error": solutions.test_error,
        "coordinates": coordinates,
        "radius": radii,
        "reach": np.stack(reach),
        "level": np.array(config.level),
        "smoothing": np.array([config.noise, config.smoothing_temperature, config.num_samples]),
        "note": np.array(task.note),
    }


def slices(
    config: Config, task: _solutions.Task, train, weights, key, num: int, coordinates
) -> dict[str, jax.Array]:
    """Values of f and u, their errors and effective sample sizes, on the random line or plane through one solution."""
    params = task.unravel(weights)
    of_directions, of_samples = jax.random.split(key)
    directions = landscape.random_directions(of_directions, params, num)
    smoothing = landscape.Relaxation(
        config.noise**2 / config.smoothing_temperature,
        config.smoothing_temperature,
        method="cole_hopf",
        num_samples=config.num_samples,
        scale="filter",
    )
    data = {"data": train, "batch_size": config.examples_at_once}
    axes = (coordinates,) * num
    f = landscape.slice(task.loss, params, directions, axes, **data)
    u = landscape.slice(task.loss, params, directions, axes, smoothing=smoothing, key=of_samples, **data)
    return {
        "f": f.mean,
        "f_batch_error": f.batch_error,
        "u": u.mean,
        "u_batch_error": u.batch_error,
        "u_probe_error": u.probe_error,
        "effective": u.info["effective_sample_size"],
    }


def plane(config: Config, take: Callable[..., _run.Arrays], weights, coordinates) -> dict[str, np.ndarray]:
    """The plane through the solution of the first seed; the same random numbers whichever the method."""
    return take(weights, _run.key_for(config.seed, "plane"), 2, coordinates)


def lines_through(config: Config, take: Callable[..., _run.Arrays], weights, radii) -> dict[str, np.ndarray]:
    """The lines through the solutions [seed, P], each with directions and samples of its own, [seed, direction, …]."""
    rows = [
        [
            take(solution, _run.key_for(config.seed, "line", seed, direction), 1, radii)
            for direction in range(config.num_directions)
        ]
        for seed, solution in enumerate(weights)
    ]
    return {key: np.array([[line[key] for line in row] for row in rows]) for key in rows[0][0]}


def reached(radii: np.ndarray, losses: np.ndarray, level: float) -> np.ndarray:
    """The first radius at which losses [..., radius] are at ``level``, linear in their logarithm; NaN for never."""
    above = losses >= level
    first = above.argmax(-1)
    last = np.maximum(first - 1, 0)
    at = lambda index: np.log(np.take_along_axis(losses, index[..., None], -1)[..., 0])
    below, beyond = at(last), at(first)
    gap = np.where(first > 0, beyond - below, 1)
    share = np.where(first > 0, (np.log(level) - below) / gap, 0)
    return np.where(above.any(-1), radii[last] + share * (radii[first] - radii[last]), np.nan)


def band(results: _run.Arrays, loss: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss over directions and seeds [method, radius] and half of its 95 % interval.

    Seeds differ in weights, minibatches, directions and samples of u; the training data are the same, so the error
    over batches is added to the spread over seeds.
    """
    by_seed = results[f"line_{loss}"].mean(2)
    data = LIMIT * results[f"line_{loss}_batch_error"].mean((1, 2))
    return by_seed.mean(1), np.hypot(interval(np.moveaxis(by_seed, 1, -1)), data)


def rise(results: _run.Arrays, loss: str) -> np.ndarray:
    """Mean over directions of the loss at the end of the lines less that at the solution, [method, seed]."""
    values = results[f"line_{loss}"]
    return (values[..., -1] - values[..., 0]).mean(-1)


def show(values: np.ndarray, digits: int) -> str:
    """Mean and 95 % confidence interval over the seeds."""
    if not np.isfinite(values).all():
        return "not reached"
    return f"{values.mean():.{digits}f} ± {interval(values):.{digits}f}"


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Heights and widths of the valleys; 95 % intervals over the seeds."""
    names, level, end = results["method"], float(results["level"]), results["radius"][-1]
    number = results["smoothing"][2]
    headers = [
        "method", "learning rate", "test error %", "f at the solution", "u at the solution",
        f"rise of f at radius {end:g}", "rise of f less the first method's", f"rise of u at radius {end:g}",
        "rise of u less the first method's", f"radius of f = {level:g}", f"radius of u = {level:g}",
        "standard error of u at the solution: samples, batches",
        f"least effective sample size of {number:g} (plane, lines)",
    ]  # fmt: skip
    rises = {loss: rise(results, loss) for loss in "fu"}
    centre = {loss: results[f"line_{loss}"][..., 0].mean(2) for loss in "fu"}
    errors = [results[f"line_u_{kind}_error"][..., 0].mean((1, 2)) for kind in ("probe", "batch")]
    rows = []
    for m, name in enumerate(map(str, names)):
        edge = " (largest tried)" if results["rate"][m] == results["largest_rate"] else ""
        paired = {loss: "–" if m == 0 else show(values[m] - values[0], 3) for loss, values in rises.items()}
        rows.append(
            [
                name,
                f"{results['rate'][m]:g}{edge}",
                show(100 * results["test_error"][m], 2),
                show(centre["f"][m], 5),
                show(centre["u"][m], 4),
                show(rises["f"][m], 3),
                paired["f"],
                show(rises["u"][m], 3),
                paired["u"],
                show(results["reach"][0, m], 3),
                show(results["reach"][1, m], 3),
                f"{errors[0][m]:.4f}, {errors[1][m]:.4f}",
                f"{results['plane_effective'][m].min():.0f}, {results['line_effective'][m].min():.0f}",
            ]
        )
    return headers, rows


COLOURS = {
    "SGD, Nesterov": plotting.COLOURS["blue"],
    "SAM": plotting.COLOURS["green"],
    "Entropy-SGD, K = 1": plotting.COLOURS["vermillion"],
}
LEVELS = [0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6]


def figure(results: _run.Arrays) -> plt.Figure:
    """Above f and below u, on the same planes with the same levels; on the right their means over lines."""
    names = [str(name) for name in results["method"]]
    noise, temperature, _ = results["smoothing"]
    widths = [1] * len(names) + [1.15]
    with plotting.style():
        fig = plt.figure(figsize=(3.05 * len(names) + 3.9, 6.5))
        axes = fig.subplots(2, len(names) + 1, width_ratios=widths)
        fig.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
        for row, loss in enumerate("fu"):
            for m, name in enumerate(names):
                draw_plane(axes[row, m], results, loss, m)
                if row == 0:
                    axes[row, m].set_title(name, color=COLOURS.get(name, "black"), fontweight="bold")
                    axes[row, m].set_xticklabels([])
                else:
                    axes[row, m].set_xlabel("α   [norms of the filters]")
                if m:
                    axes[row, m].set_yticklabels([])
            draw_lines(axes[row, -1], results, loss)
        axes[0, 0].set_ylabel("training loss f\n\nβ   [norms of the filters]")
        axes[1, 0].set_ylabel(f"relaxed loss u(·, t), √(tT) = {noise:g}, T = {temperature:g}\n\nβ")
        share_heights(axes[:, -1])
        axes[0, -1].set(
            title=f"mean of {results['line_f'].shape[2]} lines, 95 % of {results['line_f'].shape[1]} seeds"
        )
        axes[0, -1].set_xticklabels([])
        axes[1, -1].set_xlabel("distance from the solution\n[norms of the filters]")
    return fig


def draw_plane(axis, results: _run.Arrays, loss: str, m: int) -> None:
    """Contours with the levels written on them, a dot at the solution and its value."""
    across = results["coordinates"]
    values = results[f"plane_{loss}"][m]
    plotting.contour(axis, (across, across), values, levels=LEVELS)
    name = str(results["method"][m])
    middle = len(across) // 2
    axis.plot(0, 0, "o", color=COLOURS.get(name, "black"), markeredgecolor="white", markersize=8, zorder=5)
    spread = results[f"plane_{loss}_batch_error"][m, middle, middle]
    if loss == "u":
        spread = np.hypot(spread, results["plane_u_probe_error"][m, middle, middle])
    digits = 4 if loss == "f" else 3
    text = f"at the solution {values[middle, middle]:.{digits}f} ± {LIMIT * spread:.{digits}f}"
    axis.text(
        0.5, 0.02, text, transform=axis.transAxes, ha="center", va="bottom", fontsize=9, zorder=7,
        bbox={"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1.5},
    )  # fmt: skip


def draw_lines(axis, results: _run.Arrays, loss: str) -> None:
    """Mean loss over directions and seeds with its band."""
    mean, half = band(results, loss)
    for m, name in enumerate(map(str, results["method"])):
        estimate = landscape.Estimate(mean[m], half[m] / LIMIT)
        plotting.profile(axis, results["radius"], estimate, colour=COLOURS.get(name, "black"))
        axis.lines[-1].set_label(name)
    axis.set(yscale="log", ylabel=f"mean {'f' if loss == 'f' else 'u(·, t)'}")
    axis.margins(x=0.02)
    if loss == "f":
        axis.legend(loc="upper left", labelcolor="linecolor", handlelength=1.2)


def share_heights(axes) -> None:
    """The same vertical range for both."""
    limits = np.array([axis.get_ylim() for axis in axes])
    for axis in axes:
        axis.set_ylim(limits[:, 0].min(), limits[:, 1].max())
