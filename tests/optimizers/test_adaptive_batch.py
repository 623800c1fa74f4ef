"""Batches that grow: means of microbatches, the rule written out, samples against the best constant batch, sizes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_pde


def stream(tx, params, gradients, values):
    """Params and states after every microbatch."""

    @jax.jit
    def run(params, state):
        def step(carry, seen):
            params, state = carry
            updates, state = tx.update(seen[0], state, params, value=seen[1])
            params = optax.apply_updates(params, updates)
            return (params, state), (updates, state)

        return jax.lax.scan(step, (params, state), (gradients, values))[1]

    return run(params, tx.init(params))


def reference(gradients, values, rate, limit, smoothness=None):
    """Sizes of the batches by the rule as printed, on the microbatches in hand alone."""
    sizes, hand = [], []
    for g, v in zip(gradients, values, strict=True):
        hand.append((g, v))
        n = len(hand)
        last = sizes[-1] if sizes else 0
        if n >= 2:
            all_g = np.stack([g for g, _ in hand])
            variance = all_g.var(axis=0, ddof=1).sum()
            signal = (all_g.mean(axis=0) ** 2).sum() - variance / n
            gap = np.mean([v for _, v in hand]) if smoothness is None else signal / (2 * smoothness)
            allowed = 2 * gap / rate - max(signal, 0)
            looked_at = 2 * n >= last and (smoothness is None or n & (n - 1) == 0)
            if looked_at and allowed > 0 and n >= variance / allowed:
                sizes.append(n)
                hand = []
        if len(hand) == limit:
            sizes.append(limit)
            hand = []
    return sizes


@pytest.mark.parametrize("smoothness", [None, 1.0])
def test_the_rule_and_the_mean(smoothness, x64):
    """Batch sizes are those of the rule; at its end a batch moves the params by −h times its mean gradient."""
    rng, rate = np.random.default_rng(0), 0.5
    gradients = 0.7 + rng.normal(size=(300, 4))
    values = 0.8 + 0.3 * rng.normal(size=300)
    tx = jaxopt_pde.adaptive_batch(
        optax.sgd(rate), rate, smoothness=smoothness, max_microbatches=12, decay=0.0
    )
    updates, states = stream(tx, jnp.zeros(4), jnp.asarray(gradients), jnp.asarray(values))
    sizes = reference(gradients, values, rate, 12, smoothness)
    assert len(set(sizes)) > 2
    ends = np.cumsum(sizes) - 1
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(states.mini_step) == 0), ends)
    np.testing.assert_array_equal(np.asarray(states.batch_size)[ends], sizes)
    np.testing.assert_array_equal(np.asarray(states.gradient_step)[ends], np.arange(1, len(sizes) + 1))
    for end, size in zip(ends, sizes, strict=True):
        expected = -rate * gradients[end - size + 1 : end + 1].mean(axis=0)
        np.testing.assert_allclose(updates[end], expected, rtol=1e-12)
    between = np.setdiff1d(np.arange(300), ends)
    np.testing.assert_array_equal(np.asarray(updates)[between], 0)


def test_a_mean_of_microbatches_is_the_gradient_of_the_batch():
    """In float32, and with momentum inside: the inner optimiser sees one large batch."""
    key = jax.random.key(0)
    data = jax.random.normal(key, (24, 8, 3))
    grad = jax.jit(jax.grad(lambda w, a: jnp.mean((a @ w - 1) ** 2)))
    inner = optax.sgd(0.1, momentum=0.9)
    tx = jaxopt_pde.adaptive_batch(inner, 0.1, max_microbatches=6, min_microbatches=6)
    params = large = jnp.ones(3)
    state, large_state = tx.init(params), inner.init(large)
    update = jax.jit(lambda g, state, params: tx.update(g, state, params, value=1.0))
    for batch in data:
        updates, state = update(grad(params, batch), state, params)
        params = optax.apply_updates(params, updates)
    for batch in data.reshape(4, 48, 3):
        updates, large_state = inner.update(grad(large, batch), large_state, large)
        large = optax.apply_updates(large, updates)
    np.testing.assert_allclose(params, large, rtol=1e-5)
    assert int(state.gradient_step) == 4


def test_noise_and_its_scale_are_unbiased():
    """Gaussian gradients, |∇f|² = 4, variance 6 a microbatch: over 400 batches of 8 within 4 standard errors."""
    gradients = 1.0 + jnp.sqrt(1.5) * jax.random.normal(jax.random.key(0), (3200, 4))
    tx = jaxopt_pde.adaptive_batch(optax.sgd(0.1), 0.1, max_microbatches=8, min_microbatches=8, decay=0.0)
    _, states = stream(tx, jnp.zeros(4), gradients, jnp.ones(3200))
    ends = np.asarray(states.mini_step) == 0
    assert ends.sum() == 400
    for name, expected in (("noise_variance", 6.0), ("grad_sq_norm", 4.0)):
        seen = np.asarray(getattr(states, name))[ends]
        assert abs(seen.mean() - expected) < 4 * seen.std() / 20, name
    assert np.median(np.asarray(states.noise_scale)[ends]) == pytest.approx(1.5, rel=0.2)


def test_what_is_not_finite_is_left_out():
    gradients = jnp.array([[1.0], [jnp.nan], [3.0], [1.0], [jnp.inf], [3.0]])
    values = jnp.array([1.0, 1.0, jnp.nan, 1.0, 1.0, 1.0])
    tx = jaxopt_pde.adaptive_batch(optax.sgd(1.0), 0.1, max_microbatches=3, min_microbatches=3)
    updates, states = stream(tx, jnp.zeros(1), gradients, values)
    np.testing.assert_allclose(updates[-1], -5 / 3, rtol=1e-6)
    np.testing.assert_array_equal(updates[:-1], 0)
    np.testing.assert_array_equal(states.notfinite_count, [0, 1, 2, 2, 3, 3])


def test_below_f_min_the_batch_is_the_greatest_and_counted():
    gradients = jax.random.normal(jax.random.key(0), (15, 2))
    tx = jaxopt_pde.adaptive_batch(optax.sgd(0.1), 0.1, f_min=2.0, max_microbatches=5)
    _, states = stream(tx, jnp.zeros(2), gradients, jnp.ones(15))
    assert int(states.batch_size[-1]) == 5
    assert int(states.limited_count[-1]) == 3


def test_missing_losses_are_named():
    tx = jaxopt_pde.adaptive_batch(optax.sgd(0.1), 0.1, max_microbatches=5)
    params = jnp.ones(2)
    with pytest.raises(ValueError, match=r"tx.update\(grads, state, params, value=value\)"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(TypeError, match="inner must be an optax optimiser"):
        jaxopt_pde.adaptive_batch(0.1, 0.1, max_microbatches=5)


@pytest.mark.parametrize("form", ["exact loss", "smoothness"])
def test_no_more_samples_than_the_best_constant_batch(form):
    """f = ½|x|² in 5-D, noise of variance 25 a microbatch, h = ½: microbatches until the mean error is reached."""
    rate, runs, length, start = 0.5, 40, 1500, jnp.full(5, 3.0)

    def reached(tx):
        def one(key):
            def step(carry, key):
                x, state = carry
                gradient = x + jnp.sqrt(5.0) * jax.random.normal(key, x.shape)
                updates, state = tx.update(gradient, state, x, value=jnp.sum(x**2) / 2)
                x = x + updates
                return (x, state), jnp.sum(x**2) / 2

            return jax.lax.scan(step, (start, tx.init(start)), jax.random.split(key, length))[1]

        mean = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), runs))).mean(axis=0)
        hits = [np.flatnonzero(mean < error) for error in (0.3, 0.1, 0.05)]
        return np.array([h[0] + 1 if len(h) else np.inf for h in hits])

    settings = {} if form == "exact loss" else {"smoothness": 1.0}
    adaptive = reached(jaxopt_pde.adaptive_batch(optax.sgd(rate), rate, max_microbatches=1024, **settings))
    constant = [reached(optax.MultiSteps(optax.sgd(rate), size)) for size in (4, 16, 64, 256)]
    slack = 1.0 if form == "exact loss" else 1.5
    assert np.all(adaptive <= slack * np.min(constant, axis=0)), (adaptive, constant)


def test_the_controller_proposes_few_sizes_and_the_right_ones(x64):
    """Powers of two times the least size, at least what the rule asks for; one compilation for each."""
    rng = np.random.default_rng(0)
    controller = jaxopt_pde.batch_size_controller(
        0.5, f_min=1.0, min_batch_size=4, max_batch_size=1000, decay=0.0
    )
    state, sizes = controller.init(), []
    traced = jax.jit(chex.assert_max_traces(lambda batch: batch.sum(), n=9))
    for _ in range(300):
        gap, variance = np.exp(rng.uniform(-8, 2)), np.exp(rng.uniform(-2, 2))
        signal = gap * rng.uniform(0, 2)
        state = controller.update(
            state, value=1.0 + gap, grad_sq_norm=jnp.asarray(signal), noise_variance=variance
        )
        needed = variance / (2 * gap / 0.5 - signal)
        assert state.batch_size == min(1000, 4 * 2 ** max(0, int(np.ceil(np.log2(needed / 4) - 1e-9))))
        traced(jnp.zeros(state.batch_size))
        sizes.append(state.batch_size)
    assert len(set(sizes)) <= 1 + np.ceil(np.log2(1000 / 4))
    assert len(set(sizes)) > 5
    bad = controller.update(state, value=np.nan, grad_sq_norm=1.0, noise_variance=1.0)
    assert bad == state._replace(notfinite_count=1)
    assert controller.update(state, value=0.5, grad_sq_norm=1.0, noise_variance=1.0).batch_size == 1000


def test_the_controller_knows_finite_data():
    """Brute force: without replacement E|g_b|² = |∇f|² + σ²/b (n − b)/(n − 1), and all data are always enough."""
    n, rate = 64, 0.5
    controller = jaxopt_pde.batch_size_controller(rate, max_batch_size=n, num_examples=n, decay=0.0)
    rng = np.random.default_rng(1)
    for _ in range(100):
        gap, variance = np.exp(rng.uniform(-6, 1)), np.exp(rng.uniform(-2, 2))
        signal = gap * rng.uniform(0, 2)
        size = controller.update(
            controller.init(), value=gap, grad_sq_norm=signal, noise_variance=variance
        ).batch_size
        sizes = np.array([size, size // 2 or 1])
        holds = rate * (signal + variance / sizes * (n - sizes) / (n - 1)) <= 2 * gap * (1 + 1e-12)
        assert holds[0]
        assert size == 1 or not holds[1]


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"max_batch_size": 0}, "max_batch_size must be at least 1, got 0"),
        ({"max_batch_size": 8, "min_batch_size": -1}, "min_batch_size must be at least 1, got -1"),
        ({"max_batch_size": 8, "min_batch_size": 16}, "at least min_batch_size=16, got 8"),
        ({"max_batch_size": 80, "num_examples": 64}, "must not exceed num_examples=64, got 80"),
    ],
)
def test_impossible_sizes_raise(bad, match):
    with pytest.raises(ValueError, match=match):
        jaxopt_pde.batch_size_controller(0.1, **bad)
