"""How a slice sees the relaxed loss u(x, t): by samples around every point, or on the plane alone."""

import dataclasses
import functools
import numbers
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from .. import _noise, _validate, pde
from .._arithmetic import cast_up
from .._typing import Params
from ..pde.grid import BOUNDARIES, Boundary
from ._batches import batch_error
from ._perturbations import Scale, check_scale, scale_tree

__all__ = ["Relaxation", "perturbation", "relax_on_grid", "summarize"]

Method = Literal["cole_hopf", "heat", "plane"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("smoothing_time", "temperature"),
    meta_fields=("method", "num_samples", "scale", "boundary"),
)
@dataclasses.dataclass(frozen=True)
class Relaxation:
    r"""What ``slice(..., smoothing=...)`` evaluates in place of f, from u_t + ½|∇u|² = (T/2) Δu, u(x, 0) = f(x).

    ==============  =========================================  ====================================================
    method          value at x                                 smooths over
    ==============  =========================================  ====================================================
    ``cole_hopf``   −T log mean exp(−f(x + √(tT) ξᵢ)/T)        all parameters, ξᵢ the same at every point
    ``heat``        mean f(x + √(tT) ξᵢ)                       all parameters: the limit T → ∞ at fixed t·T, an
                                                               upper bound of u
    ``plane``       u of the *restricted* function, on the     the plane's coordinates alone: no further losses, no
                    slice's own grid                           sampling error, another (rougher) function than u
    ==============  =========================================  ====================================================

    The samples come in pairs ±ξ and every point has the same ones, so that differences of levels are known far better
    than the levels: the errors of neighbouring points move together.

    **In many dimensions ``cole_hopf`` sees one sample.** The weights exp(−f/T) spread over many orders of magnitude as
    soon as f varies by several T over the samples; then −T log mean is close to the *least* f seen, too high by about
    T/(2·effective sample size) and by much more as that nears 1, and the reported error is too small: it cannot know
    of what no sample met. Look at ``info["effective_sample_size"]``. Below some 50, raise T at fixed t·T, take more
    samples, or ``heat``, whose error stays that of a mean in any dimension.

    Both numbers may be traced or changed at no recompilation; the rest is static.

    Attributes:
        smoothing_time: t > 0, in [param²/loss] (with a ``scale`` in [1/loss]).
        temperature: T > 0, in [loss]; T ≥ 0 for ``"plane"``, where 0 gives the Moreau envelope of the restriction.
        method: see the table.
        num_samples: losses at every point and batch, in pairs: even, at least 4. ``"plane"`` takes none.
        scale: what multiplies the noise, as in :func:`expected_sharpness`: ``"none"`` 1; ``"filter"`` the root mean
            square of each parameter's filter (of its leaf, if that has at most one axis) at the centre of the slice;
            ``"elementwise"`` |x| there. With the last two √(tT) is a relative size, and the picture does not change
            where ReLU layers are rescaled. Not for ``"plane"``.
        boundary: for ``"plane"``: how f goes on outside the slice, as in ``pde.Grid``: ``"extrapolate"`` linearly,
            ``"neumann"`` as its mirror image, ``"periodic"``. None of them is the loss: within √(tT) + t|∇u| of the
            edges the values are those of the continuation. Make the slice wider than the picture.

    Example:
        On f = ½ |x|² in two dimensions, u = |x|²/(2(1 + t)) + T log(1 + t):

        >>> import jax, jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> smoothing = landscape.Relaxation(1.0, 0.5, method="plane")
        >>> axes = (jnp.linspace(-8.0, 8.0, 65),) * 2
        >>> x, y = jnp.eye(2)
        >>> u = landscape.slice(lambda p: p @ p / 2, jnp.zeros(2), (x, y), axes, smoothing=smoothing)
        >>> print(f"{u[32, 36]:.3f} {1 / 4 + 0.5 * jnp.log(2):.3f}")  # at (0, 1)
        0.597 0.597

    References:
        Chaudhari, Oberman, Osher, Soatto & Carlier 2018, Deep Relaxation, arXiv:1704.04932. Bias of the log of a mean:
        the delta method, Owen, Monte Carlo theory, methods and examples, chapter 9.
    """

    smoothing_time: float | Float[Array, ""]
    temperature: float | Float[Array, ""]
    method: Method = "cole_hopf"
    num_samples: int = 100
    scale: Scale = "none"
    boundary: Boundary = "extrapolate"

    def __post_init__(self) -> None:
        _validate.check_choice("method", self.method, get_args(Method))
        check_scale(self.scale, "rms")
        _validate.check_choice("boundary", self.boundary, BOUNDARIES)
        _validate.check_count("num_samples", self.num_samples, minimum=4)
        if self.num_samples % 2:
            msg = f"num_samples must be even (pairs x ± ξ), got {self.num_samples!r}."
            raise ValueError(msg)
        if self.method == "plane" and self.scale != "none":
            msg = f"scale must be 'none' with method='plane', which draws no noise, got {self.scale!r}."
            raise ValueError(msg)
        # A tree made by jax may hold anything in the place of the numbers.
        if isinstance(self.smoothing_time, (numbers.Real, str)):
            _validate.check_positive("smoothing_time", self.smoothing_time)
        if isinstance(self.temperature, (numbers.Real, str)):
            check = _validate.check_nonnegative if self.method == "plane" else _validate.check_positive
            check("temperature", self.temperature)

    @property
    def samples(self) -> bool:
        """Whether losses are taken around the points, so that the values have a sampling error."""
        return self.method != "plane"


