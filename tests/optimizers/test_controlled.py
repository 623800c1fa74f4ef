"""The expected-improvement identity of controlled SGD, with controlled_sgd itself taking the steps, and its clock."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

import jaxopt_pde
from tests.riccati import LinearQuadratic


class Paths(NamedTuple):
    """Terminal values V(x(S)) and energies ½∫|α|² ds along the paths [n]; α is the optimal one, applied or not."""

    terminal: np.ndarray
    energy: np.ndarray


def simulate(problem, x0, scales, num_paths, seed=0):
    """One optimiser a path, stepping to the horizon under scale·α; all scales see the same noise."""
    h, n = problem.step_size, problem.num_steps

    def path(scale, key):
        tx = jaxopt_pde.controlled_sgd(
            h, lambda x, s, k: scale * problem.control(x, s), horizon=n * h, temperature=problem.temperature, key=key
        )  # fmt: skip

        def step(carry, index):
            x, state = carry
            alpha = problem.control(x, index * h)
            updates, state = tx.update(jax.grad(problem.loss)(x), state, x)
            return (optax.apply_updates(x, updates), state), h / 2 * jnp.dot(alpha, alpha)

        (x, _), energy = jax.lax.scan(step, (x0, tx.init(x0)), jnp.arange(n))
        return problem.terminal(x), jnp.sum(energy)

    keys = jax.random.split(jax.random.key(seed), num_paths)
    over_paths = jax.vmap(path, (None, 0))
    reached = jax.jit(jax.vmap(over_paths, (0, None)))(jnp.asarray(scales, x0.dtype), keys)
    return [Paths(*group) for group in zip(*(np.asarray(r, np.float64) for r in reached), strict=True)]


def mean_and_error(samples):
    return samples.mean(), samples.std(ddof=1) / np.sqrt(len(samples))


def identity(plain, controlled, scale=1.0):
    """Sample of E V(sgd) − E V(csgd) − ½E∫|α(csgd)|² − ½E∫|α(sgd)|², for the control scale·α."""
    return plain.terminal - controlled.terminal - scale**2 * (controlled.energy + plain.energy)


def inequality(plain, controlled, scale=1.0):
    """Sample of E V(sgd) − ½E∫|α(csgd)|² − E V(csgd), which the theorem says is positive."""
    return plain.terminal - controlled.terminal - scale**2 * controlled.energy


SCALES = [0.0, 1.0, 0.5, 2.0, -1.0]


def euler_residual(problem, x0):
    """The identity's residual for the Euler chains themselves, without sampling: means and covariances step by step."""
    h, d = problem.step_size, len(x0)
    quadratic = lambda M, v, m, C: np.trace(M @ C) / 2 + m @ M @ m / 2 + v @ m
    total = 0.0
    for scale in (0.0, 1.0):
        m, C = np.array(x0, np.float64), np.zeros((d, d))
        for P, r in zip(problem.P[:-1], problem.r[:-1], strict=True):
            total += h * (quadratic(P @ P, P @ r, m, C) + r @ r / 2)
            step = np.eye(d) - h * (problem.A + scale * P)
            m = step @ m + h * (problem.b - scale * r)
            C = step @ C @ step.T + problem.temperature * h * np.eye(d)
        total += (2 * scale - 1) * quadratic(problem.Q, problem.q, m, C)
    return -total


def one_dimension(num_steps):
    return LinearQuadratic(
        [[0.5]], [[2.0]], horizon=1.0, temperature=0.5, num_steps=num_steps, b=[0.3], q=[-0.4]
    )


def ten_dimensions(num_steps):
    """Indefinite A that does not commute with Q."""
    rng = np.random.default_rng(0)
    rotated = lambda values: (lambda R: R @ np.diag(values) @ R.T)(np.linalg.qr(rng.normal(size=(10, 10)))[0])
    A, Q = rotated(np.linspace(-0.3, 1.5, 10)), rotated(np.linspace(0.2, 2.0, 10))
    return LinearQuadratic(A, Q, horizon=1.0, temperature=0.5, num_steps=num_steps, b=rng.normal(size=10) / 3)


LINEAR_QUADRATIC = {"d=1": (one_dimension, [1.5]), "d=10": (ten_dimensions, [1.0] * 10)}


@pytest.fixture(scope="module", params=LINEAR_QUADRATIC)
def simulated(request):
    """20 000 paths (d = 1), 4 000 (d = 10) of 50 steps, and the exact residual of their Euler chains."""
    make, x0 = LINEAR_QUADRATIC[request.param]
    problem = make(50)
    paths = simulate(problem, jnp.asarray(x0, jnp.float32), SCALES, 20_000 if len(x0) == 1 else 4_000)
    return problem, np.asarray(x0), dict(zip(SCALES, paths, strict=True))


