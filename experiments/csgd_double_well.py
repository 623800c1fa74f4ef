"""Controlled SGD in a double well: the value function, its control, and what it does to the density of SGD.

Descent dx = −f'(x) ds − α ds + √T dW starts in the higher well of a tilted quartic double well and has until the
horizon S to reach the lower one. The cost is E[f(x(S)) + ½∫α² ds]. The Hamilton-Jacobi-Bellman equation, solved
backward on a grid, gives the value function u(x, s) and the optimal control α = u_x; the Fokker-Planck equation,
solved forward with and without α, gives the densities; paths simulated by jaxopt_pde.controlled_sgd with the same noise
with and without control, an Euler step an update, check both.

What to see: the control does nothing in the lower well. It pushes left across the barrier, the harder the less time is
left, until too little is left to arrive: then those still in the higher well are only pushed to its bottom. Most paths
of CSGD cross, few of SGD do, and at first E f is the higher under control, which pays for the climb. The improvement at
the horizon is not merely bounded by the energy ½E∫α² spent but equal to it plus the energy that the same control would
have spent along the paths of SGD; both sides of that identity stand beside each other, with 95 % intervals.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import PowerNorm

import jaxopt_pde
from experiments import _run
from jaxopt_pde import control, pde, problems

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#777777"
LIMIT = 1.959964


@dataclasses.dataclass(frozen=True)
class Config:
    """The loss, the cost and the simulation."""

    seed: int = 0
    """Seeds the noise of the paths, the same for SGD and CSGD."""
    barrier: float = 0.5
    """B of f(x) = B (x² − 1)² + κx, in [loss]."""
    tilt: float = 0.4
    """κ, in [loss]: lowers the left well."""
    temperature: float = 0.2
    """T, in [loss]."""
    horizon: float = 4.0
    """S, in [param²/loss]."""
    spread: float = 0.1
    """Standard deviation of the first density about the right well's bottom, in [param]."""
    half_width: float = 2.2
    """The grid is [−this, this], in [param]."""
    points: int = 221
    """Grid points."""
    num_times: int = 201
    """Times at which u and the densities are kept, equally spaced from 0 to S."""
    paths: int = 20_000
    """Paths of SGD and of CSGD."""
    steps: int = 800
    """Euler steps up to the horizon, a multiple of num_times − 1."""
    drawn_paths: int = 8
    """Paths in the figure."""


SMOKE = Config(points=111, num_times=51, paths=2000, steps=200)


