"""Convolution in groups of channels, quick on every platform as :func:`~jaxopt_pde.models.convolve` is."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _validate
from ._checks import check_images
from .convolution import Padding, convolve

__all__ = ["grouped_convolve"]


def grouped_convolve(
    inputs: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width group_channels features"],
    *,
    groups: int,
    strides: Sequence[int] = (1, 1),
    padding: Padding = "SAME",
) -> Float[Array, "batch out_height out_width features"]:
    """y_g = x_g ∗ K_g: G convolutions side by side, each from its own block of channels to its own block of features.

    The blocks are consecutive. There are 1/G of the parameters and of the operations of a full convolution, one
    whose kernel is zero between blocks. This is :func:`convolve` mapped over the groups: products of batches of
    matrices on a CPU, whose compiler has no fast gradient of a grouped convolution, and one grouped convolution of
    ``lax`` (``feature_group_count``) everywhere else.

    Args:
        inputs: images [batch, height, width, channels], channels a multiple of ``groups``.
        kernel: [kernel_height, kernel_width, channels / groups, features], the layout of ``lax`` and Flax; features
            a multiple of ``groups``, the dtype of ``inputs``.
        groups: G, number of groups; 1 is :func:`convolve`.
        strides: steps (height, width), at least 1.
        padding: ``"SAME"``, ``"VALID"`` or zeros ((top, bottom), (left, right)).

    Returns:
        [batch, out_height, out_width, features], the dtype of ``inputs``.

    Raises:
        ValueError: ``groups`` below 1 or not a divisor of channels and features, a kernel of other shape, and as in
            :func:`convolve`.
        TypeError: ``groups`` that is not an integer.

    Example:
        Two groups of one channel each, multiplied by 1 and by 10:

        >>> import jax.numpy as jnp
        >>> image = jnp.array([1.0, 2.0]).reshape(1, 1, 1, 2)
        >>> grouped_convolve(image, jnp.array([1.0, 10.0]).reshape(1, 1, 1, 2), groups=2).ravel()
        Array([ 1., 20.], dtype=float32)

    References:
        Krizhevsky, Sutskever, Hinton, *ImageNet classification with deep convolutional neural networks*, 2012.
    """
    _validate.check_count("groups", groups)
    check_images("inputs", inputs)
    channels = inputs.shape[3]
    if jnp.ndim(kernel) != 4 or kernel.shape[2] * groups != channels or kernel.shape[3] % groups:
        msg = (
            f"kernel must have shape [height, width, channels / {groups}, features], features a multiple of groups = "
            f"{groups}, for inputs of shape {inputs.shape}, got {jnp.shape(kernel)}."
        )
        raise ValueError(msg)
    one = functools.partial(convolve, strides=strides, padding=padding)
    if groups == 1:
        return one(inputs, kernel)
    blocks = inputs.reshape(*inputs.shape[:3], groups, channels // groups)
    kernels = kernel.reshape(*kernel.shape[:3], groups, kernel.shape[3] // groups)
    outputs = jax.vmap(one, in_axes=3, out_axes=3)(blocks, kernels)
    return outputs.reshape(*outputs.shape[:3], -1)
