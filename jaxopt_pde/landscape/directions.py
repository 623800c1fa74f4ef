"""Directions for slices: random ones, and the length of each filter taken from the parameters."""

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from .. import _noise, _validate
from .._arithmetic import cast_like, cast_up, dot, squared_norm
from .._typing import Params

__all__ = ["filter_normalized", "random_directions"]

Vectors = Literal["zero", "keep"]
Normalization = Literal["filter", "leaf", "none"]
Groups = Callable[[Params, Params], Any]
"""Inner products of two trees within each group of entries: a tree of arrays that broadcast to the leaves."""


def filter_normalized(
    direction: Params, params: Params, *, filter_axis: int = -1, vectors: Vectors = "zero"
) -> Params:
    r"""Gives every filter of a direction the norm that the filter has in the parameters.

        dᵢⱼ ← dᵢⱼ |pᵢⱼ| / |dᵢⱼ|      for filter j of leaf i.

    Scaling the weights into a ReLU unit by a > 0 and those out of it by 1/a leaves the network as it is but stretches
    its landscape. With directions made this way a slice does not see such a change, so that slices of different
    networks can be compared.

    Args:
        direction: a tree like ``params``.
        params: the parameters at the centre of the slice.
        filter_axis: the axis of output units: a filter is all entries with one index there. −1 for Flax, Haiku and
            Keras kernels [..., in, out], 0 for Equinox and PyTorch weights [out, in, ...].
        vectors: leaves with at most one axis (biases, scales and shifts of normalisation layers) have no filters:
            ``"zero"`` leaves them out of the direction, as Li et al. do, ``"keep"`` gives each the norm of its leaf.

    Returns:
        A tree with the dtypes of ``params``. Filters that vanish in one of the two are zero.

    Raises:
        ValueError: another tree, or (where it is concrete) a direction of which nothing is left.
        TypeError: leaves that are not real and floating.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> params = {"kernel": jnp.array([[3.0, 0.5], [4.0, 0.0]]), "bias": jnp.array([1.0, 2.0])}
        >>> direction = {"kernel": jnp.array([[1.0, 0.0], [0.0, -9.0]]), "bias": jnp.array([1.0, 1.0])}
        >>> scaled = landscape.filter_normalized(direction, params)
        >>> print(scaled["kernel"], scaled["bias"])
        [[ 5.   0. ]
         [ 0.  -0.5]] [0. 0.]

    References:
        Li, Xu, Taylor, Studer & Goldstein 2018, Visualizing the loss landscape of neural nets, section 4.
    """
    _check_trees(direction, params)
    _validate.check_choice("vectors", vectors, get_args(Vectors))
    _check_filter_axis(filter_axis, params)
    scaled = _normalized(direction, params, _within_filters(filter_axis), vectors)
    _check_not_zero("direction", scaled, direction, vectors)
    return scaled


def random_directions(
    key: Key[Array, ""],
    params: Params,
    num: int = 2,
    *,
    normalization: Normalization = "filter",
    filter_axis: int = -1,
    vectors: Vectors = "zero",
    orthogonal: bool = False,
) -> tuple[Params, ...]:
    r"""Gaussian directions, by default filter-normalised.

    In d dimensions the cosine of the angle between two of them is about N(0, 1/d), so large networks need no
    orthogonalisation. ``orthogonal=True`` makes it exact: Gram and Schmidt's procedure within each filter, before the
    norms are set, leaves each direction's law and its filter norms as they were.

    Args:
        key: typed key (or integer seed).
        params: the parameters at the centre of the slice, any pytree of real floating arrays.
        num: n ≥ 1, how many (static).
        normalization: ``"filter"``: see :func:`filter_normalized`; ``"leaf"``: every leaf gets the norm of that of
            ``params``; ``"none"``: independent standard normals, whose norm is about √d.
        filter_axis: the axis of output units, for ``"filter"``.
        vectors: ``"zero"`` or ``"keep"`` for leaves with at most one axis; ``"none"`` keeps them as they are drawn.
        orthogonal: make the directions orthogonal to one another within each filter (leaf, whole tree), which must
            have at least n entries.

    Returns:
        n trees like ``params``.

    Raises:
        ValueError, TypeError: a setting out of range, filters with fewer than n entries where they shall be orthogonal,
            or directions of which nothing is left, as where all leaves are vectors.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]]), "bias": jnp.zeros(2)}
        >>> first, second = landscape.random_directions(jax.random.key(0), params, orthogonal=True)
        >>> overlap = jnp.vdot(first["kernel"], second["kernel"])
        >>> print(jnp.linalg.norm(first["kernel"], axis=0).round(4), abs(overlap) < 1e-5)
        [5. 2.] True

    References:
        Li, Xu, Taylor, Studer & Goldstein 2018, Visualizing the loss landscape of neural nets. Orthogonality within
        filters is our own.
    """
    _validate.check_count("num", num)
    _validate.check_choice("normalization", normalization, get_args(Normalization))
    _validate.check_choice("vectors", vectors, get_args(Vectors))
    _validate.check_float_tree("params", params)
    params = jax.tree.map(jnp.asarray, params)
    _check_filter_axis(filter_axis, params)
    if orthogonal:
        _check_room(params, num, normalization, filter_axis, vectors)
    directions = _draw(_validate.as_key(key), params, num, normalization, filter_axis, vectors, orthogonal)
    if normalization != "none":
        for direction in directions:
            _check_not_zero("params", direction, params, vectors)
    return directions


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _draw(key, params: Params, num: int, normalization, filter_axis: int, vectors, orthogonal: bool):
    like = cast_up(params)
    groups = {"filter": _within_filters(filter_axis), "leaf": _within_leaves, "none": _within_tree}[
        normalization
    ]
    drawn = [_noise.draw_noise(k, like, "gaussian") for k in jax.random.split(key, num)]
    if orthogonal:
        drawn = _orthogonal(drawn, groups)
    if normalization == "none":
        return tuple(cast_like(direction, params) for direction in drawn)
    return tuple(_normalized(direction, params, groups, vectors) for direction in drawn)


