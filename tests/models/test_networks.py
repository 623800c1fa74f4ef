"""The networks of the papers: their sizes, their two modes, their transformations."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxopt_pde.models import MLP, AllCNN, Dropout, LeNet

MNIST, CIFAR = (2, 28, 28, 1), (2, 32, 32, 3)
SMALL = {  # every network, small enough for a test: model, input shape
    "mlp": (MLP((6,), dropout_rate=0.5), (4, 5)),
    "mlp batch_norm": (MLP((6, 4), batch_norm=True, dropout_rate=0.5, activation=jnp.tanh), (4, 5)),
    "lenet": (LeNet(channels=(2, 3), hidden=5), (4, 22, 22, 1)),
    "allcnn": (AllCNN(widths=(3, 4), num_classes=2), (4, 8, 8, 3)),
}
small = pytest.mark.parametrize(("model", "shape"), SMALL.values(), ids=SMALL.keys())


def start(model, shape):
    """Random variables and inputs, drawn by NumPy: compiling ``init`` would take most of the test."""
    draw = np.random.default_rng(0).uniform
    inputs = jnp.asarray(draw(-1, 1, shape), jnp.float32)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), inputs)
    return jax.tree.map(lambda leaf: jnp.asarray(draw(0.1, 0.6, leaf.shape), leaf.dtype), shapes), inputs


@functools.partial(jax.jit, static_argnames=("model", "train", "mutable"))
def apply(model, variables, inputs, *, train, mutable=False, key=None):
    rngs = {} if key is None else {"dropout": jax.random.key(key)}
    return model.apply(variables, inputs, train=train, mutable=list(mutable) if mutable else False, rngs=rngs)


STATISTICS = ("batch_stats",)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("model", "shape", "parameters", "statistics"),
    [
        (MLP((100,)), MNIST, 79_510, 0),
        (MLP(()), MNIST, 7_850, 0),
        (MLP((1024, 1024), batch_norm=True), MNIST, 1_867_786, 2 * 2048),
        (LeNet(), MNIST, 132_220, 2 * 570),
        (AllCNN(), CIFAR, 1_667_166, 2 * 1258),
        (AllCNN(penultimate_kernel=1), CIFAR, 1_372_254, 2 * 1258),
    ],
)
def test_sizes_of_the_papers(model, shape, parameters, statistics):
    images = jnp.ones(shape)
    variables = jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))
    assert count(variables["params"]) == parameters
    assert count(variables.get("batch_stats", {})) == statistics
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = jax.eval_shape(lambda v: model.apply(v, images, train=False), variables)
    assert logits.shape == (2, 10)


@small
def test_training_needs_a_dropout_key_and_evaluation_does_not(model, shape):
    variables, inputs = start(model, shape)
    jax.eval_shape(functools.partial(model.apply, train=False), variables, inputs)
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        jax.eval_shape(functools.partial(model.apply, train=True, mutable=STATISTICS), variables, inputs)


@pytest.mark.parametrize("name", ["mlp", "mlp batch_norm", "lenet"])
def test_training_draws_and_moves_the_statistics_and_evaluation_does_not(name):
    model, shape = SMALL[name]
    variables, inputs = start(model, shape)
    evaluated, frozen = apply(model, variables, inputs, train=False, mutable=STATISTICS)
    draws = [apply(model, variables, inputs, train=True, mutable=STATISTICS, key=key) for key in (1, 1, 2)]
    (first, moved), (again, _), (other, _) = draws
    np.testing.assert_array_equal(first, again)
    for different in (other, evaluated):
        assert np.abs(first - different).max() > 0
    if "batch_stats" in variables:
        jax.tree.map(np.testing.assert_array_equal, frozen["batch_stats"], variables["batch_stats"])
        assert all(
            jax.tree.leaves(
                jax.tree.map(lambda a, b: np.any(a != b), moved["batch_stats"], frozen["batch_stats"])
            )
        )


def test_vmap_over_params_is_a_loop():
    model, shape = SMALL["lenet"]
    variables, inputs = start(model, shape)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf + 0.1]), variables)

    def gradient(variables):
        rest = {name: value for name, value in variables.items() if name != "params"}

        def loss(params):
            logits, _ = model.apply(
                {**rest, "params": params},
                inputs,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(5)},
            )
            return jnp.sum(logits**2)

        return jax.value_and_grad(loss)(variables["params"])

    gradient = jax.jit(gradient)
    together = jax.jit(jax.vmap(gradient))(stacked)
    for i in range(2):
        alone = gradient(jax.tree.map(lambda leaf, i=i: leaf[i], stacked))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, atol=2e-4 * (1 + np.abs(b).max()))


@small
def test_bfloat16_in_bfloat16_out(model, shape):
    variables, inputs = start(model, shape)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables["params"])
    exact = apply(model, variables, inputs, train=False)
    got = apply(model, {**variables, "params": low}, inputs.astype(jnp.bfloat16), train=False)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), exact, atol=0.05 * (1 + np.abs(exact).max()))
    mixed = jax.eval_shape(lambda x: model.apply(variables, x, train=False), inputs.astype(jnp.bfloat16))
    assert mixed.dtype == jnp.float32


class PlainLeNet(nn.Module):
    """The same network with flax.linen's convolution and pooling."""

    @nn.compact
    def __call__(self, x):
        for features, window in ((2, (3, 3)), (3, (2, 2))):
            x = nn.max_pool(nn.Conv(features, (5, 5), padding="VALID")(x), window, window)
            x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        x = nn.Dense(5)(x.reshape(x.shape[0], -1))
        return nn.Dense(10)(nn.relu(nn.BatchNorm(use_running_average=False)(x)))


