"""Ten optimisers on four surfaces in the plane, at equal numbers of gradients.

The lecture picture: paths on contours. The surfaces are an ill-conditioned valley, the same with noise on every
gradient, a curved valley of the kind of Rosenbrock's, and a bowl covered with ripples. Gradient descent, heavy ball,
Nesterov and accelerated SGD share the first column, the methods that scale every coordinate the second; the third
has the space-adaptive rate, with the exact loss and the exact E|g|², and Entropy-SGD, whose outer step moves to the
mean of an inner chain and so costs as many gradients as the chain has steps.

Each method has one number from one grid, chosen for each surface: its learning rate, the greatest step of the
space-adaptive rate, the inner rate of Entropy-SGD. It is the least whose final f − f* is within 1.1 times the best
geometric mean over one half of the random starts; curves and table are made of the other half. Look for the zigzag of
gradient descent across the valley and the overshooting of momentum along it; for noise, where a constant rate must be
short from the start and the space-adaptive one shrinks by itself; and for the ripples, where short steps stay in the
nearest dent and long ones jump about. Entropy-SGD, with a temperature of half a ripple that falls to 0, and Adagrad,
with a long first step, cross them most often; on the smooth valleys the chain of Entropy-SGD is wasted. Not all
is equal there: the temperature, its fall, t/ε and L of Entropy-SGD were picked on the ripples, from other random
starts, among some 240 settings; the other methods kept their defaults, at constant rates.

On the two valleys every method that is linear in the gradient has exact theory: the spectral radius of one update
without noise, the recursion of mean and covariance with it. The table has both beside what was measured.
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
from jax.flatten_util import ravel_pytree

import jaxopt_pde
from experiments import _run
from experiments._surfaces import CURVATURES, NOISE, SURFACES, TURN, Surface
from experiments.quickstart import interval
from experiments.relaxation_1d import spread_out
from jaxopt_pde import _validate, problems


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run; the defaults give the figure of the gallery."""

    methods: tuple[str, ...] = (
        "SGD", "momentum", "Nesterov", "accelerated SGD", "Adagrad", "RMSProp", "Adam", "NAdam",
        "SALR", "Entropy-SGD",
    )  # fmt: skip
    """Which methods to run."""
    seed: int = 0
    """Seeds the starts, the noise of the gradients and that of Entropy-SGD."""
    num_gradients: int = 240
    """Gradients that each run spends, a multiple of num_steps."""
    num_starts: int = 128
    """Random starts about the one drawn; even, one half chooses the rates."""
    rates: tuple[float, float] = (1e-3, 100.0)
    """Ends of the geometric grid, of learning rates in [param²/loss] or [param] as the method has it."""
    num_rates: int = 28
    """Points of the grid."""
    momentum: float = 0.9
    """Decay of heavy ball and Nesterov."""
    num_steps: int = 20
    """Entropy-SGD: steps L of its chain, so gradients of an update."""
    time_per_rate: float = 8.0
    """Entropy-SGD: smoothing time t over the inner learning rate; the outer step is h = t."""
    long_step_ratio: float = 100.0
    """Accelerated SGD: κ, here that of the valley; its statistical advantage is √κ."""


NOT_FINITE = ("contraction", "noisy")

SMOKE = Config(methods=("SALR", "Entropy-SGD"), num_gradients=80, num_starts=8, num_rates=6)


class Method(NamedTuple):
    """An optimiser: ``make(rate, temperature, key)``, the gradients of an update, and whether it is linear in them."""

    make: Callable[[Any, Any, Any], optax.GradientTransformationExtraArgs]
    num_steps: int = 1
    linear: bool = False


