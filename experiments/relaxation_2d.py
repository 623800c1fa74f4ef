"""Descent on a loss and on its relaxation in two dimensions, from the same starting points.

A loss f and its relaxation u(·, t), the solution of u_t + ½|∇u|² = (T/2) Δu with u(x, 0) = f(x), are drawn as contours
with the paths that descent takes on each, from the same starts (white dots) to its ends (large dots). Descent on u
has the step h = t, which is safe for every loss, and takes ∇u from the exact route on the grid. Entropy-SGD (small
green dots: where its runs end) does the same without a grid, by Langevin chains, and heat SGD descends the Gaussian
average of f with the same t·T; both are given the same number of gradients. At last every run is polished by gradient
descent on f, which says in which well of f it has ended; the star is the well that counts.

What to see: as t grows wells merge and the starts end together. Beside a wide well a deeper, narrow one catches some
starts. At the middle time u leads more of them there than f does, because the narrow well has widened and has not yet
gone: smoothing too little is worse than none. At the last time it has gone, and all runs end in the wide well, which
is not the lowest minimum of f. Without viscosity (T = 0) the narrow well goes on growing instead. On the Müller-Brown
surface the middle time empties the shallow well, mostly into the wrong neighbour. On Rastrigin's function few starts
find the lowest of a hundred wells on f or on u too early, and all of them on u at the last time.

The samplers are not as good as the exact ∇u: where wells are several, short Langevin chains stay in the one they start
from. Heat SGD crosses the barriers of Rastrigin's function, and diverges on the Müller-Brown surface, which grows
too fast to be averaged. The table gives the shares with Wilson's 95 % intervals and the gradients spent by one run; its
last column is the chance that restarts of gradient descent on f, at the same cost, find the lowest minimum.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib import patheffects

import jaxopt_pde
from experiments import _run
from experiments._histograms import wilson
from jaxopt_pde import _validate, pde, problems

GRADIENT_DESCENT, RELAXED, INVISCID, ENTROPY, HEAT = "on f", "on u", "on u, T = 0", "Entropy-SGD", "heat SGD"
COLOURS = {  # Okabe & Ito
    GRADIENT_DESCENT: "#d55e00",
    RELAXED: "#0072b2",
    INVISCID: "#4d4d4d",
    ENTROPY: "#009e73",
    HEAT: "#cc79a7",
}
NOT_FINITE = ("Müller-Brown/ends",)  # heat SGD diverges there: f grows too fast to have a Gaussian average


@dataclasses.dataclass(frozen=True)
class Config:
    """What to descend, from how many starts, and at which cost."""

    problems: tuple[str, ...] = ("sharp and wide", "Müller-Brown", "Rastrigin")
    """Which losses, a row of the figure each."""
    seed: int = 0
    """Seeds the starts and the Langevin chains."""
    num_points: int = 201
    """Points of the grid along each axis."""
    num_starts: int = 256
    """Starts of every method, uniform on the domain."""
    num_drawn: int = 14
    """How many of the starts are drawn."""
    num_updates: int = 100
    """Updates of the descents on u, each with step h = t."""
    num_polish: int = 400
    """Gradient steps on f that polish the end of a descent on u; descent on f alone takes five times as many."""
    num_steps: int = 40
    """Entropy-SGD: inner steps L."""
    num_chains: int = 4
    """Entropy-SGD: chains K."""


SMOKE = Config(
    problems=("sharp and wide",),
    num_points=65,
    num_starts=32,
    num_drawn=6,
    num_updates=40,
    num_polish=100,
    num_steps=20,
)


class Case(NamedTuple):
    """A loss with the settings that suit its units.

    Attributes:
        problem: the loss.
        temperature: T, in [loss].
        times: the middle and the last t, in [param²/loss].
        step_size: of gradient descent and of the Langevin chains, about 1/λ_max, in [param²/loss].
        margin: by which the grid exceeds the domain, in [param].
        target: index of the minimiser that counts, and what it is.
        drop: contours are drawn up to this height above the minimum, in [loss].
    """

    problem: problems.Problem
    temperature: float
    times: tuple[float, float]
    step_size: float
    margin: float
    target: tuple[int, str]
    drop: float


def make_case(name: str) -> Case:
    """A case by name.

    Raises:
        ValueError: for an unknown name.
    """
    known: dict[str, Callable[[], Case]] = {
        "sharp and wide": lambda: Case(
            problems.sharp_and_wide(sharpness=30.0, advantage=0.5, temperature=0.5),
            0.5, (0.3, 2.0), 1 / 40, 1.0, (1, "wide well"), 3.5,
        ),
        "Müller-Brown": lambda: Case(
            problems.mueller_brown(), 20.0, (0.002, 0.02), 2e-4, 0.5, (0, "lowest minimum"), 170.0
        ),
        "Rastrigin": lambda: Case(
            problems.rastrigin(), 10.0, (0.01, 0.03), 1 / 800, 2.0, (0, "lowest minimum"), 85.0
        ),
    }  # fmt: skip
    _validate.check_choice("problems", name, tuple(known))
    return known[name]()


def descend(gradient: Callable, starts, step: float, num_steps: int):
    """Gradient descent from every start: path [step, start, d], the start first."""
    move = lambda x, _: (x - step * gradient(x), x)
    last, path = jax.lax.scan(move, starts, length=num_steps)
    return jnp.concatenate([path, last[None]])


def sampled_descent(config: Config, case: Case, method: str, time, starts, key):
    """Entropy-SGD or heat SGD from every start, each with its own noise: the ends [start, d], and gradients spent."""
    gradient = jax.grad(case.problem.loss)
    per_update, num_updates = config.num_steps * config.num_chains, config.num_updates
    if method == HEAT:  # its step is bounded by the curvature of f, so it needs more updates of fewer samples
        per_update, num_updates = per_update // 10, num_updates * 10

    def make(key):
        if method == HEAT:
            return jaxopt_pde.heat_sgd(
                case.step_size,
                time,
                temperature=case.temperature,
                num_samples=per_update,
                sample_batch_size=None,
                key=key,
            )
        return jaxopt_pde.entropy_sgd(
            time,
            time,
            0.5 / (1 / case.step_size + 1 / time),
            temperature=case.temperature,
            num_steps=config.num_steps,
            num_chains=config.num_chains,
            key=key,
        )

    def one(start, key):
        tx = make(key)

        def update(carry, _):
            x, state = carry
            updates, state = tx.update(x, state, x, grad_fn=lambda y, step: gradient(y))
            return (optax.apply_updates(x, updates), state), None

        return jax.lax.scan(update, (start, tx.init(start)), length=num_updates)[0][0]

    ends = jax.vmap(one)(starts, jax.random.split(key, len(starts)))
    return ends, per_update * num_updates


def run_case(config: Config, name: str) -> _run.Arrays:
    """Every method on one loss: paths of the drawn starts, ends of all, gradients spent by one run."""
    case = make_case(name)
    problem, margin = case.problem, case.margin
    grid = pde.Grid.uniform(
        tuple(problem.lower - margin),
        tuple(problem.upper + margin),
        (config.num_points,) * 2,
        boundary="neumann",
    )
    initial = jax.jit(lambda: grid.evaluate(problem.loss))()
    times = jnp.asarray(case.times, jnp.float32)
    solve = functools.partial(pde.solve_hamilton_jacobi, initial, grid, times)
    lower, upper = (jnp.asarray(corner, jnp.float32)[None] for corner in (problem.lower, problem.upper))
    shares = jax.random.uniform(_run.key_for(config.seed, name, "starts"), (config.num_starts, 2))
    starts = lower + (upper - lower) * shares
    gradient = jax.vmap(jax.grad(problem.loss))

    @jax.jit
    def polish(x):
        return descend(gradient, x, case.step_size, config.num_polish)[-1]

    @jax.jit
    def on_grid(solution, time):
        return descend(lambda x: solution.gradient(x, time), starts, time, config.num_updates)

    plain = jax.jit(lambda: descend(gradient, starts, case.step_size, 5 * config.num_polish))()
    viscous, inviscid = solve(temperature=case.temperature).check(), solve(temperature=0.0).check()
    on_u = [on_grid(viscous, time) for time in times]
    # (method, t, where it ends, gradients spent before the polish)
    found = [(RELAXED, time, path[-1], 0) for time, path in zip(case.times, on_u, strict=True)]
    found += [(INVISCID, time, on_grid(inviscid, jnp.float32(time))[-1], 0) for time in case.times]
    for method in (ENTROPY, HEAT):
        run_all = jax.jit(functools.partial(sampled_descent, config, case, method))
        for time in case.times:
            key = _run.key_for(config.seed, name, method, repr(time))
            found.append((method, time, *run_all(jnp.float32(time), starts, key)))
    methods, method_times, unpolished, spent = zip(*found, strict=True)
    drawn = slice(0, config.num_drawn)
    return {
        "method": np.array([GRADIENT_DESCENT, *methods]),
        "time": np.array([0.0, *method_times]),
        "spent": np.array([5 * config.num_polish, *(int(count) + config.num_polish for count in spent)]),
        "ends": np.stack([plain[-1], *map(polish, unpolished)]),
        "entropy_ends": np.stack([end for method, _, end, _ in found if method == ENTROPY]),
        "f": initial,
        "u": viscous.values,
        "x": grid.axes[0],
        "y": grid.axes[1],
        "path_f": plain[:: max(1, config.num_polish // 40), drawn],
        "path_u": np.stack(on_u)[:, :, drawn],
    }


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Every loss in turn; names of arrays begin with its name."""
    results = {"problem": np.array(config.problems)}
    with session.progress("losses", len(config.problems)) as meter:
        for name in config.problems:
            stage = session.stage(name, functools.partial(run_case, config, name))
            results |= {f"{name}/{part}": array for part, array in stage.items()}
            meter.advance()
    return results