@pytest.mark.parametrize("name", LINEAR_QUADRATIC)
def test_the_euler_chains_satisfy_the_identity_to_first_order(name):
    """Without sampling: the residual halves with h, and extrapolates to zero."""
    make, x0 = LINEAR_QUADRATIC[name]
    coarse, middle, fine = (euler_residual(make(n), x0) for n in (100, 200, 400))
    assert (coarse - middle) / (middle - fine) == pytest.approx(2.0, abs=0.1)
    assert abs(2 * fine - middle) < 0.02 * abs(fine)


def test_the_improvement_is_the_identity(simulated):
    """Within 4 standard errors of what the Euler chain leaves, which is the whole bias."""
    problem, x0, paths = simulated
    mean, error = mean_and_error(identity(paths[0.0], paths[1.0]))
    bias = euler_residual(problem, x0)
    assert abs(mean - bias) < 4 * error
    improvement = paths[0.0].terminal.mean() - paths[1.0].terminal.mean()
    assert improvement > 4 * error + abs(bias)  # the identity is not one of zeros


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_control_of_another_strength_fails_the_identity(simulated, scale):
    """Which the inequality does not see, or not surely."""
    problem, x0, paths = simulated
    mean, error = mean_and_error(identity(paths[0.0], paths[scale], scale))
    assert abs(mean) > 4 * error + abs(euler_residual(problem, x0))


def test_the_wrong_sign_fails_the_inequality(simulated):
    problem, x0, paths = simulated
    bias = abs(euler_residual(problem, x0))
    mean, error = mean_and_error(inequality(paths[0.0], paths[1.0]))
    assert mean > 4 * error + bias
    mean, error = mean_and_error(inequality(paths[0.0], paths[-1.0]))
    assert mean < -4 * error - bias


def test_the_value_is_the_expected_cost(simulated):
    """u(x₀, 0) = E[V + ½∫|α|²]; other controls cost more."""
    problem, x0, paths = simulated
    value = x0 @ problem.P[0] @ x0 / 2 + problem.r[0] @ x0 + problem.c[0]
    mean, error = mean_and_error(paths[1.0].terminal + paths[1.0].energy)
    assert abs(mean - value) < 4 * error + abs(euler_residual(problem, x0))
    for scale in (0.0, 0.5, 2.0, -1.0):
        more = paths[scale].terminal + scale**2 * paths[scale].energy
        excess, error = mean_and_error(more - paths[1.0].terminal - paths[1.0].energy)
        assert excess > 4 * error


class DoubleWell:
    """f = V = ½(x² − 1)² + 0.2x at T = 0.5: exp(−u/T) by the matrix exponential of a reversible Markov chain."""

    temperature, step_size, num_steps = 0.5, 1 / 200, 200

    def __init__(self):
        self.grid = np.linspace(-3.0, 3.0, 241)
        dx, f = self.grid[1] - self.grid[0], self.f(self.grid)
        up = np.exp(-np.diff(f) / self.temperature) * self.temperature / (2 * dx**2)
        down = np.exp(np.diff(f) / self.temperature) * self.temperature / (2 * dx**2)
        generator = np.diag(up, 1) + np.diag(down, -1)
        generator -= np.diag(generator.sum(axis=1))
        step, v = scipy.linalg.expm(self.step_size * generator), np.exp(-f / self.temperature)
        slopes = []
        for _ in range(self.num_steps):
            v = step @ v
            slopes.append(np.gradient(-self.temperature * np.log(v), dx))
        self.slopes = jnp.asarray(np.stack(slopes[::-1]), jnp.float32)
        self.start_value = lambda x: np.interp(x, self.grid, -self.temperature * np.log(v))

    @staticmethod
    def f(x):
        return (x**2 - 1) ** 2 / 2 + 0.2 * x

    def loss(self, x):
        return self.f(x)[0]

    terminal = loss

    def control(self, x, time):
        index = jnp.round(time / self.step_size).astype(jnp.int32)
        place = (x[0] - self.grid[0]) / (self.grid[1] - self.grid[0])
        left = jnp.clip(place.astype(jnp.int32), 0, len(self.grid) - 2)
        weight = place - left
        return ((1 - weight) * self.slopes[index, left] + weight * self.slopes[index, left + 1])[None]