def methods(config: Config) -> dict[str, Method]:
    """The methods compared, with everything fixed but the rate."""
    m, ratio = config.momentum, config.long_step_ratio

    def entropy(rate, temperature, key):
        time, updates = config.time_per_rate * rate, config.num_gradients // config.num_steps
        falling = lambda count: temperature * (1 - count / updates)
        return jaxopt_pde.entropy_sgd(
            time, time, rate, temperature=falling, num_steps=config.num_steps, key=key
        )

    accelerated = functools.partial(
        jaxopt_pde.accelerated_sgd, long_step_ratio=ratio, statistical_advantage=ratio**0.5
    )
    known = {
        "SGD": Method(lambda rate, *_: optax.sgd(rate), linear=True),
        "momentum": Method(lambda rate, *_: optax.sgd(rate, m), linear=True),
        "Nesterov": Method(lambda rate, *_: optax.sgd(rate, m, nesterov=True), linear=True),
        "accelerated SGD": Method(lambda rate, *_: accelerated(rate), linear=True),
        "Adagrad": Method(lambda rate, *_: optax.adagrad(rate)),
        "RMSProp": Method(lambda rate, *_: optax.rmsprop(rate)),
        "Adam": Method(lambda rate, *_: optax.adam(rate)),
        "NAdam": Method(lambda rate, *_: optax.nadam(rate)),
        "SALR": Method(lambda rate, *_: jaxopt_pde.space_adaptive_sgd(max_learning_rate=rate)),
        "Entropy-SGD": Method(entropy, config.num_steps, linear=True),
    }
    for name in config.methods:
        _validate.check_choice("methods", name, tuple(known))
    return {name: known[name] for name in config.methods}


def one_update(tx, method: Method, gradient, params, state, **extra):
    """Params and state after one update, ``gradient(params, step)`` being its step-th gradient."""
    if method.num_steps > 1:
        extra["grad_fn"] = lambda p, s: gradient(p, s.step)
        updates, state = tx.update(params, state, params, **extra)
    else:
        updates, state = tx.update(gradient(params, 0), state, params, **extra)
    return optax.apply_updates(params, updates), state


