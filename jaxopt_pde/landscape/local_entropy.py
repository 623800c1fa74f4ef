"""How far the relaxed loss u(x, t) lies above the loss: local entropy, in any number of dimensions."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from .. import _validate
from .._arithmetic import cast_like, cast_up
from .._typing import Params
from . import _batches, _tempered_chains
from ._batches import Batches, Loader
from ._perturbations import (
    Differences,
    Scale,
    Vectors,
    as_positive,
    check_scale,
    loss_at,
    perturbed,
    scalar_dtype,
    scale_tree,
)
from .estimate import Estimate

__all__ = ["local_entropy"]

Method = Literal["thermodynamic", "cole_hopf"]


class _Settings(NamedTuple):
    num_nodes: int
    num_chains: int
    num_steps: int
    num_burn_in: int
    chains_at_once: int
    scale: str
    vectors: str


def local_entropy(
    loss_fn: Callable[[Params, Any], Float[Array, ""]],
    params: Params,
    data: Any | Loader,
    key: Key[Array, ""],
    *,
    smoothing_time: float | Float[Array, ""] | Float[Array, " times"],
    temperature: float | Float[Array, ""],
    method: Method = "thermodynamic",
    num_nodes: int = 8,
    num_chains: int = 4,
    num_steps: int = 30,
    num_burn_in: int = 20,
    num_samples: int = 1000,
    scale: Scale = "none",
    vectors: Vectors = "rms",
    batch_size: int | None = None,
    chains_at_once: int = 1,
) -> Estimate:
    r"""The relaxed loss above the loss, u(x, t) − f(x), with f the mean loss over all data.

    With y = x + √(tT) s⊙ξ, ξ ~ N(0, I), and s = 1 for the viscous Hamilton-Jacobi equation,

        u(x, t) = −T log E exp(−f(y)/T).

    −u/T is, up to a constant, the local entropy of Entropy-SGD. u − f(x) is small in wide minima and large in narrow
    ones; it is at least min f − f(x), and at most E f(y) − f(x), which is :func:`expected_sharpness` at σ = √(tT).

    ``"thermodynamic"`` integrates the identity d/dλ [−T log E exp(−λf/T)] = E_λ f,

        u(x, t) = ∫₀¹ E_λ f(y) dλ,      y ~ density ∝ exp(−λ f(y)/T) N(y; x, tT S²),

    by Gauss-Radau quadrature in λ^⅓, with a node at λ = 1. Chains of Metropolis-adjusted Langevin steps that
    have the Gaussian as their reference climb through the nodes. Works in many dimensions, where E exp(−f/T) rests on
    draws nobody sees. f must be finite (an infinite wall stands at every λ > 0 and drops out of the integral). Do not
    differentiate it: accepting is not differentiable; ∇u is what :mod:`~jaxopt_pde.smoothing` estimates.

    ``"cole_hopf"`` takes the formula as it stands, with antithetic draws shared by all times. Its error grows with
    the spread of f/T: where the effective sample size is below some 50 the value is *biased upwards* and the standard
    error too small. It never is NaN; look at the effective sample size.

    Args:
        loss_fn: f, ``(params, batch) -> loss``, the mean over the examples of the batch.
        params: x, any pytree of real floating arrays.
        data: a pytree of arrays with a leading example axis; with ``"cole_hopf"`` also a function that returns a fresh
            iterator over batches.
        key: typed key (or integer seed).
        smoothing_time: t > 0, one or a 1-D array; the times share their random numbers. In [param²/loss] with
            ``scale="none"``, else in [1/loss].
        temperature: T > 0, in [loss].
        method: see above (static).
        num_nodes: quadrature nodes, at least 2 (static, as all counts).
        num_chains: independent chains, at least 2, from whose spread the standard error comes.
        num_steps: counted steps of each chain at each node.
        num_burn_in: steps before them, in which the step size is learnt.
        num_samples: losses on all data for ``"cole_hopf"``, even.
        scale: s (static), as in :func:`expected_sharpness`: with ``"filter"`` or ``"elementwise"`` the number does not
            change when the layers of a ReLU network are rescaled; it is then no longer the PDE's u.
        vectors: as in :func:`expected_sharpness` (static).
        batch_size: examples in a batch; None for all in one. Every step sees all of them, a batch at a time.
        chains_at_once: chains, or draws of ``"cole_hopf"``, run together under ``vmap`` (static). 1 keeps convolutions
            plain; for small losses take all.

    Returns:
        :class:`Estimate` [loss] of the shape of ``smoothing_time``: ``probe_error`` over chains, or by the delta method
        over pairs of draws; ``batch_error`` by first order, from the spread over batches of E_ρ f_b − f_b(x), ρ the
        density at λ = 1. Four chains know their own error to 40 %: for 95 % intervals take Student's 3.2, not 1.96.
        ``info``, where [...] is the shape of ``smoothing_time``: ``num_losses`` and ``num_gradients`` on all data, for
        all times together; ``effective_sample_size``, 1/Σw² [...] for ``"cole_hopf"``, and for ``"thermodynamic"`` the
        number of independent draws that would give the chains' means their spread, at most those taken, [..., nodes],
        itself known to √(2/(num_chains − 1)). For ``"thermodynamic"`` also ``acceptance`` of the steps [..., nodes];
        ``nodes`` λ; ``integrand`` E_λ f − f(x), which falls with λ, [..., nodes]; ``quadrature_error`` [...], the
        change of the integral if the node in the middle is left out: it bounds the rule's own error from above once the
        rule converges, and is noise where it is below a few standard errors.

    Raises:
        ValueError, TypeError: a setting out of range, data without examples, a loader for ``"thermodynamic"``, a loss
            that is not a scalar.

    Good values:
        The thermodynamic method costs, for every time, num_chains · num_nodes · (num_burn_in + num_steps) gradients on
        all data, 1600 by default: for a net give a subset of the data. Eight nodes are enough while t times
        the largest curvature is below 100. Too short a burn-in shows as a bias upwards: compare with twice the
        steps. Where ``acceptance`` is near 0 the chains stand still and the value means nothing: nothing else warns.
        Where u = −∞, for instance 1 + tλ ≤ 0 for a curvature λ of an unbounded quadratic, the chains run away.

    Example:
        On f = ½ x² at x = 1 with t = T = 1, u − f = x²/4 + ½ log 2 − ½ = 0.097:

        >>> import jax, jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> loss = lambda x, batch: jnp.mean(batch) * x**2 / 2
        >>> estimate = landscape.local_entropy(
        ...     loss, jnp.array(1.0), jnp.ones(4), jax.random.key(0), smoothing_time=1.0, temperature=1.0,
        ...     num_chains=1000, chains_at_once=1000)
        >>> low, high = estimate.interval(4.0)
        >>> print(bool((low < 0.0966) & (0.0966 < high)), bool(estimate.standard_error < 0.005))
        True True

    References:
        Thermodynamic integration: Kirkwood 1935; Friel & Pettitt 2008, Marginal likelihood estimation via power
        posteriors, J. R. Statist. Soc. B 70, 589 (λ crowded near 0). Local entropy: Chaudhari et al. 2017, Entropy-SGD,
        arXiv:1611.01838. The chains: Cotter, Roberts, Stuart & White 2013, Statistical Science 28, 424.
    """
    _validate.check_choice("method", method, get_args(Method))
    check_scale(scale, vectors)
    counts = {
        "num_nodes": num_nodes,
        "num_chains": num_chains,
        "num_steps": num_steps,
        "num_burn_in": num_burn_in,
        "chains_at_once": chains_at_once,
    }
    lowest = {"num_nodes": 2, "num_chains": 2, "num_burn_in": 0}
    for name, count in counts.items():
        _validate.check_count(name, count, minimum=lowest.get(name, 1))
    _validate.check_count("num_samples", num_samples, minimum=4)
    if num_samples % 2:
        msg = f"num_samples must be even (pairs x ± ξ), got {num_samples!r}."
        raise ValueError(msg)
    _validate.check_positive("temperature", temperature)
    _validate.check_float_tree("params", params)
    params = jax.tree.map(jnp.asarray, params)
    times = as_positive("smoothing_time", smoothing_time, scalar_dtype(params))
    heat = jnp.asarray(temperature, times.dtype)
    key = _validate.as_key(key)
    batches = _batches.make_batches(data, batch_size)
    if method == "cole_hopf":
        differences = Differences(loss_fn, num_samples // 2, True, scale, vectors, chains_at_once)
        run = _cole_hopf if isinstance(batches, Batches) else _cole_hopf.__wrapped__
        return run(differences, batches, params, key, times, heat)
    if not isinstance(batches, Batches):
        msg = (
            "data must be arrays with method='thermodynamic', got a function that makes batches: it would be read "
            f"{num_chains * num_nodes * (num_burn_in + num_steps) * times.size} times. Give arrays with a batch_size, "
            "a subset of the examples if need be, or method='cole_hopf'."
        )
        raise ValueError(msg)
    settings = _Settings(**counts, scale=scale, vectors=vectors)
    return _thermodynamic(loss_fn, settings, batches, params, key, times, heat)


@functools.partial(jax.jit, static_argnums=0)
def _cole_hopf(differences: Differences, batches, params: Params, key, times, heat):
    table, shares = _batches.each_batch(
        differences, batches, params, key, jnp.sqrt(jnp.atleast_1d(times) * heat)
    )
    energy = jnp.tensordot(shares, table, axes=1)  # [pairs, signs, times]
    least = jnp.min(energy, axis=(0, 1), keepdims=True)
    weights = jnp.exp((least - energy) / heat)
    mean = jnp.mean(weights, axis=(0, 1))
    weights = weights / jnp.sum(weights, axis=(0, 1), keepdims=True)
    pairs = weights.shape[0]
    deviations = jnp.sum(weights, axis=1) - 1 / pairs
    probe = heat * jnp.sqrt(jnp.sum(deviations**2, axis=0) * pairs / (pairs - 1))
    shared = jnp.where(weights[None] > 0, weights[None] * table, 0)  # f may be infinite where the weight is 0
    by_batch = jnp.sum(shared, axis=(1, 2))  # du = Σ w df
    estimate = Estimate.combine(
        least[0, 0] - heat * jnp.log(mean),
        probe_error=probe,
        batch_error=_batches.batch_error(by_batch, shares),
    )
    estimate = jax.tree.map(lambda leaf: leaf.reshape(times.shape), estimate)
    info = {
        "effective_sample_size": (1 / jnp.sum(weights**2, axis=(0, 1))).reshape(times.shape),
        "num_losses": jnp.asarray(1 + 2 * pairs * times.size, jnp.int32),
        "num_gradients": jnp.zeros([], jnp.int32),
    }
    return dataclasses.replace(estimate, info=info)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _thermodynamic(loss_fn, settings: _Settings, batches: Batches, params: Params, key, times, heat):
    dtype = times.dtype
    rule = _tempered_chains.rungs(settings.num_nodes)
    nodes, fine, coarse = (jnp.asarray(one, dtype) for one in rule)
    scales = scale_tree(params, settings.scale, settings.vectors)
    like = cast_up(params)
    bases, shares = _batches.each_batch(lambda batch: loss_at(loss_fn, params, batch), batches)

    def chain(time_and_key):
        sigma = jnp.sqrt(time_and_key[0] * heat)

        def height(xi):
            at = lambda xi, batch: loss_at(loss_fn, perturbed(params, sigma, scales, xi), batch)
            values, gradient = _values_and_gradient(at, xi, batches, shares)
            parts = values - bases
            return shares @ parts, parts, cast_like(gradient, like)

        steps = {"num_steps": settings.num_steps, "num_burn_in": settings.num_burn_in}
        return _tempered_chains.climb(height, like, time_and_key[1], nodes / heat, **steps)

    many = (times.size, settings.num_chains)
    keys = jnp.tile(jax.random.split(key, settings.num_chains), times.size)
    together = None if settings.chains_at_once == 1 else settings.chains_at_once
    runs = jax.lax.map(chain, (jnp.repeat(times, settings.num_chains), keys), batch_size=together)
    runs = jax.tree.map(lambda leaf: leaf.reshape(*many, *leaf.shape[1:]), runs)

    means = runs.heights.mean(axis=-1)  # [times, chains, nodes]
    values = means @ fine
    integrand = means.mean(axis=1)
    # du = E_ρ df: only the last rung, λ = 1, has the density ρ ∝ exp(−f/T) N.
    by_batch = jnp.moveaxis(runs.losses[:, :, -1].mean(axis=1), -1, 0)
    estimate = Estimate.combine(
        values.mean(axis=1),
        probe_error=jnp.std(values, axis=1, ddof=1) / jnp.sqrt(settings.num_chains),
        batch_error=_batches.batch_error(by_batch, shares),
    )
    taken = settings.num_chains * settings.num_steps
    spread = jnp.var(runs.heights, axis=(1, 3))
    error = jnp.var(means, axis=1, ddof=1) / settings.num_chains
    info = {
        "effective_sample_size": jnp.where(
            error * taken > spread, spread / jnp.where(error > 0, error, 1), taken
        ),
        "acceptance": runs.acceptance.mean(axis=1),
        "integrand": integrand,
        "quadrature_error": jnp.abs(integrand @ (fine - coarse)),
    }
    estimate, info = jax.tree.map(lambda leaf: leaf.reshape(*times.shape, *leaf.shape[1:]), (estimate, info))
    # Every chain looks at two places before its first step.
    gradients = (
        times.size * settings.num_chains * (2 + nodes.size * (settings.num_burn_in + settings.num_steps))
    )
    counts = {"num_losses": jnp.ones([], jnp.int32), "num_gradients": jnp.asarray(gradients, jnp.int32)}
    return dataclasses.replace(estimate, info=info | counts | {"nodes": nodes})


def _values_and_gradient(function, xi: Params, batches: Batches, shares) -> tuple[Array, Params]:
    """Every batch's value, and the gradient of their weighted mean, a batch at a time."""

    def add(total, batch_and_share):
        batch, share = batch_and_share
        value, gradient = jax.value_and_grad(function)(xi, batch)
        return jax.tree.map(lambda t, g: t + share.astype(t.dtype) * g, total, gradient), value

    number = jax.tree.leaves(batches.equal)[0].shape[0]
    zero = jax.tree.map(jnp.zeros_like, xi)
    total, values = jax.lax.scan(add, zero, (batches.equal, shares[:number]))
    if batches.rest is not None:
        total, last = add(total, (batches.rest, shares[number]))
        values = jnp.concatenate([values, last[None]])
    return values, total
