"""Slices of a loss: its values, or those of the relaxed loss, at the points of a line or plane through parameters."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key

from .. import _validate
from .._arithmetic import add_scaled, cast_like, cast_up
from .._typing import Params
from ._batches import Batches, batch_error, each_batch
from ._perturbations import scalar_dtype
from ._slice_arguments import Arguments, check_arguments
from .estimate import Estimate
from .relaxation import Relaxation, perturbation, relax_on_grid, summarize

__all__ = ["evaluate_points", "finish_slice", "slice"]


def slice(
    loss_fn: Callable[..., Float[Array, ""]],
    params: Params,
    directions: Sequence[Params],
    coordinates: Sequence[Float[Array, " points"]],
    *,
    smoothing: Relaxation | None = None,
    key: Key[Array, ""] | None = None,
    data: Any = None,
    batch_size: int | None = None,
    points_at_once: int = 1,
    sharding: NamedSharding | None = None,
) -> Float[Array, "..."] | Estimate:
    r"""The loss on a lattice through parameter space: values[i, j, …] = f(x + c₀[i] d₀ + c₁[j] d₁ + …).

    With ``smoothing=`` the relaxed loss u(x, t) at the same points. With ``data=`` the mean loss over all examples, at
    every point over the same batches, so that the picture is that of one function.

    Args:
        loss_fn: ``params -> loss``, or ``(params, batch) -> mean loss`` where ``data`` is given. Compiled once for as
            long as the same function object comes again.
        params: x, any pytree of real floating arrays.
        directions: n ≥ 1 trees like ``params``, as from :func:`random_directions`, ``plane.directions`` or differences
            of solutions. They need be neither unit nor orthogonal.
        coordinates: n arrays [mᵢ], in units of the directions.
        smoothing: a :class:`Relaxation`; None for f itself.
        key: typed key (or integer seed) for a ``smoothing`` that samples; not looked at otherwise.
        data: a tree of arrays with a leading example axis, or a function that returns a fresh iterator over batches.
            The latter is passed through once, all points being evaluated on each batch, and does not work under
            ``jit``.
        batch_size: examples in a batch, for arrays; None for all at once.
        points_at_once: points under one ``vmap`` (static). More is faster for small dense networks; convolutions with
            different weights at once are slow on CPUs.
        sharding: ``NamedSharding(mesh, PartitionSpec("axis"))`` spreads the points over that mesh axis; parameters and
            data are copied to every device. Any number of points will do.

    Returns:
        An array [m₀, m₁, …], or an :class:`Estimate` of such arrays where something was estimated: with ``probe_error``
        for ``smoothing`` by samples, with ``batch_error`` for data in several batches. For ``"cole_hopf"``,
        ``info["effective_sample_size"]`` says whether to believe it. Samples × points × batches losses are stored.

    Raises:
        ValueError, TypeError: directions that are no sequence, are zero or are other trees than ``params``; coordinates
            that are not one finite 1-D array a direction; no ``key`` for samples; a loss that is not a scalar; data
            with no examples; with ``method="plane"`` unequally spaced coordinates or directions that are not
            orthogonal. The message names it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> def loss(params, batch):
        ...     return jnp.mean((batch["x"] @ params["kernel"] - batch["y"]) ** 2)
        >>> x = jax.random.normal(jax.random.key(0), (60, 4))
        >>> data = {"x": x, "y": x @ jnp.ones((4, 2))}
        >>> params = {"kernel": jnp.ones((4, 2))}
        >>> directions = landscape.random_directions(jax.random.key(1), params)
        >>> axes = jnp.linspace(-1.0, 1.0, 11), jnp.linspace(-1.0, 1.0, 7)
        >>> plane = landscape.slice(loss, params, directions, axes, data=data, batch_size=20)
        >>> plane.mean.shape, f"{plane.mean[5, 3]:.3f}", plane.probe_error is None
        ((11, 7), '0.000', True)
        >>> smoothing = landscape.Relaxation(0.1, 0.1, method="heat", num_samples=20)
        >>> relaxed = landscape.slice(
        ...     loss, params, directions, axes, data=data, smoothing=smoothing, key=jax.random.key(2))
        >>> bool(relaxed.mean[5, 3] > 0.01)
        True

    References:
        Goodfellow, Vinyals & Saxe 2015, Qualitatively characterizing neural network optimization problems. Li, Xu,
        Taylor, Studer & Goldstein 2018, Visualizing the loss landscape of neural nets. Slices of u: our own.
    """
    checked = check_arguments(
        loss_fn, params, directions, coordinates, smoothing, key, data, batch_size, points_at_once, sharding
    )
    return finish_slice(evaluate_points(checked, checked.points), checked)


def evaluate_points(checked: Arguments, points: Float[Array, "points n"]) -> dict[str, Array]:
    """What :func:`finish_slice` needs of some of the points, with a leading axis of points.

    The arithmetic at one point does not depend on which others come along, to the last bit: the number of turns of the
    loop over points is never one, which XLA would compile into another program, and no vmap is short.

    Args:
        checked: from :func:`check_arguments`.
        points: those wanted.
    """
    devices = 1 if checked.sharding is None else checked.sharding.mesh.shape[checked.sharding.spec[0]]
    chunk = devices * checked.points_at_once
    count = points.shape[0]
    padding = max(-(-count // chunk), 2) * chunk - count
    if padding:
        points = jnp.concatenate([points, jnp.broadcast_to(points[-1:], (padding, points.shape[1]))])
    samples = checked.smoothing if checked.smoothing is not None and checked.smoothing.samples else None
    keep = checked.smoothing is not None and samples is None
    settings = _Settings(checked.loss_fn, checked.points_at_once, checked.sharding)
    inputs = (points, checked.params, checked.directions, samples, checked.key)
    if checked.batches is None or isinstance(checked.batches, Batches):
        parts = _evaluate(settings, keep, checked.batches, *inputs)
    else:
        values, shares = each_batch(settings, checked.batches, *inputs)
        parts = _summaries(jnp.moveaxis(values, 0, -1), shares, samples, keep)
    return jax.tree.map(lambda part: part[:count], parts)


def finish_slice(parts: dict[str, Array], checked: Arguments) -> Float[Array, "..."] | Estimate:
    """The slice from all its points, in order."""
    parts = {name: jnp.reshape(part, checked.shape + part.shape[1:]) for name, part in parts.items()}
    if checked.spacings is not None:
        viscous = not _validate.is_static_zero(checked.smoothing.temperature)
        mean, error = _relax(parts["values"], parts["shares"], checked.spacings, checked.smoothing, viscous)
        return mean if error is None else Estimate.combine(mean, batch_error=error)
    if set(parts) == {"mean"}:
        return parts["mean"]
    info = {name: part for name, part in parts.items() if name == "effective_sample_size"}
    errors = {name: part for name, part in parts.items() if name.endswith("_error")}
    return Estimate.combine(parts["mean"], **errors, info=info)


class _Settings(NamedTuple):
    """The losses of one batch at all points: a function that equals another one made of the same."""

    loss_fn: Callable[..., Any]
    points_at_once: int
    sharding: NamedSharding | None

    def __call__(self, batch, points, *inputs) -> Float[Array, "points samples"]:
        """The losses of one batch from a loader, [points, samples]."""
        losses = functools.partial(
            _losses, self, lambda position, batch: self.evaluate(position, batch)[None]
        )
        return _spread(losses, self.sharding)(points, batch, *inputs)[..., 0]

    def evaluate(self, position: Params, *batch) -> Float[Array, ""]:
        value = self.loss_fn(position, *batch)
        _validate.check_scalar_output("loss_fn", value)
        return jnp.asarray(value, scalar_dtype(position))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(settings: _Settings, keep: bool, batches: Batches | None, points, *inputs) -> dict[str, Array]:
    """Losses of data on the device, and what is made of them point by point."""

    def at(position, batches):
        if batches is None:
            return settings.evaluate(position)[None]
        return each_batch(lambda batch: settings.evaluate(position, batch), batches)[0]

    def run(points, batches, *inputs):
        values = _losses(settings, at, points, batches, *inputs)
        return _summaries(values, _shares(batches, values.dtype), inputs[2], keep)

    return _spread(run, settings.sharding)(points, batches, *inputs)


def _shares(batches: Batches | None, dtype) -> Float[Array, " batches"]:
    """The share of the examples in each batch."""
    if batches is None:
        return jnp.ones(1, dtype)
    number, size = jax.tree.leaves(batches.equal)[0].shape[:2]
    counts = [size] * number + [leaf.shape[0] for leaf in jax.tree.leaves(batches.rest)[:1]]
    return jnp.asarray(np.asarray(counts) / np.sum(counts), dtype)


def _spread(function: Callable[..., Any], sharding: NamedSharding | None) -> Callable[..., Any]:
    """``function(points, *copied)`` with the leading axis of points and of the result over a mesh axis.

    Every device runs the loop over its own points: a vmap over devices would turn convolutions into grouped ones.
    """
    if sharding is None:
        return function

    def mapped(points, *copied):
        specs = (sharding.spec, *[PartitionSpec()] * len(copied))
        return jax.shard_map(
            function, mesh=sharding.mesh, in_specs=specs, out_specs=sharding.spec, check_vma=False
        )(points, *copied)

    return mapped


def _losses(settings: _Settings, at, points, data, params, directions, smoothing, key):
    """``at(position, data)`` [batches] at every point and sample, [points, samples, batches]."""
    base = cast_up(params)

    def along(point, offset):
        position = base
        for coordinate, direction in zip(point, directions, strict=True):
            position = add_scaled(position, coordinate, cast_like(direction, base))
        if offset is not None:
            position = jax.tree.map(jnp.add, position, offset)
        return at(cast_like(position, params), data)

    def at_all(offset):
        one = lambda point: along(point, offset)
        if settings.points_at_once == 1:  # no vmap: a batch axis of one slows convolutions down
            return jax.lax.map(one, points)
        values = jax.lax.map(jax.vmap(one), points.reshape(-1, settings.points_at_once, points.shape[1]))
        return values.reshape(points.shape[0], *values.shape[2:])

    if smoothing is None:
        return at_all(None)[:, None]

    def pair(index):  # drawn once for all points
        offset = perturbation(smoothing, params, key, index)
        signed = lambda sign: jax.tree.map(lambda leaf: sign.astype(leaf.dtype) * leaf, offset)
        return jax.lax.map(lambda sign: at_all(signed(sign)), jnp.array([1.0, -1.0], points.dtype))

    values = jax.lax.map(pair, jnp.arange(smoothing.num_samples // 2, dtype=jnp.int32))
    return jnp.moveaxis(values.reshape(smoothing.num_samples, *values.shape[2:]), 0, 1)


@functools.partial(jax.jit, static_argnums=3)
def _summaries(values, shares, smoothing: Relaxation | None, keep: bool) -> dict[str, Array]:
    """One summary a point from losses [points, samples, batches]; with ``keep`` they are only passed on."""
    if keep:
        return {"values": values[:, 0], "shares": jnp.broadcast_to(shares, (values.shape[0], *shares.shape))}
    return jax.lax.map(lambda losses: summarize(losses, shares, smoothing), values)


@functools.partial(jax.jit, static_argnames="viscous")
def _relax(values, shares, spacings, smoothing: Relaxation, viscous: bool):
    """The relaxed restriction, and its error over batches to first order: u is linearised at the mean loss."""
    shares = shares.reshape(-1, shares.shape[-1])[0]
    mean = jnp.tensordot(values, shares, axes=1, precision=jax.lax.Precision.HIGHEST)
    run = functools.partial(relax_on_grid, spacings=spacings, relaxation=smoothing, viscous=viscous)
    if shares.shape[0] == 1:
        return run(mean), None
    relaxed, linear = jax.linearize(run, mean)
    changes = jax.vmap(linear)(jnp.moveaxis(values - mean[..., None], -1, 0))
    return relaxed, batch_error(changes, shares)
