"""Paths of stochastic optimisers on one problem, all of them on the same minibatches and in one program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_pde import problems

NORMAL_QUANTILE = 1.96
"""Half the width of a 95 % interval, in standard errors."""


class Method(NamedTuple):
    """An optimiser and the settings that it is run with.

    Attributes:
        make: from one row of settings, which are traced numbers, to an optax transformation.
        settings: the grid, [variants, numbers]; a single row where there is nothing to tune.
        exact: whether it is told the exact f − f* and E|∇f_B|² instead of what the minibatch says.
        watched: names of scalars in the optimiser's state that are looked at too.
    """

    make: Callable[[jax.Array], optax.GradientTransformation]
    settings: np.ndarray = np.zeros((1, 1), np.float32)
    exact: bool = False
    watched: tuple[str, ...] = ()


def run_paths(
    problem: problems.StochasticProblem, methods: dict[str, Method], key: Any, num_paths: int, num_steps: int,
    num_checkpoints: int,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The excess loss of every variant of every method along its paths.

    A step takes one minibatch, split in two halves: their mean is the gradient, both are handed to the method, and
    a path of one method sees the minibatches that the same path of all the others sees.

    Args:
        problem: drawn from with replacement, so that halves are independent; an even batch size.
        methods: by name.
        key: of the minibatches.
        num_paths: paths of each variant.
        num_steps: steps of a path.
        num_checkpoints: at most so many places, equally spaced in the logarithm, where the path is looked at.

    Returns:
        ``steps`` [checkpoints], 0 first, and for every method ``NAME/excess`` [variants, checkpoints, paths], f − f*,
        ``NAME/first`` [variants, checkpoints, d], the first of the paths, and what is watched as ``NAME/SCALAR``, of
        the shape of the excess.
    """
    steps = np.unique(np.append(0, np.rint(np.geomspace(1, num_steps, num_checkpoints)))).astype(np.int32)
    settings = {name: jnp.asarray(method.settings) for name, method in methods.items()}

    def begin(name, row):
        point = problem.initial_point()
        return point, optax.with_extra_args_support(methods[name].make(row)).init(point)

    def take(name, row, carry, batch):
        method, (point, state) = methods[name], carry
        halves = batch.reshape(2, -1)
        values, parts = jax.vmap(jax.value_and_grad(problem.batch_loss), (None, 0))(point, halves)
        said = {"value": values.mean(), "microbatch_gradients": parts}
        if method.exact:
            norm = problem.expected_grad_sq_norm(point)
            said |= {"value": problem.excess_loss(point), "grad_sq_norm": norm, "f_min": 0.0}
        transformation = optax.with_extra_args_support(method.make(row))
        updates, state = transformation.update(parts.mean(axis=0), state, point, **said)
        return point + updates, state

    def everywhere(function, carries, *shared):
        over_paths = lambda name: jax.vmap(functools.partial(function, name), (None, 0, *(0 for _ in shared)))
        over_both = lambda name: jax.vmap(over_paths(name), (0, 0, *(None for _ in shared)))
        return {name: over_both(name)(settings[name], carry, *shared) for name, carry in carries.items()}

    def step(index, carries):
        keys = jax.random.split(jax.random.fold_in(key, index), num_paths)
        return everywhere(take, carries, jax.vmap(problem.draw)(keys))

    def look(carries):
        excess = everywhere(lambda name, row, carry: problem.excess_loss(carry[0]), carries)
        seen = {f"{name}/excess": values for name, values in excess.items()}
        for name, (points, state) in carries.items():
            watched = {f"{name}/{field}": optax.tree.get(state, field) for field in methods[name].watched}
            seen |= {f"{name}/first": points[:, 0]} | watched
        return seen

    def advance(carries, ends):
        carries = jax.lax.fori_loop(ends[0], ends[1], step, carries)
        return carries, look(carries)

    @jax.jit
    def everything(ends):
        one = {name: jax.vmap(functools.partial(begin, name))(rows) for name, rows in settings.items()}
        spread = lambda leaf: jnp.broadcast_to(leaf[:, None], (leaf.shape[0], num_paths, *leaf.shape[1:]))
        carries = jax.tree.map(spread, one)
        return jax.lax.scan(advance, carries, ends)[1]

    seen = everything(np.stack([np.append(0, steps[:-1]), steps], axis=1))
    return {"steps": steps} | {name: np.moveaxis(np.asarray(values), 0, 1) for name, values in seen.items()}


def schedules(
    problem: problems.StochasticProblem, scales: tuple[float, ...], starts: tuple[float, ...]
) -> Method:
    """SGD with h_k = c/(k + k₀) on the grid of all c = scale/μ and h_0 = start/L."""
    grid = [
        (start / problem.smoothness, start / problem.smoothness * problem.strong_convexity / scale)
        for scale in scales
        for start in starts
    ]
    return Method(lambda row: optax.sgd(lambda k: row[0] / (1 + row[1] * k)), np.array(grid, np.float32))


def constant(problem: problems.StochasticProblem, starts: tuple[float, ...]) -> Method:
    """SGD with h = start/L."""
    return Method(lambda row: optax.sgd(row[0]), np.array(starts, np.float32)[:, None] / problem.smoothness)


def mean_and_margin(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the last axis, the paths, and half its 95 % interval."""
    return values.mean(axis=-1), NORMAL_QUANTILE * values.std(axis=-1, ddof=1) / np.sqrt(values.shape[-1])


def paired_ratio(values: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ratio of the means over the last axis, and half its 95 % interval by the delta method on paired paths."""
    ratio = values.mean(axis=-1) / reference.mean(axis=-1)
    residual = values - ratio[..., None] * reference
    return ratio, mean_and_margin(residual)[1] / np.abs(reference.mean(axis=-1))


def best(excess: np.ndarray) -> int:
    """The variant with the least mean at the end; ``excess`` is [variants, checkpoints, paths]."""
    return int(np.argmin(np.where(np.isfinite(excess[:, -1]), excess[:, -1], np.inf).mean(axis=-1)))


def log_slope(steps: np.ndarray, mean: np.ndarray) -> float:
    """The least-squares slope of log mean against log k, over the last factor 10 of the steps."""
    late = steps >= steps[-1] / 10
    return float(np.polyfit(np.log(steps[late]), np.log(np.maximum(mean[late], 1e-30)), 1)[0])


def spread_labels(heights: np.ndarray, gap: float) -> np.ndarray:
    """Positive heights of labels on a logarithmic axis, at least ``gap`` decades apart and about where they were."""
    order = np.argsort(heights)
    places = np.log10(heights[order]).astype(float)
    for _ in range(500):
        overlap = np.maximum(gap - np.diff(places), 0) / 2
        places[:-1] -= overlap
        places[1:] += overlap
    placed = np.empty_like(places)
    placed[order] = places
    return 10**placed


def label_ends(axis, entries: list[tuple[float, str, str]], gap: float) -> None:
    """Names curves beside their right ends: (height, text, colour), at least ``gap`` decades apart."""
    heights = spread_labels(np.array([height for height, _, _ in entries]), gap)
    for height, (_, text, colour) in zip(heights, entries, strict=True):
        axis.annotate(
            text, (1.0, height), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
            color=colour, va="center", fontsize=9.5, annotation_clip=False,
        )  # fmt: skip
