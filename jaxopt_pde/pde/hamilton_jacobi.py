"""The viscous Hamilton-Jacobi equation on a grid: one entrance to the exact route and to the stepping schemes."""

import functools
import itertools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _validate
from . import arguments
from .arguments import Diffusion, Settings
from .cole_hopf import cole_hopf
from .diffusion import apply_along_axes, heat_matrices
from .grid import Grid
from .inf_convolution import inf_convolution
from .solution import Solution, finish
from .stencils import SCHEMES, Hamiltonian, flux, laplacian, one_sided_differences, slope_bounds
from .time_stepping import bounded_loop, runge_kutta_step, visit_times

__all__ = ["SchemeName", "solve_hamilton_jacobi"]

SchemeName = Literal["auto", "exact", "godunov", "engquist_osher", "lax_friedrichs", "central", "weno5"]


def solve_hamilton_jacobi(
    initial: Float[Array, "*shape"],
    grid: Grid,
    times: float | Float[Array, " n"],
    *,
    temperature: float | Float[Array, ""],
    scheme: SchemeName = "auto",
    hamiltonian: Hamiltonian | None = None,
    diffusion: Diffusion = "auto",
    cfl: float = 0.9,
    max_steps: int = 32_768,
) -> Solution:
    r"""Solves u_t + H(∇u) = (T/2) Δu, u(x, 0) = f(x), on a grid in 1-D to 3-D.

    For H = ½|p|² (the default) u is the relaxed loss, and ``scheme="auto"`` takes the exact route: Cole and Hopf's
    formula for T > 0, the inf-convolution for T = 0, one pass an axis for each time, no time steps. It is exact up
    to quadrature: to rounding where the grid resolves exp(−f/T), and O(Δx³) in the limit T → 0. Other convex
    Hamiltonians H(p) are stepped in time:

    ====================  =====  ====  ======================================================================
    scheme                space  time  what it is
    ====================  =====  ====  ======================================================================
    ``"godunov"``         1      1     upwind flux of H = ½|p|², monotone
    ``"engquist_osher"``  1      1     the same with a differentiable flux
    ``"lax_friedrichs"``  1      1     central flux with artificial viscosity, any H, monotone
    ``"central"``         2      3     no upwinding: only for T > 0 and |∂H/∂p| Δx ≤ T (else it oscillates)
    ``"weno5"``           5 (4)  3     fifth-order upwind differences (fourth-order Δ); "auto" for other H
    ====================  =====  ====  ======================================================================

    The monotone schemes converge to the viscosity solution, and keep order and range between periodic and Neumann
    boundaries to rounding (a linear tail that falls outwards comes in below min f). Steps obey

        Δt (Σᵢ αᵢ/Δxᵢ + c T Σᵢ 1/Δxᵢ²) ≤ cfl,    αᵢ = max |∂H/∂pᵢ| over the initial slopes,

    c = 1 (4/3 for ``"weno5"``), without the second term for exponential diffusion. The two sides of
    ``"engquist_osher"`` add up at a peak: its αᵢ is max (pᵢ)⁺ + max (pᵢ)⁻.

    Args:
        initial: f on the grid, [*shape], real and floating. Its dtype is that of the computation.
        grid: a :class:`Grid`.
        times: t, one or an increasing array [n], each ≥ 0, in [param²/loss].
        temperature: T ≥ 0, in [loss]; the viscosity is T/2. The Python number 0 leaves the viscous part out.
        scheme: ``"auto"``, ``"exact"``, or one of the table.
        hamiltonian: convex H(p [d]) -> scalar, jittable; None means ½|p|².
        diffusion: ``"explicit"``: Δu in the same step, which then scales as Δx²/T. ``"exponential"``: the heat
            semigroup as one dense product an axis, split from H (Strang, second order in time), no step limit.
            ``"auto"``: exponential where the viscous limit asks for more explicit steps than ``max_steps`` or ten
            times the points of the longest axis; explicit where T, ``times`` or ``cfl`` are traced.
        cfl: fraction of the stable step, in (0, 1].
        max_steps: bound on the number of steps, static. It costs nothing where it is not reached.

    Returns:
        A :class:`Solution`. Its ``check()`` raises if a step limit or a non-finite value was met, and says which.

    Raises:
        ValueError: a grid with fewer than 4 points an axis (6 for ``"extrapolate"`` on the exact route), non-finite
            initial data, times unsorted or negative, an unknown scheme or one that does not fit the Hamiltonian, a
            temperature for which the explicit steps would exceed ``max_steps`` (says how many). What is traced
            cannot be looked at: ``Solution.status`` then tells.
        TypeError: initial data that are not real and floating.

    Differentiable in reverse (and forward) in ``initial``, ``temperature`` and parameters that ``hamiltonian``
    closes over; the reverse pass recomputes steps and keeps some 3·max_steps^(1/3) grid functions. The step and the
    artificial viscosity of the Lax-Friedrichs flux count as constants.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import pde
        >>> grid = pde.Grid.uniform(-4.0, 4.0, 101, boundary="extrapolate")
        >>> f = grid.evaluate(lambda x: 0.5 * x[0] ** 2)
        >>> u = pde.solve_hamilton_jacobi(f, grid, [0.5, 1.0], temperature=0.1).check()
        >>> print(u.gradient(jnp.array([1.0, 2.0]), 1.0).round(3))  # x/(1 + t)
        [0.5 1. ]
        >>> eikonal = lambda p: jnp.sqrt(jnp.sum(p**2) + 1e-6)  # a front that moves at speed 1
        >>> v = pde.solve_hamilton_jacobi(jnp.abs(grid.axes[0]), grid, 1.0, temperature=0.0, hamiltonian=eikonal)
        >>> v.scheme, f"{v.check().value(jnp.array(2.0), 1.0):.3f}"
        ('weno5', '1.000')

    References:
        Hopf 1950; Crandall & Lions 1984, Two approximations of solutions of Hamilton-Jacobi equations; Osher & Shu
        1991; Jiang & Peng 2000. The treatment of under-resolved peaks and of linear tails is our own.
    """
    initial = arguments.check_values("initial", initial, grid)
    times = arguments.check_times(times, initial.dtype)
    arguments.check_numbers(temperature, cfl, max_steps)
    _validate.check_choice("scheme", scheme, get_args(SchemeName))
    _validate.check_choice("diffusion", diffusion, get_args(Diffusion))
    if scheme == "auto":
        scheme = "exact" if hamiltonian is None else "weno5"
    viscous = not _validate.is_static_zero(temperature)
    _check_scheme(scheme, hamiltonian, grid, viscous)
    if scheme != "exact" and viscous:
        diffusion = arguments.choose_diffusion(
            diffusion, scheme, grid, times[-1], temperature, cfl, max_steps
        )
    settings = Settings(grid, scheme, hamiltonian, diffusion, viscous, max_steps)
    temperature = jnp.asarray(temperature, initial.dtype)
    if scheme == "exact":
        return _solve_exactly(initial, times, temperature, settings)
    return _solve_by_steps(initial, times, temperature, jnp.asarray(cfl, initial.dtype), settings)


