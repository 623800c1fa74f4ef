"""Both forms of the convolution are one function, and both poolings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_pde.models import Conv, convolve, max_pool


def reference(inputs, kernel, strides, padding):
    return jax.lax.conv_general_dilated(
        inputs, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def derivatives(convolution, inputs, kernel, direction):
    """Value, gradients in both arguments, Hessian-vector product of a scalar in which y enters squared."""

    def loss(inputs, kernel):
        outputs = convolution(inputs, kernel)
        return jnp.sum(jnp.sin(outputs) * jnp.cos(jnp.arange(outputs.size)).reshape(outputs.shape))

    gradient = jax.grad(loss, argnums=(0, 1))
    value, product = jax.jvp(gradient, (inputs, kernel), direction)
    return convolution(inputs, kernel), value, product


def assert_close(got, expected, tolerance=2e-4):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        scale = 1 + np.max(np.abs(b), initial=0.0)
        np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, atol=tolerance)


def normals(*shapes):
    random = np.random.default_rng(sum(map(sum, shapes)))
    return [jnp.asarray(random.standard_normal(shape, np.float32)) for shape in shapes]


@st.composite
def problems(draw):
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    size = (draw(st.integers(kernel[0], 9)), draw(st.integers(kernel[1], 9)))
    channels, features = draw(st.sampled_from([1, 3, 8])), draw(st.integers(1, 4))
    strides = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    pairs = st.tuples(st.integers(0, 3), st.integers(0, 3))
    padding = draw(st.one_of(st.sampled_from(["SAME", "VALID"]), st.tuples(pairs, pairs)))
    return (draw(st.integers(1, 3)), *size, channels), (*kernel, channels, features), strides, padding


@settings(max_examples=6, deadline=None, derandomize=True)
@given(problems())
def test_value_gradients_and_hessian_product_are_those_of_lax(problem):
    image_shape, kernel_shape, strides, padding = problem
    inputs, kernel, *direction = normals(image_shape, kernel_shape, image_shape, kernel_shape)
    ours = functools.partial(convolve, strides=strides, padding=padding)
    theirs = functools.partial(reference, strides=strides, padding=padding)
    compare = jax.jit(lambda *args: [derivatives(form, *args) for form in (ours, theirs)])
    got, expected = compare(inputs, kernel, tuple(direction))
    assert_close(got, expected)


@pytest.mark.parametrize("channels", [1, 16], ids=["one GEMM", "a GEMM per row"])
@pytest.mark.parametrize("axes", [(None, 0), (0, None), (0, 0)], ids=["kernels", "inputs", "both"])
def test_vmap_of_gradients_is_a_loop(channels, axes):
    inputs, kernels = normals((3, 2, 7, 6, channels), (3, 3, 3, channels, 4))
    arguments = [a if axis == 0 else a[0] for a, axis in zip((inputs, kernels), axes, strict=True)]

    @jax.jit
    def gradient(inputs, kernel):
        return jax.grad(lambda *a: jnp.sum(convolve(*a, padding="VALID") ** 3), argnums=(0, 1))(
            inputs, kernel
        )

    got = jax.jit(jax.vmap(gradient, axes))(*arguments)
    rows = [
        gradient(*(a[i] if axis == 0 else a for a, axis in zip(arguments, axes, strict=True)))
        for i in range(3)
    ]
    assert_close(got, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows))


# About five roundings of the largest entry in bfloat16, which sums in float32; elsewhere those of 200 summands.
DTYPES = [(jnp.bfloat16, 0.02), (jnp.float32, 2e-5), (jnp.float64, 1e-13)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("padding", ["VALID", ((3, 1), (0, 2))])
def test_direct_form_is_the_form_of_windows(x64, dtype, tolerance, padding):
    """Value, both gradients, Hessian-vector product, beside windows in float64; padding wider than the kernel too."""
    arrays = normals((2, 7, 6, 8), (3, 2, 8, 4), (2, 7, 6, 8), (3, 2, 8, 4))
    # Sums of 48 products, and of four times as many in the gradients: as large as the numbers summed.
    inputs, kernel, *direction = (
        a.astype(dtype) / scale for a, scale in zip(arrays, (1, 7, 1, 7), strict=True)
    )
    forms = [functools.partial(convolve, padding=padding, form=form) for form in ("direct", "windows")]
    got = jax.jit(functools.partial(derivatives, forms[0]))(inputs, kernel, tuple(direction))
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(dtype)}
    exact = [a.astype(jnp.float64) for a in (inputs, kernel, *direction)]
    expected = jax.jit(functools.partial(derivatives, forms[1]))(*exact[:2], tuple(exact[2:]))
    assert_close(jax.tree.map(lambda leaf: leaf.astype(jnp.float64), got), expected, tolerance)


@pytest.mark.parametrize("axes", [(None, 0), (0, None), (0, 0)], ids=["kernels", "inputs", "both"])
def test_vmap_of_the_direct_form(axes):
    inputs, kernels = normals((3, 2, 7, 6, 16), (3, 3, 3, 16, 4))
    arguments = [a if axis == 0 else a[0] for a, axis in zip((inputs, kernels), axes, strict=True)]

    def gradient(form, *arguments):
        loss = lambda *a: jnp.sum(convolve(*a, form=form) ** 3)
        return jax.vmap(jax.value_and_grad(loss, argnums=(0, 1)), axes)(*arguments)

    compare = jax.jit(lambda *a: [gradient(form, *a) for form in ("direct", "windows")])
    assert_close(*compare(*arguments))


def test_direct_form_is_taken_where_it_is_quick_and_transposes_to_the_plain_labels():
    """On a CPU; the gradient in the kernel keeps its GEMMs. The labels are those of XLA's fast kernel."""

    def text(channels, strides=(1, 1), platform="cpu", argnums=0, padding="SAME", size=8):
        inputs, kernel = normals((2, size, size, channels), (3, 3, channels, 4))
        module = Conv(4, (3, 3), strides, padding, use_bias=False, form="direct")
        loss = lambda inputs, kernel: jnp.sum(module.apply({"params": {"kernel": kernel}}, inputs) ** 2)
        traced = jax.jit(jax.grad(loss, argnums)).trace(inputs, kernel)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    deep = text(8)
    labels = "dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
    assert deep.count("stablehlo.convolution") == deep.count(labels) == 2
    assert deep.count("stablehlo.optimization_barrier") == 1
    assert "stablehlo.dot_general" not in deep
    kernel_gradient = text(8, argnums=1)
    assert kernel_gradient.count("stablehlo.convolution") == 1
    assert "stablehlo.dot_general" in kernel_gradient
    for slow in (text(5), text(8, (2, 1)), text(8, size=6, padding="VALID")):  # the last: 36 pixels to 16
        assert "stablehlo.convolution" not in slow
    accelerated = text(8, platform="cuda")
    assert accelerated.count("stablehlo.convolution") == 2
    assert "stablehlo.optimization_barrier" not in accelerated


