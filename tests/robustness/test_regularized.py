"""The fused value and gradient against automatic differentiation of the objective written term by term."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import robustness

NORMS = (1, 2, math.inf)
MEAN, MAX = 0.3, 0.2
WEIGHTS = {
    "both": (MEAN, MAX),
    "mean": (MEAN, 0.0),
    "max": (0.0, MAX),
    "none": (0.0, 0.0),
}
METHODS = ("exact", "finite_difference")


def loss_fn(params, x, y):
    """A tanh network of 5 inputs and 3 classes."""
    logits = jnp.tanh(x @ params["first"] + params["bias"]) @ params["second"]
    return -jax.nn.log_softmax(logits)[y]


def make_problem():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "first": jax.random.normal(keys[0], (5, 7)),
        "bias": jax.random.normal(keys[1], (7,)),
        "second": jax.random.normal(keys[2], (7, 3)),
    }
    return params, jax.random.normal(keys[3], (6, 5)), jnp.arange(6) % 3


@functools.partial(jax.jit, static_argnames=("norm", "names"))
def everything(params, xs, ys, norm, names=tuple(WEIGHTS)):
    """Fused by both methods and all choices of weights, and every separate term, as one program."""
    # The rounding of a separate quotient, eps·|ℓ|/h, is out of the way of float32 only at a larger step.
    step = 1e-6 if xs.dtype == jnp.float64 else 1e-2
    mean = lambda params: jax.vmap(functools.partial(loss_fn, params))(xs, ys).mean()
    fused, terms = {}, {("loss", "mean"): jax.value_and_grad(mean)(params)}
    for method in METHODS:
        options = {"norm": norm, "method": method, "step": step}
        for name in names:
            weights = dict(zip(("mean_weight", "max_weight"), WEIGHTS[name], strict=True))
            fn = robustness.regularized_value_and_grad(loss_fn, **weights, **options)
            fused[method, name] = fn(params, xs, ys)
        for reduce in ("mean", "max"):
            term = lambda params, reduce=reduce, options=options: robustness.gradient_penalty(
                functools.partial(loss_fn, params), reduce=reduce, **options
            )(xs, ys)
            terms[method, reduce] = jax.value_and_grad(term)(params)
    return fused, terms


def distance(a, b):
    """Relative, of two trees as vectors."""
    a, b = (jax.flatten_util.ravel_pytree(tree)[0] for tree in (a, b))
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


def compare(norm, exact_tolerance, difference_tolerance, **options):
    params, xs, ys = make_problem()
    fused, terms = everything(params, xs, ys, norm, **options)
    for (method, name), ((value, _), gradient) in fused.items():
        add = lambda *trees, name=name: jax.tree.map(
            lambda a, b, c: a + WEIGHTS[name][0] * b + WEIGHTS[name][1] * c, *trees
        )
        expected = add(terms["loss", "mean"], terms[method, "mean"], terms[method, "max"])[1]
        exact = add(terms["loss", "mean"], terms["exact", "mean"], terms["exact", "max"])[0]
        np.testing.assert_allclose(value, exact, rtol=exact_tolerance, err_msg=name)
        tolerance = exact_tolerance if method == "exact" else difference_tolerance
        assert distance(gradient, expected) < tolerance, (method, name)
        assert all(leaf.dtype == xs.dtype for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("norm", NORMS)
def test_the_numbers_are_those_of_the_separate_terms(x64, norm):
    """Both methods difference the same gradients at the same points: they agree far below O(h), to eps/h = 2e-10."""
    compare(norm, 1e-13, 1e-9)


def test_in_float32():
    compare(
        2, 1e-5, 1e-4, names=("both",)
    )  # rounding: 10 units of the last place, and the same over h = 1e-2


def test_parts_are_the_terms(x64):
    params, xs, ys = make_problem()
    fused, _ = everything(params, xs, ys, 2)
    gradients = np.asarray(jax.vmap(jax.grad(loss_fn, argnums=1), (None, 0, 0))(params, xs, ys))
    norms = np.linalg.norm(gradients, axis=1)
    for (_, name), ((value, parts), _) in fused.items():
        mean_weight, max_weight = WEIGHTS[name]
        np.testing.assert_allclose(parts[1:], [norms.mean(), norms.max()], rtol=1e-13)
        total = parts.loss + mean_weight * parts.mean_norm + max_weight * parts.max_norm
        assert float(value) == pytest.approx(float(total), rel=1e-14)


def test_traced_weights_batches_and_one_compilation(x64):
    """A weight that is a schedule's value recompiles nothing, and at 0 gives what a Python 0.0 gives."""
    params, xs, ys = make_problem()
    batch = lambda params, xs, ys: jax.vmap(functools.partial(loss_fn, params))(xs, ys)
    traces = []

    @jax.jit
    def step(params, mean_weight, max_weight, h):
        traces.append(1)
        options = {"mean_weight": mean_weight, "max_weight": max_weight, "step": h, "batched": True}
        return [
            robustness.regularized_value_and_grad(batch, method=method, **options)(params, xs, ys)
            for method in METHODS
        ]

    fused, _ = everything(params, xs, ys, 2)
    for name, (mean_weight, max_weight) in WEIGHTS.items():
        for method, got in zip(METHODS, step(params, mean_weight, max_weight, 1e-6), strict=True):
            ((value, _), gradient), ((other, _), expected) = got, fused[method, name]
            assert float(value) == pytest.approx(float(other), rel=1e-13)
            assert distance(gradient, expected) < (1e-13 if method == "exact" else 1e-9)
    assert len(traces) == 1


