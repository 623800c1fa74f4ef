"""optax transformations: descent of the relaxed loss, and rules for the step and the batch."""

from ._relaxed import RelaxedState as RelaxedState
from .accelerated import AcceleratedState as AcceleratedState
from .accelerated import accelerated_sgd as accelerated_sgd
from .adaptive_batch import AdaptiveBatchState as AdaptiveBatchState
from .adaptive_batch import adaptive_batch as adaptive_batch
from .batch_size import BatchSizeController as BatchSizeController
from .batch_size import BatchSizeState as BatchSizeState
from .batch_size import GradientNoise as GradientNoise
from .batch_size import batch_size_controller as batch_size_controller
from .batch_size import gradient_noise as gradient_noise
from .certainty_equivalent import CertaintyEquivalentState as CertaintyEquivalentState
from .certainty_equivalent import scale_by_certainty_equivalent as scale_by_certainty_equivalent
from .controlled import ControlledState as ControlledState
from .controlled import controlled_sgd as controlled_sgd
from .evaluation import eval_params as eval_params
from .heat import heat_sgd as heat_sgd
from .hopf_lax import hopf_lax_sgd as hopf_lax_sgd
from .hyperparameters import injectable as injectable
from .lasry_lions import LasryLionsState as LasryLionsState
from .lasry_lions import lasry_lions as lasry_lions
from .local_entropy import entropy_sgd as entropy_sgd
from .local_entropy import local_entropy_gradient as local_entropy_gradient
from .replicas import ElasticState as ElasticState
from .replicas import ParleState as ParleState
from .replicas import elastic_coupling as elastic_coupling
from .replicas import parle as parle
from .signal_to_noise import SignalToNoiseState as SignalToNoiseState
from .signal_to_noise import scale_by_signal_to_noise as scale_by_signal_to_noise
from .space_adaptive import SpaceAdaptiveState as SpaceAdaptiveState
from .space_adaptive import scale_by_space_adaptive as scale_by_space_adaptive
from .space_adaptive import space_adaptive_sgd as space_adaptive_sgd
from .stepwise import StepwiseState as StepwiseState
from .stepwise import entropy_sgd_stepwise as entropy_sgd_stepwise
from .target_level import TargetLevelState as TargetLevelState
from .target_level import target_level as target_level
from .two_time_scale import TwoTimeScaleState as TwoTimeScaleState
from .two_time_scale import two_time_scale as two_time_scale

__all__ = [
    "AcceleratedState",
    "AdaptiveBatchState",
    "BatchSizeController",
    "BatchSizeState",
    "CertaintyEquivalentState",
    "ControlledState",
    "ElasticState",
    "GradientNoise",
    "LasryLionsState",
    "ParleState",
    "RelaxedState",
    "SignalToNoiseState",
    "SpaceAdaptiveState",
    "StepwiseState",
    "TargetLevelState",
    "TwoTimeScaleState",
    "accelerated_sgd",
    "adaptive_batch",
    "batch_size_controller",
    "controlled_sgd",
    "elastic_coupling",
    "entropy_sgd",
    "entropy_sgd_stepwise",
    "eval_params",
    "gradient_noise",
    "heat_sgd",
    "hopf_lax_sgd",
    "injectable",
    "lasry_lions",
    "local_entropy_gradient",
    "parle",
    "scale_by_certainty_equivalent",
    "scale_by_signal_to_noise",
    "scale_by_space_adaptive",
    "space_adaptive_sgd",
    "target_level",
    "two_time_scale",
]
