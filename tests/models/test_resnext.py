"""ResNeXt against its layer table and a plain network written with lax; convolution in groups."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from jaxopt_pde.models import ResNeXt, grouped_convolve, recompute_batch_stats

SHAPE = (4, 7, 8, 3)  # an odd side, so that halving drops a row
draw = np.random.default_rng(0)


def start(model, shape=SHAPE):
    """Random variables and inputs, drawn by NumPy: compiling ``init`` would take most of the test."""
    inputs = jnp.asarray(draw.uniform(-1, 1, shape), jnp.float32)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), inputs)
    leaf = lambda leaf: jnp.asarray(draw.normal(0.3, 0.5, leaf.shape), leaf.dtype)
    params = jax.tree.map(leaf, shapes["params"])
    return {
        "params": params,
        "batch_stats": jax.tree.map(lambda s: abs(leaf(s)) + 0.5, shapes["batch_stats"]),
    }, inputs


def convolution(inputs, kernel, groups=1, strides=(1, 1), padding="SAME"):
    return lax.conv_general_dilated(
        inputs,
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def normalise(x, scale, bias):
    mean, variance = (moment((0, 1, 2), keepdims=True) for moment in (x.mean, x.var))
    return (x - mean) / jnp.sqrt(variance + 1e-5) * jnp.reshape(scale, (1, 1, 1, -1)) + bias.reshape(
        1, 1, 1, -1
    )


def plain_logits(params, inputs, depths, cardinality):
    """The docstring's network in training, each branch by itself."""
    kernels = iter([params[f"Conv_{i}"]["kernel"] for i in range(sum(depths) + len(depths))])
    grouped = iter([params[f"_GroupedConv_{i}"]["kernel"] for i in range(sum(depths))])
    norms = iter([params[f"BatchNorm_{i}"] for i in range(2 * sum(depths) + len(depths))])
    x = jax.nn.relu(normalise(convolution(inputs, next(kernels)), 1.0, **next(norms)))
    for stage, depth in enumerate(depths):
        if stage:
            x = jax.nn.relu(normalise(convolution(x, next(kernels)), 1.0, **next(norms)))
            x = lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
        for _ in range(depth):
            first, second, before, after = next(kernels), next(grouped), next(norms), next(norms)
            total = 0.0
            for branch in range(cardinality):
                mine = slice(branch * x.shape[3], (branch + 1) * x.shape[3])
                one, two = [{name: leaf[mine] for name, leaf in norm.items()} for norm in (before, after)]
                hidden = jax.nn.relu(normalise(convolution(x, first[..., mine]), **one))
                total += normalise(convolution(hidden, second[..., mine]), **two)
            x = jax.nn.relu(x + total / cardinality)
    return x.mean((1, 2)) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"].reshape(1, -1)


