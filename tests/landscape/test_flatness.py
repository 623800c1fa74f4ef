"""Expected and worst-case sharpness against closed forms, invariance, coverage, batches and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from jaxopt_pde import landscape

CURVATURES = np.array([0.5, 1.0, 4.0])
DATA = jnp.asarray(CURVATURES * np.array([[0.5], [1.0], [1.5], [0.8], [1.2], [0.4], [1.6]]), jnp.float32)
POINT = jnp.array([1.0, -0.5, 0.3])


def quadratic(params, batch):
    """½ xᵀ diag(mean of the batch) x: rows of curvatures whose mean is CURVATURES."""
    return jnp.sum(jnp.mean(batch, axis=0) * params**2) / 2


def network(params, batch):
    hidden = jax.nn.relu(batch @ params["in"] + params["bias"][None])
    return jnp.mean((hidden @ params["out"] - 1.0) ** 2)


def network_params(rescaling=1.0):
    """The same function for every rescaling of the hidden layer."""
    first, second, third = jax.random.split(jax.random.key(3), 3)
    return {
        "in": rescaling * jax.random.normal(first, (4, 6)),
        "bias": rescaling * jax.random.normal(second, (6,)),
        "out": jax.random.normal(third, (6, 2)) / rescaling,
    }


INPUTS = jax.random.normal(jax.random.key(4), (16, 4))


def within(estimate, expected, errors=4.0):
    return bool(jnp.all(jnp.abs(estimate.mean - expected) < errors * estimate.probe_error))


def test_the_second_order_law_is_exact_on_quadratics():
    sigma = np.array([0.1, 1.0])
    estimate = landscape.expected_sharpness(
        quadratic, POINT, DATA, 0, sigma=sigma, num_samples=4000, scale="none", samples_at_once=2000
    )
    assert within(estimate, sigma**2 * CURVATURES.sum() / 2)
    # Var of ½ Σ λ ξ² is ½ Σ λ², over 2000 pairs whose two halves are equal.
    assert estimate.probe_error[1] == pytest.approx(np.sqrt((CURVATURES**2).sum() / 2 / 2000), rel=0.1)
    np.testing.assert_allclose(estimate.mean[1], 100 * estimate.mean[0], rtol=1e-3)  # the same ξ


@pytest.mark.parametrize("scale", ["filter", "elementwise"])
@pytest.mark.parametrize("vectors", ["rms", "zero"])
def test_scaled_noise_has_the_trace_of_the_scaled_hessian(scale, vectors):
    params = {"kernel": jnp.array([[1.0, 2.0], [3.0, -4.0]]), "bias": jnp.array([1.0, -7.0])}
    weights = {"kernel": jnp.array([[1.0, 2.0], [3.0, 1.0]]), "bias": jnp.array([2.0, 1.0])}
    if scale == "elementwise":
        squares = {"kernel": np.array([[1.0, 4.0], [9.0, 16.0]]), "bias": np.array([1.0, 49.0])}
    else:  # the filters are the columns
        bias = 25.0 if vectors == "rms" else 0.0
        squares = {"kernel": np.array([[5.0, 10.0], [5.0, 10.0]]), "bias": np.full(2, bias)}
    loss = lambda p, batch: jnp.mean(batch) * sum(jnp.sum(w * p[k] ** 2) for k, w in weights.items()) / 2
    estimate = landscape.expected_sharpness(
        loss,
        params,
        jnp.ones(3),
        1,
        sigma=0.1,
        num_samples=2000,
        scale=scale,
        vectors=vectors,
        samples_at_once=1000,
    )
    assert within(estimate, 0.1**2 / 2 * sum(np.sum(squares[k] * np.asarray(w)) for k, w in weights.items()))


@pytest.mark.parametrize("scale", ["filter", "elementwise", "none"])
def test_rescaled_layers(scale):
    """Scaled perturbations do not see a rescaling that leaves the network's function alone; plain ones do."""

    def both(rescaling):
        params = network_params(rescaling)
        mean = landscape.expected_sharpness(
            network, params, INPUTS, 0, sigma=0.1, num_samples=8, scale=scale, samples_at_once=4
        )
        worst = landscape.sharpness(network, params, INPUTS, radius=0.2, num_steps=3, scale=scale)
        return np.array([mean.mean, worst.mean])

    plain, rescaled = both(1.0), both(4.0)
    if scale == "none":
        assert np.all(np.abs(rescaled / plain - 1) > 0.3)
    else:
        np.testing.assert_allclose(rescaled, plain, rtol=1e-3)


