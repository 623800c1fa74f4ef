"""One look for all figures: colours that everyone can tell apart, and settings as a context."""

import contextlib
from collections.abc import Iterator
from typing import Any

import matplotlib
from cycler import cycler

__all__ = ["COLOURS", "FONT_SIZE", "HALO_WIDTH", "INK", "PALE", "style"]

COLOURS: dict[str, str] = {
    "blue": "#0072b2",
    "vermillion": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "orange": "#e69f00",
    "sky": "#56b4e9",
    "yellow": "#f0e442",
    "black": "#000000",
}
"""The palette of Okabe & Ito 2008, told apart with any colour vision, in the order in which curves take them."""

INK = "#404040"
"""Of what is written and of outlines."""

PALE = "#8c8c8c"
"""Of what stands behind: the original loss, contour lines."""

FONT_SIZE = 9.0
"""Of the smallest text, in points."""

HALO_WIDTH = 2.5
"""Of the white outline that keeps text and paths legible on lines, in points."""

_SETTINGS = {
    "axes.prop_cycle": cycler(color=[c for name, c in COLOURS.items() if name != "yellow"]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "image.cmap": "viridis",
    "legend.fontsize": FONT_SIZE,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 200,
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
}


@contextlib.contextmanager
def style(**changes: Any) -> Iterator[None]:
    """The settings of all figures of this package, inside a ``with`` block; outside everything stays as it was.

    Okabe and Ito's colours (the yellow, invisible on white lines, left out of the cycle), text of at least 9 points,
    no box around the axes, constrained layout. Make the figure inside the block.

    Args:
        changes: Matplotlib's settings that differ, with ``_`` for ``.``, such as ``font_size=14`` for slides.

    Returns:
        A context manager.

    Raises:
        ValueError: a setting that Matplotlib does not know.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from jaxopt_pde import plotting
        >>> with plotting.style(font_size=14):
        ...     ax = Figure(figsize=(5, 3)).subplots()
        ...     (line,) = ax.plot([0.0, 1.0])
        >>> line.get_color() == plotting.COLOURS["blue"]
        True

    References:
        Okabe & Ito 2008, Color universal design.
    """
    names = {name.replace(".", "_"): name for name in matplotlib.rcParams}
    unknown = sorted(set(changes) - set(names))
    if unknown:
        msg = f"style takes Matplotlib's settings with _ for ., such as font_size, got {', '.join(unknown)}."
        raise ValueError(msg)
    with matplotlib.rc_context(_SETTINGS | {names[name]: value for name, value in changes.items()}):
        yield
