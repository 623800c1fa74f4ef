"""Space-adaptive learning rate: a step chosen by where the iterate is, not by how long it has run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from .. import _validate
from .._typing import Params, ScalarOrSchedule
from ._relaxed import evaluate
from ._space_adaptive_estimators import ESTIMATORS, Estimator, Observation, estimators
from ._step_statistics import microbatch_statistics, scalar_dtype, scale_finite, squared_norm

__all__ = ["SpaceAdaptiveState", "scale_by_space_adaptive", "space_adaptive_sgd"]


class SpaceAdaptiveState(NamedTuple):
    """State of :func:`scale_by_space_adaptive` and :func:`space_adaptive_sgd`: scalars beside the momentum.

    Attributes:
        count: updates so far (int32); schedules read it.
        learning_rate: the step h just taken [param²/loss].
        notfinite_count: updates without a step because loss, f_min or gradient was not finite (int32).
        below_minimum_count: updates without a step because the (estimated) loss was below f_min (int32).
        statistics: running means of the estimator.
        outer: state of the momentum, empty without one.
    """

    count: Int[Array, ""]
    learning_rate: Float[Array, ""]
    notfinite_count: Int[Array, ""]
    below_minimum_count: Int[Array, ""]
    statistics: Any
    outer: optax.OptState


def scale_by_space_adaptive(
    f_min: ScalarOrSchedule = 0.0,
    *,
    max_learning_rate: ScalarOrSchedule,
    estimator: Estimator = "instantaneous",
    decay: ScalarOrSchedule | None = None,
    window: int = 500,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales the gradient by the space-adaptive learning rate (SALR).

        h = min(2 (f(x) − f_min)₊ / E|g|², max_learning_rate),      updates ← h·updates.

    With exact quantities, on a μ-strongly convex loss with L-Lipschitz gradient and noise E|g − ∇f|² ≤ σ², x ← x −
    h g has E|x_k − x*|² ≤ 1/(α k + 1/q₀), α = μ/(σ²/μ + (L − μ) q₀), and on isotropic quadratics its error is d/(d
    + 2) of that of the best schedule fixed in advance. Any h in (0, 2 (f − f*)/E|g|²] shrinks E|x − x*|². Like
    ``optax.scale_by_polyak`` it keeps the sign: end a chain with ``optax.scale(-1.0)``, or use
    :func:`space_adaptive_sgd`.

    Args:
        f_min: f*, the least value of the loss the caller means to reach [loss]; a schedule of updates, or given anew
            to every update as an extra argument. Unknown: :func:`target_level`.
        max_learning_rate: greatest step ≥ 0 in [param²/loss].
        estimator: what stands for f(x) and E|g|² (static):

            * ``"instantaneous"``: this update's ``value`` and |g|². **Exact if the caller passes an exact loss and**
              ``grad_sq_norm``. With minibatch losses it is the stochastic Polyak step SPS+ with its factor 2, which
              converges only under interpolation: where single batches reach values below f* it stalls far away.
            * ``"ema"``: running means of ``value`` and |g|².
            * ``"microbatch"``: running means of ``value`` and, from the gradients of independent microbatches, of
              |∇f|² and of the noise E|g − ∇f|², each unbiased and not touched by a clip earlier in the chain.
            * ``"window"``: the published practice. h is recomputed every ``window`` updates from the mean of |g|²
              under the old h and a mean of decay 0.9 of ``value``; the first window runs at ``max_learning_rate``.
        decay: of the running means, in [0, 1). None: a window that grows with the count k (weights 8/(k + 8)), or
            0.9 for the losses of ``"window"``.
        window: updates between two steps of ``"window"`` (static).

    Extra args of ``update``:
        value: the loss at params [loss], on the batch or on all data. Required.
        grad_sq_norm: an unbiased estimate of E|g|² [loss²/param²], used in place of |g|². After a clip in the chain
            pass the |g|² of before it: dividing by the clipped one makes the step too long.
        f_min: replaces the constructor's.
        microbatch_gradients: for ``"microbatch"``, required: gradients of n ≥ 2 independent parts of the batch on a
            leading axis, as ``jax.vmap(jax.grad(loss), (None, 0))(params, parts)`` gives them; ``updates`` is their
            mean. (Two halves make |∇f|² = g₁·g₂ and noise |g₁ − g₂|²/4. A tree of its own, and not a second
            gradient beside ``updates``: what a chain does to ``updates`` leaves the statistics alone, and any n
            will do.)

    Returns:
        A ``GradientTransformationExtraArgs`` with state :class:`~jaxopt_pde.optimizers.SpaceAdaptiveState`, whose
        ``learning_rate`` is the step just taken. Norms, losses and means are float32 or wider. A NaN in loss, f_min
        or gradient gives zero updates and is counted in ``notfinite_count``; a loss below f_min gives zero updates
        and is counted in ``below_minimum_count`` (a count that grows with every other batch says that the noise
        floor is reached).

    Raises:
        ValueError, TypeError: at construction for a number out of range, in ``update`` for a missing ``value=`` or
            ``microbatch_gradients=``, and for params that are not real and floating; the message names it.

    Good values:
        Exact loss and E|g|² (convex problems, full-batch evaluation): the defaults, with ``max_learning_rate`` 1/L or
        larger. Minibatch losses: ``"ema"`` or ``"microbatch"``. **Every estimate from minibatch losses stalls**:
        with a mean over w losses of standard deviation s the gap is known to s/√w, and when f − f* is below that h
        no longer falls. Fixed ``decay`` and ``window`` stop at that floor; the growing window (decay None) has
        none, but its error falls as 1/√k, not 1/k. If μ and L are known, use :func:`scale_by_certainty_equivalent`,
        which stalls nowhere; if only L, :func:`scale_by_signal_to_noise`. A value of f_min below f* makes steps too
        long by (f − f_min)/(f − f*), which is without bound near x*; one above f* stops there.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxopt_pde
        >>> loss = lambda p: 2.0 * jnp.sum((p - 1.0) ** 2) + 3.0
        >>> tx = optax.chain(
        ...     optax.clip_by_global_norm(100.0),
        ...     jaxopt_pde.scale_by_space_adaptive(3.0, max_learning_rate=10.0),
        ...     optax.trace(0.1), optax.scale(-1.0))
        >>> params = jnp.zeros(2)
        >>> state = tx.init(params)
        >>> for _ in range(30):
        ...     value, grads = jax.value_and_grad(loss)(params)
        ...     updates, state = tx.update(grads, state, params, value=value)
        ...     params = optax.apply_updates(params, updates)
        >>> print(params.round(3))
        [1. 1.]

    References:
        A. Oberman, talk at ICERM 2018; Oberman and Prazeres, arXiv:1903.08688 (space-adaptive learning rate).
        Loizou et al., arXiv:2002.10542 (SPS); Garrigos et al., arXiv:2307.14528 (SPS+).
    """
    return _space_adaptive(
        "scale_by_space_adaptive", f_min, max_learning_rate, estimator, decay, window, optax.identity()
    )


