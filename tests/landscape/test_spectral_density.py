"""Stochastic Lanczos quadrature against dense spectra, and its errors against what other probes and data give."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import landscape
from jaxopt_pde._noise import draw_noise

SIZE = 40


def quadratic(params, batch):
    """½ mean (xᵢᵀ w)², whose Hessian is mean xᵢ xᵢᵀ."""
    return 0.5 * jnp.mean((batch @ params) ** 2)


def data_for(eigenvalues):
    """Examples xᵢ = √(N λᵢ) qᵢ with mean x xᵀ = Q diag(λ) Qᵀ exactly, in a random basis Q."""
    eigenvalues = np.asarray(eigenvalues, np.float64)
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(len(eigenvalues),) * 2))
    return jnp.asarray(np.sqrt(len(eigenvalues) * eigenvalues)[:, None] * basis.T)


def net_loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["first"])
    return jnp.mean((hidden @ params["second"] - batch["y"]) ** 2)


@pytest.fixture(scope="module")
def net():
    """A tanh network of 48 parameters, 37 examples, and its Hessian."""
    random = np.random.default_rng(1)
    params = {"first": random.normal(size=(4, 6)), "second": random.normal(size=(6, 4))}
    data = {"x": random.normal(size=(37, 4)), "y": random.normal(size=(37, 4))}
    with jax.enable_x64(True):
        params, data = jax.tree.map(jnp.asarray, (params, data))
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        matrix = np.asarray(jax.jit(jax.hessian(lambda flat: net_loss(unravel(flat), data)))(flat))
    return params, data, matrix


def loader_of(data, size):
    number = jax.tree.leaves(data)[0].shape[0]
    cut = [jax.tree.map(lambda leaf, s=s: leaf[s : s + size], data) for s in range(0, number, size)]
    return lambda: iter(cut)


def signs(key, number, size):
    """The probes that the density draws."""
    return [np.asarray(draw_noise(k, jnp.zeros(size), "rademacher")) for k in jax.random.split(key, number)]


def test_each_probe_integrates_polynomials_exactly(net, x64):
    """m steps give vᵀHʲv/P for j ≤ 2m − 1 to rounding, and not for 2m: weights, nodes and their order are right."""
    params, data, matrix = net
    steps = 4
    density = landscape.spectral_density(
        net_loss, params, data, jax.random.key(3), num_matvecs=steps, num_probes=3
    )
    np.testing.assert_allclose(jnp.sum(density.weights, axis=1), 1.0, rtol=1e-12)
    for row, probe in enumerate(signs(jax.random.key(3), 3, len(matrix))):
        for order in range(2 * steps + 1):
            expected = probe @ np.linalg.matrix_power(matrix, order) @ probe / len(matrix)
            got = density.weights[row] @ density.nodes[row] ** order
            assert np.isclose(got, expected, rtol=1e-9) == (order < 2 * steps), order
    np.testing.assert_allclose(
        density.moment(1).mean, np.mean(np.sum(density.weights * density.nodes, axis=1))
    )


def test_moments_of_a_network_lie_within_their_errors(net, x64):
    """tr Hʲ/P for j = 1 … 4 from 40 probes: within 4 standard errors, which are as large as theory has it for j = 1."""
    params, data, matrix = net
    density = landscape.spectral_density(
        net_loss, params, data, jax.random.key(0), num_matvecs=10, num_probes=40
    )
    size = len(matrix)
    for order in range(1, 5):
        mean, error = density.moment(order)
        assert abs(mean - np.trace(np.linalg.matrix_power(matrix, order)) / size) < 4 * error
        power = np.linalg.matrix_power(matrix, order)
        variance = 2 * (np.sum(power**2) - np.sum(np.diag(power) ** 2)) / size**2 / 40
        assert 0.5 < error / np.sqrt(variance) < 2  # the spread of 40 numbers is known to a ninth
    assert density.moment(0).mean == pytest.approx(1.0)


def test_the_density_is_that_of_the_spectrum_broadened(net, x64):
    """With as many steps as parameters a probe's curve is Σ (vᵢ²/P) bells; the mean is within its errors."""
    params, data, matrix = net
    values, vectors = np.linalg.eigh(matrix)
    density = landscape.spectral_density(
        net_loss, params, data, jax.random.key(1), num_matvecs=99, num_probes=30
    )
    assert density.nodes.shape == (30, len(matrix))
    grid, width = np.asarray(density.grid), float(density.bandwidth)
    np.testing.assert_allclose(width, (values[-1] - values[0]) / 100, rtol=1e-6)
    bells = np.exp(-0.5 * ((grid[:, None] - values) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    weights = [(vectors.T @ probe) ** 2 / len(matrix) for probe in signs(jax.random.key(1), 30, len(matrix))]
    np.testing.assert_allclose(density.density.mean, np.mean(weights @ bells.T, axis=0), atol=1e-7)
    np.testing.assert_allclose(np.trapezoid(density.density.mean, grid), 1.0, atol=1e-3)
    error = np.abs(density.density.mean - bells.mean(axis=1)) / (density.density.probe_error + 1e-12)
    assert np.mean(error > 4) < 0.01
    for threshold in (0.05, 0.5):
        mean, error = density.share_within(threshold)
        assert abs(mean - np.mean(np.abs(values) <= threshold)) < 4 * error + 1e-9
        mean, error = density.share_above(threshold)
        assert abs(mean - np.mean(values > threshold)) < 4 * error + 1e-9


@pytest.mark.parametrize("name", ["identity", "zero", "low rank"])
def test_exhausted_krylov_spaces(name):
    """Few distinct eigenvalues: the moments and shares of the true spectrum, though more steps were asked for."""
    spectrum = {
        "identity": np.ones(SIZE),
        "zero": np.zeros(SIZE),
        "low rank": np.repeat([0.0, 2.0, 5.0], [38, 1, 1]),
    }
    values, examples = spectrum[name], data_for(spectrum[name])
    density = landscape.spectral_density(
        quadratic, jnp.zeros(SIZE), examples, 0, num_matvecs=12, num_probes=50
    )
    for order in (1, 2, 3):
        mean, error = density.moment(order)
        assert abs(mean - np.mean(values**order)) <= 4 * error + 1e-5
    mean, error = density.share_within(0.5)
    assert abs(mean - np.mean(values <= 0.5)) <= 4 * error + 1e-5
    assert np.all(np.isfinite(density.density.mean))
    np.testing.assert_allclose(np.trapezoid(density.density.mean, density.grid), 1.0, atol=1e-3)


def test_intervals_cover(x64):
    """95 % intervals of 20 probes, over 200 seeds, for the moments: as often as Student's t says."""
    spectrum = np.append(np.linspace(0.0, 1.0, SIZE - 3), [3.0, 4.0, 6.0])
    examples = data_for(spectrum)

    def one(key):
        density = landscape.spectral_density(
            quadratic, jnp.zeros(SIZE), examples, key, num_matvecs=4, num_probes=20, num_points=2
        )
        return jnp.stack([jnp.stack(density.moment(order).interval()) for order in (1, 2, 3)])

    got = np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(9), 200)))
    expected = 0.935  # P(|t₁₉| ≤ 1.96)
    for order in (1, 2, 3):
        low, high = got[:, order - 1].T
        covered = np.mean((low <= np.mean(spectrum**order)) & (np.mean(spectrum**order) <= high))
        # Squares of signs are skew: the interval covers a little less.
        assert abs(covered - expected) < 4 * np.sqrt(expected * (1 - expected) / 200) + 0.02


