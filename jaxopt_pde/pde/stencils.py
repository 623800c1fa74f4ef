"""Differences and numerical Hamiltonians: the schemes as plain functions of a grid function.

A scheme for u_t + H(∇u) = (T/2) Δu replaces ∇u by one-sided differences p⁻, p⁺ along each axis, and H by a
numerical Hamiltonian Ĥ(p⁻, p⁺), nondecreasing in p⁻ and nonincreasing in p⁺, so that information comes from
the side the characteristics come from.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _validate
from .grid import Grid, pad

__all__ = [
    "SCHEMES",
    "Hamiltonian",
    "Scheme",
    "central_differences",
    "engquist_osher",
    "godunov",
    "laplacian",
    "lax_friedrichs",
    "numerical_hamiltonian",
    "one_sided_differences",
    "slope_bounds",
    "weno5_differences",
]

Hamiltonian = Callable[[Float[Array, " d"]], Float[Array, ""]]
"""A convex function of the gradient p [d]."""

GridFunction = Float[Array, "*shape"]
Slopes = tuple[GridFunction, ...]
"""One array an axis."""

Sides = tuple[Slopes, Slopes]
"""(p⁻ along each axis, p⁺ along each axis)."""

Dissipation = Sequence[float | Array]
"""One number an axis."""


class Scheme(NamedTuple):
    """What a scheme is made of.

    Attributes:
        differences: (values, grid) -> (p⁻, p⁺).
        flux: name of the numerical Hamiltonian.
        ghosts: ghost points it needs at each end.
        stages: stages of its Runge-Kutta method, 1 (Euler) or 3.
        laplacian_order: order of the central second difference that goes with it.
    """

    differences: Callable[[GridFunction, Grid], Sides]
    flux: str
    ghosts: int
    stages: int
    laplacian_order: int


def one_sided_differences(values: GridFunction, grid: Grid) -> Sides:
    """First-order differences (u_i − u_{i−1})/Δx and (u_{i+1} − u_i)/Δx along each axis.

    Args:
        values: grid function, [*shape].
        grid: its grid.

    Returns:
        p⁻ and p⁺, each a tuple with one array [*shape] an axis.
    """
    left, right = [], []
    for axis, (n, dx, boundary) in enumerate(zip(grid.shape, grid.spacing, grid.boundary, strict=True)):
        padded = pad(values, axis, 1, boundary)
        difference = (_window(padded, axis, 1, n + 1) - _window(padded, axis, 0, n + 1)) / dx
        left.append(_window(difference, axis, 0, n))
        right.append(_window(difference, axis, 1, n))
    return tuple(left), tuple(right)


def central_differences(values: GridFunction, grid: Grid) -> Sides:
    """Second-order central differences (u_{i+1} − u_{i−1})/(2Δx), as both sides.

    Args:
        values: grid function, [*shape].
        grid: its grid.

    Returns:
        The same tuple twice.
    """
    left, right = one_sided_differences(values, grid)
    middle = tuple((l + r) / 2 for l, r in zip(left, right, strict=True))
    return middle, middle


def weno5_differences(values: GridFunction, grid: Grid) -> Sides:
    """Fifth-order weighted essentially non-oscillatory differences, biased to the left and to the right.

    Convex combinations of three third-order differences, with the Z weights of Borges et al., which keep the order
    at inflection points of u.

    Args:
        values: grid function, [*shape].
        grid: its grid, at least 4 points an axis.

    Returns:
        p⁻ and p⁺, each a tuple with one array [*shape] an axis.

    References:
        Jiang & Peng 2000, Weighted ENO schemes for Hamilton-Jacobi equations, SIAM J. Sci. Comput. 21.
        Borges, Carmona, Costa & Don 2008, J. Comput. Phys. 227.
    """
    left, right = [], []
    for axis, (n, dx, boundary) in enumerate(zip(grid.shape, grid.spacing, grid.boundary, strict=True)):
        padded = pad(values, axis, 3, boundary)
        difference = (_window(padded, axis, 1, n + 5) - _window(padded, axis, 0, n + 5)) / dx
        v = [_window(difference, axis, k, n) for k in range(6)]
        left.append(_weno5(*v[:5]))
        right.append(_weno5(*v[:0:-1]))
    return tuple(left), tuple(right)


def _weno5(v1, v2, v3, v4, v5):
    """The value at the far edge of v3's cell, from five slopes in upwind order."""
    smoothness = (
        13 / 12 * (v1 - 2 * v2 + v3) ** 2 + (v1 - 4 * v2 + 3 * v3) ** 2 / 4,
        13 / 12 * (v2 - 2 * v3 + v4) ** 2 + (v2 - v4) ** 2 / 4,
        13 / 12 * (v3 - 2 * v4 + v5) ** 2 + (3 * v3 - 4 * v4 + v5) ** 2 / 4,
    )
    jump = jnp.abs(smoothness[0] - smoothness[2])
    floor = 1e-12 * (v1**2 + v3**2 + v5**2) + 1e-30  # relative: the weights have no unit
    a1, a2, a3 = (
        d * (1 + (jump / (s + floor)) ** 2) for d, s in zip((0.1, 0.6, 0.3), smoothness, strict=True)
    )
    third = a1 * (2 * v1 - 7 * v2 + 11 * v3) + a2 * (-v2 + 5 * v3 + 2 * v4) + a3 * (2 * v3 + 5 * v4 - v5)
    return third / (6 * (a1 + a2 + a3))


