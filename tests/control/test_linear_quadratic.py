"""The closed form against the Riccati equation, the Bellman equation, its limits, and the place where it ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from jaxopt_pde import control


def problem(dimension, seed=0):
    """An indefinite f, a positive V, both with linear terms."""
    rng = np.random.default_rng(seed)
    A, Q = rng.normal(size=(2, dimension, dimension)) / np.sqrt(dimension)
    linear, terminal_linear, x = rng.normal(size=(3, dimension))
    A = A + A.T
    assert np.linalg.eigvalsh(A)[0] < 0 or dimension == 1
    return A, Q @ Q.T, linear, terminal_linear, x


def both(exact, x, time):
    """Value and control from one program."""
    return jax.jit(lambda x, time: (exact.value(x, time), exact.control(x, time)))(x, time)


def riccati(A, Q, linear, terminal_linear, *, to_go, temperature, control_cost):
    """u = ½x'Px + r·x + k by a Runge-Kutta method in the time to go: coefficients matched in the Bellman equation."""
    d = len(A)

    def slope(_, y):
        P, r = y[: d * d].reshape(d, d), y[d * d : -1]
        P_slope = -(A @ P + P @ A) - P @ P / control_cost
        r_slope = -(A @ r) - P @ linear - P @ r / control_cost
        k_slope = -(r @ linear) - r @ r / (2 * control_cost) + temperature * np.trace(P) / 2
        return np.concatenate([P_slope.ravel(), r_slope, [k_slope]])

    start = np.concatenate([Q.ravel(), terminal_linear, [0.0]])
    y = scipy.integrate.solve_ivp(slope, (0, to_go), start, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    return y[: d * d].reshape(d, d), y[d * d : -1], y[-1]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("dimension", "control_cost"), [(1, 1.0), (5, 0.4), (20, 2.5)])
