"""Minibatch gradients far from the minimum and near it, and the learning rate that follows from them.

The loss is that of k-means with one centre, f(x) = (1/2n) Σ |x − aᵢ|², whose minimum is the mean of the data. At each
of six points on the way to it many minibatch gradients are drawn, and beside them their mean, the full gradient. All
minibatches of four examples have the same noise, E|∇f_B − ∇f|² = s/b, wherever x is; only the gradient itself,
|∇f| = |x − x*|, shrinks.

What to see: far out the arrows agree and any of them is worth following; near x* they point everywhere and only their
mean knows the way. The ratio of noise to gradient is 1 at the distance √(s/b). There the space-adaptive rate
h = 2 (f − f*)/E|∇f_B|² = |x − x*|²/(|x − x*|² + s/b) is ½, outside it tends to 1/L = 1, and inside it falls as the
square of the distance: the same rule jumps where it can and averages where it must. With this rate a step shortens the
mean squared distance by the factor 1 − μh exactly. The last panel says what the step does to |x − x*|² for every h.
"""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Circle

from experiments import _run
from jaxopt_pde import problems

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#e69f00", "#009e73", "#808080"  # Okabe & Ito


@dataclasses.dataclass(frozen=True)
class Config:
    """The data, the minibatches and the points."""

    seed: int = 0
    """Seeds the minibatches."""
    data_seed: int = 1
    """Seeds the data."""
    num_examples: int = 400
    """Examples n, from two Gaussian clouds."""
    batch_size: int = 4
    """Examples in a minibatch, drawn with replacement."""
    num_drawn: int = 24
    """Minibatch gradients drawn as arrows at every point."""
    num_minibatches: int = 4000
    """Minibatches behind the measured numbers at every point."""
    distances: tuple[float, ...] = (8.0, 5.0, 3.0, 1.4, 0.6, 0.2)
    """|x − x*| of the points, in [param], in falling order; the last three are drawn enlarged."""
    angles: tuple[float, ...] = (160.0, 50.0, -25.0, 178.0, 25.0, -100.0)
    """Directions of the points from x*, in degrees, so that their arrows are side by side."""
    num_rates: int = 101
    """Learning rates of the last panel, from 0 to 1."""


SMOKE = Config(num_examples=100, num_minibatches=200, num_rates=21)


