"""The Langevin estimator against closed forms: the chain's own theory on quadratics, and Gibbs averages."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde.smoothing import langevin

ESTIMATORS = ["displacement", "gradient", "control_variate"]


def gibbs_gradient(loss, x, t, temperature):
    """∇u of a 1-D loss by the trapezoid rule for E[(x − y)/t] under ρ ∝ exp(−(f(y) + (x − y)²/(2t))/T)."""
    y = np.linspace(x - 12, x + 12, 200_001)
    exponent = -(loss(y) + (x - y) ** 2 / (2 * t)) / temperature
    weights = np.exp(exponent - exponent.max())
    return float(np.sum(weights * (x - y)) / np.sum(weights) / t)


class Chain:
    """Exact mean and variance of every estimator on f = ½ Σ λᵢ yᵢ², mode by mode, y₀ = x.

    The chain is linear, y_l = r^l x + Σ_j s r^(l−1−j) ξ_j, with r = 1 − ε(λ + 1/t) for a minimum at 0 (so the fixed
    point x/(1 + tλ) is subtracted first). An average over visited l with weights w_l is then Gaussian with a
    mean and a variance that are finite sums over the j.
    """

    def __init__(self, eigenvalues, x, t, temperature, step_size, num_steps, averaging=None):
        self.lam, self.x, self.t = eigenvalues, x, t
        self.r = 1 - step_size * (eigenvalues + 1 / t)
        self.scale = np.sqrt(2 * step_size * temperature)
        self.fixed = x / (1 + t * eigenvalues)
        self.exact = eigenvalues * self.fixed
        burn = num_steps // 2
        if averaging is None:
            self.weights = np.where(np.arange(num_steps) >= burn, 1 / (num_steps - burn), 0)
            self.start = 0.0
        else:
            self.weights = (1 - averaging) * averaging ** np.arange(num_steps - 1, -1, -1.0)
            self.start = averaging**num_steps

    def mean_position(self, offset):
        """Mean over l of y_(l+offset): (expectation, coefficients of the noises ξ_j [L, d])."""
        steps = len(self.weights)
        times = np.arange(steps) + offset
        e = self.start * self.x + sum(
            w * (self.fixed + self.r**l * (self.x - self.fixed))
            for w, l in zip(self.weights, times, strict=True)
        )
        noise = np.zeros((steps + 1, len(self.lam)))
        for w, l in zip(self.weights, times, strict=True):
            for j in range(l):
                noise[j] += w * self.scale * self.r ** (l - 1 - j)
        return e, noise

    def relative_rmse(self, estimator, num_chains, coefficient=0.0):
        old, old_noise = self.mean_position(0)
        new, new_noise = self.mean_position(1)
        if estimator == "displacement":
            mean, noise = (self.x - new) / self.t, -new_noise / self.t
        elif estimator == "gradient":
            mean, noise = self.lam * old, self.lam * old_noise
        else:
            factor = coefficient * self.lam - (1 - coefficient) / self.t
            mean, noise = (1 - coefficient) * self.x / self.t + factor * old, factor * old_noise
        variance = np.sum(noise**2) / num_chains
        return np.sqrt(np.sum((mean - self.exact) ** 2) + variance) / np.linalg.norm(self.exact)


LAM = np.geomspace(0.02, 10, 50)
SETTING = {"smoothing_time": 1.0, "temperature": 1 / 50, "step_size": 0.1}
BUDGET = [(1, 400), (4, 100), (10, 40), (20, 20), (40, 10), (100, 4)]


def measure(num_chains, num_steps, x, repeats=60, **options):
    """Relative RMSE over ``repeats`` keys of the estimate on the anisotropic quadratic of 50 dimensions."""
    lam, x = jnp.asarray(LAM), jnp.asarray(x)

    @jax.jit
    @jax.vmap
    def run(key):
        return langevin(
            lambda y, step: lam * y, x, key, num_steps=num_steps, num_chains=num_chains, **SETTING, **options
        )

    smoothed = jax.device_get(run(jax.vmap(jax.random.key)(jnp.arange(100, 100 + repeats))))
    exact = LAM * np.asarray(x) / (1 + LAM)
    errors = np.sum((smoothed.gradient - exact) ** 2, axis=1)
    return np.sqrt(errors.mean()) / np.linalg.norm(exact), smoothed


@pytest.mark.parametrize(
    ("noise", "num_chains", "num_steps"),
    [
        *(
            pytest.param("gaussian", *split, marks=[pytest.mark.slow] if split in BUDGET[1::2] else [])
            for split in BUDGET
        ),
        ("rademacher", 20, 20),
        pytest.param("rademacher", 100, 4, marks=pytest.mark.slow),
    ],
)
def test_rmse_at_400_gradients_is_that_of_the_chains_own_theory(noise, num_chains, num_steps, x64):
    """Every estimator at every split of 400 gradients into chains and steps, within 10 %: 60 repeats, seeds 100-159."""
    x = 0.25 * np.ones(50)
    theory = Chain(LAM, x, 1.0, 1 / 50, 0.1, num_steps)
    curvature = LAM.mean()
    for estimator in ESTIMATORS:
        options = {"curvature": curvature} if estimator == "control_variate" else {}
        measured, _ = measure(num_chains, num_steps, x, estimator=estimator, noise=noise, **options)
        expected = theory.relative_rmse(estimator, num_chains, 1 / (1 + curvature))
        assert measured == pytest.approx(expected, rel=0.1), estimator
    exponential = Chain(LAM, x, 1.0, 1 / 50, 0.1, num_steps, averaging=0.75)
    measured, _ = measure(num_chains, num_steps, x, estimator="displacement", averaging=0.75, noise=noise)
    assert measured == pytest.approx(exponential.relative_rmse("displacement", num_chains), rel=0.1)


@pytest.mark.parametrize(
    ("num_chains", "num_steps"),
    [pytest.param(*split, marks=[pytest.mark.slow] if split in BUDGET[::2] else []) for split in BUDGET],
)
@pytest.mark.parametrize("size", [pytest.param(0.25, marks=pytest.mark.slow), 1.0])
def test_the_estimated_control_variate_beats_both_others(num_chains, num_steps, size, x64):
    """With c found from the chains alone. Several chains of 20 steps or more do no worse than 1.1 times the known
    c = 1/(1 + t tr(A)/d); a single chain, whose c is noisy, is only asked to be the best of the three.
    """
    x = size * np.ones(50)
    rmse = {estimator: measure(num_chains, num_steps, x, estimator=estimator)[0] for estimator in ESTIMATORS}
    assert rmse["control_variate"] < (0.9 if num_chains > 1 else 1.0) * min(
        rmse["displacement"], rmse["gradient"]
    )
    if num_steps >= 20 and num_chains > 1:
        known, _ = measure(num_chains, num_steps, x, estimator="control_variate", curvature=LAM.mean())
        assert rmse["control_variate"] < 1.1 * known


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_estimate_is_within_four_standard_errors_of_the_closed_form(estimator, x64):
    """A dense quadratic with linear term and an indefinite Hessian; long chains, so that the bias is negligible."""
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    A = basis @ np.diag([-0.4, 0.1, 0.5, 2.0, 5.0]) @ basis.T
    b, x, t = rng.normal(size=5), rng.normal(size=5), 0.9
    exact = np.linalg.solve(np.eye(5) + t * A, A @ x - b)
    smoothed = langevin(
        lambda y, step: A @ y - b, jnp.asarray(x), jax.random.key(5), smoothing_time=t, temperature=0.5,
        step_size=0.1, num_steps=800, num_chains=64, burn_in=200, estimator=estimator,
    )  # fmt: skip
    error = np.linalg.norm(smoothed.gradient - exact)
    assert error < 4 * smoothed.info["standard_error"]
    assert smoothed.info["standard_error"] < 0.1 * np.linalg.norm(exact)
    assert int(smoothed.num_gradients) == 800 * 64


def test_the_standard_error_is_that_of_repeated_runs(x64):
    x = 0.25 * np.ones(50)
    for estimator in ESTIMATORS:
        _, smoothed = measure(20, 20, x, repeats=200, estimator=estimator)
        spread = np.sqrt(np.sum(np.var(smoothed.gradient, axis=0, ddof=1)))
        reported = np.sqrt(np.mean(smoothed.info["standard_error"] ** 2))
        assert reported == pytest.approx(spread, rel=0.05)
    assert np.isnan(measure(1, 20, x, repeats=2)[1].info["standard_error"]).all()


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
def test_the_particles_have_the_variance_of_the_gibbs_density(momentum, noise, x64):
    """Stationary covariance T M⁻¹ (I − εM/2)⁻¹ without momentum, T M⁻¹ + O(ε) with: a wrong factor 2 fails."""
    lam, t, temperature, step_size = jnp.array([0.5, 3.0]), 1.0, 0.3, 0.02
    smoothed = langevin(
        lambda y, step: lam * y,
        jnp.zeros(2),
        jax.random.key(0),
        smoothing_time=t,
        temperature=temperature,
        step_size=step_size,
        num_steps=250,
        num_chains=20_000,
        momentum=momentum,
        noise=noise,
    )  # fmt: skip  (250 steps: the variance of the start has fallen by exp(-15))
    M = np.asarray(lam) + 1 / t
    expected = temperature / M / (1 - step_size * M / 2) if momentum == 0.0 else temperature / M
    measured = np.var(smoothed.positions, axis=0)
    standard_error = expected * np.sqrt(2 / 20_000)
    slack = 0.0 if momentum == 0.0 else step_size * M * expected
    assert np.all(np.abs(measured - expected) < 4.5 * standard_error + slack)


def test_minibatch_noise_adds_half_the_step_times_its_variance_to_the_temperature(x64):
    """With gradient covariance C the temperature is in effect T + εC/2, and the variance that over M (1 − εM/2)."""
    step_size, temperature, noise = 0.1, 0.02, 0.7
    smoothed = langevin(
        lambda y, step: 2.0 * y + jnp.sqrt(noise) * jax.random.normal(step.key, y.shape), jnp.zeros(1),
        jax.random.key(0), smoothing_time=1.0, temperature=temperature, step_size=step_size, num_steps=100,
        num_chains=40_000,
    )  # fmt: skip
    expected = (temperature + step_size * noise / 2) / 3.0 / (1 - step_size * 3.0 / 2)
    assert float(np.var(smoothed.positions)) == pytest.approx(expected, rel=4.5 * np.sqrt(2 / 40_000))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_agrees_with_the_gibbs_average_on_a_double_well(estimator, x64):
    """f = ½ (y² − 1)² + y/5 by quadrature; ε = 0.005 leaves an O(ε) bias, allowed for by its size at ε = 0.02."""
    loss = lambda y: 0.5 * (y**2 - 1) ** 2 + 0.2 * y
    x, t, temperature = 1.4, 0.3, 0.4
    exact = gibbs_gradient(loss, x, t, temperature)

    def run(step_size):
        return langevin(
            lambda y, step: jax.grad(loss)(y), jnp.array(x), jax.random.key(2), smoothing_time=t,
            temperature=temperature, step_size=step_size, num_steps=int(6 / step_size), num_chains=2000,
            burn_in=int(2 / step_size), estimator=estimator,
        )  # fmt: skip

    fine, coarse = run(0.005), run(0.02)
    allowed = 4 * fine.info["standard_error"] + abs(coarse.gradient - exact) / 2
    assert abs(fine.gradient - exact) < allowed
    assert abs(coarse.gradient - exact) < 0.05 * abs(exact) + 4 * coarse.info["standard_error"]


def test_without_noise_the_estimate_is_the_gradient_of_the_moreau_envelope(x64):
    """p = ∇u solves p = f'(x − t p). With f' = tanh(1000 y), nearly |y|, u is nearly the Huber function."""
    x, t = np.array([-2.0, -0.3, 0.1, 0.4, 3.0]), 0.5
    smoothed = langevin(
        lambda y, step: jnp.tanh(1000 * y), jnp.asarray(x), 0, smoothing_time=t, temperature=0.0, step_size=1e-3,
        num_steps=20_000, estimator="displacement",
    )  # fmt: skip
    p = np.asarray(smoothed.gradient)
    np.testing.assert_allclose(p, np.tanh(1000 * (x - t * p)), atol=1e-6)
    np.testing.assert_allclose(p, np.clip(x / t, -1, 1), atol=np.arctanh(0.8) / 1000 / t + 1e-6)


def test_at_temperature_zero_no_random_number_is_drawn_for_the_steps():
    def program(temperature):
        return str(
            jax.make_jaxpr(
                lambda key: (
                    langevin(
                        lambda y, step: y,
                        jnp.ones(3),
                        key,
                        smoothing_time=1.0,
                        temperature=temperature,
                        step_size=0.1,
                    ).gradient
                )
            )(jax.random.key(0))
        )

    assert "random_bits" not in program(0.0)
    assert "random_bits" in program(1e-9)


def test_warm_started_chains_forget_nothing(x64):
    """Two calls of 10 steps, the second from the first's positions, end where one of 20 steps ends at T = 0."""
    grad_fn = lambda y, step: jnp.sinh(y)
    settings = {"smoothing_time": 1.0, "temperature": 0.0, "step_size": 0.1, "num_chains": 2}
    params = {"a": jnp.array([1.0, -2.0])}
    tree_grad = lambda y, step: {"a": grad_fn(y["a"], step)}
    first = langevin(tree_grad, params, 0, num_steps=10, **settings)
    second = langevin(tree_grad, params, 0, num_steps=10, start=first.positions, **settings)
    once = langevin(tree_grad, params, 0, num_steps=20, **settings)
    chex.assert_trees_all_close(second.positions, once.positions, rtol=1e-12)
    with pytest.raises(ValueError, match="start gave a leaf of shape"):
        langevin(tree_grad, params, 0, start={"a": jnp.zeros((3, 2))}, **settings)


