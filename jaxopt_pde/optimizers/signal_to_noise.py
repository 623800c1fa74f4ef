"""The learning rate that decreases the loss most in one step, from the signal and the noise of the gradient."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from .. import _validate
from .._typing import Params, ScalarOrSchedule
from ._relaxed import evaluate
from ._step_statistics import (
    averaging_weight,
    microbatch_statistics,
    scalar_dtype,
    scale_finite,
    squared_norm,
)

__all__ = ["SignalToNoiseState", "scale_by_signal_to_noise"]


class SignalToNoiseState(NamedTuple):
    """State of :func:`scale_by_signal_to_noise`: scalars, no tree.

    Attributes:
        count: updates so far (int32); schedules read it.
        learning_rate: the step h just taken [param²/loss].
        notfinite_count: updates without a step because a gradient was not finite (int32).
        signal: running mean of the unbiased |∇f|² [loss²/param²].
        noise: running mean of the unbiased E|g − ∇f|² [loss²/param²].
    """

    count: Int[Array, ""]
    learning_rate: Float[Array, ""]
    notfinite_count: Int[Array, ""]
    signal: Float[Array, ""]
    noise: Float[Array, ""]


def scale_by_signal_to_noise(
    smoothness: ScalarOrSchedule, *, decay: ScalarOrSchedule | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Scales the gradient by 1/L times the share of signal in it.

        h = (1/L) G/(G + S),      G = mean of |∇f|²,      S = mean of E|g − ∇f|²,      updates ← h·updates.

    For an L-smooth loss E f(x − h g) ≤ f − h G + ½ L h² (G + S), of which this h is the minimiser. It needs neither
    f* nor f(x), and since |∇f|² ≤ 2 L (f − f*) it never exceeds the space-adaptive step 2 (f − f*)/E|g|². G and S
    are unbiased, from the gradients of independent parts of the batch (for two halves g₁·g₂ and |g₁ − g₂|²/4), and
    lagged by one update. Keeps the sign: end a chain with ``optax.scale(-1.0)``.

    Args:
        smoothness: L > 0 in [loss/param²]; h never exceeds 1/L.
        decay: of both running means, in [0, 1); None: a window that grows with the count.

    Extra args of ``update``:
        microbatch_gradients: gradients of n ≥ 2 independent parts of the batch on a leading axis, as from
            ``jax.vmap(jax.grad(loss), (None, 0))(params, parts)``; ``updates`` is their mean. Required.

    Returns:
        A ``GradientTransformationExtraArgs`` with state :class:`~jaxopt_pde.optimizers.SignalToNoiseState`, whose
        ``learning_rate`` is the step just taken. What is not finite gives zero updates and is counted in
        ``notfinite_count``.

    Raises:
        ValueError, TypeError: at construction for a number that is not positive, in ``update`` for a missing
            ``microbatch_gradients=``, and for params that are not real and floating; the message names it.

    Good values:
        L the largest curvature, or 1/L the largest learning rate at which plain SGD is stable. **It fails** near
        x*, where |∇f|² is smaller than the error of its mean, about S/√(w d) for a window w: with a fixed ``decay``
        the step falls no further and the error stays at a floor; with None it keeps falling, more slowly than 1/k.
        If μ is known :func:`scale_by_certainty_equivalent` does better: on logistic regression with real data this
        rule ends at 7 to 26 times the error of the best c/(k + k₀) (``python -m experiments run salr_logistic``).

    Example:
        >>> import jax.numpy as jnp, optax, jaxopt_pde
        >>> tx = optax.chain(jaxopt_pde.scale_by_signal_to_noise(1.0), optax.scale(-1.0))
        >>> params = jnp.array([1.0, -2.0])
        >>> parts = jnp.stack([params + 1.0, params - 1.0])  # |∇f|² = 5, and noise 2
        >>> updates, state = tx.update(parts.mean(0), tx.init(params), params, microbatch_gradients=parts)
        >>> print(optax.tree.get(state, "learning_rate"))
        0.6

    References:
        Bottou, Curtis and Nocedal, arXiv:1606.04838, section 4 (the descent inequality with noise).
    """
    _validate.check_positive("smoothness", smoothness)
    if decay is not None:
        _validate.check_fraction("decay", decay)

    def init(params: Params) -> SignalToNoiseState:
        _validate.check_float_tree("params", params, allow_masked=True)
        dtype, count = scalar_dtype(params), [jnp.zeros([], jnp.int32) for _ in range(2)]
        zero = [jnp.zeros([], dtype) for _ in range(3)]
        return SignalToNoiseState(count[0], zero[0], count[1], zero[1], zero[2])

    def update(updates, state, params=None, *, microbatch_gradients=None, **extra_args):
        del params, extra_args
        if microbatch_gradients is None:
            msg = (
                "scale_by_signal_to_noise needs the gradients of the parts of the batch:\n"
                "    parts = jax.vmap(jax.grad(loss), (None, 0))(params, batches)  # batches [n, ...]\n"
                "    grads = jax.tree.map(lambda g: g.mean(0), parts)\n"
                "    updates, state = tx.update(grads, state, params, microbatch_gradients=parts)"
            )
            raise ValueError(msg)
        dtype = state.learning_rate.dtype
        number = lambda scalar: jnp.asarray(evaluate(scalar, state.count)).astype(dtype)
        seen = microbatch_statistics(microbatch_gradients, dtype)
        finite = jnp.isfinite(squared_norm(updates, dtype)) & jnp.isfinite(seen[0]) & jnp.isfinite(seen[1])
        samples = state.count - state.notfinite_count
        weight = averaging_weight(samples, None if decay is None else number(decay), dtype)
        means = (state.signal, state.noise)
        after = [mean + weight * (new - mean) for mean, new in zip(means, seen, strict=True)]
        signal, noise = (jnp.where(samples == 0, new, old) for old, new in zip(means, after, strict=True))
        signal = jnp.maximum(signal, 0)
        total = signal + noise
        share = jnp.where(total > 0, signal / jnp.where(total > 0, total, 1), 0)
        step = jnp.where(finite, share / number(smoothness), 0)
        return scale_finite(step, finite, updates), SignalToNoiseState(
            optax.safe_increment(state.count),
            step,
            state.notfinite_count + (~finite).astype(jnp.int32),
            *(jnp.where(finite, new, old) for old, new in zip(means, after, strict=True)),
        )

    return optax.GradientTransformationExtraArgs(init, update)
