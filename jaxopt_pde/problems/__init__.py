"""Test functions with their exact relaxed loss, stochastic problems with their exact moments, and rate bounds."""

from .absolute_value import absolute_value
from .active_clusters import (
    ClusterMoments,
    active_gradient,
    active_gradient_variance,
    cluster_gradient_variance,
    cluster_moments,
    inverse_active_count,
)
from .batch_rule import required_batch_size
from .double_well import double_well
from .kmeans import kmeans, planted_clusters
from .logistic import logistic
from .mueller_brown import mueller_brown
from .multiwell import periodic_wells, rastrigin, rugged
from .noisy_quadratic import noisy_quadratic
from .problem import Problem, domain_points, evaluate
from .quadratic import quadratic
from .quadratic_wells import hard_minimum, sharp_and_wide, soft_minimum
from .rate_schedules import a_priori_schedule, inverse_step_rate, textbook_bound, textbook_rate
from .rates import (
    gaussian_noise_limit,
    noise_limit,
    one_step_bound,
    refuted_talk_bound,
    refuted_talk_constant,
    space_adaptive_bound,
    space_adaptive_constant,
    space_adaptive_rate,
)
from .stochastic_problem import StochasticProblem

__all__ = [
    "ClusterMoments",
    "Problem",
    "StochasticProblem",
    "a_priori_schedule",
    "absolute_value",
    "active_gradient",
    "active_gradient_variance",
    "cluster_gradient_variance",
    "cluster_moments",
    "domain_points",
    "double_well",
    "evaluate",
    "gaussian_noise_limit",
    "hard_minimum",
    "inverse_active_count",
    "inverse_step_rate",
    "kmeans",
    "logistic",
    "mueller_brown",
    "noise_limit",
    "noisy_quadratic",
    "one_step_bound",
    "periodic_wells",
    "planted_clusters",
    "quadratic",
    "rastrigin",
    "refuted_talk_bound",
    "refuted_talk_constant",
    "required_batch_size",
    "rugged",
    "sharp_and_wide",
    "soft_minimum",
    "space_adaptive_bound",
    "space_adaptive_constant",
    "space_adaptive_rate",
    "textbook_bound",
    "textbook_rate",
]
