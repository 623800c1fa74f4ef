"""What is drawn, as NumPy arrays of the right shape, with errors that name the argument."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..landscape import Estimate

__all__ = ["as_grid", "as_levels", "as_mean", "as_vector", "check_line"]


def as_mean(name: str, values: Any, ndim: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Values (the mean of an estimate) and their standard errors; None without an estimate or where all are NaN."""
    error = None
    if isinstance(values, Estimate):
        values, error = values
        error = np.asarray(error, float)
        error = None if np.all(np.isnan(error)) else error
    values = np.asarray(values, float)
    if ndim is not None and values.ndim != ndim:
        msg = f"{name} must have {ndim} axes, got shape {values.shape}."
        raise ValueError(msg)
    if not np.any(np.isfinite(values)):
        msg = f"{name} must hold at least one finite number, got none in shape {values.shape}."
        raise ValueError(msg)
    return values, error


def as_vector(name: str, values: Any, *, ordered: bool = True) -> np.ndarray:
    """A finite vector, increasing if ``ordered``."""
    values = np.asarray(values, float)
    if values.ndim != 1 or not len(values) or not np.all(np.isfinite(values)):
        msg = f"{name} must be a vector of finite numbers, got {values!r}."
        raise ValueError(msg)
    if ordered and not np.all(np.diff(values) > 0):
        msg = f"{name} must increase, got {values!r}."
        raise ValueError(msg)
    return values


def check_line(name: str, values: np.ndarray, x: np.ndarray, of: str = "x") -> None:
    """Raises unless there is a value for every x."""
    if values.shape != x.shape:
        msg = f"{name} must have a value for every {of}, {len(x)}, got shape {values.shape}."
        raise ValueError(msg)


def as_grid(
    coordinates: Any, values: Any, name: str = "values"
) -> tuple[np.ndarray, np.ndarray, np.ma.MaskedArray]:
    """x, y and the values as Matplotlib wants them, [y, x], those that are not finite masked."""
    if not isinstance(coordinates, Sequence) or len(coordinates) != 2:
        msg = f"coordinates must be two vectors, one a direction, got {coordinates!r}."
        raise ValueError(msg)
    x, y = (as_vector(f"coordinates[{axis}]", c) for axis, c in enumerate(coordinates))
    values, _ = as_mean(name, values, 2)
    if values.shape != (len(x), len(y)) or min(values.shape) < 2:
        msg = (
            f"{name} must have shape {(len(x), len(y))}, a value for every pair of at least two coordinates each, "
            f"{name}[i, j] at (coordinates[0][i], coordinates[1][j]), got {values.shape}."
        )
        raise ValueError(msg)
    return x, y, np.ma.masked_invalid(values.T)


def as_levels(levels: Any) -> np.ndarray:
    """Contour levels, increasing."""
    return as_vector("levels", levels)
