"""The Hamilton-Jacobi-Bellman equation of controlled descent, on the grids and stencils of the relaxed loss."""

import functools
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _validate
from . import arguments
from .arguments import Diffusion, Settings
from .diffusion import diffuse
from .grid import Grid
from .solution import Solution, finish
from .stencils import SCHEMES, flux, laplacian, one_sided_differences, slope_bounds
from .time_stepping import march, runge_kutta_step, share_out

__all__ = ["BellmanSchemeName", "solve_bellman"]

BellmanSchemeName = Literal["auto", "godunov", "engquist_osher", "lax_friedrichs", "central", "weno5"]


def solve_bellman(
    terminal: Float[Array, "*shape"],
    grid: Grid,
    times: float | Float[Array, " n"],
    *,
    drift: Callable[[Float[Array, " d"]], Float[Array, " d"]],
    temperature: float | Float[Array, ""],
    control_cost: float | Float[Array, ""] = 1.0,
    scheme: BellmanSchemeName = "auto",
    diffusion: Diffusion = "auto",
    cfl: float = 0.9,
    max_steps: int = 32_768,
) -> Solution:
    r"""Solves −u_s = b·∇u − |∇u|²/(2c) + (T/2) Δu, u(x, horizon) = V(x), backward in time, in 1-D to 3-D.

    u(x, s) is the least cost E[V(x(horizon)) + (c/2) ∫|α|²] of descent dx = b(x) ds − α ds + √T dW from x at time
    s, and α = ∇u/c attains it: see :func:`jaxopt_pde.control.feedback`. In the time to go τ = horizon − s, with the
    square completed,

        u_τ + (1/2c) |∇u − c b|² − (c/2) |b|² = (T/2) Δu,

    so the fluxes of ½|p|² apply to the one-sided differences less c b. The side they take is that of the
    controlled drift b − ∇u/c; the sign of ∇u alone would tell the wrong one.

    ====================  =====  ====  ======================================================================
    scheme                space  time  what it is
    ====================  =====  ====  ======================================================================
    ``"godunov"``         1      1     upwind flux, monotone
    ``"engquist_osher"``  1      1     the same with a differentiable flux
    ``"lax_friedrichs"``  1      1     central flux with artificial viscosity, monotone
    ``"central"``         2      3     no upwinding: only for T > 0 and |b − ∇u/c| Δx ≤ T (else it oscillates)
    ``"weno5"``           5 (4)  3     fifth-order upwind differences (fourth-order Δ); ``"auto"``
    ====================  =====  ====  ======================================================================

    The speed b − ∇u/c depends on x, so the slopes of V do not bound it: each step is chosen from the slopes it
    starts with,

        Δt (Σᵢ αᵢ/Δxᵢ + k T Σᵢ 1/Δxᵢ²) ≤ cfl,    αᵢ = max over the grid of |bᵢ − ∂ᵢu/c|,

    k = 1 (4/3 for ``"weno5"``), without the second term for exponential diffusion. At a boundary where the controlled
    drift points into the box nothing from outside is needed; ``"extrapolate"`` suits losses that grow.

    Args:
        terminal: V on the grid, [*shape], in [loss]. Its dtype is that of the computation.
        grid: a :class:`Grid` with at least 4 points an axis.
        times: s, increasing, each ≥ 0, in [param²/loss]; the last is the horizon, where V stands. One number
            means [0, that number]. ``Solution`` is linear between them: ask for enough of them to steer by.
        drift: b, point [d] -> [d]; −∇f for descent on f. Evaluated once, at the grid points.
        temperature: T ≥ 0, in [loss]. The Python number 0 leaves the viscous part out.
        control_cost: c > 0, without unit. As c → ∞ control stops and u → E[V] of plain descent.
        scheme: one of the table.
        diffusion: ``"explicit"``, ``"exponential"`` (the heat semigroup, Strang splitting, second order in time, no
            step limit from T) or ``"auto"``, as in :func:`solve_hamilton_jacobi`.
        cfl: fraction of the stable step, in (0, 1].
        max_steps: bound on the number of steps, static. It costs nothing where it is not reached.

    Returns:
        A :class:`Solution`, ``values`` in the order of ``times``. Its ``check()`` raises if a step limit or a
        non-finite value was met, and says which. Where V is not bounded below, u may be −∞ a finite time before the
        horizon: the slopes grow, and the step limit is met.

    Raises:
        ValueError: a grid with fewer than 4 points an axis, V not finite or of another shape, a drift that is not
            finite at some grid point (the message names it) or not [d] -> [d], horizon ≤ 0, times unsorted or
            negative, c ≤ 0, T < 0, an unknown scheme, explicit steps known to exceed ``max_steps``. What is traced
            cannot be looked at: ``Solution.status`` then tells.
        TypeError: V not real and floating, a drift that is no function.

    Differentiable in reverse (and forward) in ``terminal``, ``temperature``, ``control_cost``, ``times`` and what
    ``drift`` closes over. The number of steps and the artificial viscosity of ``"lax_friedrichs"`` count as constants.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import pde
        >>> grid = pde.Grid.uniform(-4.0, 4.0, 81, boundary="extrapolate")
        >>> V = grid.evaluate(lambda x: 0.5 * x[0] ** 2)
        >>> u = pde.solve_bellman(V, grid, 1.0, drift=lambda x: -x, temperature=0.1).check()
        >>> print(u.gradient(jnp.array([1.0]), 0.0).round(3))  # Riccati: 2/(3e² − 1)
        [0.094]

    References:
        Fleming & Soner 2006, Controlled Markov Processes and Viscosity Solutions, ch. IV and IX; Chaudhari, Oberman,
        Osher, Soatto & Carlier 2018, Deep relaxation. The shifted fluxes are our own derivation.
    """
    terminal = arguments.check_values("terminal", terminal, grid)
    times = _check_horizon(times, terminal.dtype)
    arguments.check_numbers(temperature, cfl, max_steps)
    _validate.check_positive("control_cost", control_cost)
    _validate.check_choice("scheme", scheme, get_args(BellmanSchemeName))
    _validate.check_choice("diffusion", diffusion, get_args(Diffusion))
    scheme = "weno5" if scheme == "auto" else scheme
    viscous = not _validate.is_static_zero(temperature)
    arguments.check_scheme(scheme, None, grid, viscous)
    if viscous:
        length = times[-1] - times[0]
        diffusion = arguments.choose_diffusion(diffusion, scheme, grid, length, temperature, cfl, max_steps)
    velocity = arguments.evaluate_field("drift", drift, grid.points, terminal.dtype)
    settings = Settings(grid, scheme, None, diffusion, viscous, max_steps)
    numbers = (jnp.asarray(x, terminal.dtype) for x in (temperature, control_cost, cfl))
    return _solve(terminal, velocity, times, *numbers, settings)


