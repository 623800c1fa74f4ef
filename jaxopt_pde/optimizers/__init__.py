"""optax transformations that descend the relaxed loss."""

from ._relaxed import RelaxedState as RelaxedState
from .evaluation import eval_params as eval_params
from .heat import heat_sgd as heat_sgd
from .hopf_lax import hopf_lax_sgd as hopf_lax_sgd
from .hyperparameters import injectable as injectable
from .local_entropy import entropy_sgd as entropy_sgd
from .local_entropy import local_entropy_gradient as local_entropy_gradient
from .stepwise import StepwiseState as StepwiseState
from .stepwise import entropy_sgd_stepwise as entropy_sgd_stepwise

__all__ = [
    "RelaxedState",
    "StepwiseState",
    "entropy_sgd",
    "entropy_sgd_stepwise",
    "eval_params",
    "heat_sgd",
    "hopf_lax_sgd",
    "injectable",
    "local_entropy_gradient",
]
