"""Noise for Langevin steps: independent entries of mean 0 and variance 1, shaped like a tree.

Two laws give the Euler scheme the same weak order 1, because they agree in the first three moments
(0, 1, 0), which is all that order asks for (Kloeden & Platen 1992, section 14.1):

* ``"gaussian"``: the increments of the Langevin equation itself.
* ``"rademacher"``: ±1 with probability ½ each, one random bit a number where a Gaussian takes 32.
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from ._typing import Params

__all__ = ["NOISE_LAWS", "NoiseLaw", "draw_noise"]

NoiseLaw = Literal["gaussian", "rademacher"]
NOISE_LAWS: tuple[str, ...] = get_args(NoiseLaw)

_WORD = 32  # bits in a random word


def draw_noise(key: Key[Array, ""], like: Params, law: NoiseLaw) -> Params:
    """Independent entries of mean 0 and variance 1 with the shapes, dtypes and shardings of ``like``.

    Args:
        key: one typed PRNG key.
        like: any tree of floating arrays.
        law: ``"gaussian"`` or ``"rademacher"``.

    Returns:
        A tree like ``like``.
    """
    if law == "gaussian":
        return optax.tree.random_like(key, like, sampler=jax.random.normal)
    leaves, treedef = jax.tree.flatten(like)
    # One draw for the whole tree: a draw a leaf pays threefry's start-up once a leaf.
    words = [math.ceil(leaf.size / _WORD) for leaf in leaves]
    bits = jax.random.bits(key, (sum(words),), jnp.uint32)
    signs, offset = [], 0
    for leaf, count in zip(leaves, words, strict=True):
        signs.append(_signs(bits[offset : offset + count], leaf))
        offset += count
    return treedef.unflatten(signs)


def _signs(words: Array, leaf: Array) -> Array:
    """±1 from the single bits of ``words``, shaped like ``leaf``."""
    single = (words[:, None] >> jnp.arange(_WORD, dtype=jnp.uint32)[None, :]) & jnp.uint32(1)
    single = single.reshape(-1)[: leaf.size].reshape(leaf.shape)
    signs = 1 - 2 * single.astype(jnp.int32)
    sharding = jax.typeof(leaf).sharding
    if any(axis == jax.sharding.AxisType.Explicit for axis in sharding.mesh.axis_types):
        signs = jax.sharding.reshard(signs, sharding)
    return signs.astype(leaf.dtype)
