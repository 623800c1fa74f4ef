"""Lipschitz interpolants of clean labels converge, at a rate set by the dimension of the data.

Minimising E|u - u0|² + λ max(Lip(u) - L0, 0) over n clean labels gives exactly the functions of Lipschitz constant L0
through the data, and the worst of them are known in closed form: the McShane and Whitney extensions, the largest and
the smallest. Since both pass through the data, |u - u0| ≤ 2 L0 times the distance to the nearest data point, so that
the sup norm is at most 2 L0 times the fill distance: n^(-1/m) on a grid, (log n/n)^(1/m) for random points, where m
is the dimension of the set on which the data lie.

Above, the error of the worse of the two extensions (solid) and of their midpoint (dashed) in dimensions 1, 2 and 3,
for a smooth u0 whose own constant is half of L0; the dotted lines have the theorem's slope. On the grid the slopes are
-1/m. Random samples have exponents of log n/n of 1.11 ± 0.03, 0.52 ± 0.04 and 0.38 ± 0.06, and their fill distance
1.06, 0.53 and 0.40: a little above 1/m at these n. The table has a second u0, a distance to a few points, whose slope
is L0 nearly everywhere; between points of the line with |u0'| = L0 nothing is left free, and its error falls faster.
Below on the left, a circle in space: with one label or with three the slope is 1, the dimension of the circle, and not
1/3.

Below on the right, labels with noise of range R, on the line. Now no function of constant L0 passes through the data,
and the constant of the data grows like n². To interpolate all the same leaves an error of at least R/2 for ever. The
functions of constant L0 that are nearest to the data in the sup norm have a closed form too: the extensions of labels
raised or lowered by the misfit. They converge, but to u0 plus the middle of the range of the noise: to u0 itself if
the noise is symmetric, more slowly, about as (log n/n)^(1/(m + 1)), since a point has to be near and its noise
extreme; and to an error of R/2 if one label in ten is too high by R, however many there are. Clean labels are what
the theorem needs.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import _run
from experiments.quickstart import interval
from jaxopt_pde import robustness

DIMENSIONS = {"line": 1, "square": 2, "cube": 3, "circle": 1}
LABELS = ("smooth", "cones", "three labels")
NOISES = ("symmetric", "one-sided")
NOISY = ("line",)
BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run; the defaults give the figure of the gallery."""

    line: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    """Numbers of points n in [0, 1]; n = kᵐ for a whole k here and below, for the grids."""
    square: tuple[int, ...] = (64, 144, 256, 576, 1024)
    """Numbers of points in the unit square."""
    cube: tuple[int, ...] = (64, 216, 512, 1728)
    """Numbers of points in the unit cube."""
    circle: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    """Numbers of points on a circle of length 1 in space."""
    draws: tuple[int, ...] = (40, 10, 6, 20)
    """Random samples of each size, for the four sets in this order."""
    queries: tuple[int, ...] = (4096, 96, 24, 4096)
    """Intervals of the grid of queries along each axis: multiples of k, so that corners of cells are queries."""
    lipschitz: float = 1.0
    """L0, in [label/input]; the smooth u0 has half of it, the cones all."""
    noise_range: float = 0.2
    """R, the difference of the largest and the smallest error of a noisy label."""
    flipped: float = 0.1
    """Share of the labels that are too high by R, for one-sided noise."""
    seed: int = 0
    """Of everything random."""


SMOKE = Config(
    line=(32, 64, 256), square=(16, 64), cube=(8, 64), circle=(32, 256), draws=(8, 2, 2, 4), queries=(512, 16, 8, 512)
)  # fmt: skip


def samples(config: Config, name: str, size: int, random: np.random.Generator):
    """Points [1 + draws, n, d], the first a grid and the others uniform at random, and queries [q, d]."""
    place = list(DIMENSIONS).index(name)
    draws, steps = config.draws[place], config.queries[place]
    if name == "circle":
        frame = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])
        turns = np.concatenate([np.arange(size)[None] / size, random.uniform(size=(draws, size))])
        on_circle = lambda t: (
            np.stack([np.cos(2 * np.pi * t), np.sin(2 * np.pi * t)], -1) @ frame / (2 * np.pi)
        )
        return on_circle(turns), on_circle(np.arange(steps) / steps)
    dimension = DIMENSIONS[name]
    side = round(size ** (1 / dimension))
    if side**dimension != size:
        msg = f"{name}={size} must be a whole number to the power {dimension}, for the grid."
        raise ValueError(msg)
    product = lambda axis: np.stack(np.meshgrid(*[axis] * dimension, indexing="ij"), -1).reshape(
        -1, dimension
    )
    grid = product((np.arange(side) + 0.5) / side)
    points = np.concatenate([grid[None], random.uniform(size=(draws, size, dimension))])
    return points, product(np.linspace(0, 1, steps + 1))


