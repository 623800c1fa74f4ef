"""Controlled SGD: stochastic gradient descent with the optimal control of its own diffusion added."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from .. import _noise, _validate
from .._arithmetic import cast_up
from .._typing import Params, ScalarOrSchedule
from ._relaxed import all_finite, evaluate
from ._step_statistics import scalar_dtype

__all__ = ["ControlledState", "controlled_sgd"]

ControlFn = Callable[[Params, Float[Array, ""], Key[Array, ""]], Params]
"""``(params, time, key) -> α``, a tree like ``params``."""

_ROUNDING = 8
"""Units in the last place by which the clock may miss the horizon: rounding of h, of the horizon and of their sum."""


class ControlledState(NamedTuple):
    """State of :func:`controlled_sgd`: scalars, whatever the params are.

    Attributes:
        count: updates so far (int32); schedules read it.
        time: the sum of the learning rates so far, s in [param²/loss]; float32 or wider.
        time_error: what rounding has added to ``time`` too much, given back at the next update (a compensated sum),
            so that a million steps end at the horizon to the last digits.
        key: the constant key; an update draws its noise from ``fold_in(fold_in(key, count), 0)`` and gives the control
            ``fold_in(fold_in(key, count), 1)``.
        notfinite_count: updates without a step because gradient, control or step was not finite (int32).
        effective_sample_size: of the last control that was sampled: its number of rollouts if all weigh the same, 1
            if one has all the weight. 0 before the first, and always where the control has no ``estimate``.
        collapsed_count: controls so far whose weights had collapsed, as their ``estimate`` says (int32); 0 where it has
            none.
    """

    count: Int[Array, ""]
    time: Float[Array, ""]
    time_error: Float[Array, ""]
    key: Key[Array, ""]
    notfinite_count: Int[Array, ""]
    effective_sample_size: Float[Array, ""]
    collapsed_count: Int[Array, ""]


def controlled_sgd(
    learning_rate: ScalarOrSchedule,
    control: ControlFn,
    *,
    horizon: float | jax.Array,
    temperature: ScalarOrSchedule = 0.0,
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic gradient descent with a control (CSGD).

    One update is one Euler step of dx = −∇f ds − α ds + √T dW,

        x ← x − h (g + α(x, s)) + √(T h) ξ,      s ← s + h,      ξ ~ N(0, I),

    and from the horizon S on plain SGD, α = 0. With the optimal control α = ∇u of the cost E[V(x(S)) + ½ ∫|α|² ds],
    where −u_s = −∇f·∇u − ½|∇u|² + (T/2) Δu and u(·, S) = V, Itô's formula along both processes gives

        E V(x_sgd(S)) − E V(x_csgd(S)) = ½ E∫|α(x_csgd)|² ds + ½ E∫|α(x_sgd)|² ds,
        u(x₀, 0) = E[V(x_csgd(S)) + ½ ∫|α(x_csgd)|² ds].

    So the expected value at the horizon improves by the energy spent and as much again as the same control would
    have spent along plain SGD.

    **Which temperature.** T here is noise that this function *adds*. In training the minibatches bring their own: a
    gradient of covariance Σ moves x with covariance h² Σ an update, where √T dW has T h I, so it plays the part of
    T ≈ h tr(Σ)/d in d dimensions. Leave ``temperature`` at 0 then, and hand that T (with a σ² = tr(Σ)/d, h σ²) to
    the constructor of the control. With exact gradients both take the same T.

    Args:
        learning_rate: Euler step h ≥ 0 in [param²/loss]. A schedule of updates changes the steps, not the clock: s is
            the sum of the steps taken.
        control: ``(params, time, key) -> α``, a tree like ``params`` in [loss/param], as the functions of
            ``jaxopt_pde.control`` give it: called at most once an update, with ``params`` in their dtype, the time s
            and a fresh key; not at all past the horizon (under a ``vmap`` that batches the clock it runs, and its
            result is thrown away, NaN or not). If it has a method ``estimate`` of the same arguments, that is called
            instead, and what it says of the sampling is kept in the state.
        horizon: S > 0 in [param²/loss]; the S the control was made for. An update that starts at s < S takes the whole
            step with α(x, s). Choose h so that S/h is whole, or the last one ends past it.
        temperature: T ≥ 0 in [loss]. The Python number 0 leaves the noise out of the program.
        key: integer seed or typed key. For independent copies ``vmap`` over the key given *here*; copies with the same
            key and different controls have the same noise ξ, which is what a comparison wants.

    Returns:
        A ``GradientTransformationExtraArgs`` with state :class:`~jaxopt_pde.optimizers.ControlledState`. If gradient,
        control or step is not finite, the update is zero and counted in ``notfinite_count``; the clock goes on, as
        the schedules do, so that a control that fails for good delays training by the horizon at most. It emits the
        whole step and stands last in a chain: a clip before it clips g, not α; a momentum or a preconditioner after
        it gives a different diffusion, of which the formulas above say nothing.

    Raises:
        ValueError, TypeError: at construction for a number out of range or a control that cannot be called; in
            ``update`` for missing ``params``, or gradients or a control unlike them; and for params that are not real
            and floating; the message names it.

    Good values:
        h as for plain SGD, with h‖∇²u‖ ≪ 1 as well; the error of the Euler step is O(h) in both formulas. S of a few
        relaxation times of the directions that matter: with V = f and S → 0 it is SGD with the step h and a last
        push along ∇f.

    Example:
        f = 0, V = ½|x|², S = 1: the optimal control is x/(1 + S − s), and takes x half way to 0.

        >>> import jax, jax.numpy as jnp, optax, jaxopt_pde
        >>> control = lambda x, time, key: x / (2.0 - time)
        >>> tx = jaxopt_pde.controlled_sgd(0.01, control, horizon=1.0)
        >>> params = jnp.array([1.0, -2.0])
        >>> state, update = tx.init(params), jax.jit(tx.update)
        >>> for _ in range(120):
        ...     updates, state = update(jnp.zeros(2), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(params.round(3), state.time.round(3))
        [ 0.5 -1. ] 1.2

    References:
        Chaudhari, Oberman, Osher, Soatto and Carlier 2018, arXiv:1704.04932 (the inequality); the
        identity is our own derivation.
    """
    _validate.check_nonnegative("learning_rate", learning_rate)
    if not callable(control):
        msg = f"control must be a function (params, time, key) -> α, got {control!r}."
        raise TypeError(msg)
    _check_horizon(horizon)
    _validate.check_nonnegative("temperature", temperature)
    base_key = _validate.as_key(key)
    heated = not _validate.is_static_zero(temperature)

    def init(params: Params) -> ControlledState:
        _validate.check_float_tree("params", params, allow_masked=True)
        dtype = scalar_dtype(params)
        # Buffers of their own: a donated state must not hold the same one twice.
        count = [jnp.zeros([], jnp.int32) for _ in range(3)]
        time, error, size = (jnp.zeros([], dtype) for _ in range(3))
        return ControlledState(count[0], time, error, jnp.copy(base_key), count[1], size, count[2])

    def update(updates, state, params=None, **extra_args):
        del extra_args
        if params is None:
            msg = "controlled_sgd needs params: call tx.update(grads, state, params)."
            raise ValueError(msg)
        _validate.check_float_tree("params", params, allow_masked=True)
        _validate.check_same_tree("updates", updates, params)
        dtype = state.time.dtype
        step = jnp.asarray(evaluate(learning_rate, state.count)).astype(dtype)
        end = jnp.asarray(horizon).astype(dtype) * (1 - _ROUNDING * jnp.finfo(dtype).eps)
        active = state.time < end
        noise_key, control_key = (
            jax.random.fold_in(jax.random.fold_in(state.key, state.count), i) for i in (0, 1)
        )
        alpha, size, collapsed = jax.lax.cond(
            active,
            lambda like: _ask(control, params, state.time, control_key, like, dtype),
            lambda like: (optax.tree.zeros_like(like), jnp.zeros([], dtype), jnp.zeros([], bool)),
            cast_up(params),  # an operand: zeros like a closed-over array lose its sharding
        )
        move = jax.tree.map(lambda g, a: -step.astype(a.dtype) * (g.astype(a.dtype) + a), updates, alpha)
        if heated:
            spread = jnp.sqrt(jnp.asarray(evaluate(temperature, state.count)).astype(dtype) * step)
            noise = _noise.draw_noise(noise_key, alpha, "gaussian")
            move = jax.tree.map(lambda m, xi: m + spread.astype(m.dtype) * xi, move, noise)
        finite = all_finite(move)
        emitted = jax.tree.map(lambda m, g: jnp.where(finite, m, 0).astype(g.dtype), move, updates)
        time, time_error = _tick(state.time, state.time_error, step)
        return emitted, ControlledState(
            optax.safe_increment(state.count),
            time,
            time_error,
            state.key,
            state.notfinite_count + (~finite).astype(jnp.int32),
            jnp.where(active, size, state.effective_sample_size),
            state.collapsed_count + collapsed.astype(jnp.int32),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _ask(
    control: ControlFn, params: Params, time: Float[Array, ""], key: Key[Array, ""], like: Params, dtype
) -> tuple[Params, Float[Array, ""], Bool[Array, ""]]:
    """The control in the dtypes of ``like``, its effective sample size, and whether its weights collapsed."""
    estimate = getattr(control, "estimate", None)
    size, collapsed = jnp.zeros([], dtype), jnp.zeros([], bool)
    if estimate is None:
        alpha = control(params, time, key)
    else:
        sampled = estimate(params, time, key)
        alpha = sampled.control
        size = jnp.asarray(sampled.effective_sample_size).astype(dtype)
        collapsed = jnp.asarray(sampled.collapsed).astype(bool)
    _validate.check_same_tree("control", alpha, params)
    return jax.tree.map(lambda a, x: jnp.asarray(a).astype(x.dtype), alpha, like), size, collapsed


def _tick(
    time: Float[Array, ""], error: Float[Array, ""], step: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The clock after a step, by Kahan's compensated sum: n roundings would add up to n steps lost or won."""
    owed = jnp.where(jnp.isfinite(step), step, 0) - error
    later = time + owed
    return later, (later - time) - owed


def _check_horizon(horizon) -> None:
    if callable(horizon):
        msg = f"horizon must be a number, not a schedule, got {horizon!r}."
        raise TypeError(msg)
    _validate.check_positive("horizon", horizon)
