"""Counts, masses of bins and their distances, and the interval of a share."""

import math

import numpy as np

__all__ = ["LIMIT", "bin_masses", "expected_distance", "histogram", "wilson"]

LIMIT = 1.959964
"""Standard errors of a 95 % interval."""


def bin_masses(density: np.ndarray, spacing: float, bins: int) -> np.ndarray:
    """Integrals of a density, [..., points], over bins of equal numbers of cells, by Simpson's rule."""
    cells = (density.shape[-1] - 1) // bins
    weights = np.full(cells + 1, 2.0)
    weights[1::2], weights[[0, -1]] = 4.0, 1.0
    parts = np.stack([density[..., i : i + bins * cells : cells] for i in range(cells + 1)], axis=-1)
    return parts @ weights * spacing / 3


def histogram(samples: np.ndarray, half_width: float, bins: int) -> np.ndarray:
    """Counts on [−half_width, half_width] along the last axis, [..., bin]; the end bins hold what lies outside."""
    index = np.floor((samples + half_width) * bins / (2 * half_width)).astype(int).clip(0, bins - 1)
    count = lambda row: np.bincount(row, minlength=bins)
    return np.apply_along_axis(count, -1, index)


def wilson(share: np.ndarray, number: int) -> np.ndarray:
    """The two ends [2, ...] of Wilson's 95 % interval for a probability from a share of ``number`` draws."""
    square = LIMIT**2 / number
    middle, half = share + square / 2, np.sqrt(square * (share * (1 - share) + square / 4))
    return np.clip(np.stack([middle - half, middle + half]) / (1 + square), 0, 1)


def expected_distance(mass: np.ndarray, reference: np.ndarray, number) -> np.ndarray:
    """E of ½ Σ |pᵢ − qᵢ|, p the shares of ``number`` [n] draws of law ``mass`` and q the reference; Gaussian shares."""
    deviation = np.sqrt(mass * (1 - mass) / np.asarray(number)[:, None]) + 1e-30
    ratio = np.abs(mass - reference) / deviation
    normal = np.vectorize(lambda z: math.erf(z / math.sqrt(2)), otypes=[float])(ratio)
    folded = math.sqrt(2 / math.pi) * np.exp(-(ratio**2) / 2) + ratio * normal
    return 0.5 * np.sum(deviation * folded, axis=-1)
