"""Norms of layers against the dense matrices of the layers themselves, and their product against what networks do."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxopt_pde import robustness
from jaxopt_pde.robustness import ConvolutionLayer, DenseLayer

# Relative excess allowed to "exact" norms: the rounding that is added on purpose, 4 eps a term, below 1e-12 in float64.
ROUNDING = 1e-12


def matrix_norm(matrix, norm, output_norm):
    """‖W‖_{p→r} of y = W x in NumPy."""
    if norm == output_norm:
        return np.linalg.norm(matrix, norm)
    dual = {1: math.inf, 2: 2, math.inf: 1}[norm]
    if math.isinf(output_norm):
        return np.linalg.norm(matrix, dual, axis=1).max()
    return np.linalg.norm(matrix, output_norm, axis=0).max()


@pytest.mark.parametrize(
    ("norm", "output_norm"), [(2, None), (math.inf, None), (1, None), (2, "inf"), (1, math.inf), (1, 2)]
)
def test_dense_norms(x64, norm, output_norm):
    kernel = jax.random.normal(jax.random.key(0), (5, 4))
    target = norm if output_norm is None else float(output_norm)
    true = matrix_norm(np.asarray(kernel).T, norm, target)
    got = float(robustness.dense_norm(kernel, norm, output_norm))
    assert true <= got <= true * (1 + ROUNDING)


@functools.lru_cache
def layer_matrix(shape, image, strides, padding, circular=False, dtype="float64"):
    """A random kernel and the matrix of its layer, by pushing the unit images through ``lax.conv``."""
    kernel = jax.random.normal(jax.random.key(sum(shape)), shape, dtype)
    units = jnp.eye(image[0] * image[1] * shape[2], dtype=dtype).reshape(-1, *image, shape[2])
    if circular:
        units = jnp.pad(units, ((0, 0), (0, shape[0] - 1), (0, shape[1] - 1), (0, 0)), mode="wrap")
    layer = jax.jit(
        lambda x: lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    return kernel, np.asarray(layer(units).reshape(len(units), -1), np.float64).T


LAYERS = [
    ((3, 3, 2, 3), (6, 5), (1, 1), "SAME"),
    ((3, 3, 2, 3), (6, 5), (1, 1), "VALID"),
    ((3, 3, 2, 3), (6, 5), (2, 2), "SAME"),
    ((3, 2, 2, 3), (6, 5), (2, 3), ((2, 1), (0, 3))),
    ((2, 2, 1, 4), (6, 6), (2, 2), "VALID"),
    ((5, 5, 1, 2), (6, 6), (3, 3), ((4, 4), (4, 4))),
    ((1, 1, 3, 2), (4, 4), (3, 3), "VALID"),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_convolution_norms_bound_every_padding_and_stride(x64, layer):
    _, image, strides, _ = layer
    kernel, matrix = layer_matrix(*layer)
    bound = functools.partial(robustness.convolution_norm, kernel, image, strides=strides)
    for norm, output_norm in [(2, 2), (1, 1), (math.inf, math.inf), (2, math.inf), (1, math.inf)]:
        assert float(bound(norm=norm, output_norm=output_norm)) >= matrix_norm(matrix, norm, output_norm)


def test_the_zero_padded_bound_is_within_a_quarter_of_the_exact_norm(x64):
    """Not vacuous already on 6x5 images, with strides also."""
    for layer in (LAYERS[0], LAYERS[2]):
        kernel, matrix = layer_matrix(*layer)
        got = float(robustness.convolution_norm(kernel, layer[1], strides=layer[2]))
        assert got <= 1.25 * np.linalg.norm(matrix, 2)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 1)])
def test_circular_convolutions_are_exact(x64, strides):
    kernel, matrix = layer_matrix((3, 3, 2, 3), (6, 4), strides, "VALID", circular=True)
    got = float(robustness.convolution_norm(kernel, (6, 4), strides=strides, circular=True))
    true = np.linalg.norm(matrix, 2)
    assert true <= got <= true * (1 + ROUNDING)


def test_the_periodic_grid_must_hold_the_whole_convolution(x64):
    """Taps (1, ½, −½) peak between the frequencies of 3 points: on so small a grid the "bound" is below the norm √2."""
    taps = np.array([1.0, 0.5, -0.5])
    true = np.linalg.norm([np.convolve(unit, taps) for unit in np.eye(3)], 2)
    assert true == pytest.approx(math.sqrt(2))
    assert abs(np.fft.fft(taps)).max() < 0.95 * true
    assert float(robustness.convolution_norm(jnp.asarray(taps).reshape(3, 1, 1, 1), (3, 1))) >= true


def test_power_iteration_stays_below_and_the_bound_above(x64):
    """Ten steps of power iteration on the layer underestimate its norm, which is why nothing here is built on it."""
    kernel, matrix = layer_matrix(*LAYERS[0])
    x = np.random.default_rng(0).normal(size=matrix.shape[1])
    for _ in range(10):
        x = matrix.T @ (matrix @ x)
        x /= np.linalg.norm(x)
    assert (
        np.linalg.norm(matrix @ x)
        < np.linalg.norm(matrix, 2)
        <= float(robustness.convolution_norm(kernel, (6, 5)))
    )


def test_float32_bounds_are_not_rounded_below_the_true_norms():
    for seed in range(20):
        kernel = jax.random.normal(jax.random.key(seed), (30, 20))
        wide = np.asarray(kernel, np.float64).T
        for norm in (1, 2, math.inf):
            got = float(robustness.dense_norm(kernel, norm))
            assert (
                matrix_norm(wide, norm, norm)
                <= got
                <= matrix_norm(wide, norm, norm) * (1 + 50 * 4 * 1.2e-7 * 1.1)
            )


def test_difference_norms(x64):
    kernel = jax.random.normal(jax.random.key(0), (5, 3))
    for norm, dual in ((1, math.inf), (2, 2), (math.inf, 1)):
        pairs = np.asarray(robustness.difference_norms(kernel, norm))
        for i in range(3):
            for j in range(3):
                np.testing.assert_allclose(
                    pairs[i, j], np.linalg.norm(kernel[:, i] - kernel[:, j], dual), rtol=1e-12
                )


def chain():
    """A small LeNet in arrays: convolution, max-pool, scale, relu, stride-2 convolution, tanh, dense."""
    keys = jax.random.split(jax.random.key(3), 4)
    first, second = jax.random.normal(keys[0], (3, 3, 2, 3)), jax.random.normal(keys[1], (2, 2, 3, 4))
    dense, scale = jax.random.normal(keys[2], (2 * 2 * 4, 3)), jnp.array([1.5, -0.7, 0.3])
    convolve = functools.partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def logits_fn(x):
        y = (
            convolve(x, first, (1, 1), "SAME").reshape(-1, 4, 2, 4, 2, 3).max((2, 4))
            * scale[None, None, None]
            + 0.3
        )
        y = jnp.tanh(convolve(jax.nn.relu(y), second, (2, 2), "SAME"))
        return y.reshape(len(y), -1) @ dense - 1.0

    layers = [
        ConvolutionLayer(first, (8, 8), scale=scale),
        ConvolutionLayer(second, (4, 4), (2, 2)),
        DenseLayer(dense),
    ]
    return logits_fn, layers, jax.random.normal(keys[3], (16, 8, 8, 2))


def test_the_product_bounds_a_convolutional_network(x64):
    """Its gradients in all three norms (max‖∇fᵢ‖_q ≤ L_{p→∞}) and its Jacobian's spectral norm, at 16 points."""
    logits_fn, layers, xs = chain()
    jacobians = jax.jit(jax.vmap(jax.jacrev(lambda x: logits_fn(x[None])[0])))(xs).reshape(16, 3, -1)
    for norm, dual in ((1, math.inf), (2, 2), (math.inf, 1)):
        steepest = float(jnp.linalg.norm(jacobians, dual, axis=2).max())
        assert steepest <= float(robustness.lipschitz_upper_bound(layers, norm=norm))
    assert float(jnp.linalg.svd(jacobians, compute_uv=False).max()) <= float(
        robustness.lipschitz_upper_bound(layers, output_norm=2)
    )


