"""From the averages of Langevin chains to ∇u: displacement, gradient, and their best combination.

Write φ'(y) = ∇f(y) + (y − x)/t. From the chains' averages, D = (x − ⟨y⟩)/t and G = ⟨g⟩ both estimate ∇u, and
G − D = ⟨φ'⟩ has expectation 0 at stationarity, so C = D + c (G − D) is an estimate for every c. On a quadratic
with Hessian A and M = A + I/t the error e = ⟨y⟩ − E y of a chain (its own noise, or what is left of the
start) shows in D as −e/t and in ⟨φ'⟩ as M e. The c of least squares is therefore

    c = (1/t) ⟨e, M e⟩ / ⟨M e, M e⟩.

e is not observed, but both of its sources are:

* **Injected noise.** Ξ = Σ ξ over the steps is independent of minibatches and of the start, which makes it an
  instrument: c_noise = ⟨Ξ, ⟨y⟩ − x⟩ / (t ⟨Ξ, ⟨φ'⟩⟩) is the c for which C is uncorrelated with Ξ
  (summed over the chains, Ξ less its mean over them). For long
  chains it tends to tr((I + tA)⁻¹)/d, which beats the per-sample optimum 1/(1 + t tr(A)/d) because a chain's
  average weights slow directions more than a single sample does.
* **The start.** Along the path from the start to the mean the curvature is κ = ⟨Δy, Δg⟩/|Δy|², the secant
  (Barzilai-Borwein) value, and c_start = 1/(1 + tκ). Minibatch noise in the first gradient can only raise κ,
  that is, move C towards D.

The two are weighted by their shares of |⟨φ'⟩|²: what Ξ explains, and the rest. c lies in [0, 1], so C lies
between D and G. At T = 0 there is no noise and c = c_start.

Source: our own derivation; `benchmarks/estimator_error.py` compares the three on quadratics.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from .._typing import Params

__all__ = ["Chains", "estimate"]


class Chains(NamedTuple):
    """What the chains leave behind, each a tree with a leading axis K (None where the estimator needs it not)."""

    position: Params
    start: Params | None  # None also where all chains start at the anchor
    mean_position: Params | None
    mean_gradient: Params | None
    first_gradient: Params | None
    noise_sum: Params | None


def estimate(
    chains: Chains,
    anchor: Params,
    inverse_time: Float[Array, ""],
    *,
    estimator: str,
    curvature: float | Float[Array, ""] | None,
    num_chains: int,
) -> tuple[Params, dict[str, Array]]:
    """Combines the chains; returns the estimate of ∇u and the ``info`` of :func:`jaxopt_pde.smoothing.langevin`."""
    # ``gradient`` comes from sums over the chains of which none waits for another: with the chains spread over a mesh
    # axis they are one all-reduce.
    if estimator == "gradient":
        coefficient, per_chain = jnp.ones_like(inverse_time), chains.mean_gradient
        gradient = _mean(per_chain)
    else:
        displacement = jax.tree.map(
            lambda x, y: (x[None] - y) * inverse_time.astype(x.dtype), anchor, chains.mean_position
        )
        coefficient, per_chain = jnp.zeros_like(inverse_time), displacement
        gradient = _mean(displacement)
        if estimator == "control_variate":
            control = optax.tree.sub(chains.mean_gradient, displacement)
            mean_control = _mean(control)  # once: XLA would send a second copy along
            if curvature is None:
                coefficient = _least_squares_coefficient(
                    chains, anchor, gradient, control, mean_control, inverse_time, num_chains
                )
            else:
                coefficient = inverse_time / (inverse_time + jnp.asarray(curvature, inverse_time.dtype))
            combine = lambda d, p: d + coefficient.astype(d.dtype) * p
            per_chain = jax.tree.map(combine, displacement, control)
            gradient = jax.tree.map(combine, gradient, mean_control)
    return gradient, {
        "control_coefficient": coefficient,
        "standard_error": _standard_error(per_chain, gradient, num_chains, inverse_time.dtype),
    }


def _least_squares_coefficient(
    chains: Chains,
    anchor: Params,
    mean_displacement: Params,
    control: Params,
    mean_control: Params,
    inverse_time: Float[Array, ""],
    num_chains: int,
) -> Float[Array, ""]:
    """The coefficient of the module's docstring, from all chains together."""
    dtype = inverse_time.dtype
    start = jax.tree.map(lambda x: x[None], anchor) if chains.start is None else chains.start
    moved = jax.tree.map(jnp.subtract, chains.mean_position, start)
    change = optax.tree.sub(chains.mean_gradient, chains.first_gradient)
    distance = _dot(moved, moved, dtype)
    # c_start = 1/(1 + tκ) with κ ≥ 0, in a form that needs no division by t or by zero.
    from_start = _ratio(
        inverse_time * distance, inverse_time * distance + jnp.maximum(_dot(moved, change, dtype), 0)
    )
    if chains.noise_sum is None:
        return from_start
    mean_noise = _mean(chains.noise_sum)
    if chains.start is None:
        mean_moved = jax.tree.map(lambda d: -d / inverse_time.astype(d.dtype), mean_displacement)
    else:
        mean_moved = _mean(moved)

    def covariance(tree, its_mean):
        """Σ ⟨Ξ − Ξ̄, ·⟩ over the chains: differences between them do not see the drift that all share."""
        product = _dot(chains.noise_sum, tree, dtype)
        return product if num_chains == 1 else product - num_chains * _dot(mean_noise, its_mean, dtype)

    explained = covariance(control, mean_control)
    from_noise = _ratio(inverse_time * covariance(moved, mean_moved), explained)
    slope = explained / covariance(chains.noise_sum, mean_noise)
    total = _dot(mean_control, mean_control, dtype)
    share = _ratio(slope**2 * _dot(mean_noise, mean_noise, dtype), total)
    return share * from_noise + (1 - share) * from_start


def _mean(tree: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), tree)


def _dot(a: Params, b: Params, dtype) -> Float[Array, ""]:
    # Not optax.tree.vdot: it flattens leaves, which explicit shardings forbid.
    products = jax.tree.map(lambda x, y: jnp.sum(x * y).astype(dtype), a, b)
    return jnp.asarray(optax.tree.sum(products), dtype)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """The quotient clipped to [0, 1]; 0 where the denominator is not positive."""
    positive = denominator > 0
    quotient = numerator / jnp.where(positive, denominator, jnp.ones_like(denominator))
    return jnp.where(positive, jnp.clip(quotient, 0, 1), jnp.zeros_like(quotient))


def _standard_error(per_chain: Params, gradient: Params, num_chains: int, dtype) -> Float[Array, ""]:
    if num_chains == 1:
        return jnp.asarray(jnp.nan, dtype)
    deviations = jax.tree.map(lambda g, mean: g - mean[None], per_chain, gradient)
    return jnp.sqrt(_dot(deviations, deviations, dtype) / (num_chains * (num_chains - 1)))
