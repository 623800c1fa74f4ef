"""Norms, projections, steps and losses of the attacks: everything acts on each image [n, …] alone."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

__all__ = [
    "LOSSES",
    "ascent_direction",
    "attack_loss",
    "dual",
    "image_norm",
    "is_misclassified",
    "margins",
    "open_gradient",
    "project",
    "spread",
    "uniform_in_ball",
]

LOSSES = ("cross_entropy", "margin")


def spread(values: Float[Array, " n"], images: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """``values`` with the axes of ``images``, for broadcasting over each image."""
    return values.reshape(values.shape + (1,) * (images.ndim - 1))


def dual(norm: float) -> float:
    """Q with 1/p + 1/q = 1."""
    return {1: math.inf, 2: 2, math.inf: 1}[norm]


def image_norm(images: Float[Array, "n ..."], norm: float) -> Float[Array, " n"]:
    """‖aᵢ‖ₚ of each image; for p = 2 scaled by the largest entry: no square under- or overflows."""
    size = jnp.abs(images.reshape(images.shape[0], -1))
    if norm == 1:
        return size.sum(-1)
    largest = size.max(-1)
    if norm == math.inf:
        return largest
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return scale * jnp.sqrt(jnp.sum((size / scale[:, None]) ** 2, -1))


def _project_on_l1(images: Float[Array, "n ..."], radius: Float[Array, " n"]) -> Float[Array, "n ..."]:
    """Onto the ℓ1 ball: soft thresholding at the level that makes the norm the radius, by one sort."""
    size = jnp.abs(images.reshape(images.shape[0], -1))
    descending = -jnp.sort(-size, axis=-1)
    count = jnp.arange(1, size.shape[-1] + 1, dtype=size.dtype)[None]
    levels = (jnp.cumsum(descending, -1) - radius[:, None]) / count
    # The level of the largest support on which every entry stays positive.
    last = jnp.sum(descending > levels, -1, keepdims=True) - 1
    level = jnp.maximum(jnp.take_along_axis(levels, jnp.maximum(last, 0), -1), 0)
    return jnp.sign(images) * jnp.maximum(size - level, 0).reshape(images.shape)


def project(
    images: Float[Array, "n ..."],
    centres: Float[Array, "n ..."],
    radius: Float[Array, " n"],
    norm: float,
    bounds: tuple,
) -> Float[Array, "n ..."]:
    """Into the ball about ``centres``, then the box. The centres lie in the box, so clipping leaves no ball."""
    moved = images - centres
    if norm == math.inf:
        limit = spread(radius, images)
        moved = jnp.clip(moved, -limit, limit)
    elif norm == 1:
        moved = _project_on_l1(moved, radius)
    else:
        length = image_norm(moved, 2)
        moved = moved * spread(
            jnp.where(length > radius, radius / jnp.where(length > 0, length, 1), 1), images
        )
    return jnp.clip(centres + moved, *bounds)


def open_gradient(gradient: Array, images: Array, bounds: tuple) -> Array:
    """The gradient without the entries that push against the box, and without what is not finite."""
    low, high = bounds
    blocked = ((images <= low) & (gradient < 0)) | ((images >= high) & (gradient > 0))
    return jnp.where(blocked | ~jnp.isfinite(gradient), 0, gradient)


def ascent_direction(gradient: Float[Array, "n ..."], norm: float) -> Float[Array, "n ..."]:
    """A of norm 1 along which ``gradient`` rises: sign(g), g/‖g‖₂, or for ℓ1 the signs of the largest entries.

    One step in the steepest ℓ1 direction moves one pixel. Moving the largest hundredth together, as SLIDE does,
    gets as far in a hundredth of the steps. Zero where the gradient is zero.
    """
    if norm == math.inf:
        return jnp.sign(gradient)
    if norm == 2:
        length = image_norm(gradient, 2)
        return gradient / spread(jnp.where(length > 0, length, 1), gradient)
    size = jnp.abs(gradient.reshape(gradient.shape[0], -1))
    count = max(1, size.shape[-1] // 100)
    least = jax.lax.top_k(size, count)[0][:, -1]
    chosen = jnp.where(jnp.abs(gradient) >= spread(least, gradient), jnp.sign(gradient), 0)
    return chosen / spread(jnp.maximum(image_norm(chosen, 1), 1), gradient)


def uniform_in_ball(
    keys: Key[Array, " n"], images: Float[Array, "n ..."], radius: Float[Array, " n"], norm: float
) -> Float[Array, "n ..."]:
    """One draw an image, uniform in the ball of that norm about 0."""
    shape, dtype, size = images.shape[1:], images.dtype, math.prod(images.shape[1:])

    def draw(key: Key[Array, ""]) -> Array:
        if norm == math.inf:
            return jax.random.uniform(key, shape, dtype, -1, 1)
        direction_key, length_key = jax.random.split(key)
        if norm == 2:
            direction = jax.random.normal(direction_key, shape, dtype)
            length = jax.random.uniform(length_key, (), dtype) ** (1 / size)
            return direction * (length / jnp.linalg.norm(direction.ravel()))
        # d of d + 1 exponentials over their sum are uniform in the simplex; signs make it the ball.
        direction = jax.random.laplace(direction_key, shape, dtype)
        return direction / (jnp.abs(direction).sum() + jax.random.exponential(length_key, (), dtype))

    return spread(radius, images) * jax.vmap(draw)(keys)


def _others(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[Array, "n classes"]:
    """The logits with -∞ in the true class."""
    return jnp.where(jax.nn.one_hot(labels, logits.shape[-1], dtype=bool), -jnp.inf, logits)


def margins(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    """max_{j≠y} fⱼ - f_y: positive if misclassified; NaN if any logit is."""
    true = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    # -∞ hides a NaN of the true class from the maximum but not from the difference.
    return jnp.max(_others(logits, labels), -1) - true


def is_misclassified(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Bool[Array, " n"]:
    """Whether another logit is strictly larger. A NaN is no misclassification: nothing was classified."""
    return margins(logits, labels) > 0


def attack_loss(logits: Float[Array, "n classes"], labels: Int[Array, " n"], loss: str) -> Float[Array, " n"]:
    """What an attack raises: max or log-sum-exp of the other logits, less the true one.

    The cross-entropy is log(1 + e^L) of the second, so both have the same direction of steepest ascent, but the
    gradient of L never vanishes: softmax - onehot is zero in float32 from margins of 17 on, and hides the way.
    """
    if loss == "margin":
        return margins(logits, labels)
    true = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return jax.nn.logsumexp(_others(logits, labels), -1) - true
