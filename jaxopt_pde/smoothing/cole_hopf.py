"""u(x, t) and ∇u by Cole-Hopf: Gaussian samples weighted by exp(−f/T), for few dimensions."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from .. import _noise, _validate
from .._arithmetic import add_scaled, cast_like, cast_up, dot, squared_norm
from .._typing import Params, Smoothed, ValueFn
from . import _kernel

__all__ = ["cole_hopf"]

Estimator = Literal["displacement", "gradient", "control_variate"]
_ESTIMATORS: tuple[str, ...] = get_args(Estimator)


class _Samples(NamedTuple):
    """Everything about the n samples, pairs next to each other; trees with a leading axis n."""

    displacement: Params  # (x − y)/t
    gradient: Params | None  # ∇f(y)
    energy: Float[Array, " n"]  # −T log of the unnormalised weight


def cole_hopf(
    loss_fn: ValueFn,
    params: Params,
    key: Key[Array, ""],
    *,
    smoothing_time: float | Float[Array, ""],
    temperature: float | Float[Array, ""],
    num_samples: int = 1000,
    antithetic: bool = True,
    estimator: Estimator = "control_variate",
    proposal_mean: Params | None = None,
    proposal_scale: float | Float[Array, ""] = 1.0,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    sample_batch_size: int | None = None,
) -> Smoothed:
    r"""The relaxed loss and its gradient from weighted Gaussian samples: importance sampling of the Gibbs density.

    exp(−u/T) solves the heat equation (Cole-Hopf), so with y = x + √(tT) ξ, ξ ~ N(0, I) and weights w ∝ exp(−f(y)/T),

        u(x, t) = −T log E exp(−f(y)/T),      ∇u = Σ w (x − y)/t = Σ w ∇f(y)      in the limit of many samples.

    The least energy is subtracted before exponentials are taken, so no temperature overflows. What suffers for
    small T or many dimensions is the *effective sample size* 1/Σw²: watch it in ``info``, and move the
    proposal: y = z + s √(tT) ξ around z = ``proposal_mean``, with the weights corrected. z at the minimiser of
    f(y) + |x − y|²/(2t), found by :func:`~jaxopt_pde.smoothing.hopf_lax`, keeps it high as T → 0.

    Args:
        loss_fn: f, ``params -> loss``, evaluated at every sample under ``vmap``. Deterministic: a minibatch drawn per
            sample would bias u, since E exp(−f/T) is not exp(−E f/T).
        params: x, any pytree of real floating arrays. Unit [param].
        key: typed key (or integer seed).
        smoothing_time: t > 0, in [param²/loss].
        temperature: T > 0, in [loss]. For T = 0 use :func:`~jaxopt_pde.smoothing.hopf_lax`.
        num_samples: n ≥ 2, losses (static); even if ``antithetic``.
        antithetic: draw ξ in pairs ±ξ (static).
        estimator: of ∇u: ``"displacement"`` Σ w (x − y)/t, which needs no gradients of f; ``"gradient"`` Σ w ∇f(y); or
            ``"control_variate"`` D + c (G − D), with the c in [0, 1] of least estimated variance.
        proposal_mean: z, a tree like ``params``, held constant when differentiating; None means x.
        proposal_scale: s > 0. Weights stay bounded if s² ≥ 1/(1 + tλ) for the least curvature λ of f; about
            1/√(1 + tλ_mean) serves best.
        accumulator_dtype: dtype of noise and averages; None means that of ``params`` but at least float32. ``loss_fn``
            always sees the dtype of ``params``.
        sample_batch_size: samples run together under ``vmap`` (static); None means all, smaller numbers save the
            memory of the loss. The samples themselves are stored, n trees (three times n with gradients).

    Returns:
        :class:`Smoothed` with ``gradient``, ``value``, ``positions`` None, ``num_gradients`` n (0 for
        ``"displacement"``), and ``info``: ``effective_sample_size`` in [1, n]; ``standard_error`` of the gradient
        (norm, [loss/param]) and ``value_standard_error`` [loss], both by the delta method over pairs, which know
        nothing of regions no sample has seen, and below some 50 effective samples report up to 20 % too little;
        ``control_coefficient`` c; ``num_losses``.
        ``jax.grad`` of ``value`` with the key fixed is the ``"gradient"`` form exactly, and with ``proposal_mean``
        the ``"displacement"`` form.

    Raises:
        ValueError, TypeError: a setting out of range, a leaf of ``params`` that is not real and floating, a
            ``proposal_mean`` of another shape or a loss that is not a scalar; the message names it.

    Good values:
        Up to about 10 dimensions; n so that the effective sample size exceeds 100. Where it falls below, centre the
        proposal, or use :func:`~jaxopt_pde.smoothing.langevin`, whose error does not grow with the dimension.

    Example:
        On f = ½ x² with t = T = 1, u = x²/4 + ½ log 2 and ∇u = x/2:

        >>> import jax, jaxopt_pde
        >>> smoothed = jaxopt_pde.smoothing.cole_hopf(
        ...     lambda x: x**2 / 2, jax.numpy.array(1.0), jax.random.key(0), smoothing_time=1.0, temperature=1.0,
        ...     num_samples=10_000)
        >>> print(f"{smoothed.value:.2f} {smoothed.gradient:.2f}")
        0.60 0.50

    References:
        Cole-Hopf: Evans, Partial Differential Equations, section 4.4. Self-normalised weights and their delta-method
        error: Owen, Monte Carlo theory, methods and examples, chapter 9. Osher, Heaton & Wu Fung 2023, A
        Hamilton-Jacobi-based proximal operator, PNAS 120 (centred at x, displacement form).
    """
    _validate.check_positive("smoothing_time", smoothing_time)
    _validate.check_positive("temperature", temperature)
    _validate.check_positive("proposal_scale", proposal_scale)
    _validate.check_count("num_samples", num_samples, minimum=2)
    if antithetic and num_samples % 2:
        msg = f"num_samples must be even with antithetic=True (pairs z ± ξ), got {num_samples!r}."
        raise ValueError(msg)
    _validate.check_choice("estimator", estimator, _ESTIMATORS)
    _validate.check_float_dtype("accumulator_dtype", accumulator_dtype)
    if sample_batch_size is not None:
        _validate.check_count("sample_batch_size", sample_batch_size)
    _validate.check_float_tree("params", params)
    params = jax.tree.map(jnp.asarray, params)
    anchor = cast_up(params, accumulator_dtype)
    dtype = _kernel.scalar_dtype(anchor)
    time, heat, scale = (jnp.asarray(a, dtype) for a in (smoothing_time, temperature, proposal_scale))
    shift = None  # z − x
    if proposal_mean is not None:
        _validate.check_same_tree("proposal_mean", proposal_mean, params)
        mean = jax.lax.stop_gradient(cast_like(jax.tree.map(jnp.asarray, proposal_mean), anchor))
        shift = jax.tree.map(jnp.subtract, mean, anchor)

    def loss(position):
        value = loss_fn(position)
        _validate.check_scalar_output("loss_fn", value)
        return jnp.asarray(value, dtype)

    def sample(noise):
        sigma = scale * jnp.sqrt(time * heat)
        centre = anchor if shift is None else mean
        position = cast_like(add_scaled(centre, sigma, noise), params)
        value, gradient = loss(position), None
        if estimator != "displacement":
            value, gradient = jax.value_and_grad(loss)(position)
            gradient = cast_like(gradient, anchor)
        step = jax.tree.map(lambda xi: sigma.astype(xi.dtype) * xi, noise)
        # −T log [exp(−f/T) N(y; x, tT) / N(y; z, s² tT)], up to −T d log s, which `_value` adds.
        energy = value
        if not _is_one(proposal_scale):
            energy = energy - heat * (1 - scale**2) * squared_norm(noise, dtype) / 2
        if shift is not None:
            energy = energy + (squared_norm(shift, dtype) / 2 + dot(shift, step, dtype)) / time
            step = jax.tree.map(jnp.add, shift, step)
        displacement = jax.tree.map(lambda s: -s / time.astype(s.dtype), step)
        return _Samples(displacement, gradient, energy)

    pair = 2 if antithetic else 1
    noise = _draw(_validate.as_key(key), anchor, num_samples // pair, antithetic=antithetic)
    if sample_batch_size is None:
        samples = jax.vmap(sample)(noise)
    else:
        size = None if sample_batch_size == 1 else sample_batch_size
        samples = jax.lax.map(sample, noise, batch_size=size)

    dimension = sum(leaf.size for leaf in jax.tree.leaves(anchor))
    value, weights = _value(samples.energy, heat)
    value = value - heat * dimension * jnp.log(scale)
    gradient, info = _gradient(samples, weights, estimator, pair, dtype)
    deviation = jnp.sum(weights.reshape(-1, pair), axis=1) - pair / num_samples
    info["value_standard_error"] = heat * _root_sum(deviation**2)
    info["effective_sample_size"] = 1 / jnp.sum(weights**2)
    info["num_losses"] = jnp.asarray(num_samples, jnp.int32)
    return Smoothed(
        gradient=cast_like(gradient, params),
        value=value,
        positions=None,
        num_gradients=jnp.asarray(0 if estimator == "displacement" else num_samples, jnp.int32),
        info=info,
    )


def _is_one(value) -> bool:
    return isinstance(value, (int, float)) and value == 1


def _draw(key: Key[Array, ""], like: Params, units: int, *, antithetic: bool) -> Params:
    """Standard normals with a leading axis of samples; the two of a pair are neighbours."""
    noise = jax.vmap(lambda k: _noise.draw_noise(k, like, "gaussian"))(jax.random.split(key, units))
    if not antithetic:
        return noise
    return jax.tree.map(lambda xi: jnp.stack([xi, -xi], axis=1).reshape(-1, *xi.shape[1:]), noise)


def _value(energy: Float[Array, " n"], heat) -> tuple[Float[Array, ""], Float[Array, " n"]]:
    """−T log mean exp(−energy/T), and the normalised weights."""
    least = jax.lax.stop_gradient(jnp.min(energy))
    weights = jnp.exp(-(energy - least) / heat)
    return least - heat * jnp.log(jnp.mean(weights)), weights / jnp.sum(weights)


def _gradient(
    samples: _Samples, weights, estimator: str, pair: int, dtype
) -> tuple[Params, dict[str, Array]]:
    """∇u, its control coefficient, and its standard error: the delta method for a ratio of means."""

    def mean_and_deviations(tree):
        mean = jax.tree.map(lambda leaf: jnp.tensordot(weights.astype(leaf.dtype), leaf, axes=1), tree)

        def deviation(leaf, m):  # Σ w (q − ⟨q⟩) over each pair
            weighted = weights.astype(leaf.dtype).reshape(-1, *[1] * m.ndim) * (leaf - m[None])
            return jnp.sum(weighted.reshape(-1, pair, *m.shape), axis=1)

        return mean, jax.tree.map(deviation, tree, mean)

    if estimator == "gradient":
        mean, deviations = mean_and_deviations(samples.gradient)
        coefficient = jnp.ones([], dtype)
    else:
        mean, deviations = mean_and_deviations(samples.displacement)
        coefficient = jnp.zeros([], dtype)
    if estimator == "control_variate":
        control = jax.tree.map(jnp.subtract, samples.gradient, samples.displacement)
        control_mean, control_deviations = mean_and_deviations(control)
        spread = squared_norm(control_deviations, dtype)
        overlap = dot(deviations, control_deviations, dtype)
        coefficient = jnp.clip(-overlap / jnp.where(spread > 0, spread, 1), 0, 1)
        mean = add_scaled(mean, coefficient, control_mean)
        deviations = add_scaled(deviations, coefficient, control_deviations)
    squares = [
        jnp.sum(leaf.astype(dtype) ** 2, axis=tuple(range(1, leaf.ndim)))
        for leaf in jax.tree.leaves(deviations)
    ]
    return mean, {"control_coefficient": coefficient, "standard_error": _root_sum(sum(squares))}


def _root_sum(squares: Float[Array, " units"]) -> Float[Array, ""]:
    """√(Σ · m/(m − 1)): the standard error from the squared contributions of m pairs; NaN for one."""
    m = squares.shape[0]
    return jnp.sqrt(jnp.sum(squares) * m / (m - 1)) if m > 1 else jnp.full([], jnp.nan, squares.dtype)
