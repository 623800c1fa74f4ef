"""The quartic double well."""

import numpy as np

from .. import _validate
from .problem import Problem, sort_by_value

__all__ = ["double_well"]


def double_well(*, half_distance: float = 1.0, barrier: float = 1.0, tilt: float = 0.2) -> Problem:
    """The quartic double well f(x) = B (z² − 1)² + κ z, z = x/a, in one dimension.

    A positive tilt makes the left well the global one. No closed form of u is known; the heat limit is the
    polynomial B (z⁴ + 6 z²v + 3 v² − 2 z² − 2 v + 1) + κ z with v = variance/a².

    Args:
        half_distance: a > 0: without tilt the wells are at ±a, in [param].
        barrier: B > 0: without tilt the barrier is as high, in [loss].
        tilt: κ, in [loss]; |κ| < 8B/(3√3) ≈ 1.54 B, or there is one well only.

    Returns:
        :class:`Problem` on [−2a, 2a], with both minimisers and, in ``saddles``, the top of the barrier.

    Raises:
        ValueError: a length or a height that is not positive, or too strong a tilt.

    Example:
        >>> problem = double_well(tilt=0.0)
        >>> problem.minimisers.tolist(), problem.minimum, problem.saddles.tolist()
        ([[-1.0], [1.0]], 0.0, [[0.0]])
    """
    _validate.check_positive("half_distance", half_distance)
    _validate.check_positive("barrier", barrier)
    if not abs(tilt) < 8 * barrier / 27**0.5:
        msg = f"tilt must be less than 8/(3√3) barrier = {8 * barrier / 27**0.5:.6g} in size, got {tilt!r}."
        raise ValueError(msg)

    def height(z):
        return barrier * (z**2 - 1) ** 2 + tilt * z

    def loss(point):
        return height(point[0] / half_distance)

    def heat(point, variance):
        z, v = point[0] / half_distance, variance / half_distance**2
        return barrier * (z**4 + 6 * z**2 * v + 3 * v**2 - 2 * z**2 - 2 * v + 1) + tilt * z

    # z³ − z + κ/(4B) = 0 has three real roots, 2/√3 cos of an angle and its thirds of a turn.
    angle = np.arccos(-(27**0.5) * tilt / (8 * barrier)) / 3
    roots = 2 / 3**0.5 * np.cos(angle - 2 * np.pi * np.array([0.0, 1.0, 2.0]) / 3)
    for _ in range(3):
        roots = roots - (roots**3 - roots + tilt / (4 * barrier)) / (3 * roots**2 - 1)
    right, left, middle = roots[0], roots[2], roots[1]
    wells = np.array([left, right])
    minimisers, minimum = sort_by_value(half_distance * wells[:, None], height(wells))
    return Problem(
        name="double well",
        loss=loss,
        lower=[-2 * half_distance],
        upper=[2 * half_distance],
        minimisers=minimisers,
        minimum=minimum,
        saddles=[[half_distance * middle]],
        heat=heat,
    )
