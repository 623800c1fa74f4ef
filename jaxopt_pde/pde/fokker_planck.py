"""The Fokker-Planck equation on a grid: the density of stochastic descent, positive and of constant mass."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _validate
from . import arguments
from .grid import Grid
from .solution import Solution, finish
from .time_stepping import march, runge_kutta_step, share_out

__all__ = ["solve_fokker_planck"]

_GAUSS = (0.5 - 3**0.5 / 6, 0.5 + 3**0.5 / 6)
"""Gauss and Legendre's two points on an edge: exact for cubic drifts, that is for quartic losses."""


class _Settings(NamedTuple):
    """What is static under ``jit``."""

    grid: Grid
    control: Callable | None
    upwind: bool
    max_steps: int


def solve_fokker_planck(
    density: Float[Array, "*shape"],
    grid: Grid,
    times: float | Float[Array, " n"],
    *,
    drift: Callable[[Float[Array, " d"]], Float[Array, " d"]],
    temperature: float | Float[Array, ""],
    control: Callable[[Array, Array, Any], Array] | None = None,
    cfl: float = 0.9,
    max_steps: int = 32_768,
) -> Solution:
    r"""Solves ρ_s + div((b − α) ρ) = (T/2) Δρ, ρ(x, 0) = ρ₀(x), on a grid in 1-D to 3-D.

    ρ(·, s) is the density of descent dx = b(x) ds − α(x, s) ds + √T dW. No mass crosses the boundary of the box,
    whatever the grid calls it, but on periodic axes, which wrap. The grid's points exchange mass as a Markov chain:
    along an edge of length Δx with mean velocity v and diffusion D = T/2, the exponentially fitted flux is

        J = (D/Δx) (B(−w) ρᵢ − B(w) ρᵢ₊₁),    w = v Δx/D,    B(w) = w/(eʷ − 1),

    central where |w| is small and upwind (v⁺ρᵢ − v⁻ρᵢ₊₁) where T = 0. It follows that

    * ρ stays nonnegative, and its mass Σ wᵢ ρᵢ (trapezoidal weights wᵢ: half at the ends of an axis that is not
      periodic) stays what it was, up to rounding;
    * for b = −∇f the stationary density is exp(−2f/T) at the grid points exactly where the edge averages of b are
      differences of f: to rounding for polynomials f of degree at most 4, O(Δx⁴) otherwise;
    * it is second order in the spacing for T > 0, first order for T = 0.

    The transpose of this chain is the backward Kolmogorov equation, so that E[V(x(s))] is the same computed from
    either side. Steps are convex combinations of Euler steps, each of which is positive (third order in time; second
    order where a ``control`` depends on it), of length

        Δt · max over points of the rate of leaving ≤ cfl,

    a rate of at most Σᵢ (T/Δxᵢ² + |bᵢ − αᵢ|/Δxᵢ) inside and twice that at the boundary.

    Args:
        density: ρ₀ ≥ 0 on the grid, [*shape], in [1/param^d]; of any mass. Its dtype is that of the computation.
        grid: a :class:`Grid` with at least 4 points an axis.
        times: s, one or an increasing array [n], each ≥ 0, in [param²/loss]. ρ₀ stands at 0.
        drift: b, point [d] -> [d]; −∇f for descent on f. Evaluated once, at two points of every edge.
        temperature: T ≥ 0, in [loss]. With the Python number 0 the flux is upwind.
        control: α, called as ``control(x [d], s, None) -> [d]`` at the same points in every step, as
            :func:`jaxopt_pde.control.feedback` is; None means 0. Static under ``jit`` unless it is a pytree.
        cfl: fraction of the step that keeps ρ ≥ 0, in (0, 1].
        max_steps: bound on the number of steps, static. It costs nothing where it is not reached.

    Returns:
        A :class:`Solution` of densities. Its ``check()`` raises if a step limit or a non-finite value was met, and says
        which. ``Solution.value`` is a cubic between grid points and may undershoot 0 there; ``values`` do not.

    Raises:
        ValueError: a grid with fewer than 4 points an axis, ρ₀ negative, not finite or of another shape, a drift that
            is not finite somewhere on the grid (the message names the point) or not [d] -> [d], times unsorted or
            negative, T < 0. What is traced cannot be looked at: ``Solution.status`` then tells.
        TypeError: ρ₀ not real and floating, a drift or control that is no function.

    Differentiable in reverse (and forward) in ``density``, ``temperature``, ``times`` and what ``drift`` and
    ``control`` close over. The number of steps counts as a constant.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import pde
        >>> grid = pde.Grid.uniform(-4.0, 4.0, 81)
        >>> start = grid.evaluate(lambda x: jnp.exp(-2 * (x[0] - 1) ** 2))
        >>> rho = pde.solve_fokker_planck(start, grid, 8.0, drift=lambda x: -x, temperature=1.0).check()
        >>> mass = jnp.sum(rho.values[0]) * grid.spacing[0]  # ρ vanishes at the ends
        >>> print(f"{mass / jnp.sqrt(jnp.pi / 2):.4f} {rho.value(jnp.array(0.0), 8.0) / mass:.3f}")  # and 1/√π
        1.0000 0.564

    References:
        Scharfetter & Gummel 1969, IEEE Trans. Electron Devices 16; Chang & Cooper 1970, J. Comput. Phys. 6; Risken
        1989, The Fokker-Planck Equation. Gottlieb, Shu & Tadmor 2001, SIAM Review 43 (the steps).
    """
    density = arguments.check_values("density", density, grid)
    if not isinstance(density, jax.core.Tracer) and np.any(np.asarray(density) < 0):
        bad = tuple(int(i) for i in np.argwhere(np.asarray(density) < 0)[0])
        msg = f"density must be at least 0, got {density[bad]} at index {bad}."
        raise ValueError(msg)
    times = arguments.check_times(times, density.dtype)
    arguments.check_numbers(temperature, cfl, max_steps)
    arguments.check_points("exponentially fitted", grid, [4] * grid.ndim)
    points = tuple(_edge_points(grid, axis) for axis in range(grid.ndim))
    velocity = tuple(
        jnp.mean(arguments.evaluate_field("drift", drift, at, density.dtype)[..., axis], axis=0)
        for axis, at in enumerate(points)
    )
    held, static = None, None
    if control is not None:
        if not callable(control):
            msg = f"control must be a function (x, time, key) -> like x, got {control!r}."
            raise TypeError(msg)
        _check_control(control, points[0], times)
        # A control that is a pytree of arrays is data, any other one a constant of the compiled program, by its hash.
        held, static = (None, control) if jax.tree_util.all_leaves([control]) else (control, None)
    settings = _Settings(grid, static, _validate.is_static_zero(temperature), max_steps)
    numbers = (jnp.asarray(x, density.dtype) for x in (temperature, cfl))
    return _solve(density, velocity, held, times, *numbers, settings)


