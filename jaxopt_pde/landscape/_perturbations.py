"""Perturbations σ s(x)⊙ξ of the parameters, in units that may follow the size of the weights, and their losses."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from .. import _noise, _validate
from .._arithmetic import cast_like, cast_up
from .._typing import Params

__all__ = [
    "Differences",
    "Scale",
    "Vectors",
    "as_positive",
    "check_scale",
    "loss_at",
    "perturbed",
    "scalar_dtype",
    "scale_tree",
]

Scale = Literal["none", "elementwise", "filter"]
Vectors = Literal["rms", "zero"]


def check_scale(scale: str, vectors: str) -> None:
    """Raises unless both are among the choices."""
    _validate.check_choice("scale", scale, get_args(Scale))
    _validate.check_choice("vectors", vectors, get_args(Vectors))


def scale_tree(params: Params, scale: Scale, vectors: Vectors) -> Params:
    """s(x), of shapes that broadcast against ``params``, in their dtype but at least float32.

    Args:
        params: x.
        scale: ``"none"``: 1. ``"elementwise"``: |x|. ``"filter"``: for every filter, all entries with one index of
            the last axis, the root mean square of its entries.
        vectors: with ``"filter"``, what leaves with at most one axis get: their own root mean square, or 0.
    """

    def of_leaf(leaf):
        if scale == "none":
            return jnp.ones([1] * leaf.ndim, leaf.dtype)
        if scale == "elementwise":
            return jnp.abs(leaf)
        if leaf.ndim <= 1 and vectors == "zero":
            return jnp.zeros([1] * leaf.ndim, leaf.dtype)
        axes = None if leaf.ndim <= 1 else tuple(range(leaf.ndim - 1))
        return jnp.sqrt(jnp.mean(leaf**2, axis=axes, keepdims=True))

    return jax.tree.map(of_leaf, cast_up(params))


def perturbed(params: Params, sigma: Float[Array, ""], scales: Params, noise: Params) -> Params:
    """The point x + σ s⊙ξ, summed in the dtype of the noise, returned in that of ``params``."""
    moved = jax.tree.map(
        lambda x, s, xi: x + sigma.astype(xi.dtype) * (s * xi), cast_up(params), scales, noise
    )
    return cast_like(moved, params)


def loss_at(loss_fn: Callable, params: Params, batch: Any) -> Float[Array, ""]:
    """The loss, checked to be one number, in the dtype of the parameters but at least float32."""
    value = loss_fn(params, batch)
    _validate.check_scalar_output("loss_fn", value)
    return jnp.asarray(value, scalar_dtype(params))


def scalar_dtype(params: Params) -> jnp.dtype:
    """The widest dtype of the leaves, at least float32."""
    return jnp.promote_types(jnp.result_type(*jax.tree.leaves(params)), jnp.float32)


def as_positive(name: str, value: Any, dtype) -> Float[Array, "..."]:
    """A positive number or 1-D array of such; concrete ones that are not raise."""
    if isinstance(value, (list, tuple, np.ndarray)):
        value = np.asarray(value)
        for one in value.reshape(-1).tolist():
            _validate.check_positive(name, one)
        value = jnp.asarray(value, dtype)
    if np.ndim(value) == 0:
        _validate.check_positive(name, value)
    if np.ndim(value) > 1 or not np.size(value):
        msg = f"{name} must be a number or a 1-D array, got an array of shape {np.shape(value)}."
        raise ValueError(msg)
    return jnp.asarray(value, dtype)


@dataclasses.dataclass(frozen=True)
class Differences:
    """f_b(x ± σ s⊙ξ) − f_b(x) on a batch, [units, signs, sigmas]: the same ξ for every batch and every σ.

    A value and not a closure, since what maps functions over a loader compiles once for equal functions.

    Attributes:
        loss_fn: ``(params, batch) -> loss``.
        units: number of draws ξ.
        antithetic: evaluate at ±ξ (two signs) or at ξ (one).
        scale: see :func:`scale_tree`.
        vectors: see :func:`scale_tree`.
        units_at_once: draws run together under ``vmap``.
    """

    loss_fn: Callable
    units: int
    antithetic: bool
    scale: Scale
    vectors: Vectors
    units_at_once: int

    def __call__(
        self, batch: Any, params: Params, key: Key[Array, ""], sigmas: Float[Array, " sigmas"]
    ) -> Float[Array, "units signs sigmas"]:
        scales = scale_tree(params, self.scale, self.vectors)
        base = loss_at(self.loss_fn, params, batch)
        signs = jnp.asarray([1.0, -1.0] if self.antithetic else [1.0], sigmas.dtype)
        steps = (signs[:, None] * sigmas[None, :]).reshape(-1)

        def unit(unit_key):
            noise = _noise.draw_noise(unit_key, cast_up(params), "gaussian")
            one = lambda step: loss_at(self.loss_fn, perturbed(params, step, scales, noise), batch) - base
            return jax.lax.map(one, steps).reshape(signs.size, sigmas.size)

        together = None if self.units_at_once == 1 else self.units_at_once
        return jax.lax.map(unit, jax.random.split(key, self.units), batch_size=together)
