"""How flat the loss is around a point: its mean increase under noise, and its largest increase in a ball."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from .. import _noise, _validate
from .._arithmetic import add_scaled, cast_like, cast_up, dot, squared_norm
from .._typing import Params
from . import _batches
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

__all__ = ["expected_sharpness", "sharpness"]


def expected_sharpness(
    loss_fn: Callable[[Params, Any], Float[Array, ""]],
    params: Params,
    data: Any | Loader,
    key: Key[Array, ""],
    *,
    sigma: float | Float[Array, ""] | Float[Array, " sigmas"],
    num_samples: int = 32,
    scale: Scale = "filter",
    vectors: Vectors = "rms",
    antithetic: bool = True,
    batch_size: int | None = None,
    samples_at_once: int = 1,
) -> Estimate:
    r"""The mean increase of the loss under Gaussian noise, E f(x + σ s⊙ξ) − f(x), ξ ~ N(0, I).

    For small σ it is ½ σ² tr(SHS), with H the Hessian and S = diag(s): exactly so on quadratics. With s = 1 it is
    u(x, t) − f(x) for the heat equation u_t = (T/2) Δu at tT = σ², and an upper bound of
    :func:`local_entropy` at every such t and T (Jensen).

    With s = 1 the number changes when the layers of a ReLU network are rescaled so that the network computes the same;
    ``"filter"`` and ``"elementwise"`` noise is rescaled with the weights and gives the same number.

    Args:
        loss_fn: f, ``(params, batch) -> loss``, the mean over the examples of the batch.
        params: x, any pytree of real floating arrays.
        data: a pytree of arrays with a leading example axis, or a function that returns a fresh iterator over batches.
        key: typed key (or integer seed).
        sigma: σ > 0, one or a 1-D array of several, for which the same ξ are used. In [param] with
            ``scale="none"``, else a fraction of the weights' size.
        num_samples: n ≥ 1 losses on all data for every σ (static); even if ``antithetic``.
        scale: s (static): ``"none"`` 1; ``"elementwise"`` |x|; ``"filter"`` the root mean square of every filter, that
            is of all entries of a leaf with one index of the last axis.
        vectors: with ``"filter"``, the s of leaves with at most one axis, such as biases (static): ``"rms"`` their own
            root mean square, or ``"zero"``, which leaves them unperturbed.
        antithetic: draw pairs ±ξ, which removes the gradient's part of the noise (static).
        batch_size: examples in a batch; None for all in one.
        samples_at_once: draws ξ run together under ``vmap`` (static). 1 keeps convolutions plain; for small losses take
            ``num_samples``.

    Returns:
        :class:`Estimate` [loss] with the shape of ``sigma``: ``probe_error`` over draws (NaN for one), ``batch_error``
        over batches at these draws. Correlated between the σ.

    Raises:
        ValueError, TypeError: a setting out of range, data without examples, a loss that is not a scalar.

    Good values:
        σ of 0.01 to 0.1 with ``"filter"``. The relative error is about 2/√(n d) where SHS has d equal eigenvalues.

    Example:
        On ½ x² + ½ 3 y² the law ½ σ² tr H = 0.02:

        >>> import jax, jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> loss = lambda p, batch: jnp.mean(batch) * (p[0] ** 2 + 3 * p[1] ** 2) / 2
        >>> estimate = landscape.expected_sharpness(
        ...     loss, jnp.array([1.0, 2.0]), jnp.ones(4), jax.random.key(0), sigma=0.1, num_samples=1000, scale="none")
        >>> print(f"{estimate.mean:.3f} ± {estimate.standard_error:.3f}")
        0.020 ± 0.001

    References:
        Neyshabur, Bhojanapalli, McAllester & Srebro 2017, Exploring generalization in deep learning,
        arXiv:1706.08947. Filters: Li, Xu, Taylor, Studer & Goldstein 2018, arXiv:1712.09913.
    """
    check_scale(scale, vectors)
    _validate.check_count("num_samples", num_samples)
    _validate.check_count("samples_at_once", samples_at_once)
    if antithetic and num_samples % 2:
        msg = f"num_samples must be even with antithetic=True (pairs x ± ξ), got {num_samples!r}."
        raise ValueError(msg)
    _validate.check_float_tree("params", params)
    params = jax.tree.map(jnp.asarray, params)
    sigma = as_positive("sigma", sigma, scalar_dtype(params))
    batches = _batches.make_batches(data, batch_size)
    units = num_samples // 2 if antithetic else num_samples
    differences = Differences(loss_fn, units, bool(antithetic), scale, vectors, samples_at_once)
    run = _expected_sharpness if isinstance(batches, Batches) else _expected_sharpness.__wrapped__
    return run(differences, batches, params, _validate.as_key(key), sigma)


@functools.partial(jax.jit, static_argnums=0)
def _expected_sharpness(differences: Differences, batches, params: Params, key, sigma) -> Estimate:
    table, shares = _batches.each_batch(differences, batches, params, key, jnp.atleast_1d(sigma))
    table = jnp.mean(table, axis=2)  # [batches, units, sigmas]
    units = jnp.tensordot(shares, table, axes=1)
    number = units.shape[0]
    probe = (
        jnp.std(units, axis=0, ddof=1) / jnp.sqrt(number) if number > 1 else jnp.full_like(units[0], jnp.nan)
    )
    estimate = Estimate.combine(
        jnp.mean(units, axis=0),
        probe_error=probe,
        batch_error=_batches.batch_error(jnp.mean(table, axis=1), shares),
    )
    return jax.tree.map(lambda leaf: leaf.reshape(sigma.shape), estimate)


def sharpness(
    loss_fn: Callable[[Params, Any], Float[Array, ""]],
    params: Params,
    data: Any | Loader,
    key: Key[Array, ""] | None = None,
    *,
    radius: float | Float[Array, ""],
    num_steps: int = 1,
    num_restarts: int = 0,
    scale: Scale = "none",
    vectors: Vectors = "rms",
    batch_size: int | None = None,
) -> Estimate:
    r"""The largest increase of the loss in a ball: max f(x + s⊙δ) − f(x) over |δ|₂ ≤ radius, from below.

    One step is the first-order ascent step of sharpness-aware minimisation (SAM), δ = radius · s⊙∇f/|s⊙∇f|, and with
    ``scale="elementwise"`` that of its adaptive form (ASAM). More steps are projected gradient ascent on the mean loss
    over all data, with normalised gradients and steps of radius/√k, k = 1, 2, …, and the largest loss met on the way
    counts, so more steps never give less. Both are *lower bounds* of the maximum, which no method finds for a net. At
    an exact critical point the first-order step is 0 and so is its number; restarts leave such points.

    Args:
        loss_fn: f, ``(params, batch) -> loss``, the mean over the examples of the batch.
        params: x, any pytree of real floating arrays.
        data: a pytree of arrays with a leading example axis, or a function that returns a fresh iterator over batches.
        key: typed key (or integer seed), needed for restarts alone.
        radius: of the ball, positive. In [param] with ``scale="none"``, else a fraction: with ``"filter"``,
            ``radius`` is √(number of parameters) times the relative size of a perturbation spread over all weights.
        num_steps: ascent steps from every start (static).
        num_restarts: further starts, uniform on the sphere of this radius, besides x itself (static).
        scale: s (static), as in :func:`expected_sharpness`.
        vectors: as in :func:`expected_sharpness` (static).
        batch_size: examples in a batch; None for all in one. The perturbation is one for all the data.

    Returns:
        :class:`Estimate` [loss], at the best δ found: ``mean`` exact for these data, ``probe_error`` None,
        ``batch_error`` from the spread over batches of the increase at that δ. The error knows nothing of the choice of
        δ on the same data, which favours it: the increase on fresh data is smaller than ``mean``.

    Raises:
        ValueError, TypeError: a setting out of range, restarts without a key, data without examples, a loss that is not
            a scalar.

    Good values:
        radius 0.05 as in SAM, 0.5 to 2 with ``"elementwise"`` as in ASAM; 20 steps and 5 restarts where the number
        should be near the maximum. Costs (1 + num_restarts) · num_steps gradients on all data.

    Example:
        On ½ (x² + 3 y²) at (0, 1), where the gradient points along the steepest direction:

        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> loss = lambda p, batch: jnp.mean(batch) * (p[0] ** 2 + 3 * p[1] ** 2) / 2
        >>> estimate = landscape.sharpness(loss, jnp.array([0.0, 1.0]), jnp.ones(4), radius=0.1)
        >>> print(f"{estimate.mean:.3f}")  # 3 (1.1² − 1)/2
        0.315

    References:
        Foret, Kleiner, Mobahi & Neyshabur 2021, Sharpness-aware minimization, arXiv:2010.01412. Kwon, Kim, Park & Choi
        2021, ASAM, arXiv:2102.11600.
    """
    _validate.check_positive("radius", radius)
    _validate.check_count("num_steps", num_steps)
    _validate.check_count("num_restarts", num_restarts, minimum=0)
    check_scale(scale, vectors)
    if num_restarts and key is None:
        msg = f"key must be given for num_restarts={num_restarts}, got None: the starts are random."
        raise ValueError(msg)
    _validate.check_float_tree("params", params)
    params = jax.tree.map(jnp.asarray, params)
    batches = _batches.make_batches(data, batch_size)
    keys = jax.random.split(_validate.as_key(0 if key is None else key), num_restarts + 1)
    radius = jnp.asarray(radius, scalar_dtype(params))
    run = _sharpness if isinstance(batches, Batches) else _sharpness.__wrapped__
    return run(loss_fn, num_steps, scale, vectors, batches, params, keys, radius)


@dataclasses.dataclass(frozen=True)
class _AtPerturbation:
    """f_b(x + s⊙δ), and its gradient in δ: values for the loader's compiled cache, as ``Differences``."""

    loss_fn: Callable
    scale: Scale
    vectors: Vectors

    def loss(self, batch, params, delta):
        scales = scale_tree(params, self.scale, self.vectors)
        return loss_at(self.loss_fn, perturbed(params, jnp.ones([]), scales, delta), batch)


