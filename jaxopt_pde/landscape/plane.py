"""A plane in the space of parameters: where it is spanned, and where given points fall on it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _validate
from .._arithmetic import add_scaled, dot
from .._typing import Params

__all__ = ["Plane", "plane_through", "project"]


class Plane(NamedTuple):
    """Points ``origin + a·directions[0] + b·directions[1]``, in the units of the parameters.

    Attributes:
        origin: a tree like the parameters.
        directions: two orthonormal trees like it, under the inner product summed over all leaves.
        coordinates: [points, 2], (a, b) of the points the plane was made from; for a plane fitted to many points,
            of their orthogonal projections.
    """

    origin: Params
    directions: tuple[Params, Params]
    coordinates: Float[Array, "points 2"]


def project(plane: Plane, params: Params) -> tuple[Float[Array, "2"], Float[Array, ""]]:
    """Coordinates of the orthogonal projection of ``params``, and its distance from the plane.

    Args:
        plane: onto which.
        params: a tree like ``plane.origin``.

    Returns:
        (a, b), and |params − origin − a·d₀ − b·d₁| in [param].

    Raises:
        ValueError: ``params`` is another tree.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> corners = [jnp.array([0.0, 0.0, 0.0]), jnp.array([2.0, 0.0, 0.0]), jnp.array([0.0, 2.0, 0.0])]
        >>> coordinates, distance = landscape.project(landscape.plane_through(*corners), jnp.array([1.0, 1.0, 3.0]))
        >>> print(coordinates, distance)
        [1. 1.] 3.0
    """
    _validate.check_same_tree("params", params, plane.origin)
    offset = jax.tree.map(jnp.subtract, params, plane.origin)
    coordinates = []
    for direction in plane.directions:
        coordinates.append(dot(offset, direction, _dtype(offset)))
        offset = add_scaled(offset, -coordinates[-1], direction)
    return jnp.stack(coordinates), jnp.sqrt(dot(offset, offset, _dtype(offset)))


def plane_through(first: Params, second: Params, third: Params) -> Plane:
    """The plane through three points, such as three solutions: the first at (0, 0), the second on the first axis.

    Args:
        first: a tree of parameters; the plane's origin.
        second: another, at (|second − first|, 0).
        third: a third, above or below.

    Returns:
        :class:`Plane` with the coordinates of the three points, [3, 2].

    Raises:
        ValueError: other trees, or points on one line (checked where they are concrete).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> plane = landscape.plane_through(jnp.zeros(3), jnp.array([0.0, 3.0, 0.0]), jnp.array([1.0, 1.0, 0.0]))
        >>> print(plane.coordinates)
        [[0. 0.]
         [3. 0.]
         [1. 1.]]

    References:
        Garipov, Izmailov, Podoprikhin, Vetrov & Wilson 2018, Loss surfaces, mode connectivity and fast ensembling of
        DNNs, appendix A.3.
    """
    _validate.check_same_tree("second", second, first)
    _validate.check_same_tree("third", third, first)
    _validate.check_float_tree("first", first)
    across, up = (jax.tree.map(jnp.subtract, point, first) for point in (second, third))
    dtype = _dtype(across)
    width = jnp.sqrt(dot(across, across, dtype))
    whole = jnp.sqrt(dot(up, up, dtype))
    across = _over(across, width)
    along = dot(up, across, dtype)
    up = add_scaled(up, -along, across)
    along, up = along + (rest := dot(up, across, dtype)), add_scaled(up, -rest, across)
    height = jnp.sqrt(dot(up, up, dtype))
    if not isinstance(height, jax.core.Tracer):
        least = 10 * float(jnp.finfo(dtype).eps)
        if not (width > 0 and height > least * whole):
            msg = (
                "first, second and third must not lie on one line, got points at distance "
                f"{float(width):.3g} and {float(whole):.3g} from the first, the third {float(height):.3g} off the line."
            )
            raise ValueError(msg)
    zero = jnp.zeros([], dtype)
    coordinates = jnp.stack([jnp.stack(p) for p in ((zero, zero), (width, zero), (along, height))])
    return Plane(first, (across, _over(up, height)), coordinates)


def _dtype(tree: Any) -> jnp.dtype:
    return jnp.promote_types(jnp.result_type(*jax.tree.leaves(tree)), jnp.float32)


def _over(tree: Params, number: Float[Array, ""]) -> Params:
    return jax.tree.map(lambda leaf: (leaf / number).astype(leaf.dtype), tree)
