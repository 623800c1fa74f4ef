"""Path integrals against the Euler chain's closed form and quadrature; what guides, chunks and shifts must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxopt_pde import control


def chain_value(curvature, terminal, x, *, horizon, temperature, num_steps, noise_temperature=None):
    """u and ∇u of the Euler chain itself, f = ½ Σ a x², V = (q/2)|x|², c = 1: a Gaussian integral over N(φx, TW)."""
    step_size = horizon / num_steps
    factor = 1 - step_size * curvature
    noise = temperature if noise_temperature is None else noise_temperature
    spread = noise * step_size * sum(factor ** (2 * k) for k in range(num_steps)) / temperature
    mean, damped = factor**num_steps * x, terminal / (1 + terminal * spread)
    value = np.sum(damped * mean**2) / 2 + temperature * np.sum(np.log1p(terminal * spread)) / 2
    return value, factor**num_steps * damped * mean


def quadratic(dimension, terminal):
    """f, V, the curvatures, and a point with |x|² about the dimension."""
    curvature = np.linspace(0.3, 1.5, dimension)
    x = np.random.default_rng(dimension).normal(size=dimension)
    loss = lambda x: jnp.sum(jnp.asarray(curvature, x.dtype) * x**2) / 2
    return loss, lambda x: terminal * jnp.sum(x**2) / 2, curvature, x


def repeat(estimator, x, repetitions, seed=0, time=0.0):
    """Estimates with independent keys, in one program."""
    keys = jax.random.split(jax.random.key(seed), repetitions)
    run = jax.jit(lambda x: jax.lax.map(lambda key: estimator.estimate(x, time, key), keys))
    return jax.tree.map(np.asarray, run(jnp.asarray(x, jnp.float32)))


def relative_errors(found, truth):
    return np.linalg.norm(found - truth, axis=1) / np.linalg.norm(truth)


@pytest.mark.parametrize(
    ("dimension", "terminal", "n", "num_steps", "repetitions"),
    [
        (1, 1.0, 500, 20, 60),
        (10, 0.5, 500, 20, 60),
        pytest.param(100, 0.1, 1000, 50, 16, marks=pytest.mark.slow),
    ],
)
def test_it_finds_the_chains_own_value_and_control(dimension, terminal, n, num_steps, repetitions):
    """Unbiased up to 1/n, and the standard errors are those seen over repetitions; d = 100 with V = |x|²/(2√d) is no
    obstacle: within 10 % of the control of the diffusion itself, Euler's bias included.
    """
    loss, V, curvature, x = quadratic(dimension, terminal)
    settings = {"horizon": 1.0, "temperature": 1.0, "num_steps": num_steps}
    truth, slope = chain_value(curvature, terminal, x, **settings)
    found = repeat(control.path_integral(loss, V, num_rollouts=n, **settings), x, repetitions)
    se = found.value.std(ddof=1) / np.sqrt(repetitions)
    jensen = 0.5 * np.mean(1 / found.effective_sample_size - 1 / n)
    assert abs(found.value.mean() - jensen - truth) < 4 * se + 2 * jensen / np.sqrt(n) + 1e-5 * abs(truth)
    margin = 4 / np.sqrt(2 * repetitions)  # four standard errors of a standard deviation, relative
    assert found.standard_error.mean() == pytest.approx(found.value.std(ddof=1), rel=margin)
    spread = np.sqrt(np.sum(found.control.var(axis=0, ddof=1)))
    bias = np.linalg.norm(found.control.mean(axis=0) - slope)
    assert bias < 4 * spread / np.sqrt(repetitions)
    assert found.control_standard_error.mean() == pytest.approx(spread, rel=margin)
    assert np.all((found.effective_sample_size > 1) & (found.effective_sample_size < n))
    assert not found.collapsed.any()
    np.testing.assert_array_equal(found.num_gradients, n * (num_steps * 3 + 1))
    if dimension == 100:
        exact = control.linear_quadratic(curvature, terminal, horizon=1.0, temperature=1.0)
        errors = relative_errors(found.control, np.asarray(exact.control(jnp.asarray(x, jnp.float32), 0.0)))
        assert np.sqrt(np.mean(errors**2)) < 0.1


def test_the_error_falls_as_the_square_root_of_the_rollouts():
    """Slopes of log RMSE against log n, value and control, are −½ within 4 standard errors of the fit."""
    loss, V, curvature, x = quadratic(3, 1.0)
    settings = {"horizon": 1.0, "temperature": 1.0, "num_steps": 4}
    value, slope = chain_value(curvature, 1.0, x, **settings)
    sizes, repetitions = np.array([64, 2048]), 200
    rmse = []
    for n in sizes:
        found = repeat(
            control.path_integral(loss, V, num_rollouts=int(n), **settings), x, repetitions, seed=n
        )
        squares = np.stack([(found.value - value) ** 2, np.sum((found.control - slope) ** 2, axis=1)])
        rmse.append(np.sqrt(squares.mean(axis=1)))
    rates = np.polyfit(np.log(sizes), np.log(rmse), 1)[0]
    # Each log RMSE has a standard error of at most 1/√(2·200), and their difference √2 of that.
    margin = 4 / np.sqrt(repetitions) / np.log(sizes[1] / sizes[0])
    np.testing.assert_allclose(rates, -0.5, atol=margin)


def test_few_rollouts_overestimate_the_value():
    """Jensen: −T log of a mean is too high, by T Var(w/E w)/(2n) + O(n⁻²), which the effective size predicts."""
    loss, V, curvature, x = quadratic(2, 3.0)
    settings = {"horizon": 1.0, "temperature": 1.0, "num_steps": 4}
    truth, _ = chain_value(curvature, 3.0, x, **settings)
    n, repetitions = 16, 4000
    found = repeat(control.path_integral(loss, V, num_rollouts=n, **settings), x, repetitions)
    excess, se = found.value.mean() - truth, found.value.std() / np.sqrt(repetitions)
    assert excess > 4 * se
    predicted = 0.5 * np.mean(1 / found.effective_sample_size - 1 / n)
    assert abs(excess - predicted) < 4 * se + 4 * predicted / n


@pytest.fixture(scope="module")
def guided():
    """d = 100, V = ½|x|², Var(V/T) about 24: a guide of any strength, in one program."""
    loss, V, curvature, x = quadratic(100, 1.0)
    settings = {"horizon": 1.0, "temperature": 1.0, "num_steps": 50}
    exact = control.linear_quadratic(curvature, 1.0, horizon=1.0, temperature=1.0)

    @jax.jit
    def run(strength, keys):
        guide = lambda y, time, key: strength * exact.control(y, time)
        estimator = control.path_integral(loss, V, num_rollouts=200, guide=guide, **settings)
        return jax.lax.map(lambda key: estimator.estimate(jnp.asarray(x, jnp.float32), 0.0, key), keys)

    keys = jax.random.split(jax.random.key(0), 8)
    found = {s: jax.tree.map(np.asarray, run(s, keys)) for s in (0.0, 0.5, 1.0)}
    return found, chain_value(curvature, 1.0, x, **settings)


def test_a_guide_takes_the_variance_away(guided):
    """d = 100: ESS/n near .01 alone, .1 half guided, .8 guided; the reference is the chain's own value."""
    found, (value, slope) = guided
    sizes = {s: np.mean(f.effective_sample_size) / 200 for s, f in found.items()}
    assert sizes[0.0] < 0.03
    assert 0.03 < sizes[0.5] < 0.3
    assert 0.7 < sizes[1.0] < 1
    spread = {s: np.sqrt(np.sum(f.control.var(axis=0))) / np.linalg.norm(slope) for s, f in found.items()}
    assert found[1.0].value.std() < 0.1 * found[0.0].value.std()
    # What is left at the exact guide is O(h): the guide belongs to the diffusion and not to the chain.
    assert spread[1.0] < 2 / 50
    assert spread[1.0] < 0.05 * spread[0.0]
    assert abs(found[1.0].value.mean() - value) < 4 * found[1.0].value.std() / np.sqrt(8) + 1e-4 * value
    assert np.linalg.norm(found[1.0].control.mean(axis=0) - slope) < 1e-2 * np.linalg.norm(slope)


