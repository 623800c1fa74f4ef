"""∇u(x, t) of the inviscid relaxation (T → 0): the Moreau envelope by its fixed point or by proximal descent."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from .. import _validate
from .._arithmetic import add_scaled, cast_like, cast_up, squared_norm
from .._typing import GradFn, Params, Smoothed, ValueFn
from . import _kernel

__all__ = ["hopf_lax"]


def hopf_lax(
    grad_fn: GradFn,
    params: Params,
    key: Key[Array, ""],
    *,
    smoothing_time: float | Float[Array, ""],
    num_steps: int = 20,
    step_size: float | Float[Array, ""] | None = None,
    momentum: float | Float[Array, ""] = 0.0,
    nesterov: bool = False,
    start: Params | None = None,
    value_fn: ValueFn | None = None,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> Smoothed:
    r"""The gradient of the Moreau envelope, by a fixed point or by proximal descent.

    u solves u_t + ½|∇u|² = 0, u(x, 0) = f(x) (Hopf-Lax), the limit T → 0 of the viscous relaxation:

        u(x, t) = min_y φ(y),   φ(y) = f(y) + |x − y|²/(2t),      p = ∇u(x, t) = (x − y*)/t = ∇f(x − t p).

    With y = x − t p and a = ε/t one step is, written for p or for y,

        p ← p + a (∇f(x − t p) − p)      ⇔      y ← y − ε (∇f(y) + (y − x)/t),

    so the damped fixed point *is* proximal descent with step ε: one method, one number. The first form is the one
    computed: it does not subtract y from x, which keeps ∇u accurate for small t and in half precision.

    Args:
        grad_fn: ``(params, InnerStep) -> gradient``; called ``num_steps`` times, with ``chain`` 0. It may be
            stochastic.
        params: x, any pytree of real floating arrays. Unit [param].
        key: typed key (or integer seed), from which come the keys in ``InnerStep``; nothing else here is random.
        smoothing_time: t > 0, in [param²/loss].
        num_steps: L ≥ 1, gradients (static).
        step_size: ε > 0, in [param²/loss]; contracts if ε (λ + 1/t) < 2 for the eigenvalues λ of ∇²f, by 1 − ε/t per
            step in flat directions. None means ε = t, the plain fixed point p ← ∇f(x − t p), which
            contracts if t·Lip(∇f) < 1, by that factor.
        momentum: m in [0, 1): v ← m v + a (∇f − p), p ← p + v.
        nesterov: take the gradient ahead, at p + m v.
        start: where to start, a leading axis 1 on every leaf (``Smoothed.positions`` of the last call); None starts at
            x.
        value_fn: f, ``params -> loss``, called once at the last y to give ``value``; None leaves it out.
        accumulator_dtype: dtype of p and v; None means that of ``params`` but at least float32. ``grad_fn`` always
            sees the dtype of ``params``.

    Returns:
        :class:`Smoothed` with ``gradient`` p = (x − y)/t for the last y, ``positions`` that y [1, …],
        ``num_gradients`` L, ``value`` φ(y) ≥ u(x, t) if ``value_fn`` is given, and ``info``: ``residual`` |∇f(y) + (y
        − x)/t| in [loss/param] where the last gradient was taken, one step before y, and ``contraction``, its ratio to
        the one before (NaN for L = 1). With q the contraction, the residual at y itself is about q·residual, and |p −
        ∇u| about a·q/(1 − q)·residual. q ≥ 1 says that the iteration does not converge.
        ``jax.grad`` of ``value`` is ``gradient`` and its t-derivative −½|p|², as the equation has it: y is held
        constant (envelope theorem). Differentiate ``gradient`` for ∇²u.

    Raises:
        ValueError, TypeError: a setting out of range, a leaf of ``params`` that is not real and floating, or a
            gradient or ``start`` whose tree or shapes differ from those of ``params``; the message names it.

    Good values:
        t·λ_max below about ½: the default step. Otherwise ε about 1/(λ_max + 1/t) and L from 2 t/ε to 4 t/ε, or
        Nesterov momentum m = (1 − √a)/(1 + √a) and L about 4 √(t/ε). t < 1/|λ_min|: beyond that φ has several minima
        and the one near the start is found.

    Example:
        On f = ½ x² with t = ½ the envelope's gradient is x/(1 + t) = 2 at x = 3:

        >>> import jax, jaxopt_pde
        >>> smoothed = jaxopt_pde.smoothing.hopf_lax(
        ...     lambda x, step: x, jax.numpy.array(3.0), jax.random.key(0), smoothing_time=0.5,
        ...     value_fn=lambda x: x**2 / 2)
        >>> print(f"{smoothed.gradient:.3f} {smoothed.value:.3f} from {smoothed.num_gradients} gradients")
        2.000 3.000 from 20 gradients

    References:
        Chaudhari et al. 2018, Deep Relaxation, arXiv:1704.04932 (the fixed point). Moreau 1965; Parikh & Boyd 2014,
        Proximal Algorithms.
    """
    _validate.check_positive("smoothing_time", smoothing_time)
    _validate.check_count("num_steps", num_steps)
    if step_size is not None:
        _validate.check_positive("step_size", step_size)
    _validate.check_fraction("momentum", momentum)
    _validate.check_float_dtype("accumulator_dtype", accumulator_dtype)
    _validate.check_float_tree("params", params)
    params = jax.tree.map(jnp.asarray, params)
    anchor = cast_up(params, accumulator_dtype)
    dtype = _kernel.scalar_dtype(anchor)
    time, inertia = jnp.asarray(smoothing_time, dtype), jnp.asarray(momentum, dtype)
    damping = jnp.ones([], dtype) if step_size is None else jnp.asarray(step_size, dtype) / time
    zeros = jax.tree.map(jnp.zeros_like, anchor)
    initial = zeros
    if start is not None:
        expected = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), params)
        _validate.check_same_tree("start", start, expected)
        initial = jax.tree.map(lambda x, y: (x - y[0].astype(x.dtype)) / time.astype(x.dtype), anchor, start)
    heavy = not _validate.is_static_zero(momentum)
    key, chain = _validate.as_key(key), jnp.zeros([], jnp.int32)
    position = lambda p: cast_like(add_scaled(anchor, -time, p), params)

    def step(carry, index):
        p, velocity = carry
        ahead = add_scaled(p, inertia, velocity) if heavy and nesterov else p
        _, inner = _kernel.inner_keys(key, index, chain)
        gradient = grad_fn(position(ahead), inner)
        _validate.check_same_tree("grad_fn", gradient, params)
        residual = jax.tree.map(lambda g, q: g.astype(q.dtype) - q, gradient, ahead)
        increment = jax.tree.map(lambda r: damping.astype(r.dtype) * r, residual)
        if heavy:
            velocity = increment = add_scaled(increment, inertia, velocity)
        return (jax.tree.map(jnp.add, p, increment), velocity), jnp.sqrt(squared_norm(residual, dtype))

    steps = jnp.arange(num_steps, dtype=jnp.int32)
    (p, _), residuals = jax.lax.scan(step, (initial, zeros if heavy else None), steps)
    last = position(p)
    return Smoothed(
        gradient=cast_like(p, params),
        value=None if value_fn is None else _envelope(value_fn, anchor, last, time, dtype),
        positions=jax.tree.map(lambda y: y[None], last),
        num_gradients=jnp.asarray(num_steps, jnp.int32),
        info={
            "residual": residuals[-1],
            "contraction": residuals[-1] / residuals[-2] if num_steps > 1 else jnp.asarray(jnp.nan, dtype),
        },
    )


def _envelope(value_fn: ValueFn, anchor: Params, last: Params, time, dtype) -> Float[Array, ""]:
    """φ at the last y, with y held constant."""
    last = jax.lax.stop_gradient(last)
    value = value_fn(last)
    _validate.check_scalar_output("value_fn", value)
    distance = squared_norm(jax.tree.map(lambda x, y: x - y.astype(x.dtype), anchor, last), dtype)
    return jnp.asarray(value, dtype) + distance / (2 * time)
