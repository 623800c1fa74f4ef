"""Solvers on grids in one to three dimensions: Hamilton-Jacobi equations and total variation."""

from .bellman import solve_bellman as solve_bellman
from .cole_hopf import gaussian_convolution as gaussian_convolution
from .fokker_planck import solve_fokker_planck as solve_fokker_planck
from .grid import Grid as Grid
from .grid import pad as pad
from .hamilton_jacobi import solve_hamilton_jacobi as solve_hamilton_jacobi
from .inf_convolution import inf_convolution as inf_convolution
from .solution import Solution as Solution
from .stencils import laplacian as laplacian
from .stencils import numerical_hamiltonian as numerical_hamiltonian
from .total_variation import DenoiseInfo as DenoiseInfo
from .total_variation import denoise_total_variation as denoise_total_variation
from .total_variation import total_variation as total_variation

__all__ = [
    "DenoiseInfo",
    "Grid",
    "Solution",
    "denoise_total_variation",
    "gaussian_convolution",
    "inf_convolution",
    "laplacian",
    "numerical_hamiltonian",
    "pad",
    "solve_bellman",
    "solve_fokker_planck",
    "solve_hamilton_jacobi",
    "total_variation",
]