@pytest.mark.parametrize(("cardinality", "depths"), [(1, (1,)), (3, (1, 1))])
def test_value_and_gradient_are_those_of_the_plain_network(cardinality, depths):
    """Cardinality 1 is the basic residual block, 3 the mean of three."""
    model = ResNeXt(num_classes=5, depths=depths, cardinality=cardinality, width=4)
    variables, inputs = start(model)

    def train_logits(params, inputs):
        return model.apply({**variables, "params": params}, inputs, train=True, mutable=["batch_stats"])[0]

    plain = functools.partial(plain_logits, depths=depths, cardinality=cardinality)

    def value_and_gradients(logits, params, inputs):
        loss = lambda *args: jnp.sum(jnp.sin(logits(*args)))
        return logits(params, inputs), jax.grad(loss, argnums=(0, 1))(params, inputs)

    compare = jax.jit(lambda *args: [value_and_gradients(form, *args) for form in (train_logits, plain)])
    for ours, theirs in zip(*map(jax.tree.leaves, compare(variables["params"], inputs)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4 * (1 + np.abs(theirs).max()))


def layer_table(depths, cardinality, width, channels=3, num_classes=10):
    """Weights and shifts counted by hand."""
    total = 9 * channels * width + width
    for stage, depth in enumerate(depths):
        features = 2**stage * width
        total += (features // 2 * features + features) if stage else 0
        total += depth * cardinality * (2 * 9 * features**2 + 2 * 2 * features)
    return total + features * num_classes + num_classes


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [({}, 3_892_298), ({"depths": (2, 1), "cardinality": 3, "width": 5}, None)],
)
def test_sizes(fields, parameters):
    model, images = ResNeXt(**fields), jnp.ones((2, 32, 32, 3))
    variables = jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == layer_table(model.depths, model.cardinality, model.width)
    assert parameters is None or count == parameters
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    if not fields:  # 34 layers of weights, as the name says
        assert sum(leaf.ndim > 1 for leaf in jax.tree.leaves(variables["params"])) == 34
    logits = jax.eval_shape(lambda v: model.apply(v, images, train=False), variables)
    assert (logits.shape, logits.dtype) == ((2, 10), jnp.dtype("float32"))


MODEL = ResNeXt(depths=(1, 1), width=4)


@pytest.fixture(scope="module")
def small():
    return start(MODEL)


BOUND = 1.0


@jax.jit
def evaluate(variables, inputs):
    """The logits without and with tanh, in one program."""
    return [model.apply(variables, inputs, train=False) for model in (MODEL, MODEL.clone(tanh=BOUND))]


def test_tanh_bounds_the_logits_and_keeps_the_largest(small):
    free, bounded = (np.asarray(logits, np.float64) for logits in evaluate(*small))
    assert np.abs(free).max() > BOUND
    np.testing.assert_allclose(bounded, BOUND * np.tanh(free / BOUND), rtol=1e-4, atol=1e-5)
    # The largest stays the largest, though float32 rounds the tanh of large logits to one number.
    np.testing.assert_array_equal(
        np.take_along_axis(bounded, free.argmax(1)[:, None], 1)[:, 0], bounded.max(1)
    )


def test_the_best_loss_that_tanh_leaves():
    """log(1 + (C - 1) e^(-2b)), attained at logits ±b; the docstring's 0.8 and 4e-4."""
    for bound, figure in ((1.0, 0.8), (5.0, 4e-4)):
        logits = bound * np.where(np.arange(10) == 3, 1.0, -1.0)
        best = np.log(np.exp(logits).sum()) - logits[3]
        np.testing.assert_allclose(best, np.log1p(9 * np.exp(-2 * bound)), rtol=1e-9)
        np.testing.assert_allclose(best, figure, rtol=0.03)


def test_statistics_of_one_batch_make_evaluation_equal_training(small):
    """recompute_batch_stats on one batch gives the statistics that training normalises this batch by."""
    variables, inputs = small

    @jax.jit
    def both(variables, inputs):
        trained, moved = MODEL.apply(variables, inputs, train=True, mutable=["batch_stats"])
        statistics = recompute_batch_stats(MODEL, variables, inputs[None])
        evaluated = MODEL.apply({**variables, "batch_stats": statistics}, inputs, train=False)
        return trained, evaluated, moved["batch_stats"], statistics

    trained, evaluated, moved, statistics = both(variables, inputs)
    np.testing.assert_allclose(evaluated, trained, atol=2e-4 * (1 + np.abs(trained).max()))
    expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, variables["batch_stats"], statistics)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), moved, expected)


def test_bfloat16_in_bfloat16_out(small):
    variables, inputs = small
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables["params"])
    outputs = evaluate({**variables, "params": low}, inputs.astype(jnp.bfloat16))
    for got, exact in zip(outputs, evaluate(*small), strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(jnp.float32), exact, atol=0.05 * (1 + np.abs(exact).max()))