def true_labels(points, centres, lipschitz: float, several: bool):
    """u0 at points [..., d]: smooth (Lip = L0/2), cones (Lip = L0), then if several one smooth label an axis."""
    frequency, axes = 2 * np.pi, points.shape[-1]
    waves = lipschitz / 2 * jnp.sin(frequency * points) / frequency
    away = jnp.linalg.norm(
        points[..., None, :] - centres.reshape((1,) * (points.ndim - 1) + centres.shape), axis=-1
    )
    own = jnp.stack([waves.sum(-1) / math.sqrt(axes), lipschitz * away.min(-1)], -1)
    return jnp.concatenate([own, waves], -1) if several else own


@functools.partial(jax.jit, static_argnames=("lipschitz", "noisy", "several"))
def measure(
    points, noises, queries, centres, lipschitz: float, noisy: bool, several: bool
) -> dict[str, jax.Array]:
    """Errors through each sample in turn; ``noises`` [1 + draws, n, 2] are added to the smooth labels."""
    exact = true_labels(queries, centres, lipschitz, several)
    supremum = lambda difference: jnp.abs(difference).max(0)

    def one(sample):
        xs, noise = sample
        clean = true_labels(xs, centres, lipschitz, several)
        spoilt = clean[:, :1] + noise[:, : len(NOISES) * noisy]
        # Zero labels: their upper extension is L0 times the distance to the data.
        labels = jnp.concatenate([clean, jnp.zeros_like(clean[:, :1]), spoilt], 1)
        extend = robustness.lipschitz_extension(xs, labels, lipschitz=lipschitz, check=False)
        columns = clean.shape[1]
        # At the data points too, for the misfit.
        all_upper, all_lower, all_middle = extend(jnp.concatenate([queries, xs]))
        upper, lower, middle = (values[: len(queries)] for values in (all_upper, all_lower, all_middle))
        worst = [supremum(extreme[:, :columns] - exact) for extreme in (upper, lower)]
        combine = lambda values: jnp.append(values[:2], values[2:].max()) if several else values
        found = {
            "fill": upper[:, columns].max() / lipschitz,
            "error": combine(jnp.maximum(*worst)),
            "midpoint": combine(supremum(middle[:, :columns] - exact)),
        }
        if not noisy:
            return found
        # No L0-Lipschitz function is nearer to the noisy labels than the misfit. Those as near as that lie between
        # the extensions of the labels raised and lowered by it.
        misfit = jnp.max(spoilt - all_upper[len(queries) :, columns + 1 :], 0) / 2
        raised, lowered = upper[:, columns + 1 :] + misfit[None], lower[:, columns + 1 :] - misfit[None]
        fitted = jnp.maximum(supremum(raised - exact[:, :1]), supremum(lowered - exact[:, :1]))
        steepest = robustness.lipschitz_constant(xs, spoilt[:, 0])
        through = robustness.lipschitz_extension(xs, spoilt[:, 0], lipschitz=steepest, check=False)(queries)
        return found | {
            "misfit": misfit,
            "fit_error": fitted,
            "fit_midpoint": supremum(middle[:, columns + 1 :] - exact[:, :1]),
            "constant": steepest,
            "through": supremum(through.midpoint - exact[:, 0]),
        }

    return jax.lax.map(one, (points, noises))


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Arrays ``{measurement}_{set}`` are [size, 1 + draws, ...]; of the samples the first is the grid."""
    results = {"lipschitz": np.array(config.lipschitz), "noise_range": np.array(config.noise_range)}
    sizes = {name: getattr(config, name) for name in DIMENSIONS}
    with session.progress("samples", sum(map(len, sizes.values()))) as meter, jax.enable_x64(True):
        for place, name in enumerate(DIMENSIONS):
            rows = []
            for size in sizes[name]:
                random = np.random.default_rng([config.seed, place, size])
                points, queries = samples(config, name, size, random)
                level = random.uniform(-0.5, 0.5, points.shape[:2])
                high = random.uniform(size=points.shape[:2]) < config.flipped
                noises = config.noise_range * np.stack([level, high], -1)
                centres = np.random.default_rng([config.seed, place]).uniform(0.1, 0.9, (4, points.shape[-1]))
                if name == "circle":
                    centres = queries[[0, len(queries) // 5, len(queries) // 2]]
                # A few lengths only, for few programs: a repeated point changes nothing.
                repeats = ((0, 0), (0, -size % BLOCK), (0, 0))
                points, noises = (np.pad(array, repeats, mode="edge") for array in (points, noises))
                arguments = (
                    points,
                    noises,
                    queries,
                    centres,
                    config.lipschitz,
                    name in NOISY,
                    name == "circle",
                )
                rows.append(session.stage(f"{name}, {size}", functools.partial(measure, *arguments)))
                meter.advance()
            results[f"size_{name}"] = np.array(sizes[name])
            results |= {f"{key}_{name}": np.stack([row[key] for row in rows]) for key in rows[0]}
    return results


def slopes(results: _run.Arrays, name: str, errors: np.ndarray, *, random: bool = True) -> np.ndarray:
    """Exponents of errors [size, draw] fitted draw by draw: in log n/n for random samples, in n for grids."""
    sizes = results[f"size_{name}"]
    scale = np.log(np.log(sizes) / sizes) if random else np.log(sizes)
    return np.polyfit(scale, np.log(errors), 1)[0]


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Slopes with 95 % intervals over the draws, the sharpness of the bound, and the errors at the largest n."""
    headers = [
        "data",
        "labels",
        "slope",
        "in",
        "theorem",
        "largest error/(2 L0 fill)",
        "error at the largest n",
    ]
    show = lambda values: f"{values.mean():.3g} ± {interval(values):.2g}"
    rows = []
    for name, dimension in DIMENSIONS.items():
        bound = 2 * results["lipschitz"] * results[f"fill_{name}"]
        last = f" (n = {results[f'size_{name}'][-1]})"
        for label, title in enumerate(LABELS):
            if title == "three labels" and name != "circle":
                continue
            errors = results[f"error_{name}"][..., label]
            ratio = f"{(errors / bound).max():.6f}"
            slope = slopes(results, name, errors[:, 0], random=False)
            rows.append(
                [
                    f"{name}, grid",
                    title,
                    f"{slope:.3f}",
                    "n",
                    f"-1/{dimension}",
                    ratio,
                    f"{errors[-1, 0]:.2g}{last}",
                ]
            )
            slope = slopes(results, name, errors[:, 1:])
            rows.append(
                [
                    f"{name}, random",
                    title,
                    show(slope),
                    "log n/n",
                    f"1/{dimension}",
                    ratio,
                    show(errors[-1, 1:]) + last,
                ]
            )
        slope = slopes(results, name, results[f"fill_{name}"][:, 1:])
        rows.append(
            [f"{name}, random", "(fill distance)", show(slope), "log n/n", f"1/{dimension}", "",
             show(results[f"fill_{name}"][-1, 1:]) + last]
        )  # fmt: skip
    for name in NOISY:
        for kind, title in enumerate(NOISES):
            errors = results[f"fit_error_{name}"][:, 1:, kind]
            rows.append(
                [f"{name}, random", f"{title} noise, nearest L0-Lipschitz fit", show(slopes(results, name, errors)),
                 "log n/n", "", "", show(errors[-1])]
            )  # fmt: skip
        errors = results[f"through_{name}"][:, 1:]
        rows.append(
            [f"{name}, random", "symmetric noise, interpolated", show(slopes(results, name, errors)), "log n/n", "", "",
             f"{show(errors[-1])}; Lip(data)/L0 = {np.median(results[f'constant_{name}'][-1, 1:]):.2g} (median)"]
        )  # fmt: skip
    return headers, rows


