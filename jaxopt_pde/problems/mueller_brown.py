"""The Müller-Brown surface of theoretical chemistry."""

import jax.numpy as jnp
import numpy as np

from .problem import Problem, constants

__all__ = ["mueller_brown"]

_HEIGHTS = np.array([-200.0, -100.0, -170.0, 15.0])
_CENTRES = np.array([[1.0, 0.0], [0.0, 0.5], [-0.5, 1.5], [-1.0, 1.0]])
# [[a, b/2], [b/2, c]] of each exponent a Δx² + b ΔxΔy + c Δy²
_FORMS = np.array(
    [
        [[-1.0, 0.0], [0.0, -10.0]],
        [[-1.0, 0.0], [0.0, -10.0]],
        [[-6.5, 5.5], [5.5, -6.5]],
        [[0.7, 0.3], [0.3, 0.7]],
    ]
)
# Roots of the gradient found with forty digits, rounded to float64.
_MINIMISERS = [
    [-0.5582236346330243, 1.4417258418046686],
    [0.6234994049308765, 0.028037758528685664],
    [-0.050010822998206056, 0.4666941048719721],
]
_MINIMUM = -146.69951720995402
_SADDLES = [[0.212486582000662, 0.2929883251073678], [-0.8220015587327321, 0.6243128028148713]]


def mueller_brown() -> Problem:
    """The Müller-Brown surface f(x) = Σ Aᵢ exp(aᵢ Δx² + bᵢ ΔxΔy + cᵢ Δy²), Δ from the i-th of four centres.

    Three wells in a bent valley, with two passes between them: the direction of least slope turns on the way, so that
    straight lines and coordinate descent fail.

    Returns:
        :class:`Problem` on [−1.5, 1.2] × [−0.3, 2.1], with three minimisers (f ≈ −146.70, −108.17, −80.77) and two
        saddles (f ≈ −72.25, −40.66).

    Example:
        >>> problem = mueller_brown()
        >>> print(problem.minimisers.round(3).tolist(), round(problem.minimum, 2))
        [[-0.558, 1.442], [0.623, 0.028], [-0.05, 0.467]] -146.7

    References:
        Müller & Brown 1979, Location of saddle points and minimum energy paths by a constrained simplex optimization
        procedure, Theoretica Chimica Acta 53.
    """

    def loss(point):
        offsets = point[None, :] - constants(_CENTRES, point)
        exponents = jnp.einsum("mi,mij,mj->m", offsets, constants(_FORMS, point), offsets)
        return jnp.sum(constants(_HEIGHTS, point) * jnp.exp(exponents))

    return Problem(
        name="Müller-Brown",
        loss=loss,
        lower=[-1.5, -0.3],
        upper=[1.2, 2.1],
        minimisers=_MINIMISERS,
        minimum=_MINIMUM,
        saddles=_SADDLES,
    )
