"""Convolution and max-pooling whose gradients are quick on a CPU too, with the numbers of ``lax``.

XLA's CPU backend has a fast convolution but no fast gradient of one: the gradient runs through a generic
kernel that is many times slower than the same sums written as matrix products. So the form is chosen when
the program is lowered: windows and GEMMs on a CPU, ``jax.lax.conv_general_dilated`` everywhere else.
``benchmarks/models.py`` times both. Who wants the gradient in the images only, as attacks do, can ask for XLA's
convolution on a CPU too, in a form whose transpose is quick: ``benchmarks/attacks.py``.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Shaped

from .. import _validate
from ._checks import check_images, check_pair

__all__ = ["Conv", "convolve", "max_pool"]

Padding = str | Sequence[tuple[int, int]]
Form = Callable[[Array, Array], Array]
FORMS = ("windows", "direct")

# Depth (kernel width times input channels) from which one GEMM per kernel row beats a single GEMM on full
# windows. Timed with gradients in inputs and kernel, 3x3 and 5x5 kernels, two AVX-512 cores: the single GEMM
# wins at depths 5 to 15, the rows from 24 to 576, where they also take 1/height of the memory.
_ROW_DEPTH = 16


def _pads(
    padding: Padding, size: Sequence[int], kernel_size: Sequence[int], strides: Sequence[int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(low, high) zeros for height and width."""
    if isinstance(padding, str):
        _validate.check_choice("padding", padding, ("SAME", "VALID"))
        (top, bottom), (left, right) = lax.padtype_to_pads(size, kernel_size, strides, padding)
        return (int(top), int(bottom)), (int(left), int(right))
    if not isinstance(padding, Sequence) or len(padding) != 2:
        msg = f"padding must be 'SAME', 'VALID' or ((top, bottom), (left, right)), got {padding!r}."
        raise ValueError(msg)
    return (
        check_pair("padding of the height", padding[0], 0),
        check_pair("padding of the width", padding[1], 0),
    )


def _shifted(inputs: Array, axis: int, window: int, stride: int) -> list[Array]:
    """The ``window`` views of ``inputs`` that start at 0 … window - 1 along ``axis``, ``stride`` apart."""
    reach = (inputs.shape[axis] - window) // stride * stride + 1
    return [
        lax.slice_in_dim(inputs, start, start + reach, stride=stride, axis=axis) for start in range(window)
    ]


def _gemm_form(inputs: Array, kernel: Array, *, strides: tuple[int, int], pads: Any) -> Array:
    """y[n, a, b] = Σ_ij x[n, s·a + i, s·b + j] K[i, j] as matrix products."""
    height, width, _, features = kernel.shape
    rows = jnp.pad(inputs, ((0, 0), *pads, (0, 0)))
    # Windows along the width first, then along the height: each copy moves runs of width·channels numbers,
    # not of channels alone.
    if width > 1 or strides[1] > 1:
        rows = jnp.concatenate(_shifted(rows, 2, width, strides[1]), axis=-1)
    blocks = _shifted(rows, 1, height, strides[0])
    matrices = kernel.reshape(height, rows.shape[-1], features)
    if rows.shape[-1] < _ROW_DEPTH:
        blocks = [jnp.concatenate(blocks, axis=-1)]
        matrices = matrices.reshape(1, -1, features)
    # Two-dimensional operands: XLA contracts them without transposing copies in the gradient.
    products = [block.reshape(-1, block.shape[-1]) @ matrices[row] for row, block in enumerate(blocks)]
    return functools.reduce(jnp.add, products).reshape(*blocks[0].shape[:3], features)


