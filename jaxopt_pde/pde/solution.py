"""What the solvers return: grid functions at the times asked for, interpolated anywhere, and how it went."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from .grid import Grid
from .interpolation import interpolate

__all__ = [
    "BAD_NUMBERS",
    "FINISHED",
    "NONFINITE_INITIAL",
    "NONFINITE_VALUES",
    "STEP_LIMIT",
    "Solution",
    "finish",
]

FINISHED, NONFINITE_INITIAL, NONFINITE_VALUES, STEP_LIMIT, BAD_NUMBERS = range(5)

_SENTENCES = {
    FINISHED: "The solution was computed at all times.",
    NONFINITE_INITIAL: "The drift, the terminal data or the initial data have values that are not finite.",
    NONFINITE_VALUES: "The solution stopped being finite: the scheme was unstable for these data; lower cfl.",
    STEP_LIMIT: (
        "The step limit was reached before all times were: raise max_steps, use diffusion='exponential' where the "
        "solver has it, or take fewer grid points. Values at the times that were not reached are NaN."
    ),
    BAD_NUMBERS: (
        "The times are negative or do not increase, or the temperature is negative or not a number, or so is the "
        "control cost, which must be positive, or an initial density."
    ),
}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("times", "values", "status", "num_steps"),
    meta_fields=("grid", "scheme"),
)
@dataclasses.dataclass(frozen=True)
class Solution:
    """u at the times asked for, with its gradient, at any point.

    A pytree: return it from ``jit``, ``vmap`` or differentiate through it.

    Attributes:
        grid: the grid.
        times: [n], increasing, in [param²/loss].
        values: u at the grid points, [n, *shape], in [loss].
        scheme: name of the method used.
        num_steps: time steps taken (int32); 0 for the exact route.
        status: 0 if all went well (int32); :attr:`result` says it in words.
    """

    grid: Grid
    times: Float[Array, " n"]
    values: Float[Array, " n *shape"]
    scheme: str
    num_steps: Int[Array, ""]
    status: Int[Array, ""]

    @property
    def result(self) -> str:
        """How the computation ended, as a sentence. Reads ``status`` from the device."""
        return _SENTENCES[int(self.status)]

    def check(self) -> "Solution":
        """Raises ``RuntimeError`` with :attr:`result` unless all went well; returns self."""
        if int(self.status) != FINISHED:
            raise RuntimeError(self.result)
        return self

    def value(self, x: Float[Array, "*batch d"], time: float | Float[Array, ""]) -> Float[Array, "*batch"]:
        """u(x, t), interpolated.

        Cubic in space (fourth order where u is smooth), linear between ``times``. Outside the box u is continued as the
        boundary says; outside [times[0], times[-1]] it is NaN.

        Args:
            x: points, [..., d]; in 1-D also [...] with no last axis of size 1.
            time: t, one for all points.

        Returns:
            u, [...].
        """
        return self._interpolated(x, time)[0]

    def gradient(
        self, x: Float[Array, "*batch d"], time: float | Float[Array, ""]
    ) -> Float[Array, "*batch d"]:
        """∇u(x, t), the exact derivative of :meth:`value` (third order where u is smooth).

        Args:
            x: points, [..., d], as in :meth:`value`.
            time: t, one for all points.

        Returns:
            ∇u, with the shape of ``x``.
        """
        return self._interpolated(x, time)[1]

    def _interpolated(self, x, time):
        x = jnp.asarray(x, self.values.dtype)
        bare = self.grid.ndim == 1 and (x.ndim == 0 or x.shape[-1] != 1)
        points = x[..., None] if bare else x
        if points.shape[-1:] != (self.grid.ndim,):
            msg = f"x must have a last axis of size {self.grid.ndim}, got shape {x.shape}."
            raise ValueError(msg)
        if jnp.ndim(time):
            msg = f"time must be a scalar, got shape {jnp.shape(time)}: vmap over it."
            raise ValueError(msg)
        value, gradient = _interpolate_at(self, points.reshape(-1, self.grid.ndim), time)
        return value.reshape(points.shape[:-1]), gradient.reshape(x.shape)

    def _at(self, time) -> Float[Array, "*shape"]:
        """The grid function at one time, linear between the times there are."""
        time = jnp.asarray(time, self.times.dtype)
        rounding = 8 * jnp.finfo(self.times.dtype).eps * jnp.abs(self.times[-1])
        inside = (time >= self.times[0] - rounding) & (time <= self.times[-1] + rounding)
        if self.times.shape[0] == 1:
            return jnp.where(inside, self.values[0], jnp.nan)
        after = jnp.clip(jnp.searchsorted(self.times, time), 1, self.times.shape[0] - 1)
        start, stop = self.times[after - 1], self.times[after]
        weight = jnp.clip((time - start) / (stop - start), 0, 1)
        # The later time may not have been reached, and 0 times NaN is NaN.
        later = jnp.where(weight > 0, self.values[after], self.values[after - 1])
        frame = (1 - weight) * self.values[after - 1] + weight * later
        return jnp.where(inside, frame, jnp.nan)


@jax.jit
def _interpolate_at(solution: Solution, points: Float[Array, "m d"], time) -> tuple[Array, Array]:
    """Values [m] and gradients [m, d] at one time."""
    frame = solution._at(time)
    return jax.vmap(lambda point: interpolate(frame, solution.grid, point))(points)


def finish(
    solution: Solution,
    *,
    data: Sequence[Array] = (),
    nonnegative: Sequence[ArrayLike] = (),
    positive: Sequence[ArrayLike] = (),
    stopped: Bool[Array, ""],
) -> Solution:
    """Sets ``status`` from what was met, the cause before its consequences.

    Args:
        solution: times, values and number of steps.
        data: arrays that must be finite.
        nonnegative: arrays that must be finite and at least 0.
        positive: arrays that must be finite and above 0.
        stopped: whether the step limit was met.

    Returns:
        The solution with its status.
    """
    times = solution.times
    in_order = jnp.all(jnp.diff(times, prepend=0) >= 0) & jnp.isfinite(times[-1])
    for bound, arrays in ((jnp.greater_equal, nonnegative), (jnp.greater, positive)):
        for array in arrays:
            in_order &= jnp.all(bound(array, 0) & jnp.isfinite(array))
    finite = functools.reduce(jnp.logical_and, (jnp.all(jnp.isfinite(array)) for array in data), True)
    troubles = (
        (~jnp.asarray(finite), NONFINITE_INITIAL),
        (~in_order, BAD_NUMBERS),
        (stopped, STEP_LIMIT),
        (~jnp.all(jnp.isfinite(solution.values)), NONFINITE_VALUES),
    )
    status = jnp.asarray(FINISHED, jnp.int32)
    for met, code in reversed(troubles):
        status = jnp.where(met, jnp.int32(code), status)
    return dataclasses.replace(solution, status=status)
