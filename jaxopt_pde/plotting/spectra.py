"""The density of a spectrum on a logarithmic scale, with its tails enlarged."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection, LineCollection
from matplotlib.lines import Line2D

from .. import _validate
from ._arguments import as_mean, as_vector, check_line
from .curves import NORMAL_QUANTILE
from .style import COLOURS, FONT_SIZE, INK

__all__ = ["DensityArtists", "spectral_density"]


class DensityArtists(NamedTuple):
    """What :func:`spectral_density` drew.

    Attributes:
        line: the density.
        band: its 95 % band, or None.
        ticks: the given eigenvalues along the axis, or None.
        insets: the axes of the tails, those to the left first; none, one or two.
    """

    line: Line2D
    band: FillBetweenPolyCollection | None
    ticks: LineCollection | None
    insets: tuple[Axes, ...]


def spectral_density(
    ax: Axes,
    grid: Any,
    density: Any,
    *,
    eigenvalues: Any = None,
    floor: float | None = None,
    tails: bool | tuple[float, float] = True,
    colour: str = COLOURS["blue"],
) -> DensityArtists:
    """A spectral density with its 95 % band on a logarithmic scale, the two tails enlarged, eigenvalues as ticks.

    Args:
        ax: the axes to draw on; their vertical scale becomes logarithmic.
        grid: λ, [points], increasing, in [loss/param²]; of ``landscape.spectral_density(...)``, or any other.
        density: [points], an array or an estimate (``density`` of the same), in [param²/loss]; what is not finite or
            below the floor is drawn at the floor.
        eigenvalues: single ones, [number] in any order, such as the largest found by Lanczos; drawn as ticks. None
            for none.
        floor: least density shown, positive; None for 1e-6 of the largest.
        tails: True to enlarge the tails outside the central 99 % of the mass that take up less than half of the axis (
            others are seen without); or (left, right), the λ below and above which to enlarge; False for
            none. A side is left out where nothing rises above the floor and no eigenvalue lies.
        colour: of the density.

    Returns:
        :class:`DensityArtists`.

    Raises:
        ValueError, TypeError: a grid that does not increase, another number of densities, none of them positive, a
            floor that is not positive, tails that do not increase.

    Example:
        >>> import numpy as np
        >>> from matplotlib.figure import Figure
        >>> from jaxopt_pde import plotting
        >>> grid = np.linspace(-1.0, 10.0, 500)
        >>> drawn = plotting.spectral_density(
        ...     Figure().subplots(), grid, np.exp(-50.0 * grid**2), eigenvalues=[9.0], tails=(-0.5, 0.5)
        ... )
        >>> print(drawn.ticks.get_segments()[0][:, 0], len(drawn.insets))
        [9. 9.] 2
    """
    grid = as_vector("grid", grid)
    mean, error = as_mean("density", density, 1)
    check_line("density", mean, grid, "point of grid")
    if not np.nanmax(mean) > 0:
        msg = f"density must be positive somewhere, got a largest value of {np.nanmax(mean):g}."
        raise ValueError(msg)
    if floor is None:
        floor = 1e-6 * np.nanmax(mean[np.isfinite(mean)])
    _validate.check_positive("floor", floor)
    found = None if eigenvalues is None else np.sort(as_vector("eigenvalues", eigenvalues, ordered=False))
    line, band, ticks = _draw(ax, grid, mean, error, found, floor, colour, tick=0.05)
    ax.set_xlabel("eigenvalue λ   [loss/param²]")
    ax.set_ylabel("density   [param²/loss]")
    if tails is False:
        return DensityArtists(line, band, ticks, ())
    left, right = _bulk(grid, mean) if tails is True else tails
    if not left < right:
        msg = f"tails must increase, got {tails!r}."
        raise ValueError(msg)
    everything = grid if found is None else np.concatenate([grid, found])
    ranges = []
    for low, high in ((everything.min(), left), (right, everything.max())):
        seen = (grid >= low) & (grid <= high) & (mean > floor)
        single = found is not None and bool(np.any((found >= low) & (found <= high)))
        small = tails is not True or high - low < 0.5 * np.ptp(everything)
        if low < high and small and (np.any(seen) or single):
            ranges.append((low, high))
    insets = []
    places = _places(ax, grid[np.nanargmax(mean)], len(ranges))
    _make_room(ax, line, places)
    for place, limits in zip(places, ranges, strict=True):
        inset = ax.inset_axes(place)
        _draw(inset, grid, mean, error, found, floor, colour, tick=0.12)
        margin = 0.03 * (limits[1] - limits[0])
        inset.set_xlim(limits[0] - margin, limits[1] + margin)
        inside = mean[(grid >= limits[0]) & (grid <= limits[1])]
        inset.set_ylim(floor, max(3 * np.max(inside, initial=floor, where=np.isfinite(inside)), 10 * floor))
        inset.tick_params(labelsize=FONT_SIZE, length=2.5)
        inset.locator_params(axis="x", nbins=3)
        inset.set_title(
            "left tail" if limits[1] == left else "right tail", fontsize=FONT_SIZE, color=INK, pad=3
        )
        insets.append(inset)
    return DensityArtists(line, band, ticks, tuple(insets))


def _draw(ax, grid, mean, error, found, floor, colour, tick):
    shown = np.maximum(np.nan_to_num(mean, nan=floor, posinf=floor, neginf=floor), floor)
    (line,) = ax.plot(grid, shown, color=colour, linewidth=1.5, zorder=3)
    band = None
    if error is not None:
        low, high = (np.maximum(mean + sign * NORMAL_QUANTILE * error, floor) for sign in (-1, 1))
        band = ax.fill_between(grid, low, high, color=colour, alpha=0.25, linewidth=0, zorder=2)
    ticks = None
    if found is not None:
        ticks = ax.vlines(
            found,
            0.0,
            tick,
            colors=COLOURS["vermillion"],
            linewidth=1.4,
            transform=ax.get_xaxis_transform(),
            zorder=4,
        )
    ax.set_yscale("log")
    ax.set_ylim(floor, 3 * shown.max())
    return line, band, ticks


def _bulk(grid: np.ndarray, mean: np.ndarray) -> tuple[float, float]:
    """Where 0.5 % and 99.5 % of the mass are reached."""
    density = np.clip(np.nan_to_num(mean, nan=0.0, posinf=0.0, neginf=0.0), 0.0, None)
    mass = np.concatenate([[0.0], np.cumsum(np.diff(grid) * (density[1:] + density[:-1]) / 2)])
    left, right = np.interp((0.005 * mass[-1], 0.995 * mass[-1]), mass, grid)
    return float(left), float(right)


def _places(ax: Axes, peak: float, number: int) -> list[tuple[float, float, float, float]]:
    """Beside the peak, at the top: on both sides if it stands in the middle, else both where there is room."""
    low, high = ax.get_xlim()
    share = (peak - low) / (high - low)
    bottom, height = 0.56, 0.36
    if number < 2:
        return [(0.55, bottom, 0.43, height) if share < 0.5 else (0.14, bottom, 0.43, height)][:number]
    if share < 0.36:
        start = share + 0.14
        width = (1.0 - start - 0.12) / 2
        return [(start, bottom, width, height), (start + width + 0.12, bottom, width, height)]
    if share > 0.64:
        width = (share - 0.12 - 0.26) / 2
        return [(0.14, bottom, width, height), (0.26 + width, bottom, width, height)]
    return [(0.14, bottom, share - 0.2, height), (share + 0.18, bottom, 0.8 - share, height)]


def _make_room(ax: Axes, line: Line2D, places: list[tuple[float, float, float, float]]) -> None:
    """Raises the upper limit until the curve passes below the insets and their tick labels."""
    grid, shown = line.get_data()
    (start, end), (floor, top) = ax.get_xlim(), ax.get_ylim()
    for left, bottom, width, _ in places:
        under = (grid > start + (left - 0.1) * (end - start)) & (
            grid < start + (left + width) * (end - start)
        )
        highest = np.max(shown[under], initial=floor)
        top = max(top, floor * (highest / floor) ** (1 / (bottom - 0.1)))
    ax.set_ylim(floor, top)
