"""McShane-Whitney extensions and the clean-label theorem: attained labels, extremality, rates, norms on the labels."""

import functools
import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.extra.numpy import arrays

from jaxopt_pde import robustness

NORMS = (1, 2, math.inf)
DUAL = {1: math.inf, 2: 2, math.inf: 1}
POINTS, QUERIES = 6, 8
COORDINATE = st.floats(-1, 1).map(lambda value: round(value, 3))  # no gaps whose square underflows


@functools.partial(jax.jit, static_argnames="norm")
def extended(points, labels, queries, norm):
    """L, the extension at the queries and at the points, and the steepest slopes of all of it, as one program."""
    slope = robustness.lipschitz_constant(points, labels, norm=norm)
    extend = robustness.lipschitz_extension(points, labels, lipschitz=slope, norm=norm)
    everywhere = jnp.concatenate([points, queries])
    values = extend(everywhere)
    return slope, values, [robustness.lipschitz_constant(everywhere, v, norm=norm) for v in values]


@hypothesis.settings(max_examples=20)
@hypothesis.given(
    points=arrays(np.float64, (POINTS, 2), elements=COORDINATE, unique=True),
    labels=arrays(np.float64, POINTS, elements=COORDINATE),
    queries=arrays(np.float64, (QUERIES, 2), elements=COORDINATE),
    norm=st.sampled_from(NORMS),
)
def test_extensions_attain_the_labels_and_are_no_steeper_than_them(points, labels, queries, norm):
    """On any data, in all three norms: u(xᵢ) = uᵢ, Lip(u) = Lip(data), and lower ≤ midpoint ≤ upper."""
    with jax.enable_x64(True):
        slope, values, slopes = jax.tree.map(np.asarray, extended(points, labels, queries, norm))
    for value, steepest in zip(values, slopes, strict=True):
        # Rounding of labels of order L·diameter ≤ 4 L, over distances of at least 1e-3.
        np.testing.assert_allclose(value[:POINTS], labels, atol=1e-14 * (1 + slope))
        assert steepest <= slope * (1 + 1e-9) + 1e-11
    assert (values.lower <= values.midpoint + 1e-14 * (1 + slope)).all()
    assert (values.midpoint <= values.upper + 1e-14 * (1 + slope)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_every_interpolant_lies_between(x64, norm):
    """|g·(x − a)| with ‖g‖_q ≤ L is L-Lipschitz in ‖·‖_p; sampled, it stays between the extensions of its samples."""
    g = jnp.array([1.0, -2.0, 0.5])
    truth = lambda x: jnp.abs(x @ g - 0.2)
    slope = jnp.linalg.norm(g, DUAL[norm])
    points, queries = jax.random.uniform(jax.random.key(0), (2, 40, 3))
    extend = robustness.lipschitz_extension(points, truth(points), lipschitz=slope, norm=norm)
    upper, lower, midpoint = extend(queries)
    assert (lower <= truth(queries) + 1e-13).all()
    assert (truth(queries) <= upper + 1e-13).all()
    # The midpoint halves the worst error, L·fill in place of 2 L·fill.
    fill = robustness.fill_distance(points, queries, norm=norm)
    assert jnp.abs(midpoint - truth(queries)).max() <= slope * fill * (1 + 1e-12)
    # Extremal: with the query appended at the value of u⁺ or u⁻ the data are exactly L-Lipschitz, no slack left.
    for value in (upper[0], lower[0]):
        extra = jnp.concatenate([points, queries[:1]]), jnp.append(truth(points), value)
        rises = jnp.abs(extra[1][:-1] - value) / jnp.linalg.norm(points - queries[:1], norm, axis=1)
        assert float(rises.max()) == pytest.approx(float(slope), rel=1e-12)


def worst_errors(sizes, slope, sample, truth, queries):
    """max|u⁺ − u0| for each n, and its largest ratio to 2 L·fill, on the same queries."""
    errors, ratios = [], []
    for n in sizes:
        points = sample(n)
        values = robustness.lipschitz_extension(points, truth(points), lipschitz=slope, check=False)(queries)
        error = max(float(jnp.abs(value - truth(queries)).max()) for value in values[:2])
        errors.append(error)
        ratios.append(error / (2 * slope * float(robustness.fill_distance(points, queries))))
    return errors, max(ratios)


def test_clean_labels_in_one_dimension(x64):
    """Uniform points, Lip u0 = L/2: the slope is −1 ± .02 and the error at most 2 L·fill, .75 of it as derived."""
    queries = jnp.linspace(0, 1, 4001)
    truth = lambda x: jnp.sin(2 * x) / 4
    sizes = [16, 64, 256]
    sample = lambda n: (jnp.arange(n) + 0.5) / n
    errors, ratio = worst_errors(sizes, 1.0, sample, truth, queries)
    assert np.polyfit(np.log(sizes), np.log(errors), 1)[0] == pytest.approx(-1, abs=0.02)
    assert ratio <= 1 + 1e-9
    # At the ends u⁺ rises by L·fill while u0 falls by L·fill/2 at most.
    assert ratio == pytest.approx(0.75, abs=0.01)


def test_the_bound_is_attained_and_never_exceeded(x64):
    """A u0 of slope exactly L up to the boundary has ratio 1; random points never exceed it."""
    queries = jnp.linspace(0, 1, 1001)
    _, ratio = worst_errors([16], 1.0, lambda n: (jnp.arange(n) + 0.5) / n, lambda x: 0.3 - x, queries)
    assert ratio == pytest.approx(1, abs=1e-9)
    random = lambda n: jax.random.uniform(jax.random.key(n), (n, 2))
    axis = jnp.linspace(0, 1, 30)
    plane = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    _, ratio = worst_errors([20, 80], 1.0, random, lambda x: jnp.linalg.norm(x - 0.5, axis=1), plane)
    assert ratio <= 1 + 1e-9


def test_vector_labels_keep_the_constant_in_the_max_norm_only(x64):
    """Labels (0, 0) and (1, 1): between the points u⁺ of both components climbs at slope L together, √2 L in ‖·‖₂."""
    points, labels = jnp.array([[0.0], [4.0]]), jnp.array([[0.0, 0.0], [1.0, 1.0]])
    queries = jnp.linspace(-2, 6, 81)[:, None]
    values = robustness.lipschitz_extension(points, labels, lipschitz=1.0)(queries)
    assert values.upper.shape == (81, 2)
    for value in values[:2]:
        slope = lambda norm, value=value: float(
            robustness.lipschitz_constant(queries, value, output_norm=norm)
        )
        assert slope("inf") == pytest.approx(1, rel=1e-12)
        assert slope(2) == pytest.approx(math.sqrt(2), rel=1e-12)
    alone = robustness.lipschitz_extension(points, labels[:, 1], lipschitz=1.0)(queries)
    np.testing.assert_array_equal(values.midpoint[:, 1], alone.midpoint)


def test_lipschitz_constant_and_fill_distance_against_all_pairs(x64):
    keys = jax.random.split(jax.random.key(0), 3)
    points, queries = jax.random.normal(keys[0], (15, 2, 2)), jax.random.normal(keys[1], (7, 2, 2))
    labels = jax.random.normal(keys[2], (15, 3))
    flat, others, targets = np.reshape(points, (15, 4)), np.reshape(queries, (7, 4)), np.asarray(labels)

    @jax.jit
    def numbers(points, queries, labels):
        constants = [
            robustness.lipschitz_constant(points, labels, norm=norm, output_norm=output_norm, chunk_size=5)
            for norm, output_norm in itertools.product(NORMS, NORMS)
        ]
        rest = robustness.lipschitz_constant(points, labels, chunk_size=4)  # 15 is not a multiple
        fills = [robustness.fill_distance(points, queries, norm=norm, chunk_size=3) for norm in NORMS]
        return constants, rest, fills

    constants, rest, fills = numbers(points, queries, labels)
    for got, (norm, output_norm) in zip(constants, itertools.product(NORMS, NORMS), strict=True):
        steepest = max(
            np.linalg.norm(targets[i] - targets[j], output_norm) / np.linalg.norm(flat[i] - flat[j], norm)
            for i, j in itertools.combinations(range(15), 2)
        )
        assert float(got) == pytest.approx(steepest, rel=1e-13)
    assert float(rest) == pytest.approx(
        float(constants[NORMS.index(2) * 3 + NORMS.index(math.inf)]), rel=1e-13
    )
    for got, norm in zip(fills, NORMS, strict=True):
        fill = max(min(np.linalg.norm(q - x, norm) for x in flat) for q in others)
        assert float(got) == pytest.approx(fill, rel=1e-13)
    twice = jnp.concatenate([points, points[:1]])
    assert robustness.lipschitz_constant(twice, jnp.arange(16.0)) == math.inf
    assert robustness.lipschitz_constant(points[:1], labels[:1]) == 0
    assert float(robustness.lipschitz_constant(twice, jnp.ones(16))) == 0


def test_chunks_jit_and_gradients_change_nothing(x64):
    points, queries = jax.random.normal(jax.random.key(0), (2, 9, 2))
    labels = points[:, 0] ** 2
    extend = lambda **options: robustness.lipschitz_extension(points, labels, lipschitz=9.0, **options)
    whole = extend()(queries)

    @jax.jit
    def others(queries):
        # Almost everywhere |∇u⁺| = L; at a data point a subgradient, never NaN.
        upper = lambda places: extend()(places).upper.sum()  # each value of its own query alone
        slopes = jax.grad(upper)(jnp.concatenate([queries, points]))
        return [extend(chunk_size=size)(queries) for size in (None, 1, 4)], slopes

    chunked, slopes = others(queries)
    for other in chunked:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), other, whole)
    np.testing.assert_allclose(np.linalg.norm(slopes[:9], axis=1), 9.0, rtol=1e-12)
    assert np.isfinite(slopes).all()


