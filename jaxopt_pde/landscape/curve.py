"""Ways from one solution to another: the straight line and the quadratic Bézier curve."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _validate
from .._typing import Params

__all__ = ["Curve", "check_ends", "curve_point", "interpolate", "straight_line"]


class Curve(NamedTuple):
    """The quadratic Bézier curve φ(s) = (1 − s)² start + 2 s (1 − s) control + s² end, 0 ≤ s ≤ 1.

    Attributes:
        start: φ(0), a tree of parameters.
        control: the point that pulls the curve, which does not pass through it; midway between the ends it gives the
            straight line at constant speed.
        end: φ(1).
    """

    start: Params
    control: Params
    end: Params


def interpolate(start: Params, end: Params, fractions: float | Float[Array, "..."]) -> Params:
    """(1 − s) start + s end.

    Args:
        start: a tree of parameters, met exactly at s = 0.
        end: another like it, met exactly at s = 1.
        fractions: s, a number or an array; beyond [0, 1] the line goes on.

    Returns:
        A tree like ``start`` whose leaves have the axes of ``fractions`` in front, in the dtypes of ``start``.

    Raises:
        ValueError, TypeError: another tree, or leaves that are not real and floating.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> print(landscape.interpolate(jnp.zeros(2), jnp.array([4.0, 8.0]), jnp.array([0.25, 0.5, 1.0])))
        [[1. 2.]
         [2. 4.]
         [4. 8.]]
    """
    check_ends(start, end)
    s = jnp.asarray(fractions)
    return _weighted((1 - s, s), (start, end))


def straight_line(start: Params, end: Params) -> Curve:
    """The line from ``start`` to ``end`` as a curve, φ(s) = (1 − s) start + s end.

    Args:
        start: a tree of parameters.
        end: another like it.

    Returns:
        :class:`Curve` with the control point midway.

    Raises:
        ValueError, TypeError: another tree, or leaves that are not real and floating.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> line = landscape.straight_line(jnp.array([0.0]), jnp.array([2.0]))
        >>> print(landscape.curve_losses(jnp.sum, line, jnp.array([0.0, 0.25, 1.0])).mean)
        [0.  0.5 2. ]
    """
    return Curve(start, interpolate(start, end, 0.5), end)


def curve_point(curve: Curve, fraction: float | Float[Array, "..."]) -> Params:
    """φ(s) on a :class:`Curve`.

    Args:
        curve: from :func:`connect` or :func:`straight_line`.
        fraction: s in [0, 1], a number or an array. 0 and 1 give the ends to the last bit.

    Returns:
        A tree like ``curve.start`` whose leaves have the axes of ``fraction`` in front.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> curve = landscape.Curve(jnp.array([0.0, 0.0]), jnp.array([1.0, 2.0]), jnp.array([2.0, 0.0]))
        >>> print(landscape.curve_point(curve, 0.5))
        [1. 1.]
    """
    s = jnp.asarray(fraction)
    return _weighted(((1 - s) ** 2, 2 * s * (1 - s), s**2), curve)


def check_ends(start: Params, end: Params) -> None:
    """Raises unless both are trees of real floating arrays of the same shapes."""
    _validate.check_float_tree("start", start)
    _validate.check_float_tree("end", end)
    _validate.check_same_tree("end", end, start)


def _weighted(weights: tuple[Float[Array, "..."], ...], points: tuple[Params, ...]) -> Params:
    def add(*leaves):
        dtype = jnp.promote_types(jnp.result_type(leaves[0]), jnp.float32)
        terms = [
            weight.astype(dtype).reshape(weight.shape + (1,) * jnp.ndim(leaf))
            * jnp.asarray(leaf, dtype)[(None,) * weight.ndim]
            for weight, leaf in zip(weights, leaves, strict=True)
        ]
        return sum(terms[1:], terms[0]).astype(jnp.result_type(leaves[0]))

    return jax.tree.map(add, *points)
