"""Eigenvalues and eigenvectors of the Hessian of a mean loss, or of its Gauss-Newton matrix."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from .. import _validate
from .._typing import Params
from ._batches import Batches, Loader, batch_error, make_batches
from ._deflation import SCORES, extreme_eigenpairs
from .curvature import Curvature
from .estimate import Estimate

__all__ = ["exact_spectrum", "top_eigenvalues", "top_eigenvectors"]

Which = Literal["largest", "smallest", "magnitude"]
LossFn = Callable[[Params, Any], Float[Array, ""]]

_LARGEST_DENSE = 5000  # parameters: 100 MB in float32


class _Settings(NamedTuple):
    """What fixes the compiled program."""

    k: int
    which: str
    depth: int
    max_rounds: int


def top_eigenvalues(
    loss_fn: LossFn,
    params: Params,
    data: Any,
    key: Key[Array, ""],
    *,
    k: int = 1,
    batch_size: int | None = None,
    which: Which = "largest",
    tolerance: float | Float[Array, ""] = 1e-4,
    num_matvecs: int | None = None,
    max_rounds: int = 30,
) -> Estimate:
    """The k extreme eigenvalues of ∇²f(x), f a mean loss over all of the data, by restarted Lanczos.

    ``num_matvecs`` products with full re-orthogonalisation make a round. What has converged is deflated, the next
    round starts from the rest, until every residual r = |H v − λ v| is at most ``tolerance`` times the largest
    |eigenvalue| seen. One vector's Krylov space holds a repeated eigenvalue once; so with k > 1 a last round from a
    random vector in the complement must find nothing greater. Matrices of up to 2 ``num_matvecs`` rows are computed
    in full.

    The errors. An eigenvalue of this data's Hessian lies within r of each number returned, which is given as
    ``probe_error``: a bound, of which the true error is a small part (r² over the gap to the next eigenvalue). The
    ``batch_error`` is the spread of vᵀH_b v over batches, the first-order change of a simple eigenvalue, and costs
    one more pass for each of the k. What no error shows: the largest eigenvalue of a mean over a sample is biased
    upwards, E λ₁(Ĥ) ≥ λ₁(E Ĥ), since λ₁ is convex. Examples that are few give values far too large, and far apart.

    Args:
        loss_fn: f, ``(params, batch) -> scalar``, the mean over the batch's examples; or a
            :class:`~jaxopt_pde.landscape.GaussNewton`.
        params: x, a tree of floating arrays; half precision is raised to float32.
        data: a tree of arrays with a leading example axis, or a function that returns a fresh iterator over batches,
            the same ones each time it is called: one pass over it makes one product.
        key: a PRNG key or integer seed for the start.
        k: how many (static).
        batch_size: examples at a time (static); None for all, and then no ``batch_error``.
        which: ``"largest"`` algebraically, in descending order; ``"smallest"``, the lowest first; or the largest in
            ``"magnitude"``, in descending order of it.
        tolerance: residual over the largest |eigenvalue| seen. In float32 not below about 1e-6.
        num_matvecs: products in a round (static), which also is how many vectors are stored; None for 10 + 2k.
        max_rounds: of them (static). If they do not suffice, the residuals in ``probe_error`` say so, and an
            eigenvalue that was not found at all is NaN.

    Returns:
        :class:`~jaxopt_pde.landscape.Estimate` of [k] eigenvalues in [loss/param²].

    Raises:
        ValueError, TypeError: a setting out of range, k above the number of parameters, integer or complex leaves,
            a loss that is no scalar, no data.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> loss_fn = lambda w, x: 0.5 * jnp.mean((x @ w) ** 2)
        >>> x = jnp.diag(jnp.sqrt(100 * jnp.arange(1.0, 101.0)))  # the Hessian is diag(1, ..., 100)
        >>> values, _ = landscape.top_eigenvalues(loss_fn, jnp.ones(100), x, jax.random.key(0), k=3)
        >>> print(values.round(2))
        [100.  99.  98.]

    References:
        Lanczos 1950; Saad 2011, Numerical methods for large eigenvalue problems, sections 6.3 (Lanczos), 4.2
        (deflation), 3.2 (residuals). The steps are those of matfree: Krämer, Moreno-Muñoz, Roy & Hauberg 2024.
    """
    return top_eigenvectors(
        loss_fn,
        params,
        data,
        key,
        k=k,
        batch_size=batch_size,
        which=which,
        tolerance=tolerance,
        num_matvecs=num_matvecs,
        max_rounds=max_rounds,
    )[0]


def top_eigenvectors(
    loss_fn: LossFn,
    params: Params,
    data: Any,
    key: Key[Array, ""],
    *,
    k: int = 1,
    batch_size: int | None = None,
    which: Which = "largest",
    tolerance: float | Float[Array, ""] = 1e-4,
    num_matvecs: int | None = None,
    max_rounds: int = 30,
) -> tuple[Estimate, Params]:
    """:func:`top_eigenvalues` with their eigenvectors, orthonormal, as directions of a slice or to project on.

    A vector's error, the sine of its angle to the eigenspace, is about r over the gap to the next eigenvalue, so it
    takes a small ``tolerance`` where eigenvalues are close. Signs are arbitrary.

    Args:
        loss_fn: see :func:`top_eigenvalues`.
        params: see there.
        data: see there.
        key: see there.
        k: how many (static).
        batch_size: see there.
        which: see there.
        tolerance: see there.
        num_matvecs: see there.
        max_rounds: see there.

    Returns:
        The eigenvalues, :class:`~jaxopt_pde.landscape.Estimate` of [k], and a tree like ``params`` with a leading
        axis k on every leaf.

    Raises:
        ValueError, TypeError: as :func:`top_eigenvalues`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> loss_fn = lambda w, x: 0.5 * jnp.mean((x @ w) ** 2)
        >>> x = jnp.array([[2.0, 0.0], [0.0, 6.0]])
        >>> values, vectors = landscape.top_eigenvectors(loss_fn, jnp.ones(2), x, jax.random.key(0))
        >>> print(values.mean, jnp.abs(vectors))
        [18.] [[0. 1.]]

    References:
        As :func:`top_eigenvalues`.
    """
    _validate.check_float_tree("params", params)
    _validate.check_count("k", k)
    _validate.check_choice("which", which, SCORES)
    _validate.check_positive("tolerance", tolerance)
    _validate.check_count("max_rounds", max_rounds)
    size = _size(params)
    if k > size:
        msg = f"k must be at most the number of parameters, {size}, got {k}."
        raise ValueError(msg)
    if num_matvecs is None:
        num_matvecs = 10 + 2 * k
    _validate.check_count("num_matvecs", num_matvecs, minimum=2)
    batches, settings = make_batches(data, batch_size), _Settings(k, which, num_matvecs, max_rounds)
    run = _top if isinstance(batches, Batches) else _top.__wrapped__
    return run(loss_fn, settings, params, batches, _validate.as_key(key), tolerance)


@functools.partial(jax.jit, static_argnames=("loss_fn", "settings"))
def _top(
    loss_fn: LossFn,
    settings: _Settings,
    params: Params,
    batches: Batches | Loader,
    key: Key[Array, ""],
    tolerance: float | Float[Array, ""],
) -> tuple[Estimate, Params]:
    curvature = Curvature(loss_fn, params, batches)
    values, residuals, vectors = extreme_eigenpairs(
        curvature,
        key,
        k=settings.k,
        which=settings.which,
        tolerance=jnp.asarray(tolerance, curvature.dtype),
        depth=settings.depth,
        max_rounds=settings.max_rounds,
    )
    error = None
    if curvature.in_batches:
        error = batch_error(*curvature.each_form(vectors))
    estimate = Estimate.combine(values, probe_error=residuals, batch_error=error)
    return estimate, jax.vmap(curvature.unravel)(vectors)


def exact_spectrum(
    loss_fn: LossFn, params: Params, data: Any, *, batch_size: int | None = None
) -> Float[Array, " P"]:
    """All eigenvalues of ∇²f(x), from the dense matrix: for networks of up to 5,000 parameters.

    Args:
        loss_fn: see :func:`top_eigenvalues`.
        params: see there, P numbers in all.
        data: see there; the matrix takes one pass, P products with every batch.
        batch_size: examples at a time (static); None for all.

    Returns:
        The P eigenvalues in [loss/param²], in descending order. Those below about 1e-6 of the largest are rounding
        in float32.

    Raises:
        ValueError, TypeError: more than 5,000 parameters, integer or complex leaves, a loss that is no scalar, no data.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> loss_fn = lambda w, x: 0.5 * jnp.mean((x @ w) ** 2)
        >>> print(landscape.exact_spectrum(loss_fn, jnp.ones(2), jnp.array([[2.0, 0.0], [0.0, 6.0]])))
        [18.  2.]

    References:
        Pearlmutter 1994 (the rows of the matrix).
    """
    _validate.check_float_tree("params", params)
    size = _size(params)
    if size > _LARGEST_DENSE:
        msg = (
            f"exact_spectrum needs the dense matrix and takes at most {_LARGEST_DENSE} parameters, got {size}; "
            "use spectral_density, top_eigenvalues and trace."
        )
        raise ValueError(msg)
    batches = make_batches(data, batch_size)
    run = _exact if isinstance(batches, Batches) else _exact.__wrapped__
    return run(loss_fn, params, batches)


@functools.partial(jax.jit, static_argnames="loss_fn")
def _exact(loss_fn: LossFn, params: Params, batches: Batches | Loader) -> Float[Array, " P"]:
    return jnp.linalg.eigvalsh(Curvature(loss_fn, params, batches).dense())[::-1]


def _size(params: Params) -> int:
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))