def simulate(config: Config, loss, middle: float, alpha: control.Feedback, scale) -> dict[str, jax.Array]:
    """Paths of controlled SGD under ``scale``·α, an Euler step an update.

    Args:
        config: horizon, temperature, numbers of steps and paths, and the seed.
        loss: f, point [1] → scalar.
        middle: mean of the first density.
        alpha: α(x, s).
        scale: 1 for CSGD, 0 for SGD.

    Returns:
        "loss" f(x(s)) [time, path], "energy" ½∫α(x)² of each path up to S, whether applied or not, [path],
        "paths" [time, drawn path] and "last" x(S) [path].
    """
    h = config.horizon / config.steps
    noise_key, start_key = (_run.key_for(config.seed, name) for name in ("noise", "start"))
    slopes, losses = jax.vmap(jax.grad(loss)), jax.vmap(loss)

    def step(carry, _):
        x, state, energy = carry
        push = jax.vmap(lambda point: alpha(point, state.time))(x)
        # One state for all paths: the params are the whole ensemble [path, 1], each entry with noise of its own.
        optimizer = controlled(lambda x, time, key: scale * push)
        updates, state = optimizer.update(slopes(x), state, x)
        return (x + updates, state, energy + 0.5 * h * push[:, 0] ** 2), None

    def controlled(push):
        return jaxopt_pde.controlled_sgd(
            h, push, horizon=config.horizon, temperature=config.temperature, key=noise_key
        )

    def interval(carry, _):
        carry, _ = jax.lax.scan(step, carry, length=config.steps // (config.num_times - 1))
        return carry, (losses(carry[0]), carry[0][: config.drawn_paths, 0])

    first = middle + config.spread * jax.random.normal(start_key, (config.paths, 1))
    carry = first, controlled(alpha).init(first), jnp.zeros(config.paths)
    (last, _, energy), (loss, shown) = jax.lax.scan(interval, carry, length=config.num_times - 1)
    return {
        "loss": jnp.concatenate([losses(first)[None], loss]),
        "paths": jnp.concatenate([first[None, : config.drawn_paths, 0], shown]),
        "energy": energy,
        "last": last[:, 0],
    }


def estimate(samples: np.ndarray) -> np.ndarray:
    """Mean over the last axis and half its 95 % interval, [2, ...]."""
    samples = np.asarray(samples, np.float64)
    half = LIMIT * samples.std(axis=-1, ddof=1) / math.sqrt(samples.shape[-1])
    return np.stack([samples.mean(axis=-1), half])


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """The value function, the control, both densities and both ensembles of paths."""
    del session  # seconds
    problem = problems.double_well(barrier=config.barrier, tilt=config.tilt)
    drift = lambda x: -jax.grad(problem.loss)(x)
    start, top, T = problem.minimisers[1, 0], problem.saddles[0, 0], config.temperature
    grid = pde.Grid.uniform(-config.half_width, config.half_width, config.points, boundary="extrapolate")
    x = np.linspace(-config.half_width, config.half_width, config.points)
    weights = np.full(config.points, grid.spacing[0])
    weights[[0, -1]] /= 2
    times = np.linspace(0.0, config.horizon, config.num_times, dtype=np.float32)
    f = grid.evaluate(problem.loss)
    solution = pde.solve_bellman(f, grid, times, drift=drift, temperature=T).check()
    alpha = control.feedback(solution)
    # A control that is 0 everywhere, of the same type: one program solves and simulates SGD and CSGD.
    nothing = control.feedback(
        dataclasses.replace(solution, values=np.zeros(solution.values.shape, np.float32))
    )
    bell = np.exp(-((x - start) ** 2) / (2 * config.spread**2)) / (config.spread * math.sqrt(2 * math.pi))
    ensemble = jax.jit(lambda alpha, scale: simulate(config, problem.loss, start, alpha, scale))

    f = np.asarray(f, np.float64)
    slope = np.asarray(
        jax.jit(jax.vmap(lambda time: solution.gradient(grid.axes[0], time)))(times), np.float64
    )
    results = {
        "x": x, "f": f, "times": times, "u": solution.values, "wells": problem.minimisers[:, 0], "top": top,
"alpha": slope,
    }  # fmt: skip
    paths = {}
    for name, applied, scale in (("sgd", nothing, 0.0), ("csgd", alpha, 1.0)):
        flow = pde.solve_fokker_planck(
            bell.astype(np.float32), grid, times, drift=drift, temperature=T, control=applied,
            max_steps=1_000_000,
        ).check()  # fmt: skip
        density = np.asarray(flow.values, np.float64)
        mass = density @ weights  # 1 up to the rounding of float32 only
        density /= mass[:, None]
        paths[name] = {key: np.asarray(part) for key, part in ensemble(alpha, scale).items()}
        results |= {
            f"{name}/density": density,
            f"{name}/density_loss": density @ (weights * f),
            f"{name}/density_energy": 0.5 * np.trapezoid((density * slope**2) @ weights, times),
            f"{name}/density_crossed": (density[-1] * weights)[x < top].sum(),
            f"{name}/loss": estimate(paths[name]["loss"]),
            f"{name}/energy": estimate(paths[name]["energy"]),
            f"{name}/crossed": estimate(paths[name]["last"] < top),
            f"{name}/paths": paths[name]["paths"],
        }
    sgd, csgd = paths["sgd"], paths["csgd"]
    improvement = sgd["loss"][-1] - csgd["loss"][-1]
    energies = csgd["energy"] + sgd["energy"]
    return {
        **results,
        "improvement": estimate(improvement),
        "energies": estimate(energies),
        "residual": estimate(improvement - energies),
        "cost": estimate(csgd["loss"][-1] + csgd["energy"]),
        "value": np.dot(bell * weights, np.asarray(solution.values[0], np.float64)),
        "step": config.horizon / config.steps,
    }


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Both sides of the identity, the value, the loss and the paths that crossed, with 95 % intervals."""
    show = lambda pair: f"{pair[0]:.4f} ± {pair[1]:.4f}"
    rows = [
        ["E f(x_sgd(S)) − E f(x_csgd(S)) = ½E∫α(x_csgd)² + ½E∫α(x_sgd)²",
         show(results["improvement"]), show(results["energies"])],
        ["the same, difference with common noise", show(results["residual"]), f"O(h), h = {results['step']:g}"],
        ["E f(x_csgd(S)) + ½E∫α(x_csgd)² = E u(x₀, 0)", show(results["cost"]), f"{results['value']:.4f}"],
    ]  # fmt: skip
    for name in ("sgd", "csgd"):
        title = name.upper()
        part = lambda what, name=name: results[f"{name}/{what}"]
        rows += [
            [f"{title}: E f(x(S))", show(part("loss")[:, -1]), f"{part('density_loss')[-1]:.4f}"],
            [f"{title}: share beyond the barrier at S", show(part("crossed")), f"{part('density_crossed'):.4f}"],
            [f"{title}: ½E∫α², of the optimal α", show(part("energy")), f"{part('density_energy'):.4f}"],
        ]  # fmt: skip
    return ["quantity", "paths, 95 %", "grid, or other side"], rows


def figure(results: _run.Arrays) -> plt.Figure:
    """Above: densities without and with control, and the loss. Below: u, its slope α, and the identity."""
    style = {"font.size": 11, "axes.titlesize": 12, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        fig, axes = plt.subplots(2, 3, figsize=(13.4, 8.0), layout="constrained")
        fig.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        for axis, name in zip(axes[0, :2], ("sgd", "csgd"), strict=True):
            image = draw_density(axis, results, name)
        fig.colorbar(
            image, ax=axes[0, 1], label="ρ(x, s)   [1/param]", extend="max", ticks=(0, 0.2, 0.5, 1, 1.5, 2)
        )
        draw_loss(axes[0, 2], results)
        draw_value(axes[1, 0], results)
        image = draw_control(axes[1, 1], results)
        fig.colorbar(image, ax=axes[1, 1], label="α(x, s)   [loss/param]", extend="both")
        draw_identity(axes[1, 2], results)
    return fig


def draw_density(axis, results: _run.Arrays, name: str):
    """The density over time with some paths, and the share that crossed."""
    axis.set_rasterization_zorder(0)
    image = axis.pcolormesh(
        results["times"], results["x"], results[f"{name}/density"].T, shading="gouraud", cmap="viridis",
        norm=PowerNorm(0.5, 0, 2), zorder=-1,
    )  # fmt: skip
    axis.plot(results["times"], results[f"{name}/paths"], color="white", linewidth=0.7, alpha=0.75)
    axis.axhline(results["top"], color="white", linewidth=1, linestyle=(0, (4, 3)))
    share, half = 100 * results[f"{name}/crossed"]
    horizon = results["times"][-1]
    axis.text(
        0.97 * horizon,
        -1.72,
        f"{share:.1f} ± {half:.1f} % have crossed",
        color="white",
        ha="right",
        va="center",
    )
    axis.set(xlim=(0, horizon), ylim=(-1.9, 1.6), xlabel="s   [param²/loss]", ylabel="x   [param]")
    axis.set_title({"sgd": "SGD: density and paths", "csgd": "CSGD: the same noise, with α"}[name])
    return image


def draw_loss(axis, results: _run.Arrays) -> None:
    """E f(x(s)) from the densities (lines) and from the paths (dots, 95 %), and the improvement."""
    times = results["times"]
    every = slice(None, None, (times.size - 1) // 10)
    for name, colour in (("sgd", BLUE), ("csgd", ORANGE)):
        mean, half = results[f"{name}/loss"][:, every]
        axis.plot(times, results[f"{name}/density_loss"], color=colour, linewidth=1.5)
        axis.errorbar(times[every], mean, half, fmt="o", color=colour, markersize=4, capsize=3, clip_on=False)
    ends = [results[f"{name}/loss"][0, -1] for name in ("sgd", "csgd")]
    s = times[-1]
    axis.annotate(
        "", (s, ends[1]), (s, ends[0]), arrowprops={"arrowstyle": "<->", "shrinkA": 0, "shrinkB": 0}
    )
    gain = results["improvement"]
    axis.text(
        0.97 * s, 0.84 * ends[0] + 0.16 * ends[1], f"{gain[0]:.3f} ± {gain[1]:.3f}", ha="right", va="center"
    )
    for name, colour, side in (("sgd", BLUE, "bottom"), ("csgd", ORANGE, "top")):
        place = (0.7 * s, np.interp(0.7 * s, times, results[f"{name}/density_loss"]))
        shift = (4, 5) if name == "sgd" else (-8, 0)
        axis.annotate(
            name.upper(), place, shift, textcoords="offset points", color=colour, va=side,
            ha="left" if name == "sgd" else "right",
        )  # fmt: skip
    axis.set(xlim=(0, 1.02 * s), xlabel="s   [param²/loss]", ylabel="E f(x(s))   [loss]")
    axis.set_title("Loss: densities (lines), paths (dots)")


def draw_value(axis, results: _run.Arrays) -> None:
    """u(x, s) at some times; at the horizon it is f."""
    times, x = results["times"], results["x"]
    shown = (0.0, 0.5, 0.75, 0.9, 1.0)
    for part, colour in zip(shown, plt.get_cmap("viridis")(np.linspace(0.0, 0.85, len(shown))), strict=True):
        i = round(part * (times.size - 1))
        label = "S: u = f" if part == 1 else f"{times[i]:.3g}"
        axis.plot(x, results["u"][i], color=colour, linewidth=1.7, label=label)
    axis.set(xlim=(-1.9, 1.6), ylim=(-0.5, 1.15), xlabel="x   [param]", ylabel="u(x, s)   [loss]")
    axis.legend(title="s", frameon=False, loc="upper center", handlelength=1.4, ncols=2)
    axis.set_title("Value function")


def draw_control(axis, results: _run.Arrays):
    """α(x, s); descent is pushed by −α."""
    bound = 1.0
    axis.set_rasterization_zorder(0)
    image = axis.pcolormesh(
        results["times"], results["x"], results["alpha"].T, shading="gouraud", cmap="PuOr_r",
        vmin=-bound, vmax=bound, zorder=-1,
    )  # fmt: skip
    axis.axhline(results["top"], color="#444444", linewidth=1, linestyle=(0, (4, 3)))
    for place, name in (
        (results["top"], "barrier"),
        *zip(results["wells"], ("lower well", "higher well"), strict=True),
    ):
        axis.annotate(
            name, (0, place), (6, 3 if name == "barrier" else 0), textcoords="offset points", fontsize=10,
            va="bottom" if name == "barrier" else "center",
        )  # fmt: skip
    axis.set(
        xlim=(0, results["times"][-1]), ylim=(-1.9, 1.6), xlabel="s   [param²/loss]", ylabel="x   [param]"
    )
    axis.set_title("Control α = ∂u/∂x: positive pushes left")
    return image


def draw_identity(axis, results: _run.Arrays) -> None:
    """The improvement as one bar and the two energies as another, with 95 % intervals."""
    gain, sum_of_both = results["improvement"], results["energies"]
    spent, saved = results["csgd/energy"][0], results["sgd/energy"][0]
    axis.barh(1.1, gain[0], height=0.5, color=GREY)
    axis.barh(0.3, spent, height=0.5, color=ORANGE)
    axis.barh(0.3, saved, left=spent, height=0.5, color=BLUE)
    for height, (mean, half) in ((1.1, gain), (0.3, sum_of_both)):
        axis.errorbar(mean, height, xerr=half, color="black", capsize=4, linewidth=1.3)
    axis.text(gain[0] / 2, 1.1, "improvement of E f at S", color="white", ha="center", va="center")
    axis.text(spent / 2, 0.3, "½E∫α²\nof CSGD", color="white", ha="center", va="center")
    axis.text(spent + saved / 2, 0.3, "½E∫α²\nalong SGD", color="white", ha="center", va="center")
    residual, half = results["residual"]
    difference = f"difference {residual:.4f} ± {half:.4f}\nEuler step h = {results['step']:g}".replace(
        "-", "−"
    )
    axis.text(gain[0] / 2, -0.4, difference, ha="center", va="top")
    axis.set(ylim=(-0.8, 1.5), yticks=[], xlim=(0, 1.1 * gain[0]), xlabel="[loss]")
    axis.spines["left"].set_visible(False)
    axis.set_title("Improvement = both energies")
