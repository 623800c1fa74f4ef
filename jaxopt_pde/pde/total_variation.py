"""Total-variation denoising with a duality gap that bounds the error of every answer."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .. import _validate

__all__ = ["DenoiseInfo", "denoise_total_variation", "total_variation"]

Channels = Literal["coupled", "separate"]

# Steps between two looks at the gap, which costs about as much as one step.
_STEPS_PER_CHECK = 25
# Where the step starts, in units of 1/|∇|², and the factor by which it falls back towards 1 when a step grows.
_LONG_STEP, _SHORTEN = 1.3, 0.96


class DenoiseInfo(NamedTuple):
    """How good the answer of :func:`denoise_total_variation` is.

    Attributes:
        duality_gap: J(u) − D(p) ≥ J(u) − min J, in [image²], summed over pixels; clipped at 0.
        error_bound: √(2 duality_gap), an upper bound on |u − u*|₂ over all pixels, in [image].
        energy: J(u), in [image²].
        num_steps: steps taken (int32).
        converged: whether ``duality_gap <= tolerance · energy``.
    """

    duality_gap: Float[Array, ""]
    error_bound: Float[Array, ""]
    energy: Float[Array, ""]
    num_steps: Int[Array, ""]
    converged: Bool[Array, ""]


Fields = tuple[Float[Array, "*spatial channels"], ...]  # one an axis


class _Iterate(NamedTuple):
    dual: Fields  # p, with |p| ≤ weight at every pixel
    extrapolated: Fields
    length: Float[Array, ""]
    first_move: Float[Array, ""]  # |p₁ − p₀|², infinite until it is known


def denoise_total_variation(
    image: Float[Array, "..."],
    weight: float | Float[Array, ""],
    *,
    channel_axis: int | None = None,
    channels: Channels = "coupled",
    tolerance: float = 1e-5,
    max_steps: int = 10_000,
) -> tuple[Float[Array, "..."], DenoiseInfo]:
    r"""Denoises by total variation: the Rudin-Osher-Fatemi problem, with a certified error.

    J(u) = ½ Σ |u − image|² + weight · Σ |∇u|,  |∇u| = √(Σ of the squared forward differences),

    isotropic, sums over pixels, no difference across the border. It is one implicit step, of length ``weight``, of the
    total-variation flow: the Hopf-Lax formula of a convex loss. Solved in the dual, u = image + div p with
    |p| ≤ weight, by projected gradient steps with momentum and restarts; J is strongly convex, so that
    ½|u − u*|² ≤ J(u) − J(u*) ≤ gap.

    Args:
        image: a signal [n], image [h, w] or volume [d, h, w], with a channel axis if ``channel_axis`` says so; in
            [image]. Half precision is computed in float32. Batches by ``vmap``, over ``weight`` as well.
        weight: λ ≥ 0, in [image]: a flat patch of area A and perimeter P moves by about λP/A. May be traced; 0 gives
            the image back. It is the ``weight`` of scikit-image.
        channel_axis: axis of the colours, along which nothing is differenced (static). None: a grey image.
        channels: ``"coupled"`` takes |∇u| over all channels of a pixel together: edges stay where they are in every
            channel at once and the result does not depend on the choice of orthonormal colour axes, so it is the
            default. ``"separate"`` denoises each channel on its own, as scikit-image does (static).
        tolerance: stop at gap ≤ tolerance · J, which bounds the relative error of J(u). In float32 at least 1e-5, in
            float64 at least 1e-12. Rounding keeps the gap above about ¼ε weight² a pixel, ε = 1.2e-7 in float32: with a
            weight many times the contrast use float64 or a larger tolerance, or all steps are spent.
        max_steps: give up after this many steps, rounded up to a multiple of 25, the steps between looks at the gap
            (static).

    Returns:
        ``(u, info)``: u in the shape and dtype of ``image``, and :class:`DenoiseInfo`. A traced image that is not
        finite, or a traced weight below 0, gives ``converged`` False and a gap that is not finite.

    Raises:
        ValueError: a setting out of range, an image without axes, or a concrete one that is not finite.
        TypeError: an image that is not real and floating.

    Differentiation:
        Forward mode (``jax.jvp``, ``jax.jacfwd``) differentiates the steps taken. Reverse mode raises: the loop has no
        fixed length. ∇ of the envelope e(image) = min J needs neither: it is image − u.

    Example:
        A step of 1 over 50 + 50 samples, of which λ/50 goes on either side:

        >>> import jax.numpy as jnp
        >>> from jaxopt_pde.pde.total_variation import denoise_total_variation
        >>> signal = jnp.repeat(jnp.array([0.0, 1.0]), 50)
        >>> denoised, info = denoise_total_variation(signal, 1.0)
        >>> print(f"{denoised[0]:.2f} {denoised[-1]:.2f}", bool(info.converged))
        0.02 0.98 True

    References:
        Rudin, Osher & Fatemi 1992, Nonlinear total variation based noise removal algorithms. Beck &
        Teboulle 2009, Fast gradient-based algorithms for constrained total variation image denoising and deblurring
        problems. Liang, Luo & Schönlieb 2022, Improving FISTA: faster, smarter and greedier, arXiv:1811.01430.
    """
    _validate.check_nonnegative("weight", weight)
    _validate.check_choice("channels", channels, get_args(Channels))
    _validate.check_count("max_steps", max_steps)
    planes, dtype = _planes("image", image, channel_axis)
    _check_tolerance(tolerance, planes.dtype)
    coupled = channels == "coupled"
    weight = jnp.asarray(weight, planes.dtype)
    weight = jnp.where(weight >= 0, weight, jnp.nan)  # a traced one may be anything
    denoised, info = _solve(planes, weight, coupled, tolerance, max_steps)
    denoised = jnp.moveaxis(denoised, -1, channel_axis) if channel_axis is not None else denoised[..., 0]
    return denoised.astype(dtype), info


def total_variation(
    image: Float[Array, "..."], *, channel_axis: int | None = None, channels: Channels = "coupled"
) -> Float[Array, ""]:
    """Isotropic total variation Σ |∇u| by forward differences: the J-term of :func:`denoise_total_variation`.

    Args:
        image: a signal, image or volume, with a channel axis if ``channel_axis`` says so; in [image].
        channel_axis: axis of the colours, along which nothing is differenced (static). None: a grey image.
        channels: whether |∇u| is taken over all channels of a pixel together, ``"coupled"``, or ``"separate"``.

    Returns:
        Σ |∇u| over pixels, in [image].

    Raises:
        ValueError: an unknown ``channels``, an image without axes or a concrete one that is not finite.
        TypeError: an image that is not real and floating.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde.pde.total_variation import total_variation
        >>> print(total_variation(jnp.array([0.0, 3.0, 1.0])))
        5.0
    """
    _validate.check_choice("channels", channels, get_args(Channels))
    planes, _ = _planes("image", image, channel_axis)
    return jnp.sum(_length(_gradient(planes), channels == "coupled"))


def _planes(name: str, image: Array, channel_axis: int | None) -> tuple[Array, jnp.dtype]:
    """The image with its channels last, at least float32, and the dtype it came in."""
    _validate.check_float_tree(name, image)
    if not isinstance(image, jax.core.Tracer) and not np.all(np.isfinite(image)):
        msg = f"{name} must be finite, got {np.sum(~np.isfinite(image))} entries that are not."
        raise ValueError(msg)
    image = jnp.asarray(image)
    spatial = image.ndim - (channel_axis is not None)
    if spatial < 1 or image.size == 0:
        msg = f"{name} must have at least one axis besides its channels and no empty one, got shape {image.shape}."
        raise ValueError(msg)
    if channel_axis is not None and not -image.ndim <= channel_axis < image.ndim:
        msg = f"channel_axis must be an axis of shape {image.shape}, got {channel_axis!r}."
        raise ValueError(msg)
    planes = image[..., None] if channel_axis is None else jnp.moveaxis(image, channel_axis, -1)
    return planes.astype(jnp.promote_types(image.dtype, jnp.float32)), image.dtype


def _check_tolerance(tolerance: float, dtype: jnp.dtype) -> None:
    _validate.check_positive("tolerance", tolerance)
    least = 1e-5 if dtype == jnp.float32 else 1e-12
    if not isinstance(tolerance, jax.Array) and tolerance < least:
        msg = f"tolerance must be at least {least} in {dtype}, whose rounding hides less, got {tolerance!r}."
        raise ValueError(msg)


def _gradient(planes: Array) -> tuple[Array, ...]:
    """Forward differences along every axis but the last, zero in the last row: a tuple of arrays like ``planes``."""
    return tuple(
        jnp.pad(jnp.diff(planes, axis=axis), _margin(planes.ndim, axis, after=1))
        for axis in range(planes.ndim - 1)
    )


def _divergence(dual: tuple[Array, ...]) -> Array:
    """−(adjoint of :func:`_gradient`)."""
    total = 0.0
    for axis, field in enumerate(dual):
        inner = jax.lax.slice_in_dim(field, 0, field.shape[axis] - 1, axis=axis)
        total = total + jnp.pad(inner, _margin(field.ndim, axis, after=1))
        total = total - jnp.pad(inner, _margin(field.ndim, axis, before=1))
    return total


def _margin(ndim: int, axis: int, before: int = 0, after: int = 0) -> list[tuple[int, int]]:
    return [(before, after) if other == axis else (0, 0) for other in range(ndim)]


def _length(fields: tuple[Array, ...], coupled: bool) -> Array:
    """|p| of every pixel [*spatial, channels], or [*spatial, 1] over all channels."""
    squares = sum(field**2 for field in fields)
    if coupled:
        squares = jnp.sum(squares, axis=-1, keepdims=True)
    # The derivative of √ at 0 is infinite; that of |∇u| where u is flat is taken as 0.
    flat = squares == 0
    return jnp.where(flat, 0.0, jnp.sqrt(jnp.where(flat, 1.0, squares)))


def _dot(left: Fields, right: Fields) -> Float[Array, ""]:
    """Σ left·right. Joined first: with one sum an axis XLA for CPU makes a step five times slower (jax 0.10.2)."""
    left, right = (jnp.concatenate([field.ravel() for field in fields]) for fields in (left, right))
    return jnp.sum(left * right)


def _gap_and_energy(
    dual: Fields, planes: Array, weight: Array, coupled: bool
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """J(u) − D(p) and J(u) at u = image + div p, with D(p) = ½|image|² − ½|image + div p|².

    The difference is Σ (λ|∇u| − p·∇u), whose terms are all ≥ 0: nothing large cancels, and what rounding leaves
    below 0 is clipped pixel by pixel.
    """
    divergence = _divergence(dual)
    slopes = _gradient(planes + divergence)
    lengths = _length(slopes, coupled)
    along = sum(p * slope for p, slope in zip(dual, slopes, strict=True))
    if coupled:
        along = jnp.sum(along, axis=-1, keepdims=True)
    gap = jnp.sum(jnp.maximum(weight * lengths - along, 0.0))
    return gap, 0.5 * jnp.sum(divergence**2) + weight * jnp.sum(lengths)


def _step(iterate: _Iterate, planes: Array, weight: Array, coupled: bool) -> _Iterate:
    """Projected gradient ascent of D from the extrapolated point; then extrapolate by the whole move, or not at all.

    Extrapolating overshoots when the move turns against the gradient step just made: then the momentum restarts.
    """
    before, ahead, length, first_move = iterate
    slopes = _gradient(planes + _divergence(ahead))
    dual = _project(
        tuple(p + length * slope for p, slope in zip(ahead, slopes, strict=True)), weight, coupled
    )
    move = tuple(new - old for new, old in zip(dual, before, strict=True))
    overshot = _dot(tuple(a - new for a, new in zip(ahead, dual, strict=True)), move) > 0
    momentum = jnp.where(overshot, 0.0, 1.0).astype(planes.dtype)
    # A step longer than 1/|∇|² can only be trusted while the moves shrink.
    shortest = 1 / _squared_norm(planes)
    moved = _dot(move, move)
    length = jnp.where(moved > first_move, jnp.maximum(_SHORTEN * length, shortest), length)
    first_move = jnp.where(jnp.isinf(first_move), moved, first_move)
    ahead = tuple(new + momentum * change for new, change in zip(dual, move, strict=True))
    return _Iterate(dual, ahead, length, first_move)


def _project(dual: Fields, weight: Array, coupled: bool) -> Fields:
    """Onto |p| ≤ weight, pixel by pixel."""
    excess = jnp.maximum(_length(dual, coupled), weight)
    shrink = jnp.where(excess > 0, weight / jnp.where(excess > 0, excess, 1.0), 0.0)
    return tuple(p * shrink for p in dual)


def _squared_norm(planes: Array) -> float:
    """A bound on |∇|², reached as the image grows: 4 an axis."""
    return 4.0 * (planes.ndim - 1)


def _solve(
    planes: Array, weight: Array, coupled: bool, tolerance: float, max_steps: int
) -> tuple[Array, DenoiseInfo]:
    spatial = planes.ndim - 1
    # The answer shifts with the mean, but the rounding errors of differences do not have to.
    centred = planes - jnp.mean(planes, axis=tuple(range(spatial)), keepdims=True)
    zeros = (jnp.zeros_like(planes),) * spatial
    length = jnp.asarray(_LONG_STEP / _squared_norm(planes), planes.dtype)
    start = _Iterate(zeros, zeros, length, jnp.asarray(jnp.inf, planes.dtype))

    def measured(iterate, num_steps):
        gap, energy = _gap_and_energy(iterate.dual, centred, weight, coupled)
        return iterate, DenoiseInfo(gap, jnp.sqrt(2 * gap), energy, num_steps, gap <= tolerance * energy)

    def unfinished(carry):
        _, info = carry
        return ~info.converged & jnp.isfinite(info.duality_gap) & (info.num_steps < max_steps)

    def body(carry):
        iterate, info = carry
        advance = lambda _, state: _step(state, centred, weight, coupled)
        iterate = jax.lax.fori_loop(0, _STEPS_PER_CHECK, advance, iterate)
        return measured(iterate, info.num_steps + _STEPS_PER_CHECK)

    iterate, info = jax.lax.while_loop(unfinished, body, measured(start, jnp.zeros([], jnp.int32)))
    return planes + _divergence(iterate.dual), info
