"""Recomputed BatchNorm statistics against NumPy, and what they are for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxopt_pde.models import MLP, AllCNN, LeNet, recompute_batch_stats

BATCHES = np.random.default_rng(0).normal(1.0, 2.0, (6, 16, 5)).astype(np.float32)
BATCHES += np.arange(6, dtype=np.float32).reshape(6, 1, 1)  # batches whose means differ


def start(model, inputs, seed=0):
    """Random variables, drawn by NumPy: compiling ``init`` would take most of the test."""
    draw = np.random.default_rng(seed).normal
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), inputs)
    return jax.tree.map(lambda leaf: jnp.asarray(draw(0.1, 0.5, leaf.shape), leaf.dtype), shapes)


recompute = jax.jit(recompute_batch_stats, static_argnums=0)


def pooled_statistics(params, batches):
    """The statistics of MLP((8, 6), batch_norm=True), in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    statistics, hidden = {}, batches.astype(np.float64)
    for layer in ("0", "1"):
        dense, norm = params[f"Dense_{layer}"], params[f"BatchNorm_{layer}"]
        hidden = hidden @ dense["kernel"] + dense["bias"]
        flat = hidden.reshape(-1, hidden.shape[-1])
        statistics[f"BatchNorm_{layer}"] = {"mean": flat.mean(0), "var": flat.var(0)}
        # In training the next layer sees this one normalised batch by batch.
        hidden = (hidden - hidden.mean(1, keepdims=True)) / np.sqrt(hidden.var(1, keepdims=True) + 1e-5)
        hidden = np.maximum(hidden * norm["scale"] + norm["bias"], 0)
    return statistics


@pytest.mark.parametrize("recompute", [recompute_batch_stats, recompute], ids=["eager", "jit"])
def test_statistics_are_the_pooled_ones_of_numpy(recompute):
    model = MLP((8, 6), batch_norm=True, dropout_rate=0.5)
    variables = start(model, BATCHES[0])
    got = recompute(model, variables, BATCHES)
    expected = pooled_statistics(variables["params"], BATCHES)
    assert jax.tree.structure(got) == jax.tree.structure(variables["batch_stats"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), got, expected)


class TwoMomenta(nn.Module):
    """BatchNorms that forget at different rates, and a running statistic that is no mean and variance."""

    @nn.compact
    def __call__(self, x, *, train):
        largest = self.variable("batch_stats", "size", lambda: jnp.zeros(()))
        if train and not self.is_initializing():
            largest.value = 0.5 * largest.value + 0.5 * jnp.mean(x**2)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return nn.BatchNorm(use_running_average=not train, momentum=0.99)(3 * x)


def test_momentum_and_the_old_statistics_do_not_matter():
    model = TwoMomenta()
    variables = start(model, BATCHES[0])
    got = recompute(model, variables, BATCHES)
    flat = BATCHES.reshape(-1, 5)
    np.testing.assert_allclose(got["BatchNorm_0"]["mean"], flat.mean(0), rtol=1e-4)
    np.testing.assert_allclose(got["BatchNorm_0"]["var"], flat.var(0), rtol=1e-4)
    first = variables["params"]["BatchNorm_0"]
    np.testing.assert_allclose(got["BatchNorm_1"]["mean"], 3 * first["bias"], atol=1e-4)
    np.testing.assert_allclose(got["BatchNorm_1"]["var"], 9 * first["scale"] ** 2, rtol=1e-3)
    np.testing.assert_allclose(got["size"], np.mean(flat**2), rtol=1e-4)
    spoiled = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), variables["batch_stats"])
    again = recompute(model, {**variables, "batch_stats": spoiled}, BATCHES)
    jax.tree.map(np.testing.assert_array_equal, got, again)


@pytest.mark.parametrize(
    ("model", "shape"),
    [(LeNet(channels=(2, 3), hidden=4), (16, 22, 22, 1)), (AllCNN(widths=(3, 4)), (8, 8, 8, 3))],
    ids=["lenet", "allcnn"],
)
def test_evaluation_on_the_one_batch_equals_training_without_dropout(model, shape):
    inputs = jax.random.normal(jax.random.key(1), shape)
    variables = start(model, inputs)
    silent = model.clone(dropout_rate=0.0)
    silent = silent.clone(input_dropout_rate=0.0) if isinstance(model, AllCNN) else silent

    @jax.jit
    def both(variables):
        batch_stats = recompute_batch_stats(model, variables, inputs[None])
        evaluated = model.apply({**variables, "batch_stats": batch_stats}, inputs, train=False)
        return evaluated, silent.apply(variables, inputs, train=True, mutable=["batch_stats"])[0]

    evaluated, trained = both(variables)
    np.testing.assert_allclose(evaluated, trained, atol=1e-4)


def test_a_key_keeps_dropout_on():
    model = MLP((8, 6), batch_norm=True, dropout_rate=0.5)
    variables = start(model, BATCHES[0])
    silent = recompute(model, variables, BATCHES)
    first, again, other = (
        recompute(model, variables, BATCHES, key=jax.random.key(seed)) for seed in (1, 1, 2)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    # The first BatchNorm stands before any dropout, the second behind one.
    np.testing.assert_allclose(first["BatchNorm_0"]["mean"], silent["BatchNorm_0"]["mean"], rtol=1e-6)
    for different in (silent, other):
        assert np.abs(first["BatchNorm_1"]["mean"] - different["BatchNorm_1"]["mean"]).max() > 1e-3
    # Inverted dropout leaves the mean and adds to the second moment.
    assert np.all(first["BatchNorm_1"]["var"] > silent["BatchNorm_1"]["var"])


def test_vmap_over_params_is_a_loop():
    model = MLP((4,), batch_norm=True)
    many = [start(model, BATCHES[0], seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)
    together = jax.vmap(lambda variables: recompute(model, variables, BATCHES))(stacked)
    for i, alone in enumerate(recompute(model, variables, BATCHES) for variables in many):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5), together, alone
        )


@pytest.mark.parametrize(
    ("model", "change", "batches", "message"),
    [
        (MLP((3,)), {}, BATCHES, "variables must be .* got no 'batch_stats' in .'params'"),
        (MLP((3,), batch_norm=True), {"batch_stats": {}}, BATCHES, "got no 'batch_stats'"),
        (MLP((3,), batch_norm=True), {"params": {}}, BATCHES, "got no 'params'"),
        (MLP((3,), batch_norm=True), {}, BATCHES[0, 0], r"batches must have shape .* got \(5,\)"),
        (MLP((3,), batch_norm=True), {}, BATCHES[:0], r"batches must have shape .* got \(0, 16, 5\)"),
    ],
)
def test_bad_arguments_are_named(model, change, batches, message):
    variables = {**start(model, BATCHES[0]), **change}
    with pytest.raises(ValueError, match=message):
        recompute_batch_stats(model, variables, batches)
