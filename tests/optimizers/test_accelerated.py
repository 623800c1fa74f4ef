"""Accelerated SGD: the paper's two-sequence form, its limits, and its exponents on random least squares."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import jaxopt_pde


def run(tx, params, gradients):
    state, path = tx.init(params), []
    for gradient in gradients:
        updates, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return np.asarray(path), state


@pytest.mark.parametrize(("kappa", "xi", "c"), [(1000.0, 10.0, 0.7), (4.0, 2.0, 0.7), (50.0, 3.0, 0.3)])
def test_it_is_the_papers_algorithm(kappa, xi, c, x64):
    """w̄ ← a w̄ + (1 − a)(w − κδ/c g); w ← c/(c + 1 − a) (w − δ g) + (1 − a)/(c + 1 − a) w̄, and its buffer form."""
    rng, delta = np.random.default_rng(0), 0.1
    matrices = rng.normal(size=(60, 5, 5))
    gradients = [lambda w, A=A: A @ A.T @ w / 10 + A[0] for A in matrices]
    w = average = buffered = buffer = rng.normal(size=5)
    tx = jaxopt_pde.accelerated_sgd(delta, long_step_ratio=kappa, statistical_advantage=xi, small_constant=c)
    path, state = run(tx, jnp.asarray(w), gradients)
    a = 1 - c**2 * xi / kappa
    for step, gradient in enumerate(gradients):
        g = gradient(w)
        average = a * average + (1 - a) * (w - kappa * delta / c * g)
        w = c / (c + 1 - a) * (w - delta * g) + (1 - a) / (c + 1 - a) * average
        g, b = gradient(buffered), 1 - a
        buffer = (1 - b) * buffer + b * (buffered - kappa * delta / c * g)
        buffered = (c * (buffered - delta * g) + b * buffer) / (c + b)
        np.testing.assert_allclose(path[step], w, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(buffered, w, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(state.displacement, average - w, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("limit", [{"statistical_advantage": 1e-9}, {"long_step_ratio": 1e12}])
def test_no_advantage_or_an_endless_long_step_is_sgd(limit, x64):
    gradients = [lambda w: jnp.array([1.0, 0.1]) * w] * 50
    start = jnp.array([1.0, -2.0])
    expected, _ = run(optax.sgd(0.3), start, gradients)
    settings = {"long_step_ratio": 100.0, "statistical_advantage": 5.0} | limit
    path, _ = run(jaxopt_pde.accelerated_sgd(0.3, **settings), start, gradients)
    np.testing.assert_allclose(path, expected, rtol=1e-6, atol=1e-9)


def one_step_matrices(curvature, log_step, log_ratio, log_advantage):
    """M0 and B of one coordinate (w, w̄ − w) → M0 + a² B, a² the squared feature; from the optimiser itself."""

    def step(state, squared_feature):
        tx = jaxopt_pde.accelerated_sgd(
            jnp.exp(log_step),
            long_step_ratio=jnp.exp(log_ratio),
            statistical_advantage=jnp.exp(log_advantage),
        )
        w, displacement = state
        before = tx.init(w)._replace(displacement=displacement)
        update, after = tx.update(squared_feature * w, before, w)
        return jnp.stack([w + update, after.displacement])

    jacobian = jax.jacobian(step)
    still, moved = (jacobian(jnp.zeros(2), x) for x in (jnp.array(0.0), jnp.asarray(curvature)))
    return still, moved - still


def test_without_noise_the_rate_is_the_square_root_of_the_condition_number(x64):
    """ξ = √κ on a fixed quadratic of condition number κ: steps an e-fold grow as √κ, and for ξ = 1 as κ."""
    compiled = jax.jit(one_step_matrices)

    def steps(kappa, xi):
        radii = []
        for curvature in np.geomspace(1 / kappa, 1, 9):
            still, change = compiled(curvature, 0.0, np.log(kappa), np.log(xi))
            radii.append(np.abs(np.linalg.eigvals(np.asarray(still + change))).max())
        return -1 / np.log(max(radii))

    slope = lambda xi: np.log(steps(4096.0, xi(4096.0)) / steps(64.0, xi(64.0))) / np.log(64)
    assert slope(np.sqrt) == pytest.approx(0.5, abs=0.1)
    assert slope(lambda kappa: 1.0) == pytest.approx(1.0, abs=0.1)


def radius(matrices):
    """Spectral radius of E[M ⊗ M] over features z e1 or z √(2/κ) e2, each half the time: E z² = 1, E z⁴ = 3."""
    worst = 0.0
    for still, change in matrices:
        kron = np.kron
        active = kron(still, still) + kron(still, change) + kron(change, still) + 3 * kron(change, change)
        worst = max(worst, np.abs(np.linalg.eigvals((active + kron(still, still)) / 2)).max())
    return worst


def steps_per_efold(make, kappa, starts):
    """Least steps an e-fold of E|w − w*|² over the parameters, all on a logarithmic scale."""
    curvatures = (1.0, 2.0 / kappa)

    def cost(parameters):
        value = radius([make(c, *parameters) for c in curvatures])
        return -1 / np.log(value) if value < 1 else 1e9

    options = {"maxiter": 400, "fatol": 1e-3, "xatol": 1e-3}
    return min(
        scipy.optimize.minimize(cost, start, method="Nelder-Mead", options=options).fun for start in starts
    )


def heavy_ball(curvature, log_step, log_momentum_gap):
    gap = np.exp(log_momentum_gap)
    momentum, step = 1 - min(gap, 1.0), np.exp(log_step)
    still = np.array([[1.0, momentum], [0.0, momentum]])
    return still, np.array([[-step * curvature, 0.0], [-step * curvature, 0.0]])


def test_it_accelerates_where_heavy_ball_does_not(x64):
    """Exponents of steps an e-fold against κ: about ½ for ASGD, about 1 for heavy ball, both at their best."""
    compiled = jax.jit(one_step_matrices)
    accelerated = lambda *arguments: jax.tree.map(np.asarray, compiled(*arguments))
    kappas, steps = (64.0, 1024.0), {"asgd": [], "hb": []}
    for kappa in kappas:
        start = [[np.log(0.3), np.log(kappa), np.log(kappa) / 2 - 1]]
        steps["asgd"].append(steps_per_efold(accelerated, kappa, start))
        steps["hb"].append(steps_per_efold(heavy_ball, kappa, [[np.log(0.3), np.log(0.5)]]))
    exponent = {name: np.log(s[1] / s[0]) / np.log(kappas[1] / kappas[0]) for name, s in steps.items()}
    assert exponent["asgd"] <= 0.55, steps
    assert exponent["hb"] >= 0.9, steps


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_displacement_has_the_accumulator_dtype(dtype):
    params = jnp.ones(3, jnp.bfloat16)
    tx = jaxopt_pde.accelerated_sgd(0.1, accumulator_dtype=dtype)
    updates, state = tx.update(params, tx.init(params), params)
    assert updates.dtype == jnp.bfloat16
    assert state.displacement.dtype == dtype


def test_a_nan_gradient_moves_nothing():
    params, tx = {"w": jnp.ones(3)}, jaxopt_pde.accelerated_sgd(0.1)
    _, state = tx.update(params, tx.init(params), params)
    updates, after = tx.update({"w": jnp.array([1.0, jnp.nan, 1.0])}, state, params)
    np.testing.assert_array_equal(updates["w"], 0)
    chex.assert_trees_all_equal(after.displacement, state.displacement)
    assert int(after.notfinite_count) == 1


@pytest.mark.parametrize(
    "bad", [{"statistical_advantage": 11.0, "long_step_ratio": 100.0}, {"small_constant": 2.0}]
)
def test_impossible_parameters_raise(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        jaxopt_pde.accelerated_sgd(0.1, **bad)
