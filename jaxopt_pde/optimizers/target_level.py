"""A target level in place of an unknown least value: best loss seen minus a gap that is halved when not reached."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from .. import _validate
from .._typing import Params, ScalarOrSchedule
from ._relaxed import evaluate
from ._step_statistics import averaging_weight, scalar_dtype

__all__ = ["TargetLevelState", "target_level"]


class TargetLevelState(NamedTuple):
    """State of :func:`target_level`: scalars beside the inner optimiser's state.

    Attributes:
        count: updates so far (int32).
        since: updates since the record was last improved by half the gap, or the gap halved (int32).
        value: running mean of the loss [loss].
        record: least running mean so far [loss].
        reference: the record when ``since`` was last 0 [loss].
        gap: δ, how far below the record the level lies [loss].
        f_min: the level just handed on, record − δ [loss].
        inner: state of the inner transformation.
    """

    count: Int[Array, ""]
    since: Int[Array, ""]
    value: Float[Array, ""]
    record: Float[Array, ""]
    reference: Float[Array, ""]
    gap: Float[Array, ""]
    f_min: Float[Array, ""]
    inner: optax.OptState


def target_level(
    inner: optax.GradientTransformation,
    initial_gap: ScalarOrSchedule,
    *,
    patience: int = 50,
    decay: ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Gives ``inner`` an online estimate of f*, as its extra argument ``f_min=``.

        f_min = min_j f̄_j − δ,

    f̄ being a running mean of ``value``. Whenever the record falls by δ/2 the count of updates starts anew; when
    ``patience`` updates pass without, f* is taken to be closer than that, and δ is halved.

    Args:
        inner: :func:`scale_by_space_adaptive`, :func:`space_adaptive_sgd`, or whatever takes ``f_min=`` and
            ``value=``.
        initial_gap: δ_0 > 0, a guess of f(x_0) − f* [loss]; read once, at the first update.
        patience: updates after which δ is halved (static).
        decay: of the running mean f̄, in [0, 1); 0 for an exact loss. None: a window that grows with the count.

    Extra args of ``update``:
        value: the loss at params [loss]. Required, and handed on, as are all others.

    Returns:
        A ``GradientTransformationExtraArgs`` with state :class:`~jaxopt_pde.optimizers.TargetLevelState`, whose
        ``f_min`` is the level of the last update. A loss that is not finite leaves the level alone (``inner`` sees
        and counts it).

    Raises:
        ValueError, TypeError: at construction for a number out of range or an ``inner`` that is no optax
            transformation, in ``update`` for a missing ``value=``; the message names it.

    Good values:
        δ_0 within a factor 10 of f(x_0) − f*. With an exact loss of a convex function the record tends to f*. **It
        fails** with minibatch losses of standard deviation s: the record of noisy means lies below f* by up to about
        s √(log k/w), w the window, steps near x* are as much too long, and the error stays at a floor. If f* is
        known, give it; if μ and L are, use :func:`scale_by_certainty_equivalent`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxopt_pde
        >>> loss = lambda p: jnp.sum(jnp.array([1.0, 4.0]) * p**2) + 7.0  # nobody tells that the least value is 7
        >>> tx = jaxopt_pde.target_level(jaxopt_pde.space_adaptive_sgd(max_learning_rate=1.0), 1.0, patience=10)
        >>> def step(carry, _):
        ...     params, state = carry
        ...     value, grads = jax.value_and_grad(loss)(params)
        ...     updates, state = tx.update(grads, state, params, value=value)
        ...     return (params + updates, state), None
        >>> start = jnp.ones(2)
        >>> (params, state), _ = jax.lax.scan(step, (start, tx.init(start)), length=400)
        >>> print(jnp.abs(params).max() < 0.01, jnp.abs(state.f_min - 7.0) < 1e-3)
        True True

    References:
        Polyak 1969; Goffin and Kiwiel 1999, Mathematical Programming 85 (subgradient level algorithm); Nedić and
        Bertsekas 2001.
    """
    _validate.check_positive("initial_gap", initial_gap)
    _validate.check_count("patience", patience)
    if decay is not None:
        _validate.check_fraction("decay", decay)
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        msg = f"inner must be an optax transformation that takes f_min=, got {inner!r}."
        raise TypeError(msg)
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> TargetLevelState:
        _validate.check_float_tree("params", params, allow_masked=True)
        dtype, count = scalar_dtype(params), [jnp.zeros([], jnp.int32) for _ in range(2)]
        return TargetLevelState(*count, *(jnp.zeros([], dtype) for _ in range(5)), inner.init(params))

    def update(updates, state, params=None, *, value=None, **extra_args):
        if value is None:
            msg = (
                "target_level needs the loss at params:\n"
                "    value, grads = jax.value_and_grad(loss)(params, batch)\n"
                "    updates, state = tx.update(grads, state, params, value=value)"
            )
            raise ValueError(msg)
        dtype = state.value.dtype
        number = lambda scalar: jnp.asarray(evaluate(scalar, state.count)).astype(dtype)
        seen = number(value)
        finite, first = jnp.isfinite(seen), state.gap == 0
        weight = averaging_weight(state.count, None if decay is None else number(decay), dtype)
        mean = jnp.where(first, seen, state.value + weight * (seen - state.value))
        record = jnp.where(first, mean, jnp.minimum(state.record, mean))
        reference = jnp.where(first, mean, state.reference)
        gap = jnp.where(first, number(initial_gap), state.gap)
        reached = record <= reference - gap / 2
        given_up = ~reached & (state.since >= patience)
        gap = jnp.where(given_up, gap / 2, gap)
        changed = TargetLevelState(
            state.count,
            jnp.where(reached | given_up, 0, state.since + 1),
            mean,
            record,
            jnp.where(reached | given_up, record, reference),
            gap,
            record - gap,
            (),
        )
        changed = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), changed, state._replace(inner=())
        )
        extra_args["f_min"] = changed.f_min
        updates, inner_state = inner.update(updates, state.inner, params, value=value, **extra_args)
        return updates, changed._replace(count=optax.safe_increment(state.count), inner=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
