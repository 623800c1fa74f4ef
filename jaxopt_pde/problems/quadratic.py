"""The quadratic, whose relaxed loss is known in every dimension at every temperature."""

import math

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .. import _validate
from .problem import Problem, constants

__all__ = ["quadratic"]


def quadratic(hessian: ArrayLike, linear: ArrayLike | None = None, *, radius: float = 2.0) -> Problem:
    """The quadratic f(x) = ½ x'Ax − b'x, with its relaxed loss in closed form.

    u(x, t) = ½ x'A(I+tA)⁻¹x − b'(I+tA)⁻¹x − (t/2) b'(I+tA)⁻¹b + (T/2) log det(I+tA)

    holds at every T ≥ 0 as long as I + tA is positive definite: for ever if A is positive semidefinite, for
    t < 1/|λ_min| if it has a negative eigenvalue. The heat limit is f(x) + ½ variance tr A.

    Args:
        hessian: A, symmetric [d, d], or its diagonal [d] (a number stands for d = 1), in [loss/param²]. It may be
            indefinite. Concrete: the problem is set up on the host, in float64.
        linear: b [d] in [loss/param]; None means 0.
        radius: the domain is the cube of half this width about the minimiser (about 0 if there is none), in [param].

    Returns:
        :class:`Problem`; ``minimisers`` holds A⁻¹b [1, d] if A is positive definite, else nothing [0, d].

    Raises:
        ValueError: a matrix that is not square, finite and symmetric, or another length of ``linear``.

    Example:
        >>> import jax.numpy as jnp
        >>> problem = quadratic([1.0, 4.0])
        >>> x = jnp.array([1.0, 1.0])
        >>> print(problem.loss(x), problem.exact(x, 1.0, 0.0))  # ½(1 + 4) and ½(1/2 + 4/5)
        2.5 0.65

    References:
        Chaudhari, Oberman, Osher, Soatto & Carlier 2018, Deep Relaxation, arXiv:1704.04932.
    """
    _validate.check_positive("radius", radius)
    hessian = np.atleast_1d(np.asarray(hessian, np.float64))
    if hessian.ndim == 1:
        hessian = np.diag(hessian)
    dimension = len(hessian)
    if hessian.shape != (dimension, dimension) or not np.all(np.isfinite(hessian)):
        msg = f"hessian must be finite, of shape [d, d] or [d], got shape {hessian.shape}: {hessian!r}."
        raise ValueError(msg)
    if not np.allclose(hessian, hessian.T, rtol=1e-12, atol=1e-12 * np.abs(hessian).max()):
        msg = f"hessian must be symmetric, got {hessian!r}."
        raise ValueError(msg)
    linear = np.zeros(dimension) if linear is None else np.atleast_1d(np.asarray(linear, np.float64))
    if linear.shape != (dimension,) or not np.all(np.isfinite(linear)):
        msg = f"linear must be finite, of shape [{dimension}], got {linear!r}."
        raise ValueError(msg)

    eigenvalues, basis = np.linalg.eigh(hessian)
    rotated = basis.T @ linear
    definite = eigenvalues[0] > dimension * np.finfo(np.float64).eps * eigenvalues[-1]
    minimiser = np.linalg.solve(hessian, linear) if definite else np.zeros(dimension)

    def loss(point):
        A, b = constants(hessian, point), constants(linear, point)
        return 0.5 * point @ (A @ point) - b @ point

    def exact(point, smoothing_time, temperature):
        lam, b = constants(eigenvalues, point), constants(rotated, point)
        z = constants(basis.T, point) @ point
        damping = 1.0 + smoothing_time * lam
        modes = 0.5 * lam * z**2 - b * z - 0.5 * smoothing_time * b**2
        return jnp.sum(modes / damping) + 0.5 * temperature * jnp.sum(jnp.log1p(smoothing_time * lam))

    def heat(point, variance):
        return loss(point) + 0.5 * variance * float(np.trace(hessian))

    return Problem(
        name="quadratic",
        loss=loss,
        lower=minimiser - radius,
        upper=minimiser + radius,
        minimisers=minimiser[None, :] if definite else np.zeros((0, dimension)),
        minimum=-0.5 * linear @ minimiser if definite else math.nan,
        exact=exact,
        exact_horizon=math.inf if eigenvalues[0] >= 0 else -1 / eigenvalues[0],
        heat=heat,
    )
