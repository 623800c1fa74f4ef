"""The oracle against closed forms and scipy, the bounds and limits of the theory seen through it, and its search."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_pde.smoothing import gaussian, quadrature
from tests.smoothing.test_gaussian import quadratic


def rugged(y):
    """A double well with ripples, in any dimension; its second derivative is at most 12 y² − 4 + 12.5."""
    return jnp.sum((y**2 - 1) ** 2 + 0.2 * y + 0.5 * jnp.cos(5 * y + 1))


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None, None))
def relaxed(x, t, temperature):
    return quadrature(rugged, x, smoothing_time=t, temperature=temperature)


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_quadratics_at_every_temperature(dimension, x64):
    """Condition number 30 of the Gibbs density's precision, in a basis oblique to the axes."""
    A, b, x = quadratic(dimension, lowest=-0.9)
    run = jax.jit(lambda T: quadrature(lambda y: y @ A @ y / 2 - b @ y, x, smoothing_time=1.0, temperature=T))
    for temperature in (1e-8, 1e-4, 0.1, 1.0, 100.0):
        smoothed = run(temperature)
        exact = gaussian(A, b, x, smoothing_time=1.0, temperature=temperature)
        assert abs(smoothed.value - exact.value) < 1e-12 * (1 + temperature)
        np.testing.assert_allclose(smoothed.gradient, exact.gradient, atol=1e-11)
        np.testing.assert_allclose(smoothed.info["mean"], exact.info["mean"], atol=1e-11)
        np.testing.assert_allclose(
            smoothed.info["hessian"], exact.info["hessian"], atol=2e-14 / temperature + 1e-11
        )
        assert smoothed.info["value_error"] < 1e-11 * (1 + temperature)
        assert smoothed.info["edge_mass"] < 1e-12


@pytest.mark.parametrize("temperature", [0.03, 1.0])
def test_against_adaptive_quadrature(temperature, x64):
    """scipy.integrate.quad at 1e-13 in 1-D and dblquad in 2-D on the rugged double well, coupled by y₁y₂."""
    t, xs = 0.7, np.array([-1.5, 0.1, 0.8])
    smoothed = relaxed(jnp.asarray(xs), t, temperature)
    f = lambda y: (y**2 - 1) ** 2 + 0.2 * y + 0.5 * np.cos(5 * y + 1)
    for x, value, gradient in zip(xs, smoothed.value, smoothed.gradient, strict=True):
        phi = lambda y, x=x: f(y) + (x - y) ** 2 / (2 * t)
        least = phi(np.linspace(-4, 4, 2001)).min()
        weight = lambda y, phi=phi, least=least: np.exp(-(phi(y) - least) / temperature)
        integral = functools.partial(scipy.integrate.quad, a=-4, b=4, epsabs=1e-14, epsrel=1e-13, limit=500)
        mass, moment = integral(weight)[0], integral(lambda y, x=x, w=weight: w(y) * (x - y) / t)[0]
        assert value == pytest.approx(
            least - temperature * np.log(mass / np.sqrt(2 * np.pi * t * temperature)), abs=1e-12
        )
        assert gradient == pytest.approx(moment / mass, abs=1e-11)
    if temperature == 1.0:
        x = np.array([0.3, -0.4])
        coupled = lambda y: rugged(y) + 0.5 * y[0] * y[1]
        smoothed = quadrature(coupled, jnp.asarray(x), smoothing_time=t, temperature=1.0)
        weight = lambda b, a: np.exp(
            -f(a) - f(b) - 0.5 * a * b - ((x[0] - a) ** 2 + (x[1] - b) ** 2) / (2 * t)
        )
        mass = scipy.integrate.dblquad(weight, -3.5, 3.5, -3.5, 3.5, epsabs=1e-8, epsrel=1e-8)[0]
        assert smoothed.value == pytest.approx(-np.log(mass / (2 * np.pi * t)), abs=1e-8)
        assert smoothed.info["value_error"] < 1e-12


def test_at_a_kink_the_reported_error_is_an_upper_bound(x64):
    """f = |y|: each half-line is a Gaussian integral, e^(−u/T) = Σ± e^(tT⁻¹/2 ∓ x/T) Φ((±x − t)/√(tT))."""
    x, t, temperature = 0.4, 0.5, 0.2
    smoothed = quadrature(lambda y: jnp.abs(y), jnp.array(x), smoothing_time=t, temperature=temperature)
    halves = [
        t / (2 * temperature)
        - s * x / temperature
        + scipy.special.log_ndtr((s * x - t) / np.sqrt(t * temperature))
        for s in (1, -1)
    ]
    error = abs(float(smoothed.value) + temperature * np.logaddexp(*halves))
    assert 0 < error < float(smoothed.info["value_error"]) < 1e-4


