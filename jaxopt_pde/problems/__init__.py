"""Test functions with their domains, minimisers and, where known, their exact relaxed loss."""

from .absolute_value import absolute_value
from .double_well import double_well
from .mueller_brown import mueller_brown
from .multiwell import periodic_wells, rastrigin, rugged
from .problem import Problem, domain_points, evaluate
from .quadratic import quadratic
from .quadratic_wells import hard_minimum, sharp_and_wide, soft_minimum

__all__ = [
    "Problem",
    "absolute_value",
    "domain_points",
    "double_well",
    "evaluate",
    "hard_minimum",
    "mueller_brown",
    "periodic_wells",
    "quadratic",
    "rastrigin",
    "rugged",
    "sharp_and_wide",
    "soft_minimum",
]
