"""Learning rates fixed in advance: the schedule with the bound of the space-adaptive rate, and the textbook's.

The setting and the symbols are those of :mod:`jaxopt_pde.problems.rates`. For any 0 < h ≤ 1/(L + ρ), expanding the
square and using g·x ≥ F + μq/2 and |g|² ≤ 2LF,

    E|x⁺|² ≤ q − 2h (F + μq/2) + h² (2(L + ρ)F + σ²) = (1 − μh) q − 2hF (1 − h(L + ρ)) + h²σ²
           ≤ (1 − 2μh + μ(L + ρ)h²) q + h²σ²,

the last by F ≥ μq/2. No part of it needs f(x) or f*.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .. import _validate
from .rates import effective_smoothness, one_step_bound, space_adaptive_constant

__all__ = ["a_priori_schedule", "inverse_step_rate", "textbook_bound", "textbook_rate"]


def a_priori_schedule(
    num_steps: int,
    *,
    strong_convexity: float,
    smoothness: float,
    noise_variance: float,
    initial_sq_distance: float,
    noise_growth: float = 0.0,
) -> tuple[Float[Array, " k"], Float[Array, " k+1"]]:
    """The schedule that minimises the bound of each step, h_k = μq̂_k/((L + ρ)μq̂_k + σ²), q̂_{k+1} = (1 − μh_k) q̂_k.

    Derivation: the last bound above is least in h at this h, which is below 1/(L + ρ), and there it is
    (1 − μh) q = φ(q) of :func:`one_step_bound`. As φ does not decrease, E|x_k − x*|² ≤ q̂_k from q̂₀ = q₀ on: the
    guarantee of the space-adaptive rate, from μ, L, ρ, σ² and q₀ alone, without f* or f(x_k).

    Args:
        num_steps: K ≥ 1.
        strong_convexity: μ > 0, in [loss/param²].
        smoothness: L ≥ μ, in [loss/param²].
        noise_variance: σ² ≥ 0, in [loss²/param²].
        initial_sq_distance: q̂₀ ≥ E|x₀ − x*|², > 0, in [param²].
        noise_growth: ρ ≥ 0, in [loss/param²].

    Returns:
        The learning rates h₀ … h_{K−1} [K] in [param²/loss], and the guaranteed q̂₀ … q̂_K [K + 1] in [param²].

    Raises:
        ValueError: a constant out of range.
        TypeError: a count that is not an integer.

    Example:
        >>> args = dict(strong_convexity=1.0, smoothness=1.0, noise_variance=4.0, initial_sq_distance=4.0)
        >>> rates, bounds = a_priori_schedule(2, **args)
        >>> print(rates, bounds)
        [0.5        0.33333334] [4.        2.        1.3333334]
    """
    _validate.check_count("num_steps", num_steps)
    _validate.check_positive("initial_sq_distance", initial_sq_distance)
    total = effective_smoothness(strong_convexity, smoothness, noise_variance, noise_growth)

    def step(q, _):
        denominator = total * strong_convexity * q + noise_variance
        rate = jnp.where(
            denominator > 0, strong_convexity * q / jnp.where(denominator > 0, denominator, 1.0), 0.0
        )
        following = one_step_bound(
            q,
            strong_convexity=strong_convexity,
            smoothness=smoothness,
            noise_variance=noise_variance,
            noise_growth=noise_growth,
        )
        return following.astype(q.dtype), (rate.astype(q.dtype), q)

    start = jnp.asarray(initial_sq_distance, jnp.result_type(initial_sq_distance, float))
    last, (rates, bounds) = jax.lax.scan(step, start, length=num_steps)
    return rates, jnp.append(bounds, last)


def inverse_step_rate(
    step: ArrayLike,
    *,
    strong_convexity: float,
    smoothness: float,
    noise_variance: float,
    initial_sq_distance: float,
    noise_growth: float = 0.0,
) -> Float[Array, "..."]:
    """A 1/k schedule with the guarantee of the space-adaptive rate, h_k = μ/((L + ρ)μ + σ² (αk + 1/q₀)).

    Derivation: put q̂_k = 1/(αk + 1/q₀), α of :func:`space_adaptive_constant`, into h = μq̂/((L + ρ)μq̂ + σ²). The bound
    above is increasing in q, so E|x_{k+1} − x*|² ≤ φ(q̂_k) ≤ 1/(1/q̂_k + α) = q̂_{k+1}. This is c/(k + k₀) with
    c = μ/(σ²α) and k₀ = ((L + ρ)μ/σ² + 1/q₀)/α; for L = μ and ρ = 0, c = 1/μ. On f = ½μ|x|² it attains its bound, and
    no schedule does better.

    Args:
        step: k ≥ 0, the steps taken before this one, any shape; may be traced, as in an optax schedule.
        strong_convexity: μ > 0, in [loss/param²].
        smoothness: L ≥ μ, in [loss/param²].
        noise_variance: σ² > 0, in [loss²/param²].
        initial_sq_distance: q₀ > 0, in [param²].
        noise_growth: ρ ≥ 0, in [loss/param²].

    Returns:
        h_k in [param²/loss], of the shape of ``step``; the bound on E|x_k − x*|² is :func:`space_adaptive_bound`.

    Raises:
        ValueError: a constant out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> args = dict(strong_convexity=1.0, smoothness=1.0, noise_variance=4.0, initial_sq_distance=4.0)
        >>> print(inverse_step_rate(jnp.arange(2), **args))
        [0.5        0.33333334]
    """
    _validate.check_positive("noise_variance", noise_variance)
    total = effective_smoothness(strong_convexity, smoothness, noise_variance, noise_growth)
    constant = space_adaptive_constant(
        strong_convexity=strong_convexity,
        smoothness=smoothness,
        noise_variance=noise_variance,
        initial_sq_distance=initial_sq_distance,
        noise_growth=noise_growth,
    )
    inverse_bound = constant * jnp.asarray(step) + 1 / initial_sq_distance
    return strong_convexity / (total * strong_convexity + noise_variance * inverse_bound)


def textbook_rate(
    step: ArrayLike, *, strong_convexity: float, smoothness: float, noise_growth: float = 0.0
) -> Float[Array, "..."]:
    """The classical 1/k schedule of stochastic gradient descent, h_k = 2/(μ(k + k₀)), k₀ = 2(L + ρ)/μ.

    Derivation: :func:`textbook_bound`. h₀ = 1/(L + ρ) is the longest step it allows.

    Args:
        step: k ≥ 0, the steps taken before this one, any shape; may be traced.
        strong_convexity: μ > 0, in [loss/param²].
        smoothness: L ≥ μ, in [loss/param²].
        noise_growth: ρ ≥ 0, in [loss/param²].

    Returns:
        h_k in [param²/loss], of the shape of ``step``.

    Raises:
        ValueError: a constant out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> print(textbook_rate(jnp.array([0, 2]), strong_convexity=1.0, smoothness=2.0))
        [0.5        0.33333334]
    """
    total = effective_smoothness(strong_convexity, smoothness, 0.0, noise_growth)
    return 2 / (strong_convexity * jnp.asarray(step) + 2 * total)


def textbook_bound(
    step: ArrayLike,
    *,
    strong_convexity: float,
    smoothness: float,
    noise_variance: float,
    initial_sq_distance: float,
    noise_growth: float = 0.0,
) -> Float[Array, "..."]:
    """The classical bound on E|x_k − x*|² of :func:`textbook_rate`, max(k₀q₀, 4σ²/μ²)/(k + k₀).

    Derivation: for h ≤ 1/(L + ρ) the bound above is at most (1 − μh) q + h²σ². With h = 2/(μm), m = k + k₀, and
    q ≤ C/m, C ≥ 4σ²/μ²: (1 − 2/m) C/m + 4σ²/(μ²m²) ≤ C (m − 1)/m² ≤ C/(m + 1); and q₀ ≤ C/k₀. For large k it is four
    times the bound of :func:`inverse_step_rate` on the isotropic quadratic.

    Args:
        step: k ≥ 0, any shape.
        strong_convexity: μ > 0, in [loss/param²].
        smoothness: L ≥ μ, in [loss/param²].
        noise_variance: σ² ≥ 0, in [loss²/param²].
        initial_sq_distance: q₀ > 0, in [param²].
        noise_growth: ρ ≥ 0, in [loss/param²].

    Returns:
        The bound in [param²], of the shape of ``step``.

    Raises:
        ValueError: a constant out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> args = dict(strong_convexity=1.0, smoothness=1.0, noise_variance=4.0, initial_sq_distance=4.0)
        >>> print(textbook_bound(jnp.array([0, 6]), **args))
        [8. 2.]

    References:
        L. Bottou, F. E. Curtis, J. Nocedal 2018, Optimization Methods for Large-Scale Machine Learning, Theorem 4.7
        (the same for f − f*).
    """
    total = effective_smoothness(strong_convexity, smoothness, noise_variance, noise_growth)
    _validate.check_positive("initial_sq_distance", initial_sq_distance)
    offset = 2 * total / strong_convexity
    scale = jnp.maximum(offset * initial_sq_distance, 4 * noise_variance / strong_convexity**2)
    return scale / (jnp.asarray(step) + offset)