@pytest.mark.parametrize("method", METHODS)
def test_zero_gradients_ties_and_nan(method):
    """ℓ = w·relu(x), where x < 0 has none; among two steepest examples the first is differentiated; NaN stays."""
    linear = lambda w, x, y: y @ (w * jax.nn.relu(x))
    fn = jax.jit(
        robustness.regularized_value_and_grad(linear, mean_weight=0.5, max_weight=2.0, method=method)
    )
    w, flat = jnp.array([3.0, 4.0]), -jnp.ones((2, 2))
    (value, _), gradient = fn(w, flat, jnp.ones((2, 2)))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    # Gradients (3, 0) and (0, 3): ties at 3, so E‖∇ℓ‖ has derivative (½, ½·¾) and the max (1, 0).
    ys = jnp.array([[1.0, 0.0], [0.0, 0.75]])
    (value, parts), gradient = fn(w, jnp.ones((2, 2)), ys)
    loss_gradient = np.array([0.5, 0.375])
    np.testing.assert_allclose(parts, [3.0, 3.0, 3.0], rtol=1e-6)
    # Differences of float32 gradients over h = 1e-3: 6e-8·1e3·λ.
    tolerance = 1e-6 if method == "exact" else 5e-4
    np.testing.assert_allclose(gradient, 1.5 * loss_gradient + np.array([2.0, 0.0]), atol=tolerance)
    (value, _), gradient = fn(w.at[0].set(jnp.nan), jnp.ones((2, 2)), ys)
    assert jnp.isnan(value)
    assert jnp.isnan(gradient).any()


def test_fewer_products_than_the_separate_terms():
    """Multiplications of a dense network as XLA counts them: the docstring's 6 for 3, to the first and last layers."""
    sizes = (64, 64, 64, 64, 4)
    keys = jax.random.split(jax.random.key(0), len(sizes))
    shapes = itertools.pairwise(sizes)
    params = [jax.random.normal(key, shape) / 8 for key, shape in zip(keys[1:], shapes, strict=True)]
    xs = jax.random.normal(keys[0], (64, 64))

    def losses(params, xs, ys):
        for kernel in params[:-1]:
            xs = jnp.tanh(xs @ kernel)
        return ((xs @ params[-1] - ys) ** 2).sum(1)

    def cost(function):
        return jax.jit(function).lower(params, xs, jnp.zeros((64, 4))).compile().cost_analysis()["flops"]

    plain = cost(jax.value_and_grad(lambda *data: losses(*data).mean()))
    products = 2 * 64**3
    for method in METHODS:
        fused = robustness.regularized_value_and_grad(losses, mean_weight=0.1, method=method, batched=True)
        # Three square layers: 6·3 products against 3·3 − 1; tanh and the rest are of one order less, 1/64 each.
        assert cost(fused) - plain < (18 - 8 + 1.5) * products
    one = lambda params: lambda xs, ys: losses(params, xs, ys)
    whole = lambda p, x, y: (
        one(p)(x, y).mean() + 0.1 * robustness.gradient_penalty(one(p), batched=True)(x, y)
    )
    assert cost(jax.value_and_grad(whole)) - plain > (18 - 8 + 1.5) * products


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mean_weight": -1.0}, ValueError, "mean_weight must be finite and at least 0"),
        ({"max_weight": -1.0}, ValueError, "max_weight must be finite and at least 0"),
        ({"max_weight": lambda count: 0.1}, TypeError, "max_weight must be a number or an array"),
        ({"norm": 3}, ValueError, "norm must be one of 1, 2, inf"),
        ({"method": "central"}, ValueError, "method must be one of 'exact', 'finite_difference'"),
        ({"step": 0.0}, ValueError, "step must be positive"),
    ],
)
def test_bad_settings(options, error, message):
    with pytest.raises(error, match=message):
        robustness.regularized_value_and_grad(loss_fn, **options)


def test_bad_calls():
    params, xs, ys = make_problem()
    fn = robustness.regularized_value_and_grad(loss_fn, mean_weight=0.1)
    with pytest.raises(ValueError, match="as many examples as xs, 6"):
        fn(params, xs, ys[:5])
    with pytest.raises(TypeError, match="params"):
        fn(params | {"bias": jnp.arange(7)}, xs, ys)
    with pytest.raises(ValueError, match="loss_fn must return a scalar"):
        robustness.regularized_value_and_grad(lambda p, x, y: x)(params, xs, ys)
