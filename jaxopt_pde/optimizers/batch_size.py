"""The batch size that the space-adaptive rule asks for, and a controller for loops that may change shapes."""

import math
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _validate
from .._typing import Params, ScalarOrSchedule
from ._relaxed import evaluate
from ._step_statistics import microbatch_statistics, scalar_dtype

__all__ = [
    "BatchSizeController",
    "BatchSizeState",
    "GradientNoise",
    "batch_size_controller",
    "gradient_noise",
]


class GradientNoise(NamedTuple):
    """Signal and noise of a mean of n microbatch gradients.

    Attributes:
        signal: unbiased |∇f|² [loss²/param²]; may be negative.
        noise: unbiased E|ḡ − ∇f|² of the mean of the n [loss²/param²]; n times that for one microbatch.
        noise_scale: gradient noise scale, variance of one microbatch over |∇f|²: the number of microbatches whose
            mean has as much noise as signal. Infinite where the estimated signal is not positive.
    """

    signal: Float[Array, ""]
    noise: Float[Array, ""]
    noise_scale: Float[Array, ""]


def gradient_noise(microbatch_gradients: Params) -> GradientNoise:
    """Unbiased |∇f|² and noise from the gradients of n independent parts of a batch.

        noise = Σ|g_i − ḡ|²/(n (n − 1)),      signal = |ḡ|² − noise;      n = 2: |g₁ − g₂|²/4 and g₁·g₂.

    Args:
        microbatch_gradients: leaves [n, ...], n ≥ 2, as from ``jax.vmap(jax.grad(loss), (None, 0))(params, parts)``.

    Returns:
        :class:`~jaxopt_pde.optimizers.GradientNoise`, in float32 or wider.

    Raises:
        ValueError: unless all leaves share a leading axis of at least 2.

    Example:
        >>> import jax.numpy as jnp, jaxopt_pde
        >>> noise = jaxopt_pde.gradient_noise(jnp.array([[2.0, -1.0], [0.0, -3.0]]))
        >>> print(noise.signal, noise.noise, noise.noise_scale)
        3.0 2.0 1.3333334

    References:
        McCandlish et al. 2018, arXiv:1812.06162 (gradient noise scale).
    """
    gradients = jax.tree.map(jnp.asarray, microbatch_gradients)
    signal, noise = microbatch_statistics(gradients, scalar_dtype(gradients))
    count = jax.tree.leaves(gradients)[0].shape[0]
    return GradientNoise(signal, noise, noise_scale(signal, count * noise))


def noise_scale(signal: Float[Array, ""], variance: Float[Array, ""]) -> Float[Array, ""]:
    """variance/signal; infinite where the signal is not positive."""
    positive = signal > 0
    return jnp.where(positive, variance / jnp.where(positive, signal, 1), jnp.inf)


def _required(variance: float, grad_sq_norm: float, gap: float, rate: float, examples: int | None) -> float:
    """Least b with h ≤ 2 (f − f*)/E|g_b|², as a real number; ``inf`` where there is none."""
    allowed = 2 * gap / rate - grad_sq_norm
    if allowed <= 0:
        return math.inf
    if examples is None:
        return variance / allowed
    # Without replacement E|g_b − ∇f|² is (σ²/b)(n − b)/(n − 1).
    return examples * variance / (variance + (examples - 1) * allowed) if variance else 0.0


class BatchSizeState(NamedTuple):
    """State of a :class:`BatchSizeController`, plain Python numbers on the host.

    Attributes:
        batch_size: the size to use next, a power of two times the least one, or the greatest one.
        count: observations so far.
        gap: running mean of f − f_min [loss].
        grad_sq_norm: running mean of |∇f|² [loss²/param²].
        noise_variance: running mean of the variance of one example's gradient [loss²/param²].
        notfinite_count: observations refused because they were not finite.
    """

    batch_size: int
    count: int
    gap: float
    grad_sq_norm: float
    noise_variance: float
    notfinite_count: int


class BatchSizeController(NamedTuple):
    """What :func:`batch_size_controller` returns, in the manner of an optax transformation.

    Attributes:
        init: ``init() -> BatchSizeState``.
        update: ``update(state, *, value, grad_sq_norm, noise_variance, f_min=None) -> BatchSizeState``.
    """

    init: Callable[[], BatchSizeState]
    update: Callable[..., BatchSizeState]


