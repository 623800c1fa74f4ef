"""The absolute value, whose kink the relaxation rounds: the Huber function and its viscous sister."""

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from .. import _validate
from .problem import Problem

__all__ = ["absolute_value"]


def absolute_value(dimension: int = 1, *, slope: float = 1.0) -> Problem:
    """The sum of absolute values f(x) = s Σ |xᵢ|, with its relaxed loss at every temperature.

    At T = 0 the Huber function, u = Σ xᵢ²/(2t) where |xᵢ| ≤ st and s|xᵢ| − s²t/2 elsewhere. At T > 0, with the normal
    distribution function Φ,

        u = −T Σ log( e^{(s²t/2 − sxᵢ)/T} Φ((xᵢ − st)/√(tT)) + e^{(s²t/2 + sxᵢ)/T} Φ((−xᵢ − st)/√(tT)) ).

    Args:
        dimension: d ≥ 1.
        slope: s > 0, in [loss/param].

    Returns:
        :class:`Problem` on [−2, 2]^d. The one minimiser, 0, is a kink: no Hessian there.

    Raises:
        ValueError: ``dimension`` below 1, ``slope`` not positive.
        TypeError: a ``dimension`` that is not an integer.

    Example:
        >>> import jax.numpy as jnp
        >>> problem = absolute_value()
        >>> print(problem.exact(jnp.array([0.5]), 1.0, 0.0), problem.exact(jnp.array([2.0]), 1.0, 0.0))
        0.125 1.5
    """
    _validate.check_count("dimension", dimension)
    _validate.check_positive("slope", slope)

    def loss(point):
        return slope * jnp.sum(point * jnp.sign(point))  # unlike abs, with gradient 0 at the minimiser

    def exact(point, smoothing_time, temperature):
        tiny = jnp.finfo(point.dtype).tiny
        reach = slope * smoothing_time
        distance = jnp.abs(point)
        inside = distance <= reach
        parabola = jnp.where(inside, distance, 0.0) ** 2 / (2 * jnp.maximum(smoothing_time, tiny))
        huber = jnp.where(inside, parabola, slope * (distance - 0.5 * reach))
        # Both branches of a `where` are differentiated, so the one that is not taken sees T = 1.
        heated = temperature > 0
        safe = jnp.where(heated, temperature, 1.0)
        deviation = jnp.sqrt(jnp.maximum(smoothing_time * safe, tiny))
        right = slope * (0.5 * reach - point) / safe + log_ndtr((point - reach) / deviation)
        left = slope * (0.5 * reach + point) / safe + log_ndtr((-point - reach) / deviation)
        return jnp.sum(jnp.where(heated, -safe * jnp.logaddexp(right, left), huber))

    corner = np.full(dimension, 2.0)
    return Problem(
        name="absolute value",
        loss=loss,
        lower=-corner,
        upper=corner,
        minimisers=np.zeros((1, dimension)),
        minimum=0.0,
        exact=exact,
    )
