"""Grid solvers and sampled gradients: against a peer, against the memory bandwidth, against stepping, against a loop.

    python benchmarks/pde.py [--part peer|steps|exact|chains] [--repetitions N] [--quick] [--json PATH]

The process pins itself to one core where the system can; every comparison is interleaved in one process, without
compilation, and ratios are taken round by round. f is a sum of waves in the directions x₁ + x₂ and x₁ − x₂, periodic on
a box of side 8. The grid sees no product in it, yet u is a sum of two one-dimensional relaxations, which
float64 sums give to about 1e-12: the errors below are against that. All solvers run in float32, whose rounding is
all there is of the errors near 1e-5 before kinks form.

* peer: u_t + ½|∇u|² = 0 by hj_reachability's accuracies and by our schemes, before and after kinks form;
* steps: nanoseconds a point and step, over the floor u → u + 1 in a loop, which reads and writes 8 bytes a point;
* exact: the exact route, whole solves, over Godunov's scheme stepped to the same time;
* chains: `smoothing.langevin` with 16 chains over 16 calls with one chain each.
"""

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hj_reachability as hj
import jax
import jax.numpy as jnp
import numpy as np
import optax
import paired
import rich.console
import rich.table

from jaxopt_pde import pde, smoothing
from jaxopt_pde.models import MLP
from jaxopt_pde.pde.time_stepping import bounded_loop

Row = dict[str, Any]

SIDE = 8.0
WAVES = (((2.0, 1, 0.0), (1.0, 2, -0.6)), ((1.5, 1, 2.0), (0.8, 2, 0.3)))
"""(amplitude, harmonic, phase) of the cosines along x₁ + x₂ and along x₁ − x₂."""

BEFORE, AFTER = 0.07, 0.3
"""Times before and after kinks form, which is at 0.18."""

NUM_CHAINS, NUM_STEPS = 16, 20

SHORTEST = 0.03
"""Seconds that a timed slice takes at least."""


def wave(index: int, position: np.ndarray, order: int = 0) -> np.ndarray:
    """One of the two waves, or a derivative, as a function of the arc length along its direction."""
    wavenumber = 2 * np.pi * np.sqrt(2) / SIDE
    return sum(
        a * (m * wavenumber) ** order * np.cos(m * wavenumber * position + phase + order * np.pi / 2)
        for a, m, phase in WAVES[index]
    )


def along_directions(points: int) -> tuple[np.ndarray, np.ndarray]:
    """(x₁ + x₂)/√2 and (x₁ − x₂)/√2 on the periodic grid, in float64."""
    axis = -SIDE / 2 + SIDE / points * np.arange(points)
    first, second = np.meshgrid(axis, axis, indexing="ij")
    return (first + second) / np.sqrt(2), (first - second) / np.sqrt(2)


def initial_data(points: int) -> jax.Array:
    """The loss on the grid, in float32."""
    return jnp.asarray(sum(wave(i, s) for i, s in enumerate(along_directions(points))), jnp.float32)


@functools.cache
def reference(points: int, final_time: float, temperature: float) -> np.ndarray:
    """The exact u on the grid: rotations leave |x − y|² alone, so it is a sum of two one-dimensional relaxations."""
    return sum(
        relaxed_wave(i, np.round(s, 9), final_time, temperature)
        for i, s in enumerate(along_directions(points))
    )


