"""Runge-Kutta steps, and loops whose length is known only at run time yet are differentiable in reverse."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["bounded_loop", "march", "runge_kutta_step", "share_out", "visit_times"]


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
    return _bounded(lambda taken, _: taken < count, body, carry, jnp.zeros([], jnp.int32), limit)[1]


def _bounded(wanted, body, carry, taken, limit: int):
    """``body`` while ``wanted(taken, carry)``, from the step number ``taken`` on: the last step number and carry."""
    inner = max(1, round(limit ** (1 / 3)))
    middle = max(1, round((limit / inner) ** 0.5))
    outer = -(-limit // (inner * middle))
    go_on = lambda state: (state[0] < limit) & wanted(*state)

    def level(step, size: int):
        def run(state):
            one = lambda state, _: (jax.lax.cond(go_on(state), step, lambda state: state, state), None)
            return jax.lax.scan(one, state, length=size)[0]

        return jax.checkpoint(run)

    run = level(lambda state: (state[0] + 1, body(state[1])), inner)
    return level(level(run, middle), outer)((taken, carry))


def visit_times(to_next_time: Callable, start: Any, spans: Float[Array, " n"]) -> tuple[Any, Any]:
    """A scan over the times asked for, without a loop where there is one.

    Args:
        to_next_time: (carry, span) -> (carry, output).
        start: the first carry.
        spans: time from each output to the next, [n].

    Returns:
        The last carry, and the outputs stacked.
    """
    if spans.shape[0] == 1:
        last, output = to_next_time(start, spans[0])
        return last, jax.tree.map(lambda leaf: leaf[None], output)
    return jax.lax.scan(to_next_time, start, spans)


def share_out(remaining: Float[Array, ""], rate_limit: Float[Array, ""]) -> Float[Array, ""]:
    """The largest Δt with Δt·rate_limit ≤ 1 that divides what remains evenly: NaN where the limit is not finite.

    Args:
        remaining: time to the next output.
        rate_limit: 1/Δt allowed; a constant for derivatives.

    Returns:
        Δt; all that remains in the last step, to the last digit.
    """
    count = jnp.maximum(jnp.ceil(jax.lax.stop_gradient(remaining * rate_limit) * (1 - 1e-6)), 1)
    return jnp.where(jnp.isfinite(count), remaining / count, jnp.nan)


def march(
    advance: Callable, values: Array, spans: Float[Array, " n"], max_steps: int
) -> tuple[Array, Int[Array, ""], Array]:
    """Steps of a length chosen at each step from the values then, ending at every time asked for.

    Args:
        advance: (values, time, remaining) -> (values, dt): one step of length dt ≤ remaining, NaN to give up.
        values: where to start, at time 0.
        spans: time from each output to the next, [n].
        max_steps: bound on the number of steps to all times together, static.

    Returns:
        Values at the end of each span, [n, ...], NaN where it was not reached; the number of steps; whether the
        limit was met.
    """

    def step(carry):
        values, time, remaining = carry
        values, dt = advance(values, time, remaining)
        return values, time + dt, remaining - dt

    def to_next_time(carry, span):
        values, time, taken, stopped = carry
        # Where an earlier time was not reached, neither is this one.
        moving = lambda taken, carry: (carry[2] > 0) & ~stopped
        taken, (values, time, remaining) = _bounded(moving, step, (values, time, span), taken, max_steps)
        stopped |= remaining > 0
        return (values, time, taken, stopped), jnp.where(stopped | jnp.isnan(remaining), jnp.nan, values)

    start = (values, jnp.zeros([], spans.dtype), jnp.zeros([], jnp.int32), jnp.asarray(False))
    (_, _, taken, stopped), reached = visit_times(to_next_time, start, spans)
    return reached, taken, stopped


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
    # And not kept·values + (1 − kept)·moved: 1/3 and 1 − 1/3 do not add up to 1 in float32, a loss at every step.
    def stage(current, kept):
        moved = current + dt * rate(current)
        return moved + kept * (values - moved), None

    return jax.lax.scan(stage, values, jnp.asarray([0, 3 / 4, 1 / 3], values.dtype))[0]
