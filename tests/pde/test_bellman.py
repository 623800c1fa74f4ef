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
    ("scheme", "diffusion", "sizes", "low", "high"),
    [
        ("godunov", "explicit", (49, 97), 0.85, 1.15),
        pytest.param("engquist_osher", "explicit", (97, 193), 0.85, 1.15, marks=pytest.mark.slow),
        pytest.param("lax_friedrichs", "exponential", (97, 193), 0.85, 1.15, marks=pytest.mark.slow),
        pytest.param("central", "explicit", (49, 97), 1.85, 2.15, marks=pytest.mark.slow),
        ("weno5", "exponential", (49, 97), 1.75, 2.25),  # Strang's splitting; space is of higher order
    ],
)
def test_orders_against_gaussian_expectations(x64, scheme, diffusion, sizes, low, high):
    """Of the value and of the control."""
    found = np.array([errors(n, scheme, diffusion) for n in sizes])
    rates = np.log2(found[:-1] / found[1:])
    assert np.all((low < rates) & (rates < high)), (found, rates)


def test_weno5_is_of_high_order_with_explicit_diffusion(x64):
    """Fourth order or the third of the interpolant's slope, and better while the weights settle; Δt ~ Δx² hides
    the third order in time."""
    found = np.array([errors(n, "weno5") for n in (49, 97)])
    rates = np.log2(found[0] / found[1])
    assert np.all(rates > (3.7, 2.7)), (found, rates)


def box(dimension, n, half_width=2.0):
    return pde.Grid.uniform(
        (-half_width,) * dimension, (half_width,) * dimension, (n,) * dimension, boundary="extrapolate"
    )


@pytest.mark.parametrize(
    ("dimension", "n", "temperature"),
    [(2, 15, 0.3), pytest.param(2, 15, 0.0, marks=pytest.mark.slow), (3, 11, 0.3)],
)
def test_riccati_in_two_and_three_dimensions(x64, dimension, n, temperature):
    """All differences of quadratics are exact, so that what is left is the error in time, of third order.

    The local error of the third-order step is at most (LΔt)⁴/4! of the change of u with the rates L of the problem,
    2‖A‖ + ‖P‖/c here; some horizon/Δt of them add up.
    """
    rng = np.random.default_rng(dimension)
    mix = rng.normal(size=(2, dimension, dimension))
    hessian = 0.5 * np.eye(dimension) + 0.1 * mix[0] @ mix[0].T
    terminal_hessian = 0.5 * np.eye(dimension) + 0.2 * mix[1] @ mix[1].T
    grid, cost, horizon = box(dimension, n), 1.7, 0.4
    x = np.asarray(grid.points).reshape(-1, dimension)
    start = 0.5 * np.einsum("ni,ij,nj->n", x, terminal_hessian, x).reshape(grid.shape)
    solution = pde.solve_bellman(
        start, grid, horizon, drift=lambda x: -hessian @ x, temperature=temperature, control_cost=cost
    ).check()
    rate = 2 * np.linalg.norm(hessian, 2) + np.linalg.norm(terminal_hessian, 2) / cost
    step = horizon / int(solution.num_steps)
    bound = (
        2 * rate * horizon * (rate * step) ** 3 / 24 * np.max(start)
    )  # steps differ by a factor below 2^(1/3)
    inside = np.max(np.abs(x), axis=1) <= 1.0
    truth = riccati(x, hessian, terminal_hessian, horizon, temperature, cost)
    gap = np.max(np.abs(np.asarray(solution.values[0]).ravel() - truth)[inside])
    change = np.max(np.abs(start.ravel() - truth)[inside])
    assert gap < bound < 0.05 * change, (gap, bound, change)


