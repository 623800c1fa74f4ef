"""The way of an optimiser over a plane."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, withStroke

from .. import _validate
from .contours import halo
from .style import COLOURS, INK

__all__ = ["PathArtists", "trajectory"]


class PathArtists(NamedTuple):
    """What :func:`trajectory` drew.

    Attributes:
        path: the line.
        steps: the dots on it.
        start: the open circle at the first point.
        end: the filled circle at the last.
    """

    path: Line2D
    steps: Line2D
    start: Line2D
    end: Line2D


def trajectory(
    ax: Axes,
    coordinates: Any,
    *,
    label: str | None = None,
    colour: str = COLOURS["vermillion"],
    every: int = 1,
) -> PathArtists:
    """A path with a dot a step, from an open circle to a filled one, outlined in white so that it reads on contours.

    Args:
        ax: the axes to draw on, with or without a :func:`contour`.
        coordinates: [points, 2], such as ``pca_plane(...).plane.coordinates``.
        label: written beside the end; None for nothing.
        colour: any of Matplotlib's.
        every: a dot every so many points.

    Returns:
        :class:`PathArtists`.

    Raises:
        ValueError, TypeError: coordinates of another shape or not finite, a count that is no positive integer.

    Example:
        >>> import numpy as np
        >>> from matplotlib.figure import Figure
        >>> from jaxopt_pde import plotting
        >>> points = np.array([[2.0, 1.0], [1.0, 0.5], [0.0, 0.0]])
        >>> drawn = plotting.trajectory(Figure().subplots(), points, label="SGD")
        >>> print(drawn.start.get_xydata(), drawn.end.get_xydata())
        [[2. 1.]] [[0. 0.]]
    """
    points = np.asarray(coordinates, float)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or not np.all(np.isfinite(points)):
        what = f"shape {points.shape}" + ("" if np.all(np.isfinite(points)) else " with NaN or infinity")
        msg = f"coordinates must be finite and of shape [points, 2] with at least two points, got {what}."
        raise ValueError(msg)
    _validate.check_count("every", every)
    outline = [withStroke(linewidth=3.6, foreground="white"), Normal()]
    (path,) = ax.plot(*points.T, color=colour, linewidth=1.6, path_effects=outline, zorder=3)
    (steps,) = ax.plot(
        *points[::every].T,
        "o",
        color=colour,
        markersize=3.4,
        markeredgecolor="white",
        markeredgewidth=0.4,
        zorder=3.5,
    )
    (start,) = ax.plot(*points[:1].T, "o", color="white", markeredgecolor=INK, markersize=6, zorder=4)
    (end,) = ax.plot(*points[-1:].T, "o", color=colour, markeredgecolor="white", markersize=9, zorder=4)
    if label is not None:
        # Beyond the end, where the path does not come from.
        away = points[-1] - points[0]
        side = 1 if away[0] >= 0 else -1
        ax.annotate(
            label, points[-1], (8 * side, 0), textcoords="offset points", ha="left" if side == 1 else "right",
            va="center", color=colour, path_effects=[halo()], zorder=6,
        )  # fmt: skip
    return PathArtists(path, steps, start, end)
