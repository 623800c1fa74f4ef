"""Every problem: its minimisers, its exact relaxation against the equation and against brute force, its heat limit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import problems
from jaxopt_pde.problems import Problem, domain_points

INDEFINITE = np.array([[1.0, 0.6, 0.0], [0.6, -0.3, 0.2], [0.0, 0.2, 2.0]])
TILTED = np.array([[3.0, 1.0], [1.0, 2.0]])
CENTRES, HEIGHTS = [[-1.0, 0.2], [1.0, 0.0], [0.3, 1.2]], [0.1, 0.0, 0.3]
HESSIANS = np.stack([TILTED, 9.0 * np.eye(2), np.diag([0.5, 4.0])])

PROBLEMS = {
    "quadratic": lambda: problems.quadratic(TILTED, [1.0, -0.5]),
    "indefinite": lambda: problems.quadratic(INDEFINITE, [0.3, 1.0, -1.0]),
    "absolute value": lambda: problems.absolute_value(slope=1.5),
    "absolute values": lambda: problems.absolute_value(3),
    "double well": lambda: problems.double_well(half_distance=0.7, barrier=2.0, tilt=-0.5),
    "rugged": lambda: problems.rugged(3),
    "rastrigin": problems.rastrigin,
    "periodic": lambda: problems.periodic_wells(2, wavelength=2.0),
    "hard minimum": lambda: problems.hard_minimum(CENTRES, HESSIANS, HEIGHTS),
    "soft minimum": lambda: problems.soft_minimum(CENTRES, HESSIANS, HEIGHTS, temperature=0.2),
    "merged": lambda: problems.soft_minimum(CENTRES, [1.0, 1.1, 2.0], HEIGHTS, temperature=2.0),
    "sharp and wide": problems.sharp_and_wide,
    "müller-brown": problems.mueller_brown,
}
EXACT = [name for name, make in PROBLEMS.items() if make().exact is not None]
HEAT = [name for name, make in PROBLEMS.items() if make().heat is not None]


def evaluate(function, points):
    """The public function, compiled: one program instead of one an operation."""
    return np.asarray(jax.jit(lambda points: problems.evaluate(function, points))(points))


def temperatures(problem):
    return [0.0, 0.3] if problem.exact_temperature is None else [problem.exact_temperature]


def random_points(problem, count):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.uniform(problem.lower, problem.upper, (count, problem.lower.size)))


@pytest.mark.parametrize("name", PROBLEMS)
def test_minimisers_are_stationary_to_rounding_sorted_and_global(name, x64):
    """Newton's step from each is below 1e-14 of the domain, its Hessian positive, and no grid point lies lower."""
    problem = PROBLEMS[name]()
    width = np.max(problem.upper - problem.lower)
    grid = domain_points(problem, {1: 2001, 2: 101}.get(problem.lower.size, 21))
    values = evaluate(problem.loss, grid)
    if not len(problem.minimisers):
        assert np.isnan(problem.minimum)
        return
    assert np.all((problem.minimisers >= problem.lower) & (problem.minimisers <= problem.upper))
    assert values.min() >= problem.minimum - 1e-13
    derivatives = lambda x: (problem.loss(x), jax.grad(problem.loss)(x), jax.hessian(problem.loss)(x))
    lows, gradients, hessians = jax.jit(jax.vmap(derivatives))(problem.minimisers)
    np.testing.assert_allclose(lows[0], problem.minimum, rtol=1e-14, atol=1e-14)
    assert np.all(np.diff(lows) >= -1e-13)
    if name.startswith("absolute"):
        assert not np.any(gradients)
        return
    assert np.linalg.eigvalsh(hessians).min() > 0
    assert np.abs(np.linalg.solve(hessians, np.asarray(gradients)[..., None])).max() < 1e-14 * width


@pytest.mark.parametrize(("name", "count"), [("müller-brown", 2), ("double well", 1), ("rugged", None)])
def test_saddles_have_one_descending_direction(name, count, x64):
    problem = PROBLEMS[name]()
    assert len(problem.saddles) == (len(problem.minimisers) - 1 if count is None else count)
    hessians = evaluate(jax.hessian(problem.loss), problem.saddles)
    gradients = evaluate(jax.grad(problem.loss), problem.saddles)
    assert np.all(np.sum(np.linalg.eigvalsh(hessians) < 0, axis=1) == 1)
    assert np.abs(np.linalg.solve(hessians, np.asarray(gradients)[..., None])).max() < 1e-14 * 6


