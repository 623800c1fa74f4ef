"""A language with a known entropy: a Markov source of order 2, so no model can do better than its entropy rate."""

from typing import NamedTuple

import numpy as np

__all__ = ["CONTEXT", "Language", "make_language"]

CONTEXT = 2
"""Characters on which the next one depends."""


class Language(NamedTuple):
    """A source of characters 0 … A − 1.

    Attributes:
        transitions: P(c | a, b) at [a, b, c].
        stationary: law of two successive characters at [a, b].
    """

    transitions: np.ndarray
    stationary: np.ndarray

    @property
    def entropy_rate(self) -> float:
        """−Σ π(a, b) P(c|a, b) log P(c|a, b), nats per character: the least mean cross-entropy of any predictor."""
        positive = np.where(self.transitions > 0, self.transitions, 1.0)
        return float(-(self.stationary[..., None] * self.transitions * np.log(positive)).sum())

    def draw(self, count: int, length: int, seed: int) -> np.ndarray:
        """Independent texts [count, length] int32, each from the stationary law on."""
        random = np.random.RandomState(seed)
        size = len(self.stationary)
        texts = np.empty((count, length), np.int32)
        first = random.choice(size * size, size=count, p=self.stationary.ravel())
        texts[:, 0], texts[:, 1] = np.divmod(first, size)
        cumulative = self.transitions.cumsum(-1)
        for n in range(2, length):
            below = cumulative[texts[:, n - 2], texts[:, n - 1]] <= random.rand(count, 1)
            texts[:, n] = np.minimum(below.sum(1), size - 1)
        return texts


def make_language(size: int = 12, *, concentration: float = 0.2, seed: int = 0) -> Language:
    """Draws a language: each P(·|a, b) from a symmetric Dirichlet law mixed with 10 % of the uniform one.

    Args:
        size: A, characters in the alphabet.
        concentration: of the Dirichlet law; the smaller, the more predictable the language.
        seed: which language.

    Example:
        >>> language = make_language()
        >>> bool(0 < language.entropy_rate < np.log(12))
        True
    """
    random = np.random.RandomState(seed)
    transitions = 0.9 * random.dirichlet([concentration] * size, size=(size, size)) + 0.1 / size
    pairs = np.zeros((size, size, size, size))  # (a, b) -> (b, c)
    for b in range(size):
        pairs[:, b, b, :] = transitions[:, b]
    power = pairs.reshape(size**2, size**2)
    for _ in range(12):  # its 4,096-th power: of two steps in a row, one in a hundred forgets everything
        power = power @ power
        power /= power.sum(1, keepdims=True)
    return Language(transitions, power[0].reshape(size, size))
