"""Looking at losses: slices, spectra, flatness and trajectories of f and of the relaxed loss u(x, t)."""

from .connectivity import barrier, connect, curve_losses
from .curve import Curve, curve_point, interpolate, straight_line
from .estimate import Estimate
from .plane import Plane, plane_through, project
from .trajectory import Recording, TrajectoryPlane, pca_plane, record

__all__ = [
    "Curve",
    "Estimate",
    "Plane",
    "Recording",
    "TrajectoryPlane",
    "barrier",
    "connect",
    "curve_losses",
    "curve_point",
    "interpolate",
    "pca_plane",
    "plane_through",
    "project",
    "record",
    "straight_line",
]
