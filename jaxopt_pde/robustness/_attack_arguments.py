"""What every attack asks of its arguments, and how a model enters a compiled attack."""

import functools
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from .. import _validate
from ._checks import check_labels

__all__ = ["AttackResult", "LogitsFn", "Model", "check_attack", "image_keys", "per_image", "split_model"]

LogitsFn = Callable[[Float[Array, "n ..."]], Float[Array, "n classes"]]


class AttackResult(NamedTuple):
    """What an attack found, one entry an image.

    Attributes:
        x: the perturbed images [n, …], inside the box; the image itself where the attack failed to move it or
            where it was misclassified from the start.
        loss: the loss of ``x`` [n]: the cross-entropy in nats, or the margin max_{j≠y} fⱼ - f_y, as asked. NaN
            where the model returns one.
        success: whether ``x`` is misclassified [n]: another logit is strictly larger than that of ``y``, by a
            forward pass of ``x`` as it is returned. False where a logit is NaN.
        distance: ‖x - original‖ₚ [n] of the returned image in the norm of the attack; 0 for an image that was
            misclassified from the start. :func:`minimal_distance` gives ∞ where it did not succeed.
    """

    x: Float[Array, "n ..."]
    loss: Float[Array, " n"]
    success: Array
    distance: Float[Array, " n"]


class Model(NamedTuple):
    """A model less its arrays: hashable, so a compiled attack is found again by it."""

    function: Callable
    tree: Any
    static_leaves: tuple

    def bind(self, arrays: list) -> LogitsFn:
        """The model with arrays for weights."""
        rest = iter(arrays)
        leaves = [next(rest) if leaf is _TRACED else leaf for leaf in self.static_leaves]
        args, keywords = jax.tree.unflatten(self.tree, leaves)
        return functools.partial(self.function, *args, **keywords)


class _Traced:
    """Stands for an array among the leaves."""


_TRACED = _Traced()


def split_model(logits_fn: LogitsFn) -> tuple[Model, list]:
    """``logits_fn`` in two: what is static, and the arrays among the arguments of a ``functools.partial``."""
    args, keywords = (), {}
    while isinstance(logits_fn, functools.partial):  # jax.tree_util.Partial is one
        args, keywords = (*logits_fn.args, *args), {**logits_fn.keywords, **keywords}
        logits_fn = logits_fn.func
    leaves, tree = jax.tree.flatten((args, keywords))
    traced = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]
    static = tuple(_TRACED if t else leaf for t, leaf in zip(traced, leaves, strict=True))
    return Model(logits_fn, tree, static), [leaf for t, leaf in zip(traced, leaves, strict=True) if t]


def _concrete(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer)


def per_image(name: str, value: Any, images: Float[Array, "n ..."]) -> Float[Array, " n"]:
    """A positive scalar or [n], as [n] in the dtype of the images."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (numbers.Real, np.ndarray, jax.Array)):
        msg = f"{name} must be a number or an array of one number an image, got {value!r}."
        raise TypeError(msg)
    if jnp.shape(value) not in ((), images.shape[:1]):
        msg = f"{name} must be a scalar or have shape {images.shape[:1]}, got {jnp.shape(value)}."
        raise ValueError(msg)
    if _concrete(value):
        values = np.asarray(value)
        if values.size and not (np.all(np.isfinite(values)) and values.min() > 0):
            msg = f"{name} must be positive and finite, got {value!r}."
            raise ValueError(msg)
    # A traced one cannot be refused: a negative radius is no ball, and moves nothing.
    return jnp.broadcast_to(jnp.maximum(jnp.asarray(value, images.dtype), 0), images.shape[:1])


def _check_bounds(bounds: Any) -> tuple[float, float]:
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        msg = f"bounds must be a pair (low, high), got {bounds!r}."
        raise ValueError(msg)
    low, high = bounds
    for bound in bounds:
        if isinstance(bound, (bool, np.bool_)) or not isinstance(bound, numbers.Real):
            msg = f"bounds must be two Python numbers: they are static under jit. Got {bounds!r}."
            raise TypeError(msg)
    if not low < high:
        msg = f"bounds must be a pair low < high (infinite for no box), got {bounds!r}."
        raise ValueError(msg)
    return float(low), float(high)


def check_attack(
    logits_fn: LogitsFn, x: Any, y: Any, bounds: Any
) -> tuple[Float[Array, "n ..."], Int[Array, " n"], tuple[float, float]]:
    """Images, labels and box as arrays and floats; raises where shapes, dtypes or concrete values are wrong."""
    if not callable(logits_fn):
        msg = f"logits_fn must be a function of images [n, ...], got {logits_fn!r}."
        raise TypeError(msg)
    bounds = _check_bounds(bounds)
    if not isinstance(x, (np.ndarray, jax.Array)) or x.ndim < 2:
        msg = f"x must be an array of images [n, ...], got {np.shape(x)} ({type(x).__name__})."
        raise ValueError(msg)
    _validate.check_float_tree("x", x)
    if not x.shape[0]:
        msg = f"x must hold at least one image, got shape {x.shape}."
        raise ValueError(msg)
    logits = jax.eval_shape(logits_fn, jax.ShapeDtypeStruct(x.shape, x.dtype))
    if len(getattr(logits, "shape", ())) != 2 or logits.shape[0] != x.shape[0] or logits.shape[1] < 2:
        msg = (
            f"logits_fn must give logits [n, classes] with at least two classes for images of shape {x.shape}, "
            f"got {getattr(logits, 'shape', logits)}."
        )
        raise ValueError(msg)
    check_labels(y, x.shape[0], logits.shape[1])
    if _concrete(x):
        values = np.asarray(x)
        least, greatest = values.min(), values.max()
        if not (bounds[0] <= least and greatest <= bounds[1]):  # also for NaN
            msg = f"x must lie in bounds={bounds}, got values from {least} to {greatest}."
            raise ValueError(msg)
    return jnp.asarray(x), jnp.asarray(y), bounds


def image_keys(key: Any, num_images: int) -> Key[Array, " n"]:
    """One key an image: ``key`` folded with the index, or the n keys that were given."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim:
        if key.shape != (num_images,):
            msg = f"key must be one key or {num_images} keys, one an image, got shape {key.shape}."
            raise ValueError(msg)
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(_validate.as_key(key), jnp.arange(num_images))
