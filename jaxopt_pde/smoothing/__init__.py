"""The relaxed loss u(x, t) and its gradient, as pure functions on pytrees."""

from .._typing import InnerStep as InnerStep
from .._typing import Smoothed as Smoothed
from .langevin import langevin as langevin

__all__ = ["InnerStep", "Smoothed", "langevin"]
