"""BatchNorm statistics of given parameters: what an averaged iterate needs before it is evaluated."""

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Key, Shaped

from .. import _validate
from .._typing import ArrayTree
from .dropout import Dropout

__all__ = ["recompute_batch_stats"]


def _without_dropout(
    next_method: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
) -> Any:
    if isinstance(context.module, (Dropout, nn.Dropout)) and context.method_name == "__call__":
        return args[0]
    return next_method(*args, **kwargs)


def _total(mean: Any, spread: Any) -> Any:
    """E var + Var mean on every {"mean", "var"} pair, the mean of the batches on any other leaf."""
    if not isinstance(mean, Mapping):
        return mean
    total = {name: _total(mean[name], spread[name]) for name in mean}
    if {"mean", "var"} <= total.keys():
        total["var"] = mean["var"] + spread["mean"]
    return total


def recompute_batch_stats(
    model: nn.Module,
    variables: Mapping[str, Any],
    batches: Shaped[Array, "num_batches batch ..."],
    *,
    key: Key[Array, ""] | int | None = None,
) -> ArrayTree:
    """Mean and variance of every BatchNorm input over ``batches``, at the parameters in ``variables``.

    Running statistics collected along the iterates belong to no single iterate. This replaces them by the exact
    pooled statistics of all examples, by the law of total variance with batches b of equal size,

        mean = (1/B) Σ_b mean_b,    var = (1/B) Σ_b var_b + (1/B) Σ_b (mean_b - mean)²,

    where each layer sees what it sees in training: its predecessors normalise by the statistics of the batch.
    There is no moving average and the old statistics do not enter. Variances are biased (divided by the number
    of examples), as in Flax. Pure; under ``jit`` declare ``model`` static or close over it. The memory is that
    of one batch (``lax.scan``).

    Args:
        model: a Flax module called as ``model(inputs, train=True)`` whose running statistics are linear in
            their old values, as those of ``flax.linen.BatchNorm`` are at any momentum below 1.
        variables: ``{"params": ..., "batch_stats": ...}``; of ``batch_stats`` only the tree is used.
        batches: inputs [num_batches, batch, ...].
        key: None switches ``Dropout`` off, so that the statistics are those of the network that is evaluated; a
            key or an integer seed keeps it on, as in training.

    Returns:
        The new ``batch_stats``, tree, shapes and dtypes of the old.

    Raises:
        ValueError: ``variables`` without ``params`` or ``batch_stats``, or ``batches`` without two leading
            axes.

    Good values:
        A few thousand examples, in batches of the training size.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxopt_pde.models import MLP
        >>> model = MLP((8,), batch_norm=True)
        >>> inputs = jax.random.normal(jax.random.key(0), (5, 32, 4))
        >>> variables = model.init(jax.random.key(1), inputs[0], train=False)
        >>> batch_stats = recompute_batch_stats(model, variables, inputs)
        >>> logits = model.apply({**variables, "batch_stats": batch_stats}, inputs[0], train=False)

    References:
        Wu, Johnson, *Rethinking "Batch" in BatchNorm*, 2021 (precise statistics). Izmailov et al., *Averaging
        weights leads to wider optima*, UAI 2018 (recomputed for averaged weights). Li et al., *Understanding
        the disharmony between dropout and batch normalization by variance shift*, CVPR 2019.
    """
    for name in ("params", "batch_stats"):
        if not isinstance(variables, Mapping) or not variables.get(name):
            msg = (
                f"variables must be {{'params': ..., 'batch_stats': ...}} of a model with BatchNorm, got no "
                f"{name!r} in {list(variables) if isinstance(variables, Mapping) else type(variables).__name__}."
            )
            raise ValueError(msg)
    batches = jnp.asarray(batches)
    if batches.ndim < 2 or not batches.shape[0]:
        msg = f"batches must have shape [num_batches ≥ 1, batch, ...], got {batches.shape}."
        raise ValueError(msg)
    key = None if key is None else _validate.as_key(key)
    old = variables["batch_stats"]

    def running(batch_stats: ArrayTree, inputs: Array, index: Array) -> ArrayTree:
        rngs = {} if key is None else {"dropout": jax.random.fold_in(key, index)}
        with nn.intercept_methods(_without_dropout) if key is None else contextlib.nullcontext():
            _, updated = model.apply(
                {**variables, "batch_stats": batch_stats},
                inputs,
                train=True,
                rngs=rngs,
                mutable=["batch_stats"],
            )
        return updated["batch_stats"]

    def statistics(inputs: Array, index: Array) -> ArrayTree:
        # A running statistic is m·old + (1 - m)·batch. At old = 0 that is (1 - m)·batch and its derivative in
        # old is m, whatever momentum each layer has.
        zeros, ones = jax.tree.map(jnp.zeros_like, old), jax.tree.map(jnp.ones_like, old)
        value, momentum = jax.jvp(lambda stats: running(stats, inputs, index), (zeros,), (ones,))
        return jax.tree.map(lambda leaf, m: leaf / (1 - m), value, momentum)

    def accumulate(carry: tuple, batch: tuple) -> tuple:
        # Welford's update of the mean and of the mean squared deviation.
        mean, spread = carry
        inputs, index = batch
        weight = 1 / (index + 1)
        new = statistics(inputs, index)
        gap = jax.tree.map(jnp.subtract, new, mean)
        mean = jax.tree.map(lambda m, g: (m + weight * g).astype(m.dtype), mean, gap)
        spread = jax.tree.map(
            lambda s, g: (s + weight * ((1 - weight) * g**2 - s)).astype(s.dtype), spread, gap
        )
        return (mean, spread), None

    start = jax.tree.map(jnp.zeros_like, old)
    index = jnp.arange(batches.shape[0], dtype=jnp.int32)
    (mean, spread), _ = lax.scan(accumulate, (start, start), (batches, index))
    return _total(mean, spread)
