"""The trace of the Hessian of a mean loss, or of its Gauss-Newton matrix, from products with random signs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from .. import _validate
from .._typing import Params
from ._batches import Batches, Loader, batch_error, make_batches
from .curvature import Curvature
from .estimate import Estimate

__all__ = ["trace"]


def trace(
    loss_fn: Callable[[Params, Any], Float[Array, ""]],
    params: Params,
    data: Any,
    key: Key[Array, ""],
    *,
    num_probes: int = 30,
    batch_size: int | None = None,
) -> Estimate:
    """The trace of ∇²f(x), f a mean loss over all of the data: the mean of vᵀHv over random signs v (Hutchinson).

    The estimate is unbiased, with variance 2 (|H|²_F − Σ Hᵢᵢ²) over the number of probes. Both errors are read off
    the table vᵀH_b v of probes and batches: ``probe_error`` from the spread over probes of the mean over batches,
    ``batch_error`` from the spread over batches of the mean over probes.

    Args:
        loss_fn: see :func:`~jaxopt_pde.landscape.top_eigenvalues`.
        params: see there.
        data: see there; all probes are done in one pass.
        key: a PRNG key or integer seed for the probes.
        num_probes: products (static), at least 2, in the memory of one.
        batch_size: examples at a time (static); None for all, and then no ``batch_error``.

    Returns:
        :class:`~jaxopt_pde.landscape.Estimate` in [loss/param²]. Divide by the number of parameters for the mean
        eigenvalue.

    Raises:
        ValueError, TypeError: a setting out of range, integer or complex leaves, a loss that is no scalar, no data.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> loss_fn = lambda w, x: 0.5 * jnp.mean((x @ w) ** 2)
        >>> x = jnp.array([[2.0, 0.0], [0.0, 6.0]])
        >>> print(landscape.trace(loss_fn, jnp.ones(2), x, jax.random.key(0)).mean.round(3))
        20.0

    References:
        Hutchinson 1990; Avron & Toledo 2011, lemma 9 (the variance).
    """
    _validate.check_float_tree("params", params)
    _validate.check_count("num_probes", num_probes, minimum=2)
    batches = make_batches(data, batch_size)
    run = _trace if isinstance(batches, Batches) else _trace.__wrapped__
    return run(loss_fn, num_probes, params, batches, _validate.as_key(key))


@functools.partial(jax.jit, static_argnames=("loss_fn", "num_probes"))
def _trace(
    loss_fn: Callable, num_probes: int, params: Params, batches: Batches | Loader, key: Key[Array, ""]
) -> Estimate:
    curvature = Curvature(loss_fn, params, batches)
    table, shares = curvature.each_probe(jax.random.split(key, num_probes))
    probes = jnp.sum(shares[:, None] * table, axis=0)
    probe_error = jnp.std(probes, ddof=1) / jnp.sqrt(jnp.asarray(num_probes, probes.dtype))
    error = batch_error(jnp.mean(table, axis=1), shares)
    return Estimate.combine(jnp.mean(probes), probe_error=probe_error, batch_error=error)