def test_order_of_times(x64):
    """values[k] stands at times[k], the last is V itself, and u depends on the time to go alone."""
    times, x = np.array([0.1, 0.25, 0.5, 0.6]), np.linspace(-3, 3, 97)
    grid = pde.Grid.uniform(-3.0, 3.0, 97, boundary="extrapolate")
    solution = pde.solve_bellman(
        terminal(x), grid, times, drift=pull, temperature=TEMPERATURE, control_cost=COST, scheme="central"
    ).check()
    np.testing.assert_array_equal(solution.times, times)
    np.testing.assert_array_equal(solution.values[-1], terminal(x))
    inside = np.abs(x) <= INSIDE
    for k, time in enumerate(times[:-1]):
        truth = expectation(x, times[-1] - time)[0]
        # central's error at Δx = 1/16 is 6e-4 at τ = 0.6 (second order, above); u moves by 0.1 between the times
        assert np.max(np.abs(solution.values[k] - truth)[inside]) < 1.5e-3
    assert solution.scheme == "central"


def test_without_drift_it_is_the_relaxed_loss(x64):
    """u/c solves the equation with c = 1: the same stencils with other steps, of third order in time."""
    grid = pde.Grid.uniform(0.0, 1.0, 50, boundary="periodic")
    initial = oracles.wave(np.arange(50) / 50)
    common = dict(temperature=0.05, scheme="weno5", diffusion="explicit")
    ours = pde.solve_bellman(initial, grid, 0.1, drift=jnp.zeros_like, control_cost=2.0, **common).check()
    relaxed = pde.solve_hamilton_jacobi(initial / 2, grid, 0.1, **common).check()
    assert ours.num_steps < relaxed.num_steps  # slopes fall, and steps grow with them
    # the fastest rate that carries weight, (2π)²T ~ 2 and slopes that change within Δt·50: (0.1·0.5)³/24 of u
    np.testing.assert_allclose(ours.values[0], 2 * relaxed.values[0], atol=5e-6)


def test_without_drift_and_noise_it_is_hopf_and_lax(x64):
    """min_y V(y) + c|x − y|²/(2h), by brute force; first order past the kinks."""
    found = []
    for n in (50, 100):
        grid, x = pde.Grid.uniform(0.0, 1.0, n, boundary="periodic"), np.arange(n) / n
        solution = pde.solve_bellman(
            oracles.wave(x),
            grid,
            0.1,
            drift=lambda x: 0 * x,
            temperature=0,
            control_cost=2.0,
            scheme="godunov",
        )
        truth = oracles.moreau_line(oracles.wave, x, 0.1 / 2, spread=1.5, points=20_001)
        found.append(np.mean(np.abs(solution.check().values[0] - truth)))
    assert 0.8 < oracles.orders(found)[0] < 1.2, found


def test_without_control(x64):
    """c → ∞: E V of plain descent, less E|∇u|² h/(2c); and no digits are lost, in float32 either."""
    x = np.linspace(-3, 3, 97)
    inside = np.abs(x) <= INSIDE
    truth = expectation(x, HORIZON, cost=np.inf)[0]
    # central at Δx = 1/16, as above; slopes of V are below 5, which makes the control's part 25·0.6/2e8
    found = solved(97, "central", "explicit", 1e8).values[0]
    assert np.max(np.abs(found - truth)[inside]) < 1.5e-3
    controlled = expectation(x, HORIZON)[0]
    assert np.all((controlled < truth)[inside])
    single = pde.solve_bellman(
        terminal(x).astype(np.float32),
        pde.Grid.uniform(-3.0, 3.0, 97, boundary="extrapolate"),
        HORIZON,
        drift=pull,
        temperature=TEMPERATURE,
        control_cost=1e8,
        scheme="central",
    ).check()
    assert single.values.dtype == jnp.float32
    # half an epsilon of |u| < 6 a step, all of one sign; |cb|² is 1e16 times larger
    assert np.max(np.abs(single.values[0] - found)[inside]) < 6 * 2**-24 * int(single.num_steps)