def test_derivatives_are_those_of_the_value(x64):
    x = jnp.array([0.3])
    run = lambda x, t: quadrature(rugged, x, smoothing_time=t, temperature=0.1, num_points=513)
    u = lambda x, t: run(x, t).value
    everything = lambda x, t: (run(x, t), *jax.grad(u, argnums=(0, 1))(x, t), jax.hessian(u)(x, t))
    smoothed, p, u_t, hessian = jax.jit(everything)(x, 0.7)
    np.testing.assert_allclose(p, smoothed.gradient, atol=1e-13)
    np.testing.assert_allclose(hessian, smoothed.info["hessian"], atol=1e-11)
    # The equation itself: u_t = −½|∇u|² + (T/2) Δu.
    assert abs(u_t + p @ p / 2 - 0.05 * jnp.trace(hessian)) < 1e-11


def test_the_two_sided_hessian_bound(x64):
    """E_ρ[H (I + tH)⁻¹] ≤ D²u ≤ K (I + tK)⁻¹ with K = E_ρ[H]; the lower needs t < 1/|λ_min|. And the sup bound."""
    t, temperature, xs = 0.05, 0.05, jnp.linspace(-2, 2, 81)
    smoothed = relaxed(xs, t, temperature)
    y = jnp.linspace(-4, 4, 8001)
    curvature = jax.vmap(jax.grad(jax.grad(rugged)))(y)
    log_rho = -(jax.vmap(rugged)(y)[None] + (xs[:, None] - y[None]) ** 2 / (2 * t)) / temperature
    rho = jax.nn.softmax(log_rho, axis=1)
    mean = rho @ curvature
    u_xx = smoothed.info["hessian"][:, 0, 0]
    assert float(jnp.max(u_xx - mean / (1 + t * mean))) < 1e-8
    assert t * -float(curvature.min()) < 1
    assert float(jnp.min(u_xx - rho @ (curvature / (1 + t * curvature)))) > -1e-8
    assert float(u_xx.max()) <= 1 / t


def test_maximum_principles_on_a_periodic_loss(x64):
    """sup u_xx ≤ 1/(1/C + t) with C = sup f'', and max |u_x(·, t)| ≤ max |f'| (1-D: sup Lap is sup u_xx)."""
    f = lambda y: 0.5 * jnp.cos(2 * jnp.pi * y) + 0.25 * jnp.sin(4 * jnp.pi * y + 1)
    xs = jnp.linspace(0, 1, 101)
    C = float(jax.vmap(jax.grad(jax.grad(f)))(xs).max()) * 1.01
    steepest = float(jnp.abs(jax.vmap(jax.grad(f))(xs)).max())
    run = jax.jit(
        jax.vmap(lambda x, t: quadrature(f, x, smoothing_time=t, temperature=0.05), in_axes=(0, None))
    )
    slopes = [steepest]
    for t in (0.01, 0.1, 0.3):
        smoothed = run(xs, t)
        assert float(smoothed.info["hessian"].max()) <= 1 / (1 / C + t)
        slopes.append(float(jnp.abs(smoothed.gradient).max()))
    assert np.all(np.diff(slopes) < 1e-9)


def test_the_laplacian_in_two_dimensions_obeys_its_sup_bound(x64):
    """sup Lap u ≤ 1/(1/C + t/d) with C = sup Lap f."""
    f = lambda y: jnp.cos(3 * y[0]) * jnp.cos(2 * y[1]) + 0.3 * jnp.sin(4 * y[0] + y[1])
    xs = jax.random.uniform(jax.random.key(0), (8, 2), minval=-2, maxval=2, dtype=jnp.float64)
    laplacian = jax.vmap(lambda x: jnp.trace(jax.hessian(f)(x)))
    grid = jnp.stack(jnp.meshgrid(*[jnp.linspace(-3.2, 3.2, 161)] * 2), axis=-1).reshape(-1, 2)
    C, t = float(laplacian(grid).max()), 0.2
    run = jax.jit(
        lambda x: quadrature(f, x, smoothing_time=t, temperature=0.1, num_points=129).info["hessian"]
    )
    traces = jnp.trace(jax.lax.map(run, xs), axis1=1, axis2=2)
    assert float(traces.max()) <= 1 / (1 / C + t / 2)


def test_the_limit_of_low_temperature(x64):
    """(u − e_t f)/T → ½ log(1 + t f''(y*)), linearly in T."""
    x, t = jnp.array([1.3]), 0.2
    cold = relaxed(x, t, 1e-10)
    y = cold.info["mean"][0]
    predicted = 0.5 * np.log(1 + t * float(jax.grad(jax.grad(lambda y: rugged(y)))(y[0])))
    envelope = rugged(y) + (x[0] - y[0]) ** 2 / (2 * t)
    misses = [float((relaxed(x, t, T).value[0] - envelope) / T) - predicted for T in (4e-3, 2e-3, 1e-3)]
    assert abs(misses[-1]) < 1e-2 * predicted
    assert misses[1] / misses[2] == pytest.approx(2, rel=0.05)


def test_the_limit_of_high_temperature_with_fixed_variance(x64):
    """u = G_s f − Var_{G_s}(f)/(2T) + O(T⁻²), s = tT, by Gauss-Hermite with 120 nodes."""
    x, s = 0.4, 0.3
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    f = np.asarray(jax.vmap(rugged)(jnp.asarray(x + np.sqrt(s) * nodes)))
    weights = weights / weights.sum()
    mean = weights @ f
    variance = weights @ (f - mean) ** 2
    misses = [
        float(relaxed(jnp.array([x]), s / T, T).value[0]) - (mean - variance / (2 * T))
        for T in (200.0, 400.0)
    ]
    assert abs(misses[0]) < 5e-2 * variance / 400
    assert misses[0] / misses[1] == pytest.approx(4, rel=0.1)


