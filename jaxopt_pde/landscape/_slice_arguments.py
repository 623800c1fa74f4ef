"""What a slice is made of: its arguments checked and its points laid out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from .. import _validate
from .._arithmetic import cast_up, dot, squared_norm
from .._sharding import check_axis_sharding
from .._typing import Params
from ._batches import Batches, Loader, make_batches
from ._perturbations import scalar_dtype
from .relaxation import Relaxation

__all__ = ["Arguments", "check_arguments"]


class Arguments(NamedTuple):
    """What a slice is made of, checked.

    Attributes:
        loss_fn: see ``slice``, as are ``params``, ``directions``, ``smoothing``, ``points_at_once``, ``sharding``.
        params: arrays.
        directions: a tuple of arrays.
        points: coordinates of all points, [points, n], the last axis of the lattice running fastest.
        shape: of the lattice.
        spacings: distance in [param] of neighbouring points along each axis; None but for ``"plane"``.
        smoothing: how.
        key: a typed key, or None where nothing is drawn.
        batches: None where the loss has no data.
        points_at_once: under one vmap.
        sharding: of the points.
    """

    loss_fn: Callable[..., Any]
    params: Params
    directions: tuple[Params, ...]
    points: Float[Array, "points n"]
    shape: tuple[int, ...]
    spacings: Float[Array, " n"] | None
    smoothing: Relaxation | None
    key: Array | None
    batches: Batches | Loader | None
    points_at_once: int
    sharding: NamedSharding | None


def check_arguments(
    loss_fn, params, directions, coordinates, smoothing, key, data, batch_size, points_at_once, sharding
) -> Arguments:
    """Raises on bad arguments of ``slice``, in its words; lays out the points."""
    if not callable(loss_fn):
        msg = f"loss_fn must be a function of the parameters, got {loss_fn!r}."
        raise TypeError(msg)
    _validate.check_float_tree("params", params)
    params = jax.tree.map(jnp.asarray, params)
    directions = _checked_directions(directions, params)
    coordinates = _checked_coordinates(coordinates, len(directions))
    _validate.check_count("points_at_once", points_at_once)
    check_axis_sharding("sharding", sharding, "points", 0)
    if data is None and batch_size is not None:
        msg = f"batch_size must be None without data, got {batch_size!r}."
        raise ValueError(msg)
    batches = None if data is None else make_batches(data, batch_size)
    spacings = None
    if smoothing is not None and not isinstance(smoothing, Relaxation):
        msg = f"smoothing must be a landscape.Relaxation or None, got {smoothing!r}."
        raise TypeError(msg)
    if smoothing is not None and smoothing.samples:
        if key is None:
            msg = f"key must be given for smoothing with method={smoothing.method!r}, which draws samples, got None."
            raise ValueError(msg)
        key = _validate.as_key(key)
    else:
        key = None
        if smoothing is not None:
            spacings = _checked_spacings(directions, coordinates)
    dtype = scalar_dtype(params)
    lattice = jnp.meshgrid(*(jnp.asarray(c, dtype) for c in coordinates), indexing="ij")
    points = jnp.stack([axis.ravel() for axis in lattice], axis=1)
    return Arguments(
        loss_fn=loss_fn,
        params=params,
        directions=directions,
        points=points,
        shape=lattice[0].shape,
        spacings=spacings,
        smoothing=smoothing,
        key=key,
        batches=batches,
        points_at_once=points_at_once,
        sharding=sharding,
    )


def _checked_directions(directions: Any, params: Params) -> tuple[Params, ...]:
    whole = jax.tree.structure(directions) == jax.tree.structure(params)
    same_shapes = whole and all(
        np.shape(d) == p.shape
        for d, p in zip(jax.tree.leaves(directions), jax.tree.leaves(params), strict=True)
    )
    if not isinstance(directions, (tuple, list)) or same_shapes or not directions:
        got = "one tree like params" if same_shapes else repr(type(directions).__name__)
        got = "none" if isinstance(directions, (tuple, list)) and not directions else got
        msg = f"directions must be a tuple of at least one tree like params, got {got}: write (direction,) for a line."
        raise ValueError(msg)
    for number, direction in enumerate(directions):
        name = f"directions[{number}]"
        _validate.check_same_tree(name, direction, params)
        _validate.check_float_tree(name, direction)
        size = squared_norm(cast_up(jax.tree.map(jnp.asarray, direction)), jnp.float32)
        if not isinstance(size, jax.core.Tracer) and not (size > 0 and np.isfinite(size)):
            msg = f"{name} must be finite and not zero, got norm {float(size) ** 0.5:g}."
            raise ValueError(msg)
    return tuple(jax.tree.map(jnp.asarray, direction) for direction in directions)


def _checked_coordinates(coordinates: Any, number: int) -> list[Any]:
    if not isinstance(coordinates, (tuple, list)) or len(coordinates) != number:
        got = (
            f"{len(coordinates)}"
            if isinstance(coordinates, (tuple, list))
            else repr(type(coordinates).__name__)
        )
        msg = f"coordinates must be a tuple of one 1-D array a direction ({number}), got {got}."
        raise ValueError(msg)
    checked = []
    for axis, values in enumerate(coordinates):
        name = f"coordinates[{axis}]"
        if np.ndim(values) != 1 or not np.size(values):
            msg = f"{name} must be a 1-D array of at least one number, got shape {np.shape(values)}."
            raise ValueError(msg)
        if not isinstance(values, jax.core.Tracer):
            values = np.asarray(values)
            if values.dtype.kind not in "fiu" and not jnp.issubdtype(values.dtype, jnp.floating):
                msg = f"{name} must hold real numbers, got dtype {values.dtype}."
                raise TypeError(msg)
            if not np.all(np.isfinite(values)):
                msg = f"{name} must be finite, got {values[~np.isfinite(values)][0]}."
                raise ValueError(msg)
        checked.append(values)
    return checked


def _checked_spacings(directions: tuple[Params, ...], coordinates: list[Any]) -> Float[Array, " n"]:
    """Distances of neighbouring points; raises unless they span a grid with right angles."""
    up = [cast_up(direction) for direction in directions]
    dtype = scalar_dtype(up[0])
    lengths = [jnp.sqrt(squared_norm(direction, dtype)) for direction in up]
    for i in range(len(up)):
        for j in range(i):
            cosine = dot(up[i], up[j], dtype) / (lengths[i] * lengths[j])
            if not isinstance(cosine, jax.core.Tracer) and abs(cosine) > 1e-4:
                msg = (
                    f"directions[{j}] and directions[{i}] must be orthogonal for method='plane', got cosine "
                    f"{float(cosine):.3g}: take random_directions(..., orthogonal=True), the orthonormal directions of "
                    "plane_through or pca_plane, or method='heat'."
                )
                raise ValueError(msg)
    spacings = []
    for axis, (values, length) in enumerate(zip(coordinates, lengths, strict=True)):
        if len(values) < 6:
            msg = f"coordinates[{axis}] must have at least 6 points for method='plane', got {len(values)}."
            raise ValueError(msg)
        steps = np.diff(values) if isinstance(values, np.ndarray) else jnp.diff(values)
        if isinstance(values, np.ndarray):
            largest, least = np.max(steps), np.min(steps)
            if least * largest <= 0 or abs(largest - least) > 1e-3 * abs(largest):
                msg = (
                    f"coordinates[{axis}] must be equally spaced for method='plane', got steps from {least:.6g} to "
                    f"{largest:.6g}: take linspace, or method='cole_hopf' or 'heat', which need no grid."
                )
                raise ValueError(msg)
        spacings.append(length * jnp.abs(jnp.asarray(values[-1] - values[0], dtype)) / (len(values) - 1))
    return jnp.stack(spacings)
