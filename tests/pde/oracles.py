"""Independent answers in NumPy, float64 and brute force: nothing here calls the package."""

import itertools

import numpy as np
from scipy.special import logsumexp


def wave(x):
    """The periodic test function of the scheme tables, on [0, 1]."""
    return 0.5 * np.cos(2 * np.pi * x) + 0.25 * np.sin(4 * np.pi * x + 1)


def even_wave(x):
    """Even about 0 and about 1, so smooth under reflection at both; not symmetric otherwise."""
    return 0.4 * np.cos(2 * np.pi * x) + 0.3 * np.cos(3 * np.pi * x)


def roof(x):
    """Two wells between tails that are linear to exp(-16) beyond |x| = 4."""
    return 0.7 * np.abs(x - 0.3) + 0.35 * np.log1p(np.exp(-4 * np.abs(x - 0.3))) + 0.6 * np.exp(-4 * x**2)


def linear_tails(f, low, high, dx):
    """f inside the box and straight lines outside, with the slopes of the first and last difference."""
    left, right = (f(low + dx) - f(low)) / dx, (f(high) - f(high - dx)) / dx

    def g(y):
        inside = np.clip(y, low, high)
        return f(inside) + np.where(y < low, left * (y - low), np.where(y > high, right * (y - high), 0.0))

    return g


def reach(spread, time, temperature):
    """Beyond this distance the integrand of Cole and Hopf is below exp(-45) of its largest value."""
    return np.sqrt(2 * time * (spread + 45 * temperature))


def cole_hopf_line(f, x, time, temperature, *, spread, curvature):
    """-T log ∫ G_{tT}(x - y) exp(-f(y)/T) dy for every x, by a trapezoidal sum of 12 points a standard deviation.

    ``spread`` bounds f(x) - min f over the reach, ``curvature`` bounds |f''|.
    """
    radius = reach(spread, time, temperature)
    narrowest = np.sqrt(temperature / (curvature + 1 / time))
    offset = np.linspace(-radius, radius, 2 * int(np.ceil(12 * radius / narrowest)) + 1)
    step = offset[1] - offset[0]
    gaussian = -(offset**2) / (2 * time * temperature) - 0.5 * np.log(2 * np.pi * time * temperature)
    return np.array(
        [-temperature * (logsumexp(gaussian - f(point + offset) / temperature) + np.log(step)) for point in x]
    )


def cole_hopf_torus(values, time, temperature):
    """The same on the unit torus in any dimension, by the trapezoidal sum over its grid: for resolved data only."""
    density = np.exp((values.min() - values) / temperature)
    for axis, n in enumerate(values.shape):
        gap = (np.arange(n)[:, None] - np.arange(n)) / n
        images = np.exp(-((gap[..., None] + np.arange(-5, 6)) ** 2) / (2 * time * temperature)).sum(axis=-1)
        kernel = images / np.sqrt(2 * np.pi * time * temperature) / n
        density = np.moveaxis(np.tensordot(kernel, density, axes=(1, axis)), 0, axis)
    return values.min() - temperature * np.log(density)


def moreau_line(f, x, time, *, spread, points=400_001, with_curvature=False):
    """min_y f(y) + (x - y)²/(2t) on a fine grid and the vertex of a parabola there; also the second derivative."""
    radius = reach(spread, time, 0.0)
    offset = np.linspace(-radius, radius, points)
    step = offset[1] - offset[0]
    value, curvature = [], []
    for point in x:
        phi = f(point + offset) + offset**2 / (2 * time)
        k = np.clip(np.argmin(phi), 1, points - 2)
        slope, bend = (phi[k + 1] - phi[k - 1]) / 2, phi[k + 1] - 2 * phi[k] + phi[k - 1]
        value.append(phi[k] - slope**2 / (2 * bend))
        curvature.append(bend / step**2)
    return (np.array(value), np.array(curvature)) if with_curvature else np.array(value)


def moreau_grid(values, axes, time, periods=None):
    """Min over grid points alone, all pairs, any dimension: the envelope of the function that is +inf between."""
    points = np.stack([p.ravel() for p in np.meshgrid(*axes, indexing="ij")], axis=1)
    gap = points[:, None] - points[None]
    if periods is not None:
        gap = gap - np.round(gap / periods) * np.where(np.isfinite(periods), periods, 0)
    return np.min(values.ravel()[None] + np.sum(gap**2, axis=2) / (2 * time), axis=1).reshape(values.shape)


def hopf_lax(f, conjugate, x, time, speeds):
    """Hopf and Lax's formula min_v f(x - t·v) + t·L(v) for a convex H with conjugate L, over given velocities."""
    return np.array([np.min(f(point - time * speeds) + time * conjugate(speeds)) for point in x])


def quadratic(hessian, linear, x, time, temperature):
    """The closed form for f = ½x'Ax - b'x at points x [n, d]; (value, gradient)."""
    hessian, linear = np.atleast_2d(hessian), np.atleast_1d(linear)
    root = np.eye(len(hessian)) + time * hessian
    relaxed, slope = hessian @ np.linalg.inv(root), np.linalg.solve(root, linear)
    constant = -time / 2 * linear @ slope + temperature / 2 * np.log(np.linalg.det(root))
    value = 0.5 * np.einsum("ni,ij,nj->n", x, relaxed, x) - x @ slope + constant
    return value, x @ relaxed - slope


def second_difference(n, dx, boundary):
    """The matrix of (u_{i-1} - 2u_i + u_{i+1})/dx² with its boundary, entry by entry."""
    matrix = np.zeros((n, n))
    for i, shift in itertools.product(range(n), (-1, 1)):
        j = i + shift
        if 0 <= j < n:
            matrix[i, j] += 1
        elif boundary == "periodic":
            matrix[i, j % n] += 1
        elif boundary == "neumann":
            matrix[i, i - shift] += 1
        else:  # the ghost is 2u_i - u_{i - shift}
            matrix[i, i] += 2
            matrix[i, i - shift] -= 1
        matrix[i, i] -= 1
    return matrix / dx**2


def orders(errors):
    """Orders between neighbours of a sequence of errors on grids that double."""
    errors = np.asarray(errors)
    return np.log2(errors[:-1] / errors[1:])