@pytest.mark.parametrize("name", EXACT)
def test_the_exact_relaxation_solves_the_equation(name, x64):
    """u_t + ½|∇u|² = (T/2) Δu at 40 random points and times, to 1e-10 of the size of its terms."""
    problem = PROBLEMS[name]()
    points = random_points(problem, 40)
    horizon = min(problem.exact_horizon, 1.0)
    times = jnp.asarray(np.random.default_rng(1).uniform(0.05, 0.9, 40) * horizon)

    @jax.jit
    @jax.vmap
    def terms(point, time, temperature):
        u = lambda x, t: problem.exact(x, t, temperature)
        slope = jax.grad(u)(point, time)
        laplacian = jnp.trace(jax.hessian(u)(point, time))
        return jax.grad(u, argnums=1)(point, time), 0.5 * slope @ slope, -0.5 * temperature * laplacian

    for temperature in temperatures(problem):
        parts = np.stack(terms(points, times, jnp.full(40, temperature)))
        assert np.all(np.isfinite(parts))
        assert np.abs(parts.sum(axis=0)).max() < 1e-10 * np.abs(parts).max()


@pytest.mark.parametrize("name", EXACT)
def test_the_exact_relaxation_starts_from_the_loss(name, x64):
    """At t = 0 exactly; soon after within t (½|∇u|² + (T/2)|Δu|), with |Δu| < 200 for all of these."""
    problem = PROBLEMS[name]()
    points = random_points(problem, 40)
    losses = evaluate(problem.loss, points)
    start = jax.jit(jax.vmap(jax.value_and_grad(problem.exact), (0, None, None)))
    for temperature in temperatures(problem):
        at_zero, _ = start(points, 0.0, temperature)
        np.testing.assert_allclose(at_zero, losses, rtol=1e-13, atol=1e-13)
        soon, slope = start(points, 1e-7, temperature)
        allowed = 1.01e-7 * (0.5 * np.sum(np.square(slope), axis=-1) + 100.0 * temperature)
        assert np.all(np.abs(soon - losses) <= allowed + 1e-13)


def brute_force(problem, losses_at, point, time, temperature):
    """u by a product rule over a box of y: log-sum-exp of the Cole-Hopf integral, or the least value at T = 0."""
    d = problem.lower.size
    count = 20_001 if d == 1 else 701
    # Outside f + |x − y|²/(2t) exceeds f(x) by 40 T or more: lost in rounding.
    reach = np.sqrt(2 * time * (float(problem.loss(point)) - problem.minimum + 40 * temperature)) * 1.1
    axes = [np.linspace(x - reach, x + reach, count) for x in point]
    y = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    losses = np.asarray(losses_at(y))
    energy = losses + np.sum((y - point) ** 2, axis=-1) / (2 * time)
    least = energy.min()
    if temperature == 0.0:
        return least
    cell = np.prod([axis[1] - axis[0] for axis in axes])
    total = np.exp(-(energy - least) / temperature).sum() * cell
    return least - temperature * np.log(total / (2 * np.pi * time * temperature) ** (d / 2))


@pytest.mark.parametrize(
    "name", ["quadratic", "absolute value", "periodic", "hard minimum", "soft minimum", "sharp and wide"]
)
def test_the_exact_relaxation_is_the_brute_force_integral(name, x64):
    """To 1e-9 by the trapezoid rule; at T = 0 and at the kink of |x| only to the square of the spacing."""
    problem = PROBLEMS[name]()
    time = 0.2
    losses_at = jax.jit(lambda points: problems.evaluate(problem.loss, points))
    for temperature in temperatures(problem):
        smooth = temperature > 0.0 and name != "absolute value"
        for point in np.asarray(random_points(problem, 3)):
            exact = problem.exact(jnp.asarray(point), time, temperature)
            expected = brute_force(problem, losses_at, point, time, temperature)
            np.testing.assert_allclose(exact, expected, rtol=0.0, atol=1e-9 if smooth else 2e-4)


