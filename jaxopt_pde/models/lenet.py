"""LeNet with BatchNorm and dropout: the papers' mnistconv."""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from .. import _validate
from ._checks import check_images, check_pair
from .convolution import Conv, max_pool
from .dropout import Dropout

__all__ = ["LeNet"]


class LeNet(nn.Module):
    """The mnistconv of Entropy-SGD: 132 220 parameters on 28x28x1.

    conv 20@5x5 → pool 3x3 → BatchNorm → relu → dropout → conv 50@5x5 → pool 2x2 → BatchNorm → relu → dropout
    → dense 500 → BatchNorm → relu → dropout → dense 10. Convolutions are ``"VALID"``, pooling does not
    overlap, every layer has a bias. Pooling comes first so that BatchNorm and dropout see a ninth and a
    quarter of the numbers; the authors' two codes order these layers differently from each other and from
    this one, with the same parameters.

    Attributes:
        num_classes: number of logits.
        dropout_rate: in [0, 1), after each of the three hidden layers.
        channels: output channels of the two convolutions.
        hidden: width of the dense layer.

    ``__call__(inputs, *, train)`` takes images [batch, height, width, channels], at least 22x22, and returns
    logits [batch, num_classes]; ``train`` switches batch statistics and dropout on (dropout needs
    ``rngs={"dropout": key}``).

    Raises:
        ValueError: a size below 1, ``dropout_rate`` outside [0, 1), inputs of another rank or too small.
        TypeError: a size that is not an integer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = LeNet()
        >>> init = jax.jit(model.init, static_argnames="train")
        >>> variables = init(jax.random.key(0), jnp.ones((1, 28, 28, 1)), train=False)
        >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        132220

    References:
        LeCun, Bottou, Bengio, Haffner, *Gradient-based learning applied to document recognition*, 1998.
        Chaudhari, Choromanska, Soatto, LeCun, et al., *Entropy-SGD*, ICLR 2017, section 5.2.
    """

    num_classes: int = 10
    dropout_rate: float = 0.25
    channels: Sequence[int] = (20, 50)
    hidden: int = 500

    def __post_init__(self) -> None:
        _validate.check_count("num_classes", self.num_classes)
        _validate.check_fraction("dropout_rate", self.dropout_rate)
        check_pair("channels", self.channels)
        _validate.check_count("hidden", self.hidden)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, inputs: Shaped[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch num_classes"]:
        """Logits of ``inputs``."""
        check_images("inputs", inputs)

        def normalise(outputs: Array) -> Array:
            outputs = nn.BatchNorm(use_running_average=not train, momentum=0.9)(outputs)
            return Dropout(self.dropout_rate)(nn.relu(outputs), train=train)

        outputs = inputs
        for features, window in zip(self.channels, ((3, 3), (2, 2)), strict=True):
            outputs = Conv(features, (5, 5), padding="VALID")(outputs)
            outputs = normalise(max_pool(outputs, window))
        outputs = normalise(nn.Dense(self.hidden)(outputs.reshape(outputs.shape[0], -1)))
        return nn.Dense(self.num_classes)(outputs)
