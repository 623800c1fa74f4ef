"""Controlled descent: the optimal control α = ∇u of a Hamilton-Jacobi-Bellman equation, computed four ways."""

from .feedback import Feedback as Feedback
from .feedback import feedback as feedback
from .learned import backward_sde_loss as backward_sde_loss
from .learned import fit_value_function as fit_value_function
from .learned import learned_control as learned_control
from .linear_quadratic import LinearQuadratic as LinearQuadratic
from .linear_quadratic import linear_quadratic as linear_quadratic
from .path_integral import ControlEstimate as ControlEstimate
from .path_integral import PathIntegral as PathIntegral
from .path_integral import path_integral as path_integral

__all__ = [
    "ControlEstimate",
    "Feedback",
    "LinearQuadratic",
    "PathIntegral",
    "backward_sde_loss",
    "feedback",
    "fit_value_function",
    "learned_control",
    "linear_quadratic",
    "path_integral",
]
