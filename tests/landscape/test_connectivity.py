"""Lines, barriers and Bézier curves: closed forms, a ring-shaped valley, batches, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from jaxopt_pde import landscape

ANGLE = np.pi / 3
START = {"x": jnp.array(np.cos(ANGLE), jnp.float32), "y": jnp.array(-np.sin(ANGLE), jnp.float32)}
END = {"x": START["x"], "y": -START["y"]}


def ring(params):
    """(|x|² − 1)²: zero on the unit circle."""
    return (params["x"] ** 2 + params["y"] ** 2 - 1.0) ** 2


def scaled_ring(params, batch):
    return jnp.mean(batch) * ring(params)


def well(x):
    return jnp.sum((x**2 - 1.0) ** 2)


def squares(params, batch):
    return jnp.mean((batch["x"] @ params - batch["y"]) ** 2)


@pytest.fixture(scope="module")
def curve():
    """Joins two points of the ring, 120° apart, with noise from minibatches whose mean is 1."""
    rates = optax.linear_schedule(0.5, 0.0, 2_000)
    noise = jnp.linspace(0.5, 1.5, 64)
    arguments = {"optimizer": optax.sgd(rates), "num_steps": 2_000, "batch_size": 8}
    return landscape.connect(scaled_ring, START, END, noise, jax.random.key(0), **arguments)


def test_the_straight_line_across_the_ring_has_the_barrier_of_the_chord():
    """On the chord |x|² − 1 = −4 s (1 − s) sin²α, so that the barrier is sin⁴α, at the middle."""
    barrier = landscape.barrier(ring, START, END)
    assert barrier.mean == pytest.approx(np.sin(ANGLE) ** 4, rel=1e-5)
    assert barrier.standard_error == 0


def test_the_trained_curve_is_the_best_one(curve):
    """Oracle: the mean of f over the curve by Gauss-Legendre quadrature (a polynomial in s), minimised by SciPy.

    It is symmetric, control point (r, 0). SGD stops where its noise leaves it: within 2 % of r.
    """
    nodes, weights = np.polynomial.legendre.leggauss(8)
    s, weights = (nodes + 1) / 2, weights / 2

    def mean_loss(r):
        x = np.cos(ANGLE) * ((1 - s) ** 2 + s**2) + 2 * s * (1 - s) * r
        y = np.sin(ANGLE) * (s**2 - (1 - s) ** 2)
        return weights @ (x**2 + y**2 - 1) ** 2

    best = scipy.optimize.minimize_scalar(mean_loss, bounds=(0.5, 3.0), method="bounded")
    assert float(curve.control["x"]) == pytest.approx(best.x, rel=0.02)
    assert abs(float(curve.control["y"])) < 0.02 * best.x
    bent = landscape.barrier(ring, START, END, control=curve.control).mean
    assert 0 <= bent < 0.02 * np.sin(ANGLE) ** 4


def test_the_ends_stay_to_the_last_bit(curve):
    for fraction, end in ((0.0, START), (1.0, END)):
        point = landscape.curve_point(curve, fraction)
        assert point == end
        assert landscape.interpolate(START, END, fraction) == end
    assert (curve.start, curve.end) == (START, END)


def test_a_curve_on_the_axis_of_symmetry_stays_there_and_one_beside_it_does_not():
    """Across the middle of the ring the gradient lies along the line, and any curve on it passes 0, where f = 1.

    Between neighbouring points of 201 it moves by at most 2·3/200, so that they see f ≥ 1 − 2·0.015² of it.
    """
    start, end = {"x": jnp.array(-1.0), "y": jnp.array(0.0)}, {"x": jnp.array(1.0), "y": jnp.array(0.0)}
    arguments = {"optimizer": optax.sgd(0.1), "num_steps": 2_000}
    controls = []
    for height, least, most in ((0.0, 1.0 - 5e-4, 1.0 + 1e-6), (0.1, 0.0, 0.3)):
        control = {"x": jnp.array(0.0), "y": jnp.array(height)}
        curve = landscape.connect(ring, start, end, None, 0, control=control, **arguments)
        barrier = landscape.barrier(ring, start, end, control=curve.control, num_points=201)
        assert least <= barrier.mean <= most
        controls.append(curve.control)
    assert controls[0]["y"] == 0.0
    assert abs(controls[0]["x"]) < 2.0


def test_bernstein_polynomials():
    """φ against De Casteljau's repeated interpolation, on an array of fractions and a tree with a scalar leaf."""
    points = [
        {"a": jax.random.normal(jax.random.key(i), (3, 2)), "b": jnp.array(float(i**2))} for i in range(3)
    ]
    fractions = jnp.linspace(-0.2, 1.2, 5)
    found = landscape.curve_point(landscape.Curve(*points), fractions)
    for row, s in enumerate(fractions):
        left, right = landscape.interpolate(*points[:2], s), landscape.interpolate(*points[1:], s)
        for name, leaf in landscape.interpolate(left, right, s).items():
            np.testing.assert_allclose(found[name][row], leaf, rtol=1e-5, atol=1e-5)
    line = landscape.curve_point(landscape.straight_line(points[0], points[2]), fractions)
    for name, leaf in landscape.interpolate(points[0], points[2], fractions).items():
        np.testing.assert_allclose(line[name], leaf, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ends", [(-1.0, 1.0), (-1.0, 2.0)])
def test_double_well_has_its_closed_form(ends):
    """(x² − 1)² above its chord: 1 between the minima; else the largest of the cubic's critical values."""
    a, b = ends
    loss = np.poly1d([1, 0, -2, 0, 1])
    chord = np.poly1d([(loss(b) - loss(a)) / (b - a), 0]) + loss(a) - a * (loss(b) - loss(a)) / (b - a)
    rise = loss - chord
    places = [x.real for x in rise.deriv().roots if abs(x.imag) < 1e-9 and a < x.real < b]
    exact = max(rise(x) for x in [*places, a])
    found = landscape.barrier(well, jnp.array([a]), jnp.array([b]), num_points=201)
    # Equidistant points miss the top by at most |(f∘φ)″|/(8·200²) ≤ (b − a)²·44/(8·200²).
    missed = (b - a) ** 2 * 44 / (8 * 200**2)
    assert exact - missed - 1e-5 <= found.mean <= exact + 1e-5


def test_convex_losses_have_no_barrier():
    """With ends of unequal loss; not even one from rounding."""
    curvature = jnp.array([1.0, 30.0])
    loss = lambda x: jnp.sum(curvature * x**2)
    assert landscape.barrier(loss, jnp.array([5.0, 0.1]), jnp.array([-1.0, 7.0])).mean == 0.0


@pytest.fixture(scope="module")
def regression():
    keys = jax.random.split(jax.random.key(4), 3)
    x = jax.random.normal(keys[0], (50, 3))
    data = {"x": x, "y": jnp.sum(x, axis=1) + 0.5 * jax.random.normal(keys[1], (50,))}
    return data, jnp.zeros(3), 2.0 * jnp.ones(3)


def test_losses_do_not_depend_on_how_the_data_were_cut(regression):
    """All at once, in batches with a rest, from a loader; the batch error of equal batches by NumPy."""
    data, start, end = regression
    line, s = landscape.straight_line(start, end), jnp.linspace(0.0, 1.0, 4)
    whole = landscape.curve_losses(squares, line, s, data=data)
    direct = [squares((1 - f) * start + f * end, data) for f in s]
    np.testing.assert_allclose(whole.mean, jnp.stack(direct), rtol=1e-5)
    assert whole.batch_error is None
    assert np.all(np.isnan(whole.standard_error))
    parts = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 12], data) for i in range(0, 50, 12)]
    cut = landscape.curve_losses(squares, line, s, data=data, batch_size=12)
    loaded = landscape.curve_losses(squares, line, s, data=lambda: iter(parts))
    np.testing.assert_allclose(cut.mean, whole.mean, rtol=1e-5)
    np.testing.assert_allclose(loaded.mean, cut.mean, rtol=1e-6)
    np.testing.assert_allclose(loaded.standard_error, cut.standard_error, rtol=1e-5)
    values = np.array(
        [
            [float(squares((1 - f) * start + f * end, part)) for f in s]
            for part in (jax.tree.map(lambda leaf, i=i: leaf[i : i + 10], data) for i in range(0, 50, 10))
        ]
    )
    even = landscape.curve_losses(squares, line, s, data=data, batch_size=10)
    np.testing.assert_allclose(even.batch_error, values.std(axis=0, ddof=1) / np.sqrt(5), rtol=1e-4)


