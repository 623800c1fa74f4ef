"""The data of a mean loss: arrays cut into batches on the device, or a function that makes an iterator over batches.

Everything here is a weighted mean over examples, so a last batch that is smaller weighs less and the result does not
depend on how the data were cut.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _validate

__all__ = ["Batches", "Loader", "batch_error", "each_batch", "make_batches", "mean_over_batches"]

Loader = Callable[[], Iterator[Any]]
"""Called once a pass, it returns an iterator over the batches, always the same ones."""


class Batches(NamedTuple):
    """Data on the device in equal batches, and what is left over.

    Attributes:
        equal: a tree like the data with leading axes [batches, examples in a batch].
        rest: a tree like the data with the examples that fill no batch, or None.
    """

    equal: Any
    rest: Any


def make_batches(data: Any, batch_size: int | None) -> Batches | Loader:
    """Cuts arrays into batches; a function is taken as a :data:`Loader` and left as it is.

    Args:
        data: a tree of arrays with a leading example axis, or a loader.
        batch_size: examples in a batch; None for all in one.

    Raises:
        ValueError, TypeError: no arrays, no examples, leaves that disagree in their number, a ``batch_size`` that is
            not a positive integer or is given for a loader, which brings its own.
    """
    if callable(data):
        if batch_size is not None:
            msg = f"batch_size must be None where data is a function that makes batches, got {batch_size!r}."
            raise ValueError(msg)
        return data
    if isinstance(data, Iterator) or (jax.tree_util.all_leaves([data]) and not np.ndim(data)):
        msg = f"data must be arrays with a leading example axis, or a loader as lambda: iter(loader), got {data!r}."
        raise TypeError(msg)
    count = example_count("data", data)
    size = count
    if batch_size is not None:
        _validate.check_count("batch_size", batch_size)
        size = min(batch_size, count)
    data = jax.tree.map(jnp.asarray, data)
    whole = count // size * size
    equal = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, size, *leaf.shape[1:]), data)
    return Batches(equal, None if whole == count else jax.tree.map(lambda leaf: leaf[whole:], data))


def example_count(name: str, batch: Any) -> int:
    """The common length of the leading axes; raises if there is none, or no example."""
    leaves = jax.tree.leaves_with_path(batch)
    if not leaves:
        msg = f"{name} must hold arrays with a leading example axis, got {batch!r}."
        raise ValueError(msg)
    lengths = {}
    for path, leaf in leaves:
        where = name + jax.tree_util.keystr(path)
        if isinstance(leaf, (str, bytes)) or not np.ndim(leaf):
            msg = f"{where} must be an array with a leading example axis, got {leaf!r}."
            raise TypeError(msg)
        lengths[where] = np.shape(leaf)[0]
    if len(set(lengths.values())) > 1:
        msg = f"{name} must have one number of examples, got " + ", ".join(
            f"{length} in {where}" for where, length in lengths.items()
        )
        raise ValueError(msg + ".")
    count = next(iter(lengths.values()))
    if not count:
        msg = f"{name} must hold at least one example, got none."
        raise ValueError(msg)
    return count


def mean_over_batches(function: Callable[..., Any], batches: Batches | Loader, *arguments: Any) -> Any:
    """The mean over examples of a tree that ``function`` gives as a mean over the examples of a batch.

    Args:
        function: ``(batch, *arguments) -> tree of arrays``. On :class:`Batches` it is scanned, in constant memory; for
            a loader it is compiled once for as long as the same object comes again, so hand over a function that
            lives on, and what changes as ``arguments``.
        batches: from :func:`make_batches`.
        arguments: trees of arrays.
    """
    if isinstance(batches, Batches):
        count = jax.tree.leaves(batches.equal)[0].shape[1]

        def add(total, batch):
            return jax.tree.map(lambda t, v: t + count * v, total, function(batch, *arguments)), None

        first = jax.tree.map(lambda leaf: leaf[0], batches.equal)
        shapes = jax.eval_shape(lambda batch: function(batch, *arguments), first)
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, batches.equal)
        examples = count * jax.tree.leaves(batches.equal)[0].shape[0]
        if batches.rest is not None:
            left = jax.tree.leaves(batches.rest)[0].shape[0]
            total = jax.tree.map(lambda t, v: t + left * v, total, function(batches.rest, *arguments))
            examples += left
        return jax.tree.map(lambda t: t / examples, total)
    total, examples = None, 0
    for batch, count in _one_pass(batches):
        value = _compiled(function, batch, *arguments)
        value = jax.tree.map(lambda v, count=count: count * v, value)
        total = value if total is None else jax.tree.map(jnp.add, total, value)
        examples += count
    return jax.tree.map(lambda t: t / examples, total)


def each_batch(
    function: Callable[..., Any], batches: Batches | Loader, *arguments: Any
) -> tuple[Any, Float[Array, " batches"]]:
    """What ``function`` gives for every batch, stacked, and the share of the examples each batch holds.

    Args:
        function: as for :func:`mean_over_batches`; its values are stored, so let them be small.
        batches: from :func:`make_batches`.
        arguments: trees of arrays.
    """
    if isinstance(batches, Batches):
        values = jax.lax.map(lambda batch: function(batch, *arguments), batches.equal)
        number, count = jax.tree.leaves(batches.equal)[0].shape[:2]
        counts = [count] * number
        if batches.rest is not None:
            last = function(batches.rest, *arguments)
            values = jax.tree.map(lambda v, one: jnp.concatenate([v, one[None]]), values, last)
            counts.append(jax.tree.leaves(batches.rest)[0].shape[0])
    else:
        listed = [(_compiled(function, batch, *arguments), count) for batch, count in _one_pass(batches)]
        values = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(value for value, _ in listed))
        counts = [count for _, count in listed]
    shares = np.asarray(counts, np.float64) / np.sum(counts)
    return values, jnp.asarray(shares, jax.tree.leaves(values)[0].dtype)


def batch_error(
    values: Float[Array, "batches ..."], shares: Float[Array, " batches"]
) -> Float[Array, "..."] | None:
    """Standard error of the weighted mean Σ wᵢ vᵢ over batches: √(Σ wᵢ² (vᵢ − v̄)² / (1 − Σ wᵢ²)); None for one batch.

    With batches of one size the textbook's s/√B. Its square is unbiased for independent examples however they were cut:
    vᵢ has variance σ²/(N wᵢ) and its deviation from v̄ that less σ²/N.

    Args:
        values: of every batch, the mean over its examples.
        shares: w, of the examples, adding up to 1.
    """
    if values.shape[0] == 1:
        return None
    left = 1 - jnp.sum(shares**2)
    shares = shares.reshape(-1, *[1] * (values.ndim - 1))
    deviations = shares * (values - jnp.sum(shares * values, axis=0, keepdims=True))
    return jnp.sqrt(jnp.sum(deviations**2, axis=0) / left)


_compiled = jax.jit(lambda function, batch, *arguments: function(batch, *arguments), static_argnums=0)


def _one_pass(loader: Loader) -> Iterator[tuple[Any, int]]:
    """The batches of one pass with the examples they hold; raises where there are none, as on a spent iterator."""
    number = 0
    for batch in loader():
        yield jax.tree.map(jnp.asarray, batch), example_count(f"batch {number} of data()", batch)
        number += 1
    if not number:
        msg = (
            "data() gave no batches. It is called once for every pass over the data and must return a fresh iterator "
            "each time: lambda: iter(loader), not lambda: iterator, which runs out in the first pass."
        )
        raise ValueError(msg)
