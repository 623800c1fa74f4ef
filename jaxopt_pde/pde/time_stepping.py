"""Runge-Kutta steps, and a loop whose length is known only at run time yet is differentiable in reverse."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

__all__ = ["bounded_loop", "runge_kutta_step"]


def bounded_loop(body: Callable[[Any], Any], carry: Any, count: Int[Array, ""], limit: int) -> Any:
    """Applies ``body`` ``count`` times, at most ``limit`` times.

    Three nested scans of about limit^(1/3) steps, each skipping what lies beyond ``count`` and recomputing its inside
    in the reverse pass: reverse-mode memory is some 3·limit^(1/3) carries, and steps that do not happen cost
    nothing but their turn of the outer loops.

    Args:
        body: carry -> carry.
        carry: a pytree of arrays.
        count: steps wanted (traced).
        limit: largest count (static).

    Returns:
        The carry after min(count, limit) steps.
    """
    inner = max(1, round(limit ** (1 / 3)))
    middle = max(1, round((limit / inner) ** 0.5))
    outer = -(-limit // (inner * middle))

    def level(step, size: int, stride: int):
        """``size`` runs of ``step``, the k-th of which starts at step number start + k·stride."""

        def run(carry, start):
            def one(carry, k):
                here = start + k * stride
                return jax.lax.cond(here < count, step, lambda carry, here: carry, carry, here), None

            return jax.lax.scan(one, carry, jnp.arange(size, dtype=jnp.int32))[0]

        return jax.checkpoint(run)

    count = jnp.minimum(count, limit)
    run = level(lambda carry, here: body(carry), inner, 1)
    run = level(run, middle, inner)
    return level(run, outer, inner * middle)(carry, jnp.zeros([], jnp.int32))


def runge_kutta_step(rate: Callable[[Array], Array], values: Array, dt: Array, stages: int) -> Array:
    """One step of u_t = rate(u): Euler (1) or Shu and Osher's total-variation-diminishing third order (3).

    Args:
        rate: right-hand side.
        values: u.
        dt: step.
        stages: 1 or 3.

    Returns:
        u after the step: a convex combination of Euler steps, so it inherits their monotonicity.

    References:
        Shu & Osher 1988, J. Comput. Phys. 77.
    """
    if stages == 1:
        return values + dt * rate(values)

    # A scan, so that the right-hand side is compiled once and no stage is fused into, and computed again in, the next.
    def stage(current, kept):
        return kept * values + (1 - kept) * (current + dt * rate(current)), None

    return jax.lax.scan(stage, values, jnp.asarray([0, 3 / 4, 1 / 3], values.dtype))[0]