def test_differentiates_through_the_settings(x64):
    """d∇u/dt = −A² (I + tA)⁻² x on a quadratic, by reverse mode through the scan."""
    A, x = jnp.array([0.5, 2.0]), jnp.array([1.0, -1.0])
    estimate = lambda t: (
        langevin(
            lambda y, step: A * y, x, 0, smoothing_time=t, temperature=0.0, step_size=0.2, num_steps=300
        ).gradient
    )
    np.testing.assert_allclose(jax.jacrev(estimate)(0.7), -(A**2) * x / (1 + 0.7 * A) ** 2, rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"smoothing_time": 0.0}, "smoothing_time must be positive"),
        ({"temperature": -1.0}, "temperature must be finite and at least 0"),
        ({"step_size": float("nan")}, "step_size must be positive and finite, got nan"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"curvature": -1.0}, "curvature must be finite and at least 0"),
        ({"num_chains": 0}, "num_chains must be at least 1"),
        ({"averaging": 0.5, "burn_in": 2}, "burn_in=2 needs averaging=None"),
        ({"estimator": "mean"}, "one of 'displacement', 'gradient', 'control_variate', got 'mean'"),
        ({"noise": "none"}, "noise must be one of 'gaussian', 'rademacher'"),
        ({"smoothing_time": np.ones(2)}, "smoothing_time must be a scalar"),
        ({"num_chains": 2, "chain_batch_size": 0}, "chain_batch_size must be at least 1"),
    ],
)
def test_bad_settings_are_named(change, message):
    settings = {"smoothing_time": 1.0, "temperature": 0.1, "step_size": 0.1} | change
    with pytest.raises(ValueError, match=message):
        langevin(lambda y, step: y, jnp.ones(2), 0, **settings)


@pytest.mark.parametrize("value", ["1", None, True])
def test_what_is_no_number_is_a_type_error(value):
    with pytest.raises(TypeError, match="smoothing_time must be a number"):
        langevin(lambda y, step: y, jnp.ones(2), 0, smoothing_time=value, temperature=0.1, step_size=0.1)
