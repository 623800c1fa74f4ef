"""The parameters to evaluate, for optimisers whose visible params are not the iterate."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._typing import Params
from .stepwise import StepwiseState

__all__ = ["eval_params"]


def eval_params(opt_state: Any, params: Params) -> Params:
    """The parameters to evaluate and to save: the anchor x where the visible params are a particle.

    Finds the state of :func:`jaxopt_pde.entropy_sgd_stepwise` inside any chain or wrapper. Between outer steps the
    anchor is returned; right after an outer step, and for every other optimiser, ``params`` are.

    Args:
        opt_state: the optimiser's state, however nested.
        params: the params that the training loop holds.

    Returns:
        A tree with the shapes and dtypes of ``params``.

    Example:
        >>> import jax.numpy as jnp, optax, jaxopt_pde
        >>> params = jnp.ones(2)
        >>> print(jaxopt_pde.eval_params(optax.adam(0.1).init(params), params))
        [1. 1.]
    """
    is_masked = lambda node: isinstance(node, optax.MaskedNode)
    is_state = lambda node: isinstance(node, StepwiseState)
    for state in jax.tree.leaves(opt_state, is_leaf=is_state):
        if is_state(state):
            between = state.inner_count > 0
            # Under optax.partition each state holds a part of the tree and MaskedNodes elsewhere.
            params = jax.tree.map(
                lambda x, y, between=between: y if is_masked(x) else jnp.where(between, x, y),
                state.anchor,
                params,
                is_leaf=is_masked,
            )
    return params
