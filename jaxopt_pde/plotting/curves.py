"""A curve with its error band and its name at its end."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.lines import Line2D

from ._arguments import as_mean, as_vector, check_line
from .style import COLOURS

__all__ = ["NORMAL_QUANTILE", "name_at_end", "profile"]

NORMAL_QUANTILE = 1.959964
"""Of the standard normal distribution at 97.5 %."""


def profile(
    ax: Axes,
    x: Any,
    values: Any,
    *,
    label: str | None = None,
    colour: str = COLOURS["blue"],
    quantile: float = NORMAL_QUANTILE,
) -> tuple[Line2D, FillBetweenPolyCollection | None]:
    """A curve, its 95 % band where it is an estimate, and its name at its right end in its colour.

    Args:
        ax: the axes to draw on; set a logarithmic scale on them before or after.
        x: where, [points], increasing.
        values: [points], an array or an estimate. The line breaks where it is not finite.
        label: the name; None for none.
        colour: of all three, any of Matplotlib's.
        quantile: the band is mean ± ``quantile`` standard errors.

    Returns:
        The line, and the band or None: there is none without standard errors, or where nothing is known of them.

    Raises:
        ValueError: x that does not increase, another number of values, none of them finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from matplotlib.figure import Figure
        >>> from jaxopt_pde import landscape, plotting
        >>> x = jnp.linspace(0.0, 1.0, 5)
        >>> estimate = landscape.Estimate(x**2, 0.1 * jnp.ones(5))
        >>> line, band = plotting.profile(Figure().subplots(), x, estimate, label="f")
        >>> print(line.get_ydata()[-1], band.get_paths()[0].vertices[:, 1].max().round(3))
        1.0 1.196
    """
    x = as_vector("x", x)
    mean, error = as_mean("values", values, 1)
    check_line("values", mean, x)
    (line,) = ax.plot(x, mean, color=colour, linewidth=1.8, zorder=3)
    band = None
    if error is not None:
        low, high = mean - quantile * error, mean + quantile * error
        band = ax.fill_between(x, low, high, color=colour, alpha=0.22, linewidth=0, zorder=2)
    if label is not None:
        last = np.flatnonzero(np.isfinite(mean))[-1]
        name_at_end(ax, label, (x[last], mean[last]), colour)
    return line, band


def name_at_end(ax: Axes, name: str, point: tuple[float, float], colour: str, lift: float = 0.0) -> None:
    """Writes a name to the right of a curve's end, ``lift`` points above it."""
    ax.annotate(
        name, point, (6, lift), textcoords="offset points", ha="left", va="center", color=colour,
        annotation_clip=False,
    )  # fmt: skip
