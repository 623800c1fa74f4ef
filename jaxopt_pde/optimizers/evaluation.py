"""The parameters to evaluate, for optimisers whose visible params are not the iterate."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from .._typing import Params
from .lasry_lions import LasryLionsState
from .replicas import ElasticState, ParleState, consensus
from .stepwise import StepwiseState
from .two_time_scale import TwoTimeScaleState

__all__ = ["eval_params"]


def eval_params(opt_state: Any, params: Params) -> Params:
    """The parameters to evaluate and to save, where they are not the visible params.

    Finds our states inside any chain or wrapper. For :func:`jaxopt_pde.entropy_sgd_stepwise` it gives the anchor x
    between outer steps, and ``params`` right after one; for :func:`jaxopt_pde.two_time_scale` and
    :func:`jaxopt_pde.lasry_lions` the slow variable x; for :func:`jaxopt_pde.elastic_coupling` and
    :func:`jaxopt_pde.parle` the mean of the replicas. For every other optimiser it gives ``params``.

    Args:
        opt_state: the optimiser's state, however nested.
        params: the params that the training loop holds.

    Returns:
        A tree with the dtypes of ``params`` and the shapes of one model: those of ``params`` without the first axis
        where that counts replicas or particles.

    Example:
        >>> import jax.numpy as jnp, optax, jaxopt_pde
        >>> params = jnp.ones(2)
        >>> print(jaxopt_pde.eval_params(optax.adam(0.1).init(params), params))
        [1. 1.]
        >>> tx = optax.chain(jaxopt_pde.elastic_coupling(1.0), optax.adam(0.1))
        >>> print(jaxopt_pde.eval_params(tx.init(params), params))  # two replicas of one number
        1.0
    """
    for state in _found(opt_state, StepwiseState):
        params = _replaced(state.anchor, params, state.inner_count > 0)
    for state in _found(opt_state, (TwoTimeScaleState, LasryLionsState)):
        params = _replaced(state.slow, params, state.count > 0)
    return consensus(params) if _found(opt_state, (ElasticState, ParleState)) else params


def _found(opt_state: Any, kinds: type | tuple[type, ...]) -> list[Any]:
    is_one = lambda node: isinstance(node, kinds)
    return [state for state in jax.tree.leaves(opt_state, is_leaf=is_one) if is_one(state)]


def _replaced(held: Params, params: Params, where: Bool[Array, ""]) -> Params:
    """``held`` where that is up to date, else the params or, if those have one axis more, their mean over it."""
    is_masked = lambda node: isinstance(node, optax.MaskedNode)

    def leaf(x, y):
        if is_masked(x):  # under optax.partition each state holds a part of the tree
            return y
        return jnp.where(where, x.astype(y.dtype), y if x.ndim == y.ndim else consensus(y))

    return jax.tree.map(leaf, held, params, is_leaf=is_masked)
