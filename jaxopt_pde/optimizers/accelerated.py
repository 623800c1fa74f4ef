"""Accelerated SGD in the parametrisation of Kidambi et al.: a short step, a long one, and a running average."""

import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from .. import _validate
from .._typing import Params, ScalarOrSchedule
from ._relaxed import evaluate
from ._step_statistics import scalar_dtype, squared_norm

__all__ = ["AcceleratedState", "accelerated_sgd"]


class AcceleratedState(NamedTuple):
    """State of :func:`accelerated_sgd`.

    Attributes:
        count: updates so far (int32); schedules read it.
        notfinite_count: updates without a step because the gradient was not finite (int32).
        displacement: w̄ − w, the long-step average as seen from the params; like params, in the accumulator dtype.
    """

    count: Int[Array, ""]
    notfinite_count: Int[Array, ""]
    displacement: Params


def accelerated_sgd(
    learning_rate: ScalarOrSchedule,
    *,
    long_step_ratio: ScalarOrSchedule = 1000.0,
    statistical_advantage: ScalarOrSchedule = 10.0,
    small_constant: float = 0.7,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Accelerated stochastic gradient descent (ASGD).

    With short step δ, long-step ratio κ, statistical advantage ξ, constant c and a = 1 − c² ξ/κ,

        w̄ ← a w̄ + (1 − a) (w − (κδ/c) g),
        w ← c/(c + 1 − a) · (w − δ g) + (1 − a)/(c + 1 − a) · w̄,

    g being the gradient at the old w, and w̄ = w at the start. Kept as the displacement v = w̄ − w, which starts at
    0, moves with the params and needs them not: m = a v − (1 − a)(κδ/c) g, w ← w + [(1 − a) m − c δ g]/(c + 1 − a).
    For ξ → 0 or κ → ∞ it is SGD with step δ.

    Args:
        learning_rate: short step δ ≥ 0 in [param²/loss]; the long step is κδ/c.
        long_step_ratio: κ ≥ 1, in theory the condition number R²/λ_min of the Hessian H, with E|a|² a aᵀ ≤ R² H.
        statistical_advantage: ξ in (0, √κ]; √(κ/κ̃) in theory, where κ̃ is the statistical condition number,
            E[|a|²_{H⁻¹} a aᵀ] ≤ κ̃ H. ξ = √κ presumes no noise at all.
        small_constant: c in (0, 1] (static).
        accumulator_dtype: dtype of the displacement; None means that of params.

    Returns:
        A ``GradientTransformationExtraArgs`` with state :class:`~jaxopt_pde.optimizers.AcceleratedState`, one tree
        as for momentum. A gradient that is not finite moves nothing and is counted in ``notfinite_count``.

    Raises:
        ValueError, TypeError: at construction for a number out of range, for ξ > √κ or c² ξ/κ ≥ 1, and for params
            that are not real and floating; the message names it.

    Good values:
        δ the learning rate that suits plain SGD; κ = 1000, ξ = 10 in the published code. Needs about √(κ κ̃) steps
        an e-fold where SGD and heavy ball need κ, on least squares whose few-sample noise vanishes with the
        residual. With additive noise of the gradient its error at rest is larger than SGD's:
        decay δ, or average, at the end. Weight decay: ``optax.add_decayed_weights`` before it in a chain.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxopt_pde
        >>> curvatures = jnp.array([1.0, 0.01])
        >>> def reached(tx):
        ...     def step(carry, _):
        ...         params, state = carry
        ...         updates, state = tx.update(curvatures * params, state, params)
        ...         return (optax.apply_updates(params, updates), state), None
        ...     (params, _), _ = jax.lax.scan(step, (jnp.ones(2), tx.init(jnp.ones(2))), length=200)
        ...     return jnp.abs(params).max()
        >>> tx = jaxopt_pde.accelerated_sgd(1.0, long_step_ratio=100.0, statistical_advantage=10.0)
        >>> print(reached(optax.sgd(1.0)).round(2), reached(tx) < 1e-3)
        0.13 True

    References:
        Kidambi, Netrapalli, Jain and Kakade 2018, arXiv:1803.05591, algorithm 3; Jain et al. 2018, arXiv:1704.08227.
    """
    _check(learning_rate, long_step_ratio, statistical_advantage, small_constant)
    _validate.check_float_dtype("accumulator_dtype", accumulator_dtype)

    def init(params: Params) -> AcceleratedState:
        _validate.check_float_tree("params", params, allow_masked=True)
        count = [jnp.zeros([], jnp.int32) for _ in range(2)]
        return AcceleratedState(*count, optax.tree.zeros_like(params, dtype=accumulator_dtype))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        dtype = scalar_dtype((updates, state.displacement))
        number = lambda scalar: jnp.asarray(evaluate(scalar, state.count)).astype(dtype)
        step, ratio, c = number(learning_rate), number(long_step_ratio), number(small_constant)
        forgotten = c * c * number(statistical_advantage) / ratio  # 1 − a
        finite = jnp.isfinite(squared_norm(updates, dtype))

        def advance(displacement, gradient):
            wide = jnp.promote_types(displacement.dtype, jnp.promote_types(gradient.dtype, jnp.float32))
            v, g = displacement.astype(wide), gradient.astype(wide)
            scalar = lambda x: x.astype(wide)
            pulled = scalar(1 - forgotten) * v - scalar(forgotten * ratio * step / c) * g
            move = scalar(forgotten / (c + forgotten)) * pulled - scalar(c * step / (c + forgotten)) * g
            moved = jnp.where(finite, move, 0).astype(gradient.dtype)
            return moved, jnp.where(finite, pulled - move, v).astype(displacement.dtype)

        both = jax.tree.map(advance, state.displacement, updates)
        take = lambda i: jax.tree.map(lambda _, pair: pair[i], updates, both)
        return take(0), AcceleratedState(
            optax.safe_increment(state.count),
            state.notfinite_count + (~finite).astype(jnp.int32),
            take(1),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _check(learning_rate, long_step_ratio, statistical_advantage, small_constant) -> None:
    _validate.check_nonnegative("learning_rate", learning_rate)
    _validate.check_positive("long_step_ratio", long_step_ratio)
    _validate.check_positive("statistical_advantage", statistical_advantage)
    _validate.check_positive("small_constant", small_constant)
    concrete = lambda *values: all(isinstance(value, numbers.Real) for value in values)
    if concrete(small_constant) and small_constant > 1:
        msg = f"small_constant must be in (0, 1], got {small_constant!r}."
        raise ValueError(msg)
    if concrete(long_step_ratio) and long_step_ratio < 1:
        msg = f"long_step_ratio must be at least 1, got {long_step_ratio!r}."
        raise ValueError(msg)
    if not concrete(long_step_ratio, statistical_advantage):
        return
    if statistical_advantage > math.sqrt(long_step_ratio) * (1 + 1e-6):
        msg = (
            f"statistical_advantage must be at most the square root of long_step_ratio={long_step_ratio!r}, "
            f"{math.sqrt(long_step_ratio):.4g}, got {statistical_advantage!r}."
        )
        raise ValueError(msg)
    if concrete(small_constant) and small_constant**2 * statistical_advantage >= long_step_ratio:
        msg = (
            "small_constant²·statistical_advantage/long_step_ratio must be below 1, got "
            f"small_constant={small_constant!r}, statistical_advantage={statistical_advantage!r}, "
            f"long_step_ratio={long_step_ratio!r}."
        )
        raise ValueError(msg)
