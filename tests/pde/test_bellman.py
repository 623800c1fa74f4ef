"""The Bellman equation against what is known without a grid: Riccati, Gaussian expectations, Hopf and Lax.

With b = −ax the uncontrolled X(h) is exactly Gaussian, and Cole and Hopf's u = −cT log E exp(−V(X(h))/(cT)) is one
Gauss-Hermite sum, whatever V.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.special import logsumexp

from jaxopt_pde import pde
from jaxopt_pde.pde import bellman
from jaxopt_pde.pde.stencils import engquist_osher, godunov, lax_friedrichs
from tests.pde import oracles

PULL, TEMPERATURE, COST, HORIZON = 0.8, 0.5, 1.6, 0.6
INSIDE = 1.5  # of a box that ends at 3: the controlled drift of the box's end points inwards


def terminal(x):
    """Two wells, and a tail that grows."""
    return 0.5 * x**2 + 0.8 * np.cos(2 * x + 0.3)


def pull(x):
    return -PULL * x


def expectation(x, time_to_go, *, cost=COST, temperature=TEMPERATURE):
    """u and ∇u for the Ornstein-Uhlenbeck drift; the limit E V for an infinite cost."""
    node, weight = np.polynomial.hermite_e.hermegauss(200)
    decay = np.exp(-PULL * time_to_go)
    spread = np.sqrt(-temperature * np.expm1(-2 * PULL * time_to_go) / (2 * PULL))
    end = decay * x[:, None] + spread * node
    with np.errstate(divide="ignore"):
        weight = np.log(weight / weight.sum())
    slope = end - 1.6 * np.sin(2 * end + 0.3)
    if np.isinf(cost):
        return np.sum(np.exp(weight) * terminal(end), axis=1), decay * np.sum(np.exp(weight) * slope, axis=1)
    tilted = weight - terminal(end) / (cost * temperature)
    total = logsumexp(tilted, axis=1)
    return -cost * temperature * total, decay * np.sum(np.exp(tilted - total[:, None]) * slope, axis=1)


def riccati(x, hessian, terminal_hessian, time_to_go, temperature, cost):
    """½x'Px + (cT/2) log det(I + WQ/c) by matrix exponentials, for b = −Ax and V = ½x'Qx; x [n, d]."""
    eye = np.eye(len(hessian))
    flow, scaled = expm(-hessian * time_to_go), terminal_hessian / cost
    gathered = (eye - flow @ flow) @ np.linalg.inv(2 * hessian)
    value = cost * flow @ scaled @ np.linalg.inv(eye + gathered @ scaled) @ flow
    constant = cost * temperature / 2 * np.log(np.linalg.det(eye + gathered @ scaled))
    return 0.5 * np.einsum("ni,ij,nj->n", x, value, x) + constant


@functools.cache
def solved(n, scheme, diffusion="explicit", cost=COST):
    grid = pde.Grid.uniform(-3.0, 3.0, n, boundary="extrapolate")
    solution = pde.solve_bellman(
        terminal(np.linspace(-3, 3, n)),
        grid,
        HORIZON,
        drift=pull,
        temperature=TEMPERATURE,
        control_cost=cost,
        scheme=scheme,
        diffusion=diffusion,
    )
    return solution.check()


def errors(n, *arguments):
    """Of u and of ∇u at the nodes inside, at s = 0."""
    solution, x = solved(n, *arguments), np.linspace(-3, 3, n)
    value, gradient = expectation(x, HORIZON)
    inside = np.abs(x) <= INSIDE
    found = np.asarray(solution.gradient(x, 0.0))
    return [np.max(np.abs(gap)[inside]) for gap in (np.asarray(solution.values[0]) - value, found - gradient)]


@pytest.mark.parametrize(
    ("scheme", "diffusion", "sizes", "order", "gradient_order", "finest"),
    [  # orders ± 0.3, or from 0.3 below on where the mesh is still refining (weno5)
        ("godunov", "explicit", (49, 97, 193), 1, 1, 2e-2),
        ("engquist_osher", "explicit", (97, 193), 1, 1, 2e-2),
        ("lax_friedrichs", "exponential", (97, 193), 1, 1, 8e-2),
        ("central", "explicit", (49, 97), 2, 2, 5e-3),
        ("weno5", "exponential", (49, 97), 2, 2, 1e-3),
    ],
)
def test_orders_against_gaussian_expectations(x64, scheme, diffusion, sizes, order, gradient_order, finest):
    found = np.array([errors(n, scheme, diffusion) for n in sizes])
    rates = np.array([oracles.orders(column) for column in found.T])
    print(scheme, diffusion, found.tolist(), rates.tolist())
    assert np.all(rates[0] > order - 0.3), (found, rates)
    assert np.all(rates[1] > gradient_order - 0.3), (found, rates)
    if scheme != "weno5":
        assert np.all(rates[0] < order + 0.3), (found, rates)
    assert found[-1, 0] < finest


def test_weno5_is_of_high_order_with_explicit_diffusion(x64):
    """Fourth or better: Δt ~ Δx² hides the third order in time; the interpolant's slope is third order."""
    found = np.array([errors(n, "weno5") for n in (49, 97)])
    print(found)
    assert np.all(oracles.orders(found[:, 0]) > 3.7)
    assert found[-1, 0] < 1e-4
