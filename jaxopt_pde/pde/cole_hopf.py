"""The viscous exact route: Cole and Hopf's formula by one Gaussian pass an axis.

For H = ½|p|² and T > 0, v = exp(−u/T) solves the heat equation v_t = (T/2) Δv, so that

    u(x, t) = −T log ∫ G_{tT}(x − y) exp(−f(y)/T) dy,

G_s the Gaussian of variance s a coordinate, a product over axes. The integral is the trapezoidal rule on the
grid, which converges faster than every power of Δx once it resolves the peaks of the integrand. Two ways:

- *products*: exp(−f/T) times a dense kernel matrix along each axis. All terms are positive, so nothing cancels; it is
  taken where osc(f)/T leaves no underflow and the peaks are resolved.
- *logarithms*: log-sum-exp, row by row, for any T. Where a peak is narrower than a grid cell it is integrated by
  Laplace's method around its best point between grid points, whose limit T → 0 is the inf-convolution.
"""

import functools

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr, logsumexp
from jaxtyping import Array, Float

from .grid import Grid, pad
from .inf_convolution import Lines, along_axis, hull_points, signed_distance, tail_slopes

__all__ = ["cole_hopf", "gaussian_convolution"]

_RESOLVED = 2.0
"""Largest curvature·Δx²/T of a peak that the trapezoidal rule resolves: its error there is T·2exp(−2π²/2) ≈ 1e-4 T."""

_TILE = 8
"""Points summed under one exponential in the logarithmic pass."""

_GREGORY = (9 / 24, 28 / 24, 23 / 24)
"""End weights that keep the trapezoidal rule at fourth order where the integrand is cut off (and are positive)."""


def cole_hopf(
    initial: Float[Array, "*shape"],
    grid: Grid,
    smoothing_time: Float[Array, ""],
    temperature: Float[Array, ""],
) -> Float[Array, "*shape"]:
    """u(·, t) of the viscous equation with H = ½|p|², exact up to quadrature.

    Args:
        initial: f on the grid, [*shape].
        grid: where; outside, f is continued as its boundary says, exactly: even or periodic images of the kernel,
            or the closed form of a Gaussian against a linear tail.
        smoothing_time: t ≥ 0, in [param²/loss].
        temperature: T > 0, in [loss]; as T → 0 the result tends to the inf-convolution.

    Returns:
        u(·, t), [*shape]; differentiable in all three arguments.
    """
    dtype = initial.dtype
    tiny = jnp.finfo(dtype).tiny ** 0.25  # T² and 1/T² stay finite
    time, temperature = jnp.asarray(smoothing_time, dtype), jnp.asarray(temperature, dtype)
    positive = time > 0
    time = jnp.where(positive, time, 1)
    temperature = jnp.maximum(temperature, tiny)
    kernels = tuple(_log_kernel(grid, axis, time * temperature, dtype) for axis in range(grid.ndim))
    values = jax.lax.cond(
        jax.lax.stop_gradient(_products_are_safe(initial, grid, time, temperature)),
        functools.partial(_by_products, grid=grid),
        functools.partial(_by_logarithms, grid=grid),
        initial,
        kernels,
        time,
        temperature,
    )
    return jnp.where(positive, values, initial)


def gaussian_convolution(
    initial: Float[Array, "*shape"], grid: Grid, variance: float | Float[Array, ""]
) -> Float[Array, "*shape"]:
    """G_s * f, the heat equation's solution: the limit of the relaxed loss as T → ∞ with t·T = s fixed.

    Args:
        initial: f on the grid, [*shape].
        grid: where; ``"neumann"`` and ``"periodic"`` axes only (linear tails have no finite moment to spare here).
        variance: s > 0 a coordinate, in [param²].

    Returns:
        G_s * f, [*shape].

    Raises:
        ValueError: shapes that differ, or an axis with boundary ``"extrapolate"``.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import pde
        >>> grid = pde.Grid.uniform(0.0, 1.0, 32, boundary="periodic")
        >>> wave = jnp.cos(2 * jnp.pi * grid.axes[0])
        >>> smooth = pde.gaussian_convolution(wave, grid, 0.02)  # times exp(−s (2π)²/2)
        >>> print(f"{smooth[0]:.4f} {jnp.exp(-0.02 * (2 * jnp.pi) ** 2 / 2):.4f}")
        0.6738 0.6738
    """
    initial = jnp.asarray(initial)
    if initial.shape != grid.shape:
        msg = f"initial must have the grid's shape {grid.shape}, got {initial.shape}."
        raise ValueError(msg)
    if "extrapolate" in grid.boundary:
        msg = f"boundary must be 'neumann' or 'periodic' on every axis, got {grid.boundary!r}."
        raise ValueError(msg)
    return _gaussian_convolution(initial, grid, jnp.asarray(variance, initial.dtype))