@pytest.mark.parametrize("name", ["godunov", "engquist_osher", "lax_friedrichs"])
def test_fluxes_about_a_centre(x64, name):
    """H = ½|p|² − a·p is the flux of ½|p|² of shifted sides less ½|a|²."""
    left, right, center = (tuple(side) for side in np.random.default_rng(0).normal(size=(3, 2, 500)))
    of = {
        "godunov": godunov,
        "engquist_osher": engquist_osher,
        "lax_friedrichs": lambda l, r, center=None: lax_friedrichs(l, r, None, (1.3, 0.7), center),
    }[name]
    shifted = [tuple(p - a for p, a in zip(side, center, strict=True)) for side in (left, right)]
    expected = of(*shifted) - sum(a * a for a in center) / 2
    np.testing.assert_allclose(of(left, right, center), expected, atol=1e-13)
    zero = (np.zeros(500),) * 2
    np.testing.assert_allclose(of(left, right, zero), of(left, right), atol=1e-15)


def test_the_monotone_scheme_keeps_the_range(x64):
    """min V ≤ u ≤ max V for every drift (α = 0 costs nothing), on boundaries that nothing crosses."""
    rng = np.random.default_rng(1)
    data, push = rng.uniform(-1, 1, size=24), rng.normal(size=6)
    drift = lambda x: push[0] + push[1] * jnp.sin(x * 5) + push[2] * jnp.cos(9 * x)
    for boundary in ("periodic", "neumann"):
        grid = pde.Grid.uniform(0.0, 1.0, 24, boundary=boundary)
        solution = pde.solve_bellman(
            data, grid, [0.01, 0.05], drift=drift, temperature=0.02, control_cost=0.3, scheme="godunov"
        ).check()
        assert solution.values.min() >= data.min() - 1e-13
        assert solution.values.max() <= data.max() + 1e-13
        assert np.all(np.ptp(solution.values, axis=1)[:-1] < 0.9 * np.ptp(data))


@pytest.mark.parametrize(
    ("scheme", "diffusion"),
    [("godunov", "exponential"), pytest.param("weno5", "explicit", marks=pytest.mark.slow)],
)
def test_derivatives_against_differences(x64, scheme, diffusion):
    """In V, T, c, the horizon and a number that the drift closes over."""
    grid = pde.Grid.uniform(-2.0, 2.0, 20, boundary="extrapolate")
    data = terminal(np.linspace(-2, 2, 20))
    weight = np.random.default_rng(2).normal(size=20)

    @jax.jit
    def functional(data, numbers):
        temperature, cost, horizon, slope = numbers
        solution = pde.solve_bellman(
            data,
            grid,
            horizon,
            drift=lambda x: -slope * x,
            temperature=temperature,
            control_cost=cost,
            scheme=scheme,
            diffusion=diffusion,
            max_steps=27,
        )
        return weight @ solution.values[0]

    numbers = np.array([0.4, 1.3, 0.11, 0.9])
    in_data, in_numbers = jax.jit(jax.grad(functional, (0, 1)))(data, numbers)
    h = 1e-5
    for k in range(4):
        shift = h * np.eye(4)[k]
        difference = (functional(data, numbers + shift) - functional(data, numbers - shift)) / (2 * h)
        # central differences err by h²/6 times third derivatives and by rounding 1e-15/h
        np.testing.assert_allclose(in_numbers[k], difference, rtol=1e-5, atol=1e-7)
    direction = np.random.default_rng(3).normal(size=20)
    difference = functional(data + h * direction, numbers) - functional(data - h * direction, numbers)
    np.testing.assert_allclose(in_data @ direction, difference / (2 * h), rtol=1e-5)
    np.testing.assert_allclose(in_data.sum(), weight.sum(), rtol=1e-9)  # V + k gives u + k


SMALL = pde.Grid.uniform(-1.0, 1.0, 9, boundary="extrapolate")
BOWL = np.linspace(-1, 1, 9, dtype=np.float32) ** 2


def test_nothing_is_compiled_twice():
    """Another drift, temperature, cost or V is data."""
    solve = lambda k: pde.solve_bellman(
        BOWL * k, SMALL, 0.1, drift=lambda x: -k * x, temperature=0.1 * k, control_cost=k, scheme="godunov"
    )
    first = solve(1.0)
    compiled = bellman._solve._cache_size()
    assert not np.allclose(solve(2.0).values, first.values)
    assert bellman._solve._cache_size() == compiled


