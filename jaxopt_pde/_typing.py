"""The vocabulary shared by all floors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, Key, PyTree

__all__ = ["GradFn", "InnerStep", "Params", "ScalarOrSchedule", "Smoothed", "ValueFn"]

Params = PyTree[Float[Array, "..."]]
"""Any pytree of real floating arrays."""

ScalarOrSchedule = float | jax.Array | Callable[[Any], Any]
"""A number, or a function of the optimiser's step count (an int32 scalar that starts at 0)."""

ValueFn = Callable[[Params], Float[Array, ""]]
"""A loss of the parameters alone."""


class InnerStep(NamedTuple):
    """What the optimiser tells ``grad_fn`` at every inner gradient.

    Attributes:
        step: inner step, 0 … ``num_steps - 1`` (traced int32).
        chain: chain, 0 … ``num_chains - 1`` (traced int32).
        key: a typed PRNG key used nowhere else, for dropout, augmentation or the choice of a minibatch.
    """

    step: Int[Array, ""]
    chain: Int[Array, ""]
    key: Key[Array, ""]


GradFn = Callable[[Params, InnerStep], Params]
"""``(params, InnerStep) -> gradient``, a tree like ``params``; may be stochastic."""


class Smoothed(NamedTuple):
    """An estimate of the relaxed loss u(x, t) and of its gradient.

    Attributes:
        gradient: estimate of ∇u(x, t); tree, shapes and dtypes of ``params``. Unit [loss/param].
        value: estimate of u(x, t) where the method gives one, else None. Unit [loss].
        positions: the last particles with a leading axis ``num_chains`` on every leaf, to warm-start the
            next call; None where the method has no particles.
        num_gradients: gradient evaluations spent (int32).
        info: diagnostics, a dict of arrays; each method documents its own.
    """

    gradient: Params
    value: Float[Array, ""] | None
    positions: Params | None
    num_gradients: Int[Array, ""]
    info: dict[str, Array]
