"""How fast the space-adaptive learning rate is bound to converge, and how fast it does.

Throughout f is μ-strongly convex and L-smooth, one step is x⁺ = x − h (∇f(x) + e) with E e = 0 and
E|e|² ≤ σ² + 2ρF, F = f(x) − f*, and q = E|x − x*|². ρ = 0 is noise of bounded variance.
"""

import numbers

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .. import _validate

__all__ = [
    "gaussian_noise_limit",
    "noise_limit",
    "one_step_bound",
    "refuted_talk_bound",
    "refuted_talk_constant",
    "space_adaptive_bound",
    "space_adaptive_constant",
    "space_adaptive_rate",
]

Values = Float[Array, "..."]


def space_adaptive_rate(excess_loss: ArrayLike, grad_sq_norm: ArrayLike) -> Values:
    """The space-adaptive learning rate h = 2 (f(x) − f*) / E|∇f_B(x)|² of exact quantities.

    It is the largest h for which the derivation of :func:`one_step_bound` gives E|x⁺ − x*|² ≤ (1 − μh) |x − x*|²;
    every 0 < h below it does too. On f = ½μ|x − x*|² it is the h with the least E|x⁺ − x*|².

    Args:
        excess_loss: F = f(x) − f* ≥ 0, in [loss], any shape.
        grad_sq_norm: E|∇f_B(x)|² ≥ 0, in [loss²/param²].

    Returns:
        h in [param²/loss]; 0 where ``excess_loss`` is not positive, so also at x* without noise.

    Example:
        >>> print(space_adaptive_rate(0.5, 1.0 + 3.0))
        0.25

    References:
        A. Oberman, ICERM 2018; B. T. Polyak 1987, Introduction to Optimization (the rule without noise, and half as
        long).
    """
    excess_loss, grad_sq_norm = jnp.asarray(excess_loss), jnp.asarray(grad_sq_norm)
    above = excess_loss > 0
    return jnp.where(above, 2 * excess_loss / jnp.where(above, grad_sq_norm, 1.0), 0.0)


def one_step_bound(
    sq_distance: ArrayLike,
    *,
    strong_convexity: float,
    smoothness: float,
    noise_variance: float,
    noise_growth: float = 0.0,
) -> Values:
    """The bound on E|x⁺ − x*|² after one space-adaptive step from |x − x*|² = q, or from E|x − x*|² = q.

    φ(q) = q − μ²q²/((L + ρ)μq + σ²)

    Derivation, with x* = 0 and g = ∇f(x): by the definition of h, h²(|g|² + E|e|²) = 2hF, so
    E|x⁺|² = q − 2h g·x + 2hF, and strong convexity, g·x ≥ F + μq/2, makes it at most (1 − μh) q. Smoothness,
    |g|² ≤ 2LF, gives h ≥ 2F/(2(L + ρ)F + σ²), which grows with F; F ≥ μq/2 makes it h ≥ μq/((L + ρ)μq + σ²). Hence
    E|x⁺|² ≤ φ(q). φ is concave, since q²/(aq + b) is convex, and does not decrease, since the slope of that is at
    most 1/a and μ²/((L + ρ)μ) ≤ 1. So for a random x, by Jensen, E φ(|x|²) ≤ φ(E|x|²).

    Args:
        sq_distance: q ≥ 0, in [param²], any shape.
        strong_convexity: μ > 0, in [loss/param²].
        smoothness: L ≥ μ, in [loss/param²].
        noise_variance: σ² ≥ 0, in [loss²/param²].
        noise_growth: ρ ≥ 0, in [loss/param²].

    Returns:
        φ(q), of the shape of ``sq_distance``.

    Raises:
        ValueError: a constant out of range.

    Example:
        >>> print(one_step_bound(4.0, strong_convexity=1.0, smoothness=1.0, noise_variance=4.0))
        2.0
    """
    smoothness = effective_smoothness(strong_convexity, smoothness, noise_variance, noise_growth)
    q = jnp.asarray(sq_distance)
    # 1/φ(q) = 1/q + μ²/((L + ρ − μ)μq + σ²) without its divisions by q; at q = 0 without noise, 0.
    kept = (smoothness - strong_convexity) * strong_convexity * q + noise_variance
    total = kept + strong_convexity**2 * q
    return q * jnp.where(total > 0, kept / jnp.where(total > 0, total, 1.0), 1.0)


