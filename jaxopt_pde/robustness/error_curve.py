"""Error against the radius of the attack, and the median distance, with confidence intervals."""

import statistics
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._attack_arguments import AttackResult

__all__ = ["ErrorCurve", "error_curve"]


# float32 images in [0, 1] round by 6e-8, which is 1.5e-5 of the smallest radius in use, 1/255.
_ROUNDING = 1e-4


class ErrorCurve(NamedTuple):
    """The share of images an attack breaks within each radius.

    Attributes:
        radii: where the curve is given [r], ascending if they are the distances.
        error: share of images at distance ≤ radius [r], images misclassified from the start included.
        error_low: lower end of the Wilson interval of the error [r].
        error_high: upper end.
        median: median distance, ∞ if half of the images were not broken.
        median_low: lower end of the interval of the median.
        median_high: upper end, ∞ if too few images were broken.
    """

    radii: Float[Array, " r"]
    error: Float[Array, " r"]
    error_low: Float[Array, " r"]
    error_high: Float[Array, " r"]
    median: Float[Array, ""]
    median_low: Float[Array, ""]
    median_high: Float[Array, ""]


def error_curve(
    result: AttackResult, radii: Float[Array, " r"] | None = None, *, confidence: float = 0.95
) -> ErrorCurve:
    """err(r) = #{i: dᵢ ≤ r}/n from the distances dᵢ of the successes, and their median.

    Of :func:`minimal_distance` the curve is the exact step function of the distances found. Of :func:`pgd` at many
    radii, stacked along a leading axis, dᵢ is the smallest distance of a success: an image broken at one radius is
    broken at all larger ones. (There d ≤ 1.0001 r counts: x + a rounds, and puts an attack at r just outside.)
    Both lie below the true error, which no attack knows.

    The interval of each error is Wilson's for a binomial share; that of the median lies between two order
    statistics and holds for every distribution of distances. Both are about the drawing of the images, not about
    the attack or the training.

    Args:
        result: of an attack on n images, or of attacks at several radii with leading axes [r, n].
        radii: where to give the error [r]; None means the distances in ascending order, the corners of the steps.
        confidence: of the intervals, in (0, 1).

    Returns:
        :class:`ErrorCurve`. Jit-able; ``confidence`` is static. NaN throughout, but for the radii, if the model
        returned NaN for an image that no attack broke: such an image is not classified, which is no robustness.

    Raises:
        ValueError: arrays of other ranks, confidence outside (0, 1).
        TypeError: bare distances in place of a result: which of them are successes would be unknown.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxopt_pde import robustness
        >>> linear = lambda x: jnp.stack([x[:, 0], x[:, 1]], -1)
        >>> x, y, key = jnp.array([[0.7, 0.5], [0.9, 0.5], [0.4, 0.5]]), jnp.zeros(3, int), jax.random.key(0)
        >>> found = robustness.minimal_distance(linear, x, y, key, norm=2)
        >>> curve = robustness.error_curve(found, jnp.array([0.0, 0.2]))
        >>> print(f"{curve.error[0]:.2f} {curve.error[1]:.2f} {curve.median:.2f}")
        0.33 0.67 0.14

        By PGD at each radius, one program for all of them:

        >>> attack = lambda r: robustness.pgd(linear, x, y, key, radius=r, norm=2)
        >>> results = jax.lax.map(attack, jnp.array([0.1, 0.2]))
        >>> print(f"{robustness.error_curve(results, jnp.array([0.2])).error[0]:.2f}")
        0.67

    References:
        Wilson 1927, Probable inference. David & Nagaraja, *Order statistics*, 2003, section 7.1.
    """
    if not isinstance(confidence, float) or not 0 < confidence < 1:
        msg = f"confidence must be a number in (0, 1), got {confidence!r}."
        raise ValueError(msg)
    if not isinstance(result, AttackResult):
        msg = f"result must be the AttackResult of an attack, got {type(result).__name__}."
        raise TypeError(msg)
    distance = jnp.where(result.success, result.distance, jnp.inf)
    unclassified = jnp.isnan(result.loss) & ~result.success
    if distance.ndim not in (1, 2) or not distance.size:
        msg = f"result must hold distances [n] or [r, n] of at least one image, got shape {distance.shape}."
        raise ValueError(msg)
    if radii is not None and jnp.ndim(radii) != 1:
        msg = f"radii must have shape [r], got {jnp.shape(radii)}."
        raise ValueError(msg)
    tolerance = 1.0
    if distance.ndim == 2:
        unclassified = unclassified.any(0) & ~result.success.any(0)
        distance, tolerance = distance.min(0), 1 + _ROUNDING
    count = len(distance)
    distance = jnp.sort(distance)
    radii = distance if radii is None else jnp.asarray(radii)
    error = jnp.searchsorted(distance, radii.astype(distance.dtype) * tolerance, side="right") / count

    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (error + z**2 / (2 * count)) / (1 + z**2 / count)
    spread = z / (1 + z**2 / count) * jnp.sqrt(error * (1 - error) / count + (z / (2 * count)) ** 2)
    below = jnp.clip(jnp.where(error == 0, 0, centre - spread), 0, 1)
    above = jnp.clip(jnp.where(error == 1, 1, centre + spread), 0, 1)

    # P(the k-th smallest exceeds the median) = P(Bin(n, ½) < k): the largest k for which that is rare.
    import scipy.stats  # here, because it takes longer to import than all of jaxopt_pde

    rank = int(scipy.stats.binom.ppf((1 - confidence) / 2, count, 0.5))
    low = distance[rank - 1] if rank else jnp.zeros((), distance.dtype)
    high = distance[count - rank] if rank else jnp.full((), jnp.inf, distance.dtype)
    middle = distance[(count - 1) // 2], distance[count // 2]
    median = jnp.where(jnp.isinf(middle[1]), middle[1], (middle[0] + middle[1]) / 2)
    known = jnp.where(unclassified.any(), jnp.nan, 1).astype(distance.dtype)
    return ErrorCurve(radii, *(known * value for value in (error, below, above, median, low, high)))