def measure(config: Config) -> _run.Arrays:
    """Gradients, exact and measured noise, and the effect of one step, at every point."""
    data, _, _ = problems.planted_clusters(config.data_seed, config.num_examples, 2, 2, separation=2.4)
    problem = problems.kmeans(data, batch_size=config.batch_size)
    minimiser = jnp.asarray(problem.minimiser)
    angles = jnp.deg2rad(jnp.asarray(config.angles))
    away = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    points = minimiser[None] + jnp.asarray(config.distances)[:, None] * away
    keys = jax.random.split(_run.key_for(config.seed, "minibatches"), config.num_minibatches)
    rates = jnp.linspace(0, 1, config.num_rates)

    @jax.jit
    @jax.vmap
    def at(point):
        drawn = jax.vmap(problem.minibatch_gradient, (None, 0))(point, keys)
        gradient, expected = problem.gradient(point), problem.expected_grad_sq_norm(point)
        z = point - minimiser
        h = problems.space_adaptive_rate(problem.excess_loss(point), expected)
        after = jnp.sum((z[None] - h * drawn) ** 2, axis=1)
        signal = jnp.sqrt(jnp.sum(gradient**2))
        cosine = drawn @ gradient / jnp.linalg.norm(drawn, axis=1) / signal
        return {
            "minibatch_gradient": drawn[: config.num_drawn],
            "gradient": gradient,
            "noise": jnp.sqrt(problem.gradient_variance(point)),
            "measured_noise": jnp.sqrt(jnp.mean(jnp.sum((drawn - gradient[None]) ** 2, axis=1))),
            "uphill_share": jnp.mean(cosine < 0),  # of minibatches, a step along them at first increases f
            "rate": h,
            "next_sq_distance": jnp.mean(after),
            "next_error": jnp.std(after, ddof=1) / np.sqrt(config.num_minibatches),
            "step_effect": (z @ z - 2 * rates * (z @ gradient) + rates**2 * expected) / (z @ z),
        }

    found = {name: np.asarray(array) for name, array in at(points).items()}
    return found | {
        "data": data,
        "points": np.asarray(points),
        "minimiser": np.asarray(minimiser),
        "distance": np.array(config.distances),
        "rates": np.asarray(rates),
        "batch_size": np.array(config.batch_size),
        "noise_variance": np.array(problem.noise_variance),
    }


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """All points at once, in float64."""
    with jax.enable_x64(True):
        return session.stage("points", lambda: measure(config))


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Gradient, noise, their ratio, and the space-adaptive step at every point."""
    headers = ["|x − x*|", "|∇f|", "noise √(E|∇f_B − ∇f|²)", "measured", "noise / gradient", "minibatches uphill",
               "space-adaptive h", "E|x⁺ − x*|² / |x − x*|², measured", "1 − μh"]  # fmt: skip
    rows = []
    for i, distance in enumerate(results["distance"]):
        signal, noise, h = np.linalg.norm(results["gradient"][i]), results["noise"][i], results["rate"][i]
        ratio, error = (results[name][i] / distance**2 for name in ("next_sq_distance", "next_error"))
        rows.append([
            f"{distance:g}", f"{signal:.3f}", f"{noise:.3f}", f"{results['measured_noise'][i]:.3f}",
            f"{noise / signal:.3g}", f"{100 * results['uphill_share'][i]:.1f} %", f"{h:.4f}",
            f"{ratio:.4f} ± {1.96 * error:.4f}", f"{1 - h:.4f}",
        ])  # fmt: skip
    return headers, rows


def figure(results: _run.Arrays) -> plt.Figure:
    """The plane and its middle enlarged, the ratio and the rate against distance, and the effect of a step."""
    fig = plt.figure(figsize=(14.4, 8.6), layout="constrained")
    axes = fig.subplot_mosaic([["plane", "middle"], ["curves", "effect"]], height_ratios=(1.45, 1))
    half = 1.22 * results["distance"][0]
    shown = len(results["distance"]) - 3
    _arrows(axes["plane"], results, range(shown), half, 0.33)
    axes["plane"].scatter(*results["data"].T, s=5, color=GREY, alpha=0.5, lw=0, zorder=1)
    inner = 1.7 * results["distance"][shown]
    _arrows(axes["middle"], results, range(shown, len(results["distance"])), inner, 0.3)
    box = {"facecolor": "none", "edgecolor": "black", "lw": 1}
    corner = results["minimiser"] - np.array([inner, 0.62 * inner])
    axes["plane"].add_patch(plt.Rectangle(corner, 2 * inner, 1.24 * inner, **box, zorder=6))
    _curves(axes["curves"], results)
    _effect(axes["effect"], results)
    titles = {
        "plane": "far from $x^*$: minibatch steps $-∇f_B$ (blue), their mean (orange)",
        "middle": "near $x^*$: the box, enlarged; arrows at the scale of the box",
        "curves": "noise, and the rate that follows",
        "effect": "what one step does, for every learning rate",
    }
    for letter, (name, axis) in zip("abcd", axes.items(), strict=True):
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(rf"$\bf{{{letter}}}$   {titles[name]}", loc="left", fontsize=11)
    return fig


def _arrows(axis, results, chosen, half, scale) -> None:
    centre = results["minimiser"]
    for radius in np.linspace(0, 1.6 * half, 13)[1:]:
        axis.add_patch(Circle(centre, radius, fill=False, color="#d0d0d0", lw=0.8, zorder=0))
    axis.plot(*centre, "*", color="black", ms=13, zorder=7)
    settings = {"angles": "xy", "scale_units": "xy", "scale": 1 / scale}
    for i in chosen:
        x, drawn = results["points"][i], -results["minibatch_gradient"][i]
        at = np.broadcast_to(x, drawn.shape)
        axis.quiver(*at.T, *drawn.T, color=BLUE, alpha=0.45, width=0.0022, zorder=3, **settings)
        axis.quiver(*x, *-results["gradient"][i], color=ORANGE, width=0.006, zorder=5, **settings)
        axis.plot(*x, "o", color="black", ms=3, zorder=6)
        ratio = results["noise"][i] / np.linalg.norm(results["gradient"][i])
        up = 1 if x[1] > centre[1] else -1
        place = x[1] + up * (0.04 * half + 2 * scale * results["noise"][i] * (ratio > 0.5))
        text = f"noise/gradient {ratio:.2g}\n$h = {results['rate'][i]:.2g}$"
        vertical = "bottom" if up > 0 else "top"
        paper = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}
        axis.text(x[0], place, text, fontsize=9.5, ha="center", va=vertical, zorder=8, bbox=paper)
    axis.set_aspect("equal")
    axis.set(
        xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - 0.62 * half, centre[1] + 0.62 * half)
    )
    axis.set(xlabel="$x_1$  [param]", ylabel="$x_2$  [param]")


def _curves(axis, results) -> None:
    distance = np.geomspace(0.6 * results["distance"].min(), 1.4 * results["distance"].max(), 200)
    variance = results["noise_variance"]
    axis.loglog(distance, np.sqrt(variance) / distance, color=BLUE, lw=2)
    axis.loglog(distance, distance**2 / (distance**2 + variance), color=GREEN, lw=2)
    signal = np.linalg.norm(results["gradient"], axis=1)
    axis.loglog(results["distance"], results["measured_noise"] / signal, "o", color=BLUE, ms=6)
    axis.loglog(results["distance"], results["rate"], "o", color=GREEN, ms=6)
    axis.axvline(np.sqrt(variance), color="black", lw=1, ls=":")
    axis.text(1.05 * np.sqrt(variance), axis.get_ylim()[0] * 1.4, "$|x - x^*| = \\sqrt{s/b}$")
    axis.text(0.16, 0.93, "noise / gradient", color=BLUE, transform=axis.transAxes)
    text = "space-adaptive $h$  [param²/loss]"
    axis.text(0.98, 0.71, text, color=GREEN, ha="right", transform=axis.transAxes)
    axis.set(xlabel="$|x - x^*|$  [param]", xlim=(distance[0], distance[-1]))


def _effect(axis, results) -> None:
    shades = plt.cm.viridis(np.linspace(0, 0.85, len(results["distance"])))
    height = -0.08
    for i, (distance, colour) in enumerate(zip(results["distance"], shades, strict=True)):
        axis.plot(results["rates"], results["step_effect"][i], color=colour, lw=2)
        axis.plot(results["rate"][i], 1 - results["rate"][i], "o", color=colour, ms=7, zorder=4)
        end = results["step_effect"][i][-1]
        if end < 2:
            height = max(end, height + 0.11)
            axis.text(1.015, height, f"{distance:g}", color=colour, va="center")
        else:
            crossing = np.interp(1.8, results["step_effect"][i][1:], results["rates"][1:])
            axis.text(crossing - 0.015, 1.85, f"{distance:g}", color=colour, ha="right", va="center")
    axis.axhline(1, color="black", lw=1, ls="--")
    axis.text(0.99, 1.03, "nothing gained", ha="right", va="bottom")
    axis.text(0.985, 0.68, "numbers: $|x - x^*|$;  dots: the space-adaptive $h$", ha="right")
    axis.set(xlim=(0, 1), ylim=(0, 2), xlabel="learning rate $h$  [param²/loss]")
    axis.set_ylabel(r"$\mathrm{E}\,|x^+ - x^*|^2\,/\,|x - x^*|^2$")
