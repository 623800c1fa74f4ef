"""A test function with its domain, its minimisers and, where known, its exact relaxed loss."""

import dataclasses
import math
import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .. import _validate

__all__ = ["Problem", "domain_points", "evaluate"]

Point = Float[Array, " d"]
Scalar = float | Float[Array, ""]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A loss f on a box, with what is known about it.

    The functions take one point of shape [d], also for d = 1, compute in its dtype and compose with ``jit``,
    ``vmap`` and ``grad``; :func:`evaluate` maps them over many points. The numbers are NumPy arrays in float64 in
    either precision of JAX, read-only; the problem itself is static: close over it.

    Attributes:
        name: what to call it in a table or a figure.
        loss: f, point [d] → scalar, in [loss].
        lower: lower corner of the domain [d], in [param].
        upper: upper corner of the domain [d], in [param].
        minimisers: local minimisers [m, d], from the least value up: the global one first. Each constructor
            says which ones it lists; m = 0 where there is none.
        minimum: the loss at the first of them, in [loss]; NaN if there is none.
        saddles: known stationary points with one descending direction [k, d] (for d = 1 the tops of barriers).
        exact: None, or (point [d], smoothing_time, temperature) → u(x, t), the exact solution of
            u_t + ½|∇u|² = (T/2) Δu, u(x, 0) = f(x). Where ``exact_temperature`` and ``exact_horizon`` say that it does
            not hold it raises for concrete numbers and is NaN, with NaN derivatives, for traced ones.
        exact_temperature: the one temperature T at which ``exact`` holds; None if it holds at every T ≥ 0.
        exact_horizon: ``exact`` holds for 0 ≤ t < this time; infinite unless f is unbounded below.
        heat: None, or (point [d], variance) → E f(x + √variance ξ), ξ ~ N(0, I): the limit of large temperature
            with variance t·T fixed.

    Raises:
        ValueError: corners out of order, or arrays whose shapes do not fit them.

    Example:
        >>> import jax.numpy as jnp
        >>> parabola = Problem("parabola", lambda x: jnp.sum(x**2), [-1.0], [1.0], [[0.0]], 0.0)
        >>> print(parabola.loss(jnp.array([0.5])), parabola.minimisers.shape, parabola.exact)
        0.25 (1, 1) None
    """

    name: str
    loss: Callable[[Point], Float[Array, ""]]
    lower: Float[np.ndarray, " d"]
    upper: Float[np.ndarray, " d"]
    minimisers: Float[np.ndarray, "m d"]
    minimum: float
    saddles: Float[np.ndarray, "k d"] | None = None
    exact: Callable[[Point, Scalar, Scalar], Float[Array, ""]] | None = None
    exact_temperature: float | None = None
    exact_horizon: float = math.inf
    heat: Callable[[Point, Scalar], Float[Array, ""]] | None = None

    def __post_init__(self) -> None:
        lower, upper = frozen(self.lower), frozen(self.upper)
        if lower.ndim != 1 or lower.shape != upper.shape or not np.all(lower < upper):
            msg = f"lower must lie below upper, both of shape [d], got {lower!r} and {upper!r}."
            raise ValueError(msg)
        fields = {"lower": lower, "upper": upper, "minimum": float(self.minimum)}
        for name in ("minimisers", "saddles"):
            points = getattr(self, name)
            fields[name] = points = frozen(np.zeros((0, lower.size)) if points is None else points)
            if points.ndim != 2 or points.shape[1] != lower.size:
                msg = f"{name} must have shape [m, {lower.size}], got {points.shape}."
                raise ValueError(msg)
        if self.exact is not None:
            fields["exact"] = _guarded(self.exact, self.exact_temperature, self.exact_horizon)
        for name, value in fields.items():
            object.__setattr__(self, name, value)


def frozen(values: ArrayLike) -> np.ndarray:
    """A read-only float64 copy."""
    values = np.array(values, np.float64)
    values.setflags(write=False)
    return values


def constants(values: np.ndarray, point: Point) -> Array:
    """``values`` in the dtype of ``point``."""
    return jnp.asarray(values, jnp.result_type(point, float))


def sort_by_value(points: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Points [m, d] from the least value [m] up, and that value (NaN for m = 0)."""
    order = np.argsort(values, kind="stable")
    return points[order], float(values[order[0]]) if len(order) else math.nan


