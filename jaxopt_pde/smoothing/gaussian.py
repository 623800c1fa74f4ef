"""u(x, t) of a quadratic in closed form, in any dimension: Gaussians stay Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .. import _validate
from .._typing import Params, Smoothed
from ._kernel import scalar_dtype

__all__ = ["gaussian"]


def gaussian(
    hessian: Float[Array, "d d"],
    linear: Float[Array, " d"] | Params,
    params: Params,
    *,
    smoothing_time: float | Float[Array, ""],
    temperature: float | Float[Array, ""],
) -> Smoothed:
    r"""The relaxed loss of f(x) = ½ xᵀAx − bᵀx, exactly.

    With S = I + tA positive definite (A may be indefinite: t < 1/|λ_min|) and y* = S⁻¹(x + tb),

        u(x, t) = f(y*) + |x − y*|²/(2t) + (T/2) log det S,      ∇u = S⁻¹(Ax − b),
        ∇²u = A S⁻¹,                                            ρ = N(y*, tT S⁻¹).

    The first two terms are the Moreau envelope; the temperature enters through log det alone, so ∇u does not depend
    on T.

    Args:
        hessian: A, symmetric [d, d], in [loss/param²], in the order of ``jax.flatten_util.ravel_pytree(params)``.
        linear: b, in [loss/param]: an array [d] or a tree like ``params``.
        params: x, any pytree of real floating arrays with d entries in all.
        smoothing_time: t > 0, in [param²/loss].
        temperature: T ≥ 0, in [loss]; 0 gives the Moreau envelope (Hopf-Lax).

    Returns:
        :class:`Smoothed` with the exact ``gradient`` and ``value``, ``positions`` None, ``num_gradients`` 0 and
        ``info``: ``mean`` y* [d] and ``covariance`` tT S⁻¹ [d, d] of ρ, and ``hessian`` ∇²u [d, d].

    Raises:
        ValueError: a shape that does not fit, a hessian that is not symmetric, or I + tA not positive definite (then u
            is −∞). The last two are seen only in concrete arrays; under ``jit`` the results are NaN instead.
        TypeError: a leaf of ``params`` that is not real and floating.

    Example:
        >>> import jax.numpy as jnp, jaxopt_pde
        >>> smoothed = jaxopt_pde.smoothing.gaussian(
        ...     jnp.diag(jnp.array([1.0, 3.0])), jnp.zeros(2), jnp.array([2.0, 4.0]), smoothing_time=1.0,
        ...     temperature=0.1)
        >>> print(*(f"{g:.3f}" for g in smoothed.gradient), f"{smoothed.value:.3f}")  # λ x/(1 + tλ)
        1.000 3.000 7.104

    References:
        Chaudhari et al. 2018, Deep Relaxation, arXiv:1704.04932, section 2. With indefinite A: our own derivation.
    """
    _validate.check_positive("smoothing_time", smoothing_time)
    _validate.check_nonnegative("temperature", temperature)
    _validate.check_float_tree("params", params)
    params = jax.tree.map(jnp.asarray, params)
    x, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(scalar_dtype(params)), params))
    dimension, dtype = x.size, x.dtype
    if jnp.shape(hessian) != (dimension, dimension):
        msg = f"hessian must have shape ({dimension}, {dimension}), d as in params, got {jnp.shape(hessian)}."
        raise ValueError(msg)
    b = ravel_pytree(linear)[0].astype(dtype)
    if b.shape != (dimension,):
        msg = f"linear must have {dimension} entries, as params have, got {b.size}."
        raise ValueError(msg)
    _check_concrete(hessian, smoothing_time)
    A = jnp.asarray(hessian, dtype)
    t, heat = jnp.asarray(smoothing_time, dtype), jnp.asarray(temperature, dtype)

    factor = jnp.linalg.cholesky(jnp.eye(dimension, dtype=dtype) + t * A)
    solve = lambda right: jax.scipy.linalg.cho_solve((factor, True), right)
    inverse = solve(jnp.eye(dimension, dtype=dtype))
    gradient = solve(A @ x - b)
    mean = x - t * gradient
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
    value = mean @ (A @ mean) / 2 - b @ mean + t * (gradient @ gradient) / 2 + heat * log_det / 2
    return Smoothed(
        gradient=jax.tree.map(lambda g, leaf: g.astype(leaf.dtype), unravel(gradient), params),
        value=value,
        positions=None,
        num_gradients=jnp.zeros([], jnp.int32),
        info={"mean": mean, "covariance": t * heat * inverse, "hessian": A @ inverse},
    )


def _check_concrete(hessian, smoothing_time) -> None:
    """Symmetry and positive definiteness, where the numbers are known."""
    if isinstance(hessian, jax.core.Tracer):
        return
    A = np.asarray(hessian, np.float64)
    tolerance = 1e-5 * np.abs(A).max(initial=0)
    if not np.allclose(A, A.T, rtol=0, atol=tolerance):
        msg = f"hessian must be symmetric, got entries that differ by {np.abs(A - A.T).max():.3g}."
        raise ValueError(msg)
    if isinstance(smoothing_time, jax.core.Tracer) or not A.size:
        return
    lowest = np.linalg.eigvalsh(A)[0]
    if not 1 + float(smoothing_time) * lowest > 0:
        msg = (
            "smoothing_time must keep I + t·hessian positive definite (else u is -inf): the hessian's lowest "
            f"eigenvalue is {lowest:.6g}, so t < {-1 / lowest:.6g}, got {float(smoothing_time):.6g}."
        )
        raise ValueError(msg)