def test_collapse_is_reported(guided):
    found, _ = guided
    assert found[0.0].collapsed.mean() > 0.8
    assert not found[1.0].collapsed.any()


@pytest.fixture(scope="module")
def double_well():
    """f = (x² − 1)²/4, V = cos 2x + x/2, T = .4, c = 2.5, two steps of .25: u and u' by nested Gauss-Hermite rules."""
    with jax.enable_x64(True):
        step_size, temperature, cost, x = 0.25, 0.4, 2.5, 0.6
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        log_weights = np.log(weights / weights.sum())
        scale = cost * temperature

        def before(value):
            def average(x):
                mean = x - step_size * (x**3 - x)
                ends = mean + np.sqrt(step_size * temperature) * nodes
                return -scale * jax.nn.logsumexp(log_weights - jax.vmap(value)(ends) / scale)

            return average

        terminal = lambda x: jnp.cos(2 * x) + x / 2
        value, slope = jax.jit(jax.value_and_grad(before(before(terminal))))(x)
        return {
            "loss": lambda x: (x**2 - 1) ** 2 / 4,
            "terminal": terminal,
            "x": x,
            "settings": {
                "horizon": 2 * step_size,
                "temperature": temperature,
                "num_steps": 2,
                "control_cost": cost,
            },
            "value": float(value),
            "control": float(slope) / cost,
        }