@functools.partial(jax.jit, static_argnames="settings")
def _solve(density, velocity, control, times, temperature, cfl, settings: _Settings) -> Solution:
    grid = settings.grid
    control = settings.control if control is None else control
    fixed = functools.partial(_rates, grid=grid, temperature=temperature, upwind=settings.upwind)

    def step(density, rates, dt):
        return runge_kutta_step(lambda rho: _change(rho, rates, grid), density, dt, 3)

    if control is None:
        rates = fixed(velocity)
        rate_limit = _leaving(rates, grid) / cfl

        def advance(density, time, remaining):
            del time
            dt = share_out(remaining, rate_limit)
            return step(density, rates, dt), dt

    else:

        def rates_at(time):
            pushed = (
                v - jnp.mean(_evaluate_control(control, _edge_points(grid, axis), time)[..., axis], axis=0)
                for axis, v in enumerate(velocity)
            )
            return fixed(tuple(v.astype(density.dtype) for v in pushed))

        def advance(density, time, remaining):
            # The rates of the middle of the step, held during it, are second order and keep it positive for sure.
            dt = share_out(remaining, _leaving(rates_at(time), grid) / cfl)
            rates = rates_at(time + dt / 2)
            wanted = share_out(remaining, _leaving(rates, grid) / cfl)
            dt = jnp.where(wanted < dt, wanted, dt)
            return step(density, rates, dt), dt

    values, taken, stopped = march(advance, density, jnp.diff(times, prepend=0), settings.max_steps)
    return finish(
        Solution(grid, times, values, "exponentially fitted", taken, jnp.zeros([], jnp.int32)),
        data=(density, *velocity),
        nonnegative=(temperature, density),
        stopped=stopped,
    )


