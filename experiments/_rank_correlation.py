"""Rank correlations over pairs, within groups and given a third quantity, with a bootstrap over two crossed factors."""

from typing import NamedTuple

import numpy as np

__all__ = ["Correlation", "kendall", "partial", "percentiles", "pigeonhole", "spearman"]


class Correlation(NamedTuple):
    """A rank correlation.

    Attributes:
        value: [...] of all observations.
        low: [...], the lower end of its 95 % interval.
        high: [...], the upper end.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def pigeonhole(
    generator: np.random.Generator, rows: np.ndarray, columns: np.ndarray, number: int
) -> np.ndarray:
    """Bootstrap weights [1 + number, n] of observations that share a row (configuration) or a column (seed).

    Rows and columns are drawn anew independently, and an observation counts as often as its row times its column:
    both what a configuration does to its seeds and what a seed does to all configurations then varies. Cautious: the
    variance is at worst too large by that of the observations alone. The first weights are all 1.

    Args:
        generator: of random numbers.
        rows: [n], labels of rows.
        columns: [n], labels of columns.
        number: of bootstrap samples.

    References:
        Owen 2007, The pigeonhole bootstrap, Ann. Appl. Stat. 1, 386.
    """
    weights = np.ones((1 + number, len(rows)))
    for labels in (rows, columns):
        _, index = np.unique(labels, return_inverse=True)
        levels = index.max() + 1
        counts = generator.multinomial(levels, np.full(levels, 1 / levels), size=number)
        weights[1:] *= counts[:, index]
    return weights


def kendall(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, groups: np.ndarray | None = None
) -> np.ndarray:
    """Kendall's τ_b of samples in which observation i stands as often as the weights say, [samples].

    Args:
        x: [n].
        y: [n].
        weights: [samples, n], not negative.
        groups: [n]; only pairs of one group are compared. None for all pairs.
    """
    a, b = (np.sign(v[:, None] - v[None]) for v in (x, y))
    if groups is not None:
        same = groups[:, None] == groups[None]
        a, b = a * same, b * same
    over_pairs = lambda pairs: np.sum((weights @ pairs) * weights, axis=-1)
    return _ratio(over_pairs(a * b), over_pairs(a * a) * over_pairs(b * b))


def spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's ρ of the same samples, ties at their mean rank, [samples]; arguments as for :func:`kendall`."""
    total = weights.sum(-1, keepdims=True)
    ranks = [
        weights @ (np.sign(v[:, None] - v[None]).T / 2) / total for v in (x, y)
    ]  # centred: mean rank − ½
    over = lambda values: np.sum(weights * values, axis=-1)
    return _ratio(over(ranks[0] * ranks[1]), over(ranks[0] ** 2) * over(ranks[1] ** 2))


def partial(xy: np.ndarray, xz: np.ndarray, yz: np.ndarray) -> np.ndarray:
    """Kendall's partial correlation of x and y given z, from the three τ."""
    return _ratio(xy - xz * yz, (1 - xz**2) * (1 - yz**2))


def percentiles(values: np.ndarray) -> Correlation:
    """The first value, that of all observations, and the 2.5 % and 97.5 % quantiles of the others that exist."""
    low, high = np.nanquantile(values[1:], (0.025, 0.975)) if np.isfinite(values[1:]).any() else (np.nan,) * 2
    return Correlation(values[0], low, high)


def _ratio(top: np.ndarray, square: np.ndarray) -> np.ndarray:
    """top/√square, NaN where nothing varies."""
    return np.where(square > 1e-12, top / np.sqrt(np.where(square > 1e-12, square, 1)), np.nan)
