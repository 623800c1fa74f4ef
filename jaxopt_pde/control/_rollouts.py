"""Euler rollouts of the descent, their exponents and gradients, and log-sum-exp means that merge chunk by chunk.

A rollout from (x, s), with h = (horizon − s)/N and the guide G, is

    X ← X − h (∇f(X) + G) + √(hT) ξ,      S = V(X_N) + Σ [(c h/2)|G|² − c √(hT) G·ξ].

With λ = cT, exp((V − S)/λ) is the density of the unguided chain over the guided one, exactly for every h: the guide
moves the mean of each Gaussian step. So E exp(−S/λ) is the same number whatever the guide.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int, Key

from .. import _noise, _validate
from .._arithmetic import add_scaled, cast_like, dot, squared_norm
from .._sharding import free_all_but_the_mapped_axis
from .._typing import GradFn, InnerStep, Params, ValueFn

__all__ = ["Dynamics", "WeightedMean", "merge", "no_mean", "rollout", "summarise"]


class Dynamics(NamedTuple):
    """What a rollout is made of: functions and scalars, the scalars in the accumulator's dtype."""

    grad_fn: GradFn
    terminal_fn: ValueFn
    guide: Callable[..., Params] | None
    control_cost: Float[Array, ""]
    temperature: Float[Array, ""]
    time: Float[Array, ""]
    step_size: Float[Array, ""]
    num_steps: int
    sharding: NamedSharding | None


def rollout(
    dynamics: Dynamics, like: Params, key: Key[Array, ""], start: Params, index: Int[Array, ""]
) -> Float[Array, ""]:
    """The exponent S of rollout ``index`` from ``start``; ``like`` has the dtypes that the functions see."""
    step_size, cost = dynamics.step_size, dynamics.control_cost
    noise_scale = jnp.sqrt(step_size * dynamics.temperature)

    def step(carry, number):
        position, exponent = carry
        seen = cast_like(position, like)
        # One stream for each use, split before the rollouts part: a rollout costs one hash a stream.
        noise_key, gradient_key, guide_key = (
            jax.random.fold_in(k, index) for k in jax.random.split(jax.random.fold_in(key, number), 3)
        )
        noise = _noise.draw_noise(noise_key, position, "gaussian")
        gradient = dynamics.grad_fn(seen, InnerStep(number, index, gradient_key))
        _validate.check_same_tree("grad_fn", gradient, like)
        force = cast_like(gradient, position)
        if dynamics.guide is not None:
            steering = dynamics.guide(seen, dynamics.time + number * step_size, guide_key)
            _validate.check_same_tree("guide", steering, like)
            steering = cast_like(steering, position)
            force = jax.tree.map(jnp.add, force, steering)
            energy = squared_norm(steering, exponent.dtype) * step_size / 2
            exponent = exponent + cost * (energy - noise_scale * dot(steering, noise, exponent.dtype))
        position = add_scaled(add_scaled(position, -step_size, force), noise_scale, noise)
        return (free_all_but_the_mapped_axis(position, dynamics.sharding), exponent), None

    initial = (free_all_but_the_mapped_axis(start, dynamics.sharding), jnp.zeros([], step_size.dtype))
    # The reverse pass keeps the positions alone and computes each step again.
    (end, exponent), _ = jax.lax.scan(
        jax.checkpoint(step, prevent_cse=False), initial, jnp.arange(dynamics.num_steps, dtype=jnp.int32)
    )
    terminal = dynamics.terminal_fn(cast_like(end, like))
    _validate.check_scalar_output("terminal_fn", terminal)
    return exponent + jnp.asarray(terminal, exponent.dtype)


class WeightedMean(NamedTuple):
    """Gradients g of some rollouts averaged with weights p ∝ exp(−S/λ), and what their standard error needs.

    Attributes:
        least: the least exponent S, taken out before exponentials are.
        total: Σ exp(−(S − least)/λ).
        mean: ḡ = Σ p g.
        squares: Σ p².
        spread: Σ p² |g − ḡ|².
        skew: Σ p² (g − ḡ), a tree: what makes ``spread`` exact once another ḡ is in force.
    """

    least: Float[Array, ""]
    total: Float[Array, ""]
    mean: Params
    squares: Float[Array, ""]
    spread: Float[Array, ""]
    skew: Params


def no_mean(like: Params, dtype) -> WeightedMean:
    """The mean of no rollouts: the neutral element of :func:`merge`."""
    zeros, zero = jax.tree.map(jnp.zeros_like, like), jnp.zeros([], dtype)
    return WeightedMean(jnp.full([], jnp.inf, dtype), zero, zeros, zero, zero, zeros)


def summarise(exponents: Float[Array, " n"], gradients: Params, scale) -> WeightedMean:
    """The weighted mean of gradients with a leading axis n; ``scale`` is λ."""
    least = jnp.min(exponents)
    unnormalised = jnp.exp(-(exponents - least) / scale)
    total = jnp.sum(unnormalised)
    weights = unnormalised / total
    average = lambda w, tree: jax.tree.map(lambda g: jnp.tensordot(w.astype(g.dtype), g, axes=1), tree)
    # Divided after the sum: spread over devices, ``total`` and the sum of gradients are then one all-reduce.
    mean = jax.tree.map(lambda g: g / total.astype(g.dtype), average(unnormalised, gradients))
    deviations = jax.tree.map(lambda g, m: g - m[None], gradients, mean)
    weighted = jax.tree.map(
        lambda d: d * weights.astype(d.dtype).reshape(-1, *[1] * (d.ndim - 1)), deviations
    )
    spread = squared_norm(weighted, weights.dtype)
    return WeightedMean(least, total, mean, jnp.sum(weights**2), spread, average(weights**2, deviations))


def merge(one: WeightedMean, other: WeightedMean, scale) -> WeightedMean:
    """The mean over both sets of rollouts, without a look at any of them."""
    least, dtype = jnp.minimum(one.least, other.least), one.total.dtype
    totals = [part.total * jnp.exp(-(part.least - least) / scale) for part in (one, other)]
    total = sum(totals)
    mean, squares, spread = jax.tree.map(jnp.zeros_like, one.mean), jnp.zeros([], dtype), jnp.zeros([], dtype)
    skew, shares = mean, [part / total for part in totals]
    for share, part in zip(shares, (one, other), strict=True):
        mean = add_scaled(mean, share, part.mean)
    for share, part in zip(shares, (one, other), strict=True):
        shift = jax.tree.map(jnp.subtract, part.mean, mean)
        moved = 2 * dot(shift, part.skew, dtype) + squared_norm(shift, dtype) * part.squares
        squares = squares + share**2 * part.squares
        spread = spread + share**2 * (part.spread + moved)
        skew = add_scaled(skew, share**2, add_scaled(part.skew, part.squares, shift))
    return WeightedMean(least, total, mean, squares, spread, skew)
