"""A value function learned from its backward stochastic differential equation, for middle dimensions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from .. import _validate
from .._typing import GradFn, InnerStep

__all__ = ["backward_sde_loss", "fit_value_function", "learned_control"]

Variables = Any
TrainableValue = Callable[[Variables, Float[Array, " d"], Float[Array, ""]], Float[Array, ""]]
"""``(variables, x, time) -> u``, a scalar; ``model.apply`` of :class:`jaxopt_pde.models.ValueNetwork` is one."""


def backward_sde_loss(
    value_fn: TrainableValue,
    terminal_fn: Callable[[Float[Array, " d"]], Float[Array, ""]],
    *,
    start: Float[Array, " d"] | Callable[[Key[Array, ""]], Float[Array, " d"]],
    horizon: float,
    temperature: float,
    num_steps: int,
    num_paths: int,
    loss_fn: Callable[[Float[Array, " d"]], Float[Array, ""]] | None = None,
    grad_fn: GradFn | None = None,
    control_cost: float = 1.0,
) -> Callable[[Variables, Key[Array, ""]], Float[Array, ""]]:
    r"""The residual of the backward stochastic differential equation of the value function, as a loss.

    Along any path of dX = −∇f ds − a ds + √T dW the value function, −u_s = −∇f·∇u − |∇u|²/(2c) + (T/2) Δu with
    u(·, S) = V, satisfies by Itô's formula

        du = (|∇u|²/(2c) − a·∇u) ds + √T ∇u·dW,

    so for every s that u(X_s, s) is what is left at the end less what happens on the way,

        R_s = V(X_S) − u(X_s, s) − ∫_s^S (|∇u|²/(2c) − a·∇u) dr − √T ∫_s^S ∇u·dW = 0   on every path,

    not in the mean alone. The loss is the mean of R² over Euler paths and all their ``num_steps`` starting times s. The
    paths follow the control a = ∇u/c of the network itself, held fixed under differentiation: they visit what the
    controlled process will, and at that a the gradient of the ds-integral vanishes, which leaves the regression
    of V(X_S) + (c/2)∫|a|² dr on u(X_s, s) + √T ∫∇u·dW.

    Why whole tails: put r for what the HJB equation leaves of a trial u, u_s − ∇f·∇u − |∇u|²/(2c) + (T/2) Δu. By Itô's
    formula R_s = −∫_s^S r dr' for *every* smooth u with u(·, S) = V, up to the Euler sums, whose error is
    Σ (T/2)(ξᵀD²u ξ − Δu) h, of variance ½ T² |D²u|² h² a step. Over a tail that adds up to O(h). In the residual of one
    step, squared, it stands beside r² h² at the same order for all h: single steps minimise E[r² + ½ T² |D²u|²], whose
    minimiser is not u. The residual from s = 0 alone (the deep BSDE method) has no such bias, but teaches u at one
    time; the tails teach all times for one cumulative sum.

    Args:
        value_fn: ``(variables, x [d], time) -> u``, a scalar, twice differentiable in x.
        terminal_fn: V, x [d] -> scalar [loss].
        start: x₀ [d] of every path, or a function of a key that draws one. Away from the paths nothing is learned.
        horizon: S > 0 in [param²/loss].
        temperature: T > 0 in [loss]. At T = 0 the residual holds for functions with any gradient across the path, so
            it is refused.
        num_steps: Euler steps of length h = S/num_steps (static). The loss of the true u is O(h), the bias of what
            is learned O(h).
        num_paths: paths an evaluation (static).
        loss_fn: f, x [d] -> scalar [loss]; its gradient is the drift.
        grad_fn: ``(x [d], InnerStep) -> ∇f``, in its place; ``step`` counts Euler steps, ``chain`` the paths.
            Its noise e adds −h e·∇u to the step's residual, of order h in the loss for a bounded covariance.
        control_cost: c > 0 in the cost E[V(X_S) + (c/2) ∫|a|² ds].

    Returns:
        ``loss(variables, key)``, a scalar in [loss²].

    Raises:
        ValueError, TypeError: a number out of range, neither or both of ``loss_fn`` and ``grad_fn``, a ``start``
            without exactly one axis, functions that do not give one number; the message names it.

    Example:
        The true value function of f = 0, V = ½|x|² in two dimensions against its half:

        >>> import jax, jax.numpy as jnp
        >>> from jaxopt_pde import control
        >>> def value_fn(scale, x, time):
        ...     remaining = 2.0 - time
        ...     return scale * (jnp.sum(x**2) / (2 * remaining) + 0.1 * jnp.log(remaining))
        >>> loss = jax.jit(control.backward_sde_loss(
        ...     value_fn, lambda x: jnp.sum(x**2) / 2, loss_fn=lambda x: 0.0 * jnp.sum(x), start=jnp.ones(2),
        ...     horizon=1.0, temperature=0.1, num_steps=20, num_paths=100))
        >>> print(loss(1.0, jax.random.key(0)) < 1e-2 * loss(0.5, jax.random.key(0)))
        True

    References:
        E, Han and Jentzen 2017, arXiv:1706.04702 (deep BSDE); Germain, Pham and Warin 2022, arXiv:2006.01496 (multistep
        residuals); Nüsken and Richter 2021, arXiv:2005.05409 (paths under the learned control).
    """
    _validate.check_positive("horizon", horizon)
    _check_temperature(temperature)
    _validate.check_count("num_steps", num_steps)
    _validate.check_count("num_paths", num_paths)
    _validate.check_positive("control_cost", control_cost)
    if (loss_fn is None) == (grad_fn is None):
        msg = "backward_sde_loss needs loss_fn or grad_fn, and not both."
        raise ValueError(msg)
    drift = _gradient(loss_fn) if grad_fn is None else grad_fn
    value_at, terminal_at = _scalar("value_fn", value_fn), _scalar("terminal_fn", terminal_fn)
    draw_start = start if callable(start) else lambda key: jnp.asarray(start)
    step_size = horizon / num_steps
    spread = jnp.sqrt(temperature * step_size)

    def residuals(variables: Variables, path, key: Key[Array, ""]) -> Float[Array, " num_steps"]:
        start_key, step_key = jax.random.split(key)
        x = draw_start(start_key)
        _check_point(x)

        def step(x, index):
            noise_key, grad_key = jax.random.split(jax.random.fold_in(step_key, index))
            time = (index * step_size).astype(x.dtype)
            value, slope = jax.value_and_grad(value_at, argnums=1)(variables, x, time)
            control = jax.lax.stop_gradient(slope) / control_cost
            increment = (spread * jax.random.normal(noise_key, x.shape, x.dtype)).astype(x.dtype)
            gradient = drift(x, InnerStep(index, path, grad_key))
            _validate.check_same_tree("grad_fn", gradient, x)
            later = jax.lax.stop_gradient(x - step_size * (gradient + control) + increment)
            rate = jnp.dot(slope, slope) / (2 * control_cost) - jnp.dot(control, slope)
            return later.astype(x.dtype), (value, step_size * rate + jnp.dot(slope, increment))

        indices = jnp.arange(num_steps, dtype=jnp.int32)
        end, (values, changes) = jax.lax.scan(step, x, indices)
        still_to_come = jnp.cumsum(changes[::-1])[::-1]
        return terminal_at(end) - values - still_to_come

    def loss(variables: Variables, key: Key[Array, ""]) -> Float[Array, ""]:
        paths = jnp.arange(num_paths, dtype=jnp.int32)
        keys = jax.random.split(_validate.as_key(key), num_paths)
        return jnp.mean(jnp.square(jax.vmap(residuals, (None, 0, 0))(variables, paths, keys)))

    return loss


def fit_value_function(
    loss: Callable[[Variables, Key[Array, ""]], Float[Array, ""]],
    variables: Variables,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    key: Any,
) -> tuple[Variables, Float[Array, " num_steps"]]:
    """Trains ``variables`` on a stochastic loss, in one compiled scan (compiled anew at each call).

    The k-th update is one step of ``optimizer`` on v ↦ ``loss(v, fold_in(key, k))``.

    Args:
        loss: ``(variables, key) -> scalar``, as :func:`backward_sde_loss` gives it; a fresh key at every update.
        variables: where to start, a tree of real floating arrays.
        optimizer: any optax optimiser. A learning rate that ends near 0 (a cosine schedule) is worth a factor: the
            gradient noise vanishes only with the residual.
        num_steps: updates (static).
        key: typed key or integer seed.

    Returns:
        The variables after the last update, and the loss before each [num_steps].

    Raises:
        ValueError, TypeError: for ``num_steps`` below 1, a key that is none, variables that are not floating, a loss
            that is no scalar; the message names it.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jaxopt_pde import control
        >>> loss = lambda variables, key: (variables - 3.0) ** 2
        >>> fitted, losses = control.fit_value_function(loss, jnp.array(0.0), optax.sgd(0.5), num_steps=2, key=0)
        >>> print(fitted, losses)
        3.0 [9. 0.]

    References:
        E, Han and Jentzen 2017, arXiv:1706.04702.
    """
    _validate.check_count("num_steps", num_steps)
    _validate.check_float_tree("variables", variables)
    key = _validate.as_key(key)

    def step(carry, index):
        variables, state = carry
        value, gradient = jax.value_and_grad(_scalar("loss", loss))(variables, jax.random.fold_in(key, index))
        updates, state = optimizer.update(gradient, state, variables)
        return (optax.apply_updates(variables, updates), state), value

    @jax.jit
    def run(variables):
        indices = jnp.arange(num_steps, dtype=jnp.int32)
        (variables, _), losses = jax.lax.scan(step, (variables, optimizer.init(variables)), indices)
        return variables, losses

    return run(variables)


def learned_control(
    value_fn: TrainableValue,
    variables: Variables,
    *,
    horizon: float | None = None,
    control_cost: float = 1.0,
) -> Callable[..., Float[Array, " d"]]:
    """The feedback α(x, s) = ∇u(x, s)/c of a learned value function.

    Args:
        value_fn: ``(variables, x [d], time) -> u``, a scalar.
        variables: the trained ones.
        horizon: S > 0; past it the control is 0. None: no such cut, as for :func:`jaxopt_pde.controlled_sgd`,
            which makes its own.
        control_cost: c > 0.

    Returns:
        ``control(x [d], time, key=None) -> α [d]`` in [loss/param]; the key is not used. Compose it with
        ``jax.flatten_util.ravel_pytree`` for params that are a tree.

    Raises:
        ValueError, TypeError: a number out of range, or a value function that is not scalar; the message names it.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import control
        >>> alpha = control.learned_control(lambda v, x, time: v * jnp.sum(x**2) / 2, 3.0, horizon=1.0)
        >>> print(alpha(jnp.ones(2), 1.0), alpha(jnp.ones(2), 1.1))
        [3. 3.] [0. 0.]

    References:
        Fleming and Soner, Controlled Markov Processes and Viscosity Solutions, 2006.
    """
    if horizon is not None:
        _validate.check_positive("horizon", horizon)
    _validate.check_positive("control_cost", control_cost)

    slope_at = jax.grad(_scalar("value_fn", value_fn), argnums=1)

    def control(x: Float[Array, " d"], time: Float[Array, ""], key: Any = None) -> Float[Array, " d"]:
        del key
        slope = slope_at(variables, x, time)
        alpha = slope / control_cost
        return alpha if horizon is None else jnp.where(time > horizon, jnp.zeros_like(alpha), alpha)

    return control


def _gradient(loss_fn) -> GradFn:
    gradient = jax.grad(_scalar("loss_fn", loss_fn))
    return lambda x, step: gradient(x)


def _scalar(name: str, function: Callable[..., Any]) -> Callable[..., Float[Array, ""]]:
    """``function``, held to giving one number."""
    if not callable(function):
        msg = f"{name} must be a function, got {function!r}."
        raise TypeError(msg)

    def checked(*arguments):
        value = function(*arguments)
        _validate.check_scalar_output(name, value)
        return value

    return checked


def _check_temperature(temperature) -> None:
    if _validate.is_static_zero(temperature):
        msg = (
            f"temperature must be positive, got {temperature!r}: without noise the paths see u along themselves only, "
            "and ∇u across them, which is the control, stays undetermined."
        )
        raise ValueError(msg)
    _validate.check_positive("temperature", temperature)


def _check_point(x) -> None:
    _validate.check_float_tree("start", x)
    if jnp.ndim(x) != 1:
        msg = f"start must be one point [d], or a function of a key that draws one, got shape {jnp.shape(x)}."
        raise ValueError(msg)