def paths(method: Method, config: Config, number, surface, starts):
    """Points [rate, start, update + 1, 2] of all rates and starts on the surface with this number, and f there."""
    noise, temperature, rates = surface
    losses = [s.loss for s in SURFACES.values()]

    def path(rate, start, index):
        key = jax.random.fold_in(_run.key_for(config.seed, "noise"), index)
        tx = optax.with_extra_args_support(method.make(rate, temperature, jax.random.fold_in(key, 2**20)))
        loss = lambda x: jax.lax.switch(number, losses, x)

        def step(carry, update):
            params, state = carry

            value, slope = jax.value_and_grad(loss)(params)  # exact: for SALR alone

            def gradient(p, i):
                draw = jax.random.fold_in(key, update * method.num_steps + i)
                exact = slope if method.num_steps == 1 else jax.grad(loss)(p)
                return exact + noise * jax.random.normal(draw, (2,))

            moments = {"value": value, "grad_sq_norm": jnp.sum(slope**2) + 2 * noise**2}
            return one_update(tx, method, gradient, params, state, **moments), (params, value)

        updates = jnp.arange(config.num_gradients // method.num_steps)
        (last, _), (points, values) = jax.lax.scan(step, (start, tx.init(start)), updates)
        return jnp.concatenate([points, last[None]]), jnp.append(values, loss(last))

    over_starts = jax.vmap(path, (None, 0, 0))
    return jax.vmap(over_starts, (0, None, None))(rates, starts, jnp.arange(len(starts)))


def theory(method: Method, config: Config, rates: list[float], offsets: np.ndarray) -> dict[str, float]:
    """On the valleys at these two rates: contraction of |x − x*| a gradient, and E|x − x*|² at the end with noise.

    In an eigendirection of curvature λ an update is linear, s⁺ = M s + B e, in the state s of params and optimiser and
    the noises e of its gradients. The first result is the largest spectral radius of M; for the second the mean
    follows M and the covariance P⁺ = M P M' + B B' NOISE². ``offsets`` [start, 2] are the starts in eigendirections.
    """
    template = (jnp.zeros(1), method.make(1.0, 0.0, 0).init(jnp.zeros(1)))
    leaves, tree = jax.tree.flatten(template)
    is_number = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    numbers, unravel = ravel_pytree([leaf for leaf, real in zip(leaves, is_number, strict=True) if real])

    def advance(flat, noises, curvature, rate):
        kept = iter(unravel(flat))
        params, state = tree.unflatten(
            [next(kept) if real else leaf for leaf, real in zip(leaves, is_number, strict=True)]
        )
        gradient = lambda p, step: curvature * p + noises[step]
        after = one_update(method.make(rate, 0.0, 0), method, gradient, params, state)
        found = [leaf for leaf, real in zip(jax.tree.leaves(after), is_number, strict=True) if real]
        return ravel_pytree(found)[0]

    noises = jnp.zeros(method.num_steps)
    derivatives = jax.jit(jax.jacfwd(advance, argnums=(0, 1)))
    radius, total = 0.0, 0.0
    for direction, curvature in enumerate(CURVATURES):
        update, noisy = (derivatives(numbers, noises, curvature, jnp.float32(rate)) for rate in rates)
        radius = max(radius, np.abs(np.linalg.eigvals(update[0])).max())
        M, B = (np.asarray(part, np.float64) for part in noisy)
        mean, covariance = np.zeros((len(numbers), len(offsets))), np.zeros_like(M)
        mean[0] = offsets[:, direction]  # the params come first
        for _ in range(config.num_gradients // method.num_steps):
            mean, covariance = M @ mean, M @ covariance @ M.T + NOISE**2 * B @ B.T
        total += np.mean(mean[0] ** 2) + covariance[0, 0]
    return {"contraction": float(radius ** (1 / method.num_steps)), "noisy": float(total)}


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Every method at every rate from every start of every surface; of the best rate, the paths.

    Raises:
        ValueError: if ``num_gradients`` is not a multiple of ``num_steps``.
    """
    if config.num_gradients % config.num_steps or config.num_starts % 2:
        msg = (
            f"num_gradients={config.num_gradients} must be a multiple of num_steps={config.num_steps} and "
            f"num_starts={config.num_starts} even."
        )
        raise ValueError(msg)
    half = config.num_starts // 2
    grid = np.geomspace(*config.rates, config.num_rates)
    chains = methods(config)

    def compare(method: Method) -> _run.Arrays:
        everywhere = jax.jit(functools.partial(paths, method, config))
        found: dict[str, list] = {"points": [], "excess": [], "sq_distance": [], "rate": []}
        for number, surface in enumerate(SURFACES.values()):
            ways = jax.random.normal(_run.key_for(config.seed, "starts"), (config.num_starts, 2))
            starts = jnp.asarray(surface.start)[None] + surface.spread * ways.at[-1].set(0.0)
            settings = (jnp.asarray(surface.noise), jnp.asarray(surface.temperature), jnp.asarray(grid))
            points, values = everywhere(number, settings, starts)
            values = np.nan_to_num(np.asarray(values), nan=1e6, posinf=1e6).clip(1e-14, 1e6)
            scores = np.log(values[:, :half, -1]).mean(axis=1)
            best = np.flatnonzero(scores <= scores.min() + np.log(1.1))[0]
            reported = np.asarray(points[best, half:])
            distances = np.sum((reported - np.asarray(surface.minimiser)) ** 2, axis=-1)
            repeat = lambda array: np.repeat(array, method.num_steps, axis=1)[:, : config.num_gradients + 1]
            found["points"].append(repeat(reported)[-1])
            found["excess"].append(repeat(values[best, half:]))
            found["sq_distance"].append(repeat(distances))
            found["rate"].append(grid[best])
        expected = {"contraction": np.nan, "noisy": np.nan}
        if method.linear:
            offsets = (np.asarray(starts - starts[-1:])[half:] + np.asarray(SURFACES["valley"].start)) @ TURN
            expected = theory(method, config, found["rate"][:2], offsets)
        return {**{key: np.stack(rows) for key, rows in found.items()}, **expected}

    parts = []
    with session.progress("methods", len(chains)) as meter:
        for name, method in chains.items():
            parts.append(session.stage(name, functools.partial(compare, method)))
            meter.advance()
    return {
        "method": np.array(list(chains)),
        "surface": np.array(list(SURFACES)),
        "grid": grid,
        **{key: np.stack([part[key] for part in parts]) for key in parts[0]},
    }


def geometric(excess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Geometric mean over the starts, the last axis, and the factor either way of its 95 % confidence interval."""
    logarithm = np.log(excess)
    return np.exp(logarithm.mean(axis=-1)), np.exp(interval(logarithm))


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Final f − f* (geometric means) and rates; contraction and noise on the valley beside their theory."""
    headers = [
        "method", *(f"{name}: f − f* (rate)" for name in results["surface"]), "ripples: at x*",
        "valley: |z| a gradient", "theory", "noisy: E|z|²", "theory",
    ]  # fmt: skip
    rows = []
    for m, method in enumerate(results["method"]):
        means, factors = geometric(results["excess"][m, :, :, -1])
        shown = zip(means, factors, results["rate"][m], strict=True)
        distances = results["sq_distance"][m]
        half = distances.shape[-1] // 2
        ratio = np.median(distances[0, :, -1] / np.maximum(distances[0, :, half], 1e-30))
        contraction = ratio ** (0.5 / (distances.shape[-1] - 1 - half))
        noisy = distances[1, :, -1]
        expected = [f"{results['contraction'][m]:.4f}", f"{results['noisy'][m]:.3f}"]
        if method == "SALR":
            expected = [f"≤ {(1 - CURVATURES[0] / CURVATURES[1]) ** 0.5:.4f}", f"≤ {proved(results):.3f}"]
        elif not np.isfinite(results["noisy"][m]):
            expected = ["–", "–"]
        rows.append(
            [
                str(method),
                *(f"{mean:.1e} ×/÷ {factor:.1f} ({rate:.2g})" for mean, factor, rate in shown),
                f"{100 * np.mean(results['excess'][m, -1, :, -1] < 0.03):.0f} %",
                f"{contraction:.4f}",
                expected[0],
                f"{noisy.mean():.3f} ± {interval(noisy):.3f}",
                expected[1],
            ]
        )
    return headers, rows


def proved(results: _run.Arrays) -> float:
    """The proved bound on E|x − x*|² for the space-adaptive rate in the noisy valley."""
    bound = problems.space_adaptive_bound(
        results["sq_distance"].shape[-1] - 1,
        strong_convexity=CURVATURES[0],
        smoothness=CURVATURES[1],
        noise_variance=2 * NOISE**2,
        initial_sq_distance=float(results["sq_distance"][0, 1, :, 0].mean()),
    )
    return float(bound)


COLOURS = {
    "SGD": "#888888", "momentum": "#56b4e9", "Nesterov": "#0072b2", "accelerated SGD": "#000000",
    "Adagrad": "#e69f00", "RMSProp": "#d55e00", "Adam": "#cc79a7", "NAdam": "#7b3294",
    "SALR": "#009e73", "Entropy-SGD": "#c51b1b",
}  # fmt: skip
GROUPS = (
    ("one rate for all coordinates", ("SGD", "momentum", "Nesterov", "accelerated SGD")),
    ("a rate for every coordinate", ("Adagrad", "RMSProp", "Adam", "NAdam")),
    ("space-adaptive and relaxed", ("SALR", "Entropy-SGD")),
)


def figure(results: _run.Arrays) -> plt.Figure:
    """Rows: surfaces. Paths in three groups of methods, then f − f* against gradients, geometric means."""
    style = {"font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        fig, axes = plt.subplots(4, 4, figsize=(14.4, 10.0), layout="constrained")
        names = [str(name) for name in results["method"]]
        for row, (where, surface) in enumerate(SURFACES.items()):
            for axis, (title, group) in zip(axes[row], GROUPS, strict=False):
                draw_contours(axis, surface)
                used = [name for name in group if name in names]
                for name in used:
                    draw_path(axis, results["points"][names.index(name), row], name)
                if row == 0:
                    axis.set_title(title, pad=36)
                    sign(axis, used)
                axis.set(xlim=surface.window[0], ylim=surface.window[1], aspect="equal")
                axis.set_xlabel("x₁   [param]" if row == 3 else "")
            axes[row, 0].set_ylabel(f"{where}\n\nx₂   [param]")
            draw_curves(axes[row, 3], results, row)
        axes[0, 3].set_title("geometric mean over starts")
        axes[3, 3].set_xlabel("gradients")
    return fig


def draw_contours(axis, surface: Surface) -> None:
    """Level lines at equal steps of the square root of f."""
    first, second = (np.linspace(*ends, 240) for ends in surface.window)
    plane = jnp.asarray(np.stack(np.meshgrid(first, second), axis=-1), jnp.float32)
    values = np.sqrt(np.asarray(problems.evaluate(surface.loss, plane)))
    axis.contour(
        first, second, values, np.linspace(0, values.max(), 12)[1:], colors="#c8c8c8", linewidths=0.6
    )
    axis.plot(*surface.minimiser, "*", color="black", markersize=9, markeredgecolor="white", zorder=6)


def draw_path(axis, points: np.ndarray, name: str) -> None:
    """One path, a dot at every update."""
    moved = np.concatenate([[True], np.any(np.diff(points, axis=0) != 0, axis=-1)])
    line = {"color": COLOURS[name], "linewidth": 1.0, "markersize": 2.2, "alpha": 0.8}
    axis.plot(*points[moved].T, "o-", markeredgewidth=0, zorder=3 if name != "SGD" else 2, **line)
    axis.plot(*points[0], "o", color="black", markersize=5, zorder=5)
    axis.plot(*points[-1], "o", color=COLOURS[name], markersize=6, markeredgecolor="white", zorder=7)


def sign(axis, used: list[str]) -> None:
    """The names of a group's methods over its first panel, in their colours."""
    for number, name in enumerate(used):
        axis.text(
            0.25 + 0.5 * (number % 2), 1.13 - 0.09 * (number // 2), name, color=COLOURS[name], ha="center",
            transform=axis.transAxes, fontsize=10.5,
        )  # fmt: skip


def draw_curves(axis, results: _run.Arrays, row: int) -> None:
    """Geometric means of f − f* of all methods on one surface, their names at the ends."""
    excess = geometric(results["excess"][:, row].swapaxes(-1, -2))[0]
    count = np.arange(excess.shape[-1])
    floor = 1e-9
    for name, curve in zip(results["method"], excess, strict=True):
        axis.plot(count, curve, color=COLOURS[str(name)], linewidth=1.5)
    top, bottom = 2 * excess[:, 0].max(), max(floor, excess.min() / 2)
    axis.set(yscale="log", xlim=(0, count[-1]), ylim=(bottom, top), ylabel="f − f*   [loss]")
    # Names in the order of the ends, spread over the height.
    ends = np.log(np.clip(excess[:, -1], bottom, top) / bottom) / np.log(top / bottom)
    heights = spread_out(ends, 0.085)
    heights += min(0.0, 1.0 - heights.max())
    heights += max(0.0, -heights.min())
    for name, height in zip(results["method"], heights, strict=True):
        axis.text(
            1.02,
            height,
            str(name),
            color=COLOURS[str(name)],
            va="center",
            transform=axis.transAxes,
            fontsize=9,
        )