REFUSED = {  # name: (arguments that differ, error, words)
    "shape": (dict(terminal=BOWL[:5]), ValueError, r"terminal must have the grid's shape \(9,\), got \(5,\)"),
    "integers": (dict(terminal=np.arange(9)), TypeError, "terminal has dtype int64"),
    "infinite": (
        dict(terminal=np.where(BOWL == 0, np.inf, BOWL)),
        ValueError,
        r"finite, got inf at index \(4,\)",
    ),
    "no horizon": (dict(times=0.0), ValueError, "times must end at a horizon > 0, got 0.0"),
    "negative horizon": (dict(times=-1.0), ValueError, "times must end at a horizon > 0, got -1.0"),
    "unsorted": (dict(times=[0.3, 0.1]), ValueError, "increasing"),
    "no control cost": (
        dict(control_cost=0.0),
        ValueError,
        "control_cost must be positive and finite, got 0.0",
    ),
    "cold": (dict(temperature=-0.1), ValueError, "temperature must be finite and at least 0, got -0.1"),
    "scheme": (dict(scheme="exact"), ValueError, "scheme must be one of 'auto', 'godunov'.* got 'exact'"),
    "diffusion": (dict(diffusion="implicit"), ValueError, "diffusion must be one of"),
    "cfl": (dict(cfl=2.0), ValueError, "cfl must be at most 1"),
    "central": (dict(scheme="central", temperature=0), ValueError, "'central' needs temperature > 0"),
    "steps": (
        dict(temperature=50.0, diffusion="explicit", max_steps=50),
        ValueError,
        "needs at least 119 explicit steps",  # 0.1·50·16·(4/3)/0.9 = 118.5
    ),
    "terminal as a function": (
        dict(terminal=lambda x: x[0] ** 2),
        TypeError,
        r"terminal must be an array .* pass grid\.evaluate\(terminal\)",
    ),
    "no function": (dict(drift=0.0), TypeError, "drift must be a function of one point"),
    "scalar drift": (
        dict(drift=lambda x: -x[0]),
        ValueError,
        r"drift must give a vector of shape \(1,\).*got",
    ),
    "infinite drift": (
        dict(drift=lambda x: jnp.where(jnp.abs(x + 0.5) < 1e-3, jnp.inf, x)),
        ValueError,
        r"drift must be finite on the grid, got \[inf\] at x = \[-0.5\]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_runs(name):
    changed, error, words = REFUSED[name]
    arguments = dict(terminal=BOWL, grid=SMALL, times=0.1, drift=lambda x: -x, temperature=0.1) | changed
    positional = [arguments.pop(key) for key in ("terminal", "grid", "times")]
    with pytest.raises(error, match=words):
        pde.solve_bellman(*positional, **arguments)


def test_what_is_traced_is_told_by_the_status():
    """One program: each kind of trouble ends it, at the latest at the step limit, and has its sentence."""

    @jax.jit
    def solve(data, times, temperature, cost, slope):
        return pde.solve_bellman(
            data,
            SMALL,
            times,
            drift=lambda x: slope * x,
            temperature=temperature,
            control_cost=cost,
            max_steps=40,
        )

    fine = dict(data=BOWL, times=np.array([0.1, 0.2]), temperature=0.1, cost=1.0, slope=-1.0)
    for changed, words in (
        ({}, "computed at all times"),
        (dict(data=BOWL * np.nan), "terminal data"),
        (dict(slope=np.nan), "drift"),
        (dict(times=np.array([0.2, 0.1])), "do not increase"),
        (dict(temperature=-0.1), "temperature is negative"),
        (dict(cost=-1.0), "control cost"),
        (dict(data=-2 * BOWL, times=np.array([0.1, 3.0]), slope=0.0), "step limit"),  # u = −∞ at τ = 1/4
        (dict(data=BOWL * 3e38), "finite"),
    ):
        solution = solve(**(fine | changed))
        assert words in solution.result, (changed, solution.result)
        assert int(solution.num_steps) <= 40
        if words == "step limit":
            assert np.all(np.isnan(solution.values[0]))
            np.testing.assert_array_equal(solution.values[1], -2 * BOWL)
