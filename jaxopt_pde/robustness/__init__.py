"""Robustness: the calculus of the relaxed loss in the input space - penalties, attacks, certificates, extensions."""

from ._attack_arguments import AttackResult as AttackResult
from .certificates import certified_radius as certified_radius
from .certificates import certified_radius_from_loss as certified_radius_from_loss
from .error_curve import ErrorCurve as ErrorCurve
from .error_curve import error_curve as error_curve
from .layer_norms import ConvolutionLayer as ConvolutionLayer
from .layer_norms import DenseLayer as DenseLayer
from .layer_norms import convolution_norm as convolution_norm
from .layer_norms import dense_norm as dense_norm
from .layer_norms import difference_norms as difference_norms
from .layer_norms import lipschitz_upper_bound as lipschitz_upper_bound
from .lipschitz import LipschitzExtension as LipschitzExtension
from .lipschitz import fill_distance as fill_distance
from .lipschitz import lipschitz_constant as lipschitz_constant
from .lipschitz import lipschitz_extension as lipschitz_extension
from .minimal_distance import minimal_distance as minimal_distance
from .penalties import gradient_penalty as gradient_penalty
from .penalties import j1 as j1
from .penalties import j2 as j2
from .penalties import largest_gradient as largest_gradient
from .penalties import lipschitz_excess as lipschitz_excess
from .penalties import two_lip as two_lip
from .projected_gradient import fgsm as fgsm
from .projected_gradient import pgd as pgd
from .regularized import RegularizedParts as RegularizedParts
from .regularized import regularized_value_and_grad as regularized_value_and_grad

__all__ = [
    "AttackResult",
    "ConvolutionLayer",
    "DenseLayer",
    "ErrorCurve",
    "LipschitzExtension",
    "RegularizedParts",
    "certified_radius",
    "certified_radius_from_loss",
    "convolution_norm",
    "dense_norm",
    "difference_norms",
    "error_curve",
    "fgsm",
    "fill_distance",
    "gradient_penalty",
    "j1",
    "j2",
    "largest_gradient",
    "lipschitz_constant",
    "lipschitz_excess",
    "lipschitz_extension",
    "lipschitz_upper_bound",
    "minimal_distance",
    "pgd",
    "regularized_value_and_grad",
    "two_lip",
]