@pytest.mark.slow
def test_a_small_network_learns_random_labels_of_random_images():
    inputs = jnp.asarray(draw.uniform(0, 1, (32, 8, 8, 3)), jnp.float32)
    labels = jnp.asarray(draw.integers(0, 10, 32))
    model, tx = ResNeXt(depths=(1, 1), width=8), optax.adam(0.01)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), inputs)
    state = (variables["params"], variables["batch_stats"], tx.init(variables["params"]))

    @jax.jit
    def steps(state):
        def step(state, _):
            params, batch_stats, opt_state = state

            def loss(params):
                variables = {"params": params, "batch_stats": batch_stats}
                logits, moved = model.apply(variables, inputs, train=True, mutable=["batch_stats"])
                value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
                return value, (moved["batch_stats"], jnp.mean(logits.argmax(-1) != labels))

            (value, (batch_stats, error)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
            updates, opt_state = tx.update(gradient, opt_state)
            return (optax.apply_updates(params, updates), batch_stats, opt_state), (value, error)

        return lax.scan(step, state, length=40)

    (params, _, _), (values, errors) = steps(state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert values[0] > 1.5
    assert values[-1] < 0.2
    assert errors[-1] == 0


@pytest.mark.parametrize(
    ("groups", "strides", "padding"), [(2, (2, 1), "SAME"), (3, (1, 1), ((1, 0), (0, 2)))]
)
def test_grouped_convolution_is_that_of_lax(groups, strides, padding):
    inputs = jnp.asarray(draw.normal(size=(2, 7, 6, 6)), jnp.float32)
    kernel = jnp.asarray(draw.normal(size=(3, 2, 6 // groups, 12)), jnp.float32)
    ours = functools.partial(grouped_convolve, groups=groups, strides=strides, padding=padding)
    theirs = functools.partial(convolution, groups=groups, strides=strides, padding=padding)

    def value_and_gradients(form):
        loss = lambda *args: jnp.sum(jnp.sin(form(*args)))
        return form(inputs, kernel), jax.grad(loss, argnums=(0, 1))(inputs, kernel)

    got, expected = jax.jit(lambda: [value_and_gradients(form) for form in (ours, theirs)])()
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * (1 + np.abs(b).max()))


def test_grouped_convolution_takes_the_quick_form_of_each_platform():
    trace = jax.jit(functools.partial(grouped_convolve, groups=4)).trace(
        jnp.ones((1, 4, 4, 8)), jnp.ones((3, 3, 2, 8))
    )
    programs = {
        platform: trace.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda")
    }
    assert "feature_group_count = 4" in programs["cuda"]
    assert "dot_general" not in programs["cuda"]
    assert "convolution" not in programs["cpu"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ResNeXt(depths=5), TypeError, r"depths must be a sequence .* got 5"),
        (lambda: ResNeXt(depths=()), ValueError, r"depths must have at least one stage, got \(\)"),
        (lambda: ResNeXt(depths=(1, 0)), ValueError, r"depths\[1\] must be at least 1, got 0"),
        (lambda: ResNeXt(cardinality=2.0), TypeError, "cardinality must be a Python integer, got 2.0"),
        (lambda: ResNeXt(width=0), ValueError, "width must be at least 1, got 0"),
        (lambda: ResNeXt(num_classes=0), ValueError, "num_classes must be at least 1"),
        (lambda: ResNeXt(tanh=0.0), ValueError, "tanh must be positive and finite, got 0.0"),
        (lambda: ResNeXt(tanh=True), TypeError, "tanh must be a number"),
        (lambda: start(ResNeXt(), (1, 3, 9, 3)), ValueError, r"at least 4 pixels a side for 3 stages, got"),
        (lambda: start(ResNeXt(), (9, 9, 3)), ValueError, r"inputs must have shape \[batch, height, width"),
        (
            lambda: grouped_convolve(jnp.ones((1, 4, 4, 6)), jnp.ones((3, 3, 2, 6)), groups=2),
            ValueError,
            r"kernel must have shape \[height, width, channels / 2, features\].* got \(3, 3, 2, 6\)",
        ),
        (
            lambda: grouped_convolve(jnp.ones((1, 4, 4, 6)), jnp.ones((3, 3, 3, 5)), groups=2),
            ValueError,
            "features a multiple of groups = 2",
        ),
        (
            lambda: grouped_convolve(jnp.ones((1, 4, 4, 6)), jnp.ones((3, 3, 3, 6)), groups=0),
            ValueError,
            "groups must be at least 1, got 0",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
