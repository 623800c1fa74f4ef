"""The batch size that makes a given learning rate space-adaptive: the dual of the space-adaptive rate."""

import numbers

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .. import _validate

__all__ = ["required_batch_size"]


def required_batch_size(
    excess_loss: ArrayLike,
    grad_sq_norm: ArrayLike,
    example_variance: ArrayLike,
    learning_rate: ArrayLike,
    *,
    num_examples: int | None = None,
) -> Float[Array, "..."]:
    """The least b for which the learning rate h is at most 2F/E|∇f_B|², so that a step contracts by 1 − μh.

    Derivation: with the largest noise that is allowed, V = 2F/h − |∇f|²,

        h ≤ 2F/(|∇f|² + s₁/b)                     ⟺ b ≥ s₁/V                        with replacement
        h ≤ 2F/(|∇f|² + s₁(n − b)/(b(n − 1)))     ⟺ b ≥ n s₁/(s₁ + (n − 1) V)       without, from n examples

    and b is the next integer. It exists for every h < 1/L, because |∇f|² ≤ 2LF; at h = 1/L V can be 0, as on
    f = ½L|x|², and then only all of the data will do.

    Args:
        excess_loss: F = f(x) − f* ≥ 0, in [loss], any shape.
        grad_sq_norm: |∇f(x)|² of the full gradient, in [loss²/param²].
        example_variance: s₁ ≥ 0 of one example, in [loss²/param²].
        learning_rate: h > 0, in [param²/loss], any shape.
        num_examples: n ≥ 1, for minibatches drawn without replacement; None: with replacement.

    Returns:
        b ≥ 1, a whole number in floating point, infinite where no batch size will do; in the broadcast shape.

    Raises:
        ValueError: a learning rate that is not positive, or ``num_examples`` below 1.

    Example:
        >>> print(required_batch_size(0.5, 1.0, 8.0, 0.5), required_batch_size(0.5, 1.0, 8.0, 0.5, num_examples=20))
        8.0 6.0
    """
    if isinstance(learning_rate, numbers.Real):
        _validate.check_positive("learning_rate", learning_rate)
    allowed = 2 * jnp.asarray(excess_loss) / learning_rate - grad_sq_norm
    variance = jnp.asarray(example_variance)
    if num_examples is None:
        needed = variance / jnp.where(allowed > 0, allowed, 1.0)
        feasible = (allowed > 0) | ((allowed == 0) & (variance == 0))
    else:
        _validate.check_count("num_examples", num_examples)
        total = variance + (num_examples - 1) * allowed
        needed = num_examples * variance / jnp.where(total > 0, total, 1.0)
        feasible = allowed >= 0
    return jnp.where(feasible, jnp.maximum(jnp.ceil(needed), 1.0), jnp.inf)
