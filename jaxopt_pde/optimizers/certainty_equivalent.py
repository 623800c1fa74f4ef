"""The learning rate that the theory of SGD would choose if its constants were what they are thought to be."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from .. import _validate
from .._typing import Params, ScalarOrSchedule
from ._relaxed import evaluate
from ._step_statistics import (
    STEADY,
    averaging_weight,
    microbatch_statistics,
    scalar_dtype,
    scale_finite,
    squared_norm,
)

__all__ = ["CertaintyEquivalentState", "scale_by_certainty_equivalent"]


class CertaintyEquivalentState(NamedTuple):
    """State of :func:`scale_by_certainty_equivalent`: scalars, no tree.

    Attributes:
        count: updates so far (int32); schedules read it.
        learning_rate: the step h just taken [param²/loss].
        notfinite_count: updates without a step because gradient or noise was not finite (int32).
        sq_distance: q̂, what E|x − x*|² is thought to be after this step [param²].
        noise_variance: running mean of E|g − ∇f|² [loss²/param²].
    """

    count: Int[Array, ""]
    learning_rate: Float[Array, ""]
    notfinite_count: Int[Array, ""]
    sq_distance: Float[Array, ""]
    noise_variance: Float[Array, ""]


def scale_by_certainty_equivalent(
    strong_convexity: ScalarOrSchedule,
    smoothness: ScalarOrSchedule,
    initial_sq_distance: float,
    *,
    decay: ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales the gradient by the a-priori optimal learning rate, with the noise measured on the way (CE-SALR).

        h_k = μ q̂_k / (L μ q̂_k + σ̂²),      q̂_{k+1} = (1 − μ h_k) q̂_k,      updates ← h_k·updates.

    For a μ-strongly convex loss with L-Lipschitz gradient q̂_k bounds E|x_k − x*|², with the same proof and the
    same bound as :func:`scale_by_space_adaptive` with exact quantities. It needs neither f* nor f(x), and since
    nothing in it compares losses it has no noise floor: h falls as 1/(μ k). σ̂² is a running mean, lagged by one
    update. Keeps the
    sign: end a chain with ``optax.scale(-1.0)``.

    Args:
        strong_convexity: μ > 0 in [loss/param²]; where it exceeds L it is lowered to L, above which the rule
            diverges.
        smoothness: L > 0 in [loss/param²]; h never exceeds 1/L.
        initial_sq_distance: q̂_0 > 0, a guess of |x_0 − x*|² in [param²].
        decay: of the running mean of the noise, in [0, 1); None: a window that grows with the count.

    Extra args of ``update``:
        microbatch_gradients: gradients of n ≥ 2 independent parts of the batch on a leading axis, as from
            ``jax.vmap(jax.grad(loss), (None, 0))(params, parts)``; ``updates`` is their mean.
        noise_variance: E|g − ∇f|² [loss²/param²] if the caller has it (with per-example gradients their variance
            over the batch size); used in place of ``microbatch_gradients``. One of the two is required.

    Returns:
        A ``GradientTransformationExtraArgs`` with state :class:`~jaxopt_pde.optimizers.CertaintyEquivalentState`,
        whose ``learning_rate`` is the step just taken. What is not finite gives zero updates and is counted in
        ``notfinite_count``.

    Raises:
        ValueError, TypeError: at construction for a number that is not positive, in ``update`` if neither extra
            argument is given, and for params that are not real and floating; the message names it.

    Good values:
        μ from the ℓ2-regularisation or the smallest curvature, L from the largest. q̂_0 rather too large than too small:
        on isotropic losses it is soon forgotten, on ill-conditioned ones not. μ too small costs its factor; μ twice too
        large does little harm below L. **It fails** where the loss is not strongly convex,
        and where μ is far too small: the step then falls too slowly. On logistic regression with μ the
        regularisation and condition numbers near 300 it ends at 1.9 to 2.2 times the error of the best c/(k + k₀)
        (``python -m experiments run salr_logistic``).

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxopt_pde
        >>> data = jax.random.normal(jax.random.key(0), (4000, 2, 4, 3)) + 1.0
        >>> grad = lambda p, batch: p - batch.mean(0)  # f = ½ E|p − a|²: μ = L = 1, minimiser (1, 1, 1)
        >>> tx = optax.chain(jaxopt_pde.scale_by_certainty_equivalent(1.0, 1.0, 3.0), optax.scale(-1.0))
        >>> def step(carry, halves):
        ...     params, state = carry
        ...     parts = jax.vmap(grad, (None, 0))(params, halves)
        ...     updates, state = tx.update(parts.mean(0), state, params, microbatch_gradients=parts)
        ...     return (optax.apply_updates(params, updates), state), None
        >>> (params, state), _ = jax.lax.scan(step, (jnp.zeros(3), tx.init(jnp.zeros(3))), data)
        >>> print(jnp.abs(params - 1.0).max() < 0.03)
        True

    References:
        A. Oberman, talk at ICERM 2018 (space-adaptive learning rate); Bottou, Curtis and Nocedal, arXiv:1606.04838,
        section 4.
    """
    _validate.check_positive("strong_convexity", strong_convexity)
    _validate.check_positive("smoothness", smoothness)
    _validate.check_positive("initial_sq_distance", initial_sq_distance)
    if decay is not None:
        _validate.check_fraction("decay", decay)

    def init(params: Params) -> CertaintyEquivalentState:
        _validate.check_float_tree("params", params, allow_masked=True)
        dtype, count = scalar_dtype(params), [jnp.zeros([], jnp.int32) for _ in range(2)]
        zero = [jnp.zeros([], dtype) for _ in range(2)]
        distance = jnp.array(initial_sq_distance, dtype)
        return CertaintyEquivalentState(count[0], zero[0], count[1], distance, zero[1])

    def update(updates, state, params=None, *, microbatch_gradients=None, noise_variance=None, **extra_args):
        del params, extra_args
        dtype = state.learning_rate.dtype
        number = lambda scalar: jnp.asarray(evaluate(scalar, state.count)).astype(dtype)
        if noise_variance is not None:
            seen = number(noise_variance)
        elif microbatch_gradients is not None:
            seen = microbatch_statistics(microbatch_gradients, dtype)[1]
        else:
            msg = (
                "scale_by_certainty_equivalent measures the gradient noise and needs the parts of the batch:\n"
                "    parts = jax.vmap(jax.grad(loss), (None, 0))(params, batches)  # batches [n, ...]\n"
                "    grads = jax.tree.map(lambda g: g.mean(0), parts)\n"
                "    updates, state = tx.update(grads, state, params, microbatch_gradients=parts)\n"
                "or noise_variance= with the variance of the batch's gradient."
            )
            raise ValueError(msg)
        finite = jnp.isfinite(squared_norm(updates, dtype)) & jnp.isfinite(seen)
        keep = lambda new, old: jnp.where(finite, new, old)
        samples = state.count - state.notfinite_count
        weight = averaging_weight(samples, None if decay is None else number(decay), dtype, STEADY)
        mean = state.noise_variance + weight * (seen - state.noise_variance)
        variance = jnp.where(samples == 0, mean, state.noise_variance)
        largest = number(smoothness)
        curvature = jnp.minimum(number(strong_convexity), largest)
        distance = _at_least(state.sq_distance, initial_sq_distance, samples, curvature, variance)
        step = _step(curvature * distance, largest, variance)
        return scale_finite(step, finite, updates), CertaintyEquivalentState(
            optax.safe_increment(state.count),
            jnp.where(finite, step, 0),
            state.notfinite_count + (~finite).astype(jnp.int32),
            keep((1 - curvature * step) * distance, state.sq_distance),
            keep(mean, state.noise_variance),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _at_least(distance, initial, samples, curvature, variance) -> Float[Array, ""]:
    """q̂, but not below σ̂² q̂_0/(σ̂² + k μ² q̂_0).

    One step adds at most μ²/σ² to 1/q̂, so no q̂ is below that after k steps at the present σ̂². An estimate of the
    noise that was by chance too small leaves a q̂ that was, which would stop the descent for as long as it takes to
    forget it.
    """
    gained = samples.astype(distance.dtype) * curvature**2 * jnp.asarray(initial, distance.dtype)
    total = variance + gained
    share = jnp.where(total > 0, variance / jnp.where(total > 0, total, 1), 0)
    return jnp.maximum(distance, share * jnp.asarray(initial, distance.dtype))


def _step(force, smoothness, variance) -> Float[Array, ""]:
    """force/(L·force + σ²), which is 1/L without noise, also where both vanish."""
    total = smoothness * force + variance
    return jnp.where(total > 0, force / jnp.where(total > 0, total, 1), 1 / smoothness)
