"""∇u(x, t) of the heat equation (T → ∞ with t·T fixed): the average of ∇f over Gaussian perturbations."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from .. import _noise, _validate
from .._arithmetic import add_scaled, cast_like, cast_up, squared_norm
from .._typing import GradFn, InnerStep, Params, Smoothed, ValueFn
from . import _kernel

__all__ = ["HeatSettings", "heat"]


class HeatSettings(NamedTuple):
    """What fixes the compiled average: checked once, static under ``jit``."""

    num_samples: int = 20
    antithetic: bool = True
    noise: str = "gaussian"
    accumulator_dtype: jax.typing.DTypeLike | None = None
    sample_batch_size: int | None = 1

    def check(self) -> "HeatSettings":
        """Raises on bad values; returns self with ``sample_batch_size`` resolved."""
        _validate.check_count("num_samples", self.num_samples)
        if self.antithetic and self.num_samples % 2:
            msg = f"num_samples must be even with antithetic=True (pairs x ± ξ), got {self.num_samples!r}."
            raise ValueError(msg)
        _validate.check_choice("noise", self.noise, _noise.NOISE_LAWS)
        _validate.check_float_dtype("accumulator_dtype", self.accumulator_dtype)
        if self.sample_batch_size is None:
            return self._replace(sample_batch_size=self.num_samples)
        _validate.check_count("sample_batch_size", self.sample_batch_size)
        size = self.sample_batch_size
        if self.num_samples % size or (self.antithetic and size > 1 and size % 2):
            kind = "1 or an even divisor" if self.antithetic else "a divisor"
            msg = f"sample_batch_size must be {kind} of num_samples={self.num_samples}, got {size!r}."
            raise ValueError(msg)
        return self


class _Average(NamedTuple):
    """Welford's running mean over pairs (or single samples), and the sum of squared deviations from it."""

    count: Float[Array, ""]
    gradient: Params
    gradient_squares: Float[Array, ""]
    value: Float[Array, ""] | None
    value_squares: Float[Array, ""] | None


def heat(
    grad_fn: GradFn,
    params: Params,
    key: Key[Array, ""],
    *,
    smoothing_time: float | Float[Array, ""],
    temperature: float | Float[Array, ""],
    num_samples: int = 20,
    antithetic: bool = True,
    noise: _noise.NoiseLaw = "gaussian",
    value_fn: ValueFn | None = None,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    sample_batch_size: int | None = 1,
) -> Smoothed:
    r"""The gradient of f smoothed by a Gaussian of variance t·T per coordinate.

    u solves the heat equation u_t = (T/2) Δu with u(x, 0) = f(x), the limit T → ∞, t·T fixed, of the viscous
    relaxation, which differs from it by −Var/(2T) + O(T⁻²), the variance of f under the same Gaussian:

        u(x, t) = E f(x + √(tT) ξ),      ∇u = E ∇f(x + √(tT) ξ),      ξ ~ N(0, I).

    Only the product t·T matters. Samples come in pairs ±ξ, which is exact for quadratics and leaves the even
    derivatives of ∇f as the only source of variance.

    Args:
        grad_fn: ``(params, InnerStep) -> gradient``, called once a sample; ``step`` is the sample's index 0 …
            ``num_samples − 1`` (2j and 2j + 1 are the pair j), ``chain`` is 0 and ``key`` is fresh for every sample,
            so that every sample may have its own minibatch.
        params: x, any pytree of real floating arrays. Unit [param].
        key: typed key (or integer seed).
        smoothing_time: t > 0, in [param²/loss].
        temperature: T ≥ 0, in [loss].
        num_samples: n ≥ 1, gradients (static); even if ``antithetic``.
        antithetic: draw pairs x ± √(tT) ξ (static).
        noise: ``"gaussian"``, or ``"rademacher"``: ±1 entries, 32 times fewer random bits. Its average agrees where f
            is cubic in every coordinate, and wherever f sees only sums of many weights; in few dimensions it is
            another kernel.
        value_fn: f, ``params -> loss``, called at every sample to give ``value``; None leaves it out.
        accumulator_dtype: dtype of noise and mean; None means that of ``params`` but at least float32.
        sample_batch_size: samples run together under ``vmap`` (static): 1, an even divisor of n, or None for all. With
            1 the memory is that of one gradient, whatever n is, and convolutions stay plain convolutions: samples
            together have different weights, which turns them into grouped ones. For small losses take None.

    Returns:
        :class:`Smoothed` with ``gradient``, ``value`` if ``value_fn`` is given, ``positions`` None, ``num_gradients``
        n and
        ``info``: ``standard_error``, the norm of the standard error of ``gradient`` over pairs, √(Σᵢ varᵢ/pairs) in
        [loss/param] (NaN for one pair), and with ``value_fn`` the ``value_standard_error``.

    Raises:
        ValueError, TypeError: a setting out of range, a leaf of ``params`` that is not real and floating, or a
            gradient whose tree or shapes differ from those of ``params``; the message names it.

    Good values:
        √(t·T) well below the size of a weight, 1e-3 to 1e-2 for networks; n = 20 as with L = 20 Langevin steps.

    Example:
        f = x³ smoothed with variance ½ has u = x³ + 3x/2, so ∇u = 3x² + 3/2 = 13.5 at x = 2:

        >>> import jax, jaxopt_pde
        >>> smoothed = jaxopt_pde.smoothing.heat(
        ...     lambda x, step: 3 * x**2, jax.numpy.array(2.0), jax.random.key(0),
        ...     smoothing_time=0.5, temperature=1.0, num_samples=20_000, sample_batch_size=None)
        >>> print(f"{smoothed.gradient:.1f} ± {smoothed.info['standard_error']:.2f}")
        13.5 ± 0.02

    References:
        Chaudhari et al. 2018, Deep Relaxation, arXiv:1704.04932 (HEAT). Antithetic pairs: Hammersley & Morton 1956.
    """
    _validate.check_positive("smoothing_time", smoothing_time)
    _validate.check_nonnegative("temperature", temperature)
    settings = HeatSettings(num_samples, antithetic, noise, accumulator_dtype, sample_batch_size).check()
    _validate.check_float_tree("params", params)
    params = jax.tree.map(jnp.asarray, params)
    anchor = cast_up(params, accumulator_dtype)
    dtype = _kernel.scalar_dtype(anchor)
    sigma = jnp.sqrt(jnp.asarray(smoothing_time, dtype) * jnp.asarray(temperature, dtype))
    key = _validate.as_key(key)

    def evaluate(perturbation, sign, step: InnerStep):
        position = cast_like(add_scaled(anchor, sign * sigma, perturbation), params)
        gradient = grad_fn(position, step)
        _validate.check_same_tree("grad_fn", gradient, params)
        gradient = cast_like(gradient, anchor)
        if value_fn is None:
            return gradient, None
        value = value_fn(position)
        _validate.check_scalar_output("value_fn", value)
        return gradient, jnp.asarray(value, dtype)

    average = _average_over_units(evaluate, anchor, key, settings, dtype, with_value=value_fn is not None)
    error = lambda squares: jnp.where(
        average.count > 1, jnp.sqrt(squares / (average.count * jnp.maximum(average.count - 1, 1))), jnp.nan
    )
    info = {"standard_error": error(average.gradient_squares)}
    if value_fn is not None:
        info["value_standard_error"] = error(average.value_squares)
    return Smoothed(
        gradient=cast_like(average.gradient, params),
        value=average.value,
        positions=None,
        num_gradients=jnp.asarray(num_samples, jnp.int32),
        info=info,
    )


