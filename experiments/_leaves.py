"""The leaves of a state as orbax gets them: arrays by name, keys as their data, without the empty ones it refuses."""

import zlib
from typing import Any

import numpy as np

Leaves = list[tuple[str, Any]]

# JAX is imported inside the functions, as in the modules that import this one.


def named(tree: Any) -> Leaves:
    """The leaves with their paths."""
    import jax

    return [(jax.tree_util.keystr(path) or "state", leaf) for path, leaf in jax.tree.leaves_with_path(tree)]


def is_key(leaf: Any) -> bool:
    """Whether it is an array of typed keys."""
    import jax

    return jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)


def describe(name: str, leaf: Any) -> str:
    """Dtype and shape, such as ``bfloat16[3, 2]`` or ``key<fry>[]``."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    if not is_key(leaf) and np.dtype(leaf.dtype).kind in "OUSMm":
        msg = f"{name} must be an array of numbers, booleans or keys, or a number, got {leaf!r}."
        raise TypeError(msg)
    return f"{leaf.dtype}{list(leaf.shape)}"


def on_device(leaf: Any) -> bool:
    """Whether it is JAX's, and not NumPy's or a Python number."""
    import jax

    return isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct))


def as_array(leaf: Any) -> Any:
    """A key as its data, a number as an array."""
    import jax

    if is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if on_device(leaf) else np.asarray(leaf)


def storable(arrays: dict[str, Any]) -> dict[str, Any]:
    """Those that have elements; one that stands for them if there are none."""
    return {name: array for name, array in arrays.items() if array.size} or {"nothing": np.zeros(1)}


def checksum(array: Any) -> int | None:
    """Of all bytes, since orbax would read changed ones without a word; None if other processes have some."""
    if not getattr(array, "is_fully_addressable", True):
        return None
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def target(leaf: Any) -> Any:
    """What tells orbax to read a leaf onto its devices, or to the host."""
    import jax

    if not on_device(leaf):
        return np.empty_like(np.asarray(leaf))
    data = jax.eval_shape(as_array, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    if (sharding := placement(leaf)) is None:
        return np.empty(data.shape, data.dtype)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)


def like_leaf(array: Any, leaf: Any) -> Any:
    """What orbax read, as the kind of ``leaf``: an array, a key, a number."""
    import jax
    import jax.numpy as jnp

    if not on_device(leaf):
        array = np.asarray(array)
        if isinstance(leaf, np.ndarray):
            return array
        return array[()] if isinstance(leaf, np.generic) else array.item()
    array = array if isinstance(array, jax.Array) else jax.device_put(jnp.asarray(array), placement(leaf))
    if not is_key(leaf):
        return array
    names = []  # only a key that is traced tells the name of its algorithm, not its type
    jax.eval_shape(lambda key: names.append(jax.random.key_impl(key)), leaf)
    return jax.random.wrap_key_data(array, impl=names[0])


def placement(leaf: Any) -> Any:
    """Where a JAX array belongs; None for one that JAX may move, which else would come back bound to its device."""
    return leaf.sharding if getattr(leaf, "committed", True) else None