def _edge_points(grid: Grid, axis: int) -> Float[Array, "2 *edges d"]:
    """Gauss and Legendre's points of the edges along one axis, the last edge of a periodic axis included."""
    points, dx = grid.points, grid.spacing[axis]
    if grid.boundary[axis] != "periodic":
        points = jax.lax.slice_in_dim(points, 0, grid.shape[axis] - 1, axis=axis)
    along = jnp.eye(grid.ndim, dtype=points.dtype)[axis].reshape((1,) * grid.ndim + (-1,))
    return jnp.stack([points + part * dx * along for part in _GAUSS])


def _evaluate_control(control, points, time):
    listed = points.reshape(-1, points.shape[-1])
    return jax.vmap(lambda x: control(x, time, None))(listed).reshape(points.shape)


def _check_control(control, points, times) -> None:
    ndim = points.shape[-1]
    got = jax.eval_shape(lambda x, time: control(x, time, None), points.reshape(-1, ndim)[0], times[0])
    if getattr(got, "shape", None) != (ndim,):
        msg = f"control must give a vector of shape ({ndim},) at a point of shape ({ndim},), got {got}."
        raise ValueError(msg)


def _fitted(diffusion, speed):
    """D·B(|v|Δx/D), which falls from D to 0 as the speed |v|Δx grows."""
    size = speed / diffusion
    small = size < 1e-2
    far, near = jnp.where(small, 1.0, size), jnp.where(small, size, 0.0)
    fraction = far * jnp.exp(-far) / -jnp.expm1(-far)
    series = 1 - near / 2 + near**2 / 12 - near**4 / 720
    return diffusion * jnp.where(small, series, fraction)


def _rates(velocity, *, grid: Grid, temperature, upwind: bool):
    """(rate forwards, rate backwards) of each edge along each axis, in [1/time]."""
    pairs = []
    for v, dx in zip(velocity, grid.spacing, strict=True):
        # D B(w) = D B(|w|) + (v⁻)Δx: the exponential never grows.
        forward, backward = jnp.maximum(v, 0) / dx, jnp.maximum(-v, 0) / dx
        if not upwind:
            # A traced temperature may be 0; so small a one gives the same rates.
            diffusion = jnp.maximum(temperature / 2, jnp.finfo(v.dtype).tiny ** (1 / 3))
            mixing = _fitted(diffusion, jnp.abs(v) * dx) / dx**2
            forward, backward = forward + mixing, backward + mixing
        pairs.append((forward, backward))
    return tuple(pairs)


def _spread(to_right, to_left, axis: int, boundary: str):
    """What edges give to the points at their right and left ends, per share of mass of a point."""
    if boundary == "periodic":
        return jnp.roll(to_right, 1, axis) + to_left
    zero = jnp.zeros_like(jax.lax.slice_in_dim(to_right, 0, 1, axis=axis))
    total = jnp.concatenate([zero, to_right], axis) + jnp.concatenate([to_left, zero], axis)
    share = np.ones(total.shape[axis])
    share[[0, -1]] = 0.5
    shape = [1] * total.ndim
    shape[axis] = -1
    return total / jnp.asarray(share.reshape(shape), total.dtype)


def _change(density, rates, grid: Grid):
    """−div J at every point."""
    total = 0
    for axis, ((forward, backward), boundary) in enumerate(zip(rates, grid.boundary, strict=True)):
        n = grid.shape[axis]
        if boundary == "periodic":
            before, after = density, jnp.roll(density, -1, axis)
        else:
            before = jax.lax.slice_in_dim(density, 0, n - 1, axis=axis)
            after = jax.lax.slice_in_dim(density, 1, n, axis=axis)
        current = forward * before - backward * after
        total += _spread(current, -current, axis, boundary)
    return total


def _leaving(rates, grid: Grid):
    """The largest rate at which a point loses mass: a constant for derivatives."""
    total = sum(
        _spread(backward, forward, axis, boundary)
        for axis, ((forward, backward), boundary) in enumerate(zip(rates, grid.boundary, strict=True))
    )
    return jax.lax.stop_gradient(jnp.max(total))
