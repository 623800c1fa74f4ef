"""The exact route against brute-force quadrature and closed forms, from T = 1 to T = 0.

Errors allowed, with c = max f'' + 1/t and r = c·Δx²/T, M₃ = max |f'''|:
- resolved (r <= 2): the trapezoidal rule's 2T·exp(-2π²/r), twice over, and rounding;
- beyond: the parabola through three points, M₃Δx³·max s(1 - s²)/6 = M₃Δx³/16 for |s| <= 1/2;
- with linear tails also the fourth-order end weights: 19/720·Δx⁴·T·max |g'''| of a Gaussian of variance tT, that is
  0.0145·Δx⁴/(t²T) while the Gaussian itself is resolved.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import pde
from tests.pde import oracles

CASES = {  # f, lower, upper, t, a bound on f(x) - min f within reach, on |f''| and on |f'''|
    "periodic": (oracles.wave, 0.0, 1.0, 0.1, 1.5, 60.0, 620.0),
    "neumann": (oracles.even_wave, 0.0, 1.0, 0.1, 1.4, 43.0, 350.0),
    "extrapolate": (oracles.roof, -4.0, 4.0, 0.5, 4.0, 12.0, 45.0),
}
TEMPERATURES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8)
N = 96


@functools.partial(jax.jit, static_argnums=1)
def solve(initial, grid, time, temperature):
    return pde.solve_hamilton_jacobi(initial, grid, time, temperature=temperature).values[0]


@functools.cache
def problem(boundary):
    """Grid, f on it, the places looked at, and f on the line."""
    f, low, high, *_ = CASES[boundary]
    grid = pde.Grid.uniform(low, high, N, boundary=boundary)
    x = low + grid.spacing[0] * np.arange(N)
    look = np.unique(np.r_[0, 1, 2, N - 2, N - 1, np.linspace(0, N - 1, 11).astype(int)])
    look = look[boundary == "neumann" :]  # its tie has a test of its own
    line = oracles.linear_tails(f, low, high, grid.spacing[0]) if boundary == "extrapolate" else f
    return grid, x, f(x), look, line


@functools.cache
def truth(boundary, temperature):
    _, x, _, look, line = problem(boundary)
    *_, time, spread, curvature, _ = CASES[boundary]
    if temperature < 1e-5:  # the peak is narrower than 1e-3 of the reach: Laplace's method is exact to O(T²)
        value, bend = oracles.moreau_line(
            line, x[look], time, spread=spread, points=40_001, with_curvature=True
        )
        return value + temperature / 2 * np.log(time * bend)
    return oracles.cole_hopf_line(line, x[look], time, temperature, spread=spread, curvature=curvature)


def allowed(boundary, temperature):
    grid = problem(boundary)[0]
    *_, time, _, curvature, third = CASES[boundary]
    dx = grid.spacing[0]
    ratio = (curvature + 1 / time) * dx**2 / max(temperature, 1e-300)
    tolerance = 4 * temperature * np.exp(-2 * np.pi**2 / min(ratio, 2)) + 2e-14
    if ratio > 2:
        tolerance += third * dx**3 / 16
    if boundary == "extrapolate" and temperature:
        tolerance += 0.0145 * dx**4 / (time**2 * temperature) if dx**2 <= 2 * time * temperature else 0
    return tolerance


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("boundary", CASES)
def test_every_temperature(x64, boundary, temperature):
    """Both branches: products down to r = 1/2, logarithms beyond."""
    grid, _, values, look, _ = problem(boundary)
    got = np.asarray(solve(jnp.asarray(values), grid, CASES[boundary][3], temperature))[look]
    assert np.abs(got - truth(boundary, temperature)).max() <= allowed(boundary, temperature)


@pytest.mark.parametrize("temperature", [1e-3, 1e-4])
def test_a_tie_at_a_neumann_end(x64, temperature):
    """At a maximum on the wall the well and its mirror image weigh the same: both count, T·log 2 in all."""
    f, *_, time, spread, curvature, _ = CASES["neumann"]
    grid, _, values, *_ = problem("neumann")
    got = np.asarray(solve(jnp.asarray(values), grid, time, temperature))[:1]
    exact = oracles.cole_hopf_line(f, [0.0], time, temperature, spread=spread, curvature=curvature)
    assert np.abs(got - exact).max() <= allowed("neumann", temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 1e-3])
def test_a_constant_between_linear_tails(x64, temperature):
    """Stays as it is, up to the end weights (the error of the header, and 1.5 for where x lies)."""
    grid, *_ = problem("extrapolate")
    u = solve(jnp.full(N, 2.0), grid, 0.5, temperature)
    resolved = grid.spacing[0] ** 2 / 0.5 / temperature < 2
    bound = 1.5 * 0.0145 * grid.spacing[0] ** 4 / (0.5**2 * temperature) if resolved else 0
    assert np.abs(u - 2).max() <= bound + 1e-14


@pytest.mark.parametrize("boundary", CASES)
def test_zero_temperature_is_the_moreau_envelope_and_the_limit(x64, boundary):
    grid, x, values, look, line = problem(boundary)
    *_, time, spread, _, third = CASES[boundary]
    envelope = np.asarray(pde.solve_hamilton_jacobi(values, grid, time, temperature=0).values[0])
    oracle = oracles.moreau_line(line, x[look], time, spread=spread, points=40_001)
    assert (
        np.abs(envelope[look] - oracle).max() <= third * grid.spacing[0] ** 3 / 16 + 1e-9
    )  # the oracle's own grid
    # T → 0: what is left is (T/2)·log det and, at a tie of two wells, T·log 2
    correction = 1e-8 * (0.5 * np.log(1 + time * CASES[boundary][5]) + np.log(2))
    # and the limit integrates each well's own parabola, the envelope the best point's: c·Δx²/8 at a tie at most
    at_ties = (CASES[boundary][5] + 1 / time) * grid.spacing[0] ** 2 / 8
    gap = np.abs(np.asarray(solve(jnp.asarray(values), grid, time, 1e-8)) - envelope)
    assert np.median(gap) <= correction
    assert gap.max() <= at_ties + correction
    assert np.all(envelope <= values + 1e-15)  # y = x is a candidate


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("boundary", ["periodic", "extrapolate"])
def test_float32(boundary, temperature):
    """osc(f)/T up to 1e8: exponents have relative rounding eps, so u has eps·max|f|·(a few operations), 32 here."""
    grid, _, values, look, _ = problem(boundary)
    got = np.asarray(solve(jnp.asarray(values, jnp.float32), grid, CASES[boundary][3], temperature))[look]
    assert got.dtype == np.float32
    eps = np.finfo(np.float32).eps
    # T·eps·log-sum of O(10) exponents besides
    rounding = 32 * eps * (np.abs(values).max() + temperature)
    if boundary == "extrapolate":  # the tail's parabola is a difference of heights up to t·slope² and the box
        rounding *= 2
    assert np.abs(got - truth(boundary, temperature)).max() <= allowed(boundary, temperature) + rounding


@pytest.mark.parametrize("temperature", [1.0, 0.05])
@pytest.mark.parametrize("boundary", ["periodic", "neumann"])
def test_semigroup(x64, boundary, temperature):
    """u(t + s) = S_s S_t f, to rounding where both are resolved."""
    grid, _, values, *_ = problem(boundary)
    values = jnp.asarray(values)
    twice = solve(solve(values, grid, 0.04, temperature), grid, 0.06, temperature)
    at_once = solve(values, grid, 0.1, temperature)
    np.testing.assert_allclose(twice, at_once, atol=1e-13 * (1 + temperature))


def test_several_times_are_each_their_own(x64):
    grid, _, values, *_ = problem("periodic")
    both = pde.solve_hamilton_jacobi(values, grid, [0.04, 0.1], temperature=0.05).check()
    for time, frame in zip((0.04, 0.1), both.values, strict=True):
        np.testing.assert_allclose(frame, solve(jnp.asarray(values), grid, time, 0.05), atol=1e-14)


def test_time_zero_is_the_data_itself():
    for boundary in CASES:
        grid, _, values, *_ = problem(boundary)
        initial = jnp.asarray(values, jnp.float32)
        for temperature in (0.1, 1e-6):
            np.testing.assert_array_equal(solve(initial, grid, 0.0, temperature), initial)


@pytest.mark.parametrize("boundary", ["periodic", "neumann"])
def test_heat_limit(x64, boundary):
    """T → ∞ with tT = s: u = G_s*f - Var/(2T) + κ₃/(6T²), and |κ₃| <= osc³/10 (the worst two-point law: 0.0962)."""
    grid, x, values, *_ = problem(boundary)
    values = jnp.asarray(values)
    smooth = jax.jit(lambda v, s=0.01: pde.gaussian_convolution(v, grid, s))
    mean = smooth(values)
    variance = smooth(values**2) - mean**2
    for temperature in (50.0, 1000.0):
        u = solve(values, grid, 0.01 / temperature, temperature)
        bound = np.ptp(values) ** 3 / 10 / (6 * temperature**2) * (1 + np.ptp(values) / temperature)
        assert np.abs(u - (mean - variance / (2 * temperature))).max() <= bound + 1e-14 * temperature
    # G_s multiplies every wave of number k by exp(-sk²/2)
    waves = {
        "periodic": [(0.5, 2 * np.pi, 0.0), (0.25, 4 * np.pi, 1 - np.pi / 2)],
        "neumann": [(0.4, 2 * np.pi, 0.0), (0.3, 3 * np.pi, 0.0)],
    }
    expected = sum(a * np.exp(-0.01 * k**2 / 2) * np.cos(k * x + p) for a, k, p in waves[boundary])
    np.testing.assert_allclose(mean, expected, atol=1e-14)
    np.testing.assert_allclose(smooth(values, 1e-12), values, atol=1e-14)
    with pytest.raises(ValueError, match="'neumann' or 'periodic'"):
        pde.gaussian_convolution(jnp.ones(6), pde.Grid.uniform(0.0, 1.0, 6, boundary="extrapolate"), 1.0)


def test_hessian_bounds(x64):
    """E[f''/(1 + tf'')] <= u'' <= K/(1 + tK) with K = E f'' over the local Gibbs density (t < 1/max(-f''))."""
    time, temperature, n = 0.01, 0.05, N
    grid, x, values, *_ = problem("periodic")
    u = np.asarray(solve(jnp.asarray(values), grid, time, temperature))
    k = 2 * np.pi * np.fft.rfftfreq(n, 1 / n)
    bend = np.fft.irfft(-(k**2) * np.fft.rfft(u), n)
    y = x[:, None] + np.linspace(-0.4, 0.4, 2001)
    phi = (oracles.wave(y) + (x[:, None] - y) ** 2 / (2 * time)) / temperature
    weight = np.exp(phi.min(axis=1, keepdims=True) - phi)
    weight /= weight.sum(axis=1, keepdims=True)
    second = -2 * np.pi**2 * np.cos(2 * np.pi * y) - 4 * np.pi**2 * np.sin(4 * np.pi * y + 1)
    mean = np.sum(weight * second, axis=1)
    # 1e-8: rounding of u times the largest wave number squared (4e2)², and the tolerance of MATH
    assert np.all(bend <= mean / (1 + time * mean) + 1e-8)
    assert np.all(bend >= np.sum(weight * second / (1 + time * second), axis=1) - 1e-8)
    assert np.max(mean / (1 + time * mean) - bend) > 0.1  # the bounds are not the answer: they can fail


def test_sup_bounds_in_2d(x64):
    """sup u_kk <= 1/(1/C_k + t), sup Δu <= 1/(1/C + t/d), sup |u_k| falls; differences average derivatives."""
    n, temperature = 48, 0.05
    grid = pde.Grid.uniform((0.0, 0.0), (1.0, 1.0), (n, n), boundary="periodic")
    x, y = np.meshgrid(np.arange(n) / n, np.arange(n) / n, indexing="ij")
    w = 2 * np.pi
    values = 0.3 * np.cos(w * x) + 0.2 * np.sin(w * y) + 0.2 * np.cos(w * (x + y))
    times = np.array([0.01, 0.03, 0.1, 0.3])
    u = np.asarray(pde.solve_hamilton_jacobi(values, grid, times, temperature=temperature).check().values)
    fine = np.arange(512) / 512
    a, b = np.meshgrid(fine, fine, indexing="ij")
    along_x = -(w**2) * (0.3 * np.cos(w * a) + 0.2 * np.cos(w * (a + b)))
    along_y = -(w**2) * (0.2 * np.sin(w * b) + 0.2 * np.cos(w * (a + b)))
    bend = lambda v, axis: (np.roll(v, 1, axis) + np.roll(v, -1, axis) - 2 * v) * n**2
    slope = np.abs(values - np.roll(values, 1, 0)).max()
    for time, frame in zip(times, u, strict=True):
        for axis, second in enumerate((along_x, along_y)):
            assert bend(frame, axis).max() <= 1 / (1 / second.max() + time) * (
                1 + 1e-4
            )  # C from a finer grid
        trace = (along_x + along_y).max()
        assert (bend(frame, 0) + bend(frame, 1)).max() <= 1 / (1 / trace + time / 2) * (1 + 1e-4)
        now = np.abs(frame - np.roll(frame, 1, 0)).max()
        assert now < slope
        slope = now


QUADRATICS = {  # d: (A, b, points an axis, T): resolved and, in 3-D, wide enough for it
    1: ([[1.5]], [0.3], N, 0.1),
    2: ([[1.0, 0.4], [0.4, 2.0]], [0.2, -0.3], 65, 0.1),
    3: ([[1.0, 0.3, 0.0], [0.3, 1.5, -0.2], [0.0, -0.2, 0.8]], [0.1, 0.2, -0.1], 33, 0.4),
}


@pytest.mark.parametrize(
    "dimension", [pytest.param(d, marks=[pytest.mark.slow] if d == 3 else []) for d in QUADRATICS]
)
def test_quadratics(x64, dimension):
    """The closed form where the box is out of reach: 7 standard deviations sqrt(T/λ) within 4 - 1 around |x| <= 1/2."""
    hessian, linear, n, temperature = map(np.asarray, QUADRATICS[dimension])
    n, temperature, time = int(n), float(temperature), 0.5
    grid = pde.Grid.uniform((-4.0,) * dimension, (4.0,) * dimension, (n,) * dimension, boundary="extrapolate")
    mesh = np.stack(np.meshgrid(*[np.linspace(-4, 4, n)] * dimension, indexing="ij"), axis=-1)
    values = 0.5 * np.einsum("...i,ij,...j", mesh, hessian, mesh) - mesh @ linear
    solution = pde.solve_hamilton_jacobi(values, grid, time, temperature=temperature).check()
    middle = np.all(np.abs(mesh) <= 0.5, axis=-1)
    exact, slope = oracles.quadratic(hessian, linear, mesh[middle], time, temperature)
    ratio = (np.linalg.eigvalsh(hessian).max() + 1 / time) * grid.spacing[0] ** 2 / temperature
    tolerance = (
        2 * dimension * temperature * np.exp(-2 * np.pi**2 / ratio) + 1e-9
    )  # 1e-9: exp(-7²/2) of box left out
    np.testing.assert_allclose(np.asarray(solution.values[0])[middle], exact, atol=tolerance)
    # on a quadratic the slopes (f₋₂ - 8f₋₁ + 8f₁ - f₂)/12 are exact
    gradient = solution.gradient(jnp.asarray(mesh[middle]), time)
    np.testing.assert_allclose(gradient, slope, atol=4 * tolerance / grid.spacing[0])
