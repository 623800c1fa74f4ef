"""What each space-adaptive rule computes, written out, and that no rule steps where it must not."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxopt_pde
from tests.zoo import RULES, call, parabola

rules = pytest.mark.parametrize("name", RULES)


def test_exact_quantities_give_the_exact_step(x64):
    """h = 2 (value − f_min)/E|g|², whatever way f_min arrives."""
    g, extra = jnp.array([3.0, -4.0]), {"value": 5.0, "grad_sq_norm": 40.0}
    for f_min, given_f_min in ((1.0, {}), (lambda count: 1.0 + count, {}), (0.0, {"f_min": 1.0})):
        tx = jaxopt_pde.scale_by_space_adaptive(f_min, max_learning_rate=10.0)
        updates, state = tx.update(g, tx.init(g), **extra, **given_f_min)
        assert float(state.learning_rate) == 2 * 4 / 40
        np.testing.assert_allclose(updates, 0.2 * g, rtol=1e-15)
    scheduled = jaxopt_pde.scale_by_space_adaptive(lambda count: 1.0 + count, max_learning_rate=10.0)
    _, state = scheduled.update(g, state._replace(count=jnp.array(2)), **extra)
    np.testing.assert_allclose(state.learning_rate, 2 * 2 / 40)
    _, state = scheduled.update(g, state, value=5.0)  # |g|² = 25 where nothing better is given
    np.testing.assert_allclose(state.learning_rate, 2 * 1 / 25)


def test_it_is_twice_optax_polyak_with_a_clip():
    params, grad_fn, _ = parabola()
    ours = jaxopt_pde.space_adaptive_sgd(max_learning_rate=0.8)
    theirs = optax.polyak_sgd(0.8, variant="sps+")  # its scaling=2 would scale the norm as well
    for value in (-1.0, 0.1, 100.0):
        updates, _ = ours.update(grad_fn(params), ours.init(params), params, value=value)
        expected, _ = theirs.update(grad_fn(params), theirs.init(params), params, value=2 * value)
        np.testing.assert_allclose(updates, expected, rtol=1e-6)


numbers = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
_BOUNDED = jax.jit(
    lambda g, value, grad_sq_norm, f_min: jaxopt_pde.scale_by_space_adaptive(max_learning_rate=2.0).update(
        g,
        jaxopt_pde.scale_by_space_adaptive(max_learning_rate=2.0).init(g),
        value=value,
        grad_sq_norm=grad_sq_norm,
        f_min=f_min,
    )
)


@settings(max_examples=60)
@given(
    st.lists(numbers, min_size=3, max_size=3),
    numbers,
    st.floats(0, 1e6, width=32, allow_subnormal=False),
    numbers,
)
def test_never_an_ascent_step_and_never_a_longer_one(g, value, grad_sq_norm, f_min):
    g = jnp.array(g, jnp.float32)
    updates, state = _BOUNDED(g, value, grad_sq_norm, f_min)
    h, gap = float(state.learning_rate), np.float32(value) - np.float32(f_min)
    assert 0 <= h <= 2
    assert h * np.float32(grad_sq_norm) <= 2 * max(gap, 0) * (1 + 1e-5)
    assert (h == 0) or gap > 0
    assert int(state.below_minimum_count) == (gap < 0)
    assert bool(jnp.all(jnp.isfinite(updates)))
    assert float(jnp.vdot(updates, g)) >= 0


@rules
def test_a_zero_gradient_is_no_trouble(name):
    entry, (params, _, _) = RULES[name], parabola()
    tx = entry.make()
    state = tx.init(params)
    step = jax.jit(functools.partial(call, entry, tx, grad_fn=jnp.zeros_like))
    for _ in range(3):
        updates, state = step(state, params)
        np.testing.assert_array_equal(updates, 0)


@rules
@pytest.mark.parametrize("what", ["gradient", "value"])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_what_is_not_finite_moves_nothing_and_is_counted(name, what, bad):
    entry, (params, grad_fn, _) = RULES[name], parabola()
    if what == "value" and "value" not in entry.extra(params):
        pytest.skip("takes no loss")
    if what == "value" and name in ("scale_by_certainty_equivalent", "scale_by_signal_to_noise"):
        pytest.skip("looks at no loss")
    tx = entry.factory(**entry.arguments)
    step = jax.jit(lambda state, g, **extra: tx.update(g, state, params, **{**entry.extra(g), **extra}))
    _, state = step(tx.init(params), grad_fn(params))
    g = grad_fn(params).at[1].set(bad) if what == "gradient" else grad_fn(params)
    updates, after = step(state, g, **({"value": bad} if what == "value" else {}))
    np.testing.assert_array_equal(updates, 0)
    counted, state = (s.inner if name == "target_level" else s for s in (after, state))
    assert int(counted.notfinite_count) == 1
    kept = ("statistics", "outer", "sq_distance", "noise_variance", "signal", "gradient", "displacement")
    for field in kept:
        if hasattr(counted, field):
            chex.assert_trees_all_equal(getattr(counted, field), getattr(state, field))


@rules
def test_units_do_not_matter(name, x64):
    """f → c f, x → s x: rates by s²/c, curvatures by c/s², squared distances by s², losses by c; the path by s."""
    entry, c, s = RULES[name], 8.0, 0.25
    unit = {"max_learning_rate": s**2 / c, "learning_rate": s**2 / c, "strong_convexity": c / s**2}
    unit |= {"smoothness": c / s**2, "initial_sq_distance": s**2, "initial_gap": c}
    scaled = {
        key: value * unit.get(key, 1) if key != "inner" else value for key, value in entry.arguments.items()
    }
    if name == "target_level":
        scaled["inner"] = jaxopt_pde.space_adaptive_sgd(max_learning_rate=0.5 * s**2 / c)
    if name == "adaptive_batch":
        scaled["inner"] = optax.sgd(0.5 * s**2 / c)
    start, grad_fn, _ = parabola(jnp.float64)
    # The clip of the zoo's chain has units of its own.
    one, two = entry.factory(**entry.arguments), entry.factory(**scaled)
    sign = -1.0 if name.startswith("scale_by") else 1.0

    def run(tx, x, grad_fn, loss_unit, times):
        @jax.jit
        def step(x, state, time):
            g = grad_fn(x)
            extra = {k: v for k, v in entry.extra(g).items() if k != "value"}
            if "microbatch_gradients" in extra:
                parts = extra["microbatch_gradients"]
                extra["microbatch_gradients"] = parts * jnp.array([1.3, 0.7])[:, None]
            value = loss_unit * (1 + jnp.cos(time))
            updates, state = tx.update(g, state, x, value=value, **extra)
            return x + sign * updates, state

        state = tx.init(x)
        for time in range(times):
            x, state = step(x, state, time)
        return x

    reached = run(one, start, grad_fn, 1.0, 7)
    rescaled = run(two, start * s, lambda x: grad_fn(x / s) * (c / s), c, 7)
    np.testing.assert_allclose(rescaled / s, reached, rtol=1e-10)
    assert bool(jnp.any(reached != start))


def test_norms_of_bfloat16_are_accumulated_in_float32():
    """|g|² of 10⁵ entries 0.01: summed in bfloat16 it would stop growing at about 0.03."""
    g = jnp.full(100_000, 0.01, jnp.bfloat16)
    expected = float(jnp.sum(g.astype(jnp.float32) ** 2))
    tx = jaxopt_pde.scale_by_space_adaptive(max_learning_rate=1e6)
    updates, state = jax.jit(lambda g: tx.update(g, tx.init(g), value=jnp.array(3.0, jnp.bfloat16)))(g)
    np.testing.assert_allclose(state.learning_rate, 6 / expected, rtol=1e-4)
    assert state.learning_rate.dtype == jnp.float32
    assert updates.dtype == jnp.bfloat16
    noise = jaxopt_pde.gradient_noise(jnp.stack([g, -g]))
    np.testing.assert_allclose(noise.noise, expected, rtol=1e-4)


@pytest.mark.parametrize("parts", [2, 3])
def test_split_batches_are_unbiased(parts, x64):
    """Over all draws with replacement: means of signal and noise are |∇f|² and σ²/n, exactly."""
    data = np.random.default_rng(0).normal(size=(5, 3)) + 0.5
    draws = jnp.asarray(list(itertools.product(data, repeat=parts)))
    signal, noise, _ = jax.vmap(jaxopt_pde.gradient_noise)(draws)
    np.testing.assert_allclose(signal.mean(), (data.mean(0) ** 2).sum(), rtol=1e-12)
    np.testing.assert_allclose(noise.mean(), data.var(0).sum() / parts, rtol=1e-12)
    if parts == 2:
        first, second = draws[:, 0], draws[:, 1]
        np.testing.assert_allclose(signal, (first * second).sum(-1), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(noise, ((first - second) ** 2).sum(-1) / 4, rtol=1e-10)


def observed(tx, gradients, values, **extra):
    """The steps taken over a sequence of gradients and losses."""

    @jax.jit
    def run(state):
        def step(state, seen):
            _, state = tx.update(seen[0], state, value=seen[1], **{k: v(seen[0]) for k, v in extra.items()})
            return state, state.learning_rate

        return jax.lax.scan(step, state, (gradients, values))[1]

    return np.asarray(run(tx.init(gradients[0])))


@pytest.mark.parametrize("decay", [None, 0.7])
@pytest.mark.parametrize("estimator", ["ema", "microbatch"])
def test_means_are_those_of_before(estimator, decay, x64):
    """h_k from the running means after k − 1 (after the first at k = 0), weights c/(k + c) or 1 − decay."""
    rng = np.random.default_rng(0)
    gradients, values = rng.normal(size=(40, 3)), rng.uniform(1, 3, size=40)
    tx = jaxopt_pde.scale_by_space_adaptive(0.5, max_learning_rate=3.0, estimator=estimator, decay=decay)
    offset = jnp.array([1.0, -1.0, 2.0]) / 3
    extra = {}
    if estimator == "microbatch":
        extra["microbatch_gradients"] = lambda g: jnp.stack([g + offset, g - offset])
    steps = observed(tx, jnp.asarray(gradients), jnp.asarray(values), **extra)
    mean_value = mean_signal = mean_norm = 0.0
    noise = float(jnp.sum(offset**2))
    expected = []
    for k, (g, v) in enumerate(zip(gradients, values, strict=True)):
        weight = 8 / (k + 8) if decay is None else max(1 / (k + 1), 1 - decay)
        before = mean_value, mean_norm, mean_signal
        mean_value += weight * (v - mean_value)
        mean_norm += weight * ((g**2).sum() - mean_norm)
        mean_signal += weight * ((g**2).sum() - noise - mean_signal)
        value, norm, signal = before if k else (mean_value, mean_norm, mean_signal)
        divisor = norm if estimator == "ema" else max(signal, 0) + noise
        expected.append(min(2 * (value - 0.5) / divisor, 3.0))
    np.testing.assert_allclose(steps, expected, rtol=1e-12)
    assert len(set(expected)) > 10


def test_the_window_is_that_of_the_published_code(x64):
    """The greatest step first; then, every window, 2 (EMA of losses − f*)/mean |g|² of the window just past."""
    rng = np.random.default_rng(1)
    gradients, values = rng.normal(size=(22, 3)), rng.uniform(1, 3, size=22)
    tx = jaxopt_pde.scale_by_space_adaptive(0.5, max_learning_rate=9.0, estimator="window", window=5)
    steps = observed(tx, jnp.asarray(gradients), jnp.asarray(values))
    ema, expected, held = 0.0, [], 9.0
    for k in range(22):
        if k and k % 5 == 0:
            held = min(2 * (ema - 0.5) / (gradients[k - 5 : k] ** 2).sum(1).mean(), 9.0)
        expected.append(held)
        ema += max(1 / (k + 1), 0.1) * (values[k] - ema)
    np.testing.assert_allclose(steps, expected, rtol=1e-12)


def test_momentum_is_that_of_a_trace_after_the_scale():
    params, grad_fn, _ = parabola()
    one = jaxopt_pde.space_adaptive_sgd(max_learning_rate=0.1, momentum=0.9, nesterov=True)
    rule = jaxopt_pde.scale_by_space_adaptive(max_learning_rate=0.1)
    two = optax.chain(rule, optax.trace(0.9, nesterov=True), optax.scale(-1.0))
    states = [tx.init(params) for tx in (one, two)]
    for value in (3.0, 0.01, -1.0, 2.0):
        (updates, states[0]), (expected, states[1]) = (
            tx.update(grad_fn(params), state, params, value=value)
            for tx, state in zip((one, two), states, strict=True)
        )
        np.testing.assert_allclose(updates, expected, rtol=1e-6)
        params = optax.apply_updates(params, updates)
    assert float(optax.tree.get(states[1], "learning_rate")) == pytest.approx(0.1)


@pytest.mark.parametrize("name", [n for n in RULES if n not in ("adaptive_batch", "target_level")])
def test_rules_stand_inside_partition(name):
    entry, params = RULES[name], {"a": jnp.ones(2), "b": jnp.ones(3)}
    labels = {"a": "rule", "b": "frozen"}
    tx = optax.partition({"rule": entry.make(), "frozen": optax.set_to_zero()}, labels)
    updates, _ = tx.update(params, tx.init(params), params, **entry.extra(params))
    assert bool(jnp.all(updates["a"] < 0))
    np.testing.assert_array_equal(updates["b"], 0)


@pytest.mark.parametrize(
    ("make", "given_value", "match"),
    [
        (jaxopt_pde.scale_by_space_adaptive, False, r"update\(grads, state, params, value=value\)"),
        (jaxopt_pde.space_adaptive_sgd, False, r"space_adaptive_sgd needs(.|\n)*value_and_grad\(loss\)"),
        (
            functools.partial(jaxopt_pde.space_adaptive_sgd, estimator="microbatch"),
            True,
            "microbatch_gradients=parts",
        ),
    ],
)
def test_missing_arguments_show_the_call(make, given_value, match):
    tx, params = make(max_learning_rate=1.0), jnp.ones(2)
    with pytest.raises(ValueError, match=match):
        tx.update(params, tx.init(params), params, **({"value": 1.0} if given_value else {}))


def test_the_other_rules_show_the_call_too():
    params = jnp.ones(2)
    for tx, match in (
        (jaxopt_pde.scale_by_certainty_equivalent(1.0, 1.0, 1.0), "noise_variance="),
        (jaxopt_pde.scale_by_signal_to_noise(1.0), "microbatch_gradients=parts"),
        (jaxopt_pde.target_level(jaxopt_pde.space_adaptive_sgd(max_learning_rate=1.0), 1.0), "value=value"),
    ):
        with pytest.raises(ValueError, match=match):
            tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="leading axis of at least 2"):
        jaxopt_pde.gradient_noise({"a": jnp.ones((1, 2))})
    with pytest.raises(TypeError, match="inner must be an optax transformation"):
        jaxopt_pde.target_level(0.1, 1.0)