def test_it_solves_the_riccati_equation(dimension, control_cost):
    A, Q, linear, terminal_linear, x = problem(dimension)
    temperature, horizon, time = 0.7, 1.5, 0.3
    exact = control.linear_quadratic(
        A,
        Q,
        horizon=horizon,
        temperature=temperature,
        linear=linear,
        terminal_linear=terminal_linear,
        control_cost=control_cost,
    )
    P, r, k = riccati(
        A,
        Q,
        linear,
        terminal_linear,
        to_go=horizon - time,
        temperature=temperature,
        control_cost=control_cost,
    )
    value, alpha = both(exact, x, time)
    np.testing.assert_allclose(value, x @ P @ x / 2 + r @ x + k, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(alpha, (P @ x + r) / control_cost, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("terminal", ["matrix", "number"])
def test_it_solves_the_bellman_equation(terminal):
    """−u_s = −∇f·∇u − |∇u|²/(2c) + (T/2)Δu with derivatives by autodiff, V indefinite, and α = ∇u/c."""
    A, Q, linear, terminal_linear, x = problem(3, seed=2)
    Q = {"matrix": Q - 0.2 * np.eye(3), "number": -0.1}[terminal]
    c, T, time = 1.7, 0.6, 0.25
    exact = control.linear_quadratic(
        A,
        Q,
        horizon=1.0,
        temperature=T,
        linear=linear,
        terminal_linear=terminal_linear,
        control_cost=c,
    )

    @jax.jit
    def terms(x, time):
        slope = jax.grad(exact.value)(x, time)
        laplacian = jnp.trace(jax.jacfwd(jax.grad(exact.value))(x, time))
        right = -(A @ x + linear) @ slope - slope @ slope / (2 * c) + T * laplacian / 2
        return slope, right, -jax.grad(exact.value, argnums=1)(x, time), exact.control(x, time)

    slope, right, left, alpha = terms(x, time)
    np.testing.assert_allclose(left, right, rtol=1e-10)
    np.testing.assert_allclose(alpha, slope / c, rtol=1e-10)
    quadratic = Q if terminal == "matrix" else np.diag(np.broadcast_to(Q, 3))
    value, alpha = both(exact, x, 1.0)
    np.testing.assert_allclose(value, x @ quadratic @ x / 2 + terminal_linear @ x, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(alpha, (quadratic @ x + terminal_linear) / c, rtol=1e-13, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_numbers_diagonals_and_matrices_agree():
    x = jnp.array([0.3, -1.0, 2.0])
    I = np.eye(3)
    values, controls = [], []
    for A, Q, linear in [
        (0.5, 2.0, 0.1),
        (np.full(3, 0.5), 2.0, np.full(3, 0.1)),
        (0.5 * I, np.full(3, 2.0), 0.1),
        (0.5 * I, 2.0, 0.1),
    ]:
        exact = control.linear_quadratic(A, Q, horizon=1.0, temperature=0.3, linear=linear)
        value, alpha = both(exact, x, 0.2)
        values.append(value)
        controls.append(alpha)
    np.testing.assert_allclose(values, np.full(4, values[0]), rtol=1e-13)
    np.testing.assert_allclose(controls, np.tile(controls[0], (4, 1)), rtol=1e-13)
    batch, alphas = both(exact, jnp.stack([2 * x, x]), 0.2)
    np.testing.assert_allclose(batch[1], value, rtol=1e-13)
    np.testing.assert_allclose(alphas[1], alpha, rtol=1e-13)


@pytest.mark.usefixtures("x64")
def test_flat_directions_are_a_limit_and_not_an_exception():
    """A → 0, as a number and as one eigenvalue of a matrix, down to the least positive double."""
    x, Q = jnp.array([1.0, -2.0]), np.array([[2.0, 0.5], [0.5, 1.0]])
    settings = {"horizon": 2.0, "temperature": 0.5, "linear": 0.3}
    dense = np.diag([1.0, 0.0]), np.diag([1.0, 5e-324])
    for flat, nearly, terminal in [(0.0, 1e-13, 2.0), (*dense, Q)]:
        limit = both(control.linear_quadratic(flat, terminal, **settings), x, 0.0)
        near = both(control.linear_quadratic(nearly, terminal, **settings), x, 0.0)
        np.testing.assert_allclose(near[0], limit[0], rtol=1e-11)
        np.testing.assert_allclose(near[1], limit[1], rtol=1e-11)
    burgers = control.linear_quadratic(0.0, 1.0, horizon=2.0, temperature=0.5)
    np.testing.assert_allclose(burgers.value(x, 0.0), 5 / 6 + 0.5 * np.log(3), rtol=1e-14)
    slope = jax.jit(
        jax.grad(lambda a: control.linear_quadratic(a, 1.0, horizon=2.0, temperature=0.5).value(x, 0.0))
    )
    np.testing.assert_allclose(slope(0.0), slope(1e-6), rtol=1e-4)
    assert np.isfinite(slope(0.0))


def test_the_temperature_moves_the_value_alone_and_the_control_stops_at_the_horizon():
    x = jnp.array([1.0, -2.0])
    cold, warm = (
        control.linear_quadratic(np.array([1.0, -0.5]), 1.0, horizon=1.0, temperature=T) for T in (0.0, 2.0)
    )
    np.testing.assert_array_equal(cold.control(x, 0.3), warm.control(x, 0.3))
    assert warm.value(x, 0.3) > cold.value(x, 0.3)
    assert np.all(cold.control(x, 1.0) != 0)
    np.testing.assert_array_equal(cold.control(x, 1.001), np.zeros(2))
    line = control.linear_quadratic(1.0, 1.0, horizon=1.0, temperature=1.0)
    assert line.value(2.0, 0.5).shape == line.control(2.0, 0.5).shape == ()
    assert cold.control(x.astype(jnp.bfloat16), 0.5).dtype == jnp.bfloat16


def test_stiff_modes_and_great_terminal_costs_keep_their_digits_in_single_precision():
    """Curvatures over seven decades and Q = 10⁶: relative errors of a few hundred roundings, no cancellation."""
    A = np.diag(np.logspace(-4, 3, 6))
    Q = 1e6 * (np.eye(6) + 0.3)
    with jax.enable_x64(True):
        exact = control.linear_quadratic(A, Q, horizon=1.0, temperature=1e-3)
        x = jnp.ones(6)
        value, alpha = (np.asarray(v) for v in both(exact, x, 0.5))
    single, single_alpha = both(exact, jnp.ones(6, jnp.float32), 0.5)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, value, rtol=1e-4)
    assert np.linalg.norm(single_alpha - alpha) < 1e-4 * np.linalg.norm(alpha)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dense", [False, True])
def test_escape_is_said_with_its_time(dense):
    """For A = −1, Q = −q: 1 − (q/c)(e^{2τ} − 1)/2 vanishes at τ = ½ log(1 + 2c/q)."""
    q, c = 0.5, 0.8
    escape = np.log(1 + 2 * c / q) / 2
    A = np.diag([-1.0, 2.0]) if dense else -1.0
    Q = np.diag([-q, 1.0]) if dense else -q
    make = lambda horizon: control.linear_quadratic(A, Q, horizon=horizon, temperature=1.0, control_cost=c)
    with pytest.raises(ValueError, match=rf"value is −∞ from {escape:.4f}\d* before the horizon"):
        make(escape * 1.01)
    value = make(escape * 0.999).value
    x = jnp.ones(2)
    assert value(x, 0.0) < value(x, 0.1)
    assert jnp.isnan(value(x, -1.0))


def test_traced_coefficients_give_the_same_numbers():
    A, Q, linear, _, x = problem(4)
    settings = {"horizon": 1.0, "temperature": 0.5}
    outside = control.linear_quadratic(A, Q, linear=linear, **settings)
    inside = jax.jit(lambda A, Q, x: control.linear_quadratic(A, Q, linear=linear, **settings).value(x, 0.0))
    x = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(inside(A, Q, x), outside.value(x, 0.0), rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hessian": np.array([[1.0, 2.0], [0.0, 1.0]])}, "hessian must be symmetric.*by 2"),
        ({"hessian": np.ones((2, 3))}, r"hessian must be a number, \[d\] or \[d, d\], got shape \(2, 3\)"),
        ({"linear": np.eye(2)}, r"linear must be a number or \[d\]"),
        ({"hessian": np.ones(2), "terminal_hessian": np.ones(3)}, "terminal_hessian has d = 3, but hessian"),
        ({"terminal_hessian": np.nan}, "terminal_hessian must be finite"),
        ({"terminal_linear": np.array([np.inf])}, "terminal_linear must be finite"),
        ({"horizon": 0.0}, "horizon must be positive"),
        ({"temperature": -1.0}, "temperature must be finite and at least 0"),
        ({"control_cost": 0.0}, "control_cost must be positive"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    good = {"hessian": 1.0, "terminal_hessian": 1.0, "horizon": 1.0, "temperature": 1.0}
    with pytest.raises(ValueError, match=message):
        control.linear_quadratic(**(good | changes))


def test_a_point_of_another_dimension_is_refused():
    exact = control.linear_quadratic(np.ones(3), 1.0, horizon=1.0, temperature=1.0)
    with pytest.raises(ValueError, match=r"x must have shape \[\.\.\., 3\], got \(2,\)"):
        exact.value(jnp.ones(2), 0.0)
    with pytest.raises(TypeError, match=r"x must be one array \[\.\.\., d\].*ravel_pytree"):
        exact.control({"a": jnp.ones(3)}, 0.0)


def test_the_time_derivative_at_the_horizon_is_that_of_the_equation():
    """u_s = Ax·Qx + |Qx|²/(2c) − (T/2) tr Q there, and not half of it, as a maximum with 0 would have it."""
    exact = control.linear_quadratic(0.7, 1.2, horizon=1.0, temperature=0.5, control_cost=2.0)
    found = jax.grad(exact.value, argnums=1)(jnp.ones(1), 1.0)
    np.testing.assert_allclose(found, 0.7 * 1.2 + 1.2**2 / 4 - 0.25 * 1.2, rtol=1e-5)
