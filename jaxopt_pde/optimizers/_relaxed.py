"""The adapter between an estimator of ∇u and optax: one update is one outer step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from .. import _validate
from .._typing import GradFn, Params, Smoothed, ValueFn

__all__ = ["RelaxedState", "all_finite", "evaluate", "outer_sgd", "relaxed_descent", "skip_where"]

EstimateFn = Callable[[GradFn, Params, Key[Array, ""], Int[Array, ""]], Smoothed]
"""``(grad_fn, params, key, count) -> Smoothed``; schedules are evaluated at ``count``."""


class RelaxedState(NamedTuple):
    """State of a transformation that descends u(x, t): three scalars beside the outer optimiser's state.

    Attributes:
        outer_count: updates so far (int32); schedules read it.
        key: the constant key; the noise of an update is drawn from ``fold_in(key, outer_count)``, so that
            restoring or rolling back a state reproduces its noise.
        notfinite_count: updates skipped because the estimate of ∇u was not finite (int32).
        outer: state of the optimiser that ∇u is handed to.
    """

    outer_count: Int[Array, ""]
    key: Key[Array, ""]
    notfinite_count: Int[Array, ""]
    outer: optax.OptState


def relaxed_descent(
    name: str, estimate: EstimateFn, outer: optax.GradientTransformation, key: Any
) -> optax.GradientTransformationExtraArgs:
    """Hands the estimate of ∇u to ``outer``; where it is not finite, emits zeros and leaves ``outer`` alone.

    Args:
        name: the public name, for error messages.
        estimate: estimates ∇u from the caller's ``grad_fn``.
        outer: what turns ∇u into an update; ``optax.identity()`` emits ∇u itself.
        key: integer seed or typed key.

    Returns:
        A transformation whose ``update`` takes ``grad_fn=`` (or ``value_fn=``) and ignores its ``updates``.
    """
    key = _validate.as_key(key)
    outer = optax.with_extra_args_support(outer)

    def init(params: Params) -> RelaxedState:
        _validate.check_float_tree("params", params)
        # Two buffers, not one zero twice: a donated state must not hold the same buffer in two places.
        zero = [jnp.zeros([], jnp.int32) for _ in range(2)]
        return RelaxedState(zero[0], jnp.copy(key), zero[1], outer.init(params))

    def update(updates, state, params=None, *, grad_fn=None, value_fn=None, **extra_args):
        del updates
        if params is None:
            msg = f"{name} needs params: call tx.update(grads, state, params, grad_fn=...)."
            raise ValueError(msg)
        _validate.check_float_tree("params", params)
        grad_fn = _resolve_grad_fn(name, grad_fn, value_fn)
        smoothed = estimate(
            grad_fn, params, jax.random.fold_in(state.key, state.outer_count), state.outer_count
        )
        finite = smoothed.info.get("finite")  # where the estimate has looked itself
        finite = all_finite(smoothed.gradient) if finite is None else finite
        gradient = jax.tree.map(lambda g: jnp.where(finite, g, jnp.zeros_like(g)), smoothed.gradient)
        updates, outer_state = outer.update(gradient, state.outer, params, **extra_args)
        updates, outer_state = skip_where(~finite, updates, outer_state, state.outer)
        return updates, RelaxedState(
            optax.safe_increment(state.outer_count),
            state.key,
            state.notfinite_count + (~finite).astype(jnp.int32),
            outer_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def outer_sgd(
    learning_rate, momentum, nesterov, weight_decay, accumulator_dtype
) -> optax.GradientTransformation:
    """SGD on ∇̂u + λ x: checks the settings, which all ``*_sgd`` of the family share."""
    _validate.check_nonnegative("learning_rate", learning_rate)
    _validate.check_nonnegative("weight_decay", weight_decay)
    if momentum is not None:
        _validate.check_fraction("momentum", momentum)
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum, nesterov, accumulator_dtype),
    )


def skip_where(skip, updates: Params, new_state: Any, old_state: Any) -> tuple[Params, Any]:
    """Where ``skip`` holds: zero updates and the old state. A select, so a NaN in the other branch is harmless."""
    updates = jax.tree.map(lambda u: jnp.where(skip, jnp.zeros_like(u), u), updates)
    return updates, jax.tree.map(lambda new, old: jnp.where(skip, old, new), new_state, old_state)


def evaluate(scalar_or_schedule: Any, count: Int[Array, ""]) -> Any:
    """The value at ``count``; numbers pass unchanged, so that a Python zero stays known at trace time."""
    return scalar_or_schedule(count) if callable(scalar_or_schedule) else scalar_or_schedule


def all_finite(tree: Params):
    return jnp.all(jnp.asarray([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)] or [True]))


def _resolve_grad_fn(name: str, grad_fn: GradFn | None, value_fn: ValueFn | None) -> GradFn:
    if grad_fn is not None:
        return grad_fn
    if value_fn is not None:
        gradient = jax.grad(value_fn)
        return lambda params, step: gradient(params)
    msg = (
        f"{name} evaluates gradients itself and needs grad_fn (or value_fn). For a loss(params, batch):\n"
        f"    tx.update(grads, state, params, grad_fn=lambda p, step: jax.grad(loss)(p, batch))\n"
        "In a loop that cannot pass it on, use entropy_sgd_stepwise."
    )
    raise ValueError(msg)
