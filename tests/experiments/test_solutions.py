"""The solutions the landscape experiments share: what is reported of them is true of their weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _solutions

CONFIG = _solutions.Training(
    methods=("SGD, Nesterov", "SGD, averaged", "Entropy-SGD, K = 1"),
    widths=(8,),
    num_train=200,
    random_labels=0.25,
    num_seeds=2,
    num_gradients=60,
    learning_rates=(0.01, 0.1),
)


@pytest.fixture(scope="module")
def trained():
    task = _solutions.make_task(CONFIG)
    return task, _solutions.train(CONFIG, task)


def test_what_is_reported_is_true_of_the_weights(trained):
    task, solutions = trained
    measure = jax.jit(
        lambda w: (
            task.loss(task.unravel(w), task.train),
            task.error(task.unravel(w), task.train),
            task.error(task.unravel(w), task.validation),
            task.loss(task.unravel(w), task.test),
            task.error(task.unravel(w), task.test),
        )
    )
    for where in np.ndindex(solutions.test_error.shape):
        got = [float(value) for value in measure(solutions.weights[where])]
        np.testing.assert_allclose(got, [field[where] for field in solutions[2:]], rtol=1e-5, atol=1e-7)
    initial = [float(measure(weights)[0]) for weights in solutions.start]
    assert np.all(solutions.train_loss[:, 1].mean(-1) < np.mean(initial))


def test_a_quarter_of_the_labels_is_random_and_the_rest_untouched():
    """Of the 250 redrawn a tenth keep their label; four binomial deviations either way. The images are the same."""
    config = dataclasses.replace(CONFIG, num_train=1000)
    noisy = _solutions.make_task(config)
    clean = _solutions.make_task(dataclasses.replace(config, random_labels=0.0))
    np.testing.assert_array_equal(noisy.train[0], clean.train[0])
    np.testing.assert_array_equal(noisy.test[1], clean.test[1])
    changed = int(jnp.sum(noisy.train[1] != clean.train[1]))
    share = 0.25 * 0.9
    assert abs(changed - 1000 * share) < 4 * np.sqrt(1000 * share * (1 - share))


def test_rates_are_chosen_by_validation_error_alone(trained):
    _, solutions = trained
    validation = np.full(solutions.validation_error.shape, 0.5)
    validation[1, 1] = 0.1
    best, rates = _solutions.chosen(CONFIG, solutions._replace(validation_error=validation))
    np.testing.assert_array_equal(rates, [0.01, 0.1, 0.01])
    np.testing.assert_array_equal(best.weights[1], solutions.weights[1, 1])
    np.testing.assert_array_equal(best.start, solutions.start)


def test_bad_configurations_are_named():
    task, config = _solutions.make_task(CONFIG), dataclasses.replace(CONFIG, num_gradients=50)
    with pytest.raises(ValueError, match="num_gradients=50 must be a multiple of the 20"):
        _solutions.train(config, task)
    with pytest.raises(ValueError, match="more images than"):
        _solutions.make_task(dataclasses.replace(CONFIG, num_test=2000))
    with pytest.raises(ValueError, match="random_labels"):
        _solutions.make_task(dataclasses.replace(CONFIG, random_labels=1.5))
