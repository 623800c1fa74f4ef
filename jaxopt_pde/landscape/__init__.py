"""Looking at losses: slices, spectra, flatness and trajectories of f and of the relaxed loss u(x, t)."""

from .estimate import Estimate
from .plane import Plane, plane_through, project

__all__ = ["Estimate", "Plane", "plane_through", "project"]