def _within_filters(filter_axis: int) -> Groups:
    def product(a, b):
        axes = [axis for axis in range(a.ndim) if a.ndim < 2 or axis != filter_axis % a.ndim]
        return jnp.sum(a * b, axis=axes, keepdims=True)

    return lambda a, b: jax.tree.map(product, a, b)


def _within_leaves(a: Params, b: Params) -> Any:
    return jax.tree.map(lambda x, y: jnp.sum(x * y, keepdims=True), a, b)


def _within_tree(a: Params, b: Params) -> Any:
    dtype = jnp.result_type(*jax.tree.leaves(a))
    total = dot(a, b, dtype)
    return jax.tree.map(lambda x: total.astype(x.dtype).reshape([1] * x.ndim), a)


def _normalized(direction: Params, params: Params, groups: Groups, vectors: str) -> Params:
    params = jax.tree.map(jnp.asarray, params)
    up, like = cast_up(jax.tree.map(jnp.asarray, direction)), cast_up(params)

    def scale(d, square, wanted, p):
        if p.ndim < 2 and vectors == "zero":
            return jnp.zeros_like(p)
        safe = jnp.where(square > 0, square, 1)
        return (d * (jnp.sqrt(wanted) / jnp.sqrt(safe)).astype(d.dtype)).astype(p.dtype)

    return jax.tree.map(scale, up, groups(up, up), groups(like, like), params)


def _orthogonal(drawn: list[Params], groups: Groups) -> list[Params]:
    """Gram-Schmidt within the groups, twice for the sake of rounding; the norms change."""
    done: list[Params] = []
    for tree in drawn:
        for other in (*done, *done):
            safe = jax.tree.map(lambda s: jnp.where(s > 0, s, 1), groups(other, other))
            share = jax.tree.map(jnp.divide, groups(tree, other), safe)
            tree = jax.tree.map(lambda d, s, o: d - s * o, tree, share, other)
        done.append(tree)
    return done


def _check_trees(direction: Any, params: Any) -> None:
    _validate.check_float_tree("params", params)
    _validate.check_same_tree("direction", direction, params)
    _validate.check_float_tree("direction", direction)


def _check_filter_axis(filter_axis: Any, params: Params) -> None:
    _validate.check_count("filter_axis", filter_axis, minimum=-100)
    for path, leaf in jax.tree.leaves_with_path(params):
        if leaf.ndim > 1 and not -leaf.ndim <= filter_axis < leaf.ndim:
            where = "params" + jax.tree_util.keystr(path)
            msg = f"filter_axis must be an axis of every kernel, got {filter_axis!r}: {where} has shape {leaf.shape}."
            raise ValueError(msg)


def _check_room(params: Params, num: int, normalization: str, filter_axis: int, vectors: str) -> None:
    """Raises where a group has fewer entries than there are to be orthogonal directions."""
    if normalization == "none":
        sizes = {"params": sum(leaf.size for leaf in jax.tree.leaves(params))}
    else:
        sizes = {}
        for path, leaf in jax.tree.leaves_with_path(params):
            filters = leaf.shape[filter_axis] if normalization == "filter" and leaf.ndim > 1 else 1
            if leaf.ndim > 1 or vectors == "keep":
                sizes["params" + jax.tree_util.keystr(path)] = leaf.size // max(filters, 1)
    for where, size in sizes.items():
        if size < num:
            msg = (
                f"orthogonal=True needs at least num={num} entries in every group, got {size} in those of {where} with "
                f"normalization={normalization!r}: take another normalization, or orthogonal=False."
            )
            raise ValueError(msg)


def _check_not_zero(name: str, scaled: Params, given: Params, vectors: str) -> None:
    size = squared_norm(cast_up(scaled), jnp.float32)
    if isinstance(size, jax.core.Tracer) or size > 0:
        return
    given = squared_norm(cast_up(jax.tree.map(jnp.asarray, given)), jnp.float32)
    only_vectors = vectors == "zero" and given > 0
    msg = f"{name} must not be zero" + (
        " but for its vectors (leaves with at most one axis), which vectors='zero' leaves out: take vectors='keep'."
        if only_vectors
        else ": it gives no direction."
    )
    raise ValueError(msg)
