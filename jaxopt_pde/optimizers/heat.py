"""Descent on the loss smoothed by a Gaussian: the heat-equation member of the family."""

from typing import Any

import jax
import optax

from .. import _validate
from .._noise import NoiseLaw
from .._typing import ScalarOrSchedule
from ..smoothing.heat import HeatSettings, heat
from ._relaxed import evaluate, outer_sgd, relaxed_descent

__all__ = ["heat_sgd"]


def heat_sgd(
    learning_rate: ScalarOrSchedule,
    smoothing_time: ScalarOrSchedule,
    *,
    temperature: ScalarOrSchedule = 1e-6,
    num_samples: int = 20,
    antithetic: bool = True,
    momentum: float | None = None,
    nesterov: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    noise: NoiseLaw = "gaussian",
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    sample_batch_size: int | None = 1,
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent on f smoothed by a Gaussian of variance t·T per coordinate.

        x ← x − h mean ∇f(x ± √(tT) ξ),      ξ ~ N(0, I),

    u solves the heat equation u_t = (T/2) Δu, the limit of the viscous relaxation for T → ∞ with t·T fixed. One
    update costs ``num_samples`` gradients; see :func:`jaxopt_pde.smoothing.heat`.

    Args:
        learning_rate: outer step h ≥ 0 in [param²/loss].
        smoothing_time: t > 0 in [param²/loss]; only t·T matters, so a schedule of either is scoping.
        temperature: T ≥ 0 in [loss].
        num_samples: n, gradients per update (static); even if ``antithetic``.
        antithetic: pairs ±ξ, exact for quadratics (static).
        momentum: decay of the outer momentum, None for none.
        nesterov: Nesterov's form of the outer momentum.
        weight_decay: λ ≥ 0 in [loss/param²]; adds λ x to ∇̂u.
        noise: ``"gaussian"``, or ``"rademacher"``, cheaper to draw and alike in many dimensions.
        accumulator_dtype: dtype of noise, mean and outer momentum; None means that of params but at least float32.
        sample_batch_size: samples run together; 1 needs the memory of one gradient, None runs all at once.
        key: integer seed or typed key. For independent copies ``vmap`` over the key given *here*.

    Extra args of ``update``:
        grad_fn: ``(params, InnerStep) -> gradient``; ``step`` is the sample's index 0 … n − 1, ``chain`` is 0.
        value_fn: ``params -> loss``, used when ``grad_fn`` is missing.

    Returns:
        A ``GradientTransformationExtraArgs`` with state :class:`~jaxopt_pde.optimizers.RelaxedState`. If the estimate
        is not finite the update is zero and the outer optimiser's state stays as it was.

    Raises:
        ValueError, TypeError: at construction for a number out of range, in ``update`` for missing ``params`` or
            ``grad_fn``, and for params that are not real and floating or are masked; the message names it.

    Good values:
        h as for plain SGD: unlike the viscous and the inviscid relaxation, Gaussian smoothing does not bound ∇²u by
        I/t, so h ≤ t is no safeguard here. √(t·T) is the size of the perturbation: the default T makes it 1e-3 √t.
        Smoothing a network with BatchNorm or ReLU layers, whose loss does not change when weights are rescaled,
        wants larger values than its weights suggest.
        The HEAT of Deep Relaxation averages the gradients at Gaussian perturbations of variance γ, uniformly, so
        t·T = γ, ``antithetic=False`` and ``num_samples`` its L; scoping is a decreasing schedule of
        ``smoothing_time``. ``optax.MultiSteps`` around it would run all gradients at every mini-step: accumulate
        inside ``grad_fn``.

    Example:
        >>> import jax.numpy as jnp, optax, jaxopt_pde
        >>> tx = jaxopt_pde.heat_sgd(0.5, smoothing_time=1.0, temperature=0.01, num_samples=4)
        >>> params = jnp.array([1.0, -2.0])
        >>> state = tx.init(params)
        >>> updates, state = tx.update(params, state, params, grad_fn=lambda p, step: p)  # f = ½|p|²
        >>> print(optax.apply_updates(params, updates).round(2))
        [ 0.5 -1. ]

    References:
        Chaudhari et al. 2018, Deep Relaxation, arXiv:1704.04932 (HEAT).
    """
    _validate.check_positive("smoothing_time", smoothing_time)
    _validate.check_nonnegative("temperature", temperature)
    settings = HeatSettings(num_samples, antithetic, noise, accumulator_dtype, sample_batch_size)
    settings.check()

    def estimate(grad_fn, params, key, count):
        return heat(
            grad_fn,
            params,
            key,
            smoothing_time=evaluate(smoothing_time, count),
            temperature=evaluate(temperature, count),
            **settings._asdict(),
        )

    outer = outer_sgd(learning_rate, momentum, nesterov, weight_decay, accumulator_dtype)
    return relaxed_descent("heat_sgd", estimate, outer, key)
