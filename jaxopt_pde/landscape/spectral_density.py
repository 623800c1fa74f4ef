"""The density of the Hessian's eigenvalues by stochastic Lanczos quadrature, with the errors of what is read off it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from .. import _validate
from .._noise import draw_noise
from .._typing import Params
from ._batches import Batches, Loader, batch_error, make_batches
from ._krylov import lanczos, ritz_pairs
from .curvature import Curvature
from .estimate import Estimate

__all__ = ["SpectralDensity", "spectral_density"]


class SpectralDensity(NamedTuple):
    """The distribution of the P eigenvalues, each of weight 1/P, as a mean over probes of Gauss quadratures.

    Attributes:
        grid: [points] where the density is given, in [loss/param²].
        density: :class:`~jaxopt_pde.landscape.Estimate` of [points] in [param²/loss]: of eigenvalue plus a Gaussian
            of standard deviation ``bandwidth``, so that its integral is 1.
        bandwidth: in [loss/param²].
        nodes: Ritz values of every probe, [probes, m].
        weights: of the nodes, [probes, m]; they add up to 1 for every probe. 0 where the Krylov space ended before.
        sensitivities: [batches, probes, m]: Σᵢ g′(nodeᵢ) sensitivityᵢ estimates tr g′(H) H_b / P for a batch's
            Hessian H_b; None for one batch.
        shares: of the examples, [batches], or None.
    """

    grid: Float[Array, " points"]
    density: Estimate
    bandwidth: Float[Array, ""]
    nodes: Float[Array, "probes m"]
    weights: Float[Array, "probes m"]
    sensitivities: Float[Array, "batches probes m"] | None
    shares: Float[Array, " batches"] | None

    def mean_of(self, function: Callable[[Array], Array], *, smooth: bool = True) -> Estimate:
        """Mean of g over the eigenvalues, tr g(H)/P.

        Args:
            function: g of a scalar, to a scalar or an array; jax must know its derivative if ``smooth``.
            smooth: whether g has the bounded derivative that the ``batch_error`` takes; otherwise there is none.

        Returns:
            :class:`~jaxopt_pde.landscape.Estimate` in the shape of g's values. The ``probe_error`` is NaN for one
            probe.
        """

        def per_probe(nodes: Float[Array, " m"], weights: Float[Array, " m"]) -> Array:
            return jnp.tensordot(weights, jax.vmap(function)(nodes), axes=1)

        values = jax.vmap(per_probe)(self.nodes, self.weights)
        number = len(values)
        probe_error = jnp.full(values.shape[1:], jnp.nan, values.dtype)
        if number > 1:
            probe_error = jnp.std(values, axis=0, ddof=1) / jnp.sqrt(jnp.asarray(number, values.dtype))
        error = None
        if smooth and self.sensitivities is not None:
            slopes = jax.vmap(jax.vmap(jax.jacfwd(function)))(self.nodes)
            changes = jnp.tensordot(self.sensitivities, slopes, axes=2) / number
            error = batch_error(changes, self.shares)
        return Estimate.combine(jnp.mean(values, axis=0), probe_error=probe_error, batch_error=error)

    def moment(self, order: int) -> Estimate:
        """Mean of the eigenvalues' power λ^order, tr H^order / P; exact for each probe up to order 2m − 1.

        Args:
            order: j ≥ 0.
        """
        _validate.check_count("order", order, minimum=0)
        return self.mean_of(lambda value: value**order)

    def share_within(self, threshold: float, *, width: float = 0.0) -> Estimate:
        """Share of the eigenvalues with |λ| ≤ ``threshold``.

        A probe places m nodes among P eigenvalues, and a bulk that is narrower than their spacing counts as one node:
        the distribution function of a probe is right up to the weight of the node next to where it is read. No error
        shows this; compare with more ``num_matvecs``.

        Args:
            threshold: in [loss/param²].
            width: standard deviation of the Gaussian that the step is smoothed by, in [loss/param²]. With 0 the step
                is sharp, and has no derivative for a ``batch_error``: the standard error is that over probes alone.
        """
        _validate.check_nonnegative("threshold", threshold)
        inner = _step(width)
        return self.mean_of(
            lambda value: inner(threshold - value) - inner(-threshold - value, closed=False),
            smooth=not _validate.is_static_zero(width),
        )

    def share_above(self, threshold: float, *, width: float = 0.0) -> Estimate:
        """Share of the eigenvalues λ > ``threshold``, the upper tail; see :meth:`share_within`.

        Args:
            threshold: in [loss/param²], of either sign.
            width: see there.
        """
        _validate.check_finite("threshold", threshold)
        step = _step(width)
        return self.mean_of(
            lambda value: step(value - threshold, closed=False), smooth=not _validate.is_static_zero(width)
        )


class _Settings(NamedTuple):
    """What fixes the compiled program."""

    num_matvecs: int
    num_probes: int
    num_points: int


def spectral_density(
    loss_fn: Callable[[Params, Any], Float[Array, ""]],
    params: Params,
    data: Any,
    key: Key[Array, ""],
    *,
    num_matvecs: int = 30,
    num_probes: int = 8,
    batch_size: int | None = None,
    bandwidth: float | Float[Array, ""] | None = None,
    grid: Float[Array, " points"] | None = None,
    num_points: int = 500,
) -> SpectralDensity:
    r"""The density of the eigenvalues of ∇²f(x), f a mean loss over all of the data.

    For random signs v, E vᵀg(H)v = tr g(H). With m Lanczos steps from q₁ = v/√P, H ≈ QᵀTQ and vᵀg(H)v/P =
    e₁ᵀg(T)e₁ = Σᵢ τᵢ² g(θᵢ): the nodes are the eigenvalues θ of T and the weights the squares of the *first*
    components τ of its eigenvectors, exact for polynomials g of degree up to 2m − 1. The basis is fully
    re-orthogonalised, so no eigenvalue shows up twice, and cut where the Krylov space ends.

    Errors. Over probes, from their spread. Over batches, to first order: the mean of a smooth g changes by
    d tr g(H) = tr g′(H) dH, and with one probe

        vᵀ g′(H) dH v/P = (g′(T) e₁)ᵀ (Q dH q₁) = Σᵢ g′(θᵢ) τᵢ (Sᵀ Q dH q₁)ᵢ,

    S the eigenvectors of T, since g′(H) q₁ = Qᵀ g′(T) e₁ up to the error of the quadrature. So m numbers for each
    probe and batch, Q H_b q₁ from one more product with every batch, give the batch error of every g: of the density
    at each point of the grid, the moments, smoothed shares (our own derivation). It is that of the estimate with its
    probes, larger than that of tr g(H)/P by what few probes add. To first order only: a spectrum also
    spreads in a finite sample, and where the number of examples is below P, much of it is at 0; that bias is not in
    the error.

    Args:
        loss_fn: f, ``(params, batch) -> scalar``, the mean over the batch's examples; or a
            :class:`~jaxopt_pde.landscape.GaussNewton`.
        params: x, a tree of floating arrays, P numbers; half precision is raised to float32.
        data: a tree of arrays with a leading example axis, or a function that returns a fresh iterator over batches,
            the same ones each time it is called.
        key: a PRNG key or integer seed for the probes.
        num_matvecs: m, products for each probe and vectors stored (static); more than P count as P.
        num_probes: vectors v, one after another (static). With one, errors over probes are NaN.
        batch_size: examples at a time (static); None for all, and then no ``batch_error``.
        bandwidth: σ in [loss/param²]; None for a hundredth of the range of the Ritz values (of their
            size if they are one, of 1 if that is 0).
        grid: where to give the density; None for ``num_points`` equidistant ones from 4σ below the least to 4σ
            above the greatest Ritz value.
        num_points: of that grid (static).

    Returns:
        :class:`SpectralDensity`.

    Raises:
        ValueError, TypeError: a setting out of range, integer or complex leaves, a loss that is no scalar, no data.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> loss_fn = lambda w, x: 0.5 * jnp.mean((x @ w) ** 2)
        >>> x = jnp.diag(jnp.sqrt(jnp.repeat(jnp.array([0.0, 100.0, 300.0]), jnp.array([80, 15, 5]))))
        >>> density = landscape.spectral_density(loss_fn, jnp.ones(100), x, jax.random.key(0))
        >>> print(f"{density.share_within(0.5).mean:.2f} within 0.5, mean {density.moment(1).mean:.2f}")
        0.80 within 0.5, mean 0.30

    References:
        Golub & Welsch 1969; Ubaru, Chen & Saad 2017, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature.
        Ghorbani, Krishnan & Xiao 2019, An investigation into neural net optimization via Hessian eigenvalue density.
    """
    _validate.check_float_tree("params", params)
    _validate.check_count("num_matvecs", num_matvecs)
    _validate.check_count("num_probes", num_probes)
    _validate.check_count("num_points", num_points, minimum=2)
    if bandwidth is not None:
        _validate.check_positive("bandwidth", bandwidth)
    if grid is not None and jnp.ndim(grid) != 1:
        msg = f"grid must be an array of one axis, got shape {jnp.shape(grid)}."
        raise ValueError(msg)
    batches = make_batches(data, batch_size)
    settings = _Settings(num_matvecs, num_probes, num_points)
    run = _density if isinstance(batches, Batches) else _density.__wrapped__
    return run(loss_fn, settings, params, batches, _validate.as_key(key), bandwidth, grid)


@functools.partial(jax.jit, static_argnames=("loss_fn", "settings"))
def _density(
    loss_fn: Callable,
    settings: _Settings,
    params: Params,
    batches: Batches | Loader,
    key: Key[Array, ""],
    bandwidth: float | Float[Array, ""] | None,
    grid: Float[Array, " points"] | None,
) -> SpectralDensity:
    curvature = Curvature(loss_fn, params, batches)
    keys = jax.random.split(key, settings.num_probes)
    probe = lambda key: _probe(curvature, key, min(settings.num_matvecs, curvature.size))
    if curvature.on_host:
        probes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(probe, keys))
    else:
        probes = jax.lax.map(probe, keys)
    nodes, weights, sensitivities, shares = probes
    if sensitivities is not None:
        sensitivities, shares = jnp.swapaxes(sensitivities, 0, 1), shares[0]
    low = jnp.min(jnp.where(weights > 0, nodes, jnp.inf))
    high = jnp.max(jnp.where(weights > 0, nodes, -jnp.inf))
    if bandwidth is None:
        size = jnp.maximum(jnp.abs(low), jnp.abs(high))
        # One eigenvalue comes out of every probe with another rounding: a range like that is none.
        spread = jnp.where(high - low > 1e-3 * size, high - low, jnp.where(size > 0, size, 1))
        bandwidth = spread / 100
    bandwidth = jnp.asarray(bandwidth, nodes.dtype)
    if grid is None:
        grid = jnp.linspace(low - 4 * bandwidth, high + 4 * bandwidth, settings.num_points)
    grid = jnp.asarray(grid, nodes.dtype)
    result = SpectralDensity(grid, None, bandwidth, nodes, weights, sensitivities, shares)
    bell = lambda value: jax.scipy.stats.norm.pdf(grid, value, bandwidth)
    return result._replace(density=result.mean_of(bell))


def _probe(curvature: Curvature, key: Key[Array, ""], depth: int) -> tuple[Array, Array, Any, Any]:
    """Nodes, weights, and for every batch the sensitivities and shares."""
    size = curvature.size
    vector = draw_noise(key, jnp.zeros(size, curvature.dtype), "rademacher")
    vector = vector / jnp.sqrt(jnp.asarray(size, vector.dtype))
    krylov = lanczos(curvature.product, vector, depth, on_host=curvature.on_host)
    ritz = ritz_pairs(krylov)
    first = ritz.vectors[0]
    weights = first**2
    nodes = jnp.where(ritz.exist, ritz.values, krylov.diagonal[0])
    if not curvature.in_batches:
        return nodes, weights / jnp.sum(weights), None, None
    images, shares = curvature.each_image(krylov.basis, vector)
    return nodes, weights / jnp.sum(weights), images @ (ritz.vectors * first[None]), shares


def _step(width: float) -> Callable[..., Array]:
    """Whether x ≥ 0 (or > 0 where not ``closed``), or the normal distribution function of x/width."""
    if _validate.is_static_zero(width):
        return lambda x, closed=True: jnp.where(x >= 0 if closed else x > 0, 1.0, 0.0).astype(x.dtype)
    _validate.check_positive("width", width)
    return lambda x, closed=True: jax.scipy.stats.norm.cdf(x, scale=width)