def test_the_product_is_exact_for_one_layer_and_for_aligned_ones(x64):
    """diag(2, 1), diag(3, 1), then (1, 0): 6 in every norm; the scale multiplies, its sign does not matter."""
    layers = [DenseLayer(jnp.diag(jnp.array(d))) for d in ([2.0, 1.0], [3.0, 1.0])]
    last = DenseLayer(jnp.array([[1.0], [0.0]]), scale=jnp.array([-2.0]))
    for norm in (1, 2, "inf"):
        assert float(robustness.lipschitz_upper_bound([*layers, last], norm=norm)) == pytest.approx(
            12, rel=1e-13
        )


@pytest.mark.slow
def test_flax_networks_by_the_recipe_and_as_a_penalty():
    """LeNet's params and statistics as layers bound its logits' gradients; the bound is differentiable and jits."""
    models = pytest.importorskip("jaxopt_pde.models")
    model, images = (
        models.LeNet(channels=(3, 4), hidden=5),
        jax.random.uniform(jax.random.key(0), (4, 22, 22, 1)),
    )
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(1), images, train=False)

    def bound(variables):
        params, statistics = variables["params"], variables["batch_stats"]
        scales = [
            params[name]["scale"] / jnp.sqrt(statistics[name]["var"] + 1e-5) for name in sorted(statistics)
        ]
        return robustness.lipschitz_upper_bound(
            [
                ConvolutionLayer(params["Conv_0"]["kernel"], (22, 22), scale=scales[0]),
                ConvolutionLayer(params["Conv_1"]["kernel"], (6, 6), scale=scales[1]),
                DenseLayer(params["Dense_0"]["kernel"], scales[2]),
                DenseLayer(params["Dense_1"]["kernel"]),
            ]
        )

    value, gradient = jax.jit(jax.value_and_grad(bound))(variables)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    one = lambda x: model.apply(variables, x[None], train=False)[0]
    slopes = jax.jit(jax.vmap(jax.jacrev(one)))(images).reshape(4, 10, -1)
    assert float(jnp.linalg.norm(slopes, axis=2).max()) <= float(value)
    # Homogeneous of degree one in the last kernel, so ∂L·K = L (Euler).
    last = variables["params"]["Dense_1"]["kernel"], gradient["params"]["Dense_1"]["kernel"]
    assert float(jnp.vdot(*last)) == pytest.approx(float(value), rel=1e-5)