def space_adaptive_constant(
    *,
    strong_convexity: float,
    smoothness: float,
    noise_variance: float,
    initial_sq_distance: float,
    noise_growth: float = 0.0,
) -> Values:
    """The constant of the proved rate, α = μ/(σ²/μ + (L + ρ − μ) q₀).

    Derivation: for φ of :func:`one_step_bound`, 1/φ(q) = 1/q + μ²/((L + ρ − μ)μq + σ²) ≥ 1/q + α as long as q ≤ q₀,
    which stays so because φ(q) ≤ q. It is sharp for L = μ: see :func:`refuted_talk_constant`.

    Args:
        strong_convexity: μ > 0, in [loss/param²].
        smoothness: L ≥ μ, in [loss/param²].
        noise_variance: σ² ≥ 0 of the minibatch gradient, in [loss²/param²].
        initial_sq_distance: q₀ > 0, |x₀ − x*|² or its mean, in [param²].
        noise_growth: ρ ≥ 0, in [loss/param²].

    Returns:
        α in [1/param²]; infinite for L = μ without noise, where one step is enough.

    Raises:
        ValueError: a constant out of range.

    Example:
        >>> args = dict(strong_convexity=1.0, smoothness=1.0, noise_variance=4.0, initial_sq_distance=4.0)
        >>> print(space_adaptive_constant(**args))
        0.25
    """
    smoothness = effective_smoothness(strong_convexity, smoothness, noise_variance, noise_growth)
    _validate.check_positive("initial_sq_distance", initial_sq_distance)
    noise = noise_variance / strong_convexity
    return strong_convexity / jnp.asarray(noise + (smoothness - strong_convexity) * initial_sq_distance)


def space_adaptive_bound(
    step: ArrayLike,
    *,
    strong_convexity: float,
    smoothness: float,
    noise_variance: float,
    initial_sq_distance: float,
    noise_growth: float = 0.0,
) -> Values:
    """The proved bound on E|x_k − x*|² of the space-adaptive rate, 1/(αk + 1/q₀), the dashed line of the figures.

    Derivation: 1/q_{k+1} ≥ 1/q_k + α by :func:`space_adaptive_constant`, k times. The same bound holds without any
    knowledge of f(x_k) or f* for the schedule :func:`inverse_step_rate`.

    Args:
        step: k ≥ 0, steps taken, any shape.
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
        >>> args = dict(strong_convexity=1.0, smoothness=2.0, noise_variance=2.0, initial_sq_distance=2.0)
        >>> print(space_adaptive_bound(jnp.arange(3), **args))
        [2.        1.3333334 1.       ]
    """
    constant = space_adaptive_constant(
        strong_convexity=strong_convexity,
        smoothness=smoothness,
        noise_variance=noise_variance,
        initial_sq_distance=initial_sq_distance,
        noise_growth=noise_growth,
    )
    return hyperbola(step, constant, initial_sq_distance)


def refuted_talk_constant(
    *,
    strong_convexity: float,
    smoothness: float,
    noise_variance: float,
    initial_sq_distance: float,
    noise_growth: float = 0.0,
) -> Values:
    """The constant claimed in the talk, μ/(σ²/(2μ) + (L − μ) q₀). It is false: for figures that show so.

    Refutation: on f = ½μ|x|² from a fixed x₀ the exact rate is h = μq₀/(μ²q₀ + σ²), and
    q₁ = (1 − μh)² q₀ + h²σ² = q₀σ²/(μ²q₀ + σ²): 1/q₁ = 1/q₀ + μ²/σ² exactly, where the claim is 1/q₀ + 2μ²/σ² at
    least. With isotropic Gaussian noise it also fails for all large k once d ≥ 3: :func:`gaussian_noise_limit`
    exceeds ½. What is true is :func:`space_adaptive_constant`; the claim is right if its σ² is read as 2 E|e|².

    Args:
        strong_convexity: μ > 0, in [loss/param²].
        smoothness: L ≥ μ, in [loss/param²].
        noise_variance: σ² ≥ 0, in [loss²/param²].
        initial_sq_distance: q₀ > 0, in [param²].
        noise_growth: 0, or an error: the claim is for noise of bounded variance.

    Returns:
        The claimed α, in [1/param²].

    Raises:
        ValueError: a constant out of range.

    Example:
        >>> args = dict(strong_convexity=1.0, smoothness=1.0, noise_variance=4.0, initial_sq_distance=4.0)
        >>> print(refuted_talk_constant(**args), "claimed", space_adaptive_constant(**args), "true")
        0.5 claimed 0.25 true
    """
    if isinstance(noise_growth, numbers.Real) and noise_growth != 0:
        msg = f"noise_growth must be 0, the talk claims nothing for other noise, got {noise_growth!r}."
        raise ValueError(msg)
    return space_adaptive_constant(
        strong_convexity=strong_convexity,
        smoothness=smoothness,
        noise_variance=noise_variance / 2,
        initial_sq_distance=initial_sq_distance,
    )