@functools.partial(jax.jit, static_argnames="grid")
def _gaussian_convolution(initial: Float[Array, "*shape"], grid: Grid, variance) -> Float[Array, "*shape"]:
    values = initial
    for axis in range(grid.ndim):
        kernel = jnp.exp(_log_kernel(grid, axis, variance, initial.dtype))
        kernel = kernel / jnp.sum(kernel, axis=1, keepdims=True)  # narrower than a cell: the identity
        values = along_axis(lambda lines, kernel=kernel: _product(kernel, lines), values, axis)
    return values


def _log_kernel(grid: Grid, axis: int, variance, dtype) -> Float[Array, "n n"]:
    """Log of (quadrature weight × Gaussian, images summed), from every grid point (column) to every other (row)."""
    n, dx, boundary = grid.shape[axis], grid.spacing[axis], grid.boundary[axis]
    index = jnp.arange(n)
    gap = jnp.abs(index[:, None] - index[None, :])
    weights = jnp.ones(n, dtype)
    if boundary == "extrapolate":
        ends = jnp.asarray(_GREGORY, dtype)
        weights = weights.at[:3].set(ends).at[-3:].set(ends[::-1])
        profile = _log_gaussian(jnp.arange(n, dtype=dtype) * dx, variance)
        log_kernel = profile[gap]
    elif boundary == "periodic":
        profile = _log_wrapped_gaussian(jnp.arange(n, dtype=dtype) * dx, variance, n * dx)
        log_kernel = profile[gap]
    else:  # the even extension has twice the period; its end points are their own images
        weights = weights.at[jnp.array([0, n - 1])].set(0.5)
        distance = jnp.arange(2 * n - 1, dtype=dtype) * dx
        profile = _log_wrapped_gaussian(distance, variance, 2 * (n - 1) * dx)
        log_kernel = jnp.logaddexp(profile[gap], profile[index[:, None] + index[None, :]])
    return log_kernel + jnp.log(weights * jnp.asarray(dx, dtype))[None, :]


def _log_gaussian(distance, variance):
    return -(distance**2) / (2 * variance) - jnp.log(2 * jnp.pi * variance) / 2


def _log_wrapped_gaussian(distance, variance, period: float):
    """Log Σ_k G(distance + k·period): over images while they are narrow, over waves once they are wide."""
    ratio = variance / period**2
    images = jnp.arange(-6, 7, dtype=distance.dtype)[:, None] * period
    narrow = logsumexp(_log_gaussian(distance[None] + images, jnp.minimum(variance, period**2)), axis=0)
    wave = jnp.arange(1, 4, dtype=distance.dtype)[:, None]
    decay = jnp.exp(-2 * (jnp.pi * wave) ** 2 * jnp.maximum(ratio, 0.25))
    wide = jnp.log1p(2 * jnp.sum(decay * jnp.cos(2 * jnp.pi * wave * distance[None] / period), axis=0))
    return jnp.where(ratio < 0.25, narrow, wide - jnp.log(period))


def _products_are_safe(initial, grid: Grid, time, temperature):
    """Whether exp(−f/T) keeps its digits on the whole range of f, and every peak is wider than a cell."""
    depth = jnp.max(initial) - jnp.min(initial)
    safe = jnp.asarray(True)
    for axis, (dx, boundary) in enumerate(zip(grid.spacing, grid.boundary, strict=True)):
        first = jnp.diff(initial, axis=axis) / dx
        curvature = jnp.max(jnp.diff(first, axis=axis)) / dx + 1 / time
        safe &= curvature * dx**2 <= _RESOLVED / 4 * temperature
        if boundary == "extrapolate":  # a tail that falls outwards goes below min f
            depth = depth + jnp.max(first**2) * time / 2
    return safe & (depth <= _reach(initial.dtype) * temperature)