@pytest.mark.parametrize("name", HEAT)
def test_the_heat_limit_is_the_gaussian_average(name, x64):
    """Against a Gauss-Hermite product rule of 60 nodes an axis, exact here to rounding."""
    problem = PROBLEMS[name]()
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    d, variance = problem.lower.size, 0.05
    offsets = np.stack(np.meshgrid(*[nodes] * d, indexing="ij"), axis=-1) * np.sqrt(variance)
    product = np.prod(np.stack(np.meshgrid(*[weights] * d, indexing="ij")), axis=0)
    for point in np.asarray(random_points(problem, 3)):
        average = np.sum(product * evaluate(problem.loss, point + offsets))
        heat = problem.heat(jnp.asarray(point), variance)
        # The shortest waves of the noise, k ≈ 45, need more nodes than there are for full accuracy.
        np.testing.assert_allclose(heat, average, rtol=1e-5 if name == "rugged" else 1e-10, atol=1e-10)


def test_smoothing_moves_the_global_minimiser_to_the_wide_well(x64):
    """At a third of t* the narrow well is still the lower, at three times t* the wide one is."""
    d, temperature, delta, sharp, flat = 2, 0.1, 0.1, 100.0, 1.0
    problem = problems.sharp_and_wide(d, advantage=delta, temperature=temperature, sharpness=sharp)
    ratio = np.exp(2 * delta / (d * temperature))
    crossing = (ratio - 1) / (sharp - ratio * flat)
    grid = domain_points(problem, 201)
    assert problem.minimisers[0, 0] < 0 < problem.minimisers[1, 0]
    for time, side in [(0.0, -1.0), (crossing / 3, -1.0), (3 * crossing, 1.0)]:
        values = evaluate(lambda x: problem.exact(x, time, temperature), grid)  # noqa: B023
        best = grid[np.unravel_index(np.argmin(values), values.shape)]
        np.testing.assert_allclose(best, [side, 0.0], atol=0.02)


def test_relaxing_the_rugged_loss_leaves_the_parabola(x64):
    """Variance 1 damps the wave of the oscillation by exp(−2π²) and leaves x² + 1."""
    problem = problems.rugged(noise=0.0)
    points = domain_points(problem, 61)
    smoothed = evaluate(lambda x: problem.heat(x, 1.0), points)
    np.testing.assert_allclose(smoothed, points[:, 0] ** 2 + 1, atol=1.5 * np.exp(-2 * np.pi**2))


def test_the_noise_has_the_stated_deviation_and_length(x64):
    """Variance 0.09 and correlation exp(−½) one noise length away, within 4.5 standard errors: 30 keys, and 10 places
    six lengths apart, which are independent to exp(−18).
    """
    places = np.linspace(-2.7, 2.7, 10)[:, None]

    def draw(seed):
        problem = problems.rugged(seed, amplitude=0.0, noise=0.3, noise_length=0.1)
        points = np.stack([places, places + 0.1])
        return evaluate(problem.loss, points) - points[..., 0] ** 2

    drawn = np.concatenate([draw(seed) for seed in range(30)], axis=1)
    spread = 4.5 / np.sqrt(300)
    assert np.mean(drawn[0] ** 2) == pytest.approx(0.09, rel=spread * np.sqrt(2))
    assert np.corrcoef(drawn)[0, 1] == pytest.approx(np.exp(-0.5), abs=spread)


def test_the_loss_is_the_same_in_both_precisions_and_keeps_the_dtype():
    for name in ["quadratic", "absolute value", "rugged", "soft minimum", "müller-brown"]:
        make = PROBLEMS[name]
        single, point = make(), np.float32([0.3, -0.2, 0.4])[: make().lower.size]
        value = jax.jit(single.loss)(jnp.asarray(point))
        assert value.dtype == jnp.float32, name
        assert jax.eval_shape(single.loss, jnp.asarray(point, jnp.bfloat16)).dtype == jnp.bfloat16, name
        if single.exact is not None:
            relaxed = jax.eval_shape(single.exact, jnp.asarray(point), 0.1, single.exact_temperature or 0.0)
            assert relaxed.dtype == jnp.float32, name
        with jax.enable_x64(True):
            double = make()
            np.testing.assert_array_equal(double.minimisers, single.minimisers)
            exact = jax.jit(double.loss)(jnp.asarray(point, jnp.float64))
            assert exact.dtype == jnp.float64, name
        np.testing.assert_allclose(value, exact, rtol=1e-5, atol=1e-5)


