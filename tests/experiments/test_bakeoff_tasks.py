"""The bake-off's tasks: random labels, networks with batch statistics, generated data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import _bakeoff_methods as methods
from experiments import _bakeoff_presets
from experiments import _bakeoff_training as training
from experiments._bakeoff_tasks import Spec, make_task
from experiments._markov_language import make_language
from experiments._mnist_1d import LENGTH, mnist_1d
from jaxopt_pde.models import MLP, AllCNN


def test_random_labels_are_uniform_and_only_in_the_training_set():
    """A share s of them drawn anew: 0.9 s wrong, within 4.5 standard errors; the relatives have the same split."""
    spec = dataclasses.replace(_bakeoff_presets.DIGITS, random_labels=0.4)
    noisy = make_task("noisy", spec, seed=0)
    clean = make_task("clean", _bakeoff_presets.DIGITS, seed=0)
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(noisy, part)[0], getattr(clean, part)[0])
    wrong = np.mean(np.asarray(noisy.train[1]) != np.asarray(clean.train[1]))
    assert abs(wrong - 0.36) < 4.5 * np.sqrt(0.36 * 0.64 / len(clean.train[1]))
    for part in ("validation", "test"):
        np.testing.assert_array_equal(getattr(noisy, part)[1], getattr(clean, part)[1])


def test_all_cnn_trains_with_its_batch_statistics_and_dropout():
    """The papers' network at toy size, end to end: finite, and evaluated with statistics of its own weights."""
    network = AllCNN(widths=(4, 4), penultimate_kernel=1)
    spec = Spec("toy", "digits", network, (64, 16, 16), 8, 4, 0.0)
    task = make_task("toy", spec, seed=0)
    trainer = training.Trainer(task, 4, 2, 2, seed=0)
    runs = [training.Run({"rate": 0.05, "momentum": 0.9}, seed) for seed in range(2)]
    result = training.Program(trainer, methods.KNOWN["SGD, cosine"]).train(runs, "test", task.test)
    assert not result["diverged"].any()
    assert np.isfinite(result["loss"]).all()
    assert np.all((result["error"] >= 0) & (result["error"] <= 1))


def test_batch_statistics_are_those_of_the_training_set_at_the_evaluated_weights():
    network = MLP((8,), batch_norm=True)
    task = make_task("toy", Spec("toy", "mnist-1d", network, (80, 10, 10), 40, 4, 0.0), seed=0)
    params = task.init(jax.random.key(0))
    losses, _ = task.evaluate(params, (task.train,))
    hidden = task.train[0] @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None]
    hidden = (hidden - hidden.mean(0)[None]) / jnp.sqrt(hidden.var(0) + 1e-5)[
        None
    ]  # scale 1 and bias 0 at the start
    logits = jax.nn.relu(hidden) @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"][None]
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, task.train[1]).mean()
    np.testing.assert_allclose(losses[0], expected, rtol=1e-4)


def test_language_has_the_entropy_it_states():
    """Mean of −log P(c | a, b) over drawn texts, within 4.5 standard errors; and the law of pairs is stationary."""
    language = make_language(6, seed=1)
    transported = np.einsum("ab,abc->bc", language.stationary, language.transitions)
    np.testing.assert_allclose(transported, language.stationary, atol=1e-14)
    texts = language.draw(2000, 12, seed=2)
    surprise = -np.log(language.transitions[texts[:, :-2], texts[:, 1:-1], texts[:, 2:]]).mean(1)
    error = surprise.std(ddof=1) / np.sqrt(len(surprise))
    assert abs(surprise.mean() - language.entropy_rate) < 4.5 * error
    np.testing.assert_array_equal(texts, language.draw(2000, 12, seed=2))


def test_mnist_1d_follows_its_recipe():
    """Standardised, balanced, reproducible, smooth."""
    signals, labels = mnist_1d(1000, seed=7)
    assert abs(signals.mean()) < 1e-5
    assert abs(signals.std() - 1) < 1e-5
    np.testing.assert_array_equal(np.bincount(labels), [100] * 10)
    np.testing.assert_array_equal(signals, mnist_1d(1000, seed=7)[0])
    assert LENGTH == 72
    # Glyphs are longer and the filter of the noise is wider than a place of the 40.
    centred = signals - signals.mean(1, keepdims=True)
    neighbour = (centred[:, 1:] * centred[:, :-1]).mean() / (centred**2).mean()
    assert 0.5 < neighbour < 1


def test_mnist_1d_refuses_uneven_classes():
    with pytest.raises(ValueError, match="num_samples must be a positive multiple of 10, got 15"):
        mnist_1d(15)
