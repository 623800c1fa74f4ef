"""The original loss f and the relaxed one u(x, t): one over the other on a line, side by side on a plane."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.contour import QuadContourSet
from matplotlib.lines import Line2D

from ._arguments import as_grid, as_levels, as_mean, as_vector, check_line
from .contours import contour, contour_levels
from .curves import name_at_end, profile
from .style import COLOURS, PALE

__all__ = ["overlay", "relaxed_pair"]


def overlay(
    ax: Axes,
    x: Any,
    f: Any,
    u: Any,
    *,
    names: tuple[str, str] = ("f", "u(·, t)"),
    colour: str = COLOURS["blue"],
) -> tuple[Line2D, Line2D, FillBetweenPolyCollection | None]:
    """The loss f in grey and u(x, t) over it with its 95 % band, both named at their right ends.

    Args:
        ax: the axes to draw on.
        x: where, [points], increasing.
        f: [points], an array or an estimate, whose mean is drawn.
        u: [points], an array or an estimate, drawn with its band.
        names: of the two curves.
        colour: of u.

    Returns:
        The lines of f and u, and u's band or None.

    Raises:
        ValueError: as :func:`profile`.

    Example:
        >>> import numpy as np
        >>> from matplotlib.figure import Figure
        >>> from jaxopt_pde import plotting
        >>> x = np.linspace(-1.0, 1.0, 9)
        >>> f_line, u_line, band = plotting.overlay(Figure().subplots(), x, x**2, x**2 / 2)
        >>> print(u_line.get_ydata()[0], band)
        0.5 None
    """
    x = as_vector("x", x)
    f, _ = as_mean("f", f, 1)
    check_line("f", f, x)
    mean, _ = as_mean("u", u, 1)
    check_line("u", mean, x)
    (below,) = ax.plot(x, f, color=PALE, linewidth=1.2, zorder=2)
    line, band = profile(ax, x, u, colour=colour)
    ends = [np.flatnonzero(np.isfinite(values))[-1] for values in (f, mean)]
    # The names would stand on each other where the curves end close together: push them apart to 13 points.
    low, high = ax.get_ylim()
    height = ax.get_position().height * ax.figure.get_figheight() * 72
    apart = float(mean[ends[1]] - f[ends[0]]) / (high - low) * height
    lift = max(0.0, 13 - abs(apart)) / 2 * (1 if apart >= 0 else -1)
    name_at_end(ax, names[0], (x[ends[0]], f[ends[0]]), "#6b6b6b", -lift)
    name_at_end(ax, names[1], (x[ends[1]], mean[ends[1]]), colour, lift)
    return below, line, band


def relaxed_pair(
    axes: Sequence[Axes],
    coordinates: tuple[Any, Any],
    f: Any,
    u: Any,
    *,
    levels: Any = None,
    titles: tuple[str, str] = ("f", "u(·, t)"),
    **settings: Any,
) -> tuple[QuadContourSet, QuadContourSet]:
    """The losses f and u(x, t) on the same plane with the same levels, so that equal shades are equal losses.

    Args:
        axes: two of them, such as those of ``figure.subplots(1, 2, sharex=True, sharey=True)``.
        coordinates: (a, b), as for :func:`contour`.
        f: [len(a), len(b)], an array or an estimate.
        u: the same.
        levels: increasing; None for :func:`contour_levels` of both.
        titles: above the panels.
        settings: other arguments of :func:`contour`.

    Returns:
        The contour lines of f and of u.

    Raises:
        ValueError: as :func:`contour`; other than two axes.

    Example:
        >>> import numpy as np
        >>> from matplotlib.figure import Figure
        >>> from jaxopt_pde import plotting
        >>> a = b = np.linspace(-1.0, 1.0, 11)
        >>> f = a[:, None] ** 2 + b**2
        >>> of_f, of_u = plotting.relaxed_pair(Figure().subplots(1, 2), (a, b), f, f / 2 + 0.1)
        >>> bool(np.all(of_f.levels == of_u.levels))
        True
    """
    axes = list(np.ravel(axes))
    if len(axes) != 2:
        msg = f"axes must be two, one for f and one for u, got {len(axes)}."
        raise ValueError(msg)
    grids = [as_grid(coordinates, values, name)[2].T for name, values in (("f", f), ("u", u))]
    levels = contour_levels(*(z.compressed() for z in grids)) if levels is None else as_levels(levels)
    drawn = []
    for ax, z, title in zip(axes, grids, titles, strict=True):
        drawn.append(contour(ax, coordinates, z.filled(np.nan), levels=levels, **settings))
        ax.set_title(title)
    return tuple(drawn)
