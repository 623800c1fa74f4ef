"""Mode connectivity: the loss along a curve between two solutions, its barrier, and a curve trained to have none."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from .. import _validate
from .._typing import Params
from ._batches import Batches, Loader, batch_error, each_batch, example_count, make_batches
from .curve import Curve, check_ends, curve_point, straight_line
from .estimate import Estimate

__all__ = ["barrier", "connect", "curve_losses"]


def curve_losses(
    loss_fn: Callable[..., Float[Array, ""]],
    curve: Curve,
    fractions: Float[Array, " points"],
    *,
    data: Any = None,
    batch_size: int | None = None,
) -> Estimate:
    """f(φ(s)) along a curve.

    Args:
        loss_fn: ``(params, batch) -> loss``, the mean over the batch's examples; ``(params) -> loss`` without ``data``.
            The same function object compiles once.
        curve: the curve φ.
        fractions: s in [0, 1].
        data: a tree of arrays with a leading example axis, or a function that returns a fresh iterator over batches;
            None if the loss needs none.
        batch_size: examples in a batch; None for all in one.

    Returns:
        :class:`Estimate`, [points], in [loss]. ``batch_error`` is over batches; without ``data`` nothing is estimated
        and the standard error is 0.

    Raises:
        ValueError, TypeError: other trees as points of the curve, fractions that are no vector, no examples, a loss
            that is no scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> loss_fn = lambda x: jnp.sum((x**2 - 1.0) ** 2)
        >>> line = landscape.straight_line(jnp.array([-1.0]), jnp.array([1.0]))
        >>> print(landscape.curve_losses(loss_fn, line, jnp.linspace(0.0, 1.0, 5)).mean)
        [0.     0.5625 1.     0.5625 0.    ]
    """
    values, shares = _losses_by_batch(loss_fn, curve, fractions, data, batch_size)
    return _estimate(values, shares, data is None)


def barrier(
    loss_fn: Callable[..., Float[Array, ""]],
    start: Params,
    end: Params,
    *,
    control: Params | None = None,
    data: Any = None,
    batch_size: int | None = None,
    num_points: int = 21,
) -> Estimate:
    """How far the loss between two points rises above the chord of its values at them.

        max over s of f(φ(s)) − (1 − s) f(start) − s f(end),      φ the straight line or a Bézier curve,

    over ``num_points`` equidistant s from 0 to 1, both included, so that it is never negative: 0 for a convex f on the
    line. This is the barrier of Entezari et al.; Frankle et al. take the mean of the two losses instead of the chord,
    which is the same where they are equal.

    Args:
        loss_fn: ``(params, batch) -> loss``, the mean over the batch's examples; ``(params) -> loss`` without ``data``.
        start: a tree of parameters.
        end: another like it.
        control: of a Bézier curve, such as ``connect(...).control``; None for the straight line.
        data: see :func:`curve_losses`.
        batch_size: examples in a batch; None for all in one.
        num_points: points on the curve, at least 3 (static). The largest among them can miss the top by
            max |(f∘φ)″|/(8 (num_points − 1)²).

    Returns:
        :class:`Estimate`, a scalar in [loss]. ``batch_error`` is that of the rise at the highest point, from what every
        batch says of the rise (its errors at the ends and at the top are of the same examples and largely cancel). It
        does not know that the point was chosen for being the highest, which lifts the mean a little.

    Raises:
        ValueError, TypeError: other trees, no examples, a loss that is no scalar, fewer than three points.

    Example:
        The double well (x² − 1)² between its minima:

        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> loss_fn = lambda x: jnp.sum((x**2 - 1.0) ** 2)
        >>> print(landscape.barrier(loss_fn, jnp.array([-1.0]), jnp.array([1.0])).mean)
        1.0

    References:
        Entezari, Sedghi, Saukh & Neyshabur 2022, The role of permutation invariance in linear mode connectivity of
        neural networks, definition 2.
        Frankle, Dziugaite, Roy & Carbin 2020, Linear mode connectivity and the lottery ticket hypothesis, section 2.
    """
    _validate.check_count("num_points", num_points, minimum=3)
    curve = straight_line(start, end)
    if control is not None:
        _validate.check_same_tree("control", control, start)
        curve = curve._replace(control=control)
    fractions = jnp.linspace(0.0, 1.0, num_points)
    values, shares = _losses_by_batch(loss_fn, curve, fractions, data, batch_size)
    s = fractions[None].astype(values.dtype)
    rises = _estimate(values - (1 - s) * values[:, :1] - s * values[:, -1:], shares, data is None)
    # Rounding of the line must not make a barrier of the end points themselves.
    top = jnp.argmax(rises.mean.at[jnp.array([0, -1])].set(0.0))
    return jax.tree.map(lambda leaf: leaf[top], rises)


def connect(
    loss_fn: Callable[..., Float[Array, ""]],
    start: Params,
    end: Params,
    data: Any,
    key: Key[Array, ""],
    *,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    batch_size: int | None = None,
    control: Params | None = None,
) -> Curve:
    """Trains the control point of a Bézier curve between two solutions, so that the loss along it is low.

    Minimises E f(φ(s)) over the control point, s uniform on [0, 1] (the uniform weight of Garipov et al., not that of
    the curve's length), by stochastic gradients: every step draws one s and one minibatch. The ends never move.

    Args:
        loss_fn: ``(params, batch) -> loss``, the mean over the batch's examples; ``(params) -> loss`` where ``data`` is
            None.
        start: a tree of parameters, a solution.
        end: another like it.
        data: a tree of arrays with a leading example axis, on the device; None if the loss needs none.
        key: typed key (or integer seed), for s and the minibatches.
        optimizer: of the control point, an optax transformation with its learning rate. The gradient is that of
            plain training times 2 s (1 − s), 1/3 on average.
        num_steps: steps (static).
        batch_size: examples in a minibatch, drawn with replacement (static); None for all data in every step.
        control: where the control point starts; None for midway, that is on the straight line. Where the loss is
            symmetric about the line, its gradient keeps the curve on it: start beside it.

    Returns:
        :class:`Curve`; what it gained is ``barrier(..., control=curve.control)`` beside ``barrier(...)``.

    Raises:
        ValueError, TypeError: other trees, no examples, data that are a function, a loss that is no scalar, counts
            that are no positive integers, something else than an optax transformation.

    Example:
        Two points in a ring-shaped valley, joined around its centre rather than across:

        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxopt_pde import landscape
        >>> ring = lambda x: (jnp.sum(x**2) - 1.0) ** 2
        >>> start, end = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
        >>> curve = landscape.connect(
        ...     ring, start, end, None, jax.random.key(0), optimizer=optax.sgd(0.3), num_steps=300
        ... )
        >>> line, bent = landscape.barrier(ring, start, end), landscape.barrier(ring, start, end, control=curve.control)
        >>> print(f"line {line.mean:.2f}, less than 0.01 around: {bent.mean < 0.01}")
        line 0.25, less than 0.01 around: True

    References:
        Garipov, Izmailov, Podoprikhin, Vetrov & Wilson 2018, Loss surfaces, mode connectivity and fast ensembling of
        DNNs, section 3.
    """
    _validate.check_count("num_steps", num_steps)
    if not isinstance(optimizer, optax.GradientTransformation):
        msg = f"optimizer must be an optax transformation such as optax.sgd(0.1), got {optimizer!r}."
        raise TypeError(msg)
    if callable(data):
        msg = f"data must be a tree of arrays, of which minibatches are drawn on the device, got {data!r}."
        raise TypeError(msg)
    if data is None and batch_size is not None:
        msg = f"batch_size must be None without data, got {batch_size!r}."
        raise ValueError(msg)
    if batch_size is not None:
        _validate.check_count("batch_size", batch_size)
    if data is not None:
        example_count("data", data)
    curve = straight_line(start, end)
    if control is not None:
        _validate.check_same_tree("control", control, start)
        curve = curve._replace(control=control)
    curve = jax.tree.map(
        lambda leaf, like: jnp.asarray(leaf, jnp.result_type(like)), curve, Curve(*[start] * 3)
    )
    trained = _train(
        loss_fn,
        curve,
        data,
        _validate.as_key(key),
        optimizer=optimizer,
        num_steps=num_steps,
        batch_size=batch_size,
    )
    return curve._replace(control=trained)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("optimizer", "num_steps", "batch_size"))
def _train(loss_fn, curve, data, key, *, optimizer, num_steps, batch_size):
    def loss(control, fraction, batch):
        point = curve_point(curve._replace(control=control), fraction)
        return _loss(loss_fn, point, batch)

    def step(carry, key):
        control, state = carry
        fraction_key, batch_key = jax.random.split(key)
        batch = data
        if batch_size is not None:
            count = jax.tree.leaves(data)[0].shape[0]
            rows = jax.random.randint(batch_key, (batch_size,), 0, count)
            batch = jax.tree.map(lambda leaf: leaf[rows], data)
        gradient = jax.grad(loss)(control, jax.random.uniform(fraction_key), batch)
        updates, state = optimizer.update(gradient, state, control)
        return (optax.apply_updates(control, updates), state), None

    start = (curve.control, optimizer.init(curve.control))
    (control, _), _ = jax.lax.scan(step, start, jax.random.split(key, num_steps))
    return control


def _loss(loss_fn: Callable[..., Any], params: Params, batch: Any) -> Float[Array, ""]:
    value = loss_fn(params) if batch is None else loss_fn(params, batch)
    _validate.check_scalar_output("loss_fn", value)
    return jnp.asarray(value, jnp.promote_types(jnp.result_type(value), jnp.float32))


@dataclasses.dataclass(frozen=True)
class _AlongCurve:
    """Equal for equal loss functions, so that every caller meets the same compiled program."""

    loss_fn: Callable[..., Any]

    def __call__(self, batch, curve, fractions):
        return jax.lax.map(lambda s: _loss(self.loss_fn, curve_point(curve, s), batch), fractions)


_compiled_without_data = jax.jit(
    lambda loss_fn, *arguments: _AlongCurve(loss_fn)(None, *arguments), static_argnums=0
)
_compiled_each_batch = jax.jit(
    lambda loss_fn, batches, *arguments: each_batch(_AlongCurve(loss_fn), batches, *arguments),
    static_argnums=0,
)


def _losses_by_batch(
    loss_fn: Callable[..., Any], curve: Curve, fractions: Any, data: Any | Loader, batch_size: int | None
) -> tuple[Float[Array, "batches points"], Float[Array, " batches"]]:
    check_ends(curve.start, curve.end)
    _validate.check_same_tree("control", curve.control, curve.start)
    fractions = jnp.asarray(fractions)
    if fractions.ndim != 1:
        msg = f"fractions must be a vector, got shape {fractions.shape}."
        raise ValueError(msg)
    if data is None:
        if batch_size is not None:
            msg = f"batch_size must be None without data, got {batch_size!r}."
            raise ValueError(msg)
        values = _compiled_without_data(loss_fn, curve, fractions)[None]
        return values, jnp.ones(1, values.dtype)
    batches = make_batches(data, batch_size)
    if isinstance(batches, Batches):
        return _compiled_each_batch(loss_fn, batches, curve, fractions)
    return each_batch(_AlongCurve(loss_fn), batches, curve, fractions)


def _estimate(
    values: Float[Array, "batches points"], shares: Float[Array, " batches"], exact: bool
) -> Estimate:
    mean = jnp.sum(shares[:, None] * values, axis=0)
    if exact:
        return Estimate(mean, jnp.zeros_like(mean))
    return Estimate.combine(mean, batch_error=batch_error(values, shares))
