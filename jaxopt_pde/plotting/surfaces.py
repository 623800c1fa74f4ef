"""A plane through the landscape in relief."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LightSource, Normalize
from matplotlib.ticker import MaxNLocator

from .. import _validate
from ._arguments import as_grid, as_levels
from .contours import contour_levels
from .style import PALE

__all__ = ["surface"]


def surface(
    ax: Axes,
    coordinates: tuple[Any, Any],
    values: Any,
    *,
    ceiling: float | None = None,
    levels: Any = None,
    limits: tuple[float, float] | None = None,
    elevation: float = 34.0,
    azimuth: float = -60.0,
) -> PolyCollection:
    """The slice as a surface, lit from the upper left, viridis by height, its contours on the floor.

    Args:
        ax: axes made with ``projection="3d"``.
        coordinates: (a, b), as for :func:`contour`.
        values: [len(a), len(b)], an array or an estimate, of which the mean is drawn. Holes where it is not finite.
        ceiling: the surface ends at this height, so that exploding corners do not flatten the rest; None to show all.
        levels: of the contours on the floor, increasing; None for :func:`contour_levels`, empty for none.
        limits: (lowest, highest) of heights and colours, the highest a ceiling too; None for those of the values. Give
            the same to panels to be compared.
        elevation: of the eye above the plane, in degrees.
        azimuth: of the eye around it, in degrees.

    Returns:
        The surface. It is drawn as pixels in vector files, text and axes as vectors.

    Raises:
        TypeError: axes without a third dimension.
        ValueError: as :func:`contour`; a ceiling below all values; limits that do not increase.

    Example:
        >>> import numpy as np
        >>> from matplotlib.figure import Figure
        >>> from jaxopt_pde import plotting
        >>> a = b = np.linspace(-1.0, 1.0, 11)
        >>> ax = Figure().add_subplot(projection="3d")
        >>> relief = plotting.surface(ax, (a, b), 4.0 * a[:, None] ** 2 + b**2, ceiling=3.0)
        >>> print(round(float(ax.get_zlim()[1]), 6))
        3.0
    """
    if not hasattr(ax, "plot_surface"):
        msg = f'ax must be three-dimensional, from add_subplot(projection="3d"), got {ax!r}.'
        raise TypeError(msg)
    x, y, z = as_grid(coordinates, values)
    low, high = float(z.min()), float(z.max())
    if limits is not None:
        low, high = (float(limit) for limit in limits)
        if not low < high:
            msg = f"limits must increase, got {limits!r}."
            raise ValueError(msg)
    if ceiling is not None:
        _validate.check_finite("ceiling", ceiling)
        if not ceiling > max(low, z.min()):
            msg = f"ceiling must be above the least value, {max(low, z.min()):g}, got {ceiling!r}."
            raise ValueError(msg)
        high = min(high, float(ceiling))
    if not low < high:
        high = low + 1.0  # a plain
    light = LightSource(azdeg=225.0, altdeg=50.0)
    # Slopes as the eye sees them: all three axes of the box have comparable lengths.
    step_x, step_y = 2.0 / (len(x) - 1), 2.0 / (len(y) - 1)
    shown = _cut(z, high) if z.max() > high else z
    z = np.ma.minimum(z, high)
    relief = (z.filled(high) - low) / (high - low)
    colours = light.shade_rgb(
        colormaps["viridis"](Normalize(low, high)(z.filled(high)))[..., :3],
        relief, blend_mode="soft", dx=step_x, dy=step_y, fraction=0.7,
    )  # fmt: skip
    across, up = np.meshgrid(x, y)
    relief = ax.plot_surface(
        across, up, shown.filled(np.nan), facecolors=colours, rstride=1, cstride=1, linewidth=0, antialiased=False,
        shade=False, rasterized=True,
    )  # fmt: skip
    floor = low - 0.35 * (high - low)
    levels = contour_levels(z.compressed()) if levels is None and z.min() < z.max() else levels
    levels = as_levels(levels) if levels is not None and len(levels) else np.zeros(0)
    levels = levels[(levels > z.min()) & (levels < z.max())]
    if len(levels):
        ax.contour(across, up, z, levels=levels, colors=PALE, linewidths=0.7, zdir="z", offset=floor)
    ax.set_zlim(floor, high)
    ax.view_init(elev=elevation, azim=azimuth)
    ax.set_box_aspect((1.0, 1.0, 0.85))
    heights = MaxNLocator(5).tick_values(low, high)
    ax.set_zticks(heights[(heights >= low) & (heights <= high)])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_pane_color((1.0, 1.0, 1.0, 0.0))
        getattr(axis, "_axinfo", {}).get("grid", {}).update(color="#e4e4e4", linewidth=0.6)  # no public way
    return relief


def _cut(z: np.ma.MaskedArray, ceiling: float) -> np.ma.MaskedArray:
    """Flat above the ceiling, and masked there except beside points below it, so that the rim is at the ceiling."""
    below = np.pad(z.filled(np.inf) < ceiling, 1)
    rows, columns = z.shape
    beside = np.any([below[i : i + rows, j : j + columns] for i in range(3) for j in range(3)], axis=0)
    return np.ma.masked_where(~beside | np.ma.getmaskarray(z), np.ma.minimum(z, ceiling))