def batch_size_controller(
    learning_rate: ScalarOrSchedule,
    *,
    f_min: ScalarOrSchedule = 0.0,
    min_batch_size: int = 1,
    max_batch_size: int,
    num_examples: int | None = None,
    decay: float = 0.9,
) -> BatchSizeController:
    """Proposes batch sizes for a loop on the host that may change shapes, few of them.

        b ≥ σ²/V,      V = 2 (f − f*)/h − |∇f|²,

    or b ≥ n σ²/(σ² + (n − 1) V) for batches drawn without replacement from n examples, on running means, rounded up
    to a power of two times ``min_batch_size``: a program compiled for every size it proposes is compiled at most
    1 + ⌈log₂(max/min)⌉ times. Inside a compiled loop use :func:`adaptive_batch`, which compiles once.

    Args:
        learning_rate: h ≥ 0 the optimiser's step in [param²/loss]; a schedule of observations.
        f_min: f*, the least value the caller means to reach [loss]; a schedule of observations.
        min_batch_size: least size, and the first one.
        max_batch_size: greatest size.
        num_examples: n, for batches drawn without replacement; None means with replacement.
        decay: of the running means, in [0, 1); 0 uses the last observation alone.

    Returns:
        :class:`~jaxopt_pde.optimizers.BatchSizeController`. Its ``update`` takes ``value`` (the loss),
        ``grad_sq_norm`` (|∇f|²) and ``noise_variance`` (of *one example*: b times the noise of a batch of b; both
        from :func:`gradient_noise`), each a number or a scalar array, for which it waits, and optionally ``f_min``.
        What is not finite is refused and counted. Where no size is large enough (the loss at f_min, or h ≥ 1/L) it
        proposes the greatest.

    Raises:
        ValueError, TypeError: for a size that is not a positive integer, sizes that exceed ``num_examples`` or each
            other, and numbers out of range; the message names it.

    Good values:
        h between 1/(4L) and 1/(2L). The growth of the batch takes the place of the decay of the step.

    Example:
        >>> import jaxopt_pde
        >>> controller = jaxopt_pde.batch_size_controller(0.5, min_batch_size=8, max_batch_size=256)
        >>> state = controller.init()
        >>> for gap in (10.0, 1.0, 0.1, 0.01):
        ...     state = controller.update(state, value=gap, grad_sq_norm=2 * gap, noise_variance=20.0)
        ...     print(state.batch_size, end=" ")
        8 8 8 8

    References:
        As for :func:`adaptive_batch`.
    """
    _validate.check_nonnegative("learning_rate", learning_rate)
    _validate.check_finite("f_min", f_min)
    _validate.check_fraction("decay", decay)
    _validate.check_count("min_batch_size", min_batch_size)
    _validate.check_count("max_batch_size", max_batch_size)
    if max_batch_size < min_batch_size:
        msg = f"max_batch_size must be at least min_batch_size={min_batch_size}, got {max_batch_size}."
        raise ValueError(msg)
    if num_examples is not None:
        _validate.check_count("num_examples", num_examples)
        if max_batch_size > num_examples:
            msg = f"max_batch_size must not exceed num_examples={num_examples}, got {max_batch_size}."
            raise ValueError(msg)

    def init() -> BatchSizeState:
        return BatchSizeState(operator.index(min_batch_size), 0, 0.0, 0.0, 0.0, 0)

    def update(state: BatchSizeState, *, value, grad_sq_norm, noise_variance, f_min=f_min) -> BatchSizeState:
        rate = float(evaluate(learning_rate, state.count))
        seen = float(value) - float(evaluate(f_min, state.count)), float(grad_sq_norm), float(noise_variance)
        if not all(map(math.isfinite, seen)):
            return state._replace(notfinite_count=state.notfinite_count + 1)
        weight = max(1 / (state.count + 1), 1 - decay)
        means = (state.gap, state.grad_sq_norm, state.noise_variance)
        gap, signal, variance = (mean + weight * (new - mean) for mean, new in zip(means, seen, strict=True))
        needed = 1.0
        if rate > 0:
            needed = _required(max(variance, 0.0), max(signal, 0.0), gap, rate, num_examples)
        size = min_batch_size
        while size < min(needed, max_batch_size):
            size = min(2 * size, max_batch_size)
        return BatchSizeState(size, state.count + 1, gap, signal, variance, state.notfinite_count)

    return BatchSizeController(init, update)
