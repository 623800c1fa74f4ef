"""Descent on the Moreau envelope: the inviscid member of the family, proximal point with an inner loop."""

from typing import Any

import jax
import optax

from .. import _validate
from .._typing import ScalarOrSchedule
from ..smoothing.hopf_lax import hopf_lax
from ._relaxed import evaluate, outer_sgd, relaxed_descent

__all__ = ["hopf_lax_sgd"]


def hopf_lax_sgd(
    learning_rate: ScalarOrSchedule,
    smoothing_time: ScalarOrSchedule,
    *,
    num_steps: int = 20,
    inner_learning_rate: ScalarOrSchedule | None = None,
    inner_momentum: float = 0.0,
    inner_nesterov: bool = False,
    momentum: float | None = None,
    nesterov: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent on the Moreau envelope u(x, t) = min_y f(y) + |x − y|²/(2t).

        x ← x − h p,      p = ∇u(x, t) = ∇f(x − t p), by ``num_steps`` inner steps p ← p + (ε/t) (∇f(x − t p) − p).

    The limit T → 0 of the viscous relaxation. h = t moves x to the proximal point; an exact step with h ≤ 2t never
    increases u, whatever f is. See :func:`jaxopt_pde.smoothing.hopf_lax` for the inner iteration.

    Args:
        learning_rate: outer step h ≥ 0 in [param²/loss].
        smoothing_time: t > 0 in [param²/loss].
        num_steps: L, gradients per update (static).
        inner_learning_rate: ε > 0 in [param²/loss]. None means ε = t, the plain fixed point p ← ∇f(x − t p), which
            contracts if t·Lip(∇f) < 1; a number is proximal descent on y = x − t p, which contracts if ε (λ + 1/t) <
            2.
        inner_momentum: heavy ball within an update, in [0, 1) (static).
        inner_nesterov: Nesterov's form of the inner momentum.
        momentum: decay of the outer momentum, None for none.
        nesterov: Nesterov's form of the outer momentum.
        weight_decay: λ ≥ 0 in [loss/param²]; adds λ x to ∇̂u, so it decays the anchor and is not smoothed.
        accumulator_dtype: dtype of p and of the outer momentum; None means that of params but at least float32.
        key: integer seed or typed key, from which ``InnerStep.key`` is drawn afresh for every inner step and update
            (choice of minibatches, dropout); the method itself is deterministic.

    Extra args of ``update``:
        grad_fn: ``(params, InnerStep) -> gradient``, called L times; ``chain`` is 0.
        value_fn: ``params -> loss``, used when ``grad_fn`` is missing.

    Returns:
        A ``GradientTransformationExtraArgs`` with state :class:`~jaxopt_pde.optimizers.RelaxedState`. If the estimate
        is not finite the update is zero and the outer optimiser's state stays as it was.

    Raises:
        ValueError, TypeError: at construction for a number out of range, in ``update`` for missing ``params`` or
            ``grad_fn``, and for params that are not real and floating or are masked; the message names it.

    Good values:
        h ≤ t. With t·λ_max below ½ the default ε and L of 5 to 10; else ε the learning rate that suits plain SGD and t
        from L·ε/4 to L·ε/2. Every inner step may see another minibatch; the last ones weigh most, by (1 − ε/t) per
        step, so with ε = t the last minibatch alone decides: give a number when gradients are noisy.
        The published code of Deep Relaxation (its FP) damps by ε/t = ¼, starts at p = ∇f(x), one gradient more than
        here, where p starts at 0, and writes 1/g for t: ``inner_learning_rate=t/4``. Its HJB is ``entropy_sgd`` with
        temperature 1e-8 and the last particle for the mean.
        ``optax.MultiSteps`` around it would run all gradients at every mini-step: accumulate inside ``grad_fn``.

    Example:
        >>> import jax.numpy as jnp, optax, jaxopt_pde
        >>> tx = jaxopt_pde.hopf_lax_sgd(0.5, smoothing_time=0.5)
        >>> params = jnp.array([1.5, -3.0])
        >>> state = tx.init(params)
        >>> updates, state = tx.update(params, state, params, grad_fn=lambda p, step: p)  # f = ½|p|²
        >>> print(optax.apply_updates(params, updates).round(3))  # the proximal point p/(1 + t)
        [ 1. -2.]

    References:
        Chaudhari et al. 2018, Deep Relaxation, arXiv:1704.04932 (HJ). Rockafellar 1976, Monotone operators and the
        proximal point algorithm.
    """
    _validate.check_positive("smoothing_time", smoothing_time)
    _validate.check_count("num_steps", num_steps)
    if inner_learning_rate is not None:
        _validate.check_positive("inner_learning_rate", inner_learning_rate)
    _validate.check_fraction("inner_momentum", inner_momentum)
    _validate.check_float_dtype("accumulator_dtype", accumulator_dtype)

    def estimate(grad_fn, params, key, count):
        return hopf_lax(
            grad_fn,
            params,
            key,
            smoothing_time=evaluate(smoothing_time, count),
            num_steps=num_steps,
            step_size=evaluate(inner_learning_rate, count),
            momentum=inner_momentum,
            nesterov=inner_nesterov,
            accumulator_dtype=accumulator_dtype,
        )

    outer = outer_sgd(learning_rate, momentum, nesterov, weight_decay, accumulator_dtype)
    return relaxed_descent("hopf_lax_sgd", estimate, outer, key)