def test_relaxation_is_monotone_and_commutes_with_constants(x64):
    x = jnp.array([0.3])

    @jax.jit
    def value(constant, bump):
        f = lambda y: rugged(y) + constant + bump * jnp.sum(jnp.tanh(y) ** 2)
        return quadrature(f, x, smoothing_time=0.7, temperature=0.1).value

    assert float(value(5.0, 0.0)) == pytest.approx(float(value(0.0, 0.0)) + 5, abs=1e-12)
    assert value(0.0, 0.1) > value(0.0, 0.0)


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.floats(-3, 3), min_size=6, max_size=6),
    st.floats(-2, 2),
    st.sampled_from([0.1, 1.0]),
    st.floats(0.05, 2),
    st.sampled_from([1e-3, 0.1, 1.0]),
)
def test_an_outer_step_up_to_the_smoothing_time_descends(amplitudes, x, t, share, temperature):
    """u(x − h∇u) ≤ u − h (1 − h/(2t)) |∇u|² for 0 < h ≤ 2t and every f: random Fourier sums of period 1 or more."""
    with jax.enable_x64(True):
        here = _fourier(jnp.asarray(amplitudes), jnp.asarray(x), t, temperature)
        h, squared = share * t, float(here.gradient) ** 2
        after = _fourier(jnp.asarray(amplitudes), x - h * here.gradient, t, temperature).value
        assert float(after) <= float(here.value) - h * (1 - share / 2) * squared + 1e-9 * (1 + squared)


@jax.jit
def _fourier(amplitudes, x, t, temperature):
    k = jnp.arange(1.0, 7.0)
    f = lambda y: jnp.sum(amplitudes * jnp.sin(k * y + k**2)) + y**2 / 20
    return quadrature(f, x, smoothing_time=t, temperature=temperature)


def test_the_search_finds_what_matters(x64):
    """A deep well 30 prior widths away; a hard wall; a narrow peak in float32; and a box given by hand."""
    far = lambda y: -5 * jnp.exp(-((y - 3) ** 2) / 0.02)
    zero, cold = jnp.array(0.0), {"smoothing_time": 1.0, "temperature": 0.01}
    smoothed = quadrature(far, zero, **cold)
    assert float(smoothed.info["mean"][0]) == pytest.approx(3, abs=0.05)
    given_box = quadrature(far, zero, half_width=4.0, **cold)
    assert float(given_box.value) == pytest.approx(float(smoothed.value), abs=1e-12)
    wall = quadrature(lambda y: jnp.where(y < 0, jnp.inf, y), jnp.array(-0.5), **cold)
    assert float(wall.info["mean"][0]) == pytest.approx(0.01 / 1.5, rel=0.05)  # ρ ∝ e^(−1.5 y/T) on y > 0
    single = quadrature(rugged, jnp.array([1.3], jnp.float32), smoothing_time=0.2, temperature=1e-12)
    expected = relaxed(jnp.array([1.3]), 0.2, 1e-12)
    np.testing.assert_allclose(single.gradient[0], expected.gradient[0], rtol=2e-3)
    np.testing.assert_allclose(single.value, expected.value[0], rtol=1e-6)


def test_trees_and_dtypes_are_those_of_params():
    loss = lambda p: jnp.sum(p["a"].astype(jnp.float32) ** 2) / 2 + p["b"] ** 2
    params = {"a": jnp.ones(1, jnp.bfloat16), "b": jnp.array(1.0)}
    smoothed = jax.jit(lambda p: quadrature(loss, p, smoothing_time=1.0, temperature=0.5))(params)
    assert smoothed.gradient["a"].dtype == jnp.bfloat16
    assert smoothed.value.dtype == smoothed.info["mean"].dtype == jnp.float32
    assert float(smoothed.gradient["b"]) == pytest.approx(2 / 3, rel=1e-3)
    assert float(smoothed.gradient["a"][0]) == pytest.approx(1 / 2, rel=1e-2)


@pytest.mark.parametrize(
    ("params", "change", "message"),
    [
        (jnp.ones(4), {}, "got dimension 4: use smoothing.gaussian for a quadratic, smoothing.cole_hopf"),
        (jnp.ones(1), {"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        (jnp.ones(1), {"num_points": 100}, "num_points must be odd.*got 100"),
        (jnp.ones(1), {"num_points": 3}, "num_points must be at least 5, got 3"),
        (jnp.ones(1), {"half_width": -1.0}, "half_width must be positive and finite, got -1"),
        (jnp.ones(2), {}, r"loss_fn must return a scalar loss, got shape \(2,\)"),
    ],
)
def test_bad_settings_are_named(params, change, message):
    with pytest.raises(ValueError, match=message):
        quadrature(lambda y: y, params, **({"smoothing_time": 1.0, "temperature": 1.0} | change))