class _ValueAndGradient(_AtPerturbation):
    def __call__(self, batch, params, delta):
        return jax.value_and_grad(self.loss, argnums=2)(batch, params, delta)


class _Value(_AtPerturbation):
    def __call__(self, batch, params, delta):
        return self.loss(batch, params, delta)


class _Increase(_AtPerturbation):
    def __call__(self, batch, params, delta):
        return self.loss(batch, params, delta) - loss_at(self.loss_fn, params, batch)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _sharpness(loss_fn, num_steps, scale, vectors, batches, params, keys, radius) -> Estimate:
    scan = jax.lax.scan if isinstance(batches, Batches) else _scan_on_host
    how = (loss_fn, scale, vectors)
    dtype = radius.dtype
    zero = jax.tree.map(jnp.zeros_like, cast_up(params))
    # A NaN stays, so that it is seen.
    better = lambda found, value, delta: _keep((value > found[0]) | jnp.isnan(value), (value, delta), found)

    def ascend(carry, index):
        delta, found = carry
        value, gradient = _batches.mean_over_batches(_ValueAndGradient(*how), batches, params, delta)
        # The start is no candidate: one step from x is then SAM's number, of either sign.
        found = better(found, jnp.where(index > 0, value, -jnp.inf), delta)
        gradient = cast_like(gradient, delta)
        norm = _safe_root(squared_norm(gradient, dtype))
        length = radius / jnp.sqrt(index.astype(dtype) + 1)
        delta = add_scaled(delta, length / jnp.where(norm > 0, norm, 1), gradient)
        norm = _safe_root(squared_norm(delta, dtype))
        shrink = jnp.where(norm > radius, radius / jnp.where(norm > 0, norm, 1), 1)
        return (jax.tree.map(lambda leaf: shrink.astype(leaf.dtype) * leaf, delta), found), None

    def start(found, index_and_key):
        index, key = index_and_key
        noise = _noise.draw_noise(key, zero, "gaussian")
        far = jnp.where(index > 0, radius / jnp.sqrt(dot(noise, noise, dtype)), 0)
        begin = add_scaled(zero, far, noise)
        (delta, found), _ = scan(ascend, (begin, found), jnp.arange(num_steps))
        if num_steps == keys.shape[0] == 1:  # the only candidate
            return (jnp.zeros([], dtype), delta), None
        value = _batches.mean_over_batches(_Value(*how), batches, params, delta)
        return better(found, value, delta), None

    nothing = (jnp.full([], -jnp.inf, dtype), zero)
    (_, delta), _ = scan(start, nothing, (jnp.arange(keys.shape[0]), keys))
    increases, shares = _batches.each_batch(_Increase(*how), batches, params, delta)
    return Estimate.combine(shares @ increases, batch_error=_batches.batch_error(increases, shares))


def _keep(first, one, other):
    return jax.tree.map(lambda a, b: jnp.where(first, a, b), one, other)


def _safe_root(square):
    """√ with derivative 0 at 0."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _scan_on_host(body, carry, rows):
    """``lax.scan`` of a body that itself calls a loader; what it stacks is dropped."""
    for index in range(jax.tree.leaves(rows)[0].shape[0]):
        carry, _ = body(carry, jax.tree.map(lambda leaf, i=index: leaf[i], rows))
    return carry, None