@pytest.mark.slow
def test_batch_errors_are_the_spread_over_data_sets():
    """The delta method against brute force: the dense spectra of 200 data sets of 2,000 examples each."""
    scales = jnp.sqrt(jnp.array([0.2, 0.4, 0.5, 1.0, 1.5, 2.0]))
    grid = jnp.linspace(0.0, 3.0, 9)
    bell = lambda value: jax.scipy.stats.norm.pdf(grid, value, 0.4)
    step = lambda value: (
        jax.scipy.stats.norm.cdf(1.2 - value, scale=0.3) - jax.scipy.stats.norm.cdf(-1.2 - value, scale=0.3)
    )

    def one(key):
        data = jax.random.normal(key, (2000, 6)) * scales[None]
        values = jnp.linalg.eigvalsh(data.T @ data / 2000)
        true = (jnp.mean(jax.vmap(bell)(values), 0), jnp.mean(values**2), jnp.mean(step(values)))
        density = landscape.spectral_density(
            *(quadratic, jnp.zeros(6), data, key),
            **{"num_matvecs": 6, "num_probes": 64, "batch_size": 100, "bandwidth": 0.4, "grid": grid},
        )
        estimates = (density.density, density.moment(2), density.share_within(1.2, width=0.3))
        return true, tuple(estimate.batch_error for estimate in estimates)

    true, errors = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(6), 200))
    for values, error in zip(true, errors, strict=True):
        spread = np.std(values, axis=0, ddof=1)
        mean = np.sqrt(np.mean(np.square(error), axis=0))
        # A spread of 200 is known to 1/√400. Probes add √(1 + c/64), c = 10 measured with other numbers of them.
        np.testing.assert_allclose(mean, spread, rtol=4 / np.sqrt(400) + 0.08)


