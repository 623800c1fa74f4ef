"""What stands for f − f* and for E|g|² in the space-adaptive step: four ways to estimate them from minibatches.

An estimator is a pair of functions. ``init(dtype)`` gives its statistics, ``step(statistics, observation)`` gives the
two numbers that the step is made of and the statistics after this observation. All but the first are *lagged*: what
an update uses was observed before it, so that the step is independent of the gradient it multiplies and the mean of
h·g is h·∇f. The first update has no past and uses its own.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ._step_statistics import averaging_weight

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "Level",
    "MeanStatistics",
    "MicrobatchStatistics",
    "Observation",
    "WindowStatistics",
    "estimators",
]

Estimator = Literal["instantaneous", "ema", "window", "microbatch"]
ESTIMATORS = ("instantaneous", "ema", "window", "microbatch")


class Observation(NamedTuple):
    """What one update saw.

    Attributes:
        count: observations before this one (int32).
        value: the caller's loss.
        grad_sq_norm: |g|², or the caller's estimate of E|g|².
        signal: unbiased |∇f|² from microbatches, or None.
        noise: unbiased E|g − ∇f|² from microbatches, or None.
        decay: of the running means, or None for the estimator's own.
    """

    count: Int[Array, ""]
    value: Float[Array, ""]
    grad_sq_norm: Float[Array, ""]
    signal: Float[Array, ""] | None
    noise: Float[Array, ""] | None
    decay: Any


class Level(NamedTuple):
    """What the step is made of.

    Attributes:
        value: estimate of f(x).
        grad_sq_norm: estimate of E|g|².
        known: whether there is an estimate yet; where not, the step is the greatest allowed.
    """

    value: Float[Array, ""]
    grad_sq_norm: Float[Array, ""]
    known: Bool[Array, ""] | bool = True


class MeanStatistics(NamedTuple):
    """Running means of the loss [loss] and of |g|² [loss²/param²]."""

    value: Float[Array, ""]
    grad_sq_norm: Float[Array, ""]


class MicrobatchStatistics(NamedTuple):
    """Running means of the loss [loss], of |∇f|² and of E|g − ∇f|² [loss²/param²]."""

    value: Float[Array, ""]
    signal: Float[Array, ""]
    noise: Float[Array, ""]


class WindowStatistics(NamedTuple):
    """Running means of the window in progress, and the pair that the step is held at since the last one ended."""

    value: Float[Array, ""]
    grad_sq_norm: Float[Array, ""]
    held_value: Float[Array, ""]
    held_grad_sq_norm: Float[Array, ""]


def _zeros(statistics: type, dtype: Any):
    """Zero statistics, each a buffer of its own so that a state can be donated."""
    return statistics(*(jnp.zeros([], dtype) for _ in statistics._fields))


def _advance(means, seen, weight):
    return type(means)(*(m + weight * (s - m) for m, s in zip(means, seen, strict=True)))


def _lagged(count, means, after):
    """The means before this observation; at the first one, those after it."""
    return type(means)(*(jnp.where(count == 0, new, old) for old, new in zip(means, after, strict=True)))


def _instantaneous(statistics: tuple, seen: Observation) -> tuple[Level, tuple]:
    return Level(seen.value, seen.grad_sq_norm), statistics


def _ema(means: MeanStatistics, seen: Observation) -> tuple[Level, MeanStatistics]:
    weight = averaging_weight(seen.count, seen.decay, means.value.dtype)
    after = _advance(means, (seen.value, seen.grad_sq_norm), weight)
    return Level(*_lagged(seen.count, means, after)), after


def _microbatch(means: MicrobatchStatistics, seen: Observation) -> tuple[Level, MicrobatchStatistics]:
    weight = averaging_weight(seen.count, seen.decay, means.value.dtype)
    after = _advance(means, (seen.value, seen.signal, seen.noise), weight)
    used = _lagged(seen.count, means, after)
    return Level(used.value, jnp.maximum(used.signal, 0) + used.noise), after


def _window(length: int) -> Callable[[WindowStatistics, Observation], tuple[Level, WindowStatistics]]:
    def step(means: WindowStatistics, seen: Observation) -> tuple[Level, WindowStatistics]:
        dtype, place = means.value.dtype, seen.count % length
        decay = 0.9 if seen.decay is None else seen.decay
        value_weight = averaging_weight(seen.count, decay, dtype)  # runs on across windows
        value = means.value + value_weight * (seen.value - means.value)
        grad_sq_norm = means.grad_sq_norm + (seen.grad_sq_norm - means.grad_sq_norm) / (place + 1).astype(
            dtype
        )
        ends = place == length - 1
        after = WindowStatistics(
            value,
            grad_sq_norm,
            jnp.where(ends, value, means.held_value),
            jnp.where(ends, grad_sq_norm, means.held_grad_sq_norm),
        )
        return Level(means.held_value, means.held_grad_sq_norm, seen.count >= length), after

    return step


def estimators(name: Estimator, window: int) -> tuple[Callable, Callable]:
    """``(init, step)`` of the estimator called ``name``."""
    return {
        "instantaneous": (lambda dtype: (), _instantaneous),
        "ema": (lambda dtype: _zeros(MeanStatistics, dtype), _ema),
        "window": (lambda dtype: _zeros(WindowStatistics, dtype), _window(window)),
        "microbatch": (lambda dtype: _zeros(MicrobatchStatistics, dtype), _microbatch),
    }[name]
