"""FGSM and projected gradients: linear models by closed form, the ball and the box, keys, honesty about success."""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_pde.robustness import AttackResult, error_curve, fgsm, pgd
from jaxopt_pde.robustness._checks import check_labels
from jaxopt_pde.robustness._steps import image_norm, project, uniform_in_ball

NORMS = (1, 2, math.inf)
DUAL = {1: math.inf, 2: 2, math.inf: 1}
NUM_IMAGES, SIZE, CLASSES = 24, 6, 4
KEY = jax.random.key(7)
UNBOUNDED = (-math.inf, math.inf)


def linear(weights, x):
    return x.reshape(len(x), -1) @ weights


def tanh_net(params, x):
    first, second = params
    return jnp.tanh(x.reshape(len(x), -1) @ first) @ second


@pytest.fixture(scope="module")
def problem():
    """Images, the labels a tanh network gives them but for every sixth, and the network."""
    keys = jax.random.split(jax.random.key(3), 3)
    x = jax.random.uniform(keys[0], (NUM_IMAGES, SIZE))
    params = (3 * jax.random.normal(keys[1], (SIZE, 8)), jax.random.normal(keys[2], (8, CLASSES)))
    y = tanh_net(params, x).argmax(-1)
    y = jnp.where(jnp.arange(NUM_IMAGES) % 6 == 5, (y + 1) % CLASSES, y)
    return functools.partial(tanh_net, params), x, y


def linear_problem(scale=1.0):
    """A linear model, images and labels, all classified as labelled, and the distance to the boundary per norm."""
    keys = jax.random.split(jax.random.key(5), 2)
    weights = scale * jax.random.normal(keys[0], (SIZE, 2))
    x = jax.random.normal(keys[1], (NUM_IMAGES, SIZE))
    logits = x @ weights
    y = logits.argmax(-1)
    difference = np.asarray(weights[:, 0] - weights[:, 1], np.float64)
    margin = np.asarray(jnp.abs(logits[:, 0] - logits[:, 1]), np.float64)
    return (
        functools.partial(linear, weights),
        x,
        y,
        {p: margin / np.linalg.norm(difference, DUAL[p]) for p in NORMS},
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [fgsm, functools.partial(pgd, num_steps=12)], ids=["fgsm", "pgd"])
def test_linear_models_break_exactly_beyond_the_distance_of_the_hyperplane(attack, norm):
    """δ = |margin|/‖w_i - w_j‖_q, [n] radii a thousandth on either side; rounding is 1e-6 of the radius."""
    model, x, y, distances = linear_problem()
    inside, outside = (
        attack(model, x, y, KEY, radius=jnp.asarray(distances[norm] * factor), norm=norm, bounds=UNBOUNDED)
        for factor in (0.999, 1.001)
    )
    assert not inside.success.any()
    assert outside.success.all()
    np.testing.assert_allclose(outside.distance, distances[norm] * 1.001, rtol=1e-4)


def test_the_loss_is_the_cross_entropy_or_the_margin_of_what_is_returned(problem):
    model, x, y = problem
    result = fgsm(model, x, y, KEY, radius=0.05)
    logits = model(result.x)
    np.testing.assert_allclose(
        result.loss, -jax.nn.log_softmax(logits)[jnp.arange(len(y)), y], rtol=1e-4, atol=1e-6
    )
    result = fgsm(model, x, y, KEY, radius=0.05, loss="margin")
    logits = np.array(model(result.x))
    true = logits[np.arange(len(y)), y]
    logits[np.arange(len(y)), y] = -np.inf
    np.testing.assert_allclose(result.loss, logits.max(-1) - true, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [pytest.param(1, marks=pytest.mark.slow), 2, math.inf])