@pytest.mark.slow
def test_a_loader_gives_what_arrays_give(net):
    """Nodes, weights and every error, to rounding; the cut changes the batch error alone."""
    params, data, _ = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), net)
    run = functools.partial(landscape.spectral_density, net_loss, params, num_matvecs=5, num_probes=2)
    arrays, loader = run(data, 0, batch_size=10), run(loader_of(data, 10), 0)
    whole = run(data, 0)
    assert arrays.sensitivities.shape == (4, 2, 5)
    assert whole.density.batch_error is None
    for order in (1, 2):
        got, expected, plain = (density.moment(order) for density in (loader, arrays, whole))
        np.testing.assert_allclose(got.mean, expected.mean, rtol=1e-4)
        np.testing.assert_allclose(plain.mean, expected.mean, rtol=1e-4)
        np.testing.assert_allclose(got.batch_error, expected.batch_error, rtol=1e-2)
    # The batches' sensitivities add up to those of the whole, τ²θ.
    total = jnp.einsum("b,bpi->pi", arrays.shares, arrays.sensitivities)
    np.testing.assert_allclose(total, arrays.weights * arrays.nodes, atol=1e-4 * jnp.max(jnp.abs(total)))
    assert arrays.share_within(0.1).batch_error is None
    assert np.isnan(run(data, 0, num_probes=1).density.probe_error).all()


def test_nothing_is_compiled_twice(net):
    params, data, _ = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), net)
    traces = []

    def counted(params, batch):
        traces.append(1)
        return net_loss(params, batch)

    for source in (data, loader_of(data, 37)):
        run = functools.partial(landscape.spectral_density, counted, num_matvecs=2, num_probes=2)
        run(params, source, jax.random.key(0))
        before = len(traces)
        run(jax.tree.map(lambda leaf: 2 * leaf, params), source, jax.random.key(1))
        assert len(traces) == before


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_matvecs": 0}, ValueError, "num_matvecs must be at least 1"),
        ({"num_probes": 0}, ValueError, "num_probes must be at least 1"),
        ({"bandwidth": 0.0}, ValueError, "bandwidth must be positive"),
        ({"grid": jnp.zeros((2, 2))}, ValueError, "grid must be an array of one axis"),
        ({"loss_fn": lambda w, x: x @ w}, ValueError, "loss_fn must return a scalar loss"),
        ({"data": jnp.zeros((0, 3))}, ValueError, "at least one example"),
        ({"params": jnp.zeros(3, int)}, TypeError, "params has dtype int32"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"loss_fn": quadratic, "params": jnp.zeros(3), "data": jnp.eye(3), "key": 0} | change
    with pytest.raises(error, match=message):
        landscape.spectral_density(**arguments)