def test_bad_layers():
    kernel = jnp.ones((3, 3, 1, 2))
    with pytest.raises(ValueError, match="norm must be one of 1, 2, inf, got 'fro'"):
        robustness.dense_norm(jnp.ones((2, 2)), "fro")
    with pytest.raises(ValueError, match="norm=inf to output_norm=2 has no closed form"):
        robustness.dense_norm(jnp.ones((2, 2)), "inf", 2)
    with pytest.raises(ValueError, match="is not offered for convolutions"):
        robustness.convolution_norm(kernel, (8, 8), norm=1, output_norm=2)
    with pytest.raises(ValueError, match="kernel must have 4 axes"):
        robustness.convolution_norm(jnp.ones((2, 2)), (8, 8))
    with pytest.raises(ValueError, match="input_shape must be a pair"):
        robustness.convolution_norm(kernel, 8)
    with pytest.raises(ValueError, match=r"strides\[0\] must be at least 1, got 0"):
        robustness.convolution_norm(kernel, (8, 8), strides=(0, 1))
    with pytest.raises(ValueError, match="input_shape must be a multiple of strides"):
        robustness.convolution_norm(kernel, (7, 8), strides=(2, 2), circular=True)
    with pytest.raises(ValueError, match="at least one layer"):
        robustness.lipschitz_upper_bound([])
    with pytest.raises(ValueError, match=r"layers\[0\] must be a DenseLayer"):
        robustness.lipschitz_upper_bound([jnp.ones((2, 2))])
    with pytest.raises(ValueError, match=r"scale must have shape \(2,\)"):
        robustness.lipschitz_upper_bound([DenseLayer(jnp.ones((3, 2)), jnp.ones(3))])