def test_any_guide_leaves_the_answers_of_a_double_well_as_they_are(double_well):
    """No guide, a wrong one, and one not differentiated: 10⁵ rollouts against quadrature, control cost included."""

    @jax.jit
    def run(strength, differentiable, key):
        def guide(x, time, key):
            steering = strength * (jnp.sin(3 * x) + time)
            return jnp.where(differentiable, steering, jax.lax.stop_gradient(steering))

        estimator = control.path_integral(
            double_well["loss"],
            double_well["terminal"],
            num_rollouts=100_000,
            guide=guide,
            **double_well["settings"],
        )
        return estimator.estimate(jnp.float32(double_well["x"]), 0.0, key)

    for strength, differentiable in [(0.0, True), (0.7, True), (0.7, False)]:
        found = run(strength, differentiable, jax.random.key(1))
        assert abs(found.value - double_well["value"]) < 4 * found.standard_error
        assert abs(found.control - double_well["control"]) < 4 * found.control_standard_error
        assert found.standard_error < 0.01
        assert found.control_standard_error < 0.01


@pytest.mark.usefixtures("x64")
def test_a_constant_in_the_terminal_cost_moves_the_value_alone():
    loss, V, _, x = quadratic(4, 1.0)

    @jax.jit
    def run(shift):
        estimator = control.path_integral(
            loss, lambda x: V(x) + shift, horizon=1.0, temperature=0.3, num_rollouts=50, num_steps=5
        )
        return estimator.estimate(jnp.asarray(x), 0.0, jax.random.key(0))

    plain, moved = run(0.0), run(1e3)
    np.testing.assert_allclose(moved.control, plain.control, rtol=1e-9)
    np.testing.assert_allclose(moved.value - 1e3, plain.value, rtol=1e-9)
    np.testing.assert_allclose(moved.effective_sample_size, plain.effective_sample_size, rtol=1e-9)
    assert plain.value.dtype == jnp.float64


def test_exponents_of_a_million_are_safe_in_single_precision():
    """V/T from −10⁶ to 10⁶: only the least counts, and the value is V of one rollout up to T log n."""
    x = jnp.float32(0.7)
    settings = {"horizon": 1.0, "temperature": 1e-2, "num_rollouts": 64, "num_steps": 2}

    @jax.jit
    def estimate(offset):
        flat, slope = lambda x: jnp.zeros([]), lambda x: offset + 1e3 * x
        return control.path_integral(flat, slope, **settings).estimate(x, 0.0, jax.random.key(0))

    for offset in (-1e4, 1e4):
        found = estimate(offset)
        # dx = 0.1 dW: the least of 64 normals lies between −5 and 0 standard deviations, 10² of V each.
        assert offset + 700 - 500 < found.value < offset + 700
        np.testing.assert_allclose(found.control, 1e3, rtol=1e-5)
        assert 1 <= found.effective_sample_size < 2
        assert found.collapsed


@pytest.mark.usefixtures("x64")
def test_chunks_of_a_tree_and_a_vector_at_once_give_the_same_numbers():
    """Merged by log-sum-exp, every field; the weights vary enough for the chunks to have unequal shares."""
    loss, V, _, x = quadratic(6, 2.0)

    def estimate(fold, unfold, size):
        estimator = control.path_integral(
            lambda p: loss(fold(p)),
            lambda p: V(fold(p)),
            horizon=1.0,
            temperature=0.3,
            num_rollouts=24,
            num_steps=4,
            guide=lambda p, time, key: unfold(0.3 * fold(p)),
            rollout_batch_size=size,
        )
        return jax.jit(estimator.estimate)(unfold(jnp.asarray(x)), 0.0, jax.random.key(0))

    vector = estimate(lambda p: p, lambda v: v, None)
    tree = estimate(lambda p: p["w"].reshape(-1), lambda v: {"w": v.reshape(2, 3)}, 4)
    tree = tree._replace(control=tree.control["w"].reshape(-1))
    for name, one, other in zip(vector._fields, tree, vector, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, err_msg=name)


