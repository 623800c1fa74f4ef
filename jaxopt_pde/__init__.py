"""jaxopt_pde: functional optimisation and PDE relaxation in JAX.

Train on the relaxed loss u(x, t), the solution of the viscous Hamilton-Jacobi equation

    u_t + ½|∇u|² = (T/2) Δu,     u(x, 0) = f(x),

with optax transformations: :func:`entropy_sgd` and its relatives. ``jaxopt_pde.smoothing`` has the
estimators of ∇u as plain functions, ``jaxopt_pde.pde`` the solvers on grids in 1-D to 3-D,
``jaxopt_pde.control`` the optimal control of the descent, ``jaxopt_pde.robustness`` the same calculus in the
input space, ``jaxopt_pde.landscape`` what losses look like, ``jaxopt_pde.problems`` test functions. Imported on
first use: ``jaxopt_pde.models`` (Flax), the networks, and ``jaxopt_pde.plotting`` (Matplotlib), their pictures.
"""

import importlib as _importlib
from types import ModuleType as _ModuleType

from . import control as control
from . import landscape as landscape
from . import optimizers as optimizers
from . import pde as pde
from . import problems as problems
from . import robustness as robustness
from . import smoothing as smoothing
from ._typing import InnerStep as InnerStep
from ._typing import Smoothed as Smoothed
from .optimizers import *  # noqa: F403
from .optimizers import __all__ as _optimizers

__version__ = "0.1.0"

__all__ = [
    "InnerStep",
    "Smoothed",
    "control",
    "landscape",
    "optimizers",
    "pde",
    "problems",
    "robustness",
    "smoothing",
    *_optimizers,
]


def __getattr__(name: str) -> _ModuleType:
    if name in ("models", "plotting"):  # Flax and Matplotlib take longer to import than all the rest
        return _importlib.import_module(f".{name}", __name__)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
