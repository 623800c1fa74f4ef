"""The relaxed loss u(x, t) and its gradient, as pure functions on pytrees."""

from .._typing import InnerStep as InnerStep
from .._typing import Smoothed as Smoothed
from .cole_hopf import cole_hopf as cole_hopf
from .gaussian import gaussian as gaussian
from .heat import heat as heat
from .hopf_lax import hopf_lax as hopf_lax
from .langevin import langevin as langevin
from .quadrature import quadrature as quadrature

__all__ = [
    "InnerStep",
    "Smoothed",
    "cole_hopf",
    "gaussian",
    "heat",
    "hopf_lax",
    "langevin",
    "quadrature",
]
