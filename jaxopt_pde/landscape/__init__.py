"""Looking at losses: slices, spectra, flatness and trajectories of f and of the relaxed loss u(x, t)."""

from .connectivity import barrier, connect, curve_losses
from .curve import Curve, curve_point, interpolate, straight_line
from .estimate import Estimate
from .flatness import expected_sharpness, sharpness
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
    "expected_sharpness",
    "interpolate",
    "pca_plane",
    "plane_through",
    "project",
    "record",
    "sharpness",
    "straight_line",
]