def test_the_identity_in_a_double_well():
    """Residual within 4 standard errors + h/4 (the Euler bias measured here is 0.11 h); scaled controls beyond."""
    problem, x0 = DoubleWell(), jnp.array([0.8])
    paths = dict(zip(SCALES, simulate(problem, x0, SCALES, 20_000), strict=True))
    allowed = problem.step_size / 4
    mean, error = mean_and_error(identity(paths[0.0], paths[1.0]))
    assert abs(mean) < 4 * error + allowed
    for scale in (0.5, 2.0):
        mean, error = mean_and_error(identity(paths[0.0], paths[scale], scale))
        assert abs(mean) > 4 * error + allowed
    mean, error = mean_and_error(inequality(paths[0.0], paths[-1.0]))
    assert mean < -4 * error - allowed
    mean, error = mean_and_error(paths[1.0].terminal + paths[1.0].energy)
    assert abs(mean - problem.start_value(0.8)) < 4 * error + allowed


def run(tx, params, num_updates, grad_fn=lambda p: p):
    """The states and the updates of ``num_updates`` steps in one scan."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grad_fn(params), state, params)
        return (optax.apply_updates(params, updates), state), (updates, state)

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=num_updates)[1])(params)


def test_without_control_or_noise_it_is_sgd_bitwise():
    params = {"a": jnp.linspace(-1, 1, 5), "b": jnp.array(0.3)}
    zero = lambda p, s, k: jax.tree.map(jnp.zeros_like, p)
    sine = lambda p: jax.tree.map(jnp.sin, p)
    updates, _ = run(jaxopt_pde.controlled_sgd(0.1, zero, horizon=0.5), params, 10, sine)
    expected, _ = run(optax.sgd(0.1), params, 10, sine)
    chex.assert_trees_all_equal(updates, expected)


def test_past_the_horizon_it_is_sgd_bitwise():
    """Whatever the control says there: here NaN. Batched clocks make the cond a select, which lets none through."""

    def updates(make):
        return jax.vmap(lambda rate: run(make(rate), jnp.ones(3), 15, jnp.ones_like))(jnp.array([0.1, 0.2]))

    control = lambda p, s, k: jnp.where(s < 0.95, 1.0, jnp.nan) * jnp.ones_like(p)
    moves, states = updates(lambda rate: jaxopt_pde.controlled_sgd(rate, control, horizon=1.0))
    plain, _ = updates(optax.sgd)
    np.testing.assert_array_equal(states.notfinite_count, 0)
    for member, controlled in enumerate((10, 5)):
        np.testing.assert_array_equal(moves[member, :controlled], 2 * plain[member, :controlled])
        np.testing.assert_array_equal(moves[member, controlled:], plain[member, controlled:])


def test_a_control_past_the_horizon_costs_nothing():
    calls = []

    def control(params, time, key):
        jax.debug.callback(calls.append, time)
        return params

    run(jaxopt_pde.controlled_sgd(0.1, control, horizon=1.0), jnp.ones(2), 50)
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(map(float, calls)), 0.1 * np.arange(10), atol=1e-6)


def test_the_clock_is_the_sum_of_the_steps():
    """Under a schedule; and 300 000 steps in float32 end at the horizon, where plain addition is 1e-3 off."""
    schedule = optax.polynomial_schedule(0.2, 0.02, 1, 10)
    seen = lambda p, s, k: jnp.broadcast_to(s, p.shape)
    tx = jaxopt_pde.controlled_sgd(schedule, seen, horizon=100.0)
    updates, states = run(tx, jnp.zeros(1), 20, jnp.zeros_like)
    steps = np.array([schedule(i) for i in range(20)])
    clock = np.cumsum(steps)
    np.testing.assert_allclose(states.time, clock, rtol=1e-6)
    np.testing.assert_allclose(updates[:, 0], -steps * np.append(0, clock[:-1]), rtol=1e-6)

    def last(num_updates):
        tx = jaxopt_pde.controlled_sgd(1e-5, lambda p, s, k: jnp.ones_like(p), horizon=3.0)
        step = lambda carry, _: tx.update(jnp.zeros(1), carry, jnp.zeros(1))[::-1]
        return jax.jit(lambda: jax.lax.scan(step, tx.init(jnp.zeros(1)), length=num_updates))()

    state, updates = last(300_001)
    assert float(state.time) == pytest.approx(3.00001, rel=1e-6)
    assert int(jnp.count_nonzero(updates)) == 300_000


def test_noise_and_control_have_keys_of_their_own():
    keys = []

    def control(params, time, key):
        jax.debug.callback(lambda k: keys.append(tuple(np.asarray(k).tolist())), jax.random.key_data(key))
        return jax.random.normal(key, params.shape)

    tx = jaxopt_pde.controlled_sgd(0.5, control, horizon=10.0, temperature=0.5, key=3)
    updates, _ = run(tx, jnp.zeros(4000), 4, jnp.zeros_like)
    jax.effects_barrier()
    assert len(set(keys)) == 4
    # h²|α|² + T h = ¼ + ¼ a coordinate, if α and ξ are independent; the sample variance is within √(2/n) of it.
    variance = np.var(updates, axis=1)
    np.testing.assert_allclose(variance, 0.5, rtol=4.5 * np.sqrt(2 / 4000))
    assert np.abs(np.corrcoef(updates) - np.eye(4)).max() < 4.5 / np.sqrt(4000)


class Estimate(NamedTuple):
    control: jax.Array
    effective_sample_size: jax.Array
    collapsed: jax.Array


class Sampled:
    """A control with an ``estimate``, collapsed in the second update of three."""

    def __call__(self, params, time, key):
        raise AssertionError

    def estimate(self, params, time, key):
        second = jnp.abs(time - 0.1) < 0.01
        return Estimate(params, jnp.where(second, 1.0, 20.0 + time), second)


def test_the_quality_of_a_sampled_control_is_in_the_state():
    _, states = run(jaxopt_pde.controlled_sgd(0.1, Sampled(), horizon=0.3), jnp.ones(2), 5)
    np.testing.assert_allclose(states.effective_sample_size, [20.0, 1.0, 20.2, 20.2, 20.2], rtol=1e-6)
    np.testing.assert_array_equal(states.collapsed_count, [0, 1, 1, 1, 1])


@pytest.mark.parametrize("where", ["gradient", "control"])
def test_what_is_not_finite_moves_nothing_and_the_clock_goes_on(where):
    bad = lambda s: jnp.where(jnp.abs(s - 0.2) < 0.01, jnp.nan, 1.0)
    control = lambda p, s, k: bad(s) * p if where == "control" else p

    def step(carry, _):
        params, state = carry
        gradient = params * (bad(state.time) if where == "gradient" else 1.0)
        updates, state = tx.update({"x": gradient, "y": jnp.ones(2)}, state, {"x": params, "y": jnp.ones(2)})
        return (params + updates["x"], state), (updates, state)

    tx = jaxopt_pde.controlled_sgd(
        0.1, lambda p, s, k: {"x": control(p["x"], s, k), "y": p["y"]}, horizon=1.0, temperature=0.1
    )
    params = jnp.ones(3)
    start = tx.init({"x": params, "y": jnp.ones(2)})
    updates, states = jax.lax.scan(step, (params, start), length=5)[1]
    moved = np.any(np.asarray(updates["y"]) != 0, axis=1) & np.any(np.asarray(updates["x"]) != 0, axis=1)
    np.testing.assert_array_equal(moved, [True, True, False, True, True])
    np.testing.assert_array_equal(np.asarray(updates["y"])[2], 0)
    np.testing.assert_array_equal(states.notfinite_count, [0, 0, 1, 1, 1])
    np.testing.assert_allclose(states.time, 0.1 * np.arange(1, 6), rtol=1e-6)


def test_bad_input_is_named():
    good = lambda p, s, k: p
    with pytest.raises(TypeError, match="control must be a function"):
        jaxopt_pde.controlled_sgd(0.1, 3.0, horizon=1.0)
    with pytest.raises(TypeError, match="horizon must be a number, not a schedule"):
        jaxopt_pde.controlled_sgd(0.1, good, horizon=optax.constant_schedule(1.0))
    with pytest.raises(TypeError, match="key must be"):
        jaxopt_pde.controlled_sgd(0.1, good, horizon=1.0, key="seed")
    params = {"a": jnp.ones(2)}
    tx = jaxopt_pde.controlled_sgd(0.1, good, horizon=1.0)
    with pytest.raises(ValueError, match="controlled_sgd needs params"):
        tx.update(params, tx.init(params))
    for wrong, message in [
        (lambda p, s, k: p["a"], "control must give a tree like params"),
        (lambda p, s, k: {"a": p["a"].sum()}, r"control gave a leaf of shape \(\) at \['a'\]"),
    ]:
        tx = jaxopt_pde.controlled_sgd(0.1, wrong, horizon=1.0)
        with pytest.raises(ValueError, match=message):
            tx.update(params, tx.init(params), params)
