"""Chains that climb from the Gaussian N(0, I) to exp(−h(ξ)/T) N(0, I), by exact Langevin steps at every rung."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from .. import _noise
from .._arithmetic import add_scaled, dot, squared_norm
from .._typing import Params

__all__ = ["Chain", "Rungs", "climb", "rungs"]

_TARGET = 0.6  # acceptance; 0.574 is best for Metropolis-adjusted Langevin steps in many dimensions
_FORGETTING = 0.6  # the step size learns with gains k^−0.6 (Robbins & Monro)
_POWER = 3  # λ = z³: moves the integrand's pole, at λ = −1/(t·curvature), away from the interval


class Rungs(NamedTuple):
    """Nodes and weights of ∫₀¹ g(λ) dλ.

    Attributes:
        nodes: λ, increasing to 1.
        weights: of the Gauss-Radau rule in z = λ^⅓ that has the node z = 1.
        coarse: of the interpolatory rule without the middle node, 0 there.
    """

    nodes: np.ndarray
    weights: np.ndarray
    coarse: np.ndarray


def rungs(number: int) -> Rungs:
    """The rule with ``number`` nodes, in float64 on the host.

    References:
        Davis & Rabinowitz 1984, Methods of numerical integration, section 2.7.1.
    """
    legendre = np.polynomial.legendre
    last = [0.0] * (number - 1) + [1.0]
    # On [−1, 1] with the node −1: the roots of P_{n−1} + P_n; then mirrored.
    roots = np.sort(legendre.legroots([*last[:-1], 1.0, 1.0]).real)[1:]
    inner = (1 - roots) / (number * legendre.legval(roots, last)) ** 2
    nodes = np.append(-roots[::-1], 1.0)
    weights = np.append(inner[::-1], 2 / number**2)

    middle = number // 2
    rest = np.delete(nodes, middle)
    differences = rest[:, None] - rest[None, :]
    np.fill_diagonal(differences, 1)
    # Lagrange's polynomials of the other nodes, at the one left out.
    lagrange = [
        np.prod(np.delete(nodes[middle] - rest, k)) / np.prod(differences[k]) for k in range(number - 1)
    ]
    coarse = np.insert(np.delete(weights, middle) + weights[middle] * np.asarray(lagrange), middle, 0.0)
    z = (1 + nodes) / 2
    slope = _POWER * z ** (_POWER - 1) / 2
    return Rungs(z**_POWER, weights * slope, coarse * slope)


class Chain(NamedTuple):
    """What one chain met on its way.

    Attributes:
        heights: h after every counted step, [rungs, steps].
        losses: the mean over those steps of the per-batch parts of h, [rungs, batches].
        acceptance: the mean acceptance probability of those steps, [rungs].
    """

    heights: Float[Array, "rungs steps"]
    losses: Float[Array, "rungs batches"]
    acceptance: Float[Array, " rungs"]


class _Place(NamedTuple):
    position: Params  # ξ
    gradient: Params  # ∇h
    height: Float[Array, ""]  # h
    parts: Float[Array, " batches"]


def climb(
    height: Callable[[Params], tuple[Float[Array, ""], Float[Array, " batches"], Params]],
    like: Params,
    key: Key[Array, ""],
    inverse_temperatures: Float[Array, " rungs"],
    *,
    num_steps: int,
    num_burn_in: int,
) -> Chain:
    """One chain through all densities ∝ exp(−β h(ξ)) N(ξ; 0, I), β increasing, each begun where the last ended.

    The proposal is the preconditioned Crank-Nicolson Langevin step, which keeps N(0, I) itself for h = 0 however many
    the dimensions; with g = β∇h(ξ),

        ξ' = ρ ξ − (1 − ρ) g + √(1 − ρ²) w,     w ~ N(0, I),

    and its Metropolis correction makes the density exact at every ρ. The drift (1 − ρ) g is cut to the length of the
    noise: where f grows faster than a square, the full one overshoots from far out, so that chains that went there
    would stay for long. ρ = (2 − δ)/(2 + δ) is learnt in the burn-in of every rung and then held. The
    first position is a draw of N(0, I), or 0 where h is not finite at the draw.

    Args:
        height: ξ -> h, its parts by batches, ∇h.
        like: a tree like ξ.
        key: of this chain.
        inverse_temperatures: β.
        num_steps: counted steps at every rung.
        num_burn_in: steps before them.

    References:
        Cotter, Roberts, Stuart & White 2013, MCMC methods for functions, Statistical Science 28, 424 (eq. 4.7 with
        θ = ½, and section 4.3). Cut drifts: Roberts & Tweedie 1996, Exponential convergence of Langevin
        distributions and their discrete approximations, Bernoulli 2, 341 (MALTA).
    """
    dtype = inverse_temperatures.dtype
    first_key, key = jax.random.split(key)

    def visit(position):
        value, parts, gradient = height(position)
        return _Place(position, gradient, value, parts)

    drawn = visit(_noise.draw_noise(first_key, like, "gaussian"))
    origin = visit(jax.tree.map(jnp.zeros_like, like))
    begin = _choose(jnp.isfinite(drawn.height), drawn, origin)

    def rung(carry, beta_and_key):
        beta, rung_key = beta_and_key

        def step(carry, index):
            here, log_delta = carry
            noise_key, accept_key = jax.random.split(jax.random.fold_in(rung_key, index))
            rho = (2 - jnp.exp(log_delta)) / (2 + jnp.exp(log_delta))
            noise = _noise.draw_noise(noise_key, like, "gaussian")
            there = visit(_propose(here, beta, rho, noise, dtype))
            log_ratio = beta * (here.height - there.height)
            log_ratio += _log_tilt(there, here, beta, rho, dtype) - _log_tilt(here, there, beta, rho, dtype)
            chance = jnp.where(jnp.isnan(log_ratio), 0, jnp.exp(jnp.minimum(log_ratio, 0)))
            place = _choose(jax.random.uniform(accept_key, dtype=dtype) < chance, there, here)
            gain = jnp.where(index < num_burn_in, 2 * (index + 1.0) ** -_FORGETTING, 0).astype(dtype)
            # δ ≤ 2: at ρ = 0 the proposal forgets where it came from.
            log_delta = jnp.minimum(log_delta + gain * (chance - _TARGET), jnp.log(2.0).astype(dtype))
            return (place, log_delta), (place.height, place.parts, chance)

        carry, (heights, parts, chances) = jax.lax.scan(step, carry, jnp.arange(num_burn_in + num_steps))
        counted = (heights[num_burn_in:], parts[num_burn_in:].mean(axis=0), chances[num_burn_in:].mean())
        return carry, counted

    keys = jax.random.split(key, inverse_temperatures.size)
    _, counted = jax.lax.scan(rung, (begin, jnp.zeros([], dtype)), (inverse_temperatures, keys))
    return Chain(*counted)


def _drift(place: _Place, beta, rho, dtype) -> Params:
    """The drift (1 − ρ) g, cut to the length of the noise, √(1 − ρ²) √d."""
    dimension = sum(leaf.size for leaf in jax.tree.leaves(place.position))
    length = (1 - rho) * beta * jnp.sqrt(squared_norm(place.gradient, dtype))
    reach = jnp.sqrt((1 - rho**2) * dimension)
    factor = (1 - rho) * beta * reach / jnp.maximum(reach, length)
    return jax.tree.map(lambda g: factor.astype(g.dtype) * g, place.gradient)


def _propose(here: _Place, beta, rho, noise: Params, dtype) -> Params:
    drift = _drift(here, beta, rho, dtype)
    moved = jax.tree.map(lambda xi, d: rho.astype(xi.dtype) * xi - d, here.position, drift)
    return add_scaled(moved, jnp.sqrt(1 - rho**2), noise)


def _log_tilt(start: _Place, end: _Place, beta, rho, dtype) -> Float[Array, ""]:
    """Logarithm of the proposal's density over that of h = 0, which is reversible for N(0, I) and so drops out."""
    drift = _drift(start, beta, rho, dtype)
    moved = add_scaled(end.position, -rho, start.position)
    return -(dot(moved, drift, dtype) + squared_norm(drift, dtype) / 2) / (1 - rho**2)


def _choose(first: Array, one: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(first, a, b), one, other)
