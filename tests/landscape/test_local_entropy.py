"""u(x, t) − f(x) against Gaussian closed forms and quadrature, bounds, invariance, coverage, batches, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxopt_pde import landscape, smoothing
from jaxopt_pde.landscape._tempered_chains import rungs

TOGETHER = {"num_chains": 64, "chains_at_once": 64}


def quadratic(params, batch):
    """½ xᵀ diag(mean of the batch) x, for rows of curvatures."""
    return jnp.sum(jnp.mean(batch, axis=0) * params**2) / 2


def closed_form(curvatures, x, time, temperature):
    smoothed = smoothing.gaussian(
        jnp.diag(curvatures), jnp.zeros_like(x), x, smoothing_time=time, temperature=temperature
    )
    return float(smoothed.value - jnp.sum(curvatures * x**2) / 2)


def problem(dimension):
    curvatures = jnp.geomspace(0.1, 10.0, dimension) if dimension > 1 else jnp.ones(1)
    return curvatures, jnp.full(dimension, 0.3)


@pytest.mark.parametrize("dimension", [1, 10, 200])
def test_thermodynamic_integration_is_right_in_any_dimension(dimension):
    curvatures, x = problem(dimension)
    estimate = landscape.local_entropy(
        quadratic, x, curvatures[None], 0, smoothing_time=1.0, temperature=0.1, **TOGETHER
    )
    expected = closed_form(curvatures, x, 1.0, 0.1)
    # t·λ ≤ 10, where the rule's relative error is below 1e-4.
    assert abs(estimate.mean - expected) < 4 * estimate.standard_error + 1e-4 * abs(expected)
    # As many independent draws of f(y) itself would know its mean less well.
    variance = 0.1 * jnp.sum((curvatures * x) ** 2) + 0.1**2 * jnp.sum(curvatures**2) / 2
    assert estimate.standard_error < np.sqrt(variance / (64 * 30))
    assert estimate.info["num_gradients"] == 64 * (2 + 8 * 50)
    # At the last node E_ρ f − f(x), of the Gaussian ρ with mean x/(1 + λ) and variance T/(1 + λ).
    mean, spread = x / (1 + curvatures), 0.1 / (1 + curvatures)
    energies = curvatures * (mean**2 + spread - x**2) / 2
    deviation = jnp.sqrt(jnp.sum(curvatures**2 * (spread * mean**2 + spread**2 / 2)))
    error = deviation / jnp.sqrt(estimate.info["effective_sample_size"][-1])
    assert abs(estimate.info["integrand"][-1] - energies.sum()) < 4 * error


def test_cole_hopf_is_right_in_few_dimensions_and_biased_upwards_in_many():
    run = lambda curvatures, x, temperature: landscape.local_entropy(
        quadratic, x, curvatures[None], 0, smoothing_time=1.0, temperature=temperature, method="cole_hopf",
        num_samples=4000, chains_at_once=2000,
    )  # fmt: skip
    for dimension, temperature in ((1, 0.1), (10, 1.0)):
        curvatures, x = problem(dimension)
        estimate = run(curvatures, x, temperature)
        assert estimate.info["effective_sample_size"] > 50
        expected = closed_form(curvatures, x, 1.0, temperature)
        assert abs(estimate.mean - expected) < 4 * estimate.standard_error
        assert estimate.info["num_losses"] == 4001
    curvatures, x = problem(200)
    estimate = run(curvatures, x, 0.1)
    assert estimate.info["effective_sample_size"] < 10
    assert estimate.mean > closed_form(curvatures, x, 1.0, 0.1) + 10 * estimate.standard_error


TIMES = np.array([0.1, 0.5, 2.0])


@pytest.mark.parametrize("method", ["thermodynamic", "cole_hopf"])
def test_a_double_well_by_quadrature(method):
    """From the ridge's side into both wells, in profile over t."""
    well = lambda x: jnp.sum((x**2 - 1) ** 2)
    loss = lambda x, batch: jnp.mean(batch) * well(x)
    x = jnp.array([0.3])
    estimate = landscape.local_entropy(
        loss, x, jnp.ones(2), 1, smoothing_time=TIMES, temperature=0.5, method=method, num_chains=256,
        num_samples=20_000, chains_at_once=10_000,
    )  # fmt: skip
    exact = [smoothing.quadrature(well, x, smoothing_time=t, temperature=0.5).value for t in TIMES]
    errors = np.abs(estimate.mean - (np.asarray(exact) - well(x)))
    bias = estimate.info["quadrature_error"] if method == "thermodynamic" else 0.0
    assert np.all(errors < 4 * estimate.standard_error + bias)
    assert np.all(estimate.standard_error < 0.02)


