"""A batch that grows inside the graph: microbatches are accumulated until the batch-size rule holds."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from .. import _validate
from .._typing import Params, ScalarOrSchedule
from ._relaxed import evaluate, skip_where
from ._step_statistics import scalar_dtype, squared_norm
from .batch_size import noise_scale

__all__ = ["AdaptiveBatchState", "adaptive_batch"]


class AdaptiveBatchState(NamedTuple):
    """State of :func:`adaptive_batch`: one tree, scalars, and the inner optimiser's state.

    Attributes:
        mini_step: microbatches in hand (int32).
        gradient_step: steps of the inner optimiser so far (int32); schedules read it.
        batch_size: microbatches averaged in the last step of the inner optimiser (int32).
        limited_count: steps taken at ``max_microbatches`` although the rule asked for more (int32).
        notfinite_count: microbatches refused because loss or gradient was not finite (int32).
        noise_variance: variance of one microbatch gradient, as estimated at the last step [loss²/param²].
        noise_weight: its weight beside what is in hand, in deviations.
        grad_sq_norm: unbiased |∇f|² at the last step [loss²/param²].
        noise_scale: gradient noise scale at the last step, noise_variance/grad_sq_norm [microbatches].
        batch_value: mean loss of the microbatches in hand.
        batch_deviation: Σ|g_i − ḡ|² over the microbatches in hand.
        gradient: ḡ, mean of the microbatch gradients in hand.
        inner: state of the inner optimiser.
    """

    mini_step: Int[Array, ""]
    gradient_step: Int[Array, ""]
    batch_size: Int[Array, ""]
    limited_count: Int[Array, ""]
    notfinite_count: Int[Array, ""]
    noise_variance: Float[Array, ""]
    noise_weight: Float[Array, ""]
    grad_sq_norm: Float[Array, ""]
    noise_scale: Float[Array, ""]
    batch_value: Float[Array, ""]
    batch_deviation: Float[Array, ""]
    gradient: Params
    inner: optax.OptState


def adaptive_batch(
    inner: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    f_min: ScalarOrSchedule = 0.0,
    smoothness: ScalarOrSchedule | None = None,
    max_microbatches: int,
    min_microbatches: int = 1,
    decay: float = 0.9,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Accumulates microbatch gradients until their mean is good enough for the step, then lets ``inner`` take it.

    The step h is the space-adaptive one, h ≤ 2 (f − f*)/E|g_b|², as soon as the batch holds

        b ≥ σ²/V,      V = 2 (f(x) − f_min)/h − |∇f(x)|²

    microbatches of variance σ²; or, with ``smoothness`` L and neither f nor f*, V = (1/(h L) − 1) |∇f|², which is
    less since |∇f|² ≤ 2 L (f − f*). One update takes one microbatch gradient; between steps the updates are zero,
    so that shapes never change and nothing is compiled twice. σ² and |∇f|² = |ḡ|² − σ²/b are estimated without bias
    from the microbatches in hand, which must be independent.

    Args:
        inner: any optax optimiser; its schedules tick once a batch, when it is given the mean gradient ḡ. One that
            keeps no tree of state is run every time and its step discarded, which costs less than a branch.
        learning_rate: h ≥ 0 in [param²/loss], the step that ``inner`` takes; a schedule of its steps.
        f_min: f*, see :func:`scale_by_space_adaptive` [loss]; a schedule of steps.
        smoothness: L > 0 in [loss/param²], for the rule without losses; None uses ``value`` and f_min.
        max_microbatches: greatest batch, in microbatches: then the step is taken whatever the rule says (static).
        min_microbatches: least batch (static).
        decay: in [0, 1): how much of what earlier batches told of σ² still counts after a step. 0 uses the
            microbatches in hand alone (then no batch is smaller than 2).
        accumulator_dtype: dtype of ḡ; None means that of params but at least float32.

    Extra args of ``update``:
        value: loss at params [loss], of the microbatch or, better, of all data. Required without ``smoothness``.
            ``inner`` is given its mean over the batch.
        f_min: replaces the constructor's.
        Others are handed to ``inner`` with the last microbatch of a batch.

    Returns:
        A ``GradientTransformationExtraArgs`` with state :class:`~jaxopt_pde.optimizers.AdaptiveBatchState`:
        ``batch_size`` and ``noise_scale`` of the last step can be read there, ``mini_step`` is 0 right after one. A
        microbatch that is not finite is left out and counted in ``notfinite_count``.

    Raises:
        ValueError, TypeError: at construction for a number out of range or an ``inner`` that is no optax
            transformation, in ``update`` for a missing ``value=``, and for params that are not real and floating;
            the message names it.

    Good values:
        h from 1/(4L) to 1/(2L): at 1/L the rule may ask for infinite batches, below it never does. On means in the
        plane an exact ``value`` (f evaluated on all data) needs 2 to 4 times fewer gradients than the constant batch
        that is best for the error asked for where that error is small, and a quarter more where it is large
        (``python -m experiments run adaptive_batch_kmeans``); ``smoothness``, which knows neither f nor f*, needs
        about as many as that best one. **Losses of microbatches stall** where f − f_min is
        below the error of their mean, s/√b, far above what a batch of b resolves of ∇f: prefer ``smoothness``.
        A rule that looks at every microbatch stops at the lucky ones. So a batch is never less than half the last
        one, and with ``smoothness`` only powers of two are looked at. ``limited_count`` says how often
        ``max_microbatches`` decided.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxopt_pde
        >>> data = jax.random.normal(jax.random.key(0), (3000, 4, 2)) + 1.0
        >>> loss = lambda p, a: jnp.mean(jnp.sum((p[None] - a) ** 2, -1)) / 2  # ∇²f = I
        >>> tx = jaxopt_pde.adaptive_batch(
        ...     optax.sgd(0.5), 0.5, smoothness=1.0, max_microbatches=256)
        >>> def step(carry, batch):
        ...     params, state = carry
        ...     updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        ...     return (optax.apply_updates(params, updates), state), state.batch_size
        >>> (params, state), sizes = jax.lax.scan(step, (jnp.full(2, 9.0), tx.init(jnp.zeros(2))), data)
        >>> print(jnp.abs(params - 1.0).max() < 0.1, sizes[0] < sizes[-1])
        True True

    References:
        A. Oberman, talk at ICERM 2018. Byrd, Chin, Nocedal and Wu 2012, Sample size selection in optimization
        methods. Balles, Romero and Hennig 2017, arXiv:1612.05086. McCandlish et al. 2018, arXiv:1812.06162 (noise
        scale).
    """
    _check(
        inner, learning_rate, f_min, smoothness, max_microbatches, min_microbatches, decay, accumulator_dtype
    )
    inner, default_f_min = optax.with_extra_args_support(inner), f_min

    def init(params: Params) -> AdaptiveBatchState:
        _validate.check_float_tree("params", params, allow_masked=True)
        dtype, count = scalar_dtype(params), [jnp.zeros([], jnp.int32) for _ in range(5)]
        zero = [jnp.zeros([], dtype) for _ in range(6)]
        wide = lambda p: accumulator_dtype or jnp.promote_types(p.dtype, jnp.float32)
        mean = jax.tree.map(lambda p: optax.tree.zeros_like(p, dtype=wide(p)), params)
        return AdaptiveBatchState(*count, *zero, mean, inner.init(params))

    def update(updates, state, params=None, *, value=None, f_min=None, **extra_args):
        if value is None and smoothness is None:
            msg = (
                "adaptive_batch needs the loss:\n"
                "    value, grads = jax.value_and_grad(loss)(params, microbatch)\n"
                "    updates, state = tx.update(grads, state, params, value=value)\n"
                "or smoothness= at construction, with which it needs none."
            )
            raise ValueError(msg)
        seen = 0.0 if value is None else value
        dtype = state.batch_value.dtype
        number = lambda scalar: jnp.asarray(evaluate(scalar, state.gradient_step)).astype(dtype)
        rate, minimum = number(learning_rate), number(default_f_min if f_min is None else f_min)
        batch, finite = _accumulate(updates, state, number(seen))
        count = batch.mini_step.astype(dtype)
        variance, noise_weight = _pooled(
            state.noise_variance, state.noise_weight, batch.batch_deviation, jnp.maximum(count - 1, 0)
        )
        full = batch.mini_step >= max_microbatches
        looked_at = (2 * batch.mini_step >= state.batch_size) & (batch.mini_step >= min_microbatches)
        if smoothness is not None:
            looked_at &= (batch.mini_step & (batch.mini_step - 1)) == 0
        norm = jax.lax.cond(
            looked_at | full,
            lambda mean: squared_norm(mean, dtype),
            lambda mean: jnp.zeros([], dtype),
            batch.gradient,
        )
        signal = norm - variance / jnp.maximum(count, 1)
        known = smoothness is None
        twice_gap = 2 * (batch.batch_value - minimum) if known else signal / number(smoothness)
        allowed = twice_gap - rate * jnp.maximum(signal, 0)  # h·V
        holds = looked_at & (noise_weight > 0) & (allowed > 0) & (count * allowed >= rate * variance)
        ready = finite & (full | holds)

        def step(gradient):
            loss = {} if value is None else {"value": batch.batch_value}
            gradient = optax.tree.cast_like(gradient, updates)
            return inner.update(gradient, state.inner, params, **loss, **extra_args)

        def wait(gradient):  # made from an operand, the zeros have the sharding of the step
            return optax.tree.cast_like(optax.tree.zeros_like(gradient), updates), state.inner

        if any(leaf.size > 1 for leaf in jax.tree.leaves(state.inner)):
            emitted, inner_state = jax.lax.cond(ready, step, wait, batch.gradient)
        else:  # a step that costs less than the branch: SGD's fuses with the addition to the params
            emitted, inner_state = skip_where(~ready, *step(batch.gradient), state.inner)
        at_step = lambda new, old: jnp.where(ready, new, old)
        return emitted, batch._replace(
            mini_step=at_step(0, batch.mini_step),
            gradient_step=at_step(optax.safe_increment(state.gradient_step), state.gradient_step),
            batch_size=at_step(batch.mini_step, state.batch_size),
            limited_count=state.limited_count + (ready & ~holds).astype(jnp.int32),
            noise_variance=at_step(variance, state.noise_variance),
            noise_weight=at_step(decay * noise_weight, state.noise_weight),
            grad_sq_norm=at_step(signal, state.grad_sq_norm),
            noise_scale=at_step(noise_scale(signal, variance), state.noise_scale),
            inner=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _check(
    inner, learning_rate, f_min, smoothness, max_microbatches, min_microbatches, decay, accumulator_dtype
) -> None:
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        msg = f"inner must be an optax optimiser such as optax.sgd(0.1), got {inner!r}."
        raise TypeError(msg)
    _validate.check_nonnegative("learning_rate", learning_rate)
    _validate.check_finite("f_min", f_min)
    if smoothness is not None:
        _validate.check_positive("smoothness", smoothness)
    _validate.check_count("max_microbatches", max_microbatches)
    _validate.check_count("min_microbatches", min_microbatches)
    if min_microbatches > max_microbatches:
        msg = f"min_microbatches must be at most max_microbatches={max_microbatches}, got {min_microbatches}."
        raise ValueError(msg)
    _validate.check_fraction("decay", decay)
    _validate.check_float_dtype("accumulator_dtype", accumulator_dtype)


def _accumulate(updates: Params, state: AdaptiveBatchState, value) -> tuple[AdaptiveBatchState, Array]:
    """The batch with one microbatch more, and whether that was finite: if not, it is left out.

    Welford's recursion, for d = g − ḡ: ḡ ← ḡ + d/n, Σ|g_i − ḡ|² ← Σ|g_i − ḡ|² + |d|² (n − 1)/n. No cancellation, and
    |d|² is finite only where g is.
    """
    dtype, fresh = state.batch_value.dtype, state.mini_step == 0
    held = jax.tree.map(lambda m: jnp.where(fresh, jnp.zeros_like(m), m), state.gradient)
    difference = jax.tree.map(lambda g, m: g.astype(m.dtype) - m, updates, held)
    distance = squared_norm(difference, dtype)
    finite = jnp.isfinite(distance) & jnp.isfinite(value)
    share = 1 / (state.mini_step + 1).astype(dtype)
    share_if_finite = jnp.where(finite, share, 0)
    mean = jax.tree.map(
        lambda m, d: jnp.where(finite, m + share_if_finite.astype(m.dtype) * d, m), held, difference
    )
    batch_value = jnp.where(fresh, 0, state.batch_value)
    deviation = jnp.where(fresh, 0, state.batch_deviation)
    return state._replace(
        mini_step=state.mini_step + finite.astype(jnp.int32),
        notfinite_count=state.notfinite_count + (~finite).astype(jnp.int32),
        batch_value=jnp.where(finite, batch_value + share * (value - batch_value), batch_value),
        batch_deviation=jnp.where(finite, deviation + distance * (1 - share), deviation),
        gradient=mean,
    ), finite


def _pooled(mean, weight, total, count):
    """Mean and weight of ``mean`` with ``weight`` and of ``count`` observations that sum to ``total``."""
    all_weight = weight + count
    known = all_weight > 0
    return jnp.where(known, (weight * mean + total) / jnp.where(known, all_weight, 1), 0), all_weight