def _window(values, axis, start, size):
    return jax.lax.slice_in_dim(values, start, start + size, axis=axis)


def godunov(left: Slopes, right: Slopes, center: Slopes | None = None) -> GridFunction:
    """Godunov's numerical Hamiltonian of ½|p|²: Σ ½ max((p⁻)⁺, (p⁺)⁻)², the least viscous monotone one.

    Args:
        left: p⁻, one array an axis.
        right: p⁺, one array an axis.
        center: a, one array an axis, for H = ½|p − a|² − ½|a|² = ½|p|² − a·p; None means 0.

    Returns:
        Ĥ(p⁻, p⁺), [*shape].
    """
    if center is not None:
        # H of the side that counts rather than the difference of the two squares, which cancel where a is large.
        total = 0
        for l, r, a in zip(left, right, center, strict=True):
            upwind = jnp.where(l - a >= a - r, l, r)
            upwind = jnp.where((l > a) | (r < a), upwind, a)
            total += upwind * (upwind / 2 - a)
        return total
    upwind = (jnp.maximum(jnp.maximum(l, -r), 0) for l, r in zip(left, right, strict=True))
    return sum(p * p for p in upwind) / 2


def engquist_osher(left: Slopes, right: Slopes, center: Slopes | None = None) -> GridFunction:
    """Engquist and Osher's numerical Hamiltonian of ½|p|²: Σ ½ ((p⁻)⁺)² + ½ ((p⁺)⁻)², monotone and once differentiable.

    Args:
        left: p⁻, one array an axis.
        right: p⁺, one array an axis.
        center: a, as in :func:`godunov`.

    Returns:
        Ĥ(p⁻, p⁺), [*shape].
    """
    if center is not None:
        total = 0
        for l, r, a in zip(left, right, center, strict=True):  # ½a² is added only where it does not cancel
            sides = jnp.where(l > a, l * (l / 2 - a), 0) + jnp.where(r < a, r * (r / 2 - a), 0)
            total += (
                sides
                + jnp.where((l > a) & (r < a), a * a / 2, 0)
                - jnp.where((l <= a) & (r >= a), a * a / 2, 0)
            )
        return total
    squares = (jnp.maximum(l, 0) ** 2 + jnp.minimum(r, 0) ** 2 for l, r in zip(left, right, strict=True))
    return sum(squares) / 2


def lax_friedrichs(
    left: Slopes,
    right: Slopes,
    hamiltonian: Hamiltonian | None,
    dissipation: Dissipation,
    center: Slopes | None = None,
) -> GridFunction:
    """Lax and Friedrichs' numerical Hamiltonian H((p⁻ + p⁺)/2) − Σ αᵢ (pᵢ⁺ − pᵢ⁻)/2, for any H.

    Args:
        left: p⁻, one array an axis.
        right: p⁺, one array an axis.
        hamiltonian: H(p [d]); None means ½|p|².
        dissipation: αᵢ ≥ max |∂H/∂pᵢ|, one number an axis; then it is monotone.
        center: a, as in :func:`godunov`; only without ``hamiltonian``.

    Returns:
        Ĥ(p⁻, p⁺), [*shape].
    """
    middle = [(l + r) / 2 for l, r in zip(left, right, strict=True)]
    if center is not None:
        value = sum(p * (p / 2 - a) for p, a in zip(middle, center, strict=True))
    elif hamiltonian is None:
        value = sum(p * p for p in middle) / 2
    else:
        flat = jnp.stack([p.ravel() for p in middle])
        value = jax.vmap(hamiltonian, in_axes=1)(flat).reshape(middle[0].shape)
    return value - sum(a * (r - l) for a, l, r in zip(dissipation, left, right, strict=True)) / 2


def laplacian(values: GridFunction, grid: Grid, *, order: int = 2) -> GridFunction:
    """Central second differences, summed over the axes.

    Args:
        values: grid function, [*shape].
        grid: its grid.
        order: 2 or 4.

    Returns:
        Δu, [*shape].

    Example:
        >>> from jaxopt_pde import pde
        >>> grid = pde.Grid.uniform(0.0, 4.0, 5, boundary="extrapolate")
        >>> print(pde.laplacian(grid.axes[0] ** 2, grid))
        [0. 2. 2. 2. 0.]
    """
    total = 0
    width = order // 2
    for axis, (n, dx, boundary) in enumerate(zip(grid.shape, grid.spacing, grid.boundary, strict=True)):
        padded = pad(values, axis, width, boundary)
        v = [_window(padded, axis, k, n) for k in range(2 * width + 1)]
        second = v[0] + v[2] - 2 * v[1]
        if order == 4:
            second = (16 * (v[1] + v[3]) - (v[0] + v[4]) - 30 * v[2]) / 12
        total = total + second / dx**2
    return total