def test_scaled_noise_is_the_relaxation_of_the_scaled_problem():
    """With y = x + s⊙z it is that of z -> f(x + s⊙z) at z = 0, a quadratic again."""
    kernel = jnp.array([[1.0, 2.0], [3.0, -4.0], [0.5, 1.0]])
    s = jnp.broadcast_to(jnp.sqrt(jnp.mean(kernel**2, axis=0, keepdims=True)), kernel.shape).reshape(-1)
    loss = lambda p, batch: jnp.mean(batch) * jnp.sum(p**2) / 2
    estimate = landscape.local_entropy(
        loss, kernel, jnp.ones(3), 0, smoothing_time=0.2, temperature=0.5, scale="filter", **TOGETHER
    )
    exact = smoothing.gaussian(
        jnp.diag(s**2), -s * kernel.reshape(-1), jnp.zeros(6), smoothing_time=0.2, temperature=0.5
    )
    assert abs(estimate.mean - exact.value) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.05 * abs(exact.value)


def test_it_solves_the_viscous_hamilton_jacobi_equation():
    """u_t = −½|∇u|² + (T/2) Δu, the left side by differentiating the samples' formula in t."""
    curvatures, x = problem(3)
    exact = smoothing.gaussian(jnp.diag(curvatures), jnp.zeros(3), x, smoothing_time=0.3, temperature=0.4)
    expected = -jnp.sum(exact.gradient**2) / 2 + 0.4 / 2 * jnp.trace(exact.info["hessian"])
    u = lambda time, key: landscape.local_entropy(
        quadratic, x, curvatures[None], key, smoothing_time=time, temperature=0.4, method="cole_hopf",
        num_samples=2000, chains_at_once=1000,
    ).mean  # fmt: skip
    slopes = jax.vmap(jax.grad(u), in_axes=(None, 0))(jnp.array(0.3), jax.random.split(jax.random.key(0), 16))
    assert abs(slopes.mean() - expected) < 4 * slopes.std(ddof=1) / np.sqrt(16)


def test_bounds_and_profile():
    """min f − f ≤ u − f ≤ E f(y) − f (Jensen); at a minimum it grows with t, elsewhere it may fall."""
    curvatures, x = problem(10)
    # σ² is the same for all: t·T = 0.1 at rising T.
    mean = landscape.expected_sharpness(
        quadratic,
        x,
        curvatures[None],
        0,
        sigma=np.sqrt(0.1),
        num_samples=1000,
        scale="none",
        samples_at_once=500,
    )
    run = lambda x, **settings: landscape.local_entropy(
        quadratic, x, curvatures[None], 0, **settings, **TOGETHER
    )
    heat = [run(x, smoothing_time=0.1 / T, temperature=T) for T in (0.05, 0.5, 50.0)]
    lowest = -float(quadratic(x, curvatures[None]))
    values = [float(h.mean) for h in heat]
    assert lowest < values[0] < values[1] < values[2]
    assert values[1] < mean.mean
    # T → ∞: u = E f − Var f/(2T), with Var f below 1 here.
    assert abs(values[2] - mean.mean) < 4 * np.hypot(mean.standard_error, heat[2].standard_error) + 1 / 100
    profile = run(jnp.zeros(10), smoothing_time=[0.1, 0.4, 1.6], temperature=0.1)
    assert np.all(profile.mean[:-1] + 3 * profile.standard_error[:-1] < profile.mean[1:])
    assert profile.mean[0] > 0


