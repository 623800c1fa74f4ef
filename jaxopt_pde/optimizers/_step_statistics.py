"""Squared norms, microbatch statistics and running means, for the rules that choose a step or a batch size."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._arithmetic import squared_norm
from .._typing import Params

__all__ = ["averaging_weight", "microbatch_statistics", "scalar_dtype", "scale_finite", "squared_norm"]

FOLLOWING, STEADY = 8.0, 2.0
"""c of the growing windows, over about the last k/c observations: of what falls with the loss, and of the noise."""


def scalar_dtype(tree: Params) -> Any:
    """The dtype of scalars beside ``tree``: its widest, but at least float32."""
    return jnp.result_type(
        jnp.float32, *(getattr(leaf, "dtype", jnp.float32) for leaf in jax.tree.leaves(tree))
    )


def scale_finite(scale: Float[Array, ""], finite: Any, tree: Params) -> Params:
    """``scale·tree`` in the dtypes of ``tree``; zeros where ``finite`` does not hold (a select: no NaN passes)."""

    def one(leaf):
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        scaled = (scale.astype(wide) * leaf.astype(wide)).astype(leaf.dtype)
        return jnp.where(finite, scaled, jnp.zeros_like(leaf))

    return jax.tree.map(one, tree)


def microbatch_statistics(gradients: Params, dtype: Any) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Unbiased |∇f|² and E|ḡ − ∇f|² from independent microbatch gradients g_1 … g_n with mean ḡ.

        noise = Σ|g_i − ḡ|²/(n (n − 1)),      signal = |ḡ|² − noise.

    E|ḡ|² = |∇f|² + E|ḡ − ∇f|², and the sample variance over n is unbiased for the second term, so the difference is
    for the first. For n = 2 these are |g_1 − g_2|²/4 and g_1·g_2.

    Args:
        gradients: leaves [n, ...], n ≥ 2.
        dtype: of the results.

    Returns:
        signal (may be negative), noise (never is).

    Raises:
        ValueError: unless all leaves share a leading axis of at least 2.
    """
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(gradients)}
    if len(counts) != 1 or () in counts or min(counts)[0] < 2:
        msg = (
            "microbatch_gradients must have on every leaf the same leading axis of at least 2 microbatches, as from "
            f"jax.vmap(jax.grad(loss), (None, 0))(params, halves); got leading axes {sorted(counts)}."
        )
        raise ValueError(msg)
    ((count,),) = counts
    wide = jax.tree.map(lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), gradients)
    mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), wide)
    deviations = jax.tree.map(lambda g, m: g - jnp.expand_dims(m, 0), wide, mean)
    noise = squared_norm(deviations, dtype) / (count * (count - 1))
    return squared_norm(mean, dtype) - noise, noise


def averaging_weight(
    count: Int[Array, ""], decay: Any, dtype: Any, growth: float = FOLLOWING
) -> Float[Array, ""]:
    """Weight of observation number ``count`` (from 0) in a running mean; 1 at 0, so nothing needs a correction.

    ``decay`` None: c/(k + c) with c = ``growth``, a window that grows with k. Otherwise 1 − decay, or 1/(k + 1)
    while that is larger: a uniform mean that turns into an exponential one.
    """
    count = count.astype(dtype)
    if decay is None:
        return growth / (count + growth)
    return jnp.maximum(1 / (count + 1), 1 - jnp.asarray(decay, dtype))
