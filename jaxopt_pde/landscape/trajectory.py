"""The way of an optimiser: every m-th iterate of a compiled loop, and the plane that holds most of its motion."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _validate
from .._arithmetic import cast_like, dot
from .._typing import Params
from .plane import Plane

__all__ = ["Recording", "TrajectoryPlane", "pca_plane", "record"]


class Recording(NamedTuple):
    """A loop that ran, and the iterates kept of it.

    Attributes:
        carry: after the last step, as of ``jax.lax.scan``.
        iterates: a tree like the parameters with a leading axis ``num_steps // every + 1``: the start, then every
            ``every``-th iterate, the last of which is the end.
        outputs: what the steps gave besides, stacked [num_steps, ...], as of ``jax.lax.scan``.
    """

    carry: Any
    iterates: Params
    outputs: Any


class TrajectoryPlane(NamedTuple):
    """The principal plane of a trajectory, ``plane, explained = pca_plane(iterates)``.

    Attributes:
        plane: its ``coordinates`` are those of the iterates, [iterates, 2].
        explained: shares of the sum of squared distances from the centre that lie along the two directions, [2],
            the larger first.
    """

    plane: Plane
    explained: Float[Array, "2"]


def record(
    step_fn: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
    *,
    num_steps: int | None = None,
    every: int = 1,
    params_of: Callable[[Any], Params] = lambda carry: carry,
) -> Recording:
    """``jax.lax.scan`` that also keeps the start and every m-th iterate, and stores no others.

    Two nested scans: the inner one makes ``every`` steps, the outer one writes the iterate into its row. Put it under
    ``jax.jit`` like a scan.

    Args:
        step_fn: ``(carry, x) -> (carry, output)``, a step of ``jax.lax.scan``; its output may be None.
        carry: what it starts from, such as ``(params, opt_state)``.
        xs: what is scanned over, a tree of arrays with a leading axis ``num_steps`` (keys, minibatches); None for
            nothing.
        num_steps: steps in all (static); may be left out where ``xs`` tells.
        every: m ≥ 1, steps from one kept iterate to the next (static). It must divide ``num_steps``, so that the end
            is kept.
        params_of: what to keep of the carry; by default all of it.

    Returns:
        :class:`Recording`.

    Raises:
        ValueError, TypeError: counts that are no positive integers or disagree, neither ``xs`` nor ``num_steps``, an
            ``every`` that does not divide the steps.

    Example:
        Gradient descent on x²/2, which halves x in every step:

        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> recording = landscape.record(lambda x, _: (x - 0.5 * x, None), jnp.array(16.0), num_steps=4, every=2)
        >>> print(recording.iterates, recording.carry)
        [16.  4.  1.] 1.0
    """
    lengths = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(xs)}
    if num_steps is None:
        if len(lengths) != 1:
            msg = f"num_steps must be given, or xs hold arrays of one leading length, got xs of {sorted(lengths)}."
            raise ValueError(msg)
        (num_steps,) = lengths
    _validate.check_count("num_steps", num_steps)
    _validate.check_count("every", every)
    if lengths - {num_steps}:
        msg = f"xs must hold arrays with a leading axis num_steps={num_steps}, got {sorted(lengths)}."
        raise ValueError(msg)
    if num_steps % every:
        msg = f"every must divide num_steps={num_steps}, so that the last iterate is kept, got {every!r}."
        raise ValueError(msg)
    rows = num_steps // every
    blocks = jax.tree.map(lambda leaf: jnp.reshape(leaf, (rows, every, *jnp.shape(leaf)[1:])), xs)

    def block(state, inputs):
        carry, iterates = state
        row, inputs = inputs
        carry, outputs = jax.lax.scan(step_fn, carry, inputs, length=every)
        iterates = jax.tree.map(lambda kept, now: kept.at[row].set(now), iterates, params_of(carry))
        return (carry, iterates), outputs

    # One buffer filled in place: stacking the outer scan's outputs behind the start would copy the trajectory.
    carry = jax.tree.map(jnp.asarray, carry)
    iterates = jax.tree.map(
        lambda leaf: jnp.zeros((rows + 1, *jnp.shape(leaf)), jnp.result_type(leaf)).at[0].set(leaf),
        params_of(carry),
    )
    (carry, iterates), outputs = jax.lax.scan(block, (carry, iterates), (jnp.arange(1, rows + 1), blocks))
    outputs = jax.tree.map(lambda leaf: leaf.reshape(num_steps, *leaf.shape[2:]), outputs)
    return Recording(carry, iterates, outputs)


def pca_plane(trajectory: Params, *, center: Literal["last", "mean"] | Params = "last") -> TrajectoryPlane:
    """The plane through ``center`` that loses least of a trajectory: its first two principal components.

    With the n offsets Dᵢ = θᵢ − c as the rows of D, the directions are the first two right singular vectors of D.
    They come from the n×n matrix D Dᵀ = V Λ Vᵀ as Dᵀ v/|Dᵀ v|: nothing of size [param, param] is formed and leaves are
    not joined. The second is found in what the first leaves over, so it is right to rounding even where its share is
    far below the square root of the precision. The larger of the coordinates in absolute value is positive along
    either direction, which fixes the signs.

    A warning: a random walk looks like a path with a goal in this plane. For a walk of many independent steps in many
    dimensions, whose loss plays no part, the shares are 6/(π²k²) about the mean, that is 61 % and 15 %, and the
    coordinates half a period and a period of a cosine (Antognini & Sohl-Dickstein); about the last iterate they
    are 8/(π²(2k − 1)²), 81 % and 9 % (our own derivation: seen from its end, the walk is a Brownian motion, with
    covariance min(s, s')). Large shares are therefore no sign that training happens in a plane.

    Args:
        trajectory: iterates in order, a tree like the parameters with a leading axis of at least three on every leaf,
            such as ``record(...).iterates``. Stack a list with
            ``jax.tree.map(lambda *leaves: jnp.stack(leaves), *checkpoints)``.
        center: c, the plane's origin: ``"last"`` for the last iterate, as Li et al. 2018 define it (their published
            code hands the offsets to scikit-learn, which takes their mean away: for those directions use
            ``"mean"``), ``"mean"`` for the mean of the iterates (ordinary principal components), or a tree of
            parameters.

    Returns:
        :class:`TrajectoryPlane`. Other points fall on the plane by :func:`project`, other trajectories by ``jax.vmap``
        of it.

    Raises:
        ValueError, TypeError: fewer than three iterates, leaves that disagree in their number, leaves that are not
            real and floating, another tree as the centre; iterates that are not finite, all at the centre or all on
            one line through it (the last three checked where they are concrete).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> trajectory = {"w": jnp.array([[4.0, 0.0], [2.0, 1.0], [0.0, 0.0]]), "b": jnp.ones(3)}
        >>> plane, explained = landscape.pca_plane(trajectory)
        >>> print(plane.coordinates.shape, f"{explained[0]:.2f} and {explained[1]:.2f} of the squared distances")
        (3, 2) 0.96 and 0.04 of the squared distances

    References:
        Li, Xu, Taylor, Studer & Goldstein 2018, Visualizing the loss landscape of neural nets, section 7.
        Antognini & Sohl-Dickstein 2018, PCA of high dimensional random walks with comparison to neural network
        training.
    """
    lengths = {}
    for path, leaf in jax.tree.leaves_with_path(trajectory):
        where = "trajectory" + jax.tree_util.keystr(path)
        if not jnp.ndim(leaf):
            msg = f"{where} must have a leading axis of iterates, got {leaf!r}."
            raise ValueError(msg)
        lengths[where] = jnp.shape(leaf)[0]
    if len(set(lengths.values())) != 1:
        msg = f"trajectory must have arrays with one number of iterates, got {lengths}."
        raise ValueError(msg)
    if (number := next(iter(lengths.values()))) < 3:
        msg = f"trajectory must have at least three iterates to span a plane, got {number}."
        raise ValueError(msg)
    _validate.check_float_tree("trajectory", trajectory)
    trajectory = jax.tree.map(jnp.asarray, trajectory)
    if isinstance(center, str):
        _validate.check_choice("center", center, ("last", "mean"))
        center = _last(trajectory) if center == "last" else _mean(trajectory)
    else:
        _validate.check_same_tree("center", center, _last(trajectory))
        center = cast_like(jax.tree.map(jnp.asarray, center), trajectory)
    result, size, spread = _principal_plane(trajectory, center)
    if not isinstance(size, jax.core.Tracer):
        _check_spread(float(size), np.asarray(spread))
    return result


def _check_spread(size: float, spread: np.ndarray) -> None:
    if not np.isfinite(size):
        msg = "trajectory and center must be finite, got NaN or infinity."
        raise ValueError(msg)
    if size == 0:
        msg = "trajectory must not stay at its center, got iterates that are all identical."
        raise ValueError(msg)
    if not spread[1] > 10 * np.finfo(spread.dtype).eps * spread[0]:
        msg = f"trajectory must not lie on one line through its center, got spreads {spread} (relative) along two axes."
        raise ValueError(msg)


@jax.jit
def _last(trajectory: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf[-1], trajectory)


@jax.jit
def _mean(trajectory: Params) -> Params:
    # About the last iterate, so that small motion far from zero keeps its digits.
    return jax.tree.map(lambda leaf: leaf[-1] + jnp.mean(leaf - leaf[-1:], axis=0), trajectory)


@jax.jit
def _principal_plane(
    trajectory: Params, center: Params
) -> tuple[TrajectoryPlane, Float[Array, ""], Float[Array, "2"]]:
    """The plane, the largest offset of any entry, and the roots of the sums of squares relative to it."""
    dtype = jnp.promote_types(jnp.result_type(*jax.tree.leaves(trajectory)), jnp.float32)
    offsets = jax.tree.map(lambda leaf, c: leaf.astype(dtype) - c[None].astype(dtype), trajectory, center)
    size = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(offsets)]))
    offsets = jax.tree.map(lambda leaf: leaf / size, offsets)  # squares neither overflow nor vanish
    total = jnp.trace(gram := _gram(offsets))
    first = _unit(_mix(_top(gram), offsets))
    across = _coordinates(offsets, first)
    rest = jax.tree.map(lambda leaf, d: leaf - jnp.tensordot(across, d, axes=0), offsets, first)
    second = _unit(_mix(_top(_gram(rest)), rest))
    overlap = dot(second, first, dtype)
    second = _unit(jax.tree.map(lambda leaf, d: leaf - overlap * d, second, first))
    up = _coordinates(rest, second)
    coordinates, directions = [], []
    for values, direction in ((across, first), (up, second)):
        sign = jnp.where(values[jnp.argmax(jnp.abs(values))] < 0, -1, 1).astype(dtype)
        coordinates.append(size * sign * values)
        directions.append(cast_like(jax.tree.map(lambda leaf, s=sign: s * leaf, direction), center))
    squares = jnp.stack([jnp.sum(across**2), jnp.sum(up**2)])
    plane = Plane(center, tuple(directions), jnp.stack(coordinates, axis=1))
    return TrajectoryPlane(plane, squares / total), size, jnp.sqrt(squares)


def _gram(tree: Params) -> Float[Array, "n n"]:
    def products(leaf):
        axes = tuple(range(1, leaf.ndim))
        return jnp.tensordot(leaf, leaf, axes=(axes, axes), precision="highest")

    return sum(products(leaf) for leaf in jax.tree.leaves(tree))


def _top(gram: Float[Array, "n n"]) -> Float[Array, " n"]:
    return jnp.linalg.eigh(gram)[1][:, -1]


def _mix(weights: Float[Array, " n"], tree: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, axes=1, precision="highest"), tree)


def _coordinates(tree: Params, direction: Params) -> Float[Array, " n"]:
    def products(leaf, d):
        return jnp.tensordot(leaf, d, axes=d.ndim, precision="highest")

    return sum(jax.tree.leaves(jax.tree.map(products, tree, direction)))


def _unit(tree: Params) -> Params:
    norm = jnp.sqrt(dot(tree, tree, jax.tree.leaves(tree)[0].dtype))
    return jax.tree.map(lambda leaf: leaf / norm, tree)