def test_labels_that_are_too_steep():
    """Refused by the constant they would need; float32 labels are accepted at their own constant."""
    points, labels = jnp.array([[0.0], [1.0], [3.0]]), jnp.array([0.0, 2.0, 2.0])
    with pytest.raises(ValueError, match=r"at least the Lipschitz constant of the labels, 2 .*, got 1\.5"):
        robustness.lipschitz_extension(points, labels, lipschitz=1.5)
    with pytest.raises(ValueError, match="labels, inf"):
        robustness.lipschitz_extension(jnp.zeros((2, 1)), jnp.arange(2.0), lipschitz=1.5)
    # Unchecked: u⁺ is the largest L-Lipschitz function below the labels, u⁻ the smallest above.
    upper, lower, _ = robustness.lipschitz_extension(points, labels, lipschitz=1.5, check=False)(points)
    np.testing.assert_allclose(upper, [0.0, 1.5, 2.0])
    np.testing.assert_allclose(lower, [0.5, 2.0, 2.0])
    random = jax.random.normal(jax.random.key(0), (50, 20))
    own = robustness.lipschitz_constant(random, random[:, 0])
    robustness.lipschitz_extension(random, random[:, 0], lipschitz=own)


def test_a_point_or_label_that_is_nan_makes_the_constant_nan():
    """Not inf, which means two labels at one point, nor the constant of the others."""
    points, labels = jnp.array([0.0, 0.5, 1.0]), jnp.array([0.0, 5.0, 0.0])
    for where in (0, 1, 2):
        assert jnp.isnan(robustness.lipschitz_constant(points.at[where].set(jnp.nan), labels))
        assert jnp.isnan(robustness.lipschitz_constant(points, labels.at[where].set(jnp.nan)))


def test_bad_input():
    points, labels = jnp.zeros((3, 2)), jnp.zeros(3)
    extension = functools.partial(robustness.lipschitz_extension, points, labels)
    with pytest.raises(ValueError, match="lipschitz must be finite and at least 0, got -1"):
        extension(lipschitz=-1.0)
    with pytest.raises(ValueError, match="norm must be one of 1, 2, inf, got 0"):
        extension(lipschitz=1.0, norm=0)
    with pytest.raises(ValueError, match=r"labels must have shape \[3\] or \[3, k\], got \(2,\)"):
        robustness.lipschitz_extension(points, jnp.zeros(2), lipschitz=1.0)
    with pytest.raises(ValueError, match=r"points must have shape \[n ≥ 1"):
        robustness.lipschitz_constant(jnp.zeros((0, 2)), jnp.zeros(0))
    with pytest.raises(ValueError, match=r"queries must have shape \[m, 2\], got \(4, 3\)"):
        extension(lipschitz=1.0)(jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match="queries must have the trailing shape of points"):
        robustness.fill_distance(points, jnp.zeros((4, 3)))
    with pytest.raises(TypeError, match="labels has dtype int32"):
        robustness.lipschitz_constant(points, jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        extension(lipschitz=1.0, chunk_size=0)
