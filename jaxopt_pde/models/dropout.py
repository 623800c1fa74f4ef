"""Dropout that draws 16 random bits a number: the random bits are a good part of a small network's gradient."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from .. import _validate

__all__ = ["Dropout"]

_LEVELS = 2**16


class Dropout(nn.Module):
    """x → x·B/p with B independent Bernoulli(p) and p = 1 - ``rate``, when training; else x.

    ``flax.linen.Dropout`` with half the random words: p is rounded to a multiple of 2⁻¹⁶ (and the scale is
    1/p of the rounded p, so the mean is exact). At most half a unit, 8e-6, separates p from 1 - ``rate``.

    Attributes:
        rate: probability of a zero, in [0, 1).

    ``__call__(inputs, *, train)`` needs ``rngs={"dropout": key}`` when ``train`` and ``rate`` > 0, and keeps
    shape and dtype.

    Raises:
        ValueError: ``rate`` outside [0, 1).
        TypeError: ``rate`` not a number.
        flax.errors.InvalidRngError: no ``"dropout"`` key when training.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> jnp.unique(Dropout(0.5).apply({}, jnp.ones(99), train=True, rngs={"dropout": jax.random.key(0)}))
        Array([0., 2.], dtype=float32)

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, *Dropout*, JMLR 15 (2014).
    """

    rate: float

    def __post_init__(self) -> None:
        _validate.check_fraction("rate", self.rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Float[Array, "..."], *, train: bool) -> Float[Array, "..."]:
        """Zeros and scales ``inputs`` when ``train``."""
        if not train or self.rate == 0:
            return inputs
        kept = max(1, round((1 - self.rate) * _LEVELS))
        words = jax.random.bits(self.make_rng("dropout"), (-(-inputs.size // 2),), jnp.uint32)
        halves = jnp.concatenate([words & (_LEVELS - 1), words >> 16])[: inputs.size]
        return jnp.where(halves.reshape(inputs.shape) < kept, inputs * (_LEVELS / kept), 0)