def test_the_error_of_a_barrier_is_of_the_rise_alone():
    """Batches that differ in their level alone, far more than in the rise: the levels cancel, the rise's spread stays.

    f = level + height·(1 − x²) on [−1, 1], the data (level, height): the rise at the middle is the mean height.
    """
    data = jnp.stack([100.0 * jnp.arange(6.0), jnp.array([0.9, 1.1, 1.2, 0.8, 1.0, 1.0])], axis=1)
    loss = lambda x, batch: jnp.mean(batch[:, 0] + batch[:, 1] * (1.0 - jnp.sum(x**2)))
    found = landscape.barrier(
        loss, jnp.array([-1.0]), jnp.array([1.0]), data=data, batch_size=1, num_points=5
    )
    heights = np.asarray(data[:, 1])
    assert found.mean == pytest.approx(1.0, abs=1e-4)
    assert found.batch_error == pytest.approx(heights.std(ddof=1) / np.sqrt(6), rel=1e-3)


def test_the_second_call_compiles_nothing(regression):
    data, start, end = regression
    traces = []

    def counted(params, batch):
        traces.append(None)
        return squares(params, batch)

    for shift in (0.0, 1.0, 2.0):
        landscape.barrier(counted, start + shift, end, data=data, batch_size=25, num_points=3)
        if not shift:
            first = len(traces)
    assert len(traces) == first


