"""Lanczos' process on a symmetric matrix, cut where the Krylov space is exhausted."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from matfree import decomp

__all__ = ["Krylov", "Ritz", "lanczos", "ritz_pairs", "rounding"]

_BREAKDOWN = 100  # times eps times the size of T: a product's own error is about 10 of them
_SOUND = 1e-2  # |qᵢᵀqⱼ − δᵢⱼ| of a basis, and asymmetry of QAQᵀ over its size, where nothing has fallen apart


class Krylov(NamedTuple):
    """A Qᵀ = Qᵀ T + r e_nᵀ for the first n rows of Q, those that are ``kept``.

    Attributes:
        basis: Q, orthonormal rows [m, P], zero past the kept ones.
        diagonal: of T, [m].
        off_diagonal: of T, [m − 1].
        remainder: |r|.
        kept: the first n of m.
    """

    basis: Float[Array, "m P"]
    diagonal: Float[Array, " m"]
    off_diagonal: Float[Array, " m-1"]
    remainder: Float[Array, ""]
    kept: Bool[Array, " m"]


class Ritz(NamedTuple):
    """Eigenpairs of T. Pairs that do not exist come last.

    Attributes:
        values: θ, [m].
        vectors: S, [m, m], Ritz vectors are the rows of SᵀQ.
        residuals: |A y − θ y| of the Ritz vectors y, [m].
        exist: [m].
    """

    values: Float[Array, " m"]
    vectors: Float[Array, "m m"]
    residuals: Float[Array, " m"]
    exist: Bool[Array, " m"]


def rounding(dtype: jnp.dtype, size: Float[Array, "..."]) -> Float[Array, "..."]:
    """What products with a matrix of norm ``size`` are wrong by, about."""
    return 10 * jnp.finfo(dtype).eps * size


def lanczos(
    product: Callable[[Float[Array, " P"]], Float[Array, " P"]],
    start: Float[Array, " P"],
    depth: int,
    *,
    on_host: bool,
    size: Float[Array, ""] | float = 0.0,
) -> Krylov:
    """``depth`` steps from ``start`` with full re-orthogonalisation, by matfree.

    Where the Krylov space is invariant before that, because the matrix has few distinct eigenvalues or a small rank,
    what comes next is rounding blown up to unit length: matfree 0.6 then returns rows that are not orthogonal and
    numbers unrelated to the matrix (off-diagonals up to 5 for the identity). Its symmetrised T hides this; the
    sub-diagonal of the Hessenberg form shows it as a number near 0. Everything from there on is cut off, and also
    from where the basis is not orthonormal or the Hessenberg form not symmetric.

    Args:
        product: A x; a traceable function, or one that loops over batches where ``on_host``.
        start: not zero.
        depth: m ≤ P.
        on_host: run the steps one by one, by the same recurrence.
        size: of the whole matrix, if A is a part of it: products are wrong by rounding of that.
    """
    if on_host:
        basis, hessenberg, remainder = _steps_on_host(product, start, depth)
    else:
        done = decomp.hessenberg(depth, reortho="full", custom_vjp=False)(product, start)
        basis, hessenberg, remainder = done.Q_tall, done.J_small, jnp.linalg.norm(done.residual)
    return _cut(basis, hessenberg, remainder, size)


def ritz_pairs(krylov: Krylov) -> Ritz:
    """Eigenvalues and eigenvectors of T."""
    diagonal, off, kept = krylov.diagonal, krylov.off_diagonal, krylov.kept
    size = jnp.max(jnp.abs(diagonal)) + 2 * jnp.max(jnp.abs(off), initial=0)
    # What was cut off gets an eigenvalue above all others (Gershgorin), so that it comes last and mixes with none.
    diagonal = jnp.where(kept, diagonal, 2 * size + 1)
    matrix = jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1)
    values, vectors = jnp.linalg.eigh(matrix)
    last = vectors[jnp.sum(kept) - 1]
    return Ritz(
        jnp.where(kept, values, 0),
        jnp.where(kept[None, :] & kept[:, None], vectors, 0),
        jnp.where(kept, krylov.remainder * jnp.abs(last), 0),
        kept,
    )


@jax.jit
def _cut(
    basis: Float[Array, "m P"],
    hessenberg: Float[Array, "m m"],
    remainder: Float[Array, ""],
    size: Float[Array, ""] | float,
) -> Krylov:
    diagonal = jnp.diag(hessenberg)
    below = jnp.append(jnp.diag(hessenberg, -1), remainder)
    size = jnp.maximum(jax.lax.cummax(jnp.nan_to_num(jnp.abs(diagonal)) + jnp.nan_to_num(below)), size)
    ended = below <= _BREAKDOWN * jnp.finfo(basis.dtype).eps * size
    overlaps = jnp.tril(basis @ basis.T - jnp.eye(len(basis), dtype=basis.dtype))
    asymmetries = jnp.triu(hessenberg - jnp.diag(diagonal) - jnp.diag(below[:-1], 1))
    apart = jnp.max(jnp.abs(overlaps), axis=1) > _SOUND
    apart |= jnp.max(jnp.abs(asymmetries), axis=0) > _SOUND * size
    # The first row is there, whatever it holds: a NaN of the matrix must come out, not be cut off.
    kept = jnp.cumsum(jnp.append(False, ended[:-1]) | apart.at[0].set(False)) == 0
    remainder = below[jnp.sum(kept) - 1]
    return Krylov(
        jnp.where(kept[:, None], basis, 0),
        jnp.where(kept, diagonal, 0),
        jnp.where(kept[1:], below[:-1], 0),
        remainder,
        kept,
    )


def _steps_on_host(product: Callable, start: Array, depth: int) -> tuple[Array, Array, Array]:
    """The Hessenberg form as matfree makes it, but a step at a time: matfree traces the product."""
    basis, hessenberg = jnp.zeros((depth, start.size), start.dtype), jnp.zeros((depth, depth), start.dtype)
    vector = start
    for step in range(depth):
        vector = vector / jnp.linalg.norm(vector)
        basis, hessenberg, vector = _step(basis, hessenberg, vector, product(vector), step)
    return basis, hessenberg, jnp.linalg.norm(vector)


@jax.jit
def _step(
    basis: Array, hessenberg: Array, vector: Array, image: Array, step: Array
) -> tuple[Array, Array, Array]:
    basis = basis.at[step].set(vector)
    column = basis @ image
    image = image - column @ basis
    image = image - (basis @ image) @ basis
    column = column.at[step + 1].set(jnp.linalg.norm(image), mode="drop")
    return basis, hessenberg.at[:, step].set(column), image