def _product(kernel, lines):
    return jnp.matmul(kernel, lines, precision=jax.lax.Precision.HIGHEST)


def _by_products(initial, kernels, time, temperature, *, grid: Grid):
    least = jnp.min(initial)
    density = jnp.exp((least - initial) / temperature)

    def one_axis(lines, axis):
        result = _product(jnp.exp(kernels[axis]), lines)
        if grid.boundary[axis] == "extrapolate":
            ends = -temperature * jnp.log(lines[jnp.array([0, 1, -2, -1])])
            result = result + sum(jnp.exp(t) for t in _log_tails(ends, grid, axis, time, temperature))
        return result

    for axis in range(grid.ndim):
        density = along_axis(functools.partial(one_axis, axis=axis), density, axis)
    return least - temperature * jnp.log(density)


def _by_logarithms(initial, kernels, time, temperature, *, grid: Grid):
    values = initial
    for axis in range(grid.ndim):
        one_axis = functools.partial(
            _logarithmic_pass,
            log_kernel=kernels[axis],
            grid=grid,
            axis=axis,
            time=time,
            temperature=temperature,
        )
        values = along_axis(one_axis, values, axis)
    return values


def _logarithmic_pass(lines: Lines, *, log_kernel, grid: Grid, axis: int, time, temperature) -> Lines:
    dx, boundary = grid.spacing[axis], grid.boundary[axis]
    below, above = (part(pad(lines, 0, 1, boundary)) for part in (lambda f: f[:-2], lambda f: f[2:]))
    slope, curvature = (above - below) / (2 * dx), (above - 2 * lines + below) / dx**2 + 1 / time
    safe = jnp.max(curvature) * dx**2 <= _RESOLVED * temperature
    safe &= _tiles_are_safe(lines, dx, time, temperature)
    result = jax.lax.cond(
        jax.lax.stop_gradient(safe),
        lambda *arguments: -temperature * _log_sum_by_tiles(-lines / temperature, log_kernel),
        functools.partial(_by_rows, grid=grid, axis=axis),
        *(lines, slope, curvature, log_kernel, time, temperature),
    )
    if boundary == "extrapolate":
        for tail in _log_tails(lines[jnp.array([0, 1, -2, -1])], grid, axis, time, temperature):
            result = -temperature * jnp.logaddexp(-result / temperature, tail)
    return result


def _by_rows(
    lines: Lines, slope, curvature, log_kernel, time, temperature, *, grid: Grid, axis: int
) -> Lines:
    """The general pass: one output row at a time, shifted by its largest exponent, narrow peaks by Laplace's method."""
    n, dx, boundary = grid.shape[axis], grid.spacing[axis], grid.boundary[axis]
    exponents = -lines / temperature
    held = jax.lax.stop_gradient((lines, time, temperature, log_kernel, curvature))
    best = hull_points(held[0], dx, held[1], boundary)[0]
    narrow = jnp.take_along_axis(held[4], best, axis=0) * dx**2 > _RESOLVED * held[2]
    shift = jnp.take_along_axis(-held[0] / held[2], best, axis=0) + jnp.take_along_axis(held[3], best, axis=1)

    index = jnp.arange(n)
    steep = curvature > 1 / (16 * time)
    safe_curvature = jnp.where(steep, curvature, 1 / time)
    width = jnp.log(time * safe_curvature) / 2

    def peaks(offset, sign, always):
        """Exponents of the peaks at ``offset`` grid steps from x; ``sign`` is −1 for images in a mirror."""
        distance = offset.astype(lines.dtype)[:, None] * dx
        tilt = slope - sign * distance / time
        move = jnp.where(steep, jnp.clip(-tilt / safe_curvature, -dx, dx), 0)
        own = (steep & (jnp.abs(tilt) <= dx / 2 * safe_curvature)) | always
        least = lines + distance**2 / (2 * time) + (tilt + move * curvature / 2) * move
        terms = jnp.where(own, -least / temperature - width, -jnp.inf)
        if boundary != "extrapolate":
            return terms
        # The tails count what lies outside: of the peaks next to an end only the part inside is left.
        sharpness = jnp.sqrt(safe_curvature / temperature)
        place = index.astype(lines.dtype)[:, None] * dx + move
        first, last = slice(None, 3), slice(-3, None)
        terms = terms.at[first].add(log_ndtr(place[first] * sharpness[first]))
        return terms.at[last].add(log_ndtr(((n - 1) * dx - place[last]) * sharpness[last]))

    def peaks_by_laplace(here, best):
        """Every grid point next to a minimum of f(y) + (x − y)²/(2t) gives one Gaussian integral, and so do images."""
        terms = [peaks(signed_distance(here - index, n, boundary), 1, index[:, None] == best[None])]
        if boundary == "neumann":  # an end point is its own image
            terms.append(peaks(here + index, -1, False)[1:])
            terms.append(peaks(here + index - 2 * (n - 1), -1, False)[:-1])
        return -temperature * logsumexp(jnp.concatenate(terms), axis=0)

    @jax.checkpoint  # else the reverse pass keeps n³ exponentials
    def row(inputs):
        here, log_weights, shift, best, narrow = inputs
        terms = jnp.exp(exponents + log_weights[:, None] - shift[None])
        resolved = -temperature * (jnp.log(jnp.sum(terms, axis=0)) + shift)
        laplace = jax.lax.cond(jnp.any(narrow), peaks_by_laplace, lambda here, best: resolved, here, best)
        return jnp.where(narrow, laplace, resolved)

    return jax.lax.map(row, (jnp.arange(n), log_kernel, shift, best, narrow))