def refuted_talk_bound(
    step: ArrayLike,
    *,
    strong_convexity: float,
    smoothness: float,
    noise_variance: float,
    initial_sq_distance: float,
    noise_growth: float = 0.0,
) -> Values:
    """The bound claimed in the talk, 1/(αk + 1/q₀) with :func:`refuted_talk_constant`. It is false.

    Args:
        step: k ≥ 0, any shape.
        strong_convexity: μ > 0, in [loss/param²].
        smoothness: L ≥ μ, in [loss/param²].
        noise_variance: σ² ≥ 0, in [loss²/param²].
        initial_sq_distance: q₀ > 0, in [param²].
        noise_growth: 0, or an error: the claim is for noise of bounded variance.

    Returns:
        What was claimed, in [param²], of the shape of ``step``.

    Raises:
        ValueError: a constant out of range.

    Example:
        >>> args = dict(strong_convexity=1.0, smoothness=1.0, noise_variance=4.0, initial_sq_distance=4.0)
        >>> print(refuted_talk_bound(1, **args).round(4), "claimed", space_adaptive_bound(1, **args), "exact")
        1.3333 claimed 2.0 exact
    """
    constant = refuted_talk_constant(
        strong_convexity=strong_convexity,
        smoothness=smoothness,
        noise_variance=noise_variance,
        initial_sq_distance=initial_sq_distance,
        noise_growth=noise_growth,
    )
    return hyperbola(step, constant, initial_sq_distance)


def noise_limit(radial_fraction: ArrayLike) -> Values:
    """The limit of k q_k μ²/σ² for the space-adaptive rate on f = ½μ|x|²: 1/(1 + 2ϑ).

    ϑ = E(e·u)²/σ², u = x/|x|, is the fraction of the noise along the radius. Derivation, in the diffusion limit: near
    x* h ≈ μ|x|²/σ², so that with c = μ²/σ² the drift of r = |x|² is −2hμr + h²σ² = −cr² and its variance
    4h²rϑσ² = 4ϑcr³ a step. By Itô y = 1/r has drift c (1 + 4ϑ) and variance 4ϑcy: y/(ϑc) is a squared Bessel process
    of dimension δ = 4 + 1/ϑ, for which E[1/y] = 1/(ϑck (δ − 2)). No schedule in k alone does better than 1: its best
    choice gives 1/q_{k+1} = 1/q_k + μ²/σ² exactly. The limit is approached
    from below, the more slowly the larger ϑ: at k = 300, 2000, 10000 radial noise ±σu is at 0.27, 0.30, 0.32 on its
    way to ⅓ (standard error 0.003), while d = 5 is there from 300 on.

    Args:
        radial_fraction: ϑ in [0, 1], any shape: 0 for tangential noise, 1/d for isotropic, 1 for radial noise.

    Returns:
        The limit, in (0, 1].

    Raises:
        ValueError: a fraction outside [0, 1].

    Example:
        >>> print(noise_limit(0.0), noise_limit(0.5))
        1.0 0.5
    """
    if isinstance(radial_fraction, numbers.Real) and not 0 <= radial_fraction <= 1:
        msg = f"radial_fraction must be in [0, 1], got {radial_fraction!r}."
        raise ValueError(msg)
    return 1 / (1 + 2 * jnp.asarray(radial_fraction, jnp.result_type(radial_fraction, float)))


def gaussian_noise_limit(dimension: int) -> float:
    """The limit of k q_k μ²/σ² on f = ½μ|x|² with isotropic Gaussian noise, d/(d + 2).

    :func:`noise_limit` at ϑ = 1/d: what knowing |x_k − x*| on the path gains over the best schedule, whose limit is 1.

    Args:
        dimension: d ≥ 1.

    Returns:
        d/(d + 2).

    Raises:
        ValueError: a dimension below 1.
        TypeError: a dimension that is not an integer.

    Example:
        >>> [round(gaussian_noise_limit(d), 3) for d in (1, 2, 5, 10)]
        [0.333, 0.5, 0.714, 0.833]
    """
    _validate.check_count("dimension", dimension)
    return dimension / (dimension + 2)


def effective_smoothness(
    strong_convexity: ArrayLike, smoothness: ArrayLike, noise_variance: ArrayLike, noise_growth: ArrayLike
) -> ArrayLike:
    """L + ρ, of checked constants: noise σ² + 2ρF enters every bound here as if L were larger by ρ."""
    _validate.check_positive("strong_convexity", strong_convexity)
    _validate.check_positive("smoothness", smoothness)
    _validate.check_nonnegative("noise_variance", noise_variance)
    _validate.check_nonnegative("noise_growth", noise_growth)
    if isinstance(smoothness, numbers.Real) and isinstance(strong_convexity, numbers.Real):
        # Eigenvalues of one number may differ in the last digits.
        if smoothness < strong_convexity * (1 - 1e-6):
            msg = f"smoothness must be at least strong_convexity = {strong_convexity}, got {smoothness!r}."
            raise ValueError(msg)
        smoothness = max(smoothness, strong_convexity)
    return smoothness + noise_growth


def hyperbola(step: ArrayLike, constant: ArrayLike, start: ArrayLike) -> Values:
    """1/(constant · step + 1/start), also for an infinite constant."""
    step = jnp.asarray(step)
    taken = step > 0
    return jnp.where(taken, 1 / (constant * jnp.where(taken, step, 1) + 1 / start), start)