def _average_over_units(
    evaluate, anchor: Params, key, settings: HeatSettings, dtype, *, with_value
) -> _Average:
    """A scan over batches of pairs (or of single samples): one gradient is compiled, one mean is kept."""
    size = settings.sample_batch_size
    pair = 2 if settings.antithetic else 1
    together = max(1, size // pair)  # pairs in a batch

    def unit(index: Int[Array, ""]):
        """The mean gradient and value of one pair."""
        first = index * pair
        noise_key, inner = _kernel.inner_keys(key, first, jnp.zeros([], jnp.int32))
        perturbation = _noise.draw_noise(noise_key, anchor, settings.noise)
        if pair == 1:
            return evaluate(perturbation, jnp.ones([], dtype), inner)

        def half(side: Int[Array, ""]):
            _, inner = _kernel.inner_keys(key, first + side, jnp.zeros([], jnp.int32))
            return evaluate(perturbation, (1 - 2 * side).astype(dtype), inner)

        sides = jnp.arange(2, dtype=jnp.int32)
        both = jax.vmap(half)(sides) if size > 1 else jax.lax.map(half, sides)
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), both)

    def add(average: _Average, batch: Int[Array, ""]):
        if together == 1:  # no vmap: a batch axis of one slows convolutions down
            mean, squares = unit(batch), (jnp.zeros([], dtype), jnp.zeros([], dtype))
        else:
            units = jax.vmap(unit)(batch * together + jnp.arange(together, dtype=jnp.int32))
            mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), units)
            squares = [
                squared_norm(jax.tree.map(lambda u, m: u - m[None], many, one), dtype)
                for many, one in zip(units, mean, strict=True)
            ]
        # Chan, Golub & LeVeque: joining two means and their sums of squares.
        count = average.count + together
        share = together / count
        joined = []
        old = ((average.gradient, average.gradient_squares), (average.value, average.value_squares))
        for new, more, (running, total) in zip(mean, squares, old, strict=True):
            change = jax.tree.map(lambda n, m: n - m, new, running)
            joined += [add_scaled(running, share, change)]
            joined += [
                None if total is None else total + more + average.count * share * squared_norm(change, dtype)
            ]
        return _Average(count, *joined), None

    zero = jnp.zeros([], dtype)
    scalars = (zero, zero) if with_value else (None, None)
    initial = _Average(zero, jax.tree.map(jnp.zeros_like, anchor), zero, *scalars)
    batches = jnp.arange(settings.num_samples // pair // together, dtype=jnp.int32)
    return jax.lax.scan(add, initial, batches)[0]