def test_pgd_breaks_what_fgsm_breaks_and_restarts_never_do_worse(problem, norm):
    model, x, y = problem
    radius = {1: 0.4, 2: 0.2, math.inf: 0.1}[norm]
    single = fgsm(model, x, y, KEY, radius=radius, norm=norm)
    once = pgd(model, x, y, KEY, radius=radius, norm=norm, num_steps=8)
    thrice = pgd(model, x, y, KEY, radius=radius, norm=norm, num_steps=8, restarts=3)
    assert jnp.all(once.success >= single.success)
    assert jnp.all(thrice.success >= once.success)
    same = once.success == thrice.success  # success comes first, then the loss
    assert jnp.all(jnp.where(same, thrice.loss >= once.loss - 1e-5, True))
    assert 0 < once.success.mean() < 1  # the radius discriminates
    assert jnp.any(thrice.loss > once.loss + 1e-4)
    for result in (
        single,
        once,
        thrice,
    ):  # what is returned is in the box and the ball, and it is what was judged
        assert result.x.min() >= 0
        assert result.x.max() <= 1
        moved = np.linalg.norm(np.asarray(result.x - x, np.float64), norm, axis=-1)
        assert moved.max() <= radius * (1 + 1e-5)
        np.testing.assert_allclose(result.distance, moved, rtol=1e-5)
        np.testing.assert_array_equal(result.success, model(result.x).argmax(-1) != y)


def test_misclassified_images_are_returned_as_they_are(problem):
    model, x, y = problem
    wrong = model(x).argmax(-1) != y
    assert wrong.sum() == NUM_IMAGES // 6
    result = pgd(model, x, y, KEY, radius=0.1, num_steps=8)
    assert jnp.all(result.success[wrong])
    assert not result.distance[wrong].any()
    np.testing.assert_array_equal(result.x[wrong], x[wrong])
    assert jnp.all(result.distance[~wrong] > 0)


@given(
    radius=st.floats(0.01, 3),
    norm=st.sampled_from(NORMS),
    seed=st.integers(0, 2**31),
    scale=st.floats(0.1, 10),
)
@settings(max_examples=30)
def test_projections_respect_ball_and_box_and_are_nearest(radius, norm, seed, scale):
    """No point of the ball is nearer: (v - Πv)·(u - Πv) ≤ 0 for u in the ball, to rounding."""
    random = np.random.default_rng(seed)
    centre = random.uniform(size=(8, 5)).astype(np.float32)
    point = (centre + scale * random.standard_normal((8, 5))).astype(np.float32)
    radii = jnp.full(8, radius, jnp.float32)
    within = _project(point, centre, radii, norm, (0.0, 1.0))
    assert within.min() >= 0
    assert within.max() <= 1
    assert np.all(image_norm(within - centre, norm) <= radius + 1e-6 * (1 + radius))
    nearest = _project(point, centre, radii, norm, UNBOUNDED)
    other = centre + np.asarray(_draw(jax.random.split(jax.random.key(seed), 8), radii, norm))
    rounding = 1e-5 * (1 + radius) * (1 + scale) ** 2
    assert np.all(np.sum((point - nearest) * (other - nearest), -1) <= rounding)


_project = jax.jit(lambda *a: project(*a), static_argnums=(3, 4))
_draw = jax.jit(
    lambda keys, radii, norm: uniform_in_ball(keys, jnp.zeros((8, 5)), radii, norm), static_argnums=2
)


@pytest.mark.parametrize("norm", NORMS)
def test_starts_are_uniform_in_the_ball(norm):
    """(‖a‖/r)^d is uniform on [0, 1]: mean ½, variance 1/12; the direction is symmetric. Four standard errors."""
    draws = uniform_in_ball(
        jax.random.split(KEY, 20_000), jnp.zeros((20_000, 5)), jnp.full(20_000, 2.0), norm
    )
    share = np.asarray(image_norm(draws, norm) / 2, np.float64) ** 5
    assert share.max() <= 1 + 1e-5
    error = 1 / math.sqrt(12 * 20_000)
    assert abs(share.mean() - 1 / 2) < 4 * error
    assert abs((share**2).mean() - 1 / 3) < 4 * math.sqrt((1 / 5 - 1 / 9) / 20_000)
    assert np.all(np.abs(draws.mean(0)) < 4 * draws.std(0) / math.sqrt(20_000))