def test_pairs_remove_the_slope():
    loss = lambda p, batch: jnp.mean(batch) * jnp.sum(p)
    pairs = landscape.expected_sharpness(
        loss, jnp.zeros(3), jnp.ones(2), 0, sigma=1.0, num_samples=8, scale="none"
    )
    single = landscape.expected_sharpness(
        loss, jnp.zeros(3), jnp.ones(2), 0, sigma=1.0, num_samples=2000, scale="none", antithetic=False,
        samples_at_once=2000,
    )  # fmt: skip
    assert abs(pairs.mean) < 1e-6
    assert pairs.probe_error < 1e-6
    assert within(single, 0.0)
    assert single.probe_error == pytest.approx(np.sqrt(3 / 2000), rel=0.1)


def test_intervals_cover():
    """Student's 95 % intervals, over 400 keys under jit and vmap; E (x + σξ)⁴ in closed form."""
    x, sigma = 0.5, 0.3

    @jax.jit
    @jax.vmap
    def estimates(key):
        return landscape.expected_sharpness(
            lambda p, batch: jnp.mean(batch) * jnp.sum(p**4), jnp.full(5, x), jnp.ones(2), key,
            sigma=sigma, num_samples=32, scale="none", samples_at_once=16,
        )  # fmt: skip

    low, high = estimates(jax.random.split(jax.random.key(0), 400)).interval(scipy.stats.t(15).ppf(0.975))
    expected = 5 * (6 * x**2 * sigma**2 + 3 * sigma**4)
    covered = np.mean((low < expected) & (expected < high))
    # Three binomial errors, and 2 % for skewness at 16 pairs.
    assert 0.95 - 0.02 - 3 * np.sqrt(0.95 * 0.05 / 400) < covered <= 1


def loader():
    return iter([DATA[:3], DATA[3:6], DATA[6:]])


def test_batches_leave_the_mean_and_give_an_error():
    run = lambda data, size: landscape.expected_sharpness(
        quadratic, POINT, data, 0, sigma=0.5, num_samples=40, scale="none", batch_size=size
    )
    whole, cut, loaded = run(DATA, None), run(DATA, 3), run(loader, None)
    np.testing.assert_allclose([cut.mean, loaded.mean], whole.mean, rtol=1e-5)
    np.testing.assert_allclose([cut.probe_error, loaded.probe_error], whole.probe_error, rtol=1e-4)
    assert whole.batch_error is None
    # The values of the batches are c_b times one number, c_b the mean of 3, 3 and 1 factors.
    factors, shares = np.array([1.0, 0.8, 1.6]), np.array([3, 3, 1]) / 7
    expected = whole.mean * np.sqrt(np.sum((shares * (factors - 1)) ** 2) / (1 - np.sum(shares**2)))
    np.testing.assert_allclose([cut.batch_error, loaded.batch_error], expected, rtol=1e-4)
    np.testing.assert_allclose(cut.standard_error, np.hypot(cut.probe_error, cut.batch_error), rtol=1e-6)


@pytest.mark.parametrize("scale", ["none", "elementwise"])
def test_one_step_is_the_step_of_sam_and_asam(scale):
    gradient, point = CURVATURES * np.asarray(POINT), np.asarray(POINT)
    size = np.abs(point) if scale == "elementwise" else np.ones(3)
    moved = point + 0.2 * size**2 * gradient / np.linalg.norm(size * gradient)
    expected = np.sum(CURVATURES * (moved**2 - point**2)) / 2
    estimate = landscape.sharpness(quadratic, POINT, DATA, radius=0.2, scale=scale)
    np.testing.assert_allclose(estimate.mean, expected, rtol=1e-5)
    cut = landscape.sharpness(quadratic, POINT, DATA, radius=0.2, scale=scale, batch_size=3)
    np.testing.assert_allclose(cut.mean, expected, rtol=1e-5)
    factors, shares = np.array([1.0, 0.8, 1.6]), np.array([3, 3, 1]) / 7
    error = expected * np.sqrt(np.sum((shares * (factors - 1)) ** 2) / (1 - np.sum(shares**2)))
    np.testing.assert_allclose(cut.batch_error, error, rtol=1e-4)


def greatest_increase(point, radius):
    """The trust-region problem: e = (μ − A)⁻¹ A x with |e| = radius and μ ≥ λ_max."""
    step = lambda mu: CURVATURES * point / (mu - CURVATURES)
    top = CURVATURES.max()
    mu = scipy.optimize.brentq(lambda m: np.linalg.norm(step(m)) - radius, top * (1 + 1e-9), 1e3)
    return np.sum(CURVATURES * ((point + step(mu)) ** 2 - point**2)) / 2


