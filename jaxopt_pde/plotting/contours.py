"""A plane through the landscape from above: contours that say their level."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.contour import QuadContourSet
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from .. import _validate
from ._arguments import as_grid, as_levels, as_mean
from .style import COLOURS, FONT_SIZE, HALO_WIDTH, INK

__all__ = ["contour", "contour_levels"]

DEPTHS = LinearSegmentedColormap.from_list("depths", ["#8fa5bb", "#c9d5e0", "#ffffff"])
"""From the depth of the valleys to the heights: pale, so that paths and labels stand out, and as good in grey."""


def contour_levels(
    *values: Any, num: int = 8, spacing: Literal["auto", "log", "quantile", "linear"] = "auto"
) -> np.ndarray:
    """Round levels that suit one landscape, or several that are to be compared.

    Args:
        values: arrays or estimates of any shape; all share the levels. What is not finite is left out.
        num: levels wanted, at least 1; there are fewer where rounding makes two equal.
        spacing: ``"log"`` for equal ratios (of positive values); ``"quantile"`` for equal areas between the levels,
            which serves losses that explode at the rim; ``"linear"`` for equal differences; ``"auto"`` for ``"log"``
            where the values are positive and span a factor of 30, else ``"quantile"``.

    Returns:
        Levels between the least and the largest value, increasing, each with as few digits as move it by no more
        than a fifth of the gap to its neighbours, so that a label is the level.

    Raises:
        ValueError, TypeError: no finite values, all of them equal, ``"log"`` of values that are not positive, an
            unknown spacing.

    Example:
        >>> import numpy as np
        >>> from jaxopt_pde import plotting
        >>> print(plotting.contour_levels(np.geomspace(0.01, 100.0, 50), num=3))
        [ 0.1  1.  10. ]
    """
    _validate.check_count("num", num)
    _validate.check_choice("spacing", spacing, ("auto", "log", "quantile", "linear"))
    every = [as_mean("values", v)[0] for v in values]
    flat = np.concatenate([v.ravel() for v in every]) if every else np.zeros(0)
    flat = flat[np.isfinite(flat)]
    low, high = (flat.min(), flat.max()) if len(flat) else (0.0, 0.0)
    if not low < high:
        msg = f"values must hold at least two different finite numbers, got {len(flat)} between {low:g} and {high:g}."
        raise ValueError(msg)
    if spacing == "auto":
        spacing = "log" if low > 0 and high >= 30 * low else "quantile"
    shares = np.arange(1, num + 1) / (num + 1)
    if spacing == "log":
        if low <= 0:
            msg = f"spacing 'log' needs positive values, got a least value of {low:g}."
            raise ValueError(msg)
        levels = low * (high / low) ** shares
    elif spacing == "quantile":
        levels = np.quantile(flat, shares)
    else:
        levels = low + (high - low) * shares
    levels = np.unique(levels)
    gaps = np.diff(np.concatenate([[low], levels, [high]]))
    gaps = np.minimum(gaps[1:], gaps[:-1])
    gaps[gaps == 0] = high - low  # a quantile that is the least or the largest value
    return np.unique([_round(level, 0.2 * gap) for level, gap in zip(levels, gaps, strict=True)])


def _round(level: float, tolerance: float) -> float:
    """With as few digits as stay within the tolerance."""
    for digits in range(17):
        rounded = float(f"{level:.{digits}e}")
        if abs(rounded - level) <= tolerance:
            break
    return rounded


def contour(
    ax: Axes,
    coordinates: tuple[Any, Any],
    values: Any,
    *,
    levels: Any = None,
    labels: bool = True,
    fill: bool = True,
    equal: bool = True,
    points: Mapping[str, Any] | None = None,
) -> QuadContourSet:
    """Contours of a slice, each with its level written on it; darker is lower.

    Args:
        ax: the axes to draw on.
        coordinates: (a, b), two increasing vectors, the ones given to ``landscape.slice``; a to the right, b upwards.
        values: [len(a), len(b)], an array or an estimate, of which the mean is drawn. Hatched where it is not
            finite.
        levels: increasing; None for :func:`contour_levels` of ``values``. Give the same to panels to be compared.
        labels: whether to write the levels on the lines.
        fill: whether to shade between them.
        equal: whether a unit is as long upwards as to the right, as suits orthonormal directions.
        points: (a, b) by name, marked and named.

    Returns:
        The contour lines, whose ``levels`` are those drawn.

    Raises:
        ValueError: coordinates that do not increase, values of another shape or of which none is finite, levels that
            do not increase.

    Example:
        >>> import numpy as np
        >>> from matplotlib.figure import Figure
        >>> from jaxopt_pde import plotting
        >>> a, b = np.linspace(-2.0, 2.0, 21), np.linspace(-1.0, 1.0, 11)
        >>> ax = Figure().subplots()
        >>> f = a[:, None] ** 2 + b**2
        >>> lines = plotting.contour(ax, (a, b), f, levels=[0.5, 1.0, 2.0], points={"w": (0.0, 0.0)})
        >>> print(lines.levels, [text.get_text() for text in ax.texts][-1])
        [0.5 1.  2. ] w
    """
    x, y, z = as_grid(coordinates, values)
    levels = contour_levels(z.compressed()) if levels is None else as_levels(levels)
    if np.ma.is_masked(z):
        area = (x[0], y[0]), x[-1] - x[0], y[-1] - y[0]
        ax.add_patch(
            Rectangle(*area, facecolor="#f2f2f2", edgecolor="#c4c4c4", hatch="///", linewidth=0, zorder=0.4)
        )
    if fill:
        shades = DEPTHS(np.linspace(0.0, 1.0, len(levels) + 1))
        ends = min(z.min(), levels[0]) - 1.0, max(z.max(), levels[-1]) + 1.0
        ax.contourf(x, y, z, levels=[ends[0], *levels, ends[1]], colors=shades, zorder=0.5)
    with warnings.catch_warnings():  # shared levels may all lie outside this panel's values
        warnings.filterwarnings("ignore", message="No contour levels were found")
        lines = ax.contour(
            x, y, z, levels=levels, colors="#66727f", linewidths=0.7, linestyles="solid", zorder=1
        )
    if labels:
        texts = dict(zip(levels, level_texts(levels), strict=True))
        placed = ax.clabel(lines, fmt=texts, fontsize=FONT_SIZE, colors=INK, inline=True, inline_spacing=2)
        _finish_labels(list(placed or ()), x, y)
    if equal:
        ax.set_aspect("equal")
    for number, (name, point) in enumerate((points or {}).items()):
        mark_point(ax, name, point, list(COLOURS.values())[1 + number % (len(COLOURS) - 1)])
    return lines


def _finish_labels(placed: list[Text], x: np.ndarray, y: np.ndarray) -> None:
    """Outlined; those cut by the border go, unless it is the only one of its level."""
    left = [text.get_text() for text in placed]
    for text in placed:
        text.set_path_effects([halo()])
        margins = [
            min(p - c[0], c[-1] - p) / (c[-1] - c[0])
            for p, c in zip(text.get_position(), (x, y), strict=True)
        ]
        if min(margins) < 0.03 and left.count(text.get_text()) > 1:
            left.remove(text.get_text())
            text.remove()


def level_texts(levels: np.ndarray) -> list[str]:
    """Four digits, more where two levels would read alike."""
    for digits in range(4, 18):
        texts = [f"{level:.{digits}g}".replace("-", "−") for level in levels]
        if len(set(texts)) == len(levels):
            break
    return texts


def mark_point(ax: Axes, name: str, point: Any, colour: str) -> None:
    """A dot with its name beside it, on the side where the axes have more room."""
    point = np.asarray(point, float)
    if point.shape != (2,) or not np.all(np.isfinite(point)):
        msg = f"points[{name!r}] must be two finite numbers, got {point!r}."
        raise ValueError(msg)
    ax.plot(*point, "o", color=colour, markeredgecolor="white", markersize=8, zorder=5)
    side = 1 if point[0] <= np.mean(ax.get_xlim()) else -1
    ax.annotate(
        name, point, (7 * side, 0), textcoords="offset points", ha="left" if side == 1 else "right", va="center",
        color=INK, fontsize=FONT_SIZE + 1, path_effects=[halo()], zorder=6,
    )  # fmt: skip


def halo() -> withStroke:
    """A white outline."""
    return withStroke(linewidth=HALO_WIDTH, foreground="white")
