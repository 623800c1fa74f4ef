"""The comparison is fair: every method's gradients are counted as they run, on the same minibatches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import _methods, quickstart

CONFIG = quickstart.Config(num_gradients=80, report_every=40, batch_size=4)


class Linear:
    """A stand-in for the network that records every minibatch it is asked for a gradient of."""

    def __init__(self):
        self.seen = []

    def apply(self, params, images):
        jax.debug.callback(lambda first: self.seen.append(np.ravel(first)), images[:, 0, 0, 0])
        return images.reshape(len(images), -1) @ params


@pytest.mark.parametrize("method", quickstart.methods(CONFIG), ids=lambda m: m.name)
def test_every_gradient_is_counted_and_uses_its_own_minibatch(method):
    """The gradients of two updates, in order, are the minibatches 0 … 2·gradients_per_update − 1."""
    network, number = Linear(), 2 * method.gradients_per_update
    images = jnp.arange(100.0)[:, None, None, None] * jnp.ones((1, 2, 2, 1)) / 100
    minibatches = jax.random.permutation(jax.random.key(0), 100)[: 80 * 1, None] * jnp.ones((1, 4), jnp.int32)
    minibatches = minibatches.astype(jnp.int32)
    params = jnp.zeros((4, 10))
    update = jax.jit(quickstart.make_update(method, network))
    state = _methods.start(method, 0.1, params)
    for _ in range(2):
        state = update(state, jnp.float32(0.1), minibatches, (images, jnp.zeros(100, jnp.int32)))
    jax.block_until_ready(state)
    jax.effects_barrier()
    drawn = sorted(float(value) for value in np.ravel(network.seen))
    expected = sorted(float(value) for value in np.ravel(images[minibatches[:number], 0, 0, 0]))
    np.testing.assert_allclose(drawn, expected)


def test_the_average_starts_as_the_plain_mean():
    (method,) = (m for m in quickstart.methods(CONFIG) if m.average is not None)
    images, labels = jnp.ones((8, 2, 2, 1)), jnp.arange(8)
    minibatches = jnp.zeros((80, 4), jnp.int32)
    params = jnp.zeros((4, 10))
    state = _methods.start(method, 0.1, params)
    network, iterates = Linear(), []
    for _ in range(5):
        state = quickstart.make_update(method, network)(state, 0.1, minibatches, (images, labels))
        iterates.append(state[0])
    np.testing.assert_allclose(state[2], np.mean(iterates, axis=0), atol=1e-6)


def test_rates_are_chosen_by_validation_error_alone():
    validation = np.full((1, 2, 3, 2), 0.5)
    validation[0, -1, 1] = 0.1
    validation[0, 0, 0] = 0.0  # earlier in training: must not count
    test = np.arange(12.0).reshape(1, 2, 3, 2)
    results = {"validation_error": validation, "test_error": test, "rate": np.array([0.1, 0.2, 0.3])}
    curves, rates = quickstart.chosen(results, "test_error")
    assert rates == [0.2]
    np.testing.assert_array_equal(curves, test[:, :, 1])


def test_confidence_intervals_cover_at_the_stated_rate():
    """95 % of 4,000 intervals from 5 normal samples contain the mean, within 4.5 standard errors."""
    samples = np.random.default_rng(0).normal(size=(4000, 5))
    covered = np.abs(samples.mean(-1)) < quickstart.interval(samples)
    assert abs(covered.mean() - 0.95) < 4.5 * np.sqrt(0.95 * 0.05 / 4000)


def test_uneven_budgets_and_unknown_methods_are_refused():
    with pytest.raises(
        ValueError, match="report_every=30 must divide num_gradients=60 and be a multiple of the 20"
    ):
        quickstart.run(quickstart.Config(num_gradients=60, report_every=30))
    with pytest.raises(ValueError, match="methods must be one of 'SGD, Nesterov'"):
        quickstart.run(quickstart.Config(methods=("LBFGS",)))


def test_schedules_end_at_zero():
    """The decayed baselines' last update moves nothing: the cosine runs over the updates, not the gradients."""
    for method in quickstart.methods(CONFIG):
        if method.name in ("SGD, Nesterov", "Adam"):
            tx, params = method.make(0.1), jnp.ones(3)
            state = tx.init(params)
            for _ in range(CONFIG.num_gradients + 1):
                updates, state = tx.update(params, state, params)
            assert float(optax.tree.norm(updates)) == 0.0