@pytest.mark.parametrize("method", ["thermodynamic", "cole_hopf"])
def test_intervals_cover(method):
    """Four chains and Student's quantile, or 200 pairs and the normal one, over 300 keys, under jit and vmap."""
    curvatures, x = problem(2)

    @jax.jit
    @jax.vmap
    def estimates(key):
        return landscape.local_entropy(
            quadratic, x, curvatures[None], key, smoothing_time=0.3, temperature=0.5, method=method, num_samples=400,
            num_chains=4, num_nodes=5, num_steps=20, num_burn_in=10, chains_at_once=200,
        )  # fmt: skip

    quantile = scipy.stats.t(3).ppf(0.975) if method == "thermodynamic" else 1.96
    found = estimates(jax.random.split(jax.random.key(1), 300))
    low, high = found.interval(quantile)
    covered = np.mean((low < (exact := closed_form(curvatures, x, 0.3, 0.5))) & (exact < high))
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 300)
    # The variance over the keys is that reported, within four relative errors of the two, of 299 and at least
    # 300 · 3 degrees of freedom.
    ratio = np.mean(np.asarray(found.standard_error) ** 2) / np.var(found.mean, ddof=1)
    assert abs(ratio - 1) < 4 * np.sqrt(2 / 299 + 2 / 900)


def network(params, batch):
    hidden = jax.nn.relu(batch @ params["in"] + params["bias"][None])
    return jnp.mean((hidden @ params["out"] - 1.0) ** 2)


@pytest.mark.parametrize("scale", ["filter", "elementwise", "none"])
def test_rescaled_layers(scale):
    keys = jax.random.split(jax.random.key(3), 4)
    params = {
        "in": jax.random.normal(keys[0], (4, 6)),
        "bias": jax.random.normal(keys[1], (6,)),
        "out": jax.random.normal(keys[2], (6, 2)),
    }
    rescaled = {"in": 4 * params["in"], "bias": 4 * params["bias"], "out": params["out"] / 4}
    values = [
        landscape.local_entropy(
            network, p, jax.random.normal(keys[3], (8, 4)), 0, smoothing_time=0.1, temperature=0.1, scale=scale,
            num_chains=2, num_nodes=3, num_steps=4, num_burn_in=3, chains_at_once=2,
        ).mean
        for p in (params, rescaled)
    ]  # fmt: skip
    if scale == "none":
        assert abs(values[1] / values[0] - 1) > 0.1
    else:
        assert values[1] == pytest.approx(float(values[0]), rel=1e-2)  # the same chains, but for rounding


FACTORS = np.array([0.5, 1.0, 1.5, 0.8, 1.2, 0.4, 1.6])


@pytest.mark.parametrize("method", ["thermodynamic", "cole_hopf"])
def test_batches_leave_the_mean_and_give_an_error(method):
    """The error is |d(u − f)/dc| times that of c, by which the curvatures of all rows differ."""
    curvatures, x = problem(2)
    rows = jnp.asarray(FACTORS[:, None] * np.asarray(curvatures), jnp.float32)
    run = lambda data, size: landscape.local_entropy(
        quadratic, x, data, 0, smoothing_time=0.5, temperature=0.5, method=method, num_samples=4000,
        chains_at_once=64, num_chains=64, num_steps=20, batch_size=size,
    )  # fmt: skip
    whole, cut = run(rows, None), run(rows, 3)
    # Rounding moves a few accept decisions of the chains.
    np.testing.assert_allclose(cut.mean, whole.mean, rtol=1e-4, atol=0.5 * float(whole.probe_error))
    assert whole.batch_error is None
    factors, shares = np.array([1.0, 0.8, 1.6]), np.array([3, 3, 1]) / 7
    slope = (closed_form(1.01 * curvatures, x, 0.5, 0.5) - closed_form(0.99 * curvatures, x, 0.5, 0.5)) / 0.02
    expected = abs(slope) * np.sqrt(np.sum((shares * (factors - 1)) ** 2) / (1 - np.sum(shares**2)))
    assert cut.batch_error == pytest.approx(expected, rel=0.1)
    assert cut.standard_error == pytest.approx(np.hypot(cut.probe_error, cut.batch_error), rel=1e-5)
    loader = lambda: iter([rows[:3], rows[3:6], rows[6:]])
    if method == "cole_hopf":
        loaded = run(loader, None)
        np.testing.assert_allclose([*loaded], [*cut], rtol=1e-4)
    else:
        with pytest.raises(ValueError, match="data must be arrays with method='thermodynamic'"):
            run(loader, None)