@functools.partial(jax.jit, static_argnames="settings")
def _solve_exactly(initial, times, temperature, settings: Settings) -> Solution:
    if settings.viscous:
        at = lambda time: cole_hopf(initial, settings.grid, time, temperature)
    else:
        at = lambda time: inf_convolution(initial, settings.grid, time)
    values = jax.lax.map(at, times) if times.shape[0] > 1 else at(times[0])[None]
    none, never = jnp.zeros([], jnp.int32), jnp.asarray(False)
    return _finish(initial, times, temperature, values, none, never, settings)


@functools.partial(jax.jit, static_argnames="settings")
def _solve_by_steps(initial, times, temperature, cfl, settings: Settings) -> Solution:
    grid, dtype = settings.grid, initial.dtype
    scheme = SCHEMES[settings.scheme]
    dissipation = _characteristic_speeds(initial, grid, settings.scheme, settings.hamiltonian)
    explicit = settings.viscous and settings.diffusion == "explicit"
    split = settings.viscous and not explicit
    rate_limit = sum(a / dx for a, dx in zip(dissipation, grid.spacing, strict=True))
    if explicit:
        rate_limit = rate_limit + temperature * arguments.diffusive_rate(grid, settings.scheme)

    def rate(values):
        left, right = scheme.differences(values, grid)
        change = -flux(settings.scheme, left, right, settings.hamiltonian, dissipation)
        if explicit:
            change = change + temperature / 2 * laplacian(values, grid, order=scheme.laplacian_order)
        return change

    def to_next_time(carry, span):
        values, taken, stopped = carry
        wanted = jnp.ceil(span * rate_limit / cfl * (1 - 1e-6))
        left_over = settings.max_steps - taken
        stopped = stopped | ~(wanted <= left_over)  # a NaN stops too
        count = jnp.where(stopped, 0, jnp.maximum(wanted, span > 0)).astype(jnp.int32)
        dt = span / jnp.maximum(count, 1).astype(dtype)

        def step(values):
            if not split:
                return runge_kutta_step(rate, values, dt, scheme.stages)
            # Strang with the half steps of diffusion joined: half before the first and after the last.
            values = runge_kutta_step(rate, values, dt, scheme.stages)
            return apply_along_axes(whole, values)

        if split:
            half, whole = (
                heat_matrices(grid, temperature / 2 * dt * part, monotone=scheme.stages == 1, dtype=dtype)
                for part in (0.5, 1.0)
            )
            values = jnp.where(count > 0, apply_along_axes(half, values), values)
            values = bounded_loop(step, values, count - 1, settings.max_steps)
            last = apply_along_axes(half, runge_kutta_step(rate, values, dt, scheme.stages))
            values = jnp.where(count > 0, last, values)
        else:
            values = bounded_loop(step, values, count, settings.max_steps)
        values = jnp.where(stopped, jnp.nan, values)
        return (values, taken + count, stopped), values

    start = (initial, jnp.zeros([], jnp.int32), jnp.asarray(False))
    (_, taken, stopped), values = visit_times(to_next_time, start, jnp.diff(times, prepend=0))
    return _finish(initial, times, temperature, values, taken, stopped, settings)