def successes(results: _run.Arrays, name: str) -> np.ndarray:
    """How many starts each method brought to the minimiser that counts, [method]."""
    case = make_case(name)
    minimisers, target = case.problem.minimisers, case.target[0]
    apart = np.linalg.norm(minimisers - minimisers[target], axis=1)
    radius = np.min(apart[apart > 0]) / 4
    return np.sum(np.linalg.norm(results[f"{name}/ends"] - minimisers[target], axis=-1) < radius, axis=1)


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Shares that end in the well that counts, with what they cost and what restarts on f would do for it."""
    headers = ["loss", "descent", "t", "ends in", "share", "95 % interval", "gradients", "restarts on f"]
    rows = []
    for name in results["problem"]:
        part = lambda key, name=name: results[f"{name}/{key}"]
        hits, trials = successes(results, name), part("ends").shape[1]
        low, high = wilson(hits / trials, trials)
        for index, method in enumerate(part("method")):
            restarts = part("spent")[index] / part("spent")[0]
            chance = 1 - (1 - hits[0] / trials) ** restarts
            on_grid, sampled = method in (RELAXED, INVISCID), method in (ENTROPY, HEAT)
            lowest = make_case(name).target[0] == 0
            rows.append([
                str(name),
                str(method),
                f"{part('time')[index]:g}" if index else "–",
                make_case(name).target[1],
                f"{hits[index]}/{trials}",
                f"{100 * low[index]:.0f}–{100 * high[index]:.0f} %",
                f"{part('spent')[index]:,}" + (f" + {part('f').size:,} f" if on_grid else ""),
                f"{100 * chance:.0f} %" if sampled and lowest else "–",
            ])  # fmt: skip
    return headers, rows


def figure(results: _run.Arrays) -> plt.Figure:
    """A row for each loss: contours and paths on f and on u at two times, and the shares."""
    count = len(results["problem"])
    style = {"font.size": 11, "axes.titlesize": 11.5, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        fig, axes = plt.subplots(
            count, 4, figsize=(13.0, 3.05 * count + 0.3), layout="constrained", squeeze=False,
            gridspec_kw={"width_ratios": [1, 1, 1, 1.05]},
        )  # fmt: skip
        for row, name in zip(axes, results["problem"], strict=True):
            case = make_case(name)
            part = lambda key, name=name: results[f"{name}/{key}"]
            draw_paths(row[0], part, case, part("f"), GRADIENT_DESCENT, part("path_f"))
            row[0].set_title(f"{case.problem.name}: f")
            row[0].set_ylabel("x₂   [param]")
            for index, time in enumerate(case.times):
                axis = row[1 + index]
                draw_paths(axis, part, case, part("u")[index], RELAXED, part("path_u")[index])
                axis.plot(
                    *part("entropy_ends")[index].T, ".", color=COLOURS[ENTROPY], markersize=3.5, zorder=2
                )
                axis.set_title(f"u,  t = {time:g},  T = {case.temperature:g}")
            draw_shares(row[3], results, name)
        for axis in axes[-1, :3]:
            axis.set_xlabel("x₁   [param]")
        axes[0, 3].set_title("where descent ends")
    return fig


def draw_paths(axis, part: Callable[[str], Any], case: Case, values, method: str, path) -> None:
    """Contours of one function, the minimiser that counts, and the paths of one method with their ends."""
    lower, upper = case.problem.lower, case.problem.upper
    levels = values.min() + case.drop * np.linspace(0, 1, 13) ** 1.5
    axis.contourf(part("x"), part("y"), values.T, levels=levels, cmap="Greys_r", extend="max", alpha=0.35)
    axis.contour(
        part("x"), part("y"), values.T, levels=levels, colors="#8c8c8c", linewidths=0.5, linestyles="solid"
    )
    halo = [patheffects.withStroke(linewidth=2.6, foreground="white")]
    axis.plot(path[..., 0], path[..., 1], color=COLOURS[method], linewidth=1.4, path_effects=halo, zorder=3)
    axis.plot(*path[0].T, "o", color="white", markeredgecolor="#404040", markersize=4.5, zorder=4)
    axis.plot(*path[-1].T, "o", color=COLOURS[method], markeredgecolor="white", markersize=9, zorder=5)
    star = case.problem.minimisers[case.target[0]]
    axis.plot(*star, "*", color="#f0e442", markeredgecolor="black", markersize=14, zorder=6)
    axis.set(xlim=(lower[0], upper[0]), ylim=(lower[1], upper[1]), aspect="equal", xticks=[], yticks=[])
    axis.spines[["left", "bottom"]].set_visible(False)


def draw_shares(axis, results: _run.Arrays, name: str) -> None:
    """Share of starts that end in the well that counts, with Wilson's intervals."""
    case, trials = make_case(name), results[f"{name}/ends"].shape[1]
    hits = successes(results, name)
    low, high = wilson(hits / trials, trials)
    methods, times = [str(method) for method in results[f"{name}/method"]], results[f"{name}/time"]
    for index, method in enumerate(methods):
        colour = COLOURS[method]
        axis.plot([100 * low[index], 100 * high[index]], [-index, -index], color=colour, linewidth=2.5)
        axis.plot(100 * hits[index] / trials, -index, "o", color=colour, markersize=7)
    labels = [
        method + (f", t = {time:g}" if time else "") for method, time in zip(methods, times, strict=True)
    ]
    axis.set_yticks(-np.arange(len(labels)), labels)
    for tick, method in zip(axis.get_yticklabels(), methods, strict=True):
        tick.set_color(COLOURS[method])
    axis.set(xlim=(-3, 103), xlabel=f"% of starts that end in the {case.target[1]}")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.spines["bottom"].set_bounds(0, 100)
