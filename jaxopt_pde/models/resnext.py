"""ResNeXt for small images: the network of the papers on Lipschitz regularisation."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from .. import _validate
from ._checks import check_images
from .convolution import Conv
from .grouped_convolution import grouped_convolve

__all__ = ["ResNeXt"]


class _GroupedConv(nn.Module):
    """3x3 convolution in groups, one pixel of zeros on every side, no bias."""

    features: int
    groups: int

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        shape = (3, 3, inputs.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return grouped_convolve(*nn.dtypes.promote_dtype(inputs, kernel), groups=self.groups)


def _halve(inputs: Array) -> Array:
    """Means over 2x2 pixels; an odd last row or column is dropped."""
    batch, height, width, channels = inputs.shape
    cropped = inputs[:, : height // 2 * 2, : width // 2 * 2]
    return cropped.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


class ResNeXt(nn.Module):
    """The ResNeXt-34 (2 x 32) of Finlay, Oberman and Abbasi: 3 892 298 parameters on 32x32x3.

    conv 3x3 to ``width`` channels → ``depths[0]`` blocks → [conv 1x1 to twice the channels → means over 2x2 pixels →
    ``depths[i]`` blocks] for each further stage → mean over the image → dense logits. A block on C channels is

        x ↦ relu(x + (1/G) Σ_g branch_g(x)),    branch: conv 3x3 → BatchNorm → relu → conv 3x3 → BatchNorm,

    with G branches of C channels each: the first convolutions of all are one from C to G·C channels, the second
    ones a convolution in G groups (:func:`grouped_convolve`). The branches are averaged where Xie et al. mix them by
    a 1x1 convolution, and with G = 1 this is the basic block of ResNet. Convolutions have no bias and are followed by
    BatchNorm; outside the blocks it has a shift and no scale, and relu follows. Counting weighted layers from input
    to output, 1 + 2 (5 + 5 + 5) + 2 + 1 = 34.

    The authors' later public code ends in BatchNorm and relu on the logits, with as many parameters. We leave the
    logits as they are: where relu is flat, an attack by gradients finds nothing to follow.

    ``tanh``: their best models, trained on E ℓ + 0.01 E‖∇ℓ‖₂ + 0.1 max‖∇ℓ‖₂ with weight decay 5e-4, have "a final
    sigmoid layer", behind an option called tanh whose code we could not find. Ours is z ↦ b tanh(z/b) on each logit,
    plain tanh at b = 1. Its slope is at most 1, so it raises no Lipschitz constant; it is increasing, so it changes
    no decision (but float32 ties logits beyond 9b); and it bounds the logits, so the cross-entropy of C classes stays
    above log(1 + (C - 1) e^(-2b)): 0.8 at b = 1 and 10 classes, 4e-4 at b = 5. Gradients through a saturated tanh are
    small, which also weakens attacks that follow them: compare against tanh alone.

    Attributes:
        num_classes: number of logits.
        depths: number of blocks of each stage; the image is halved between stages.
        cardinality: G, number of branches of a block.
        width: channels of the first stage; every stage has twice those of the one before.
        tanh: None, or the bound b > 0 of the logits.

    ``__call__(inputs, *, train)`` takes images [batch, height, width, channels] with at least 2^(stages - 1) pixels a
    side and returns logits [batch, num_classes]; ``train`` switches batch statistics on.

    Raises:
        ValueError: a size below 1, no stage, ``tanh`` ≤ 0, inputs of another rank or too small.
        TypeError: a size that is not an integer, depths that are not a sequence.

    Good values:
        On a CPU, ``ResNeXt(depths=(1, 1), width=8)``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = ResNeXt()
        >>> init = lambda key, images: model.init(key, images, train=False)
        >>> variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        3892298

    References:
        Finlay, Oberman, Abbasi, *Improved robustness to adversarial examples using Lipschitz regularization of the
        loss*, arXiv:1810.00953, and their code, github.com/cfinlay/tulip (its README of 2018 for the best models).
        Xie, Girshick, Dollár, Tu, He, *Aggregated residual transformations for deep neural networks*, CVPR 2017.
    """

    num_classes: int = 10
    depths: Sequence[int] = (5, 5, 5)
    cardinality: int = 2
    width: int = 32
    tanh: float | None = None

    def __post_init__(self) -> None:
        _validate.check_count("num_classes", self.num_classes)
        if isinstance(self.depths, str) or not isinstance(self.depths, Sequence):
            msg = f"depths must be a sequence of numbers of blocks, as in (5, 5, 5), got {self.depths!r}."
            raise TypeError(msg)
        if not self.depths:
            msg = f"depths must have at least one stage, got {self.depths!r}."
            raise ValueError(msg)
        for stage, depth in enumerate(self.depths):
            _validate.check_count(f"depths[{stage}]", depth)
        _validate.check_count("cardinality", self.cardinality)
        _validate.check_count("width", self.width)
        if self.tanh is not None:
            _validate.check_positive("tanh", self.tanh)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, inputs: Shaped[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch num_classes"]:
        """Logits of ``inputs``."""
        check_images("inputs", inputs)
        smallest = 2 ** (len(self.depths) - 1)
        if min(jnp.shape(inputs)[1:3]) < smallest:
            msg = (
                f"inputs must have at least {smallest} pixels a side for {len(self.depths)} stages, got shape "
                f"{jnp.shape(inputs)}."
            )
            raise ValueError(msg)

        def normalise(outputs: Array, *, scale: bool) -> Array:
            return nn.BatchNorm(use_running_average=not train, momentum=0.9, use_scale=scale)(outputs)

        def layer(outputs: Array, features: int, size: int) -> Array:
            outputs = Conv(features, (size, size), use_bias=False)(outputs)
            return nn.relu(normalise(outputs, scale=False))

        def block(outputs: Array) -> Array:
            features = outputs.shape[-1]
            together = self.cardinality * features
            branches = nn.relu(normalise(Conv(together, (3, 3), use_bias=False)(outputs), scale=True))
            branches = normalise(_GroupedConv(together, self.cardinality)(branches), scale=True)
            branches = branches.reshape(*branches.shape[:3], self.cardinality, features)
            return nn.relu(outputs + branches.mean(3))

        outputs = layer(inputs, self.width, 3)
        for stage, depth in enumerate(self.depths):
            if stage:
                outputs = _halve(layer(outputs, 2**stage * self.width, 1))
            for _ in range(depth):
                outputs = block(outputs)
        logits = nn.Dense(self.num_classes)(outputs.mean((1, 2)))
        return logits if self.tanh is None else self.tanh * nn.tanh(logits / self.tanh)