def test_sharded_rollouts_equal_unsharded_ones():
    V, x = lambda x: jnp.sum(x**2) / 2, np.linspace(-1, 1, 6)
    mesh = jax.make_mesh((8,), ("rollouts",), axis_types=(AxisType.Auto,))
    settings = {"horizon": 1.0, "temperature": 1.0, "num_rollouts": 16, "num_steps": 3}
    loss = lambda x: jnp.sum(jnp.cosh(x))
    make = lambda sharding: control.path_integral(loss, V, rollout_sharding=sharding, **settings)
    x, key = jnp.asarray(x, jnp.float32), jax.random.key(0)
    alone = jax.jit(make(None).estimate)(x, 0.0, key)
    spread = make(NamedSharding(mesh, PartitionSpec("rollouts"))).estimate
    program = jax.jit(spread).lower(x, 0.0, key).compile()
    for one, other in zip(program(x, 0.0, key), alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert "f32[3,2,6]" in program.as_text()  # the positions kept for the reverse pass: two rollouts a device


def test_any_tree_and_any_precision():
    """A tree of two leaves, one of them bfloat16, against the closed form of the vector it stands for."""
    params = {"w": jnp.array([[1.0, -0.5], [0.2, 2.0]]), "b": jnp.array([1.5, -1.0], jnp.bfloat16)}
    square = lambda p: jnp.sum(p["w"] ** 2) + jnp.sum(p["b"].astype(jnp.float32) ** 2)
    seen = []

    def terminal(p):
        seen.append(jax.tree.map(lambda leaf: leaf.dtype, p))
        return square(p) / 2

    settings = {"horizon": 1.0, "temperature": 0.5, "num_steps": 4}
    estimator = control.path_integral(lambda p: 0.4 * square(p), terminal, num_rollouts=4000, **settings)
    found = jax.jit(estimator.estimate)(params, 0.0, jax.random.key(0))
    flat = np.concatenate([np.ravel(params["w"]), np.asarray(params["b"], np.float64)])
    value, slope = chain_value(np.full(6, 0.8), 1.0, flat, **settings)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), found.control) == jax.tree.map(
        lambda a: (a.shape, a.dtype), params
    )
    assert seen[-1] == jax.tree.map(lambda leaf: leaf.dtype, params)
    # bfloat16 keeps 8 bits of what the functions see and of the control handed back.
    assert abs(found.value - value) < 4 * found.standard_error + 2**-8 * value
    got = np.concatenate([np.ravel(found.control["w"]), np.asarray(found.control["b"], np.float64)])
    assert np.linalg.norm(got - slope) < 4 * found.control_standard_error + 2**-8 * np.linalg.norm(slope)


def test_stochastic_gradients_have_keys_of_their_own():
    """Noise σ in the gradient adds hσ² to the temperature of the rollouts, but not to that of the weights."""
    _, V, curvature, x = quadratic(2, 1.0)
    sigma, settings = 2.0, {"horizon": 1.0, "temperature": 1.0, "num_steps": 5}
    truth, slope = chain_value(
        curvature, 1.0, x, noise_temperature=1.0 + settings["horizon"] / 5 * sigma**2, **settings
    )

    def grad_fn(x, step):
        assert step.step.dtype == step.chain.dtype == jnp.int32
        noise = sigma * jax.random.normal(step.key, x.shape)
        return jnp.asarray(curvature, x.dtype) * x + noise

    estimator = control.path_integral(None, V, grad_fn=grad_fn, num_rollouts=20_000, **settings)
    found = jax.jit(estimator.estimate)(jnp.asarray(x, jnp.float32), 0.0, jax.random.key(0))
    assert abs(found.value - truth) < 4 * found.standard_error
    assert np.linalg.norm(found.control - slope) < 4 * found.control_standard_error