COLOURS = {"line": "#0072b2", "square": "#e69f00", "cube": "#009e73", "circle": "#cc79a7"}
GREY = "#4d4d4d"


def figure(results: _run.Arrays) -> plt.Figure:
    """Errors against n: grids, random samples, a circle in space, noisy labels on the line."""
    style = {"font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        fig, axes = plt.subplots(2, 2, figsize=(11.4, 8.6), layout="constrained")
        fig.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        grids, randoms, circle, noise = axes.flat
        for name in ("line", "square", "cube"):
            for axis, drawn in ((grids, slice(0, 1)), (randoms, slice(1, None))):
                errors = results[f"error_{name}"][:, drawn, 0]
                curve(axis, results, name, errors, COLOURS[name])
                curve(axis, results, name, results[f"midpoint_{name}"][:, drawn, 0], COLOURS[name], line="--")
                grid = axis is grids
                slope = slopes(results, name, errors, random=not grid)
                fitted = f"{slope[0]:.2f}" if grid else f"{slope.mean():.2f} ± {interval(slope):.2f}"
                guide(axis, results, name, errors, 1 / DIMENSIONS[name], grid)
                end = (results[f"size_{name}"][-1], errors[-1].mean())
                text = f"{DIMENSIONS[name]}-D: {fitted}"
                axis.annotate(
                    text,
                    end,
                    (8, -10 if axis is grids else 0),
                    textcoords="offset points",
                    color=COLOURS[name],
                    va="center",
                )
        for label, line in ((0, "-"), (2, ":")):
            errors = results["error_circle"][:, 1:, label]
            slope = slopes(results, "circle", errors)
            title = f"{('one label', '', 'three labels')[label]}: slope {slope.mean():.2f} ± {interval(slope):.2f}"
            curve(circle, results, "circle", errors, COLOURS["circle"], line=line, label=title)
        for power, text in ((1, "(log n/n)¹,  m = 1"), (1 / 3, "(log n/n)$^{1/3}$")):
            guide(circle, results, "circle", results["error_circle"][:, 1:, 0], power, False, text)
        circle.legend(frameon=False, loc="lower left")
        kinds = (
            ("through_line", ..., "#d55e00", "interpolated: Lip(u) = Lip(data)"),
            ("fit_error_line", 1, "#e69f00", "one label in ten too high by R: nearest, Lip(u) = L0"),
            ("fit_error_line", 0, "#56b4e9", "symmetric noise: nearest, Lip(u) = L0"),
            ("error_line", 0, COLOURS["line"], "clean: interpolated, Lip(u) = L0"),
        )
        for key, which, colour, text in kinds:
            curve(noise, results, "line", results[key][:, 1:, which], colour, label=text)
        noise.axhline(results["noise_range"] / 2, color=GREY, linestyle=":", linewidth=1)
        noise.text(1, results["noise_range"] / 2 / 1.03, "R/2 ", transform=noise.get_yaxis_transform(), ha="right",
                   va="top", color=GREY)  # fmt: skip
        noise.set_ylim(results["error_line"][-1, :, 0].mean() / 6)
        noise.legend(frameon=False, loc="lower left", fontsize=9)
        grids.set_title("uniform grid: exponents of n")
        randoms.set_title("random samples: exponents of log n/n")
        circle.set_title("random points on a circle in space")
        noise.set_title("noisy labels, random points on the line")
        lines = [plt.Line2D([], [], color=GREY, linestyle=line) for line in ("-", "--", ":")]
        names = ["worse extension", "midpoint", "theorem's slope"]
        grids.legend(lines, names, frameon=False, loc="lower left")
        for axis in axes.flat:
            axis.set(
                xscale="log",
                yscale="log",
                xlabel="number of labels n",
                ylabel="sup error   ‖u − u0‖∞   [label]",
            )
        for axis in (grids, randoms):
            low, high = axis.get_xlim()
            axis.set_xlim(low, high * 5)
    return fig


def curve(axis, results, name: str, errors: np.ndarray, colour: str, *, line: str = "-", label=None) -> None:
    """Mean over the draws [size, draw] and its 95 % confidence interval, if there are several."""
    sizes, mean = results[f"size_{name}"], errors.mean(1)
    axis.plot(sizes, mean, line, color=colour, marker="o", markersize=3.5, linewidth=1.5, label=label)
    if errors.shape[1] > 1:
        half = interval(errors)
        axis.fill_between(
            sizes, np.maximum(mean - half, mean / 2), mean + half, color=colour, alpha=0.2, linewidth=0
        )


def guide(axis, results, name: str, errors: np.ndarray, power: float, grid: bool, text: str = "") -> None:
    """A dotted line of the theorem's slope, above the first point."""
    sizes = results[f"size_{name}"]
    scale = (1 / sizes if grid else np.log(sizes) / sizes) ** power
    values = 1.35 * errors[0].mean() * scale / scale[0]
    axis.plot(sizes, values, ":", color=GREY, linewidth=1)
    axis.annotate(
        text,
        (sizes[len(sizes) // 2], values[len(sizes) // 2]),
        (6, 6),
        textcoords="offset points",
        color=GREY,
        ha="left",
        va="bottom",
    )
