"""The optimal control of the descent by sampling: Cole-Hopf makes the Bellman equation linear, rollouts solve it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int, Key

from .. import _validate
from .._arithmetic import cast_like, cast_up
from .._sharding import check_axis_sharding, vmap_over_axis
from .._typing import GradFn, Params, ValueFn
from . import _rollouts

__all__ = ["ControlEstimate", "PathIntegral", "path_integral"]

# A reverse pass through one step costs a Hessian-vector product: two gradients, by operation counts on the networks of
# benchmarks/control.py (one on a quadratic).
_GRADIENTS_PER_ADJOINT_STEP = 2


class ControlEstimate(NamedTuple):
    """What rollouts say about the value u(x, s) and the control α = ∇u/c there.

    Attributes:
        control: estimate of α; tree, shapes and dtypes of ``params``. 0 past the horizon. Unit [loss/param].
        value: estimate of u, too high by about λ (1/effective_sample_size − 1/n)/2 on average. Unit [loss].
        standard_error: of ``value`` by the delta method, λ √(Σ(w − 1/n)² n/(n − 1)). Unit [loss].
        effective_sample_size: 1/Σw² in [1, n], w the normalised weights.
        collapsed: True where the effective sample size is below ``min_effective_sample_size``, or is NaN: then neither
            the estimates nor their standard errors are to be trusted.
        num_gradients: gradient evaluations spent (int32), see :func:`path_integral`; 0 past the horizon.
        control_standard_error: of ``control``, √(Σ w² |∇S/c − α|² n/(n − 1)), a norm over all parameters.
            Unit [loss/param].
    """

    control: Params
    value: Float[Array, ""]
    standard_error: Float[Array, ""]
    effective_sample_size: Float[Array, ""]
    collapsed: Bool[Array, ""]
    num_gradients: Int[Array, ""]
    control_standard_error: Float[Array, ""]


@dataclasses.dataclass(frozen=True, eq=False)
class PathIntegral:
    """A control estimated by rollouts at every call; made by :func:`path_integral`, which checks the settings.

    ``estimator(params, time, key)`` is the control alone, ``estimator.estimate(params, time, key)`` all that is known.

    Attributes:
        grad_fn: the drift is minus this, ``(params, InnerStep) -> gradient``.
        terminal_fn: V, ``params -> loss``.
        horizon: time at which V stands.
        temperature: T > 0.
        num_rollouts: n, rollouts of an estimate.
        num_steps: Euler steps of a rollout.
        guide: control that the rollouts follow, or None.
        control_cost: what ½|α|² is multiplied by, c.
        min_effective_sample_size: below it the estimate counts as collapsed.
        rollout_batch_size: rollouts run together, or None for all.
        rollout_sharding: sharding of the rollouts, or None.
        accumulator_dtype: dtype of positions and averages, or None.
    """

    grad_fn: GradFn
    terminal_fn: ValueFn
    horizon: float | Float[Array, ""]
    temperature: float | Float[Array, ""]
    num_rollouts: int
    num_steps: int
    guide: Callable[..., Params] | None = None
    control_cost: float | Float[Array, ""] = 1.0
    min_effective_sample_size: float | Float[Array, ""] = 10.0
    rollout_batch_size: int | None = None
    rollout_sharding: NamedSharding | None = None
    accumulator_dtype: jax.typing.DTypeLike | None = None

    def __call__(self, params: Params, time: float | Float[Array, ""], key: Key[Array, ""]) -> Params:
        """The control α(x, time), a tree like ``params``."""
        return self.estimate(params, time, key).control

    def estimate(
        self, params: Params, time: float | Float[Array, ""], key: Key[Array, ""]
    ) -> ControlEstimate:
        """The control at (``params``, ``time``), the value there, and how far both can be trusted.

        Args:
            params: x, any pytree of real floating arrays.
            time: s; past the horizon no rollout is run and the control is 0.
            key: typed key (or integer seed); equal keys give common random numbers.
        """
        _validate.check_float_tree("params", params)
        params = jax.tree.map(jnp.asarray, params)
        anchor = cast_up(params, self.accumulator_dtype)
        dtype = functools.reduce(
            jnp.promote_types, (leaf.dtype for leaf in jax.tree.leaves(anchor)), jnp.float32
        )
        key = _validate.as_key(key)
        time, horizon = jnp.asarray(time, dtype), jnp.asarray(self.horizon, dtype)
        return jax.lax.cond(
            time > horizon,
            lambda: self._past_horizon(params, dtype),
            lambda: self._estimate(params, anchor, time, (horizon - time) / self.num_steps, key),
        )

    def _past_horizon(self, params: Params, dtype) -> ControlEstimate:
        value = self.terminal_fn(params)
        _validate.check_scalar_output("terminal_fn", value)
        zero = jnp.zeros([], dtype)
        return ControlEstimate(
            control=jax.tree.map(jnp.zeros_like, params),
            value=jnp.asarray(value, dtype),
            standard_error=zero,
            effective_sample_size=jnp.asarray(self.num_rollouts, dtype),
            collapsed=jnp.asarray(False),
            num_gradients=jnp.zeros([], jnp.int32),
            control_standard_error=zero,
        )

    def _estimate(self, params, anchor, time, step_size, key) -> ControlEstimate:
        n, dtype = self.num_rollouts, step_size.dtype
        cost, temperature = jnp.asarray(self.control_cost, dtype), jnp.asarray(self.temperature, dtype)
        scale = cost * temperature
        dynamics = _rollouts.Dynamics(
            self.grad_fn,
            self.terminal_fn,
            self.guide,
            cost,
            temperature,
            time,
            step_size,
            self.num_steps,
            self.rollout_sharding,
        )
        one = jax.value_and_grad(functools.partial(_rollouts.rollout, dynamics, params, key))
        several = vmap_over_axis(
            lambda index, start: one(start, index), self.rollout_sharding, in_axes=(0, None)
        )
        run = lambda start, indices: several(indices, start)
        indices = jnp.arange(n, dtype=jnp.int32)
        if self.rollout_batch_size is None:
            exponents, gradients = run(anchor, indices)
            summary = _rollouts.summarise(exponents, gradients, scale)
        else:

            def chunk(summary, indices):
                exponents, gradients = run(anchor, indices)
                return _rollouts.merge(
                    summary, _rollouts.summarise(exponents, gradients, scale), scale
                ), exponents

            summary, exponents = jax.lax.scan(
                chunk, _rollouts.no_mean(anchor, dtype), indices.reshape(-1, self.rollout_batch_size)
            )
        weights = jax.nn.softmax(-(exponents.reshape(-1) - summary.least) / scale)
        value = summary.least - scale * jnp.log(summary.total / n)
        # The compiler may cancel a constant V, NaN included, in the differences of exponents: then only u tells.
        unless_failed = lambda a: jnp.where(jnp.isnan(value), jnp.nan, a)
        size = unless_failed(1 / jnp.sum(weights**2))
        correction = n / (n - 1)
        gradients = n * (self.num_steps * (1 + _GRADIENTS_PER_ADJOINT_STEP) + 1)
        return ControlEstimate(
            control=cast_like(
                jax.tree.map(lambda g: unless_failed(g / cost.astype(g.dtype)), summary.mean), params
            ),
            value=value,
            standard_error=unless_failed(scale * jnp.sqrt(jnp.sum((weights - 1 / n) ** 2) * correction)),
            effective_sample_size=size,
            collapsed=~(size >= self.min_effective_sample_size),  # NaN counts
            num_gradients=jnp.asarray(gradients, jnp.int32),
            control_standard_error=unless_failed(
                jnp.sqrt(jnp.maximum(summary.spread, 0) * correction) / cost
            ),
        )


def path_integral(
    loss_fn: ValueFn | None,
    terminal_fn: ValueFn,
    *,
    horizon: float | Float[Array, ""],
    temperature: float | Float[Array, ""],
    num_rollouts: int,
    num_steps: int,
    grad_fn: GradFn | None = None,
    guide: Callable[..., Params] | None = None,
    control_cost: float | Float[Array, ""] = 1.0,
    min_effective_sample_size: float | Float[Array, ""] | None = None,
    rollout_batch_size: int | None = None,
    rollout_sharding: NamedSharding | None = None,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> PathIntegral:
    r"""The optimal control of the descent, estimated at each call from rollouts: for any dimension and any pytree.

    The descent dx = −∇f ds − α ds + √T dW is steered to make E[V(x(horizon)) + (c/2) ∫ |α|² ds] least. With λ = cT,
    exp(−u/λ) of the value u solves a linear equation (Cole-Hopf), and so

        u(x, s) = −λ log E[exp(−V(X(horizon))/λ)],      dX = −∇f ds + √T dW,  X(s) = x,      α = ∇u/c.

    n Euler rollouts give u ≈ −λ log mean exp(−S/λ), S = V(X_N), and α ≈ Σ w ∇S/c with w ∝ exp(−S/λ): the gradient
    passes through the rollouts, whose noise is held fixed. Both converge to the value and the control of the *Euler
    chain*, at the rate n^(−1/2); the chain is O(h) from the diffusion, h = (horizon − s)/num_steps.

    What limits n is not the dimension but Var(V/λ): the effective sample size is about n exp(−Var). A ``guide`` G
    takes that away. The rollouts follow dX = −(∇f + G) ds + √T dW, and

        S = V(X_N) + (c/2) ∫ |G|² ds − c √T ∫ G·dW

    corrects for it exactly, step size included, whatever G is. At G = ∇u/c each S is u and each ∇S is ∇u, up to O(h):
    no variance in either.

    Args:
        loss_fn: f, ``params -> loss``; its gradient drives the rollouts. None if ``grad_fn`` is given.
        terminal_fn: V, ``params -> loss``, called at the end of each rollout under ``vmap``. Deterministic: a
            minibatch drawn for each rollout would bias u, since E exp(−V/λ) is not exp(−E V/λ).
        horizon: time > 0 at which V stands, in [param²/loss].
        temperature: T > 0, in [loss].
        num_rollouts: n ≥ 2 (static).
        num_steps: Euler steps from the present to the horizon, however far it is (static).
        grad_fn: ``(params, InnerStep) -> gradient`` in place of ∇f, with the step, the rollout (``chain``) and a key
            for minibatches. The rollouts are differentiated through it. Its noise acts like a temperature of its own
            in the rollouts, h times its covariance, to which λ is not matched.
        guide: G, any control ``(params, time, key) -> tree`` such as those of this package; best differentiable in
            ``params``, which takes the variance from the control as well as from the value. If it is not, the
            estimates stay right.
        control_cost: c > 0, without unit.
        min_effective_sample_size: below it ``ControlEstimate.collapsed`` is True; None means 10, and for n < 19
            half-way between 1 and n. The relative standard error of exp(−u/λ) is about its inverse square root.
        rollout_batch_size: rollouts run together under ``vmap`` (static), a divisor of n; None means all. The chunks
            are merged by log-sum-exp and give the same numbers, in the memory of one chunk.
        rollout_sharding: ``NamedSharding(mesh, PartitionSpec("axis"))`` spreads the rollouts over a mesh axis, whose
            size must divide n. Leaves keep their own sharding on other axes. A control is then one all-reduce of a
            number, the least exponent, and one of the size of ``params``.
        accumulator_dtype: dtype of positions and averages; None means that of ``params`` but at least float32. All
            functions see the dtype of ``params``.

    Returns:
        :class:`PathIntegral`: ``control(params, time, key)`` gives α, ``control.estimate(params, time, key)`` a
        :class:`ControlEstimate`. Past the horizon α is 0 and nothing is run; at the horizon it is ∇V/c.
        An estimate needs the memory of n·num_steps positions (of one chunk with ``rollout_batch_size``); everything
        else is computed again in the reverse pass. ``num_gradients`` counts n (3 num_steps + 1): in each step a
        gradient and, in the reverse pass, a Hessian-vector product at the price of two; at the end ∇V. A guide's own
        gradients are not counted. A NaN in V or ∇f passes into the value and the control, with ``collapsed`` True;
        so does V = −∞, or +∞ on all rollouts. V = +∞ on some is a constraint: they have weight 0.

    Raises:
        ValueError, TypeError: a setting out of range (T = 0 has its own message), an f, V, ``grad_fn`` or guide that
            cannot be called, a leaf of ``params`` that is not real and floating, f or V that are not scalars, a
            gradient or a guide whose tree differs from ``params``.

    Good values:
        h λ_max well below 1 for the greatest curvature λ_max of f, n so that the effective sample size stays above
        100. Where weights collapse, in this order: a guide (:func:`~jaxopt_pde.control.linear_quadratic` on a
        quadratic model of f and V), a shorter horizon, a higher temperature or control cost, more rollouts
        (exp(Var(V/λ)) of them).

    Example:
        f = V = ½ |x|² in 100 dimensions, where α = 2x/(3e² − 1) at time 0, with that control as guide:

        >>> import jax, jax.numpy as jnp
        >>> from jaxopt_pde import control
        >>> half_square = lambda x: jnp.sum(x**2) / 2
        >>> exact = control.linear_quadratic(1.0, 1.0, horizon=1.0, temperature=2.0)
        >>> estimator = control.path_integral(half_square, half_square, horizon=1.0, temperature=2.0,
        ...     num_rollouts=64, num_steps=20, guide=exact.control)
        >>> x = jnp.ones(100)
        >>> found = estimator.estimate(x, 0.0, jax.random.key(0))
        >>> print(f"{found.control[0]:.2f} {exact.control(x, 0.0)[0]:.2f} collapsed: {found.collapsed}")
        0.09 0.09 collapsed: False

    References:
        Kappen 2005, Path integrals and symmetry breaking for optimal control theory, arXiv:physics/0505066. Guided
        rollouts: Thijssen & Kappen 2015, Path integral control and state-dependent feedback, arXiv:1406.4026. The
        standard errors and their merging are our own derivation.
    """
    _validate.check_positive("horizon", horizon)
    if _validate.is_static_zero(temperature):
        msg = (
            "temperature must be positive, got 0: a path integral averages exp(−V/(cT)) over noisy rollouts; without "
            "noise all rollouts are one and the weights have no limit. Use linear_quadratic or pde.solve_bellman, "
            "which solve temperature 0, or a small positive temperature with a guide."
        )
        raise ValueError(msg)
    _validate.check_positive("temperature", temperature)
    _validate.check_positive("control_cost", control_cost)
    _validate.check_count("num_rollouts", num_rollouts, minimum=2)
    _validate.check_count("num_steps", num_steps)
    _validate.check_float_dtype("accumulator_dtype", accumulator_dtype)
    if min_effective_sample_size is None:
        min_effective_sample_size = min(10.0, (1 + num_rollouts) / 2)
    _validate.check_nonnegative("min_effective_sample_size", min_effective_sample_size)
    if rollout_batch_size is not None:
        _validate.check_count("rollout_batch_size", rollout_batch_size)
        if rollout_sharding is not None:
            msg = "rollout_batch_size and rollout_sharding exclude each other: one runs rollouts in turn, one at once."
            raise ValueError(msg)
        if num_rollouts % rollout_batch_size:
            msg = f"rollout_batch_size must divide num_rollouts={num_rollouts}, got {rollout_batch_size!r}."
            raise ValueError(msg)
    check_axis_sharding("rollout_sharding", rollout_sharding, "num_rollouts", num_rollouts)
    if loss_fn is None and grad_fn is None:
        msg = "loss_fn=None needs grad_fn: something must drive the rollouts."
        raise ValueError(msg)
    given = {"loss_fn": loss_fn, "grad_fn": grad_fn, "guide": guide}
    given = {name: function for name, function in given.items() if function is not None}
    for name, function in {"terminal_fn": terminal_fn, **given}.items():
        if not callable(function):
            msg = f"{name} must be a function, got {function!r}."
            raise TypeError(msg)
    return PathIntegral(
        grad_fn=_gradient_of(loss_fn) if grad_fn is None else grad_fn,
        terminal_fn=terminal_fn,
        horizon=horizon,
        temperature=temperature,
        num_rollouts=num_rollouts,
        num_steps=num_steps,
        guide=guide,
        control_cost=control_cost,
        min_effective_sample_size=min_effective_sample_size,
        rollout_batch_size=rollout_batch_size,
        rollout_sharding=rollout_sharding,
        accumulator_dtype=accumulator_dtype,
    )


def _gradient_of(loss_fn: ValueFn) -> GradFn:
    def loss(params):
        value = loss_fn(params)
        _validate.check_scalar_output("loss_fn", value)
        return value

    gradient = jax.grad(loss)
    return lambda params, step: gradient(params)
