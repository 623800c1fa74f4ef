"""Operator norms of layers and their product: an upper bound on the Lipschitz constant of a network."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _validate
from ._checks import check_norm
from ._steps import dual

__all__ = [
    "ConvolutionLayer",
    "DenseLayer",
    "convolution_norm",
    "dense_norm",
    "difference_norms",
    "lipschitz_upper_bound",
]


class DenseLayer(NamedTuple):
    """y = (x K + b)·scale followed by anything 1-Lipschitz.

    Attributes:
        kernel: K [inputs, outputs], as ``flax.linen.Dense`` keeps it; the bias plays no part.
        scale: factors [outputs] after it, those of a BatchNorm at inference: γ/√(var + ε). None for 1.
    """

    kernel: Float[Array, "inputs outputs"]
    scale: Float[Array, " outputs"] | None = None


class ConvolutionLayer(NamedTuple):
    """A convolution with zero padding of any width, then ``scale``, followed by anything 1-Lipschitz.

    Attributes:
        kernel: [height, width, channels, features], as ``flax.linen.Conv`` keeps it; the bias plays no part.
        input_shape: (height, width) of the images that enter this layer.
        strides: steps (height, width).
        scale: factors [features] after it, those of a BatchNorm at inference: γ/√(var + ε). None for 1. Max-pooling
            may stand between: |s| max(y) = max(|s| y), and a change of sign is an isometry.
    """

    kernel: Float[Array, "height width channels features"]
    input_shape: Sequence[int]
    strides: Sequence[int] = (1, 1)
    scale: Float[Array, " features"] | None = None


def dense_norm(
    kernel: Float[Array, "inputs outputs"], norm: float | str = 2, output_norm: float | str | None = None
) -> Float[Array, ""]:
    r"""The operator norm of x ↦ x K from ‖·‖_p to ‖·‖_r, never below the true value.

    ==========  ==========================================================================================
    p → r
    ==========  ==========================================================================================
    2 → 2       the largest singular value
    p → ∞       maxⱼ ‖K[:, j]‖_q, 1/p + 1/q = 1: what :func:`certified_radius` wants of the last layer
    1 → r       maxᵢ ‖K[i, :]‖_r
    ==========  ==========================================================================================

    The others (∞ → 1, ∞ → 2, 2 → 1) are NP-hard or have no closed form. The value is rounded up: multiplied by
    1 + 4 m eps, with m the length of the sums, or rows + columns for the singular values, which covers rounding.

    Args:
        kernel: K [inputs, outputs].
        norm: p of the inputs: 1, 2 or inf.
        output_norm: r of the outputs; None for that of the inputs.

    Returns:
        A number, differentiable in ``kernel``.

    Raises:
        ValueError: an unknown norm or pair of norms, or a kernel that is not a matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> kernel = jnp.array([[3.0, 1.0], [4.0, 0.0]])
        >>> print(f"{dense_norm(kernel, 2, jnp.inf):.3f} {dense_norm(kernel, jnp.inf):.3f} {dense_norm(kernel, 1):.3f}")
        5.000 7.000 4.000

    References:
        Horn & Johnson, *Matrix analysis*, section 5.6.
    """
    norm, output_norm = _pair(norm, output_norm)
    kernel = _as_kernel(kernel, 2)
    rows, columns = kernel.shape
    if norm == output_norm == 2:
        return _round_up(_largest_singular_value(kernel), rows + columns)
    if math.isinf(output_norm):
        return _round_up(jnp.linalg.norm(kernel, dual(norm), axis=0).max(), rows)
    if norm == 1:
        return _round_up(jnp.linalg.norm(kernel, output_norm, axis=1).max(), columns)
    msg = (
        f"norm={norm} to output_norm={output_norm} has no closed form; take 2 to 2, 1 to any, or any to inf."
    )
    raise ValueError(msg)


def difference_norms(
    kernel: Float[Array, "inputs classes"], norm: float | str = 2
) -> Float[Array, "classes classes"]:
    """‖K[:, i] − K[:, j]‖_q, 1/p + 1/q = 1: the Lipschitz constants of the differences of two linear logits.

    Times the norms of the layers below, it bounds Lip(f_i − f_j), for ``certified_radius(..., rule="pairwise")``.

    Args:
        kernel: K [inputs, classes] of the last layer.
        norm: p of its inputs: 1, 2 or inf.

    Returns:
        A symmetric matrix with zeros on its diagonal, rounded up as in :func:`dense_norm`.

    Raises:
        ValueError: an unknown norm or a kernel that is not a matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> print(f"{difference_norms(jnp.array([[3.0, 0.0], [0.0, 4.0]]))[0, 1]:.3f}")
        5.000

    References:
        Tsuzuku, Sato & Sugiyama, *Lipschitz-margin training*, NeurIPS 2018 (the last layer apart).
    """
    norm, kernel = check_norm(norm), _as_kernel(kernel, 2)
    differences = kernel[:, :, None] - kernel[:, None, :]
    return _round_up(jnp.linalg.norm(differences, dual(norm), axis=0), kernel.shape[0])


def convolution_norm(
    kernel: Float[Array, "height width channels features"],
    input_shape: Sequence[int],
    *,
    strides: Sequence[int] = (1, 1),
    norm: float | str = 2,
    output_norm: float | str | None = None,
    circular: bool = False,
) -> Float[Array, ""]:
    r"""An upper bound on the operator norm of a convolution, for every zero padding; exact if circular.

    2 → 2, stride 1. Let n be the image, k the kernel, N = n + k − 1. The layer is W = P C E: E puts the image on a
    grid of N points and fills up with zeros, an isometry; C is the circular convolution there, long enough that
    nothing wraps around; every output of the layer is one of its values (or 0, where the window sees padding
    alone), so P selects coordinates and ‖P‖ ≤ 1, whatever the padding. Hence ‖W‖ ≤ ‖C‖. C is block diagonal in the
    Fourier basis, which is unitary, with one block [channels, features] for each frequency:

        ‖C‖ = max_ω σ_max(K̂(ω)).

    Strides s: the pixels of one s×s block are taken as channels, x'[a, (r, c)] = x[s a + r, c] and likewise the kernel.
    This relabels both, and in the new variables the stride is 1, on ⌈(n − 1)/s⌉ + 1 blocks and ⌈k/s⌉ taps.

    Power iteration on the layer itself approaches ‖W‖ from *below* and is therefore no bound.

    1 → 1 and p → ∞: sums over the taps that one input or output can see, exact up to the border.

    Args:
        kernel: [height, width, channels, features].
        input_shape: (height, width) of the layer's input, without padding.
        strides: steps (height, width).
        norm: p of the inputs: 1, 2 or inf.
        output_norm: r of the outputs, p or inf; None for p.
        circular: whether the image is continued periodically instead of by zeros; then the strides must divide
            ``input_shape``, and 2 → 2 is exact.

    Returns:
        A number, differentiable in ``kernel`` and rounded up as in :func:`dense_norm`.

    Raises:
        ValueError: an unknown norm or pair, a kernel that has not four axes, a size below 1, strides that do not
            divide a circular image or a kernel larger than it.
        TypeError: a size that is not an integer.

    Example:
        The mean over 2x2 windows keeps constants; its norm is 1, with stride 2 it is ½:

        >>> import jax.numpy as jnp
        >>> kernel = jnp.full((2, 2, 1, 1), 0.25)
        >>> print(f"{convolution_norm(kernel, (8, 8)):.3f} {convolution_norm(kernel, (8, 8), strides=(2, 2)):.3f}")
        1.000 0.500

    References:
        Sedghi, Gupta & Long, *The singular values of convolutional layers*, ICLR 2019 (circular, stride 1). The bound
        for zero padding and strides is our own derivation.
    """
    norm, output_norm = _pair(norm, output_norm)
    kernel = _as_kernel(kernel, 4)
    sizes, strides = _check_sizes("input_shape", input_shape), _check_sizes("strides", strides)
    if circular and any(n % s or k > n for n, s, k in zip(sizes, strides, kernel.shape[:2], strict=True)):
        msg = (
            f"input_shape must be a multiple of strides={strides} and no smaller than the kernel, "
            f"{kernel.shape[:2]}, if circular, got {sizes}."
        )
        raise ValueError(msg)
    blocks = _polyphase(kernel, strides)
    height, width, channels, features = blocks.shape
    if norm == output_norm == 2:
        if circular:
            grid = tuple(n // s for n, s in zip(sizes, strides, strict=True))
        else:
            grid = tuple(
                -(-(n - 1) // s) + k for n, s, k in zip(sizes, strides, (height, width), strict=True)
            )
        # A real kernel: the frequencies that rfft2 leaves out have the complex conjugates of these blocks.
        symbols = jnp.fft.rfft2(_wrap(blocks, grid), axes=(0, 1))
        rounding = channels + features + math.ceil(math.log2(height * width + grid[0] * grid[1]))
        return _round_up(_largest_singular_value(symbols), rounding)
    if math.isinf(output_norm):
        taps = blocks.reshape(-1, features)
        return _round_up(jnp.linalg.norm(taps, dual(norm), axis=0).max(), taps.shape[0])
    if norm == output_norm == 1:
        return _round_up(jnp.abs(blocks).sum((0, 1, 3)).max(), height * width * features)
    msg = (
        f"norm={norm} to output_norm={output_norm} is not offered for convolutions; take p to p or p to inf."
    )
    raise ValueError(msg)


def lipschitz_upper_bound(
    layers: Sequence[DenseLayer | ConvolutionLayer],
    *,
    norm: float | str = 2,
    output_norm: float | str = math.inf,
) -> Float[Array, ""]:
    r"""An upper bound on the Lipschitz constant of a chain of layers: the product of their operator norms.

        Lip_{p→r}(f) ≤ ‖W_m‖_{p→r} ∏_{k<m} ‖W_k‖_{p→p},

    since Lip(g∘f) ≤ Lip(g) Lip(f). With the default r = ∞ on the last layer it is the L = Lip_{p,∞} of
    :func:`certified_radius`. Between the layers anything 1-Lipschitz from p to p may stand: relu, tanh and sigmoid,
    dropout at inference, reshaping, max-pooling over windows that do not overlap (|max a − max b| ≤ ‖a − b‖ on
    each window), mean-pooling likewise. A BatchNorm at inference is the ``scale`` of the layer before it. Overlapping
    pools, residual sums and BatchNorm on the statistics of the batch are not of this form.

    The bound is of the function in exact arithmetic; it is often far above the true constant, and so the
    certificate below the true distance, but it is never false (``python -m experiments run certificates``).

    Args:
        layers: :class:`DenseLayer` and :class:`ConvolutionLayer` in the order of application.
        norm: p of the inputs: the attack's norm.
        output_norm: r of the outputs of the last layer: inf, or p.

    Returns:
        L > 0 in [logit/input], differentiable in the kernels: a penalty as well as a bound.

    Raises:
        ValueError: no layer, something else than a layer, or a bad value inside one.

    Example:
        Each Flax layer of a chain is one entry, ``DenseLayer(params["Dense_0"]["kernel"])`` and so on; a BatchNorm
        after it is ``scale=params["BatchNorm_0"]["scale"] / sqrt(batch_stats["BatchNorm_0"]["var"] + 1e-5)``.

        >>> import jax.numpy as jnp
        >>> layers = [DenseLayer(2 * jnp.eye(3)), DenseLayer(jnp.ones((3, 2)), scale=jnp.array([1.0, 0.5]))]
        >>> print(f"{lipschitz_upper_bound(layers):.3f} {lipschitz_upper_bound(layers, norm=jnp.inf):.3f}")
        3.464 6.000

    References:
        Szegedy et al., *Intriguing properties of neural networks*, ICLR 2014, section 4.3.
    """
    norm, output_norm = _pair(norm, output_norm)
    if not layers:
        msg = "layers must hold at least one layer, got none."
        raise ValueError(msg)
    product = jnp.ones([])
    for position, layer in enumerate(layers):
        target = output_norm if position == len(layers) - 1 else norm
        if isinstance(layer, DenseLayer):
            factor = dense_norm(_scaled(layer), norm, target)
        elif isinstance(layer, ConvolutionLayer):
            factor = convolution_norm(
                _scaled(layer), layer.input_shape, strides=layer.strides, norm=norm, output_norm=target
            )
        else:
            msg = (
                f"layers[{position}] must be a DenseLayer or a ConvolutionLayer, got {type(layer).__name__}."
            )
            raise ValueError(msg)
        product = _round_up(product * factor, 1)
    return product


def _scaled(layer: DenseLayer | ConvolutionLayer) -> Array:
    kernel = jnp.asarray(layer.kernel)
    if layer.scale is None:
        return kernel
    scale = jnp.asarray(layer.scale)
    if scale.shape != kernel.shape[-1:]:
        msg = f"scale must have shape {kernel.shape[-1:]}, one factor an output, got {scale.shape}."
        raise ValueError(msg)
    return kernel * scale.reshape((1,) * (kernel.ndim - 1) + (-1,))


def _pair(norm: float | str, output_norm: float | str | None) -> tuple[float, float]:
    norm = check_norm(norm)
    return norm, norm if output_norm is None else check_norm(output_norm, name="output_norm")


def _as_kernel(kernel: Array, rank: int) -> Array:
    kernel = jnp.asarray(kernel)
    _validate.check_float_tree("kernel", kernel)
    if kernel.ndim != rank or 0 in kernel.shape:
        msg = f"kernel must have {rank} axes, none of them empty, got shape {kernel.shape}."
        raise ValueError(msg)
    return kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))


def _check_sizes(name: str, value: Sequence[int]) -> tuple[int, int]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        msg = f"{name} must be a pair of integers, got {value!r}."
        raise ValueError(msg)
    for position, entry in enumerate(value):
        _validate.check_count(f"{name}[{position}]", entry)
    return int(value[0]), int(value[1])


def _largest_singular_value(matrices: Array) -> Float[Array, ""]:
    return jnp.linalg.svd(matrices, compute_uv=False)[..., 0].max()


def _round_up(value: Array, terms: int) -> Array:
    """``value`` plus what rounding in sums of so many terms may have taken away."""
    return value * (1 + 4 * terms * float(jnp.finfo(value.dtype).eps))


def _polyphase(kernel: Array, strides: tuple[int, int]) -> Array:
    """The kernel of stride 1 between blocks: K'[a, b, (r, t, c), o] = K[s₀ a + r, s₁ b + t, c, o], zero outside."""
    height, width, channels, features = kernel.shape
    rows, columns = -(-height // strides[0]), -(-width // strides[1])
    padded = jnp.pad(
        kernel, ((0, rows * strides[0] - height), (0, columns * strides[1] - width), (0, 0), (0, 0))
    )
    blocks = padded.reshape(rows, strides[0], columns, strides[1], channels, features)
    return blocks.transpose(0, 2, 1, 3, 4, 5).reshape(rows, columns, -1, features)


def _wrap(kernel: Array, grid: tuple[int, int]) -> Array:
    """The kernel on a grid at least as large."""
    return jnp.pad(kernel, ((0, grid[0] - kernel.shape[0]), (0, grid[1] - kernel.shape[1]), (0, 0), (0, 0)))
