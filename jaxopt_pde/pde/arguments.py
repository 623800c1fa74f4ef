"""What the stepping solvers ask of their arguments, in the same words, and how they choose the diffusion."""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from .. import _validate
from .grid import Grid
from .stencils import SCHEMES, Hamiltonian, check_flux

__all__ = [
    "Diffusion",
    "Settings",
    "check_numbers",
    "check_points",
    "check_scheme",
    "check_times",
    "check_values",
    "choose_diffusion",
    "diffusive_rate",
    "evaluate_field",
]

Diffusion = Literal["auto", "explicit", "exponential"]


class Settings(NamedTuple):
    """What is static under ``jit``."""

    grid: Grid
    scheme: str
    hamiltonian: Hamiltonian | None
    diffusion: str
    viscous: bool
    max_steps: int


def check_values(name: str, values: ArrayLike, grid: Grid) -> Array:
    """Raises unless ``values`` is a real, floating and finite grid function; half precision becomes float32."""
    if not isinstance(grid, Grid):
        msg = f"grid must be a pde.Grid, got {grid!r}."
        raise TypeError(msg)
    if callable(values):
        msg = f"{name} must be an array of values on the grid, got a function: pass grid.evaluate({name})."
        raise TypeError(msg)
    _validate.check_float_tree(name, values)
    values = jnp.asarray(values)
    if values.shape != grid.shape:
        msg = f"{name} must have the grid's shape {grid.shape}, got {values.shape}: see Grid.evaluate."
        raise ValueError(msg)
    if not isinstance(values, jax.core.Tracer) and not np.all(np.isfinite(values)):
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(np.asarray(values)))[0])
        msg = f"{name} must be finite, got {values[bad]} at index {bad}."
        raise ValueError(msg)
    if jnp.finfo(values.dtype).bits < 32:
        values = values.astype(jnp.float32)
    return values


def check_times(times: ArrayLike | Sequence[float], dtype: DTypeLike) -> Float[Array, " n"]:
    """Raises unless ``times`` is a number or increases, is finite and at least 0; an array [n] of ``dtype``."""
    if not isinstance(times, jax.core.Tracer):
        listed = np.atleast_1d(np.asarray(times, dtype=float))
        if (
            listed.ndim != 1
            or not listed.size
            or not np.all(np.isfinite(listed))
            or listed[0] < 0
            or np.any(np.diff(listed) <= 0)
        ):
            msg = f"times must be a number or an increasing sequence of finite numbers >= 0, got {times!r}."
            raise ValueError(msg)
    return jnp.atleast_1d(jnp.asarray(times, dtype))


def check_numbers(temperature: ArrayLike, cfl: ArrayLike, max_steps: int) -> None:
    """Raises unless the temperature is at least 0, ``cfl`` in (0, 1] and ``max_steps`` a positive integer."""
    _validate.check_nonnegative("temperature", temperature)
    _validate.check_positive("cfl", cfl)
    if isinstance(cfl, numbers.Real) and cfl > 1:
        msg = f"cfl must be at most 1, got {cfl!r}: larger steps are unstable."
        raise ValueError(msg)
    _validate.check_count("max_steps", max_steps)


def check_points(scheme: str, grid: Grid, least: list[int]) -> None:
    """Raises unless each axis has at least so many points."""
    for n, needed in zip(grid.shape, least, strict=True):
        if n < needed:
            msg = f"grid must have at least {needed} points an axis for scheme={scheme!r}, got shape {grid.shape}."
            raise ValueError(msg)


def check_scheme(scheme: str, hamiltonian: Hamiltonian | None, grid: Grid, viscous: bool) -> None:
    """Raises where a stepping scheme fits neither the Hamiltonian, nor the grid, nor a temperature of 0."""
    check_points(scheme, grid, [4] * grid.ndim)
    check_flux(scheme, hamiltonian)
    if scheme == "central" and not viscous:
        msg = "scheme='central' needs temperature > 0, got 0: without viscosity it is unstable. Use 'weno5'."
        raise ValueError(msg)


def diffusive_rate(grid: Grid, scheme: str) -> float:
    """What T is multiplied by in the bound of the explicit step."""
    factor = 4 / 3 if SCHEMES[scheme].laplacian_order == 4 else 1.0
    return factor * sum(1 / dx**2 for dx in grid.spacing)


def choose_diffusion(
    diffusion: str,
    scheme: str,
    grid: Grid,
    length: ArrayLike,
    temperature: ArrayLike,
    cfl: ArrayLike,
    max_steps: int,
) -> str:
    """Resolves ``"auto"`` without a look at the data, and raises where explicit steps are known to exceed the limit."""
    _validate.check_choice("diffusion", diffusion, get_args(Diffusion))
    known = (length, temperature, cfl)
    if diffusion == "exponential" or any(isinstance(value, jax.core.Tracer) for value in known):
        return "explicit" if diffusion == "auto" else diffusion
    diffusive = float(temperature) * diffusive_rate(grid, scheme)
    steps = math.ceil(float(length) * diffusive / float(cfl))
    if diffusion == "explicit":
        if steps > max_steps:
            msg = (
                f"temperature={float(temperature)!r} needs at least {steps} explicit steps on this grid, more than "
                f"max_steps={max_steps}: use diffusion='exponential', fewer grid points, or raise max_steps."
            )
            raise ValueError(msg)
        return diffusion
    return "exponential" if steps > min(max_steps, 10 * max(grid.shape)) else "explicit"


def evaluate_field(
    name: str,
    field: Callable[[Float[Array, " d"]], Float[Array, " d"]],
    points: Float[Array, "*shape d"],
    dtype: DTypeLike,
) -> Float[Array, "*shape d"]:
    """A vector field at many points; raises where it is no function [d] -> [d] or not finite, and says where."""
    if not callable(field):
        msg = f"{name} must be a function of one point [d] that gives a vector [d], got {field!r}."
        raise TypeError(msg)
    ndim = points.shape[-1]
    listed = points.reshape(-1, ndim)
    got = jax.eval_shape(field, listed[0])
    if getattr(got, "shape", None) != (ndim,):
        msg = f"{name} must give a vector of shape ({ndim},) at a point of shape ({ndim},), got {got}."
        raise ValueError(msg)
    values = jax.vmap(field)(listed)
    if not isinstance(values, jax.core.Tracer) and not np.all(np.isfinite(values)):
        bad = int(np.argwhere(~np.isfinite(np.asarray(values)).all(axis=1))[0, 0])
        msg = f"{name} must be finite on the grid, got {values[bad]} at x = {listed[bad]}."
        raise ValueError(msg)
    return values.reshape(points.shape).astype(dtype)
