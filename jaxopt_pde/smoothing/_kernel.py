"""One step of the Langevin chain and of its running mean: the kernel under every form of Entropy-SGD.

With anchor x, particle y, stochastic gradient g ≈ ∇f(y), step ε, momentum m and ξ of mean 0, variance 1:

    v' = m v − ε (g + (y − x)/t) + √(2 ε (1 − m) T) ξ
    y' = y + v'

For m = 0 this is the Euler scheme of dy = −(∇f(y) + (y − x)/t) ds + √(2T) dW, whose invariant density is
ρ(y) ∝ exp(−(f(y) + |y − x|²/(2t))/T). With m > 0 it is stochastic-gradient Hamiltonian Monte Carlo (Chen, Fox
& Guestrin 2014, eq. 15): the factor 1 − m in the noise keeps the invariant density at the same temperature.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from .._typing import InnerStep, Params

__all__ = [
    "StepScalars",
    "averaging_weight",
    "inner_keys",
    "langevin_step",
    "scalar_dtype",
    "step_scalars",
    "update_mean",
]


class StepScalars(NamedTuple):
    """The numbers of one Langevin step, constant over the inner loop."""

    step_size: Float[Array, ""]
    inverse_time: Float[Array, ""]
    momentum: Float[Array, ""]
    noise_scale: Float[Array, ""]


def scalar_dtype(tree: Params) -> jnp.dtype:
    """The widest dtype in ``tree`` and at least float32: the dtype of :class:`StepScalars`."""
    return functools.reduce(jnp.promote_types, (leaf.dtype for leaf in jax.tree.leaves(tree)), jnp.float32)


def step_scalars(*, smoothing_time, temperature, step_size, momentum, dtype) -> StepScalars:
    """Casts the settings to ``dtype`` and forms ε, 1/t, m and √(2 ε (1 − m) T)."""
    time, heat, step, inertia = (
        jnp.asarray(value, dtype) for value in (smoothing_time, temperature, step_size, momentum)
    )
    return StepScalars(step, 1 / time, inertia, jnp.sqrt(2 * step * (1 - inertia) * heat))


def inner_keys(key: Key[Array, ""], step: Int[Array, ""], chain: Int[Array, ""]) -> tuple[Array, InnerStep]:
    """The noise key of (step, chain), and what ``grad_fn`` is told there: two independent streams."""
    noise_key, user_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, step), chain))
    return noise_key, InnerStep(step, chain, user_key)


def langevin_step(
    position: Params,
    velocity: Params | None,
    gradient: Params,
    anchor: Params,
    noise: Params | None,
    scalars: StepScalars,
) -> tuple[Params, Params | None]:
    """One step of the chain, leaf by leaf in the dtype of ``position``.

    Args:
        position: particle y.
        velocity: v of the last step, or None for m = 0.
        gradient: g, cast to the dtype of ``position``.
        anchor: x.
        noise: ξ, or None for T = 0.
        scalars: from :func:`step_scalars`.

    Returns:
        The next position, and the next velocity (None for m = 0).
    """

    def increment(y, g, x, xi=None):
        cast = StepScalars(*(value.astype(y.dtype) for value in scalars))
        drift = -cast.step_size * (g.astype(y.dtype) + (y - x) * cast.inverse_time)
        return drift if xi is None else drift + cast.noise_scale * xi

    trees = (position, gradient, anchor) if noise is None else (position, gradient, anchor, noise)
    step = jax.tree.map(increment, *trees)
    if velocity is not None:
        step = jax.tree.map(lambda v, s: scalars.momentum.astype(s.dtype) * v + s, velocity, step)
    position = jax.tree.map(jnp.add, position, step)
    return position, (None if velocity is None else step)


def averaging_weight(step: Int[Array, ""], averaging: float | None, burn_in: int, dtype) -> Float[Array, ""]:
    """Weight w of the newest term in ``mean ← mean + w (new − mean)``.

    ``averaging`` = a gives w = 1 − a at every step; None gives the uniform mean over the steps from
    ``burn_in`` on, w = 1/(step − burn_in + 1), and w = 0 before.
    """
    if averaging is not None:
        return jnp.asarray(1 - averaging, dtype)
    count = step - burn_in + 1
    return jnp.where(count > 0, 1 / jnp.maximum(count, 1).astype(dtype), jnp.zeros([], dtype))


def update_mean(mean: Params, new: Params, weight: Float[Array, ""]) -> Params:
    """``mean + weight (new − mean)``, leaf by leaf in the dtype of ``mean``."""
    return jax.tree.map(lambda m, n: m + weight.astype(m.dtype) * (n.astype(m.dtype) - m), mean, new)