@functools.partial(jax.jit, static_argnames="settings")
def _solve(terminal, velocity, times, temperature, control_cost, cfl, settings: Settings) -> Solution:
    grid, scheme = settings.grid, SCHEMES[settings.scheme]
    explicit = settings.viscous and settings.diffusion == "explicit"
    split = settings.viscous and not explicit
    center = tuple(control_cost * velocity[..., axis] for axis in range(grid.ndim))

    def speeds(values):
        """Max |bᵢ − ∂ᵢu/c|, a constant for derivatives."""
        sides = one_sided_differences(jax.lax.stop_gradient(values), grid)
        shifted = (tuple(p - a for p, a in zip(side, center, strict=True)) for side in sides)
        bounds = slope_bounds(settings.scheme, *shifted)
        return tuple(jax.lax.stop_gradient(bound / control_cost) for bound in bounds)

    def advance(values, time, remaining):
        del time
        fastest = speeds(values)
        rate_limit = sum(speed / dx for speed, dx in zip(fastest, grid.spacing, strict=True))
        if explicit:
            rate_limit += temperature * arguments.diffusive_rate(grid, settings.scheme)
        dt = share_out(remaining, rate_limit / cfl)

        def rate(values):
            left, right = scheme.differences(values, grid)
            dissipation = tuple(control_cost * speed for speed in fastest)
            change = -flux(settings.scheme, left, right, None, dissipation, center) / control_cost
            if explicit:
                change += temperature / 2 * laplacian(values, grid, order=scheme.laplacian_order)
            return change

        if not split:
            return runge_kutta_step(rate, values, dt, scheme.stages), dt
        half = lambda values: diffuse(values, grid, temperature / 4 * dt, monotone=scheme.stages == 1)
        return half(runge_kutta_step(rate, half(values), dt, scheme.stages)), dt

    reached, taken, stopped = march(advance, terminal, jnp.diff(times)[::-1], settings.max_steps)
    values = jnp.concatenate([reached[::-1], terminal[None]])
    return finish(
        Solution(grid, times, values, settings.scheme, taken, jnp.zeros([], jnp.int32)),
        data=(terminal, velocity),
        nonnegative=(temperature,),
        positive=(control_cost,),
        stopped=stopped,
    )


def _check_horizon(times, dtype) -> Float[Array, " n"]:
    """The times with 0 before a single one; raises unless the horizon is positive."""
    if not isinstance(times, jax.core.Tracer):
        listed = np.atleast_1d(np.asarray(times, dtype=float))
        if listed.ndim == 1 and listed.size and not listed[-1] > 0:
            msg = f"times must end at a horizon > 0, got {times!r}."
            raise ValueError(msg)
    times = arguments.check_times(times, dtype)
    return jnp.concatenate([jnp.zeros_like(times), times]) if times.shape[0] == 1 else times
