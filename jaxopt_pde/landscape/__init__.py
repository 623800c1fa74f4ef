"""Looking at losses: slices, spectra, flatness and trajectories of f and of the relaxed loss u(x, t)."""

from .connectivity import barrier, connect, curve_losses
from .curvature import GaussNewton, hessian_vector_product
from .curve import Curve, curve_point, interpolate, straight_line
from .directions import filter_normalized, random_directions
from .estimate import Estimate
from .flatness import expected_sharpness, sharpness
from .hutchinson import trace
from .local_entropy import local_entropy
from .plane import Plane, plane_through, project
from .relaxation import Relaxation
from .slice_files import resumable_slice
from .slices import slice
from .spectral_density import SpectralDensity, spectral_density
from .spectrum import exact_spectrum, top_eigenvalues, top_eigenvectors
from .trajectory import Recording, TrajectoryPlane, pca_plane, record

__all__ = [
    "Curve",
    "Estimate",
    "GaussNewton",
    "Plane",
    "Recording",
    "Relaxation",
    "SpectralDensity",
    "TrajectoryPlane",
    "barrier",
    "connect",
    "curve_losses",
    "curve_point",
    "exact_spectrum",
    "expected_sharpness",
    "filter_normalized",
    "hessian_vector_product",
    "interpolate",
    "local_entropy",
    "pca_plane",
    "plane_through",
    "project",
    "random_directions",
    "record",
    "resumable_slice",
    "sharpness",
    "slice",
    "spectral_density",
    "straight_line",
    "top_eigenvalues",
    "top_eigenvectors",
    "trace",
]