def test_exact_is_refused_where_it_does_not_hold(x64):
    periodic, saddle = problems.periodic_wells(temperature=0.1), problems.quadratic([2.0, -0.5])
    x, z = jnp.array([0.2]), jnp.array([0.2, 0.1])
    with pytest.raises(ValueError, match=r"temperature must be 0.1, where u is known, got 0.2"):
        periodic.exact(x, 0.1, 0.2)
    with pytest.raises(ValueError, match=r"smoothing_time must be less than 2.0"):
        saddle.exact(z, 2.0, 0.2)
    with pytest.raises(ValueError, match="temperature must be finite and at least 0"):
        saddle.exact(z, 1.0, -0.2)
    value_and_grad = jax.jit(jax.value_and_grad(periodic.exact))
    assert np.isfinite(value_and_grad(x, 0.1, jnp.float32(0.1))[0])
    assert np.isnan(jnp.stack([value_and_grad(x, 0.1, 0.2)[0], *value_and_grad(x, 0.1, 0.2)[1]])).all()
    assert np.isnan(jax.jit(saddle.exact)(z, 2.5, 0.0))


def test_the_numbers_are_read_only_and_the_points_are_ordered():
    problem = problems.mueller_brown()
    with pytest.raises(ValueError, match="read-only"):
        problem.minimisers[0, 0] = 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.minimum = 0.0
    points = domain_points(problem, (4, 3))
    np.testing.assert_allclose(points[:, 0, 0], np.linspace(-1.5, 1.2, 4), rtol=1e-6)
    np.testing.assert_allclose(points[0, :, 1], np.linspace(-0.3, 2.1, 3), rtol=1e-6)
    assert problems.evaluate(jax.hessian(problem.loss), points).shape == (4, 3, 2, 2)


def test_set_up_inside_jit_needs_a_concrete_key():
    inside = jax.jit(lambda x: problems.rugged(5, noise_length=1.0).loss(x))(jnp.ones(1))
    np.testing.assert_allclose(inside, problems.rugged(5, noise_length=1.0).loss(jnp.ones(1)), rtol=1e-6)
    with pytest.raises(TypeError, match="key must be concrete"):
        jax.jit(lambda seed: problems.rugged(seed).loss(jnp.ones(1)))(3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: problems.quadratic([[1.0, 2.0], [0.0, 1.0]]), "hessian must be symmetric"),
        (lambda: problems.quadratic(np.ones((2, 3))), r"hessian must be finite, of shape \[d, d\]"),
        (lambda: problems.quadratic([1.0], [1.0, 2.0]), r"linear must be finite, of shape \[1\]"),
        (lambda: problems.absolute_value(0), "dimension must be at least 1, got 0"),
        (lambda: problems.double_well(tilt=1.6), "tilt must be less than .* = 1.5396 in size, got 1.6"),
        (lambda: problems.rugged(frequency=0.0), "frequency must be positive and finite, got 0.0"),
        (lambda: problems.rastrigin(amplitude=0.5), "amplitude must be at least 1, got 0.5"),
        (lambda: problems.periodic_wells(contrast=1.0), r"contrast must be in \[0, 1\)"),
        (lambda: problems.hard_minimum([[0.0]], [-1.0], [0.0]), "hessians must be positive definite"),
        (lambda: problems.hard_minimum([0.0], [1.0], [0.0]), r"centres must be finite, of shape \[m, d\]"),
        (
            lambda: problems.hard_minimum([[0.0]], [1.0, 2.0], [0.0]),
            r"hessians must be finite, of shape \[1\]",
        ),
        (
            lambda: problems.hard_minimum([[0.0]], [1.0], [0.0, 1.0]),
            r"heights must be finite, of shape \[1\]",
        ),
        (
            lambda: problems.sharp_and_wide(advantage=1.0),
            "advantage must be less than .* = 0.460517, got 1.0",
        ),
        (lambda: domain_points(problems.rastrigin(2), (3,)), "shape must have 2 entries, one an axis"),
        (lambda: domain_points(problems.rastrigin(2), 1), "shape must be at least 2, got 1"),
        (lambda: problems.evaluate(jnp.sum, 1.0), r"points must have shape \[..., d\]"),
        (lambda: Problem("p", jnp.sum, [1.0], [0.0], [[0.5]], 0.0), "lower must lie below upper"),
        (lambda: Problem("p", jnp.sum, [0.0], [1.0], [0.5], 0.0), r"minimisers must have shape \[m, 1\]"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