def test_the_rule_and_its_coarse_part_integrate_polynomials():
    """In z = λ^⅓, n Radau nodes to degree 2n − 2 and n − 1 of them to degree n − 2, less the z² of dλ."""
    for number in (2, 5, 8):
        rule = rungs(number)
        for weights, degree in ((rule.weights, 2 * number - 4), (rule.coarse, number - 4)):
            for power in range(degree + 1):
                integral = weights @ rule.nodes ** (power / 3)
                assert integral == pytest.approx(3 / (power + 3), rel=1e-10)
        assert rule.coarse[number // 2] == 0
        assert rule.nodes[-1] == 1


def test_gradients_are_counted_and_a_second_call_compiles_nothing():
    calls, traces = [], []

    def loss(params, batch):
        traces.append(1)
        jax.debug.callback(lambda _: calls.append(1), params[0])
        return quadratic(params, batch)

    def run(factor):
        return landscape.local_entropy(
            loss, factor * jnp.ones(2), factor * jnp.ones((4, 2)), 0, smoothing_time=[0.1 * factor, 1.0],
            temperature=factor, num_chains=2, num_nodes=3, num_steps=2, num_burn_in=1,
        )  # fmt: skip

    estimate = jax.block_until_ready(run(1.0))
    jax.effects_barrier()
    assert len(calls) == estimate.info["num_gradients"] + estimate.info["num_losses"]
    before = len(traces)
    run(2.0)
    assert len(traces) == before


def test_a_loss_that_is_infinite_far_out_is_a_constraint():
    """f = 0 on |x| < 1, ∞ beyond: u = −T log P(|√(tT) ξ| < 1), in one batch or two."""
    loss = lambda p, batch: jnp.mean(batch) * jnp.where(jnp.sum(p**2) < 1, 0.0, jnp.inf)
    expected = -0.5 * np.log(scipy.stats.norm.cdf(1 / np.sqrt(0.5)) * 2 - 1)
    samples = landscape.local_entropy(
        loss, jnp.zeros(1), jnp.ones(2), 0, smoothing_time=1.0, temperature=0.5, method="cole_hopf",
        num_samples=4000, chains_at_once=2000, batch_size=1,
    )  # fmt: skip
    assert abs(samples.mean - expected) < 4 * samples.probe_error
    assert samples.batch_error == 0  # f_b = 0 wherever the weight is not


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"smoothing_time": 0.0}, "smoothing_time must be positive"),
        ({"smoothing_time": [0.1, -1.0]}, "smoothing_time must be positive"),
        ({"smoothing_time": []}, "smoothing_time must be a number or a 1-D array"),
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"method": "langevin"}, "method must be one of"),
        ({"num_chains": 1}, "num_chains must be at least 2"),
        ({"num_nodes": 1}, "num_nodes must be at least 2"),
        ({"num_samples": 5}, "num_samples must be even"),
        ({"scale": "layer"}, "scale must be one of"),
        ({"data": jnp.zeros((0, 3))}, "at least one example"),
        ({"data": {}}, "must hold arrays"),
        ({"loss_fn": lambda p, b: p}, "scalar loss"),
        ({"params": jnp.arange(3)}, "floating"),
    ],
)
def test_bad_input(changes, message):
    arguments = {"loss_fn": quadratic, "params": jnp.ones(3), "data": jnp.ones((2, 3)), "key": 0}
    with pytest.raises((ValueError, TypeError), match=message):
        landscape.local_entropy(**(arguments | {"smoothing_time": 1.0, "temperature": 1.0} | changes))