@pytest.mark.parametrize("norm", [2, math.inf])
def test_keys_images_and_jit_decide_nothing_else(problem, norm):
    """The same key the same attack; split with its images' keys, or traced, the same again, to rounding."""
    model, x, y = problem
    attack = functools.partial(pgd, radius=0.1, norm=norm, num_steps=5, loss="margin")
    whole = attack(model, x, y, KEY)
    again = attack(model, x, y, KEY)
    np.testing.assert_array_equal(whole.x, again.x)
    assert jnp.any(attack(model, x, y, jax.random.key(8)).x != whole.x)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(NUM_IMAGES))
    half = NUM_IMAGES // 2
    parts = [attack(model, x[s], y[s], keys[s]) for s in (slice(half), slice(half, None))]
    joined = jax.tree.map(lambda *p: jnp.concatenate(p), *parts)
    np.testing.assert_allclose(joined.loss, whole.loss, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(joined.success, whole.success)
    traced = jax.jit(lambda params, x: attack(functools.partial(tanh_net, params), x, y, KEY))(
        model.args[0], x
    )
    np.testing.assert_allclose(traced.loss, whole.loss, rtol=1e-4, atol=1e-4)


def test_a_second_call_compiles_nothing_for_new_weights_radii_and_keys(problem):
    model, x, y = problem
    traces = []

    def counted(params, x):
        traces.append(1)
        return tanh_net(params, x)

    pgd(functools.partial(counted, model.args[0]), x, y, KEY, radius=0.1, num_steps=2)
    before = len(traces)
    weights = jax.tree.map(lambda p: 2 * p, model.args[0])
    pgd(functools.partial(counted, weights), x, y, jax.random.key(1), radius=0.2, num_steps=2)
    assert len(traces) == before + 1  # the shape check of logits_fn alone


def test_no_gradient_flows_through_an_attack(problem):
    """Adversarial training differentiates the loss at the attacked image: with and without the attack inside."""
    model, x, y = problem

    def loss(params, attacked):
        return jnp.sum(tanh_net(params, attacked) ** 2)

    def attack(params):
        return pgd(functools.partial(tanh_net, params), x, y, KEY, radius=0.1, num_steps=2).x

    inside = jax.grad(lambda params: loss(params, attack(params)))(model.args[0])
    outside = jax.grad(loss)(model.args[0], attack(model.args[0]))
    for got, expected in zip(inside, outside, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("norm", [2, math.inf])
def test_saturated_and_faint_logits_hide_nothing(loss, norm):
    """Multiplying logits by 1000 (softmax saturates) or by 1e-30 (squares underflow) moves no boundary."""
    for scale in (1e3, 1e-30):
        model, x, y, distances = linear_problem(scale)
        radius = jnp.asarray(distances[norm] * 1.01)
        result = pgd(model, x, y, KEY, radius=radius, norm=norm, num_steps=12, bounds=UNBOUNDED, loss=loss)
        assert result.success.all()


def test_a_model_without_gradient_or_with_nan_is_not_broken():
    x, y = jnp.full((3, 2), 0.5), jnp.zeros(3, int)
    flat = pgd(lambda x: jnp.zeros((len(x), 2)), x, y, KEY, radius=0.1, norm=2, num_steps=2)
    assert not flat.success.any()  # ties are not misclassified
    for column in (0, 1):
        logits = lambda x, column=column: x.at[:, column].set(jnp.nan) * jnp.array([[1.0, 2.0]])
        with pytest.warns(UserWarning, match="logits of 3 of 3 images are NaN"):
            broken = pgd(logits, x, y, KEY, radius=0.1, norm=2, num_steps=2)
        assert not broken.success.any()
        assert jnp.isnan(broken.loss).all()
        assert jnp.isfinite(broken.x).all()
        assert jnp.isfinite(broken.distance).all()


def test_a_traced_radius_below_zero_moves_nothing():
    x, y = jnp.array([[0.6, 0.4]]), [0]
    found = jax.jit(lambda r: pgd(lambda x: x, x, y, KEY, radius=r, norm=2, num_steps=2))(-1.0)
    np.testing.assert_array_equal(found.x, x)
    assert not found.success.any()


def test_probabilities_for_logits_warn(problem):
    model, x, y = problem
    with pytest.warns(UserWarning, match="look like probabilities"):
        fgsm(lambda x: jax.nn.softmax(model(x)), x, y, KEY, radius=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fgsm(model, x, y, KEY, radius=0.1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"x": jnp.array([[0.5, 1.5]])},
            ValueError,
            r"x must lie in bounds=\(0.0, 1.0\), got .* from 0.5 to 1.5",
        ),
        ({"x": jnp.array([[0.5, jnp.nan]])}, ValueError, "x must lie in bounds"),
        ({"x": jnp.array([[1, 0]])}, TypeError, "x has dtype int32, expected a floating dtype"),
        ({"x": jnp.array([0.5, 0.5])}, ValueError, r"x must be an array of images \[n, ...\]"),
        ({"radius": 0.0}, ValueError, "radius must be positive and finite, got 0.0"),
        ({"radius": -jnp.ones(1)}, ValueError, "radius must be positive"),
        ({"radius": jnp.ones(2)}, ValueError, r"radius must be a scalar or have shape \(1,\)"),
        ({"radius": "0.1"}, TypeError, "radius must be a number"),
        ({"step_size": -1.0}, ValueError, "step_size must be positive"),
        ({"norm": 3}, ValueError, "norm must be one of 1, 2, inf, got 3"),
        ({"loss": "hinge"}, ValueError, "loss must be one of 'cross_entropy', 'margin'"),
        ({"y": jnp.array([2])}, ValueError, r"y must lie in \[0, 2\), got labels from 2 to 2"),
        ({"y": jnp.array([0.0])}, TypeError, "y must be integer"),
        ({"bounds": (1.0, 0.0)}, ValueError, "bounds must be a pair low < high"),
        ({"bounds": 1.0}, ValueError, "bounds must be a pair"),
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1"),
        ({"restarts": 1.5}, TypeError, "restarts must be a Python integer"),
        ({"logits_fn": lambda x: x[:, :1]}, ValueError, "logits_fn must give logits"),
        ({"logits_fn": 3}, TypeError, "logits_fn must be a function"),
        ({"key": jax.random.split(KEY, 3)}, ValueError, "key must be one key or 1 keys"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"logits_fn": lambda x: x, "x": jnp.array([[0.6, 0.4]]), "y": jnp.array([0]), "key": KEY}
    arguments |= {"radius": 0.1, "norm": 2} | change
    with pytest.raises(error, match=message):
        pgd(**arguments)


def test_concrete_labels_are_checked_inside_a_trace():
    """A JAX array that a traced function closes over is concrete, though what is computed from it is not."""

    def checked(labels):
        return jax.make_jaxpr(lambda x: check_labels(labels, 2, 3) or x)(0.0)

    checked(jnp.array([0, 2]))
    with pytest.raises(ValueError, match=r"y must lie in \[0, 3\), got labels from 0 to 3"):
        checked(jnp.array([0, 3]))


def test_error_curves_are_the_step_function_of_the_distances():
    distance = jnp.array([0.3, 0.0, jnp.inf, 0.1, 0.2])
    result = AttackResult(distance[:, None], distance, jnp.isfinite(distance), distance)
    curve = error_curve(result, jnp.array([0.0, 0.05, 0.2, 9.0]))
    np.testing.assert_allclose(curve.error, [0.2, 0.2, 0.6, 0.8])
    assert curve.median == jnp.float32(0.2)
    np.testing.assert_array_equal(error_curve(result).radii, jnp.sort(distance))
    # Wilson 1927 for 1 of 5 at 95 %: the roots of |p - 1/5| = z √(p(1 - p)/5).
    for end in (curve.error_low[0], curve.error_high[0]):
        np.testing.assert_allclose(abs(end - 0.2), 1.959964 * math.sqrt(end * (1 - end) / 5), rtol=1e-4)
    # Two stacked attacks: the nearest success counts, and a failure's distance does not.
    failed = result._replace(success=jnp.zeros(5, bool), distance=distance * 0.01)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), failed, result)
    np.testing.assert_allclose(error_curve(stacked, jnp.array([0.15])).error, [0.4], rtol=1e-6)
    with pytest.raises(ValueError, match=r"confidence must be a number in \(0, 1\), got 95"):
        error_curve(result, confidence=95)


def test_intervals_of_the_median_cover():
    """The order-statistic interval holds in at least 95 % of samples, less four standard errors."""
    samples = jnp.asarray(np.random.default_rng(0).exponential(size=(2000, 41)).astype(np.float32))

    def covers(distance):
        found = jnp.ones(distance.shape, bool)
        curve = error_curve(AttackResult(distance[:, None], distance, found, distance))
        return (curve.median_low <= math.log(2)) & (math.log(2) <= curve.median_high)

    share = jax.jit(jax.vmap(covers))(samples).mean()
    assert 0.95 - 4 * math.sqrt(0.05 * 0.95 / 2000) <= share <= 0.99