def test_lenet_is_the_plain_flax_network():
    model, shape = LeNet(channels=(2, 3), hidden=5, dropout_rate=0.0), (8, 22, 22, 1)
    variables, inputs = start(model, shape)

    def gradient(variables, network, **mode):
        def loss(params):
            logits, _ = network.apply(
                {**variables, "params": params}, inputs, mutable=["batch_stats"], **mode
            )
            return jnp.sum(jnp.sin(logits))

        return jax.grad(loss)(variables["params"])

    ours, theirs = jax.jit(lambda v: (gradient(v, model, train=True), gradient(v, PlainLeNet())))(variables)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * (1 + np.abs(b).max()))


@pytest.mark.parametrize("rate", [0.25, 0.3, 1e-6])
def test_dropout_law(rate):
    inputs = jnp.full((301, 333), 2.0)
    got = Dropout(rate).apply({}, inputs, train=True, rngs={"dropout": jax.random.key(0)})
    kept = round((1 - rate) * 2**16) / 2**16
    np.testing.assert_allclose(np.unique(got[got > 0]), [2 / kept], rtol=1e-6)
    deviation = np.sqrt(kept * (1 - kept) / inputs.size)
    assert abs(np.mean(np.asarray(got) > 0) - kept) <= 4 * deviation
    # Halves of one word must be independent: no correlation between the first and the second half of the draw.
    if kept < 1:
        mask = np.asarray(got).ravel() > 0
        half = -(-mask.size // 2)
        assert abs(np.corrcoef(mask[: mask.size - half], mask[half:])[0, 1]) <= 4 / np.sqrt(half)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dropout_keeps_the_dtype_and_zero_is_the_identity(dtype):
    inputs = jnp.ones(7, dtype)
    assert Dropout(0.5).apply({}, inputs, train=True, rngs={"dropout": jax.random.key(0)}).dtype == dtype
    assert Dropout(0.0).apply({}, inputs, train=True) is inputs
    assert Dropout(0.5).apply({}, inputs, train=False) is inputs


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: MLP(100),
            TypeError,
            r"features must be a sequence of hidden widths, as in \(100,\), got 100",
        ),
        (lambda: MLP((3, 0)), ValueError, r"features\[1\] must be at least 1, got 0"),
        (lambda: MLP((3,), num_classes=1.0), TypeError, "num_classes must be a Python integer, got 1.0"),
        (lambda: MLP((3,), dropout_rate=1.0), ValueError, r"dropout_rate must be in \[0, 1\), got 1.0"),
        (lambda: Dropout(-0.1), ValueError, r"rate must be in \[0, 1\), got -0.1"),
        (lambda: LeNet(dropout_rate=2), ValueError, "dropout_rate must be in"),
        (lambda: LeNet(channels=(3,)), ValueError, r"channels must be a pair of integers, got \(3,\)"),
        (lambda: LeNet(hidden=0), ValueError, "hidden must be at least 1"),
        (lambda: AllCNN(penultimate_kernel=2), ValueError, "penultimate_kernel must be 1 or 3, got 2"),
        (lambda: AllCNN(input_dropout_rate=1), ValueError, "input_dropout_rate must be in"),
        (
            lambda: start(MLP((3,)), (5,)),
            ValueError,
            r"inputs must have a leading batch axis, .* got shape \(5,\)",
        ),
        (
            lambda: start(LeNet(), (28, 28, 1)),
            ValueError,
            r"inputs must have shape \[batch, height, width, chan",
        ),
        (lambda: start(LeNet(), (1, 12, 12, 1)), ValueError, "kernel has height 5, larger"),
        (lambda: start(AllCNN(), (32, 32, 3)), ValueError, r"got \(32, 32, 3\)"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