def test_the_horizon_ends_the_control_and_nothing_compiles_twice():
    """At the horizon α = ∇V/c exactly, before it something else, past it 0 for no gradients; time is traced."""
    loss, V, _, x = quadratic(3, 1.0)
    estimator = control.path_integral(
        loss, V, horizon=0.3, temperature=1.0, num_rollouts=4, num_steps=3, control_cost=2.0
    )
    x, run = jnp.asarray(x, jnp.float32), jax.jit(estimator.estimate)
    before, at, past = (run(x, jnp.float32(t), jax.random.key(0)) for t in (0.0, 0.3, 0.31))
    assert run._cache_size() == 1
    np.testing.assert_allclose(at.control, x / 2, rtol=1e-6)
    np.testing.assert_allclose(at.value, V(x), rtol=1e-6)
    np.testing.assert_allclose(at.effective_sample_size, 4, rtol=1e-6)
    assert np.all(before.control != at.control)
    np.testing.assert_array_equal(past.control, np.zeros(3))
    assert (int(before.num_gradients), int(past.num_gradients)) == (4 * (3 * 3 + 1), 0)
    assert not past.collapsed


def test_nan_is_seen():
    """Some rollouts that are not numbers, by V or by ∇f, are enough; nothing is left out in silence."""
    settings = {"horizon": 1.0, "temperature": 1.0, "num_rollouts": 8, "num_steps": 2}

    @jax.jit
    def run(loss_factor, terminal_factor):
        broken = lambda factor: lambda x: jnp.where(x > 0.5, factor * x, x**2)
        estimator = control.path_integral(broken(loss_factor), broken(terminal_factor), **settings)
        return estimator.estimate(jnp.float32(0.2), 0.0, jax.random.key(0))

    assert not run(1.0, 1.0).collapsed
    shifted = control.path_integral(jnp.square, lambda x: x**2 + jnp.nan, **settings)  # XLA cancels constants
    constant = shifted.estimate(jnp.float32(0.2), 0.0, jax.random.key(0))
    for found in (run(jnp.nan, 1.0), run(1.0, jnp.nan), constant):
        assert np.isnan(found.value)
        assert np.isnan(found.control)
        assert np.isnan(found.effective_sample_size)
        assert found.collapsed


def test_bad_arguments_are_named():
    f = lambda x: jnp.sum(x**2)
    good = {"horizon": 1.0, "temperature": 1.0, "num_rollouts": 4, "num_steps": 2}
    mesh = jax.make_mesh((8,), ("rollouts",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("rollouts"))
    for changes, error, message in [
        ({"horizon": 0.0}, ValueError, "horizon must be positive"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive.*no limit.*linear_quadratic"),
        ({"temperature": -1.0}, ValueError, "temperature must be positive"),
        ({"control_cost": 0.0}, ValueError, "control_cost must be positive"),
        ({"num_rollouts": 1}, ValueError, "num_rollouts must be at least 2"),
        ({"num_steps": 2.0}, TypeError, "num_steps must be a Python integer"),
        ({"guide": 3.0}, TypeError, "guide must be a function, got 3.0"),
        ({"grad_fn": 3.0}, TypeError, "grad_fn must be a function, got 3.0"),
        ({"rollout_batch_size": 3}, ValueError, "rollout_batch_size must divide num_rollouts=4, got 3"),
        ({"rollout_sharding": sharding}, ValueError, "num_rollouts=4 must be a multiple of 8"),
        ({"rollout_sharding": 8}, ValueError, "rollout_sharding must be NamedSharding"),
        ({"rollout_sharding": sharding, "rollout_batch_size": 2}, ValueError, "exclude each other"),
    ]:
        with pytest.raises(error, match=message):
            control.path_integral(f, f, **(good | changes))
    with pytest.raises(ValueError, match="loss_fn=None needs grad_fn"):
        control.path_integral(None, f, **good)
    key, vector = jax.random.key(0), lambda x: x
    for args, extra, error, message in [
        ((vector, f), {}, ValueError, "loss_fn must return a scalar loss"),
        ((f, vector), {}, ValueError, "terminal_fn must return a scalar loss"),
        ((f, f), {"guide": lambda x, time, key: x[:1]}, ValueError, "guide gave a leaf of shape"),
        ((None, f), {"grad_fn": lambda x, step: (x,)}, ValueError, "grad_fn must give a tree like params"),
    ]:
        with pytest.raises(error, match=message):
            control.path_integral(*args, **good, **extra)(jnp.ones(3), 0.0, key)
    with pytest.raises(TypeError, match="params has dtype int32"):
        control.path_integral(f, f, **good)(jnp.ones(3, int), 0.0, key)
