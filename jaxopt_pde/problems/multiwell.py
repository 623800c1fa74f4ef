"""Losses with many wells: a rugged parabola, Rastrigin's function, and periodic wells with an exact relaxation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from .. import _validate
from .problem import Problem, constants, frozen, sort_by_value

__all__ = ["periodic_wells", "rastrigin", "rugged"]


def rugged(
    key: Key[Array, ""] | int = 0,
    *,
    amplitude: float = 1.5,
    frequency: float = 1.0,
    noise: float = 0.3,
    noise_length: float = 0.1,
    half_width: float = 3.0,
) -> Problem:
    """The one-dimensional rugged loss f(x) = x² + a sin(2πνx) + smooth random noise.

    The noise is a Gaussian process with standard deviation ``noise`` and correlation
    exp(−r²/(2 ``noise_length``²)), drawn as a random Fourier series of period four half-widths, so that the heat
    limit is known: every wave of wavenumber k is damped by exp(−k² variance/2), and x² becomes x² + variance.

    Args:
        key: typed key (or integer seed) of the noise; the same loss in float32 and float64. Concrete.
        amplitude: a ≥ 0, of the oscillation, in [loss].
        frequency: ν > 0, waves per unit of x, in [1/param].
        noise: standard deviation of the noise, ≥ 0, in [loss].
        noise_length: distance over which the noise varies, > 0, in [param].
        half_width: the domain is [−half_width, half_width], in [param].

    Returns:
        :class:`Problem` with d = 1; ``minimisers`` are all local minimisers inside the domain, ``saddles`` all
        local maximisers.

    Raises:
        ValueError: a length that is not positive, or a negative amplitude or noise.
        TypeError: ``key`` is not a key, or is traced.

    Example:
        >>> problem = rugged(noise=0.0)
        >>> print(problem.minimisers.shape, problem.minimisers[0].round(3))
        (6, 1) [-0.242]
    """
    _validate.check_nonnegative("amplitude", amplitude)
    _validate.check_positive("frequency", frequency)
    _validate.check_nonnegative("noise", noise)
    _validate.check_positive("noise_length", noise_length)
    _validate.check_positive("half_width", half_width)
    base = 2 * math.pi / (4 * half_width)
    # The spectrum of a Gaussian correlation, cut where it has fallen to exp(−4.5²/2) of its peak.
    index = np.arange(1, math.ceil(4.5 / (base * noise_length)) + 1)
    spectrum = np.exp(-0.5 * (index * base * noise_length) ** 2)
    if isinstance(key, jax.core.Tracer):
        msg = f"key must be concrete, because the minimisers are found on the host; got {key!r}."
        raise TypeError(msg)
    with jax.ensure_compile_time_eval():
        draws = jax.random.normal(_validate.as_key(key), (2, len(index)), jnp.float32)
        draws = np.asarray(draws, np.float64) * noise * np.sqrt(spectrum / spectrum.sum())
    if noise == 0:
        index, draws = index[:0], draws[:, :0]
    wavenumbers = np.append(index * base, 2 * math.pi * frequency)
    cosines, sines = np.append(draws[0], 0.0), np.append(draws[1], amplitude)

    def heat(point, variance):
        k = constants(wavenumbers, point)
        damping = jnp.exp(-0.5 * variance * k**2)
        waves = constants(cosines, point) * jnp.cos(k * point[0]) + constants(sines, point) * jnp.sin(
            k * point[0]
        )
        return point[0] ** 2 + variance + jnp.sum(damping * waves)

    def derivative(x, order):
        """d^order f/dx^order, by the phases of the waves, on the host in float64."""
        phase = np.outer(x, wavenumbers) + order * math.pi / 2
        waves = wavenumbers**order * (cosines * np.cos(phase) + sines * np.sin(phase))
        return [x**2, 2 * x, 2 + 0 * x][order] + waves.sum(axis=1)

    stationary = _roots(derivative, half_width, spacing=2 * math.pi / wavenumbers.max() / 32)
    curvature = derivative(stationary, 2)
    wells = stationary[curvature > 0]
    minimisers, minimum = sort_by_value(wells[:, None], derivative(wells, 0))
    return Problem(
        name="rugged",
        loss=lambda point: heat(point, 0.0),
        lower=[-half_width],
        upper=[half_width],
        minimisers=minimisers,
        minimum=minimum,
        saddles=stationary[curvature < 0][:, None],
        heat=heat,
    )


def _roots(derivative, half_width: float, spacing: float) -> np.ndarray:
    """Sign changes of f' on a grid, bisected, then polished by Newton's iteration."""
    grid = np.linspace(-half_width, half_width, math.ceil(2 * half_width / spacing) + 1)
    slopes = derivative(grid, 1)
    changes = np.flatnonzero(np.sign(slopes[:-1]) * np.sign(slopes[1:]) < 0)
    left, right, sign = grid[changes], grid[changes + 1], np.sign(slopes[changes])
    for _ in range(30):
        middle = 0.5 * (left + right)
        before = np.sign(derivative(middle, 1)) == sign
        left, right = np.where(before, middle, left), np.where(before, right, middle)
    root = 0.5 * (left + right)
    for _ in range(3):
        root = root - derivative(root, 1) / derivative(root, 2)
    return root


def rastrigin(dimension: int = 2, *, amplitude: float = 10.0) -> Problem:
    """Rastrigin's function f(x) = Σ xᵢ² + a (1 − cos 2πxᵢ), with about 11^d wells.

    Its heat limit is Σ xᵢ² + variance + a (1 − exp(−2π² variance) cos 2πxᵢ).

    Args:
        dimension: d ≥ 1.
        amplitude: a, in [loss]. At least 1, so that the listed neighbours are wells.

    Returns:
        :class:`Problem` on [−5.12, 5.12]^d. ``minimisers`` lists the global one, 0, and the 2d next best, one step
        along an axis.

    Raises:
        ValueError: ``dimension`` or ``amplitude`` below 1.
        TypeError: a ``dimension`` that is not an integer.

    Example:
        >>> import jax.numpy as jnp
        >>> problem = rastrigin(3)
        >>> print(problem.loss(jnp.full(3, 0.5)), problem.minimisers.shape)
        60.75 (7, 3)

    References:
        Rastrigin 1974, Systems of extremal control.
    """
    _validate.check_count("dimension", dimension)
    _validate.check_positive("amplitude", amplitude)
    if not amplitude >= 1:
        msg = f"amplitude must be at least 1, got {amplitude!r}."
        raise ValueError(msg)

    def heat(point, variance):
        damping = jnp.exp(-2 * jnp.pi**2 * variance)
        return jnp.sum(point**2 + variance + amplitude * (1 - damping * jnp.cos(2 * jnp.pi * point)))

    step = 1.0
    for _ in range(20):  # Newton for x + πa sin 2πx = 0
        slope = 1 + 2 * math.pi**2 * amplitude * math.cos(2 * math.pi * step)
        step -= (step + math.pi * amplitude * math.sin(2 * math.pi * step)) / slope
    axes = np.eye(dimension)
    corner = np.full(dimension, 5.12)
    return Problem(
        name="Rastrigin",
        loss=lambda point: heat(point, 0.0),
        lower=-corner,
        upper=corner,
        minimisers=np.concatenate([np.zeros((1, dimension)), step * axes, -step * axes]),
        minimum=0.0,
        heat=heat,
    )


def periodic_wells(
    dimension: int = 1, *, wavelength: float = 1.0, contrast: float = 0.9, temperature: float = 0.1
) -> Problem:
    """Periodic wells whose Cole-Hopf transform is a cosine: exact at one temperature, for solvers on a torus.

    f(x) = −T Σ log(1 + c cos kxᵢ), k = 2π/wavelength. Under the heat flow of exp(−f/T) each cosine only shrinks:

        u(x, t) = −T Σ log(1 + c exp(−k² t T/2) cos kxᵢ).

    Args:
        dimension: d ≥ 1.
        wavelength: the period along every axis, > 0, in [param].
        contrast: c in (0, 1): the barrier between wells is T log((1 + c)/(1 − c)) high.
        temperature: T > 0, which scales f and at which u is known, in [loss].

    Returns:
        :class:`Problem` on one period, [−wavelength/2, wavelength/2]^d, with the one minimiser 0.

    Raises:
        ValueError: a number out of the range given above.
        TypeError: a ``dimension`` that is not an integer.

    Example:
        >>> import jax.numpy as jnp
        >>> problem = periodic_wells(temperature=0.5)
        >>> print(f"{problem.exact(jnp.array([0.0]), 0.1, 0.5):.6f}")  # −½ log(1 + 0.9 exp(−π²/10))
        -0.144629
    """
    _validate.check_count("dimension", dimension)
    _validate.check_positive("wavelength", wavelength)
    _validate.check_positive("temperature", temperature)
    _validate.check_positive("contrast", contrast)
    _validate.check_fraction("contrast", contrast)
    wavenumber = 2 * math.pi / wavelength

    def exact(point, smoothing_time, temperature):
        shrunk = contrast * jnp.exp(-0.5 * wavenumber**2 * smoothing_time * temperature)
        return -temperature * jnp.sum(jnp.log1p(shrunk * jnp.cos(wavenumber * point)))

    corner = frozen(np.full(dimension, wavelength / 2))
    return Problem(
        name="periodic wells",
        loss=lambda point: exact(point, 0.0, temperature),
        lower=-corner,
        upper=corner,
        minimisers=np.zeros((1, dimension)),
        minimum=-temperature * dimension * math.log1p(contrast),
        exact=exact,
        exact_temperature=temperature,
    )
