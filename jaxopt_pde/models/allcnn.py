"""All-CNN-C with BatchNorm: the papers' CIFAR-10 network, convolutions only."""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from .. import _validate
from ._checks import check_images, check_pair
from .convolution import Conv
from .dropout import Dropout

__all__ = ["AllCNN"]


class AllCNN(nn.Module):
    """The All-CNN-BN of Entropy-SGD: 1 667 166 parameters on 32x32x3.

    dropout → 96@3x3, 96@3x3, 96@3x3 stride 2 → dropout → 192@3x3, 192@3x3, 192@3x3 stride 2 → dropout →
    192@3x3, 192@3x3, 10@1x1 → mean over the image. Each convolution has a bias and one pixel of zeros on every
    side (1x1: none) and is followed by BatchNorm and relu, the last one too, as in the authors' code.

    Springenberg et al.'s All-CNN-C has 1x1 in place of the last 3x3: ``penultimate_kernel=1``, 1 372 254
    parameters with BatchNorm.

    Attributes:
        num_classes: number of logits.
        widths: channels before and after the second dropout.
        penultimate_kernel: 3 (Entropy-SGD) or 1 (Springenberg et al.), size of the last kernel but one.
        input_dropout_rate: in [0, 1), on the image.
        dropout_rate: in [0, 1), after each stride-2 convolution.

    ``__call__(inputs, *, train)`` takes images [batch, height, width, channels] of any size and returns logits
    [batch, num_classes]; ``train`` switches batch statistics and dropout on (dropout needs
    ``rngs={"dropout": key}``).

    Raises:
        ValueError: a size below 1, a rate outside [0, 1), another ``penultimate_kernel``, inputs of another
            rank.
        TypeError: a size that is not an integer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = AllCNN()
        >>> init = lambda key, images: model.init(key, images, train=False)
        >>> variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        1667166

    References:
        Springenberg, Dosovitskiy, Brox, Riedmiller, *Striving for simplicity: the all convolutional net*, ICLR
        workshop 2015. Chaudhari et al., *Entropy-SGD*, ICLR 2017, section 5.3.
    """

    num_classes: int = 10
    widths: Sequence[int] = (96, 192)
    penultimate_kernel: int = 3
    input_dropout_rate: float = 0.2
    dropout_rate: float = 0.5

    def __post_init__(self) -> None:
        _validate.check_count("num_classes", self.num_classes)
        check_pair("widths", self.widths)
        if self.penultimate_kernel not in (1, 3):
            msg = f"penultimate_kernel must be 1 or 3, got {self.penultimate_kernel!r}."
            raise ValueError(msg)
        _validate.check_fraction("input_dropout_rate", self.input_dropout_rate)
        _validate.check_fraction("dropout_rate", self.dropout_rate)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, inputs: Shaped[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch num_classes"]:
        """Logits of ``inputs``."""
        check_images("inputs", inputs)

        def convolution(outputs: Array, features: int, size: int, stride: int = 1) -> Array:
            pad = size // 2
            outputs = Conv(
                features, (size, size), strides=(stride, stride), padding=((pad, pad), (pad, pad))
            )(outputs)
            return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(outputs))

        outputs = Dropout(self.input_dropout_rate)(inputs, train=train)
        for width in self.widths:
            for stride in (1, 1, 2):
                outputs = convolution(outputs, width, 3, stride)
            outputs = Dropout(self.dropout_rate)(outputs, train=train)
        outputs = convolution(outputs, self.widths[1], 3)
        outputs = convolution(outputs, self.widths[1], self.penultimate_kernel)
        return convolution(outputs, self.num_classes, 1).mean((1, 2))