def test_gradient_of_a_scan_in_float64(x64):
    inputs, kernel = (a.astype(jnp.float64) for a in normals((4, 2, 6, 6, 2), (3, 3, 2, 2)))

    def loss(convolution, kernel):
        return jax.lax.scan(lambda sum, x: (sum + jnp.sum(convolution(x, kernel) ** 2), None), 0.0, inputs)[0]

    theirs = functools.partial(reference, strides=(1, 1), padding="SAME")
    got, expected = (jax.grad(functools.partial(loss, form))(kernel) for form in (convolve, theirs))
    assert_close(got, expected, 1e-12)


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 0), ("cuda", 3), ("tpu", 3)])
def test_platform_chooses_the_form_of_value_and_gradients(platform, convolutions):
    inputs, kernel = normals((2, 8, 8, 4), (3, 3, 4, 4))
    both = jax.value_and_grad(lambda *args: jnp.sum(convolve(*args) ** 2), argnums=(0, 1))
    text = jax.jit(both).trace(inputs, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == convolutions
    assert ("stablehlo.dot_general" in text) == (platform == "cpu")


def test_gradient_keeps_inputs_and_kernel_not_windows():
    inputs, kernel = normals((2, 16, 16, 8), (5, 5, 8, 8))
    _, pullback = jax.vjp(lambda *args: convolve(*args, padding="VALID"), inputs, kernel)
    kept = sum(leaf.size for leaf in jax.tree.leaves(pullback))
    assert kept <= inputs.size + kernel.size + 10


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 1), (0, 2))])
def test_module_is_flax_conv(use_bias, padding):
    settings = {"strides": (2, 1), "padding": padding, "use_bias": use_bias}
    inputs, key = normals((2, 9, 8, 3))[0], jax.random.key(1)
    ours, theirs = Conv(4, (3, 2), **settings), nn.Conv(4, (3, 2), **settings)
    params = ours.init(key, inputs)
    jax.tree.map(np.testing.assert_array_equal, params, theirs.init(key, inputs))
    assert_close(ours.apply(params, inputs), theirs.apply(params, inputs))
    direct = Conv(4, (3, 2), **settings, form="direct")
    assert_close(direct.apply(params, inputs), theirs.apply(params, inputs))


def test_module_promotes_dtypes_like_flax():
    inputs = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
    module = Conv(3, (3, 3))
    params = module.init(jax.random.key(0), inputs)
    assert params["params"]["kernel"].dtype == jnp.float32
    assert module.apply(params, inputs).dtype == jnp.float32
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    got = module.apply(low, inputs)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), module.apply(params, inputs), atol=0.05)


@pytest.mark.parametrize("size", [(4, 9), (8, 7)])
@pytest.mark.parametrize("window", [(1, 1), (2, 2), (3, 3), (4, 1)])
def test_pooling_is_reduce_window_also_among_ties(size, window):
    # Small integers: most windows have ties.
    inputs = np.random.default_rng(sum(size)).integers(0, 3, (2, *size, 3)).astype(np.float32)

    def loss(pool, inputs):
        pooled = pool(inputs)
        weights = jnp.arange(1.0, pooled.size + 1).reshape(pooled.shape)
        return jnp.sum(jnp.sin(pooled + 1) * weights), pooled

    ours = functools.partial(loss, functools.partial(max_pool, window=window))
    theirs = functools.partial(loss, functools.partial(nn.max_pool, window_shape=window, strides=window))
    compare = jax.jit(lambda x: [jax.grad(form, has_aux=True)(x) for form in (ours, theirs)])
    (gradient, pooled), (expected_gradient, expected) = compare(inputs)
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6)


