"""Uniform grids in one to three dimensions and their boundaries."""

import dataclasses
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _validate

__all__ = ["BOUNDARIES", "Boundary", "Grid", "pad"]

Boundary = Literal["neumann", "periodic", "extrapolate"]
BOUNDARIES: tuple[str, ...] = get_args(Boundary)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Grid:
    """A uniform grid on a box, in 1-D to 3-D: a pytree without leaves, so static under ``jit``.

    Make one with :meth:`Grid.uniform`.

    Attributes:
        lower: lower corner of the box, one float an axis, in [param].
        upper: upper corner. On a periodic axis it is the image of ``lower`` and not a grid point.
        shape: points along each axis.
        boundary: one name an axis: ``"neumann"`` (zero normal derivative, even reflection about the end
            points), ``"periodic"``, or ``"extrapolate"`` (the function goes on linearly outside).
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    shape: tuple[int, ...]
    boundary: tuple[str, ...]

    @classmethod
    def uniform(
        cls,
        lower: float | Sequence[float],
        upper: float | Sequence[float],
        shape: int | Sequence[int],
        *,
        boundary: Boundary | Sequence[Boundary] = "neumann",
    ) -> "Grid":
        """A grid of ``shape`` points between ``lower`` and ``upper``.

        Args:
            lower: lower corner; a number in 1-D.
            upper: upper corner; a number in 1-D.
            shape: points along each axis (at least 2); an integer in 1-D.
            boundary: one name for all axes, or one an axis.

        Returns:
            The grid. A periodic axis of n points has spacing (upper − lower)/n, the others (upper − lower)/(n − 1).

        Raises:
            ValueError, TypeError: lengths that differ, more than 3 dimensions, ``lower`` not below ``upper``, fewer
                than 2 points, an unknown boundary (the message lists the choices).

        Example:
            >>> from jaxopt_pde import pde
            >>> grid = pde.Grid.uniform((-1.0, 0.0), (1.0, 2.0), (5, 3), boundary="extrapolate")
            >>> grid.spacing, grid.points.shape
            ((0.5, 1.0), (5, 3, 2))
        """
        shape = _as_tuple("shape", shape)
        lower, upper = _as_tuple("lower", lower), _as_tuple("upper", upper)
        boundary = (boundary,) * len(shape) if isinstance(boundary, str) else tuple(boundary)
        if not 1 <= len(shape) <= 3:
            msg = (
                f"shape must have 1 to 3 axes, got {shape!r}. A grid's cost grows as points^dimension: in higher "
                "dimensions use the sampling methods of jaxopt_pde.smoothing (langevin, cole_hopf, heat)."
            )
            raise ValueError(msg)
        for name, value in (("lower", lower), ("upper", upper), ("boundary", boundary)):
            if len(value) != len(shape):
                msg = (
                    f"{name} must have one entry an axis ({len(shape)}, from shape={shape!r}), got {value!r}."
                )
                raise ValueError(msg)
        for n in shape:
            _validate.check_count("shape", n, minimum=2)
        for name in boundary:
            _validate.check_choice("boundary", name, BOUNDARIES)
        for low, high in zip(lower, upper, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                msg = f"lower must be finite and below upper on every axis, got {lower!r} and {upper!r}."
                raise ValueError(msg)
        return cls(
            tuple(float(x) for x in lower),
            tuple(float(x) for x in upper),
            tuple(int(n) for n in shape),
            boundary,
        )

    @property
    def ndim(self) -> int:
        """Number of axes, 1 to 3."""
        return len(self.shape)

    @property
    def lengths(self) -> tuple[float, ...]:
        """Side lengths of the box."""
        return tuple(high - low for low, high in zip(self.lower, self.upper, strict=True))

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbouring points along each axis."""
        return tuple(
            length / (n if boundary == "periodic" else n - 1)
            for length, n, boundary in zip(self.lengths, self.shape, self.boundary, strict=True)
        )

    @property
    def axes(self) -> tuple[Array, ...]:
        """The coordinates along each axis, in the default float dtype."""
        return tuple(
            jnp.asarray(low + step * np.arange(n))
            for low, step, n in zip(self.lower, self.spacing, self.shape, strict=True)
        )

    @property
    def points(self) -> Float[Array, "*shape ndim"]:
        """All grid points."""
        return jnp.stack(jnp.meshgrid(*self.axes, indexing="ij"), axis=-1)

    def evaluate(self, loss: Callable[[Float[Array, " ndim"]], Float[Array, ""]]) -> Float[Array, "*shape"]:
        """``loss`` at every grid point.

        Args:
            loss: function of one point [d] that gives a scalar; in 1-D [1] will do.

        Returns:
            The values, [*shape].

        Raises:
            ValueError: the loss gives more than one number.
        """
        values = jax.vmap(loss)(self.points.reshape(-1, self.ndim))
        if values.shape[1:] not in ((), (1,) * (self.ndim == 1)):
            msg = f"loss must give a scalar at a point of shape ({self.ndim},), got shape {values.shape[1:]}."
            raise ValueError(msg)
        return values.reshape(self.shape)


def _as_tuple(name: str, value) -> tuple:
    if isinstance(value, numbers.Number):
        return (value,)
    try:
        return tuple(np.asarray(value).tolist()) if not isinstance(value, tuple) else value
    except TypeError:
        msg = f"{name} must be a number or a sequence of numbers, got {value!r}."
        raise TypeError(msg) from None


def pad(values: Float[Array, "..."], axis: int, width: int, boundary: Boundary) -> Float[Array, "..."]:
    """Adds ``width`` ghost points at both ends of one axis.

    Args:
        values: grid function; other axes are left alone.
        axis: which axis.
        width: ghost points at each end, less than the points of the axis.
        boundary: ``"neumann"`` reflects about the end points, ``"periodic"`` wraps, ``"extrapolate"`` goes on
            linearly from the last two points.

    Returns:
        The padded array.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde.pde.grid import pad
        >>> for boundary in ("neumann", "periodic", "extrapolate"):
        ...     print(pad(jnp.array([0.0, 1.0, 3.0]), 0, 1, boundary))
        [1. 0. 1. 3. 1.]
        [3. 0. 1. 3. 0.]
        [-1.  0.  1.  3.  5.]
    """
    n = values.shape[axis]
    part = lambda start, stop: jax.lax.slice_in_dim(values, start, stop, axis=axis)
    if boundary == "periodic":
        left, right = part(n - width, n), part(0, width)
    elif boundary == "neumann":
        left = jnp.flip(part(1, 1 + width), axis)
        right = jnp.flip(part(n - 1 - width, n - 1), axis)
    else:
        shape = [1] * values.ndim
        shape[axis] = width
        steps = jnp.arange(1, width + 1, dtype=values.dtype).reshape(shape)
        left = part(0, 1) + jnp.flip(steps, axis) * (part(0, 1) - part(1, 2))
        right = part(n - 1, n) + steps * (part(n - 1, n) - part(n - 2, n - 1))
    return jnp.concatenate([left, values, right], axis)