SCHEMES: dict[str, Scheme] = {
    "godunov": Scheme(one_sided_differences, "godunov", 1, 1, 2),
    "engquist_osher": Scheme(one_sided_differences, "engquist_osher", 1, 1, 2),
    "lax_friedrichs": Scheme(one_sided_differences, "lax_friedrichs", 1, 1, 2),
    "central": Scheme(central_differences, "godunov", 1, 3, 2),
    "weno5": Scheme(weno5_differences, "godunov", 3, 3, 4),
}
"""The stepping schemes by name. Godunov's flux of equal sides is H itself, which makes ``central`` central."""


def numerical_hamiltonian(
    values: GridFunction,
    grid: Grid,
    *,
    scheme: str = "godunov",
    hamiltonian: Hamiltonian | None = None,
    dissipation: Dissipation | None = None,
) -> GridFunction:
    """Ĥ(p⁻, p⁺) ≈ H(∇u) at every grid point, by a scheme's name.

    Args:
        values: grid function u, [*shape].
        grid: its grid.
        scheme: ``"godunov"``, ``"engquist_osher"``, ``"lax_friedrichs"``, ``"central"`` or ``"weno5"``.
        hamiltonian: convex H(p [d]); None means ½|p|². With another H every scheme takes the Lax-Friedrichs flux,
            so that ``"godunov"`` and ``"engquist_osher"`` are not to be had.
        dissipation: αᵢ of the Lax-Friedrichs flux, one number an axis; None takes max |pᵢ| for ½|p|² and is an error
            for another H.

    Returns:
        Ĥ, [*shape].

    Raises:
        ValueError: unknown scheme, or one that has no flux for this ``hamiltonian``.

    Example:
        >>> from jaxopt_pde import pde
        >>> grid = pde.Grid.uniform(-1.0, 1.0, 5, boundary="extrapolate")
        >>> print(pde.numerical_hamiltonian(grid.axes[0] ** 2, grid, scheme="central"))
        [1.125 0.5   0.    0.5   1.125]
    """
    _validate.check_choice("scheme", scheme, SCHEMES)
    check_flux(scheme, hamiltonian)
    left, right = SCHEMES[scheme].differences(values, grid)
    if hamiltonian is not None and dissipation is None:
        msg = "dissipation must be given for this hamiltonian: max |∂H/∂p_i| over the slopes, one number an axis."
        raise ValueError(msg)
    if dissipation is None:
        dissipation = slope_bounds("lax_friedrichs", left, right)
    return flux(scheme, left, right, hamiltonian, dissipation)


def flux(
    scheme: str,
    left: Slopes,
    right: Slopes,
    hamiltonian: Hamiltonian | None,
    dissipation: Dissipation,
    center: Slopes | None = None,
) -> GridFunction:
    """The scheme's numerical Hamiltonian of given sides; ``center`` as in :func:`godunov`."""
    name = SCHEMES[scheme].flux
    if hamiltonian is not None or name == "lax_friedrichs":
        return lax_friedrichs(left, right, hamiltonian, dissipation, center)
    return (godunov if name == "godunov" else engquist_osher)(left, right, center)


def slope_bounds(scheme: str, left: Slopes, right: Slopes) -> tuple[Array, ...]:
    """What the scheme's flux of ½|p|² can change by as its sides do: max |pᵢ|, which bounds the step Δt.

    Args:
        scheme: its name. Both sides of ``"engquist_osher"`` count at a peak: ∂Ĥ/∂p⁻ − ∂Ĥ/∂p⁺ = (p⁻)⁺ + (p⁺)⁻.
        left: p⁻, one array an axis.
        right: p⁺, one array an axis.

    Returns:
        One number an axis.
    """
    pairs = zip(left, right, strict=True)
    if scheme == "engquist_osher":
        return tuple(jnp.maximum(jnp.max(l), 0) + jnp.maximum(jnp.max(-r), 0) for l, r in pairs)
    return tuple(jnp.maximum(jnp.max(jnp.abs(l)), jnp.max(jnp.abs(r))) for l, r in pairs)


def check_flux(scheme: str, hamiltonian: Hamiltonian | None) -> None:
    """Raises where the scheme's flux is made for ½|p|² alone."""
    if hamiltonian is not None and scheme in ("godunov", "engquist_osher"):
        msg = f"scheme={scheme!r} knows H = ½|p|² only; with hamiltonian= use 'lax_friedrichs', 'central' or 'weno5'."
        raise ValueError(msg)
