"""Fully connected network: the papers' mnistfc and its small relatives."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from .. import _validate
from .dropout import Dropout

__all__ = ["MLP"]


class MLP(nn.Module):
    """Dense → [BatchNorm] → activation → dropout for each hidden width, then dense logits.

    ``MLP((1024, 1024), batch_norm=True)`` on 784 inputs is the mnistfc of Entropy-SGD (1 867 786 parameters,
    counting the scales and biases of BatchNorm, not its running statistics).

    Attributes:
        features: hidden widths; empty for a linear classifier.
        num_classes: number of logits.
        batch_norm: whether each hidden layer is normalised (then the variables have ``batch_stats``).
        dropout_rate: in [0, 1), after each hidden activation.
        activation: elementwise function.

    ``__call__(inputs, *, train)`` flattens inputs [batch, ...] and returns logits [batch, num_classes];
    ``train`` switches batch statistics and dropout on (dropout needs ``rngs={"dropout": key}``).

    Raises:
        ValueError: a width or ``num_classes`` below 1, ``dropout_rate`` outside [0, 1), inputs of rank < 2.
        TypeError: a width that is not an integer, or features that are not a sequence.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = MLP((100,))
        >>> init = jax.jit(model.init, static_argnames="train")
        >>> variables = init(jax.random.key(0), jnp.ones((1, 28, 28, 1)), train=False)
        >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        79510
        >>> model.apply(variables, jnp.ones((5, 28, 28, 1)), train=True).shape
        (5, 10)

    References:
        Chaudhari, Choromanska, Soatto, LeCun, et al., *Entropy-SGD*, ICLR 2017, section 5.2.
    """

    features: Sequence[int]
    num_classes: int = 10
    batch_norm: bool = False
    dropout_rate: float = 0.0
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    def __post_init__(self) -> None:
        if isinstance(self.features, str) or not isinstance(self.features, Sequence):
            msg = f"features must be a sequence of hidden widths, as in (100,), got {self.features!r}."
            raise TypeError(msg)
        for layer, width in enumerate(self.features):
            _validate.check_count(f"features[{layer}]", width)
        _validate.check_count("num_classes", self.num_classes)
        _validate.check_fraction("dropout_rate", self.dropout_rate)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, inputs: Shaped[Array, "batch ..."], *, train: bool
    ) -> Float[Array, "batch num_classes"]:
        """Logits of ``inputs``."""
        if jnp.ndim(inputs) < 2:
            msg = f"inputs must have a leading batch axis, [batch, ...], got shape {jnp.shape(inputs)}."
            raise ValueError(msg)
        hidden = inputs.reshape(inputs.shape[0], -1)
        for width in self.features:
            hidden = nn.Dense(width)(hidden)
            if self.batch_norm:
                hidden = nn.BatchNorm(use_running_average=not train, momentum=0.9)(hidden)
            hidden = Dropout(self.dropout_rate)(self.activation(hidden), train=train)
        return nn.Dense(self.num_classes)(hidden)
