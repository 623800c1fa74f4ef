"""Comparisons over seeds and tasks: intervals, ranks, paired tests with Holm's correction, cost of a target."""

from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = ["Paired", "first_reached", "holm", "mean_ranks", "paired", "ranks"]


def ranks(errors: np.ndarray) -> np.ndarray:
    """Ranks of the methods on each task, 1 the best, ties sharing their mean; errors [task, method]."""
    return stats.rankdata(errors, axis=1)


def mean_ranks(errors: np.ndarray) -> np.ndarray:
    """Mean rank of each method over the tasks [method]."""
    return ranks(errors).mean(0)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values: max over j ≤ i of (m − j + 1) p_(j), at most 1; controls the familywise error.

    Example:
        >>> print(holm(np.array([0.01, 0.04, 0.03])))
        [0.03 0.06 0.06]
    """
    order = np.argsort(p)
    factors = len(p) - np.arange(len(p))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1.0)
    return adjusted


class Paired(NamedTuple):
    """Errors of methods minus those of a reference, seed by seed.

    Attributes:
        difference: mean [method]; negative where the method is better.
        half_width: of its 95 % confidence interval, Student's t.
        t_test: p-values of the paired t-test, Holm-adjusted over the methods.
        wilcoxon: the same of Wilcoxon's signed-rank test; with n seeds at least 2^(1−n) times the number of methods.
    """

    difference: np.ndarray
    half_width: np.ndarray
    t_test: np.ndarray
    wilcoxon: np.ndarray


def paired(errors: np.ndarray, reference: int) -> Paired:
    """Two-sided paired tests of every method against one; its own row is NaN and is not counted as a test.

    Args:
        errors: [method, seed], at least two seeds, the same ones for every method.
        reference: index of the method to compare with.
    """
    differences = errors - errors[reference]
    count = differences.shape[1]
    half = stats.t.ppf(0.975, count - 1) * differences.std(1, ddof=1) / np.sqrt(count)
    others = np.arange(len(errors)) != reference
    tests = np.full((2, len(errors)), np.nan)
    if others.any():
        found = [_p_values(row) for row in differences[others]]
        tests[:, others] = [holm(p) for p in np.array(found).T]
    return Paired(
        np.where(others, differences.mean(1), np.nan), np.where(others, half, np.nan), tests[0], tests[1]
    )


def _p_values(differences: np.ndarray) -> tuple[float, float]:
    """Of the t-test and of Wilcoxon's; differences that are all equal have no variance to divide by."""
    if np.all(differences == 0):
        return 1.0, 1.0
    same = np.ptp(differences) == 0
    t_test = 0.0 if same else stats.ttest_1samp(differences, 0.0).pvalue
    # Errors are multiples of 1/n and often coincide: zero differences count half for either sign.
    rank_test = stats.wilcoxon(differences, zero_method="zsplit").pvalue
    return float(t_test), float(rank_test)


def first_reached(curves: np.ndarray, at: np.ndarray, target: float) -> np.ndarray:
    """Where each curve first is at or below a target; NaN where never.

    Args:
        curves: [method, report].
        at: what the reports cost, [report] or [method, report].
        target: the error to reach.
    """
    reached = curves <= target
    cost = np.broadcast_to(at, curves.shape)[np.arange(len(curves)), reached.argmax(1)]
    return np.where(reached.any(1), cost, np.nan)