def space_adaptive_sgd(
    f_min: ScalarOrSchedule = 0.0,
    *,
    max_learning_rate: ScalarOrSchedule,
    momentum: float | None = None,
    nesterov: bool = False,
    estimator: Estimator = "instantaneous",
    decay: ScalarOrSchedule | None = None,
    window: int = 500,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic gradient descent with the space-adaptive learning rate.

        x ← x − h g,      h = min(2 (f(x) − f_min)₊ / E|g|², max_learning_rate);

    with momentum m the velocity is v ← m v + h g, x ← x − v.

    Args:
        f_min: f*, see :func:`scale_by_space_adaptive`, as are all arguments not listed here.
        max_learning_rate: greatest step ≥ 0 in [param²/loss].
        momentum: decay m of the velocity, None for none. It multiplies the effective step by 1/(1 − m), which
            the rule knows nothing of: lower ``max_learning_rate``, or raise f_min.
        nesterov: Nesterov's form of the momentum.
        estimator: what stands for f(x) and E|g|².
        decay: of the running means.
        window: updates between two steps of ``"window"``.
        accumulator_dtype: dtype of the velocity; None means that of params.

    Extra args of ``update``:
        value, grad_sq_norm, f_min, microbatch_gradients: as in :func:`scale_by_space_adaptive`.

    Returns:
        A ``GradientTransformationExtraArgs`` with state :class:`~jaxopt_pde.optimizers.SpaceAdaptiveState`. What is
        not finite moves nothing, momentum included; below f_min nothing is added to the velocity.

    Raises:
        ValueError, TypeError: as :func:`scale_by_space_adaptive`.

    Good values:
        See :func:`scale_by_space_adaptive`: the defaults with an exact loss, ``estimator="ema"`` with minibatch
        losses.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxopt_pde
        >>> loss = lambda p: jnp.sum(p**2)
        >>> tx = jaxopt_pde.space_adaptive_sgd(max_learning_rate=10.0)
        >>> params = jnp.array([0.5, -0.5])
        >>> value, grads = jax.value_and_grad(loss)(params)
        >>> updates, state = tx.update(grads, tx.init(params), params, value=value)
        >>> print(optax.apply_updates(params, updates), state.learning_rate)
        [0. 0.] 0.5

    References:
        As for :func:`scale_by_space_adaptive`.
    """
    if momentum is None:
        outer = optax.scale(-1.0)
    else:
        _validate.check_fraction("momentum", momentum)
        _validate.check_float_dtype("accumulator_dtype", accumulator_dtype)
        outer = optax.chain(optax.trace(momentum, nesterov, accumulator_dtype), optax.scale(-1.0))
    return _space_adaptive("space_adaptive_sgd", f_min, max_learning_rate, estimator, decay, window, outer)


def _check(f_min, max_learning_rate, estimator, decay, window) -> None:
    _validate.check_finite("f_min", f_min)
    _validate.check_nonnegative("max_learning_rate", max_learning_rate)
    _validate.check_choice("estimator", estimator, ESTIMATORS)
    if decay is not None:
        _validate.check_fraction("decay", decay)
    _validate.check_count("window", window)


def _space_adaptive(
    name, default_f_min, max_learning_rate, estimator, decay, window, outer
) -> optax.GradientTransformationExtraArgs:
    """The rule, its steps handed to ``outer``."""
    _check(default_f_min, max_learning_rate, estimator, decay, window)
    init_statistics, estimate = estimators(estimator, window)

    def init(params: Params) -> SpaceAdaptiveState:
        _validate.check_float_tree("params", params, allow_masked=True)
        dtype, count = scalar_dtype(params), [jnp.zeros([], jnp.int32) for _ in range(3)]
        learning_rate = jnp.zeros([], dtype)
        return SpaceAdaptiveState(
            count[0], learning_rate, count[1], count[2], init_statistics(dtype), outer.init(params)
        )

    def update(
        updates,
        state,
        params=None,
        *,
        value=None,
        grad_sq_norm=None,
        f_min=None,
        microbatch_gradients=None,
        **extra_args,
    ):
        del extra_args
        _check_call(name, estimator, value, microbatch_gradients)
        dtype = state.learning_rate.dtype
        number = lambda scalar: jnp.asarray(evaluate(scalar, state.count)).astype(dtype)
        minimum = number(default_f_min if f_min is None else f_min)
        value, own_sq_norm = number(value), squared_norm(updates, dtype)
        signal = noise = None
        if estimator == "microbatch":
            signal, noise = microbatch_statistics(microbatch_gradients, dtype)
        seen = Observation(
            state.count - state.notfinite_count,
            value,
            own_sq_norm if grad_sq_norm is None else number(grad_sq_norm),
            signal,
            noise,
            None if decay is None else number(decay),
        )
        level, statistics = estimate(state.statistics, seen)
        finite = jnp.isfinite(own_sq_norm) & jnp.isfinite(minimum)
        for seen_number in (value, seen.grad_sq_norm, *(() if noise is None else (signal, noise))):
            finite &= jnp.isfinite(seen_number)
        gap = jnp.where(level.known, level.value - minimum, jnp.inf)
        step = jnp.where(finite, _step(gap, level.grad_sq_norm, number(max_learning_rate)), 0)
        updates, outer_state = outer.update(scale_finite(step, finite, updates), state.outer, params)
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        if jax.tree.leaves(state.outer):  # a velocity would go on moving
            updates = jax.tree.map(lambda u: jnp.where(finite, u, jnp.zeros_like(u)), updates)
            outer_state = keep(outer_state, state.outer)
        return updates, SpaceAdaptiveState(
            optax.safe_increment(state.count),
            step,
            state.notfinite_count + (~finite).astype(jnp.int32),
            state.below_minimum_count + (finite & (gap < 0)).astype(jnp.int32),
            keep(statistics, state.statistics),
            outer_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _step(gap, grad_sq_norm, greatest) -> Float[Array, ""]:
    """min(2·gap/grad_sq_norm, greatest), and ``greatest`` where the norm is 0 or nothing is known; never negative."""
    positive = grad_sq_norm > 0
    step = jnp.where(positive, 2 * jnp.maximum(gap, 0) / jnp.where(positive, grad_sq_norm, 1), greatest)
    return jnp.where(gap > 0, jnp.clip(step, 0, jnp.maximum(greatest, 0)), 0)


def _check_call(name, estimator, value, microbatch_gradients) -> None:
    if value is None:
        msg = (
            f"{name} needs the loss at params:\n"
            "    value, grads = jax.value_and_grad(loss)(params, batch)\n"
            "    updates, state = tx.update(grads, state, params, value=value)"
        )
        raise ValueError(msg)
    if estimator == "microbatch" and microbatch_gradients is None:
        msg = (
            f'{name} with estimator="microbatch" needs the gradients of the parts of the batch:\n'
            "    values, parts = jax.vmap(jax.value_and_grad(loss), (None, 0))(params, batches)  # batches [n, ...]\n"
            "    grads = jax.tree.map(lambda g: g.mean(0), parts)\n"
            "    updates, state = tx.update(\n"
            "        grads, state, params, value=values.mean(), microbatch_gradients=parts)"
        )
        raise ValueError(msg)
