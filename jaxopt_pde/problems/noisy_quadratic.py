"""A quadratic with noise of a known law added to its gradient."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .. import _validate
from .problem import constants
from .stochastic_problem import StochasticProblem

__all__ = ["noisy_quadratic"]

_LAWS = ("gaussian", "rademacher", "radial", "tangential")


def noisy_quadratic(
    hessian: ArrayLike,
    *,
    noise_variance: float | None = None,
    noise_covariance: ArrayLike | None = None,
    law: str = "gaussian",
    minimiser: ArrayLike | None = None,
    minimum: float = 0.0,
    initial: ArrayLike | None = None,
    batch_size: int = 1,
) -> StochasticProblem:
    """The quadratic f(x) = ½ (x − x*)'A(x − x*) + f* whose examples have gradients A(x − x*) + eᵢ.

    f_i(x) = f(x) + eᵢ·(x − x*), with eᵢ independent of mean 0 and E|eᵢ|² = s₁ the same everywhere, so that
    E|∇f_B|² = |A(x − x*)|² + s₁/b. The laws, with C the covariance and u = (x − x*)/|x − x*| (the first axis at x*):

        "gaussian"     e = C^½ ξ, ξ ~ N(0, I)
        "rademacher"   e = C^½ ξ, ξ uniform on {−1, 1}^d
        "radial"       e = ±√s₁ u, either sign with probability ½
        "tangential"   e = √s₁ v, v uniform on the unit sphere orthogonal to u

    Every f_B has the value f* at x*. So f_B(x) − f* tells a step-size rule more than minibatch losses usually do:
    Polyak's rule fed with it converges to rounding. Give such rules the exact loss, or the losses of :func:`kmeans`.

    Args:
        hessian: A, symmetric positive definite [d, d], or its diagonal [d] (a number stands for d = 1), in
            [loss/param²]; ``numpy.full(d, mu)`` is the isotropic case. Concrete.
        noise_variance: s₁ = E|eᵢ|² ≥ 0, in [loss²/param²], for isotropic noise C = (s₁/d) I and for the last two
            laws; 1 if neither this nor ``noise_covariance`` is given.
        noise_covariance: C, symmetric positive semidefinite [d, d], or its diagonal [d]; then s₁ = tr C.
        law: ``"gaussian"``, ``"rademacher"``, ``"radial"`` or ``"tangential"``.
        minimiser: x* [d], in [param]; None: the origin.
        minimum: f*, in [loss].
        initial: x₀ [d], in [param]; None: x* + (1, …, 1).
        batch_size: b ≥ 1.

    Returns:
        :class:`StochasticProblem` with μ and L the extreme eigenvalues of A, σ² = s₁/b and ρ = 0, all exact; a
        minibatch holds the variables ξ [b, d].

    Raises:
        ValueError: a matrix that is not of the right shape, finite, symmetric and definite; both kinds of noise given;
            a covariance for a law that takes none; tangential noise in one dimension.

    Example:
        >>> problem = noisy_quadratic([1.0, 4.0], noise_covariance=[0.5, 1.5])
        >>> print(problem.strong_convexity, problem.smoothness, problem.noise_variance)
        1.0 4.0 2.0
        >>> print(problem.excess_loss(problem.initial_point()))
        2.5
    """
    _validate.check_choice("law", law, _LAWS)
    hessian = _matrix("hessian", hessian, None)
    dimension = len(hessian)
    eigenvalues = np.linalg.eigvalsh(hessian)
    if not eigenvalues[0] > 0:
        msg = f"hessian must be positive definite, got eigenvalues {eigenvalues!r}."
        raise ValueError(msg)
    if noise_covariance is None:
        noise_variance = 1.0 if noise_variance is None else noise_variance
        _validate.check_nonnegative("noise_variance", noise_variance)
        noise_variance = float(noise_variance)
        root = math.sqrt(noise_variance / dimension) * np.eye(dimension)
    elif noise_variance is not None or law in ("radial", "tangential"):
        msg = f"noise_covariance must be None beside noise_variance and for law {law!r}, got {noise_covariance!r}."
        raise ValueError(msg)
    else:
        covariance = _matrix("noise_covariance", noise_covariance, dimension)
        variances, basis = np.linalg.eigh(covariance)
        if variances[0] < -1e-12 * max(variances[-1], 0.0):
            msg = f"noise_covariance must be positive semidefinite, got eigenvalues {variances!r}."
            raise ValueError(msg)
        root = (basis * np.sqrt(np.maximum(variances, 0.0))) @ basis.T
        noise_variance = float(np.trace(covariance))
    if law == "tangential" and dimension == 1:
        msg = "law must not be 'tangential' in one dimension, where no direction is orthogonal to x - x*."
        raise ValueError(msg)
    minimiser = _vector("minimiser", minimiser, np.zeros(dimension))
    initial = _vector("initial", initial, minimiser + 1.0)

    def excess_loss(point):
        z = point - constants(minimiser, point)
        return 0.5 * z @ (constants(hessian, point) @ z)

    def draw_examples(key, batch_size):
        if law in ("gaussian", "tangential"):
            return jax.random.normal(key, (batch_size, dimension))
        return jax.random.rademacher(key, (batch_size, dimension), jnp.result_type(float))

    def across(vectors, u):
        return vectors - (vectors @ u)[:, None] * u[None, :]

    def unit(vectors):
        lengths = jnp.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / jnp.maximum(lengths, jnp.finfo(vectors.dtype).tiny)

    def mean_noise(z, batch):
        if law in ("gaussian", "rademacher"):
            return constants(root, z) @ jnp.mean(batch, axis=0)
        length = jnp.linalg.norm(z)
        first_axis = jnp.zeros_like(z).at[0].set(1.0)
        u = jnp.where(length > 0, z / jnp.where(length > 0, length, 1.0), first_axis)
        size = constants(math.sqrt(noise_variance), z)
        if law == "radial":
            return size * jnp.mean(batch[:, 0]) * u
        # Twice: after scaling, what rounding left along u shows where a variable was nearly parallel to u.
        tangents = unit(across(batch, u))
        return size * jnp.mean(across(tangents, u), axis=0)

    def batch_loss(point, batch):
        z = point - constants(minimiser, point)
        # The law may depend on x; the gradient of f_i is that of f plus the noise, whatever the law.
        noise = mean_noise(jax.lax.stop_gradient(z), batch.astype(z.dtype))
        return excess_loss(point) + constants(minimum, point) + noise @ z

    return StochasticProblem(
        name="noisy quadratic",
        loss=lambda point: excess_loss(point) + constants(minimum, point),
        batch_loss=batch_loss,
        example_variance=lambda point: constants(noise_variance, point),
        minimum=minimum,
        minimiser=minimiser,
        initial=initial,
        strong_convexity=eigenvalues[0],
        smoothness=eigenvalues[-1],
        example_noise_variance=noise_variance,
        batch_size=batch_size,
        draw_examples=draw_examples,
        excess_loss=excess_loss,
    )


def _matrix(name: str, values: ArrayLike, dimension: int | None) -> np.ndarray:
    """A symmetric matrix from itself or its diagonal."""
    matrix = np.atleast_1d(np.asarray(values, np.float64))
    if matrix.ndim == 1:
        matrix = np.diag(matrix)
    dimension = len(matrix) if dimension is None else dimension
    if matrix.shape != (dimension, dimension) or not dimension or not np.all(np.isfinite(matrix)):
        msg = f"{name} must be finite, of shape [{dimension}, {dimension}] or its diagonal, got {values!r}."
        raise ValueError(msg)
    if not np.allclose(matrix, matrix.T, rtol=1e-12, atol=1e-12 * np.abs(matrix).max()):
        msg = f"{name} must be symmetric, got {values!r}."
        raise ValueError(msg)
    return matrix


def _vector(name: str, values: ArrayLike | None, default: np.ndarray) -> np.ndarray:
    vector = default if values is None else np.atleast_1d(np.asarray(values, np.float64))
    if vector.shape != default.shape or not np.all(np.isfinite(vector)):
        msg = f"{name} must be finite, of shape [{default.size}], got {values!r}."
        raise ValueError(msg)
    return vector