def _lax_form(inputs: Array, kernel: Array, *, strides: tuple[int, int], pads: Any) -> Array:
    return lax.conv_general_dilated(inputs, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _transposed_quickly(inputs: Array, kernel: Array, *, pads: Any) -> Array:
    """:func:`_lax_form` at stride 1, written so that its transpose in ``inputs`` is an ordinary convolution.

    The transpose of a convolution with K is one with K flipped, inputs and outputs exchanged. XLA would fold that
    flip into the dimension labels of the convolution, and such labels are not those its fast kernel is for. Behind
    the barrier the flipped kernel is an array like any other; the transpose undoes ``rev`` and the labels.
    """
    flipped = lax.optimization_barrier(lax.rev(kernel, (0, 1)).swapaxes(2, 3))
    return lax.conv_general_dilated(
        inputs, lax.rev(flipped, (0, 1)), (1, 1), pads, dimension_numbers=("NHWC", "HWOI", "NHWC")
    )


def _bilinear(value: Form, in_inputs: Form, in_kernel: Form) -> Form:
    """``value``, whose tangents in the two arguments are computed by two other forms of the same bilinear function."""
    form = jax.custom_jvp(value)

    @form.defjvp
    def rule(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        (inputs, kernel), (inputs_tangent, kernel_tangent) = primals, tangents
        along_inputs = by_inputs(inputs_tangent, kernel)
        return form(inputs, kernel), along_inputs + by_kernel(inputs, kernel_tangent)

    # The tangents are the same function, so their own derivatives (Hessian-vector products) follow the same rule.
    by_inputs, by_kernel = (jax.custom_jvp(part) for part in (in_inputs, in_kernel))
    by_inputs.defjvp(rule)
    by_kernel.defjvp(rule)
    return form


def _direct_is_quick(kernel: Array, size: Sequence[int], strides: tuple[int, int], pads: Any) -> bool:
    """Whether XLA's convolution and its transpose beat windows on a CPU: stride 1, some depth, zeros at the edges.

    The transpose multiplies zeros wherever the kernel shrank the image: its work grows as input over output area.
    Timed with the gradient in the inputs, two AVX-512 cores: twice as quick where the areas are equal, break-even from
    12x12 to 8x8, five times as slow from 8x8 to 4x4.
    """
    height, width, channels, _ = kernel.shape
    outputs = [n + sum(pad) - window + 1 for n, pad, window in zip(size, pads, (height, width), strict=True)]
    keeps = 2 * outputs[0] * outputs[1] >= size[0] * size[1]
    return strides == (1, 1) and height * width > 1 and width * channels >= _ROW_DEPTH and keeps


def convolve(
    inputs: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    *,
    strides: Sequence[int] = (1, 1),
    padding: Padding = "SAME",
    form: str = "windows",
) -> Float[Array, "batch out_height out_width features"]:
    """y[n, a, b] = Σ_ij x[n, s·a + i, s·b + j] K[i, j], the convolution of neural networks.

    The form depends on the platform the program is lowered for, the result only by rounding. All of ``jit``,
    ``vmap``, ``grad``, ``jvp`` and their compositions work. The gradient keeps the inputs and the kernel, not
    the windows.

    Args:
        inputs: images [batch, height, width, channels].
        kernel: [kernel_height, kernel_width, channels, features], the dtype of ``inputs``.
        strides: steps (height, width), at least 1.
        padding: ``"SAME"``, ``"VALID"`` or zeros ((top, bottom), (left, right)).
        form: how to compute on a CPU: ``"windows"``, quick with gradients in the kernel, or ``"direct"``, quick with
            gradients in ``inputs`` only. Not read elsewhere.

    Returns:
        [batch, out_height, out_width, features], the dtype of ``inputs``.

    Raises:
        ValueError: wrong rank, channels or dtypes that differ, bad strides or padding, or a kernel larger
            than the padded image, an unknown form.
        TypeError: a stride or a padding that is not an integer.

    Good values:
        ``"windows"`` for training, where ``"direct"`` can be four times slower. ``"direct"`` for attacks and other
        gradients in images, by networks whose convolutions keep the size of the image (``"SAME"``): 1.6 to 2.1 times
        as quick there (3x3 and 5x5 kernels on 16 to 96 channels, 14x14 and more). Where windows are as quick it
        takes them too, so a network can name it in every layer: at depth (kernel width times channels) below 16,
        strides above 1, 1x1 kernels, and kernels that shrink the image to less than half its area.

    Example:
        >>> import jax.numpy as jnp
        >>> convolve(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2)), padding="VALID")[0, :, :, 0]
        Array([[9., 9.], [9., 9.]], dtype=float32)

    References:
        Chellapilla, Puri, Simard, *High performance convolutional neural networks for document processing*,
        2006 (convolution as a matrix product).
    """
    check_images("inputs", inputs)
    if jnp.ndim(kernel) != 4 or kernel.shape[2] != inputs.shape[3]:
        msg = (
            f"kernel must have shape [height, width, {inputs.shape[3]}, features] for inputs of shape "
            f"{inputs.shape}, got {jnp.shape(kernel)}."
        )
        raise ValueError(msg)
    if inputs.dtype != kernel.dtype:
        msg = f"kernel must have the dtype of inputs, {inputs.dtype}, got {kernel.dtype}."
        raise ValueError(msg)
    strides = check_pair("strides", strides)
    pads = _pads(padding, inputs.shape[1:3], kernel.shape[:2], strides)
    for name, size, window, pad in zip(
        ("height", "width"), inputs.shape[1:3], kernel.shape[:2], pads, strict=True
    ):
        if size + sum(pad) < window:
            msg = f"kernel has {name} {window}, larger than the padded inputs' {size + sum(pad)}."
            raise ValueError(msg)
    _validate.check_choice("form", form, FORMS)
    settings = {"strides": strides, "pads": pads}
    # Without the checkpoint the branch not taken would still have its windows among the residuals (as zeros).
    # XLA merges the recomputed windows with the first ones (prevent_cse=False), so nothing is done twice.
    gemm_form = jax.checkpoint(functools.partial(_gemm_form, **settings), prevent_cse=False)
    lax_form = functools.partial(_lax_form, **settings)
    cpu_form = gemm_form
    if form == "direct" and _direct_is_quick(kernel, inputs.shape[1:3], strides, pads):
        cpu_form = _bilinear(lax_form, functools.partial(_transposed_quickly, pads=pads), gemm_form)
    return lax.platform_dependent(inputs, kernel, cpu=cpu_form, default=lax_form)


class Conv(nn.Module):
    """``flax.linen.Conv`` for images, through :func:`convolve`: same parameters, same numbers.

    Attributes:
        features: output channels.
        kernel_size: (height, width).
        strides: steps (height, width).
        padding: ``"SAME"``, ``"VALID"`` or zeros ((top, bottom), (left, right)).
        use_bias: whether to add ``bias`` [features].
        kernel_init: initialiser of ``kernel`` [height, width, channels, features], float32.
        bias_init: initialiser of ``bias``.
        form: ``"windows"``, or ``"direct"`` for attacks, as in :func:`convolve`; the parameters are the same.

    ``__call__(inputs)`` takes and gives [batch, height, width, channels] in the wider dtype of inputs and
    parameters.

    Raises:
        ValueError, TypeError: at construction and call, as in :func:`convolve`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> conv = Conv(features=8, kernel_size=(3, 3), strides=(2, 2))
        >>> params = conv.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
        >>> conv.apply(params, jnp.ones((5, 8, 8, 3))).shape
        (5, 4, 4, 8)
    """

    features: int
    kernel_size: Sequence[int]
    strides: Sequence[int] = (1, 1)
    padding: Padding = "SAME"
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    form: str = "windows"

    def __post_init__(self) -> None:
        _validate.check_count("features", self.features)
        check_pair("kernel_size", self.kernel_size)
        check_pair("strides", self.strides)
        _validate.check_choice("form", self.form, FORMS)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, inputs: Shaped[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width features"]:
        """Convolves ``inputs`` and adds the bias."""
        check_images("inputs", inputs)
        shape = (*self.kernel_size, jnp.shape(inputs)[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None
        inputs, kernel, bias = nn.dtypes.promote_dtype(inputs, kernel, bias)
        outputs = convolve(inputs, kernel, strides=self.strides, padding=self.padding, form=self.form)
        return outputs if bias is None else outputs + bias.reshape(1, 1, 1, -1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _pool_blocks(blocks: Array, axes: tuple[int, int]) -> Array:
    return blocks.max(axes)


@_pool_blocks.defjvp
def _pool_blocks_jvp(axes: tuple[int, int], primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # The tangent of the first maximum of each block. JAX's own rule for max counts the ties and divides,
    # which takes two more passes over the image.
    (blocks,), (tangent,) = primals, tangents
    maxima = blocks.max(axes, keepdims=True)
    count = blocks.shape[axes[0]] * blocks.shape[axes[1]]
    position = jnp.arange(count, dtype=jnp.int32).reshape(
        [size if axis in axes else 1 for axis, size in enumerate(blocks.shape)]
    )
    place = jnp.where(blocks == maxima, position, count)
    first = place == place.min(axes, keepdims=True)
    return maxima.squeeze(axes), jnp.where(first, tangent, 0).sum(axes)


def max_pool(
    inputs: Float[Array, "batch height width channels"], window: Sequence[int]
) -> Float[Array, "batch out_height out_width channels"]:
    """Maximum over non-overlapping windows: ``flax.linen.max_pool(inputs, window, strides=window)``.

    Rows and columns that do not fill a window are dropped (``"VALID"``). Among ties the gradient goes to the
    first in row order, as in ``lax.reduce_window`` and PyTorch. Quicker than ``reduce_window`` on a CPU,
    forward and in the gradient.

    Args:
        inputs: images [batch, height, width, channels].
        window: (height, width) of the windows, and the steps between them.

    Returns:
        [batch, height // window height, width // window width, channels], the dtype of ``inputs``.

    Raises:
        ValueError: wrong rank, or a window that is not a pair or larger than the image.
        TypeError: a window of non-integers.

    Example:
        >>> import jax.numpy as jnp
        >>> max_pool(jnp.arange(20.0).reshape(1, 4, 5, 1), (2, 2))[0, :, :, 0]
        Array([[ 6.,  8.], [16., 18.]], dtype=float32)
    """
    check_images("inputs", inputs)
    height, width = check_pair("window", window)
    batch, image_height, image_width, channels = inputs.shape
    if height > image_height or width > image_width:
        msg = f"window must fit the image {(image_height, image_width)}, got {tuple(window)}."
        raise ValueError(msg)
    out_height, out_width = image_height // height, image_width // width
    cropped = inputs[:, : out_height * height, : out_width * width]
    return _pool_blocks(cropped.reshape(batch, out_height, height, out_width, width, channels), (2, 4))