def test_bad_input(regression):
    data, start, end = regression
    line = landscape.straight_line(start, end)
    with pytest.raises(ValueError, match="end gave a leaf of shape"):
        landscape.barrier(well, start, jnp.zeros(4))
    with pytest.raises(ValueError, match="control gave a leaf of shape"):
        landscape.barrier(well, start, end, control=jnp.zeros(4))
    with pytest.raises(TypeError, match="start has dtype int32"):
        landscape.interpolate(jnp.zeros(2, int), jnp.ones(2), 0.5)
    with pytest.raises(ValueError, match="num_points must be at least 3"):
        landscape.barrier(well, start, end, num_points=2)
    with pytest.raises(ValueError, match="loss_fn must return a scalar"):
        landscape.barrier(lambda x: x, start, end)
    with pytest.raises(ValueError, match="fractions must be a vector"):
        landscape.curve_losses(well, line, 0.5)
    with pytest.raises(ValueError, match="at least one example"):
        landscape.curve_losses(squares, line, jnp.zeros(2), data=jnp.zeros((0, 3)))
    with pytest.raises(ValueError, match="batch_size must be None without data"):
        landscape.curve_losses(well, line, jnp.zeros(2), batch_size=3)
    with pytest.raises(ValueError, match="gave no batches"):
        landscape.curve_losses(squares, line, jnp.zeros(2), data=lambda: iter(()))
    arguments = {"optimizer": optax.sgd(0.1), "num_steps": 3}
    with pytest.raises(TypeError, match="optimizer must be an optax transformation"):
        landscape.connect(squares, start, end, data, 0, optimizer=0.1, num_steps=3)
    with pytest.raises(TypeError, match="data must be a tree of arrays"):
        landscape.connect(squares, start, end, lambda: iter([data]), 0, **arguments)
    with pytest.raises(ValueError, match="batch_size must be None without data"):
        landscape.connect(well, start, end, None, 0, batch_size=2, **arguments)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        landscape.connect(well, start, end, None, 0, **arguments | {"num_steps": 0})


def test_everything_runs_inside_an_outer_jit(regression):
    """Trained and measured in one program, with the seed, the ends and the data as its arguments."""
    data, start, end = regression

    @jax.jit
    def run(start, end, data, key):
        arguments = {"optimizer": optax.sgd(0.05), "num_steps": 5, "batch_size": 8}
        curve = landscape.connect(squares, start, end, data, key, **arguments)
        return curve, landscape.barrier(squares, start, end, control=curve.control, data=data, batch_size=25)

    curve, barrier = run(start, end, data, jax.random.key(5))
    plain = landscape.connect(
        squares, start, end, data, 5, optimizer=optax.sgd(0.05), num_steps=5, batch_size=8
    )
    np.testing.assert_allclose(curve.control, plain.control, rtol=1e-5)
    again = landscape.barrier(squares, start, end, control=plain.control, data=data, batch_size=25)
    np.testing.assert_allclose(barrier.mean, again.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(barrier.batch_error, again.batch_error, rtol=1e-3, atol=1e-5)
