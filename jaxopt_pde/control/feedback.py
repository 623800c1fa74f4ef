"""A control from a value function on a grid: α = ∇u/c."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _validate
from ..pde import Solution

__all__ = ["Feedback", "feedback"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Feedback:
    """The control α(x, s) = ∇u(x, s)/c. A pytree: pass it through ``jit``, differentiate through it.

    Attributes:
        solution: the value function u.
        control_cost: its c.
    """

    solution: Solution
    control_cost: float | Float[Array, ""]

    def __call__(
        self, params: Float[Array, " d"], time: float | Float[Array, ""], key: Any = None
    ) -> Float[Array, " d"]:
        """α at a point.

        Args:
            params: x, [d]; in 1-D also a scalar.
            time: s ≥ 0, in [param²/loss].
            key: not used; every control takes one.

        Returns:
            α, with the shape and dtype of ``params``.
        """
        del key
        params, ndim = jnp.asarray(params), self.solution.grid.ndim
        if params.shape != (ndim,) and not (ndim == 1 and params.ndim == 0):
            msg = f"params must be one point of shape ({ndim},), got shape {params.shape}: vmap over many."
            raise ValueError(msg)
        last = self.solution.times[-1]
        gradient = self.solution.gradient(params, jnp.minimum(time, last))
        alpha = jnp.where(time > last, 0, gradient / self.control_cost)
        return alpha.astype(params.dtype) if jnp.issubdtype(params.dtype, jnp.floating) else alpha


def feedback(solution: Solution, *, control_cost: float | Float[Array, ""] = 1.0) -> Feedback:
    """The optimal control α(x, s) = ∇u(x, s)/c of a value function u on a grid.

    Between the times of ``solution`` u is linear in s, so that α errs by O(Δs²) on top of the grid's error; outside
    the box u goes on as the grid's boundary says. Past the last time, the horizon, α = 0: plain descent. Before the
    first time u is not known and α is NaN, as is what a failed solution did not reach: call ``Solution.check`` first.

    Args:
        solution: what :func:`jaxopt_pde.pde.solve_bellman` returned.
        control_cost: c > 0, the one it was solved with.

    Returns:
        A control: ``control(params, time, key=None)`` with ``params`` x [d] (in 1-D also a scalar); one point a
        call, vmap over more.

    Raises:
        TypeError: ``solution`` is no :class:`jaxopt_pde.pde.Solution`.
        ValueError: c ≤ 0. On a call, a point whose dimension is not the grid's.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import control, pde
        >>> grid = pde.Grid.uniform(-4.0, 4.0, 81, boundary="extrapolate")
        >>> V = grid.evaluate(lambda x: 0.5 * x[0] ** 2)
        >>> u = pde.solve_bellman(V, grid, jnp.linspace(0.0, 1.0, 11), drift=lambda x: -x, temperature=0.1)
        >>> alpha = control.feedback(u.check())
        >>> print(f"{alpha(jnp.array(1.0), 0.0):.3f} {alpha(jnp.array(1.0), 1.0):.3f} {alpha(jnp.array(1.0), 1.1):.0f}")
        0.094 1.000 0

    References:
        Fleming & Soner 2006, Controlled Markov Processes and Viscosity Solutions, ch. III (verification).
    """
    if not isinstance(solution, Solution):
        msg = f"solution must be a pde.Solution, as pde.solve_bellman returns, got {solution!r}."
        raise TypeError(msg)
    _validate.check_positive("control_cost", control_cost)
    return Feedback(solution, control_cost)
