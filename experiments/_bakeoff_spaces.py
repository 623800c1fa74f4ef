"""Spaces of hyper-parameters, and the quasi-random points of them that the bake-off tries."""

import zlib
from typing import NamedTuple

import numpy as np
from scipy.stats import qmc

__all__ = ["Choice", "LogUniform", "candidates"]


class LogUniform(NamedTuple):
    """Numbers between two bounds, uniform in their logarithms."""

    low: float
    high: float

    def at(self, unit: np.ndarray) -> np.ndarray:
        """Maps [0, 1) to the range."""
        return self.low * (self.high / self.low) ** unit


class Choice(NamedTuple):
    """One of some numbers, each as likely."""

    values: tuple[float, ...]

    def at(self, unit: np.ndarray) -> np.ndarray:
        """Maps [0, 1) to the numbers."""
        return np.array(self.values)[(unit * len(self.values)).astype(int)]


def candidates(
    method: str, space: dict[str, LogUniform | Choice], count: int, seed: int
) -> dict[str, np.ndarray]:
    """Quasi-random points of a method's own space: scrambled Halton, [count] float32 for every hyper-parameter.

    Args:
        method: its name, so that methods with the same space do not try the same points.
        space: law of each hyper-parameter.
        count: number of points; the first of more are the same.
        seed: of the scrambling.
    """
    random = np.random.default_rng([seed, zlib.crc32(method.encode())])
    unit = qmc.Halton(len(space), seed=random).random(count)
    return {name: law.at(unit[:, d]).astype(np.float32) for d, (name, law) in enumerate(space.items())}