def perturbation(relaxation: Relaxation, params: Params, key: Key[Array, ""], pair: Int[Array, ""]) -> Params:
    """√(tT) ξ of one pair, the same at every point of the slice; in at least float32.

    Args:
        relaxation: a method that samples.
        params: the centre of the slice.
        key: of all pairs.
        pair: which.
    """
    up = cast_up(params)
    noise = _noise.draw_noise(jax.random.fold_in(key, pair), up, "gaussian")
    variance = jnp.asarray(relaxation.smoothing_time) * jnp.asarray(relaxation.temperature)
    scaled = lambda xi, s: jnp.sqrt(variance).astype(xi.dtype) * (s * xi)
    return jax.tree.map(scaled, noise, scale_tree(params, relaxation.scale, "rms"))


def summarize(
    values: Float[Array, "samples batches"], shares: Float[Array, " batches"], relaxation: Relaxation | None
) -> dict[str, Array]:
    """One point's value and errors from its losses in every batch.

    With weights w over the samples, u changes by Σ w δf for small changes δf of the loss: that carries the errors over
    batches through the logarithm.

    Args:
        values: losses; the two samples of a pair are neighbours. One sample where nothing is sampled.
        shares: of the examples, in each batch.
        relaxation: None or one that samples.

    Returns:
        ``mean``, and where there is one ``probe_error``, ``batch_error`` and ``effective_sample_size``.
    """
    losses = jnp.sum(values * shares[None], axis=1)
    number = losses.shape[0]
    if relaxation is None:
        result, weights = {"mean": losses[0]}, jnp.ones(1, losses.dtype)
    elif relaxation.method == "heat":
        weights = jnp.full(number, 1 / number, losses.dtype)
        pairs = jnp.mean(losses.reshape(-1, 2), axis=1)
        result = {"mean": jnp.mean(losses), "probe_error": jnp.std(pairs, ddof=1) / jnp.sqrt(number // 2)}
    else:
        heat = jnp.asarray(relaxation.temperature, losses.dtype)
        least = jnp.min(losses)
        weights = jnp.exp(-(losses - least) / heat)
        mean = least - heat * jnp.log(jnp.mean(weights))
        weights = weights / jnp.sum(weights)
        pairs = jnp.sum(weights.reshape(-1, 2), axis=1) - 2 / number
        spread = jnp.sqrt(jnp.sum(pairs**2) * (number // 2) / (number // 2 - 1))
        result = {"mean": mean, "probe_error": heat * spread}
        result["effective_sample_size"] = 1 / jnp.sum(weights**2)
    error = batch_error(jnp.sum(weights[:, None] * values, axis=0), shares)
    return result if error is None else {**result, "batch_error": error}


def relax_on_grid(
    values: Float[Array, "*shape"],
    spacings: Float[Array, " axes"],
    relaxation: Relaxation,
    *,
    viscous: bool,
) -> Float[Array, "*shape"]:
    """The relaxed grid function by the exact route, one axis after another as |x − y|² is a sum over them.

    For the solver grid points are a distance 1 apart and the time of each axis is in that unit, t/h², so that the
    length of the directions may be traced and each number of points is compiled once.

    Args:
        values: f on the slice.
        spacings: h, the distance in [param] of neighbouring points along each axis.
        relaxation: t, T and the boundary.
        viscous: whether T > 0 (static).
    """
    time = jnp.asarray(relaxation.smoothing_time, values.dtype)
    temperature = jnp.asarray(relaxation.temperature, values.dtype) if viscous else 0
    for axis, count in enumerate(values.shape):
        length = count if relaxation.boundary == "periodic" else count - 1
        grid = pde.Grid.uniform(0.0, float(length), count, boundary=relaxation.boundary)
        scaled = time / spacings[axis].astype(values.dtype) ** 2

        def along(line, grid=grid, scaled=scaled):
            return pde.solve_hamilton_jacobi(line, grid, scaled, temperature=temperature).values[0]

        lines = jnp.moveaxis(values, axis, -1)
        relaxed = jax.vmap(along)(lines.reshape(-1, count)).reshape(lines.shape)
        values = jnp.moveaxis(relaxed, -1, axis)
    return values