def _guarded(exact: Callable, only_temperature: float | None, horizon: float) -> Callable:
    """``exact``, refused where it does not hold. A factor NaN, unlike ``where``, reaches the derivatives too."""

    def guarded(point: Point, smoothing_time: Scalar, temperature: Scalar) -> Float[Array, ""]:
        _validate.check_nonnegative("smoothing_time", smoothing_time)
        _validate.check_nonnegative("temperature", temperature)
        if isinstance(smoothing_time, numbers.Real) and not smoothing_time < horizon:
            msg = f"smoothing_time must be less than {horizon}, where u reaches -inf, got {smoothing_time!r}."
            raise ValueError(msg)
        holds = smoothing_time < horizon
        if only_temperature is not None:
            # Six digits: the number may have passed through float32.
            if isinstance(temperature, numbers.Real) and not math.isclose(
                temperature, only_temperature, rel_tol=1e-6
            ):
                msg = f"temperature must be {only_temperature}, where u is known, got {temperature!r}."
                raise ValueError(msg)
            holds &= jnp.isclose(temperature, only_temperature, rtol=1e-6, atol=0.0)
        value = exact(point, smoothing_time, temperature)
        return value * jnp.where(holds, 1.0, jnp.nan).astype(value.dtype)

    return guarded


def evaluate(function: Callable[[Point], Array], points: Float[Array, "... d"]) -> Array:
    """Values of a function of one point at many points.

    Args:
        function: point [d] → array of any fixed shape: a loss, its ``jax.grad``, ``jax.hessian`` …
        points: points [..., d] in [param], with any leading axes: a list, a grid, a stack of trajectories.

    Returns:
        The values, with the leading axes of ``points`` first: [...] for a loss, [..., d] for its gradient.

    Raises:
        ValueError: ``points`` is a scalar.

    Example:
        >>> import jax
        >>> from jaxopt_pde.problems import double_well
        >>> problem = double_well()
        >>> grid = domain_points(problem, 5)
        >>> grid.shape, evaluate(problem.loss, grid).shape, evaluate(jax.grad(problem.loss), grid).shape
        ((5, 1), (5,), (5, 1))
    """
    points = jnp.asarray(points)
    if points.ndim == 0:
        msg = "points must have shape [..., d], got a scalar."
        raise ValueError(msg)
    values = jax.vmap(function)(points.reshape(-1, points.shape[-1]))
    return values.reshape(*points.shape[:-1], *values.shape[1:])


def domain_points(problem: Problem, shape: int | tuple[int, ...]) -> Float[Array, "... d"]:
    """Equally spaced points of the domain, both ends included.

    Args:
        problem: gives the corners ``lower`` and ``upper``.
        shape: points along each of the d axes, at least 2; one integer stands for all axes.

    Returns:
        Points [*shape, d] in [param]; ``points[i, j]`` is the one with index i along the first axis.

    Raises:
        ValueError: as many counts as axes are needed, each at least 2.
        TypeError: a count that is not an integer.

    Example:
        >>> from jaxopt_pde.problems import rastrigin
        >>> print(domain_points(rastrigin(2), (3, 5))[2, 0])
        [ 5.12 -5.12]
    """
    dimension = problem.lower.size
    counts = (shape,) * dimension if isinstance(shape, numbers.Integral) else tuple(shape)
    if len(counts) != dimension:
        msg = f"shape must have {dimension} entries, one an axis, got {shape!r}."
        raise ValueError(msg)
    for count in counts:
        _validate.check_count("shape", count, minimum=2)
    axes = [np.linspace(*ends) for ends in zip(problem.lower, problem.upper, counts, strict=True)]
    return jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1), jnp.result_type(float))