def test_ascent_approaches_the_maximum_from_below():
    greatest = greatest_increase(np.asarray(POINT), 0.7)
    one = landscape.sharpness(quadratic, POINT, DATA, radius=0.7).mean
    many = landscape.sharpness(quadratic, POINT, DATA, 0, radius=0.7, num_steps=30, num_restarts=2).mean
    loaded = landscape.sharpness(quadratic, POINT, loader, 0, radius=0.7, num_steps=30, num_restarts=2).mean
    assert one < many <= greatest * (1 + 1e-5)
    # On the sphere every step is one of the power iteration for 1 + ηH/|∇f|, η = 1/√k: 30 of them add up to 10 radii
    # and leave less than e^−10(1 − λ₂/λ₁) = 6e-4 of the angle, whose square is what the increase loses.
    assert many > 0.999 * greatest
    assert loaded == pytest.approx(float(many), rel=1e-5)


def test_a_minimum_has_no_first_order_step_but_restarts_leave_it():
    minimum = jnp.zeros(3)
    first = landscape.sharpness(quadratic, minimum, DATA, radius=0.5)
    assert first.mean == 0.0
    far = landscape.sharpness(quadratic, minimum, DATA, 1, radius=0.5, num_steps=30, num_restarts=2)
    assert 0.999 * 0.5 * 4 * 0.25 < far.mean <= 0.5 * 4 * 0.25 * (1 + 1e-5)
    slope = jax.grad(lambda x: landscape.sharpness(quadratic, x, DATA, radius=0.5).mean)(minimum)
    assert jnp.all(jnp.isfinite(slope))


def test_a_loss_that_is_not_a_number_shows():
    loss = lambda p, batch: jnp.mean(batch) * jnp.sum(jnp.sqrt(p))
    assert jnp.isnan(landscape.sharpness(loss, jnp.full(2, 0.1), -jnp.ones(3), radius=1.0, num_steps=2).mean)


def test_a_second_call_compiles_nothing():
    traces = []

    def loss(params, batch):
        traces.append(1)
        return quadratic(params, batch)

    def run(data, factor):
        landscape.expected_sharpness(loss, factor * POINT, data, 0, sigma=0.1 * factor, num_samples=4)
        landscape.sharpness(loss, factor * POINT, data, radius=0.1 * factor)

    for data in (DATA, lambda: iter([DATA[:3], DATA[3:6]])):
        run(data, 1.0)
        before = len(traces)
        run(data, 2.0)
        assert len(traces) == before


MEAN = {"sigma": 0.1}
WORST = {"radius": 0.1}


@pytest.mark.parametrize(
    ("function", "changes", "message"),
    [
        (landscape.expected_sharpness, {"sigma": 0.0}, "sigma must be positive"),
        (
            landscape.expected_sharpness,
            {"sigma": [0.1, -1.0]},
            r"sigma must be positive and finite, got -1.0",
        ),
        (landscape.expected_sharpness, {"sigma": np.ones((2, 2))}, r"sigma must be a number or a 1-D array"),
        (landscape.expected_sharpness, {"num_samples": 3}, "num_samples must be even"),
        (landscape.expected_sharpness, {"scale": "layer"}, "scale must be one of"),
        (landscape.expected_sharpness, {"vectors": "keep"}, "vectors must be one of"),
        (landscape.expected_sharpness, {"data": jnp.zeros((0, 3))}, "at least one example"),
        (landscape.expected_sharpness, {"loss_fn": lambda p, b: p}, "scalar loss"),
        (
            landscape.expected_sharpness,
            {"loss_fn": lambda p, b: (p[0], b)},
            "got a tuple: return the loss alone",
        ),
        (landscape.expected_sharpness, {"params": jnp.arange(3)}, "floating"),
        (landscape.sharpness, {"radius": -1.0}, "radius must be positive"),
        (landscape.sharpness, {"num_steps": 0}, "num_steps must be at least 1"),
        (landscape.sharpness, {"num_restarts": 2, "key": None}, "key must be given for num_restarts=2"),
        (landscape.sharpness, {"loss_fn": lambda p, b: p}, "scalar"),
        (landscape.sharpness, {"data": loader, "batch_size": 2}, "batch_size must be None"),
    ],
)
def test_bad_input(function, changes, message):
    settings = MEAN if function is landscape.expected_sharpness else WORST
    arguments = {"loss_fn": quadratic, "params": POINT, "data": DATA, "key": 0} | settings | changes
    with pytest.raises((ValueError, TypeError), match=message):
        function(**arguments)
