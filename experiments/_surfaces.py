"""The surfaces of :mod:`experiments.optimizer_paths`: four losses in the plane with f* = 0."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["CURVATURES", "NOISE", "SURFACES", "TURN", "Surface"]

CURVATURES = (0.01, 1.0)
TURN = np.array([[np.cos(0.35), -np.sin(0.35)], [np.sin(0.35), np.cos(0.35)]])
HESSIAN = TURN @ np.diag(CURVATURES) @ TURN.T
NOISE = 0.1
"""Standard deviation of the noise of a coordinate of the gradient in the noisy valley."""


class Surface(NamedTuple):
    """A loss in the plane, f* = 0.

    Attributes:
        loss: point [2] → f.
        minimiser: x*.
        start: where the drawn paths start.
        spread: standard deviation of the other starts about it, a coordinate.
        noise: standard deviation of the gradient's noise, a coordinate.
        temperature: T of Entropy-SGD at the start; it falls to 0 linearly.
        window: what is drawn, (left, right), (bottom, top).
    """

    loss: Callable[[jax.Array], jax.Array]
    minimiser: tuple[float, float]
    start: tuple[float, float]
    spread: float
    noise: float
    temperature: float
    window: tuple[tuple[float, float], tuple[float, float]]


def valley(x):
    """½ x·Ax, A with eigenvalues 0.01 and 1, turned by 20°."""
    return 0.5 * x @ (jnp.asarray(HESSIAN, x.dtype) @ x)


def curved(x):
    """A parabolic valley that falls slowly to (1, 1)."""
    return 0.5 * (x[1] - x[0] ** 2) ** 2 + 0.02 * (1 - x[0]) ** 2


def ripples(x):
    """A bowl with waves of height 0.2, stationary points about every unit."""
    return 0.04 * x[0] ** 2 + 0.08 * x[1] ** 2 + 0.1 * jnp.sum(1 - jnp.cos(2 * jnp.pi * x))


SURFACES = {
    "valley": Surface(valley, (0, 0), (-3.6, -0.2), 0.3, 0.0, 0.0, ((-4.4, 1.6), (-2.3, 1.4))),
    "valley, noisy": Surface(valley, (0, 0), (-3.6, -0.2), 0.3, NOISE, 0.0, ((-4.4, 1.6), (-2.3, 1.4))),
    "curved valley": Surface(curved, (1, 1), (-1.5, 0.6), 0.1, 0.0, 0.0, ((-2.3, 2.3), (-0.4, 2.47))),
    "ripples": Surface(ripples, (0, 0), (-3.1, 1.8), 0.3, 0.0, 0.1, ((-4.3, 1.5), (-1.1, 2.5))),
}