def _log_sum_by_tiles(exponents: Lines, log_kernel) -> Lines:
    """Log of Σ_j exp(exponents_j + log_kernel_ij), with two exponentials for each tile of ``_TILE`` points j.

    Inside a tile exponents and kernel are scaled by their own largest members and meet in a matrix product; the
    running sum is scaled by the largest such scale so far.
    """
    n, lines = exponents.shape
    missing = -n % _TILE
    columns = jnp.pad(log_kernel, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    columns = columns.reshape(n, -1, _TILE).swapaxes(0, 1)
    rows = jnp.pad(exponents, ((0, missing), (0, 0)), mode="edge").reshape(-1, _TILE, lines)

    @jax.checkpoint
    def add_tile(carry, tile):
        total, largest = carry
        columns, rows = tile
        of_row = jax.lax.stop_gradient(jnp.max(columns, axis=1, keepdims=True))
        of_line = jax.lax.stop_gradient(jnp.max(rows, axis=0, keepdims=True))
        inside = _product(jnp.exp(columns - of_row), jnp.exp(rows - of_line))
        scale = jnp.maximum(largest, of_row + of_line)
        return (total * jnp.exp(largest - scale) + inside * jnp.exp(of_row + of_line - scale), scale), None

    start = (jnp.zeros_like(exponents), jnp.full_like(exponents, jnp.finfo(exponents.dtype).min))
    (total, scale), _ = jax.lax.scan(add_tile, start, (columns, rows))
    return jnp.log(total) + scale


def _tiles_are_safe(lines: Lines, dx: float, time, temperature):
    """Whether no exponential that matters underflows in a tile.

    What matters lies within t·max|f'| + 6√(tT) of x, so that both factors of a term fall by at most the
    slope there times the tile's width from their largest members.
    """
    steepest = jnp.max(jnp.abs(jnp.diff(lines, axis=0))) / dx
    fall = (2 * steepest + 6 * jnp.sqrt(temperature / time)) * (_TILE * dx) / temperature
    return fall <= _reach(lines.dtype)


def _reach(dtype) -> float:
    """Largest exponent that leaves room above underflow for a sum of products."""
    return 70.0 if jnp.finfo(dtype).bits == 32 else 600.0


def _log_tails(ends: Float[Array, "4 lines"], grid: Grid, axis: int, time, temperature) -> list[Lines]:
    """Log ∫ G(x − y) exp(−tail(y)/T) dy over the half-lines outside, a Gaussian distribution function each.

    ``ends`` holds f at the first two and the last two points of each line.
    """
    n, dx = grid.shape[axis], grid.spacing[axis]
    position = (jnp.arange(n, dtype=ends.dtype) * dx)[:, None]
    tails = []
    for slope, end, edge in tail_slopes(ends, dx):
        x = position - edge * (n - 1) * dx
        foot = x - time * slope[None]
        outside = (1 if edge else -1) * foot / jnp.sqrt(time * temperature)
        height = end[None] + slope[None] * (x - time * slope[None] / 2)
        tails.append(log_ndtr(outside) - height / temperature)
    return tails