def relaxed_wave(index: int, position: np.ndarray, t: float, temperature: float) -> np.ndarray:
    """The one-dimensional relaxation of a wave, where it is needed only."""
    distinct, where = np.unique(position, return_inverse=True)
    reach = t * np.abs(wave(index, np.linspace(0, SIDE, 10_001), 1)).max() + 10 * np.sqrt(t * temperature)
    shift = np.linspace(-reach, reach, 8001)
    values = np.empty_like(distinct)
    for part in np.array_split(np.arange(len(distinct)), max(1, len(distinct) // 200)):
        y = distinct[part, None] + shift
        energy = wave(index, y) + shift**2 / (2 * t)
        least = energy.min(axis=1)
        if temperature > 0:
            mass = np.exp((least[:, None] - energy) / temperature).sum(axis=1) * (shift[1] - shift[0])
            values[part] = least - temperature * np.log(mass / np.sqrt(2 * np.pi * t * temperature))
            continue
        best = np.take_along_axis(y, energy.argmin(axis=1)[:, None], axis=1)[:, 0]
        for _ in range(4):  # Newton's iteration from the best of 8001 points
            slope = wave(index, best, 1) + (best - distinct[part]) / t
            best = best - slope / (wave(index, best, 2) + 1 / t)
        values[part] = wave(index, best) + (best - distinct[part]) ** 2 / (2 * t)
    return values[where].reshape(position.shape)


def errors(values: Any, exact: np.ndarray) -> Row:
    """The largest and the mean absolute error."""
    error = np.abs(np.asarray(values, np.float64) - exact)
    return {"max_error": float(error.max()), "mean_error": float(error.mean())}


def spread(values: np.ndarray) -> list[float]:
    """Median, least, greatest."""
    return [float(f(values)) for f in (np.median, np.min, np.max)]


def timings(seconds: np.ndarray, unit: np.ndarray, scale: float, name: str) -> Row:
    """Spreads of scaled wall and CPU times of the rounds, and of their ratios to those of ``unit``."""
    result = {}
    for column, clock in enumerate(("wall", "cpu")):
        result[f"{clock}_{name}"] = spread(seconds[:, column] * scale)
        result[f"{clock}_ratio"] = spread(seconds[:, column] / unit[:, column])
    return result


def interleaved(runs: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, np.ndarray]:
    """Seconds a call of every run, as :func:`paired.interleave`; short runs are called often enough for the clock."""
    calls = {}
    for name, run in runs.items():
        jax.block_until_ready(run())
        start = time.perf_counter()
        jax.block_until_ready(run())
        calls[name] = max(1, round(SHORTEST / (time.perf_counter() - start)))

    def many(name: str) -> None:
        for _ in range(calls[name]):
            jax.block_until_ready(runs[name]())

    seconds = paired.interleave({name: functools.partial(many, name) for name in runs}, repetitions)
    return {name: values / calls[name] for name, values in seconds.items()}


@functools.cache  # one for all: the solver hashes it by identity
def half_square() -> "HalfSquare":
    """Made late: arrays at import would start JAX before the process is pinned."""
    return HalfSquare()


class HalfSquare(hj.dynamics.Dynamics):
    """H(p) = ½|p|² for hj_reachability, whose template has no running cost: the Hamiltonian and its speeds, no more."""

    def __init__(self):
        nothing = hj.sets.Box(jnp.zeros(2), jnp.zeros(2))
        super().__init__("min", "max", nothing, nothing)

    def __call__(self, state, control, disturbance, time):
        """The control is the velocity; the solver does not ask."""
        return control

    def optimal_control_and_disturbance(self, state, time, grad_value):
        """The velocity is −∇u; the solver does not ask."""
        return -grad_value, jnp.zeros_like(grad_value)

    def hamiltonian(self, state, time, value, grad_value):
        """½|p|²."""
        return grad_value @ grad_value / 2

    def partial_max_magnitudes(self, state, time, value, grad_value_box):
        """The largest |∂H/∂pᵢ| = |pᵢ|."""
        return grad_value_box.max_magnitudes


def peer_solver(points: int, final_time: float, accuracy: str) -> Callable[[], jax.Array]:
    """hj_reachability as its users run it, without the progress bar."""
    corner = np.full(2, SIDE / 2)
    grid = hj.Grid.from_lattice_parameters_and_boundary_conditions(
        hj.sets.Box(-corner, corner), (points, points), periodic_dims=(0, 1)
    )
    settings, initial = hj.SolverSettings.with_accuracy(accuracy), initial_data(points)
    return functools.partial(
        hj.step, settings, half_square(), grid, 0.0, initial, final_time, progress_bar=False
    )


def our_solver(
    points: int, final_time: float, scheme: str, temperature: float = 0.0
) -> Callable[[], pde.Solution]:
    """Ours, with its defaults."""
    grid = pde.Grid.uniform((-SIDE / 2,) * 2, (SIDE / 2,) * 2, (points, points), boundary="periodic")
    initial = initial_data(points)
    return lambda: pde.solve_hamilton_jacobi(
        initial, grid, final_time, temperature=temperature, scheme=scheme
    )


def peer_rows(repetitions: int, *, quick: bool) -> list[Row]:
    """Both solvers on the same inviscid problem; ratios over our scheme of the same class."""
    counterpart = {"low": "godunov", "medium": "weno5", "very_high": "weno5"}
    result = []
    for points in (51,) if quick else (201, 401):
        for final_time in (BEFORE, AFTER):
            exact = reference(points, final_time, 0.0)
            solvers = {scheme: our_solver(points, final_time, scheme) for scheme in ("godunov", "weno5")}
            solvers |= {accuracy: peer_solver(points, final_time, accuracy) for accuracy in counterpart}
            values = {name: solve() for name, solve in solvers.items()}
            values |= {name: values[name].check().values[-1] for name in ("godunov", "weno5")}
            seconds = interleaved(solvers, repetitions)
            for name in ("low", "godunov", "medium", "very_high", "weno5"):
                label = f"hj_reachability {name}" if name in counterpart else name
                row = {"points": f"{points}²", "time": final_time, "method": label}
                unit = seconds[counterpart.get(name, name)]
                result.append(row | timings(seconds[name], unit, 1e3, "ms") | errors(values[name], exact))
    return result


@jax.jit
def plain_loop(values: jax.Array, count: jax.Array) -> jax.Array:
    """The floor of a step: one pass that reads and writes the array."""
    return jax.lax.fori_loop(0, count, lambda _, u: u + 1, values)


@jax.jit
def solver_loop(values: jax.Array, count: jax.Array) -> jax.Array:
    """The same in the loop of the stepping schemes."""
    return bounded_loop(lambda u: u + 1, values, count, 32_768)


def steps_rows(repetitions: int, *, quick: bool) -> list[Row]:
    """Time a point and step of the stepping schemes, over the floor."""
    shapes = [(51,) * 2, (201,) * 2, (401,) * 2, (1001,) * 2, (101,) * 3]
    result = []
    for shape in shapes[:1] if quick else shapes:
        dimension = len(shape)
        grid = pde.Grid.uniform((0.0,) * dimension, (1.0,) * dimension, shape)
        initial, spacing = grid.evaluate(lambda x: jnp.sum(jnp.cos(2 * jnp.pi * x))), grid.spacing[0]
        count = max(20, 20_000_000 // initial.size)
        floor, same_loop = (
            functools.partial(f, initial, jnp.int32(count)) for f in (plain_loop, solver_loop)
        )
        runs = {"u + 1, a plain loop": (floor, count), "u + 1, the solver's loop": (same_loop, count)}
        for scheme, wanted, factor in (("godunov", count, 1), ("weno5", max(4, count // 8), 4 / 3)):
            for label, temperature in (("T = 0", 0.0), ("T > 0, explicit", 0.01)):
                # The solver takes ⌈t·rate/0.9⌉ steps, and the slopes are at most 2π.
                rate = dimension * (2 * np.pi / spacing + factor * temperature / spacing**2)
                options = {"temperature": temperature, "scheme": scheme, "diffusion": "explicit"}
                solve = functools.partial(
                    pde.solve_hamilton_jacobi, initial, grid, 0.9 * (wanted - 0.5) / rate, **options
                )
                runs[f"{scheme}, {label}"] = (solve, int(solve().check().num_steps))
        seconds = interleaved({name: run for name, (run, _) in runs.items()}, repetitions)
        each = {name: seconds[name] / (steps * initial.size) for name, (_, steps) in runs.items()}
        for name, values in each.items():
            row = {"points": f"{shape[0]}{'²' if dimension == 2 else '³'}", "method": name}
            row["steps"] = runs[name][1]
            result.append(row | timings(values, each["u + 1, a plain loop"], 1e9, "ns"))
    return result


def exact_rows(repetitions: int, *, quick: bool) -> list[Row]:
    """Whole solves to one time at 201²; ratios over the exact route."""
    points = 51 if quick else 201
    result = []
    for temperature in (1.0, 0.1, 0.01, 0.001, 0.0):
        exact = reference(points, AFTER, temperature)
        solvers = {name: our_solver(points, AFTER, name, temperature) for name in ("exact", "godunov")}
        values = {name: solve().check().values[-1] for name, solve in solvers.items()}
        seconds = interleaved(solvers, repetitions)
        for name in solvers:
            row = {"points": f"{points}²", "temperature": temperature, "method": name}
            row |= timings(seconds[name], seconds["exact"], 1e3, "ms")
            result.append(row | errors(values[name], exact))
    return result


def network_gradient(model: MLP, data: tuple[jax.Array, jax.Array], *, shared: bool) -> Callable:
    """A gradient at batch 128, every chain with its own minibatch or with the step's."""

    def gradient(params, step):
        def loss(params, images, labels):
            logits = model.apply({"params": params}, images, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        key = jax.random.fold_in(jax.random.key(4), step.step) if shared else step.key
        chosen = jax.random.randint(key, (128,), 0, 10_000)
        return jax.grad(loss)(params, data[0][chosen], data[1][chosen])

    return gradient


def well_gradient(params: jax.Array, step: smoothing.InnerStep) -> jax.Array:
    """The gradient of a double well in two dimensions."""
    return jax.grad(lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2 / 2)(params)


def chains_rows(repetitions: int, *, quick: bool) -> list[Row]:
    """16 chains under vmap over 16 calls of a compiled single chain."""
    model, images = MLP((100,)), jax.random.normal(jax.random.key(0), (10_000, 28, 28, 1))
    data = (images, jax.random.randint(jax.random.key(1), (10_000,), 0, 10))
    weights = jax.jit(model.init, static_argnames="train")(jax.random.key(2), images[:1], train=False)[
        "params"
    ]
    problems = {"double well in 2-D": (lambda data: well_gradient, jnp.array([0.5, 1.0]))}
    for label, shared in (("own minibatches", False), ("one minibatch for all", True)):
        problems[f"MLP of 79,510, {label}"] = (
            functools.partial(network_gradient, model, shared=shared),
            weights,
        )
    options = {"smoothing_time": 0.1, "temperature": 1e-3, "step_size": 0.01, "num_steps": NUM_STEPS}
    keys = list(jax.random.split(jax.random.key(3), NUM_CHAINS))
    result = []
    for name, (make_gradient, params) in problems.items():

        def estimate(num_chains, make_gradient, params, data, key):
            gradient = make_gradient(data)
            return smoothing.langevin(gradient, params, key, num_chains=num_chains, **options).gradient

        single, many = (jax.jit(functools.partial(estimate, k, make_gradient)) for k in (1, NUM_CHAINS))
        in_turn = lambda single=single, params=params: [single(params, data, key) for key in keys]
        together = functools.partial(many, params, data, keys[0])
        runs = {"16 calls of one chain": in_turn, "16 chains under vmap": together}
        seconds = interleaved(runs, repetitions)
        for label in runs:
            row = {"problem": name, "method": label}
            result.append(row | timings(seconds[label], seconds["16 calls of one chain"], 1e3, "ms"))
    return result


PARTS = {
    "peer": (peer_rows, "u_t + ½|∇u|² = 0 to time t; ratios over our scheme of the same class", 5),
    "steps": (
        steps_rows,
        "A point and step of the stepping schemes, in float32; ratios over u + 1 in a plain loop",
        9,
    ),
    "chains": (chains_rows, "One estimate from 16 chains of 20 steps; ratios over a loop of calls", 9),
    "exact": (exact_rows, "u_t + ½|∇u|² = (T/2) Δu to t = 0.3, whole solves; ratios over the exact route", 9),
}
"""Function, title, and timed rounds unless said otherwise."""


def cell(key: str, value: Any) -> str:
    """One entry as it is read: spreads as median [least, greatest]."""
    if isinstance(value, list):
        return "{:.3g} \\[{:.3g}, {:.3g}]".format(*value)
    return (
        f"{value:.1e}" if key.endswith("error") else f"{value:g}" if isinstance(value, float) else str(value)
    )


def table(title: str, rows: list[Row], where: dict[str, Any]) -> rich.table.Table:
    """The rows of one part as they are read."""
    shown = rich.table.Table(title=f"{title}: median \\[least, greatest]", caption=paired.caption(where))
    for key in rows[0]:
        words = key.replace("_", " ").replace("cpu", "CPU")
        shown.add_column(words, justify="left" if isinstance(rows[0][key], str) else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*(cell(key, value) for key, value in row.items()))
    return shown


def pin_to_one_core() -> None:
    """Keeps the process on one core; to be called before JAX starts, which counts the cores for its threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def main() -> None:
    """Times, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--repetitions", type=int, help="timed rounds (default 9; 5 for the peer)")
    parser.add_argument("--quick", action="store_true", help="small grids, one round: does it run?")
    parser.add_argument(
        "--json", type=Path, help="also write the rows here; other parts in the file are kept"
    )
    arguments = parser.parse_args()
    if arguments.repetitions is not None and arguments.repetitions < 1:
        parser.error(f"--repetitions must be at least 1, got {arguments.repetitions}")
    jax.config.update("jax_platforms", "cpu")
    for part in arguments.part or PARTS:
        measure, title, repetitions = PARTS[part]
        repetitions = arguments.repetitions or (1 if arguments.quick else repetitions)
        where = paired.environment(("jax", "hj-reachability"))
        rows = measure(repetitions, quick=arguments.quick)
        rich.console.Console(width=None if sys.stdout.isatty() else 180).print(table(title, rows, where))
        if arguments.json:
            known = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
            known[part] = {"environment": where, "rounds": repetitions, "rows": rows}
            arguments.json.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    pin_to_one_core()
    main()
