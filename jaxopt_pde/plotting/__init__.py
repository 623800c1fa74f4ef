"""Axes in, axes out: what the landscapes look like. Matplotlib is imported here alone."""

from .contours import contour, contour_levels
from .curves import profile
from .relaxed import overlay, relaxed_pair
from .saving import save
from .spectra import DensityArtists, spectral_density
from .style import COLOURS, style
from .surfaces import surface
from .trajectories import PathArtists, trajectory

__all__ = [
    "COLOURS",
    "DensityArtists",
    "PathArtists",
    "contour",
    "contour_levels",
    "overlay",
    "profile",
    "relaxed_pair",
    "save",
    "spectral_density",
    "style",
    "surface",
    "trajectory",
]
