"""Arithmetic on trees, leaf by leaf in each leaf's own dtype."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ._typing import Params

__all__ = ["add_scaled", "cast_like", "cast_up", "dot", "squared_norm"]


def cast_up(params: Params, accumulator_dtype: jax.typing.DTypeLike | None = None) -> Params:
    """``params`` in the accumulator dtype; None means their own but at least float32."""
    return jax.tree.map(
        lambda x: x.astype(accumulator_dtype or jnp.promote_types(x.dtype, jnp.float32)), params
    )


def cast_like(tree: Params, like: Params) -> Params:
    """``tree`` in the dtypes of ``like``."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)


def add_scaled(tree: Params, scale: Float[Array, ""], other: Params) -> Params:
    """``tree + scale·other``."""
    return jax.tree.map(lambda a, b: a + scale.astype(a.dtype) * b, tree, other)


def dot(a: Params, b: Params, dtype) -> Float[Array, ""]:
    """The inner product in ``dtype``. Not optax.tree.vdot: it flattens leaves, which explicit shardings forbid."""
    products = jax.tree.map(lambda x, y: jnp.sum(x.astype(dtype) * y.astype(dtype)), a, b)
    return jnp.asarray(optax.tree.sum(products), dtype)


def squared_norm(tree: Params, dtype) -> Float[Array, ""]:
    """The squared Euclidean norm in ``dtype``."""
    return dot(tree, tree, dtype)
