"""Hyperparameters that can be read and changed in the optimiser's state."""

import inspect
from collections.abc import Callable

import optax

from .._typing import ScalarOrSchedule

__all__ = ["injectable"]


def injectable(
    factory: Callable[..., optax.GradientTransformation],
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """``optax.inject_hyperparams(factory)`` with the right static arguments.

    ``optax.inject_hyperparams`` turns every number among the arguments into a traced array, loop lengths and keys
    included, and takes every callable for a schedule. Here only the arguments annotated as a scalar or schedule
    are injected; all others stay static.

    Args:
        factory: a function that makes an optimiser and annotates its arguments (all of ours, most of optax's).

    Returns:
        A function with the arguments of ``factory``, whose optimisers keep the injected values in
        ``state.hyperparams``.

    Raises:
        ValueError: if ``factory`` takes ``*args`` or ``**kwargs``, or annotates no argument as a schedule.

    Example:
        >>> import jax.numpy as jnp, jaxopt_pde
        >>> tx = jaxopt_pde.injectable(jaxopt_pde.entropy_sgd)(0.5, 1.0, 0.1, num_steps=5)
        >>> state = tx.init(jnp.zeros(2))
        >>> print(sorted(state.hyperparams))
        ['inner_learning_rate', 'learning_rate', 'smoothing_time', 'temperature', 'weight_decay']
    """
    arguments = inspect.signature(factory, eval_str=True).parameters
    for argument in arguments.values():
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            msg = f"factory must spell its arguments out, got {factory!r} with {argument}."
            raise ValueError(msg)
    kinds = (ScalarOrSchedule, ScalarOrSchedule | None, optax.ScalarOrSchedule)
    schedules = {name for name, a in arguments.items() if a.annotation in kinds}
    if not schedules:
        msg = (
            f"factory annotates no argument as ScalarOrSchedule, so there is nothing to inject: {factory!r}."
        )
        raise ValueError(msg)
    return optax.inject_hyperparams(factory, static_args=set(arguments) - schedules)
