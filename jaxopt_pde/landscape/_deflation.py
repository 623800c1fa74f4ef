"""Extreme eigenpairs by Lanczos' process, restarted, with what has converged deflated."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ._krylov import lanczos, ritz_pairs, rounding
from .curvature import Curvature

__all__ = ["SCORES", "Eigenpairs", "extreme_eigenpairs"]

SCORES: dict[str, Callable[[Array], Array]] = {
    "largest": lambda values: values,
    "smallest": lambda values: -values,
    "magnitude": jnp.abs,
}
"""The eigenvalues with the greatest score are wanted."""


class Eigenpairs(NamedTuple):
    """Eigenvalues in descending order of score.

    Attributes:
        values: λ, [k]; NaN where none was found.
        residuals: |H v − λ v|, [k]: an eigenvalue lies within it of λ.
        vectors: v, orthonormal rows [k, P].
    """

    values: Float[Array, " k"]
    residuals: Float[Array, " k"]
    vectors: Float[Array, "k P"]


class _State(NamedTuple):
    """Where the rounds are.

    Attributes:
        pairs: the best so far; a free place has the value NaN.
        converged: which of them have, [k].
        start: of the next round; 0 for a random vector.
        size: the greatest |θ| seen.
        challenged: whether the next round looks for an eigenvalue that should have been among the k.
        done: no more rounds.
        rounds: so far.
        key: for the next.
    """

    pairs: Eigenpairs
    converged: Bool[Array, " k"]
    start: Float[Array, " P"]
    size: Float[Array, ""]
    challenged: Bool[Array, ""]
    done: Bool[Array, ""]
    rounds: Int[Array, ""]
    key: Key[Array, ""]


def extreme_eigenpairs(
    curvature: Curvature,
    key: Key[Array, ""],
    *,
    k: int,
    which: str,
    tolerance: Float[Array, ""],
    depth: int,
    max_rounds: int,
) -> Eigenpairs:
    """The k eigenpairs of greatest score.

    A round is ``depth`` products in the complement of the converged vectors, from the sum of the Ritz vectors that
    have not converged. A Krylov space holds one vector of an eigenspace only, so with k > 1, when all have converged,
    a round from a random vector in their complement must find nothing greater; what it finds replaces the least. Where
    the matrix is hardly larger than the Krylov space, it is computed in full instead.
    """
    if curvature.size <= 2 * max(depth, k):
        return _dense(curvature, k, which)
    score = SCORES[which]

    def body(state: _State) -> _State:
        return _round(curvature, state, score, tolerance, depth)

    def condition(state: _State) -> Bool[Array, ""]:
        return ~state.done & (state.rounds < max_rounds)

    dtype, size = curvature.dtype, curvature.size
    nothing = Eigenpairs(
        jnp.full(k, jnp.nan, dtype), jnp.full(k, jnp.inf, dtype), jnp.zeros((k, size), dtype)
    )
    state = _State(
        nothing,
        converged=jnp.zeros(k, bool),
        start=jnp.zeros(size, dtype),
        size=jnp.zeros([], dtype),
        challenged=jnp.array(False),
        done=jnp.array(False),
        rounds=jnp.array(0),
        key=key,
    )
    return _repeat(condition, body, state, on_host=curvature.on_host).pairs


def _repeat(condition: Callable, body: Callable, state: Any, *, on_host: bool) -> Any:
    if not on_host:
        return jax.lax.while_loop(condition, body, state)
    while condition(state):
        state = body(state)
    return state


def _dense(curvature: Curvature, k: int, which: str) -> Eigenpairs:
    values, vectors = jnp.linalg.eigh(curvature.dense())
    order = jnp.argsort(-SCORES[which](values))[:k]
    error = rounding(curvature.dtype, jnp.max(jnp.abs(values)))
    return Eigenpairs(values[order], jnp.full(k, error), vectors[:, order].T)


def _round(
    curvature: Curvature, state: _State, score: Callable, tolerance: Float[Array, ""], depth: int
) -> _State:
    key, noise_key = jax.random.split(state.key)
    old = state.pairs
    locked = jnp.where(state.converged[:, None], old.vectors, 0)
    random = jax.random.normal(noise_key, (curvature.size,), curvature.dtype)
    start = _complement(locked, jnp.where(jnp.any(state.start != 0), state.start, random))
    product = lambda vector: _complement(locked, curvature.product(vector))
    krylov = lanczos(product, start, depth, on_host=curvature.on_host, size=state.size)
    return _merge(state, krylov, score, tolerance)._replace(key=key)


def _merge(state: _State, krylov: Any, score: Callable, tolerance: Float[Array, ""]) -> _State:
    """The best k of what had converged and of the round's Ritz pairs, and what to do next."""
    old, ritz = state.pairs, ritz_pairs(krylov)
    k = len(old.values)
    order = jnp.argsort(jnp.where(ritz.exist, -score(ritz.values), jnp.inf))[: min(k, len(ritz.values))]
    size = jnp.maximum(state.size, jnp.max(jnp.abs(ritz.values)))
    floor = rounding(size.dtype, size)
    new = Eigenpairs(
        ritz.values[order],
        jnp.maximum(ritz.residuals[order], floor),
        ritz.vectors[:, order].T @ krylov.basis,
    )
    allowed = jnp.maximum(tolerance * size, floor)
    exist = jnp.concatenate([state.converged, ritz.exist[order]])
    both = jax.tree.map(lambda one, other: jnp.concatenate([one, other]), old, new)
    chosen = jnp.argsort(jnp.where(exist, -score(both.values), jnp.inf))[:k]
    pairs = jax.tree.map(lambda leaf: leaf[chosen], both)
    found = exist[chosen]
    converged = found & (pairs.residuals <= allowed)
    pairs = Eigenpairs(
        jnp.where(found, pairs.values, jnp.nan),
        jnp.where(found, pairs.residuals, jnp.inf),
        jnp.where(found[:, None], pairs.vectors, 0),
    )
    displaced = jnp.any(chosen >= k)
    complete = jnp.all(converged)
    # The best of the complement, or an eigenvalue that its Ritz vector has yet to reach, is no better than the last.
    least = score(pairs.values[-1])
    beaten = (score(new.values[0]) + new.residuals[0] <= least + allowed) | (new.residuals[0] <= allowed)
    done = complete & (state.challenged & ~displaced & beaten if k > 1 else True)
    going_on = state.challenged & ~displaced
    return state._replace(
        pairs=pairs,
        converged=converged,
        start=jnp.where(
            complete,
            jnp.where(going_on, new.vectors[0], 0),
            jnp.sum(jnp.where(converged[:, None], 0, pairs.vectors), axis=0),
        ),
        size=size,
        challenged=complete,
        done=done,
        rounds=state.rounds + 1,
    )


def _complement(rows: Float[Array, "k P"], vector: Float[Array, " P"]) -> Float[Array, " P"]:
    """What is left of a vector without its parts along orthonormal rows (and rows of 0)."""
    vector = vector - (rows @ vector) @ rows
    return vector - (rows @ vector) @ rows