def _finish(initial, times, temperature, values, num_steps, stopped, settings: Settings) -> Solution:
    return finish(
        Solution(settings.grid, times, values, settings.scheme, num_steps, jnp.zeros([], jnp.int32)),
        data=(initial,),
        nonnegative=(temperature,),
        stopped=stopped,
    )


def _characteristic_speeds(
    initial, grid: Grid, scheme: str, hamiltonian: Hamiltonian | None
) -> tuple[Array, ...]:
    """Max |∂H/∂pᵢ| over the initial slopes, which bound all later ones: H does not depend on x."""
    left, right = one_sided_differences(jax.lax.stop_gradient(initial), grid)
    if hamiltonian is None:
        return slope_bounds(scheme, left, right)
    # A lattice over the box of slopes: along each axis the speed of a convex H is largest at an end,
    # but how it depends on the other slopes is anybody's guess.
    marks = 5 if grid.ndim == 3 else 17
    ranges = [
        jnp.linspace(jnp.minimum(l.min(), r.min()), jnp.maximum(l.max(), r.max()), marks)
        for l, r in zip(left, right, strict=True)
    ]
    lattice = jnp.stack([p.ravel() for p in jnp.meshgrid(*ranges, indexing="ij")], axis=1)
    sides = [jnp.stack([p.ravel() for p in side], axis=1) for side in (left, right)]
    speeds = [
        jnp.nanmax(jnp.abs(jax.vmap(jax.grad(hamiltonian))(slopes)), axis=0) for slopes in (lattice, *sides)
    ]
    fastest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, speeds))
    return tuple(fastest[axis] for axis in range(grid.ndim))


def _check_scheme(scheme: str, hamiltonian: Hamiltonian | None, grid: Grid, viscous: bool) -> None:
    if scheme != "exact":
        arguments.check_scheme(scheme, hamiltonian, grid, viscous)
        return
    arguments.check_points(scheme, grid, [6 if viscous and b == "extrapolate" else 4 for b in grid.boundary])
    if hamiltonian is not None:
        choices = ", ".join(
            map(repr, itertools.filterfalse(("godunov", "engquist_osher").__contains__, SCHEMES))
        )
        msg = f"scheme='exact' solves H = ½|p|² only; with hamiltonian= use one of {choices}."
        raise ValueError(msg)
