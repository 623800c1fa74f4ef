"""Checks that raise at construction, naming the argument, its value and what was expected.

Only concrete Python and NumPy numbers are looked at: tracers, device arrays and schedules pass, so that
nothing here synchronises with a device or breaks under ``jit`` and ``optax.inject_hyperparams``.
"""

import math
import numbers
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

__all__ = [
    "as_key",
    "check_choice",
    "check_count",
    "check_finite",
    "check_float_dtype",
    "check_float_tree",
    "check_fraction",
    "check_nonnegative",
    "check_positive",
    "check_same_tree",
    "check_scalar_output",
    "is_static_zero",
]


def _is_number(value: Any) -> bool:
    return isinstance(value, (numbers.Real, np.bool_))


def _check_number(name: str, value: Any, accepted: bool, expected: str) -> None:
    if not accepted:
        msg = f"{name} must be {expected}, got {value!r}."
        raise ValueError(msg)


def _check_is_scalar(name: str, value: Any) -> None:
    """Refuses what is neither a number, an array nor a schedule (a string, None, a bool)."""
    if isinstance(value, (bool, np.bool_)) or not (
        _is_number(value) or callable(value) or isinstance(value, (jax.Array, np.ndarray))
    ):
        msg = f"{name} must be a number, an array or a schedule, got {value!r} ({type(value).__name__})."
        raise TypeError(msg)
    if isinstance(value, (jax.Array, np.ndarray)) and value.ndim:
        msg = f"{name} must be a scalar, got an array of shape {value.shape}."
        raise ValueError(msg)


def check_finite(name: str, value: Any) -> None:
    """Raises unless ``value`` is a finite number of either sign (or is not a concrete number)."""
    _check_is_scalar(name, value)
    if _is_number(value):
        _check_number(name, value, math.isfinite(value), "finite")


def check_positive(name: str, value: Any, *, or_infinite: bool = False) -> None:
    """Raises unless ``value`` is a positive finite number, or +∞ if that is a limit (or is not a concrete number)."""
    _check_is_scalar(name, value)
    if _is_number(value):
        accepted = value > 0 and (or_infinite or math.isfinite(value))
        _check_number(name, value, accepted, "positive" if or_infinite else "positive and finite")


def check_nonnegative(name: str, value: Any) -> None:
    """Raises unless ``value`` is a finite number ≥ 0 (or is not a concrete number)."""
    _check_is_scalar(name, value)
    if _is_number(value):
        _check_number(name, value, math.isfinite(value) and value >= 0, "finite and at least 0")


def check_fraction(name: str, value: Any) -> None:
    """Raises unless ``value`` lies in [0, 1) (or is not a concrete number)."""
    _check_is_scalar(name, value)
    if _is_number(value):
        _check_number(name, value, 0 <= value < 1, "in [0, 1)")


def check_count(name: str, value: Any, minimum: int = 1) -> None:
    """Raises unless ``value`` is a Python integer of at least ``minimum``: it fixes a shape or a loop length."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        msg = (
            f"{name} must be a Python integer, got {value!r} ({type(value).__name__}). It fixes the length of "
            "a compiled loop, so it cannot be traced or scheduled; under optax.inject_hyperparams declare it "
            "static, or use jaxopt_pde.injectable, which does."
        )
        raise TypeError(msg)
    _check_number(name, value, value >= minimum, f"at least {minimum}")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raises unless ``value`` is one of ``choices``."""
    if value not in choices:
        msg = f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}."
        raise ValueError(msg)


def check_float_dtype(name: str, dtype: Any) -> None:
    """Raises unless ``dtype`` is None or a floating dtype."""
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        msg = f"{name} must be a floating dtype, got {dtype!r}."
        raise TypeError(msg)


def is_static_zero(value: Any) -> bool:
    """Whether ``value`` is a concrete number equal to 0, so that what it scales can be left out."""
    return _is_number(value) and value == 0


def _is_masked_node(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def check_float_tree(name: str, tree: Any, *, allow_masked: bool = False) -> None:
    """Raises unless every leaf of ``tree`` is a real floating array (or a ``ShapeDtypeStruct`` of one)."""
    for path, leaf in jax.tree.leaves_with_path(tree, is_leaf=None if allow_masked else _is_masked_node):
        where = name + jax.tree_util.keystr(path)
        if _is_masked_node(leaf):
            msg = (
                f"{where} is an optax.MaskedNode: this transformation evaluates the loss and needs all "
                "parameters, so it cannot stand inside optax.masked or optax.partition. Put the mask around "
                "the transformations that follow it in optax.chain."
            )
            raise TypeError(msg)
        if not hasattr(leaf, "dtype"):
            leaf = np.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            msg = (
                f"{where} is complex ({leaf.dtype}): the relaxation is defined for real parameters. Pass the "
                "real and imaginary parts as two real leaves and join them inside the loss."
            )
            raise TypeError(msg)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            msg = f"{where} has dtype {leaf.dtype}, expected a floating dtype. " + (
                "Keep what is not trained (counters, indices, statistics) out of params and close over it in "
                "the loss."
                if name == "params"
                else "Convert it, and integer pixels to the range of the model's inputs."
            )
            raise TypeError(msg)


def check_same_tree(name: str, got: Any, expected: Any) -> None:
    """Raises unless ``got`` has the structure and the leaf shapes of ``expected``."""
    if jax.tree.structure(got) != jax.tree.structure(expected):
        msg = (
            f"{name} must give a tree like params.\n  got:    {jax.tree.structure(got)}\n"
            f"  params: {jax.tree.structure(expected)}\n"
            "With jax.value_and_grad or has_aux=True hand over the gradient alone."
        )
        raise ValueError(msg)
    for (path, leaf), other in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        if jnp.shape(leaf) != jnp.shape(other):
            msg = (
                f"{name} gave a leaf of shape {jnp.shape(leaf)} at {jax.tree_util.keystr(path) or 'the root'}, "
                f"params have {jnp.shape(other)} there."
            )
            raise ValueError(msg)


def check_scalar_output(name: str, got: Any) -> None:
    """Raises unless the loss called ``name`` gave one number."""
    if isinstance(got, (tuple, list, dict)):
        msg = f"{name} must return a scalar loss, got a {type(got).__name__}: return the loss alone, without aux."
        raise ValueError(msg)
    if jnp.shape(got) != ():
        msg = f"{name} must return a scalar loss, got shape {jnp.shape(got)}: take the mean over examples."
        raise ValueError(msg)


def as_key(key: Any) -> jax.Array:
    """A typed PRNG key from an integer seed, a typed key or raw ``uint32[2]`` key data."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.ndim:
            msg = f"key must be one key, got an array of keys of shape {key.shape}: vmap over it instead."
            raise ValueError(msg)
        return key
    if isinstance(key, numbers.Integral) and not isinstance(key, (bool, np.bool_)):
        return jax.random.key(int(key))
    if isinstance(key, (jax.Array, np.ndarray)):
        if key.ndim == 0 and jnp.issubdtype(key.dtype, jnp.integer):
            return jax.random.key(key)
        if key.dtype == jnp.uint32 and key.ndim == 1:
            return jax.random.wrap_key_data(jnp.asarray(key))
    msg = f"key must be an integer seed or a key from jax.random.key, got {key!r}."
    raise TypeError(msg)