def test_pooling_hessian_product_and_vmap():
    inputs, tangent = normals((3, 2, 6, 6, 2), (3, 2, 6, 6, 2))

    def product(pool, inputs, tangent):
        return jax.jvp(jax.grad(lambda x: jnp.sum(pool(x) ** 3)), (inputs,), (tangent,))[1]

    # The maximum as a product with a 0-1 matrix, which is how it acts near a point without ties.
    def selected(inputs):
        blocks = inputs.reshape(2, 3, 2, 3, 2, 2)
        chosen = jax.lax.stop_gradient(blocks == blocks.max((2, 4), keepdims=True))
        return jnp.sum(jnp.where(chosen, blocks, 0), (2, 4))

    ours = jax.vmap(functools.partial(product, lambda x: max_pool(x, (2, 2))))(inputs, tangent)
    np.testing.assert_allclose(
        ours, jax.vmap(functools.partial(product, selected))(inputs, tangent), rtol=1e-5
    )


def test_pooling_passes_infinities_and_nans():
    inputs = jnp.array([[-jnp.inf, -jnp.inf, jnp.nan, 1.0], [-jnp.inf, -jnp.inf, 2.0, 3.0]]).reshape(
        1, 2, 4, 1
    )
    np.testing.assert_array_equal(max_pool(inputs, (2, 2)).ravel(), [-np.inf, np.nan])
    gradient = jax.grad(lambda x: max_pool(x, (2, 2))[0, 0, 0, 0])(inputs)
    np.testing.assert_array_equal(gradient.ravel(), [1, 0, 0, 0, 0, 0, 0, 0])


IMAGES, KERNEL = np.ones((2, 5, 5, 3), np.float32), np.ones((3, 3, 3, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: convolve(IMAGES[0], KERNEL),
            ValueError,
            r"inputs must have shape \[batch, height, width, chan",
        ),
        (
            lambda: convolve(IMAGES, KERNEL[0]),
            ValueError,
            r"kernel must have shape \[height, width, 3, features",
        ),
        (
            lambda: convolve(IMAGES, KERNEL[:, :, :2]),
            ValueError,
            r"kernel must have shape .* got \(3, 3, 2, 4\)",
        ),
        (
            lambda: convolve(IMAGES, KERNEL.astype(np.float16)),
            ValueError,
            "kernel must have the dtype of inputs",
        ),
        (
            lambda: convolve(IMAGES, KERNEL, strides=2),
            ValueError,
            "strides must be a pair of integers, got 2",
        ),
        (
            lambda: convolve(IMAGES, KERNEL, strides=(1, 0)),
            ValueError,
            r"strides\[1\] must be at least 1, got 0",
        ),
        (
            lambda: convolve(IMAGES, KERNEL, strides=(1, 1.5)),
            TypeError,
            r"strides\[1\] must be a Python integer",
        ),
        (
            lambda: convolve(IMAGES, KERNEL, padding="same"),
            ValueError,
            "padding must be one of 'SAME', 'VALID'",
        ),
        (lambda: convolve(IMAGES, KERNEL, padding=1), ValueError, "padding must be 'SAME', 'VALID' or"),
        (
            lambda: convolve(IMAGES, KERNEL, padding=(1, 1)),
            ValueError,
            "padding of the height must be a pair",
        ),
        (lambda: convolve(IMAGES, KERNEL, padding=((-1, 0), (0, 0))), ValueError, "padding of the height"),
        (lambda: convolve(IMAGES[:, :2], KERNEL, padding="VALID"), ValueError, "kernel has height 3, larger"),
        (lambda: convolve(IMAGES, KERNEL, form="fft"), ValueError, "form must be one of 'windows', 'direct'"),
        (lambda: Conv(1, (3, 3), form="fft"), ValueError, "form must be one of 'windows', 'direct'"),
        (lambda: Conv(0, (3, 3)), ValueError, "features must be at least 1, got 0"),
        (lambda: Conv(1, 3), ValueError, "kernel_size must be a pair of integers, got 3"),
        (lambda: Conv(1, (3, 3), strides=(0, 1)), ValueError, r"strides\[0\] must be at least 1"),
        (lambda: Conv(1, (3, 3)).init(jax.random.key(0), IMAGES[0]), ValueError, "inputs must have shape"),
        (lambda: max_pool(IMAGES[0], (2, 2)), ValueError, "inputs must have shape"),
        (lambda: max_pool(IMAGES, 2), ValueError, "window must be a pair of integers, got 2"),
        (lambda: max_pool(IMAGES, (2, 6)), ValueError, r"window must fit the image \(5, 5\), got \(2, 6\)"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
